//! One controller as the control plane holds it: its socket, its LUNs, who is connected.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::Receiver;
use pollux_scsi::{LogicalUnit, Nexus, Path};
use pollux_vhost_user::ListenerId;

use crate::message::ControllerId;
use crate::{LunStats, QueueStats};

/// A controller.
pub(crate) struct Controller {
    pub(crate) name: String,
    pub(crate) id: ControllerId,
    pub(crate) reactors: Vec<usize>,
    pub(crate) initiator: u64,
    /// Its relative target port identifier.
    pub(crate) relative_port: u16,
    pub(crate) socket: PathBuf,
    state: Mutex<State>,
}

/// What changes while it exists. Held for moments only, never across a wait.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) listener: Option<ListenerId>,
    /// A listener that listens no more, but whose sessions had not ended when a deletion gave up waiting for them.
    pub(crate) ending: Option<ListenerId>,
    pub(crate) nexuses: BTreeMap<u8, Arc<Nexus>>,
    pub(crate) luns: BTreeMap<(u8, u16), LunEntry>,
    pub(crate) sessions: BTreeMap<u64, SessionEntry>,
    queue_stats: BTreeMap<u16, Arc<QueueStats>>,
}

/// A LUN of a controller.
pub(crate) struct LunEntry {
    pub(crate) bdev_name: String,
    pub(crate) logical: Arc<LogicalUnit>,
    pub(crate) path: Arc<Path>,
    /// One for each of the controller's reactors.
    pub(crate) stats: Vec<Arc<LunStats>>,
    /// It is being taken away: the reactors that have not let go yet.
    pub(crate) leaving: Option<Vec<(usize, Receiver<()>)>>,
}

/// A front end that is connected.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionEntry {
    pub(crate) peer_pid: Option<i32>,
    /// The queues that run, and their reactors: a copy of `places` for those who may not wait.
    pub(crate) queues: Vec<(u16, usize)>,
    pub(crate) places: Arc<Places>,
}

/// Where a session's queues run. Whoever starts, stops or moves one holds this over all of it, so a queue is always where
/// the table says. Never taken with [`Controller::state`] held.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<BTreeMap<u16, usize>>);

impl Places {
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Controller {
    pub(crate) fn new(
        name: &str,
        id: ControllerId,
        reactors: Vec<usize>,
        (initiator, relative_port): (u64, u16),
        socket: PathBuf,
    ) -> Arc<Controller> {
        let (name, state) = (name.into(), Mutex::default());
        Arc::new(Controller { name, id, reactors, initiator, relative_port, socket, state })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reactor that serves a queue at first. Control and events share one; requests go round all of them, each
    /// controller starting at another one.
    pub(crate) fn reactor_of(&self, index: u16) -> usize {
        match index {
            0 | 1 => self.reactors[0],
            _ => self.reactors[(self.id.place() + usize::from(index) - 2) % self.reactors.len()],
        }
    }

    /// Copies where a session's queues run to where listings see it.
    pub(crate) fn note_queues(&self, session: u64, running: &BTreeMap<u16, usize>) {
        if let Some(entry) = self.state().sessions.get_mut(&session) {
            entry.queues = running.iter().map(|(&index, &reactor)| (index, reactor)).collect();
        }
    }

    /// The counters of a queue; they go on over all sessions of the controller.
    pub(crate) fn queue_stats(&self, index: u16) -> Arc<QueueStats> {
        self.state().queue_stats.entry(index).or_default().clone()
    }

    /// All queues that ever ran, with their counters.
    pub(crate) fn all_queue_stats(&self) -> Vec<(u16, Arc<QueueStats>)> {
        self.state().queue_stats.iter().map(|(&index, stats)| (index, stats.clone())).collect()
    }

    /// The nexus of a target, made when it gets its first LUN.
    pub(crate) fn nexus(&self, target: u8) -> Arc<Nexus> {
        let make = || Nexus::new(self.initiator, self.name.clone(), self.relative_port, target);
        self.state().nexuses.entry(target).or_insert_with(make).clone()
    }
}
