//! The map of a volume, for backups: what is allocated, and what has changed since a snapshot.

use pollux_bdev::thin::{Survey, ThinVolume};

use crate::node::{Node, NodeError, Reason};

/// Extents of one answer at most.
const EXTENTS_MAX: usize = 16384;

impl Node {
    /// What was written to a volume, or what has changed since a snapshot that it stands on, from `offset` on.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn survey_volume(
        &self,
        name: &str,
        since: Option<&str>,
        offset: u64,
        most: usize,
    ) -> Result<Survey, NodeError> {
        if !(1..=EXTENTS_MAX).contains(&most) {
            return Err(NodeError::new(Reason::Invalid, format!("max_extents: give 1 to {EXTENTS_MAX}")));
        }
        let (open, entry) = self.find_volume(name)?;
        let missing = || NodeError::no_bdev(name);
        let volume = open.pool.volume(entry.uuid()).ok_or_else(missing)?;
        let bytes = pollux_core::Bdev::shape(&volume).bytes();
        if offset > bytes {
            return Err(NodeError::new(Reason::Invalid, format!("offset: '{name}' has {bytes} bytes")));
        }
        Ok(match since {
            None => volume.allocated(offset, most)?,
            Some(since) => volume.delta(&self.ancestor(&open, since, "from_snapshot_name")?, offset, most)?,
        })
    }

    /// A snapshot in this pool.
    pub(super) fn ancestor(
        &self,
        pool: &super::OpenPool,
        name: &str,
        parameter: &str,
    ) -> Result<ThinVolume, NodeError> {
        let (other, entry) = self.find_volume(name)?;
        if other.uuid() != pool.uuid() {
            return Err(NodeError::new(Reason::Invalid, format!("{parameter}: '{name}' is in another pool")));
        }
        other.pool.volume(entry.uuid()).ok_or_else(|| NodeError::no_bdev(name))
    }
}
