//! Volumes and snapshots that jobs have for themselves: nobody sees them, and what a crash leaves of them goes when their
//! pool is opened. They are known by their names, which nobody else may give.

use pollux_bdev::thin::{PoolInfo, Role};
use uuid::Uuid;

use super::OpenPool;

/// What their names begin with.
const PREFIX: &str = ".job-";

/// A name for one.
pub(super) fn name(uuid: Uuid) -> String {
    format!("{PREFIX}{uuid}")
}

/// Whether it is such a name.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// As if they were not there: they count as something that is leaving, and what stands on one stands on what that does.
pub(super) fn conceal(info: &mut PoolInfo) {
    for at in 0..info.volumes.len() {
        let volume = &info.volumes[at];
        if volume.role == Role::Leaving || !is_hidden(&volume.name) {
            continue;
        }
        let (uuid, parent, children) = (volume.uuid, volume.parent, volume.children.clone());
        info.volumes[at].role = Role::Leaving;
        for other in &mut info.volumes {
            if other.parent == Some(uuid) {
                other.parent = parent;
            }
            if Some(other.uuid) == parent {
                other.children.retain(|child| *child != uuid);
                other.children.extend(&children);
            }
        }
    }
}

/// Takes away what a crash has left.
pub(super) fn take_away(open: &OpenPool, info: &PoolInfo) {
    let left = info.volumes.iter().filter(|volume| volume.role != Role::Leaving && is_hidden(&volume.name));
    for volume in left {
        match open.pool.delete(volume.uuid) {
            Ok(()) => tracing::info!("pool '{}': what a job has left is deleted ({})", info.name, volume.uuid),
            Err(error) => tracing::warn!("pool '{}': what a job has left stays: {error}", info.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_bdev::thin::VolumeInfo;

    fn volume(number: u128, name: &str, role: Role, parent: Option<u128>, children: &[u128]) -> VolumeInfo {
        VolumeInfo {
            uuid: Uuid::from_u128(number),
            name: name.into(),
            role,
            bytes: 1 << 20,
            parent: parent.map(Uuid::from_u128),
            children: children.iter().copied().map(Uuid::from_u128).collect(),
            created: 0,
            owned_bytes: 0,
            written_bytes: 0,
            shared_bytes: 0,
            quota_bytes: 0,
            reserved_bytes: 0,
            quota_threshold: None,
        }
    }

    #[test]
    fn what_jobs_have_is_as_if_it_were_not_there() {
        let hidden = |number: u128| name(Uuid::from_u128(number));
        let mut info = PoolInfo {
            uuid: Uuid::from_u128(99),
            name: "p".into(),
            cluster_size: 65536,
            base_bytes: 0,
            total_bytes: 0,
            free_bytes: 0,
            quarantined_bytes: 0,
            composite_bytes: 0,
            failed: false,
            full: false,
            commits: 0,
            checkpoints: 0,
            thresholds: Vec::new(),
            volumes: vec![
                volume(1, "s", Role::Snapshot, None, &[2, 5]),
                volume(2, &hidden(2), Role::Snapshot, Some(1), &[3]),
                volume(3, &hidden(3), Role::Snapshot, Some(2), &[4]),
                volume(4, "v", Role::Volume, Some(3), &[]),
                volume(5, &hidden(5), Role::Volume, Some(1), &[]),
            ],
        };
        conceal(&mut info);
        let shown: Vec<_> = info.volumes.iter().filter(|volume| volume.role != Role::Leaving).collect();
        assert_eq!(shown.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["s", "v"]);
        assert_eq!((shown[0].children.clone(), shown[1].parent), (vec![shown[1].uuid], Some(shown[0].uuid)));
        assert!(is_hidden(&hidden(2)) && !is_hidden("v") && hidden(2).len() <= 64);
    }
}
