//! The task set of a unit (SAM-5, clause 8): one for all initiators (TST is 0). It decides when a command begins.
//!
//! It knows only those commands that others may have to wait for ([`Rank::is_known`]). While one of them holds
//! everybody up, the geometry word sends every command the long way, where it asks. A SIMPLE command that nobody waits
//! for is in no table, here or elsewhere, and pays nothing. An ORDERED one has to find those out: whoever makes it asks
//! everybody who serves the unit to say when what was under way has ended ([`Rank::asks_around`]). Who is asked after
//! [`LogicalUnit::enter`] sees the word.
//!
//! Of those who may change what has to be saved, one at a time has begun. It keeps the others back until its change counts
//! ([`LogicalUnit::change_counts`]), whatever its command does after that.
//!
//! Who waits is told of the end of one command that it waits for, asks again then, and finds the next: so what one end
//! costs does not grow with the commands that are there.

use std::collections::VecDeque;

use crate::LogicalUnit;
use crate::rules::Rank;

/// ORDERED and HEAD OF QUEUE commands that a task set knows at once, those who save excepted; those beyond are refused.
const MOST: usize = 1024;
/// Those who change what has to be saved; the others have to come again. Those who wait for nobody's turn have as many
/// places of their own, so that nobody keeps them out who is to be preempted.
const MOST_SAVING: usize = 32;
/// How many commands that overtake may go before one that came earlier, so that it begins sooner or later.
const MOST_OVERTAKING: u64 = 64;

/// A command's place in the order in which commands came to a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    number: u64,
    /// How many that overtake came before it.
    overtaking: u64,
}

/// A command that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Its place.
    pub place: Place,
    /// Whether it need not wait for any command that the task set knows. (See [`Rank::asks_around`] for the others.)
    pub free: bool,
}

#[derive(Debug, Default)]
pub(crate) struct TaskSet {
    next: Place,
    /// In order.
    entries: VecDeque<Entry>,
    counts: Counts,
    /// Of those who save, the one that has begun.
    changing: Option<Place>,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    rank: Rank,
    /// Who is to be told when it is gone; each once.
    waiters: Vec<usize>,
}

/// Entries by what they are, so that no command looks at all of them.
#[derive(Debug, Default)]
struct Counts {
    holding_up: usize,
    saving: usize,
    urgent: usize,
    overtaking: usize,
}

impl Counts {
    fn of(&mut self, rank: Rank) -> [(bool, &mut usize); 4] {
        let urgent = rank.is_urgent();
        [
            (rank.holds_up_all(), &mut self.holding_up),
            (rank.saves() && !urgent, &mut self.saving),
            (urgent, &mut self.urgent),
            (rank.overtakes(), &mut self.overtaking),
        ]
    }

    fn add(&mut self, rank: Rank) {
        self.of(rank).into_iter().for_each(|(is, count)| *count += usize::from(is));
    }

    fn take(&mut self, rank: Rank) {
        self.of(rank).into_iter().for_each(|(is, count)| *count -= usize::from(is));
    }
}

impl TaskSet {
    /// Whether every command has to ask before it begins.
    pub(crate) fn holds_up_all(&self) -> bool {
        self.counts.holding_up > 0
    }

    fn has_room_for(&self, rank: Rank) -> bool {
        let Counts { saving, urgent, .. } = self.counts;
        match (rank.is_urgent(), rank.saves()) {
            (true, _) => urgent < MOST_SAVING,
            (false, true) => saving < MOST_SAVING,
            (false, false) => self.entries.len() - saving - urgent < MOST,
        }
    }

    fn position(&self, place: Place) -> Option<usize> {
        self.entries.binary_search_by_key(&place, |entry| entry.place).ok()
    }

    /// A command that a command at this place waits for.
    fn reason(&self, place: Place, rank: Rank) -> Option<usize> {
        if rank.waits_for_nobody() {
            return None;
        }
        if let Some(changing) = self.changing.filter(|&changing| rank.saves() && changing != place) {
            return self.position(changing);
        }
        let from = self.entries.partition_point(|entry| entry.place < place);
        let before = self.entries.range(..from).position(|entry| rank.waits_for(entry.rank));
        if before.is_some() || self.counts.overtaking == 0 {
            return before;
        }
        let soon = |entry: &&Entry| entry.place.overtaking - place.overtaking < MOST_OVERTAKING;
        let overtakes = |entry: &Entry| entry.place != place && rank.gives_way_to(entry.rank);
        self.entries.range(from..).take_while(soon).position(overtakes).map(|at| from + at)
    }

    /// Whether nothing is left that a command at this place waits for; else `waiter` is told when to ask again.
    fn is_free(&mut self, place: Place, rank: Rank, waiter: usize) -> bool {
        let Some(at) = self.reason(place, rank) else { return true };
        let waiters = &mut self.entries[at].waiters;
        if !waiters.contains(&waiter) {
            waiters.push(waiter);
        }
        false
    }

    /// A command begins.
    fn begin(&mut self, place: Place, rank: Rank) {
        if rank.saves() {
            self.changing = Some(place);
        }
    }

    fn remove(&mut self, at: usize) -> Vec<usize> {
        let Some(entry) = self.entries.remove(at) else { return Vec::new() };
        self.counts.take(entry.rank);
        self.changing.take_if(|changing| *changing == entry.place);
        entry.waiters
    }
}

impl LogicalUnit {
    /// Whether some command holds everybody up: then commands [`enter`](LogicalUnit::enter) before they begin.
    #[inline]
    #[must_use]
    pub fn is_ordering(&self) -> bool {
        self.geometry().is_ordering()
    }

    /// A command comes. If it is known from now on ([`Rank::is_known`]), [`LogicalUnit::leave`] is to be called when it
    /// has ended, however. If it is free, and asks nobody else, it begins. `None`: there are too many, and nothing has
    /// happened.
    pub fn enter(&self, rank: Rank, waiter: usize) -> Option<Entered> {
        let mut cold = self.lock();
        let tasks = &mut cold.tasks;
        if rank.is_known() && !tasks.has_room_for(rank) {
            return None;
        }
        let place = tasks.next;
        tasks.next.number += 1;
        tasks.next.overtaking += u64::from(rank.overtakes());
        let free = tasks.is_free(place, rank, waiter);
        if rank.is_known() {
            tasks.entries.push_back(Entry { place, rank, waiters: Vec::new() });
            tasks.counts.add(rank);
            if free && !rank.asks_around() {
                tasks.begin(place, rank);
            }
            self.publish(&cold);
        }
        Some(Entered { place, free })
    }

    /// Whether nothing that the task set knows is left that a command at this place waits for, which does not begin yet:
    /// it may ask around. If there is, `waiter` is told when to ask again.
    #[must_use]
    pub fn is_next(&self, place: Place, rank: Rank, waiter: usize) -> bool {
        self.lock().tasks.is_free(place, rank, waiter)
    }

    /// Whether a command at this place begins: it need not wait any more for one that the task set knows. If it has to,
    /// `waiter` is told when to ask again.
    #[must_use]
    pub fn may_begin(&self, place: Place, rank: Rank, waiter: usize) -> bool {
        let mut cold = self.lock();
        let free = cold.tasks.is_free(place, rank, waiter);
        if free {
            cold.tasks.begin(place, rank);
        }
        free
    }

    /// What a command that has begun was to change counts now, and nothing of it is left to be saved, though it has not
    /// ended. Returns who is to be told.
    #[must_use]
    pub fn change_counts(&self, place: Place) -> Vec<usize> {
        let mut cold = self.lock();
        let tasks = &mut cold.tasks;
        let Some(at) = tasks.position(place) else { return Vec::new() };
        let rank = tasks.entries[at].rank;
        if !rank.changed().is_known() {
            let waiters = tasks.remove(at);
            self.publish(&cold);
            return waiters;
        }
        tasks.counts.take(rank);
        tasks.counts.add(rank.changed());
        tasks.changing.take_if(|changing| *changing == place);
        let entry = &mut tasks.entries[at];
        entry.rank = rank.changed();
        std::mem::take(&mut entry.waiters)
    }

    /// A command that was known has ended, whether it had begun or not. Returns who is to be told.
    #[must_use]
    pub fn leave(&self, place: Place) -> Vec<usize> {
        let mut cold = self.lock();
        let Some(at) = cold.tasks.position(place) else { return Vec::new() };
        let waiters = cold.tasks.remove(at);
        self.publish(&cold);
        waiters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Attribute;
    use crate::testing::{Bench, shape};
    use crate::{Action, Cdb};
    use pollux_core::Shape;

    const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    const NOBODY: [usize; 0] = [];

    fn rank(attribute: Attribute) -> Rank {
        Rank::new(attribute, &Cdb::from_slice(&READ))
    }

    fn enter(unit: &LogicalUnit, attribute: Attribute, waiter: usize) -> (Place, bool) {
        let Entered { place, free } = unit.enter(rank(attribute), waiter).unwrap();
        (place, free)
    }

    use Attribute::{Head, Ordered, Simple};

    #[test]
    fn what_comes_after_an_ordered_command_waits_for_it() {
        let unit = Bench::new().unit;
        assert!(!unit.is_ordering());
        let (first, free) = enter(&unit, Ordered, 0);
        assert!(free && unit.is_ordering());
        let (simple, free) = enter(&unit, Simple, 5);
        assert!(!free && !unit.may_begin(simple, rank(Simple), 5));
        let (second, free) = enter(&unit, Ordered, 6);
        assert!(!free);
        assert_eq!(unit.leave(first), [5, 6], "each is told once");
        assert!(unit.may_begin(simple, rank(Simple), 5), "what came after it is not waited for");
        assert!(
            unit.is_next(second, rank(Ordered), 6) && unit.may_begin(second, rank(Ordered), 6) && unit.is_ordering()
        );
        assert_eq!(unit.leave(second), NOBODY);
        assert!(!unit.is_ordering());
        assert_eq!(unit.leave(second), NOBODY, "a command ends once");
    }

    #[test]
    fn head_of_queue_goes_before_what_has_not_begun() {
        let unit = Bench::new().unit;
        let (first, _) = enter(&unit, Ordered, 0);
        let (simple, _) = enter(&unit, Simple, 1);
        let (second, _) = enter(&unit, Ordered, 2);
        let (head, free) = enter(&unit, Head, 3);
        assert!(free, "it waits for nothing");
        assert_eq!(unit.leave(first), [1, 2]);
        assert!(!unit.may_begin(simple, rank(Simple), 1) && !unit.may_begin(second, rank(Ordered), 2));
        assert_eq!(unit.leave(head), [1, 2]);
        assert!(unit.may_begin(simple, rank(Simple), 1) && unit.may_begin(second, rank(Ordered), 2));
    }

    #[test]
    fn heads_without_end_do_not_hold_a_command_up_for_ever() {
        let unit = Bench::new().unit;
        let (first, _) = enter(&unit, Head, 0);
        let (simple, free) = enter(&unit, Simple, 1);
        assert!(!free);
        let mut last = first;
        for _ in 0..2 * MOST_OVERTAKING {
            enter(&unit, Simple, 1);
        }
        for turn in 0..2 * MOST_OVERTAKING {
            let next = enter(&unit, Head, 0).0;
            let _ = unit.leave(last);
            last = next;
            assert_eq!(unit.may_begin(simple, rank(Simple), 1), turn >= MOST_OVERTAKING, "{turn}");
        }
    }

    #[test]
    fn who_waits_for_many_is_told_of_one_after_the_other() {
        let unit = Bench::new().unit;
        let heads: Vec<Place> = (0..100).map(|_| enter(&unit, Head, 0).0).collect();
        let (simple, _) = enter(&unit, Simple, 7);
        for head in &heads[1..] {
            assert_eq!(unit.leave(*head), NOBODY, "the first of them is left");
        }
        assert_eq!(unit.leave(heads[0]), [7]);
        assert!(unit.may_begin(simple, rank(Simple), 7));
    }

    fn out(attribute: Attribute, action: u8) -> Rank {
        Rank::new(attribute, &Cdb::from_slice(&[0x5F, action]))
    }

    const REGISTER: u8 = 6;
    const PREEMPT: u8 = 4;

    #[test]
    fn too_many_are_refused_and_those_who_save_have_places_of_their_own() {
        let unit = Bench::new().unit;
        let saving = out(Simple, REGISTER);
        let first = unit.enter(saving, 0).unwrap();
        assert!(first.free && !unit.is_ordering(), "nobody else need ask");
        for _ in 1..MOST_SAVING {
            assert!(!unit.enter(saving, 0).unwrap().free);
        }
        assert_eq!(unit.enter(saving, 0), None);
        for _ in 0..MOST {
            enter(&unit, Head, 0);
        }
        assert_eq!(unit.enter(rank(Ordered), 0), None);
        assert!(!enter(&unit, Simple, 0).1, "who is in no table is not refused");
        for _ in 0..MOST_SAVING {
            assert!(unit.enter(out(Simple, PREEMPT), 0).is_some(), "nobody keeps out who preempts");
        }
        assert_eq!(unit.enter(out(Simple, PREEMPT), 0), None);
        assert_eq!(unit.leave(first.place), [0]);
        assert!(unit.enter(saving, 0).is_some());
    }

    #[test]
    fn who_preempts_waits_for_one_that_has_begun_and_for_nobody_else() {
        for urgent in [out(Simple, PREEMPT), out(Head, PREEMPT), out(Head, REGISTER)] {
            let unit = Bench::new().unit;
            let (ordered, _) = enter(&unit, Ordered, 0);
            let waiting = unit.enter(out(Simple, REGISTER), 1).unwrap();
            let first = unit.enter(urgent, 2).unwrap();
            assert!(!waiting.free && first.free, "it waits for {urgent:?}");
            let second = unit.enter(urgent, 3).unwrap();
            assert!(!second.free, "two save at once");
            assert_eq!(unit.leave(ordered), [1]);
            assert!(!unit.may_begin(waiting.place, out(Simple, REGISTER), 1), "two save at once");
            assert_eq!(unit.leave(first.place), [3, 1]);
            assert!(!unit.may_begin(waiting.place, out(Simple, REGISTER), 1), "it gives way");
            assert!(unit.may_begin(second.place, urgent, 3));
            assert_eq!(unit.leave(second.place), [1]);
            assert!(unit.may_begin(waiting.place, out(Simple, REGISTER), 1));
            let third = unit.enter(urgent, 2).unwrap();
            assert!(!third.free, "one that has begun is waited for, whoever came first");
            assert_eq!(unit.leave(waiting.place), [2]);
            assert!(unit.may_begin(third.place, urgent, 2) && unit.leave(third.place).is_empty());
        }
    }

    #[test]
    fn whose_change_counts_lets_others_save_and_keeps_its_order() {
        for attribute in [Simple, Ordered, Head] {
            let unit = Bench::new().unit;
            let first = unit.enter(out(attribute, 5), 0).unwrap();
            assert!(first.free && unit.may_begin(first.place, out(attribute, 5), 0));
            let second = unit.enter(out(Simple, PREEMPT), 1).unwrap();
            assert!(!second.free);
            assert_eq!(unit.change_counts(first.place), [1]);
            assert!(unit.may_begin(second.place, out(Simple, PREEMPT), 1), "{attribute:?}");
            assert_eq!(unit.is_ordering(), attribute != Simple, "who waits for its end goes on doing so");
            assert_eq!(unit.change_counts(first.place), NOBODY);
            assert!(unit.leave(first.place).is_empty() && unit.leave(second.place).is_empty() && !unit.is_ordering());
        }
    }

    #[test]
    fn while_one_holds_everybody_up_everything_goes_the_long_way() {
        let mut bench = Bench::new();
        let plain = |bench: &Bench| bench.unit.plain_io(&bench.path, Cdb::from_slice(&READ).as_bytes(), 0).is_some();
        assert!(plain(&bench));
        for attribute in [Ordered, Head] {
            let (place, _) = enter(&bench.unit, attribute, 0);
            assert!(!plain(&bench));
            assert!(matches!(bench.execute(&READ), Action::Io { .. }), "the unit is as ready as before");
            bench.unit.set_shape(Some(Shape { num_blocks: 5000, ..shape() }));
            assert!(bench.unit.is_ordering(), "another capacity changes nothing about it");
            let claim = bench.unit.claim(0, 512);
            let _ = bench.unit.leave(place);
            assert!(!plain(&bench) && !bench.unit.is_ordering());
            let _ = bench.unit.release(claim);
            crate::testing::drained(&bench.path);
            assert!(plain(&bench));
            bench.unit.set_shape(Some(shape()));
            crate::testing::drained(&bench.path);
        }
    }
}
