//! Which command waits for which: one table, new against running, and what is asked of it.
//!
//! A command is of two classes. By its task attribute (SAM-5, clause 8.6) it is SIMPLE, ORDERED or HEAD OF QUEUE; that
//! decides when it *begins*, by the order in which commands came to the unit, through whatever initiator, queue and
//! reactor ([`task_set`](crate::task_set)). By its kind it needs its range, or something else, for itself; that decides
//! when it *touches* it ([`claims`](crate::claims)). The first comes before the second, always: who waits to begin has
//! nothing that another could wait for, and who has begun waits for no turn, so nobody waits in a circle.

use crate::{Cdb, Outcome};

/// What a command is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A command with nothing special: data, or questions to the unit.
    Simple,
    /// Has its range to itself: COMPARE AND WRITE, ORWRITE.
    Atomic,
    /// Goes on after its answer (IMMED).
    Background,
    /// Reads or writes the unit for a copy, whichever unit was sent the command and whether that was answered or not.
    Copy,
    /// May change what has to be saved: reservations, saved mode pages.
    Saving,
    /// ORDERED.
    Ordered,
    /// HEAD OF QUEUE.
    Head,
    /// A task management function, as far as commands are in its scope.
    Management,
    /// PREEMPT AND ABORT, against the commands of those whom it has preempted.
    Preemption,
}

/// What becomes of a new command, or of a running one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The new one goes on beside it.
    Passes,
    /// The new one waits for its end if both touch one byte.
    Overlap,
    /// The new one waits for its end.
    Waits,
    /// The new one ends it.
    Ends,
}

use Rule::{Ends, Overlap, Passes, Waits};

impl Class {
    /// Every class, in the order of the table.
    pub const ALL: [Class; 9] = [
        Class::Simple,
        Class::Atomic,
        Class::Background,
        Class::Copy,
        Class::Saving,
        Class::Ordered,
        Class::Head,
        Class::Management,
        Class::Preemption,
    ];

    /// Its name in the documentation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Class::Simple => "simple",
            Class::Atomic => "atomic",
            Class::Background => "background",
            Class::Copy => "copy",
            Class::Saving => "saving",
            Class::Ordered => "ordered",
            Class::Head => "head of queue",
            Class::Management => "task management",
            Class::Preemption => "preempt and abort",
        }
    }
}

/// A row for each new command, a column for each that came before it and has not ended.
///
/// What came before and *waits* is, to ORDERED, like what runs. HEAD OF QUEUE comes before whatever has not begun, so
/// in its column "before" means "before this one begins".
#[rustfmt::skip]
const RULES: [[Rule; 9]; 9] = [
    //               simple   atomic   backgr.  copy     saving   ordered  head     manag.   preempt
    /* simple     */ [Passes,  Overlap, Passes,  Passes,  Passes,  Waits,   Waits,   Passes,  Passes],
    /* atomic     */ [Overlap, Overlap, Overlap, Overlap, Passes,  Waits,   Waits,   Passes,  Passes],
    /* background */ [Passes,  Overlap, Passes,  Passes,  Passes,  Waits,   Waits,   Passes,  Passes],
    /* copy       */ [Passes,  Overlap, Passes,  Passes,  Passes,  Passes,  Passes,  Passes,  Passes],
    /* saving     */ [Passes,  Passes,  Passes,  Passes,  Waits,   Waits,   Waits,   Passes,  Passes],
    /* ordered    */ [Waits,   Waits,   Passes,  Passes,  Waits,   Waits,   Waits,   Passes,  Passes],
    /* head       */ [Passes,  Passes,  Passes,  Passes,  Passes,  Passes,  Passes,  Passes,  Passes],
    /* management */ [Ends,    Ends,    Passes,  Ends,    Ends,    Ends,    Ends,    Passes,  Passes],
    /* preemption */ [Ends,    Ends,    Passes,  Ends,    Passes,  Ends,    Ends,    Passes,  Passes],
];

/// What becomes of `new` while `running` has not ended.
#[must_use]
pub const fn rule(new: Class, running: Class) -> Rule {
    RULES[new as usize][running as usize]
}

/// Rank attributes (SAM-5, clause 8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// In any order with its like.
    Simple,
    /// After all that came before it, and before all that comes after it.
    Ordered,
    /// Before all that has not begun.
    Head,
}

/// What a unit's task set has to know of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    attribute: Attribute,
    kind: Class,
}

impl Rank {
    /// That of a command with this attribute. One that may save comes at its time: HEAD OF QUEUE counts as SIMPLE.
    #[must_use]
    pub fn new(attribute: Attribute, cdb: &Cdb) -> Rank {
        // PERSISTENT RESERVE OUT, RESERVE, RELEASE, MODE SELECT.
        let saves = matches!(cdb.opcode(), 0x5F | 0x16 | 0x17 | 0x56 | 0x57 | 0x15 | 0x55);
        // Were it to go before one that saves and came earlier, each would wait for the other.
        let attribute = if saves && attribute == Attribute::Head { Attribute::Simple } else { attribute };
        Rank { attribute, kind: if saves { Class::Saving } else { Class::Simple } }
    }

    /// The class that says when it begins.
    const fn turn(self) -> Class {
        match self.attribute {
            Attribute::Simple => self.kind,
            Attribute::Ordered => Class::Ordered,
            Attribute::Head => Class::Head,
        }
    }

    /// Whether it is of this kind.
    pub(crate) fn is_of(self, kind: Class) -> bool {
        self.kind == kind
    }

    /// Whether it begins only when another that came before it has ended.
    pub(crate) fn waits_for(self, running: Rank) -> bool {
        let waits = |new, running| rule(new, running) == Waits;
        waits(self.turn(), running.turn()) || waits(self.kind, running.kind)
    }

    /// Whether it goes before what came earlier and has not begun.
    pub(crate) fn overtakes(self) -> bool {
        self.attribute == Attribute::Head
    }

    /// Whether every command has to ask for it before it begins.
    pub(crate) fn holds_up_all(self) -> bool {
        rule(Class::Simple, self.turn()) == Waits
    }

    /// The answer when there is no room for it in the task set.
    #[must_use]
    pub fn refusal(self) -> Outcome {
        if self.kind == Class::Saving { Outcome::BUSY } else { Outcome::TASK_SET_FULL }
    }

    /// Whether some commands wait for it, so that the task set has to know it.
    #[must_use]
    pub fn is_known(self) -> bool {
        self.holds_up_all() || rule(self.kind, self.kind) == Waits
    }

    /// Whether it waits for commands that the task set does not know.
    #[must_use]
    pub fn asks_around(self) -> bool {
        rule(self.turn(), Class::Simple) == Waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(rule: Rule) -> &'static str {
        match rule {
            Passes => "–",
            Overlap => "overlap",
            Waits => "waits",
            Ends => "ends it",
        }
    }

    /// The table as docs/scsi.md shows it.
    fn printed() -> String {
        let names: Vec<_> = Class::ALL.iter().map(|class| class.name()).collect();
        let mut text = format!("| new \\ running | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
        for new in Class::ALL {
            let cells: Vec<_> = Class::ALL.iter().map(|running| cell(rule(new, *running))).collect();
            text += &format!("| {} | {} |\n", new.name(), cells.join(" | "));
        }
        text
    }

    #[test]
    fn the_documentation_shows_the_table() {
        let docs = include_str!("../../docs/scsi.md");
        assert!(docs.contains(&printed()), "docs/scsi.md is to show:\n{}", printed());
    }

    #[test]
    fn whoever_waits_to_begin_is_waited_for_by_nobody_who_has_begun() {
        // The two stages: what decides about ranges never says "waits", what decides about turns never "overlap".
        let of_turn = |class| matches!(class, Class::Ordered | Class::Head);
        for new in Class::ALL {
            for running in Class::ALL {
                let rule = rule(new, running);
                assert!(rule != Overlap || !(of_turn(new) || of_turn(running)), "{new:?} {running:?}");
            }
        }
        // HEAD OF QUEUE overtakes: were it to wait for what it overtakes, both would wait.
        assert!(Class::ALL.iter().all(|running| rule(Class::Head, *running) == Passes));
        // Two that need a range each: only one of the two directions can be by the order of coming, and the other is
        // the same.
        assert_eq!(rule(Class::Simple, Class::Atomic), rule(Class::Atomic, Class::Simple));
    }

    #[test]
    fn attributes_and_kinds_are_judged_one_after_the_other() {
        let (read, out) = (Cdb::from_slice(&[0x28]), Cdb::from_slice(&[0x5F]));
        let [simple, ordered, head] =
            [Attribute::Simple, Attribute::Ordered, Attribute::Head].map(|attribute| Rank::new(attribute, &read));
        let [saving, head_saving] = [Attribute::Simple, Attribute::Head].map(|attribute| Rank::new(attribute, &out));
        assert!(!simple.waits_for(simple) && simple.waits_for(ordered) && simple.waits_for(head));
        assert!([simple, ordered, head, saving].iter().all(|running| ordered.waits_for(*running)));
        assert!([simple, ordered, head, saving].iter().all(|running| !head.waits_for(*running)));
        assert!(saving.waits_for(saving) && saving.waits_for(ordered) && !saving.waits_for(simple));
        assert!(head_saving == saving && !head_saving.overtakes() && head.overtakes());
        assert_eq!([simple, ordered, head, saving].map(Rank::is_known), [false, true, true, true]);
        assert_eq!([simple, ordered, head, saving].map(Rank::holds_up_all), [false, true, true, false]);
        assert_eq!([simple, ordered, head, saving].map(Rank::asks_around), [false, true, false, false]);
        let kind = |cdb: &[u8]| Rank::new(Attribute::Simple, &Cdb::from_slice(cdb)).kind;
        assert_eq!([kind(&[0x55]), kind(&[0x5A])], [Class::Saving, Class::Simple]);
    }
}
