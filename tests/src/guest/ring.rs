//! The driver's half of a split virtqueue (virtio 1.2, 2.7), strict about what the device does: a used element that
//! names nothing in flight, or more than was given, is an error.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::memory::GuestMemory;

/// Descriptor flags.
pub mod desc {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes it.
    pub const WRITE: u16 = 2;
    /// It points to a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// One piece of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where.
    pub gpa: u64,
    /// How long.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// Where an indirect table may be put: room for all buffers of the chain, 16 bytes each.
#[derive(Clone, Copy, Debug)]
pub struct Indirect {
    /// Where the table goes.
    pub table: u64,
    /// How many leading buffers stay outside of it, as direct descriptors before the one that points to the table.
    pub direct: usize,
}

/// What a device did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The used index ran past what was made available.
    TooMany,
    /// A used element names a head that is not in flight.
    NotInFlight(u32),
    /// It claims more bytes than the chain has for writing.
    TooLong(u32),
}

/// A split virtqueue as its driver sees it.
pub struct DriverRing {
    memory: Arc<GuestMemory>,
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    event_idx: bool,
    free: Vec<u16>,
    /// By head: its descriptors and the bytes the device may write.
    chains: Vec<Option<(Vec<u16>, u64)>>,
    next_avail: u16,
    published: u16,
    last_used: u16,
}

impl DriverRing {
    /// Bytes that a ring of `size` needs at an address that is a multiple of 16.
    #[must_use]
    pub const fn bytes(size: u16) -> u64 {
        let size = size as u64;
        (16 * size + 6 + 2 * size).next_multiple_of(4) + 6 + 8 * size
    }

    /// A ring at `gpa`, which begins at index `base` on both sides.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, gpa: u64, size: u16, base: u16, event_idx: bool) -> Self {
        let (desc, avail) = (gpa, gpa + 16 * u64::from(size));
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        memory.fill(gpa, Self::bytes(size) as usize, 0);
        memory.store_u16(avail + 2, base);
        memory.store_u16(used + 2, base);
        DriverRing {
            memory,
            size,
            desc,
            avail,
            used,
            event_idx,
            free: (0..size).rev().collect(),
            chains: (0..size).map(|_| None).collect(),
            next_avail: base,
            published: base,
            last_used: base,
        }
    }

    /// Its size.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Guest addresses of descriptor table, available ring and used ring.
    #[must_use]
    pub const fn addresses(&self) -> [u64; 3] {
        [self.desc, self.avail, self.used]
    }

    /// How many descriptors are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many chains are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.chains.iter().flatten().count()
    }

    /// The index of the next chain to be made available.
    #[must_use]
    pub const fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The next used element's index.
    #[must_use]
    pub const fn last_used(&self) -> u16 {
        self.last_used
    }

    /// Writes a descriptor.
    pub fn write_desc(&self, table: u64, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write(table + 16 * u64::from(index), &bytes);
    }

    /// Puts a chain into the table and the available ring, not yet visible to the device; `None` if there is no room.
    pub fn add(&mut self, buffers: &[Buffer], indirect: Option<Indirect>) -> Option<u16> {
        let direct = indirect.map_or(buffers.len(), |i| i.direct);
        let needed = direct + usize::from(indirect.is_some());
        if needed == 0 || self.free.len() < needed {
            return None;
        }
        let ids: Vec<u16> = (0..needed).map(|_| self.free.pop().expect("counted above")).collect();
        for (at, buffer) in buffers[..direct].iter().enumerate() {
            self.link(self.desc, ids[at], *buffer, ids.get(at + 1).copied());
        }
        if let Some(Indirect { table, direct }) = indirect {
            let inside = &buffers[direct..];
            for (at, buffer) in inside.iter().enumerate() {
                self.link(table, at as u16, *buffer, (at + 1 < inside.len()).then_some(at as u16 + 1));
            }
            self.write_desc(self.desc, ids[direct], table, 16 * inside.len() as u32, desc::INDIRECT, 0);
        }
        let head = ids[0];
        let writable = buffers.iter().filter(|b| b.writable).map(|b| u64::from(b.len)).sum();
        self.chains[usize::from(head)] = Some((ids, writable));
        self.offer(head);
        Some(head)
    }

    /// Writes one descriptor of a chain.
    fn link(&self, table: u64, index: u16, buffer: Buffer, next: Option<u16>) {
        let flags = if buffer.writable { desc::WRITE } else { 0 } | if next.is_some() { desc::NEXT } else { 0 };
        self.write_desc(table, index, buffer.gpa, buffer.len, flags, next.unwrap_or(0));
    }

    /// Writes a head into the available ring without looking at it (attacks write nonsense here).
    pub fn offer(&mut self, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.next_avail % self.size);
        self.memory.write(slot, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Makes what was added visible; true if the device wants a kick.
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_avail {
            return false;
        }
        let old = std::mem::replace(&mut self.published, self.next_avail);
        self.memory.store_u16(self.avail + 2, self.next_avail);
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.memory.load_u16(self.used + 4 + 8 * u64::from(self.size));
            return needs_event(event, self.next_avail, old);
        }
        self.memory.load_u16(self.used) & 1 == 0
    }

    /// Asks for an interrupt at the next used element, or for none. True if elements came meanwhile.
    pub fn want_interrupt(&mut self, want: bool) -> bool {
        if self.event_idx {
            let event = if want { self.last_used } else { self.last_used.wrapping_sub(1) };
            self.memory.store_u16(self.avail + 4 + 2 * u64::from(self.size), event);
        } else {
            self.memory.store_u16(self.avail, u16::from(!want));
        }
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Whether used elements wait.
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.memory.load_u16(self.used + 2) != self.last_used
    }

    /// Takes the next used element: head and bytes written.
    ///
    /// # Errors
    /// If the device broke the rules.
    pub fn pop_used(&mut self) -> Result<Option<(u16, u32)>, RingError> {
        let index = self.memory.load_u16(self.used + 2);
        if index == self.last_used {
            return Ok(None);
        }
        if index.wrapping_sub(self.last_used) > self.published.wrapping_sub(self.last_used) {
            return Err(RingError::TooMany);
        }
        let mut element = [0; 8];
        self.memory.read(self.used + 4 + 8 * u64::from(self.last_used % self.size), &mut element);
        self.last_used = self.last_used.wrapping_add(1);
        let id = u32::from_le_bytes(element[..4].try_into().expect("four bytes"));
        let len = u32::from_le_bytes(element[4..].try_into().expect("four bytes"));
        let chain = self.chains.get_mut(id as usize).and_then(Option::take);
        let (ids, writable) = chain.ok_or(RingError::NotInFlight(id))?;
        self.free.extend(ids);
        if u64::from(len) > writable { Err(RingError::TooLong(len)) } else { Ok(Some((id as u16, len))) }
    }
}

/// Whether the step from `old` to `new` passes `event` (virtio 1.2, 2.7.7.1).
const fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
