//! The event queue: what the guest is told without having asked. An event waits until the guest has given a buffer; if
//! too many wait, the newest are dropped and the next one sent says that some were missed, so that the driver looks
//! around by itself.

use std::collections::VecDeque;

use pollux_core::segment;
use pollux_vhost_user::Chain;

use crate::message::{ControllerId, QueueKey};
use crate::port::Port;
use crate::request::{EVENT_LEN, Event};
use crate::worker::ScsiWorker;

const MOST_WAITING: usize = 256;

/// The events that wait for a buffer of one session. They outlast its queue, which is stopped and started again when
/// the guest's memory changes.
pub(crate) struct Waiting {
    controller: ControllerId,
    features: u64,
    events: VecDeque<Event>,
    missed: bool,
}

impl Waiting {
    /// Nothing waits yet, for a driver with these features.
    pub(crate) const fn new(controller: ControllerId, features: u64) -> Waiting {
        Waiting { controller, features, events: VecDeque::new(), missed: false }
    }

    /// What the driver took.
    pub(crate) const fn features(&self) -> u64 {
        self.features
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    fn push(&mut self, event: Event) {
        if self.events.back() == Some(&event) {
            return;
        }
        if self.events.len() == MOST_WAITING {
            self.missed = true;
            return;
        }
        self.events.push_back(event);
    }
}

impl ScsiWorker {
    /// Something happened to a LUN of the controller: its guest, if there is one, is told.
    pub(crate) fn event(&mut self, controller: ControllerId, event: Event) {
        let mut told = Vec::new();
        for (&session, waiting) in &mut self.events {
            if waiting.controller == controller && waiting.features & event.feature() != 0 {
                waiting.push(event);
                told.push(session);
            }
        }
        for session in told {
            if let Some(number) = self.find(QueueKey { session, index: 1 }) {
                self.activate(number);
            }
        }
    }

    /// Whether an event waits for a buffer of this port.
    pub(crate) fn has_event(&self, port: &Port) -> bool {
        self.events.get(&port.key.session).is_some_and(|waiting| !waiting.is_empty())
    }

    /// Fills one buffer of the guest with the oldest event.
    pub(crate) fn send_event(&mut self, port: &mut Port, chain: &Chain) {
        port.stats.requests.add(1);
        let writable = &self.segments.as_slice()[chain.readable..];
        if chain.writable_bytes < EVENT_LEN as u64 {
            port.stats.invalid.add(1);
            port.complete(chain.head, 0);
            return;
        }
        let waiting = self.events.get_mut(&port.key.session);
        let next = waiting.and_then(|waiting| waiting.events.pop_front().map(|event| (event, &mut waiting.missed)));
        let (event, missed) = next.expect("a buffer is taken only when an event waits");
        segment::copy_to(writable, 0, &event.encode(std::mem::take(missed)));
        port.complete(chain.head, EVENT_LEN as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_events_are_counted_as_missed_and_repeats_are_not() {
        let mut waiting = Waiting::new(ControllerId { place: 0, count: 0 }, 0);
        for _ in 0..1000 {
            waiting.push(Event::Added { target: 0, lun: 0 });
        }
        assert_eq!((waiting.events.len(), waiting.missed), (1, false));
        for lun in 0..MOST_WAITING as u16 {
            waiting.push(Event::Removed { target: 1, lun });
        }
        assert_eq!((waiting.events.len(), waiting.missed), (MOST_WAITING, true));
    }
}
