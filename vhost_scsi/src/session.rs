//! One front end's connection to a controller: hands its queues to the workers and takes them back. Runs on the
//! session's own thread, which may wait; the workers never do.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{RecvTimeoutError, bounded};
use pollux_core::Post;
use pollux_vhost_user::{Backend, BackendError, BackendFactory, Queue, QueueEvents, SessionHandle};

use crate::controller::{Controller, Places, SessionEntry};
use crate::message::{Body, Message, NewQueue, QueueKey, Reply};
use crate::port::Kind;
use crate::request::{F_CHANGE, F_HOTPLUG, F_INOUT};
use crate::target::Patience;

/// Control, events, and 128 for requests.
const MAX_QUEUES: u16 = 130;
/// The largest queue that a VMM can ask for.
const MAX_QUEUE_SIZE: u16 = 1024;
/// How long a guest's own requests may take to end when it stops a queue, before they are cancelled. A VMM that resets
/// its guest waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a wait looks whether the front end is still there.
const LOOK: Duration = Duration::from_millis(50);

/// Makes the back end of each connection to one controller's socket.
pub(crate) struct Factory {
    pub(crate) controller: Arc<Controller>,
    pub(crate) post: Arc<dyn Post<Message>>,
    pub(crate) patience: Arc<RwLock<Patience>>,
}

impl BackendFactory for Factory {
    fn connect(&self, session: SessionHandle) -> Option<Box<dyn Backend>> {
        let places = Arc::<Places>::default();
        let entry = SessionEntry { peer_pid: session.peer_pid(), queues: Vec::new(), places: places.clone() };
        self.controller.state().sessions.insert(session.id(), entry);
        tracing::info!(ctrlr = self.controller.name, session = session.id(), pid = session.peer_pid(), "connected");
        Some(Box::new(Session {
            controller: self.controller.clone(),
            post: self.post.clone(),
            patience: self.patience.clone(),
            handle: session,
            features: 0,
            places,
            homes: BTreeMap::new(),
            failure: Arc::default(),
        }))
    }
}

struct Session {
    controller: Arc<Controller>,
    post: Arc<dyn Post<Message>>,
    patience: Arc<RwLock<Patience>>,
    handle: SessionHandle,
    features: u64,
    places: Arc<Places>,
    /// Where queues that have stopped ran last.
    homes: BTreeMap<u16, usize>,
    failure: Arc<OnceLock<String>>,
}

impl Session {
    fn key(&self, index: u16) -> QueueKey {
        QueueKey { session: self.handle.id(), index }
    }

    /// Where a queue is to run: where it ran before it was stopped, if it has been moved there and there is room.
    fn reactor_of(&self, index: u16) -> usize {
        let first = self.controller.reactor_of(index);
        match self.homes.get(&index) {
            Some(&home) if home != first && self.keep_room(home, index) => home,
            _ => first,
        }
    }

    fn keep_room(&self, reactor: usize, index: u16) -> bool {
        let key = self.key(index);
        let (sender, answer) = bounded(1);
        if self.send(reactor, Body::KeepRoom { key, reply: Reply::new(sender) }).is_err() {
            return false;
        }
        answer.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            // It may keep it yet: messages keep their order, so this comes after.
            let _ = self.send(reactor, Body::FreeRoom { key });
            false
        })
    }

    /// How long requests may take to end when their front end is gone.
    fn when_closed(&self) -> Duration {
        self.patience.read().unwrap_or_else(PoisonError::into_inner).closed
    }

    fn send(&self, reactor: usize, body: Body) -> Result<(), BackendError> {
        self.post.post(reactor, Message(body)).map_err(|error| BackendError(error.to_string()))
    }
}

impl Backend for Session {
    fn features(&self) -> u64 {
        F_INOUT | F_HOTPLUG | F_CHANGE
    }

    fn max_queues(&self) -> u16 {
        MAX_QUEUES
    }

    fn features_acked(&mut self, features: u64) {
        self.features = features;
    }

    fn start_queue(&mut self, index: u16, queue: Queue, events: QueueEvents) -> Result<(), BackendError> {
        if queue.size() > MAX_QUEUE_SIZE {
            return Err(BackendError(format!("queue {index}: {} entries, more than {MAX_QUEUE_SIZE}", queue.size())));
        }
        let mut running = self.places.lock();
        let reactor = self.reactor_of(index);
        let new = NewQueue {
            key: self.key(index),
            controller: self.controller.id,
            features: self.features,
            slots: Kind::slots(index, queue.size()),
            queue,
            kick: events.kick,
            call: events.call,
            session: self.handle.clone(),
            failure: self.failure.clone(),
            stats: self.controller.queue_stats(index),
        };
        let (sender, started) = bounded(1);
        self.send(reactor, Body::StartQueue { queue: Box::new(new), reply: Reply::new(sender) })?;
        running.insert(index, reactor);
        self.controller.note_queues(self.handle.id(), &running);
        drop(running);
        // The guest may ask for task management as soon as its VMM knows that the queue runs, through another reactor.
        started.recv_timeout(PATIENCE).map_err(|_| BackendError(format!("its reactor does not start queue {index}")))
    }

    fn set_call(&mut self, index: u16, call: Option<Arc<OwnedFd>>) {
        let running = self.places.lock();
        let Some(&reactor) = running.get(&index) else { return };
        let (sender, taken) = bounded(1);
        let body = Body::SetCall { key: self.key(index), call, reply: Reply::new(sender) };
        // A reactor that does not take messages any more has no use for the descriptor.
        if self.send(reactor, body).is_ok() {
            let _ = taken.recv_timeout(PATIENCE);
        }
    }

    fn stop_queue(&mut self, index: u16) -> Result<u16, BackendError> {
        let (reactor, last) = {
            let mut running = self.places.lock();
            let removed = running.remove(&index);
            self.controller.note_queues(self.handle.id(), &running);
            (removed.ok_or_else(|| BackendError(format!("queue {index} was not started")))?, running.is_empty())
        };
        if last {
            // Its driver has reset the device, or is about to, or the VM is paused: no unit stays stopped over that.
            self.controller.state().nexuses.values().for_each(|nexus| nexus.restarted());
        }
        self.homes.insert(index, reactor);
        let key = self.key(index);
        let (sender, stopped) = bounded(1);
        self.send(reactor, Body::StopQueue { key, reply: Reply::new(sender) })?;
        let (began, mut cancelled) = (Instant::now(), false);
        loop {
            match stopped.recv_timeout(LOOK) {
                Ok(Some(stopped)) => return Ok(stopped.next_avail),
                Ok(None) => return Err(BackendError(format!("queue {index} is not on its reactor"))),
                Err(RecvTimeoutError::Disconnected) => return Err(BackendError("the reactor has stopped".into())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !cancelled && began.elapsed() >= if self.handle.is_connected() { PATIENCE } else { self.when_closed() } {
                cancelled = true;
                tracing::warn!(ctrlr = self.controller.name, queue = index, "requests in flight are cancelled");
                self.send(reactor, Body::CancelQueue { key })?;
            }
        }
    }

    fn closed(&mut self) {
        let nexuses: Vec<_> = {
            let mut state = self.controller.state();
            state.sessions.remove(&self.handle.id());
            state.nexuses.values().cloned().collect()
        };
        // A reactor that has stopped remembers nothing.
        for &reactor in &self.controller.reactors {
            let (controller, session) = (self.controller.id, self.handle.id());
            let _ = self.send(reactor, Body::ForgetSession { controller, session });
        }
        for nexus in nexuses {
            nexus.lost();
        }
        match self.failure.get() {
            Some(why) => tracing::warn!(ctrlr = self.controller.name, session = self.handle.id(), "shut down: {why}"),
            None => tracing::info!(ctrlr = self.controller.name, session = self.handle.id(), "disconnected"),
        }
    }
}
