//! What a pool tells, for tests.

use pollux_bdev::thin::{PoolInfo, Role, VolumeInfo};
use uuid::Uuid;

/// A volume or snapshot of 1 MiB in which nothing is.
pub(super) fn volume(number: u128, name: &str, role: Role) -> VolumeInfo {
    VolumeInfo {
        uuid: Uuid::from_u128(number),
        name: name.into(),
        role,
        bytes: 1 << 20,
        parent: None,
        origin: None,
        children: Vec::new(),
        created: 0,
        owned_bytes: 0,
        written_bytes: 0,
        shared_bytes: 0,
        quota_bytes: 0,
        reserved_bytes: 0,
        quota_threshold: None,
    }
}

/// A pool of 1 GiB with these.
pub(super) fn pool(volumes: Vec<VolumeInfo>) -> PoolInfo {
    PoolInfo {
        uuid: Uuid::from_u128(0x9001),
        name: "p".into(),
        cluster_size: 65536,
        base_bytes: 1 << 30,
        total_bytes: 1 << 30,
        free_bytes: 1 << 30,
        quarantined_bytes: 0,
        discards: Default::default(),
        composite_bytes: 0,
        failed: false,
        full: false,
        commits: 0,
        checkpoints: 0,
        thresholds: Vec::new(),
        crossings: 0,
        volumes,
    }
}
