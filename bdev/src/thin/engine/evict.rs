//! Leaves leave memory when there are too many of them.
//!
//! One that is clean, and of which the store knows everything, is taken out of its map, so that nobody finds it any more.
//! Who had found it before may still change it: when all of those have ended it is looked at again, and if it is as clean
//! as before its memory is free. If somebody asks for it meanwhile it is put back as it is.

use std::collections::HashMap;

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
    /// What has to be over.
    epoch: u64,
    /// The number of the leaf that is looked at next.
    hand: u32,
    /// Leaves in which nothing is left: they leave, so that whoever puts something there again has to have a page for it.
    emptied: Vec<u32>,
}

impl Evicting {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// The epoch that they wait for.
    pub(super) fn awaited(&self) -> Option<u64> {
        (!self.leaves.is_empty()).then_some(self.epoch)
    }

    /// There may be nothing in this leaf.
    pub(super) fn may_be_empty(&mut self, leaf: u32) {
        self.emptied.push(leaf);
    }
}

impl Engine {
    /// Takes leaves out of memory if few are free.
    pub(super) fn advance_eviction(&mut self) -> u32 {
        if !self.evicting.leaves.is_empty() {
            return if self.is_over(self.evicting.epoch) { self.end_eviction() } else { 0 };
        }
        let most = self.shared.leaves.most();
        let free = self.spare.free(most);
        if self.leaving {
            return 0;
        }
        let mut taken = self.take_out_emptied();
        if free >= FREE.min(most / 8) {
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
            self.evicting.epoch = self.raise_epoch();
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
        let leaves = std::mem::take(&mut self.evicting.leaves);
        let count = leaves.len() as u32;
        for ((layer, index), number) in leaves {
            let leaf = self.shared.leaves.get(number);
            if leaf.is_clean() && self.shared.commits.is_done(leaf.taken_by()) {
                self.return_leaf(number);
            } else if let Some(node) = self.nodes.by_id.get(&layer) {
                node.map.put(index, Place::At(number));
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
