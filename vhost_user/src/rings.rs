//! The three parts of a split virtqueue as they lie in guest memory (virtio 1.3, 2.7).
//!
//! Every field is read and written by single atomic accesses of its own width: the guest does the same from other
//! processors, well or ill. What is read is a copy; whoever needs it twice keeps the copy.
//!
//! Invariants: all three parts lie inside mapped memory for the size of the queue and are aligned to 16, 2 and 4;
//! indices are masked before use, so no value of the guest's reaches beyond them.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::memory::Memory;
use crate::queue::{QueueSetup, SetupFault};

/// One descriptor, copied out of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    #[inline]
    pub(crate) fn from_words(words: [u64; 2]) -> Self {
        let rest = u64::from_le(words[1]);
        Descriptor {
            addr: u64::from_le(words[0]),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

/// Access to the rings of one queue. Whoever holds it holds the `Memory` it was made from, too.
pub(crate) struct Rings {
    desc: *const AtomicU64,
    avail: *const AtomicU16,
    used: *const AtomicU16,
    size: u16,
}

// SAFETY: the pointers go to shared memory that any thread may access by atomics; nothing in here is bound to a thread.
unsafe impl Send for Rings {}

impl Rings {
    pub(crate) fn new(memory: &Memory, setup: &QueueSetup) -> Result<Rings, SetupFault> {
        let size = setup.size;
        if size == 0 || !size.is_power_of_two() || size > QueueSetup::SIZE_MAX {
            return Err(SetupFault::Size(size));
        }
        let n = u64::from(size);
        // The words for EVENT_IDX at the end of both rings count only if it was negotiated.
        let event = if setup.event_idx { 2 } else { 0 };
        Ok(Rings {
            desc: locate(memory, "descriptor table", setup.desc, 16 * n, 16)? as *const AtomicU64,
            avail: locate(memory, "available ring", setup.avail, 4 + 2 * n + event, 2)? as *const AtomicU16,
            used: locate(memory, "used ring", setup.used, 4 + 8 * n + event, 4)? as *const AtomicU16,
            size,
        })
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    #[inline]
    fn avail_word(&self, word: usize) -> &AtomicU16 {
        debug_assert!(word < 3 + usize::from(self.size));
        // SAFETY: words 0 to 2 + size are the available ring (type invariant; the last only if EVENT_IDX is on, and
        // only then asked for).
        unsafe { &*self.avail.add(word) }
    }

    #[inline]
    fn used_word(&self, word: usize) -> &AtomicU16 {
        debug_assert!(word < 3 + 4 * usize::from(self.size));
        // SAFETY: words 0 to 2 + 4 * size are the used ring (as above).
        unsafe { &*self.used.add(word) }
    }

    /// Descriptor `index`, modulo the size.
    #[inline]
    pub(crate) fn descriptor(&self, index: u16) -> Descriptor {
        let at = 2 * self.slot(index);
        // SAFETY: two words per descriptor, index below the size, table inside mapped memory (type invariant).
        let words = unsafe { [&*self.desc.add(at), &*self.desc.add(at + 1)] };
        Descriptor::from_words(words.map(|word| word.load(Ordering::Relaxed)))
    }

    /// The driver's index; what it made available before is visible after this.
    #[inline]
    pub(crate) fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail_word(1).load(Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn avail_entry(&self, index: u16) -> u16 {
        u16::from_le(self.avail_word(2 + self.slot(index)).load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn interrupts_suppressed(&self) -> bool {
        let flags = u16::from_le(self.avail_word(0).load(Ordering::Relaxed));
        u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT != 0
    }

    /// At which used index the driver wants an interrupt. Only with EVENT_IDX.
    #[inline]
    pub(crate) fn used_event(&self) -> u16 {
        u16::from_le(self.avail_word(2 + usize::from(self.size)).load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn used_idx(&self) -> u16 {
        u16::from_le(self.used_word(1).load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn set_used(&self, index: u16, id: u16, len: u32) {
        let at = 2 + 4 * self.slot(index);
        let first = self.used_word(at);
        self.used_word(at + 3);
        let word = std::ptr::from_ref(first).cast::<AtomicU32>();
        // SAFETY: an element is 8 bytes, 4-aligned (the ring is, and elements begin at byte 4), inside the ring.
        let element = unsafe { [&*word, &*word.add(1)] };
        element[0].store(u32::from(id).to_le(), Ordering::Relaxed);
        element[1].store(len.to_le(), Ordering::Relaxed);
    }

    /// Shows the driver all elements before `index`, and what requests wrote before this.
    #[inline]
    pub(crate) fn set_used_idx(&self, index: u16) {
        self.used_word(1).store(index.to_le(), Ordering::Release);
    }

    pub(crate) fn set_no_notify(&self, on: bool) {
        let flags = if on { VRING_USED_F_NO_NOTIFY as u16 } else { 0 };
        self.used_word(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// At which available index we want a kick. Only with EVENT_IDX.
    pub(crate) fn set_avail_event(&self, index: u16) {
        self.used_word(2 + 4 * usize::from(self.size)).store(index.to_le(), Ordering::Relaxed);
    }
}

fn locate(memory: &Memory, part: &'static str, addr: u64, len: u64, align: usize) -> Result<usize, SetupFault> {
    let host = memory.host_of_user(addr, len).ok_or(SetupFault::NotMapped { part, addr })?;
    if host % align != 0 {
        return Err(SetupFault::Unaligned { part, addr });
    }
    Ok(host)
}
