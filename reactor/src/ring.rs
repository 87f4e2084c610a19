//! [`Ring`] on io_uring: clients and files above, the kernel below.
//!
//! One enter a turn. Entries are pushed into the submission queue and stay there until [`UringRing::turn`]; that enters
//! only if something was pushed or the ring shows completions that nothing else brings (task work, an overflowing
//! completion queue), because under `DEFER_TASKRUN` nothing completes without an enter, and an enter for nothing costs
//! as much as a small request. Completions go into their clients' lists on the spot and wait there.
//!
//! Where a second ring is wanted for the reads and writes of files (`data.rs`), this is where the two are one: an entry is
//! counted with its client whichever ring has it, and sleeping is done in the first, which polls the second.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pollux_core::{ClientId, Done, Entry, FileSlot, Ring, RingError, RingOp, Token};

use crate::clients::{Clients, OWN};
use crate::clock::Clock;
use crate::data::{DataMode, DataRing, Landed};
use crate::kernel::{Kernel, RingFeatures, SetupError};
use crate::mailbox::Wake;
use crate::sqe::{Sqe, Target};

/// How long a ring that is dropped waits for what is still in flight.
const DRAIN: Duration = Duration::from_secs(10);
/// How often a full submission queue is tried again before the reactor gives its core away for a moment.
const TRIES: u32 = 16;
/// The ring's own client has one entry, the poll of the second ring.
const WATCH: Token = Token { index: 0, generation: 0 };

/// How a ring is set up.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Places in the submission queue; a full one is submitted on the spot, so this bounds a batch and nothing else.
    pub submissions: u32,
    /// Places in the completion queue; more completions than that wait in the kernel.
    pub completions: u32,
    /// How many files can be registered.
    pub files: u32,
    /// The cores of the kernel's workers; empty: they stay on the reactor's.
    pub worker_cores: Vec<usize>,
    /// How many kernel workers at most: for regular files and block devices, and for everything else.
    pub workers: [u32; 2],
    /// Whether reads and writes of files go through a ring of their own.
    pub data_ring: DataMode,
    /// The core of that ring's submission thread, if it has one; none: any.
    pub sq_core: Option<usize>,
}

impl Default for RingConfig {
    fn default() -> Self {
        RingConfig {
            submissions: 512,
            completions: 4096,
            files: 8192,
            worker_cores: Vec::new(),
            workers: [16, 4],
            data_ring: DataMode::None,
            sq_core: None,
        }
    }
}

/// A ring of io_uring. Belongs to the thread that made it.
pub struct UringRing {
    kernel: Kernel,
    clients: Clients,
    files: Vec<Option<Target>>,
    free_files: Vec<u32>,
    max_files: u32,
    enters: u64,
    clock: Clock,
    /// The second ring, where one is wanted.
    data: Option<Box<DataRing>>,
    /// Of the reactor that it belongs to.
    wake: Arc<Wake>,
}

impl UringRing {
    /// Sets a ring up on the calling thread, which is the only one to use it. No reactor sleeps in it: whoever turns it has
    /// to look, without being woken, at what its [`waker`](Ring::waker) is called for.
    ///
    /// # Errors
    /// [`SetupError`] says what is in the way.
    pub fn new(config: &RingConfig) -> Result<Self, SetupError> {
        let wake = Wake::new().map_err(|errno| SetupError::from_os(&errno.into()))?;
        Self::of_reactor(config, Arc::new(wake))
    }

    /// Sets up the ring of a reactor that is woken like that.
    pub(crate) fn of_reactor(config: &RingConfig, wake: Arc<Wake>) -> Result<Self, SetupError> {
        let mut ring = Self::on(Kernel::new(config)?, config.files, wake);
        if config.data_ring != DataMode::None {
            ring.add_data_ring(config)?;
        }
        Ok(ring)
    }

    fn add_data_ring(&mut self, config: &RingConfig) -> Result<(), SetupError> {
        let watch = self.clients.add(1).expect("a new ring has room for its own client");
        let data = DataRing::new(config, watch)?;
        self.kernel.note_data(config.data_ring, data.sq_core());
        self.data = Some(Box::new(data));
        Ok(())
    }

    fn on(kernel: Kernel, max_files: u32, wake: Arc<Wake>) -> Self {
        UringRing {
            kernel,
            clients: Clients::default(),
            files: Vec::new(),
            free_files: Vec::new(),
            max_files,
            enters: 0,
            clock: Clock::new(),
            data: None,
            wake,
        }
    }

    /// What the kernel gave.
    #[must_use]
    pub const fn features(&self) -> &RingFeatures {
        self.kernel.features()
    }

    /// How many entries have not completed yet.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.clients.in_kernel()
    }

    /// How many completions came for clients that had left.
    #[must_use]
    pub const fn stale(&self) -> u64 {
        self.clients.stale()
    }

    /// How many times the kernel was entered.
    #[must_use]
    pub const fn enters(&self) -> u64 {
        self.enters
    }

    /// Hands what was pushed to the kernel and takes completions; `wait`: sleeps until there is one, at most so long
    /// (`Duration::MAX`: for ever). May come back early with nothing. Returns the number of completions.
    #[inline]
    pub fn enter(&mut self, wait: Option<Duration>) -> usize {
        if self.data.is_some() { self.enter_both(wait) } else { self.enter_first(wait) }
    }

    /// Whether it has requests in flight whose completions nothing but looking for them brings: no sleep then.
    #[must_use]
    pub fn must_look(&self) -> bool {
        self.data.as_ref().is_some_and(|data| data.must_look())
    }

    #[inline]
    fn enter_first(&mut self, wait: Option<Duration>) -> usize {
        let there = self.take();
        let (queued, kernel_has_some) = self.kernel.look();
        let wait = wait.filter(|_| there == 0);
        if queued == 0 && !kernel_has_some && wait.is_none() {
            return there;
        }
        self.enters += 1;
        // What was not submitted stays in the queue, what has not completed in the kernel: the next turn goes on.
        let _passes = self.kernel.enter(wait);
        there + self.take()
    }

    /// The enter of a turn: [`UringRing::enter`] without waiting.
    #[inline]
    pub(crate) fn turn(&mut self) -> usize {
        if self.data.is_some() { self.enter_both(None) } else { self.enter_first(None) }
    }

    #[inline(never)]
    fn enter_both(&mut self, wait: Option<Duration>) -> usize {
        let there = self.turn_data();
        let wait = wait.filter(|_| there == 0 && !self.must_look());
        if wait.is_some() {
            self.watch_data();
        }
        let there = there + self.enter_first(wait);
        if wait.is_some() { there + self.turn_data() } else { there }
    }

    /// Has the second ring's entries worked on, and takes its completions.
    fn turn_data(&mut self) -> usize {
        let Some(data) = &mut self.data else { return 0 };
        self.enters += u64::from(data.run());
        let clients = &mut self.clients;
        let count = data.take(|user_data, result| {
            clients.completed(user_data, result);
        });
        while let Some(refused) = self.data.as_mut().and_then(|data| data.refused()) {
            self.go_first(&refused);
        }
        count
    }

    /// What the second ring refuses goes through the first one, and so does all that comes for that file afterwards.
    fn go_first(&mut self, refused: &Landed) {
        // Nothing else is in the second ring and comes back refused.
        let (RingOp::Read { file, .. } | RingOp::Write { file, .. }) = refused.op else { return };
        if let Some(data) = &mut self.data
            && data.leave(file)
        {
            tracing::warn!("a file's reads and writes are not taken by the data ring: they go through the main one");
        }
        let target = self.target(file);
        let sqe = Sqe::new(&refused.op, refused.user_data, |_| target, |_| OWN);
        self.push_sqe(&sqe);
    }

    /// Has the first ring, in which the reactor sleeps, poll the second.
    fn watch_data(&mut self) {
        let Some(data) = &mut self.data else { return };
        let Some((client, fd)) = data.watch(|client, done| self.clients.reap(client, done)) else { return };
        self.push(Entry { client, token: WATCH, op: RingOp::PollReadable { fd } });
    }

    /// Puts an entry into the second ring if it belongs there.
    #[inline(never)]
    fn push_data(&mut self, entry: &Entry) -> bool {
        let Some(data) = &self.data else { return false };
        let Some(target) = data.place(&entry.op, |token| self.clients.user_data_of(entry.client, token)) else {
            return false;
        };
        let user_data = self.clients.pushed(entry.client, entry.token);
        let mut tries = 0;
        while let Some(data) = &mut self.data
            && !data.push(target, Landed { user_data, op: entry.op })
        {
            self.turn_data();
            tries += 1;
            if tries % TRIES == 0 {
                thread::sleep(Duration::from_micros(50));
            }
        }
        true
    }

    fn target(&self, file: FileSlot) -> Target {
        let target = self.files.get(file.0 as usize).copied().flatten();
        target.unwrap_or_else(|| panic!("file {} is not in this ring", file.0))
    }

    #[inline]
    fn take(&mut self) -> usize {
        let clients = &mut self.clients;
        self.kernel.completions(|user_data, result| {
            clients.completed(user_data, result);
        })
    }

    fn push_sqe(&mut self, sqe: &Sqe) {
        let mut tries = 0;
        while !self.kernel.push(sqe) {
            self.enters += 1;
            if self.kernel.enter(None).is_err() {
                // The kernel is short of memory, or wants its completions taken first.
                self.take();
                tries += 1;
                if tries % TRIES == 0 {
                    thread::sleep(Duration::from_micros(50));
                }
            }
        }
    }

    fn drain(&mut self) {
        if self.in_flight() == 0 {
            return;
        }
        self.drain_data();
        // A time of its own: what is stuck in the second ring takes nothing from what the first one waits for.
        let start = Instant::now();
        self.push_sqe(&Sqe::cancel_all(OWN));
        while self.in_flight() > 0 && start.elapsed() < DRAIN {
            self.enter(Some(Duration::from_millis(100)));
        }
        if self.in_flight() > 0 {
            tracing::error!("{} requests are stuck in the kernel; the ring is given up with them", self.in_flight());
        }
    }
}

impl UringRing {
    /// Waits for the second ring without sleeping in the first: a poll of the second one would be in flight as well then.
    fn drain_data(&mut self) {
        let start = Instant::now();
        if let Some(data) = &mut self.data {
            data.cancel_all();
        }
        while self.data.as_ref().is_some_and(|data| data.in_flight() > 0) && start.elapsed() < DRAIN {
            if self.turn_data() == 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
    }
}

impl Ring for UringRing {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn waker(&self) -> Arc<dyn pollux_core::Wake> {
        Arc::<Wake>::clone(&self.wake)
    }

    fn add_client(&mut self, depth: u32) -> Result<ClientId, RingError> {
        self.clients.add(depth)
    }

    fn remove_client(&mut self, client: ClientId) {
        self.clients.remove(client);
    }

    fn add_file(&mut self, fd: RawFd) -> Result<FileSlot, RingError> {
        if fd < 0 {
            return Err(RingError::Os(libc::EBADF));
        }
        let slot = match self.free_files.pop() {
            Some(slot) => slot,
            None if (self.files.len() as u32) < self.max_files => {
                self.files.push(None);
                self.files.len() as u32 - 1
            }
            None => return Err(RingError::Full),
        };
        let registered = slot < self.features().registered_files;
        if registered && let Err(errno) = self.kernel.set_file(slot, fd) {
            self.free_files.push(slot);
            return Err(RingError::Os(errno));
        }
        let target = if registered { Target::Registered(slot) } else { Target::Descriptor(fd) };
        self.files[slot as usize] = Some(target);
        Ok(FileSlot(slot))
    }

    fn add_data_file(&mut self, fd: RawFd, polled: bool) -> Result<FileSlot, RingError> {
        let file = self.add_file(fd)?;
        if let Some(data) = &mut self.data
            && let Err(errno) = data.add(file, fd, polled)
        {
            self.remove_file(file);
            return Err(RingError::Os(errno));
        }
        Ok(file)
    }

    fn remove_file(&mut self, file: FileSlot) {
        let target = self.files.get_mut(file.0 as usize).and_then(Option::take);
        let target = target.unwrap_or_else(|| panic!("file {} is not in this ring", file.0));
        if target == Target::Registered(file.0)
            && let Err(errno) = self.kernel.set_file(file.0, -1)
        {
            tracing::warn!("file {} stays open in the ring until its place is used again (errno {errno})", file.0);
        }
        if let Some(data) = &mut self.data {
            data.remove(file);
        }
        self.free_files.push(file.0);
    }

    #[inline]
    fn push(&mut self, entry: Entry) {
        if self.data.is_some() && self.push_data(&entry) {
            return;
        }
        let user_data = self.clients.pushed(entry.client, entry.token);
        let files = &self.files;
        let target = |file: FileSlot| {
            let target = files.get(file.0 as usize).copied().flatten();
            target.unwrap_or_else(|| panic!("file {} is not in this ring", file.0))
        };
        let clients = &mut self.clients;
        let name = |token: Token| clients.user_data_of(entry.client, token);
        let sqe = Sqe::new(&entry.op, user_data, target, name);
        self.push_sqe(&sqe);
    }

    #[inline]
    fn reap(&mut self, client: ClientId, done: &mut Vec<Done>) {
        self.clients.reap(client, done);
    }
}

impl Drop for UringRing {
    /// Ends what is in flight and waits for it, so that the memory it reads and fills can go afterwards.
    fn drop(&mut self) {
        self.drain();
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "data_tests.rs"]
mod data_tests;
