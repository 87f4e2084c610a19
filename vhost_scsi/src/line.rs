//! Who waits for room on a unit, and who is next: fair by cost, not by requests.
//!
//! Each source (a virtqueue, or what goes on without a guest) has an account in virtual time: a request starts where the
//! one before it of the same source has ended, or now, if that is later, and lasts as long as it costs. Who starts
//! earliest is next (start-time fair queueing: deficit round robin with a quantum of nothing). So a queue of 1 MiB
//! writes and one of 4 KiB reads get equal shares of the device, not equal numbers of requests, and a source that
//! had nothing waiting has saved nothing up.
//!
//! Bulk (discards, patterns, what was answered before it was done) has a line of its own, because room for it ends
//! earlier, and pays [`BULK_RATE`] times: beside guests that wait it gets a fifth, never nothing.
//!
//! Accounts are kept from the moment that somebody waits until the unit has nothing to do, or nobody has waited for
//! [`CALM`] requests. Before and after that the line is *quiet*: a unit with room for everybody costs nothing.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use pollux_core::{Op, Tag};

use crate::message::QueueKey;

/// Bytes that cost as much as a request of no bytes: one of the unit's slots.
pub(crate) const SLOT_SHIFT: u32 = 16;
/// Bytes of a discard or of zeroes that cost as much as a slot: the device writes down a range.
const RANGE_SHIFT: u32 = 26;
/// Accounts that are kept: more than a reactor has queues.
const MOST_ACCOUNTS: usize = 8192;
/// Requests that have to find room, one after another, before accounts are closed.
const CALM: u32 = 1024;
/// What bulk pays for the same cost.
const BULK_RATE: u64 = 4;

/// What a request takes of its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    /// Slots.
    pub(crate) slots: u32,
    /// Whether it is bulk.
    pub(crate) bulk: bool,
}

impl Charge {
    /// Of a transfer of guest data, or a flush.
    #[inline(always)]
    pub(crate) const fn plain(len: u64) -> Charge {
        Charge { slots: 1 + (len >> SLOT_SHIFT) as u32, bulk: false }
    }

    /// Of a step of a plan; `immediate`: its guest does not wait for it.
    pub(crate) const fn step(op: Op, len: u64, immediate: bool) -> Charge {
        let slots = match op {
            Op::Flush => 1,
            Op::Discard | Op::WriteZeroes => 1 + (len >> RANGE_SHIFT) as u32,
            Op::Read | Op::Write => Charge::plain(len).slots,
        };
        Charge { slots, bulk: immediate || !matches!(op, Op::Flush) }
    }
}

/// Whose account a request is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source(u64);

impl Source {
    /// Everything that no guest waits for.
    pub(crate) const BACKGROUND: Source = Source(u64::MAX);

    /// A virtqueue.
    pub(crate) const fn queue(key: QueueKey) -> Source {
        Source(key.session << 16 | key.index as u64)
    }
}

/// For whom there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) plain: bool,
    pub(crate) bulk: bool,
}

/// Somebody who waits. Ordered by who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiter {
    start: u64,
    /// Of equal ones, who came first.
    arrival: u64,
    tag: Tag,
}

/// The line before one unit.
#[derive(Default)]
pub(crate) struct Line {
    /// There are accounts.
    busy: bool,
    /// Requests that have gone by since somebody waited.
    calm: u32,
    plain: BinaryHeap<Reverse<Waiter>>,
    bulk: BinaryHeap<Reverse<Waiter>>,
    /// Where the one that was let in last started.
    now: u64,
    arrivals: u64,
    /// Where the next request of a source starts, if that is not now.
    accounts: HashMap<Source, u64>,
}

impl Line {
    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.bulk.is_empty()
    }

    /// Whether nobody waits and there are no accounts: a request may go by without asking.
    #[inline(always)]
    pub(crate) const fn is_quiet(&self) -> bool {
        !self.busy
    }

    /// Waits. The tag comes out of `next` once.
    pub(crate) fn join(&mut self, source: Source, charge: Charge, tag: Tag) {
        let start = self.start_of(source);
        self.pay(source, start, charge);
        (self.busy, self.calm) = (true, 0);
        self.arrivals += 1;
        let waiter = Reverse(Waiter { start, arrival: self.arrivals, tag });
        if charge.bulk { self.bulk.push(waiter) } else { self.plain.push(waiter) }
    }

    /// The next one for whom there is room.
    pub(crate) fn next(&mut self, room: Room) -> Option<Tag> {
        let bulk = self.first(room)?.1;
        let Reverse(waiter) = if bulk { self.bulk.pop() } else { self.plain.pop() }?;
        self.now = self.now.max(waiter.start);
        Some(waiter.tag)
    }

    /// A new request wants to go by without waiting, for which there is room; whether it may: nobody waits for that room,
    /// or it would start before all who do, because its source has not used up its share of the time that has passed.
    pub(crate) fn goes_by(&mut self, source: Source, charge: Charge, room: Room) -> bool {
        if !self.busy {
            return true;
        }
        let start = self.start_of(source);
        if self.first(room).is_some_and(|(first, _)| first.start <= start) {
            return false;
        }
        self.pay(source, start, charge);
        self.now = self.now.max(start);
        self.calm += 1;
        if self.calm >= CALM {
            self.settle();
        }
        true
    }

    /// Takes out those whom `keep` does not want.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(Tag) -> bool) {
        self.plain.retain(|Reverse(waiter)| keep(waiter.tag));
        self.bulk.retain(|Reverse(waiter)| keep(waiter.tag));
    }

    /// Nobody owes anybody anything any more: the unit has nothing to do.
    #[inline]
    pub(crate) fn settle(&mut self) {
        if self.busy {
            self.accounts.clear();
            self.busy = !self.is_empty();
        }
    }

    /// Takes one out; whether it was in.
    pub(crate) fn leave(&mut self, tag: Tag) -> bool {
        let mut found = false;
        self.retain(|other| {
            found |= other == tag;
            other != tag
        });
        found
    }

    /// The first for whom there is room, and whether it is bulk.
    fn first(&self, room: Room) -> Option<(Waiter, bool)> {
        let plain = self.plain.peek().filter(|_| room.plain).map(|first| (first.0, false));
        let bulk = self.bulk.peek().filter(|_| room.bulk).map(|first| (first.0, true));
        match (plain, bulk) {
            (Some(plain), Some(bulk)) => Some(if bulk.0 < plain.0 { bulk } else { plain }),
            (plain, bulk) => plain.or(bulk),
        }
    }

    fn start_of(&self, source: Source) -> u64 {
        self.accounts.get(&source).map_or(self.now, |&start| start.max(self.now))
    }

    fn pay(&mut self, source: Source, start: u64, charge: Charge) {
        // Sources that have gone leave accounts behind.
        if self.accounts.len() >= MOST_ACCOUNTS {
            self.accounts.clear();
        }
        let rate = if charge.bulk { BULK_RATE } else { 1 };
        self.accounts.insert(source, start + u64::from(charge.slots) * rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Room = Room { plain: true, bulk: true };
    const SMALL: Charge = Charge::plain(4096);
    const LARGE: Charge = Charge::plain(1 << 20);

    fn queue(index: u16) -> Source {
        Source::queue(QueueKey { session: 1, index })
    }

    /// Lets `rounds` in, each source having another one ready at once; how many slots each got.
    fn shares(sources: &[(Source, Charge)], rounds: usize) -> Vec<u64> {
        let mut line = Line::default();
        for (tag, &(source, charge)) in sources.iter().enumerate() {
            line.join(source, charge, tag as Tag);
        }
        let mut got = vec![0; sources.len()];
        for _ in 0..rounds {
            let tag = line.next(BOTH).unwrap();
            let (source, charge) = sources[tag as usize];
            got[tag as usize] += u64::from(charge.slots);
            while !line.is_empty() && line.goes_by(source, charge, BOTH) {
                got[tag as usize] += u64::from(charge.slots);
            }
            line.join(source, charge, tag);
        }
        got
    }

    #[test]
    fn costs_are_slots_and_bytes() {
        assert_eq!(SMALL, Charge { slots: 1, bulk: false });
        assert_eq!(LARGE, Charge { slots: 17, bulk: false });
        assert_eq!(Charge::step(Op::Discard, 1 << 30, false), Charge { slots: 17, bulk: true });
        assert_eq!(Charge::step(Op::Write, 1 << 20, false), Charge { slots: 17, bulk: true });
        assert_eq!(Charge::step(Op::Flush, 0, false), Charge { slots: 1, bulk: false });
        assert!(Charge::step(Op::Flush, 0, true).bulk);
    }

    #[test]
    fn equals_take_turns_in_the_order_they_came() {
        let mut line = Line::default();
        for (tag, source) in [(1, queue(3)), (2, queue(2)), (3, queue(3)), (4, queue(4))] {
            line.join(source, SMALL, tag);
        }
        let order: Vec<Tag> = std::iter::from_fn(|| line.next(BOTH)).collect();
        assert_eq!(order, [1, 2, 4, 3]);
    }

    #[test]
    fn large_and_small_requests_get_equal_shares() {
        let got = shares(&[(queue(2), LARGE), (queue(3), SMALL), (queue(4), SMALL)], 1000);
        let (least, most) = (*got.iter().min().unwrap(), *got.iter().max().unwrap());
        assert!(most - least <= 2 * 17, "{got:?}");
    }

    #[test]
    fn bulk_gets_a_fifth_beside_guests_and_all_without_them() {
        let bulk = Charge::step(Op::Discard, 1 << 20, false);
        let got = shares(&[(queue(2), SMALL), (Source::BACKGROUND, bulk)], 1000);
        assert!(got[1] * 4 >= got[0] - 8 && got[1] * 4 <= got[0] + 8, "{got:?}");
        assert_eq!(shares(&[(Source::BACKGROUND, bulk)], 10), [10]);
    }

    #[test]
    fn without_room_for_bulk_the_others_go_on() {
        let mut line = Line::default();
        line.join(queue(2), Charge::step(Op::Discard, 512, false), 1);
        line.join(queue(3), SMALL, 2);
        let room = Room { plain: true, bulk: false };
        assert_eq!((line.next(room), line.next(room)), (Some(2), None));
        assert!(line.goes_by(queue(4), SMALL, room), "nobody waits for this room");
        assert!(!line.goes_by(queue(4), SMALL, BOTH), "one waits for the other");
        assert_eq!(line.next(BOTH), Some(1));
    }

    #[test]
    fn who_waits_for_nothing_saves_nothing_up() {
        let mut line = Line::default();
        for tag in 0..100 {
            line.join(queue(2), LARGE, tag);
        }
        for _ in 0..50 {
            line.next(BOTH).unwrap();
        }
        // It was idle all the time: it comes next, but with one turn only.
        line.join(queue(3), LARGE, 1000);
        assert_eq!(line.next(BOTH), Some(1000));
        assert!(!line.goes_by(queue(3), LARGE, BOTH));
    }

    #[test]
    fn who_leaves_is_gone_and_accounts_do_not_pile_up() {
        let mut line = Line::default();
        line.join(queue(2), SMALL, 1);
        line.join(queue(3), SMALL, 2);
        assert!(line.leave(1) && !line.leave(1));
        for session in 0..2 * MOST_ACCOUNTS as u64 {
            line.join(Source::queue(QueueKey { session, index: 2 }), SMALL, 5);
            line.next(BOTH).unwrap();
        }
        assert!(line.accounts.len() <= MOST_ACCOUNTS, "{}", line.accounts.len());
        line.settle();
        assert!(!line.is_quiet(), "one still waits");
        line.retain(|_| false);
        line.settle();
        assert!(line.is_empty() && line.is_quiet());
    }

    #[test]
    fn a_line_is_quiet_again_when_many_have_gone_by() {
        let mut line = Line::default();
        assert!(line.is_quiet() && line.goes_by(queue(2), SMALL, BOTH));
        line.join(queue(2), SMALL, 1);
        assert_eq!(line.next(BOTH), Some(1));
        for _ in 0..CALM {
            assert!(!line.is_quiet() && line.goes_by(queue(2), SMALL, BOTH));
        }
        assert!(line.is_quiet());
    }
}
