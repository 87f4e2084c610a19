//! The driver's half of a split virtqueue (virtio 1.3, 2.7).
//!
//! Descriptors are laid once and stay; what moves is the available ring, and the used ring is followed. Indexes are free
//! running 16-bit numbers: `last_used <= used <= published == next_avail`.

use crate::memory::Memory;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;

/// Where the parts of a ring lie, as offsets into guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingPlace {
    pub(crate) desc: usize,
    pub(crate) avail: usize,
    pub(crate) used: usize,
    pub(crate) size: u16,
}

impl RingPlace {
    /// Bytes of the available ring, `used_event` included.
    pub(crate) const fn avail_len(size: u16) -> usize {
        6 + 2 * size as usize
    }

    /// Bytes of the used ring, `avail_event` included.
    pub(crate) const fn used_len(size: u16) -> usize {
        6 + 8 * size as usize
    }

    /// Bytes of the descriptor table.
    pub(crate) const fn desc_len(size: u16) -> usize {
        DESCRIPTOR * size as usize
    }
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    /// Guest physical address.
    pub(crate) gpa: u64,
    pub(crate) len: u32,
    /// The device writes it.
    pub(crate) writable: bool,
}

/// A ring.
#[derive(Debug)]
pub(crate) struct Ring {
    place: RingPlace,
    mask: u16,
    event_idx: bool,
    /// The device is to signal nothing.
    quiet: bool,
    next_avail: u16,
    published: u16,
    last_used: u16,
}

impl Ring {
    /// A ring in zeroed memory that wants no interrupts.
    pub(crate) fn new(memory: &Memory, place: RingPlace, event_idx: bool) -> Self {
        let mask = place.size - 1;
        let mut ring = Ring { place, mask, event_idx, quiet: false, next_avail: 0, published: 0, last_used: 0 };
        ring.want_interrupts(memory, false);
        ring
    }

    pub(crate) const fn size(&self) -> u16 {
        self.place.size
    }

    /// Lays a chain into the descriptors that begin at `head`.
    pub(crate) fn lay(&self, memory: &Memory, head: u16, buffers: &[Buffer]) {
        lay_chain(memory, self.place.desc, head, buffers);
    }

    /// Lays a chain into an indirect table, and descriptor `head` to it.
    pub(crate) fn lay_indirect(&self, memory: &Memory, head: u16, table: usize, gpa: u64, buffers: &[Buffer]) {
        lay_chain(memory, table, 0, buffers);
        let at = self.place.desc + DESCRIPTOR * usize::from(head);
        write_descriptor(memory, at, gpa, (DESCRIPTOR * buffers.len()) as u32, INDIRECT, 0);
    }

    /// Puts a chain into the available ring; not yet visible.
    #[inline(always)]
    pub(crate) fn offer(&mut self, memory: &Memory, head: u16) {
        memory.store_u16(self.place.avail + 4 + 2 * usize::from(self.next_avail & self.mask), head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Makes what was offered visible; whether the device asks for a kick.
    #[inline(always)]
    pub(crate) fn publish(&mut self, memory: &Memory) -> bool {
        let old = std::mem::replace(&mut self.published, self.next_avail);
        memory.publish_u16(self.place.avail + 2, self.next_avail);
        if self.event_idx {
            let event = memory.ordered_u16(self.place.used + RingPlace::used_len(self.place.size) - 2);
            return passes(event, old, self.next_avail);
        }
        memory.ordered_u16(self.place.used) & 1 == 0
    }

    /// Chains that were offered and not yet made visible.
    #[inline(always)]
    pub(crate) const fn unpublished(&self) -> u16 {
        self.next_avail.wrapping_sub(self.published)
    }

    /// How many used elements wait.
    #[inline(always)]
    pub(crate) fn waiting(&self, memory: &Memory) -> u16 {
        memory.acquire_u16(self.place.used + 2).wrapping_sub(self.last_used)
    }

    /// Chains that the device has.
    pub(crate) const fn in_flight(&self) -> u16 {
        self.published.wrapping_sub(self.last_used)
    }

    /// The head of used element `n`, counted from the oldest that waits, and the bytes it claims were written.
    #[inline(always)]
    pub(crate) fn used(&self, memory: &Memory, n: u16) -> (u32, u32) {
        let at = self.place.used + 4 + 8 * usize::from(self.last_used.wrapping_add(n) & self.mask);
        (memory.load_u32(at), memory.load_u32(at + 4))
    }

    /// Goes past `n` used elements.
    #[inline(always)]
    pub(crate) fn advance(&mut self, memory: &Memory, n: u16) {
        let old = self.last_used;
        self.last_used = old.wrapping_add(n);
        // `used_event` keeps well behind, so that the used index never passes it.
        if self.quiet && self.event_idx && (old ^ self.last_used) & 0xc000 != 0 {
            self.write_used_event(memory, self.last_used.wrapping_sub(1));
        }
    }

    /// Whether a signal was asked for.
    #[inline(always)]
    pub(crate) const fn wants_interrupts(&self) -> bool {
        !self.quiet
    }

    /// Asks for a signal at the next used element, or for none. Whoever asked for one looks again at
    /// [`Ring::waiting`] before waiting.
    pub(crate) fn want_interrupts(&mut self, memory: &Memory, want: bool) {
        self.quiet = !want;
        if self.event_idx {
            self.write_used_event(memory, if want { self.last_used } else { self.last_used.wrapping_sub(1) });
        } else {
            memory.publish_u16(self.place.avail, u16::from(!want));
        }
    }

    fn write_used_event(&self, memory: &Memory, event: u16) {
        memory.publish_u16(self.place.avail + RingPlace::avail_len(self.place.size) - 2, event);
    }
}

/// Whether the step from `old` to `new` goes past `event` (virtio 1.3, 2.7.7.1).
const fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn lay_chain(memory: &Memory, table: usize, head: u16, buffers: &[Buffer]) {
    for (n, buffer) in (head..).zip(buffers) {
        let more = usize::from(n - head) + 1 < buffers.len();
        let flags = if more { NEXT } else { 0 } | if buffer.writable { WRITE } else { 0 };
        let next = if more { n + 1 } else { 0 };
        write_descriptor(memory, table + DESCRIPTOR * usize::from(n), buffer.gpa, buffer.len, flags, next);
    }
}

fn write_descriptor(memory: &Memory, at: usize, gpa: u64, len: u32, flags: u16, next: u16) {
    memory.store_u64(at, gpa);
    memory.store_u64(at + 8, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::HugePages;

    const PLACE: RingPlace = RingPlace { desc: 0, avail: 4096, used: 8192, size: 8 };

    fn ring(event_idx: bool) -> (Memory, Ring) {
        let memory = Memory::new(1, HugePages::Off).expect("memory");
        let ring = Ring::new(&memory, PLACE, event_idx);
        (memory, ring)
    }

    /// What a device does: takes everything and answers it in this order.
    fn serve(memory: &Memory, heads: &[u32]) {
        for head in heads {
            let used = memory.acquire_u16(PLACE.used + 2);
            let at = PLACE.used + 4 + 8 * usize::from(used % 8);
            memory.store_u32(at, *head);
            memory.store_u32(at + 4, 100 + head);
            memory.publish_u16(PLACE.used + 2, used.wrapping_add(1));
        }
    }

    #[test]
    fn chains_are_laid_as_the_standard_says() {
        let (memory, ring) = ring(false);
        let buffers = [
            Buffer { gpa: 0x1000, len: 51, writable: false },
            Buffer { gpa: 0x2000, len: 108, writable: true },
            Buffer { gpa: 0x3000, len: 4096, writable: true },
        ];
        ring.lay(&memory, 3, &buffers);
        let descriptor = |n: usize| memory.bytes(16 * n, 16);
        assert_eq!(descriptor(3), [0, 0x10, 0, 0, 0, 0, 0, 0, 51, 0, 0, 0, 1, 0, 4, 0]);
        assert_eq!(descriptor(4), [0, 0x20, 0, 0, 0, 0, 0, 0, 108, 0, 0, 0, 3, 0, 5, 0]);
        assert_eq!(descriptor(5), [0, 0x30, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 2, 0, 0, 0]);
        ring.lay_indirect(&memory, 0, 1024, 0x9_0400, &buffers);
        assert_eq!(descriptor(0), [0, 4, 9, 0, 0, 0, 0, 0, 48, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(memory.bytes(1024 + 12, 4), [1, 0, 1, 0]);
        assert_eq!(memory.bytes(1024 + 44, 4), [2, 0, 0, 0]);
    }

    #[test]
    fn indexes_run_over_the_end_of_the_ring_and_of_their_range() {
        let (memory, mut ring) = ring(false);
        for round in 0..70_000u32 {
            let heads = [round % 8, (round + 3) % 8];
            heads.iter().for_each(|head| ring.offer(&memory, *head as u16));
            assert_eq!((ring.waiting(&memory), ring.unpublished()), (0, 2));
            ring.publish(&memory);
            assert_eq!((ring.in_flight(), ring.unpublished()), (2, 0));
            serve(&memory, &heads);
            assert_eq!(ring.waiting(&memory), 2);
            assert_eq!(ring.used(&memory, 1), (heads[1], 100 + heads[1]));
            ring.advance(&memory, 2);
            assert_eq!(ring.in_flight(), 0);
        }
    }

    #[test]
    fn the_device_says_whether_it_wants_kicks() {
        let (memory, mut ring) = ring(false);
        ring.offer(&memory, 0);
        assert!(ring.publish(&memory));
        memory.store_u16(PLACE.used, 1);
        ring.offer(&memory, 1);
        assert!(!ring.publish(&memory));
    }

    #[test]
    fn with_event_idx_the_device_says_at_which_index_it_wants_a_kick() {
        let (memory, mut ring) = ring(true);
        let event = PLACE.used + 4 + 8 * 8;
        memory.store_u16(event, 1);
        ring.offer(&memory, 0);
        assert!(!ring.publish(&memory), "index 1 is still to come");
        ring.offer(&memory, 1);
        ring.offer(&memory, 2);
        assert!(ring.publish(&memory), "1 lies between 1 and 3");
        ring.offer(&memory, 3);
        assert!(!ring.publish(&memory));
        // The flags mean nothing then.
        memory.store_u16(PLACE.used, 0);
        ring.offer(&memory, 4);
        assert!(!ring.publish(&memory));
    }

    #[test]
    fn a_quiet_ring_is_never_signalled() {
        for event_idx in [false, true] {
            let (memory, mut ring) = ring(event_idx);
            for round in 0..200_000u32 {
                ring.offer(&memory, 0);
                ring.publish(&memory);
                let old = memory.acquire_u16(PLACE.used + 2);
                serve(&memory, &[0]);
                let wanted = if event_idx {
                    passes(memory.acquire_u16(PLACE.avail + 4 + 2 * 8), old, old.wrapping_add(1))
                } else {
                    memory.acquire_u16(PLACE.avail) & 1 == 0
                };
                assert!(!wanted, "round {round}");
                ring.advance(&memory, 1);
            }
            ring.want_interrupts(&memory, true);
            if event_idx {
                let event = memory.acquire_u16(PLACE.avail + 4 + 2 * 8);
                let used = memory.acquire_u16(PLACE.used + 2);
                assert!(passes(event, used, used.wrapping_add(1)));
                assert_eq!(memory.acquire_u16(PLACE.avail), 0);
            } else {
                assert_eq!(memory.acquire_u16(PLACE.avail), 0);
            }
        }
    }
}
