//! A unit's keeper that keeps saves until the test ends them.

use std::sync::{Mutex, PoisonError};

use pollux_scsi::{Keeper, Save};

/// Saves in the order in which they came.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<Vec<Save>>);

impl Shelf {
    /// All that there are now.
    #[must_use]
    pub fn take(&self) -> Vec<Save> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Keeper for Shelf {
    fn admits(&self, _: u64) -> bool {
        true
    }

    fn submit(&self, save: Save) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(save);
    }
}
