//! Commits: everything that has changed goes into the log, after the data that it speaks of.
//!
//! A commit is one or more batches. The first begins with what removals and folds have to say; then come the entries of the
//! leaves on the dirty stack, then what has changed of the layers, then the entries of layers that are new. An entry
//! that is on a cluster and has nothing there loses it here, and nowhere else: its batch says that the cluster is free. The
//! store puts a barrier before each batch, so data is on the medium before a map leads to it.
//!
//! What is said is gathered, and told to the store, in parts: a commit takes as many passes as it is long.

use std::collections::VecDeque;

use pollux_core::IoError;

use super::Engine;
use super::gather::{Gathering, PART};
use super::load::{Limits, Load};
use super::orders::Doing;
use super::space::Freed;
use crate::thin::format::Record;
use crate::thin::store::{BatchId, PARE_COMMIT, QUARANTINE_COMMIT};

/// A batch is closed when it has so many bytes.
const BATCH: usize = 256 << 10;
/// The pool commits by itself when something has been changed for so long.
pub(super) const OWN_COMMIT_NS: u64 = 500_000_000;

/// A commit that has begun.
pub(super) struct Commit {
    number: u64,
    /// What is still to be gathered.
    gathering: Option<Gathering>,
    /// What is not in the log yet.
    left: VecDeque<Load>,
    /// What the store is being told.
    telling: Option<Telling>,
    /// What is on its way to the medium, and what is free then.
    flying: Option<(BatchId, Freed)>,
}

/// A batch of which the store knows a part.
struct Telling {
    records: Vec<Record>,
    told: usize,
    pages: u64,
    freed: Freed,
}

impl Commit {
    /// Pages that a checkpoint needs for what the store has not heard of yet.
    pub(super) fn unsaid_pages(&self) -> u64 {
        let told = self.telling.as_ref().map_or(0, |telling| telling.pages);
        let gathered = self.gathering.as_ref().map_or(0, Gathering::pages);
        self.left.iter().map(Load::pages).sum::<u64>() + told + gathered
    }

    /// Whether there is something to do that nobody has to be waited for.
    pub(super) const fn is_at_work(&self) -> bool {
        self.gathering.is_some() || self.telling.is_some()
    }

    fn is_all_told(&self) -> bool {
        !self.is_at_work() && self.left.is_empty()
    }
}

impl Engine {
    /// Begins a commit if one is wanted and none is under way, and goes on with the one that is.
    pub(super) fn advance_commit(&mut self) -> u32 {
        if self.failed.is_some() {
            return 0;
        }
        // While gates are closed guests wait, and what orders change stands still while a commit gathers.
        let may_begin = self.commit.is_none() && !self.doing.as_ref().is_some_and(Doing::has_closed_gates);
        if may_begin && self.wants_commit() {
            let number = self.shared.commits.begin();
            let gathering = Some(self.begin_gathering());
            self.commit = Some(Commit { number, gathering, left: VecDeque::new(), telling: None, flying: None });
            self.dirty_since = None;
        }
        self.go_on_gathering() + self.go_on_telling()
    }

    /// Whether what goes into the commit is being gathered: nothing that the engine changes is to change meanwhile.
    pub(super) fn is_gathering(&self) -> bool {
        self.failed.is_none() && self.commit.as_ref().is_some_and(|commit| commit.gathering.is_some())
    }

    fn go_on_gathering(&mut self) -> u32 {
        let Some(commit) = &mut self.commit else { return 0 };
        let Some(mut gathering) = commit.gathering.take() else { return 0 };
        let (number, mut loads) = (commit.number, std::mem::take(&mut commit.left));
        let ended = self.gather(number, &mut gathering, &mut loads);
        if let Some(commit) = &mut self.commit {
            commit.left = loads;
            commit.gathering = Some(gathering).filter(|_| !ended);
        }
        1
    }

    /// Tells the store some of a batch, if there is room for all of it; the last of it sends it off.
    fn go_on_telling(&mut self) -> u32 {
        let Some(commit) = &mut self.commit else { return 0 };
        if commit.flying.is_some() {
            return 0;
        }
        let mut telling = match commit.telling.take() {
            Some(telling) => telling,
            None => {
                let Some(load) = commit.left.front() else { return 0 };
                if !load.records.is_empty() && !self.store.has_room(load.bytes, load.pages()) {
                    self.store.checkpoint();
                    return 0;
                }
                let Some(load) = commit.left.pop_front() else { return 0 };
                let pages = load.pages();
                Telling { records: load.records, told: 0, pages, freed: load.freed }
            }
        };
        let until = (telling.told + PART).min(telling.records.len());
        self.store.tell(&telling.records[telling.told..until]);
        telling.told = until;
        if until == telling.records.len() {
            let mut freed = telling.freed;
            // A test may have it that something is not waited for.
            let early = freed.split_off(self.store.waits(QUARANTINE_COMMIT), self.store.waits(PARE_COMMIT));
            self.quarantine.freed(early);
            commit.flying = Some((self.store.send(), freed));
        } else {
            commit.telling = Some(telling);
        }
        1
    }

    fn wants_commit(&mut self) -> bool {
        let changed = self.shared.leaves.any_dirty() || self.has_to_say();
        if !changed {
            self.hurry = false;
        } else if self.dirty_since.is_none() {
            self.dirty_since = Some(self.now);
        }
        let old = self.dirty_since.is_some_and(|since| self.now >= since + OWN_COMMIT_NS);
        self.shared.commits.is_wanted() || changed && (old || self.hurry)
    }

    /// A batch is durable.
    pub(super) fn batch_is_durable(&mut self, batch: BatchId) {
        let Some(commit) = &mut self.commit else { return };
        let Some((_, freed)) = commit.flying.take_if(|(flying, _)| *flying == batch) else { return };
        let ended = commit.is_all_told().then_some(commit.number);
        self.quarantine.freed(freed);
        if let Some(number) = ended {
            self.shared.commits.end(number);
            self.commit = None;
            self.commits += 1;
            self.hurry = false;
            self.review_alarms();
            self.shared.tell_waiters();
        }
    }

    /// Nothing is written any more: everybody is told.
    pub(super) fn fail(&mut self, error: IoError) {
        if self.failed.is_none() {
            self.failed = Some(error);
            self.shared.commits.fail();
            self.shared.tell_waiters();
        }
    }

    /// What a batch is not to exceed: it has to find room in an empty log.
    pub(super) fn limits(&self, (layers, bytes): (u64, u64)) -> Limits {
        let (bytes, pages) = self.store.batch(layers, bytes);
        Limits { bytes: bytes.min(BATCH), pages }
    }
}
