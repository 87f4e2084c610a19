//! What is looked at of pools each second, and where pools are looked for.

use std::sync::Arc;

use pollux_bdev::thin::{PoolInfo, Role, Settled, VolumeInfo};
use pollux_bdev::{Entry, Kind as BdevKind, State};
use serde_json::{Value, json};
use uuid::Uuid;

use super::open::known;
use super::volumes::volume_info;
use super::{OpenPool, hidden};
use crate::node::document::Document;
use crate::node::notify::Kind;
use crate::node::{Changes, Node, NodeError};

impl Node {
    /// Opens the pools on these bdevs, if there are any and no guest uses the bdevs. Returns the volumes that have come
    /// back and that somebody waits for.
    pub(in crate::node) fn look_for_pools(&self, bdevs: &[String]) -> Vec<Uuid> {
        self.look_for_pools_as(bdevs, &self.document())
    }

    /// The same where this is what guests use.
    pub(in crate::node) fn look_for_pools_as(&self, bdevs: &[String], document: &Document) -> Vec<Uuid> {
        let entries = bdevs.iter().filter_map(|name| self.bdevs.get(name));
        let examined = entries.filter(|entry| self.is_examined(entry, document));
        examined.flat_map(|entry| self.examine(&entry)).collect()
    }

    /// Opens the pool on a bdev, if there is one, because somebody asks for it; one that has failed is closed first.
    ///
    /// # Errors
    /// [`NodeError`] says why it cannot be closed.
    pub fn examine_now(&self, entry: &Arc<Entry>) -> Result<(), NodeError> {
        self.close_failed(entry)?;
        let back = self.examine(entry);
        self.bring_all_back(&back);
        Ok(())
    }

    /// What an operator should know of pools.
    #[must_use]
    pub fn pool_warnings(&self) -> Vec<String> {
        let all = self.pools.all();
        let states = all.iter().map(|open| (open.last_info(), open.base().name()));
        let open = states.filter_map(|(info, base)| match (info.failed, info.full) {
            (true, _) => Some(format!(
                "pool {}: read-only because bdev '{base}' has failed; look at it, then bdev_examine it",
                info.name
            )),
            (false, true) => Some(format!("pool {}: full; delete something, or writes will fail", info.name)),
            (false, false) if info.thresholds.iter().any(|threshold| threshold.reached) => Some(format!(
                "pool {}: more is used than its threshold says; delete something or let it grow",
                info.name
            )),
            (false, false) => None,
        });
        let lacking = all.iter().flat_map(|open| self.origin_warnings(&open.last_info()));
        let late = all.iter().filter(|open| open.pool.is_late()).map(|open| {
            let (pool, base) = (open.last_info().name.clone(), open.base().name());
            format!(
                "pool {pool}: a change waits for bdev '{base}', which does not answer; others are refused meanwhile"
            )
        });
        let closed = self.pools.closed().into_iter().filter(|(base, _)| self.bdevs.get(base).is_some());
        open.chain(lacking)
            .chain(late)
            .chain(closed.map(|(base, closed)| format!("bdev {base}: its pool is not open: {}", closed.why)))
            .collect()
    }

    /// Asks each pool how it is: what metrics show until the next time. One whose base has grown grows with it, and one that
    /// has failed is read-only for its guests.
    pub(in crate::node) fn look_at_pools(&self) {
        let all = self.pools.all();
        let looks: Vec<_> = all.iter().filter_map(|open| Some((open, open.refresh().ok()?))).collect();
        for open in &all {
            if let Err(error) = self.grow_with_base(open) {
                tracing::error!("pool '{}' does not grow with its base: {error}", open.last_info().name);
            }
        }
        let mut changes = self.change();
        if looks.iter().any(|(_, info)| info.failed) {
            self.refresh_sizes();
        }
        for open in &all {
            let settled = open.pool.take_settled();
            if !settled.is_empty() {
                self.settle(&mut changes, open, &settled);
            }
            hidden::tidy(open);
        }
        looks.iter().for_each(|(open, info)| self.tell_thresholds(open, info));
        self.review_origins();
        self.withdraw_forgotten();
    }

    /// A change has come to be that its caller does not wait for any more: what is listed, and what guests know, is made
    /// what the pool holds.
    fn settle(&self, changes: &mut Changes, open: &OpenPool, settled: &[Settled]) {
        let Ok(info) = open.refresh() else { return };
        tracing::warn!("pool '{}': a change that was given up on has ended; its volumes are listed anew", info.name);
        // It may have been a job's, which has ended.
        open.left_behind(true);
        self.bdevs.reclaim(open.base().name(), BdevKind::Pool, vec![info.name.clone()]);
        for volume in known(&info) {
            let (name, alias) = (volume.uuid.to_string(), format!("{}/{}", info.name, volume.name));
            match self.bdevs.get(&name) {
                None => {
                    self.undo("a new volume", self.place_volume(open, &info.name, volume.uuid, &volume.name));
                    self.notifications.add(Kind::BdevRegister, &name);
                }
                Some(entry) if !entry.aliases().contains(&alias) => {
                    self.undo("a new name", self.bdevs.set_alias(volume.uuid, &alias));
                }
                Some(_) => {}
            }
        }
        for entry in self.bdevs.list() {
            let is_gone = || !info.volumes.iter().any(|volume| volume.uuid == entry.uuid());
            if is_listed_of(open.uuid(), &entry) && is_gone() {
                let uuid = entry.uuid();
                drop(entry);
                self.undo("a deleted volume", self.forget_bdev(changes, uuid));
            }
        }
        self.refresh_sizes();
        self.review_origins();
        for uuid in settled.iter().filter_map(|settled| settled.another_medium) {
            let Some(entry) = self.bdevs.get(&uuid.to_string()) else { continue };
            self.stands_on_another(open, &entry);
            self.tell_other_medium(&entry);
        }
    }

    /// Volumes that are missing are listed as long as something needs them.
    fn withdraw_forgotten(&self) {
        let document = self.document();
        for entry in self.bdevs.list() {
            let waits = entry.kind() == BdevKind::Lvol && matches!(entry.state(), State::Missing(_));
            let needed = || {
                document.attachments(entry.name()).next().is_some() || document.identities.contains_key(entry.name())
            };
            if waits && self.pool_of(&entry).is_none() && !needed() && entry.claimed_by().is_none() {
                self.undo("a forgotten volume", self.bdevs.withdraw(entry.uuid()));
                self.units().remove(&entry.uuid());
            }
        }
    }

    /// The member `driver_specific` of a volume, as SPDK has it.
    #[must_use]
    pub fn volume_specific(&self, entry: &Entry) -> Value {
        let Some(open) = self.pool_of(entry) else { return json!({}) };
        let info = open.last_info();
        let Ok(volume) = volume_info(&info, entry.uuid()) else { return json!({}) };
        let parent = volume.parent.and_then(|uuid| volume_info(&info, uuid).ok());
        let mut lvol = json!({
            "lvol_store_uuid": open.uuid(),
            "base_bdev": open.base().name(),
            "thin_provision": volume.reserved_bytes == 0,
            "num_allocated_clusters": clusters(&info, volume),
            "snapshot": volume.role == Role::Snapshot,
            "clone": parent.is_some(),
            "esnap_clone": volume.is_of_bdev(),
        });
        if let Some(origin) = volume.origin.filter(|_| volume.is_of_bdev()) {
            lvol["external_snapshot_name"] = origin.uuid.to_string().into();
        }
        if let Some(parent) = parent {
            lvol["base_snapshot"] = parent.name.as_str().into();
        }
        if volume.role == Role::Snapshot {
            let of = volume.children.iter().filter_map(|uuid| volume_info(&info, *uuid).ok());
            lvol["clones"] = of.map(|child| child.name.as_str()).collect();
        }
        json!({ "lvol": lvol })
    }
}

/// Whether a bdev is a volume that was opened in this pool.
fn is_listed_of(pool: Uuid, entry: &Entry) -> bool {
    let specific = entry.device().filter(|_| entry.kind() == BdevKind::Lvol).map(|device| device.driver_specific());
    specific.is_some_and(|specific| specific["lvol"]["lvol_store_uuid"] == pool.to_string())
}

/// Clusters that only this volume has.
#[must_use]
pub fn clusters(info: &PoolInfo, volume: &VolumeInfo) -> u64 {
    volume.owned_bytes / u64::from(info.cluster_size.max(1))
}
