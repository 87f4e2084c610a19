//! [`SimHelpers`]: the helper threads of the simulated world. A chore is done in the machine's own thread, at a moment
//! that the seed draws when it is submitted; those of one lane may overtake each other, as on real threads.

use std::sync::{Arc, Mutex, MutexGuard};

use pollux_core::{Chore, Helpers, Lane};

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
    chores: Vec<(u64, Chore)>,
    done: u64,
}

impl SimHelpers {
    pub(super) fn new(world: &SimWorld, seed: u64) -> Arc<Self> {
        let state = State { rng: Rng::new(seed ^ 0x4e19), hang: false, chores: Vec::new(), done: 0 };
        Arc::new(SimHelpers { world: world.clone(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a test that panics ends the machine")
    }

    /// Has nothing done any more, or again: a file system that does not answer.
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
        state.chores.iter().map(|(at, _)| *at).min().filter(|_| !state.hang)
    }

    /// Does what is due; returns how many chores that were.
    pub(super) fn deliver(&self) -> u64 {
        let mut count = 0;
        while self.world.powered()
            && let Some(at) = self.next().filter(|at| *at <= self.world.now())
        {
            let mut state = self.lock();
            let first = state.chores.iter().position(|(due, _)| *due == at).expect("one is due");
            let (_, chore) = state.chores.remove(first);
            state.done += 1;
            drop(state);
            chore();
            count += 1;
        }
        count
    }
}

impl Helpers for SimHelpers {
    fn submit(&self, _: Lane, chore: Chore) {
        let now = self.world.now();
        let mut state = self.lock();
        let at = now + state.rng.between(LATENCY_NS.0, LATENCY_NS.1);
        state.chores.push((at, chore));
    }
}
