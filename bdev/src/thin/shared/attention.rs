//! How a pool's engine is called: by whoever wants something of it, and by readers that it waits for.
//!
//! Calls are a flag and the waker of the engine's reactor. Who finds the flag up leaves it at that: the engine takes it
//! down before it looks at what it may have been called for.
//!
//! **Readers that get on.** The engine says up to which epoch it waits for readers ([`Attention::await_epoch`]) and looks at
//! them once more before it rests. A reader that leaves an epoch says so in its word, and then looks here whether that is
//! waited for. Both put before they look, and the engine fences for both (`fences.rs`): either it sees the reader's word, or the
//! reader sees what the engine waits for, and calls. A reader that began later than what is waited for calls
//! nobody, so each wakes the engine once for an epoch at most.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use crossbeam::utils::CachePadded;
use pollux_core::Wake;

use super::fences::fence_readers;

/// All readers are waited for, whenever they began.
pub(crate) const EVERYBODY: u64 = u64::MAX - 1;

/// See the module's description.
pub(crate) struct Attention {
    called: AtomicBool,
    engine: OnceLock<Arc<dyn Wake>>,
    /// The last epoch that is waited for; 0: none.
    awaited: CachePadded<AtomicU64>,
}

impl Default for Attention {
    fn default() -> Attention {
        let awaited = CachePadded::new(AtomicU64::new(0));
        Attention { called: AtomicBool::new(true), engine: OnceLock::new(), awaited }
    }
}

impl Attention {
    /// The engine is there, and is woken so.
    pub(super) fn engine_is(&self, wake: Arc<dyn Wake>) {
        let _the_same = self.engine.set(wake);
    }

    /// The engine is to look.
    pub(super) fn call(&self) {
        if !self.called.swap(true, SeqCst)
            && let Some(engine) = self.engine.get()
        {
            engine.wake();
        }
    }

    /// Whether somebody has called and nobody has asked yet.
    #[inline]
    pub(super) fn is_called(&self) -> bool {
        self.called.load(Relaxed)
    }

    /// Whether somebody has called since it was asked last.
    pub(super) fn was_called(&self) -> bool {
        self.called.load(Relaxed) && self.called.swap(false, SeqCst)
    }

    /// For the engine: it waits for readers of this epoch and of those before, [`EVERYBODY`] or, with 0, nobody. Returns
    /// whether it has to look at them once more before it rests.
    pub(super) fn await_epoch(&self, epoch: u64) -> bool {
        let before = self.awaited.load(Relaxed);
        if before != epoch {
            self.awaited.store(epoch, SeqCst);
            // Who calls for what is not waited for any more does no harm.
            if epoch > before {
                fence_readers();
            }
        }
        epoch > before
    }

    /// A reader that has been in this epoch is not any more, as its word says.
    #[inline]
    pub(super) fn got_on(&self, from: u64) {
        if self.awaited.load(SeqCst) >= from {
            self.call();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::fence;
    use std::thread::{self, Thread};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::thin::shared::readers::{Epoch, Reader, Stay};

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(&self) {
            self.0.unpark();
        }
    }

    #[test]
    fn a_reader_calls_for_epochs_that_are_waited_for() {
        let attention = Arc::new(Attention::default());
        let (reader, epoch, word) = (Reader::new(attention.clone()), Epoch::new(), AtomicU64::new(2));
        let mut stay = Stay::new();
        assert!(attention.was_called() && !attention.was_called());
        let (first, _) = stay.begin(&reader, &epoch, &word);
        let ended = epoch.raise();
        assert!(attention.await_epoch(ended) && !attention.await_epoch(ended));
        let (second, _) = stay.begin(&reader, &epoch, &word);
        stay.end(&reader, first);
        assert!(attention.was_called());
        stay.end(&reader, second);
        assert!(!attention.was_called(), "it began later");
        assert!(!attention.await_epoch(0));
        let (third, _) = stay.begin(&reader, &epoch, &word);
        stay.end(&reader, third);
        assert!(!attention.is_called());
        assert!(attention.await_epoch(EVERYBODY));
        stay.go_by(&reader, 5);
        assert!(attention.was_called());
    }

    /// Readers come and go on other threads; the engine sleeps for each epoch until all have left it, and is always woken.
    #[test]
    fn no_wake_up_is_lost() {
        const TIMES: u32 = 5000;
        const LONG: Duration = Duration::from_secs(20);
        let attention = Arc::new(Attention::default());
        let epoch = Arc::new(Epoch::new());
        attention.engine_is(Arc::new(Unpark(thread::current())));
        let over = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..2).map(|_| Arc::new(Reader::new(attention.clone()))).collect();
        let threads: Vec<_> = readers
            .iter()
            .map(|reader| {
                let (reader, epoch, over) = (reader.clone(), epoch.clone(), over.clone());
                thread::spawn(move || {
                    let (mut stay, word) = (Stay::new(), AtomicU64::new(2));
                    while !over.load(Relaxed) {
                        let (a, _) = stay.begin(&reader, &epoch, &word);
                        let (b, _) = stay.begin(&reader, &epoch, &word);
                        stay.end(&reader, a);
                        stay.end(&reader, b);
                    }
                })
            })
            .collect();
        let mut lost = None;
        for time in 0..TIMES {
            let ended = epoch.raise();
            attention.await_epoch(ended);
            let is_over = || {
                fence(SeqCst);
                readers.iter().all(|reader| reader.oldest() > ended)
            };
            while !is_over() && lost.is_none() {
                // A call ends this; a long time without one means that nobody has called.
                let began = Instant::now();
                while !attention.was_called() && lost.is_none() {
                    thread::park_timeout(LONG);
                    lost = (began.elapsed() >= LONG && !attention.is_called()).then_some(time);
                }
            }
            attention.await_epoch(0);
            if lost.is_some() {
                break;
            }
        }
        over.store(true, Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(lost, None, "nobody called");
    }
}
