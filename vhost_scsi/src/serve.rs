//! A command's way through the worker: taken from its ring, given to its logical unit, submitted, answered.
//!
//! A command that needs no device is answered on the spot. One that does keeps its slot until the device has answered
//! each of its steps. What task management has marked is answered as aborted, but not before the device has let go.

use pollux_core::{Completion, Cx, Io, IoError, IoFlags, Op, Segment, SegmentList, segment};
use pollux_scsi::{Action, Cdb, LogicalUnit, Outcome, Plan, Rank, Sense, Status, io_outcome};
use pollux_vhost_user::{Chain, SegmentBuf};

use crate::background::{BACKGROUND, parts, pattern_of};
use crate::line::{Charge, Source};
use crate::lun::Address;
use crate::message::UnitId;
use crate::port::{Answer, Long, Phase, Port, Route, Slot, parse_tag};
use crate::request::{COMMAND_LEN, Command, RESPONSE_LEN, Response, SENSE_LEN};
use crate::worker::{BATCH, ScsiWorker};

/// A driver that polls is shown what is done in pieces of this size, so that it can go on while we do the rest.
const SHOWN_AT_ONCE: u16 = 8;

/// What is known of a command when its unit decides about it.
pub(crate) struct Given {
    pub(crate) head: u16,
    pub(crate) lun: u32,
    pub(crate) name: u64,
    pub(crate) data_out: u64,
    pub(crate) data_in: u64,
    /// Bytes of parameter data that the command has used.
    pub(crate) used: u64,
    /// Segments of the chain that are readable.
    pub(crate) readable: usize,
}

impl Given {
    /// Of a command whose chain lies in the worker's segments; the chain holds its header and its response.
    pub(crate) fn new(chain: &Chain, lun: u32, command: &Command) -> Given {
        Given {
            head: chain.head,
            lun,
            name: command.tag(),
            data_out: chain.readable_bytes - COMMAND_LEN as u64,
            data_in: chain.writable_bytes - RESPONSE_LEN as u64,
            used: 0,
            readable: chain.readable,
        }
    }

    pub(crate) const fn residual(&self, used: u64) -> u64 {
        (self.data_in + self.data_out).saturating_sub(used)
    }
}

impl ScsiWorker {
    /// Takes one command whose chain lies in `self.segments`.
    #[inline(always)]
    pub(crate) fn command(&mut self, port: &mut Port, chain: &Chain, cx: &mut Cx<'_>) {
        if let Some(command) = self.header(port, chain)
            && !self.plain(port, chain, &command, cx)
        {
            self.any_command(port, chain, &command, cx);
        }
    }

    /// Reads a command's header, once; `None` if there is nothing to be done any more.
    #[inline(always)]
    pub(crate) fn header(&self, port: &mut Port, chain: &Chain) -> Option<Command> {
        let (readable, writable) = self.segments.as_slice().split_at(chain.readable);
        if chain.writable_bytes < RESPONSE_LEN as u64 {
            port.fail(&"a command without room for its response");
            return None;
        }
        let Some(header) = segment::array_from::<COMMAND_LEN>(readable) else {
            port.stats.invalid.add(1);
            port.answer(chain.head, writable, &Answer::response(Response::Failure, 0));
            return None;
        };
        Some(Command::new(header))
    }

    /// Takes any command; what [`ScsiWorker::plain`] does not take comes here. `header` has seen that the chain holds
    /// it and its response.
    #[inline(never)]
    pub(crate) fn any_command(&mut self, port: &mut Port, chain: &Chain, command: &Command, cx: &mut Cx<'_>) {
        let mut given = Given::new(chain, 0, command);
        if self.refuses_both_ways(port, &given) {
            return;
        }
        let address = Address::decode(command.lun());
        let Some(target) = address.target().and_then(|target| self.luns.target(port.controller, target)) else {
            port.answer(
                chain.head,
                writable_of(&self.segments, chain.readable),
                &Answer::response(Response::BadTarget, given.residual(0)),
            );
            return;
        };
        let cdb = Cdb::new(*command.cdb());
        let found = if let Address::Unit { lun, .. } = address { target.get(lun) } else { None };
        let Some(lun) = found else {
            let nexus = self.luns.get(target.first()).path.nexus();
            let action = match address {
                Address::WellKnown { .. } => pollux_scsi::execute_well_known(&cdb, nexus, target, &mut self.scratch),
                _ => pollux_scsi::execute_absent(&cdb, nexus, target, &mut self.scratch),
            };
            let Action::Done(outcome) = action else { unreachable!("a unit that is not there starts nothing") };
            self.answer_done(port, &given, &outcome, &Encoded::fixed(outcome.sense.as_ref()));
            return;
        };
        given.lun = lun;
        port.route = Route { field: command.lun(), epoch: self.luns.epoch(), lun };
        let Some(attribute) = command.attribute() else {
            self.answer_outcome(port, &given, &Outcome::check(Sense::INVALID_MESSAGE));
            return;
        };
        let logical = &self.units.look(self.luns.get(lun).unit).logical;
        if logical.is_claimed() {
            logical.pass_time(cx.now);
        }
        let rank = Rank::new(attribute, &cdb);
        if rank.is_known() || logical.is_ordering() {
            self.enter_task_set(port, given, command, rank, cx);
        } else {
            self.perform(port, given, &cdb, cx);
        }
    }

    /// A request is read from or written to, not both.
    pub(crate) fn refuses_both_ways(&self, port: &mut Port, given: &Given) -> bool {
        let refused = given.data_out > 0 && given.data_in > 0;
        if refused {
            port.stats.invalid.add(1);
            let writable = writable_of(&self.segments, given.readable);
            port.answer(given.head, writable, &Answer::response(Response::Failure, given.residual(0)));
        }
        refused
    }

    /// Does a command whose turn it is: its unit decides what that means.
    pub(crate) fn perform(&mut self, port: &mut Port, mut given: Given, cdb: &Cdb, cx: &mut Cx<'_>) {
        let lun = self.luns.get(given.lun);
        let logical: &LogicalUnit = &self.units.look(lun.unit).logical;
        let inventory = self.luns.inventory(given.lun);
        let mut action = logical.execute(&lun.path, cdb, inventory, &mut self.scratch);
        let wanted = match action {
            Action::DataOut { len } => Some((len, len)),
            Action::Parameters { least, most } => Some((least, most)),
            _ => None,
        };
        if let Some((least, most)) = wanted {
            let len = usize::try_from(given.data_out).map_or(most, |sent| sent.clamp(least, most));
            if given.data_out < len as u64 || len > self.parameters.len() {
                self.overrun(port, &given);
                return;
            }
            given.used = len as u64;
            let parameters = &mut self.parameters[..len];
            segment::copy_from(&self.segments.as_slice()[..given.readable], COMMAND_LEN, parameters);
            action = logical.execute_out(&lun.path, cdb, parameters, &mut self.scratch);
        }
        match action {
            Action::Io { op, flags, offset, len } => {
                self.start_io(port, &given, Transfer { op, flags, offset, len }, cx);
            }
            Action::Done(outcome) => {
                let sense = Encoded::new(logical, outcome.sense.as_ref());
                self.answer_done(port, &given, &outcome, &sense);
            }
            Action::Plan(plan) => self.start_plan(port, &given, plan, cx),
            Action::Job(job) => self.start_job(port, &given, job, cx),
            Action::Copy(order) => self.start_copy(port, &given, *order, cx),
            Action::Save(save) => self.park_for_save(port, &given, *save),
            Action::Abort(preempted) => self.park_for_preempted(port, &given, preempted),
            Action::Survey(survey) => self.send_away(port, &given, survey),
            Action::Pass(pass) => self.start_pass(port, &given, cdb, pass, cx),
            Action::Wipe(begun) => self.start_wipe(port, &given, begun),
            Action::DataOut { .. } | Action::Parameters { .. } => {
                unreachable!("parameter data is asked for once")
            }
        }
        // One that nobody does, because its device was not there: it may be now.
        let unit = self.luns.get(given.lun).unit;
        if self.units.look(unit).logical.is_wipe_due() {
            self.adopt_wipe(unit);
        }
    }

    pub(crate) fn overrun(&self, port: &mut Port, given: &Given) {
        let answer = Answer::response(Response::Overrun, given.residual(0));
        port.answer(given.head, writable_of(&self.segments, given.readable), &answer);
    }

    /// Answers a command without data, as its unit would.
    pub(crate) fn answer_outcome(&self, port: &mut Port, given: &Given, outcome: &Outcome) {
        let logical = &self.units.look(self.luns.get(given.lun).unit).logical;
        self.answer_done(port, given, outcome, &Encoded::new(logical, outcome.sense.as_ref()));
    }

    /// Answers a command that needed no device, with its data-in from the scratch buffer.
    pub(crate) fn answer_done(&self, port: &mut Port, given: &Given, outcome: &Outcome, sense: &Encoded) {
        let len = outcome.data_len as u64;
        if len > given.data_in {
            self.overrun(port, given);
            return;
        }
        let writable = writable_of(&self.segments, given.readable);
        segment::copy_to(writable, RESPONSE_LEN, &self.scratch[..outcome.data_len]);
        port.answer(given.head, writable, &answer_of(outcome, sense, given.residual(given.used + len), len));
    }

    /// Starts a transfer between the guest's buffer and the device.
    fn start_io(&mut self, port: &mut Port, given: &Given, transfer: Transfer, cx: &mut Cx<'_>) {
        let Transfer { op, flags, offset, len } = transfer;
        let room = if op == Op::Read { given.data_in } else { given.data_out };
        if len > room {
            self.overrun(port, given);
            return;
        }
        let slot = port.claim(given.head);
        let (of_read, of_write) = self.segments.as_slice().split_at(given.readable);
        segment::for_range(of_write, 0, RESPONSE_LEN, |part| slot.pieces.push(part));
        slot.pieces.response_ends();
        let (from, skip) = if op == Op::Read { (of_write, RESPONSE_LEN) } else { (of_read, COMMAND_LEN) };
        let bytes = usize::try_from(len).expect("a length that memory has room for");
        let got = segment::for_range(from, skip, bytes, |part| slot.pieces.push(part));
        assert_eq!(got as u64, len, "the chain holds what it was counted to hold");
        (slot.op, slot.flags, slot.offset, slot.len) = (op, flags, offset, len);
        slot.residual = to_u32(given.residual(len));
        if self.units.look(self.luns.get(given.lun).unit).bounces(slot.pieces.data().as_slice()) {
            port.stats.bounces.add(1);
        }
        self.start_slot(port, given, cx);
    }

    /// Starts a command that is one or more operations without guest data.
    fn start_plan(&mut self, port: &mut Port, given: &Given, mut plan: Plan, cx: &mut Cx<'_>) {
        let writable = writable_of(&self.segments, given.readable);
        let residual = given.residual(given.used);
        let Some(step) = plan.next() else {
            port.answer(given.head, writable, &Answer::response(Response::Ok, residual));
            return;
        };
        // Answered at once only if it starts at once. Else it keeps its place in the guest's ring, as any other: what
        // was answered takes none, and there would be no end to how many a guest could have going on.
        let charge = Charge::step(step.op(), parts(step).3, true);
        let unit = self.luns.get(given.lun).unit;
        let free = plan.span().1 == 0 || !self.units.look(unit).logical.is_claimed();
        if plan.immediate() && free && self.units.get(unit).lets_by(Source::BACKGROUND, charge) {
            port.answer(given.head, writable, &Answer::response(Response::Ok, residual));
            self.start_background(given.lun, plan, step, cx);
            return;
        }
        let slot = port.claim(given.head);
        self.put_response(slot, given.readable);
        (slot.op, slot.flags, slot.offset, slot.len) = parts(step);
        slot.residual = to_u32(residual);
        let pattern = pattern_of(&plan);
        slot.long = Some(Box::new(Long::Plan { plan, pattern }));
        self.start_slot(port, given, cx);
    }

    /// Remembers where a command's response goes; its chain lies in `self.segments`.
    pub(crate) fn put_response(&self, slot: &mut Slot, readable: usize) {
        let writable = writable_of(&self.segments, readable);
        segment::for_range(writable, 0, RESPONSE_LEN, |part| slot.pieces.push(part));
        slot.pieces.response_ends();
    }

    fn start_slot(&mut self, port: &mut Port, given: &Given, cx: &mut Cx<'_>) {
        let slot = &mut port.slots[usize::from(given.head)];
        slot.lun = given.lun;
        slot.name = given.name;
        slot.started = cx.now;
        let lun = self.luns.get_mut(given.lun);
        lun.inflight += 1;
        if !self.waits_for_claims(port, given.head, cx) {
            self.go(port, given.head, cx);
        }
    }

    /// A slot for a command that looks at its data-out, of this length.
    pub(crate) fn claim_slot<'a>(&self, port: &'a mut Port, given: &Given, data_out: u64) -> &'a mut Slot {
        let slot = port.claim(given.head);
        let (of_read, of_write) = self.segments.as_slice().split_at(given.readable);
        segment::for_range(of_write, 0, RESPONSE_LEN, |part| slot.pieces.push(part));
        slot.pieces.response_ends();
        let bytes = usize::try_from(data_out).expect("a length that memory has room for");
        let got = segment::for_range(of_read, COMMAND_LEN, bytes, |part| slot.pieces.push(part));
        assert_eq!(got as u64, data_out, "the chain holds what it was counted to hold");
        (slot.op, slot.flags, slot.offset, slot.len) = (Op::Read, IoFlags::empty(), 0, 0);
        (slot.lun, slot.name) = (given.lun, given.name);
        slot
    }

    /// Submits the slot's next step, or puts it into its unit's line.
    pub(crate) fn go(&mut self, port: &mut Port, head: u16, cx: &mut Cx<'_>) {
        let tag = port.tag(head);
        let slot = &mut port.slots[usize::from(head)];
        let unit = self.luns.get(slot.lun).unit;
        let charge = slot.charge();
        let open = self.units.get(unit);
        let source = Source::queue(port.key);
        if !open.lets_by(source, charge) {
            slot.phase = Phase::Waiting;
            open.line.join(source, charge, tag);
            port.waiting += 1;
            return;
        }
        self.submit_slot(port, head, unit, cx);
    }

    fn submit_slot(&mut self, port: &mut Port, head: u16, unit: UnitId, cx: &mut Cx<'_>) {
        let tag = port.tag(head);
        let haste = if port.is_patient() { IoFlags::empty() } else { IoFlags::HASTY };
        let slot = &mut port.slots[usize::from(head)];
        slot.phase = Phase::Running;
        let data = match slot.long.as_deref_mut() {
            None => slot.pieces.data(),
            Some(Long::Plan { pattern: Some(pattern), .. }) => pattern.data(slot.len),
            Some(Long::Plan { pattern: None, .. }) => SegmentList::EMPTY,
            Some(Long::Job(working)) => working.data(slot.op, slot.len),
            Some(Long::Dormant(..)) => unreachable!("what has not begun is not submitted"),
            Some(Long::Copy { .. }) => unreachable!("a parked command has no request"),
            Some(Long::Pass(_)) => return self.submit_pass(port, head, unit, cx),
        };
        let io = Io { tag, op: slot.op, flags: slot.flags | haste, offset: slot.offset, len: slot.len, data };
        if let Err(error) = self.units.submit(unit, io, slot.charge(), cx) {
            self.finish(port, head, Err(error), cx);
        }
    }

    /// A step of a slot's command has ended.
    #[inline(never)]
    pub(crate) fn finish(&mut self, port: &mut Port, head: u16, result: Result<(), IoError>, cx: &mut Cx<'_>) {
        let slot = &mut port.slots[usize::from(head)];
        let plan = match slot.long.as_deref_mut() {
            None | Some(Long::Dormant(..)) => None,
            Some(Long::Plan { plan, .. }) => Some(plan),
            Some(Long::Job(_)) => return self.task_done(port, head, result, cx),
            Some(Long::Copy { .. }) => unreachable!("a parked command has no request"),
            Some(Long::Pass(_)) => return self.pass_done(port, head, result, cx),
        };
        if result.is_ok()
            && slot.aborted.is_none()
            && let Some(step) = plan.and_then(Plan::next)
        {
            (slot.op, slot.flags, slot.offset, slot.len) = parts(step);
            self.go(port, head, cx);
            return;
        }
        let lun = self.luns.get_mut(slot.lun);
        lun.inflight -= 1;
        lun.stats.ended(slot.op, slot.len, cx.now.saturating_sub(slot.started), result.is_ok());
        if let Some(response) = slot.aborted {
            let residual = slot.residual_of_nothing();
            port.answer_slot(head, &Answer::response(response, residual));
            return;
        }
        let data_in = if slot.op == Op::Read && result.is_ok() { slot.len } else { 0 };
        let Err(error) = result else {
            let residual = u64::from(slot.residual);
            port.answer_slot(head, &Answer { response: Response::Ok, status: 0, sense: &[], residual, data_in });
            return;
        };
        let logical = &self.units.look(lun.unit).logical;
        let outcome = match slot.long.as_deref() {
            Some(Long::Plan { plan, .. }) => plan.fail_outcome(error),
            _ => io_outcome(slot.op, error),
        };
        let sense = Encoded::new(logical, outcome.sense.as_ref());
        let residual = slot.residual_of_nothing();
        port.answer_slot(head, &answer_of(&outcome, &sense, residual, 0));
    }

    /// Polls the devices and finishes what they have done. Returns how many requests that were.
    #[inline(never)]
    pub(crate) fn poll_units(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut completions = std::mem::take(&mut self.completions);
        let (mut count, mut at) = (0, 0);
        while let Some(unit) = self.units.poll(at, &mut completions, cx) {
            if !completions.is_empty() {
                // One that comes alone is answered before the clock is read.
                if completions.len() > 1 {
                    cx.refresh();
                }
                count += completions.len() as u32;
                self.complete_all(unit, &completions, cx);
                completions.clear();
            }
            at = self.units.polled(at);
        }
        self.completions = completions;
        count
    }

    /// Finishes what a unit has done. Requests of one port tend to end together: the port is looked up once for them.
    #[inline(never)]
    fn complete_all(&mut self, unit: UnitId, completions: &[Completion], cx: &mut Cx<'_>) {
        let mut held: Option<(usize, Box<Port>)> = None;
        for &Completion { tag, result } in completions {
            if tag & BACKGROUND != 0 {
                self.release_port(&mut held);
                if completions.len() == 1 {
                    cx.refresh();
                }
                self.background_done(unit, tag, result, cx);
            } else {
                let (number, head, turn) = parse_tag(tag);
                if held.as_ref().is_none_or(|(holds, _)| *holds != number) {
                    self.release_port(&mut held);
                    let port = self.take_port(number).expect("a port stays while its requests are in flight");
                    held = Some((number, port));
                }
                let (_, port) = held.as_mut().expect("the port was just taken");
                self.completed(port, (unit, head, turn), result, completions.len() == 1, cx);
            }
            if self.units.look(unit).is_waited_for() {
                self.release_port(&mut held);
                self.grant(unit, cx);
            }
        }
        self.release_port(&mut held);
    }

    fn release_port(&mut self, held: &mut Option<(usize, Box<Port>)>) {
        if let Some((number, port)) = held.take() {
            self.put_port(number, port);
        }
    }

    /// Finishes what a unit has done for a slot; `alone`: the clock has not been read since.
    #[inline(always)]
    fn completed(
        &mut self,
        port: &mut Port,
        (unit, head, turn): (UnitId, u16, u16),
        result: Result<(), IoError>,
        alone: bool,
        cx: &mut Cx<'_>,
    ) {
        let slot = &mut port.slots[usize::from(head)];
        assert!(slot.turn == turn && slot.phase == Phase::Running, "a completion belongs to a running request");
        let (op, len, started, lun) = (slot.op, slot.len, slot.started, slot.lun);
        let plain = result.is_ok() && slot.is_plain();
        if plain {
            let data_in = if op == Op::Read { len } else { 0 };
            let residual = u64::from(slot.residual);
            port.answer_slot(head, &Answer { response: Response::Ok, status: 0, sense: &[], residual, data_in });
            if alone || port.queue.unshown() >= SHOWN_AT_ONCE {
                port.queue.show();
            }
        }
        if alone {
            cx.refresh();
        }
        let latency = cx.now.saturating_sub(started);
        let open = self.units.get(unit);
        open.stats.ended(op, len, latency, result);
        if !plain {
            open.ended(port.slots[usize::from(head)].charge());
            self.finish(port, head, result, cx);
            return;
        }
        open.ended(Charge::plain(len));
        let lun = self.luns.get_mut(lun);
        lun.inflight -= 1;
        lun.stats.ended(op, len, latency, true);
    }

    /// Gives free room of a unit to those who wait for it, in turn.
    pub(crate) fn grant(&mut self, unit: UnitId, cx: &mut Cx<'_>) {
        while let Some(tag) = self.units.get(unit).next_waiter() {
            if tag & BACKGROUND != 0 {
                self.submit_background(tag, cx);
                continue;
            }
            let (number, head, _) = parse_tag(tag);
            let mut port = self.take_port(number).expect("a port stays while its requests are in flight");
            port.waiting -= 1;
            if port.slots[usize::from(head)].aborted.is_some() {
                self.finish(&mut port, head, Err(IoError::Aborted), cx);
            } else {
                self.submit_slot(&mut port, head, unit, cx);
            }
            self.use_turn(&mut port, unit, cx);
            self.put_port(number, port);
            self.activate(number);
        }
    }

    /// While there is not room for everybody, a queue whose request has just gone takes the next ones from its ring at
    /// once, until one of them has to wait: so who has something to do is always in line when room comes free, and a
    /// queue of small requests gets more than one for each large one of another queue.
    fn use_turn(&mut self, port: &mut Port, unit: UnitId, cx: &mut Cx<'_>) {
        for _ in 0..BATCH {
            if !self.units.get(unit).is_contended() || self.take_requests(port, 1, cx) == 0 {
                break;
            }
        }
    }

    /// Takes the aborted commands out of a unit's line: they need not wait for a slot. One pass over the line, however
    /// many they are.
    pub(crate) fn drop_aborted(&mut self, unit: UnitId, cx: &mut Cx<'_>) {
        let mut line = std::mem::take(&mut self.units.get(unit).line);
        line.retain(|tag| {
            if tag & BACKGROUND != 0 {
                return true;
            }
            let (number, head, _) = parse_tag(tag);
            let mut port = self.take_port(number).expect("a port stays while its requests are in flight");
            let aborted = port.slots[usize::from(head)].aborted.is_some();
            if aborted {
                port.waiting -= 1;
                self.finish(&mut port, head, Err(IoError::Aborted), cx);
            }
            self.put_port(number, port);
            if aborted {
                self.activate(number);
            }
            !aborted
        });
        let open = self.units.get(unit);
        assert!(open.line.is_empty(), "what was aborted starts nothing");
        open.line = line;
    }
}

/// What an `Action::Io` says.
#[derive(Clone, Copy)]
struct Transfer {
    op: Op,
    flags: IoFlags,
    offset: u64,
    len: u64,
}

/// What is left of a chain's bytes: a chain holds less than 4 GiB.
pub(crate) fn to_u32(residual: u64) -> u32 {
    u32::try_from(residual).expect("a chain holds less than 4 GiB")
}

pub(crate) fn writable_of(segments: &SegmentBuf, readable: usize) -> &[Segment] {
    &segments.as_slice()[readable..]
}

/// Sense data as bytes.
pub(crate) struct Encoded {
    bytes: [u8; SENSE_LEN],
    len: usize,
}

impl Encoded {
    pub(crate) fn new(unit: &LogicalUnit, sense: Option<&Sense>) -> Encoded {
        Self::encode(unit.descriptor_sense(), sense)
    }

    pub(crate) fn fixed(sense: Option<&Sense>) -> Encoded {
        Self::encode(false, sense)
    }

    /// The answer of a command that has moved nothing.
    pub(crate) fn check_condition(&self, residual: u64) -> Answer<'_> {
        let (status, sense) = (Status::CheckCondition as u8, &self.bytes[..self.len]);
        Answer { response: Response::Ok, status, sense, residual, data_in: 0 }
    }

    fn encode(descriptor: bool, sense: Option<&Sense>) -> Encoded {
        let mut bytes = [0; SENSE_LEN];
        let len = sense.map_or(0, |sense| sense.encode(descriptor, &mut bytes));
        Encoded { bytes, len }
    }
}

pub(crate) fn answer_of<'a>(outcome: &Outcome, sense: &'a Encoded, residual: u64, data_in: u64) -> Answer<'a> {
    let sense = &sense.bytes[..sense.len];
    Answer { response: Response::Ok, status: outcome.status as u8, sense, residual, data_in }
}
