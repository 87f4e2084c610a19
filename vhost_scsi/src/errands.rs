//! Commands that helper threads do something for: GET LBA STATUS on a device that has to wait for metadata.
//!
//! Such a command is *away*: it has a slot, and its queue goes on. A helper thread answers by message. Nothing of the
//! guest's memory is touched before that, so a command that is aborted meanwhile is answered at once; what the helper finds
//! out then is nobody's business any more, and its answer is recognized by its number, which is never used again. But it
//! still counts as one of its session's until it is done: a session has [`MOST_OF_SESSION`] of them on a worker, whatever
//! its guest sends and aborts, and the rest waits here. What comes and goes costs the same, however many wait.

use std::collections::{BTreeMap, HashMap};
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
    session: u64,
    stop: Arc<AtomicBool>,
}

/// An errand that has not begun.
struct Waiting {
    id: ErrandId,
    tag: Tag,
    lane: Lane,
    survey: Box<Survey>,
    stop: Arc<AtomicBool>,
}

/// The errands of a worker.
#[derive(Default)]
pub(crate) struct Errands {
    last: ErrandId,
    away: HashMap<Tag, Away>,
    /// By session, and then in the order in which they came.
    waiting: BTreeMap<(u64, ErrandId), Waiting>,
    /// How many of each session are under way; none is not counted.
    under_way: HashMap<u64, usize>,
}

impl Errands {
    fn add(&mut self, tag: Tag, session: u64, lane: Lane, survey: Box<Survey>) {
        let stop = Arc::new(AtomicBool::new(false));
        self.last += 1;
        let id = self.last;
        self.away.insert(tag, Away { id, session, stop: stop.clone() });
        self.waiting.insert((session, id), Waiting { id, tag, lane, survey, stop });
    }

    /// The next one of a session, if that may have another one under way.
    fn next(&mut self, session: u64) -> Option<Waiting> {
        if self.under_way.get(&session).is_some_and(|count| *count >= MOST_OF_SESSION) {
            return None;
        }
        let (&key, _) = self.waiting.range((session, 0)..=(session, ErrandId::MAX)).next()?;
        *self.under_way.entry(session).or_default() += 1;
        self.waiting.remove(&key)
    }

    /// One is done; whether the command that it was for still waits.
    fn done(&mut self, id: ErrandId, tag: Tag, session: u64) -> bool {
        if let Some(count) = self.under_way.get_mut(&session) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&session);
            }
        }
        let waits = self.away.get(&tag).is_some_and(|away| away.id == id);
        if waits {
            self.away.remove(&tag);
        }
        waits
    }

    /// A command does not wait any more.
    fn call_off(&mut self, tag: Tag) {
        let Some(Away { id, session, stop }) = self.away.remove(&tag) else { return };
        stop.store(true, Ordering::Relaxed);
        self.waiting.remove(&(session, id));
    }
}

/// What a helper thread owes a worker. It answers when it is dropped, so a chore that is never done is answered, too.
struct Debt {
    home: Home,
    worker: usize,
    id: ErrandId,
    tag: Tag,
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
        let Debt { id, tag, session, ref data, .. } = *self;
        deliver(&*self.home, self.worker, || Message(Body::ErrandDone { id, tag, session, data: data.clone() }));
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
        let lane = self.units.look(lun.unit).lane();
        self.errands.add(port.tag(given.head), port.key.session, lane, survey);
        self.begin_errands(port.key.session);
    }

    fn begin_errands(&mut self, session: u64) {
        let (Some(home), Some(helpers)) = (&self.home, &self.helpers) else { return };
        while let Some(Waiting { id, tag, lane, survey, stop }) = self.errands.next(session) {
            let debt = Debt { home: home.clone(), worker: self.worker, id, tag, session, data: None };
            let chore: Chore = Box::new(move || debt.pay(survey.run(&stop)));
            helpers.submit([lane; 2], chore);
        }
    }

    /// A helper thread has done what it was asked for; without data it could not.
    pub(crate) fn errand_done(&mut self, id: ErrandId, tag: Tag, session: u64, data: Option<Vec<u8>>) {
        let waits = self.errands.done(id, tag, session);
        self.begin_errands(session);
        if !waits {
            return;
        }
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
