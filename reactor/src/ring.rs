//! [`Ring`] on io_uring: clients and files above, the kernel below.
//!
//! One enter a turn. Entries are pushed into the submission queue and stay there until [`UringRing::turn`]; that enters
//! only if something was pushed or the ring shows completions that nothing else brings (task work, an overflowing
//! completion queue), because under `DEFER_TASKRUN` nothing completes without an enter, and an enter for nothing costs
//! as much as a small request. Completions go into their clients' lists on the spot and wait there.

use std::os::fd::RawFd;
use std::thread;
use std::time::{Duration, Instant};

use pollux_core::{ClientId, Done, Entry, FileSlot, Ring, RingError, Token};

use crate::clients::{Clients, OWN};
use crate::clock::Clock;
use crate::kernel::{Kernel, RingFeatures, SetupError};
use crate::sqe::{Sqe, Target};

/// How long a ring that is dropped waits for what is still in flight.
const DRAIN: Duration = Duration::from_secs(10);
/// How often a full submission queue is tried again before the reactor gives its core away for a moment.
const TRIES: u32 = 16;

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
}

impl Default for RingConfig {
    fn default() -> Self {
        RingConfig { submissions: 512, completions: 4096, files: 8192, worker_cores: Vec::new(), workers: [16, 4] }
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
}

impl UringRing {
    /// Sets a ring up on the calling thread, which is the only one to use it.
    ///
    /// # Errors
    /// [`SetupError`] says what is in the way.
    pub fn new(config: &RingConfig) -> Result<Self, SetupError> {
        Ok(Self::on(Kernel::new(config)?, config.files))
    }

    fn on(kernel: Kernel, max_files: u32) -> Self {
        UringRing {
            kernel,
            clients: Clients::default(),
            files: Vec::new(),
            free_files: Vec::new(),
            max_files,
            enters: 0,
            clock: Clock::new(),
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
    pub fn enter(&mut self, wait: Option<Duration>) -> usize {
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
        self.enter(None)
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
        self.push_sqe(&Sqe::cancel_all(OWN));
        let start = Instant::now();
        while self.in_flight() > 0 && start.elapsed() < DRAIN {
            self.enter(Some(Duration::from_millis(100)));
        }
        if self.in_flight() > 0 {
            tracing::error!("{} requests are stuck in the kernel; the ring is given up with them", self.in_flight());
        }
    }
}

impl Ring for UringRing {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
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

    fn remove_file(&mut self, file: FileSlot) {
        let target = self.files.get_mut(file.0 as usize).and_then(Option::take);
        let target = target.unwrap_or_else(|| panic!("file {} is not in this ring", file.0));
        if target == Target::Registered(file.0)
            && let Err(errno) = self.kernel.set_file(file.0, -1)
        {
            tracing::warn!("file {} stays open in the ring until its place is used again (errno {errno})", file.0);
        }
        self.free_files.push(file.0);
    }

    #[inline]
    fn push(&mut self, entry: Entry) {
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
