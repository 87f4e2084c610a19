//! What volumes stand on: they are inflated, decoupled, and get another parent.

use std::sync::Arc;

use super::OpenPool;
use crate::node::jobs::Job;
use crate::node::{Node, NodeError, Reason};

impl Node {
    /// The pool of a volume that is to be inflated or decoupled.
    ///
    /// # Errors
    /// If there is no such volume.
    pub fn check_inflation(&self, name: &str) -> Result<Arc<OpenPool>, NodeError> {
        Ok(self.find_volume(name)?.0)
    }

    /// Gives a volume all that it has from snapshots, and keeps for it what it has not; with `decouple` it only stands no
    /// longer on its parent. It is used meanwhile, and reads what it read.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn inflate_volume(&self, name: &str, decouple: bool, job: &Job) -> Result<(), NodeError> {
        let (open, entry) = self.find_volume(name)?;
        let uuid = entry.uuid();
        drop(entry);
        let mut watch = |done, total| {
            job.progress(done, total);
            !job.is_cancelled()
        };
        let inflated = open.pool.inflate(uuid, decouple, &mut watch);
        self.look_again(&open);
        Ok(inflated?)
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
