//! Who waits for which commit.
//!
//! Commits have numbers. A request that has to be durable takes a *ticket*: the number of the next commit to begin. It is
//! durable when that one is done: the commit took everything that was changed before it began.
//!
//! Why it does: who takes a ticket fences, then reads `started`; the engine stores `started`, fences, then looks at what
//! has changed. If the reader does not see the engine's store, the engine sees what was changed before the reader's fence.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, fence};

use crossbeam::utils::CachePadded;

/// See the module's description.
pub(crate) struct Commits {
    wanted: CachePadded<AtomicU64>,
    started: CachePadded<AtomicU64>,
    done: AtomicU64,
    failed: AtomicBool,
}

impl Commits {
    pub(crate) fn new() -> Commits {
        Commits {
            wanted: CachePadded::new(AtomicU64::new(0)),
            started: CachePadded::new(AtomicU64::new(0)),
            done: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// For the durability of all that has been changed before the call. The engine is to be called afterwards.
    pub(crate) fn ticket(&self) -> u64 {
        fence(SeqCst);
        let ticket = self.started.load(Relaxed) + 1;
        self.wanted.fetch_max(ticket, AcqRel);
        ticket
    }

    /// Whether the commit of a ticket is done.
    #[inline]
    pub(crate) fn is_done(&self, ticket: u64) -> bool {
        self.done.load(Acquire) >= ticket
    }

    /// Whether one has failed: none will be done any more.
    #[inline]
    pub(crate) fn have_failed(&self) -> bool {
        self.failed.load(Acquire)
    }

    /// For the engine: whether somebody waits for one that has not begun.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Acquire) > self.started.load(Relaxed)
    }

    /// For the engine: the next one begins. What has changed is to be looked at afterwards.
    pub(crate) fn begin(&self) -> u64 {
        let number = self.started.load(Relaxed) + 1;
        self.started.store(number, SeqCst);
        fence(SeqCst);
        number
    }

    /// For the engine: it is durable.
    pub(crate) fn end(&self, number: u64) {
        self.done.store(number, Release);
    }

    /// For the engine: nothing will be durable any more.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_for_a_commit_that_has_not_begun() {
        let commits = Commits::new();
        assert!(!commits.is_wanted());
        assert_eq!((commits.ticket(), commits.ticket()), (1, 1));
        assert!(commits.is_wanted());
        assert_eq!(commits.begin(), 1);
        assert!(!commits.is_wanted());
        assert_eq!(commits.ticket(), 2, "the first may have looked already");
        commits.end(1);
        assert!(commits.is_done(1) && !commits.is_done(2) && commits.is_wanted() && !commits.have_failed());
        commits.fail();
        assert!(commits.have_failed());
    }
}
