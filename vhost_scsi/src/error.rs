//! Why the control plane refuses a change, in words that say what to do.

use std::io;
use std::path::PathBuf;

use pollux_core::{IoError, OpenError, PostError};

use crate::HostedId;

/// Why a change was refused.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// There is no such controller.
    #[error("controller '{0}' does not exist")]
    NoController(String),
    /// There is one already.
    #[error("controller '{0}' exists already")]
    ControllerExists(String),
    /// The name cannot be a file name.
    #[error("'{0}' cannot be a controller's name: it becomes a socket's file name, so 1 to 64 of A-Z a-z 0-9 . _ -")]
    BadName(String),
    /// The path is too long for a socket.
    #[error(
        "the socket path '{0}' is longer than the 107 bytes that a socket's address holds; use a shorter --vhost-dir"
    )]
    PathTooLong(PathBuf),
    /// The core list names no reactor.
    #[error("reactor {0} does not exist")]
    NoReactor(usize),
    /// There is no such target or LUN.
    #[error("target {target} of controller '{ctrlr}' has no such LUN")]
    NoLun {
        /// Where.
        ctrlr: String,
        /// Which.
        target: u8,
    },
    /// There is a LUN already.
    #[error("target {target} of controller '{ctrlr}' has LUN {lun} already (bdev '{bdev}')")]
    LunExists {
        /// Where.
        ctrlr: String,
        /// Which.
        target: u8,
        /// Which.
        lun: u16,
        /// What it leads to.
        bdev: String,
    },
    /// All 256 targets have LUNs.
    #[error("controller '{0}' has no free target")]
    NoFreeTarget(String),
    /// All relative target port identifiers are in use.
    #[error("there are too many controllers for another one, '{0}'")]
    NoFreePort(String),
    /// A number beyond the limit.
    #[error("LUN {0} is beyond the greatest, 16383")]
    BadLun(u16),
    /// There is no such queue, or it is not one for requests.
    #[error("controller '{ctrlr}' has no request queue {queue} that runs")]
    NoQueue {
        /// Where.
        ctrlr: String,
        /// Which.
        queue: u16,
    },
    /// The reactor has no part in the controller.
    #[error("controller '{ctrlr}' does not run on reactor {reactor}: create it with a cpumask that includes its core")]
    NotItsReactor {
        /// Which controller.
        ctrlr: String,
        /// Which reactor.
        reactor: usize,
    },
    /// The reactor serves as many queues as it can.
    #[error("reactor {0} has no room for another queue; the queue stays where it is")]
    NoRoom(usize),
    /// A front end is connected.
    #[error("controller '{0}' is in use by a VM; disconnect it, or use force")]
    Connected(String),
    /// Requests did not end.
    #[error("requests in flight did not end; what they are about is not given back")]
    Draining,
    /// The device does not open.
    #[error("the device does not open: {0}")]
    Open(#[from] OpenError),
    /// A reactor has no room for it.
    #[error("a reactor cannot take the device: {0}")]
    Attach(IoError),
    /// A reactor has no room for a resident.
    #[error("a reactor cannot take the engine: {0}")]
    Resident(IoError),
    /// It was evicted, or somebody else has it evicted now.
    #[error("reactor {} has no such engine, or it is leaving already", .0.reactor())]
    NoResident(HostedId),
    /// The socket cannot be had.
    #[error("{path}: {error}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The reactors are gone or stuck.
    #[error(transparent)]
    Post(#[from] PostError),
}
