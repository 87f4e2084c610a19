//! What a pool tells of itself.

use uuid::Uuid;

use super::format::Origin;

/// What a layer is to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It can be written.
    Volume,
    /// It cannot.
    Snapshot,
    /// A deleted snapshot that others still stand on, or one that is on its way out.
    Leaving,
}

/// A soft threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThresholdInfo {
    /// The percentage that it was given as.
    pub percent: Option<u8>,
    /// Bytes in use at which it is reached.
    pub used_bytes: u64,
    /// Whether it is.
    pub reached: bool,
    /// How often it has been reached since the pool was opened.
    pub crossings: u64,
}

/// A volume, a snapshot, or what is left of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// By which it is known.
    pub uuid: Uuid,
    /// Its name in the pool; empty for one that is leaving.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Bytes that can be addressed.
    pub bytes: u64,
    /// What it stands on.
    pub parent: Option<Uuid>,
    /// The bdev outside of the pool that it stands on in the end.
    pub origin: Option<Origin>,
    /// What stands on it.
    pub children: Vec<Uuid>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Bytes of the clusters that only it has.
    pub owned_bytes: u64,
    /// Bytes of the sub-blocks that were written in them.
    pub written_bytes: u64,
    /// Bytes of the clusters of all that it stands on.
    pub shared_bytes: u64,
    /// Most bytes that it may own, 0: no limit.
    pub quota_bytes: u64,
    /// Bytes that are kept for it.
    pub reserved_bytes: u64,
    /// When its users are told how much of its quota is used.
    pub quota_threshold: Option<ThresholdInfo>,
}

/// What of a pool its base has not been told of: that nobody needs it any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardInfo {
    /// Bytes a second that the base may be told of; [`u64::MAX`]: no limit.
    pub rate: u64,
    /// Bytes of free clusters that wait for that, or for the base's answer.
    pub waiting_bytes: u64,
    /// Clusters in use of which sub-blocks wait.
    pub waiting_parts: u64,
}

impl VolumeInfo {
    /// Whether it stands on a bdev outside of the pool itself, and not by way of a snapshot.
    #[must_use]
    pub const fn is_of_bdev(&self) -> bool {
        self.parent.is_none() && self.origin.is_some()
    }
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// By which it is known.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Bytes of a cluster.
    pub cluster_size: u32,
    /// Bytes of its base that it takes.
    pub base_bytes: u64,
    /// Bytes that can be allocated, in all.
    pub total_bytes: u64,
    /// Bytes that are free now.
    pub free_bytes: u64,
    /// Bytes that were given back and cannot be used yet.
    pub quarantined_bytes: u64,
    /// What is to be passed down to the base.
    pub discards: DiscardInfo,
    /// Whether it takes no writes because its base failed.
    pub failed: bool,
    /// Whether it is full.
    pub full: bool,
    /// Bytes of what channels remember of long chains.
    pub composite_bytes: u64,
    /// Commits and checkpoints so far.
    pub commits: u64,
    /// See `commits`.
    pub checkpoints: u64,
    /// When somebody is told how much is used.
    pub thresholds: Vec<ThresholdInfo>,
    /// How often any of them was reached since the pool was opened, also those that are none any more.
    pub crossings: u64,
    /// All that it holds, in order of creation.
    pub volumes: Vec<VolumeInfo>,
}
