//! How others reach a reactor, asleep or not.
//!
//! # Why no wake-up is lost
//! Whoever has something for a reactor, and the reactor that goes to sleep, each write one place and then read the
//! other's:
//!
//! ```text
//! sender   (Wake::notify)                  sleeper  (Reactor::sleep)
//! P1  put the message into its ring        S1  asleep = true
//! P2  fence(SeqCst)                        S2  fence(SeqCst)
//! P3  read `asleep`                        S3  look into all rings and mailboxes, and at `stop`
//! P4  if true: clear it, write eventfd     S4  if all are empty: wait in io_uring, which polls the eventfd
//! ```
//!
//! Sequentially consistent fences have one order. If P2 comes before S2, S3 sees the message of P1, and the reactor does
//! not sleep. If S2 comes before P2, P3 sees the `true` of S1 (or a later `false`, see below), and the eventfd is written;
//! its count stays until the reactor reads it, which it does only when the poll that S4 waits on has completed and
//! before it looks into its mailboxes again, so it does not matter whether P4 comes before or after it has begun to wait.
//!
//! A later `false` that P3 sees was written by the reactor after it woke up, which then looks into its mailboxes before
//! it raises `asleep` again, and with a new S1–S3; or by another sender's P4, which then writes the eventfd itself. That
//! other sender may have seen the `true` of an earlier sleep: one write then serves the later sleep, which is right too,
//! and a write for a sleep that is already over costs one needless turn.
//!
//! # Changes that the reactor cannot look at by itself
//! A resident or a channel may wait for a change of memory that it shares with others. S3 knows nothing of that memory, so
//! whoever has changed it leaves a mark that S3 does look at; the pass after that, in which they are polled, finds it:
//!
//! ```text
//! waker    (Wake::poke)                            sleeper
//! W1  change the memory                            S1  asleep = true
//! W2  poked.swap(true, SeqCst)                     S2  fence(SeqCst)
//! W3  read `asleep` (SeqCst)                       S3  look ..., and at `poked`
//! W4  if true: clear it, write eventfd             S5  awake again: asleep = false, poked.swap(false), then a pass
//! ```
//!
//! W2 is P1 and P2 in one. If it comes before S2, S3 sees its `true`, or it was cleared by an S5 meanwhile; else W3 sees
//! the `true` of S1, or a later `false`, as above. So each W2 has an S5 after it, whether the reactor was about to sleep, or
//! slept, or goes to sleep later; and after each S5 comes a pass before the next S1. That pass sees W1: all that write
//! `poked` exchange it, so the `false` of S5 continues the release sequence of each W2 before it, whosever `true` it reads,
//! and acquires what came before them. A reactor that is awake pays for W2 with one more turn in vain before it sleeps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use pollux_core::{Post, PostError};
use rustix::event::{EventfdFlags, eventfd};

use crate::clock::monotonic_ns;

/// How long a sender waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// What wakers write and read: by itself in its cache line, since a reactor that is awake reads the rest in every turn.
#[derive(Default)]
struct Sleep {
    asleep: AtomicBool,
    /// Memory was changed that something on the reactor looks at.
    poked: AtomicBool,
}

/// One reactor's state of sleep, and the way to end it.
pub(crate) struct Wake {
    sleep: CachePadded<Sleep>,
    /// Asked to stop.
    stop: AtomicBool,
    /// Takes no messages any more.
    stopped: AtomicBool,
    /// When the eventfd was written last; 0 since the reactor has looked at it. For the statistics only.
    sent: AtomicU64,
    event: OwnedFd,
}

impl Wake {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        Ok(Wake {
            sleep: CachePadded::default(),
            stop: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// The sender's side, after the message was put where the reactor looks: P2 to P4.
    #[inline]
    pub(crate) fn notify(&self) {
        fence(SeqCst);
        if self.sleep.asleep.load(Relaxed) {
            self.end_sleep();
        }
    }

    /// The waker's side, after the memory was changed that something on the reactor looks at: W2 to W4.
    #[inline]
    pub(crate) fn poke(&self) {
        self.sleep.poked.swap(true, SeqCst);
        if self.sleep.asleep.load(SeqCst) {
            self.end_sleep();
        }
    }

    /// P4 and W4.
    #[cold]
    fn end_sleep(&self) {
        if self.sleep.asleep.swap(false, Relaxed) {
            self.sent.store(monotonic_ns(), Relaxed);
            // A full eventfd (EAGAIN) is readable: the reactor wakes up all the same.
            let _full = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// The sleeper's side: S1 and S2. The caller looks once more and then waits, or not; afterwards `woken`.
    pub(crate) fn falls_asleep(&self) {
        self.sleep.asleep.store(true, Relaxed);
        fence(SeqCst);
    }

    /// Part of S3.
    pub(crate) fn is_poked(&self) -> bool {
        self.sleep.poked.load(Relaxed)
    }

    /// S5. The caller makes a pass before it falls asleep again.
    pub(crate) fn woken(&self) {
        self.sleep.asleep.store(false, Relaxed);
        self.sleep.poked.swap(false, AcqRel);
    }

    /// Takes the eventfd's count, when the ring has said that there is one. Returns when it was written; 0 if a write
    /// before this one's has taken the time with it.
    pub(crate) fn take_event(&self) -> u64 {
        let _nothing_there = rustix::io::read(&self.event, &mut [0u8; 8]);
        self.sent.swap(0, Relaxed)
    }

    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub(crate) fn ask_to_stop(&self) {
        self.stop.store(true, Relaxed);
        self.notify();
    }

    #[inline]
    pub(crate) fn asked_to_stop(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

impl pollux_core::Wake for Wake {
    fn wake(&self) {
        self.poke();
    }
}

/// The control plane's way into one reactor.
pub(crate) struct Mailbox<M> {
    queue: ArrayQueue<M>,
    pub(crate) wake: Arc<Wake>,
}

impl<M> Mailbox<M> {
    pub(crate) fn new(places: usize, wake: Arc<Wake>) -> Self {
        Mailbox { queue: ArrayQueue::new(places), wake }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    #[inline]
    pub(crate) fn take(&self) -> Option<M> {
        // `pop` has a fence in it even when there is nothing; looking first has none.
        if self.queue.is_empty() { None } else { self.queue.pop() }
    }

    /// The reactor takes no more messages. Those that are left are dropped, here or by the senders, so that nobody waits
    /// for an answer to one: with the fences, either this sees a sender's message or the sender sees `stopped`.
    pub(crate) fn close(&self) {
        self.wake.stopped.store(true, Relaxed);
        fence(SeqCst);
        while self.queue.pop().is_some() {}
    }

    fn put(&self, mut message: M) -> Result<(), PostError> {
        let mut full_since = None;
        loop {
            if self.wake.stopped.load(Relaxed) {
                return Err(PostError::Stopped);
            }
            match self.queue.push(message) {
                Ok(()) => break,
                Err(back) => message = back,
            }
            let waited = full_since.get_or_insert_with(Instant::now).elapsed();
            if waited > PATIENCE {
                return Err(PostError::Stuck);
            }
            thread::sleep(if waited < Duration::from_millis(2) {
                Duration::from_micros(50)
            } else {
                Duration::from_millis(1)
            });
        }
        self.wake.notify();
        if self.wake.stopped.load(Relaxed) {
            while self.queue.pop().is_some() {}
            return Err(PostError::Stopped);
        }
        Ok(())
    }
}

/// All mailboxes.
pub(crate) struct Poster<M> {
    pub(crate) mailboxes: Vec<Arc<Mailbox<M>>>,
}

impl<M: Send> Post<M> for Poster<M> {
    fn reactors(&self) -> usize {
        self.mailboxes.len()
    }

    /// # Panics
    /// If there is no such reactor.
    fn post(&self, reactor: usize, message: M) -> Result<(), PostError> {
        self.mailboxes[reactor].put(message)
    }
}

#[cfg(test)]
#[path = "wake_tests.rs"]
mod wake_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox<M>(places: usize) -> Mailbox<M> {
        Mailbox::new(places, Arc::new(Wake::new().unwrap()))
    }

    fn event_count(wake: &Wake) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(wake.event(), &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                0
            }
        }
    }

    #[test]
    fn only_sleepers_are_woken_and_only_once() {
        let mailbox = mailbox(4);
        mailbox.put(1).unwrap();
        assert_eq!(event_count(&mailbox.wake), 0, "awake: nothing to do");
        mailbox.wake.falls_asleep();
        mailbox.put(2).unwrap();
        mailbox.put(3).unwrap();
        assert_eq!(event_count(&mailbox.wake), 1);
        mailbox.wake.falls_asleep();
        mailbox.wake.woken();
        mailbox.put(4).unwrap();
        assert_eq!(event_count(&mailbox.wake), 0);
        assert_eq!(std::iter::from_fn(|| mailbox.take()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_poke_is_kept_until_the_reactor_has_woken_up_and_ends_a_sleep_once() {
        let wake = Wake::new().unwrap();
        wake.poke();
        assert_eq!(event_count(&wake), 0, "awake: nothing to do");
        wake.falls_asleep();
        assert!(wake.is_poked(), "it must not sleep");
        wake.woken();
        assert!(!wake.is_poked());
        wake.falls_asleep();
        wake.poke();
        wake.poke();
        assert_eq!(event_count(&wake), 1);
        wake.woken();
        assert!(!wake.is_poked(), "the pass that follows has seen the change");
    }

    #[test]
    fn a_closed_mailbox_drops_what_it_holds_and_refuses_more() {
        let mailbox = mailbox(4);
        let message = Arc::new(());
        mailbox.put(Arc::clone(&message)).unwrap();
        mailbox.close();
        assert_eq!(Arc::strong_count(&message), 1);
        assert_eq!(mailbox.put(Arc::clone(&message)), Err(PostError::Stopped));
        assert_eq!(Arc::strong_count(&message), 1);
    }

    #[test]
    fn a_full_mailbox_waits_for_room_and_then_for_nothing() {
        let mailbox = Arc::new(mailbox(1));
        mailbox.put(1).unwrap();
        let sender = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || (mailbox.put(2), mailbox.put(3)))
        };
        thread::sleep(Duration::from_millis(20));
        assert_eq!(mailbox.take(), Some(1), "the sender waits");
        let start = Instant::now();
        assert_eq!(sender.join().unwrap(), (Ok(()), Err(PostError::Stuck)));
        assert!(start.elapsed() < PATIENCE + Duration::from_secs(2));
        assert_eq!(mailbox.take(), Some(2));
    }
}
