//! Whether an order can be carried out, and what it takes: asked before anything of it is done, and once more when it had to
//! wait.

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use super::Engine;
use super::nodes::Node;
use crate::thin::PoolError;
use crate::thin::format::{LAYER_LEN, LAYERS_PER_PAGE, Layer, LayerKind, NAME_LEN, Origin, THRESHOLDS};
use crate::thin::orders::{Order, SnapshotOf};
use crate::thin::shared::Volume;
use crate::thin::store::MOST_BYTES;

impl Engine {
    /// Clusters that will be kept for volumes, beyond those that are, when an order has been carried out.
    pub(super) fn pledge(&self, order: &Order) -> u64 {
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
    pub(super) fn reserved_with(&self, layer: &Layer, bytes: u64) -> u64 {
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
    pub(super) fn check(&self, order: &Order, pledge: u64) -> Result<Vec<Arc<Volume>>, PoolError> {
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

    fn check_thresholds(&self, thresholds: &[u64; THRESHOLDS]) -> Result<(), PoolError> {
        let total = self.store.total_clusters() * self.nodes.cluster_size();
        match thresholds.iter().find(|threshold| **threshold > total.max(100)) {
            Some(_) => Err(PoolError::invalid("thresholds", format!("the pool has {total} bytes"))),
            None => Ok(()),
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
