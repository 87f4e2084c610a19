//! The task set of a unit (SAM-5, clause 8): one for all initiators (TST is 0). It decides when a command begins.
//!
//! It knows only those commands that others may have to wait for ([`Rank::is_known`]). While one of them holds
//! everybody up, the geometry word sends every command the long way, where it asks. A SIMPLE command that nobody waits
//! for is in no table, here or elsewhere, and pays nothing. An ORDERED one has to find those out: whoever makes it asks
//! everybody who serves the unit to say when what was under way has ended ([`Rank::asks_around`]). Who is asked after
//! [`LogicalUnit::enter`] sees the word.

use crate::rules::Rank;
use crate::{Class, LogicalUnit};

/// Commands that a task set knows at once; those beyond are refused. Looking through all of them takes a microsecond.
const MOST: usize = 1024;
/// Those of them that change what has to be saved; the others have to come again.
const MOST_SAVING: usize = 32;
/// How many commands with HEAD OF QUEUE may go before one that came earlier, so that it begins sooner or later.
const MOST_OVERTAKING: u64 = 64;

/// A command's place in the order in which commands came to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

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
    next: u64,
    /// In order.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    rank: Rank,
    /// Who is to be told when it is gone; each once.
    waiters: Vec<usize>,
}

impl TaskSet {
    /// Whether every command has to ask before it begins.
    pub(crate) fn holds_up_all(&self) -> bool {
        self.entries.iter().any(|entry| entry.rank.holds_up_all())
    }

    fn has_room_for(&self, rank: Rank) -> bool {
        let saving = |rank: Rank| rank.is_of(Class::Saving);
        let others = self.entries.iter().filter(|entry| saving(entry.rank)).count();
        self.entries.len() < MOST && !(saving(rank) && others >= MOST_SAVING)
    }

    /// Whether nothing is left that a command at this place waits for; else `waiter` is told of each such command's end.
    fn is_free(&mut self, place: Place, rank: Rank, waiter: usize) -> bool {
        let mut free = true;
        let overtaken_by = |entry: &Entry| entry.rank.overtakes() && entry.place.0 - place.0 <= MOST_OVERTAKING;
        for entry in &mut self.entries {
            let before = entry.place < place || (entry.place > place && overtaken_by(entry));
            if before && rank.waits_for(entry.rank) {
                free = false;
                if !entry.waiters.contains(&waiter) {
                    entry.waiters.push(waiter);
                }
            }
        }
        free
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
    /// has ended, however. `None`: there are too many, and nothing has happened.
    pub fn enter(&self, rank: Rank, waiter: usize) -> Option<Entered> {
        let mut cold = self.lock();
        if rank.is_known() && !cold.tasks.has_room_for(rank) {
            return None;
        }
        let place = Place(cold.tasks.next);
        cold.tasks.next += 1;
        let free = cold.tasks.is_free(place, rank, waiter);
        if rank.is_known() {
            cold.tasks.entries.push(Entry { place, rank, waiters: Vec::new() });
            self.publish(&cold);
        }
        Some(Entered { place, free })
    }

    /// Whether a command at this place need not wait any more for one that the task set knows; if it does, `waiter` is told
    /// when to ask again.
    #[must_use]
    pub fn may_begin(&self, place: Place, rank: Rank, waiter: usize) -> bool {
        self.lock().tasks.is_free(place, rank, waiter)
    }

    /// A command that was known has ended, whether it had begun or not. Returns who is to be told.
    #[must_use]
    pub fn leave(&self, place: Place) -> Vec<usize> {
        let mut cold = self.lock();
        let Some(at) = cold.tasks.entries.iter().position(|entry| entry.place == place) else { return Vec::new() };
        let entry = cold.tasks.entries.remove(at);
        self.publish(&cold);
        entry.waiters
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
        assert!(unit.may_begin(second, rank(Ordered), 6) && unit.is_ordering());
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
        for turn in 0..2 * MOST_OVERTAKING {
            let next = enter(&unit, Head, 0).0;
            let _ = unit.leave(last);
            last = next;
            assert_eq!(unit.may_begin(simple, rank(Simple), 1), turn >= MOST_OVERTAKING, "{turn}");
        }
    }

    #[test]
    fn too_many_are_refused_and_those_who_save_are_fewer() {
        let unit = Bench::new().unit;
        let saving = Rank::new(Simple, &Cdb::from_slice(&[0x5F]));
        let first = unit.enter(saving, 0).unwrap();
        assert!(first.free && !unit.is_ordering(), "nobody else need ask");
        for _ in 1..MOST_SAVING {
            assert!(!unit.enter(saving, 0).unwrap().free);
        }
        assert_eq!(unit.enter(saving, 0), None);
        for _ in MOST_SAVING..MOST {
            enter(&unit, Head, 0);
        }
        assert_eq!(unit.enter(rank(Ordered), 0), None);
        assert!(!enter(&unit, Simple, 0).1, "who is in no table is not refused");
        assert_eq!(unit.leave(first.place), [0]);
        assert!(unit.enter(saving, 0).is_some());
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
