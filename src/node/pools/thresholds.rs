//! Soft thresholds of pools and quotas: who is told when one is reached.
//!
//! The pool's engine sees it and counts; once a second its counts are compared with those that everybody has been told of.
//! Then there is a line in the log, an event for orchestrators, and a unit attention on every nexus of the LUNs that it
//! is about.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use pollux_bdev::thin::{PoolInfo, Role, ThresholdInfo, VolumeInfo};
use pollux_scsi::Attention;
use uuid::Uuid;

use super::{OpenPool, PoolName};
use crate::node::notify::Kind;
use crate::node::{Node, NodeError, Reason};

/// Thresholds of a pool at most.
const MOST: usize = 4;

/// How often each threshold had been reached when everybody was told last.
#[derive(Default)]
pub(super) struct Told(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    pool: u64,
    volumes: BTreeMap<Uuid, u64>,
}

/// What has been reached since.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    pool: bool,
    volumes: Vec<Uuid>,
}

impl Told {
    fn news(&self, info: &PoolInfo) -> News {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = info.crossings > told.pool;
        told.pool = info.crossings;
        // One that is none any more, and is set anew, has been reached as often as before.
        let before = |uuid: Uuid| told.volumes.get(&uuid).copied();
        let count = |volume: &VolumeInfo| match volume.quota_threshold {
            Some(threshold) => Some((volume.uuid, threshold.crossings)),
            None => Some((volume.uuid, before(volume.uuid)?)),
        };
        let now: BTreeMap<Uuid, u64> = info.volumes.iter().filter_map(count).collect();
        let more = |(uuid, count): (&Uuid, &u64)| *count > told.volumes.get(uuid).copied().unwrap_or(0);
        let volumes = now.iter().filter(|of| more(*of)).map(|(uuid, _)| *uuid).collect();
        told.volumes = now;
        News { pool, volumes }
    }
}

impl Node {
    /// Sets how much of a pool may be used before somebody is told, in percent or in bytes; none: nobody is.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn set_pool_thresholds(&self, name: &PoolName, percent: &[u8], bytes: &[u64]) -> Result<(), NodeError> {
        let invalid = |what: &str| NodeError::new(Reason::Invalid, what);
        if percent.iter().any(|percent| !(1..=100).contains(percent)) {
            return Err(invalid("used_percent: must be 1 to 100"));
        }
        if bytes.iter().any(|bytes| *bytes <= 100) {
            return Err(invalid("used_bytes: must be more than 100"));
        }
        if percent.len() + bytes.len() > MOST {
            return Err(invalid("a pool has up to 4 thresholds"));
        }
        let _changes = self.change();
        let open = self.find_pool(name)?;
        let mut thresholds = [0; MOST];
        let all = percent.iter().map(|percent| u64::from(*percent)).chain(bytes.iter().copied());
        thresholds.iter_mut().zip(all).for_each(|(place, threshold)| *place = threshold);
        open.pool.set_thresholds(thresholds)?;
        let info = open.refresh()?;
        self.tell_volumes(&info, |_| true, Attention::ModeChanged);
        Ok(())
    }

    /// Passes no more than so many MiB a second of discards down to a pool's base; 0: as many as there are.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn limit_discards(&self, name: &PoolName, mbytes: u64) -> Result<(), NodeError> {
        let rate = match mbytes {
            0 => u64::MAX,
            mbytes => mbytes.saturating_mul(1 << 20),
        };
        let _changes = self.change();
        let open = self.find_pool(name)?;
        open.pool.set_discard_rate(rate)?;
        open.refresh()?;
        Ok(())
    }

    /// Sets how much of its quota a volume may own before its users are told, in percent; 0: they are not.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn set_quota_threshold(&self, name: &str, percent: u8) -> Result<(), NodeError> {
        let _changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        open.pool.set_quota_threshold(entry.uuid(), percent)?;
        let info = open.refresh()?;
        self.tell_volumes(&info, |volume| volume.uuid == entry.uuid(), Attention::ModeChanged);
        Ok(())
    }

    /// Tells everybody of the thresholds that have been reached since they were told last.
    pub(super) fn tell_thresholds(&self, open: &OpenPool, info: &PoolInfo) {
        let news = open.told.news(info);
        if news.pool {
            let used = info.total_bytes.saturating_sub(info.free_bytes).saturating_sub(info.quarantined_bytes);
            let reached: Vec<String> = info.thresholds.iter().filter(|one| one.reached).map(text).collect();
            tracing::warn!(
                "pool '{}' has reached a threshold: {used} of {} bytes are used (reached: {}); delete something or let it grow",
                info.name,
                info.total_bytes,
                reached.join(", ")
            );
            self.notifications.add(Kind::PoolThreshold, &info.name);
        }
        for volume in info.volumes.iter().filter(|volume| news.volumes.contains(&volume.uuid)) {
            let (name, owned, quota) = (&volume.name, volume.owned_bytes, volume.quota_bytes);
            tracing::warn!("volume '{}/{name}' owns {owned} bytes of its quota of {quota}", info.name);
            self.notifications.add(Kind::VolumeThreshold, &volume.uuid.to_string());
        }
        if news != News::default() {
            let about = |volume: &VolumeInfo| news.pool || news.volumes.contains(&volume.uuid);
            self.tell_volumes(info, about, Attention::SoftThreshold);
        }
    }

    fn tell_volumes(&self, info: &PoolInfo, about: impl Fn(&VolumeInfo) -> bool, attention: Attention) {
        let sense = attention.sense();
        for volume in info.volumes.iter().filter(|volume| volume.role != Role::Leaving && about(volume)) {
            let Some(unit) = self.units().get(&volume.uuid).cloned() else { continue };
            unit.raise(attention, None);
            self.target.unit_changed(&unit, sense.asc, sense.ascq);
        }
    }
}

fn text(threshold: &ThresholdInfo) -> String {
    threshold.percent.map_or_else(|| format!("{} bytes", threshold.used_bytes), |percent| format!("{percent} %"))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    fn threshold(crossings: u64) -> ThresholdInfo {
        ThresholdInfo { percent: Some(80), used_bytes: 1 << 20, reached: true, crossings }
    }

    #[test]
    fn everybody_is_told_once_each_time() {
        let told = Told::default();
        let info = |of_pool: u64, of_volume: u64| {
            let volume = testing::volume(7, "v", Role::Volume);
            let volumes = vec![VolumeInfo { quota_threshold: Some(threshold(of_volume)), ..volume }];
            let thresholds = vec![threshold(of_pool), threshold(1)];
            PoolInfo { thresholds, crossings: of_pool + 1, ..testing::pool(volumes) }
        };
        let pool = |pool, volumes| News { pool, volumes };
        assert_eq!(told.news(&info(0, 0)), pool(true, vec![]), "the second one");
        assert_eq!(told.news(&info(0, 0)), News::default());
        assert_eq!(told.news(&info(2, 1)), pool(true, vec![Uuid::from_u128(7)]));
        assert_eq!(told.news(&info(2, 2)), pool(false, vec![Uuid::from_u128(7)]));
        let none = PoolInfo { crossings: 3, ..testing::pool(vec![testing::volume(7, "v", Role::Volume)]) };
        assert_eq!((told.news(&none), told.news(&info(2, 2))), (News::default(), News::default()), "set anew");
        assert_eq!(told.news(&info(2, 3)), pool(false, vec![Uuid::from_u128(7)]));
        assert_eq!(
            (text(&threshold(1)), text(&ThresholdInfo { percent: None, ..threshold(1) })),
            ("80 %".into(), "1048576 bytes".into())
        );
    }
}
