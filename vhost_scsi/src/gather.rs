//! When a busy queue is looked at again.
//!
//! A look at a queue costs the same for one request as for many: the driver's index and descriptors come from the
//! driver's cache, ours go there, and a driver that submits while it is looked at loses the very lines it writes. Where
//! requests follow each other so fast that some more are there within a microsecond, a queue is left alone for that
//! long: both sides do more with each line, and the reactor serves others meanwhile.
//!
//! That is done only for a queue of which many requests were once found at a time, so its driver keeps many in flight
//! and does not wait for the answer to the few. A driver with few in flight is looked at in each turn.

/// How long a queue is left alone, in nanoseconds: less than what an interrupt or a system call costs, and a small part
/// of what a request takes with so many in flight.
const MOST: u64 = 1_200;
/// So many requests at least have to come in that time, at the pace of the last ones.
const WORTH: u64 = 2;
/// Fewer than this at a time, and a driver has too few in flight to be made to wait.
const LEAST: u32 = 6;
/// Fraction bits of `burst`.
const FRACTION: u32 = 16;
/// Of how many looks one forgets a part: what is left to gather comes in fewer at a time than its driver has in flight,
/// and only now and then, when the reactor is held up, are all of them seen at once.
const FORGET: u32 = 16;

/// How a queue's requests have come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gather {
    /// Left alone until then.
    until: u64,
    /// When something was taken last.
    last: u64,
    /// The most that were taken at a time; forgotten slowly.
    burst: u32,
}

impl Gather {
    /// Whether the queue is left alone now.
    #[inline(always)]
    pub(crate) const fn holds(&self, now: u64) -> bool {
        now < self.until
    }

    /// `taken` requests, at least one, were found in a look.
    #[inline]
    pub(crate) fn took(&mut self, now: u64, taken: u32) {
        let gap = now.saturating_sub(self.last);
        self.last = now;
        self.burst = (taken << FRACTION).max(self.burst - (self.burst >> FORGET));
        // A quarter of what there may be, so that a driver that has just submitted all it can is not made to wait.
        let enough = self.burst >> (FRACTION + 2);
        if enough >= LEAST && taken < enough && gap.saturating_mul(WORTH) <= MOST * u64::from(taken) {
            self.until = now + MOST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many looks it takes to serve `count` requests of a driver that makes one each `pace` ns, as long as fewer than
    /// `depth` are unserved; at first they all are.
    fn looks(depth: u64, pace: u64, count: u64) -> u64 {
        let (mut gather, mut now, mut served, mut looks) = (Gather::default(), 1_000_000, 0, 0);
        let (mut there, mut last) = (depth, now);
        while served < count {
            now += 100;
            while there < depth && last + pace <= now {
                last += pace;
                there += 1;
            }
            if there > 0 && !gather.holds(now) {
                gather.took(now, there as u32);
                (served, looks, there) = (served + there, looks + 1, 0);
            }
        }
        looks
    }

    #[test]
    fn a_driver_with_many_in_flight_is_looked_at_less_often() {
        let often = looks(32, 200, 10_000);
        assert!(often < 10_000 / 5, "{often} looks");
    }

    #[test]
    fn a_driver_with_few_in_flight_waits_for_nothing() {
        for depth in 1..24 {
            let mut gather = Gather::default();
            for now in (0..100_000).step_by(50) {
                gather.took(now, depth);
                gather.took(now, 1);
                assert!(!gather.holds(now), "depth {depth}");
            }
        }
    }

    #[test]
    fn requests_that_come_slowly_are_not_waited_for() {
        let mut gather = Gather::default();
        gather.took(1_000_000, 32);
        for at in 1..100 {
            let now = 1_000_000 + at * (MOST / WORTH + 1);
            gather.took(now, 1);
            assert!(!gather.holds(now));
        }
    }

    #[test]
    fn a_wait_ends_and_a_driver_that_has_become_quiet_is_forgotten() {
        let mut gather = Gather::default();
        gather.took(1_000, 32);
        gather.took(1_100, 2);
        assert!(gather.holds(1_100) && gather.holds(1_100 + MOST - 1) && !gather.holds(1_100 + MOST));
        let mut now = 10_000;
        for _ in 0..100_000 {
            now += 100;
            gather.took(now, 1);
        }
        assert!(!gather.holds(now), "one at a time, many thousand times: nothing is gathered any more");
    }
}
