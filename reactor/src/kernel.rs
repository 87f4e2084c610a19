//! The kernel's side of a ring: set-up with fallbacks, registrations, and `io_uring_enter`. All unsafe code of the crate.
//!
//! Invariants: only the thread that made the ring uses it ([`Kernel`] is neither `Send` nor `Sync`), because the kernel
//! refuses others under `SINGLE_ISSUER` and because a registered ring descriptor belongs to its thread. Only
//! [`Sqe`]s are pushed, whose pointers are good until they complete.

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::time::Duration;

use io_uring::{Builder, IoUring};

use crate::cores;
use crate::data::DataMode;
use crate::ring::RingConfig;
use crate::sqe::Sqe;

/// `IORING_ENTER_GETEVENTS`, `_SQ_WAKEUP`, `_EXT_ARG`, `_REGISTERED_RING`.
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 1 << 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;
/// `IORING_REGISTER_RING_FDS`, `IORING_UNREGISTER_RING_FDS`.
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;
/// How long a submission thread looks for entries in vain before it sleeps, in milliseconds: an idle daemon is to use no
/// CPU, and the sleep of a reactor that waits for its disk is no reason to let the thread sleep too.
const SQ_IDLE_MS: u32 = 2;
/// A registered table smaller than this is not worth having.
const LEAST_FILES: u32 = 16;

/// What a ring got from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// `IORING_SETUP_SINGLE_ISSUER` (Linux 6.0).
    pub single_issuer: bool,
    /// `IORING_SETUP_DEFER_TASKRUN` (Linux 6.1): completions are worked on when the reactor enters the kernel, never
    /// in the middle of a turn.
    pub defer_taskrun: bool,
    /// `IORING_SETUP_COOP_TASKRUN` and `_TASKRUN_FLAG` (Linux 5.19): no interrupts from the kernel to the reactor.
    pub coop_taskrun: bool,
    /// Places in the submission queue.
    pub submission_entries: u32,
    /// Places in the completion queue.
    pub completion_entries: u32,
    /// Places in the table of registered files; files beyond it go by descriptor.
    pub registered_files: u32,
    /// Whether the ring's own descriptor is registered (Linux 5.18).
    pub registered_ring: bool,
    /// The cores of the kernel's worker threads; empty if they stay where the reactor is.
    pub worker_cores: Vec<usize>,
    /// How many kernel workers at most: for regular files and block devices, and for everything else. 0: the kernel's
    /// own limits.
    pub worker_limits: [u32; 2],
    /// The second ring, for reads and writes of files.
    pub data_ring: DataMode,
    /// The core that the second ring's submission thread is pinned to, where there is one: a core without a reactor, or
    /// another reactor's if there is none; `None` where this reactor's is the only core.
    pub sq_core: Option<usize>,
}

impl fmt::Display for RingFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match (self.defer_taskrun, self.coop_taskrun) {
            (true, _) => "deferred task work",
            (false, true) => "cooperative task work",
            (false, false) => "task work by interrupt",
        };
        let (sq, cq, files) = (self.submission_entries, self.completion_entries, self.registered_files);
        write!(f, "{mode}, {sq} submissions, {cq} completions, {files} registered files")?;
        if self.registered_ring {
            write!(f, ", registered ring")?;
        }
        if !self.worker_cores.is_empty() {
            write!(f, ", workers on cores {}", cores::describe(&self.worker_cores))?;
        }
        let [bounded, unbounded] = self.worker_limits;
        if bounded != 0 {
            write!(f, ", at most {bounded}+{unbounded} workers")?;
        }
        match (self.data_ring, self.sq_core) {
            (DataMode::None, _) => Ok(()),
            (DataMode::IoPoll, _) => write!(f, ", a data ring that asks devices for completions"),
            (DataMode::SqPoll, Some(core)) => write!(f, ", a data ring with its submission thread on core {core}"),
            (DataMode::SqPoll, None) => write!(f, ", a data ring with its submission thread on any core"),
        }
    }
}

/// Why a ring could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// `EPERM`.
    #[error(
        "io_uring is not permitted: set the sysctl kernel.io_uring_disabled to 0, and allow io_uring_setup, \
         io_uring_enter and io_uring_register in the seccomp filter of the container or service"
    )]
    NotPermitted,
    /// `ENOSYS`.
    #[error("this kernel has no io_uring: Linux 5.12 or later is needed, 6.1 or later is best")]
    Missing,
    /// A feature that there is no way around.
    #[error("this kernel's io_uring lacks {0}: Linux 5.12 or later is needed, 6.1 or later is best")]
    TooOld(&'static str),
    /// `ENOMEM`.
    #[error("not enough memory for the ring: raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity) or free memory")]
    Memory,
    /// `EMFILE`, `ENFILE`.
    #[error("no file descriptor is left for the ring: raise RLIMIT_NOFILE (systemd: LimitNOFILE=)")]
    Descriptors,
    /// The second ring, for reads and writes of files.
    #[error(
        "the kernel gives no data ring of the kind {name} (errno {errno}): leave out --data-ring (the key data-ring) or \
         set it to none", name = .mode.name()
    )]
    Data {
        /// What was asked for.
        mode: DataMode,
        /// Why not.
        errno: i32,
    },
    /// Anything else.
    #[error("the kernel refused to set up a ring (errno {0})")]
    Os(i32),
}

impl SetupError {
    pub(crate) fn from_os(error: &io::Error) -> Self {
        match error.raw_os_error().unwrap_or(0) {
            libc::EPERM | libc::EACCES => SetupError::NotPermitted,
            libc::ENOSYS => SetupError::Missing,
            libc::ENOMEM => SetupError::Memory,
            libc::EMFILE | libc::ENFILE => SetupError::Descriptors,
            errno => SetupError::Os(errno),
        }
    }
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgs {
    sigmask: u64,
    sigmask_len: u32,
    min_wait_us: u32,
    timeout: u64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RegisterUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// A ring of the kernel.
pub(crate) struct Kernel {
    ring: IoUring,
    /// The ring's descriptor, or its number in the thread's table of registered rings.
    enter_fd: i32,
    enter_flags: u32,
    features: RingFeatures,
    one_thread: PhantomData<*const ()>,
}

impl Kernel {
    pub(crate) fn new(config: &RingConfig) -> Result<Self, SetupError> {
        Self::with(config, &choices())
    }

    /// With the first of `choices` that the kernel takes.
    pub(crate) fn with(config: &RingConfig, choices: &[RingFeatures]) -> Result<Self, SetupError> {
        let (ring, features) = build(config, choices)?;
        Ok(Self::around(ring, features, config))
    }

    /// A ring for the reads and writes of files, of a kind that the first ring cannot be.
    pub(crate) fn data(config: &RingConfig) -> Result<Self, SetupError> {
        let mode = config.data_ring;
        let own_words = |error| match error {
            SetupError::Os(errno) => SetupError::Data { mode, errno },
            other => other,
        };
        // Flags about task work are refused beside a submission thread, which has it all.
        let choices = if mode == DataMode::SqPoll { vec![RingFeatures::default()] } else { choices().to_vec() };
        let wanted = |choice: RingFeatures| RingFeatures { data_ring: mode, sq_core: config.sq_core, ..choice };
        let choices: Vec<RingFeatures> = choices.into_iter().map(wanted).collect();
        let (ring, features) = build(config, &choices).map_err(own_words)?;
        Ok(Self::around(ring, features, config))
    }

    fn around(ring: IoUring, mut features: RingFeatures, config: &RingConfig) -> Self {
        features.submission_entries = ring.params().sq_entries();
        features.completion_entries = ring.params().cq_entries();
        features.registered_files = register_files(&ring, config.files);
        let enter_fd = ring.as_raw_fd();
        let mut kernel = Kernel { ring, enter_fd, enter_flags: 0, features, one_thread: PhantomData };
        kernel.register_ring();
        kernel.place_workers(config);
        kernel.limit_workers(config.workers);
        kernel
    }

    pub(crate) const fn features(&self) -> &RingFeatures {
        &self.features
    }

    /// The first ring's account of both.
    pub(crate) fn note_data(&mut self, mode: DataMode, sq_core: Option<usize>) {
        self.features.data_ring = mode;
        self.features.sq_core = sq_core;
    }

    /// The ring's descriptor, readable when there are completions.
    pub(crate) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Saves the kernel looking the descriptor up at each enter.
    fn register_ring(&mut self) {
        let fd = self.ring.as_raw_fd();
        let mut update = RegisterUpdate { offset: u32::MAX, reserved: 0, data: fd as u64 };
        if register(fd, REGISTER_RING_FDS, &mut update) {
            self.enter_fd = update.offset as i32;
            self.enter_flags = ENTER_REGISTERED_RING;
            self.features.registered_ring = true;
        }
    }

    fn place_workers(&mut self, config: &RingConfig) {
        if config.worker_cores.is_empty() {
            return;
        }
        // SAFETY: `cpu_set_t` is an array of integers, for which all bits zero is a value.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        for &core in config.worker_cores.iter().filter(|core| **core < libc::CPU_SETSIZE as usize) {
            // SAFETY: `core` is below the number of bits in the set.
            unsafe { libc::CPU_SET(core, &mut set) };
        }
        if self.ring.submitter().register_iowq_aff(&set).is_ok() {
            self.features.worker_cores.clone_from(&config.worker_cores);
        }
    }

    fn limit_workers(&mut self, limits: [u32; 2]) {
        // The kernel writes the old limits into what it is given.
        if self.ring.submitter().register_iowq_max_workers(&mut limits.clone()).is_ok() {
            self.features.worker_limits = limits;
        }
    }

    /// Puts an entry into the submission queue; false if it is full.
    #[inline]
    pub(crate) fn push(&mut self, sqe: &Sqe) -> bool {
        // SAFETY: an `Sqe` is made from a `RingOp` only. Its pointers lead to a segment list and the memory that it
        // names, which stay until the request has completed (the contract of `SegmentList::new` and `Segment::new`), or
        // to a static.
        unsafe { self.ring.submission().push(sqe.entry()) }.is_ok()
    }

    /// How many entries wait in the submission queue, and whether the kernel has completions that only an enter brings.
    #[inline]
    pub(crate) fn look(&mut self) -> (u32, bool) {
        let queue = self.ring.submission();
        (queue.len() as u32, queue.taskrun() || queue.cq_overflow())
    }

    /// Submits what is queued and works on completions; waits for one if there is a time to wait (`Duration::MAX`: for
    /// ever). The errors are those that pass: the queue keeps what was not taken.
    ///
    /// # Panics
    /// On errors after which nothing about the ring can be relied on.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> Result<(), i32> {
        self.enter_with(wait, 0)
    }

    /// For a ring with a submission thread: wakes that if it sleeps and there is something for it. Returns whether the
    /// kernel had to be entered.
    pub(crate) fn nudge(&mut self) -> bool {
        let (queued, kernel_has_some) = self.look();
        let asleep = queued > 0 && self.ring.submission().need_wakeup();
        if !asleep && !kernel_has_some {
            return false;
        }
        // What passes is tried again in the next turn.
        let _passes = self.enter_with(None, if asleep { ENTER_SQ_WAKEUP } else { 0 });
        true
    }

    fn enter_with(&mut self, wait: Option<Duration>, flags: u32) -> Result<(), i32> {
        let (queued, _) = self.look();
        let timeout = wait.filter(|wait| *wait != Duration::MAX);
        let timeout = timeout.map(|wait| [wait.as_secs() as i64, i64::from(wait.subsec_nanos())]);
        let args = WaitArgs {
            sigmask: 0,
            sigmask_len: 0,
            min_wait_us: 0,
            timeout: timeout.as_ref().map_or(0, |time| ptr::from_ref(time) as u64),
        };
        // SAFETY: the arguments are those that `io_uring_enter` documents for `EXT_ARG`; `args` and `timeout`, laid out
        // like `struct __kernel_timespec`, outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.enter_fd,
                queued,
                u32::from(wait.is_some()),
                ENTER_GETEVENTS | ENTER_EXT_ARG | self.enter_flags | flags,
                &raw const args,
                size_of::<WaitArgs>(),
            )
        };
        if result >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error().raw_os_error().unwrap_or(0) {
            errno @ (libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Err(errno),
            libc::EBADR => panic!("the kernel ran out of memory for completions and lost some"),
            errno => panic!("io_uring_enter failed (errno {errno})"),
        }
    }

    /// Calls `take(user_data, result)` for each completion that is there; returns how many.
    #[inline]
    pub(crate) fn completions(&mut self, mut take: impl FnMut(u64, i32)) -> usize {
        let mut count = 0;
        for completion in self.ring.completion() {
            take(completion.user_data(), completion.result());
            count += 1;
        }
        count
    }

    /// Sets a place of the registered table; -1 empties it.
    pub(crate) fn set_file(&mut self, slot: u32, fd: RawFd) -> Result<(), i32> {
        match self.ring.submitter().register_files_update(slot, &[fd]) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // A registered ring holds a reference to the ring until its thread ends: it would outlive us.
        if self.features.registered_ring {
            let mut update = RegisterUpdate { offset: self.enter_fd as u32, reserved: 0, data: 0 };
            register(self.ring.as_raw_fd(), UNREGISTER_RING_FDS, &mut update);
        }
    }
}

fn register(fd: RawFd, opcode: u32, update: &mut RegisterUpdate) -> bool {
    // SAFETY: both opcodes take an array of `struct io_uring_rsrc_update`, here of one, which the kernel may write to
    // during the call.
    unsafe { libc::syscall(libc::SYS_io_uring_register, fd, opcode, ptr::from_mut(update), 1u32) == 1 }
}

/// The ways to run a ring, best first; each later one is for earlier kernels.
pub(crate) fn choices() -> [RingFeatures; 4] {
    let defer = RingFeatures { single_issuer: true, defer_taskrun: true, ..RingFeatures::default() };
    let single = RingFeatures { single_issuer: true, coop_taskrun: true, ..RingFeatures::default() };
    let coop = RingFeatures { coop_taskrun: true, ..RingFeatures::default() };
    [defer, single, coop, RingFeatures::default()]
}

fn build(config: &RingConfig, choices: &[RingFeatures]) -> Result<(IoUring, RingFeatures), SetupError> {
    let mut last = SetupError::Missing;
    for wanted in choices {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(config.completions.max(config.submissions));
        ask_for(wanted, &mut builder);
        match builder.build(config.submissions) {
            Ok(ring) => return check(&ring).map(|()| (ring, wanted.clone())),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = SetupError::from_os(&error),
            Err(error) => return Err(SetupError::from_os(&error)),
        }
    }
    Err(last)
}

fn ask_for(wanted: &RingFeatures, builder: &mut Builder) {
    if wanted.single_issuer {
        builder.setup_single_issuer();
    }
    if wanted.defer_taskrun {
        builder.setup_defer_taskrun();
    }
    if wanted.coop_taskrun {
        builder.setup_coop_taskrun();
    }
    if wanted.defer_taskrun || wanted.coop_taskrun {
        builder.setup_taskrun_flag().setup_submit_all();
    }
    match wanted.data_ring {
        DataMode::None => {}
        DataMode::IoPoll => {
            builder.setup_iopoll();
        }
        DataMode::SqPoll => {
            builder.setup_sqpoll(SQ_IDLE_MS);
            if let Some(core) = wanted.sq_core {
                builder.setup_sqpoll_cpu(core as u32);
            }
        }
    }
}

fn check(ring: &IoUring) -> Result<(), SetupError> {
    let has = ring.params();
    for (there, name) in [
        (has.is_feature_nodrop(), "NODROP"),
        (has.is_feature_submit_stable(), "SUBMIT_STABLE"),
        (has.is_feature_ext_arg(), "EXT_ARG"),
        (has.is_feature_native_workers(), "NATIVE_WORKERS"),
    ] {
        if !there {
            return Err(SetupError::TooOld(name));
        }
    }
    Ok(())
}

/// An empty table of registered files, as large as asked for or as the kernel (and `RLIMIT_NOFILE`) allows; returns how
/// large.
fn register_files(ring: &IoUring, wanted: u32) -> u32 {
    let mut count = wanted;
    while count >= LEAST_FILES.min(wanted.max(1)) {
        if ring.submitter().register_files_sparse(count).is_ok() {
            return count;
        }
        count /= 2;
    }
    0
}
