//! All sockets of the process: one thread accepts on all of them, each connection gets a thread of its own.
//!
//! A socket serves one front end at a time. A second one that comes while the first is still being torn down (a VMM
//! that was restarted) waits its turn for [`TURN_TIME`]; whoever comes on top of that is turned away at once, so that a
//! storm of connections costs no threads. Turns are taken in the order of arrival: were an older one overtaken, it would
//! go on waiting, perhaps hung up long ago, and the next VMM would find its place taken.
//!
//! Invariants: every session's thread is in `sessions` from before it starts until nothing of its session is left; of
//! one listener at most one session is active and one waits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::backend::{BackendFactory, SessionHandle};
use crate::descriptors::signal;
use crate::session::{Ended, serve};
use crate::socket::SocketFile;
pub use crate::socket::SocketOptions;
use crate::throttle::Throttle;

/// How long a new connection waits for the teardown of the one before it.
const TURN_TIME: Duration = Duration::from_secs(5);
/// How long `shutdown` waits for sessions.
const SHUTDOWN_TIME: Duration = Duration::from_secs(10);
/// Connections at once, over all sockets.
const SESSIONS_MAX: usize = 1024;
/// Connections that one socket may put into the accept thread's turn.
const ACCEPTS_PER_TURN: usize = 16;
/// After the process ran out of descriptors or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Names a socket that a server listens on. Never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(u64);

struct Listener {
    file: SocketFile,
    service: Arc<Service>,
}

/// What the sessions of a socket share. They may outlive the socket.
struct Service {
    id: ListenerId,
    path: PathBuf,
    factory: Arc<dyn BackendFactory>,
    log: Throttle,
}

/// A session's entry.
struct Live {
    listener: ListenerId,
    handle: SessionHandle,
    /// Not waiting for its turn.
    active: bool,
}

#[derive(Default)]
struct State {
    last_id: u64,
    listeners: BTreeMap<ListenerId, Arc<Listener>>,
    sessions: Vec<Live>,
    closing: bool,
}

impl State {
    /// The oldest session of a socket: the one that is active, or whose turn it is.
    fn first_of(&mut self, listener: ListenerId) -> Option<&mut Live> {
        // New ones go to the end of the list.
        self.sessions.iter_mut().find(|session| session.listener == listener)
    }
}

struct Shared {
    state: Mutex<State>,
    /// A session became active or ended, or the server closes.
    changed: Condvar,
    /// Wakes the accept thread.
    wake: OwnedFd,
}

/// The sockets of the process and the sessions on them.
pub struct Server {
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    /// A server without sockets; starts its accept thread.
    ///
    /// # Errors
    /// If the system has no descriptor or thread left.
    pub fn new() -> io::Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), wake });
        let accepting = thread::Builder::new().name("vhost-accept".into()).spawn({
            let shared = shared.clone();
            move || shared.accept_loop()
        })?;
        Ok(Arc::new(Server { shared, accepting: Mutex::new(Some(accepting)) }))
    }

    /// Listens on a new socket at `path`; each connection's back end comes from `factory`. A socket file that a dead
    /// process left there is replaced.
    ///
    /// # Errors
    /// If the place is taken by a living process or by something that is no socket, or the system refuses. The message
    /// names the path.
    pub fn listen(
        &self,
        path: &Path,
        options: SocketOptions,
        factory: Arc<dyn BackendFactory>,
    ) -> io::Result<ListenerId> {
        let file = SocketFile::listen(path, options)?;
        let mut state = self.shared.lock();
        if state.closing {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the server is shutting down"));
        }
        state.last_id += 1;
        let id = ListenerId(state.last_id);
        let service = Arc::new(Service { id, path: path.to_owned(), factory, log: Throttle::new() });
        state.listeners.insert(id, Arc::new(Listener { file, service }));
        drop(state);
        signal(&self.shared.wake);
        Ok(id)
    }

    /// Stops listening and removes the socket file. Sessions live on: see [`Server::disconnect`].
    pub fn unlisten(&self, id: ListenerId) {
        let listener = self.shared.lock().listeners.remove(&id);
        // The accept thread may hold it a moment longer: the file has to be gone now.
        if let Some(listener) = listener {
            listener.file.remove();
            signal(&self.shared.wake);
        }
    }

    /// The path of a socket; `None` if it is not listened on any more.
    #[must_use]
    pub fn path(&self, id: ListenerId) -> Option<PathBuf> {
        self.shared.lock().listeners.get(&id).map(|listener| listener.service.path.clone())
    }

    /// The sessions of a socket (those that wait for their turn left out).
    #[must_use]
    pub fn sessions(&self, id: ListenerId) -> Vec<SessionHandle> {
        let state = self.shared.lock();
        state.sessions.iter().filter(|s| s.listener == id && s.active).map(|s| s.handle.clone()).collect()
    }

    /// Closes all sessions of a socket, listening or not any more, and waits until nothing of them is left; `false` if
    /// that took longer than `time` (they are still going then).
    pub fn disconnect(&self, id: ListenerId, time: Duration) -> bool {
        self.shared.close_sessions(time, |session| session.listener == id)
    }

    /// Removes all sockets, closes all sessions, and waits some seconds for their ends; `false` if some are left.
    /// Nothing can be listened on afterwards.
    pub fn shutdown(&self) -> bool {
        let listeners = {
            let mut state = self.shared.lock();
            state.closing = true;
            std::mem::take(&mut state.listeners)
        };
        listeners.values().for_each(|listener| listener.file.remove());
        drop(listeners);
        signal(&self.shared.wake);
        if let Some(thread) = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
        self.shared.close_sessions(SHUTDOWN_TIME, |_| true)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_sessions(&self, time: Duration, which: impl Fn(&Live) -> bool) -> bool {
        let state = self.lock();
        state.sessions.iter().filter(|s| which(s)).for_each(|s| s.handle.shutdown());
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, time, |state| state.sessions.iter().any(&which));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.sessions.iter().any(which)
    }

    fn accept_loop(self: &Arc<Self>) {
        loop {
            let listeners: Vec<_> = {
                let state = self.lock();
                if state.closing {
                    return;
                }
                state.listeners.values().cloned().collect()
            };
            let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
            fds.extend(listeners.iter().map(|l| PollFd::new(&l.file.listener, PollFlags::IN)));
            if let Err(error) = poll(&mut fds, None)
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "waiting for connections failed");
                self.pause();
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            }
            for (listener, _) in listeners.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
                self.accept(listener);
            }
        }
    }

    fn accept(self: &Arc<Self>, listener: &Arc<Listener>) {
        for _ in 0..ACCEPTS_PER_TURN {
            match listener.file.listener.accept() {
                Ok((stream, _)) => self.admit(stream, &listener.service),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    listener.service.warn(&format!("a connection cannot be accepted: {error}"));
                    return self.pause();
                }
            }
        }
    }

    fn pause(&self) {
        let time = Timespec { tv_sec: 0, tv_nsec: ACCEPT_PAUSE.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], Some(&time));
    }

    /// Starts a session's thread, unless there are too many.
    fn admit(self: &Arc<Self>, stream: UnixStream, service: &Arc<Service>) {
        // Accepted sockets are blocking whatever the listener is: the message layer relies on it.
        let Ok(socket) = stream.try_clone() else {
            return service.warn("a connection was closed: no descriptor left");
        };
        let mut state = self.lock();
        let of_socket = state.sessions.iter().filter(|s| s.listener == service.id).count();
        let known = state.listeners.contains_key(&service.id);
        if state.closing || !known || of_socket >= 2 || state.sessions.len() >= SESSIONS_MAX {
            drop(state);
            return service.warn("a connection was closed: a front end is connected already");
        }
        state.last_id += 1;
        let handle = SessionHandle::new(state.last_id, Arc::new(OwnedFd::from(socket)));
        state.sessions.push(Live { listener: service.id, handle: handle.clone(), active: false });
        drop(state);
        let guard = Registered { shared: self.clone(), handle: handle.clone() };
        let service_of_thread = service.clone();
        let name = format!("vhost-{}", handle.id());
        let spawned = thread::Builder::new().name(name).spawn(move || guard.run(stream, &service_of_thread));
        if let Err(error) = spawned {
            service.warn(&format!("a connection was closed: no thread for it: {error}"));
        }
    }

    /// Waits until every older session of the socket has ended; `false` if that took too long, or it is not wanted any
    /// more.
    fn take_turn(&self, id: u64, listener: ListenerId) -> bool {
        let until = Instant::now() + TURN_TIME;
        let mut state = self.lock();
        loop {
            if state.closing || !state.listeners.contains_key(&listener) {
                return false;
            }
            let first = state.first_of(listener).expect("a session is listed while its thread runs");
            if first.handle.id() == id {
                first.active = true;
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Service {
    fn warn(&self, what: &str) {
        if let Some(held_back) = self.log.pass(Instant::now()) {
            tracing::warn!(socket = %self.path.display(), held_back, "{what}");
        }
    }

    fn report(&self, handle: &SessionHandle, ended: &Ended) {
        let Some(held_back) = self.log.pass(Instant::now()) else { return };
        let (socket, session, pid) = (self.path.display(), handle.id(), handle.peer_pid());
        match ended {
            Ended::Closed => tracing::info!(%socket, session, pid, held_back, "front end disconnected"),
            Ended::Refused => tracing::warn!(%socket, session, pid, held_back, "front end refused by the device"),
            Ended::Failed(reason) => {
                tracing::warn!(%socket, session, pid, held_back, reason, "front end thrown out");
            }
        }
    }
}

/// A session's place in the list; leaves it however its thread ends.
struct Registered {
    shared: Arc<Shared>,
    handle: SessionHandle,
}

impl Registered {
    fn run(self, stream: UnixStream, service: &Service) {
        let (id, pid) = (self.handle.id(), self.handle.peer_pid());
        if !self.shared.take_turn(id, service.id) {
            return service.warn("a connection was closed: the one before it is not finished");
        }
        if service.log.pass(Instant::now()).is_some() {
            tracing::info!(socket = %service.path.display(), session = id, pid, "front end connected");
        }
        let ended = serve(stream, self.handle.clone(), &*service.factory);
        service.report(&self.handle, &ended);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Others may hold the handle, and with it the socket: the front end shall see the end now.
        self.handle.shutdown();
        let mut state = self.shared.lock();
        state.sessions.retain(|session| session.handle.id() != self.handle.id());
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::backend::Backend;

    struct Nobody;

    impl BackendFactory for Nobody {
        fn connect(&self, _: SessionHandle) -> Option<Box<dyn Backend>> {
            None
        }
    }

    #[test]
    fn turns_are_taken_in_the_order_of_arrival() {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::new().expect("a server");
        let listen = |name| server.listen(&dir.path().join(name), SocketOptions::default(), Arc::new(Nobody));
        let (busy, other) = (listen("busy").expect("a socket"), listen("other").expect("a socket"));
        let shared = &server.shared;
        let mut peers = Vec::new();
        for (id, listener, active) in [(100, busy, true), (101, other, true), (102, busy, false), (103, busy, false)] {
            let (own, peer) = UnixStream::pair().expect("a pair");
            let handle = SessionHandle::new(id, Arc::new(own.into()));
            shared.lock().sessions.push(Live { listener, handle, active });
            peers.push(peer);
        }
        let end = |id| {
            shared.lock().sessions.retain(|session| session.handle.id() != id);
            shared.changed.notify_all();
        };
        thread::scope(|scope| {
            let (told, tells) = mpsc::channel();
            end(100);
            // The thread of 102 has not woken up yet; the younger one must not take its turn.
            scope.spawn(move || told.send(shared.take_turn(103, busy)));
            assert_eq!(tells.recv_timeout(Duration::from_millis(200)), Err(mpsc::RecvTimeoutError::Timeout));
            assert!(shared.take_turn(102, busy));
            assert_eq!(tells.recv_timeout(Duration::from_millis(200)), Err(mpsc::RecvTimeoutError::Timeout));
            assert_eq!(server.sessions(busy).iter().map(SessionHandle::id).collect::<Vec<_>>(), [102]);
            end(102);
            assert_eq!(tells.recv_timeout(TURN_TIME), Ok(true));
        });
        shared.lock().sessions.clear();
    }
}
