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
];
