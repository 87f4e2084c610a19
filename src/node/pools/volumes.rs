//! Volumes, snapshots and clones: what is made of them, and how they are changed.
//!
//! The pool is asked first, and answers when the change is durable; then the registry and the guests are told. One change
//! comes at a time, as everywhere in the node.

use std::sync::Arc;

use pollux_bdev::Kind as BdevKind;
use pollux_bdev::thin::{NewSnapshot, PoolError, PoolInfo, Role, VolumeInfo};
use uuid::Uuid;

use super::hidden::is_hidden;
use super::{OpenPool, PoolName, seconds};
use crate::node::notify::Kind;
use crate::node::{Node, NodeError, Reason};

/// A volume to be made.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// In which pool.
    pub pool: PoolName,
    /// Its name there.
    pub name: String,
    /// Bytes; rounded up to whole clusters.
    pub bytes: u64,
    /// Whether it takes only the space that is written.
    pub thin: bool,
}

/// Another size.
#[derive(Clone, Copy, Debug)]
pub struct VolumeSize {
    /// Bytes; rounded up to whole clusters.
    pub bytes: u64,
    /// Whether data may be cut off.
    pub allow_shrink: bool,
}

impl Node {
    /// Makes a volume.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn create_volume(&self, new: &NewVolume) -> Result<Uuid, NodeError> {
        let _changes = self.change();
        let open = self.find_pool(&new.pool)?;
        let info = open.refresh()?;
        let bytes = whole(&info, new.bytes)?;
        let same = |known: &VolumeInfo| {
            known.role == Role::Volume && known.bytes == bytes && (known.reserved_bytes == 0) == new.thin
        };
        refuse_taken(&info, &new.name, same)?;
        let uuid = Uuid::new_v4();
        open.pool.create_volume(uuid, &new.name, bytes, if new.thin { 0 } else { bytes }, seconds())?;
        self.show_new(&open, uuid, &new.name)?;
        Ok(uuid)
    }

    /// Makes snapshots of volumes of one pool, all of one instant or none; returns their UUIDs in order.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn snapshot_volumes(&self, of: &[(String, String)]) -> Result<Vec<Uuid>, NodeError> {
        let _changes = self.change();
        let mut pool: Option<Arc<OpenPool>> = None;
        let mut new = Vec::new();
        for (volume, snapshot) in of {
            let (open, entry) = self.find_volume(volume)?;
            let first = pool.get_or_insert_with(|| open.clone());
            if first.uuid() != open.uuid() {
                let why = format!("lvol_names: '{volume}' is in another pool than '{}'", of[0].0);
                return Err(NodeError::new(Reason::Invalid, why));
            }
            let info = open.refresh()?;
            let parent = volume_info(&info, entry.uuid())?.parent;
            refuse_taken(&info, snapshot, |known| known.role == Role::Snapshot && Some(known.uuid) == parent)?;
            new.push(NewSnapshot { volume: entry.uuid(), uuid: Uuid::new_v4(), name: snapshot.clone() });
        }
        let Some(open) = pool else { return Err(NodeError::new(Reason::Invalid, "lvol_names: name a volume")) };
        open.pool.snapshot(&new, seconds())?;
        for one in &new {
            self.show_new(&open, one.uuid, &one.name)?;
        }
        Ok(new.iter().map(|one| one.uuid).collect())
    }

    /// Makes a writable child of a snapshot.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn clone_snapshot(&self, snapshot: &str, name: &str) -> Result<Uuid, NodeError> {
        let _changes = self.change();
        let (open, entry) = self.find_volume(snapshot)?;
        let of = entry.uuid();
        refuse_taken(&*open.refresh()?, name, |known| known.role == Role::Volume && known.parent == Some(of))?;
        let uuid = Uuid::new_v4();
        open.pool.clone_snapshot(of, uuid, name, seconds())?;
        self.show_new(&open, uuid, name)?;
        Ok(uuid)
    }

    /// Deletes a volume or a snapshot; with `force` it is detached from its controllers first.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn delete_volume(&self, name: &str, force: bool) -> Result<(), NodeError> {
        let mut changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        let used = || {
            let why = "is still read: by a job, or by a controller that is just letting go of it; wait for that (job_get_jobs)";
            NodeError::new(Reason::InUse, format!("'{name}' {why}"))
        };
        if force && entry.claimed_by().is_none() {
            // A guest does not lose a volume that stays.
            if open.pool.volume(entry.uuid()).is_some_and(|volume| volume.is_held()) {
                return Err(used());
            }
            open.pool.commit()?;
            self.detach_everywhere(&mut changes, entry.name())?;
        }
        self.refuse_used_volume(&changes, &entry)?;
        open.pool.delete(entry.uuid()).map_err(|error| match error {
            PoolError::Unfit { .. } => used(),
            other => other.into(),
        })?;
        let uuid = entry.uuid();
        drop(entry);
        self.forget_bdev(&mut changes, uuid)?;
        self.look_again(&open);
        Ok(())
    }

    /// Gives a volume another size. Its guests are told.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn resize_volume(&self, name: &str, size: VolumeSize) -> Result<(), NodeError> {
        let _changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        let info = open.refresh()?;
        let bytes = whole(&info, size.bytes)?;
        let before = volume_info(&info, entry.uuid())?.bytes;
        if bytes < before {
            self.refuse_counted_on(&entry)?;
        }
        open.pool.resize(entry.uuid(), bytes, size.allow_shrink)?;
        if bytes != before {
            self.notifications.add(Kind::BdevResize, entry.name());
        }
        self.refresh_sizes();
        self.look_again(&open);
        Ok(())
    }

    /// Gives a volume or a snapshot another name.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn rename_volume(&self, name: &str, new: &str) -> Result<(), NodeError> {
        let _changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        let info = open.refresh()?;
        if volume_info(&info, entry.uuid())?.name == new {
            return Ok(());
        }
        refuse_taken(&info, new, |_| false)?;
        open.pool.rename(entry.uuid(), new)?;
        self.bdevs.set_alias(entry.uuid(), &format!("{}/{new}", info.name))?;
        self.look_again(&open);
        Ok(())
    }

    /// Makes a volume a snapshot, under the same name and UUID: from now on guests can only read it.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn set_volume_read_only(&self, name: &str) -> Result<(), NodeError> {
        let _changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        open.pool.set_read_only(entry.uuid())?;
        self.refresh_sizes();
        self.look_again(&open);
        Ok(())
    }

    /// Makes a volume what its last snapshot is. Refused while a front end is connected to a controller that exports it,
    /// unless with `force`: then every initiator is told that the medium may be another one.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn roll_back_volume(&self, name: &str, snapshot: &str, force: bool) -> Result<(), NodeError> {
        let changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        let (other, to) = self.find_volume(snapshot)?;
        if other.uuid() != open.uuid() {
            return Err(NodeError::new(Reason::Invalid, format!("snapshot_name: '{snapshot}' is in another pool")));
        }
        self.refuse_counted_on(&entry)?;
        if !force {
            self.refuse_connected(&changes, &self.above(&entry), name)?;
        }
        open.pool.roll_back(entry.uuid(), to.uuid())?;
        self.refresh_sizes();
        self.tell_other_medium(&entry);
        self.look_again(&open);
        Ok(())
    }

    /// Limits what a volume may own, in bytes (0: no limit), and keeps bytes for it. What is not said stays.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn limit_volume(&self, name: &str, quota: Option<u64>, reserved: Option<u64>) -> Result<(), NodeError> {
        let _changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        open.pool.set_limits(entry.uuid(), quota, reserved)?;
        self.look_again(&open);
        Ok(())
    }

    /// Whether this is a volume or a snapshot.
    pub(in crate::node) fn is_volume(&self, name: &str) -> bool {
        self.bdevs.get(name).is_some_and(|entry| entry.kind() == BdevKind::Lvol)
    }

    /// Lists what the pool has just made.
    pub(super) fn show_new(&self, open: &OpenPool, uuid: Uuid, name: &str) -> Result<(), NodeError> {
        self.place_volume(open, &open.last_info().name, uuid, name)?;
        self.notifications.add(Kind::BdevRegister, &uuid.to_string());
        self.look_again(open);
        Ok(())
    }

    pub(super) fn look_again(&self, open: &OpenPool) {
        self.undo("what is known of a pool", open.refresh());
        self.review_origins();
    }
}

/// What a pool says of one of its volumes.
///
/// # Errors
/// If it says nothing.
pub(super) fn volume_info(info: &PoolInfo, uuid: Uuid) -> Result<&VolumeInfo, NodeError> {
    let found = info.volumes.iter().find(|volume| volume.uuid == uuid);
    found.ok_or_else(|| NodeError::no_bdev(&uuid.to_string()))
}

/// Whole clusters, as many as are needed.
pub(super) fn whole(info: &PoolInfo, bytes: u64) -> Result<u64, NodeError> {
    let bytes = bytes.checked_next_multiple_of(u64::from(info.cluster_size)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| NodeError::new(Reason::Invalid, "size: there is no volume of that size"))
}

/// Refuses a name that is taken, and says whether by what is asked for.
pub(super) fn refuse_taken(info: &PoolInfo, name: &str, same: impl Fn(&VolumeInfo) -> bool) -> Result<(), NodeError> {
    if is_hidden(name) {
        return Err(NodeError::new(Reason::Invalid, format!("'{name}': such names are those of jobs")));
    }
    let Some(known) = info.volumes.iter().find(|known| known.role != Role::Leaving && known.name == name) else {
        return Ok(());
    };
    let reason = if same(known) { Reason::ExistsSame } else { Reason::ExistsDifferent };
    Err(NodeError::new(reason, format!("pool '{}' has '{name}' already", info.name)))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    fn info() -> PoolInfo {
        let leaving = VolumeInfo { uuid: Uuid::nil(), ..testing::volume(0, "", Role::Leaving) };
        testing::pool(vec![leaving, testing::volume(1, "v", Role::Volume)])
    }

    #[test]
    fn sizes_are_whole_clusters() {
        assert_eq!([1, 65536, 65537].map(|bytes| whole(&info(), bytes).ok()), [65536, 65536, 131_072].map(Some));
        for bad in [0, u64::MAX] {
            assert_eq!(whole(&info(), bad).map_err(|error| error.reason), Err("invalid"));
        }
    }

    #[test]
    fn a_taken_name_says_by_what() {
        let reason = |name, same| refuse_taken(&info(), name, |_| same).map_err(|error| error.reason);
        assert_eq!(reason("v", true), Err("exists_same"));
        assert_eq!(reason("v", false), Err("exists_different"));
        assert_eq!(reason("w", false), Ok(()));
        assert_eq!(reason("", false), Ok(()), "what is leaving has no name");
    }
}
