//! Starting and stopping reactors.

use std::any::Any;
use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pollux_core::{Post, Worker};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::cores::{self, CoresError};
use crate::mailbox::{Mailbox, Poster, Wake};
use crate::turn::{Idling, Peers, Reactor};
use crate::{ReactorStats, RingConfig, SetupError, UringRing};

/// Sleeps are to end when they should: the default slack of 50 µs would show in every timer.
const TIMER_SLACK: NonZeroU64 = NonZeroU64::new(1_000).expect("it is not zero");

/// Whether reactors may sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PollMode {
    /// A reactor without work sleeps in its ring.
    #[default]
    Adaptive,
    /// Never sleep: the least latency, and a whole core for it.
    Always,
}

/// How reactors are set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cores, one reactor on each; reactor 0 on the first.
    pub cores: Vec<usize>,
    /// Whether they may sleep.
    pub poll: PollMode,
    /// How long a reactor that could sleep goes on turning at most; it learns how long is worth it. Up to
    /// [`SPIN_MAX_NS`](pollux_core::SPIN_MAX_NS).
    pub spin_max: Duration,
    /// The longest sleep, so that the counters of a reactor without work stay fresh.
    pub max_sleep: Duration,
    /// Messages from the control plane that one reactor's mailbox holds.
    pub mailbox: usize,
    /// Messages that each ring between two reactors holds.
    pub between: usize,
    /// The rings. `worker_cores` is filled in by [`start`] if it is empty.
    pub ring: RingConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cores: Vec::new(),
            poll: PollMode::Adaptive,
            spin_max: Duration::from_micros(100),
            max_sleep: Duration::from_secs(1),
            mailbox: 1024,
            between: 256,
            ring: RingConfig::default(),
        }
    }
}

/// Why reactors could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The list of cores is no good.
    #[error(transparent)]
    Cores(#[from] CoresError),
    /// The machine has no such core, or it is off.
    #[error("core {core} is not online: this machine has the cores {online}; name some of these for the reactors")]
    NoSuchCore {
        /// The core.
        core: usize,
        /// Those that are there.
        online: String,
    },
    /// The kernel refused to pin a thread.
    #[error(
        "core {core} is online, but this process may not run on it: widen its cpuset (systemd: AllowedCPUs=, \
         containers: --cpuset-cpus) or name other cores for the reactors"
    )]
    Pin {
        /// The core.
        core: usize,
    },
    /// The kernel refused a ring.
    #[error("the ring of the reactor on core {core} could not be set up: {source}")]
    Ring {
        /// The core.
        core: usize,
        /// Why.
        source: SetupError,
    },
    /// The system refused a thread or an eventfd.
    #[error("the reactor on core {core} could not be started: {source}")]
    System {
        /// The core.
        core: usize,
        /// Why.
        source: io::Error,
    },
}

/// The running reactors. Dropping them stops them.
pub struct Reactors<M> {
    poster: Arc<Poster<M>>,
    stats: Vec<Arc<ReactorStats>>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts one pinned thread per core, with worker `i` on core `i` of the list. Returns when all rings are set up.
///
/// # Errors
/// [`StartError`] says which core and what to do; nothing runs then.
///
/// # Panics
/// If there are not as many workers as cores.
pub fn start<W: Worker + 'static>(config: Config, workers: Vec<W>) -> Result<Reactors<W::Message>, StartError> {
    let Config { cores, poll, spin_max, max_sleep, mailbox, between, ring } = config;
    assert_eq!(cores.len(), workers.len(), "one worker for each core");
    check_cores(&cores)?;
    let mailboxes = mailboxes(&cores, mailbox)?;
    let peers = connect(&mailboxes, between);
    let idling = Idling { mode: poll, spin_max: ns(spin_max), max_sleep: ns(max_sleep) };
    let poster = Arc::new(Poster { mailboxes });
    let mut reactors = Reactors { poster, stats: Vec::new(), threads: Vec::new() };
    let (ready, started) = mpsc::channel();
    let allowed = cores::allowed();
    for (number, (worker, peers)) in workers.into_iter().zip(peers).enumerate() {
        let core = cores[number];
        let seed = Seed {
            number,
            core,
            ring: ring_config(&ring, &allowed, &cores, core),
            idling,
            mailbox: Arc::clone(&reactors.poster.mailboxes[number]),
        };
        let ready = ready.clone();
        let thread =
            thread::Builder::new().name(format!("reactor-{core}")).spawn(move || seed.run(worker, peers, ready));
        reactors.threads.push(thread.map_err(|source| StartError::System { core, source })?);
    }
    drop(ready);
    for result in started {
        reactors.stats.push(result?);
    }
    reactors.stats.sort_by_key(|stats| stats.reactor);
    for stats in &reactors.stats {
        tracing::info!("reactor {} on core {}: {}", stats.reactor, stats.core, stats.ring);
    }
    Ok(reactors)
}

impl<M: Send + 'static> Reactors<M> {
    /// The control plane's way to them.
    #[must_use]
    pub fn poster(&self) -> Arc<dyn Post<M>> {
        Arc::<Poster<M>>::clone(&self.poster)
    }
}

impl<M> Reactors<M> {
    /// What each counts, by number.
    #[must_use]
    pub fn stats(&self) -> Vec<Arc<ReactorStats>> {
        self.stats.clone()
    }

    /// Stops them and waits for their threads. What is still in flight in their rings is cancelled or waited for.
    ///
    /// # Panics
    /// If one of them has panicked.
    pub fn stop(mut self) {
        if let Some(panic) = self.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn join(&mut self) -> Option<Box<dyn Any + Send>> {
        for mailbox in &self.poster.mailboxes {
            mailbox.wake.ask_to_stop();
        }
        let results: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        results.into_iter().find_map(Result::err)
    }
}

impl<M> Drop for Reactors<M> {
    fn drop(&mut self) {
        // A panic of a reactor has been printed by its thread.
        let _panicked = self.join();
    }
}

fn check_cores(cores: &[usize]) -> Result<(), StartError> {
    if cores.is_empty() {
        return Err(CoresError::Empty.into());
    }
    cores::check_distinct(cores)?;
    let Some(online) = cores::online() else { return Ok(()) };
    match cores.iter().find(|core| !online.contains(core)) {
        Some(&core) => Err(StartError::NoSuchCore { core, online: cores::describe(&online) }),
        None => Ok(()),
    }
}

fn mailboxes<M>(cores: &[usize], places: usize) -> Result<Vec<Arc<Mailbox<M>>>, StartError> {
    let mailbox = |&core: &usize| {
        let wake = Wake::new().map_err(|errno| StartError::System { core, source: errno.into() })?;
        Ok(Arc::new(Mailbox::new(places, Arc::new(wake))))
    };
    cores.iter().map(mailbox).collect()
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn ring_config(ring: &RingConfig, allowed: &[usize], reactors: &[usize], own: usize) -> RingConfig {
    let mut ring = ring.clone();
    if ring.worker_cores.is_empty() {
        ring.worker_cores = cores::worker_cores(allowed, reactors, own);
    }
    if ring.sq_core.is_none() && !ring.worker_cores.is_empty() {
        // One each, as far as there are cores.
        let number = reactors.iter().position(|core| *core == own).unwrap_or(0);
        ring.sq_core = Some(ring.worker_cores[number % ring.worker_cores.len()]);
    }
    ring
}

/// A ring from each reactor to each, itself included.
fn connect<M>(mailboxes: &[Arc<Mailbox<M>>], places: usize) -> Vec<Peers<M>> {
    let count = mailboxes.len();
    let mut to: Vec<Vec<Producer<M>>> = Vec::new();
    let mut from: Vec<Vec<Consumer<M>>> = (0..count).map(|_| Vec::new()).collect();
    for _sender in 0..count {
        let (producers, consumers): (Vec<_>, Vec<_>) = (0..count).map(|_| RingBuffer::new(places)).unzip();
        to.push(producers);
        for (of_receiver, consumer) in from.iter_mut().zip(consumers) {
            of_receiver.push(consumer);
        }
    }
    let wakes: Vec<_> = mailboxes.iter().map(|mailbox| Arc::clone(&mailbox.wake)).collect();
    from.into_iter().zip(to).map(|(from, to)| Peers { from, to, wakes: wakes.clone() }).collect()
}

/// What a reactor's thread starts from.
struct Seed<M> {
    number: usize,
    core: usize,
    ring: RingConfig,
    idling: Idling,
    mailbox: Arc<Mailbox<M>>,
}

impl<M: Send> Seed<M> {
    fn run<W: Worker<Message = M>>(
        self,
        worker: W,
        peers: Peers<M>,
        ready: mpsc::Sender<Result<Arc<ReactorStats>, StartError>>,
    ) {
        let (ring, stats) = match self.set_up() {
            Ok(both) => both,
            Err(error) => {
                // Whoever started us is there to hear it: it returns only when all have answered.
                let _heard = ready.send(Err(error));
                return;
            }
        };
        let mut reactor = Reactor::new(ring, worker, self.mailbox, peers, self.idling, Arc::clone(&stats));
        let _heard = ready.send(Ok(stats));
        drop(ready);
        reactor.run();
    }

    /// On the reactor's thread: the ring is bound to it.
    fn set_up(&self) -> Result<(UringRing, Arc<ReactorStats>), StartError> {
        let core = self.core;
        if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
            return Err(StartError::Pin { core });
        }
        if let Err(errno) = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK)) {
            tracing::warn!("reactor {} sleeps with the default timer slack: {errno}", self.number);
        }
        let wake = Arc::clone(&self.mailbox.wake);
        let ring = UringRing::of_reactor(&self.ring, wake).map_err(|source| StartError::Ring { core, source })?;
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        let stats = ReactorStats::new(self.number, core, tid, ring.features().clone());
        Ok((ring, Arc::new(stats)))
    }
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
