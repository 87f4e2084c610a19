//! Requests in flight: what each of them still has to do, and doing it.

use std::ops::Range;
use std::sync::Arc;

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{Io, IoError, IoFlags, Op, Tag};

use super::cache::{Content, Seq};
use super::rules::Effect;
use super::state::State;

pub(super) type ChannelId = u32;

/// What a request does.
pub(super) enum Work {
    /// A change, with what was to be written as it was when it was submitted.
    Change { seq: Seq, bytes: Option<Arc<[u8]>> },
    /// A change that happens nowhere.
    Nothing,
    /// A flush, of what had completed at this time of the cache's clock.
    Flush { since: u64 },
    /// A read: what it has found so far, from its beginning on.
    Read { found: Vec<u8> },
    /// Submitted when the power was off.
    Dead,
}

pub(super) struct Flight {
    /// Submissions are numbered over all channels.
    pub(super) number: u64,
    pub(super) channel: ChannelId,
    pub(super) io: Io,
    pub(super) label: Option<&'static str>,
    pub(super) fault: Option<Effect>,
    pub(super) work: Work,
    /// The poll of its channel at which it may complete.
    pub(super) due: u64,
    pub(super) held: bool,
}

impl Flight {
    pub(super) const fn tag(&self) -> Tag {
        self.io.tag
    }

    fn range(&self) -> Range<u64> {
        self.io.offset..self.io.offset + self.io.len
    }

    /// The first half, in whole blocks.
    fn half(&self, block_size: u64) -> Range<u64> {
        self.io.offset..self.io.offset + self.io.len / 2 / block_size * block_size
    }
}

impl State {
    /// What a request that is submitted now has to do.
    pub(super) fn work_of(&mut self, io: &Io, label: Option<&'static str>, fault: Option<Effect>) -> Work {
        let range = io.offset..io.offset + io.len;
        let content = match io.op {
            Op::Flush => return Work::Flush { since: self.cache.now() },
            Op::Read => return Work::Read { found: Vec::new() },
            Op::Write => Content::Bytes(bytes_of(io)),
            Op::Discard if self.geometry.garbles => Content::Garbage,
            Op::Discard => Content::Zeroes { deallocate: true },
            Op::WriteZeroes => Content::Zeroes { deallocate: io.flags.contains(IoFlags::MAY_DEALLOCATE) },
        };
        let range = match fault {
            Some(Effect::Lose | Effect::Fail(_) | Effect::FailAndLose(_)) => return Work::Nothing,
            Some(Effect::Misdirect(to)) => to..to + io.len,
            _ => range,
        };
        let bytes = match &content {
            Content::Bytes(bytes) => Some(bytes.clone()),
            Content::Zeroes { .. } | Content::Garbage => None,
        };
        Work::Change { seq: self.cache.begin(io.op, range, content, label), bytes }
    }

    /// A part of a request takes effect, or all that is left of it.
    pub(super) fn partial_effect(&mut self, at: usize, part: Range<u64>) {
        let flight = &mut self.flights[at];
        match (&mut flight.work, flight.fault) {
            (Work::Change { seq, .. }, None) if self.space.is_none() => self.cache.effect(*seq, part),
            (Work::Read { found }, _) => {
                // A read finds all of its range at a few moments: a part now, the rest when it completes.
                let from = flight.io.offset + found.len() as u64;
                if part.start <= from && from < part.end {
                    self.cache.visible.each(from, part.end - from, |bytes| found.extend_from_slice(bytes));
                }
            }
            _ => {}
        }
    }

    /// The rest of a request takes effect, and this is its answer.
    pub(super) fn finish(&mut self, mut flight: Flight) -> Result<(), IoError> {
        let durable = flight.io.flags.contains(IoFlags::FUA) && !self.mutations.drops(flight.io.op, flight.label);
        let fault = flight.fault;
        match &mut flight.work {
            Work::Dead => unreachable!("without power nothing completes"),
            Work::Nothing => {}
            Work::Flush { since } => match fault {
                Some(Effect::FailAndLose(_)) => self.cache.lost(*since),
                Some(Effect::Fail(_) | Effect::FailHalf(_) | Effect::Lose) => {}
                _ if self.mutations.drops(Op::Flush, flight.label) => {}
                _ => self.cache.synced(*since),
            },
            Work::Read { found } => self.answer_read(&flight.io, fault, found),
            Work::Change { seq, bytes } => {
                let seq = *seq;
                let changed = bytes.as_ref().is_some_and(|bytes| bytes_of(&flight.io) != *bytes);
                assert!(!changed || self.lenient, "the data of {:?} has changed while it was in flight", flight.io);
                if !self.has_space(&flight) {
                    self.cache.give_up(seq);
                    return Err(IoError::NoSpace);
                }
                match fault {
                    Some(Effect::FailHalf(_) | Effect::Tear) => {
                        self.cache.effect(seq, flight.half(u64::from(self.geometry.block_size)));
                        self.cache.give_up(seq);
                    }
                    _ => self.cache.complete(seq, durable),
                }
            }
        }
        fault.and_then(Effect::error).map_or(Ok(()), Err)
    }

    fn answer_read(&self, io: &Io, fault: Option<Effect>, found: &[u8]) {
        if fault.and_then(Effect::error).is_some() {
            return;
        }
        let mut at = copy_to(io.data.as_slice(), 0, found);
        let rest = io.len - at as u64;
        let mut put = |bytes: &[u8]| at += copy_to(io.data.as_slice(), at, bytes);
        self.cache.visible.each(io.offset + found.len() as u64, rest, &mut put);
        assert_eq!(at as u64, io.len, "the request holds its bytes");
        if let Some(Effect::Corrupt(at)) = fault {
            let (at, mut byte) = ((at % io.len) as usize, [0]);
            copy_from(io.data.as_slice(), at, &mut byte);
            copy_to(io.data.as_slice(), at, &[!byte[0]]);
        }
    }

    /// Whether the change fits into the space that the medium may take.
    fn has_space(&self, flight: &Flight) -> bool {
        let takes = match flight.io.op {
            Op::Write => true,
            Op::WriteZeroes => !flight.io.flags.contains(IoFlags::MAY_DEALLOCATE),
            _ => false,
        };
        let Some(limit) = self.space.filter(|_| takes) else { return true };
        let range = flight.range();
        let missing = self.cache.visible.missing(range.start, range.end - range.start);
        missing == 0 || self.cache.visible.space() + missing <= limit
    }
}

fn bytes_of(io: &Io) -> Arc<[u8]> {
    let mut bytes = vec![0; io.len as usize];
    assert_eq!(copy_from(io.data.as_slice(), 0, &mut bytes) as u64, io.len, "the request holds its bytes");
    bytes.into()
}
