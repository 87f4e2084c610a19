//! Who waits until nothing of what was given back is left on the base.
//!
//! It goes in *rounds*, which have numbers as commits do (`commits.rs`, with the same reasons): a ticket is for the next
//! round to begin, and a round is about all that was given back before it began. It may fail, and the next one may not.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use pollux_core::IoError;

use super::Commits;

/// See the module's description.
pub(crate) struct Erasures {
    rounds: Commits,
    /// The last round that has failed.
    failed: AtomicU64,
}

impl Erasures {
    pub(crate) fn new() -> Erasures {
        Erasures { rounds: Commits::new(), failed: AtomicU64::new(0) }
    }

    /// For all that has been given back before the call. The engine is to be called afterwards.
    pub(crate) fn ticket(&self) -> u64 {
        self.rounds.ticket()
    }

    /// How the round of a ticket has ended, if it has. One that failed after it counts as well.
    pub(crate) fn outcome(&self, ticket: u64) -> Option<Result<(), IoError>> {
        if !self.rounds.is_done(ticket) {
            return None;
        }
        // Stored before the round is done, which was seen.
        Some(if self.failed.load(Acquire) >= ticket { Err(IoError::Medium) } else { Ok(()) })
    }

    /// For the engine: whether somebody waits for a round that has not begun.
    pub(crate) fn is_wanted(&self) -> bool {
        self.rounds.is_wanted()
    }

    /// For the engine: the next one begins. What has been given back is to be looked at afterwards.
    pub(crate) fn begin(&self) -> u64 {
        self.rounds.begin()
    }

    /// For the engine: it has ended.
    pub(crate) fn end(&self, number: u64, failed: bool) {
        if failed {
            self.failed.store(number, Release);
        }
        self.rounds.end(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_fails_is_that_of_its_tickets_alone() {
        let erasures = Erasures::new();
        let first = erasures.ticket();
        assert_eq!((erasures.begin(), erasures.outcome(first)), (first, None));
        let second = erasures.ticket();
        assert!(second > first && erasures.is_wanted());
        erasures.end(first, true);
        assert_eq!((erasures.outcome(first), erasures.outcome(second)), (Some(Err(IoError::Medium)), None));
        assert_eq!(erasures.begin(), second);
        erasures.end(second, false);
        assert!(erasures.outcome(second) == Some(Ok(())) && !erasures.is_wanted());
    }
}
