//! The medium itself, behind its lock: requests come in, take effect and complete in an order that the seed draws.

use std::collections::VecDeque;

use pollux_core::{Completion, Io, IoError, Next, Op, Tag};

use super::cache::Cache;
use super::flight::{ChannelId, Flight, Work};
use super::mutations::Mutations;
use super::power::{Off, Power};
use super::rules::{Effect, Rules};
use super::{Event, Geometry, Happened, Order};
use crate::rng::Rng;

/// Events kept.
const EVENTS: usize = 4096;

pub(super) struct State {
    pub(super) geometry: Geometry,
    pub(super) order: Order,
    rng: Rng,
    pub(super) cache: Cache,
    pub(super) rules: Rules,
    pub(super) mutations: Mutations,
    pub(super) power: Power,
    /// In the order of their submission.
    pub(super) flights: Vec<Flight>,
    next_number: u64,
    channels: ChannelId,
    /// How much space the medium may take.
    pub(super) space: Option<u64>,
    pub(super) lenient: bool,
    pub(super) events: VecDeque<Event>,
    /// Reads that were submitted.
    pub(super) reads: u64,
}

impl State {
    pub(super) fn new(geometry: Geometry, order: Order, cache: Cache) -> Self {
        let seed = match order {
            Order::Seeded(seed) => seed,
            Order::InOrder => 0,
        };
        State {
            geometry,
            order,
            rng: Rng::new(seed),
            cache,
            rules: Rules::default(),
            mutations: Mutations::default(),
            power: Power::default(),
            flights: Vec::new(),
            next_number: 0,
            channels: 0,
            space: None,
            lenient: false,
            events: VecDeque::new(),
            reads: 0,
        }
    }

    pub(super) fn open(&mut self) -> ChannelId {
        self.channels += 1;
        self.channels
    }

    /// The channel is gone, whatever it had in flight.
    pub(super) fn close(&mut self, channel: ChannelId) {
        self.flights.retain(|flight| flight.channel != channel);
    }

    fn note(&mut self, channel: ChannelId, io: &Io, label: Option<&'static str>, what: Happened) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        let (op, flags, offset, len) = (io.op, io.flags, io.offset, io.len);
        self.events.push_back(Event { instant: self.power.instants(), channel, op, flags, offset, len, label, what });
    }

    /// Holds the submitter to its duties.
    fn check(&self, channel: ChannelId, io: &Io) {
        let size = u64::from(self.geometry.block_size);
        let data = matches!(io.op, Op::Read | Op::Write);
        assert!(io.offset.is_multiple_of(size) && io.len.is_multiple_of(size), "unaligned: {io:?}");
        assert!(io.len > 0 || io.op == Op::Flush, "empty: {io:?}");
        assert!(io.op == Op::Flush || io.end().is_some_and(|end| end <= self.geometry.bytes), "outside: {io:?}");
        assert_eq!(io.data.bytes(), if data { io.len } else { 0 }, "data of another length: {io:?}");
        let twice = self.flights.iter().any(|flight| flight.channel == channel && flight.tag() == io.tag);
        assert!(!twice, "a tag is in flight once: {io:?}");
    }

    pub(super) fn submit(&mut self, channel: ChannelId, io: Io, polls: u64) {
        self.check(channel, &io);
        let label = self.mutations.label(&io);
        let fault = self.rules.judge(&io, label);
        let counts = io.op != Op::Read;
        let work = if counts && !self.power.is_on() { Work::Dead } else { self.work_of(&io, label, fault) };
        let delay = match self.order {
            Order::InOrder => 0,
            Order::Seeded(_) => [0, 0, 1, 1, 2, 3, 8, 24][self.rng.below(8) as usize],
        };
        if counts && self.power.is_on() {
            self.power.tick();
        }
        self.reads += u64::from(!counts);
        self.note(channel, &io, label, Happened::Submitted);
        let held = fault == Some(Effect::Hold);
        self.next_number += 1;
        let number = self.next_number;
        self.flights.push(Flight { number, channel, io, label, fault, work, due: polls + delay, held });
    }

    /// Who has asked for what is in flight is gone: some of it still happens, and nobody hears of it.
    pub(super) fn kill(&mut self) {
        for flight in std::mem::take(&mut self.flights) {
            if let Work::Change { seq, .. } = flight.work {
                match self.rng.below(2) {
                    0 if flight.fault.is_none() => self.cache.complete(seq, false),
                    _ => self.cache.give_up(seq),
                }
            }
        }
    }

    fn moves(&self, flight: &Flight) -> bool {
        !flight.held && (flight.io.op == Op::Read || self.power.is_on())
    }

    /// Whether all that can become of it is an error.
    fn fails(&self, flight: &Flight) -> bool {
        flight.io.op != Op::Read && !self.power.is_on() && self.power.off == Off::Failing
    }

    /// Has some requests, of any channel, take effect in part.
    fn stir(&mut self) {
        for at in 0..self.flights.len() {
            if self.rng.below(4) == 0 && self.moves(&self.flights[at]) {
                let (offset, blocks) = {
                    let flight = &self.flights[at];
                    (flight.io.offset, flight.io.len / u64::from(self.geometry.block_size))
                };
                let mut cut = || offset + self.rng.below(blocks + 1) * u64::from(self.geometry.block_size);
                let (one, other) = (cut(), cut());
                self.partial_effect(at, one.min(other)..one.max(other));
            }
        }
    }

    /// The numbers of the channel's requests that complete now, in the order in which they do.
    fn ready(&mut self, channel: ChannelId, polls: u64) -> Vec<u64> {
        let ready = |flight: &&Flight| flight.channel == channel && flight.due <= polls && self.moves(flight);
        let mut ready: Vec<u64> = self.flights.iter().filter(ready).map(|flight| flight.number).collect();
        if let Order::Seeded(_) = self.order {
            for last in (1..ready.len()).rev() {
                ready.swap(last, self.rng.below(last as u64 + 1) as usize);
            }
        }
        ready
    }

    /// Ends what only fails, without touching what it may have done.
    fn fail(&mut self, channel: ChannelId, done: &mut Vec<Completion>) {
        let (failing, left) = std::mem::take(&mut self.flights)
            .into_iter()
            .partition(|flight| flight.channel == channel && self.fails(flight));
        self.flights = left;
        done.extend(
            failing.iter().map(|flight: &Flight| Completion { tag: flight.tag(), result: Err(IoError::NotReady) }),
        );
    }

    pub(super) fn poll(&mut self, channel: ChannelId, polls: u64, done: &mut Vec<Completion>) {
        if let Order::Seeded(_) = self.order {
            self.stir();
        }
        for number in self.ready(channel, polls) {
            let at = self.flights.iter().position(|flight| flight.number == number).expect("it is in flight");
            // The power may have gone off with the one before.
            if self.moves(&self.flights[at]) {
                let flight = self.flights.remove(at);
                done.push(self.complete(flight));
            }
        }
        self.fail(channel, done);
    }

    fn complete(&mut self, flight: Flight) -> Completion {
        let (channel, io, label) = (flight.channel, flight.io, flight.label);
        let result = self.finish(flight);
        if io.op != Op::Read {
            self.power.tick();
        }
        self.note(channel, &io, label, Happened::Completed(result));
        Completion { tag: io.tag, result }
    }

    pub(super) fn next(&self, channel: ChannelId) -> Next {
        let mine = || self.flights.iter().filter(|flight| flight.channel == channel);
        if mine().next().is_none() {
            Next::Idle
        } else if mine().any(|flight| self.moves(flight) || self.fails(flight)) {
            Next::Now
        } else {
            Next::Ring
        }
    }

    /// A request that is held is aborted; of others some, if the seed draws that.
    pub(super) fn cancel(&mut self, channel: ChannelId, tag: Tag) {
        let found = self.flights.iter().position(|flight| flight.channel == channel && flight.tag() == tag);
        let Some(at) = found.filter(|_| self.power.is_on()) else { return };
        let held = self.flights[at].held;
        let seeded = matches!(self.order, Order::Seeded(_));
        let aborts = held || (seeded && self.rng.below(2) == 0);
        if !aborts {
            return;
        }
        if let Work::Change { seq, .. } = self.flights[at].work {
            self.cache.give_up(seq);
        }
        let flight = &mut self.flights[at];
        flight.fault = Some(Effect::Fail(IoError::Aborted));
        if flight.io.op != Op::Read {
            flight.work = Work::Nothing;
        }
        (flight.held, flight.due) = (false, 0);
    }

    pub(super) fn release(&mut self) {
        for flight in &mut self.flights {
            flight.held = false;
        }
    }

    pub(super) fn release_op(&mut self, op: Op) {
        self.flights.iter_mut().filter(|flight| flight.io.op == op).for_each(|flight| flight.held = false);
    }
}
