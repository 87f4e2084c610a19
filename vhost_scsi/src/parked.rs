//! Commands that wait for something other than a device: for a change of their unit to be saved, or for the commands of
//! preempted initiators to end (PERSISTENT RESERVE OUT). They keep their slot, *parked*, and take no room of the device.
//!
//! A save is made by another thread, which sends a message when it is done; the change counts then whatever has become
//! of the command. PREEMPT AND ABORT asks all workers, as task management does (`abort.rs`), and is answered when none of
//! the preempted commands can touch guest memory any more. What those initiators send later meets the reservation, which
//! is in force before the workers are asked.

use std::sync::Arc;

use pollux_core::{IoFlags, Op, Post, Tag};
use pollux_scsi::{Outcome, Preempted, Save, Saved};

use crate::control::Asker;
use crate::message::{Body, Message, Scope, UnitId};
use crate::port::{Answer, Phase, Port, parse_tag};
use crate::request::Response;
use crate::serve::{Encoded, Given, answer_of, to_u32};
use crate::worker::ScsiWorker;

/// How other threads reach the workers. Known as soon as a unit is open.
pub(crate) type Home = Arc<dyn Post<Message>>;

impl ScsiWorker {
    /// Has something saved before the command is answered.
    pub(crate) fn park_for_save(&mut self, port: &mut Port, given: &Given, save: Save) {
        let tag = self.park(port, given);
        let (worker, home) = (self.worker, self.home.clone());
        let tell = move |saved| {
            if let Some(home) = home {
                // Where the reactor has stopped, nobody waits for the answer.
                let _ = home.post(worker, Message(Body::Saved { tag, saved }));
            }
        };
        save.start(Box::new(tell));
    }

    /// Ends the commands of those whom a command has preempted before it is answered.
    pub(crate) fn park_for_preempted(&mut self, port: &mut Port, given: &Given, preempted: Preempted) {
        let unit = self.luns.get(given.lun).unit;
        let tag = self.park(port, given);
        self.end_preempted(tag, unit, preempted);
    }

    /// What a parked command waited for has been saved, or could not be.
    pub(crate) fn saved(&mut self, tag: Tag, Saved { outcome, preempted }: Saved) {
        let (number, head, _) = parse_tag(tag);
        let Some(lun) = self.port(number).map(|port| port.slots[usize::from(head)].lun) else { return };
        match preempted {
            Some(preempted) => self.end_preempted(tag, self.luns.get(lun).unit, preempted),
            None => self.unpark(tag, &outcome),
        }
    }

    fn end_preempted(&mut self, tag: Tag, unit: UnitId, preempted: Preempted) {
        let (port, head, _) = parse_tag(tag);
        self.ask_all(
            Asker::Command { tag },
            (port, head),
            None,
            Scope::Preempted { unit, preempted },
            Some(Response::Aborted),
        );
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
