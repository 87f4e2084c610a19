//! The clock of one reactor: `CLOCK_MONOTONIC`, read from the processor's time stamp counter where that can be trusted.
//!
//! The system's clock costs 20 to 25 ns a reading, which an idle turn pays for nothing else; the counter costs 10. The
//! counter is used on x86-64 if it runs at one rate in all states of the processor (`constant_tsc`, `nonstop_tsc`) and
//! the kernel itself keeps time by it. Its rate is not asked for but measured: at least once in [`ANCHOR_NS`] the
//! system's clock is read too (an *anchor*), and the rate since the anchor before is used until the next.
//!
//! So the two clocks are never further apart than the system's clock can be bent in the time between two anchors (NTP
//! may change its rate by 1000 ppm at once, from one extreme to the other: 10 µs), and in practice some ten
//! nanoseconds; times may be compared with those of other threads. Readings do not run backwards as long as the counter
//! does not. If the clocks differ by more than [`TRUST_NS`] at an anchor (a virtual machine was moved, a processor's
//! counter was set), the counter is not used again.

#![allow(unsafe_code)] // To read the counter.

use std::cell::Cell;

use rustix::time::{ClockId, clock_gettime};

/// Time between two anchors.
const ANCHOR_NS: u64 = 10_000_000;
/// The first rate is measured over at least this time.
const LEARN_NS: u64 = 1_000_000;
/// What the clocks may differ by at an anchor.
const TRUST_NS: u64 = 50_000;
/// How often both are read for an anchor.
const TRIES: u32 = 4;
/// Fraction bits of a rate.
const SHIFT: u32 = 32;

/// The system's clock, which all threads share.
#[inline]
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction. Where a process may not use it (PR_SET_TSC), the kernel's own
    // clock would not work in user space either.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

/// Both clocks at one moment. Whatever came between two readings of the counter (an interrupt, the host, the first call
/// of the system's clock) would pass for a wrong rate, so the closest of a few pairs is taken.
fn both() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..TRIES {
        let (before, ns, after) = (counter(), monotonic_ns(), counter());
        let apart = after.wrapping_sub(before);
        if apart < best.0 {
            best = (apart, before.wrapping_add(apart / 2), ns);
        }
    }
    (best.1, best.2)
}

/// Where both clocks were read together.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    ticks: u64,
    /// The system's time.
    ns: u64,
    /// What was said to be the time: later than `ns` if the counter was ahead.
    shown: u64,
}

/// A thread's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    trusted: Cell<bool>,
    anchor: Cell<Anchor>,
    /// Nanoseconds a tick, shifted left by `SHIFT`.
    rate: Cell<u64>,
    /// How many ticks the anchor is good for; 0: there is no rate yet, and each reading reads the system's clock.
    good_for: Cell<u64>,
}

impl Clock {
    /// A clock on the counter if it can be trusted.
    pub(crate) fn new() -> Self {
        Self::from(counter_is_trusted(), both())
    }

    fn from(trusted: bool, (ticks, ns): (u64, u64)) -> Self {
        let anchor = Anchor { ticks, ns, shown: ns };
        Clock { trusted: Cell::new(trusted), anchor: Cell::new(anchor), rate: Cell::new(0), good_for: Cell::new(0) }
    }

    #[inline]
    pub(crate) fn now_ns(&self) -> u64 {
        if self.trusted.get() {
            self.at(counter(), both)
        } else {
            // It may have been ahead when it was trusted last.
            monotonic_ns().max(self.anchor.get().shown)
        }
    }

    #[inline]
    fn at(&self, ticks: u64, both: impl FnOnce() -> (u64, u64)) -> u64 {
        let since = ticks.wrapping_sub(self.anchor.get().ticks);
        if since < self.good_for.get() {
            return self.anchor.get().shown + ((since * self.rate.get()) >> SHIFT);
        }
        let (ticks, ns) = both();
        self.anchored(ticks, ns)
    }

    /// The time, now that both clocks are read.
    #[cold]
    fn anchored(&self, ticks: u64, ns: u64) -> u64 {
        let Anchor { ticks: last_ticks, ns: last_ns, shown } = self.anchor.get();
        let (ticks_since, ns_since) = (ticks.wrapping_sub(last_ticks), ns.saturating_sub(last_ns));
        if self.good_for.get() == 0 && ns_since < LEARN_NS {
            return ns;
        }
        // Every reading until now was before this.
        let shown = shown + ((ticks_since.min(self.good_for.get()) * self.rate.get()) >> SHIFT);
        let now = ns.max(shown);
        self.anchor.set(Anchor { ticks, ns, shown: now });
        if self.good_for.get() > 0 && !self.agrees(ticks_since, ns_since) {
            tracing::warn!("the time stamp counter has jumped: this reactor reads the system's clock from now on");
            self.trusted.set(false);
        } else {
            self.set_rate(ticks_since, ns_since, now - ns);
        }
        now
    }

    /// Whether the counter tells the same time since the last anchor as the system's clock. The longer it is ago, the
    /// further the system's clock may have been bent.
    fn agrees(&self, ticks: u64, ns: u64) -> bool {
        let by_counter = (u128::from(ticks) * u128::from(self.rate.get())) >> SHIFT;
        by_counter.abs_diff(u128::from(ns)) <= u128::from(TRUST_NS + ns / 500)
    }

    /// From now on the counter runs at the rate that was measured, a little slower if it is `ahead`, so that the system's
    /// clock has caught up with it at the next anchor.
    fn set_rate(&self, ticks: u64, ns: u64, ahead: u64) {
        let ticks_of_anchor = u128::from(ticks.max(1)) * u128::from(ANCHOR_NS) / u128::from(ns.max(1));
        let ticks_of_anchor = ticks_of_anchor.clamp(1, 1 << 30) as u64;
        self.good_for.set(ticks_of_anchor);
        self.rate.set(((ANCHOR_NS - ahead.min(ANCHOR_NS / 2)) << SHIFT) / ticks_of_anchor);
    }
}

/// Whether the processor's counter runs steadily and the kernel keeps time by it.
fn counter_is_trusted() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    cfg!(target_arch = "x86_64")
        && read("/sys/devices/system/clocksource/clocksource0/current_clocksource").trim() == "tsc"
        && is_steady(&read("/proc/cpuinfo"))
}

/// What /proc/cpuinfo says of the first processor.
fn is_steady(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    ["constant_tsc", "nonstop_tsc"].iter().all(|flag| flags.split_whitespace().any(|word| word == *flag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A counter of 2.6 GHz and a system's clock that is bent by some ppm, both at the same moment.
    struct Machine {
        clock: Clock,
        ticks: f64,
        ns: f64,
        last: u64,
        /// The counter itself may have run back.
        jumped: bool,
    }

    impl Machine {
        fn new() -> Self {
            Machine { clock: Clock::from(true, (1000, 5000)), ticks: 1000.0, ns: 5000.0, last: 0, jumped: false }
        }

        /// Lets time go by; returns how far the clock is off.
        fn go(&mut self, ns: f64, bent_ppm: f64, jitter: f64) -> f64 {
            self.ticks += ns * 2.6;
            self.ns += ns * (1.0 + bent_ppm / 1e6);
            let system = self.ns;
            let ticks = self.ticks as u64;
            let now = self.clock.at(ticks, || (ticks, (system + jitter) as u64));
            assert!(now >= self.last || self.jumped, "the clock ran back from {} to {now}", self.last);
            self.last = now;
            now as f64 - self.ns
        }
    }

    #[test]
    fn it_stays_with_the_system_clock() {
        let mut machine = Machine::new();
        let mut worst = 0f64;
        for n in 0..2_000_000u32 {
            let off = machine.go(37.0, 30.0, f64::from(n % 7) * 5.0);
            worst = worst.max(off.abs());
        }
        assert!(machine.clock.good_for.get() > 0 && machine.clock.trusted.get());
        // The first rate is measured over a millisecond only, with that jitter.
        assert!(worst < 500.0, "{worst} ns off");
    }

    #[test]
    fn most_readings_do_not_need_the_system_clock() {
        let clock = Clock::from(true, (0, 0));
        let mut system = 0;
        for n in 1..1_000_000u64 {
            clock.at(n * 260, || {
                system += 1;
                (n * 260, n * 100)
            });
        }
        // A millisecond to learn the rate, and one in ten milliseconds of a tenth of a second.
        assert!((10_000..10_020).contains(&system), "{system} readings of the system's clock");
    }

    #[test]
    fn a_jump_of_the_counter_ends_the_trust_in_it() {
        for jump in [1e9, -3e5, 1e6] {
            let mut machine = Machine::new();
            for _ in 0..1000 {
                machine.go(50_000.0, 0.0, 0.0);
            }
            machine.ticks += jump;
            machine.jumped = jump < 0.0;
            // Until the next anchor it cannot be known.
            for _ in 0..300 {
                machine.go(50_000.0, 0.0, 0.0);
                if !machine.clock.trusted.get() {
                    break;
                }
            }
            assert!(!machine.clock.trusted.get(), "a jump by {jump} ticks");
        }
    }

    #[test]
    fn an_untrusted_counter_is_not_used() {
        let clock = Clock::from(false, (0, 0));
        let before = monotonic_ns();
        let now = clock.now_ns();
        assert!((before..=monotonic_ns()).contains(&now));
    }

    #[test]
    fn this_machine_keeps_one_time() {
        let clock = Clock::new();
        let (mut last, start) = (0, monotonic_ns());
        while monotonic_ns() < start + 30_000_000 {
            let (before, now, after) = (monotonic_ns(), clock.now_ns(), monotonic_ns());
            assert!(now >= last && now + 20_000 >= before && now <= after + 20_000, "{before} {now} {after}");
            last = now;
        }
    }

    #[test]
    fn the_flags_are_words() {
        assert!(is_steady("processor: 0\nflags\t\t: fpu constant_tsc rep_good nonstop_tsc cpuid\n"));
        assert!(!is_steady("flags\t\t: fpu constant_tsc nonstop_tsc_s3\n"));
        assert!(!is_steady(""));
    }

    proptest! {
        /// Whatever the pauses and however the system's clock is bent, within what NTP may do to it.
        #[test]
        fn it_never_runs_back_and_is_never_far_off(
            steps in prop::collection::vec((1u32..31, -500.0..500.0f64, 0.0..200.0f64), 1..400)
        ) {
            let mut machine = Machine::new();
            for _ in 0..100 {
                machine.go(20_000.0, 0.0, 0.0);
            }
            for (shift, bent, jitter) in steps {
                let off = machine.go(f64::from(1u32 << shift.min(30)), bent, jitter);
                prop_assert!(off.abs() < 12_000.0 + 200.0, "{} ns off", off);
            }
            prop_assert!(machine.clock.trusted.get());
        }
    }
}
