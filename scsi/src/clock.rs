//! A unit's clock (SPC-5, clause 5.17): the host's, until an initiator sets it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

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

/// What an initiator has set it to, and when. From there it runs on by itself, whatever the host's clock is set to, and
/// over resets; a restart of the target brings the host's time back, which the standard allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    set: Option<(u64, Instant)>,
}

impl Clock {
    /// The unit's time in milliseconds since 1970; `host_ms` is the host's.
    pub(crate) fn time(self, host_ms: u64, now: Instant) -> (Origin, u64) {
        match self.set {
            Some((time_ms, at)) => {
                let since = u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX);
                (Origin::Initiator, time_ms.wrapping_add(since) & MASK)
            }
            None => (Origin::Host, host_ms & MASK),
        }
    }

    pub(crate) fn set(&mut self, time_ms: u64, now: Instant) {
        self.set = Some((time_ms, now));
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
    use std::time::Duration;

    #[test]
    fn a_clock_that_was_set_runs_on_from_there() {
        let (mut clock, now) = (Clock::default(), Instant::now());
        let later = |ms| now + Duration::from_millis(ms);
        assert_eq!(clock.time(1_000_000, now), (Origin::Host, 1_000_000));
        clock.set(5, now);
        for host_ms in [1_000_250, 0, u64::MAX] {
            assert_eq!(clock.time(host_ms, later(250)), (Origin::Initiator, 255), "whatever the host's clock says");
        }
        clock.set(MASK, now);
        assert_eq!(clock.time(0, later(1)), (Origin::Initiator, 0), "48 bits");
    }
}
