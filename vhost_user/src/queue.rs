//! A split virtqueue, driven from the device's side.
//!
//! `pop` takes what the driver made available, `complete` answers it, `publish` shows the answers and says whether the
//! driver wants an interrupt. One thread at a time; the driver is on the other side of shared memory.
//!
//! Invariants: a head is in flight from `pop` (also one that failed) to `complete` and never twice; `next_avail` is at
//! most one queue size behind every available index that was accepted; the used index moves only in `publish`.
//!
//! What is wrong with one chain is a [`ChainFault`]; what makes the ring itself meaningless is a [`RingFault`], and the
//! queue then stays broken. After either, do not answer with an empty completion: a driver that looks at a response
//! which nobody wrote may take it for success. No well-behaved driver causes one: close the session.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::chain::{Chain, ChainFault, Walk};
use crate::mapping::Window;
use crate::memory::Memory;
use crate::rings::Rings;
use crate::segments::SegmentBuf;

/// What a queue is made from: the state that the `SET_VRING_*` messages and the features left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor table in the front end's address space, as in `SET_VRING_ADDR`.
    pub desc: u64,
    /// Address of the available ring, likewise.
    pub avail: u64,
    /// Address of the used ring, likewise.
    pub used: u64,
    /// Index of the first available entry to be taken, as in `SET_VRING_BASE`.
    pub base: u16,
    /// `VIRTIO_RING_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_RING_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

impl QueueSetup {
    /// The largest size of a split virtqueue.
    pub const SIZE_MAX: u16 = 32768;
}

/// Why rings cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupFault {
    /// The size is no power of two up to 32768.
    #[error("a queue of {0} descriptors: must be a power of two up to 32768")]
    Size(u16),
    /// A part of the ring is not, or not as a whole, inside one memory region.
    #[error("the {part} at {addr:#x} is not inside one region of guest memory")]
    NotMapped {
        /// Which part.
        part: &'static str,
        /// Its address, as it was given.
        addr: u64,
    },
    /// A part of the ring is not aligned as it must be.
    #[error("the {part} at {addr:#x} is not aligned")]
    Unaligned {
        /// Which part.
        part: &'static str,
        /// Its address, as it was given.
        addr: u64,
    },
}

/// What makes a ring meaningless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// The available index is further ahead than the ring is long: it jumped, or ran backwards.
    #[error("the available index went from {from} to {to}, more than {size} entries")]
    AvailJump {
        /// What was taken so far.
        from: u16,
        /// What the driver says now.
        to: u16,
        /// Size of the queue.
        size: u16,
    },
    /// A head beyond the descriptor table.
    #[error("head {0} is beyond the descriptor table")]
    HeadBeyondTable(u16),
    /// A head that is still in flight.
    #[error("head {0} was made available twice")]
    HeadInFlight(u16),
}

/// What can go wrong with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// It cannot be set up.
    #[error(transparent)]
    Setup(#[from] SetupFault),
    /// One chain is no good. Its head is in flight, and may be completed.
    #[error("chain {head}: {fault}")]
    Chain {
        /// Head of the chain.
        head: u16,
        /// What is wrong with it.
        fault: ChainFault,
    },
    /// The ring is broken; every further `pop` says so again.
    #[error(transparent)]
    Broken(#[from] RingFault),
}

/// A split virtqueue.
pub struct Queue {
    rings: Rings,
    size: u16,
    event_idx: bool,
    indirect: bool,
    /// The next available entry to be taken.
    next_avail: u16,
    /// The driver's index when it was last looked at.
    seen_avail: u16,
    /// Where the next used element goes.
    next_used: u16,
    /// The used index that the driver can see.
    shown_used: u16,
    /// The used index at the last decision on an interrupt.
    decided_used: u16,
    /// Whether `publish` has ever decided on an interrupt, so that `shown_used` says from where on to look.
    decided: bool,
    broken: Option<RingFault>,
    /// Region that held the last buffer.
    near: Window,
    /// One bit per head.
    in_flight: Box<[u64]>,
    memory: Arc<Memory>,
}

impl Queue {
    /// A queue over the rings at the addresses of `setup`.
    ///
    /// The available side begins at `setup.base`. The used side begins where the ring itself says: the protocol has no
    /// message for it, and only the ring knows what a back end before this one had completed.
    ///
    /// # Errors
    /// [`QueueError::Setup`].
    pub fn new(memory: Arc<Memory>, setup: &QueueSetup) -> Result<Queue, QueueError> {
        let rings = Rings::new(&memory, setup)?;
        let used = rings.used_idx();
        Ok(Queue {
            size: setup.size,
            event_idx: setup.event_idx,
            indirect: setup.indirect,
            next_avail: setup.base,
            seen_avail: setup.base,
            next_used: used,
            shown_used: used,
            decided_used: used,
            decided: false,
            broken: None,
            near: Window::EMPTY,
            in_flight: vec![0; usize::from(setup.size).div_ceil(64)].into_boxed_slice(),
            rings,
            memory,
        })
    }

    /// How many entries seem to wait. One look; `pop` checks.
    #[inline]
    #[must_use]
    pub fn available(&self) -> u16 {
        self.rings.avail_idx().wrapping_sub(self.next_avail)
    }

    /// Takes the next chain and puts its buffers into `segments`. The segments may be used until the chain is completed.
    ///
    /// # Errors
    /// [`QueueError::Chain`] or [`QueueError::Broken`].
    #[inline(always)]
    pub fn pop(&mut self, segments: &mut SegmentBuf) -> Result<Option<Chain>, QueueError> {
        if self.next_avail == self.seen_avail && !self.look()? {
            return Ok(None);
        }
        let head = self.rings.avail_entry(self.next_avail);
        self.take(head)?;
        let walk = Walk { memory: &self.memory, segments, indirect: self.indirect };
        match walk.chain(&self.rings, head, &mut self.near) {
            Ok(chain) => Ok(Some(chain)),
            Err(fault) => Err(QueueError::Chain { head, fault }),
        }
    }

    /// Puts the buffers of a chain that is in flight into `segments` once more. The driver may have changed them since.
    ///
    /// # Errors
    /// [`QueueError::Chain`].
    ///
    /// # Panics
    /// If the head is not in flight.
    pub fn look_up(&mut self, head: u16, segments: &mut SegmentBuf) -> Result<Chain, QueueError> {
        let (word, bit) = place(head);
        assert!(self.in_flight[word] & bit != 0, "head {head} is looked up while it is in flight");
        let walk = Walk { memory: &self.memory, segments, indirect: self.indirect };
        walk.chain(&self.rings, head, &mut self.near).map_err(|fault| QueueError::Chain { head, fault })
    }

    /// Looks at the driver's index; whether there is something to take.
    #[inline(never)]
    fn look(&mut self) -> Result<bool, RingFault> {
        if let Some(fault) = self.broken {
            return Err(fault);
        }
        let to = self.rings.avail_idx();
        if to.wrapping_sub(self.next_avail) > self.size {
            return Err(self.break_ring(RingFault::AvailJump { from: self.next_avail, to, size: self.size }));
        }
        self.seen_avail = to;
        Ok(to != self.next_avail)
    }

    #[inline(always)]
    fn take(&mut self, head: u16) -> Result<(), RingFault> {
        if head >= self.size {
            return Err(self.break_ring(RingFault::HeadBeyondTable(head)));
        }
        let (word, bit) = place(head);
        if self.in_flight[word] & bit != 0 {
            return Err(self.break_ring(RingFault::HeadInFlight(head)));
        }
        self.in_flight[word] |= bit;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    #[cold]
    fn break_ring(&mut self, fault: RingFault) -> RingFault {
        self.broken = Some(fault);
        // `pop` comes back to `look`, which knows.
        self.seen_avail = self.next_avail;
        fault
    }

    /// Answers a chain, of which `written` bytes were filled. The driver sees it after `publish`.
    ///
    /// # Panics
    /// If the head is not in flight.
    #[inline(always)]
    pub fn complete(&mut self, head: u16, written: u32) {
        let (word, bit) = place(head);
        assert!(self.in_flight[word] & bit != 0, "head {head} is completed once, after it was popped");
        self.in_flight[word] &= !bit;
        self.rings.set_used(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver what was completed; it is not told before `publish`. A driver that polls can go on with it while
    /// the device does the rest of its batch.
    #[inline(always)]
    pub fn show(&mut self) {
        self.rings.set_used_idx(self.next_used);
        self.shown_used = self.next_used;
    }

    /// How many completed chains the driver cannot see yet.
    #[inline(always)]
    #[must_use]
    pub fn unshown(&self) -> u16 {
        self.next_used.wrapping_sub(self.shown_used)
    }

    /// Shows the driver what was completed; whether it wants an interrupt for what has been shown since the last time.
    #[inline]
    #[must_use = "the driver may wait for the interrupt"]
    pub fn publish(&mut self) -> bool {
        if self.next_used == self.decided_used {
            return false;
        }
        let (old, new) = (self.decided_used, self.next_used);
        if self.unshown() > 0 {
            self.show();
        }
        self.decided_used = new;
        // The driver sets its wish and then looks at the index; we set the index and then look at its wish.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return !self.rings.interrupts_suppressed();
        }
        // Where the driver asked for it before we came is unknown: the first one is always wanted.
        let first = !self.decided;
        self.decided = true;
        first || crosses(self.rings.used_event(), new, old)
    }

    /// Asks the driver not to kick. With EVENT_IDX there is nothing to do: it kicks once at the index that was last asked
    /// for, and then not before the index has gone round.
    pub fn suppress_kicks(&mut self) {
        if !self.event_idx {
            self.rings.set_no_notify(true);
        }
    }

    /// Asks the driver to kick for the next entry. `true`: more came meanwhile, for which there may be no kick.
    #[must_use = "there may be no kick for what came meanwhile"]
    pub fn request_kicks(&mut self) -> bool {
        if self.event_idx {
            self.rings.set_avail_event(self.next_avail);
        } else {
            self.rings.set_no_notify(false);
        }
        fence(Ordering::SeqCst);
        self.available() != 0
    }

    /// The next entry to be taken: what `GET_VRING_BASE` answers.
    #[must_use]
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// How many chains are popped and not completed.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.iter().map(|word| word.count_ones()).sum()
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Why the ring is broken, if it is.
    #[must_use]
    pub fn broken(&self) -> Option<RingFault> {
        self.broken
    }

    /// The memory that its buffers lie in.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

#[inline]
fn place(head: u16) -> (usize, u64) {
    (usize::from(head / 64), 1 << (head % 64))
}

/// Whether an index that went from `old` to `new` has passed `event` (virtio 1.3, 2.7.10.1).
#[inline]
fn crosses(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
