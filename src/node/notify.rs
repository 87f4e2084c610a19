//! What has happened to objects, for orchestrators that poll: SPDK's `notify_get_notifications`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Events that are kept; older ones are forgotten.
pub const KEPT: usize = 1024;

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bdev was created.
    BdevRegister,
    /// A bdev was deleted.
    BdevUnregister,
    /// A bdev has another size.
    BdevResize,
    /// A bdev that could not be opened is there again.
    BdevOnline,
    /// A bdev's device has gone while it was used.
    BdevMissing,
    /// A controller was created.
    VhostCreate,
    /// A controller was deleted.
    VhostDelete,
    /// A threshold of a pool was reached.
    PoolThreshold,
    /// The threshold of a volume's quota was reached.
    VolumeThreshold,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 9] = [
        Kind::BdevRegister,
        Kind::BdevUnregister,
        Kind::BdevResize,
        Kind::BdevOnline,
        Kind::BdevMissing,
        Kind::VhostCreate,
        Kind::VhostDelete,
        Kind::PoolThreshold,
        Kind::VolumeThreshold,
    ];

    /// Its name in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::BdevRegister => "bdev_register",
            Kind::BdevUnregister => "bdev_unregister",
            Kind::BdevResize => "bdev_resize",
            Kind::BdevOnline => "bdev_online",
            Kind::BdevMissing => "bdev_missing",
            Kind::VhostCreate => "vhost_create_controller",
            Kind::VhostDelete => "vhost_delete_controller",
            Kind::PoolThreshold => "lvstore_threshold",
            Kind::VolumeThreshold => "lvol_threshold",
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number; counts up from 0 since the start of the daemon.
    pub id: u64,
    /// What happened.
    pub kind: Kind,
    /// The name of the object.
    pub context: String,
}

/// The last events.
#[derive(Debug, Default)]
pub struct Notifications(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    events: VecDeque<Event>,
}

impl Notifications {
    /// Adds an event.
    pub fn add(&self, kind: Kind, context: &str) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = ring.next;
        ring.next += 1;
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        ring.events.push_back(Event { id, kind, context: context.to_owned() });
    }

    /// Up to `max` events from number `first` on (or from the oldest that is kept).
    #[must_use]
    pub fn get(&self, first: u64, max: u64) -> Vec<Event> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        ring.events.iter().filter(|event| event.id >= first).take(max).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_events_are_forgotten_and_numbers_go_on() {
        let log = Notifications::default();
        for number in 0..KEPT + 10 {
            log.add(Kind::BdevRegister, &number.to_string());
        }
        let all = log.get(0, u64::MAX);
        assert_eq!((all.len(), all[0].id, all[0].context.as_str()), (KEPT, 10, "10"));
        let some = log.get(1000, 2);
        assert_eq!(some.iter().map(|event| event.id).collect::<Vec<_>>(), [1000, 1001]);
        assert!(log.get(u64::MAX, 1).is_empty());
        assert!(log.get(0, 0).is_empty());
    }
}
