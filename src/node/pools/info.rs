//! What is looked at of pools each second, and where pools are looked for.

use std::sync::Arc;

use pollux_bdev::thin::{PoolInfo, Role, VolumeInfo};
use pollux_bdev::{Entry, Kind as BdevKind, State};
use serde_json::{Value, json};
use uuid::Uuid;

use super::volumes::volume_info;
use crate::node::document::Document;
use crate::node::{Node, NodeError};

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
        for uuid in self.examine(entry) {
            let _changes = self.change();
            if let Some(entry) = self.bdevs.get(&uuid.to_string()) {
                self.came_back(&entry);
            }
        }
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
            (false, false) => None,
        });
        let closed = self.pools.closed().into_iter().filter(|(base, _)| self.bdevs.get(base).is_some());
        open.chain(closed.map(|(base, closed)| format!("bdev {base}: its pool is not open: {}", closed.why))).collect()
    }

    /// Asks each pool how it is: what metrics show until the next time. A pool that has failed is read-only for its
    /// guests.
    pub(in crate::node) fn look_at_pools(&self) {
        let all = self.pools.all();
        let looks: Vec<_> = all.iter().filter_map(|open| open.refresh().ok()).collect();
        let _changes = self.change();
        if looks.iter().any(|info| info.failed) {
            self.refresh_sizes();
        }
        self.withdraw_forgotten();
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
            "esnap_clone": false,
        });
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

/// Clusters that only this volume has.
#[must_use]
pub fn clusters(info: &PoolInfo, volume: &VolumeInfo) -> u64 {
    volume.owned_bytes / u64::from(info.cluster_size.max(1))
}
