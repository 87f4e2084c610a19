//! Several reactors in one thread, scheduled by the seed.
//!
//! A worker that did nothing and says that it waits for its ring is not polled again before a message or a completion
//! comes, exactly as on a sleeping reactor: a lost wake-up shows as a machine that is idle with requests unanswered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use pollux_core::{Cx, Next, Post, PostError, Worker};

use super::{SimRing, SimWorld};
use crate::rng::Rng;

/// How far the clock may run ahead for timers alone before a machine counts as idle.
const IDLE_HORIZON_NS: u64 = 10_000_000_000;
/// A machine that has taken this many turns without coming to rest is stuck in a circle.
const TURNS_MAX: u64 = 5_000_000;

/// The mailboxes of a simulated machine.
pub struct SimPost<M>(Mutex<Mail<M>>);

struct Mail<M> {
    boxes: Vec<VecDeque<M>>,
    /// What comes from outside waits at the door while the machine runs beside another thread.
    closed: bool,
    door: VecDeque<(usize, M)>,
}

impl<M> Mail<M> {
    /// Takes in what waits; false if nothing did.
    fn open_door(&mut self) -> bool {
        let some = !self.door.is_empty();
        for (to, message) in self.door.drain(..) {
            self.boxes[to].push_back(message);
        }
        some
    }
}

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
            mail.door.push_back((reactor, message));
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
        let post = Arc::new(SimPost(Mutex::new(Mail { boxes, closed: false, door: VecDeque::new() })));
        let reactors =
            workers.into_iter().map(|worker| Reactor { worker, ring: world.ring(), sleeping: false }).collect();
        SimMachine { world: world.clone(), reactors, post, rng: Rng::new(seed), _alone: alone }
    }

    /// The way to its mailboxes.
    #[must_use]
    pub fn post(&self) -> Arc<SimPost<W::Message>> {
        Arc::clone(&self.post)
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

    /// Takes some turns, or fewer if nothing is left to do.
    pub fn rounds(&mut self, count: u64) {
        for _ in 0..count {
            if self.round() > 0 {
                self.world.tick(self.rng.below(2_000));
            } else if !self.wait(self.world.now()) {
                return;
            }
        }
    }

    /// Runs `f`, which may post messages and wait for their answers, on a thread of its own, and the machine meanwhile.
    /// The machine takes turns with `f` and every other thread: it runs only while all of them sleep, and sees what they
    /// posted only then, so that the run depends on nothing but the seed.
    ///
    /// # Panics
    /// If `f` panics, or waits for something that the machine does not do.
    pub fn call<R: Send>(&mut self, f: impl FnOnce() -> R + Send) -> R {
        self.post.lock().closed = true;
        let result = std::thread::scope(|scope| {
            let other = scope.spawn(f);
            let mut rounds_idle = 0;
            loop {
                wait_until_asleep(|| other.is_finished());
                if other.is_finished() {
                    break;
                }
                rounds_idle = if self.post.lock().open_door() { 0 } else { rounds_idle + 1 };
                if rounds_idle > 100 {
                    // It may wait for the real clock.
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                assert!(rounds_idle < 30_000, "nothing is left to do and the control plane still waits");
                self.run();
            }
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        wait_until_asleep(|| false);
        let mut post = self.post.lock();
        post.open_door();
        post.closed = false;
        drop(post);
        result
    }

    /// One pass: the world does what is due, then each reactor takes a turn, in random order, some of them none.
    /// Returns 0 only if nobody has anything to do now.
    fn round(&mut self) -> u64 {
        let before = self.rng.clone();
        let mut did = self.world.deliver() as u64;
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
        self.world.advance(timer.min().filter(|time| *time < busy_at + IDLE_HORIZON_NS))
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
        if reactor.sleeping && !due && messages == 0 && !reactor.ring.has_completions() {
            return 0;
        }
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
