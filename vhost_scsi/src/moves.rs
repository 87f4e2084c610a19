//! Moving a request queue from one reactor of its controller to another.
//!
//! The queue goes as a whole, ring state and descriptors, so nothing is lost; it goes when nothing of it is in flight, so
//! nothing is reordered. In order:
//!
//! 1. The session's table of places is taken: a queue is not started, stopped, or given another call descriptor meanwhile.
//!    The other reactor keeps room for it; if it has none, that is all.
//! 2. The control queue is held, if no function is at work: task management has to find the session's queues, and while
//!    one is between two reactors it is on neither.
//! 3. The queue is offered: its reactor takes nothing more from it, and gives it away once its requests have ended. A
//!    queue whose requests do not end in [`Patience::moves`](crate::Patience::moves) stays where it is: its guest must
//!    not wait for them all.
//! 4. The other reactor starts it like a new one: it looks at the ring first, so a kick that came meanwhile is not missed,
//!    and signals once, so an interrupt is not either.
//! 5. The control queue is released.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::channel::RecvTimeoutError;

use crate::Target;
use crate::error::TargetError;
use crate::message::{Body, NewQueue, QueueKey};
use crate::target::{ANSWER, reply, wait};

/// Queues 0 and 1 are control and events; they stay where they are.
const FIRST_REQUEST_QUEUE: u16 = 2;

/// A request queue that runs, and what it has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePlace {
    /// Its controller.
    pub ctrlr: String,
    /// Its session.
    pub session: u64,
    /// Its index.
    pub index: u16,
    /// Where it runs.
    pub reactor: usize,
    /// Where it may run.
    pub reactors: Vec<usize>,
    /// Requests taken from it so far.
    pub requests: u64,
    /// Bytes of their buffers.
    pub bytes: u64,
}

/// How moves ended.
#[derive(Debug, Default)]
pub struct MoveStats {
    moved: AtomicU64,
    given_up: AtomicU64,
}

impl MoveStats {
    /// Queues that were moved.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// Queues that stayed because their requests did not end in time, or a task management function was at work.
    #[must_use]
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Relaxed)
    }
}

impl Target {
    /// All request queues that run.
    #[must_use]
    pub fn queue_places(&self) -> Vec<QueuePlace> {
        let mut all = Vec::new();
        for controller in self.all() {
            let stats = controller.all_queue_stats();
            for (&session, entry) in &controller.state().sessions {
                for &(index, reactor) in entry.queues.iter().filter(|(index, _)| *index >= FIRST_REQUEST_QUEUE) {
                    let of_queue = stats.iter().find(|(of, _)| *of == index);
                    let (ctrlr, reactors) = (controller.name.clone(), controller.reactors.clone());
                    let (requests, bytes) =
                        of_queue.map_or((0, 0), |(_, stats)| (stats.requests.get(), stats.bytes.get()));
                    all.push(QueuePlace { ctrlr, session, index, reactor, reactors, requests, bytes });
                }
            }
        }
        all
    }

    /// How moves ended.
    #[must_use]
    pub fn move_stats(&self) -> &MoveStats {
        &self.moves
    }

    /// Moves a request queue to another reactor of its controller. Returns whether it is there now; if not, it goes on
    /// where it was, and the move can be tried again.
    ///
    /// # Errors
    /// [`TargetError`] if there is no such queue or reactor, or a reactor does not answer.
    pub fn move_queue(&self, ctrlr: &str, session: u64, index: u16, to: usize) -> Result<bool, TargetError> {
        let controller = self.controller(ctrlr)?;
        let no_queue = || TargetError::NoQueue { ctrlr: ctrlr.into(), queue: index };
        if !controller.reactors.contains(&to) {
            return Err(TargetError::NotItsReactor { ctrlr: ctrlr.into(), reactor: to });
        }
        let places = controller.state().sessions.get(&session).map(|entry| entry.places.clone());
        let places = places.ok_or_else(no_queue)?;
        let mut running = places.lock();
        let from = *running.get(&index).filter(|_| index >= FIRST_REQUEST_QUEUE).ok_or_else(no_queue)?;
        if from == to {
            return Ok(true);
        }
        let key = QueueKey { session, index };
        let control = running.get(&0).map(|&reactor| (reactor, QueueKey { session, index: 0 }));
        let moved = self.keep_room(key, to).and_then(|()| self.move_held(key, control, from, to));
        if let Ok(true) = moved {
            running.insert(index, to);
            controller.note_queues(session, &running);
        } else {
            let _ = self.send(to, Body::FreeRoom { key });
        }
        let count = if let Ok(true) = moved { &self.moves.moved } else { &self.moves.given_up };
        count.fetch_add(1, Relaxed);
        moved
    }

    fn keep_room(&self, key: QueueKey, to: usize) -> Result<(), TargetError> {
        let (reply, answer) = reply();
        self.send(to, Body::KeepRoom { key, reply })?;
        let kept = wait(&answer, ANSWER).inspect_err(|_| {
            let _ = self.send(to, Body::FreeRoom { key });
        })?;
        if kept { Ok(()) } else { Err(TargetError::NoRoom(to)) }
    }

    /// Moves a queue for which there is room, with its control queue held.
    fn move_held(
        &self,
        key: QueueKey,
        control: Option<(usize, QueueKey)>,
        from: usize,
        to: usize,
    ) -> Result<bool, TargetError> {
        let Some((reactor, control)) = control else { return self.hand_over(key, from, to) };
        if !self.hold(reactor, control)? {
            return Ok(false);
        }
        let moved = self.hand_over(key, from, to);
        self.send(reactor, Body::ReleaseControl { key: control })?;
        moved
    }

    fn hold(&self, reactor: usize, key: QueueKey) -> Result<bool, TargetError> {
        let (reply, answer) = reply();
        self.send(reactor, Body::HoldControl { key, reply })?;
        wait(&answer, ANSWER).inspect_err(|_| {
            // It may hold it yet: messages keep their order, so this comes after.
            let _ = self.send(reactor, Body::ReleaseControl { key });
        })
    }

    fn hand_over(&self, key: QueueKey, from: usize, to: usize) -> Result<bool, TargetError> {
        let Some(queue) = self.ask_for(key, from)? else { return Ok(false) };
        let session = queue.session.clone();
        let (reply, started) = reply();
        // The control queue goes on when the queue is there: task management has to find it.
        let sent = self.send(to, Body::StartQueue { queue, reply });
        sent.map_err(TargetError::from).and_then(|()| wait(&started, ANSWER)).map(|()| true).inspect_err(|_| {
            // The queue may be gone with the message, and its guest would wait for ever.
            session.shutdown();
        })
    }

    fn ask_for(&self, key: QueueKey, from: usize) -> Result<Option<Box<NewQueue>>, TargetError> {
        let (reply, answer) = reply();
        self.send(from, Body::OfferQueue { key, reply })?;
        match answer.recv_timeout(self.patience().moves) {
            Ok(queue) => return Ok(queue),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
        self.send(from, Body::WithdrawOffer { key })?;
        // Answered in any case, and perhaps with the queue: giving up here would lose it.
        Ok(answer.recv().unwrap_or(None))
    }
}
