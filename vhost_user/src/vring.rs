//! What the front end has said about one ring.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::queue::QueueSetup;

/// Where the parts of a ring are, in the front end's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

/// One ring of a session. It runs (`started`) only while everything that it needs is there.
#[derive(Default)]
pub(crate) struct Vring {
    pub(crate) size: u16,
    pub(crate) addresses: Option<Addresses>,
    pub(crate) base: u16,
    pub(crate) kick: Option<Arc<OwnedFd>>,
    pub(crate) call: Option<Arc<OwnedFd>>,
    pub(crate) enabled: bool,
    pub(crate) started: bool,
}

impl Vring {
    /// What a queue can be made from; `None` while something is missing.
    pub(crate) fn setup(&self, event_idx: bool, indirect: bool) -> Option<(QueueSetup, Arc<OwnedFd>)> {
        let Addresses { desc, avail, used } = self.addresses?;
        let kick = self.kick.clone()?;
        if !self.enabled || self.size == 0 {
            return None;
        }
        Some((QueueSetup { size: self.size, desc, avail, used, base: self.base, event_idx, indirect }, kick))
    }

    /// Back to the beginning; who is told about completions stays (front ends send that only when it changes).
    pub(crate) fn reset(&mut self) {
        assert!(!self.started, "a ring is reset after it was stopped");
        *self = Vring { call: self.call.take(), ..Vring::default() };
    }
}
