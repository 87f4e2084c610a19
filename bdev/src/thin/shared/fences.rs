//! A fence between two that meet seldom, for which only one of them pays.
//!
//! A reader puts a word and then looks at another one; the engine puts that one and then looks at the reader's. Each has to put
//! before it looks, and a processor does not keep to that by itself: what it stores leaves for the cache later. A reader that
//! fences waits until all that it has stored before has left, such as the data that has just gone into a guest's memory, and
//! readers do this with every request that comes alone; the engine does it for a quiet point.
//!
//! So the kernel fences for both. Readers put with a plain store, and the compiler keeps the order. The engine puts, and
//! then has each processor that runs a thread of this process fence (`membarrier`). What a reader has put before that is there
//! to be seen; what it looks at after that is what the engine has put. A reader that does not run has been fenced when it
//! stopped, and is when it goes on.
//!
//! Where the kernel does not offer that, readers fence by themselves.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence, fence};
use std::thread;

use rustix::thread::{MembarrierCommand, membarrier};

/// Whether the kernel fences for readers.
pub(super) fn is_kernels() -> bool {
    static KERNELS: OnceLock<bool> = OnceLock::new();
    *KERNELS.get_or_init(|| membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok())
}

/// For a reader: puts a word, before what it looks at next. `kernels`: the kernel fences for it.
#[inline]
pub(super) fn put(word: &AtomicU64, value: u64, kernels: bool) {
    if kernels {
        // What it did before stays before it, too.
        word.store(value, Release);
        compiler_fence(SeqCst);
    } else {
        word.swap(value, SeqCst);
    }
}

/// For the engine: between what it has put and what it looks at of readers.
pub(crate) fn fence_readers() {
    fence(SeqCst);
    // Once it is offered it fails for lack of memory only.
    while is_kernels() && membarrier(MembarrierCommand::PrivateExpedited).is_err() {
        thread::yield_now();
    }
}
