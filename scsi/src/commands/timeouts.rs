//! How long commands take, for the timeouts of REPORT SUPPORTED OPERATION CODES (SPC-5, clause 6.34.4).
//!
//! A command that moves data is as fast as the device below, of which nobody knows more than an initiator does; so what
//! is recommended is what initiators wait by themselves: 30 s for a transfer, twice that where a cache is flushed. Only
//! commands over ranges of any length need more, in proportion to the unit.

use crate::geometry::Geometry;

/// What decides how long a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// A transfer of the device, or the target's own answer, or a save of a few hundred bytes.
    Transfer,
    /// A flush of what is cached, or the end of other commands.
    Flush,
    /// A pass over the range, which may be the whole unit.
    Range,
}

/// A device that is slower than this, in bytes a second, is none to work with.
const SLOWEST: u64 = 32 << 20;
const TRANSFER_S: u32 = 30;
const FLUSH_S: u32 = 60;

/// The entry of a command; `None` stands for no service action.
pub(crate) const fn of(opcode: u8, service_action: Option<u16>) -> Takes {
    let action = match service_action {
        Some(action) => action,
        None => 0,
    };
    match (opcode, action) {
        // START STOP UNIT, SYNCHRONIZE CACHE, PREEMPT AND ABORT, POPULATE TOKEN
        (0x1B | 0x35 | 0x91, _) | (0x5F, 0x05) | (0x83, 0x10) => Takes::Flush,
        // VERIFY without data, WRITE SAME, UNMAP, FORMAT UNIT, SANITIZE, EXTENDED COPY and its kin
        (0x2F | 0xAF | 0x8F | 0x41 | 0x93 | 0x42 | 0x04 | 0x48 | 0x83, _) | (0x7F, 0x0A | 0x0D) => Takes::Range,
        _ => Takes::Transfer,
    }
}

impl Takes {
    /// The nominal time and the recommended timeout in seconds; 0: not indicated. There is a nominal time only where asking
    /// what has become of a command makes sense.
    pub(crate) fn seconds(self, unit: Geometry) -> (u32, u32) {
        match self {
            Takes::Transfer => (0, TRANSFER_S),
            Takes::Flush => (0, FLUSH_S),
            Takes::Range => {
                let pass = unit.blocks().saturating_mul(u64::from(unit.block_size())) / SLOWEST;
                let pass = u32::try_from(pass).unwrap_or(u32::MAX);
                (TRANSFER_S, FLUSH_S.saturating_add(pass))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Flags;
    use crate::testing::shape;
    use pollux_core::Shape;

    #[test]
    fn what_goes_over_the_unit_takes_longer_on_a_larger_one() {
        let seconds = |num_blocks| Takes::Range.seconds(Geometry::of(&Shape { num_blocks, ..shape() }, Flags::empty()));
        assert_eq!(seconds(4096), (30, 60));
        assert_eq!(seconds(2 << 31), (30, 60 + 65536), "2 TiB at 32 MiB/s");
        assert_eq!(Takes::Range.seconds(Geometry::missing(Flags::empty())), (30, 60));
        assert_eq!(
            (of(0x28, None), of(0x5F, Some(5)), of(0x7F, Some(0x0D))),
            (Takes::Transfer, Takes::Flush, Takes::Range)
        );
    }
}
