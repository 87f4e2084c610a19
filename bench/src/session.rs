//! One vhost-user session: what a VMM says to a back end until its queues run.
//!
//! A back end that is silent does not hold the client up: [`Watchdog`] closes the connection after a while, which ends
//! whatever waits on it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use crate::BenchError;
use crate::event::Event;
use crate::layout::{GPA, Layout, SIDE_QUEUES, gpa};
use crate::memory::{Memory, Pages};
use crate::options::{Options, Use};
use crate::queue::{Doorbell, Queue, QueueParts};
use crate::ring::{Ring, RingPlace};
use crate::scsi::lun_bytes;

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
/// How long a back end may take for the whole of a session's start.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running session. Dropping it ends the VM.
pub(crate) struct Session {
    path: PathBuf,
    /// Keeps the connection.
    _frontend: Frontend,
    /// The same connection.
    socket: UnixStream,
    /// Control and event queue: nothing is ever put into them, but a device may want them.
    _side: Vec<(Ring, Doorbell)>,
    pub(crate) event_idx: bool,
    pub(crate) pages: Pages,
}

impl Session {
    /// Connects and starts all queues; the request queues are numbered from `first`.
    pub(crate) fn start(path: &Path, options: &Options, first: usize) -> Result<(Self, Vec<Queue>), BenchError> {
        let socket = connect(path)?;
        let copy = |what: &UnixStream| {
            what.try_clone().map_err(|error| BenchError::Setup(format!("{}: {error}", path.display())))
        };
        let watchdog = Watchdog::new(copy(&socket)?);
        let frontend = Frontend::from_stream(copy(&socket)?, u64::from(options.queues) + SIDE_QUEUES as u64);
        let result = Starting { path, options, frontend }.run(socket, first);
        if watchdog.bit() {
            return Err(BenchError::Setup(format!(
                "{}: no answer within {} s; does a vhost-user back end listen there, and is it free of other clients?",
                path.display(),
                PATIENCE.as_secs()
            )));
        }
        result
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The connection, to see whether it still stands.
    pub(crate) const fn socket(&self) -> &UnixStream {
        &self.socket
    }
}

fn connect(path: &Path) -> Result<UnixStream, BenchError> {
    use std::io::ErrorKind;
    UnixStream::connect(path).map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::NotFound => "; is the target running, and does the controller exist?",
            ErrorKind::ConnectionRefused => "; nobody listens there any more: start the target again",
            ErrorKind::PermissionDenied => "; run as a user who may write to the socket",
            _ => "",
        };
        BenchError::Setup(format!("cannot connect to {}: {error}{hint}", path.display()))
    })
}

/// A session that is being started.
struct Starting<'a> {
    path: &'a Path,
    options: &'a Options,
    frontend: Frontend,
}

impl Starting<'_> {
    fn run(mut self, socket: UnixStream, first: usize) -> Result<(Session, Vec<Queue>), BenchError> {
        let options = self.options;
        let event_idx = self.negotiate()?;
        let layout = Layout::new(options);
        let memory = Arc::new(Memory::new(layout.len, options.huge_pages)?);
        self.set_memory(&memory)?;
        let mut side = Vec::new();
        for (n, place) in layout.side.iter().enumerate() {
            let ring = Ring::new(&memory, *place, event_idx);
            side.push((ring, self.start_queue(n, place)?));
        }
        let mut queues = Vec::new();
        for (n, place) in layout.queues.iter().enumerate() {
            let ring = Ring::new(&memory, place.ring, event_idx);
            queues.push(Queue::new(QueueParts {
                index: first + n,
                memory: memory.clone(),
                ring,
                place: *place,
                indirect: options.indirect,
                kick: options.kick,
                doorbell: self.start_queue(SIDE_QUEUES + n, &place.ring)?,
                lun: lun_bytes(options.target, options.lun),
                seed: options.seed,
            }));
        }
        let pages = memory.pages();
        let path = self.path.to_owned();
        Ok((Session { path, _frontend: self.frontend, socket, _side: side, event_idx, pages }, queues))
    }

    /// Features; whether EVENT_IDX is among them.
    fn negotiate(&mut self) -> Result<bool, BenchError> {
        let path = self.path;
        step(path, "SET_OWNER", self.frontend.set_owner())?;
        let offered = step(path, "GET_FEATURES", self.frontend.get_features())?;
        let wanted = self.choose(offered)?;
        if wanted & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            self.negotiate_protocol()?;
        }
        step(path, "SET_FEATURES", self.frontend.set_features(wanted))?;
        if self.options.verbose {
            eprintln!("{}: features {offered:#x} offered, {wanted:#x} taken", path.display());
        }
        Ok(wanted & EVENT_IDX != 0)
    }

    /// The features to take of those that are offered.
    fn choose(&self, offered: u64) -> Result<u64, BenchError> {
        let lacks = |what: &str| {
            Err(BenchError::Setup(format!(
                "{}: the target does not offer {what} (it offers {offered:#x})",
                self.path.display()
            )))
        };
        let mut wanted = VERSION_1 | offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if offered & VERSION_1 == 0 {
            return lacks("VIRTIO_F_VERSION_1: only modern devices are driven");
        }
        match self.options.event_idx {
            Use::On if offered & EVENT_IDX == 0 => return lacks("VIRTIO_RING_F_EVENT_IDX: use --event-idx auto"),
            Use::On | Use::Auto => wanted |= offered & EVENT_IDX,
            Use::Off => {}
        }
        if self.options.indirect {
            if offered & INDIRECT == 0 {
                return lacks("VIRTIO_RING_F_INDIRECT_DESC: use --indirect off");
            }
            wanted |= INDIRECT;
        }
        Ok(wanted)
    }

    fn negotiate_protocol(&mut self) -> Result<(), BenchError> {
        let path = self.path;
        let offered = step(path, "GET_PROTOCOL_FEATURES", self.frontend.get_protocol_features())?;
        let taken = offered & (VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK);
        step(path, "SET_PROTOCOL_FEATURES", self.frontend.set_protocol_features(taken))?;
        if taken.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let wanted = u64::from(self.options.queues) + SIDE_QUEUES as u64;
        if taken.contains(VhostUserProtocolFeatures::MQ) {
            let most = step(path, "GET_QUEUE_NUM", self.frontend.get_queue_num())?;
            if most < wanted {
                return Err(BenchError::Setup(format!(
                    "{}: the target has {} request queues, not --queues {}",
                    path.display(),
                    most.saturating_sub(SIDE_QUEUES as u64),
                    self.options.queues
                )));
            }
        }
        Ok(())
    }

    fn set_memory(&self, memory: &Memory) -> Result<(), BenchError> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GPA,
            memory_size: memory.len() as u64,
            userspace_addr: GPA,
            mmap_offset: 0,
            mmap_handle: memory.raw_fd(),
        };
        step(self.path, "SET_MEM_TABLE", self.frontend.set_mem_table(&[region])).map(drop)
    }

    fn start_queue(&mut self, queue: usize, place: &RingPlace) -> Result<Doorbell, BenchError> {
        let path = self.path;
        let config = VringConfigData {
            queue_max_size: place.size,
            queue_size: place.size,
            flags: 0,
            desc_table_addr: gpa(place.desc),
            used_ring_addr: gpa(place.used),
            avail_ring_addr: gpa(place.avail),
            log_addr: None,
        };
        let doorbell = Doorbell { kick: Event::new()?, call: Event::new()? };
        step(path, "SET_VRING_NUM", self.frontend.set_vring_num(queue, place.size))?;
        step(path, "SET_VRING_ADDR", self.frontend.set_vring_addr(queue, &config))?;
        step(path, "SET_VRING_BASE", self.frontend.set_vring_base(queue, 0))?;
        step(path, "SET_VRING_CALL", self.frontend.set_vring_call(queue, doorbell.call.inner()))?;
        step(path, "SET_VRING_KICK", self.frontend.set_vring_kick(queue, doorbell.kick.inner()))?;
        step(path, "SET_VRING_ENABLE", self.frontend.set_vring_enable(queue, true))?;
        Ok(doorbell)
    }
}

fn step<T>(path: &Path, name: &str, result: vhost::Result<T>) -> Result<T, BenchError> {
    use vhost::Error::VhostUserProtocol;
    use vhost::vhost_user::Error as Protocol;
    result.map_err(|error| {
        let hint = match error {
            VhostUserProtocol(Protocol::Disconnected | Protocol::SocketBroken(_) | Protocol::PartialMessage) => {
                "it takes one client at a time, so another one may be there"
            }
            _ => "its log may say why",
        };
        BenchError::Setup(format!("{}: the target refused {name}: {error}; {hint}", path.display()))
    })
}

/// Shuts a connection down if it is not told in time that all is well.
struct Watchdog {
    done: mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<bool>>,
}

impl Watchdog {
    fn new(socket: UnixStream) -> Self {
        let (done, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let late = wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
            if late {
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            late
        });
        Watchdog { done, thread: Some(thread) }
    }

    /// Ends it; whether it had to act.
    fn bit(mut self) -> bool {
        let _ = self.done.send(());
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(false)
    }
}
