//! What one reactor counts. Written by its own thread only, read by whoever scrapes.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pollux_core::{Counter, Histogram};

use crate::RingFeatures;

/// The counters and the fixed facts of one reactor.
///
/// `busy_ns + idle_ns` grows with the clock, at the end of each turn; a sleeping reactor brings it up to date at least
/// once in [`Config::max_sleep`](crate::Config::max_sleep).
#[derive(Debug)]
pub struct ReactorStats {
    /// Its number: 0 for the first of `--reactors`.
    pub reactor: usize,
    /// The core it is pinned to.
    pub core: usize,
    /// Its thread, as the kernel numbers it.
    pub tid: i32,
    /// What its ring got from the kernel.
    pub ring: RingFeatures,
    /// Time in turns that did something.
    pub busy_ns: Counter,
    /// Time in turns that did nothing, and asleep.
    pub idle_ns: Counter,
    /// Turns.
    pub turns: Counter,
    /// Times it went to sleep in its ring.
    pub sleeps: Counter,
    /// Times its eventfd woke it.
    pub wakeups: Counter,
    /// Messages taken, from the control plane and from other reactors.
    pub messages: Counter,
    /// Completions taken from the ring.
    pub completions: Counter,
    /// Times it entered the kernel.
    pub enters: Counter,
    /// How long its sleeps were.
    pub sleep: Histogram,
    /// From a sender's write to the eventfd to the reactor's next turn.
    pub wake_by_message: Histogram,
    /// How late sleeps ended that nothing but their time ended.
    pub wake_by_timer: Histogram,
    in_sleep: AtomicBool,
}

impl ReactorStats {
    pub(crate) fn new(reactor: usize, core: usize, tid: i32, ring: RingFeatures) -> Self {
        ReactorStats {
            reactor,
            core,
            tid,
            ring,
            busy_ns: Counter::default(),
            idle_ns: Counter::default(),
            turns: Counter::default(),
            sleeps: Counter::default(),
            wakeups: Counter::default(),
            messages: Counter::default(),
            completions: Counter::default(),
            enters: Counter::default(),
            sleep: Histogram::default(),
            wake_by_message: Histogram::default(),
            wake_by_timer: Histogram::default(),
            in_sleep: AtomicBool::new(false),
        }
    }

    /// Whether it sleeps at this moment.
    #[must_use]
    pub fn in_sleep(&self) -> bool {
        self.in_sleep.load(Relaxed)
    }

    pub(crate) fn set_in_sleep(&self, asleep: bool) {
        self.in_sleep.store(asleep, Relaxed);
    }
}
