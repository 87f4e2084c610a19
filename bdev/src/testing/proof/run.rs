//! One life of a pool: from its opening to the cut, or the end of the work.

use std::collections::{BTreeMap, BTreeSet};

use pollux_core::{IoFlags, Op};

use super::survey::Survey;
use super::{Act, Order, Subject};
use crate::testing::expect::{Asking, Expect, Id};
use crate::testing::floor::{Floor, LaneId, Request, Ticket};
use crate::testing::medium::{Crash, Medium, Off, Order as MediumOrder};
use crate::testing::stamp::SECTOR;

/// Volumes and snapshots there are at most.
const MOST: usize = 20;
/// Steps without power and without an answer after which none is waited for.
const IN_VAIN: u32 = 1000;
/// Longest time that a pool's own timers are waited for, in nanoseconds.
const PATIENCE_NS: u64 = 3_000_000_000;

/// A request under way.
struct Asked {
    asking: Asking,
    op: Op,
    volume: Id,
}

pub(super) struct Run<S> {
    pub(super) subject: S,
    medium: Medium,
    pub(super) expect: Expect,
    requests: BTreeMap<Ticket, Asked>,
    /// Number, what the oracle was told, and about whom.
    orders: Vec<(u64, Option<Asking>, Vec<Id>)>,
    lanes: BTreeMap<(Id, usize), LaneId>,
    /// Counts acts, which take reactors in turn.
    turn: usize,
    /// Steps without power since the last answer.
    in_vain: u32,
}

impl<S: Subject> Run<S> {
    fn new(subject: S, medium: Medium, expect: Expect) -> Self {
        let (requests, orders, lanes) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        Run { subject, medium, expect, requests, orders, lanes, turn: 0, in_vain: 0 }
    }

    /// What may be used: there for sure, and about which no order is under way.
    fn free(&self, snapshots: bool) -> Vec<Id> {
        let busy: BTreeSet<Id> = self.orders.iter().flat_map(|(_, _, about)| about).copied().collect();
        let free = |id: &Id| self.expect.is_snapshot(*id) == snapshots && !busy.contains(id);
        self.expect.present().into_iter().filter(free).collect()
    }

    fn pick(&self, snapshots: bool, nth: usize) -> Option<Id> {
        let all = self.free(snapshots);
        (!all.is_empty()).then(|| all[nth % all.len()])
    }

    fn lane(&mut self, volume: Id) -> LaneId {
        let reactor = self.turn % S::REACTORS;
        if let Some(lane) = self.lanes.get(&(volume, reactor)) {
            return *lane;
        }
        let lane = self.subject.lane(volume, reactor);
        self.lanes.insert((volume, reactor), lane);
        lane
    }

    /// How many requests and orders are under way.
    pub(super) fn under_way(&self) -> usize {
        self.requests.len() + self.orders.len()
    }

    /// Begins something. Whether it could be: without power what has to wait for something else may not.
    ///
    /// # Errors
    /// If an answer that comes meanwhile is wrong.
    pub(super) fn begin(&mut self, act: &Act) -> Result<(), String> {
        self.turn += 1;
        match act {
            Act::Write { volume, first, count, fua } => self.range(*volume, *first, *count, Op::Write, *fua),
            Act::Discard { volume, first, count } => self.range(*volume, *first, *count, Op::Discard, false),
            Act::Zero { volume, first, count } => self.range(*volume, *first, *count, Op::WriteZeroes, false),
            Act::Read { volume, first, count } => self.range(*volume, *first, *count, Op::Read, false),
            Act::Flush { volume } => self.range(*volume, 0, 1, Op::Flush, false),
            _ => return self.manage(act),
        }
        Ok(())
    }

    fn range(&mut self, volume: usize, first: u64, count: u64, op: Op, fua: bool) {
        let Some(id) = self.pick(false, volume) else { return };
        let blocks = self.expect.sectors(id) / S::BLOCK;
        let first = first % blocks;
        let (first, count) = (first * S::BLOCK, count.min(blocks - first) * S::BLOCK);
        let (offset, len) = (first * SECTOR as u64, count * SECTOR as u64);
        let flags = if fua { IoFlags::FUA } else { IoFlags::empty() };
        let (asking, request) = match op {
            Op::Write => {
                let (asking, bytes) = self.expect.write(id, first, count, fua);
                (asking, Request::write(offset, bytes, flags))
            }
            Op::Read => (self.expect.read(id, first, count), Request::read(offset, len)),
            Op::Flush => (self.expect.flush(id), Request::flush()),
            Op::Discard | Op::WriteZeroes => {
                (self.expect.zero(id, first, count, fua), Request::plain(op, flags, offset, len))
            }
        };
        let lane = self.lane(id);
        let ticket = self.subject.floor().submit(lane, request);
        self.requests.insert(ticket, Asked { asking, op, volume: id });
    }

    fn manage(&mut self, act: &Act) -> Result<(), String> {
        let nothing = Ok(());
        let makes = matches!(act, Act::Create { .. } | Act::Snapshot { .. } | Act::Clone { .. });
        if makes && self.expect.present().len() >= MOST {
            return nothing;
        }
        let (order, asking, about) = match act {
            Act::Create { blocks } => {
                let (volume, asking) = self.expect.create(blocks * S::BLOCK);
                (Order::Create { volume, sectors: blocks * S::BLOCK }, asking, vec![volume])
            }
            Act::Snapshot { volumes } => {
                let picked: BTreeSet<Id> = volumes.iter().filter_map(|nth| self.pick(false, *nth)).collect();
                let of: Vec<Id> = picked.into_iter().collect();
                if of.is_empty() {
                    return nothing;
                }
                let (made, asking) = self.expect.snapshot(&of);
                let about = of.iter().chain(&made).copied().collect();
                (Order::Snapshot(of.into_iter().zip(made).collect()), asking, about)
            }
            Act::Clone { snapshot } => {
                let Some(snapshot) = self.pick(true, *snapshot) else { return nothing };
                let (volume, asking) = self.expect.clone_of(snapshot);
                (Order::Clone { snapshot, volume }, asking, vec![snapshot, volume])
            }
            Act::Delete { volume } => {
                let Some(id) = self.pick(false, *volume) else { return nothing };
                return self.alone(id, |run| (Order::Delete(id), run.expect.delete(id)));
            }
            Act::DeleteSnapshot { snapshot } => {
                let Some(id) = self.pick(true, *snapshot) else { return nothing };
                return self.alone(id, |run| (Order::Delete(id), run.expect.delete(id)));
            }
            Act::Rollback { volume } => {
                let Some(volume) = self.pick(false, *volume) else { return nothing };
                let free = self.free(true);
                let own = self.expect.snapshots_of(volume).into_iter().rev().find(|id| free.contains(id));
                let Some(snapshot) = own else { return nothing };
                let order = Order::Rollback { volume, snapshot };
                return self.alone(volume, |run| (order, run.expect.rollback(volume, snapshot)));
            }
            Act::Resize { volume, blocks } => {
                let Some(volume) = self.pick(false, *volume) else { return nothing };
                let sectors = blocks * S::BLOCK;
                let order = Order::Resize { volume, sectors };
                return self.alone(volume, |run| (order, run.expect.resize(volume, sectors)));
            }
            Act::Checkpoint => {
                let number = self.subject.order(&Order::Checkpoint);
                self.orders.push((number, None, Vec::new()));
                return nothing;
            }
            _ => return nothing,
        };
        self.give(&order, asking, about);
        nothing
    }

    fn give(&mut self, order: &Order, asking: Asking, about: Vec<Id>) {
        let number = self.subject.order(order);
        self.orders.push((number, Some(asking), about));
    }

    /// Gives an order about a volume that nobody uses then; not without power, if somebody does.
    fn alone(&mut self, id: Id, ask: impl FnOnce(&mut Self) -> (Order, Asking)) -> Result<(), String> {
        while self.requests.values().any(|asked| asked.volume == id) {
            if !self.step()? {
                return Ok(());
            }
        }
        for reactor in 0..S::REACTORS {
            if let Some(lane) = self.lanes.remove(&(id, reactor)) {
                self.subject.floor().close(lane);
            }
        }
        let (order, asking) = ask(self);
        self.give(&order, asking, vec![id]);
        Ok(())
    }

    /// One step, and what it has brought. Whether there was any.
    ///
    /// # Errors
    /// If an answer is wrong.
    pub(super) fn step(&mut self) -> Result<bool, String> {
        self.step_until(u64::MAX)
    }

    /// Without power somebody may look for ever for what never comes: that is rest, too.
    fn step_until(&mut self, deadline: u64) -> Result<bool, String> {
        let before = self.under_way();
        let stepped = self.subject.floor().step_until(deadline);
        self.collect()?;
        let in_vain = !self.medium.powered() && self.under_way() == before;
        self.in_vain = if in_vain { self.in_vain + 1 } else { 0 };
        Ok(stepped && self.in_vain < IN_VAIN)
    }

    /// Until all is answered that ever will be.
    ///
    /// # Errors
    /// If an answer is wrong.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        let deadline = self.subject.floor().now() + PATIENCE_NS;
        while self.step_until(deadline)? {}
        Ok(())
    }

    /// Tells the oracle what was answered.
    pub(super) fn collect(&mut self) -> Result<(), String> {
        for (ticket, outcome) in self.subject.floor().answers() {
            let Some(asked) = self.requests.remove(&ticket) else { continue };
            match (asked.op, outcome) {
                (Op::Read, Ok(bytes)) => self.expect.has_read(asked.asking, &bytes)?,
                (_, Ok(_)) => self.expect.done(asked.asking),
                (_, Err(_)) => self.expect.failed(asked.asking),
            }
        }
        for (number, asking, about) in std::mem::take(&mut self.orders) {
            match (self.subject.answer(number), asking) {
                (Some(Ok(())), Some(asking)) => self.expect.done(asking),
                (Some(Err(_)), Some(asking)) => self.expect.failed(asking),
                (Some(_), None) => {}
                (None, asking) => self.orders.push((number, asking, about)),
            }
        }
        Ok(())
    }

    /// Looks at all of it after a crash.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn survey(&mut self) -> Result<(), String> {
        let mut survey = Survey::new(&mut self.subject);
        let outcome = self.expect.check_after_crash(&mut survey);
        survey.close().map_or(outcome, Err)?;
        self.subject.check()
    }
}

/// Opens a pool, has work done to it, and leaves it without power.
///
/// # Errors
/// What is wrong.
pub(super) fn live<S: Subject>(
    medium: &Medium,
    floor: Floor<'static>,
    expect: Expect,
    work: impl FnOnce(&mut Run<S>) -> Result<(), String>,
) -> Result<Expect, String> {
    medium.when_off(Off::Failing);
    let subject = match S::open(medium, floor) {
        Ok(subject) => subject,
        Err(why) if medium.powered() => return Err(format!("it cannot be opened: {why}")),
        Err(_) => return Ok(expect),
    };
    medium.when_off(Off::Frozen);
    let mut run = Run::new(subject, medium.clone(), expect);
    let outcome = work(&mut run);
    if medium.powered() {
        medium.stop_after(0);
    }
    outcome.map(|()| run.expect)
}

/// Opens what a crash has left, and looks at all of it. Gives the oracle as it is then; the medium stays as it is.
///
/// # Errors
/// What is wrong.
pub(super) fn look<S: Subject>(left: &Medium, expect: Expect) -> Result<Expect, String> {
    live::<S>(&left.crash(Crash::All, MediumOrder::InOrder), Floor::in_order(), expect, Run::survey)
}
