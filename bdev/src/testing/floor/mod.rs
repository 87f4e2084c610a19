//! Several reactors in one thread: channels and engines, polled in an order that the seed draws.
//!
//! Who polls, when, and how much time passes between is all that a floor decides; nothing is timed, nobody sleeps. Time
//! moves by a little with each step, and to the next time that somebody waits for when nobody has anything to do. A step
//! polls one channel or engine.

mod data;
mod lane;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use pollux_core::{Bdev, Channel, Cx, IoError, IoFlags, Next, Op, Tag};

use crate::rng::Rng;
use crate::thin::store::Blocking;
use lane::Lane;
pub use lane::Request;
use ring::ClockRing;

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(Tag);

/// Names a channel on a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(usize);

/// How a request has ended: what was read (nothing of anything else), or why not.
pub type Outcome = Result<Vec<u8>, IoError>;

/// What works for nobody's request.
pub trait Engine {
    /// One pass; returns how many things it did.
    fn poll(&mut self, cx: &mut Cx<'_>) -> u32;

    /// When polling can find something. By itself it is polled after anybody has done anything.
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

    /// Whether it is polled at this time.
    fn is_due(&self, now: u64) -> bool {
        let idle_lane = match &self.part {
            Part::Lane(lane) => lane.next() == Next::Idle,
            Part::Engine(_) => false,
            Part::Gone => true,
        };
        !idle_lane
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
    now: u64,
    rng: Option<Rng>,
    turn: usize,
    next_ticket: Tag,
    answers: BTreeMap<Ticket, Outcome>,
    /// Tickets in the order of their answers.
    answered: Vec<Ticket>,
    steps: u64,
    /// Everybody was polled once more since anything had happened.
    quiet: bool,
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
        Floor {
            places: Vec::new(),
            now: 1_000_000_000,
            rng,
            turn: 0,
            next_ticket: 1,
            answers: BTreeMap::new(),
            answered: Vec::new(),
            steps: 0,
            quiet: false,
        }
    }

    /// The time in nanoseconds.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// Time passes; everybody may look at the clock.
    pub fn advance(&mut self, ns: u64) {
        self.now += ns;
        self.stir();
    }

    /// Everybody is polled once more: something has changed that no poll has told of.
    pub fn stir(&mut self) {
        self.quiet = false;
        for place in &mut self.places {
            place.owed = true;
        }
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
        let mut ring = ClockRing { now: self.now };
        channel.attach(&mut Cx { now: self.now, reactor, ring: &mut ring })?;
        Ok(LaneId(self.put(reactor, Part::Lane(Lane::new(channel)))))
    }

    /// Puts an engine on a reactor.
    pub fn engine(&mut self, reactor: usize, engine: impl Engine + 'a) {
        self.put(reactor, Part::Engine(Box::new(engine)));
    }

    fn with_lane<R>(&mut self, lane: LaneId, f: impl FnOnce(&mut Lane, &mut Cx<'_>) -> R) -> R {
        let place = &mut self.places[lane.0];
        let mut ring = ClockRing { now: self.now };
        let mut cx = Cx { now: self.now, reactor: place.reactor, ring: &mut ring };
        match &mut place.part {
            Part::Lane(lane) => f(lane, &mut cx),
            _ => panic!("{lane:?} is not on the floor"),
        }
    }

    /// What a reactor would hand down.
    pub fn with_ring<R>(&mut self, reactor: usize, f: impl FnOnce(&mut Cx<'_>) -> R) -> R {
        let mut ring = ClockRing { now: self.now };
        f(&mut Cx { now: self.now, reactor, ring: &mut ring })
    }

    /// Blocking code on a base.
    pub fn blocking<R>(&mut self, base: &Arc<dyn Bdev>, f: impl FnOnce(&mut Blocking<'_>) -> R) -> R {
        let mut ring = ClockRing { now: self.now };
        f(&mut Blocking::new(&**base, &mut ring, &mut |_| {}).expect("the base is there"))
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
        self.stir();
        ticket
    }

    /// Asks to end a request early.
    pub fn cancel(&mut self, lane: LaneId, ticket: Ticket) {
        self.with_lane(lane, |lane, cx| lane.channel().cancel(ticket.0, cx));
        self.stir();
    }

    /// Polls one of those that have something to do. Returns whether there was anything: else all are at rest.
    pub fn step(&mut self) -> bool {
        self.step_until(u64::MAX)
    }

    fn step_until(&mut self, deadline: u64) -> bool {
        self.steps += 1;
        assert!(self.steps < ENDLESS, "no rest after {ENDLESS} steps: {}", self.describe());
        let now = self.now;
        let due: Vec<usize> = (0..self.places.len()).filter(|at| self.places[*at].is_due(now)).collect();
        if due.is_empty() {
            if self.quiet {
                return self.sleep(deadline);
            }
            // What one has left in memory for another shows in no return value.
            self.stir();
            self.quiet = true;
            return true;
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
                self.quiet = false;
                true
            }
            None => false,
        }
    }

    fn poll(&mut self, at: usize) {
        let mut answers = Vec::new();
        let place = &mut self.places[at];
        place.owed = false;
        self.quiet &= place.next() != Next::Now;
        let mut ring = ClockRing { now: self.now };
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
            self.stir();
        }
    }

    /// Steps until all are at rest, or wait for a time more than `ns` away.
    pub fn settle(&mut self, ns: u64) {
        let deadline = self.now.saturating_add(ns);
        self.stir();
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

    fn describe(&self) -> String {
        let tell = |(at, place): (usize, &Place<'_>)| match &place.part {
            Part::Lane(lane) => format!("lane {at}: {:?}, in flight {:?}", lane.next(), lane.in_flight()),
            Part::Engine(engine) => format!("engine {at}: {:?}", engine.next()),
            Part::Gone => format!("{at}: gone"),
        };
        self.places.iter().enumerate().map(tell).collect::<Vec<_>>().join("; ")
    }
}
