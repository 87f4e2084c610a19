//! Operations that give the whole medium new content: FORMAT UNIT and SANITIZE (SBC-4, clauses 4.33 and 4.11).
//!
//! An operation belongs to the unit and not to the command that asked for it. The unit says that there is one to be
//! done; a front end takes it ([`LogicalUnit::take_wipe`]), claims the whole range, does its steps one after the other,
//! and gives it back when it cannot go on. From the moment that it is to be done nobody reads or writes: commands end
//! with NOT READY and the progress.
//!
//! Invariants: what a keeper keeps says that there is an operation before the first step is done, and stops saying so
//! only when the last one is durable. So after a restart a sanitize begins again, and a format has failed; half of the
//! old data is never readable. What has failed stays so until an initiator deals with it. A sanitize neither begins nor ends
//! well while another device shares what this one holds (a snapshot of it).

use std::sync::MutexGuard;

use pollux_core::Erasure;

use crate::keeper::{Save, Saved, Saving, Section, Sections};
use crate::unit::Cold;
use crate::{Action, Key, LogicalUnit, Outcome, Path, Sense, code};

mod kept;
#[cfg(test)]
mod tests;
mod work;

pub use work::{Wipe, WipeEnd};

/// What it is done for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Format,
    /// `unrestricted`: EXIT FAILURE MODE makes the unit usable again if it fails (AUSE).
    Sanitize {
        unrestricted: bool,
    },
}

/// What the medium is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeroes; the space may be given back.
    Zeroes,
    /// In each block these bytes repeated, at least one, written so many times; `invert`: every other time inverted, not so
    /// the last time.
    Pattern { bytes: Box<[u8]>, passes: u8, invert: bool },
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) purpose: Purpose,
    pub(crate) content: Content,
    /// Which of the unit's it is: what is said of another one is not meant. The unit gives it when a command begins it.
    pub(crate) number: u64,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    /// To be done, by whoever takes it.
    Due(Operation),
    /// Somebody does it.
    Running(Running),
    /// It has ended with an error, or was interrupted.
    Failed(Purpose),
}

#[derive(Debug)]
struct Running {
    operation: Operation,
    /// Bytes of all passes, and those that are done.
    total: u64,
    done: u64,
    /// A reset has ended it.
    cancelled: bool,
}

/// What a unit knows of it.
#[derive(Debug, Default)]
pub(crate) struct Wiping {
    state: State,
    saving: Saving<Change>,
    /// The number of the last one that a command has begun.
    begun: u64,
    /// How the last one ended.
    ended: Option<(u64, Outcome)>,
}

/// What counts as soon as it is saved.
#[derive(Debug)]
struct Change {
    next: State,
    outcome: Outcome,
    begins: Option<Begun>,
}

/// An operation that a command has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The command is answered now, not when the operation has ended (IMMED).
    pub immediate: bool,
    /// Which of the unit's operations it is.
    pub number: u64,
}

/// Why the medium must not be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    pub(crate) sense: Sense,
    /// Because an operation is to be done, or being done.
    pub(crate) in_progress: bool,
}

impl Purpose {
    fn in_progress(self, done: u64, total: u64) -> Sense {
        let code = match self {
            Purpose::Format => code::FORMAT_IN_PROGRESS,
            Purpose::Sanitize { .. } => code::SANITIZE_IN_PROGRESS,
        };
        let part = u128::from(done) * 65536 / u128::from(total.max(1));
        let mut sense = Sense::new(Key::NotReady, code);
        sense.progress = Some(u16::try_from(part).unwrap_or(u16::MAX));
        sense
    }

    /// What the unit says after it has failed.
    const fn corrupt(self) -> Sense {
        let code = match self {
            Purpose::Format => code::MEDIUM_FORMAT_CORRUPTED,
            Purpose::Sanitize { .. } => code::SANITIZE_COMMAND_FAILED,
        };
        Sense::new(Key::MediumError, code)
    }

    /// How a command ends whose operation has failed.
    const fn failure(self) -> Outcome {
        let code = match self {
            Purpose::Format => code::FORMAT_COMMAND_FAILED,
            Purpose::Sanitize { .. } => code::SANITIZE_COMMAND_FAILED,
        };
        Outcome::check(Sense::new(Key::MediumError, code))
    }
}

impl Content {
    const fn passes(&self, twice: bool) -> u8 {
        match self {
            Content::Zeroes => 1 + twice as u8,
            Content::Pattern { passes, .. } => *passes,
        }
    }
}

impl Wiping {
    /// What was kept; `None`: something that cannot be read, which keeps everybody from the unit for as long as that is so.
    pub(crate) fn restored(kept: Option<&Sections>) -> Wiping {
        let text = Section::Wipe.of(kept).unwrap_or_default();
        Wiping { state: State::from_text(text), ..Wiping::default() }
    }

    /// Whether the medium may be used, and what to say if not.
    pub(crate) fn blocked(&self) -> Option<Blocked> {
        let (sense, in_progress) = match &self.state {
            State::None => return None,
            State::Due(operation) => (operation.purpose.in_progress(0, 1), true),
            State::Running(Running { operation, total, done, .. }) => {
                (operation.purpose.in_progress(*done, *total), true)
            }
            State::Failed(purpose) => (purpose.corrupt(), false),
        };
        Some(Blocked { sense, in_progress })
    }

    pub(crate) fn is_due(&self) -> bool {
        matches!(self.state, State::Due(_))
    }

    /// A reset ends a format. A sanitize goes on over everything.
    pub(crate) fn reset(&mut self) {
        match &mut self.state {
            State::Running(running) if running.operation.purpose == Purpose::Format => running.cancelled = true,
            State::Due(operation) if operation.purpose == Purpose::Format => {
                self.state = State::Failed(Purpose::Format);
            }
            _ => {}
        }
    }

    /// Of the operation that is to be done, or being done.
    fn number(&self) -> Option<u64> {
        match &self.state {
            State::Due(operation) | State::Running(Running { operation, .. }) => Some(operation.number),
            State::None | State::Failed(_) => None,
        }
    }

    /// What is to be done, or being done, ends now.
    fn ends(&mut self, outcome: Outcome) {
        if let Some(number) = self.number() {
            self.ended = Some((number, outcome));
        }
    }

    fn save(&mut self, next: State, outcome: Outcome, begins: Option<Begun>) -> (u64, String) {
        let text = next.to_text();
        (self.saving.begin(Change { next, outcome, begins }), text)
    }
}

impl LogicalUnit {
    /// FORMAT UNIT and SANITIZE: has an operation begin. Not while another initiator uses the unit: it would find its disk
    /// not ready, and empty. No sanitize while a snapshot keeps what the disk holds.
    pub(crate) fn begin_wipe(&self, path: &Path, purpose: Purpose, content: Content, immediate: bool) -> Action {
        let is_shared = purpose != Purpose::Format && self.erasure() == Erasure::Shared;
        let mut cold = self.lock();
        if cold.wiping.saving.is_busy() {
            return Action::Done(Outcome::BUSY);
        }
        if let Some(Blocked { sense, in_progress: true }) = cold.wiping.blocked() {
            return sense.into();
        }
        if cold.is_shared_with(path) || is_shared {
            return Sense::new(Key::IllegalRequest, code::INVALID_FIELD_IN_CDB).into();
        }
        // A sanitize that has failed is made good by another one, as restricted as it was.
        match (&cold.wiping.state, purpose) {
            (State::Failed(failed @ Purpose::Sanitize { .. }), Purpose::Format) => return failed.corrupt().into(),
            (State::Failed(Purpose::Sanitize { unrestricted: false }), Purpose::Sanitize { unrestricted: true }) => {
                return Sense::invalid_field(1, Some(5)).into();
            }
            _ => {}
        }
        cold.wiping.begun += 1;
        let number = cold.wiping.begun;
        let operation = Operation { purpose, content, number };
        self.change_wiping(cold, path, State::Due(operation), Some(Begun { immediate, number }))
    }

    /// EXIT FAILURE MODE.
    pub(crate) fn exit_failure_mode(&self, path: &Path) -> Action {
        let cold = self.lock();
        match cold.wiping.state {
            _ if cold.wiping.saving.is_busy() => Action::Done(Outcome::BUSY),
            State::Failed(Purpose::Sanitize { unrestricted: true }) => {
                self.change_wiping(cold, path, State::None, None)
            }
            State::Failed(Purpose::Sanitize { unrestricted: false }) => Sense::invalid_field(1, Some(4)).into(),
            _ => Action::Done(Outcome::GOOD),
        }
    }

    fn change_wiping(&self, mut cold: MutexGuard<'_, Cold>, path: &Path, next: State, begins: Option<Begun>) -> Action {
        let Some((keeper, unit)) = self.keeper().zip(self.this()) else {
            cold.wiping.state = next;
            self.publish(&cold);
            return begins.map_or(Action::Done(Outcome::GOOD), Action::Wipe);
        };
        if !keeper.admits(path.nexus().initiator()) {
            return Action::Done(Outcome::BUSY);
        }
        let (ticket, text) = cold.wiping.save(next, Outcome::GOOD, begins);
        Action::Save(Box::new(Save::new(unit, ticket, Section::Wipe, text)))
    }

    /// A save has ended.
    pub(crate) fn wipe_saved(&self, ticket: u64, saved: bool) -> Saved {
        let failed = Outcome::check(Sense::new(Key::HardwareError, code::INTERNAL_TARGET_FAILURE));
        let mut cold = self.lock();
        let answer = match cold.wiping.saving.end(ticket).filter(|_| saved) {
            Some(Change { next, outcome, begins }) => {
                cold.wiping.ends(outcome);
                cold.wiping.state = next;
                Saved { outcome, preempted: None, begun: begins }
            }
            None => {
                // What has ended is still kept as if it had not: a restart would do it again, so nobody may write before.
                cold.wiping.ends(failed);
                if let State::Running(Running { operation, .. }) = &cold.wiping.state {
                    cold.wiping.state = State::Failed(operation.purpose);
                }
                Saved { outcome: failed, preempted: None, begun: None }
            }
        };
        self.publish(&cold);
        answer
    }

    /// How this operation ended, if it was the last one and has.
    #[must_use]
    pub fn wipe_outcome(&self, number: u64) -> Option<Outcome> {
        self.lock().wiping.ended.filter(|ended| ended.0 == number).map(|ended| ended.1)
    }

    /// Whether there is an operation that nobody does.
    #[inline]
    #[must_use]
    pub fn is_wipe_due(&self) -> bool {
        self.geometry().has(crate::geometry::Flags::WIPE_DUE)
    }

    /// Whether there is an operation to be done, or being done: commands that have not come to the medium yet must not.
    #[must_use]
    pub fn is_wiping(&self) -> bool {
        self.lock().wiping.blocked().is_some_and(|blocked| blocked.in_progress)
    }

    /// Takes the operation, if there is one that nobody does, and a device to do it on.
    pub fn take_wipe(&self) -> Option<Wipe> {
        let unit = self.this()?;
        let erasure = self.erasure();
        let mut cold = self.lock();
        let (bytes, block) = cold.wipe_range()?;
        let State::Due(operation) = std::mem::take(&mut cold.wiping.state) else { unreachable!("it is due") };
        let twice = operation.purpose != Purpose::Format && erasure == Erasure::InPlace;
        let total = bytes.saturating_mul(u64::from(operation.content.passes(twice)));
        let taken = operation.clone();
        cold.wiping.state = State::Running(Running { operation, total, done: 0, cancelled: false });
        self.publish(&cold);
        drop(cold);
        Some(Wipe::new(unit, taken, twice, bytes, block))
    }

    /// The command that waits for this operation was aborted, and so is the operation if it is a format; a sanitize goes
    /// on.
    pub fn cancel_format(&self, number: u64) {
        let mut cold = self.lock();
        if cold.wiping.number() == Some(number) {
            cold.wiping.reset();
            self.publish(&cold);
        }
    }
}

impl Cold {
    /// Bytes and block size of what is to be wiped.
    fn wipe_range(&self) -> Option<(u64, usize)> {
        let geometry = self.device_geometry();
        let (_, bytes) = geometry.range(0, geometry.blocks()).filter(|range| range.1 > 0)?;
        self.wiping.is_due().then_some((bytes, geometry.block_size() as usize))
    }
}
