//! The threads that do what may block, for all reactors together.
//!
//! Invariants: there are [`THREADS`] of them, and chores of one lane have at most [`PER_LANE`] at once, so that a device
//! whose file system hangs holds up no other's; among chores whose lanes have room, who came first is first. They are
//! ordinary threads: they run where the thread that starts them may run, so start them after that has left the
//! reactors' cores. A chore that hangs in the kernel keeps its thread and is not waited for, not even at the end.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pollux_core::{Chore, Helpers, Lane};

/// How many threads there are.
const THREADS: usize = 4;
/// How many of them one lane takes at most.
const PER_LANE: usize = 2;

#[derive(Default)]
struct State {
    waiting: VecDeque<(Lane, Chore)>,
    /// The lanes of the chores that run.
    running: Vec<Lane>,
    ended: bool,
}

impl State {
    /// The first chore whose lane has room.
    fn take(&mut self) -> Option<(Lane, Chore)> {
        let has_room = |lane: Lane| self.running.iter().filter(|running| **running == lane).count() < PER_LANE;
        let at = self.waiting.iter().position(|(lane, _)| has_room(*lane))?;
        let (lane, chore) = self.waiting.remove(at)?;
        self.running.push(lane);
        Some((lane, chore))
    }

    fn leave(&mut self, lane: Lane) {
        if let Some(at) = self.running.iter().position(|running| *running == lane) {
            self.running.swap_remove(at);
        }
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn serve(&self) {
        let mut state = self.lock();
        while !state.ended {
            let Some((lane, chore)) = state.take() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            chore();
            state = self.lock();
            state.leave(lane);
            // A chore of the same lane may have waited for that, and this thread may take another one.
            self.changed.notify_one();
        }
    }
}

/// The helper threads of a process. When the last holder lets go, chores that have not begun are dropped, and each
/// thread ends with what it is doing.
pub struct HelperPool(Arc<Shared>);

impl HelperPool {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system has none left.
    pub fn start() -> io::Result<HelperPool> {
        let pool = HelperPool(Arc::default());
        for number in 0..THREADS {
            let shared = Arc::clone(&pool.0);
            std::thread::Builder::new().name(format!("helper-{number}")).spawn(move || shared.serve())?;
        }
        Ok(pool)
    }
}

impl Helpers for HelperPool {
    fn submit(&self, lane: Lane, chore: Chore) {
        self.0.lock().waiting.push_back((lane, chore));
        self.0.changed.notify_one();
    }
}

impl Drop for HelperPool {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        // Dropped without the lock: who is told that its chore is not done may do anything.
        let undone = std::mem::take(&mut state.waiting);
        drop(state);
        self.0.changed.notify_all();
        drop(undone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

    /// A chore that says that it has begun and ends when it is told to.
    fn gated(name: u32, begun: &Sender<u32>, gate: &Receiver<()>) -> Chore {
        let (begun, gate) = (begun.clone(), gate.clone());
        Box::new(move || {
            begun.send(name).expect("the test listens");
            let _ = gate.recv();
        })
    }

    #[test]
    fn one_lane_never_takes_all_threads() {
        let pool = HelperPool::start().expect("threads");
        let (begun, begins) = unbounded();
        let (open, gate) = bounded::<()>(0);
        for name in 0..10 {
            pool.submit(Lane(1), gated(name, &begun, &gate));
        }
        let mut first: Vec<u32> = (0..PER_LANE).map(|_| begins.recv().expect("begun")).collect();
        first.sort_unstable();
        assert_eq!(first, [0, 1]);
        for name in 20..20 + (THREADS - PER_LANE) as u32 {
            pool.submit(Lane(2), gated(name, &begun, &gate));
        }
        let mut others: Vec<u32> =
            (PER_LANE..THREADS).map(|_| begins.recv().expect("begun beside a full lane")).collect();
        others.sort_unstable();
        assert_eq!(others, [20, 21]);
        assert!(begins.try_recv().is_err(), "more run than there are threads");
        drop(open);
        let rest: Vec<u32> = begins.iter().take(10 - PER_LANE).collect();
        assert_eq!(rest.len(), 8);
    }

    #[test]
    fn chores_of_one_lane_begin_in_order() {
        let pool = HelperPool::start().expect("threads");
        let (begun, begins) = unbounded();
        let (open, gate) = bounded::<()>(0);
        (0..PER_LANE as u32).for_each(|name| pool.submit(Lane(1), gated(name, &begun, &gate)));
        begins.iter().take(PER_LANE).for_each(drop);
        (10..15).for_each(|name| pool.submit(Lane(1), gated(name, &begun, &gate)));
        for name in 10..15 {
            open.send(()).expect("somebody waits at the gate");
            assert_eq!(begins.recv(), Ok(name));
        }
    }

    #[test]
    fn at_the_end_what_has_not_begun_is_dropped_and_what_hangs_is_not_waited_for() {
        struct Told(Sender<&'static str>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send("dropped");
            }
        }
        let pool = HelperPool::start().expect("threads");
        let (begun, begins) = unbounded();
        let (_open, gate) = bounded::<()>(0);
        (0..PER_LANE as u32).for_each(|name| pool.submit(Lane(1), gated(name, &begun, &gate)));
        begins.iter().take(PER_LANE).for_each(drop);
        let (tell, told) = unbounded();
        let guard = Told(tell);
        pool.submit(
            Lane(1),
            Box::new(move || {
                let _ = guard.0.send("done");
            }),
        );
        drop(pool);
        assert_eq!(told.iter().collect::<Vec<_>>(), ["dropped"]);
    }
}
