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

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use pollux_core::{Post, PostError};
use rustix::event::{EventfdFlags, eventfd};

use crate::clock::monotonic_ns;

/// How long a sender waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// One reactor's state of sleep, and the way to end it.
pub(crate) struct Wake {
    asleep: CachePadded<AtomicBool>,
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
            asleep: CachePadded::new(AtomicBool::new(false)),
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
        if self.asleep.load(Relaxed) && self.asleep.swap(false, Relaxed) {
            self.sent.store(monotonic_ns(), Relaxed);
            // A full eventfd (EAGAIN) is readable: the reactor wakes up all the same.
            let _full = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// The sleeper's side: S1 and S2. The caller looks once more and then waits, or not; afterwards `woken`.
    pub(crate) fn falls_asleep(&self) {
        self.asleep.store(true, Relaxed);
        fence(SeqCst);
    }

    pub(crate) fn woken(&self) {
        self.asleep.store(false, Relaxed);
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
