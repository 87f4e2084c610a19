//! Which command waits for which: one table, new against running, and what is asked of it.
//!
//! A command is of two classes. By its task attribute (SAM-5, clause 8.6) it is SIMPLE, ORDERED or HEAD OF QUEUE; that
//! decides when it *begins*, by the order in which commands came to the unit, through whatever initiator, queue and
//! reactor ([`task_set`](crate::task_set)). By its kind it needs its range, or something else, for itself; that decides
//! when it *touches* it ([`claims`](crate::claims)). The first comes before the second, always: who waits to begin has
//! nothing that another could wait for, and who has begun waits for no turn, so nobody waits in a circle. Who preempts
//! waits for no turn at all ([`Rank::is_urgent`]).
//!
//! A copy command is to turns what any command is, at the unit that it was sent to and until it is answered. What it reads and
//! writes, there and at other units, are the copy manager's own accesses, in no task set: task attributes order the commands
//! of one unit (SAM-5, clause 8), so [`Class::Copy`] and turns pass each other.

use crate::{Cdb, Outcome};

/// What a command is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A command with nothing special: data, or questions to the unit.
    Simple,
    /// Has its range to itself: COMPARE AND WRITE, ORWRITE, WRITE ATOMIC.
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
    /// It takes what another initiator has: PREEMPT, PREEMPT AND ABORT.
    preempts: bool,
}

impl Rank {
    /// That of a command with this attribute.
    #[must_use]
    pub fn new(attribute: Attribute, cdb: &Cdb) -> Rank {
        // PERSISTENT RESERVE OUT, RESERVE, RELEASE, MODE SELECT.
        let saves = matches!(cdb.opcode(), 0x5F | 0x16 | 0x17 | 0x56 | 0x57 | 0x15 | 0x55);
        let preempts = cdb.opcode() == 0x5F && matches!(cdb.byte(1) & 0x1F, 0x04 | 0x05);
        Rank { attribute, kind: if saves { Class::Saving } else { Class::Simple }, preempts }
    }

    /// The same of a command whose change counts: it saves nothing any more.
    pub(crate) fn changed(self) -> Rank {
        Rank { kind: Class::Simple, preempts: false, ..self }
    }

    /// The class that says when it begins.
    const fn turn(self) -> Class {
        match self.attribute {
            Attribute::Simple => self.kind,
            Attribute::Ordered => Class::Ordered,
            Attribute::Head => Class::Head,
        }
    }

    /// Whether it may change what has to be saved.
    pub(crate) fn saves(self) -> bool {
        self.kind == Class::Saving
    }

    /// Whether it saves and waits for nobody's turn, only for one that is at it: by HEAD OF QUEUE, or because it preempts.
    /// Who is to be preempted can have commands that wait for as long as it likes; were they waited for, it would decide
    /// whether it is preempted. An initiator that asks for order (ORDERED) gets it even so.
    pub(crate) fn is_urgent(self) -> bool {
        self.saves() && (self.attribute == Attribute::Head || (self.preempts && self.attribute == Attribute::Simple))
    }

    /// Whether it begins only when another that came before it has ended. Of those who save, one at a time begins, whoever
    /// came first; that is asked elsewhere.
    pub(crate) fn waits_for(self, running: Rank) -> bool {
        let waits = |new, running| rule(new, running) == Waits;
        !self.is_urgent() && (waits(self.turn(), running.turn()) || waits(self.kind, running.kind))
    }

    /// Whether it lets another that came after it begin first.
    pub(crate) fn gives_way_to(self, later: Rank) -> bool {
        let head = later.attribute == Attribute::Head && rule(self.turn(), Class::Head) == Waits;
        !self.is_urgent() && (head || (self.saves() && later.is_urgent()))
    }

    /// Whether some that came before it let it begin first.
    pub(crate) fn overtakes(self) -> bool {
        self.attribute == Attribute::Head || self.is_urgent()
    }

    /// Whether it never waits.
    pub(crate) fn waits_for_nobody(self) -> bool {
        self.attribute == Attribute::Head && !self.saves()
    }

    /// Whether every command has to ask for it before it begins.
    pub(crate) fn holds_up_all(self) -> bool {
        rule(Class::Simple, self.turn()) == Waits
    }

    /// The answer when there is no room for it in the task set.
    #[must_use]
    pub fn refusal(self) -> Outcome {
        if self.saves() { Outcome::BUSY } else { Outcome::TASK_SET_FULL }
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

    /// Whether, while it waits for its turn, so does everything that came after it, those who save excepted.
    #[must_use]
    pub fn is_waited_with(self) -> bool {
        !self.saves()
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
        assert!(head.waits_for_nobody() && !head_saving.waits_for_nobody());
        assert!(saving.waits_for(saving) && saving.waits_for(ordered) && !saving.waits_for(simple));
        assert!(simple.gives_way_to(head) && simple.gives_way_to(head_saving) && !simple.gives_way_to(ordered));
        assert_eq!([simple, ordered, head, saving].map(Rank::is_known), [false, true, true, true]);
        assert_eq!([simple, ordered, head, saving].map(Rank::holds_up_all), [false, true, true, false]);
        assert_eq!([simple, ordered, head, saving].map(Rank::asks_around), [false, true, false, false]);
        let kind = |cdb: &[u8]| Rank::new(Attribute::Simple, &Cdb::from_slice(cdb)).kind;
        assert_eq!([kind(&[0x55]), kind(&[0x5A])], [Class::Saving, Class::Simple]);
    }

    #[test]
    fn who_preempts_waits_for_nobody_s_turn_unless_it_wants_to() {
        let of = |attribute, action| Rank::new(attribute, &Cdb::from_slice(&[0x5F, action]));
        let [simple, ordered, head] = [Attribute::Simple, Attribute::Ordered, Attribute::Head];
        let all = [simple, ordered, head].map(|attribute| of(attribute, 6));
        for urgent in [of(simple, 4), of(simple, 5), of(head, 4), of(head, 6)] {
            assert!(urgent.is_urgent() && all.iter().all(|other| !urgent.waits_for(*other)), "{urgent:?}");
            assert!(all[..2].iter().all(|other| other.gives_way_to(urgent) && !urgent.gives_way_to(*other)));
        }
        for patient in [of(ordered, 5), of(simple, 6), of(simple, 3)] {
            assert!(!patient.is_urgent() && patient.waits_for(all[0]) && patient.waits_for(all[1]), "{patient:?}");
        }
        assert!(of(simple, 5).is_known() && !of(simple, 5).changed().is_known(), "its change counts: nobody waits");
        assert!(of(head, 5).changed().holds_up_all() && !of(head, 5).changed().saves());
    }
}
