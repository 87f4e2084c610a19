//! An operation in the hands of who does it: its steps, how far it is, and how it ends.

use std::sync::Arc;

use pollux_core::{Erasure, IoError, IoFlags};

use super::{Content, Operation, Purpose, Running, State};
use crate::keeper::{Save, Section};
use crate::plan::{PATTERN_STEP_LEN, Range, STEP_LEN, Step};
use crate::{LogicalUnit, Outcome};

/// How an operation ended.
#[derive(Debug)]
pub enum WipeEnd {
    /// This is what the command that waits for it is answered.
    Answer(Outcome),
    /// When this is saved, that says what the command is answered.
    Save(Box<Save>),
}

/// An operation that its taker does, step by step. Dropped before its end, it is one that was interrupted.
#[derive(Debug)]
pub struct Wipe {
    unit: Arc<LogicalUnit>,
    operation: Operation,
    /// Zeroes are written where the data lies before its space is given back, and what was given back before is erased.
    twice: bool,
    /// A sanitize that cannot be: what the unit holds is kept by a snapshot.
    is_shared: bool,
    /// Of the whole medium.
    bytes: u64,
    block: usize,
    pass: u8,
    /// What is left of the pass.
    left: Range,
    /// The pass was made durable.
    flushed: bool,
    ended: bool,
}

impl Wipe {
    pub(super) fn new(unit: Arc<LogicalUnit>, operation: Operation, twice: bool, bytes: u64, block: usize) -> Wipe {
        let left = Range { offset: 0, len: bytes };
        let (is_shared, pass) = (false, 0);
        Wipe { unit, operation, twice, is_shared, bytes, block, pass, left, flushed: false, ended: false }
    }

    /// Which of the unit's operations it is.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.operation.number
    }

    /// Offset and length of what it has to itself.
    #[must_use]
    pub const fn span(&self) -> (u64, u64) {
        (0, self.bytes)
    }

    /// The next step; the one before has been done. `None`: there is none any more, because all are done, or because a
    /// reset has ended it; [`Wipe::end`] knows.
    #[allow(clippy::should_implement_trait)] // Not an iterator: each step waits for the one before.
    pub fn next(&mut self) -> Option<Step> {
        let sanitizes = self.operation.purpose != Purpose::Format;
        self.is_shared |= sanitizes && self.unit.erasure() == Erasure::Shared;
        if self.progress() || self.is_shared {
            return None;
        }
        let (flags, passes) = (IoFlags::empty(), self.operation.content.passes(self.twice));
        let step = match &self.operation.content {
            Content::Zeroes => self.left.cut(STEP_LEN).map(|Range { offset, len }| {
                let in_place = self.pass + 1 < passes;
                let flags = flags | if in_place { IoFlags::ERASE } else { IoFlags::MAY_DEALLOCATE };
                Step::WriteZeroes { offset, len, flags }
            }),
            Content::Pattern { .. } => {
                let step = self.left.cut(PATTERN_STEP_LEN);
                step.map(|Range { offset, len }| Step::WritePattern { offset, len, flags })
            }
        };
        match step {
            Some(step) => Some(step),
            None if !self.flushed => {
                self.flushed = true;
                // What it gives back itself holds zeroes.
                let gives_back = self.operation.content == Content::Zeroes && self.pass > 0;
                Some(if self.twice && !gives_back { Step::Erase } else { Step::Flush })
            }
            None if self.pass + 1 < passes => {
                self.pass += 1;
                self.left = Range { offset: 0, len: self.bytes };
                self.flushed = false;
                self.next()
            }
            None => None,
        }
    }

    /// Tells the unit how far it is; whether a reset has ended it.
    fn progress(&self) -> bool {
        let mut cold = self.unit.lock();
        let State::Running(running) = &mut cold.wiping.state else { return true };
        running.done = u64::from(self.pass) * self.bytes + self.left.offset;
        running.cancelled
    }

    /// Which pass the steps belong to, from 0.
    #[must_use]
    pub const fn pass(&self) -> u8 {
        self.pass
    }

    /// The block that [`Step::WritePattern`] repeats in this pass; empty where no pattern is written.
    #[must_use]
    pub fn pattern(&self) -> Vec<u8> {
        let Content::Pattern { bytes, passes, invert } = &self.operation.content else { return Vec::new() };
        let inverted = *invert && (passes - 1 - self.pass) % 2 == 1;
        let mask = if inverted { 0xFF } else { 0 };
        bytes.iter().cycle().take(self.block).map(|byte| byte ^ mask).collect()
    }

    /// All steps are done, or one has failed.
    #[must_use]
    pub fn end(mut self, result: Result<(), IoError>) -> WipeEnd {
        self.ended = true;
        let unit = self.unit.clone();
        let mut cold = unit.lock();
        let State::Running(Running { operation, cancelled, .. }) = &cold.wiping.state else {
            return WipeEnd::Answer(Outcome::GOOD);
        };
        let purpose = operation.purpose;
        let (next, outcome) = if result.is_ok() && !cancelled && !self.is_shared {
            (State::None, Outcome::GOOD)
        } else {
            (State::Failed(purpose), purpose.failure())
        };
        if unit.keeper().is_none() || next.to_text() == cold.wiping.state.to_text() {
            cold.wiping.ends(outcome);
            cold.wiping.state = next;
            unit.publish(&cold);
            return WipeEnd::Answer(outcome);
        }
        let (ticket, text) = cold.wiping.save(next, outcome, None);
        drop(cold);
        WipeEnd::Save(Box::new(Save::new(unit, ticket, Section::Wipe, text)))
    }

    /// Its taker cannot go on. A sanitize is to be done again by whoever takes it next; a format has failed, and this
    /// is the answer to its command.
    #[must_use]
    pub fn leave(mut self) -> Option<Outcome> {
        self.interrupted()
    }

    fn interrupted(&mut self) -> Option<Outcome> {
        self.ended = true;
        let mut cold = self.unit.lock();
        let State::Running(Running { operation, .. }) = std::mem::take(&mut cold.wiping.state) else { return None };
        let purpose = operation.purpose;
        if purpose == Purpose::Format {
            cold.wiping.ended = Some((operation.number, purpose.failure()));
        }
        cold.wiping.state = match purpose {
            Purpose::Format => State::Failed(purpose),
            Purpose::Sanitize { .. } => State::Due(operation),
        };
        self.unit.publish(&cold);
        (purpose == Purpose::Format).then(|| purpose.failure())
    }
}

impl Drop for Wipe {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.interrupted();
        }
    }
}
