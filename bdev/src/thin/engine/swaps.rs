//! Swaps: entries that change together, for writes that count as a whole (`shared::Swap`).
//!
//! What else the old clusters hold is copied first, with all of their sub-blocks locked by the channel. Then the entries
//! change. A leaf goes into one batch as a whole, and leaves with entries of one swap into the same one, so the log says all
//! of it or nothing. The old clusters are free in that batch.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use pollux_core::Cx;

use super::Engine;
use crate::thin::shared::{Moved, Swap, Volume};

/// What swaps have changed since the last commit, and what is to be changed.
#[derive(Default)]
pub(super) struct Swaps {
    /// The one at hand.
    now: Option<Under>,
    /// By leaf: the clusters that entries of it have lost.
    replaced: HashMap<u32, Vec<u32>>,
    /// Leaves (layer, index) that go into the same batch as the next one.
    bound: HashSet<(u64, u64)>,
    /// The epoch in which writes of these volumes may have taken no locks.
    care: Option<(u64, Vec<Arc<Volume>>)>,
}

/// A swap that is under way.
struct Under {
    swap: Arc<Swap>,
    /// Which of its clusters is copied next, or is being copied.
    next: usize,
    copying: bool,
}

impl Swaps {
    /// Clusters that entries of a leaf have lost, for the batch that has these entries.
    pub(super) fn take_replaced(&mut self, leaf: u32) -> Vec<u32> {
        self.replaced.remove(&leaf).unwrap_or_default()
    }

    /// Whether an entry of a leaf has lost a cluster, and no batch says so yet.
    pub(super) fn has_replaced(&self, leaf: u32) -> bool {
        self.replaced.contains_key(&leaf)
    }

    /// Whether a leaf goes into the same batch as the one that comes after it.
    pub(super) fn is_bound(&self, key: (u64, u64)) -> bool {
        self.bound.contains(&key)
    }

    /// All that has changed is in batches.
    pub(super) fn gathered(&mut self) {
        self.bound.clear();
    }

    /// The epoch that it waits for.
    pub(super) fn awaited(&self) -> Option<u64> {
        self.care.as_ref().map(|(epoch, _)| *epoch)
    }
}

impl Engine {
    /// Goes on with swaps.
    pub(super) fn advance_swaps(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut count = self.advance_care();
        loop {
            let next = |swap| Under { swap, next: 0, copying: false };
            let Some(mut under) = self.swaps.now.take().or_else(|| self.shared.swaps.pop().map(next)) else { break };
            let Some(done) = self.swap_step(&mut under, cx) else {
                self.swaps.now = Some(under);
                break;
            };
            under.swap.end(done);
            count += 1;
        }
        if count > 0 {
            self.shared.tell_waiters();
        }
        count
    }

    /// Volumes of which writes in place are to take locks: they all do when what began before has ended.
    fn advance_care(&mut self) -> u32 {
        if let Some((epoch, _)) = &self.swaps.care {
            if !self.is_over(*epoch) {
                return 0;
            }
            let volumes = self.swaps.care.take().map(|(_, volumes)| volumes);
            volumes.into_iter().flatten().for_each(|volume| volume.all_take_care());
            return 1;
        }
        if self.shared.careful.is_empty() || !self.may_raise() {
            return 0;
        }
        let volumes: Vec<_> = std::iter::from_fn(|| self.shared.careful.pop()).collect();
        self.swaps.care = Some((self.raise_epoch(), volumes));
        0
    }

    /// Whether a swap was done, or nothing of it; `None`: it waits.
    fn swap_step(&mut self, under: &mut Under, cx: &mut Cx<'_>) -> Option<bool> {
        loop {
            if under.copying {
                let result = self.mover.poll(cx)?;
                under.copying = false;
                under.next += 1;
                if let Err(error) = result {
                    tracing::error!(%error, "an atomic write fails: what is beside it cannot be copied");
                    return Some(false);
                }
            }
            if self.failed.is_some() || !self.nodes.by_id().contains_key(&under.swap.map.id) {
                return Some(false);
            }
            let Some(moved) = under.swap.moved.get(under.next) else { break };
            let rest = self.shared.leaves.get(moved.leaf).entry(moved.slot).here() & !moved.mask;
            if moved.from == moved.to || rest == 0 {
                under.next += 1;
                continue;
            }
            self.mover.start(moved.from, moved.to, rest, cx);
            under.copying = true;
        }
        let places = under.swap.moved.iter().map(|moved| self.has_place(moved.leaf));
        if places.clone().any(|has| has) && places.clone().any(|has| !has) {
            // The layer has grown, and the log knows it up to somewhere between them.
            self.hurry = true;
            return None;
        }
        let layer = under.swap.map.id;
        if under.swap.moved.iter().any(|moved| self.to_log.speaks_of(layer, moved.cluster)) {
            // What a fold says of it has to be in the log before it is something else.
            self.hurry = true;
            return None;
        }
        if self.would_chain(&under.swap) {
            // A batch has to have room for all leaves that are bound together: two of them, whatever a guest does.
            self.hurry = true;
            return None;
        }
        self.swap(&under.swap);
        Some(true)
    }

    /// Whether a swap would bind more than two leaves together.
    fn would_chain(&self, swap: &Swap) -> bool {
        let bound = |layer, index| self.swaps.is_bound((layer, index));
        let leaves = self.leaves_of(swap);
        let [(layer, first), .., (_, last)] = leaves[..] else { return false };
        bound(layer, last) || first > 0 && bound(layer, first - 1)
    }

    /// The leaves (layer, index) that a swap is about, in order.
    fn leaves_of(&self, swap: &Swap) -> Vec<(u64, u64)> {
        let mut leaves: Vec<_> = swap.moved.iter().map(|moved| self.shared.leaves.get(moved.leaf).key()).collect();
        leaves.dedup();
        leaves
    }

    fn swap(&mut self, swap: &Swap) {
        for moved in &swap.moved {
            let Moved { leaf, slot, from, to, mask, .. } = *moved;
            let page = self.shared.leaves.get(leaf);
            let mut now = page.entry(slot);
            let next = loop {
                let on = if from == to { now } else { now.without_cluster().with_cluster(to).with_here(now.here()) };
                let next = on.with_here(mask);
                match page.change(slot, now, next) {
                    Ok(()) => break next,
                    Err(other) => now = other,
                }
            };
            swap.map.usage.add_here(i64::from(next.here().count_ones()) - i64::from(now.here().count_ones()));
            if from != to {
                self.swaps.replaced.entry(leaf).or_default().push(from);
            }
            self.shared.mark(leaf, slot);
        }
        let mut leaves = self.leaves_of(swap);
        leaves.pop();
        self.swaps.bound.extend(leaves);
    }
}
