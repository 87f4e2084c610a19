//! What volumes stand on: they are inflated, decoupled, and get another parent.

use pollux_bdev::thin::{PoolError, Role, VolumeInfo};
use uuid::Uuid;

use super::volumes::volume_info;
use super::{PoolUse, hidden};
use crate::node::jobs::Job;
use crate::node::{Node, NodeError, Reason};

/// What was looked up for a volume that is to be inflated or decoupled.
pub struct Inflation {
    volume: Uuid,
    decouple: bool,
    /// Its parent at the beginning.
    parent: Option<Uuid>,
    used: PoolUse,
}

impl Node {
    /// Looks up a volume that is to have all that it has from snapshots, and is to have kept for it what it has not; with
    /// `decouple` it is only to stand no longer on its parent.
    ///
    /// # Errors
    /// If there is no such volume, or no parent.
    pub fn begin_inflation(&self, name: &str, decouple: bool) -> Result<Inflation, NodeError> {
        let _changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        let info = open.refresh()?;
        let VolumeInfo { role, parent, .. } = volume_info(&info, entry.uuid())?;
        if decouple && parent.is_none() && *role == Role::Volume {
            return Err(PoolError::NoParent { name: name.to_owned() }.into());
        }
        Ok(Inflation { volume: entry.uuid(), decouple, parent: *parent, used: open.enter() })
    }

    /// Does it. The volume is used meanwhile, and reads what it read.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn inflate_volume(&self, inflation: &Inflation, job: &Job) -> Result<(), NodeError> {
        let Inflation { volume, decouple, parent, used } = inflation;
        let mut watch = |done, total| {
            job.progress(done, total);
            !job.is_cancelled()
        };
        loop {
            let inflated = used.pool().pool.inflate(*volume, *decouple, &mut watch);
            self.look_again(used.pool());
            inflated?;
            // While something is exported, what stands between a snapshot and the next may be two: that and the export's own.
            let is_on_parent = volume_info(&*used.pool().refresh()?, *volume)?.parent == *parent;
            if !*decouple || !is_on_parent && !hidden::stands_on_hidden(&used.pool().pool.info()?, *volume) {
                return Ok(());
            }
        }
    }

    /// What a volume has not itself it has from this snapshot from now on. Refused while a front end is connected to a
    /// controller that exports it, unless with `force`: then every initiator is told that the medium may be another one.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn set_parent(&self, name: &str, parent: &str, force: bool) -> Result<(), NodeError> {
        let changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        let (other, to) = self.find_volume(parent)?;
        if other.uuid() != open.uuid() {
            return Err(NodeError::new(Reason::Invalid, format!("parent_name: '{parent}' is in another pool")));
        }
        if hidden::stands_on_hidden(&open.pool.info()?, entry.uuid()) {
            // What it has written before that snapshot is there, and it would lose it.
            let why = format!("'{name}' is being exported: wait for that, or cancel it (job_get_jobs)");
            return Err(NodeError::new(Reason::Busy, why));
        }
        let above = self.above(&entry);
        if !force {
            self.refuse_connected(&changes, &above, name)?;
        }
        open.pool.set_parent(entry.uuid(), to.uuid())?;
        self.refresh_sizes();
        above.iter().for_each(|entry| self.tell_other_medium(entry));
        self.look_again(&open);
        Ok(())
    }
}
