//! Which part of a disk a command works on, and thereby which task attribute it has.

use std::ops::Range;

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: u64 = 512;
pub(crate) const DISKS: usize = 3;
/// Which of them may tear a block that two commands touch at once: memory and files are copied, not exchanged. A cache
/// exchanges its blocks.
pub(crate) const TEARS: [bool; DISKS] = [false, true, true];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Simple,
    Ordered,
    Head,
    /// COMPARE AND WRITE that is SIMPLE.
    Atomic,
    /// VERIFY, over everything from the counter of `Atomic` on.
    Job,
}

impl Part {
    pub(crate) const fn attribute(self) -> u8 {
        match self {
            Part::Ordered => 1,
            Part::Head => 2,
            Part::Simple | Part::Atomic | Part::Job => 0,
        }
    }

    /// Blocks for what reads and writes.
    pub(crate) const fn blocks(self) -> Range<u64> {
        match self {
            Part::Simple => 0..128,
            Part::Ordered => 128..176,
            Part::Head => 192..240,
            Part::Atomic => 256..257,
            Part::Job => 256..512,
        }
    }

    /// Two blocks that hold a counter.
    pub(crate) const fn counter(self) -> u64 {
        match self {
            Part::Ordered => 184,
            Part::Head => 248,
            Part::Simple | Part::Atomic | Part::Job => 256,
        }
    }
}
