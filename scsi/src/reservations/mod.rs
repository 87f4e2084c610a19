//! Reservations: which initiators may use a unit, and who decided so (SPC-5, clause 5.14; SPC-2 for RESERVE and RELEASE).
//!
//! Everything here is a value: no lock, no path, no time. A service action of PERSISTENT RESERVE OUT turns one
//! [`Reservations`] into the next and says who is to be told ([`out`]); the unit decides when the next one counts, because
//! it may have to be on the medium first ([`unit`]). Registrations belong to I_T nexuses by their names, not to paths or
//! sessions, so they outlive both.
//!
//! Invariants: each nexus is registered once; a reservation exists only while somebody is registered, and its holder is
//! registered; with an all-registrants type there is no single holder.

pub(crate) mod access;
mod info;
mod kept;
pub(crate) mod out;
#[cfg(test)]
mod properties;
pub(crate) mod unit;

pub use info::{RegistrationInfo, ReservationsInfo};

use crate::Nexus;
use access::Need;

/// An I_T nexus by its names, which are the same over reconnects, restarts and re-creation of the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NexusName {
    /// The initiator port: an NAA.
    pub(crate) initiator: u64,
    /// The target port: the controller's name.
    pub(crate) target_port: String,
}

impl NexusName {
    pub(crate) fn of(nexus: &Nexus) -> NexusName {
        NexusName { initiator: nexus.initiator(), target_port: nexus.target_port().to_owned() }
    }

    pub(crate) fn is(&self, nexus: &Nexus) -> bool {
        self.initiator == nexus.initiator() && self.target_port == nexus.target_port()
    }
}

/// A nexus that may be registered: its names, and the number by which initiators know the target port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: NexusName,
    /// RELATIVE TARGET PORT IDENTIFIER.
    pub(crate) relative_port: u16,
}

impl Member {
    pub(crate) fn of(nexus: &Nexus) -> Member {
        Member { name: NexusName::of(nexus), relative_port: nexus.relative_port() }
    }
}

/// Types of persistent reservations (SPC-5, table 70).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
    ExclusiveAccessRegistrantsOnly = 6,
    WriteExclusiveAllRegistrants = 7,
    ExclusiveAccessAllRegistrants = 8,
}

impl Kind {
    pub(crate) const ALL: [Kind; 6] = [
        Kind::WriteExclusive,
        Kind::ExclusiveAccess,
        Kind::WriteExclusiveRegistrantsOnly,
        Kind::ExclusiveAccessRegistrantsOnly,
        Kind::WriteExclusiveAllRegistrants,
        Kind::ExclusiveAccessAllRegistrants,
    ];

    pub(crate) fn from_code(code: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Whether others may not even read.
    const fn excludes_readers(self) -> bool {
        use Kind::{ExclusiveAccess, ExclusiveAccessAllRegistrants, ExclusiveAccessRegistrantsOnly};
        matches!(self, ExclusiveAccess | ExclusiveAccessRegistrantsOnly | ExclusiveAccessAllRegistrants)
    }

    /// Whether every registered nexus holds the reservation.
    pub(crate) const fn is_held_by_all(self) -> bool {
        matches!(self, Kind::WriteExclusiveAllRegistrants | Kind::ExclusiveAccessAllRegistrants)
    }

    /// Whether who is registered may do what the holder may.
    pub(crate) const fn admits_registrants(self) -> bool {
        !matches!(self, Kind::WriteExclusive | Kind::ExclusiveAccess)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) member: Member,
    pub(crate) key: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub(crate) kind: Kind,
    /// Nobody in particular with an all-registrants type.
    pub(crate) holder: Option<NexusName>,
}

/// Registrations and the persistent reservation of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reservations {
    /// PRGENERATION.
    pub(crate) generation: u32,
    /// Everything survives power loss: the last successful registration had APTPL set.
    pub(crate) durable: bool,
    /// In the order of their making.
    pub(crate) registrations: Vec<Registration>,
    pub(crate) reservation: Option<Reservation>,
}

impl Reservations {
    fn key_of(&self, name: &NexusName) -> Option<u64> {
        self.registrations.iter().find(|known| known.member.name == *name).map(|known| known.key)
    }

    /// Whether this nexus holds the reservation.
    pub(crate) fn is_holder(&self, name: &NexusName) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| match &reservation.holder {
            Some(holder) => holder == name,
            None => self.key_of(name).is_some(),
        })
    }

    /// Whether the reservation may keep this nexus from anything.
    pub(crate) fn fences(&self, nexus: &Nexus) -> bool {
        let Some(reservation) = &self.reservation else { return false };
        let registered = || self.registrations.iter().any(|known| known.member.name.is(nexus));
        let admitted = match &reservation.holder {
            Some(holder) if holder.is(nexus) => true,
            _ => reservation.kind.admits_registrants() && registered(),
        };
        !admitted
    }

    /// Whether a command that needs this ends with RESERVATION CONFLICT when it comes from this nexus.
    pub(crate) fn refuses(&self, nexus: &Nexus, need: Need) -> bool {
        let refused = |reservation: &Reservation| match need {
            Need::Nothing | Need::Notice => false,
            Need::Reading => reservation.kind.excludes_readers(),
            Need::Writing => true,
        };
        self.reservation.as_ref().is_some_and(refused) && self.fences(nexus)
    }

    /// A path of a nexus has appeared: the number of its port may be another one than when it was registered.
    pub(crate) fn appeared(&mut self, nexus: &Nexus) {
        for known in &mut self.registrations {
            if known.member.name.is(nexus) {
                known.member.relative_port = nexus.relative_port();
            }
        }
    }
}
