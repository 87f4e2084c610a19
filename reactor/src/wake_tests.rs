//! Wakes, which tell a reactor of changes that only the worker can look at: none is lost.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use pollux_core::{Cx, Next, Wake, Worker};

use crate::{Config, Reactors, allowed_cores, start};

/// In memory that no reactor knows of.
type Cell = Arc<AtomicU64>;

const LONG: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(10);
const ROUNDS: u64 = 100_000;

/// Follows what others write, and never says that it did something: its reactor is always about to sleep.
#[derive(Default)]
struct Follower {
    follows: Vec<Follows>,
}

struct Follows {
    seen: u64,
    cell: Cell,
    /// Where it writes one more than what it saw, and whom it wakes then.
    answer: Cell,
    wakes: Option<Arc<dyn Wake>>,
}

enum Message {
    Waker(mpsc::Sender<Arc<dyn Wake>>),
    Follow(Follows),
}

impl Worker for Follower {
    type Message = Message;

    fn message(&mut self, message: Message, cx: &mut Cx<'_>) {
        match message {
            // The test notices by itself if it has given up.
            Message::Waker(answer) => drop(answer.send(cx.ring.waker())),
            Message::Follow(follows) => self.follows.push(follows),
        }
    }

    fn poll(&mut self, _: &mut Cx<'_>) -> u32 {
        for follows in &mut self.follows {
            let now = follows.cell.load(Relaxed);
            if now > follows.seen && now <= ROUNDS {
                follows.seen = now;
                follows.answer.store(now + 1, Relaxed);
                if let Some(wakes) = &follows.wakes {
                    wakes.wake();
                }
            }
        }
        0
    }

    fn next(&self) -> Next {
        Next::Idle
    }

    fn outgoing(&mut self, _: &mut dyn FnMut(usize, Message) -> Result<(), Message>) {}
}

/// Reactors that sleep whenever they can, and whose sleep nothing but a wake ends; with their wakers.
fn sleepy(count: usize) -> (Reactors<Message>, Vec<Arc<dyn Wake>>) {
    let mut cores = allowed_cores();
    cores.truncate(count);
    let workers = cores.iter().map(|_| Follower::default()).collect();
    let reactors =
        start(Config { cores, max_sleep: LONG, spin_max: Duration::ZERO, ..Config::default() }, workers).unwrap();
    let (answer, answers) = mpsc::channel();
    let wakers = (0..reactors.stats().len()).map(|reactor| {
        reactors.poster().post(reactor, Message::Waker(answer.clone())).unwrap();
        answers.recv_timeout(SOON).unwrap()
    });
    let wakers = wakers.collect();
    (reactors, wakers)
}

fn follow(reactors: &Reactors<Message>, reactor: usize, cell: &Cell, answer: &Cell, wakes: Option<&Arc<dyn Wake>>) {
    let (cell, answer) = (Arc::clone(cell), Arc::clone(answer));
    let follows = Follows { seen: 0, cell, answer, wakes: wakes.cloned() };
    reactors.poster().post(reactor, Message::Follow(follows)).unwrap();
}

/// Waits until the cell has that value.
fn wait_for(cell: &Cell, value: u64) {
    let start = Instant::now();
    while cell.load(Relaxed) != value {
        let waited = start.elapsed();
        assert!(waited < SOON, "nobody has answered {}", value - 1);
        if waited > Duration::from_micros(200) {
            thread::yield_now();
        }
    }
}

fn assert_slept(reactors: Reactors<Message>) {
    for stats in reactors.stats() {
        let (sleeps, wakeups) = (stats.sleeps.get(), stats.wakeups.get());
        println!("reactor {}: {} turns, {sleeps} sleeps, {wakeups} wake-ups", stats.reactor, stats.turns.get());
        assert!(sleeps > 100 && wakeups > 100, "the reactors really slept: {sleeps}, {wakeups}");
    }
    reactors.stop();
}

/// Writes and wakes, one at a time, after a pause of random length: at any point of the reactor's way back into sleep.
fn ask_at_all_moments(cell: &Cell, answer: &Cell, waker: &dyn Wake, rounds: u64) {
    let mut random = cell.as_ptr() as u64;
    for round in 1..=rounds {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        for _ in 0..random >> 57 {
            std::hint::spin_loop();
        }
        cell.store(round, Relaxed);
        waker.wake();
        wait_for(answer, round + 1);
    }
}

#[test]
fn no_wake_by_a_thread_is_lost() {
    let (reactors, wakers) = sleepy(1);
    let (cell, answer) = <(Cell, Cell)>::default();
    follow(&reactors, 0, &cell, &answer, None);
    ask_at_all_moments(&cell, &answer, &*wakers[0], ROUNDS);
    assert_slept(reactors);
}

#[test]
fn no_wake_is_lost_to_another_that_comes_at_the_same_time() {
    let (reactors, wakers) = sleepy(1);
    thread::scope(|scope| {
        for _ in 0..2 {
            let (cell, answer) = <(Cell, Cell)>::default();
            follow(&reactors, 0, &cell, &answer, None);
            let waker = &wakers[0];
            scope.spawn(move || ask_at_all_moments(&cell, &answer, &**waker, ROUNDS / 4));
        }
    });
    assert_slept(reactors);
}

#[test]
fn reactors_wake_each_other_and_themselves() {
    for count in [1, 2] {
        let (reactors, wakers) = sleepy(count);
        let count = wakers.len();
        let cells: Vec<Cell> = (0..count).map(|_| Cell::default()).collect();
        for at in 0..count {
            let next = (at + 1) % count;
            follow(&reactors, at, &cells[at], &cells[next], Some(&wakers[next]));
        }
        cells[0].store(1, Relaxed);
        wakers[0].wake();
        let (mut last, mut since) = (0, Instant::now());
        while last <= ROUNDS {
            thread::sleep(Duration::from_millis(1));
            let now = cells.iter().map(|cell| cell.load(Relaxed)).max().unwrap_or(0);
            if now > last {
                (last, since) = (now, Instant::now());
            }
            assert!(since.elapsed() < SOON, "{count} reactors stand still at {last}");
        }
        reactors.stop();
    }
}

#[test]
fn a_waker_outlives_its_reactor() {
    let (reactors, wakers) = sleepy(1);
    reactors.stop();
    wakers[0].wake();
}
