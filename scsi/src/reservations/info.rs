//! Reservations as operators see them.

use super::Reservations;

/// Who is registered and who has reserved, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationsInfo {
    /// PRGENERATION.
    pub generation: u32,
    /// Registrations and reservation survive a restart (APTPL).
    pub durable: bool,
    /// The type of the persistent reservation (SPC-5, table 70).
    pub reservation_type: Option<u8>,
    /// In the order of their making.
    pub registrations: Vec<RegistrationInfo>,
    /// Who has reserved by RESERVE: initiator port and controller.
    pub reserved_by: Option<(u64, String)>,
    /// What was kept cannot be read: nobody may read or write.
    pub unreadable: bool,
}

/// A registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationInfo {
    /// The initiator port.
    pub initiator: u64,
    /// The controller.
    pub target_port: String,
    /// The reservation key.
    pub key: u64,
    /// Whether it holds the reservation.
    pub holder: bool,
}

impl Reservations {
    pub(super) fn info(&self) -> ReservationsInfo {
        let registration = |known: &super::Registration| RegistrationInfo {
            initiator: known.member.name.initiator,
            target_port: known.member.name.target_port.clone(),
            key: known.key,
            holder: self.is_holder(&known.member.name),
        };
        ReservationsInfo {
            generation: self.generation,
            durable: self.durable,
            reservation_type: self.reservation.as_ref().map(|reservation| reservation.kind as u8),
            registrations: self.registrations.iter().map(registration).collect(),
            reserved_by: None,
            unreadable: false,
        }
    }
}
