//! Several reactors in one thread: channels and residents, polled in an order that the seed draws.
//!
//! Who polls, when, and how much time passes between is all that a floor decides. A step polls one channel or resident. As
//! on a real reactor nobody is polled without a reason: because he says [`Next::Now`], or his time has come, or because
//! something was done on his reactor, or it was woken ([`Ring::waker`](pollux_core::Ring::waker)), since he was polled
//! last. So a wake-up that is forgotten shows as a request that is never answered. (A seed has some polled without a
//! reason, too, as a busy reactor does.) Time moves by a little with each step, and to the next time that somebody waits
//! for when nobody has anything to do.

mod data;
mod lane;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use pollux_core::{Bdev, Channel, Cx, IoError, IoFlags, Next, Op, Tag};

use crate::rng::Rng;
use crate::thin::steps::Steps;
use crate::thin::store::Blocking;
use lane::Lane;
pub use lane::Request;
use ring::{Bell, ClockRing};

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(Tag);

/// Names a channel on a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(usize);

/// How a request has ended: what was read (nothing of anything else), or why not.
pub type Outcome = Result<Vec<u8>, IoError>;

/// What works for nobody's request: a [`Resident`](pollux_core::Resident) by another name, or anything that a test wants to be polled.
pub trait Engine {
    /// One pass; returns how many things it did.
    fn poll(&mut self, cx: &mut Cx<'_>) -> u32;

    /// When polling can find something, if nothing wakes its reactor.
    fn next(&self) -> Next {
        Next::Ring
    }
}

impl<F: FnMut(&mut Cx<'_>) -> bool> Engine for F {
    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        u32::from(self(cx))
    }
}

enum Part<'a> {
    Lane(Lane),
    Engine(Box<dyn Engine + 'a>),
    /// It has left.
    Gone,
}

struct Place<'a> {
    reactor: usize,
    part: Part<'a>,
    /// Something has happened since it was polled last.
    owed: bool,
}

impl Place<'_> {
    fn next(&self) -> Next {
        match &self.part {
            Part::Lane(lane) => lane.next(),
            Part::Engine(engine) => engine.next(),
            Part::Gone => Next::Idle,
        }
    }

    /// A channel with nothing in flight is never polled.
    fn may_be_polled(&self) -> bool {
        match &self.part {
            Part::Lane(lane) => lane.next() != Next::Idle,
            Part::Engine(_) => true,
            Part::Gone => false,
        }
    }

    /// Whether there is a reason to poll it now.
    fn is_due(&self, now: u64) -> bool {
        self.may_be_polled()
            && match self.next() {
                Next::Now => true,
                Next::At(at) => at <= now || self.owed,
                Next::Ring | Next::Idle => self.owed,
            }
    }
}

/// A floor of reactors. What is on it may borrow for `'a`.
pub struct Floor<'a> {
    places: Vec<Place<'a>>,
    /// Those of the reactors.
    bells: BTreeMap<usize, Arc<Bell>>,
    now: u64,
    rng: Option<Rng>,
    turn: usize,
    next_ticket: Tag,
    answers: BTreeMap<Ticket, Outcome>,
    /// Tickets in the order of their answers.
    answered: Vec<Ticket>,
    steps: u64,
}

/// Steps after which a floor that is never at rest is broken.
const ENDLESS: u64 = 20_000_000;

impl<'a> Floor<'a> {
    /// A floor that polls everybody in turn, and gives each request its data in one piece.
    #[must_use]
    pub fn in_order() -> Self {
        Self::with(None)
    }

    /// A floor that draws everything.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self::with(Some(Rng::new(seed)))
    }

    fn with(rng: Option<Rng>) -> Self {
        super::heap::keep_freed_memory();
        Floor {
            places: Vec::new(),
            bells: BTreeMap::new(),
            now: 1_000_000_000,
            rng,
            turn: 0,
            next_ticket: 1,
            answers: BTreeMap::new(),
            answered: Vec::new(),
            steps: 0,
        }
    }

    /// The time in nanoseconds.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// How many steps there have been: somebody was polled, or time has moved to when somebody waits for it.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Time passes.
    pub const fn advance(&mut self, ns: u64) {
        self.now += ns;
    }

    /// Everybody is polled once more, as if all reactors had been woken.
    pub fn stir(&mut self) {
        for place in &mut self.places {
            place.owed = true;
        }
    }

    /// There is a reason to poll everybody on this reactor.
    fn rouse(&mut self, reactor: usize) {
        for place in self.places.iter_mut().filter(|place| place.reactor == reactor) {
            place.owed = true;
        }
    }

    fn answer_bells(&mut self) {
        let rung: Vec<usize> = self.bells.iter().filter(|(_, bell)| bell.take()).map(|(at, _)| *at).collect();
        rung.into_iter().for_each(|reactor| self.rouse(reactor));
    }

    fn ring(&mut self, reactor: usize) -> ClockRing {
        ClockRing { now: self.now, bell: self.bells.entry(reactor).or_default().clone() }
    }

    fn put(&mut self, reactor: usize, part: Part<'a>) -> usize {
        self.places.push(Place { reactor, part, owed: true });
        self.places.len() - 1
    }

    /// Puts a channel on a reactor.
    ///
    /// # Errors
    /// If it cannot attach.
    pub fn channel(&mut self, reactor: usize, mut channel: Box<dyn Channel>) -> Result<LaneId, IoError> {
        let mut ring = self.ring(reactor);
        channel.attach(&mut Cx { now: self.now, reactor, ring: &mut ring })?;
        Ok(LaneId(self.put(reactor, Part::Lane(Lane::new(channel)))))
    }

    /// Puts an engine on a reactor.
    pub fn engine(&mut self, reactor: usize, engine: impl Engine + 'a) {
        self.put(reactor, Part::Engine(Box::new(engine)));
    }

    fn with_lane<R>(&mut self, lane: LaneId, f: impl FnOnce(&mut Lane, &mut Cx<'_>) -> R) -> R {
        let mut ring = self.ring(self.places[lane.0].reactor);
        let place = &mut self.places[lane.0];
        let mut cx = Cx { now: self.now, reactor: place.reactor, ring: &mut ring };
        match &mut place.part {
            Part::Lane(lane) => f(lane, &mut cx),
            _ => panic!("{lane:?} is not on the floor"),
        }
    }

    /// What a reactor would hand down.
    pub fn with_ring<R>(&mut self, reactor: usize, f: impl FnOnce(&mut Cx<'_>) -> R) -> R {
        let mut ring = self.ring(reactor);
        f(&mut Cx { now: self.now, reactor, ring: &mut ring })
    }

    /// Blocking code on a base.
    pub fn blocking<R>(
        &mut self,
        base: &Arc<dyn Bdev>,
        steps: Option<Arc<dyn Steps>>,
        f: impl FnOnce(&mut Blocking<'_>) -> R,
    ) -> R {
        let mut ring = self.ring(0);
        f(&mut Blocking::new(&**base, &mut ring, &mut |_| {}).expect("the base is there").with_steps(steps))
    }

    /// Takes a channel off, which has nothing to do.
    pub fn close(&mut self, lane: LaneId) {
        self.with_lane(lane, |lane, cx| {
            assert!(lane.is_idle(), "a channel leaves with nothing in flight");
            lane.channel().detach(cx);
        });
        self.places[lane.0].part = Part::Gone;
    }

    /// Where the data of a request is cut.
    fn cuts(&mut self, len: usize) -> Vec<usize> {
        let Some(rng) = &mut self.rng else { return Vec::new() };
        let unit = [1, 512, 512, 4096][rng.below(4) as usize];
        let count = [0, 0, 1, 3][rng.below(4) as usize];
        let mut cuts: Vec<usize> =
            (0..count).map(|_| rng.below(len as u64 / unit + 1) * unit).map(|at| at as usize).collect();
        cuts.sort_unstable();
        cuts
    }

    /// Submits a request; one that finds the channel full waits for its turn.
    pub fn submit(&mut self, lane: LaneId, request: Request) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let cuts = self.cuts(request.len as usize);
        self.with_lane(lane, |lane, cx| lane.ask(ticket, request, cuts, cx));
        self.rouse(self.places[lane.0].reactor);
        ticket
    }

    /// Asks to end a request early.
    pub fn cancel(&mut self, lane: LaneId, ticket: Ticket) {
        self.with_lane(lane, |lane, cx| lane.channel().cancel(ticket.0, cx));
        self.rouse(self.places[lane.0].reactor);
    }

    /// Polls one of those that have something to do. Returns whether there was anything: else all are at rest.
    pub fn step(&mut self) -> bool {
        self.step_until(u64::MAX)
    }

    /// The same, but time does not move beyond `deadline` for somebody who waits.
    pub fn step_until(&mut self, deadline: u64) -> bool {
        self.steps += 1;
        assert!(self.steps < ENDLESS, "no rest after {ENDLESS} steps: {}", self.describe());
        self.answer_bells();
        let now = self.now;
        let mut due: Vec<usize> = (0..self.places.len()).filter(|at| self.places[*at].is_due(now)).collect();
        if due.is_empty() {
            return self.sleep(deadline);
        }
        if self.rng.as_mut().is_some_and(|rng| rng.below(16) == 0) {
            due = (0..self.places.len()).filter(|at| self.places[*at].may_be_polled()).collect();
        }
        self.turn += 1;
        let nth = match &mut self.rng {
            Some(rng) => rng.below(due.len() as u64) as usize,
            None => due.iter().position(|at| *at >= self.turn % self.places.len()).unwrap_or(0),
        };
        let at = due[nth];
        if self.rng.is_none() {
            self.turn = at;
        }
        self.poll(at);
        self.now += self.rng.as_mut().map_or(100, |rng| rng.below(1000));
        true
    }

    /// Nobody has anything to do: to the next time that somebody waits for.
    fn sleep(&mut self, deadline: u64) -> bool {
        let times = self.places.iter().filter_map(|place| match place.next() {
            Next::At(at) => Some(at),
            _ => None,
        });
        match times.min().filter(|at| *at <= deadline) {
            Some(at) => {
                self.now = at;
                true
            }
            None => false,
        }
    }

    fn poll(&mut self, at: usize) {
        let mut answers = Vec::new();
        let mut ring = self.ring(self.places[at].reactor);
        let place = &mut self.places[at];
        place.owed = false;
        let reactor = place.reactor;
        let mut cx = Cx { now: self.now, reactor: place.reactor, ring: &mut ring };
        let did = match &mut place.part {
            Part::Lane(lane) => lane.poll(&mut cx, &mut answers),
            Part::Engine(engine) => engine.poll(&mut cx),
            Part::Gone => 0,
        };
        for (ticket, outcome) in answers {
            self.answers.insert(ticket, outcome);
            self.answered.push(ticket);
        }
        if did > 0 {
            self.rouse(reactor);
        }
    }

    /// Steps until all are at rest, or wait for a time more than `ns` away.
    pub fn settle(&mut self, ns: u64) {
        let deadline = self.now.saturating_add(ns);
        while self.step_until(deadline) {}
    }

    /// Tickets answered since the last call, in order, with their answers.
    pub fn answers(&mut self) -> Vec<(Ticket, Outcome)> {
        let tickets = std::mem::take(&mut self.answered);
        tickets.into_iter().filter_map(|ticket| self.answers.remove(&ticket).map(|outcome| (ticket, outcome))).collect()
    }

    /// The answer to a request, if it is there and was not taken.
    pub fn take(&mut self, ticket: Ticket) -> Option<Outcome> {
        self.answers.remove(&ticket)
    }

    /// Steps until the request is answered; `None` if all come to rest before.
    pub fn try_run_until(&mut self, ticket: Ticket) -> Option<Outcome> {
        loop {
            if let Some(outcome) = self.take(ticket) {
                return Some(outcome);
            }
            if !self.step() {
                return None;
            }
        }
    }

    /// Steps until the request is answered.
    ///
    /// # Errors
    /// The request's.
    ///
    /// # Panics
    /// If all come to rest before.
    pub fn run_until(&mut self, ticket: Ticket) -> Outcome {
        match self.try_run_until(ticket) {
            Some(outcome) => outcome,
            None => panic!("{ticket:?} is never answered: {}", self.describe()),
        }
    }

    /// Submits a request and steps until it is answered.
    ///
    /// # Errors
    /// The request's.
    pub fn run(&mut self, lane: LaneId, request: Request) -> Outcome {
        let ticket = self.submit(lane, request);
        self.run_until(ticket)
    }

    /// Reads.
    ///
    /// # Errors
    /// The request's.
    pub fn read(&mut self, lane: LaneId, offset: u64, len: u64) -> Outcome {
        self.run(lane, Request::read(offset, len))
    }

    /// Writes.
    ///
    /// # Errors
    /// The request's.
    pub fn write(&mut self, lane: LaneId, offset: u64, bytes: &[u8], flags: IoFlags) -> Result<(), IoError> {
        self.run(lane, Request::write(offset, bytes.to_vec(), flags)).map(|_| ())
    }

    /// Flushes.
    ///
    /// # Errors
    /// The request's.
    pub fn flush(&mut self, lane: LaneId) -> Result<(), IoError> {
        self.run(lane, Request::flush()).map(|_| ())
    }

    /// Discards or zeroes.
    ///
    /// # Errors
    /// The request's.
    pub fn zero(&mut self, lane: LaneId, op: Op, offset: u64, len: u64) -> Result<(), IoError> {
        self.run(lane, Request::plain(op, IoFlags::empty(), offset, len)).map(|_| ())
    }

    /// What everybody waits for.
    #[must_use]
    pub fn describe(&self) -> String {
        let tell = |(at, place): (usize, &Place<'_>)| match &place.part {
            Part::Lane(lane) => format!("lane {at}: {:?}, in flight {:?}", lane.next(), lane.in_flight()),
            Part::Engine(engine) => format!("engine {at}: {:?}", engine.next()),
            Part::Gone => format!("{at}: gone"),
        };
        self.places.iter().enumerate().map(tell).collect::<Vec<_>>().join("; ")
    }
}
