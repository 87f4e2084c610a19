//! What a device on top of a session is, and what a session is to the device.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::Shutdown;

use crate::queue::Queue;

/// Why a back end could not do what its session asked. The session is closed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// How a queue's driver and its device wake each other.
#[derive(Clone, Debug)]
pub struct QueueEvents {
    /// Readable after a kick; non-blocking. If the front end asked for polling instead of kicks, it is readable for
    /// ever, so that a device which sleeps on it never sleeps.
    pub kick: Arc<OwnedFd>,
    /// Add one for an interrupt; non-blocking. `None`: the driver polls.
    pub call: Option<Arc<OwnedFd>>,
}

/// The device behind one session. Called on that session's own thread only; may block.
pub trait Backend: Send {
    /// The device's own feature bits. The session adds `VERSION_1`, `RING_INDIRECT_DESC`, `RING_EVENT_IDX`,
    /// `ANY_LAYOUT` and `PROTOCOL_FEATURES`.
    fn features(&self) -> u64;

    /// How many queues there can be; at least 1, at most 256.
    fn max_queues(&self) -> u16;

    /// Whether the session offers the protocol feature `CONFIG`. Front ends that read the configuration from their own
    /// side (QEMU's vhost-user-scsi) warn if it is.
    fn offers_config(&self) -> bool {
        false
    }

    /// `len` bytes of the device's configuration space; `None` if they are not all inside.
    fn config(&self, _offset: u32, _len: u32) -> Option<Vec<u8>> {
        None
    }

    /// The features that the guest took: those that were offered. No queue runs.
    fn features_acked(&mut self, features: u64);

    /// A queue is ready: from now on the device drives it.
    ///
    /// # Errors
    /// Closes the session.
    fn start_queue(&mut self, index: u16, queue: Queue, events: QueueEvents) -> Result<(), BackendError>;

    /// The call descriptor of a started queue was replaced. Returns when the old one is not used any more; the session
    /// signals the new one once after that, so that no interrupt is lost.
    fn set_call(&mut self, index: u16, call: Option<Arc<OwnedFd>>);

    /// Takes a started queue back: stops fetching, waits for what is in flight, publishes it, drops the [`Queue`]. When
    /// this returns, nothing of the queue touches guest memory any more. Returns [`Queue::next_avail`].
    ///
    /// # Errors
    /// If that cannot be had. The session is closed; the memory stays mapped as long as the queue lives.
    fn stop_queue(&mut self, index: u16) -> Result<u16, BackendError>;

    /// The front end reset the device (`RESET_DEVICE`). All queues are stopped.
    fn reset(&mut self) {}

    /// The connection is gone and all queues were stopped.
    fn closed(&mut self);
}

/// Makes the back end of each connection to a socket.
pub trait BackendFactory: Send + Sync {
    /// A front end has connected. `None` refuses it. Called on the new session's thread.
    fn connect(&self, session: SessionHandle) -> Option<Box<dyn Backend>>;
}

/// A session, as others may know it. Cheap to clone; may outlive the session.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    id: u64,
    peer_pid: Option<i32>,
    socket: Arc<OwnedFd>,
}

impl SessionHandle {
    pub(crate) fn new(id: u64, socket: Arc<OwnedFd>) -> Self {
        let peer_pid = crate::peer::pid(&socket);
        SessionHandle { id, peer_pid, socket }
    }

    /// Unique in this process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The front end's process, if it is known.
    #[must_use]
    pub fn peer_pid(&self) -> Option<i32> {
        self.peer_pid
    }

    /// Closes the connection: the session's thread then stops all queues and lets the back end go. Returns at once, may
    /// be called from anywhere, any number of times.
    pub fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Whether the front end is still there. A back end that waits for requests in flight asks, so as not to wait for a
    /// guest that has gone.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let events = rustix::event::PollFlags::RDHUP | rustix::event::PollFlags::HUP;
        let mut fds = [rustix::event::PollFd::new(&self.socket, events)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1..))
    }

    pub(crate) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }
}
