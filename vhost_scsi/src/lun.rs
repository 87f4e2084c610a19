//! The LUN field of virtio-scsi (virtio 1.2, 5.6.6.1): byte 0 is 1, byte 1 the target, bytes 2 and 3 a single-level
//! LUN (SAM-5, 4.7.7), bytes 4 to 7 zero. Linux sends LUN 0 in the flat form (`40 00`), SPDK in the peripheral one
//! (`00 00`); both mean the same unit.

/// Greatest LUN of a target, in flat addressing.
pub const MAX_LUN: u16 = 0x3fff;

/// What a LUN field names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// A logical unit of a target.
    Unit {
        /// The target.
        target: u8,
        /// The LUN.
        lun: u16,
    },
    /// The REPORT LUNS well-known logical unit of a target.
    WellKnown {
        /// The target.
        target: u8,
    },
    /// An addressing form that no unit of this target has.
    Absent {
        /// The target.
        target: u8,
    },
    /// No target at all.
    Bad,
}

impl Address {
    /// Reads a LUN field.
    #[must_use]
    pub const fn decode(field: [u8; 8]) -> Address {
        let [1, target, high, low, rest @ ..] = field else { return Address::Bad };
        if rest[0] | rest[1] | rest[2] | rest[3] != 0 {
            return Address::Absent { target };
        }
        match (high, low) {
            (0x00, lun) => Address::Unit { target, lun: lun as u16 },
            (0x40..=0x7f, low) => Address::Unit { target, lun: ((high as u16 & 0x3f) << 8) | low as u16 },
            (0xc1, 0x01) => Address::WellKnown { target },
            _ => Address::Absent { target },
        }
    }

    /// The target; `None` for [`Address::Bad`].
    #[must_use]
    pub const fn target(self) -> Option<u8> {
        match self {
            Address::Unit { target, .. } | Address::WellKnown { target } | Address::Absent { target } => Some(target),
            Address::Bad => None,
        }
    }
}

/// The LUN field of a unit as events carry it: in the same form as REPORT LUNS gives it (peripheral below 256, flat
/// above), because Linux compares the two.
#[must_use]
pub const fn encode(target: u8, lun: u16) -> [u8; 8] {
    let high = if lun < 256 { 0 } else { 0x40 | (lun >> 8) as u8 };
    [1, target, high, lun as u8, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_lun_0_are_one_unit() {
        let unit = Address::Unit { target: 3, lun: 0 };
        assert_eq!(Address::decode([1, 3, 0, 0, 0, 0, 0, 0]), unit);
        assert_eq!(Address::decode([1, 3, 0x40, 0, 0, 0, 0, 0]), unit);
    }

    #[test]
    fn every_lun_comes_back_from_its_encoding() {
        for lun in 0..=MAX_LUN {
            assert_eq!(Address::decode(encode(255, lun)), Address::Unit { target: 255, lun });
        }
    }

    #[test]
    fn events_name_small_luns_as_report_luns_does() {
        assert_eq!(encode(7, 0), [1, 7, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encode(7, 255), [1, 7, 0, 255, 0, 0, 0, 0]);
        assert_eq!(encode(7, 256), [1, 7, 0x41, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn other_forms_name_nothing() {
        assert_eq!(Address::decode([0, 3, 0x40, 0, 0, 0, 0, 0]), Address::Bad);
        assert_eq!(Address::decode([0xc1, 1, 0, 0, 0, 0, 0, 0]), Address::Bad);
        assert_eq!(Address::decode([1, 3, 0xc1, 1, 0, 0, 0, 0]), Address::WellKnown { target: 3 });
        assert_eq!(Address::decode([1, 3, 0x40, 0, 0, 0, 0, 1]), Address::Absent { target: 3 });
        assert_eq!(Address::decode([1, 3, 0x01, 0, 0, 0, 0, 0]), Address::Absent { target: 3 });
        assert_eq!(Address::decode([1, 3, 0x80, 0, 0, 0, 0, 0]), Address::Absent { target: 3 });
    }
}
