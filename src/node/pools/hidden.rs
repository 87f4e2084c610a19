//! Volumes and snapshots that jobs have for themselves: nobody sees them. They are known by their names, which nobody else
//! may give.
//!
//! A job deletes what it has made. What it could not delete, because the base did not answer or the daemon crashed, goes
//! when the pool is opened, or as soon as no job uses the pool.

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

/// Takes away what jobs have left, where none runs; whether all of it is gone.
pub(super) fn take_away(open: &OpenPool, info: &PoolInfo) -> bool {
    let mut all = true;
    for volume in info.volumes.iter().filter(|volume| volume.role != Role::Leaving && is_hidden(&volume.name)) {
        match open.pool.delete(volume.uuid) {
            Ok(()) => tracing::info!("pool '{}': what a job has left is deleted ({})", info.name, volume.uuid),
            Err(error) => {
                tracing::warn!("pool '{}': what a job has left stays for now: {error}", info.name);
                all = false;
            }
        }
    }
    all
}

/// Looks for what jobs have left if there may be something, and if none runs. Who calls this holds the node's changes.
pub(super) fn tidy(open: &OpenPool) {
    if open.has_left_behind() && !open.is_used() && !open.pool.is_late() {
        let gone = open.pool.info().is_ok_and(|info| info.failed || take_away(open, &info));
        open.left_behind(!gone);
    }
}

/// Whether a volume stands on a snapshot that a job has for itself: then what it has written before is there, and not its
/// own.
pub(super) fn stands_on_hidden(info: &PoolInfo, volume: Uuid) -> bool {
    let parent = info.volumes.iter().find(|known| known.uuid == volume).and_then(|known| known.parent);
    info.volumes.iter().any(|known| Some(known.uuid) == parent && is_hidden(&known.name))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use pollux_bdev::thin::VolumeInfo;

    fn volume(number: u128, name: &str, role: Role, parent: Option<u128>, children: &[u128]) -> VolumeInfo {
        let children = children.iter().copied().map(Uuid::from_u128).collect();
        VolumeInfo { parent: parent.map(Uuid::from_u128), children, ..testing::volume(number, name, role) }
    }

    #[test]
    fn what_jobs_have_is_as_if_it_were_not_there() {
        let hidden = |number: u128| name(Uuid::from_u128(number));
        let mut info = testing::pool(vec![
            volume(1, "s", Role::Snapshot, None, &[2, 5]),
            volume(2, &hidden(2), Role::Snapshot, Some(1), &[3]),
            volume(3, &hidden(3), Role::Snapshot, Some(2), &[4]),
            volume(4, "v", Role::Volume, Some(3), &[]),
            volume(5, &hidden(5), Role::Volume, Some(1), &[]),
        ]);
        let on_hidden = [1, 3, 4, 5].map(|number| stands_on_hidden(&info, Uuid::from_u128(number)));
        assert_eq!(on_hidden, [false, true, true, false]);
        conceal(&mut info);
        let shown: Vec<_> = info.volumes.iter().filter(|volume| volume.role != Role::Leaving).collect();
        assert_eq!(shown.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["s", "v"]);
        assert_eq!((shown[0].children.clone(), shown[1].parent), (vec![shown[1].uuid], Some(shown[0].uuid)));
        assert!(is_hidden(&hidden(2)) && !is_hidden("v") && hidden(2).len() <= 64);
    }
}
