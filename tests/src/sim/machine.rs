//! Several reactors in one thread, scheduled by the seed.
//!
//! A worker that did nothing and says that it waits for its ring is not polled again before a message, a completion or
//! a wake comes, exactly as on a sleeping reactor: a lost wake-up shows as a machine that is idle with requests unanswered.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{ScopedJoinHandle, scope};

use pollux_core::{Cx, Next, Post, PostError, Worker};

use super::{SimHelpers, SimRing, SimWorld};
use crate::rng::Rng;

/// How far the clock may run ahead for timers alone before a machine counts as idle.
const IDLE_HORIZON_NS: u64 = 10_000_000_000;
/// A machine that has taken this many turns without coming to rest is stuck in a circle.
const TURNS_MAX: u64 = 5_000_000;
/// Calls that have not ended after so many steps, with the machine at work all the time, never will.
const STEPS_MAX: u64 = 1_000_000;

thread_local! {
    /// Which of the calls of [`SimMachine::calls_beside`] this thread runs, from 1; 0 for every other thread.
    static CALLER: Cell<u64> = const { Cell::new(0) };
}

/// The mailboxes of a simulated machine.
pub struct SimPost<M>(Mutex<Mail<M>>);

struct Mail<M> {
    boxes: Vec<VecDeque<M>>,
    /// What comes from outside waits at the door while the machine runs beside another thread.
    closed: bool,
    door: Vec<(u64, usize, M)>,
}

impl<M> Mail<M> {
    /// Takes in what waits; false if nothing did. What further calls have posted at the same time comes last, in the calls'
    /// order: which of the threads was faster must not change the run. (What other threads post may follow from the first
    /// call, so it stays where it is.)
    fn open_door(&mut self) -> bool {
        let some = !self.door.is_empty();
        self.door.sort_by_key(|(caller, ..)| caller.saturating_sub(1));
        for (_, to, message) in self.door.drain(..) {
            self.boxes[to].push_back(message);
        }
        some
    }
}

/// What runs beside a machine.
pub type Call<'a, R> = Box<dyn FnOnce() -> R + Send + 'a>;

/// Waits until every other thread of this process sleeps in the kernel, or `ended`. A message on its way to a thread
/// makes that thread runnable before the sender goes on, so then nothing is on its way either.
///
/// Two looks that find every thread asleep, with the same count of context switches, show that all slept at once in
/// between.
fn wait_until_asleep(ended: impl Fn() -> bool) {
    let mut last = None;
    while !ended() {
        let now = sleepers();
        if now.is_some() && now == last {
            return;
        }
        last = now;
        std::thread::yield_now();
    }
}

/// The other threads of this process with their counts of context switches; `None` if one of them is awake.
fn sleepers() -> Option<Vec<(String, String)>> {
    let own = rustix::thread::gettid().as_raw_nonzero().get().to_string();
    let mut all = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").expect("procfs is mounted").flatten() {
        let tid = task.file_name().into_string().unwrap_or_default();
        // A thread that has just ended has no status.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        if tid == own {
            continue;
        }
        if !status.contains("\nState:\tS") {
            return None;
        }
        let switches = status.lines().filter(|line| line.contains("ctxt_switches")).collect();
        all.push((tid, switches));
    }
    Some(all)
}

/// Only one machine at a time: it has to know when the rest of the process sleeps.
static ALONE: Mutex<()> = Mutex::new(());

impl<M> SimPost<M> {
    fn lock(&self) -> MutexGuard<'_, Mail<M>> {
        self.0.lock().expect("a test that panics ends the machine")
    }
}

impl<M: Send> Post<M> for SimPost<M> {
    fn reactors(&self) -> usize {
        self.lock().boxes.len()
    }

    fn post(&self, reactor: usize, message: M) -> Result<(), PostError> {
        let mut mail = self.lock();
        if reactor >= mail.boxes.len() {
            return Err(PostError::Stopped);
        }
        if mail.closed {
            mail.door.push((CALLER.get(), reactor, message));
        } else {
            mail.boxes[reactor].push_back(message);
        }
        Ok(())
    }
}

struct Reactor<W> {
    worker: W,
    ring: SimRing,
    sleeping: bool,
}

/// Some workers, each with its own ring of one world.
pub struct SimMachine<W: Worker> {
    world: SimWorld,
    reactors: Vec<Reactor<W>>,
    post: Arc<SimPost<W::Message>>,
    helpers: Arc<SimHelpers>,
    rng: Rng,
    _alone: MutexGuard<'static, ()>,
}

impl<W: Worker> SimMachine<W> {
    /// A machine with one reactor per worker. A process has one at a time; a second waits until the first is gone (so no
    /// thread may hold two).
    #[must_use]
    pub fn new(world: &SimWorld, workers: Vec<W>, seed: u64) -> Self {
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let boxes = workers.iter().map(|_| VecDeque::new()).collect();
        let post = Arc::new(SimPost(Mutex::new(Mail { boxes, closed: false, door: Vec::new() })));
        let reactors =
            workers.into_iter().map(|worker| Reactor { worker, ring: world.ring(), sleeping: false }).collect();
        let helpers = SimHelpers::new(world, seed);
        SimMachine { world: world.clone(), reactors, post, helpers, rng: Rng::new(seed), _alone: alone }
    }

    /// The way to its mailboxes.
    #[must_use]
    pub fn post(&self) -> Arc<SimPost<W::Message>> {
        Arc::clone(&self.post)
    }

    /// Its helper threads.
    #[must_use]
    pub fn helpers(&self) -> Arc<SimHelpers> {
        Arc::clone(&self.helpers)
    }

    /// Its world.
    #[must_use]
    pub const fn world(&self) -> &SimWorld {
        &self.world
    }

    /// One worker.
    #[must_use]
    pub fn worker(&mut self, reactor: usize) -> &mut W {
        &mut self.reactors[reactor].worker
    }

    /// Runs until nothing is left to do: mailboxes empty, nothing in flight but polls and what is stuck, nobody busy.
    ///
    /// # Panics
    /// If it does not come to rest.
    pub fn run(&mut self) {
        self.run_while(|| true);
    }

    /// Runs until idle or until `go_on` says no; returns whether it is idle.
    ///
    /// # Panics
    /// If it does not come to rest.
    pub fn run_while(&mut self, mut go_on: impl FnMut() -> bool) -> bool {
        let mut busy_at = self.world.now();
        for _ in 0..TURNS_MAX {
            if !go_on() {
                return false;
            }
            if self.round() > 0 {
                busy_at = self.world.now();
                self.world.tick(self.rng.below(2_000));
            } else if !self.wait(busy_at) {
                return true;
            }
        }
        panic!("the machine does not come to rest");
    }

    /// Takes some turns, or fewer if nothing is left to do. Returns whether there was something.
    pub fn rounds(&mut self, count: u64) -> bool {
        let mut did = false;
        for _ in 0..count {
            if self.round() > 0 {
                self.world.tick(self.rng.below(2_000));
            } else if !self.wait(self.world.now()) {
                return did;
            }
            did = true;
        }
        did
    }

    /// Runs `f`, which may post messages and wait for their answers, on a thread of its own, and the machine meanwhile.
    /// The machine takes turns with `f` and every other thread: it runs only while all of them sleep, and sees what they
    /// posted only then, so that the run depends on nothing but the seed.
    ///
    /// # Panics
    /// If `f` panics, or waits for something that the machine does not do.
    pub fn call<R: Send>(&mut self, f: impl FnOnce() -> R + Send) -> R {
        let to_rest = |machine: &mut Self| {
            machine.run();
            false
        };
        self.drive(vec![(0, Box::new(f))], to_rest).swap_remove(0)
    }

    /// As [`SimMachine::call`], but the machine takes a turn or a few at a time, and in between `act` does something: what
    /// a guest does beside the control plane. `act` must not wait for the machine.
    ///
    /// # Panics
    /// As [`SimMachine::call`], and if the call does not end.
    pub fn call_beside<R: Send>(&mut self, f: impl FnOnce() -> R + Send, act: impl FnMut()) -> R {
        self.calls_beside(vec![(0, Box::new(f))], act).swap_remove(0)
    }

    /// Lets all other threads of this process come to wait, and the machine to rest. Returns whether there was something to
    /// do.
    ///
    /// # Panics
    /// As [`SimMachine::run`].
    pub fn settle(&mut self) -> bool {
        let before = self.world.now();
        let open = |machine: &Self| {
            wait_until_asleep(|| false);
            machine.post.lock().open_door()
        };
        self.post.lock().closed = true;
        let mut came = open(self);
        self.run();
        came |= open(self);
        self.post.lock().closed = false;
        came || self.world.now() > before
    }

    /// Several calls, each on a thread of its own, in the order in which they begin: each when the machine has taken so
    /// many steps, or sooner if nothing runs before it any more. Returns what they returned, in the same order.
    ///
    /// # Panics
    /// As [`SimMachine::call_beside`].
    pub fn calls_beside<R: Send>(&mut self, calls: Vec<(u64, Call<'_, R>)>, mut act: impl FnMut()) -> Vec<R> {
        self.drive(calls, |machine| {
            let mut did = false;
            for _ in 0..machine.rng.between(1, 4) {
                act();
                let turns = machine.rng.below(3);
                did |= machine.rounds(turns);
            }
            did
        })
    }

    /// Runs the calls, and has the machine go on while all of them wait. `go_on` says whether there was something to do.
    fn drive<R: Send>(&mut self, calls: Vec<(u64, Call<'_, R>)>, mut go_on: impl FnMut(&mut Self) -> bool) -> Vec<R> {
        self.post.lock().closed = true;
        let results = scope(|scope| {
            let mut calls = calls.into_iter().zip(1..).peekable();
            let mut begun: Vec<ScopedJoinHandle<'_, R>> = Vec::new();
            let mut idle = 0;
            for step in 0.. {
                assert!(step < STEPS_MAX, "the machine goes on for ever and the control plane still waits");
                let ended = |begun: &[ScopedJoinHandle<'_, R>]| begun.iter().all(ScopedJoinHandle::is_finished);
                let more = calls.peek().is_some();
                wait_until_asleep(|| !more && ended(&begun));
                if let Some(((_, f), caller)) = calls.next_if(|((at, _), _)| *at <= step || ended(&begun)) {
                    begun.push(scope.spawn(move || {
                        CALLER.set(caller);
                        f()
                    }));
                    // The next one begins when this one waits.
                    continue;
                }
                if ended(&begun) {
                    break;
                }
                let came = self.post.lock().open_door();
                let did = go_on(self);
                idle = if came || did { 0 } else { idle + 1 };
                if idle > 100 {
                    // It may wait for the real clock.
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                assert!(idle < 30_000, "nothing is left to do and the control plane still waits");
            }
            let result =
                |call: ScopedJoinHandle<'_, R>| call.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            begun.into_iter().map(result).collect()
        });
        wait_until_asleep(|| false);
        let mut post = self.post.lock();
        post.open_door();
        post.closed = false;
        drop(post);
        results
    }

    /// One pass: the world does what is due, then each reactor takes a turn, in random order, some of them none.
    /// Returns 0 only if nobody has anything to do now.
    fn round(&mut self) -> u64 {
        let before = self.rng.clone();
        let mut did = self.world.deliver() as u64 + self.helpers.deliver();
        let mut order: Vec<usize> = (0..self.reactors.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, self.rng.index(last + 1));
        }
        let mut skipped = Vec::new();
        for at in order {
            if self.rng.chance(1, 4) {
                skipped.push(at);
            } else {
                did += self.turn(at);
            }
        }
        if did == 0 {
            did = skipped.into_iter().map(|at| self.turn(at)).sum();
        }
        // Who has done nothing may have woken another that had its turn before.
        did += self.reactors.iter().filter(|reactor| reactor.ring.is_woken()).count() as u64;
        if did == 0 {
            // How often somebody looks whether there is work must not change the run.
            self.rng = before;
        }
        did
    }

    /// Moves the clock to what comes next; false if nothing does.
    fn wait(&self, busy_at: u64) -> bool {
        let timer = self.reactors.iter().filter_map(|r| match r.worker.next() {
            Next::At(time) => Some(time),
            Next::Now | Next::Ring | Next::Idle => None,
        });
        let timer = timer.min().filter(|time| *time < busy_at + IDLE_HORIZON_NS);
        self.world.advance(timer.into_iter().chain(self.helpers.next()).min())
    }

    /// One turn of one reactor; returns how much it did.
    fn turn(&mut self, at: usize) -> u64 {
        let reactor = &mut self.reactors[at];
        let now = self.world.now();
        let messages = self.post.lock().boxes[at].len() as u64;
        let due = match reactor.worker.next() {
            Next::Now => true,
            Next::At(time) => time <= now,
            Next::Ring | Next::Idle => false,
        };
        let woken = reactor.ring.is_woken();
        if reactor.sleeping && !due && messages == 0 && !woken && !reactor.ring.has_completions() {
            return 0;
        }
        reactor.ring.begins_turn();
        let mut cx = Cx { now, reactor: at, ring: &mut reactor.ring };
        let mut did = 0;
        // A turn need not empty the mailbox.
        for _ in 0..if messages == 0 { 0 } else { self.rng.between(1, messages) } {
            let Some(message) = self.post.lock().boxes[at].pop_front() else { break };
            reactor.worker.message(message, &mut cx);
            did += 1;
        }
        did += u64::from(reactor.worker.poll(&mut cx));
        let (post, rng, mut refused) = (&self.post, &mut self.rng, false);
        reactor.worker.outgoing(&mut |to, message| {
            // A full mailbox now and then.
            if rng.chance(1, 8) {
                refused = true;
                return Err(message);
            }
            post.lock().boxes[to].push_back(message);
            did += 1;
            Ok(())
        });
        did += u64::from(refused);
        reactor.sleeping = did == 0;
        did
    }
}
