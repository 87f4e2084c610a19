//! Rules by which the simulated world goes wrong.

use std::ops::Range;
use std::os::fd::RawFd;

/// Which kind of entry a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, dsync or not.
    Write,
    /// Syncs.
    Sync,
    /// Punch hole and zero range.
    Fallocate,
    /// Discards of a block device.
    Discard,
}

/// What happens to an entry that a rule catches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this `errno` and does nothing.
    Error(i32),
    /// It transfers at least one sector less than asked, at least one in all.
    Short,
    /// It completes only after [`release`](super::SimWorld::release) or a cancel.
    Stuck,
    /// As `Stuck`, but no cancel reaches it.
    Deaf,
    /// It takes this much longer.
    Delay(u64),
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Of which file; `None`: of every one.
    pub fd: Option<RawFd>,
    /// Of which kind of entry.
    pub kind: Kind,
    /// Only entries that begin in this range of bytes.
    pub range: Range<u64>,
    /// How many times of a hundred.
    pub percent: u64,
    /// How often at most.
    pub times: u64,
    /// What happens.
    pub effect: Effect,
}

impl Fault {
    /// A rule that catches every entry of this kind.
    #[must_use]
    pub const fn always(kind: Kind, effect: Effect) -> Self {
        Fault { fd: None, kind, range: 0..u64::MAX, percent: 100, times: u64::MAX, effect }
    }

    /// A rule that catches the next one.
    #[must_use]
    pub const fn once(kind: Kind, effect: Effect) -> Self {
        Fault { times: 1, ..Fault::always(kind, effect) }
    }

    pub(super) fn catches(&self, fd: RawFd, kind: Kind, offset: u64) -> bool {
        self.times > 0 && self.kind == kind && self.fd.is_none_or(|f| f == fd) && self.range.contains(&offset)
    }
}
