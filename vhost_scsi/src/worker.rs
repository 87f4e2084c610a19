//! What a reactor runs for virtio-scsi: its ports, units and LUNs, and the pass over them.
//!
//! One pass: kicks that came; each active port, at most [`BATCH`] requests of it; the residents; the devices that have
//! something in flight (a resident may just have done it); the used rings, with one signal for each. What drains (stopping
//! queues, leaving LUNs, ending channels) is looked at only while there is such a thing.

use std::collections::{HashMap, VecDeque};

use pollux_core::{ClientId, Completion, Cx, Done, IoError, Next, Worker};
use pollux_vhost_user::{Chain, SegmentBuf};

use crate::abort::{Ending, is_in_scope};
use crate::background::Background;
use crate::barred::{AllBarred, Due};
use crate::control::{MOST_FUNCTIONS, Pending};
use crate::copies::Copying;
use crate::copy_waits::CopyWaits;
use crate::errands::{Errands, HelpersHandle};
use crate::events::Waiting;
use crate::fence::Fence;
use crate::luns::{Lun, Luns};
use crate::message::{Body, Message, NewQueue, QueueKey, Reply, Scope, Stopped};
use crate::order::{AllBegun, Dormants};
use crate::own::Pool;
use crate::parked::{Home, Preempting};
use crate::port::{Kind, Port};
use crate::request::Response;
use crate::residents::Residents;
use crate::units::{Ending as ChannelEnding, Units};
use crate::wipes::{Waiter, Wiping};

/// Requests taken from one port in a pass, so that no guest can keep the others waiting.
pub(crate) const BATCH: u32 = 32;
/// Bytes for which a request counts as one more of those: 128 KiB.
const BATCH_SHIFT: u32 = 17;
/// Task management functions taken from one port in a pass: each may look at every command in flight.
const CONTROL_BATCH: u32 = 2;
/// Own memory for what commands are given: more than any parameter list.
const PARAMETERS: usize = 64 << 10;
/// Queues on one reactor. Each has at most two kick entries and two signal entries in the ring.
const MOST_PORTS: usize = 4096;
const ENTRIES: usize = 4 * MOST_PORTS;

/// How a worker behaves.
#[derive(Clone, Copy, Debug)]
pub struct WorkerConfig {
    /// How long a queue without work is looked at, at most, before it waits for a kick; `None`: for ever.
    pub spin_max_ns: Option<u64>,
    /// Queues that it serves at most; the reactor's ring has entries for 4096.
    pub queues_max: usize,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        WorkerConfig { spin_max_ns: Some(100_000), queues_max: MOST_PORTS }
    }
}

/// The virtio-scsi work of one reactor.
pub struct ScsiWorker {
    config: WorkerConfig,
    pub(crate) worker: usize,
    pub(crate) workers: usize,
    ports: Vec<Option<Box<Port>>>,
    /// Numbers of the ports that are looked at.
    active: Vec<usize>,
    /// Numbers of the ports whose used ring may have something new.
    touched: Vec<usize>,
    /// Queues that are about to come from elsewhere, whose places are kept free.
    expected: Vec<QueueKey>,
    pub(crate) luns: Luns,
    pub(crate) units: Units,
    residents: Residents,
    pub(crate) background: Vec<Option<Background>>,
    pub(crate) background_free: Vec<usize>,
    /// Copies from unit to unit.
    pub(crate) copies: Vec<Option<Copying>>,
    pub(crate) copies_begun: u64,
    pub(crate) copy_waits: CopyWaits,
    /// Formats and sanitizes that this worker does, and who waits for one.
    pub(crate) wipes: Vec<Wiping>,
    pub(crate) wipe_waiters: Vec<Waiter>,
    /// By session.
    pub(crate) events: HashMap<u64, Waiting>,
    pub(crate) pending: Vec<Pending>,
    /// Commands that would ask all workers, in the order in which they came.
    pub(crate) preempting: VecDeque<Preempting>,
    pub(crate) ending: Vec<Ending>,
    pub(crate) next_abort: u64,
    /// Memory for commands that look at data, and how many of them and of copies wait for some.
    pub(crate) pool: Pool,
    pub(crate) memory_waiters: usize,
    /// Counts whatever comes to wait, so that commands and copies get memory in one order.
    pub(crate) arrivals: u64,
    /// Commands that wait before they touch the device.
    pub(crate) barred: AllBarred,
    /// Commands that wait for their turn.
    pub(crate) dormants: Dormants,
    /// Which of those who wait are to be looked at.
    pub(crate) due: Due,
    /// How often a command or copy that waits was looked at.
    pub(crate) looks: u64,
    /// Queues that had requests in flight when they were offered to another reactor.
    offered_at_work: u64,
    /// Commands that have begun and that others wait for.
    pub(crate) begun: AllBegun,
    /// Who wants to know when what is under way has ended.
    pub(crate) fences: Vec<Fence>,
    pub(crate) outbox: VecDeque<(usize, Message)>,
    pub(crate) home: Option<Home>,
    pub(crate) helpers: Option<HelpersHandle>,
    /// Commands that helper threads do something for.
    pub(crate) errands: Errands,
    /// Something drains: look at it in each pass that did something.
    pub(crate) draining: bool,
    /// Some of what waits, or is waited for, has not been looked at in the last pass.
    unlooked: bool,
    /// A message came since the last pass.
    told: bool,
    /// The last pass ended with an answer that others may wait for: make another before sleeping.
    again: bool,
    /// Kicks and signals of all ports are one client of the ring: one list to look at in each pass.
    client: Option<ClientId>,
    pub(crate) segments: Box<SegmentBuf>,
    pub(crate) scratch: Box<[u8]>,
    pub(crate) parameters: Box<[u8]>,
    pub(crate) completions: Vec<Completion>,
    entries: Vec<Done>,
}

impl ScsiWorker {
    /// The worker of reactor `worker`, one of `workers`.
    #[must_use]
    pub fn new(worker: usize, workers: usize, config: WorkerConfig) -> ScsiWorker {
        ScsiWorker {
            config,
            worker,
            workers,
            ports: Vec::new(),
            active: Vec::new(),
            touched: Vec::new(),
            expected: Vec::new(),
            luns: Luns::default(),
            units: Units::default(),
            residents: Residents::default(),
            background: Vec::new(),
            background_free: Vec::new(),
            copies: Vec::new(),
            copies_begun: 0,
            copy_waits: CopyWaits::default(),
            wipes: Vec::new(),
            wipe_waiters: Vec::new(),
            events: HashMap::new(),
            pending: Vec::new(),
            preempting: VecDeque::new(),
            ending: Vec::new(),
            next_abort: 0,
            pool: Pool::default(),
            memory_waiters: 0,
            arrivals: 0,
            barred: AllBarred::default(),
            dormants: Dormants::default(),
            due: Due::default(),
            looks: 0,
            offered_at_work: 0,
            begun: AllBegun::default(),
            fences: Vec::new(),
            outbox: VecDeque::new(),
            home: None,
            helpers: None,
            errands: Errands::default(),
            draining: false,
            unlooked: false,
            told: false,
            again: false,
            client: None,
            segments: Box::new(SegmentBuf::new()),
            scratch: vec![0; pollux_scsi::SCRATCH_LEN].into(),
            parameters: vec![0; PARAMETERS].into(),
            completions: Vec::with_capacity(1024),
            entries: Vec::with_capacity(ENTRIES),
        }
    }

    /// How often, so far, a command or copy that waits was looked at, whether it can go on.
    #[must_use]
    pub const fn looks(&self) -> u64 {
        self.looks
    }

    /// How many queues, so far, were offered to another reactor while requests of theirs were in flight: those were
    /// waited for.
    #[must_use]
    pub const fn offered_at_work(&self) -> u64 {
        self.offered_at_work
    }

    /// The ports with their numbers.
    pub(crate) fn ports(&self) -> impl Iterator<Item = (usize, &Port)> {
        self.ports.iter().enumerate().filter_map(|(number, port)| port.as_deref().map(|port| (number, port)))
    }

    /// How many numbers ports may have.
    pub(crate) fn places(&self) -> usize {
        self.ports.len()
    }

    pub(crate) fn port(&self, number: usize) -> Option<&Port> {
        self.ports.get(number)?.as_deref()
    }

    /// Takes a port out of the table to work on it beside the rest of the worker.
    #[inline]
    pub(crate) fn take_port(&mut self, number: usize) -> Option<Box<Port>> {
        self.ports.get_mut(number)?.take()
    }

    /// Puts it back, and remembers it if its used ring has something new.
    #[inline]
    pub(crate) fn put_port(&mut self, number: usize, mut port: Box<Port>) {
        if port.dirty && !port.touched {
            port.touched = true;
            self.touched.push(number);
        }
        self.ports[number] = Some(port);
    }

    /// Has the port looked at from now on, unless it waits for its kick and holds nothing that no kick will tell of.
    pub(crate) fn activate(&mut self, number: usize) {
        if let Some(port) = self.ports.get_mut(number).and_then(Option::as_mut)
            && !port.active
            && (!port.is_armed() || !port.held.is_empty())
        {
            port.active = true;
            self.active.push(number);
        }
    }

    pub(crate) fn find(&self, key: QueueKey) -> Option<usize> {
        self.ports().find(|(_, port)| port.key == key).map(|(number, _)| number)
    }

    fn start_queue(&mut self, new: NewQueue, cx: &mut Cx<'_>) {
        self.expected.retain(|key| *key != new.key);
        let number = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        let Some(client) = self.register(cx).filter(|_| self.has_room()) else {
            new.failure.get_or_init(|| "the reactor has no room for another queue".into());
            new.session.shutdown();
            return;
        };
        let mut port = Box::new(Port::new(new, number as u32, self.config.spin_max_ns));
        // Whoever still waits for an interrupt of the queue's earlier life gets one.
        port.signal(client, cx);
        if port.kind == Kind::Events {
            let waiting = |port: &Port| Waiting::new(port.controller, port.features);
            // Kept over a restart of the queue, but not for another driver, which took other features.
            let kept = self.events.entry(port.key.session).or_insert_with(|| waiting(&port));
            if kept.features() != port.features {
                *kept = waiting(&port);
            }
        }
        if number == self.ports.len() {
            self.ports.push(None);
        }
        self.put_port(number, port);
        self.activate(number);
    }

    fn has_room(&self) -> bool {
        self.ports().count() + self.expected.len() < self.config.queues_max.min(MOST_PORTS)
    }

    fn keep_room(&mut self, key: QueueKey, cx: &mut Cx<'_>) -> bool {
        let kept = self.register(cx).is_some() && self.has_room();
        if kept {
            self.expected.push(key);
        }
        kept
    }

    /// Registers with the ring, once; `None` if that has no room.
    fn register(&mut self, cx: &mut Cx<'_>) -> Option<ClientId> {
        if self.client.is_none() {
            self.client = cx.ring.add_client(ENTRIES as u32).ok();
        }
        self.client
    }

    fn stop_queue(&mut self, key: QueueKey, reply: Reply<Option<Stopped>>) {
        let Some(number) = self.find(key) else {
            reply.send(None);
            return;
        };
        if let Some(port) = &mut self.ports[number] {
            port.stopping = Some(reply);
            if let Some(offer) = port.offered.take() {
                offer.send(None);
            }
            self.draining = true;
        }
    }

    fn offer_queue(&mut self, key: QueueKey, reply: Reply<Option<Box<NewQueue>>>) {
        let found = self.find(key).and_then(|number| self.ports[number].as_mut());
        match found.filter(|port| port.stopping.is_none() && port.offered.is_none() && !port.broken) {
            Some(port) => {
                self.offered_at_work += u64::from(port.inflight > 0);
                (port.offered, port.paused) = (Some(reply), true);
            }
            None => reply.send(None),
        }
    }

    fn withdraw_offer(&mut self, key: QueueKey) {
        let Some(number) = self.find(key) else { return };
        if let Some(reply) = self.ports[number].as_mut().and_then(|port| port.offered.take()) {
            reply.send(None);
            self.resume(number);
        }
    }

    fn hold_control(&mut self, key: QueueKey) -> bool {
        let Some(port) = self.find(key).and_then(|number| self.ports[number].as_mut()) else { return true };
        // Each function in progress has a slot.
        port.paused = port.inflight == 0;
        port.paused
    }

    fn resume(&mut self, number: usize) {
        if let Some(port) = &mut self.ports[number] {
            port.paused = false;
        }
        self.activate(number);
    }

    /// Takes what this worker has told itself; returns how much that was.
    fn take_own(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut count = 0;
        for _ in 0..self.outbox.len() {
            let Some((to, message)) = self.outbox.pop_front() else { break };
            if to == self.worker {
                self.message(message, cx);
                count += 1;
            } else {
                self.outbox.push_back((to, message));
            }
        }
        count
    }

    fn poll_kicks(&mut self, cx: &mut Cx<'_>) -> u32 {
        let Some(client) = self.client else { return 0 };
        cx.ring.reap(client, &mut self.entries);
        if self.entries.is_empty() { 0 } else { self.take_entries(client, cx) }
    }

    #[cold]
    fn take_entries(&mut self, client: ClientId, cx: &mut Cx<'_>) -> u32 {
        let mut entries = std::mem::take(&mut self.entries);
        let count = entries.len() as u32;
        for done in entries.drain(..) {
            let number = Port::number_of(done.token);
            let Some(port) = self.ports.get_mut(number).and_then(Option::as_mut) else { continue };
            if Port::is_signal(done.token) {
                port.signal_entry_done(done.token, client, cx);
            } else if port.kick_entry_done(done.token) {
                self.activate(number);
            }
        }
        self.entries = entries;
        count
    }

    fn poll_ports(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut count = 0;
        let mut at = 0;
        while at < self.active.len() {
            let number = self.active[at];
            let Some(mut port) = self.take_port(number) else {
                self.active.swap_remove(at);
                continue;
            };
            if port.gather.holds(cx.now) {
                self.ports[number] = Some(port);
                at += 1;
                continue;
            }
            let taken = match port.kind {
                Kind::Requests => self.take_requests(&mut port, BATCH, cx),
                Kind::Control | Kind::Events => self.take_others(&mut port, number),
            };
            count += taken;
            if taken > 0 {
                port.worked(cx.now);
                port.gather.took(cx.now, taken);
                port.show_inflight();
            }
            if self.rests(&mut port, taken, cx) {
                port.active = false;
                self.active.swap_remove(at);
            } else {
                at += 1;
            }
            self.put_port(number, port);
        }
        count
    }

    /// Whether the port leaves the active ones: it waits for a kick, for room, or for nothing any more.
    fn rests(&self, port: &mut Port, taken: u32, cx: &mut Cx<'_>) -> bool {
        if !port.takes() {
            return port.held.is_empty() || port.waiting > 0 || port.broken;
        }
        let Some(client) = self.client else { return true };
        if port.kind != Kind::Requests && !self.wants_more(port) {
            return true;
        }
        taken == 0
            && self.config.spin_max_ns.is_some()
            && port.held.is_empty()
            && port.looked_in_vain(cx.now)
            && (port.is_armed() || port.arm(client, cx))
    }

    /// Whether a control or event queue has a use for another request.
    fn wants_more(&self, port: &Port) -> bool {
        match port.kind {
            Kind::Requests => true,
            Kind::Control => port.inflight < MOST_FUNCTIONS,
            Kind::Events => self.has_event(port),
        }
    }

    /// Takes at most `most` requests of a request queue, fewer large ones; returns how many.
    #[inline(never)]
    pub(crate) fn take_requests(&mut self, port: &mut Port, most: u32, cx: &mut Cx<'_>) -> u32 {
        let served = if port.held.is_empty() { 0 } else { self.serve_held(port, most, cx) };
        if !port.held.is_empty() {
            return served;
        }
        let first = port.queue.next_avail();
        let (mut left, mut bytes) = (most - served, 0);
        while left > 0 && port.takes() {
            let Some(chain) = self.pop(port) else { break };
            self.command(port, &chain, cx);
            let of_chain = chain.readable_bytes + chain.writable_bytes;
            bytes += of_chain;
            left = left.saturating_sub(1 + (of_chain >> BATCH_SHIFT) as u32);
        }
        let taken = u32::from(port.queue.next_avail().wrapping_sub(first));
        if taken > 0 {
            port.stats.requests.add(u64::from(taken));
            port.stats.bytes.add(bytes);
        }
        served + taken
    }

    /// Takes what a control or event queue has a use for now; returns how many requests that were.
    fn take_others(&mut self, port: &mut Port, number: usize) -> u32 {
        let batch = if port.kind == Kind::Control { CONTROL_BATCH } else { BATCH };
        let mut taken = 0;
        while taken < batch && port.takes() && self.wants_more(port) {
            let Some(chain) = self.pop(port) else { break };
            taken += 1;
            if port.kind == Kind::Control {
                self.control(port, number, &chain);
            } else {
                self.send_event(port, &chain);
            }
        }
        taken
    }

    #[inline(always)]
    pub(crate) fn pop(&mut self, port: &mut Port) -> Option<Chain> {
        match port.queue.pop(&mut self.segments) {
            Ok(chain) => chain,
            // A chain that cannot be walked has nowhere to put an answer: a driver that makes one is not to be trusted
            // with the next either.
            Err(why) => {
                port.fail(&why);
                None
            }
        }
    }

    // Twice in a pass, and nothing to do in most: not worth a call.
    #[inline(always)]
    fn publish(&mut self, cx: &mut Cx<'_>) {
        let Some(client) = self.client else { return };
        for number in self.touched.drain(..) {
            if let Some(port) = &mut self.ports[number] {
                port.touched = false;
                port.publish(client, cx);
            }
        }
    }

    fn drain(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut count = self.take_own(cx);
        self.advance_endings(cx);
        self.unlooked = self.advance_fences();
        self.unlooked |= self.collect_begun();
        count += self.take_own(cx);
        self.unlooked |= self.look_at_due(cx);
        let luns = self.luns.collect_removed();
        let units = self.units.collect_ended(cx);
        let ports = self.collect_stopped(cx);
        let waiting = self.unlooked || !self.begun.is_empty() || !self.ending.is_empty() || !self.fences.is_empty();
        self.draining = waiting || luns || units || ports;
        count
    }

    /// Hands out what has stopped, and gives away what is offered. Returns whether something still drains.
    fn collect_stopped(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(client) = self.client else { return false };
        let (mut draining, mut left) = (false, Vec::new());
        for number in 0..self.ports.len() {
            let Some(port) = self.ports[number].as_mut() else { continue };
            if port.broken
                && let Some(offer) = port.offered.take()
            {
                // It is not served any more, here or elsewhere: its session is ending.
                offer.send(None);
            }
            let gone = match (&port.stopping, &port.offered) {
                (Some(_), _) => port.ended(client, cx),
                (None, Some(_)) => port.at_rest(client, cx),
                (None, None) => continue,
            };
            if !gone {
                draining = true;
                continue;
            }
            let Some(mut port) = self.ports[number].take() else { continue };
            self.active.retain(|&active| active != number);
            left.push(number);
            if let Some(offer) = port.offered.take() {
                offer.send(Some(port.give()));
                continue;
            }
            let Port { stopping, queue, slots, .. } = *port;
            if let Some(reply) = stopping {
                reply.send(Some(Stopped { next_avail: queue.next_avail(), queue, slots }));
            }
        }
        self.forget_ports(&left);
        draining
    }
}

impl Worker for ScsiWorker {
    type Message = Message;

    fn message(&mut self, message: Message, cx: &mut Cx<'_>) {
        match message.0 {
            Body::OpenUnit { unit, logical, channel, stats, home, helpers, reply } => {
                (self.home, self.helpers) = (Some(home), Some(helpers));
                let opened = self.units.open(unit, logical, channel, stats, cx);
                let open = opened.is_ok();
                reply.send(opened);
                if open {
                    self.adopt_wipe(unit);
                }
            }
            Body::ReplaceChannel { unit, channel, reply } => {
                self.leave_wipe(unit, cx);
                self.units.end(unit, ChannelEnding::Replace(channel, reply), cx);
            }
            Body::CloseUnit { reply, unit } if self.luns.lead_to(unit) => {
                reply.send(Err(IoError::Busy));
            }
            Body::CloseUnit { unit, reply } => {
                self.leave_wipe(unit, cx);
                self.units.end(unit, ChannelEnding::Close(reply), cx);
            }
            Body::AddLun { controller, target, lun, unit, path, stats, reply } => {
                let lun = Lun { controller, target, lun, unit, path, stats, inflight: 0, removing: Vec::new() };
                reply.send(self.units.is_open(unit) && self.luns.add(lun));
            }
            Body::RemoveLun { controller, target, lun, reply } => self.luns.remove(controller, target, lun, reply),
            Body::CancelLun { controller, target, lun } => {
                let scope = Scope::Leaving { controller, target, lun };
                let of = move |worker: &Self, index| is_in_scope(scope, 0, worker.luns.get(index), 0);
                self.abort(None, scope, Some(Response::Aborted));
                self.cancel_background(of, cx);
                self.end_copies(of, cx);
            }
            Body::CancelUnit { unit } => {
                let scope = Scope::Device { unit };
                let of = move |worker: &Self, index| is_in_scope(scope, 0, worker.luns.get(index), 0);
                self.abort(None, scope, Some(Response::Aborted));
                self.cancel_background(of, cx);
                self.end_copies(of, cx);
                self.leave_wipe(unit, cx);
            }
            Body::ForgetSession { controller, session } => {
                self.events.remove(&session);
                self.nexus_lost(controller);
            }
            Body::StartQueue { queue, reply } => {
                self.start_queue(*queue, cx);
                reply.send(());
            }
            Body::KeepRoom { key, reply } => reply.send(self.keep_room(key, cx)),
            Body::FreeRoom { key } => self.expected.retain(|expected| *expected != key),
            Body::SetCall { key, call, reply } => {
                if let Some(number) = self.find(key)
                    && let Some(mut port) = self.take_port(number)
                {
                    port.set_call(call);
                    self.put_port(number, port);
                }
                reply.send(());
            }
            Body::StopQueue { key, reply } => self.stop_queue(key, reply),
            Body::OfferQueue { key, reply } => self.offer_queue(key, reply),
            Body::WithdrawOffer { key } => self.withdraw_offer(key),
            Body::HoldControl { key, reply } => reply.send(self.hold_control(key)),
            Body::ReleaseControl { key } => {
                if let Some(number) = self.find(key) {
                    self.resume(number);
                }
            }
            Body::CancelQueue { key } => self.abort(None, Scope::Queue { key }, Some(Response::Aborted)),
            Body::Event { controller, event } => self.event(controller, event),
            Body::Abort { id, scope, how } => self.abort(Some(id), scope, how),
            Body::AbortDone { id, count } => self.abort_done(id, count),
            Body::ResetDevice { unit, id } => self.reset_device(unit, id, cx),
            Body::Fence { unit, mark, from } => self.fence(unit, mark, from),
            Body::Fenced { unit, mark } => self.fenced(unit, mark, cx),
            Body::Unfence { unit, mark } => self.unfence(unit, mark),
            Body::Look { unit } => self.note_look(unit),
            Body::AdoptWipe { unit } => {
                if self.units.is_open(unit) {
                    self.adopt_wipe(unit);
                }
            }
            Body::WipeEnded { unit, number, outcome } => self.answer_wipe_waiters(unit, number, &outcome),
            Body::Saved { tag, saved } => self.saved(tag, saved),
            Body::CopiedTogether { copy, bytes, result } => self.copied_together(copy, (bytes, result), cx),
            Body::Host { id, resident, reply } => self.residents.host(id, resident, reply, cx),
            Body::Evict { id, reply } => self.residents.evict(id, reply),
            Body::ErrandDone { id, tag, session, data } => self.errand_done(id, tag, session, data),
        }
        self.draining = true;
        self.told = true;
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut count = self.poll_kicks(cx);
        count += self.poll_ports(cx);
        count += self.residents.poll(cx);
        count += self.poll_units(cx);
        self.publish(cx);
        let changed = count > 0 || std::mem::take(&mut self.told) || std::mem::take(&mut self.again);
        if (self.draining && changed) || !self.outbox.is_empty() {
            count += self.drain(cx);
            let looking = self.looks_around() || self.unlooked;
            count += u32::from(looking);
            self.again = looking || !self.touched.is_empty();
            self.publish(cx);
        }
        count
    }

    fn next(&self) -> Next {
        if self.again || !self.active.is_empty() || !self.touched.is_empty() || !self.outbox.is_empty() {
            return Next::Now;
        }
        // What drains waits for the ring or for a device; both say so themselves.
        self.units.next().or(self.residents.next())
    }

    fn outgoing(&mut self, send: &mut dyn FnMut(usize, Message) -> Result<(), Message>) {
        for _ in 0..self.outbox.len() {
            let Some((to, message)) = self.outbox.pop_front() else { break };
            if to == self.worker {
                self.outbox.push_back((to, message));
            } else if let Err(message) = send(to, message) {
                self.outbox.push_front((to, message));
                break;
            }
        }
    }
}
