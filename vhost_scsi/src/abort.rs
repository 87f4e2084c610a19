//! The ending (or counting) of commands that a task management function, PREEMPT AND ABORT, or the control plane asks of a
//! worker.
//!
//! It goes in stages, a bounded piece in each pass, so that a guest which asks again and again, or goes, with full rings,
//! costs the others little:
//!
//! 1. *Taking*, for task management: what the session has made available before it asked is taken out of its rings,
//!    because to the guest those commands are as much in flight as the others: none of them may run after the answer.
//!    What is in scope is answered at once. The rest is *held*, in order, and served before the ring: without a slot, so
//!    that it has no place before other guests' commands in any line.
//! 2. *Marking*: the slots are looked through; the devices are asked to end early what is in scope.
//! 3. *Waiting* until the last of those has ended. Copies that read or write the unit end, too, whichever unit was sent
//!    their command.

use std::collections::BTreeSet;

use pollux_core::Cx;
use pollux_scsi::{Rule, rule};
use pollux_vhost_user::Chain;

use crate::copies::CopyId;
use crate::lun::Address;
use crate::luns::Lun;
use crate::message::{AbortId, Body, Message, QueueKey, Scope};
use crate::port::{Answer, Kind, Phase, Port};
use crate::request::{COMMAND_LEN, Command, RESPONSE_LEN, Response};
use crate::worker::ScsiWorker;

/// Ports, chains and slots that are looked at in a pass, for all functions together.
const LOOKS: u32 = 256;
/// How many looks taking a chain is worth.
const CHAIN_LOOKS: u32 = 4;

/// A command that was taken out of its ring and has not started. Its header was read; its buffers are looked up again
/// when it starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    head: u16,
    command: Command,
}

/// A function's share of work on this worker.
pub(crate) struct Ending {
    /// Who wants to know when the last of them has ended.
    id: Option<AbortId>,
    scope: Scope,
    /// What to answer; `None`: they are only counted.
    how: Option<Response>,
    count: u32,
    stage: Stage,
    /// Port, head and turn of those that have to end; some of them may have.
    commands: Vec<(usize, u16, u16)>,
    /// Copies that have to end and have not yet.
    copies: Vec<CopyId>,
}

#[derive(Clone, Copy)]
enum Stage {
    /// The port that is next, and, when it has been begun, up to where its available ring is taken.
    Taking {
        port: usize,
        until: Option<u16>,
    },
    /// The slot that is next.
    Marking {
        port: usize,
        head: usize,
    },
    Waiting,
}

impl ScsiWorker {
    /// Begins to end (or count) the commands in scope.
    pub(crate) fn abort(&mut self, id: Option<AbortId>, scope: Scope, how: Option<Response>) {
        let stage = match scope.session() {
            Some(_) => Stage::Taking { port: 0, until: None },
            None => Stage::Marking { port: 0, head: 0 },
        };
        self.ending.push(Ending { id, scope, how, count: 0, stage, commands: Vec::new(), copies: Vec::new() });
    }

    /// Whether some function has not looked at everything yet.
    pub(crate) fn looks_around(&self) -> bool {
        self.ending.iter().any(|ending| !matches!(ending.stage, Stage::Waiting))
    }

    /// Goes on with the functions, first come, first served, as far as a pass allows; says so for those that are done.
    pub(crate) fn advance_endings(&mut self, cx: &mut Cx<'_>) {
        let mut endings = std::mem::take(&mut self.ending);
        let (mut looks, mut waiting) = (LOOKS, 0);
        for ending in &mut endings {
            while looks > 0 && !matches!(ending.stage, Stage::Waiting) {
                looks = looks.saturating_sub(self.advance(ending, looks, cx));
            }
            if !matches!(ending.stage, Stage::Waiting) {
                // Those behind it have not begun.
                break;
            }
            waiting += 1;
        }
        let ended: Vec<Ending> = endings.extract_if(..waiting, |ending| self.has_ended(ending)).collect();
        for ending in ended {
            let Some(id) = ending.id else { continue };
            self.outbox.push_back((id.worker, Message(Body::AbortDone { id, count: ending.count })));
        }
        self.ending = endings;
    }

    /// Whether the last of a function's commands has ended. Each is looked at until it has, and once then.
    fn has_ended(&self, ending: &mut Ending) -> bool {
        while let Some(&command) = ending.commands.last() {
            if self.is_running(command) {
                return false;
            }
            ending.commands.pop();
        }
        ending.copies.retain(|&copy| self.is_copying(copy));
        ending.copies.is_empty()
    }

    /// One piece of at most about `looks`; returns how many it took, at least one.
    fn advance(&mut self, ending: &mut Ending, looks: u32, cx: &mut Cx<'_>) -> u32 {
        match ending.stage {
            Stage::Taking { port, until } => self.take_some(ending, port, until, looks),
            Stage::Marking { port, head } => self.mark_some(ending, port, head, looks, cx),
            Stage::Waiting => 1,
        }
    }

    fn take_some(&mut self, ending: &mut Ending, number: usize, until: Option<u16>, looks: u32) -> u32 {
        if number >= self.places() {
            ending.stage = Stage::Marking { port: 0, head: 0 };
            return 1;
        }
        let session = ending.scope.session();
        let next = Stage::Taking { port: number + 1, until: None };
        let mine = |port: &&Port| port.kind == Kind::Requests && Some(port.key.session) == session;
        if self.port(number).filter(mine).is_none() {
            ending.stage = next;
            return 1;
        }
        let Some(mut port) = self.take_port(number) else { return 1 };
        let mut used = 1;
        let until = until.unwrap_or_else(|| {
            used += port.held.len() as u32;
            self.sift_held(&mut port, ending);
            port.queue.next_avail().wrapping_add(port.queue.available().min(port.queue.size()))
        });
        // What the port has taken by itself meanwhile may have gone past the place.
        let left = |port: &Port| until.wrapping_sub(port.queue.next_avail());
        while used < looks && port.takes_more() && (1..=port.queue.size()).contains(&left(&port)) {
            used += CHAIN_LOOKS;
            let Some(chain) = self.pop(&mut port) else { break };
            self.take_for(&mut port, &chain, ending);
        }
        let more = port.takes_more() && (1..=port.queue.size()).contains(&left(&port));
        ending.stage = if more { Stage::Taking { port: number, until: Some(until) } } else { next };
        self.put_port(number, port);
        self.activate(number);
        used
    }

    /// Takes one command, whose chain lies in `self.segments`, before its turn.
    fn take_for(&mut self, port: &mut Port, chain: &Chain, ending: &mut Ending) {
        port.stats.requests.add(1);
        port.stats.bytes.add(chain.readable_bytes + chain.writable_bytes);
        let Some(command) = self.header(port, chain) else { return };
        let held = Held { head: chain.head, command };
        if !self.is_held_in_scope(port, &held, ending.scope) {
            port.held.push_back(held);
            return;
        }
        ending.count += 1;
        match ending.how {
            Some(how) => self.answer_unserved(port, chain, how),
            None => port.held.push_back(held),
        }
    }

    /// Ends (or counts) what is in scope of what is held already.
    fn sift_held(&mut self, port: &mut Port, ending: &mut Ending) {
        for _ in 0..port.held.len() {
            let Some(held) = port.held.pop_front() else { break };
            if !self.is_held_in_scope(port, &held, ending.scope) {
                port.held.push_back(held);
                continue;
            }
            ending.count += 1;
            match ending.how {
                Some(how) => self.answer_held(port, &held, how),
                None => port.held.push_back(held),
            }
        }
    }

    fn is_held_in_scope(&self, port: &Port, held: &Held, scope: Scope) -> bool {
        let Address::Unit { target, lun } = Address::decode(held.command.lun()) else { return false };
        let lun = self.luns.find(port.controller, target, lun);
        lun.is_some_and(|lun| is_in_scope(scope, port.key.session, self.luns.get(lun), held.command.tag()))
    }

    /// Ends at most `most` of what the port of this number holds; returns how many.
    fn end_held(&mut self, number: usize, most: u32, how: Response) -> u32 {
        let Some(mut port) = self.take_port(number) else { return 0 };
        let mut ended = 0;
        while ended < most
            && let Some(held) = port.held.pop_front()
        {
            self.answer_held(&mut port, &held, how);
            ended += 1;
        }
        self.put_port(number, port);
        ended
    }

    fn answer_held(&mut self, port: &mut Port, held: &Held, how: Response) {
        if let Some(chain) = self.look_up_head(port, held.head) {
            self.answer_unserved(port, &chain, how);
        }
    }

    fn answer_unserved(&self, port: &mut Port, chain: &Chain, how: Response) {
        let rest = chain.readable_bytes + chain.writable_bytes - (COMMAND_LEN + RESPONSE_LEN) as u64;
        port.answer(chain.head, &self.segments.as_slice()[chain.readable..], &Answer::response(how, rest));
    }

    /// Starts at most `most` of the commands that a port holds; returns how many.
    pub(crate) fn serve_held(&mut self, port: &mut Port, most: u32, cx: &mut Cx<'_>) -> u32 {
        let mut served = 0;
        while served < most
            && port.waiting == 0
            && !port.broken
            && let Some(held) = port.held.pop_front()
        {
            served += 1;
            if let Some(chain) = self.look_up_head(port, held.head) {
                self.any_command(port, &chain, &held.command, cx);
            }
        }
        served
    }

    /// Puts the buffers of a command that was taken before into `self.segments`. A guest that has changed them since is
    /// not served.
    pub(crate) fn look_up_head(&mut self, port: &mut Port, head: u16) -> Option<Chain> {
        match port.queue.look_up(head, &mut self.segments) {
            Ok(chain) if chain.readable_bytes >= COMMAND_LEN as u64 && chain.writable_bytes >= RESPONSE_LEN as u64 => {
                Some(chain)
            }
            Ok(_) => {
                port.fail(&"a chain was changed while its command was in flight");
                None
            }
            Err(why) => {
                port.fail(&why);
                None
            }
        }
    }

    fn mark_some(&mut self, ending: &mut Ending, number: usize, from: usize, looks: u32, cx: &mut Cx<'_>) -> u32 {
        if number >= self.places() {
            ending.stage = Stage::Waiting;
            if let Some(how) = ending.how {
                ending.copies = self.end_copies_in_scope(ending.scope, how, cx);
            }
            return 1;
        }
        ending.stage = Stage::Marking { port: number + 1, head: 0 };
        let scope = ending.scope;
        let Some(port) = self.port(number) else { return 1 };
        if port.kind != Kind::Requests || !may_hold(scope, port.key) {
            return 1;
        }
        if let (Scope::Queue { .. }, false, Some(how)) = (scope, port.held.is_empty(), ending.how) {
            ending.stage = Stage::Marking { port: number, head: from };
            return self.end_held(number, looks.div_ceil(CHAIN_LOOKS), how) * CHAIN_LOOKS + 1;
        }
        if port.inflight == 0 {
            return 1;
        }
        // Another, smaller queue may have come into its place.
        let from = from.min(port.slots.len());
        let to = port.slots.len().min(from + looks as usize);
        let mut found = Vec::new();
        for (at, slot) in port.slots[from..to].iter().enumerate() {
            // Two who preempt do not end each other: each would wait for the other.
            let ends = slot.class().is_some_and(|class| rule(scope.class(), class) == Rule::Ends);
            if ends && is_in_scope(scope, port.key.session, self.luns.get(slot.lun), slot.name) {
                found.push((number, (from + at) as u16, slot.turn));
            }
        }
        if to < port.slots.len() {
            ending.stage = Stage::Marking { port: number, head: to };
        }
        ending.count += found.len() as u32;
        if let Some(how) = ending.how {
            self.abort_commands(&found, how, cx);
            if ending.id.is_some() {
                ending.commands.extend(found.into_iter().filter(|&command| self.is_running(command)));
            }
        }
        (to - from) as u32 + 1
    }

    /// Marks commands and asks their devices to end them; those that wait for a slot or their turn, or are away, end here,
    /// those that are barred when they are looked at (`barred.rs`).
    pub(crate) fn abort_commands(&mut self, commands: &[(usize, u16, u16)], how: Response, cx: &mut Cx<'_>) {
        let (mut lines, mut parked, mut copies) = (BTreeSet::new(), false, Vec::new());
        for &(number, head, _) in commands {
            let Some(mut port) = self.take_port(number) else { continue };
            let tag = port.tag(head);
            copies.extend(Self::copy_of(&port, head));
            let slot = &mut port.slots[usize::from(head)];
            // A reset that comes after an abort does not change what the first one promised.
            slot.aborted.get_or_insert(how);
            let unit = self.luns.get(slot.lun).unit;
            match slot.phase {
                Phase::Running => self.units.cancel(unit, tag, cx),
                Phase::Waiting => drop(lines.insert(unit)),
                Phase::Barred => self.note_abort(port.key.session, unit),
                Phase::Dormant => self.drop_dormant(&mut port, head, cx),
                Phase::Away => self.call_off(&mut port, head, how),
                Phase::Parked => parked = true,
                Phase::Free => {}
            }
            let ended = port.slots[usize::from(head)].phase == Phase::Free;
            self.put_port(number, port);
            if ended {
                self.activate(number);
            }
        }
        for unit in lines {
            self.drop_aborted(unit, cx);
        }
        for index in copies {
            self.end_copy(index, cx);
        }
        if parked {
            self.end_aborted_waiters();
        }
    }

    pub(crate) fn is_running(&self, (number, head, turn): (usize, u16, u16)) -> bool {
        // Another, smaller queue may have come into the port's place.
        let slot = self.port(number).and_then(|port| port.slots.get(usize::from(head)));
        slot.is_some_and(|slot| slot.phase != Phase::Free && slot.turn == turn)
    }

    /// These ports have ended, and so have their commands: nobody waits for those that come into their places.
    pub(crate) fn forget_ports(&mut self, gone: &[usize]) {
        if gone.is_empty() {
            return;
        }
        for ending in &mut self.ending {
            ending.commands.retain(|(number, ..)| !gone.contains(number));
        }
        for fence in &mut self.fences {
            fence.commands.retain(|(number, ..)| !gone.contains(number));
        }
    }
}

/// Whether a queue's commands can be in scope.
fn may_hold(scope: Scope, of: QueueKey) -> bool {
    match scope {
        Scope::Task { session, .. } | Scope::TaskSet { session, .. } | Scope::Nexus { session, .. } => {
            of.session == session
        }
        Scope::Queue { key } => of == key,
        Scope::Unit { .. } | Scope::Leaving { .. } | Scope::Device { .. } | Scope::Preempted { .. } => true,
    }
}

pub(crate) fn is_in_scope(scope: Scope, of: u64, lun: &Lun, name: u64) -> bool {
    match scope {
        Scope::Task { session, target, lun: number, tag } => {
            of == session && (lun.target, lun.lun) == (target, number) && name == tag
        }
        Scope::TaskSet { session, target, lun: number } => of == session && (lun.target, lun.lun) == (target, number),
        Scope::Nexus { session, target } => of == session && lun.target == target,
        Scope::Unit { unit, .. } | Scope::Device { unit } => lun.unit == unit,
        // Whose queue it is was looked at.
        Scope::Queue { .. } => true,
        Scope::Leaving { controller, target, lun: number } => {
            !lun.removing.is_empty() && (lun.controller, lun.target, lun.lun) == (controller, target, number)
        }
        Scope::Preempted { unit, preempted } => lun.unit == unit && lun.path.is_preempted(preempted),
    }
}
