//! The threads that do what may block, for all reactors together.
//!
//! Invariants: there are [`THREADS`] of them, and chores of one lane have at most [`PER_LANE`] at once, so that one file
//! system that hangs holds up no other's devices; among chores whose lanes have room, who came first is first. A chore of
//! two lanes may find room in one and not in the other, over and over, while those of one lane go past it: one that
//! [`OVERTAKEN`] have gone past has a place in each of its lanes kept free. One place, not all: if one of its lanes hangs,
//! the other goes on.
//!
//! They are ordinary threads: they run where the thread that starts them may run, so start them after that has left the
//! reactors' cores. A chore that hangs in the kernel keeps its thread and is not waited for, not even at the end.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pollux_core::{Chore, ChoreId, Helpers, Lane};

/// How many threads there are.
const THREADS: usize = 4;
/// How many of them one lane takes at most.
const PER_LANE: usize = 2;
/// So many of a chore's lanes go past it at most before places are kept free for it.
const OVERTAKEN: u32 = 8;

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// The lanes of the chores that run.
    running: Vec<[Lane; 2]>,
    last: u64,
    ended: bool,
}

struct Waiting {
    id: ChoreId,
    lanes: [Lane; 2],
    /// How many of its lanes' chores came later and began before it.
    overtaken: u32,
    chore: Chore,
}

impl State {
    /// The first chore whose lanes have room.
    fn take(&mut self) -> Option<Waiting> {
        let at = self.next()?;
        let waiting = self.waiting.remove(at)?;
        let shares = |earlier: &&mut Waiting| earlier.lanes.iter().any(|lane| waiting.lanes.contains(lane));
        self.waiting.iter_mut().take(at).filter(shares).for_each(|earlier| earlier.overtaken += 1);
        self.running.push(waiting.lanes);
        Some(waiting)
    }

    /// Where the first chore is whose lanes have room, apart from what is kept free for those before it.
    fn next(&self) -> Option<usize> {
        let mut kept: Vec<Lane> = Vec::new();
        for (at, Waiting { lanes, overtaken, .. }) in self.waiting.iter().enumerate() {
            let taken = |lane: &Lane| self.running.iter().filter(|lanes| lanes.contains(lane)).count();
            let has_room = |lane: &Lane| taken(lane) + usize::from(kept.contains(lane)) < PER_LANE;
            if lanes.iter().all(has_room) {
                return Some(at);
            }
            if *overtaken >= OVERTAKEN {
                kept.extend(lanes);
            }
        }
        None
    }

    fn leave(&mut self, lanes: [Lane; 2]) {
        if let Some(at) = self.running.iter().position(|running| *running == lanes) {
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
            let Some(Waiting { lanes, chore, .. }) = state.take() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            chore();
            state = self.lock();
            state.leave(lanes);
            // A chore of each of its lanes may have waited for that, and this thread takes one of them.
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
    fn submit(&self, lanes: [Lane; 2], chore: Chore) -> ChoreId {
        let mut state = self.0.lock();
        state.last += 1;
        let id = ChoreId(state.last);
        state.waiting.push_back(Waiting { id, lanes, overtaken: 0, chore });
        drop(state);
        self.0.changed.notify_one();
        id
    }

    fn recall(&self, id: ChoreId) -> Option<Chore> {
        let mut state = self.0.lock();
        // In the order in which they came.
        let at = state.waiting.binary_search_by_key(&id.0, |waiting| waiting.id.0).ok()?;
        let recalled = state.waiting.remove(at);
        drop(state);
        // Places may have been kept free for it.
        self.0.changed.notify_all();
        recalled.map(|waiting| waiting.chore)
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

    const ONE: [Lane; 2] = [Lane(1); 2];
    const OTHER: [Lane; 2] = [Lane(2); 2];

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
            pool.submit(ONE, gated(name, &begun, &gate));
        }
        let mut first: Vec<u32> = (0..PER_LANE).map(|_| begins.recv().expect("begun")).collect();
        first.sort_unstable();
        assert_eq!(first, [0, 1]);
        // What needs that lane, too, waits; the others do not wait for it.
        pool.submit([Lane(2), Lane(1)], gated(10, &begun, &gate));
        for name in 20..20 + (THREADS - PER_LANE) as u32 {
            pool.submit(OTHER, gated(name, &begun, &gate));
        }
        let mut others: Vec<u32> =
            (PER_LANE..THREADS).map(|_| begins.recv().expect("begun beside a full lane")).collect();
        others.sort_unstable();
        assert_eq!(others, [20, 21]);
        assert!(begins.try_recv().is_err(), "more run than there are threads");
        drop(open);
        let mut rest: Vec<u32> = begins.iter().take(11 - PER_LANE).collect();
        rest.sort_unstable();
        assert_eq!(rest, [2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn chores_of_one_lane_begin_in_order() {
        let pool = HelperPool::start().expect("threads");
        let (begun, begins) = unbounded();
        let (open, gate) = bounded::<()>(0);
        for name in 0..PER_LANE as u32 {
            pool.submit(ONE, gated(name, &begun, &gate));
        }
        begins.iter().take(PER_LANE).for_each(drop);
        for name in 10..15 {
            pool.submit(ONE, gated(name, &begun, &gate));
        }
        for name in 10..15 {
            open.send(()).expect("somebody waits at the gate");
            assert_eq!(begins.recv(), Ok(name));
        }
    }

    const BOTH: [Lane; 2] = [Lane(1), Lane(2)];

    /// Chores that wait, in this order, and the lanes of those that run.
    fn state(running: &[[Lane; 2]], waiting: &[[Lane; 2]]) -> State {
        let mut state = State { running: running.to_vec(), ..State::default() };
        waiting.iter().for_each(|lanes| wait(&mut state, *lanes));
        state
    }

    fn wait(state: &mut State, lanes: [Lane; 2]) {
        state.last += 1;
        state.waiting.push_back(Waiting { id: ChoreId(state.last), lanes, overtaken: 0, chore: Box::new(|| {}) });
    }

    /// The lanes of what begins next.
    fn begins(state: &mut State) -> Option<[Lane; 2]> {
        state.take().map(|waiting| waiting.lanes)
    }

    #[test]
    fn a_chore_of_two_lanes_is_overtaken_so_often_and_not_for_ever() {
        // One of each lane ends in turn, and more come of both: there is room in one of them, never in both.
        let mut state = state(&[ONE, ONE, OTHER, OTHER], &[BOTH]);
        let mut before = Vec::new();
        for lanes in [ONE, OTHER].into_iter().cycle().take(100) {
            wait(&mut state, lanes);
            state.leave(lanes);
            before.extend(begins(&mut state));
            if before.last() == Some(&BOTH) {
                break;
            }
        }
        assert_eq!(before.last(), Some(&BOTH), "{} have gone past it", before.len());
        assert_eq!(before.len(), OVERTAKEN as usize + 1);
    }

    #[test]
    fn a_lane_goes_on_beside_a_chore_that_waits_for_one_that_hangs() {
        let mut state = state(&[ONE, ONE, OTHER, OTHER], &[BOTH]);
        for round in 0..4 * OVERTAKEN {
            wait(&mut state, ONE);
            state.leave(ONE);
            let expected = if round == OVERTAKEN { None } else { Some(ONE) };
            assert_eq!(begins(&mut state), expected, "a place is kept free from round {OVERTAKEN} on, and only one");
        }
        // One of that lane and a third has the other place when it is its turn.
        let third = [Lane(1), Lane(3)];
        wait(&mut state, third);
        for lanes in [ONE, third] {
            state.leave(ONE);
            assert_eq!(begins(&mut state), Some(lanes));
        }
    }

    #[test]
    fn what_is_kept_free_is_free_when_its_chore_is_taken_back() {
        let pool = HelperPool::start().expect("threads");
        let (begun, begins) = unbounded();
        let (open, gate) = bounded::<()>(0);
        let (_hangs, hanging) = bounded::<()>(0);
        for name in 0..PER_LANE as u32 {
            pool.submit(OTHER, gated(100 + name, &begun, &hanging));
            pool.submit(ONE, gated(name, &begun, &gate));
        }
        let starved = pool.submit(BOTH, gated(1000, &begun, &gate));
        let last = PER_LANE as u32 + OVERTAKEN + 2;
        for name in PER_LANE as u32..last {
            pool.submit(ONE, gated(name, &begun, &gate));
        }
        // Two run at first; when a place is kept, one.
        begins.iter().take(2 * PER_LANE).for_each(drop);
        for _ in 0..OVERTAKEN {
            open.send(()).expect("somebody waits at the gate");
            begins.recv().expect("another begins");
        }
        open.send(()).expect("somebody waits at the gate");
        while pool.0.lock().running.len() > 2 * PER_LANE - 1 {
            std::thread::yield_now();
        }
        assert_eq!((begins.try_recv().ok(), pool.0.lock().waiting.len()), (None, 3));
        assert!(pool.recall(starved).is_some());
        assert!(begins.recv().is_ok(), "the place that was kept free is not given to others");
        drop(open);
    }

    #[test]
    fn what_has_not_begun_can_be_taken_back() {
        let pool = HelperPool::start().expect("threads");
        let (begun, begins) = unbounded();
        let (open, gate) = bounded::<()>(0);
        let ids: Vec<ChoreId> = (0..5).map(|name| pool.submit(ONE, gated(name, &begun, &gate))).collect();
        begins.iter().take(PER_LANE).for_each(drop);
        assert!(pool.recall(ids[0]).is_none() && pool.recall(ids[1]).is_none(), "both have begun");
        assert!(pool.recall(ids[3]).is_some() && pool.recall(ids[3]).is_none(), "once");
        drop(open);
        let mut rest: Vec<u32> = begins.iter().take(2).collect();
        rest.sort_unstable();
        assert_eq!(rest, [2, 4]);
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
        for name in 0..PER_LANE as u32 {
            pool.submit(ONE, gated(name, &begun, &gate));
        }
        begins.iter().take(PER_LANE).for_each(drop);
        let (tell, told) = unbounded();
        let guard = Told(tell);
        pool.submit(
            ONE,
            Box::new(move || {
                let _ = guard.0.send("done");
            }),
        );
        drop(pool);
        assert_eq!(told.iter().collect::<Vec<_>>(), ["dropped"]);
    }
}
