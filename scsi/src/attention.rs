//! Unit attentions: what an initiator must be told before its next command is served (SAM-5, clause 5.14).
//!
//! What is pending on a path is a set, one bit per kind, in one atomic word; a kind that is raised twice before it is
//! reported is reported once, which SAM allows. The bits are in the order of SAM's precedence, so the lowest one is
//! reported first.

use crate::{Key, Sense};

/// Something an initiator has to know, in the order in which they are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Attention {
    /// 29h/00h: the unit is new to this initiator, or was switched off and on.
    PowerOn,
    /// 29h/03h: the unit was reset.
    DeviceReset,
    /// 29h/07h: the initiator's nexus was lost and is back.
    NexusLoss,
    /// 3Fh/0Eh: the target's list of units has changed. Told once per nexus, not per unit.
    LunsChanged,
    /// 28h/00h: the medium may be another one.
    MediumChanged,
    /// 2Ah/01h: another initiator has changed mode pages.
    ModeChanged,
    /// 2Ah/03h: a reservation was preempted.
    ReservationsPreempted,
    /// 2Ah/04h: a reservation was released.
    ReservationsReleased,
    /// 2Ah/05h: a registration was preempted.
    RegistrationsPreempted,
    /// 2Ah/09h: the capacity has changed.
    CapacityChanged,
    /// 2Fh/00h: another initiator has cleared this one's commands.
    CommandsCleared,
    /// 38h/07h: the pool below has crossed a soft threshold.
    SoftThreshold,
    /// 3Fh/03h: INQUIRY data has changed.
    InquiryChanged,
    /// 3Fh/05h: another nexus has changed the unit's identifying information.
    DeviceIdentifierChanged,
    /// 2Ah/10h: another path has set the unit's clock.
    TimestampChanged,
    /// 2Ah/02h: another path has reset log parameters.
    LogChanged,
}

impl Attention {
    const ALL: [Attention; 16] = [
        Attention::PowerOn,
        Attention::DeviceReset,
        Attention::NexusLoss,
        Attention::LunsChanged,
        Attention::MediumChanged,
        Attention::ModeChanged,
        Attention::ReservationsPreempted,
        Attention::ReservationsReleased,
        Attention::RegistrationsPreempted,
        Attention::CapacityChanged,
        Attention::CommandsCleared,
        Attention::SoftThreshold,
        Attention::InquiryChanged,
        Attention::DeviceIdentifierChanged,
        Attention::TimestampChanged,
        Attention::LogChanged,
    ];

    pub(crate) const fn bit(self) -> u32 {
        1 << self as u8
    }

    /// Whether it says that what the initiator has done before on this path is undone (29h).
    pub(crate) const fn is_reset(self) -> bool {
        matches!(self, Attention::PowerOn | Attention::DeviceReset | Attention::NexusLoss)
    }

    /// The one to report first of a set of bits.
    pub(crate) fn first(pending: u32) -> Option<Attention> {
        Attention::ALL.get(pending.trailing_zeros() as usize).copied()
    }

    /// The set after this one has been raised. A reset (29h) makes what came before it on this path pointless, except
    /// a stronger reset, and except [`Attention::LunsChanged`], which belongs to the nexus and not to the unit.
    pub(crate) const fn added_to(self, pending: u32) -> u32 {
        let stronger = self.bit() - 1;
        if !self.is_reset() {
            return pending | self.bit();
        }
        let kept = pending & (stronger | Attention::LunsChanged.bit());
        if kept & stronger == 0 { kept | self.bit() } else { kept }
    }

    /// Its sense data.
    #[must_use]
    pub const fn sense(self) -> Sense {
        let code = match self {
            Attention::PowerOn => 0x2900,
            Attention::DeviceReset => 0x2903,
            Attention::NexusLoss => 0x2907,
            Attention::LunsChanged => 0x3F0E,
            Attention::MediumChanged => 0x2800,
            Attention::ModeChanged => 0x2A01,
            Attention::ReservationsPreempted => 0x2A03,
            Attention::ReservationsReleased => 0x2A04,
            Attention::RegistrationsPreempted => 0x2A05,
            Attention::CapacityChanged => 0x2A09,
            Attention::CommandsCleared => 0x2F00,
            Attention::SoftThreshold => 0x3807,
            Attention::InquiryChanged => 0x3F03,
            Attention::DeviceIdentifierChanged => 0x3F05,
            Attention::TimestampChanged => 0x2A10,
            Attention::LogChanged => 0x2A02,
        };
        Sense::new(Key::UnitAttention, code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_the_bits() {
        for (index, attention) in Attention::ALL.into_iter().enumerate() {
            assert_eq!(attention.bit(), 1 << index);
            assert_eq!(Attention::first(attention.bit() | 1 << 31), Some(attention));
        }
        assert_eq!(Attention::first(0), None);
    }

    #[test]
    fn a_reset_drops_what_is_weaker() {
        let all = (1 << Attention::ALL.len()) - 1;
        let luns = Attention::LunsChanged.bit();
        assert_eq!(Attention::PowerOn.added_to(all), Attention::PowerOn.bit() | luns);
        let capacity = Attention::CapacityChanged.bit();
        assert_eq!(Attention::DeviceReset.added_to(capacity), Attention::DeviceReset.bit());
        let pending = Attention::PowerOn.bit() | capacity;
        assert_eq!(Attention::NexusLoss.added_to(pending), Attention::PowerOn.bit(), "power on says it all");
        assert_eq!(Attention::CapacityChanged.added_to(Attention::PowerOn.bit()), pending, "what comes later stays");
    }
}
