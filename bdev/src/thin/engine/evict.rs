//! Leaves leave memory when there are too many of them.
//!
//! One that is clean, and of which the store knows everything, is taken out of its map, so that nobody finds it any more.
//! Who had found it before may still change it: when all of those have ended it is looked at again, and if it is as clean
//! as before its memory is free. If somebody asks for it meanwhile it is put back as it is.

use std::collections::{BTreeSet, HashMap};

use super::Engine;
use crate::thin::format::{ENTRIES_PER_PAGE, Entry};
use crate::thin::shared::Place;

/// Leaves that are kept free for who needs one.
const FREE: usize = 64;
/// Leaves that are looked at in one go to find some that can leave.
const LOOKED_AT: u32 = 1024;

/// Leaves on their way out.
#[derive(Default)]
pub(super) struct Evicting {
    /// By layer and leaf: which one it is.
    leaves: HashMap<(u64, u64), u32>,
    /// What has to be over, also if somebody has wanted all of them again.
    epoch: Option<u64>,
    /// The number of the leaf that is looked at next.
    hand: u32,
    /// Leaves in which nothing is left: they leave, so that whoever puts something there again has to have a page for it.
    emptied: BTreeSet<u32>,
}

impl Evicting {
    /// Whether nothing has to be over before more can leave.
    pub(super) const fn is_empty(&self) -> bool {
        self.epoch.is_none()
    }

    /// Whether this leaf of a layer is among them.
    pub(super) fn has(&self, layer: u64, leaf: u64) -> bool {
        self.leaves.contains_key(&(layer, leaf))
    }

    /// The epoch that they wait for.
    pub(super) const fn awaited(&self) -> Option<u64> {
        self.epoch
    }

    /// There may be nothing in this leaf.
    pub(super) fn may_be_empty(&mut self, leaf: u32) {
        self.emptied.insert(leaf);
    }
}

impl Engine {
    /// Takes leaves out of memory if few are free.
    pub(super) fn advance_eviction(&mut self) -> u32 {
        if let Some(epoch) = self.evicting.epoch {
            return if self.is_over(epoch) { self.end_eviction() } else { 0 };
        }
        let most = self.shared.leaves.most();
        let has_enough = self.spare.free(most) >= FREE.min(most / 8);
        let may_empty = !self.evicting.emptied.is_empty() && self.commit.is_none();
        if self.leaving || has_enough && !may_empty || !self.may_raise() {
            return 0;
        }
        let mut taken = self.take_out_emptied();
        if has_enough {
            return self.begin_eviction(taken);
        }
        for _ in 0..LOOKED_AT.min(self.spare.numbered()) {
            let number = self.evicting.hand;
            self.evicting.hand = (number + 1) % self.spare.numbered();
            taken += usize::from(self.take_out(number));
            if taken >= FREE.min(most / 8) {
                break;
            }
        }
        self.begin_eviction(taken)
    }

    fn begin_eviction(&mut self, taken: usize) -> u32 {
        if taken > 0 {
            self.evicting.epoch = Some(self.raise_epoch());
        }
        taken as u32
    }

    /// Those that are empty, when the commit that found them so is done.
    fn take_out_emptied(&mut self) -> usize {
        if self.evicting.emptied.is_empty() || self.commit.is_some() {
            return 0;
        }
        let emptied = std::mem::take(&mut self.evicting.emptied);
        let is_empty = |leaf: u32| {
            let leaf = self.shared.leaves.get(leaf);
            (0..ENTRIES_PER_PAGE).all(|slot| leaf.entry(slot) == Entry::EMPTY)
        };
        let empty: Vec<u32> = emptied.into_iter().filter(|leaf| is_empty(*leaf)).collect();
        empty.into_iter().filter(|leaf| self.take_out(*leaf)).count()
    }

    /// Whether it could be taken out of its map.
    fn take_out(&mut self, number: u32) -> bool {
        let leaf = self.shared.leaves.get(number);
        let (layer, index) = leaf.key();
        let Some(node) = self.nodes.by_id.get(&layer) else { return false };
        let in_fold = self.fold.as_ref().is_some_and(|fold| fold.holds(layer)) || self.inflation.holds(layer);
        let known = leaf.is_clean() && self.shared.commits.is_done(leaf.taken_by());
        let taken = !in_fold && known && node.map.set(index, Place::At(number), Place::Unknown);
        if taken {
            self.evicting.leaves.insert((layer, index), number);
        }
        taken
    }

    fn end_eviction(&mut self) -> u32 {
        self.evicting.epoch = None;
        let leaves = std::mem::take(&mut self.evicting.leaves);
        let count = 1 + leaves.len() as u32;
        for ((layer, index), number) in leaves {
            let leaf = self.shared.leaves.get(number);
            if leaf.is_clean() && self.shared.commits.is_done(leaf.taken_by()) {
                self.return_leaf(number);
            } else if let Some(node) = self.nodes.by_id.get(&layer) {
                // Whoever has wanted it meanwhile finds it, and what he has asked for is not to be loaded any more.
                node.map.put(index, Place::At(number));
            } else {
                self.return_leaf(number);
            }
        }
        self.shared.tell_waiters();
        count
    }

    /// Somebody wants a leaf that is on its way out: it stays. Returns which one it is.
    pub(super) fn keep_evicting(&mut self, layer: u64, leaf: u64) -> Option<u32> {
        self.evicting.leaves.remove(&(layer, leaf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_that_may_be_empty_is_named_once_however_often_that_is_said() {
        let mut evicting = Evicting::default();
        (0..1000).for_each(|nth| evicting.may_be_empty(nth % 3));
        assert_eq!(evicting.emptied.len(), 3);
    }
}
