//! A command that is work for the device below but moves no guest data: flush, discard, write zeroes, write a pattern.
//!
//! The front end takes one [`Step`] after the other and does not take the next before the last has completed, so a
//! command over a whole disk does not hold up the others. Steps are large (a discard of 1 GiB is one request), never
//! one per block.

use pollux_core::{IoError, IoFlags, Op};

use crate::{Outcome, Sense, io_outcome, io_sense};

/// The most that one discard or write-zeroes step covers; steps end at multiples of it, so that the pieces stay aligned
/// to whatever granules the device has.
pub const STEP_LEN: u64 = 1 << 30;
/// The same for a pattern, which the front end really has to write.
pub const PATTERN_STEP_LEN: u64 = 1 << 20;

/// A range in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// One device operation. `len` is not 0, all is in whole blocks and inside the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make what was acknowledged durable.
    Flush,
    /// The same, and nothing that was given back before is left below ([`IoFlags::ERASE`]).
    Erase,
    /// The range is no longer needed.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// `FUA` where the effect has to be durable before the answer.
        flags: IoFlags,
    },
    /// The range reads zero afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// `FUA`, and `MAY_DEALLOCATE` where the space may be given back.
        flags: IoFlags,
    },
    /// Each block of the range holds [`Plan::pattern`] afterwards.
    WritePattern {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// `FUA` where the data has to be durable before the answer.
        flags: IoFlags,
    },
}

impl Step {
    /// The device operation it becomes.
    #[must_use]
    pub const fn op(&self) -> Op {
        match self {
            Step::Flush | Step::Erase => Op::Flush,
            Step::Discard { .. } => Op::Discard,
            Step::WriteZeroes { .. } => Op::WriteZeroes,
            Step::WritePattern { .. } => Op::Write,
        }
    }
}

/// Steps in sequence.
#[derive(Debug)]
pub struct Plan {
    work: Work,
    flags: IoFlags,
    immediate: bool,
    /// The operation of the step taken last.
    last: Op,
    /// All that the present step and those after it touch lies in here.
    span: Range,
}

/// What is left to do. One discard range, which is what initiators send, needs no memory of its own.
#[derive(Debug)]
enum Work {
    Flush { taken: bool },
    Discard { now: Range, later: std::vec::IntoIter<Range> },
    Zero { now: Range },
    Pattern { now: Range, block: Box<[u8]> },
}

impl Work {
    /// The least range that holds what is left.
    fn left(&self) -> Range {
        match self {
            Work::Flush { .. } => Range { offset: 0, len: 0 },
            Work::Discard { now, later } => later.as_slice().iter().fold(*now, |span, range| span.hull(*range)),
            Work::Zero { now } | Work::Pattern { now, .. } => *now,
        }
    }
}

impl Plan {
    pub(crate) fn flush(immediate: bool) -> Plan {
        Plan { immediate, ..Plan::of(Work::Flush { taken: false }, IoFlags::empty(), Op::Flush) }
    }

    pub(crate) fn discard(first: Range, later: Vec<Range>, flags: IoFlags) -> Plan {
        Plan::of(Work::Discard { now: first, later: later.into_iter() }, flags, Op::Discard)
    }

    pub(crate) fn write_zeroes(range: Range, flags: IoFlags) -> Plan {
        Plan::of(Work::Zero { now: range }, flags, Op::WriteZeroes)
    }

    pub(crate) fn write_pattern(range: Range, block: &[u8], flags: IoFlags) -> Plan {
        Plan::of(Work::Pattern { now: range, block: block.into() }, flags, Op::Write)
    }

    fn of(work: Work, flags: IoFlags, last: Op) -> Plan {
        let span = work.left();
        Plan { work, flags, immediate: false, last, span }
    }

    /// Offset and length of a range in which everything lies that the step taken last and those after it change; of length
    /// 0 for a flush.
    #[must_use]
    pub const fn span(&self) -> (u64, u64) {
        (self.span.offset, self.span.len)
    }

    /// The next step; `None` when all are done.
    #[allow(clippy::should_implement_trait)] // Not an iterator: each step waits for the one before.
    pub fn next(&mut self) -> Option<Step> {
        let left = self.work.left();
        let step = self.take()?;
        self.last = step.op();
        self.span = left;
        Some(step)
    }

    fn take(&mut self) -> Option<Step> {
        let flags = self.flags;
        let step = match &mut self.work {
            Work::Flush { taken } if *taken => return None,
            Work::Flush { taken } => {
                *taken = true;
                Step::Flush
            }
            Work::Discard { now, later } => {
                while now.len == 0 {
                    *now = later.next()?;
                }
                let Range { offset, len } = now.cut(STEP_LEN)?;
                Step::Discard { offset, len, flags }
            }
            Work::Zero { now } => {
                let Range { offset, len } = now.cut(STEP_LEN)?;
                Step::WriteZeroes { offset, len, flags }
            }
            Work::Pattern { now, .. } => {
                let Range { offset, len } = now.cut(PATTERN_STEP_LEN)?;
                Step::WritePattern { offset, len, flags }
            }
        };
        Some(step)
    }

    /// Whether the command is answered before its steps are done (IMMED).
    #[must_use]
    pub const fn immediate(&self) -> bool {
        self.immediate
    }

    /// The block that [`Step::WritePattern`] repeats: exactly one logical block; empty in other plans.
    #[must_use]
    pub fn pattern(&self) -> &[u8] {
        match &self.work {
            Work::Pattern { block, .. } => block,
            _ => &[],
        }
    }

    /// The sense of the command when the step taken last has failed.
    #[must_use]
    pub const fn fail(&self, error: IoError) -> Sense {
        io_sense(self.last, error)
    }

    /// The outcome of the command when the step taken last has failed.
    #[must_use]
    pub const fn fail_outcome(&self, error: IoError) -> Outcome {
        io_outcome(self.last, error)
    }
}

impl Range {
    /// Whether the two have a byte in common.
    pub(crate) const fn overlaps(self, other: Range) -> bool {
        self.len > 0 && other.len > 0 && self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }

    /// The least range that holds both.
    pub(crate) fn hull(self, other: Range) -> Range {
        if self.len == 0 || other.len == 0 {
            return if self.len == 0 { other } else { self };
        }
        let offset = self.offset.min(other.offset);
        Range { offset, len: (self.offset + self.len).max(other.offset + other.len) - offset }
    }

    /// Takes a piece off the front that ends at a multiple of `step` or at the range's end.
    pub(crate) fn cut(&mut self, step: u64) -> Option<Range> {
        if self.len == 0 {
            return None;
        }
        let len = self.len.min(step - self.offset % step);
        let piece = Range { offset: self.offset, len };
        self.offset += len;
        self.len -= len;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_flush_is_one_step() {
        let mut plan = Plan::flush(true);
        assert!(plan.immediate());
        assert_eq!(plan.next(), Some(Step::Flush));
        assert_eq!(plan.next(), None);
        assert_eq!(plan.fail(IoError::Medium).code(), 0x0C00);
    }

    #[test]
    fn each_descriptor_is_a_step_of_its_own_and_empty_ones_are_none() {
        let range = |offset, len| Range { offset, len };
        let later = vec![range(8192, 0), range(4096, 512)];
        let mut plan = Plan::discard(range(512, 512), later, IoFlags::FUA);
        let flags = IoFlags::FUA;
        assert_eq!(plan.span(), (512, 4096), "empty ranges are nowhere");
        assert_eq!(plan.next(), Some(Step::Discard { offset: 512, len: 512, flags }));
        assert_eq!(plan.span(), (512, 4096), "the step that is under way counts");
        assert_eq!(plan.next(), Some(Step::Discard { offset: 4096, len: 512, flags }));
        assert_eq!(plan.span(), (4096, 512), "what is done does not");
        assert_eq!(plan.next(), None);
    }

    #[test]
    fn a_pattern_is_kept_with_the_plan() {
        let plan = Plan::write_pattern(Range { offset: 0, len: 512 }, &[7; 512], IoFlags::empty());
        assert_eq!((plan.pattern(), plan.span()), (&[7; 512][..], (0, 512)));
        assert_eq!(plan.fail_outcome(IoError::NoSpace).sense.unwrap().code(), 0x2707);
        assert!(Plan::flush(false).pattern().is_empty());
    }

    proptest! {
        #[test]
        fn steps_cover_the_range_once_in_order(offset in 0u64..1 << 40, len in 1u64..1 << 35) {
            let mut plan = Plan::write_zeroes(Range { offset, len }, IoFlags::MAY_DEALLOCATE);
            let (mut at, end) = (offset, offset + len);
            while let Some(step) = plan.next() {
                let Step::WriteZeroes { offset, len, flags } = step else { panic!("{step:?}") };
                prop_assert_eq!((offset, flags), (at, IoFlags::MAY_DEALLOCATE));
                prop_assert!(len > 0 && len <= STEP_LEN);
                prop_assert_eq!(plan.span(), (offset, end - offset), "what is done is free");
                at += len;
                prop_assert!(at % STEP_LEN == 0 || at == end);
            }
            prop_assert_eq!(at, end);
        }
    }
}
