//! Structural operations: what the control plane orders, one after the other.
//!
//! An order that changes what a volume is closes its gate, waits until nobody starts anything, makes the change, opens the
//! gate, and waits for what was in flight; guests wait for the reactors' next turns and not for the medium. What it has to
//! say goes to the front of the next commit, and it is answered when a commit that began after all of that is durable.

use std::sync::Arc;
use std::sync::atomic::Ordering::Release;

use pollux_core::Ring;
use uuid::Uuid;

use super::Engine;
use super::nodes::{Below, Node};
use crate::thin::PoolError;
use crate::thin::format::{Entry, Layer, LayerKind, Pointer};
use crate::thin::orders::{Answer, Asked, Order, SnapshotOf};
use crate::thin::shared::{EVERYBODY, Volume, fence_readers};

/// The order that is being carried out.
pub(super) struct Doing {
    asked: Asked,
    stage: Stage,
    /// The volumes whose gates it has closed, and when that was.
    volumes: Vec<Arc<Volume>>,
    closed: u64,
}

enum Stage {
    /// Requests that began long ago have to end, before anything of it is done.
    Waiting,
    /// The gates are closed; somebody may still be starting something.
    Closing,
    /// What began before has to end.
    Draining(u64),
    /// It has to be durable.
    Committing(u64),
    /// A checkpoint has to end that began afterwards: more than so many have then.
    Checkpoint(u64),
}

impl Doing {
    /// Up to which epoch it waits for readers.
    pub(super) const fn awaited(&self) -> Option<u64> {
        match self.stage {
            Stage::Closing => Some(EVERYBODY),
            Stage::Draining(epoch) => Some(epoch),
            Stage::Waiting | Stage::Committing(_) | Stage::Checkpoint(_) => None,
        }
    }

    /// Whether the gates of some volumes are closed for it.
    pub(super) const fn has_closed_gates(&self) -> bool {
        matches!(self.stage, Stage::Closing)
    }
}

impl Engine {
    /// Goes on with the order at hand, or takes the next one.
    pub(super) fn advance_orders(&mut self, clock: &dyn Ring) -> u32 {
        let mut count = 0;
        loop {
            let Some(mut doing) = self.doing.take() else {
                let Some(asked) = self.orders.next() else { return count };
                count += 1;
                self.begin_order(asked, clock);
                continue;
            };
            if let Stage::Waiting = doing.stage
                && (self.failed.is_some() || self.shared.has_epochs(1))
            {
                // What it needs may be otherwise now.
                self.begin_order(doing.asked, clock);
                continue;
            }
            if !self.advance_order(&mut doing, clock) {
                self.doing = Some(doing);
                return count + self.answer_questions();
            }
            count += 1;
        }
    }

    /// Who only asks is not to wait for a base that does not answer the order at hand.
    fn answer_questions(&mut self) -> u32 {
        let mut count = 0;
        while let Some(asked) = self.orders.next_question() {
            self.review_alarms();
            asked.answer(Ok(Some(Box::new(self.info()))));
            count += 1;
        }
        count
    }

    fn begin_order(&mut self, asked: Asked, clock: &dyn Ring) {
        if let Order::Info = asked.order {
            self.review_alarms();
            return asked.answer(Ok(Some(Box::new(self.info()))));
        }
        if let Some(error) = self.failed {
            return asked.answer(Err(PoolError::Failed(error)));
        }
        let pledge = self.pledge(&asked.order);
        if pledge > 0 || matches!(asked.order, Order::Inflate { .. }) {
            // What lies in leases may be used at any moment: what is kept is kept of what is nobody's.
            self.take_leases_back();
        }
        if let Order::Inflate { .. } = asked.order {
            return self.begin_inflation(asked);
        }
        match self.check(&asked.order, pledge) {
            Err(error) => asked.answer(Err(error)),
            Ok(volumes) if volumes.is_empty() => {
                let stage = self.apply(&asked.order);
                self.doing = Some(Doing { asked, stage, volumes, closed: 0 });
            }
            // Each order that closes gates raises the epoch.
            Ok(_) if !self.shared.has_epochs(1) => {
                self.doing = Some(Doing { asked, stage: Stage::Waiting, volumes: Vec::new(), closed: 0 });
            }
            Ok(volumes) => {
                let closed = clock.now_ns();
                volumes.iter().for_each(|volume| volume.close_gate());
                fence_readers();
                self.shared.wake_reactors();
                self.pledged = pledge;
                self.doing = Some(Doing { asked, stage: Stage::Closing, volumes, closed });
            }
        }
    }

    /// Returns whether it has ended.
    fn advance_order(&mut self, doing: &mut Doing, clock: &dyn Ring) -> bool {
        match doing.stage {
            Stage::Waiting => {
                self.lacks_epochs = true;
                return false;
            }
            Stage::Closing => {
                if !doing.volumes.iter().all(|volume| volume.is_still()) {
                    return false;
                }
                self.pledged = 0;
                doing.stage = self.apply(&doing.asked.order);
                self.shared.tell_waiters();
                self.shared.wake_reactors();
                self.shared.pauses.record(clock.now_ns().saturating_sub(doing.closed));
            }
            Stage::Draining(epoch) => {
                if !doing.volumes.iter().all(|volume| volume.is_past(epoch)) {
                    return false;
                }
                doing.volumes.iter().for_each(|volume| volume.chain().settled.store(true, Release));
                self.shared.tell_waiters();
                doing.stage = Stage::Committing(self.shared.commits.ticket());
            }
            Stage::Committing(ticket) => {
                let failed = self.failed.map(|error| Err(PoolError::Failed(error)));
                let done = self.shared.commits.is_done(ticket).then_some(Ok(None));
                let Some(answer) = done.or(failed) else { return false };
                doing.asked.answer(answer);
                return true;
            }
            Stage::Checkpoint(before) => {
                if let Some(error) = self.failed {
                    doing.asked.answer(Err(PoolError::Failed(error)));
                    return true;
                }
                if self.checkpoints <= before {
                    return false;
                }
                doing.asked.answer(Ok(None));
                return true;
            }
        }
        self.advance_order(doing, clock)
    }

    /// Makes the change. The gates that had to be closed are closed, nobody starts anything, and they are open afterwards.
    fn apply(&mut self, order: &Order) -> Stage {
        match order {
            Order::Create { uuid, name, bytes, reserved, created } => {
                let id = self.new_head(*uuid, name, *bytes, None, *created);
                self.nodes.get_mut(id).layer.reserved = self.nodes.clusters(*reserved);
                self.log_layer(id);
                self.directory.put(self.nodes.volume(id));
                self.review_reserves();
            }
            Order::Clone { of, uuid, name, created } => {
                let parent = self.nodes.find(*of).expect("checked");
                let bytes = self.nodes.get(parent).layer.size;
                let id = self.new_head(*uuid, name, bytes, Some(parent), *created);
                self.log_layer(id);
                self.directory.put(self.nodes.volume(id));
            }
            Order::Snapshot { of, created } => {
                of.iter().for_each(|one| self.cut(one, *created));
                return Stage::Draining(self.raise_epoch());
            }
            Order::CloneBdev { of, uuid, name, bytes, created } => {
                let id = self.new_head(*uuid, name, *bytes, None, *created);
                self.nodes.get_mut(id).layer.stand_on(Some(*of));
                self.log_layer(id);
                self.directory.put(self.nodes.volume(id));
            }
            Order::Delete { uuid } => {
                let id = self.nodes.find(*uuid).expect("checked");
                self.send_away(id);
                self.review_unnamed();
                self.review_reserves();
                self.directory.remove(*uuid);
            }
            Order::Resize { uuid, bytes, .. } => {
                self.resize(*uuid, *bytes);
                return Stage::Draining(self.raise_epoch());
            }
            Order::Rename { uuid, name } => {
                let id = self.nodes.find(*uuid).expect("checked");
                name.clone_into(&mut self.nodes.get_mut(id).layer.name);
                self.log_layer(id);
            }
            Order::SetReadOnly { uuid } => {
                let id = self.nodes.find(*uuid).expect("checked");
                if self.nodes.get(id).layer.kind == LayerKind::Head {
                    self.set_read_only(*uuid, id);
                    return Stage::Draining(self.raise_epoch());
                }
            }
            Order::Rollback { uuid, to } => {
                self.roll_back(*uuid, *to);
                return Stage::Draining(self.raise_epoch());
            }
            Order::Limit { uuid, quota, reserved } => {
                let id = self.nodes.find(*uuid).expect("checked");
                let clusters = |bytes: &Option<u64>| bytes.map(|bytes| self.nodes.clusters(bytes));
                let (quota, reserved) = (clusters(quota), clusters(reserved));
                let layer = &mut self.nodes.get_mut(id).layer;
                layer.quota = quota.unwrap_or(layer.quota);
                layer.reserved = reserved.unwrap_or(layer.reserved);
                self.log_layer(id);
                self.review_reserves();
            }
            Order::HoldPages => self.shared.held.0.store(self.store.hold_pages(), Release),
            Order::LetGoPages => self.shared.held.1.store(self.store.let_go_pages(), Release),
            Order::SetParent { uuid, parent } => {
                let id = self.nodes.find(*uuid).expect("checked");
                let parent = self.nodes.find(*parent).expect("checked");
                return self.set_below(*uuid, id, Below { parent: Some(parent), ..Below::default() });
            }
            Order::SetOrigin { uuid, origin } => {
                let id = self.nodes.find(*uuid).expect("checked");
                return self.set_below(*uuid, id, Below { origin: Some(*origin), ..Below::default() });
            }
            Order::RenamePool { name } => {
                self.store.rename(name).expect("checked");
                return self.in_the_superblock();
            }
            Order::Grow { bytes } => {
                if self.grow(*bytes) {
                    return self.in_the_superblock();
                }
            }
            Order::Thresholds { thresholds } => {
                self.store.set_thresholds(*thresholds);
                self.set_alarms();
                return self.in_the_superblock();
            }
            Order::DiscardRate { rate } => {
                self.store.set_discard_rate(*rate);
                self.rate_is_another();
                return self.in_the_superblock();
            }
            Order::WarnAt { uuid, percent } => {
                let id = self.nodes.find(*uuid).expect("checked");
                self.nodes.get_mut(id).layer.warn_percent = *percent;
                self.log_layer(id);
                self.set_alarms();
            }
            Order::Checkpoint => return self.in_the_superblock(),
            Order::Inflate { .. } | Order::Commit | Order::Info => {}
        }
        Stage::Committing(self.shared.commits.ticket())
    }

    /// A volume stands on something else, and whoever uses it finds other data.
    fn set_below(&mut self, uuid: Uuid, id: u64, below: Below) -> Stage {
        self.nodes.stand(id, below);
        self.moved_to_log.insert(id);
        self.hurry = true;
        self.review_unnamed();
        self.switch(uuid, id);
        Stage::Draining(self.raise_epoch())
    }

    /// The pool takes what the base has, as far as its clusters can be numbered; whether that is more than before.
    fn grow(&mut self, bytes: u64) -> bool {
        let most = (u64::from(Entry::MAX_CLUSTER) + 1) * self.nodes.cluster_size() - 1;
        self.store.grow(bytes.min(most)).expect("as many can be numbered")
    }

    /// Waits for a checkpoint that has not begun.
    fn in_the_superblock(&mut self) -> Stage {
        self.checkpoint_wanted = true;
        Stage::Checkpoint(self.checkpoints + u64::from(self.store.is_checkpointing()))
    }

    /// A new head with nothing in it. It is still to be logged and made known.
    fn new_head(&mut self, uuid: Uuid, name: &str, size: u64, parent: Option<u64>, created: u64) -> u64 {
        let id = self.store.next_layer();
        let (root, levels, owned, here, quota, reserved) = (Pointer::NONE, 0, 0, 0, 0, 0);
        let (kind, name, origin, sees, warn_percent) = (LayerKind::Head, name.to_owned(), None, None, 0);
        let origin_bytes = 0;
        let layer = Layer {
            id,
            parent,
            uuid,
            kind,
            name,
            size,
            levels,
            root,
            owned,
            here,
            quota,
            reserved,
            created,
            origin,
            origin_bytes,
            sees,
            warn_percent,
        };
        self.nodes.add(layer);
        id
    }

    pub(super) fn log_layer(&mut self, id: u64) {
        self.layers_to_log.insert(id);
        self.hurry = true;
    }

    /// What was the head is a snapshot from now on, and the volume has a new head.
    fn cut(&mut self, one: &SnapshotOf, created: u64) {
        let old = self.nodes.find(one.volume).expect("checked");
        let was = self.nodes.get(old).layer.clone();
        let layer = &mut self.nodes.get_mut(old).layer;
        (layer.uuid, layer.kind, layer.created) = (one.uuid, LayerKind::Snapshot, created);
        one.name.clone_into(&mut layer.name);
        (layer.quota, layer.reserved, layer.warn_percent) = (0, 0, 0);
        let new = self.new_head(was.uuid, &was.name, was.size, Some(old), was.created);
        let head = &mut self.nodes.get_mut(new).layer;
        (head.quota, head.reserved, head.warn_percent) = (was.quota, was.reserved, was.warn_percent);
        self.log_layer(old);
        self.log_layer(new);
        self.directory.put(self.nodes.volume(old));
        self.switch(one.volume, new);
    }

    /// Opens a volume's gate on another head.
    fn switch(&self, volume: Uuid, head: u64) {
        if let Some(volume) = self.directory.get(volume) {
            volume.open_gate(Some(self.nodes.chain(head, false)));
        }
    }

    fn resize(&mut self, uuid: Uuid, bytes: u64) {
        let id = self.nodes.find(uuid).expect("checked");
        if bytes < self.nodes.get(id).layer.size {
            return self.shrink(id, bytes);
        }
        let clusters = self.nodes.clusters(bytes);
        let reserved = self.reserved_with(&self.nodes.get(id).layer, bytes);
        let node = self.nodes.get_mut(id);
        (node.layer.size, node.layer.reserved) = (bytes, reserved);
        node.map = Arc::new(node.map.resized(clusters));
        self.log_layer(id);
        self.switch(uuid, id);
        self.review_reserves();
    }

    /// What is a head is a snapshot, with the same name and the same UUID. Nothing is kept for it any more.
    fn set_read_only(&mut self, uuid: Uuid, id: u64) {
        let layer = &mut self.nodes.get_mut(id).layer;
        layer.kind = LayerKind::Snapshot;
        (layer.quota, layer.reserved, layer.warn_percent) = (0, 0, 0);
        self.log_layer(id);
        self.switch(uuid, id);
        self.review_reserves();
    }

    /// A new, empty head that sees as much of the old one as is to be left. The old one goes into it like a deleted snapshot,
    /// and what lies behind is free then. If the volume becomes larger again it still sees no more.
    fn shrink(&mut self, old: u64, bytes: u64) {
        let was = self.nodes.get(old).layer.clone();
        let new = self.new_head(was.uuid, &was.name, bytes, Some(old), was.created);
        self.send_away(old);
        let reserved = was.reserved.min(self.nodes.clusters(bytes));
        let head = &mut self.nodes.get_mut(new).layer;
        (head.quota, head.reserved, head.sees) = (was.quota, reserved, Some(bytes));
        head.warn_percent = was.warn_percent;
        self.log_layer(new);
        self.switch(was.uuid, new);
        self.review_reserves();
    }

    /// A new, empty head on the snapshot; the old one goes.
    fn roll_back(&mut self, uuid: Uuid, to: Uuid) {
        let old = self.nodes.find(uuid).expect("checked");
        let parent = self.nodes.find(to).expect("checked");
        let was = self.nodes.get(old).layer.clone();
        let size = self.nodes.get(parent).layer.size;
        self.send_away(old);
        let reserved = was.reserved.min(self.nodes.clusters(size));
        let new = self.new_head(uuid, &was.name, size, Some(parent), was.created);
        let head = &mut self.nodes.get_mut(new).layer;
        (head.quota, head.reserved, head.warn_percent) = (was.quota, reserved, was.warn_percent);
        self.log_layer(new);
        self.switch(uuid, new);
        self.review_reserves();
    }

    /// Nobody knows it any more. With several children it stays until it has one.
    fn send_away(&mut self, id: u64) {
        let children = self.nodes.get(id).children.len();
        let layer = &mut self.nodes.get_mut(id).layer;
        layer.kind = if children > 1 { LayerKind::Unnamed } else { LayerKind::Going };
        layer.name.clear();
        layer.uuid = Uuid::nil();
        (layer.quota, layer.reserved, layer.warn_percent) = (0, 0, 0);
        self.log_layer(id);
    }

    /// What volumes may own and what is kept for them, as their channels go by it.
    pub(super) fn review_reserves(&mut self) {
        let is_uncounted = self.unsettled.is_some();
        let mut others: Vec<_> = self.kept_by.drain(..).chain(self.not_kept_by.drain(..)).collect();
        for node in self.nodes.by_id().values().filter(|node| node.layer.kind == LayerKind::Head) {
            let Some(volume) = self.directory.get(node.layer.uuid) else { continue };
            volume.uncounted.store(is_uncounted, Release);
            volume.quota.store(node.layer.quota, Release);
            volume.reserved.store(node.layer.reserved, Release);
            if node.layer.reserved > 0 {
                self.kept_by.push(volume);
            }
        }
        others.retain(|volume| !self.kept_by.iter().any(|kept| Arc::ptr_eq(kept, volume)));
        others.iter().for_each(|volume| volume.reserved.store(0, Release));
        self.not_kept_by = others;
        self.take_back_unkept();
        // Those that are gone have no channels that could give anything back.
        let directory = &self.directory;
        self.not_kept_by.retain(|volume| directory.get(volume.uuid).is_some_and(|known| Arc::ptr_eq(&known, volume)));
        self.set_alarms();
    }

    /// Layers that stay only because several others stand on them: those where that is so no more go, too.
    pub(super) fn review_unnamed(&mut self) {
        let lonely = |node: &&Node| node.layer.kind == LayerKind::Unnamed && node.children.len() < 2;
        let ids: Vec<u64> = self.nodes.by_id().values().filter(lonely).map(|node| node.layer.id).collect();
        for id in ids {
            self.nodes.get_mut(id).layer.kind = LayerKind::Going;
            self.log_layer(id);
        }
    }

    /// Nobody is answered any more.
    pub(super) fn end_orders(&mut self) {
        self.orders.close();
        self.pledged = 0;
        if let Some(doing) = self.doing.take() {
            if doing.has_closed_gates() {
                // Helper threads may still wait there.
                doing.volumes.iter().for_each(|volume| volume.open_gate(None));
                self.shared.tell_waiters();
            }
            doing.asked.answer(Answer::Err(PoolError::Closed));
        }
    }
}
