//! The virtio-scsi device: requests, task management and events of many controllers, on many reactors.
//!
//! Two halves that share nothing but messages ([`Message`]) and read-only or atomic state:
//!
//! - [`ScsiWorker`] is what a reactor runs: the request, control and event queues that were given to it, the logical
//!   units that are open on it (one channel per unit, shared by all queues of the reactor), and the LUN tables of the
//!   controllers they belong to. It never blocks and never sees a socket.
//! - [`Target`] is the control plane: controllers, their sockets and LUNs. It changes a worker's tables by messages and
//!   waits for the answers on its caller's thread.
//!
//! A request's way: `port` (pop) -> `request` (header, copied once) -> `serve` (LUN, CDB, action) -> `units` (channel)
//! -> `serve` (finish) -> `port` (used ring, one signal a turn).

#![forbid(unsafe_op_in_unsafe_fn)]
#![deny(unsafe_code)]

mod abort;
mod background;
mod barred;
mod control;
mod controller;
mod copies;
mod copy_waits;
mod errands;
mod error;
mod events;
mod fence;
mod gather;
mod jobs;
mod line;
mod listing;
pub mod lun;
mod luns;
mod message;
mod moves;
mod order;
mod own;
mod parked;
mod pieces;
mod plain;
mod port;
pub mod request;
mod residents;
mod serve;
mod session;
mod stats;
mod target;
mod through;
mod together;
mod units;
mod wipes;
mod worker;

pub use error::TargetError;
pub use listing::{ControllerInfo, LunInfo, QueueInfo, SessionInfo};
pub use lun::Address;
pub use message::Message;
pub use moves::{MoveStats, QueuePlace};
pub use residents::{HostedId, NotHosted};
pub use stats::{LunStats, QueueStats};
pub use target::{Backing, NewStats, Patience, SocketOptions, Target, TargetOptions, is_good_name};
pub use worker::{ScsiWorker, WorkerConfig};
