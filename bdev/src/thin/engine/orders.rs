//! Structural operations: what the control plane orders, one after the other.
//!
//! An order that changes what a volume is closes its gate, waits until nobody starts anything, makes the change, opens the
//! gate, and waits for what was in flight; guests wait for the reactors' next turns and not for the medium. What it has to
//! say goes to the front of the next commit, and it is answered when a commit that began after all of that is durable.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;

use uuid::Uuid;

use super::Engine;
use super::nodes::{Below, Node};
use crate::thin::PoolError;
use crate::thin::format::{Entry, LAYER_LEN, LAYERS_PER_PAGE, Layer, LayerKind, NAME_LEN, Origin, Pointer, THRESHOLDS};
use crate::thin::orders::{Answer, Asked, Order, SnapshotOf};
use crate::thin::shared::{EVERYBODY, Volume};
use crate::thin::store::MOST_BYTES;

/// The order that is being carried out.
pub(super) struct Doing {
    asked: Asked,
    stage: Stage,
    /// The volumes whose gates it has closed.
    volumes: Vec<Arc<Volume>>,
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
    pub(super) fn advance_orders(&mut self) -> u32 {
        let mut count = 0;
        loop {
            let Some(mut doing) = self.doing.take() else {
                let Some(asked) = self.orders.next() else { return count };
                count += 1;
                self.begin_order(asked);
                continue;
            };
            if let Stage::Waiting = doing.stage
                && (self.failed.is_some() || self.shared.has_epochs(1))
            {
                // What it needs may be otherwise now.
                self.begin_order(doing.asked);
                continue;
            }
            if !self.advance_order(&mut doing) {
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

    fn begin_order(&mut self, asked: Asked) {
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
                self.doing = Some(Doing { asked, stage, volumes });
            }
            // Each order that closes gates raises the epoch.
            Ok(_) if !self.shared.has_epochs(1) => {
                self.doing = Some(Doing { asked, stage: Stage::Waiting, volumes: Vec::new() });
            }
            Ok(volumes) => {
                volumes.iter().for_each(|volume| volume.close_gate());
                self.shared.wake_reactors();
                self.pledged = pledge;
                self.doing = Some(Doing { asked, stage: Stage::Closing, volumes });
            }
        }
    }

    /// Returns whether it has ended.
    fn advance_order(&mut self, doing: &mut Doing) -> bool {
        match doing.stage {
            Stage::Waiting => {
                self.lacks_epochs = true;
                return false;
            }
            Stage::Closing => {
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                if !doing.volumes.iter().all(|volume| volume.is_still()) {
                    return false;
                }
                self.pledged = 0;
                doing.stage = self.apply(&doing.asked.order);
                self.shared.tell_waiters();
                self.shared.wake_reactors();
            }
            Stage::Draining(epoch) => {
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
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
        self.advance_order(doing)
    }

    /// Clusters that will be kept for volumes, beyond those that are, when an order has been carried out.
    fn pledge(&self, order: &Order) -> u64 {
        let more = |uuid: &Uuid, kept: &dyn Fn(&Node) -> u64| {
            let Ok(node) = self.nodes.find(*uuid).map(|id| self.nodes.get(id)) else { return 0 };
            let owned = self.nodes.will_own(node);
            let before = self.nodes.kept_for(node).saturating_sub(owned);
            kept(node).saturating_sub(owned).saturating_sub(before)
        };
        match order {
            Order::Create { reserved, .. } => self.nodes.clusters(*reserved),
            Order::Limit { uuid, reserved: Some(bytes), .. } => more(uuid, &|_| self.nodes.clusters(*bytes)),
            Order::Resize { uuid, bytes, .. } => more(uuid, &|node| self.kept_with(node, *bytes)),
            Order::Snapshot { of, .. } => {
                let nodes = of.iter().filter_map(|one| self.nodes.find(one.volume).ok()).map(|id| self.nodes.get(id));
                // What is kept for the head is kept for the new one, which owns nothing yet.
                nodes.map(|node| self.nodes.kept_for(node).min(self.nodes.will_own(node))).sum()
            }
            _ => 0,
        }
    }

    /// Clusters that are kept for a volume when it has so many bytes: all, if that is so now, else not more than now.
    fn reserved_with(&self, layer: &Layer, bytes: u64) -> u64 {
        let (now, then) = (self.nodes.clusters(layer.size), self.nodes.clusters(bytes));
        if layer.reserved >= now { then } else { layer.reserved.min(then) }
    }

    /// The same with what is kept for it while it is inflated.
    fn kept_with(&self, node: &Node, bytes: u64) -> u64 {
        let inflating = if node.inflating { self.nodes.clusters(bytes) } else { 0 };
        self.reserved_with(&node.layer, bytes).max(inflating)
    }

    /// Whether an order can be carried out that has so many clusters more kept for volumes, and the volumes whose gates have
    /// to be closed for it.
    fn check(&self, order: &Order, pledge: u64) -> Result<Vec<Arc<Volume>>, PoolError> {
        let pledged = pledge.saturating_mul(self.nodes.cluster_size());
        let volume = |uuid: Uuid| self.directory.get(uuid).ok_or_else(|| PoolError::NotFound(uuid.to_string()));
        match order {
            Order::Create { uuid, name, bytes, reserved, .. } => {
                self.check_new(name, *uuid)?;
                check_size(*bytes)?;
                if reserved > bytes {
                    return Err(PoolError::invalid("reserved", "is more than the volume has"));
                }
                self.check_room(*bytes, pledged)?;
                Ok(Vec::new())
            }
            Order::Snapshot { of, .. } => {
                let volumes = self.check_snapshot(of)?;
                self.check_room(0, pledged)?;
                Ok(volumes)
            }
            Order::Clone { of, uuid, name, .. } => {
                self.check_new(name, *uuid)?;
                let of = self.is_kind(*of, LayerKind::Snapshot, "is no snapshot: make one first and clone that")?;
                self.check_room(self.nodes.get(of).layer.size, 0)?;
                Ok(Vec::new())
            }
            Order::CloneBdev { of, uuid, name, bytes, .. } => {
                self.check_new(name, *uuid)?;
                check_size(*bytes)?;
                check_origin(*of, *bytes)?;
                self.check_room(*bytes, 0)?;
                Ok(Vec::new())
            }
            Order::Delete { uuid } => {
                let id = self.nodes.find(*uuid)?;
                // Nobody opens it from now on.
                if self.directory.get(*uuid).is_some_and(|volume| !volume.shut()) {
                    let name = self.nodes.get(id).layer.name.clone();
                    return Err(PoolError::Unfit { name, what: "is in use: close it first" });
                }
                Ok(Vec::new())
            }
            Order::Resize { uuid, bytes, allow_shrink } => {
                let id = self.is_kind(*uuid, LayerKind::Head, "is a snapshot: its size is what it was")?;
                check_size(*bytes)?;
                let layer = &self.nodes.get(id).layer;
                if *bytes < layer.size && !allow_shrink {
                    return Err(PoolError::Shrinks { name: layer.name.clone(), has: layer.size });
                }
                if *bytes < layer.size && !bytes.is_multiple_of(self.nodes.cluster_size()) {
                    let why =
                        format!("must be whole clusters of {} bytes to be less than before", self.nodes.cluster_size());
                    return Err(PoolError::invalid("size", why));
                }
                if *bytes < layer.size {
                    self.check_layer_room(1)?;
                }
                if *bytes > layer.size {
                    self.check_weight()?;
                    if layer.quota > 0 && self.kept_with(self.nodes.get(id), *bytes) > layer.quota {
                        let what = "all of its size is kept for it, and its quota is less than that would be";
                        return Err(PoolError::Unfit { name: layer.name.clone(), what });
                    }
                }
                self.check_room(bytes.saturating_sub(layer.size), pledged)?;
                Ok(vec![volume(*uuid)?])
            }
            Order::Rename { uuid, name } => {
                self.nodes.find(*uuid)?;
                self.check_new(name, Uuid::nil())?;
                Ok(Vec::new())
            }
            Order::SetReadOnly { uuid } => match self.nodes.get(self.nodes.find(*uuid)?).layer.kind {
                LayerKind::Head if self.inflation.has(*uuid) => {
                    let name = &self.nodes.get(self.nodes.find(*uuid)?).layer.name;
                    Err(PoolError::busy(name, "is being inflated or decoupled"))
                }
                LayerKind::Head => Ok(vec![volume(*uuid)?]),
                _ => Ok(Vec::new()),
            },
            Order::Rollback { uuid, to } => {
                let id = self.is_kind(*uuid, LayerKind::Head, "is a snapshot: it cannot be rolled back")?;
                let to = self.is_kind(*to, LayerKind::Snapshot, "is no snapshot")?;
                let layer = &self.nodes.get(id).layer;
                if !self.nodes.known_below(id).any(|below| below == to) {
                    let what = "does not stand on that snapshot";
                    return Err(PoolError::Unfit { name: layer.name.clone(), what });
                }
                self.check_layer_room(1)?;
                Ok(vec![volume(*uuid)?])
            }
            Order::Limit { uuid, quota, reserved } => {
                let id =
                    self.is_kind(*uuid, LayerKind::Head, "is a snapshot: it takes no space of its own any more")?;
                if quota.is_some_and(|bytes| bytes > MOST_BYTES) {
                    return Err(PoolError::invalid("quota", format!("must be 0 to {MOST_BYTES} bytes")));
                }
                let (node, clusters) = (self.nodes.get(id), |bytes| self.nodes.clusters(bytes));
                let (layer, reserved) = (&node.layer, reserved.map_or(node.layer.reserved, clusters));
                let quota = quota.map_or(layer.quota, clusters);
                if reserved > clusters(layer.size) || quota > 0 && reserved > quota {
                    return Err(PoolError::invalid("reserved", "is more than the volume has, or may own"));
                }
                if quota > 0 && node.inflating && quota < clusters(layer.size) {
                    return Err(PoolError::busy(&layer.name, "is being inflated, and takes more than that quota"));
                }
                self.check_room(0, pledged)?;
                Ok(Vec::new())
            }
            Order::HoldPages if self.store.holds_pages() => {
                let (name, what) = (self.store.name().to_owned(), "is being scrubbed already: wait for that");
                Err(PoolError::Unfit { name, what })
            }
            Order::SetParent { uuid, parent } => {
                self.check_parent(*uuid, *parent)?;
                Ok(vec![volume(*uuid)?])
            }
            Order::SetOrigin { uuid, origin } => {
                self.check_set_origin(*uuid, *origin)?;
                Ok(vec![volume(*uuid)?])
            }
            Order::RenamePool { name } => check_name(name).map(|()| Vec::new()),
            Order::Inflate { .. } => unreachable!("it is no order that others wait for"),
            Order::Thresholds { thresholds } => self.check_thresholds(thresholds).map(|()| Vec::new()),
            Order::WarnAt { uuid, percent } => {
                let id = self.is_kind(*uuid, LayerKind::Head, "is a snapshot: it has no quota")?;
                if *percent > 100 {
                    return Err(PoolError::invalid("quota_percent", "must be 0 to 100"));
                }
                if *percent > 0 && self.nodes.get(id).layer.quota == 0 {
                    let name = self.nodes.get(id).layer.name.clone();
                    return Err(PoolError::Unfit { name, what: "has no quota: set one with bdev_lvol_set_limits" });
                }
                Ok(Vec::new())
            }
            Order::Grow { .. }
            | Order::DiscardRate { .. }
            | Order::HoldPages
            | Order::LetGoPages
            | Order::Commit
            | Order::Checkpoint
            | Order::Info => Ok(Vec::new()),
        }
    }

    fn check_new(&self, name: &str, uuid: Uuid) -> Result<(), PoolError> {
        check_name(name)?;
        if !uuid.is_nil() {
            self.check_layer_room(1)?;
        }
        self.nodes.check_free(name, uuid)
    }

    /// Whether there can be another layer, or others, in so many leaves of the catalog.
    fn check_layer_room(&self, leaves: usize) -> Result<(), PoolError> {
        self.check_weight()?;
        if self.has_room_for_layers(leaves) {
            return Ok(());
        }
        let what = "there are no pages left for what it needs to know of it; delete something, or let it grow";
        Err(PoolError::NoSpace(what.into()))
    }

    /// Whether there may be more of what takes memory, whatever is in it.
    fn check_weight(&self) -> Result<(), PoolError> {
        if self.nodes.may_be_more() {
            return Ok(());
        }
        let what = "its volumes and snapshots are as many, as large and as long chains as they may be; delete some";
        Err(PoolError::NoSpace(what.into()))
    }

    /// Whether so many bytes more may be provisioned, and so many be kept. Nothing is in leases.
    pub(super) fn check_room(&self, bytes: u64, reserved: u64) -> Result<(), PoolError> {
        let size = self.nodes.cluster_size();
        let (overcommit, total) = (self.store.overcommit(), self.store.total_clusters() * size);
        let most = u128::from(total) * u128::from(overcommit) / 100;
        let provisioned = u128::from(self.nodes.provisioned()) + u128::from(bytes);
        if overcommit > 0 && bytes > 0 && provisioned > most {
            let what = format!("its volumes would have {provisioned} bytes, and {most} is the limit (overcommit)");
            return Err(PoolError::NoSpace(what));
        }
        let free = self.unreserved() * size;
        if reserved > free {
            let what = format!("{reserved} bytes are to be kept, and {free} are free; give back some, or keep less");
            return Err(PoolError::NoSpace(what));
        }
        Ok(())
    }

    /// Whether a volume can stand on a snapshot, by SPDK's rules.
    fn check_parent(&self, uuid: Uuid, parent: Uuid) -> Result<(), PoolError> {
        let id = self.is_kind(uuid, LayerKind::Head, "is a snapshot: what it stands on does not change")?;
        let parent = self.is_kind(parent, LayerKind::Snapshot, "is no snapshot")?;
        let (layer, on) = (&self.nodes.get(id).layer, &self.nodes.get(parent).layer);
        if self.nodes.known_below(id).next() == Some(parent) {
            return Err(PoolError::IsParent { name: layer.name.clone() });
        }
        if layer.size != on.size {
            let why = format!("has {} bytes, and the volume {}: it has to have as many", on.size, layer.size);
            return Err(PoolError::invalid("parent_name", why));
        }
        self.check_stand(layer)
    }

    /// The same for a bdev outside of the pool.
    fn check_set_origin(&self, uuid: Uuid, origin: Origin) -> Result<(), PoolError> {
        let id = self.is_kind(uuid, LayerKind::Head, "is a snapshot: what it stands on does not change")?;
        let layer = &self.nodes.get(id).layer;
        if layer.origin == Some(origin.uuid) {
            return Err(PoolError::IsParent { name: layer.name.clone() });
        }
        check_origin(origin, layer.size)?;
        self.check_stand(layer)
    }

    /// Whether a volume can stand on something else now.
    fn check_stand(&self, layer: &Layer) -> Result<(), PoolError> {
        if layer.reserved > 0 {
            return Err(PoolError::invalid(
                "lvol_name",
                "is a thick volume: what is kept for it is for data of its own",
            ));
        }
        if self.inflation.has(layer.uuid) {
            return Err(PoolError::busy(&layer.name, "is being inflated or decoupled"));
        }
        let below = layer.parent.map(|below| self.nodes.get(below).layer.kind);
        if below == Some(LayerKind::Going) {
            return Err(PoolError::busy(&layer.name, "still takes over what a deleted snapshot has, or a size before"));
        }
        Ok(())
    }

    fn check_snapshot(&self, of: &[SnapshotOf]) -> Result<Vec<Arc<Volume>>, PoolError> {
        let mut volumes: Vec<Arc<Volume>> = Vec::new();
        let most = self.largest_group();
        if of.len() > most {
            let why = format!("are {}: at most {most} fit into one batch of the log of this pool", of.len());
            return Err(PoolError::invalid("lvol_names", why));
        }
        let mut leaves = BTreeSet::new();
        for (at, one) in of.iter().enumerate() {
            self.check_new(&one.name, one.uuid)?;
            let id = self.is_kind(one.volume, LayerKind::Head, "is a snapshot already")?;
            let twice = of[..at].iter().find(|other| other.volume == one.volume || other.name == one.name);
            if twice.is_some() {
                return Err(PoolError::invalid("snapshot_names", "name a volume or a snapshot twice"));
            }
            leaves.insert(id / LAYERS_PER_PAGE as u64);
            let volume = self.directory.get(one.volume);
            volumes.push(volume.ok_or_else(|| PoolError::NotFound(one.volume.to_string()))?);
        }
        if volumes.is_empty() {
            return Err(PoolError::invalid("lvol_names", "name no volume"));
        }
        if of.len() > 1 {
            self.check_layer_room(leaves.len() + of.len().div_ceil(LAYERS_PER_PAGE) + 1)?;
        }
        Ok(volumes)
    }

    /// How many volumes a group snapshot may have: what is said of it goes into one batch, beside other things, and that of
    /// which there was a snapshot has changed as well as what it has become.
    fn largest_group(&self) -> usize {
        let (bytes, _) = self.store.batch(0, 0);
        (bytes / 2 / (2 * (LAYER_LEN + 1))).max(1)
    }

    pub(super) fn is_kind(&self, uuid: Uuid, kind: LayerKind, what: &'static str) -> Result<u64, PoolError> {
        let id = self.nodes.find(uuid)?;
        let layer = &self.nodes.get(id).layer;
        if layer.kind == kind { Ok(id) } else { Err(PoolError::Unfit { name: layer.name.clone(), what }) }
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
        self.log_layer(id);
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

    fn check_thresholds(&self, thresholds: &[u64; THRESHOLDS]) -> Result<(), PoolError> {
        let total = self.store.total_clusters() * self.nodes.cluster_size();
        match thresholds.iter().find(|threshold| **threshold > total.max(100)) {
            Some(_) => Err(PoolError::invalid("thresholds", format!("the pool has {total} bytes"))),
            None => Ok(()),
        }
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
        for node in self.nodes.by_id.values().filter(|node| node.layer.kind == LayerKind::Head) {
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
        let ids: Vec<u64> = self.nodes.by_id.values().filter(lonely).map(|node| node.layer.id).collect();
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

fn check_name(name: &str) -> Result<(), PoolError> {
    if name.is_empty() || name.len() > NAME_LEN || name.contains('/') || name.chars().any(char::is_control) {
        let why = format!("must be 1 to {NAME_LEN} bytes without '/' and control characters");
        return Err(PoolError::invalid("name", why));
    }
    Ok(())
}

/// What of a bdev can count for a volume of so many bytes.
fn check_origin(origin: Origin, bytes: u64) -> Result<(), PoolError> {
    if origin.uuid.is_nil() || origin.bytes == 0 || origin.bytes > bytes || !origin.bytes.is_multiple_of(512) {
        return Err(PoolError::invalid("bdev", "has no UUID, or no bytes that could count"));
    }
    Ok(())
}

fn check_size(bytes: u64) -> Result<(), PoolError> {
    if bytes == 0 || bytes > MOST_BYTES {
        return Err(PoolError::invalid("size", format!("must be 1 to {MOST_BYTES} bytes")));
    }
    Ok(())
}
