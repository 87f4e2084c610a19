//! The service actions of PERSISTENT RESERVE OUT, each from one state to the next (SPC-5, clauses 5.14.7 to 5.14.11).
//! On an error nothing has changed that counts: the caller drops the state it was tried on.

use super::{Kind, Member, NexusName, Registration, Reservation, Reservations};
use crate::{Action, Attention, Key, Outcome, Sense, code};

/// Registrations of a unit. READ FULL STATUS with all of them fits into the least of scratch memory.
pub(crate) const MOST: usize = 512;
/// Registrations after which none are made on behalf of others (SPEC_I_PT), so that everybody can still make their own.
pub(crate) const MOST_FOR_OTHERS: usize = 256;

/// Why a service action was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION.
    Sense(Sense),
}

impl From<Refusal> for Action {
    fn from(refusal: Refusal) -> Action {
        match refusal {
            Refusal::Conflict => Action::Done(Outcome::CONFLICT),
            Refusal::Sense(sense) => sense.into(),
        }
    }
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Refusal {
        Refusal::Sense(sense)
    }
}

/// What others notice of a service action.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Who is told of what.
    pub(crate) told: Vec<(NexusName, Attention)>,
    /// Whose registration or reservation was preempted. The asking nexus, too, if the key was its own.
    pub(crate) preempted: Vec<NexusName>,
}

type Done = Result<Effects, Refusal>;

/// REGISTER, and REGISTER AND IGNORE EXISTING KEY.
#[derive(Debug)]
pub(crate) struct Register<'a> {
    /// The asking nexus.
    pub(crate) from: &'a Member,
    /// RESERVATION KEY; `None`: whatever it is.
    pub(crate) key: Option<u64>,
    /// SERVICE ACTION RESERVATION KEY.
    pub(crate) new_key: u64,
    /// APTPL.
    pub(crate) durable: bool,
    /// ALL_TG_PT: the initiator's nexuses through other target ports.
    pub(crate) elsewhere: &'a [Member],
    /// SPEC_I_PT: other nexuses to be registered.
    pub(crate) others: Option<&'a [Member]>,
}

impl Reservations {
    /// Whether a nexus that sends this key may register, and others with it. The rest of what it asks does not matter yet.
    pub(crate) fn admits(&self, from: &NexusName, key: Option<u64>, others: bool) -> Result<(), Refusal> {
        let known = self.key_of(from);
        if key.is_some_and(|key| key != known.unwrap_or(0)) {
            return Err(Refusal::Conflict);
        }
        if known.is_some() && others { Err(Sense::invalid_field(1, Some(4)).into()) } else { Ok(()) }
    }

    /// SPC-5, clause 5.14.7, tables for REGISTER and REGISTER AND IGNORE EXISTING KEY.
    pub(crate) fn register(&mut self, asked: &Register<'_>) -> Done {
        self.admits(&asked.from.name, asked.key, asked.others.is_some())?;
        let mut effects = Effects::default();
        let known = self.key_of(&asked.from.name);
        self.register_one(asked.from, asked.key, asked.new_key, &mut effects)?;
        if known.is_none() && asked.new_key == 0 {
            return Ok(effects);
        }
        // As if the same had been asked through each of them: one that is registered with another key stays as it is.
        for member in asked.elsewhere {
            match self.register_one(member, asked.key, asked.new_key, &mut effects) {
                Ok(()) | Err(Refusal::Conflict) => {}
                Err(full) => return Err(full),
            }
        }
        for member in asked.others.unwrap_or_default() {
            if self.key_of(&member.name).is_some() {
                continue;
            }
            if self.registrations.len() >= MOST_FOR_OTHERS {
                return Err(full().into());
            }
            self.add(member, asked.new_key)?;
        }
        self.durable = asked.durable;
        self.count();
        Ok(effects)
    }

    fn register_one(
        &mut self,
        member: &Member,
        key: Option<u64>,
        new_key: u64,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let known = self.key_of(&member.name);
        if key.is_some_and(|key| key != known.unwrap_or(0)) {
            return Err(Refusal::Conflict);
        }
        match (known, new_key) {
            (None, 0) => {}
            (None, _) => self.add(member, new_key)?,
            (Some(_), 0) => self.unregister(&member.name, effects),
            (Some(_), _) => self.change_key(&member.name, new_key),
        }
        Ok(())
    }

    fn add(&mut self, member: &Member, key: u64) -> Result<(), Refusal> {
        if self.registrations.len() >= MOST {
            return Err(full().into());
        }
        self.registrations.push(Registration { member: member.clone(), key });
        Ok(())
    }

    fn change_key(&mut self, name: &NexusName, key: u64) {
        for known in &mut self.registrations {
            if known.member.name == *name {
                known.key = key;
            }
        }
    }

    /// A registration goes; a reservation goes with its holder, and where registrants shared it they are told (SPC-5,
    /// clause 5.14.11.2.3).
    fn unregister(&mut self, name: &NexusName, effects: &mut Effects) {
        self.registrations.retain(|known| known.member.name != *name);
        let Some(reservation) = &self.reservation else { return };
        let released = match &reservation.holder {
            Some(holder) => holder == name,
            None => self.registrations.is_empty(),
        };
        if released {
            let kind = reservation.kind;
            self.reservation = None;
            if kind.admits_registrants() {
                self.tell_all(name, Attention::ReservationsReleased, effects);
            }
        }
    }

    /// RESERVE (SPC-5, clause 5.14.9).
    pub(crate) fn reserve(&mut self, from: &NexusName, key: u64, kind: Kind) -> Done {
        self.proves(from, key)?;
        match &self.reservation {
            Some(reservation) if self.is_holder(from) && reservation.kind == kind => {}
            Some(_) => return Err(Refusal::Conflict),
            None => self.hold(from, kind),
        }
        Ok(Effects::default())
    }

    /// RELEASE (SPC-5, clause 5.14.11.2.2).
    pub(crate) fn release(&mut self, from: &NexusName, key: u64, kind: Kind) -> Done {
        self.proves(from, key)?;
        let mut effects = Effects::default();
        let Some(reservation) = self.reservation.as_ref().filter(|_| self.is_holder(from)) else {
            return Ok(effects);
        };
        if reservation.kind != kind {
            return Err(Sense::new(Key::IllegalRequest, code::INVALID_RELEASE).into());
        }
        self.reservation = None;
        if kind.admits_registrants() {
            self.tell_all(from, Attention::ReservationsReleased, &mut effects);
        }
        Ok(effects)
    }

    /// CLEAR (SPC-5, clause 5.14.11.2.7).
    pub(crate) fn clear(&mut self, from: &NexusName, key: u64) -> Done {
        self.proves(from, key)?;
        Ok(self.clear_by(Some(from)))
    }

    /// As CLEAR; `None`: by the operator.
    pub(crate) fn clear_by(&mut self, from: Option<&NexusName>) -> Effects {
        let mut effects = Effects::default();
        for known in self.registrations.drain(..).filter(|known| from != Some(&known.member.name)) {
            effects.told.push((known.member.name, Attention::ReservationsPreempted));
        }
        self.reservation = None;
        self.count();
        effects
    }

    /// PREEMPT, and PREEMPT AND ABORT as far as it is the same (SPC-5, clause 5.14.11.2.4). `victim` is the SERVICE
    /// ACTION RESERVATION KEY.
    pub(crate) fn preempt(&mut self, from: &NexusName, key: u64, victim: u64, kind: Kind) -> Done {
        self.proves(from, key)?;
        let is_victims = |known: &Registration| known.key == victim;
        let takes_over = match &self.reservation {
            Some(Reservation { holder: Some(holder), .. }) => self.key_of(holder) == Some(victim),
            Some(Reservation { holder: None, .. }) => victim == 0,
            None => false,
        };
        if victim == 0 && !takes_over {
            return Err(Sense::invalid_parameter(8, None).into());
        }
        if victim != 0 && !self.registrations.iter().any(is_victims) {
            return Err(Refusal::Conflict);
        }
        let mut effects = Effects::default();
        let is_preempted = |known: &Registration| victim == 0 || is_victims(known);
        let names = |known: &Registration| known.member.name.clone();
        effects.preempted = self.registrations.iter().filter(|known| is_preempted(known)).map(names).collect();
        // Who takes over stays registered; who only takes registrations away may take its own away, too.
        let goes = |known: &Registration| is_preempted(known) && !(takes_over && known.member.name == *from);
        let (gone, left): (Vec<_>, Vec<_>) = self.registrations.drain(..).partition(goes);
        self.registrations = left;
        if takes_over {
            let changed = self.reservation.as_ref().is_some_and(|reservation| reservation.kind != kind);
            self.hold(from, kind);
            if changed {
                self.tell_all(from, Attention::ReservationsReleased, &mut effects);
            }
        } else if self.registrations.is_empty() {
            // Everybody held it, and nobody is left.
            self.reservation = None;
        }
        for name in gone.into_iter().map(|known| known.member.name).filter(|name| name != from) {
            effects.told.push((name, Attention::RegistrationsPreempted));
        }
        self.count();
        Ok(effects)
    }

    /// REGISTER AND MOVE (SPC-5, clause 5.14.8). `to` is who gets the reservation, with the key `new_key`.
    pub(crate) fn register_and_move(
        &mut self,
        from: &NexusName,
        key: u64,
        to: &Member,
        new_key: u64,
        (unregister, durable): (bool, bool),
    ) -> Done {
        self.proves(from, key)?;
        let Some(reservation) = &self.reservation else { return Err(Sense::invalid_field(1, Some(4)).into()) };
        let kind = reservation.kind;
        if kind.is_held_by_all() || !self.is_holder(from) {
            return Err(Refusal::Conflict);
        }
        if new_key == 0 {
            return Err(Sense::invalid_parameter(8, None).into());
        }
        if to.name == *from {
            return Err(Sense::invalid_parameter(24, None).into());
        }
        if self.key_of(&to.name).is_some() {
            self.change_key(&to.name, new_key);
        } else {
            self.add(to, new_key)?;
        }
        self.hold(&to.name, kind);
        if unregister {
            self.registrations.retain(|known| known.member.name != *from);
        }
        self.durable = durable;
        self.count();
        Ok(Effects::default())
    }

    /// Only who is registered, and knows its key, may go on.
    fn proves(&self, from: &NexusName, key: u64) -> Result<(), Refusal> {
        if self.key_of(from) == Some(key) { Ok(()) } else { Err(Refusal::Conflict) }
    }

    fn hold(&mut self, by: &NexusName, kind: Kind) {
        let holder = if kind.is_held_by_all() { None } else { Some(by.clone()) };
        self.reservation = Some(Reservation { kind, holder });
    }

    fn tell_all(&self, except: &NexusName, what: Attention, effects: &mut Effects) {
        let others = self.registrations.iter().map(|known| &known.member.name).filter(|name| *name != except);
        effects.told.extend(others.map(|name| (name.clone(), what)));
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}

/// INSUFFICIENT REGISTRATION RESOURCES.
pub(crate) const fn full() -> Sense {
    Sense::new(Key::IllegalRequest, code::INSUFFICIENT_REGISTRATIONS)
}
