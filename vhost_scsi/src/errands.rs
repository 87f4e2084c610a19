//! Commands that helper threads do something for: GET LBA STATUS on a device that has to wait for metadata.
//!
//! Such a command is *away*: it has a slot, and its queue goes on. A helper thread answers by message. Nothing of the
//! guest's memory is touched before that, so a command that is aborted meanwhile is answered at once; what the helper finds
//! out then is nobody's business any more, and its answer is recognized by its number, which is never used again. But it
//! still counts as one of its session's until it is done: a session has [`MOST_OF_SESSION`] of them on a worker, whatever
//! its guest sends and aborts, and the rest waits here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pollux_core::{Chore, Helpers, IoError, IoFlags, Lane, Op, Tag, segment};
use pollux_scsi::{Outcome, Survey, io_outcome};

use crate::message::{Body, Message};
use crate::parked::{Home, deliver};
use crate::port::{Answer, Phase, Port, parse_tag};
use crate::request::{RESPONSE_LEN, Response};
use crate::serve::{Encoded, Given, answer_of, to_u32};
use crate::worker::ScsiWorker;

/// Errands of one session that are under way at once on one worker.
const MOST_OF_SESSION: usize = 2;

/// Names an errand of a worker.
pub(crate) type ErrandId = u64;

/// How workers reach the helper threads.
pub(crate) type HelpersHandle = Arc<dyn Helpers>;

/// A command that is away.
struct Away {
    id: ErrandId,
    tag: Tag,
    stop: Arc<AtomicBool>,
}

/// An errand that has not begun.
struct Waiting {
    id: ErrandId,
    session: u64,
    lane: Lane,
    survey: Box<Survey>,
    stop: Arc<AtomicBool>,
}

/// The errands of a worker.
#[derive(Default)]
pub(crate) struct Errands {
    next: ErrandId,
    /// In the order in which they came.
    away: Vec<Away>,
    waiting: VecDeque<Waiting>,
    /// The sessions of the errands that are under way.
    under_way: Vec<u64>,
}

impl Errands {
    fn add(&mut self, tag: Tag, session: u64, lane: Lane, survey: Box<Survey>) {
        let stop = Arc::new(AtomicBool::new(false));
        self.next += 1;
        self.away.push(Away { id: self.next, tag, stop: stop.clone() });
        self.waiting.push_back(Waiting { id: self.next, session, lane, survey, stop });
    }

    /// The next one whose session may have another one under way.
    fn next(&mut self) -> Option<Waiting> {
        let has_room = |session: u64| self.under_way.iter().filter(|of| **of == session).count() < MOST_OF_SESSION;
        let at = self.waiting.iter().position(|waiting| has_room(waiting.session))?;
        let waiting = self.waiting.remove(at)?;
        self.under_way.push(waiting.session);
        Some(waiting)
    }

    /// One is done; the command that it was for, if that still waits.
    fn done(&mut self, id: ErrandId, session: u64) -> Option<Tag> {
        if let Some(at) = self.under_way.iter().position(|of| *of == session) {
            self.under_way.swap_remove(at);
        }
        let at = self.away.iter().position(|away| away.id == id)?;
        Some(self.away.remove(at).tag)
    }

    /// A command does not wait any more.
    fn call_off(&mut self, tag: Tag) {
        let Some(at) = self.away.iter().position(|away| away.tag == tag) else { return };
        let Away { id, stop, .. } = self.away.remove(at);
        stop.store(true, Ordering::Relaxed);
        self.waiting.retain(|waiting| waiting.id != id);
    }
}

/// What a helper thread owes a worker. It answers when it is dropped, so a chore that is never done is answered, too.
struct Debt {
    home: Home,
    worker: usize,
    id: ErrandId,
    session: u64,
    data: Option<Vec<u8>>,
}

impl Debt {
    fn pay(mut self, data: Vec<u8>) {
        self.data = Some(data);
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        let Debt { id, session, ref data, .. } = *self;
        deliver(&*self.home, self.worker, || Message(Body::ErrandDone { id, session, data: data.clone() }));
    }
}

impl ScsiWorker {
    /// Has something found out for a command whose chain lies in `self.segments`.
    pub(crate) fn send_away(&mut self, port: &mut Port, given: &Given, survey: Box<Survey>) {
        let slot = port.claim(given.head);
        self.put_response(slot, given.readable);
        let room = usize::try_from(given.data_in).unwrap_or(usize::MAX).min(survey.data_len_max());
        let writable = &self.segments.as_slice()[given.readable..];
        segment::for_range(writable, RESPONSE_LEN, room, |part| slot.pieces.push(part));
        slot.phase = Phase::Away;
        (slot.op, slot.flags, slot.offset, slot.len) = (Op::Flush, IoFlags::empty(), 0, 0);
        (slot.lun, slot.name) = (given.lun, given.name);
        slot.residual = to_u32(given.residual(given.used));
        let lun = self.luns.get_mut(given.lun);
        lun.inflight += 1;
        let lane = Lane(self.units.look(lun.unit).logical.uuid().as_u128() as u64);
        self.errands.add(port.tag(given.head), port.key.session, lane, survey);
        self.begin_errands();
    }

    fn begin_errands(&mut self) {
        let (Some(home), Some(helpers)) = (&self.home, &self.helpers) else { return };
        while let Some(Waiting { id, session, lane, survey, stop }) = self.errands.next() {
            let debt = Debt { home: home.clone(), worker: self.worker, id, session, data: None };
            let chore: Chore = Box::new(move || debt.pay(survey.run(&stop)));
            helpers.submit(lane, chore);
        }
    }

    /// A helper thread has done what it was asked for; without data it could not.
    pub(crate) fn errand_done(&mut self, id: ErrandId, session: u64, data: Option<Vec<u8>>) {
        let tag = self.errands.done(id, session);
        self.begin_errands();
        let Some(tag) = tag else { return };
        let (number, head, turn) = parse_tag(tag);
        let mut port = self.take_port(number).expect("a port stays while its requests are in flight");
        let slot = &port.slots[usize::from(head)];
        assert!(slot.turn == turn && slot.phase == Phase::Away, "a command that is away waits in its slot");
        let residual = u64::from(slot.residual);
        let outcome = match &data {
            Some(data) => Outcome::data(data.len()),
            None => io_outcome(Op::Read, IoError::Aborted),
        };
        let data = data.unwrap_or_default();
        let put = segment::copy_to(slot.pieces.data().as_slice(), 0, &data);
        let lun = self.luns.get_mut(slot.lun);
        lun.inflight -= 1;
        if put < data.len() {
            port.answer_slot(head, &Answer::response(Response::Overrun, residual));
        } else {
            let sense = Encoded::new(&self.units.look(lun.unit).logical, outcome.sense.as_ref());
            port.answer_slot(head, &answer_of(&outcome, &sense, residual - put as u64, put as u64));
        }
        self.put_port(number, port);
        self.activate(number);
    }

    /// Ends a command that is away.
    pub(crate) fn call_off(&mut self, port: &mut Port, head: u16, how: Response) {
        self.errands.call_off(port.tag(head));
        let slot = &port.slots[usize::from(head)];
        let residual = u64::from(slot.residual);
        self.luns.get_mut(slot.lun).inflight -= 1;
        port.answer_slot(head, &Answer::response(how, residual));
    }
}
