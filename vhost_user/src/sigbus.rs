//! A VMM may shrink the file behind its guest's memory at any time; touching what is gone then raises SIGBUS. That must
//! cost its own session, not the process and every other VM in it.
//!
//! All mappings of guest memory are listed in a fixed table that the signal handler can read without locks. A fault
//! inside one of them is answered by laying fresh zero pages over the whole mapping, noting the hit, and shutting the
//! session's socket down; the interrupted access then goes on with zeroes, and the session's thread tears it down.
//! Faults anywhere else are left to whoever handled SIGBUS before.
//!
//! Invariant: an entry is visible (`start != 0`) exactly while its range is mapped by its owner.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Mappings of guest memory in the whole process. The kernel allows 65530 mappings of any kind.
const MAPPINGS_MAX: usize = 32 * 1024;

struct Entry {
    start: AtomicUsize,
    len: AtomicUsize,
    socket: AtomicI32,
    hit: AtomicBool,
}

static TABLE: [Entry; MAPPINGS_MAX] = [const {
    Entry {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        socket: AtomicI32::new(-1),
        hit: AtomicBool::new(false),
    }
}; MAPPINGS_MAX];
/// Entries from here on have never been used.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping's entry in the table; leaves it when dropped, which must be before the range is unmapped.
pub(crate) struct Watch {
    index: usize,
    /// Keeps the descriptor open that the handler shuts down.
    _socket: Option<Arc<OwnedFd>>,
}

/// Lists the mapping; `None` if the table is full.
pub(crate) fn watch(start: usize, len: usize, socket: Option<Arc<OwnedFd>>) -> Option<Watch> {
    install();
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let index = free.pop().or_else(|| {
        let next = HIGH_WATER.load(Ordering::Relaxed);
        (next < MAPPINGS_MAX).then(|| {
            HIGH_WATER.store(next + 1, Ordering::Release);
            next
        })
    })?;
    let entry = &TABLE[index];
    assert_eq!(entry.start.load(Ordering::Relaxed), 0, "a free entry is invisible");
    entry.len.store(len, Ordering::Relaxed);
    entry.socket.store(socket.as_ref().map_or(-1, AsRawFd::as_raw_fd), Ordering::Relaxed);
    entry.hit.store(false, Ordering::Relaxed);
    entry.start.store(start, Ordering::Release);
    Some(Watch { index, _socket: socket })
}

impl Watch {
    /// Whether the memory was taken away by its file.
    pub(crate) fn hit(&self) -> bool {
        TABLE[self.index].hit.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        TABLE[self.index].start.store(0, Ordering::Release);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

fn install() {
    PREVIOUS.get_or_init(|| {
        // SAFETY: both structures are plain data, valid when zeroed; the handler does only what is allowed in one
        // (atomics, mmap, shutdown). SA_ONSTACK: it runs on the thread's own signal stack if it has one.
        unsafe {
            let mut previous: libc::sigaction = std::mem::zeroed();
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            let result = libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous);
            assert_eq!(result, 0, "SIGBUS is a signal that can be caught");
            previous
        }
    });
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo for a handler with SA_SIGINFO; errno is the interrupted thread's own.
    let (addr, errno) = unsafe { ((*info).si_addr() as usize, libc::__errno_location()) };
    // SAFETY: as above; saved because the calls below may change it under the interrupted code.
    let saved = unsafe { *errno };
    let ours = TABLE[..HIGH_WATER.load(Ordering::Acquire)].iter().any(|entry| entry.covers(addr) && entry.replace());
    if !ours {
        // Not guest memory: the access is repeated under the action that was there before us, which is fatal for most.
        if let Some(previous) = PREVIOUS.get() {
            // SAFETY: `previous` was filled in by the kernel.
            unsafe { libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut()) };
        }
    }
    // SAFETY: as above.
    unsafe { *errno = saved };
}

impl Entry {
    fn covers(&self, addr: usize) -> bool {
        let start = self.start.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Relaxed);
        start != 0 && addr >= start && addr - start < len && self.start.load(Ordering::Acquire) == start
    }

    /// Lays zero pages over the mapping and ends its session.
    fn replace(&self) -> bool {
        let start = self.start.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the faulting thread is inside this mapping, so its owner keeps it; nothing else lies in the range,
        // and zero pages are as good as any other content a guest may have put there.
        let mapped = unsafe { libc::mmap(start as *mut libc::c_void, len, prot, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        self.hit.store(true, Ordering::Release);
        let socket = self.socket.load(Ordering::Relaxed);
        if socket >= 0 {
            // SAFETY: the entry's owner keeps the descriptor open while the entry is visible.
            unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
        }
        true
    }
}
