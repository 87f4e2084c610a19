//! Mode pages of a living unit: when a change counts, and who is told.
//!
//! A change that is to be saved counts when it is on the medium, and is answered then; while one is being saved, whoever
//! would change a page is answered with BUSY.

use std::sync::MutexGuard;

use super::Modes;
use crate::keeper::{Save, Saving, Section};
use crate::unit::Cold;
use crate::{Action, Attention, LogicalUnit, Outcome, Path, Sense};

/// A change that is being saved.
#[derive(Debug)]
pub(crate) struct Change {
    next: Modes,
    /// Who knows of it; none: the operator's.
    by: Option<u64>,
}

/// Changes of a unit's mode pages that are being saved.
pub(crate) type SavingModes = Saving<Change>;

impl Cold {
    /// Makes the next values the present ones and tells the other initiators if anything is different now. One initiator
    /// on several paths knows what it has changed: its other paths are not told.
    fn set_modes(&mut self, unit: &LogicalUnit, Change { mut next, by }: Change) {
        // The device may have changed since.
        next.set_volatile_cache(self.modes.volatile_cache);
        if next == self.modes {
            return;
        }
        self.modes = next;
        unit.publish(self);
        self.each_path(|path| {
            if by != Some(path.nexus().initiator()) {
                path.raise(Attention::ModeChanged);
            }
        });
    }
}

impl LogicalUnit {
    pub(crate) fn with_modes<T>(&self, look: impl FnOnce(&Modes) -> T) -> T {
        look(&self.lock().modes)
    }

    /// MODE SELECT: changes pages, all of it or nothing, and with `save` (SP) saves the values of all pages.
    pub(crate) fn change_modes(
        &self,
        by: &Path,
        save: bool,
        change: impl FnOnce(&mut Modes) -> Result<(), Sense>,
    ) -> Result<Action, Sense> {
        let cold = self.lock();
        if cold.saving_modes.is_busy() {
            return Ok(Action::Done(Outcome::BUSY));
        }
        let mut next = cold.modes.clone();
        change(&mut next)?;
        if save {
            next.save();
        }
        Ok(self.take_modes(cold, Change { next, by: Some(by.nexus().initiator()) }))
    }

    /// Returns all mode pages to their defaults, also those that were saved and those that could not be read, for an
    /// operator; every initiator is told 2Ah/01h. Answers like a command: done, to be saved, or BUSY; RESERVATION CONFLICT
    /// if nothing of what was kept of the unit can be read (see [`LogicalUnit::clear_reservations`]).
    #[must_use]
    pub fn reset_modes(&self) -> Action {
        let cold = self.lock();
        if cold.lost {
            return Action::Done(Outcome::CONFLICT);
        }
        if cold.saving_modes.is_busy() {
            return Action::Done(Outcome::BUSY);
        }
        let mut next = cold.modes.clone();
        next.forget();
        self.take_modes(cold, Change { next, by: None })
    }

    /// Makes a change, at once or when it is saved.
    fn take_modes(&self, mut cold: MutexGuard<'_, Cold>, change: Change) -> Action {
        let text = change.next.to_text();
        let same = text == cold.modes.to_text() && cold.modes.is_unreadable() == change.next.is_unreadable();
        let Some((keeper, unit)) = self.keeper().zip(self.this()).filter(|_| !same) else {
            cold.set_modes(self, change);
            return Action::Done(Outcome::GOOD);
        };
        if change.by.is_some_and(|initiator| !keeper.admits(initiator)) {
            return Action::Done(Outcome::BUSY);
        }
        let ticket = cold.saving_modes.begin(change);
        drop(cold);
        Action::Save(Box::new(Save::new(unit, ticket, Section::Modes, text)))
    }

    /// A change has been saved: it counts now. Whether there is one.
    pub(crate) fn modes_saved(&self, ticket: u64, saved: bool) -> bool {
        let mut cold = self.lock();
        let Some(change) = cold.saving_modes.end(ticket).filter(|_| saved) else { return false };
        cold.set_modes(self, change);
        true
    }
}
