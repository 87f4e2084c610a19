//! [`SimHelpers`]: the helper threads of the simulated world. A chore is done in the machine's own thread, at a moment
//! that the seed draws when it is submitted; those of one lane may overtake each other, as on real threads.

use std::sync::{Arc, Mutex, MutexGuard};

use pollux_core::{Chore, ChoreId, Helpers, Lane};

use super::SimWorld;
use crate::rng::Rng;

/// How long a chore may take.
const LATENCY_NS: (u64, u64) = (1_000, 2_000_000);

/// The helpers of a simulated machine.
pub struct SimHelpers {
    world: SimWorld,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    /// None is done while they hang.
    hang: bool,
    /// None begins.
    busy: bool,
    chores: Vec<Waiting>,
    last: u64,
    done: u64,
}

struct Waiting {
    id: ChoreId,
    lanes: [Lane; 2],
    /// From then on it cannot be taken back.
    begins: u64,
    ends: u64,
    chore: Chore,
}

impl SimHelpers {
    pub(super) fn new(world: &SimWorld, seed: u64) -> Arc<Self> {
        let rng = Rng::new(seed ^ 0x4e19);
        let state = State { rng, hang: false, busy: false, chores: Vec::new(), last: 0, done: 0 };
        Arc::new(SimHelpers { world: world.clone(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a test that panics ends the machine")
    }

    /// Has nothing begun any more, or again: others keep the threads.
    pub fn keep_busy(&self, busy: bool) {
        self.lock().busy = busy;
    }

    /// The lanes of the chores that have not been done.
    #[must_use]
    pub fn lanes(&self) -> Vec<[Lane; 2]> {
        self.lock().chores.iter().map(|waiting| waiting.lanes).collect()
    }

    /// Has nothing done any more, or again: a file system that does not answer. What is there then has begun.
    pub fn hang(&self, hang: bool) {
        self.lock().hang = hang;
    }

    /// Chores that have not been done.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.lock().chores.len()
    }

    /// Chores that have been done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.lock().done
    }

    /// When the next chore is due.
    pub(super) fn next(&self) -> Option<u64> {
        let state = self.lock();
        state.chores.iter().map(|waiting| waiting.ends).min().filter(|_| !state.hang && !state.busy)
    }

    /// Does what is due; returns how many chores that were.
    pub(super) fn deliver(&self) -> u64 {
        let mut count = 0;
        while self.world.powered()
            && let Some(at) = self.next().filter(|at| *at <= self.world.now())
        {
            let mut state = self.lock();
            let first = state.chores.iter().position(|waiting| waiting.ends == at).expect("one is due");
            let Waiting { chore, .. } = state.chores.remove(first);
            state.done += 1;
            drop(state);
            chore();
            count += 1;
        }
        count
    }
}

impl Helpers for SimHelpers {
    fn submit(&self, lanes: [Lane; 2], chore: Chore) -> ChoreId {
        let now = self.world.now();
        let mut state = self.lock();
        let ends = now + state.rng.between(LATENCY_NS.0, LATENCY_NS.1);
        // As often as not a thread takes it at once.
        let begins = if state.rng.chance(1, 2) { now } else { state.rng.between(now, ends) };
        state.last += 1;
        let id = ChoreId(state.last);
        state.chores.push(Waiting { id, lanes, begins, ends, chore });
        id
    }

    fn recall(&self, id: ChoreId) -> Option<Chore> {
        let now = self.world.now();
        let mut state = self.lock();
        let waits = state.busy || !state.hang;
        let at = state.chores.iter().position(|of| of.id == id && waits && (of.begins > now || state.busy))?;
        Some(state.chores.remove(at).chore)
    }
}
