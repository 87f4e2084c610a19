//! What volumes stand on: they are inflated, decoupled, and get another parent.

use pollux_bdev::thin::{Origin, PoolError, Role, ThinVolume, VolumeInfo};
use uuid::Uuid;

use super::volumes::volume_info;
use super::{PoolUse, hidden};
use crate::node::jobs::Job;
use crate::node::{Node, NodeError, Reason};

/// What was looked up for a volume that is to be inflated or decoupled.
pub struct Inflation {
    volume: ThinVolume,
    decouple: bool,
    /// What it stood on at the beginning.
    stood_on: (Option<Uuid>, Option<Origin>),
    used: PoolUse,
}

/// What a volume stands on: its parent, or without one a bdev outside of the pool.
fn below(volume: &VolumeInfo) -> (Option<Uuid>, Option<Origin>) {
    (volume.parent, volume.origin.filter(|_| volume.parent.is_none()))
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
        let known = volume_info(&info, entry.uuid())?;
        let stood_on = below(known);
        if decouple && stood_on == (None, None) && known.role == Role::Volume {
            return Err(PoolError::NoParent { name: name.to_owned() }.into());
        }
        let volume = self.whole_volume(&open, entry.uuid())?;
        Ok(Inflation { volume, decouple, stood_on, used: open.enter() })
    }

    /// Does it. The volume is used meanwhile, and reads what it read.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn inflate_volume(&self, inflation: &Inflation, job: &Job) -> Result<(), NodeError> {
        let Inflation { volume, decouple, stood_on, used } = inflation;
        let (open, uuid, before) = (used.pool(), volume.uuid(), volume.origin());
        let mut watch = |done, total| {
            job.progress(done, total);
            !job.is_cancelled()
        };
        loop {
            let inflated = open.pool.inflate(volume, *decouple, &mut watch);
            {
                let _changes = self.change();
                self.look_again(open);
                if volume.origin() != before {
                    self.stands_on_less(open, uuid);
                }
            }
            inflated?;
            // While something is exported, what stands between a snapshot and the next may be two: that and the export's own.
            let is_on_parent = below(volume_info(&*open.refresh()?, uuid)?) == *stood_on;
            if !*decouple || !is_on_parent && !hidden::stands_on_hidden(&open.pool.info()?, uuid) {
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
        self.refuse_counted_on(&entry)?;
        if to.device().is_none() {
            return Err(crate::node::bdevs::missing(&to));
        }
        if !force {
            self.refuse_connected(&changes, &self.above(&entry), name)?;
        }
        let origin = |uuid: Uuid| open.pool.volume(uuid).and_then(|volume| volume.origin());
        let before = origin(entry.uuid());
        open.pool.set_parent(entry.uuid(), to.uuid())?;
        self.look_again(&open);
        if origin(entry.uuid()) != before {
            self.stands_on_another(&open, &entry);
        }
        self.refresh_sizes();
        self.tell_other_medium(&entry);
        Ok(())
    }
}
