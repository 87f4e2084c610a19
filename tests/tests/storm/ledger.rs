//! What all guests have done to the disks.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use pollux_tests::model::Model;

use super::parts::{BLOCK, DISKS, Part, TEARS};

/// Of one disk.
pub(crate) struct Ledger {
    pub(crate) model: Model,
    /// Increments that succeeded, and those of which nobody knows.
    good: HashMap<Part, u64>,
    unknown: HashMap<Part, u64>,
    replaced: HashSet<(Part, u64)>,
    /// Blocks that somebody is reading or writing, where that is for one at a time.
    busy: Option<Vec<bool>>,
}

impl Ledger {
    fn new(tears: bool) -> Self {
        let mut model = Model::new(BLOCK, 256);
        model.without_crashes();
        let busy = tears.then(|| vec![false; 256]);
        Ledger { model, good: HashMap::new(), unknown: HashMap::new(), replaced: HashSet::new(), busy }
    }

    /// Takes blocks for a command; false if that has to wait for another one.
    pub(crate) fn occupy(&mut self, blocks: &Range<u64>) -> bool {
        let Some(busy) = &mut self.busy else { return true };
        let blocks = &mut busy[blocks.start as usize..blocks.end as usize];
        let free = blocks.iter().all(|busy| !busy);
        if free {
            blocks.fill(true);
        }
        free
    }

    /// The command has ended.
    pub(crate) fn free(&mut self, blocks: &Range<u64>) {
        if let Some(busy) = &mut self.busy {
            busy[blocks.start as usize..blocks.end as usize].fill(false);
        }
    }

    /// A counter was seen to go from `from` to the next number.
    pub(crate) fn incremented(&mut self, part: Part, from: u64) -> Result<()> {
        *self.good.entry(part).or_default() += 1;
        ensure!(self.replaced.insert((part, from)), "{from} was replaced twice");
        Ok(())
    }

    /// An increment was ended early: it may have taken effect.
    pub(crate) fn perhaps_incremented(&mut self, part: Part) {
        *self.unknown.entry(part).or_default() += 1;
    }

    /// A reader that asks from now on finds at least this.
    pub(crate) fn at_least(&self, part: Part) -> u64 {
        self.good.get(&part).copied().unwrap_or(0)
    }

    pub(crate) fn judge_counter(&self, part: Part, disk: &[u8]) -> Result<()> {
        let at = part.counter() as usize * BLOCK;
        let value = value_of(&disk[at..at + 2 * BLOCK])?;
        let (good, unknown) = (self.at_least(part), self.unknown.get(&part).copied().unwrap_or(0));
        ensure!(
            (good..=good + unknown).contains(&value),
            "the counter of {part:?} is {value} after {good} increments and {unknown} that were ended early"
        );
        Ok(())
    }
}

/// The value that all of these bytes hold.
pub(crate) fn value_of(data: &[u8]) -> Result<u64> {
    let value = u64::from_le_bytes(data[..8].try_into()?);
    ensure!(data == filled(value, data.len() / BLOCK), "a reader saw a part of a write");
    Ok(value)
}

/// Blocks that hold a value.
pub(crate) fn filled(value: u64, blocks: usize) -> Vec<u8> {
    value.to_le_bytes().repeat(blocks * BLOCK / 8)
}

/// Of all disks.
pub(crate) struct Ledgers([Mutex<Ledger>; DISKS]);

impl Default for Ledgers {
    fn default() -> Self {
        Ledgers(TEARS.map(|tears| Mutex::new(Ledger::new(tears))))
    }
}

impl Ledgers {
    pub(crate) fn of(&self, disk: usize) -> MutexGuard<'_, Ledger> {
        self.0[disk].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
