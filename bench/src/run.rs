//! What is counted while the load runs.

use std::fmt::Arguments;

use crate::clock::Clock;
use crate::histogram::Histogram;
use crate::scsi::Op;

/// How many messages are kept.
const KEPT: usize = 8;

/// What is forgotten when measuring begins.
#[derive(Clone, Default)]
pub(crate) struct Counts {
    /// Requests that ended well, by operation.
    pub(crate) tallies: [Histogram; Op::COUNT],
    pub(crate) kicks: u64,
    pub(crate) interrupts: u64,
    /// Rounds over all queues, and those that found nothing.
    pub(crate) polls: u64,
    pub(crate) empty_polls: u64,
    /// Times that a queue had answers.
    pub(crate) batches: u64,
    /// The client's own time in the batches that were sampled, and their requests.
    pub(crate) busy_ticks: u64,
    pub(crate) busy_ios: u64,
}

impl Counts {
    /// Reads, writes and discards that ended well.
    pub(crate) fn done(&self) -> u64 {
        [Op::Read, Op::Write, Op::Unmap].map(|op| self.tallies[op as usize].count()).iter().sum()
    }
}

/// The state of a run that all queues share.
pub(crate) struct Run<'a> {
    pub(crate) clock: &'a Clock,
    /// Pause before each request, in ticks.
    pub(crate) gap: u64,
    /// No new requests.
    pub(crate) stopping: bool,
    /// When the last answer came.
    pub(crate) last_seen: u64,
    pub(crate) counts: Counts,
    pub(crate) errors: u64,
    /// What the first errors were.
    pub(crate) messages: Vec<String>,
    /// Requests that were sent again because the device asked for it.
    pub(crate) retries: u64,
}

impl<'a> Run<'a> {
    pub(crate) fn new(clock: &'a Clock) -> Self {
        Run {
            clock,
            gap: 0,
            stopping: false,
            last_seen: clock.now(),
            counts: Counts::default(),
            errors: 0,
            messages: Vec::new(),
            retries: 0,
        }
    }

    /// Counts a request that failed.
    #[cold]
    pub(crate) fn failed(&mut self, what: Arguments<'_>) {
        self.errors += 1;
        if self.messages.len() < KEPT {
            self.messages.push(what.to_string());
        }
    }
}
