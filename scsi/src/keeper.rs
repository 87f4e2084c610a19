//! What a unit must not lose is kept outside of it: by a [`Keeper`], in sections that only their owner understands.
//!
//! A change that has to survive goes in three steps: it is prepared, its text is saved on another thread, and only then
//! does it count and is the command answered. While one is being saved, others that would change the same are answered
//! with BUSY. If it cannot be saved, nothing has changed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{Begun, LogicalUnit, Outcome, Preempted};

/// What is kept of a unit: text by the name of its section.
pub type Sections = BTreeMap<String, String>;

/// The sections there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Reservations,
    Modes,
    Identifying,
    Wipe,
}

impl Section {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Section::Reservations => "reservations",
            Section::Modes => "modes",
            Section::Identifying => "identifying",
            Section::Wipe => "wipe",
        }
    }

    /// The text of the section, empty if there is none; `None`: what was kept of the unit cannot be read.
    pub(crate) fn of(self, kept: Option<&Sections>) -> Option<&str> {
        kept.map(|kept| kept.get(self.name()).map_or("", String::as_str))
    }
}

/// What counts as soon as it is saved. One at a time: nothing else of the same section changes meanwhile.
#[derive(Debug)]
pub(crate) struct Saving<T> {
    tickets: u64,
    next: Option<T>,
}

impl<T> Default for Saving<T> {
    fn default() -> Self {
        Saving { tickets: 0, next: None }
    }
}

impl<T> Saving<T> {
    pub(crate) fn is_busy(&self) -> bool {
        self.next.is_some()
    }

    /// What is being saved.
    pub(crate) const fn coming(&mut self) -> Option<&mut T> {
        self.next.as_mut()
    }

    /// Returns the ticket with which it ends.
    pub(crate) fn begin(&mut self, next: T) -> u64 {
        self.tickets += 1;
        self.next = Some(next);
        self.tickets
    }

    /// What was begun with this ticket.
    pub(crate) fn end(&mut self, ticket: u64) -> Option<T> {
        self.next.take_if(|_| ticket == self.tickets)
    }
}

/// Keeps sections of one unit.
pub trait Keeper: fmt::Debug + Send + Sync {
    /// Whether this initiator may have something saved now. One that asks too often is told BUSY, so that it neither wears
    /// out the medium nor keeps others from it.
    fn admits(&self, initiator: u64) -> bool;

    /// Takes a save to another thread; never waits. [`Save::done`] is to be called when the section is on the medium, or
    /// could not be brought there.
    fn submit(&self, save: Save);
}

/// How a command ended whose change has been saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The answer.
    pub outcome: Outcome,
    /// Whose commands are to be ended before it is given.
    pub preempted: Option<Preempted>,
    /// An operation on the whole medium has begun: somebody has to do it ([`LogicalUnit::take_wipe`]). The answer waits for
    /// its end, unless that is immediate.
    pub begun: Option<Begun>,
}

/// Who waits for a save. Called once, on the keeper's thread.
pub type Tell = Box<dyn FnOnce(Saved) + Send>;

/// A section of a unit that has to be saved.
pub struct Save {
    unit: Arc<LogicalUnit>,
    ticket: u64,
    section: Section,
    text: String,
    tell: Option<Tell>,
    ended: bool,
}

impl Save {
    pub(crate) fn new(unit: Arc<LogicalUnit>, ticket: u64, section: Section, text: String) -> Save {
        Save { unit, ticket, section, text, tell: None, ended: false }
    }

    /// Has it saved; how the command ended is told to `tell`.
    pub fn start(mut self, tell: Tell) {
        self.tell = Some(tell);
        match self.unit.keeper().cloned() {
            Some(keeper) => keeper.submit(self),
            None => self.done(false),
        }
    }

    /// The unit it belongs to.
    #[must_use]
    pub fn unit(&self) -> &LogicalUnit {
        &self.unit
    }

    /// The section's name.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.section.name()
    }

    /// What it is to hold; empty: the section is to go.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is on the medium. If so, the change counts from here on, before anybody is told.
    pub fn done(mut self, saved: bool) {
        self.end(saved);
    }

    fn end(&mut self, saved: bool) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let answer = self.unit.saved(self.section, self.ticket, saved);
        if let Some(tell) = self.tell.take() {
            tell(answer);
        }
    }
}

/// What nobody has saved has failed: a command that waits for it is answered in any case.
impl Drop for Save {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl fmt::Debug for Save {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Save")
            .field("unit", &self.unit.uuid())
            .field("section", &self.section.name())
            .finish_non_exhaustive()
    }
}
