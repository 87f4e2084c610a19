//! Reservations of a living unit: when a change counts, which paths are kept from what, and who is told.
//!
//! A path that a reservation may keep from anything is *fenced*: a bit in the word that every command looks at, so the
//! others, holders and registrants among them, keep the plain way and pay nothing. A fenced path's commands go the long way
//! and are held against the tables of [`super::access`].

use std::sync::Arc;

use super::access::{Access, Need};
use super::out::{Effects, Refusal};
use super::{Member, NexusName, Reservations, ReservationsInfo};
use crate::keeper::{Save, Saving, Section, Sections};
use crate::unit::Cold;
use crate::{Action, Cdb, LogicalUnit, Nexus, Outcome, Path};

/// Those whose registration or reservation was preempted by one PREEMPT AND ABORT of a unit; see [`Path::is_preempted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Preempted(pub(crate) u64);

/// What a unit knows of its reservations.
#[derive(Debug, Default)]
pub(crate) struct Held {
    now: Reservations,
    /// Who has reserved by RESERVE.
    classic: Option<Classic>,
    /// What counts as soon as it is saved. Nothing else changes meanwhile.
    saving: Saving<Change>,
    /// PREEMPT AND ABORT that there ever were.
    preemptions: u64,
    /// What was kept cannot be read: until the operator clears it, nobody may read or write, because somebody might be
    /// kept from it.
    unreadable: bool,
}

/// A reservation by RESERVE: ends with the nexus it was made through.
#[derive(Debug)]
struct Classic {
    nexus: Arc<Nexus>,
    /// How often the nexus had been lost then.
    losses: u32,
}

#[derive(Debug)]
struct Change {
    next: Reservations,
    effects: Effects,
    aborts: bool,
}

/// How a change came about.
struct Cause {
    /// The asking initiator; none: the operator, who is not held up.
    initiator: Option<u64>,
    /// The commands of those who are preempted are ended.
    aborts: bool,
}

impl Classic {
    fn is_by(&self, nexus: &Nexus) -> bool {
        NexusName::of(&self.nexus).is(nexus)
    }
}

impl Held {
    /// What was kept; `None`: something that cannot be read.
    pub(crate) fn restored(kept: Option<&Sections>) -> Held {
        let now = Section::Reservations.of(kept).and_then(Reservations::from_text);
        Held { unreadable: now.is_none(), now: now.unwrap_or_default(), ..Held::default() }
    }

    pub(crate) fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    fn fences(&self, nexus: &Nexus) -> bool {
        let by_another = |classic: &Classic| !classic.is_by(nexus);
        self.unreadable || self.classic.as_ref().is_some_and(by_another) || self.now.fences(nexus)
    }

    fn refuses(&self, nexus: &Nexus, access: Access, need: Need) -> bool {
        if self.unreadable {
            return need != Need::Notice;
        }
        match &self.classic {
            Some(classic) => access == Access::Persistent || !classic.is_by(nexus),
            None => self.now.refuses(nexus, need),
        }
    }
}

impl Cold {
    /// A path has appeared.
    pub(crate) fn admit(&mut self, path: &Path) {
        self.held.now.appeared(path.nexus());
        if let Some(change) = self.held.saving.coming() {
            change.next.appeared(path.nexus());
        }
        path.set_fenced(self.held.fences(path.nexus()));
    }

    /// A path has gone.
    pub(crate) fn path_gone(&mut self) {
        let Some(classic) = self.held.classic.take() else { return };
        let mut reachable = false;
        self.each_path(|path| reachable |= classic.is_by(path.nexus()));
        if reachable {
            self.held.classic = Some(classic);
        }
        self.fence();
    }

    /// Ends what was reserved by RESERVE.
    pub(crate) fn release_classic(&mut self) {
        if self.held.classic.take().is_some() {
            self.fence();
        }
    }

    /// Forgets RESERVE if its nexus has been lost since.
    fn drop_lost(&mut self) {
        if self.held.classic.as_ref().is_some_and(|classic| classic.nexus.losses() != classic.losses) {
            self.release_classic();
        }
    }

    fn fence(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.each_path(|path| path.set_fenced(held.fences(path.nexus())));
        self.held = held;
    }

    /// Makes the next state the present one. First the fences, then the attentions, then the answer to the command: who
    /// has been told of a change finds it in force.
    ///
    /// A command that came before the fence may still be with its device; it ends as if the reservation did not exist. That
    /// is what SPC-5 (clause 5.14.1) wants: a reservation is looked at when a command enters the task set, and who must not
    /// have anything of a preempted nexus arrive later uses PREEMPT AND ABORT, which waits for these commands.
    fn apply(&mut self, next: Reservations, effects: &Effects, aborts: bool) -> Option<Preempted> {
        self.held.now = next;
        self.held.unreadable = false;
        let mut mark = None;
        if aborts && !effects.preempted.is_empty() {
            self.held.preemptions += 1;
            mark = Some(Preempted(self.held.preemptions));
        }
        let held = std::mem::take(&mut self.held);
        self.each_path(|path| {
            let nexus = path.nexus();
            path.set_fenced(held.fences(nexus));
            if let Some(mark) = mark.filter(|_| effects.preempted.iter().any(|name| name.is(nexus))) {
                path.preempt(mark);
            }
            for (_, attention) in effects.told.iter().filter(|(name, _)| name.is(nexus)) {
                path.raise(*attention);
            }
        });
        self.held = held;
        mark
    }
}

impl LogicalUnit {
    /// Who is registered and who has reserved.
    #[must_use]
    pub fn reservations(&self) -> ReservationsInfo {
        let mut cold = self.lock();
        cold.drop_lost();
        let by = |classic: &Classic| (classic.nexus.initiator(), classic.nexus.target_port().to_owned());
        ReservationsInfo {
            reserved_by: cold.held.classic.as_ref().map(by),
            unreadable: cold.held.unreadable,
            ..cold.held.now.info()
        }
    }

    /// Takes all registrations and reservations away, for an operator: as CLEAR, and RESERVE, too. What could not be read
    /// is given up; if that is all that was kept, saved mode pages too. Answers like a command: done, to be saved, or BUSY.
    #[must_use]
    pub fn clear_reservations(&self) -> Action {
        let clear = |next: &mut Reservations| {
            let effects = next.clear_by(None);
            next.durable = false;
            Ok(effects)
        };
        let action = self.change(&Cause { initiator: None, aborts: false }, clear);
        if !matches!(action, Action::Done(Outcome::BUSY)) {
            self.lock().release_classic();
        }
        action
    }

    /// Whether a command of this kind ends with RESERVATION CONFLICT. What nobody can refuse takes no lock.
    pub(crate) fn conflicts(&self, path: &Path, access: Access, cdb: &Cdb) -> bool {
        let need = access.need(cdb);
        let asks = access == Access::Persistent || (need != Need::Nothing && path.is_fenced());
        if !asks {
            return false;
        }
        self.asks_held(path, access, need)
    }

    /// Whether the unit is reserved so that a path may not do this.
    pub(crate) fn refuses(&self, path: &Path, need: Need) -> bool {
        path.is_fenced() && self.asks_held(path, Access::Looks, need)
    }

    fn asks_held(&self, path: &Path, access: Access, need: Need) -> bool {
        let mut cold = self.lock();
        cold.drop_lost();
        cold.held.refuses(path.nexus(), access, need)
    }

    pub(crate) fn with_reservations<T>(&self, look: impl FnOnce(&Reservations) -> T) -> T {
        look(&self.lock().held.now)
    }

    /// RESERVE (SPC-2, clause 7.21). Registrations keep it away, as SPC-3 says where CRH is 0.
    pub(crate) fn reserve_classic(&self, path: &Path) -> Outcome {
        let mut cold = self.lock();
        cold.drop_lost();
        let held = &mut cold.held;
        if held.saving.is_busy() {
            return Outcome::BUSY;
        }
        let taken = held.classic.as_ref().is_some_and(|classic| !classic.is_by(path.nexus()));
        if taken || held.unreadable || !held.now.registrations.is_empty() {
            return Outcome::CONFLICT;
        }
        held.classic = Some(Classic { nexus: path.nexus().clone(), losses: path.nexus().losses() });
        cold.fence();
        Outcome::GOOD
    }

    /// RELEASE (SPC-2, clause 7.17): of a reservation that is another's it does nothing.
    pub(crate) fn release_classic(&self, path: &Path) -> Outcome {
        let mut cold = self.lock();
        cold.drop_lost();
        if cold.held.unreadable || !cold.held.now.registrations.is_empty() {
            return Outcome::CONFLICT;
        }
        if cold.held.classic.as_ref().is_some_and(|classic| classic.is_by(path.nexus())) {
            cold.release_classic();
        }
        Outcome::GOOD
    }

    /// PERSISTENT RESERVE OUT: makes `change`, at once or when it is saved.
    pub(crate) fn change_reservations(
        &self,
        path: &Path,
        aborts: bool,
        change: impl FnOnce(&mut Reservations) -> Result<Effects, Refusal>,
    ) -> Action {
        self.change(&Cause { initiator: Some(path.nexus().initiator()), aborts }, change)
    }

    fn change(&self, cause: &Cause, change: impl FnOnce(&mut Reservations) -> Result<Effects, Refusal>) -> Action {
        let mut cold = self.lock();
        if cold.held.saving.is_busy() {
            return Action::Done(Outcome::BUSY);
        }
        let mut next = cold.held.now.clone();
        let effects = match change(&mut next) {
            Ok(effects) => effects,
            Err(refusal) => return refusal.into(),
        };
        let text = next.to_text();
        let same = text == cold.held.now.to_text() && !cold.held.unreadable;
        let Some((keeper, unit)) = self.keeper().zip(self.this()).filter(|_| !same) else {
            return answer(cold.apply(next, &effects, cause.aborts));
        };
        if cause.initiator.is_some_and(|initiator| !keeper.admits(initiator)) {
            return Action::Done(Outcome::BUSY);
        }
        let ticket = cold.held.saving.begin(Change { next, effects, aborts: cause.aborts });
        drop(cold);
        Action::Save(Box::new(Save::new(unit, ticket, Section::Reservations, text)))
    }

    /// A change of reservations has been saved: it counts now. `None`: there is none.
    pub(crate) fn reservations_saved(&self, ticket: u64, saved: bool) -> Option<Option<Preempted>> {
        let mut cold = self.lock();
        let Change { next, effects, aborts } = cold.held.saving.end(ticket).filter(|_| saved)?;
        if cold.lost {
            cold.give_up();
            self.publish(&cold);
        }
        Some(cold.apply(next, &effects, aborts))
    }

    /// The nexuses through which these initiators reach the unit, each once.
    pub(crate) fn nexuses_of(&self, of: impl Fn(u64) -> bool) -> Vec<Member> {
        let mut found: Vec<Member> = Vec::new();
        self.lock().each_path(|path| {
            let nexus = path.nexus();
            if of(nexus.initiator()) {
                found.push(Member::of(nexus));
            }
        });
        let order = |member: &Member| (member.name.initiator, member.name.target_port.clone());
        found.sort_by_cached_key(order);
        found.dedup_by(|one, other| one.name == other.name);
        found
    }

    /// The name of the target port with this number.
    pub(crate) fn target_port(&self, relative_port: u16) -> Option<String> {
        let mut found = None;
        self.lock().each_path(|path| {
            if path.nexus().relative_port() == relative_port {
                found = Some(path.nexus().target_port().to_owned());
            }
        });
        found
    }
}

fn answer(preempted: Option<Preempted>) -> Action {
    match preempted {
        Some(preempted) => Action::Abort(preempted),
        None => Action::Done(Outcome::GOOD),
    }
}
