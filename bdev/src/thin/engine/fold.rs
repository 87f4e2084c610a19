//! A deleted snapshot goes into the one layer that stands on it.
//!
//! For each of its clusters, with the child's sub-blocks locked: what the child has itself supersedes it, and the cluster is
//! free; or the child takes the cluster over; or, where both have one, the sub-blocks that only the snapshot has are copied
//! into the child's. What the child's entry is then and that the snapshot's is empty goes into one batch of the log. In
//! memory the snapshot's entries stay until nobody can be on the way from the child to them: whoever has looked at the
//! child before it was changed still has to find what was there. So it goes some leaves at a time: when they have been gone
//! through, and that is over, they leave the snapshot's map, and in the end nothing is in it; then the chains of all that stand
//! on the child do without the snapshot, and it is gone. Only these leaves stay in memory whoever else wants room there: what
//! the log says of them is not what they are.
//!
//! A fold that gives up because something cannot be read or copied does so in the same way, and begins anew later.

use pollux_core::{Cx, IoError};

use super::Engine;
use super::orders::Doing;
use super::removal::RETRY_NS;
use crate::thin::format::{ENTRIES_PER_PAGE, Entry, Record};
use crate::thin::shared::{Miss, Place, Shared};

/// Clusters that one commit has to say something of. In tests folding takes several of them.
const A_COMMIT: u32 = if cfg!(test) { 16 } else { 4096 };
/// Clusters that are looked at in one pass.
const A_PASS: u32 = 1024;

/// Leaves of the snapshot that are gone through before they leave memory; fewer where there is room for few.
const LEAVES: usize = if cfg!(test) { 4 } else { 128 };
/// The part of all leaves in memory that these may be.
const PART: usize = 16;

/// The snapshot that is being folded.
pub(super) struct Fold {
    layer: u64,
    into: u64,
    /// The next of its clusters.
    next: u64,
    clusters: u64,
    /// Said since the last commit.
    said: u32,
    /// Leaves of the snapshot that were gone through, and the one that is, ascending: those that have to stay.
    gone_through: Vec<u64>,
    /// Those that have left its map: somebody may still look at them.
    left: Vec<u32>,
    /// It ends before it is done.
    gives_up: bool,
    stage: Stage,
}

enum Stage {
    /// What began before somebody asked for it may still write to the snapshot; and that it is not needed any more has to
    /// be durable: from now on its clusters are written in place, as the child's.
    Beginning { epoch: u64, commit: u64 },
    /// Cluster by cluster.
    Entries,
    /// The sub-blocks of one cluster are being copied.
    Copying { mask: u16, from: u32 },
    /// A sub-block could not be copied.
    Failed,
    /// Who has seen the child as it was has to end; of one that gives up the log has to know all.
    Emptying { epoch: u64, commit: Option<u64> },
    /// Who has seen the chains as they were has to end.
    Dropping(u64),
}

/// What is to be done with one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The child becomes this, and the cluster of the snapshot is free, if it says so.
    Publish { child: Entry, freed: Option<u32>, took: bool },
    /// These sub-blocks are copied first.
    Copy { mask: u16, from: u32, to: u32 },
    /// Nothing of it is there.
    Nothing,
}

impl Engine {
    /// Goes on with the snapshot that is being folded, or begins with the next one.
    pub(super) fn advance_fold(&mut self, cx: &mut Cx<'_>) -> u32 {
        if self.failed.is_some() {
            return self.give_up_fold(cx);
        }
        if self.removal.is_some() || self.inflation.is_copying() {
            return 0;
        }
        if self.fold.is_none() {
            self.begin_fold();
        }
        let mut count = 0;
        if self.telling.is_paring() {
            return 0;
        }
        while let Some(mut fold) = self.fold.take() {
            let went_on = self.fold_step(&mut fold, cx);
            if let Some(more) = went_on {
                count += 1;
                if more {
                    self.fold = Some(fold);
                    continue;
                }
                break;
            }
            self.fold = Some(fold);
            break;
        }
        count
    }

    /// The pool has failed: it goes no further than the copy that is under way.
    fn give_up_fold(&mut self, cx: &mut Cx<'_>) -> u32 {
        let Some(fold) = &self.fold else { return 0 };
        if let Stage::Copying { .. } = fold.stage {
            if self.copier.poll(cx).is_none() {
                return 0;
            }
            self.shared.locks.unlock(fold.into, fold.next, u16::MAX);
        }
        self.fold = None;
        1
    }

    fn begin_fold(&mut self) {
        let may_go = |id: &u64| !self.stuck.contains_key(id);
        let going = self
            .nodes
            .going()
            .find(|node| node.children.len() == 1 && may_go(&node.layer.id) && node.children.iter().all(may_go));
        let Some(node) = going else { return };
        let (layer, clusters) = (node.layer.id, node.map.clusters());
        let Some(into) = node.children.first().copied() else { return };
        if !self.may_raise() {
            return;
        }
        let stage = Stage::Beginning { epoch: self.raise_epoch(), commit: self.shared.commits.ticket() };
        self.fold = Some(Fold::new(layer, into, clusters, stage));
    }

    /// `None`: it has to wait; else whether there is more to do.
    fn fold_step(&mut self, fold: &mut Fold, cx: &mut Cx<'_>) -> Option<bool> {
        match fold.stage {
            Stage::Beginning { epoch, commit } => {
                (self.is_over(epoch) && self.shared.commits.is_done(commit)).then_some(())?;
                if self.nodes.by_id().get(&fold.into).is_none_or(|into| into.layer.parent != Some(fold.layer)) {
                    // It stands on something else now.
                    return Some(false);
                }
                fold.stage = Stage::Entries;
            }
            Stage::Entries => {
                if self.leaving {
                    return Some(false);
                }
                let limits = self.limits((0, 0));
                for _ in 0..A_PASS {
                    if fold.next == fold.clusters || fold.is_at_new_leaf() && fold.gone_through.len() >= self.a_fold() {
                        self.may_raise().then_some(())?;
                        fold.stage = Stage::Emptying { epoch: self.raise_epoch(), commit: None };
                        return Some(true);
                    }
                    if fold.said >= A_COMMIT || self.to_log.is_full(limits) {
                        if !self.to_log.records.is_empty() {
                            self.hurry = true;
                            return None;
                        }
                        fold.said = 0;
                    }
                    match self.fold_cluster(fold, cx) {
                        Ok(()) => {}
                        Err(Miss::Wait) => return None,
                        Err(Miss::Space) => {
                            // What it has done so far gives pages back when a checkpoint has written it.
                            self.hurry = self.has_to_say();
                            self.checkpoint_wanted |= self.store.has_logged();
                            return None;
                        }
                        Err(Miss::Lost | Miss::Apart) => {
                            tracing::error!(layer = fold.layer, "a deleted snapshot stays: a part of a map is lost");
                            self.get_stuck(fold, Shared::slot(fold.next).0);
                            fold.stage = Stage::Failed;
                            return Some(true);
                        }
                    }
                    if let Stage::Copying { .. } = fold.stage {
                        return None;
                    }
                }
            }
            Stage::Copying { mask, from } => {
                let result = self.copier.poll(cx)?;
                self.copied(fold, mask, from, result);
            }
            Stage::Failed => {
                self.may_raise().then_some(())?;
                fold.gives_up = true;
                fold.stage = Stage::Emptying { epoch: self.raise_epoch(), commit: Some(self.shared.commits.ticket()) };
            }
            Stage::Emptying { epoch, commit } => {
                let is_known = commit.is_none_or(|ticket| self.shared.commits.is_done(ticket));
                (is_known && self.is_over(epoch)).then_some(())?;
                let ends = fold.next == fold.clusters && !fold.gives_up;
                // Not while somebody has closed a gate, which would be opened here.
                let gate_is_closed = ends && self.doing.as_ref().is_some_and(Doing::has_closed_gates);
                (!gate_is_closed && self.may_raise()).then_some(())?;
                self.empty_leaves(fold);
                if ends {
                    self.drop_layer(fold);
                }
                fold.stage = if ends || fold.gives_up { Stage::Dropping(self.raise_epoch()) } else { Stage::Entries };
            }
            Stage::Dropping(epoch) => {
                self.is_over(epoch).then_some(())?;
                fold.left.drain(..).for_each(|leaf| self.return_leaf(leaf));
                return Some(false);
            }
        }
        Some(true)
    }

    /// One cluster; the leaves that it needs are loaded first.
    fn fold_cluster(&mut self, fold: &mut Fold, cx: &mut Cx<'_>) -> Result<(), Miss> {
        let cluster = fold.next;
        let (leaf, slot) = Shared::slot(cluster);
        let (from, into) = (self.nodes.get(fold.layer).map.clone(), self.nodes.get(fold.into).map.clone());
        if from.place(leaf) == Place::Empty {
            fold.next = ((leaf + 1) * ENTRIES_PER_PAGE as u64).min(fold.clusters);
            return Ok(());
        }
        let below = self.shared.entry(&from, cluster)?;
        if fold.is_at_new_leaf() {
            if self.is_leaf_dirty(fold.layer, leaf) {
                // The log has to know whose its clusters are before it says who has them now.
                self.hurry = true;
                return Err(Miss::Wait);
            }
            fold.gone_through.push(leaf);
        }
        if below == Entry::EMPTY {
            fold.next += 1;
            return Ok(());
        }
        if cluster >= self.nodes.get(fold.into).sees(self.nodes.cluster_size()) {
            // The child cannot see it.
            self.say_folded(fold, None, below.cluster());
            return Ok(());
        }
        let number = self.leaf_to_change(&into, leaf)?;
        if self.swaps.has_replaced(number) {
            // The log has to know what its entries have lost before it says what they are.
            self.hurry = true;
            return Err(Miss::Wait);
        }
        if !self.shared.locks.try_lock(into.id, cluster, u16::MAX) {
            return Err(Miss::Wait);
        }
        let page = self.shared.leaves.get(number);
        let bottom = self.nodes.get(fold.layer).is_bottom();
        let verdict = loop {
            let child = page.entry(slot);
            match verdict(below, child, bottom) {
                Verdict::Publish { child: next, .. } if page.change(slot, child, next).is_err() => {}
                verdict => break (verdict, child),
            }
        };
        match verdict {
            (Verdict::Copy { mask, from, to }, _) => {
                // It stays locked until the copy has ended.
                self.copier.start(from, to, mask, cx);
                fold.stage = Stage::Copying { mask, from };
                return Ok(());
            }
            (Verdict::Publish { child, freed, took }, was) => {
                let usage = &into.usage;
                usage.add_here(i64::from(child.here().count_ones()) - i64::from(was.here().count_ones()));
                if took {
                    // To the medium the cluster is still the snapshot's, with all that this entry leaves out of it.
                    page.pare(slot);
                }
                // What is said of it here may be old when somebody loads it again.
                self.shared.mark(number, slot);
                if took {
                    usage.owned.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                self.say_folded(fold, Some(child), freed);
            }
            (Verdict::Nothing, _) => fold.next += 1,
        }
        self.shared.locks.unlock(into.id, cluster, u16::MAX);
        Ok(())
    }

    /// The sub-blocks of a cluster have been copied into the child's.
    fn copied(&mut self, fold: &mut Fold, mask: u16, from: u32, result: Result<(), IoError>) {
        fold.stage = Stage::Entries;
        let cluster = fold.next;
        let (leaf, slot) = Shared::slot(cluster);
        let into = self.nodes.get(fold.into).map.clone();
        match (result, into.place(leaf)) {
            (Ok(()), Place::At(number)) => {
                let page = self.shared.leaves.get(number);
                let mut child = page.entry(slot);
                while let Err(now) = page.change(slot, child, child.with_here(mask)) {
                    child = now;
                }
                into.usage.add_here(i64::from(mask.count_ones()));
                // What else the snapshot has, which needs no copy, follows when the cluster is looked at again: nothing but
                // zeroes, and its cluster.
                let below = self.shared.entry(&self.nodes.get(fold.layer).map, cluster).unwrap_or_default();
                let bottom = self.nodes.get(fold.layer).is_bottom();
                let mut now = page.entry(slot);
                if !bottom {
                    while let Err(other) = page.change(slot, now, now.with_zero(below.zero() & now.parent())) {
                        now = other;
                    }
                }
                self.shared.mark(number, slot);
                let child = page.entry(slot);
                self.say_folded(fold, Some(child), Some(from));
            }
            // It is looked at once more.
            (Ok(()), _) => {}
            (Err(error), _) => {
                tracing::error!(layer = fold.layer, %error, "a deleted snapshot stays: a part of it cannot be copied");
                self.stuck.insert(fold.layer, Some(self.now.saturating_add(RETRY_NS)));
                fold.stage = Stage::Failed;
            }
        }
        self.shared.locks.unlock(into.id, cluster, u16::MAX);
    }

    /// A leaf of one of the two is lost, for good or for a while.
    fn get_stuck(&mut self, fold: &Fold, leaf: u64) {
        let for_a_while = self.is_unread(fold.layer, leaf) || self.is_unread(fold.into, leaf);
        self.stuck.insert(fold.layer, for_a_while.then(|| self.now.saturating_add(RETRY_NS)));
    }

    /// What has become of the cluster at hand, for the next batch.
    fn say_folded(&mut self, fold: &mut Fold, child: Option<Entry>, freed: Option<u32>) {
        let cluster = fold.next;
        if let Some(entry) = child {
            self.to_log.push(Record::Entry { layer: fold.into, cluster, entry });
        }
        self.to_log.push(Record::Entry { layer: fold.layer, cluster, entry: Entry::EMPTY });
        if freed.is_some() {
            self.shared.has_folded();
        }
        self.to_log.free(freed.into_iter().collect());
        fold.next += 1;
        fold.said += 1;
    }

    /// Of how many leaves.
    fn a_fold(&self) -> usize {
        LEAVES.min(self.shared.leaves.most() / PART).max(1)
    }

    /// Nobody comes from the child to what was gone through any more, nor looks at what has left the snapshot's map before.
    fn empty_leaves(&mut self, fold: &mut Fold) {
        fold.left.drain(..).for_each(|leaf| self.return_leaf(leaf));
        let map = self.nodes.get(fold.layer).map.clone();
        for leaf in fold.gone_through.drain(..) {
            let Place::At(number) = map.place(leaf) else { continue };
            if Shared::slot(fold.next).0 == leaf && fold.next < fold.clusters {
                self.empty_front(number, Shared::slot(fold.next).1);
            } else {
                map.put(leaf, Place::Empty);
                fold.left.push(number);
            }
        }
    }

    /// What was gone through of a leaf in which a fold gives up is as the log says: nothing.
    fn empty_front(&self, number: u32, slots: usize) {
        let page = self.shared.leaves.get(number);
        for slot in 0..slots {
            while page.change(slot, page.entry(slot), Entry::EMPTY).is_err() {}
        }
    }

    /// Nobody comes from the child to the snapshot any more, and nothing is in its map.
    fn drop_layer(&mut self, fold: &Fold) {
        self.nodes.take_out(fold.layer);
        self.log_layer(fold.into);
        self.gone_to_log.push(fold.layer);
        self.renew_chains(fold.into);
    }
}

impl Engine {
    /// What a layer stands on has changed, and nothing of what it holds: so for all that stands on it.
    pub(super) fn renew_chains(&mut self, below: u64) {
        for id in self.nodes.above(below) {
            let volume = self.nodes.get(id).is_known().then(|| self.directory.get(self.nodes.get(id).layer.uuid));
            if let Some(volume) = volume.flatten() {
                let settled = volume.chain().settled.load(std::sync::atomic::Ordering::Acquire);
                volume.open_gate(Some(self.nodes.chain(id, settled)));
            }
        }
        self.shared.tell_waiters();
    }
}

impl Fold {
    fn new(layer: u64, into: u64, clusters: u64, stage: Stage) -> Fold {
        let (gone_through, left) = (Vec::new(), Vec::new());
        Fold { layer, into, next: 0, clusters, said: 0, gone_through, left, gives_up: false, stage }
    }

    /// Whether nothing has been looked at of the leaf with the next cluster.
    fn is_at_new_leaf(&self) -> bool {
        self.gone_through.last() != Some(&Shared::slot(self.next).0)
    }

    /// The epoch that it waits for.
    pub(super) const fn awaited(&self) -> Option<u64> {
        match self.stage {
            Stage::Beginning { epoch, .. } | Stage::Emptying { epoch, .. } | Stage::Dropping(epoch) => Some(epoch),
            Stage::Entries | Stage::Copying { .. } | Stage::Failed => None,
        }
    }

    /// Whether a leaf of a layer is to stay in memory: one that was gone through, or one into whose cluster something is copied.
    pub(super) fn holds(&self, layer: u64, leaf: u64) -> bool {
        let is_copied_to = || matches!(self.stage, Stage::Copying { .. }) && Shared::slot(self.next).0 == leaf;
        if layer == self.layer {
            self.gone_through.first().is_some_and(|first| leaf >= *first) && self.gone_through.last() >= Some(&leaf)
        } else {
            layer == self.into && is_copied_to()
        }
    }
}

/// What becomes of one cluster, by what the snapshot and its child say of it.
fn verdict(below: Entry, child: Entry, bottom: bool) -> Verdict {
    let only_below = below.here() & child.parent();
    let zeroes = if bottom { 0 } else { below.zero() & child.parent() };
    match (below.cluster(), child.cluster()) {
        (None, _) if zeroes == 0 => Verdict::Nothing,
        (None, _) => Verdict::Publish { child: child.with_zero(zeroes), freed: None, took: false },
        (freed, _) if only_below == 0 => Verdict::Publish { child: child.with_zero(zeroes), freed, took: false },
        (Some(cluster), None) => {
            let child = child.with_cluster(cluster).with_here(only_below).with_zero(zeroes);
            Verdict::Publish { child, freed: None, took: true }
        }
        (Some(from), Some(to)) => Verdict::Copy { mask: only_below, from, to },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use pollux_core::{Bdev, Resident};
    use uuid::Uuid;

    use super::*;
    use crate::testing::floor::Floor;
    use crate::testing::medium::{Geometry, Medium, Order as Arrival};
    use crate::thin::orders::{Order, Orders};
    use crate::thin::store::{self, CreateParams};

    /// The engine of a new pool with room for so many leaves, and a floor for it.
    pub(in crate::thin::engine) fn engine(leaves: usize) -> (Floor<'static>, Engine) {
        let medium = Medium::new(Geometry::with_512(16 << 20), Arrival::InOrder);
        let (base, mut floor): (Arc<dyn Bdev>, _) = (Arc::new(medium), Floor::in_order());
        let params = CreateParams {
            name: "pool".into(),
            uuid: Uuid::from_u128(1),
            cluster_size: 64 << 10,
            created: 1,
            overcommit: 0,
            salt: 77,
            force: false,
        };
        let opened = floor.blocking(&base, None, |blocking| {
            store::create(blocking, &params).expect("the medium works");
            store::open(blocking, 1).expect("it was made")
        });
        let store = store::Store::new(opened, &base, None).expect("the medium is there");
        let shared = Arc::new(Shared::new(64 << 10, 1, leaves));
        let orders = Arc::new(Orders::new(Duration::from_secs(1)));
        let mut engine = Engine::new(store, &base, shared, orders, Arc::default()).expect("the medium is there");
        floor.with_ring(0, |cx| engine.attach(cx)).expect("a floor has room");
        (floor, engine)
    }

    /// What cannot be, by all that is known: a leaf that was copied into has left memory. It is copied once more.
    #[test]
    fn a_copy_into_what_is_not_there_keeps_no_lock() {
        let (mut floor, mut engine) = engine(64);
        for (number, name) in [(2, "below"), (3, "above")] {
            let (uuid, bytes) = (Uuid::from_u128(number), 1 << 20);
            let order = Order::Create { uuid, name: name.into(), bytes, reserved: 0, created: 1 };
            let answer = engine.orders.send(&engine.shared, order).expect("the pool is open");
            while answer.try_recv().is_err() {
                floor.with_ring(0, |cx| engine.poll(cx));
                floor.advance(1000);
            }
        }
        let ids: Vec<u64> = engine.nodes.by_id().keys().copied().collect();
        let stage = Stage::Copying { mask: 1, from: 9 };
        let mut fold = Fold::new(ids[0], ids[1], 16, stage);
        assert!(engine.shared.locks.try_lock(ids[1], 0, u16::MAX));
        engine.copied(&mut fold, 1, 9, Ok(()));
        assert!(matches!(fold.stage, Stage::Entries) && fold.next == 0 && engine.to_log.records.is_empty());
        assert!(engine.shared.locks.try_lock(ids[1], 0, u16::MAX), "somebody else may go on");
    }

    #[test]
    fn a_cluster_is_freed_taken_or_copied() {
        let below = Entry::on(5).with_here(0x00ff).with_zero(0x0f00);
        let free = Some(5);
        let covered = Entry::on(6).with_here(0x0fff);
        assert_eq!(verdict(below, covered, false), Verdict::Publish { child: covered, freed: free, took: false });
        let zero = Entry::EMPTY.with_zero(0x00ff);
        let all_zero = Verdict::Publish { child: zero.with_zero(0x0f00), freed: free, took: false };
        assert_eq!(verdict(below, zero, false), all_zero);
        let taken = Entry::on(5).with_here(0x00f0).with_zero(0x0f0f);
        let mine = Entry::EMPTY.with_zero(0x000f);
        assert_eq!(verdict(below, mine, false), Verdict::Publish { child: taken, freed: None, took: true });
        let both = Entry::on(6).with_here(0x000f);
        assert_eq!(verdict(below, both, false), Verdict::Copy { mask: 0x00f0, from: 5, to: 6 });
        assert_eq!(verdict(Entry::EMPTY.with_zero(1), Entry::EMPTY, true), Verdict::Nothing);
    }
}
