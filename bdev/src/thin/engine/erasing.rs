//! Nothing of what was given back is left on the base: what a flush waits for that ends an erasure.
//!
//! It is done in rounds (`shared/erasures.rs`). A round is about all that is free when it has come so far, whoever gave it
//! back:
//!
//! - a commit, so that what was given back before is in the quarantine;
//! - all that is there then has left it;
//! - what is free and was not discarded since it was given back is *doomed*: written over with zeroes, and the base may give
//!   it back. So are clusters that lay in leases, which are taken back for that. A doomed cluster that is to be given out
//!   is written over first.
//!
//! What has been given out again is the other's: with what is written there the rest of a cluster goes only when that one is
//! erased. A base that takes no discards is told of nothing, and what is given back is remembered for this alone.

use super::Engine;

/// A round that is under way.
pub(super) struct Round {
    number: u64,
    stage: Stage,
    /// The base has not done something.
    failed: bool,
}

#[derive(Clone, Copy)]
enum Stage {
    /// The commit with this ticket is awaited.
    Commit(u64),
    /// So many times something had come into the quarantine, and all of it is to leave.
    Quarantine(u64),
    Overwriting,
}

impl Round {
    /// Whether what is doomed is being written over.
    pub(super) const fn is_overwriting(&self) -> bool {
        matches!(self.stage, Stage::Overwriting)
    }

    pub(super) const fn fails(&mut self) {
        self.failed = true;
    }
}

impl Engine {
    /// Begins a round if one is wanted, and goes on with the one that is under way.
    pub(super) fn advance_round(&mut self) {
        while self.failed.is_none() && self.round_step() {}
    }

    /// Returns whether it has come any further.
    fn round_step(&mut self) -> bool {
        let Some(Round { number, stage, failed }) = self.telling.round.take() else {
            if !self.shared.erasures.is_wanted() {
                return false;
            }
            let number = self.shared.erasures.begin();
            let stage = Stage::Commit(self.shared.commits.ticket());
            self.telling.round = Some(Round { number, stage, failed: false });
            return true;
        };
        let next = match stage {
            Stage::Commit(ticket) if self.shared.commits.is_done(ticket) => {
                Some(Stage::Quarantine(self.quarantine.entered()))
            }
            Stage::Quarantine(entered) if self.quarantine.has_let_out(entered) => {
                self.doom_what_is_free();
                Some(Stage::Overwriting)
            }
            Stage::Overwriting if self.telling.has_overwritten() => {
                self.shared.erasures.end(number, failed);
                self.shared.tell_waiters();
                return true;
            }
            _ => None,
        };
        self.telling.round = Some(Round { number, stage: next.unwrap_or(stage), failed });
        next.is_some()
    }

    fn doom_what_is_free(&mut self) {
        self.take_leases_back();
        for volume in &self.kept_by {
            while let Some(cluster) = volume.take_back() {
                self.store.give_back(&[cluster]);
            }
        }
        self.telling.doom();
    }
}
