//! What a pool is called and how it is set, its layers, and how it is: what is asked of a store, and what is changed with
//! its next superblock.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::checkpoint::Facts;
use super::{DISCARD_RATE, Failure, Store, StoreError};
use crate::thin::format::{Geometry, Layer, NAME_LEN, Superblock, THRESHOLDS};

impl Store {
    /// Where what lies.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.state.geometry
    }

    /// The pool.
    #[must_use]
    pub const fn uuid(&self) -> Uuid {
        self.superblock.pool
    }

    /// Its name, also one that is not durable yet.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// When it was made, in seconds since 1970.
    #[must_use]
    pub const fn created(&self) -> u64 {
        self.superblock.created
    }

    /// The same for how much may be promised of what there is, in percent; 0: anything.
    #[must_use]
    pub const fn overcommit(&self) -> u32 {
        self.facts.overcommit
    }

    /// All layers as of everything appended; their maps, and what they own, as of the last checkpoint.
    #[must_use]
    pub const fn layers(&self) -> &BTreeMap<u64, Layer> {
        &self.state.layers
    }

    /// Why nothing is written any more.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The generation of the last superblock that is durable. What [`Store::rename`] and the like have changed is durable
    /// when a checkpoint is that was started afterwards.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.superblock.generation
    }

    /// Gives the pool another name, of 1 to 64 bytes; durable with the next checkpoint that is started.
    ///
    /// # Errors
    /// If it cannot be a name.
    pub fn rename(&mut self, name: &str) -> Result<(), StoreError> {
        if name.is_empty() || name.len() > NAME_LEN {
            return Err(StoreError::Invalid("the name of a pool has 1 to 64 bytes"));
        }
        name.clone_into(&mut self.facts.name);
        Ok(())
    }

    /// How much may be promised of what there is, in percent, 0: anything; durable with the next checkpoint that is started.
    pub const fn set_overcommit(&mut self, percent: u32) {
        self.facts.overcommit = percent;
    }

    /// How much may be used before somebody is told: 1 to 100 percent, else bytes; 0: none.
    #[must_use]
    pub const fn thresholds(&self) -> [u64; THRESHOLDS] {
        self.facts.thresholds
    }

    /// How many bytes a second the base may be told of that nobody needs.
    #[must_use]
    pub const fn discard_rate(&self) -> u64 {
        match self.facts.discard_rate {
            0 => DISCARD_RATE,
            rate => rate,
        }
    }

    /// Changes that, 0: to what it is where nobody has said anything; durable with the next checkpoint that is started.
    pub const fn set_discard_rate(&mut self, rate: u64) {
        self.facts.discard_rate = rate;
    }

    /// Changes that; durable with the next checkpoint that is started.
    pub const fn set_thresholds(&mut self, thresholds: [u64; THRESHOLDS]) {
        self.facts.thresholds = thresholds;
    }

    /// The base has so many bytes now. Clusters beyond those that there were can be handed out once the next checkpoint
    /// that is started is durable. Whether there are more.
    ///
    /// # Errors
    /// If there are more than can be numbered.
    pub fn grow(&mut self, base_bytes: u64) -> Result<bool, StoreError> {
        let geometry = &self.state.geometry;
        let clusters = Geometry::clusters_of(base_bytes, geometry.cluster_size)?;
        if clusters <= self.facts.clusters {
            return Ok(false);
        }
        // How many clusters are free is told above them too, so these pages have to be written.
        self.state.space.touch(geometry.clusters - 1);
        self.facts.clusters = clusters;
        Ok(true)
    }

    /// Whether something was appended that is not in the trees, or changed that no superblock says.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        let Superblock { name, overcommit, geometry, thresholds, discard_rate, .. } = &self.superblock;
        let Facts { name: next_name, overcommit: next, clusters, thresholds: wanted, discard_rate: rate } = &self.facts;
        let said = (name, overcommit, geometry.clusters, thresholds, discard_rate);
        self.log.used() > 0 || said != (next_name, next, *clusters, wanted, rate)
    }

    /// Whether what layers own and what is here of them is not exact, because the log holds something that is not in the
    /// trees; asked of a store that was just opened: a crash has left it.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        !self.state.overlay.is_empty()
    }

    /// Whether a checkpoint runs.
    #[must_use]
    pub const fn is_checkpointing(&self) -> bool {
        self.checkpoint.is_some()
    }
}
