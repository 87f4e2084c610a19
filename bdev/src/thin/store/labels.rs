//! The steps whose order matters, as they are announced.

/// Superblocks of what was there before are gone.
pub(super) const CREATE_WIPE: &str = "create.wipe";
/// Everything that a new pool consists of is durable, before its superblocks.
pub(super) const CREATE_BARRIER: &str = "create.barrier";
/// A superblock of a new pool.
pub(super) const CREATE_SUPERBLOCK: &str = "create.superblock";
/// What has been read of the log is durable, before a superblock says so.
pub(super) const OPEN_BARRIER: &str = "open.barrier";
/// A superblock that announces a start.
pub(super) const OPEN_SUPERBLOCK: &str = "open.superblock";
/// Data before the map: what guests have written is durable before the log says where it is.
pub(super) const COMMIT_BARRIER: &str = "commit.barrier";
/// Blocks of a batch.
pub(super) const COMMIT_LOG: &str = "commit.log";
/// Zeroes for a new metadata extent.
pub(super) const CHECKPOINT_EXTENT: &str = "checkpoint.extent";
/// A page at its new place.
pub(super) const CHECKPOINT_PAGE: &str = "checkpoint.page";
/// All pages are durable, before the superblock.
pub(super) const CHECKPOINT_BARRIER: &str = "checkpoint.barrier";
/// The superblock that makes a checkpoint count.
pub(super) const CHECKPOINT_SUPERBLOCK: &str = "checkpoint.superblock";

/// Clusters that nobody needs are given out again when that is durable.
pub const QUARANTINE_COMMIT: &str = "quarantine.commit";
/// The same, when who may have seen them has ended.
pub const QUARANTINE_EPOCH: &str = "quarantine.epoch";
/// The base is told of sub-blocks of a cluster that is in use when it is durable that nobody needs them.
pub const PARE_COMMIT: &str = "pare.commit";
/// The same, when who may have seen them has ended.
pub const PARE_EPOCH: &str = "pare.epoch";
/// The same, with their locks held.
pub const PARE_LOCK: &str = "pare.lock";

/// All of them.
pub const LABELS: &[&str] = &[
    CREATE_WIPE,
    CREATE_BARRIER,
    CREATE_SUPERBLOCK,
    OPEN_BARRIER,
    OPEN_SUPERBLOCK,
    COMMIT_BARRIER,
    COMMIT_LOG,
    CHECKPOINT_EXTENT,
    CHECKPOINT_PAGE,
    CHECKPOINT_BARRIER,
    CHECKPOINT_SUPERBLOCK,
    QUARANTINE_COMMIT,
    QUARANTINE_EPOCH,
    PARE_COMMIT,
    PARE_EPOCH,
    PARE_LOCK,
];
