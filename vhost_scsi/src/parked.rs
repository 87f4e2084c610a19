//! Commands that wait for something other than a device: for a change of their unit to be saved, or for the commands of
//! preempted initiators to end (PERSISTENT RESERVE OUT). They keep their slot, *parked*, and take no room of the device.
//!
//! A save is made by another thread, which sends a message when it is done; the change counts then whatever has become
//! of the command. PREEMPT AND ABORT asks all workers, as task management does (`abort.rs`), and is answered when none
//! of the preempted commands can touch guest memory any more. What those initiators send later meets the reservation,
//! which is in force before the workers are asked. Its queue takes nothing more meanwhile, and of one session no more
//! of them ask on a worker than of its control queue's functions: who asks for much waits for itself.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pollux_core::{IoFlags, Op, Post, PostError, Tag};
use pollux_scsi::{Outcome, Preempted, Save, Saved};

use crate::control::{Asker, MOST_FUNCTIONS};
use crate::message::{Body, Message, Scope, UnitId};
use crate::port::{Answer, Phase, Port, parse_tag};
use crate::request::Response;
use crate::serve::{Encoded, Given, answer_of, to_u32};
use crate::worker::ScsiWorker;

/// How other threads reach the workers. Known as soon as a unit is open.
pub(crate) type Home = Arc<dyn Post<Message>>;

/// A parked command whose session has enough others that wait for the commands of the preempted to end.
pub(crate) struct Preempting {
    tag: Tag,
    session: u64,
    unit: UnitId,
    preempted: Preempted,
}

/// Whether a save may still end before its command has been parked for it: on the reactor, where nobody saves any more.
enum Early {
    Starting,
    Saved(Saved),
    Started,
}

impl Early {
    /// Keeps the answer, if it comes so early; the reactor looks for it then.
    fn holds(&mut self, saved: Saved) -> bool {
        let starting = matches!(self, Early::Starting);
        if starting {
            *self = Early::Saved(saved);
        }
        starting
    }
}

fn lock(early: &Mutex<Early>) -> MutexGuard<'_, Early> {
    early.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells a worker, from another thread, what a command of its waits for: nothing else ends that command.
pub(crate) fn deliver(home: &dyn Post<Message>, worker: usize, message: impl Fn() -> Message) {
    // A reactor that does not answer may do so again. Where it has stopped, nobody waits for the answer.
    while home.post(worker, message()) == Err(PostError::Stuck) {}
}

impl ScsiWorker {
    /// Has something saved before the command is answered.
    pub(crate) fn park_for_save(&mut self, port: &mut Port, given: &Given, save: Save) {
        let tag = self.park(port, given);
        self.start_save(save, self.worker..self.worker + 1, move |saved| Body::Saved { tag, saved });
    }

    /// Starts a save; these workers are told when it has ended.
    pub(crate) fn start_save(
        &mut self,
        save: Save,
        workers: Range<usize>,
        tell: impl Fn(Saved) -> Body + Clone + Send + 'static,
    ) {
        let early = Arc::new(Mutex::new(Early::Starting));
        let (home, ended, to, told) = (self.home.clone(), early.clone(), workers.clone(), tell.clone());
        save.start(Box::new(move |saved| {
            if let Some(home) = home
                && !lock(&ended).holds(saved)
            {
                for worker in to {
                    deliver(&*home, worker, || Message(told(saved)));
                }
            }
        }));
        let early = std::mem::replace(&mut *lock(&early), Early::Started);
        if let Early::Saved(saved) = early {
            for worker in workers {
                self.outbox.push_back((worker, Message(tell(saved))));
            }
        }
    }

    /// Ends the commands of those whom a command has preempted before it is answered.
    pub(crate) fn park_for_preempted(&mut self, port: &mut Port, given: &Given, preempted: Preempted) {
        let unit = self.luns.get(given.lun).unit;
        let tag = self.park(port, given);
        self.end_preempted(port, tag, unit, preempted);
    }

    /// What a parked command waited for has been saved, or could not be.
    pub(crate) fn saved(&mut self, tag: Tag, Saved { outcome, preempted, begun }: Saved) {
        if preempted.is_none() && begun.is_none() {
            return self.unpark(tag, &outcome);
        }
        let (number, head, _) = parse_tag(tag);
        let mut port = self.take_port(number).expect("a port stays while its requests are in flight");
        let unit = self.luns.get(port.slots[usize::from(head)].lun).unit;
        if let Some(preempted) = preempted {
            self.end_preempted(&mut port, tag, unit, preempted);
        }
        self.put_port(number, port);
        if let Some(begun) = begun {
            self.wipe_begun(tag, unit, begun);
        }
    }

    /// The change counts: others may change something now, however long these commands take to end. The queue takes nothing
    /// more meanwhile.
    fn end_preempted(&mut self, port: &mut Port, tag: Tag, unit: UnitId, preempted: Preempted) {
        port.waiting += 1;
        let (number, head, turn) = parse_tag(tag);
        self.change_counts(unit, (number, head, turn));
        let session = port.key.session;
        let preempting = Preempting { tag, session, unit, preempted };
        if self.asking_commands(session) < MOST_FUNCTIONS as usize {
            self.begin_preempting(&preempting);
        } else {
            self.preempting.push_back(preempting);
        }
    }

    fn begin_preempting(&mut self, of: &Preempting) {
        let Preempting { tag, session, unit, preempted } = *of;
        let (port, head, _) = parse_tag(tag);
        let scope = Scope::Preempted { unit, preempted };
        self.ask_all(Asker::Command { tag, session }, (port, head), None, scope, Some(Response::Aborted));
    }

    /// Whether a parked command's change counts, and it waits for the commands of the preempted to end.
    pub(crate) fn is_preempting(&self, tag: Tag) -> bool {
        self.is_asking(tag) || self.preempting.iter().any(|waiting| waiting.tag == tag)
    }

    /// Nothing of the preempted is in flight any more.
    pub(crate) fn preempted_ended(&mut self, tag: Tag, session: u64) {
        let next = self.preempting.iter().position(|waiting| waiting.session == session);
        if let Some(next) = next.and_then(|next| self.preempting.remove(next)) {
            self.begin_preempting(&next);
        }
        let (number, ..) = parse_tag(tag);
        let mut port = self.take_port(number).expect("a port stays while its requests are in flight");
        port.waiting -= 1;
        self.put_port(number, port);
        self.unpark(tag, &Outcome::GOOD);
    }

    /// Keeps a command's slot; its chain lies in `self.segments`.
    pub(crate) fn park(&mut self, port: &mut Port, given: &Given) -> Tag {
        let slot = port.claim(given.head);
        self.put_response(slot, given.readable);
        slot.phase = Phase::Parked;
        (slot.op, slot.flags, slot.offset, slot.len) = (Op::Flush, IoFlags::empty(), 0, 0);
        (slot.lun, slot.name) = (given.lun, given.name);
        slot.residual = to_u32(given.residual(given.used));
        self.luns.get_mut(given.lun).inflight += 1;
        port.tag(given.head)
    }

    /// Whether task management has ended a parked command.
    pub(crate) fn parked_is_aborted(&self, tag: Tag) -> bool {
        let (number, head, _) = parse_tag(tag);
        self.port(number).is_some_and(|port| port.slots[usize::from(head)].aborted.is_some())
    }

    /// Answers a parked command.
    pub(crate) fn unpark(&mut self, tag: Tag, outcome: &Outcome) {
        let (number, head, turn) = parse_tag(tag);
        let mut port = self.take_port(number).expect("a port stays while its requests are in flight");
        let slot = &port.slots[usize::from(head)];
        assert!(slot.turn == turn && slot.phase == Phase::Parked, "an answer belongs to a parked command");
        let (residual, aborted) = (u64::from(slot.residual), slot.aborted);
        let lun = self.luns.get_mut(slot.lun);
        lun.inflight -= 1;
        if let Some(response) = aborted {
            port.answer_slot(head, &Answer::response(response, residual));
        } else {
            let sense = Encoded::new(&self.units.look(lun.unit).logical, outcome.sense.as_ref());
            port.answer_slot(head, &answer_of(outcome, &sense, residual, 0));
        }
        self.put_port(number, port);
        self.activate(number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A mailbox that stays full for so long.
    struct Full {
        refusals: usize,
        end: Result<(), PostError>,
        tries: AtomicUsize,
    }

    impl Post<Message> for Full {
        fn reactors(&self) -> usize {
            1
        }

        fn post(&self, _: usize, _: Message) -> Result<(), PostError> {
            let tries = self.tries.fetch_add(1, Ordering::Relaxed);
            if tries < self.refusals { Err(PostError::Stuck) } else { self.end }
        }
    }

    #[test]
    fn an_answer_is_delivered_however_long_the_mailbox_is_full() {
        for end in [Ok(()), Err(PostError::Stopped)] {
            let full = Full { refusals: 3, end, tries: AtomicUsize::new(0) };
            deliver(&full, 0, || Message(Body::Look { unit: None }));
            assert_eq!(full.tries.into_inner(), 4);
        }
    }

    #[test]
    fn an_answer_that_comes_before_the_command_is_parked_is_kept_for_the_reactor() {
        let saved = Saved { outcome: Outcome::GOOD, preempted: None, begun: None };
        let mut early = Early::Starting;
        assert!(early.holds(saved) && matches!(early, Early::Saved(of) if of == saved));
        let mut late = Early::Started;
        assert!(!late.holds(saved) && matches!(late, Early::Started));
    }
}
