//! A unit's clock (SPC-5, clause 5.17): the host's, until an initiator sets it.

use std::time::{SystemTime, UNIX_EPOCH};

/// TIMESTAMP has 48 bits.
const MASK: u64 = (1 << 48) - 1;

/// Where a timestamp comes from (SPC-5, table 320).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Origin {
    /// SET TIMESTAMP.
    Initiator = 0b010,
    /// Something else than SET TIMESTAMP: the host.
    Host = 0b011,
}

/// How far the unit's time is ahead of the host's, in milliseconds, if an initiator has set it. It runs on over resets; a
/// restart of the target brings the host's time back, which the standard allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    ahead_ms: Option<u64>,
}

impl Clock {
    /// The unit's time in milliseconds since 1970, when the host's is `host_ms`.
    pub(crate) fn time(self, host_ms: u64) -> (Origin, u64) {
        match self.ahead_ms {
            Some(ahead) => (Origin::Initiator, host_ms.wrapping_add(ahead) & MASK),
            None => (Origin::Host, host_ms & MASK),
        }
    }

    /// Sets it to `time_ms` at the host's time `host_ms`.
    pub(crate) fn set(&mut self, time_ms: u64, host_ms: u64) {
        self.ahead_ms = Some(time_ms.wrapping_sub(host_ms));
    }
}

/// The host's time in milliseconds since 1970.
pub(crate) fn host_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_runs_on_from_there() {
        let mut clock = Clock::default();
        assert_eq!(clock.time(1_000_000), (Origin::Host, 1_000_000));
        clock.set(5, 1_000_000);
        assert_eq!(clock.time(1_000_250), (Origin::Initiator, 255));
        clock.set(MASK, 1_000_000);
        assert_eq!(clock.time(1_000_001), (Origin::Initiator, 0), "48 bits");
    }
}
