//! The space of a thin unit as initiators see it: counts of *threshold sets* of 2^n logical blocks (SBC-4, clause 4.7.3.7),
//! n being THRESHOLD EXPONENT of VPD page B2h, for log page 0Ch and mode page 1Ch/02h.

use pollux_core::{Provisioning, Threshold};

/// Bytes of a threshold descriptor.
pub(crate) const DESCRIPTOR_LEN: usize = 8;

/// A threshold descriptor (SBC-4, clause 6.5.9).
pub(crate) type Descriptor = [u8; DESCRIPTOR_LEN];

/// Available LBA mapping resource count, and used: parameters of log page 0Ch, and resources that thresholds are about.
pub(crate) const AVAILABLE: u16 = 0x0001;
/// See [`AVAILABLE`].
pub(crate) const USED: u16 = 0x0002;

/// The unit alone may use it, or others may, too.
const DEDICATED: u8 = 1;
const SHARED: u8 = 2;

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Supply {
    /// log2 of the blocks of a threshold set.
    pub(crate) exponent: u8,
    space: Provisioning,
}

impl Supply {
    /// Of a unit with blocks of this size.
    pub(crate) fn of(space: Provisioning, block_size: u32) -> Supply {
        let blocks = (space.grain / u64::from(block_size.max(1))).max(2);
        Supply { exponent: blocks.ilog2() as u8, space }
    }

    fn sets(&self, bytes: u64) -> u32 {
        u32::try_from(bytes / self.space.grain.max(1)).unwrap_or(u32::MAX)
    }

    /// The value of a parameter of log page 0Ch.
    pub(crate) fn parameter(&self, code: u16) -> Descriptor {
        let (bytes, scope) = match code {
            AVAILABLE => (self.space.available, if self.space.dedicated { DEDICATED } else { SHARED }),
            _ => (self.space.used, DEDICATED),
        };
        let [a, b, c, d] = self.sets(bytes).to_be_bytes();
        [a, b, c, d, scope, 0, 0, 0]
    }

    /// The thresholds: enabled, soft, armed for a decreasing or an increasing count.
    pub(crate) fn descriptors(&self) -> Vec<Descriptor> {
        const ENABLED: u8 = 0x80;
        const DECREASING: u8 = 0;
        const INCREASING: u8 = 1;
        let descriptor = |threshold: Threshold| {
            let (arming, resource, bytes) = match threshold {
                Threshold::Available(bytes) => (DECREASING, AVAILABLE, bytes),
                Threshold::Used(bytes) => (INCREASING, USED, bytes),
            };
            let [a, b, c, d] = self.sets(bytes).to_be_bytes();
            [ENABLED | arming, resource as u8, 0, 0, a, b, c, d]
        };
        self.space.thresholds.into_iter().flatten().map(descriptor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_counted_in_clusters() {
        let thresholds = [Some(Threshold::Available(20 << 16)), Some(Threshold::Used(9 << 16)), None, None, None];
        let space = Provisioning { grain: 1 << 16, available: 300 << 16, dedicated: false, used: 7 << 16, thresholds };
        let supply = Supply::of(space, 512);
        assert_eq!((supply.exponent, Supply::of(space, 4096).exponent), (7, 4));
        assert_eq!(supply.parameter(AVAILABLE), [0, 0, 1, 44, 2, 0, 0, 0]);
        assert_eq!(supply.parameter(USED), [0, 0, 0, 7, 1, 0, 0, 0]);
        assert_eq!(supply.descriptors(), [[0x80, 1, 0, 0, 0, 0, 0, 20], [0x81, 2, 0, 0, 0, 0, 0, 9]]);
    }
}
