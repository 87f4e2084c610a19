//! What is counted while the load runs.

use std::fmt::Arguments;

use crate::clock::Clock;
use crate::histogram::Histogram;
use crate::scsi::Op;

/// How many messages of one kind are kept.
const MESSAGES: usize = 8;

/// The state of a run that all queues share.
pub(crate) struct Run<'a> {
    pub(crate) clock: &'a Clock,
    /// Pause before each request, in ticks.
    pub(crate) gap: u64,
    /// No new requests.
    pub(crate) stopping: bool,
    /// When the last answer came.
    pub(crate) last_seen: u64,
    /// Requests that ended well since the last reset, by operation.
    pub(crate) tallies: [Histogram; Op::COUNT],
    pub(crate) errors: u64,
    /// What the first errors were.
    pub(crate) messages: Vec<String>,
    /// Requests that were sent again because the device asked for it.
    pub(crate) retries: u64,
    pub(crate) kicks: u64,
    pub(crate) interrupts: u64,
    /// Rounds over all queues, and those that found nothing.
    pub(crate) polls: u64,
    pub(crate) empty_polls: u64,
    pub(crate) batches: u64,
    /// The client's own time in the batches that were sampled, and their requests.
    pub(crate) busy_ticks: u64,
    pub(crate) busy_ios: u64,
}

impl<'a> Run<'a> {
    pub(crate) fn new(clock: &'a Clock, gap: u64) -> Self {
        Run {
            clock,
            gap,
            stopping: false,
            last_seen: clock.now(),
            tallies: Default::default(),
            errors: 0,
            messages: Vec::new(),
            retries: 0,
            kicks: 0,
            interrupts: 0,
            polls: 0,
            empty_polls: 0,
            batches: 0,
            busy_ticks: 0,
            busy_ios: 0,
        }
    }

    /// Forgets what was counted so far, except errors.
    pub(crate) fn reset(&mut self) {
        self.tallies = Default::default();
        (self.polls, self.empty_polls, self.batches, self.busy_ticks, self.busy_ios) = (0, 0, 0, 0, 0);
        (self.kicks, self.interrupts) = (0, 0);
    }

    /// Counts a request that failed.
    #[cold]
    pub(crate) fn failed(&mut self, what: Arguments<'_>) {
        self.errors += 1;
        if self.messages.len() < MESSAGES {
            self.messages.push(what.to_string());
        }
    }

    /// Requests that ended well since the last reset.
    pub(crate) fn done(&self) -> u64 {
        self.tallies.iter().map(Histogram::count).sum()
    }
}
