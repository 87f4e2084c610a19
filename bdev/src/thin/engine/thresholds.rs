//! Soft thresholds: when so much of the pool, or of a volume's quota, is used, somebody is told, once for each time that
//! it is reached. It can be reached again when the use has gone below it by a fiftieth of the whole.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Release;

use uuid::Uuid;

use super::Engine;
use crate::thin::format::{LayerKind, THRESHOLDS};
use crate::thin::info::ThresholdInfo;

/// The part of the whole by which the use has to go back.
const BACK: u64 = 50;

/// Whether a threshold is reached, and how often that has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Alarm {
    /// Clusters in use at which it is reached; 0: it is none.
    at: u64,
    reached: bool,
    crossings: u64,
}

impl Alarm {
    /// One that has just been set: what is used already was known to whoever set it.
    const fn new(at: u64, used: u64) -> Alarm {
        Alarm { at, reached: at > 0 && used >= at, crossings: 0 }
    }

    /// What becomes of it when it is set to this: how often it was reached is not forgotten.
    const fn set(self, at: u64, used: u64) -> Alarm {
        if self.at == at { self } else { Alarm { crossings: self.crossings, ..Alarm::new(at, used) } }
    }

    /// So much is used now, of so much.
    fn look(&mut self, used: u64, of: u64) {
        if self.at == 0 {
            return;
        }
        if !self.reached && used >= self.at {
            self.reached = true;
            self.crossings += 1;
        } else if used < self.at.saturating_sub((of / BACK).max(1).min(self.at / 2)) {
            self.reached = false;
        }
    }
}

/// All of a pool's.
#[derive(Default)]
pub(super) struct Alarms {
    pool: [Alarm; THRESHOLDS],
    /// With the layer that was the volume's head when they were set.
    volumes: BTreeMap<Uuid, (u64, Alarm)>,
}

impl Alarms {
    /// How often those of the pool were reached.
    pub(super) fn crossings(&self) -> u64 {
        self.pool.iter().map(|alarm| alarm.crossings).sum()
    }

    /// What volumes own has become known: whether those of quotas are reached is looked at anew.
    pub(super) fn forget_volumes(&mut self) {
        self.volumes.values_mut().for_each(|(_, alarm)| *alarm = alarm.set(0, 0));
    }
}

/// How much a threshold is of `of`: up to 100 it is a percentage, else bytes.
const fn clusters_of(threshold: u64, of: u64, cluster_size: u64) -> u64 {
    match threshold {
        0 => 0,
        1..=100 => (of as u128 * threshold as u128).div_ceil(100) as u64,
        bytes => bytes.div_ceil(cluster_size),
    }
}

impl Engine {
    /// Clusters that hold something.
    fn used(&self) -> u64 {
        let not_used = self.store.free_clusters() + self.leased() + self.quarantine.len();
        self.store.total_clusters().saturating_sub(not_used)
    }

    /// Takes the thresholds as they are set.
    pub(super) fn set_alarms(&mut self) {
        let (used, total, size) = (self.used(), self.store.total_clusters(), self.nodes.cluster_size());
        for (alarm, threshold) in self.alarms.pool.iter_mut().zip(self.store.thresholds()) {
            *alarm = alarm.set(clusters_of(threshold, total, size), used);
        }
        self.shared.supply.say_thresholds(self.alarms.pool.map(|alarm| alarm.at));
        let mut before = std::mem::take(&mut self.alarms.volumes);
        for node in self.nodes.by_id().values().filter(|node| node.layer.kind == LayerKind::Head) {
            let layer = &node.layer;
            let at = clusters_of(layer.warn_percent.into(), layer.quota, size);
            if let Some(volume) = self.directory.get(layer.uuid) {
                volume.warn.store(at, Release);
            }
            let alarm = before.remove(&layer.uuid).map(|(_, alarm)| alarm);
            if at > 0 || alarm.is_some() {
                let alarm = alarm.unwrap_or_default().set(at, node.usage().0);
                self.alarms.volumes.insert(layer.uuid, (layer.id, alarm));
            }
        }
        self.review_alarms();
    }

    /// Looks how much is used now.
    pub(super) fn review_alarms(&mut self) {
        let (used, total) = (self.used(), self.store.total_clusters());
        self.alarms.pool.iter_mut().for_each(|alarm| alarm.look(used, total));
        for (uuid, (head, alarm)) in &mut self.alarms.volumes {
            if self.nodes.by_id().get(head).is_none_or(|node| node.layer.uuid != *uuid)
                && let Ok(now) = self.nodes.find(*uuid)
            {
                *head = now;
            }
            if let Some(node) = self.nodes.by_id().get(head).filter(|node| node.layer.uuid == *uuid) {
                alarm.look(node.usage().0, node.layer.quota);
            }
        }
    }

    /// Says how much there is, for whoever asks.
    pub(super) fn say_supply(&self) {
        let available = self.unreserved() + self.leased() + self.quarantine.len();
        self.shared.supply.say(available, self.store.total_clusters());
    }

    pub(super) fn threshold_info(&self) -> Vec<ThresholdInfo> {
        let size = self.nodes.cluster_size();
        let told = std::iter::zip(self.store.thresholds(), &self.alarms.pool).filter(|(threshold, _)| *threshold > 0);
        told.map(|(threshold, alarm)| ThresholdInfo {
            percent: u8::try_from(threshold).ok().filter(|percent| *percent <= 100),
            used_bytes: alarm.at.saturating_mul(size),
            reached: alarm.reached,
            crossings: alarm.crossings,
        })
        .collect()
    }

    pub(super) fn quota_threshold_info(&self, uuid: Uuid, percent: u8) -> Option<ThresholdInfo> {
        let alarm = self.alarms.volumes.get(&uuid).map(|(_, alarm)| alarm).filter(|alarm| alarm.at > 0)?;
        Some(ThresholdInfo {
            percent: Some(percent),
            used_bytes: alarm.at.saturating_mul(self.nodes.cluster_size()),
            reached: alarm.reached,
            crossings: alarm.crossings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_told_once_and_again_when_the_use_has_gone_well_below_it() {
        let mut alarm = Alarm::new(80, 10);
        let mut told = |used| {
            alarm.look(used, 100);
            alarm.crossings
        };
        assert_eq!([79, 80, 99, 79, 80, 78, 90].map(&mut told), [0, 1, 1, 1, 1, 1, 1]);
        assert_eq!([77, 79, 80].map(&mut told), [1, 1, 2]);
        let mut set_when_reached = Alarm::new(80, 85);
        set_when_reached.look(90, 100);
        assert_eq!((set_when_reached.reached, set_when_reached.crossings), (true, 0));
        let set_anew = set_when_reached.set(95, 90);
        assert_eq!((set_anew.reached, alarm.set(0, 0).set(50, 60).crossings), (false, 2), "it never goes back");
        let mut none = Alarm::new(0, 5);
        none.look(100, 100);
        assert_eq!(none, Alarm::default());
        assert_eq!([0, 1, 50, 101, 65537].map(|t| clusters_of(t, 1001, 65536)), [0, 11, 501, 1, 2]);
    }
}
