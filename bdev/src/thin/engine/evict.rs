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
/// Leaves that are looked at in one pass to find some that can leave.
const LOOKED_AT: u32 = 256;
/// Leaves that may be empty and are looked at in one pass.
const EMPTIED: usize = 64;

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
    /// Those of them that are looked at now: the commits that found them so are done.
    known: BTreeSet<u32>,
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
        if self.evicting.known.is_empty() && self.commit.is_none() {
            self.evicting.known = std::mem::take(&mut self.evicting.emptied);
        }
        if self.leaving || has_enough && self.evicting.known.is_empty() || !self.may_raise() {
            return 0;
        }
        let (looked, mut taken) = self.take_out_emptied();
        if has_enough {
            // Others may be left to look at.
            return self.begin_eviction(taken).max(looked);
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

    /// Some of those that are empty. Returns how many it has looked at, and how many have left.
    fn take_out_emptied(&mut self) -> (u32, usize) {
        let (mut looked, mut taken) = (0, 0);
        while (looked as usize) < EMPTIED
            && let Some(number) = self.evicting.known.pop_first()
        {
            looked += 1;
            let leaf = self.shared.leaves.get(number);
            let is_empty = (0..ENTRIES_PER_PAGE).all(|slot| leaf.entry(slot) == Entry::EMPTY);
            taken += usize::from(is_empty && self.take_out(number));
        }
        (looked, taken)
    }

    /// Whether it could be taken out of its map.
    fn take_out(&mut self, number: u32) -> bool {
        let leaf = self.shared.leaves.get(number);
        let (layer, index) = leaf.key();
        let Some(node) = self.nodes.by_id().get(&layer) else { return false };
        let in_fold = self.fold.as_ref().is_some_and(|fold| fold.holds(layer, index)) || self.inflation.holds(layer);
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
            } else if let Some(node) = self.nodes.by_id().get(&layer) {
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
    use pollux_core::Resident;
    use uuid::Uuid;

    use super::*;
    use crate::testing::floor::Floor;
    use crate::thin::orders::Order;

    #[test]
    fn a_leaf_that_may_be_empty_is_named_once_however_often_that_is_said() {
        let mut evicting = Evicting::default();
        (0..1000).for_each(|nth| evicting.may_be_empty(nth % 3));
        assert_eq!(evicting.emptied.len(), 3);
    }

    /// However many have been emptied at once, no pass takes long.
    #[test]
    fn emptied_leaves_leave_some_at_a_time() {
        const MANY: u32 = 1000;
        let (mut floor, mut engine) = crate::thin::engine::fold::tests::engine(2048);
        let (uuid, bytes) = (Uuid::from_u128(2), (u64::from(MANY) * 504) << 16);
        let order = Order::Create { uuid, name: "v".into(), bytes, reserved: 0, created: 1 };
        let answer = engine.orders.send(&engine.shared, order).expect("the pool is open");
        let pass = |engine: &mut Engine, floor: &mut Floor<'_>| {
            floor.with_ring(0, |cx| engine.poll(cx));
            floor.advance(1000);
        };
        while answer.try_recv().is_err() {
            pass(&mut engine, &mut floor);
        }
        let map = engine.nodes.by_id().values().next().expect("it was made").map.clone();
        for leaf in 0..u64::from(MANY) {
            let number = engine.spare_leaf().expect("there is room");
            engine.shared.leaves.name(number, map.id, leaf);
            map.put(leaf, Place::At(number));
            engine.evicting.may_be_empty(number);
        }
        engine.shared.call_engine();
        let mut passes = 0;
        while map.present().next().is_some() || !engine.evicting.is_empty() {
            let before = map.present().count();
            pass(&mut engine, &mut floor);
            let gone = before - map.present().count();
            assert!(gone <= EMPTIED && engine.evicting.leaves.len() <= EMPTIED, "{gone} in one pass");
            passes += 1;
            assert!(passes < 4 * MANY, "they never leave");
        }
        assert!(engine.spare.free(2048) >= MANY as usize, "others can have them");
    }
}
