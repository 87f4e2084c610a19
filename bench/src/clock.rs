//! Time in ticks: of the CPU's time-stamp counter where it is steady, else nanoseconds of the monotonic clock.
//!
//! Ticks are turned into nanoseconds when a result is made, with the ratio over the whole run, which is far more exact
//! than any calibration at the start.

use std::time::{Duration, Instant};

/// A clock that started at its making.
pub(crate) struct Clock {
    tsc: bool,
    start: Instant,
    start_ticks: u64,
    /// Ticks of one second as measured at the start: for deadlines.
    rate: f64,
}

/// How long the first measurement of the counter's rate takes.
const CALIBRATION: Duration = Duration::from_millis(20);

impl Clock {
    pub(crate) fn new() -> Self {
        let tsc = cfg!(target_arch = "x86_64") && steady_counter();
        let mut clock = Clock { tsc, start: Instant::now(), start_ticks: 0, rate: 1e9 };
        clock.start_ticks = clock.now();
        if tsc {
            while clock.start.elapsed() < CALIBRATION {
                std::hint::spin_loop();
            }
            clock.rate = 1e9 / clock.ns_per_tick();
        }
        clock
    }

    /// The time now.
    #[inline(always)]
    pub(crate) fn now(&self) -> u64 {
        if self.tsc { counter() } else { self.start.elapsed().as_nanos() as u64 }
    }

    /// The time after everything that was read before has been seen.
    #[inline(always)]
    pub(crate) fn now_after_loads(&self) -> u64 {
        if self.tsc { counter_after_loads() } else { self.now() }
    }

    /// About so many ticks.
    pub(crate) fn ticks(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.rate) as u64
    }

    /// About how long so many ticks are.
    pub(crate) fn duration(&self, ticks: u64) -> Duration {
        Duration::from_secs_f64(ticks as f64 / self.rate)
    }

    /// Nanoseconds of one tick, measured from the start until now.
    pub(crate) fn ns_per_tick(&self) -> f64 {
        if !self.tsc {
            return 1.0;
        }
        let (ticks, ns) = (self.now() - self.start_ticks, self.start.elapsed().as_nanos());
        ns as f64 / ticks.max(1) as f64
    }
}

/// Whether the time-stamp counter runs at one rate in all states of the CPU.
fn steady_counter() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    ["constant_tsc", "nonstop_tsc", "rdtscp"].iter().all(|wanted| flags.split_whitespace().any(|flag| flag == *wanted))
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn counter() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and the kernel leaves it to user space where it shows the counter
    // as steady.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn counter_after_loads() -> u64 {
    let mut core = 0;
    // SAFETY: `steady_counter` has seen that the CPU has the instruction.
    unsafe { std::arch::x86_64::__rdtscp(&mut core) }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

#[cfg(not(target_arch = "x86_64"))]
fn counter_after_loads() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_time_agree() {
        let clock = Clock::new();
        let (before, since) = (clock.now(), Instant::now());
        std::thread::sleep(Duration::from_millis(5));
        let ns = (clock.now_after_loads() - before) as f64 * clock.ns_per_tick();
        assert!(ns >= 4.9e6 && ns <= since.elapsed().as_nanos() as f64 * 1.1, "{ns} ns");
        let second = clock.ticks(Duration::from_secs(1)) as f64 * clock.ns_per_tick();
        assert!((0.9e9..1.1e9).contains(&second), "{second} ns");
    }
}
