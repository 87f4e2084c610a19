//! Pools are closed and deleted.

use std::sync::Arc;
use std::time::Duration;

use pollux_bdev::thin::store::wipe;
use pollux_bdev::{Entry, Kind as BdevKind};
use uuid::Uuid;

use super::above::{counts_on, shown, who};
use super::open::known;
use super::ring::on_base;
use super::{OpenPool, PoolName};
use crate::node::notify::Kind;
use crate::node::{Changes, Node, NodeError, Reason};

/// How long the end of the daemon waits for who is opening a pool.
const PATIENCE: Duration = Duration::from_secs(5);

impl Node {
    /// Deletes a pool with all that is in it, which nobody uses.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn delete_pool(&self, name: &PoolName) -> Result<(), NodeError> {
        let _structure = self.pools.structure();
        let mut changes = self.change();
        let open = self.find_pool(name)?;
        self.refuse_used(&changes, &open)?;
        let (uuids, pool) = (self.volumes_of(&open), open.last_info().name.clone());
        self.close(&open, "its pool is being deleted")?;
        let wiped = match open.base.device() {
            Some(device) => on_base(&*device, wipe),
            None => Err(crate::node::bdevs::missing(&open.base)),
        };
        self.bdevs.unclaim(open.base.name(), BdevKind::Pool);
        wiped?;
        for uuid in &uuids {
            self.forget_bdev(&mut changes, *uuid)?;
        }
        tracing::info!("pool '{pool}' is deleted");
        Ok(())
    }

    fn pool_on(&self, base: &Entry) -> Option<Arc<OpenPool>> {
        self.pools.all().into_iter().find(|open| open.base.name() == base.name())
    }

    /// Refuses to close the pool on a bdev, if there is one and somebody uses its volumes, or it is just being made.
    pub(in crate::node) fn refuse_used_pool_on(&self, changes: &Changes, base: &Entry) -> Result<(), NodeError> {
        let claim = base.claim().filter(|claim| claim.kind == BdevKind::Pool);
        match (self.pool_on(base), claim) {
            (Some(open), _) => self.refuse_used(changes, &open),
            (None, Some(claim)) => {
                let why = format!("bdev '{}' is in use by {}", base.name(), who(&claim));
                Err(NodeError::new(Reason::InUse, why))
            }
            (None, None) => Ok(()),
        }
    }

    /// Closes the pool on a bdev, if there is one and nobody uses its volumes.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub(in crate::node) fn close_pool_on(&self, base: &Entry) -> Result<(), NodeError> {
        let _structure = self.pools.structure();
        let changes = self.change();
        let Some(open) = self.pool_on(base) else { return Ok(()) };
        self.refuse_used(&changes, &open)?;
        let uuids = self.volumes_of(&open);
        self.close(&open, "its pool was closed")?;
        self.bdevs.unclaim(base.name(), BdevKind::Pool);
        for uuid in uuids {
            // One that was given an identity is still expected: its pool may come back on another bdev.
            if !changes.document.identities.contains_key(&uuid.to_string()) {
                self.undo("a volume of a closed pool", self.bdevs.withdraw(uuid));
            }
            self.notifications.add(Kind::BdevUnregister, &uuid.to_string());
        }
        tracing::info!("pool '{}' is closed", open.last_info().name);
        Ok(())
    }

    /// Closes the pool on a bdev if it has failed, so that it can be opened again. Its volumes' LUNs are not ready meanwhile.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub(super) fn close_failed(&self, base: &Entry) -> Result<(), NodeError> {
        let _structure = self.pools.structure();
        let _changes = self.change();
        let Some(open) = self.pool_on(base) else { return Ok(()) };
        if !open.refresh()?.failed {
            return Ok(());
        }
        open.refuse_busy()?;
        let volumes = self.volumes_of(&open);
        let mut above: Vec<Arc<Entry>> = Vec::new();
        for entry in volumes.iter().filter_map(|uuid| self.bdevs.get(&uuid.to_string())) {
            above.extend(self.above(&entry));
        }
        if let Some((claim, on)) = above.iter().find_map(|entry| Some((counts_on(entry)?, entry))) {
            // It would go on with the volume as it was.
            let why = format!(
                "pool '{}' cannot be opened again while {} is on bdev '{}': delete that, or restart the daemon",
                open.last_info().name,
                claim.by.join(", "),
                on.name()
            );
            return Err(NodeError::new(Reason::InUse, why));
        }
        for other in above.iter().filter_map(|entry| self.pool_of(entry)) {
            other.refuse_busy()?;
        }
        above.iter().for_each(|entry| self.let_go(entry));
        // What stands on the volumes waits for them, and is there again with them.
        for entry in above.iter().filter(|entry| !volumes.contains(&entry.uuid())) {
            match self.pool_of(entry).and_then(|other| other.pool.volume(entry.uuid())) {
                Some(volume) => {
                    volume.stands_alone();
                    self.bdevs.displace(entry.uuid(), "the pool of what it stands on is being opened again");
                }
                None => self.bdevs.lose(entry.name()),
            }
        }
        self.close(&open, "its pool is being opened again")?;
        self.bdevs.unclaim(base.name(), BdevKind::Pool);
        Ok(())
    }

    /// Closes all pools: what they hold is in their trees then. For the end of the daemon, when no front end is
    /// connected any more.
    pub fn close_pools(&self) {
        let structure = self.pools.structure_within(PATIENCE);
        if structure.is_none() {
            tracing::warn!("a bdev that is looked at for a pool does not answer; ending without waiting for it");
        }
        let _changes = self.change();
        for open in self.pools.all() {
            for uuid in self.volumes_of(&open) {
                let Some(entry) = self.bdevs.get(&uuid.to_string()) else { continue };
                for above in self.above(&entry) {
                    self.let_go(&above);
                }
            }
            match self.close(&open, "the daemon ends") {
                Ok(()) => tracing::info!("pool '{}' is closed", open.last_info().name),
                // It is as after a crash, which it bears.
                Err(error) => tracing::error!("pool '{}' is not closed in order: {error}", open.last_info().name),
            }
        }
    }

    /// The engine leaves its reactor, after everything has become durable, and the volumes are missing.
    fn close(&self, open: &Arc<OpenPool>, why: &str) -> Result<(), NodeError> {
        let uuids = self.volumes_of(open);
        uuids.iter().for_each(|uuid| self.bdevs.displace(*uuid, why));
        // If it has not left in time it is still listed, and the next attempt goes on waiting.
        drop(self.target.evict(open.id)?);
        self.pools.gone(open.uuid());
        self.review_origins();
        Ok(())
    }

    fn let_go(&self, entry: &Entry) {
        let Some(unit) = self.units().get(&entry.uuid()).cloned() else { return };
        self.undo("the channels of a bdev", self.target.device_changed(&unit, None));
    }

    /// The volumes and snapshots of a pool that are listed.
    pub(super) fn volumes_of(&self, open: &OpenPool) -> Vec<Uuid> {
        let info = open.refresh().unwrap_or_else(|_| open.last_info());
        known(&info).map(|volume| volume.uuid).collect()
    }

    fn refuse_used(&self, changes: &Changes, open: &OpenPool) -> Result<(), NodeError> {
        open.refuse_busy()?;
        for uuid in self.volumes_of(open) {
            let Some(entry) = self.bdevs.get(&uuid.to_string()) else { continue };
            self.refuse_used_volume(changes, &entry)?;
        }
        Ok(())
    }

    /// Refuses if anybody uses a volume.
    pub(super) fn refuse_used_volume(&self, changes: &Changes, entry: &Entry) -> Result<(), NodeError> {
        let name = shown(entry);
        let refused = |by: String| Err(NodeError::new(Reason::InUse, format!("volume '{name}' is in use by {by}")));
        if let Some(claim) = entry.claim() {
            return refused(who(&claim));
        }
        let mut at = changes.document.attachments(entry.name());
        match at.next() {
            Some((ctrlr, lun)) => {
                refused(format!("controller '{ctrlr}' (target {} LUN {}); detach it first", lun.target, lun.lun))
            }
            None => Ok(()),
        }
    }

    /// Forgets all that is kept of a bdev that is gone for good.
    pub(super) fn forget_bdev(&self, changes: &mut Changes, uuid: Uuid) -> Result<(), NodeError> {
        let name = uuid.to_string();
        let mut next = changes.document.clone();
        next.identities.remove(&name);
        changes.save_if_new(next)?;
        self.undo("a listed volume", self.bdevs.withdraw(uuid));
        self.units().remove(&uuid);
        self.forget_identities(&[uuid]);
        if let Some(saver) = &self.unit_saver {
            saver.remove(uuid);
        }
        self.notifications.add(Kind::BdevUnregister, &name);
        Ok(())
    }
}
