//! What a worker does for nobody's request: the residents that it hosts. They are few, and each is polled in every pass.
//!
//! The control plane's half is here, too: [`Target::host`] and [`Target::evict`].

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use pollux_core::{Cx, IoError, Next, PostError, Resident};

use crate::error::TargetError;
use crate::message::{Body, Reply};
use crate::target::{ANSWER, Target, reply, wait};

/// Names a resident: its reactor, and a number that no other gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostedId {
    reactor: usize,
    number: u64,
}

impl HostedId {
    /// The reactor that it lives on.
    #[must_use]
    pub const fn reactor(self) -> usize {
        self.reactor
    }
}

/// Why a resident is not hosted.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct NotHosted {
    /// Why.
    pub error: TargetError,
    /// The resident, unattached; `None` if it went with a message that nobody has answered.
    pub resident: Option<Box<dyn Resident>>,
}

impl fmt::Debug for NotHosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotHosted").field("error", &self.error).field("given_back", &self.resident.is_some()).finish()
    }
}

/// What a worker answers to `Host`: why the reactor does not take it, and the resident.
pub(crate) type HostReply = Reply<Result<(), (IoError, Box<dyn Resident>)>>;
/// What a worker answers to `Evict`; `None` if it is not there or leaves already.
pub(crate) type EvictReply = Reply<Option<Box<dyn Resident>>>;

struct Hosted {
    id: HostedId,
    resident: Box<dyn Resident>,
    /// It is to go; who gets it then.
    leaving: Option<EvictReply>,
}

/// All residents of a worker.
#[derive(Default)]
pub(crate) struct Residents(Vec<Hosted>);

impl Residents {
    pub(crate) fn host(&mut self, id: HostedId, mut resident: Box<dyn Resident>, reply: HostReply, cx: &mut Cx<'_>) {
        match resident.attach(cx) {
            Ok(()) => {
                self.0.push(Hosted { id, resident, leaving: None });
                reply.send(Ok(()));
            }
            Err(error) => reply.send(Err((error, resident))),
        }
    }

    /// Asks a resident to leave; the pass that finds that it has gives it back.
    pub(crate) fn evict(&mut self, id: HostedId, reply: EvictReply) {
        match self.0.iter_mut().find(|hosted| hosted.id == id && hosted.leaving.is_none()) {
            Some(hosted) => {
                hosted.resident.ask_to_leave();
                hosted.leaving = Some(reply);
            }
            None => reply.send(None),
        }
    }

    /// Polls all of them; returns how many things they did.
    #[inline]
    pub(crate) fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        if self.0.is_empty() { 0 } else { self.poll_all(cx) }
    }

    #[inline(never)]
    fn poll_all(&mut self, cx: &mut Cx<'_>) -> u32 {
        let (mut count, mut at) = (0, 0);
        while let Some(hosted) = self.0.get_mut(at) {
            count += hosted.resident.poll(cx);
            if hosted.leaving.is_none() || !hosted.resident.has_left() {
                at += 1;
                continue;
            }
            let mut hosted = self.0.swap_remove(at);
            hosted.resident.detach(cx);
            if let Some(reply) = hosted.leaving {
                reply.send(Some(hosted.resident));
            }
            count += 1;
        }
        count
    }

    /// When polling can find something.
    pub(crate) fn next(&self) -> Next {
        self.0.iter().fold(Next::Idle, |next, hosted| next.or(hosted.resident.next()))
    }
}

/// What residents that were asked to leave will answer with.
type Leaving = HashMap<HostedId, Receiver<Option<Box<dyn Resident>>>>;

/// The control plane's record of residents.
#[derive(Default)]
pub(crate) struct Hosting {
    /// Residents that were ever hosted.
    count: AtomicU64,
    /// Those that did not leave in time.
    leaving: Mutex<Leaving>,
}

impl Target {
    /// Gives a resident to a reactor, and returns when it is attached there.
    ///
    /// # Errors
    /// [`NotHosted`] says why not, and gives it back if it can.
    pub fn host(&self, reactor: usize, resident: Box<dyn Resident>) -> Result<HostedId, NotHosted> {
        if reactor >= self.reactors() {
            return Err(NotHosted { error: TargetError::NoReactor(reactor), resident: Some(resident) });
        }
        let id = HostedId { reactor, number: self.hosting.count.fetch_add(1, Relaxed) };
        let (reply, answer) = reply();
        let gone = |error| NotHosted { error, resident: None };
        self.send(reactor, Body::Host { id, resident, reply }).map_err(|error| gone(error.into()))?;
        let hosted = wait(&answer, ANSWER).inspect_err(|_| {
            // It may be hosted yet: then this ends it, since messages keep their order.
            let (nobody, _) = bounded(1);
            let _ = self.send(reactor, Body::Evict { id, reply: Reply::new(nobody) });
        });
        match hosted.map_err(gone)? {
            Ok(()) => Ok(id),
            Err((error, resident)) => Err(NotHosted { error: TargetError::Resident(error), resident: Some(resident) }),
        }
    }

    /// Asks a resident to leave, waits until it has, and returns it, detached. One that has not left in
    /// [`Patience::cancelled`](crate::Patience::cancelled) goes on leaving; the next call waits for it again.
    ///
    /// # Errors
    /// [`TargetError::Draining`] if it has not left yet; others say why there is no such resident.
    pub fn evict(&self, id: HostedId) -> Result<Box<dyn Resident>, TargetError> {
        let asked = self.leaving().remove(&id);
        let answer = match asked {
            Some(answer) => answer,
            None => {
                let (reply, answer) = reply();
                self.send(id.reactor, Body::Evict { id, reply })?;
                answer
            }
        };
        let until = Instant::now() + self.patience().cancelled;
        match answer.recv_deadline(until) {
            Ok(resident) => resident.ok_or(TargetError::NoResident(id)),
            Err(RecvTimeoutError::Disconnected) => Err(TargetError::Post(PostError::Stopped)),
            Err(RecvTimeoutError::Timeout) => {
                self.leaving().insert(id, answer);
                Err(TargetError::Draining)
            }
        }
    }

    fn leaving(&self) -> MutexGuard<'_, Leaving> {
        self.hosting.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
