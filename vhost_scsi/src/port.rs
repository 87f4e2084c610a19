//! One virtqueue on its reactor: the ring, the requests in flight on it (a slot for each descriptor head), and its place
//! between being polled and waiting for a kick.
//!
//! A port is *polled* (kicks suppressed, looked at each turn) or *armed* (kicks requested, its kick descriptor armed once
//! in the reactor's ring). It ends in stages: nothing more is taken; requests in flight end; the ring gives back the kick
//! and call descriptors; only then is the ring handed out and the stop answered.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use pollux_core::{ClientId, Cx, Entry, IoFlags, Op, RingOp, Segment, SpinBudget, Tag, Token, segment};
use pollux_scsi::{Class, Plan};
use pollux_vhost_user::{Queue, SessionHandle};

use crate::QueueStats;
use crate::abort::Held;
use crate::gather::Gather;
use crate::jobs::Working;
use crate::line::Charge;
use crate::message::{ControllerId, NewQueue, QueueKey, Reply, Stopped};
use crate::order::Turn;
use crate::pieces::{Pattern, Pieces};
use crate::request::{Command, RESPONSE_LEN, Response, response_header};
use crate::through::Passing;

/// What a port's requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Control,
    Events,
    Requests,
}

impl Kind {
    const fn of(index: u16) -> Kind {
        match index {
            0 => Kind::Control,
            1 => Kind::Events,
            _ => Kind::Requests,
        }
    }

    /// The slots of a queue of this index and size.
    pub(crate) fn slots(index: u16, size: u16) -> Box<[Slot]> {
        let count = if Kind::of(index) == Kind::Events { 0 } else { usize::from(size) };
        std::iter::repeat_with(Slot::default).take(count).collect()
    }
}

/// What a slot's request is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Free,
    /// Waits for its turn; nothing of it has been looked at.
    Dormant,
    /// Waits for memory, or for a range that another command has to itself.
    Barred,
    /// In its unit's line.
    Waiting,
    /// With the device.
    Running,
    /// It waits for something other than its device; see `parked.rs`.
    Parked,
    /// A helper thread does something for it; see `errands.rs`.
    Away,
}

/// A request in flight: two cache lines, of which a queue has as many as requests are in flight.
#[repr(align(64))]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    pub(crate) op: Op,
    pub(crate) flags: IoFlags,
    /// Set by task management: what to answer when it has ended.
    pub(crate) aborted: Option<Response>,
    /// Counts the slot's requests, so that an answer for an earlier one is recognized.
    pub(crate) turn: u16,
    pub(crate) lun: u32,
    /// Bytes of the guest's buffer that the command does not use. A chain holds less than 4 GiB.
    pub(crate) residual: u32,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// The guest's name for it.
    pub(crate) name: u64,
    pub(crate) started: u64,
    pub(crate) long: Option<Box<Long>>,
    pub(crate) pieces: Pieces,
}

/// What a command has that is more than one transfer between the guest's buffer and the device.
pub(crate) enum Long {
    /// Operations without the guest's data.
    Plan { plan: Plan, pattern: Option<Pattern> },
    /// It looks at the data.
    Job(Working),
    /// It has not begun: its header, as it was read, and its place.
    Dormant(Command, Turn),
    /// It waits for a copy, by its place among the worker's.
    Copy { index: usize },
    /// It goes to the device as it is.
    Pass(Passing),
}

impl Long {
    const fn charge(&self, op: Op, len: u64) -> Charge {
        match self {
            Long::Plan { plan, .. } => Charge::step(op, len, plan.immediate()),
            Long::Job(working) => working.charge(len),
            Long::Dormant(..) => Charge::plain(0),
            Long::Copy { .. } => Charge::plain(0),
            Long::Pass(_) => Charge::plain(len),
        }
    }
}

const _: () = assert!(size_of::<Slot>() == 128, "a slot is two cache lines");

impl Default for Slot {
    fn default() -> Self {
        Slot {
            phase: Phase::Free,
            op: Op::Flush,
            flags: IoFlags::empty(),
            aborted: None,
            turn: 0,
            lun: 0,
            residual: 0,
            offset: 0,
            len: 0,
            name: 0,
            started: 0,
            long: None,
            pieces: Pieces::default(),
        }
    }
}

impl Slot {
    /// What its next or present step takes of its unit.
    #[inline]
    pub(crate) const fn charge(&self) -> Charge {
        match &self.long {
            None => Charge::plain(self.len),
            Some(long) => long.charge(self.op, self.len),
        }
    }

    /// Offset and length of what it touches on the device, all its steps together.
    pub(crate) fn span(&self) -> (u64, u64) {
        match self.long.as_deref() {
            None | Some(Long::Dormant(..)) => (self.offset, self.len),
            Some(Long::Plan { plan, .. }) => plan.span(),
            Some(Long::Job(working)) => working.job.span(),
            // Its copy knows.
            Some(Long::Copy { .. }) => (0, 0),
            // The front end knows nothing of what it touches, and nobody else uses the device.
            Some(Long::Pass(_)) => (0, 0),
        }
    }

    /// Whether it changes what it touches.
    pub(crate) fn changes(&self) -> bool {
        match self.long.as_deref() {
            None | Some(Long::Dormant(..)) => !matches!(self.op, Op::Read | Op::Flush),
            Some(Long::Plan { .. }) => self.op != Op::Flush,
            Some(Long::Job(working)) => working.job.changes(),
            // Its copy knows.
            Some(Long::Copy { .. } | Long::Pass(_)) => false,
        }
    }

    /// What its command is to others; `None`: there is none. (What it is by its task attribute, the task set knows.)
    pub(crate) fn class(&self) -> Option<Class> {
        match (self.phase, self.long.as_deref()) {
            (Phase::Free, _) => None,
            (Phase::Parked, Some(Long::Copy { .. })) => Some(Class::Simple),
            (Phase::Parked, _) => Some(Class::Saving),
            (_, Some(Long::Job(working))) if working.job.is_exclusive() => Some(Class::Atomic),
            _ => Some(Class::Simple),
        }
    }

    /// The residual if none of the command's data was moved.
    pub(crate) const fn residual_of_nothing(&self) -> u64 {
        // A plan's steps are not the guest's data.
        if self.long.is_none() { self.residual as u64 + self.len } else { self.residual as u64 }
    }

    /// Not inlined: dropping what few commands have costs those that have none a call otherwise.
    #[cold]
    #[inline(never)]
    fn end_long(&mut self) {
        self.long = None;
    }

    /// Whether it is one transfer that nobody wants to end.
    #[inline]
    pub(crate) const fn is_plain(&self) -> bool {
        self.long.is_none() && self.aborted.is_none()
    }
}

/// Whether a port waits for its kick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kicks {
    /// Looked at each turn, or (events) not of interest.
    Suppressed,
    /// Armed in the ring.
    Armed,
    /// Armed, and the ring was asked to give it back.
    Cancelled,
}

/// How a command ended, for the guest.
pub(crate) struct Answer<'a> {
    pub(crate) response: Response,
    pub(crate) status: u8,
    pub(crate) sense: &'a [u8],
    pub(crate) residual: u64,
    /// Bytes of data-in that were written behind the response.
    pub(crate) data_in: u64,
}

impl Answer<'_> {
    /// An answer without SCSI status: the command did not reach the unit.
    pub(crate) const fn response(response: Response, residual: u64) -> Answer<'static> {
        Answer { response, status: 0, sense: &[], residual, data_in: 0 }
    }
}

/// A LUN field and the LUN that it led to, as long as the tables have not changed since.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    pub(crate) field: [u8; 8],
    /// [`Luns::epoch`](crate::luns::Luns::epoch) then; 0 is before any.
    pub(crate) epoch: u64,
    pub(crate) lun: u32,
}

impl Route {
    const NONE: Route = Route { field: [0; 8], epoch: 0, lun: 0 };
}

/// A virtqueue that a worker serves.
pub(crate) struct Port {
    pub(crate) key: QueueKey,
    pub(crate) kind: Kind,
    pub(crate) controller: ControllerId,
    pub(crate) features: u64,
    pub(crate) queue: Queue,
    pub(crate) slots: Box<[Slot]>,
    pub(crate) inflight: u32,
    /// With more than so many in flight none that comes waits for space: half of a queue is for what gives space back. Large
    /// queues have no limit of their own, as a device keeps fewer waiting anyway.
    patient: u32,
    /// How many of its requests are in a unit's line, barred, wait for those of others to end, or are one dormant request too
    /// many. Nothing is taken from the ring while there is one.
    pub(crate) waiting: u32,
    /// How many are dormant and others wait for them.
    pub(crate) ranked: u32,
    /// Commands that task management took before their turn, in order: they come before what is in the ring.
    pub(crate) held: VecDeque<Held>,
    /// Something was put into the used ring since the last `publish`.
    pub(crate) dirty: bool,
    /// It is in the worker's list of ports to publish.
    pub(crate) touched: bool,
    /// It is in the worker's list of ports to look at.
    pub(crate) active: bool,
    pub(crate) stopping: Option<Reply<Option<Stopped>>>,
    /// It is to be given away when nothing of it is in flight.
    pub(crate) offered: Option<Reply<Option<Box<NewQueue>>>>,
    /// Nothing is taken for now: it is offered, or another queue of its session is.
    pub(crate) paused: bool,
    /// The ring is broken or the session is ending: nothing more is taken.
    pub(crate) broken: bool,
    /// Whether requests are left to gather.
    pub(crate) gather: Gather,
    /// Where its last command went.
    pub(crate) route: Route,
    /// How long to look in vain before asking for a kick: with nothing in flight, and with something.
    spin: [SpinBudget; 2],
    pub(crate) stats: Arc<QueueStats>,
    session: SessionHandle,
    failure: Arc<OnceLock<String>>,
    number: u32,
    kick: Arc<OwnedFd>,
    kicks: Kicks,
    /// A kick has come since the descriptor was last emptied.
    kicked: bool,
    /// Entries for kicks in flight: the poll, and the request to cancel it.
    kick_entries: u8,
    call: Option<Arc<OwnedFd>>,
    /// The signal in flight, with the descriptor it uses. At most one: a guest whose descriptor takes nothing has one
    /// entry waiting in the kernel, not one for each request.
    signal: Option<Arc<OwnedFd>>,
    /// Something was published since that signal was sent: another one has to follow it.
    signal_again: bool,
    /// The ring was asked to give the signal back.
    signal_cancelled: bool,
    /// Entries for signals in flight: the signal, and the request to cancel it.
    signal_entries: u8,
}

/// A queue with fewer slots may be filled by writes that wait for space.
const SMALL_QUEUE: usize = 64;
/// Marks the token of a cancel request, so that it is told from the poll it cancels.
const CANCEL: u32 = 1 << 20;
/// Marks the token of a signal, so that it is told from the poll of the kick descriptor.
const SIGNAL: u32 = 1 << 21;
/// Bits of a port's number in tokens and tags.
const PORT_BITS: u32 = 16;

impl Port {
    pub(crate) fn new(new: NewQueue, number: u32, spin_max_ns: Option<u64>) -> Port {
        let NewQueue { key, controller, features, mut queue, slots, kick, call, session, failure, stats } = new;
        let kind = Kind::of(key.index);
        queue.suppress_kicks();
        let spin_max = spin_max_ns.unwrap_or(0);
        let patient = if slots.len() < SMALL_QUEUE { slots.len() as u32 / 2 } else { u32::MAX };
        Port {
            key,
            kind,
            controller,
            features,
            queue,
            slots,
            inflight: 0,
            patient,
            waiting: 0,
            ranked: 0,
            held: VecDeque::new(),
            dirty: false,
            touched: false,
            active: false,
            stopping: None,
            offered: None,
            paused: false,
            broken: false,
            gather: Gather::default(),
            route: Route::NONE,
            spin: [SpinBudget::new(spin_max), SpinBudget::new(spin_max)],
            stats,
            session,
            failure,
            number,
            kick,
            kicks: Kicks::Suppressed,
            kicked: false,
            kick_entries: 0,
            call,
            signal: None,
            signal_again: false,
            signal_cancelled: false,
            signal_entries: 0,
        }
    }

    /// Whether requests may be taken from the ring now.
    pub(crate) fn takes(&self) -> bool {
        self.waiting == 0 && self.takes_more()
    }

    /// Whether anything may be taken from the ring any more.
    pub(crate) fn takes_more(&self) -> bool {
        !self.broken && !self.paused && self.stopping.is_none()
    }

    /// The tag of the request in a slot.
    #[inline(always)]
    pub(crate) fn tag(&self, head: u16) -> Tag {
        let turn = self.slots[usize::from(head)].turn;
        u64::from(turn) << 32 | u64::from(self.number) << 16 | u64::from(head)
    }

    /// Whether its requests may wait for space.
    #[inline(always)]
    pub(crate) const fn is_patient(&self) -> bool {
        self.inflight <= self.patient
    }

    /// The same for one that has no slot yet.
    #[inline(always)]
    pub(crate) const fn is_patient_with_one_more(&self) -> bool {
        self.inflight < self.patient
    }

    /// The slot that a descriptor head stands for, for a new request.
    #[inline(always)]
    pub(crate) fn claim(&mut self, head: u16) -> &mut Slot {
        let slot = &mut self.slots[usize::from(head)];
        assert_eq!(slot.phase, Phase::Free, "the ring hands out a head only when it is free");
        slot.turn = slot.turn.wrapping_add(1);
        slot.aborted = None;
        self.inflight += 1;
        slot
    }

    /// The slot's request has ended: the slot is free again.
    #[inline(always)]
    pub(crate) fn release(&mut self, head: u16) {
        let slot = &mut self.slots[usize::from(head)];
        assert_ne!(slot.phase, Phase::Free, "a request ends once");
        slot.phase = Phase::Free;
        if slot.long.is_some() {
            slot.end_long();
        }
        slot.pieces.clear();
        self.inflight -= 1;
    }

    /// The slot's request begins anew: the slot is free, and who claims it next for the same request has the same turn.
    pub(crate) fn reopen(&mut self, head: u16) {
        self.release(head);
        let slot = &mut self.slots[usize::from(head)];
        slot.turn = slot.turn.wrapping_sub(1);
    }

    /// Gives a chain back to the guest with `written` bytes in it.
    #[inline(always)]
    pub(crate) fn complete(&mut self, head: u16, written: u64) {
        self.queue.complete(head, u32::try_from(written).unwrap_or(u32::MAX));
        self.dirty = true;
    }

    /// Answers a command whose response goes to the start of `writable`.
    pub(crate) fn answer(&mut self, head: u16, writable: &[Segment], answer: &Answer<'_>) {
        write_response(writable, answer);
        self.complete(head, RESPONSE_LEN as u64 + answer.data_in);
    }

    /// Answers the command in a slot and frees the slot.
    #[inline(always)]
    pub(crate) fn answer_slot(&mut self, head: u16, answer: &Answer<'_>) {
        write_response(self.slots[usize::from(head)].pieces.response(), answer);
        self.release(head);
        self.complete(head, RESPONSE_LEN as u64 + answer.data_in);
    }

    /// The ring makes no sense: nothing more is taken from it and the session is shut down.
    #[cold]
    pub(crate) fn fail(&mut self, why: &dyn std::fmt::Display) {
        self.broken = true;
        self.stats.invalid.add(1);
        self.failure.get_or_init(|| format!("queue {}: {why}", self.key.index));
        self.session.shutdown();
    }

    /// Something was taken from the ring or put into it: the guest is likely to go on soon.
    #[inline]
    pub(crate) fn worked(&mut self, now: u64) {
        self.spin.iter_mut().for_each(|spin| spin.worked(now));
    }

    /// Nothing was there to take; returns whether it is time to wait for a kick. While requests are in flight the next
    /// thing to happen is most likely an answer, whose time has nothing to do with the guest's pauses.
    #[inline]
    pub(crate) fn looked_in_vain(&mut self, now: u64) -> bool {
        self.spin[usize::from(self.inflight > 0)].in_vain(now)
    }

    /// Has listings and metrics see how many requests are in flight: once when some were taken, once when some have ended.
    #[inline]
    pub(crate) fn show_inflight(&self) {
        self.stats.inflight.set(u64::from(self.inflight));
    }

    /// Stores the used index and interrupts the guest if it wants that.
    pub(crate) fn publish(&mut self, client: ClientId, cx: &mut Cx<'_>) {
        self.show_inflight();
        if !std::mem::take(&mut self.dirty) || self.broken {
            return;
        }
        self.worked(cx.now);
        if self.queue.publish() && self.call.is_some() {
            self.stats.interrupts_sent.add(1);
            self.signal(client, cx);
        } else {
            self.stats.interrupts_suppressed.add(1);
        }
    }

    pub(crate) fn signal(&mut self, client: ClientId, cx: &mut Cx<'_>) {
        let Some(call) = &self.call else { return };
        if self.signal.is_some() {
            self.signal_again = true;
            return;
        }
        let op = RingOp::Signal { fd: call.as_raw_fd() };
        self.signal = Some(call.clone());
        self.signal_entries += 1;
        cx.ring.push(Entry { client, token: Token { index: self.number | SIGNAL, generation: 0 }, op });
    }

    /// The entry of a signal has completed.
    pub(crate) fn signal_entry_done(&mut self, token: Token, client: ClientId, cx: &mut Cx<'_>) {
        self.signal_entries -= 1;
        if token.index & CANCEL != 0 {
            return;
        }
        self.signal = None;
        if std::mem::take(&mut self.signal_again) && self.stopping.is_none() {
            self.signal(client, cx);
        }
    }

    /// Replaces the call descriptor.
    pub(crate) fn set_call(&mut self, call: Option<Arc<OwnedFd>>) {
        // The session signals the new one itself; a signal in flight keeps the old one open.
        self.call = call;
    }

    /// Asks the guest for kicks and arms the descriptor. Returns false if there is work after all.
    ///
    /// Kicks of the past are taken out of the descriptor here and not when they come: then a request waits for it. What
    /// they were for is seen by the look at the ring that follows.
    pub(crate) fn arm(&mut self, client: ClientId, cx: &mut Cx<'_>) -> bool {
        assert_eq!(self.kicks, Kicks::Suppressed, "a port is armed once");
        if std::mem::take(&mut self.kicked) {
            drain(&self.kick);
        }
        if self.queue.request_kicks() {
            self.queue.suppress_kicks();
            return false;
        }
        self.kicks = Kicks::Armed;
        self.kick_entries += 1;
        let op = RingOp::PollReadable { fd: self.kick.as_raw_fd() };
        cx.ring.push(Entry { client, token: Token { index: self.number, generation: 0 }, op });
        true
    }

    /// The entry of a poll for kicks has completed. Returns whether the port is to be looked at.
    pub(crate) fn kick_entry_done(&mut self, token: Token) -> bool {
        self.kick_entries -= 1;
        if token.index & CANCEL != 0 {
            return false;
        }
        self.kicks = Kicks::Suppressed;
        self.kicked = true;
        self.stats.kicks.add(1);
        self.queue.suppress_kicks();
        true
    }

    /// Whether it waits for a kick.
    pub(crate) fn is_armed(&self) -> bool {
        self.kicks != Kicks::Suppressed
    }

    /// Goes on ending; returns whether it has ended, so that the ring can be handed out.
    pub(crate) fn ended(&mut self, client: ClientId, cx: &mut Cx<'_>) -> bool {
        self.is_idle(client, true, cx)
    }

    /// Goes on coming to rest; returns whether it has, so that it can be given away. A signal is not taken back: the
    /// queue may stay after all, and the guest waits for it.
    pub(crate) fn at_rest(&mut self, client: ClientId, cx: &mut Cx<'_>) -> bool {
        self.is_idle(client, false, cx)
    }

    fn is_idle(&mut self, client: ClientId, ends: bool, cx: &mut Cx<'_>) -> bool {
        if self.inflight > 0 || self.dirty || !(self.held.is_empty() || self.broken) {
            return false;
        }
        let mut cancel = |entry: u32| {
            let [target, token] = [entry, entry | CANCEL].map(|index| Token { index, generation: 0 });
            cx.ring.push(Entry { client, token, op: RingOp::Cancel { target } });
        };
        if self.kicks == Kicks::Armed {
            self.kicks = Kicks::Cancelled;
            self.kick_entries += 1;
            cancel(self.number);
        }
        if ends && self.signal.is_some() && !self.signal_cancelled {
            // A signal that is under way is done before the request to cancel it is looked at; one that is not waits
            // for a descriptor that takes nothing.
            self.signal_cancelled = true;
            self.signal_entries += 1;
            cancel(self.number | SIGNAL);
        }
        self.kick_entries == 0 && self.signal_entries == 0
    }

    /// The queue, to be served elsewhere.
    pub(crate) fn give(self) -> Box<NewQueue> {
        let Port { key, controller, features, queue, slots, kick, call, session, failure, stats, .. } = self;
        Box::new(NewQueue { key, controller, features, queue, slots, kick, call, session, failure, stats })
    }

    /// Its number on its worker.
    pub(crate) const fn number(&self) -> usize {
        self.number as usize
    }

    /// The port that a token names.
    pub(crate) const fn number_of(token: Token) -> usize {
        (token.index & !(CANCEL | SIGNAL)) as usize
    }

    /// Whether a token is that of a signal.
    pub(crate) const fn is_signal(token: Token) -> bool {
        token.index & SIGNAL != 0
    }
}

/// Where a tag leads: the port's number, the head and the slot's turn.
#[inline]
pub(crate) const fn parse_tag(tag: Tag) -> (usize, u16, u16) {
    ((tag >> 16) as usize & ((1 << PORT_BITS) - 1), tag as u16, (tag >> 32) as u16)
}

#[inline(always)]
fn write_response(segments: &[Segment], answer: &Answer<'_>) {
    let residual = u32::try_from(answer.residual).unwrap_or(u32::MAX);
    let header = response_header(answer.response, answer.status, answer.sense.len() as u32, residual);
    segment::array_to(segments, &header);
    if !answer.sense.is_empty() {
        segment::copy_to(segments, header.len(), answer.sense);
    }
}

/// Takes the count out of a kick descriptor without ever waiting for it: the VMM may have emptied it, or have made it
/// blocking, a moment ago.
fn drain(kick: &OwnedFd) {
    let mut count = [0; 8];
    let mut buffers = [std::io::IoSliceMut::new(&mut count)];
    let _ = rustix::io::preadv2(kick.as_fd(), &mut buffers, u64::MAX, rustix::io::ReadWriteFlags::NOWAIT);
}
