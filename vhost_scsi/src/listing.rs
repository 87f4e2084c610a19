//! What listings and metrics see of controllers: copies of the moment.

use std::path::PathBuf;
use std::sync::Arc;

use crate::controller::Controller;
use crate::{LunStats, QueueStats};

/// A controller, for listings.
#[derive(Clone, Debug)]
pub struct ControllerInfo {
    /// Its name.
    pub name: String,
    /// The reactors that serve it.
    pub reactors: Vec<usize>,
    /// Its socket.
    pub socket: PathBuf,
    /// Whether it listens.
    pub started: bool,
    /// Its initiator port's name.
    pub initiator: u64,
    /// Its LUNs, in order.
    pub luns: Vec<LunInfo>,
    /// Who is connected.
    pub sessions: Vec<SessionInfo>,
}

/// A LUN, for listings and metrics.
#[derive(Clone, Debug)]
pub struct LunInfo {
    /// Its target.
    pub target: u8,
    /// Its number.
    pub lun: u16,
    /// What it leads to.
    pub bdev_name: String,
    /// Its counters, one set for each of the controller's reactors.
    pub stats: Vec<Arc<LunStats>>,
}

/// A front end that is connected, for listings.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Unique in this process.
    pub id: u64,
    /// The front end's process, if known.
    pub peer_pid: Option<i32>,
    /// The queues that run, and the reactor of each.
    pub queues: Vec<(u16, usize)>,
    /// Requests in flight.
    pub inflight: u64,
}

/// A queue's counters, for metrics.
#[derive(Clone, Debug)]
pub struct QueueInfo {
    /// Its controller.
    pub ctrlr: String,
    /// Its index.
    pub index: u16,
    /// Its counters.
    pub stats: Arc<QueueStats>,
}

impl ControllerInfo {
    pub(crate) fn of(controller: &Controller) -> ControllerInfo {
        let queues = controller.all_queue_stats();
        let state = controller.state();
        let luns = state.luns.iter().map(|(&(target, lun), entry)| LunInfo {
            target,
            lun,
            bdev_name: entry.bdev_name.clone(),
            stats: entry.stats.clone(),
        });
        let sessions = state.sessions.iter().map(|(&id, entry)| {
            let running = queues.iter().filter(|(index, _)| entry.queues.iter().any(|(running, _)| running == index));
            let inflight = running.map(|(_, stats)| stats.inflight.get()).sum();
            SessionInfo { id, peer_pid: entry.peer_pid, queues: entry.queues.clone(), inflight }
        });
        ControllerInfo {
            name: controller.name.clone(),
            reactors: controller.reactors.clone(),
            socket: controller.socket.clone(),
            started: state.listener.is_some(),
            initiator: controller.initiator,
            luns: luns.collect(),
            sessions: sessions.collect(),
        }
    }
}
