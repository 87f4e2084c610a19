//! Where everything lies in the memory of one guest: rings, slots, data.
//!
//! Rings first, then per queue indirect tables, slots (header and response) and data, each part on pages of its own, so
//! that no two queues share a cache line; data may be asked to begin inside its first page. Guest physical addresses
//! begin at [`GPA`].

use crate::memory::UNIT;
use crate::options::Options;
use crate::ring::RingPlace;
use crate::scsi::PLACE_LEN;

/// Guest physical address of the first byte, and its user address in the messages: not zero, and aligned as huge pages.
pub(crate) const GPA: u64 = 1 << 30;
/// Entries of the control and the event queue.
const SIDE_RING: u16 = 64;
/// Queues before the first request queue.
pub(crate) const SIDE_QUEUES: usize = 2;
/// Bytes of one indirect table: three descriptors, rounded up to a cache line.
pub(crate) const TABLE_LEN: usize = 64;
/// What filling and checking move with one request, if requests are not larger.
const BIG_BLOCK: u64 = 256 << 10;
/// How many of those are in flight on a queue.
const BIG_DEPTH: u16 = 8;
/// Room for what commands of the set-up return.
pub(crate) const SETUP_DATA: usize = 4096;
const PAGE: usize = 4096;

/// Where a request queue's parts lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueuePlace {
    pub(crate) ring: RingPlace,
    pub(crate) tables: usize,
    pub(crate) slots: usize,
    pub(crate) data: usize,
    pub(crate) data_len: usize,
}

/// The memory of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) side: Vec<RingPlace>,
    pub(crate) queues: Vec<QueuePlace>,
    pub(crate) len: usize,
}

/// Bytes of one request, and how many are in flight on a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) bytes: u64,
    pub(crate) depth: u16,
    /// Bytes of data that a request brings along: discards only say where.
    data: u64,
}

impl Shape {
    /// So many requests of so many bytes.
    pub(crate) const fn new(bytes: u64, depth: u16) -> Self {
        Shape { bytes, depth, data: bytes }
    }

    /// As the options say.
    pub(crate) const fn measured(options: &Options) -> Self {
        let moves = !options.mode.trims() || options.verify;
        Shape {
            data: if moves { options.block_bytes } else { PAGE as u64 },
            ..Shape::new(options.block_bytes, options.depth)
        }
    }

    /// For filling and checking: as many whole requests in one as make a big block, or one.
    pub(crate) fn big(options: &Options, bytes_max: u64) -> Self {
        let most = BIG_BLOCK.min(bytes_max);
        let bytes = (most / options.block_bytes).max(1) * options.block_bytes;
        Shape::new(bytes, BIG_DEPTH.min(options.ring_size() / options.entries()))
    }

    /// Bytes from the data of one slot to that of the next.
    pub(crate) const fn stride(self) -> usize {
        (self.data as usize).next_multiple_of(PAGE)
    }

    const fn data_len(self) -> usize {
        self.stride() * self.depth as usize
    }
}

impl Layout {
    pub(crate) fn new(options: &Options) -> Self {
        let mut end = 0usize;
        let mut take = |len: usize, align: usize| {
            let at = end.next_multiple_of(align);
            end = at + len;
            at
        };
        let ring = |size, take: &mut dyn FnMut(usize, usize) -> usize| RingPlace {
            desc: take(RingPlace::desc_len(size), PAGE),
            avail: take(RingPlace::avail_len(size), 128),
            used: take(RingPlace::used_len(size), 128),
            size,
        };
        let side = (0..SIDE_QUEUES).map(|_| ring(SIDE_RING, &mut take)).collect();
        let size = options.ring_size();
        let depth = options.depth.max(BIG_DEPTH) as usize;
        let mut data_len = Shape::measured(options).data_len().max(SETUP_DATA);
        if options.fill || options.verify {
            data_len = data_len.max(Shape::big(options, u64::MAX).data_len());
        }
        let misalign = usize::from(options.misalign);
        let queues = (0..options.queues)
            .map(|_| QueuePlace {
                ring: ring(size, &mut take),
                tables: take(if options.indirect { TABLE_LEN * depth } else { 0 }, PAGE),
                slots: take(PLACE_LEN * depth, PAGE),
                data: take(misalign + data_len, PAGE) + misalign,
                data_len,
            })
            .collect();
        Layout { side, queues, len: end.next_multiple_of(UNIT) }
    }
}

/// The guest physical address of an offset.
pub(crate) const fn gpa(at: usize) -> u64 {
    GPA + at as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        let mut options = Options::new(Vec::new());
        (options.queues, options.depth, options.indirect, options.fill) = (3, 100, true, true);
        options
    }

    #[test]
    fn parts_do_not_overlap_and_lie_in_memory() {
        for misalign in [0, 8, 4088] {
            parts(misalign);
        }
    }

    fn parts(misalign: u16) {
        let layout = Layout::new(&Options { misalign, ..options() });
        let mut parts = Vec::new();
        let mut ring = |r: &RingPlace| {
            parts.push((r.desc, RingPlace::desc_len(r.size)));
            parts.push((r.avail, RingPlace::avail_len(r.size)));
            parts.push((r.used, RingPlace::used_len(r.size)));
            assert_eq!((r.desc % 16, r.avail % 2, r.used % 4), (0, 0, 0));
        };
        layout.side.iter().for_each(&mut ring);
        layout.queues.iter().for_each(|q| ring(&q.ring));
        for q in &layout.queues {
            parts.extend([(q.tables, 100 * TABLE_LEN), (q.slots, 100 * PLACE_LEN), (q.data, q.data_len)]);
            assert!(q.data_len >= 8 * (256 << 10));
            assert_eq!(q.data % PAGE, usize::from(misalign));
        }
        parts.sort_unstable();
        assert!(parts.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{parts:?}");
        assert!(parts.last().is_some_and(|(at, len)| at + len <= layout.len));
    }

    #[test]
    fn discards_take_no_memory_for_what_they_discard() {
        let mut options = Options::new(Vec::new());
        (options.mode, options.block_bytes, options.depth) = (crate::options::Mode::Trim, 1 << 30, 4);
        assert!(Layout::new(&options).len < 64 << 20);
        assert_eq!((Shape::measured(&options).bytes, Shape::measured(&options).stride()), (1 << 30, PAGE));
        // What is read back afterwards needs its room.
        (options.verify, options.block_bytes) = (true, 1 << 20);
        assert_eq!(Shape::measured(&options).stride(), 1 << 20);
    }

    #[test]
    fn big_blocks_are_whole_requests() {
        let mut options = options();
        for (bytes, max, big) in [
            (4096, u64::MAX, 256 << 10),
            (512, 65536, 65536),
            (12288, u64::MAX, 21 * 12288),
            (1 << 20, 1 << 20, 1 << 20),
        ] {
            options.block_bytes = bytes;
            assert_eq!(Shape::big(&options, max).bytes, big);
        }
        options.indirect = false;
        options.queue_size = Some(16);
        assert_eq!(Shape::big(&options, u64::MAX).depth, 5);
    }
}
