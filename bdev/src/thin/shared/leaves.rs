//! Leaves of maps in memory. A leaf is the entries of 504 clusters of one layer, each changed by compare-and-swap from
//! any reactor.
//!
//! Leaves are named by number. Memory for them is taken by the engine, in chunks and up to a limit, and never moved; a
//! channel that needs an empty leaf takes one that the engine has made ready, or waits.
//!
//! What has changed since the last commit: each leaf has a bit for each of its entries, and a leaf with such bits is on
//! the *dirty stack*. Who changes an entry sets its bit afterwards; the engine takes the whole stack, then each leaf from
//! it, then its bits, then the entries. So an entry that was changed before the engine took the stack is among those that it reads.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use crossbeam::queue::ArrayQueue;

use crate::thin::format::{ENTRIES_PER_PAGE, Entry};

/// Words of a leaf's dirty bits.
pub(crate) const DIRTY_WORDS: usize = ENTRIES_PER_PAGE.div_ceil(64);
/// Leaves that are made at once.
pub(crate) const CHUNK: usize = 16;
/// Empty leaves that are kept ready for channels, at most.
const READY: usize = 512;

/// See the module's description.
pub(crate) struct Leaf {
    entries: [AtomicU64; ENTRIES_PER_PAGE],
    dirty: [AtomicU64; DIRTY_WORDS],
    /// Entries that have lost sub-blocks which were on a cluster; set before the same bits of `dirty`.
    pared: [AtomicU64; DIRTY_WORDS],
    /// How many are changing many of its entries, which are not marked yet.
    in_stroke: AtomicU32,
    /// The next one of the dirty stack, plus one.
    next: AtomicU32,
    /// It is on the dirty stack.
    queued: AtomicBool,
    /// The last commit that took something of it.
    taken_by: AtomicU64,
    layer: AtomicU64,
    index: AtomicU64,
}

impl Leaf {
    fn new() -> Leaf {
        Leaf {
            entries: [const { AtomicU64::new(0) }; ENTRIES_PER_PAGE],
            dirty: Default::default(),
            pared: Default::default(),
            in_stroke: AtomicU32::new(0),
            next: AtomicU32::new(0),
            queued: AtomicBool::new(false),
            taken_by: AtomicU64::new(0),
            layer: AtomicU64::new(0),
            index: AtomicU64::new(0),
        }
    }

    /// Whose it is, and which of its leaves.
    pub(crate) fn key(&self) -> (u64, u64) {
        (self.layer.load(Relaxed), self.index.load(Relaxed))
    }

    /// An entry as it is now.
    #[inline]
    pub(crate) fn entry(&self, slot: usize) -> Entry {
        // In one order with locks that were taken before.
        Entry::of_entry(self.entries[slot].load(SeqCst))
    }

    /// Changes an entry, if it is still `from`; else how it is now.
    #[inline]
    pub(crate) fn change(&self, slot: usize, from: Entry, to: Entry) -> Result<(), Entry> {
        self.entries[slot]
            .compare_exchange(from.bits(), to.bits(), AcqRel, Acquire)
            .map(|_| ())
            .map_err(Entry::of_entry)
    }

    /// Whether an entry has changed since a commit looked at it.
    #[inline]
    pub(crate) fn is_dirty(&self, slot: usize) -> bool {
        self.dirty[slot / 64].load(Acquire) >> (slot % 64) & 1 == 1
    }

    /// Whether nothing of it has changed since a commit looked at it.
    pub(crate) fn is_clean(&self) -> bool {
        !self.queued.load(Acquire) && !self.is_any_dirty()
    }

    /// The same for any of them.
    pub(crate) fn is_any_dirty(&self) -> bool {
        self.dirty.iter().any(|word| word.load(Acquire) != 0)
    }

    /// The last commit that took something of it.
    #[inline]
    pub(crate) fn taken_by(&self) -> u64 {
        self.taken_by.load(Acquire)
    }

    /// For commit `number`: the bits of what has changed.
    pub(crate) fn take_dirty(&self, number: u64) -> [u64; DIRTY_WORDS] {
        // Before the bits go: who sees none then sees the commit.
        self.taken_by.store(number, Release);
        std::array::from_fn(
            |word| if self.dirty[word].load(SeqCst) == 0 { 0 } else { self.dirty[word].swap(0, SeqCst) },
        )
    }

    /// The entry has lost sub-blocks that were on its cluster; it is to be marked afterwards.
    pub(crate) fn pare(&self, slot: usize) {
        self.pared[slot / 64].fetch_or(1 << (slot % 64), AcqRel);
    }

    /// Many entries are about to be changed, and marked together afterwards.
    pub(crate) fn begin_stroke(&self) {
        self.in_stroke.fetch_add(1, SeqCst);
    }

    /// They are marked.
    pub(crate) fn end_stroke(&self) {
        self.in_stroke.fetch_sub(1, SeqCst);
    }

    /// Whether something that was just read of an entry may not be marked yet.
    pub(crate) fn is_in_stroke(&self) -> bool {
        self.in_stroke.load(SeqCst) != 0
    }

    /// The same of many.
    pub(crate) fn pare_all(&self, slots: &[u64; DIRTY_WORDS]) {
        let some = self.pared.iter().zip(slots).filter(|(_, bits)| **bits != 0);
        for (word, bits) in some {
            word.fetch_or(*bits, AcqRel);
        }
    }

    /// Whether it has, since a commit has looked at it.
    pub(crate) fn is_pared(&self, slot: usize) -> bool {
        self.pared[slot / 64].load(Acquire) >> (slot % 64) & 1 == 1
    }

    /// Those that have, of these entries.
    pub(crate) fn take_pared(&self, of: &[u64; DIRTY_WORDS]) -> [u64; DIRTY_WORDS] {
        std::array::from_fn(|word| match self.pared[word].load(Acquire) & of[word] {
            0 => 0,
            _ => self.pared[word].fetch_and(!of[word], AcqRel) & of[word],
        })
    }
}

/// Leaves that were made at once.
type Chunk = Box<[Leaf; CHUNK]>;

/// All leaves of a pool.
pub(crate) struct Leaves {
    chunks: Box<[OnceLock<Chunk>]>,
    /// The first of the dirty stack, plus one.
    dirty: AtomicU32,
    /// Empty ones that belong to nobody.
    ready: ArrayQueue<u32>,
    /// Somebody found none.
    missed: AtomicBool,
}

impl Leaves {
    /// At most so many.
    pub(crate) fn new(most: usize) -> Leaves {
        let chunks = (0..most.div_ceil(CHUNK).max(1)).map(|_| OnceLock::new()).collect();
        Leaves {
            chunks,
            dirty: AtomicU32::new(0),
            ready: ArrayQueue::new(READY.min(most / 8).max(1)),
            missed: AtomicBool::new(false),
        }
    }

    /// How many there can be.
    pub(crate) fn most(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    /// One of them.
    #[inline(always)]
    pub(crate) fn get(&self, leaf: u32) -> &Leaf {
        let chunk = self.chunks[leaf as usize / CHUNK].get();
        &chunk.expect("a leaf that has a number has memory")[leaf as usize % CHUNK]
    }

    /// Takes memory for leaf `leaf` and those beside it, unless they have it. For the engine.
    pub(crate) fn provide(&self, leaf: u32) {
        self.chunks[leaf as usize / CHUNK].get_or_init(|| {
            // Collected, since an array of this size would pass over the stack.
            let leaves: Box<[Leaf]> = (0..CHUNK).map(|_| Leaf::new()).collect();
            leaves.try_into().unwrap_or_else(|_| unreachable!("so many were made"))
        });
    }

    /// Gives a leaf that nobody has to a layer. For whoever has its number.
    pub(crate) fn name(&self, leaf: u32, layer: u64, index: u64) {
        let leaf = self.get(leaf);
        leaf.layer.store(layer, Relaxed);
        leaf.index.store(index, Relaxed);
    }

    /// Fills a leaf that nobody looks at yet.
    pub(crate) fn fill(&self, leaf: u32, entries: &[u64; ENTRIES_PER_PAGE]) {
        let leaf = self.get(leaf);
        leaf.entries.iter().zip(entries).for_each(|(entry, bits)| entry.store(*bits, Relaxed));
    }

    /// An empty leaf, for a channel, if there is one; and whether the engine is to be called for more. Who finds none calls
    /// once: what comes later comes from the engine, which tells.
    pub(crate) fn take_ready(&self) -> (Option<u32>, bool) {
        let leaf = self.ready.pop();
        let is_news = if leaf.is_none() { !self.missed.swap(true, SeqCst) } else { self.wanted() > 0 };
        (leaf, is_news)
    }

    /// For the engine: whether somebody found no empty leaf, and there is none now.
    pub(crate) fn is_starving(&self) -> bool {
        self.ready.is_empty() && self.missed.load(SeqCst)
    }

    /// Gives back a leaf that was taken and not used.
    pub(crate) fn return_ready(&self, leaf: u32) {
        self.missed.store(false, Relaxed);
        let returned = self.ready.push(leaf);
        debug_assert!(returned.is_ok() || self.ready.is_full());
    }

    /// How many more leaves should be made ready. For the engine.
    pub(crate) fn wanted(&self) -> usize {
        let room = self.ready.capacity();
        if self.ready.len() < room - room / 4 { room - self.ready.len() } else { 0 }
    }

    /// An entry has changed. Returns whether nothing was dirty before: then the engine does not know that something is.
    #[inline]
    pub(crate) fn mark(&self, number: u32, slot: usize) -> bool {
        self.mark_in(self.get(number), number, slot)
    }

    /// The same for who has the leaf of that number.
    #[inline]
    pub(crate) fn mark_in(&self, leaf: &Leaf, number: u32, slot: usize) -> bool {
        leaf.dirty[slot / 64].fetch_or(1 << (slot % 64), SeqCst);
        // Who finds it queued knows that the engine has not taken it from the stack yet, and will see the bit: the engine says
        // so first and takes the bits then.
        !leaf.queued.load(SeqCst) && !leaf.queued.swap(true, SeqCst) && self.push_dirty(number, leaf)
    }

    /// The same of many of a leaf.
    pub(crate) fn mark_all(&self, number: u32, slots: &[u64; DIRTY_WORDS]) -> bool {
        let leaf = self.get(number);
        let some = leaf.dirty.iter().zip(slots).filter(|(_, bits)| **bits != 0);
        for (word, bits) in some {
            word.fetch_or(*bits, SeqCst);
        }
        !leaf.queued.swap(true, SeqCst) && self.push_dirty(number, leaf)
    }

    fn push_dirty(&self, number: u32, leaf: &Leaf) -> bool {
        let mut head = self.dirty.load(Relaxed);
        loop {
            leaf.next.store(head, Relaxed);
            match self.dirty.compare_exchange_weak(head, number + 1, AcqRel, Relaxed) {
                Ok(_) => return head == 0,
                Err(now) => head = now,
            }
        }
    }

    /// Whether anything is dirty.
    #[inline]
    pub(crate) fn any_dirty(&self) -> bool {
        self.dirty.load(Acquire) != 0
    }

    /// Takes the dirty stack. Each leaf of it is put onto it again by whoever changes it from the time on at which it was
    /// taken from there, by [`DirtyLeaves::next`].
    pub(crate) fn take_dirty(&self) -> DirtyLeaves {
        DirtyLeaves(self.dirty.swap(0, AcqRel))
    }
}

/// A dirty stack that was taken: the next of its leaves, plus one.
pub(crate) struct DirtyLeaves(u32);

impl DirtyLeaves {
    /// The next one.
    pub(crate) fn next(&mut self, leaves: &Leaves) -> Option<u32> {
        let number = self.0.checked_sub(1)?;
        let leaf = leaves.get(number);
        self.0 = leaf.next.load(Relaxed);
        // Before the bits are taken: see `mark`.
        leaf.queued.swap(false, SeqCst);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn what_is_changed_is_taken_once() {
        let leaves = Leaves::new(100);
        assert_eq!(leaves.most(), 112);
        for leaf in 0..3 {
            leaves.provide(leaf);
            leaves.name(leaf, 7, u64::from(leaf));
        }
        let entry = Entry::on(5).with_here(1);
        assert_eq!(leaves.get(1).change(503, Entry::EMPTY, entry), Ok(()));
        assert_eq!(leaves.get(1).change(503, Entry::EMPTY, entry), Err(entry));
        assert!(!leaves.any_dirty());
        assert!(leaves.mark(1, 503));
        assert!(!leaves.mark(2, 0) && !leaves.mark(1, 503));
        assert!(leaves.get(1).is_dirty(503) && !leaves.get(1).is_dirty(502) && leaves.any_dirty());
        let taken = || {
            let mut stack = leaves.take_dirty();
            std::iter::from_fn(|| stack.next(&leaves)).collect::<Vec<_>>()
        };
        assert_eq!(taken(), [2, 1]);
        assert_eq!(leaves.get(1).take_dirty(9)[7], 1 << (503 - 448));
        assert!(!leaves.get(1).is_dirty(503) && leaves.get(1).taken_by() == 9);
        assert_eq!((leaves.get(1).key(), leaves.get(1).entry(503)), ((7, 1), entry));
        assert!(taken().is_empty());
    }

    /// Many threads raise entries; what the engine has read last of each is what it is.
    #[test]
    fn nothing_that_changed_is_missed() {
        const THREADS: usize = 3;
        const TIMES: u32 = 20_000;
        let leaves = Arc::new(Leaves::new(4));
        (0..4).for_each(|leaf| leaves.provide(leaf));
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let leaves = leaves.clone();
                thread::spawn(move || {
                    for time in 1..=TIMES {
                        let (leaf, slot) = (time % 4, (time as usize * 7 + thread) % 504 / THREADS * THREADS + thread);
                        let now = leaves.get(leaf).entry(slot);
                        leaves.get(leaf).change(slot, now, Entry::on(time)).expect("one thread a slot");
                        leaves.mark(leaf, slot);
                    }
                })
            })
            .collect();
        let mut seen = vec![[Entry::EMPTY; 504]; 4];
        let mut ended = false;
        while !ended {
            ended = workers.iter().all(thread::JoinHandle::is_finished);
            let mut taken = leaves.take_dirty();
            while let Some(number) = taken.next(&leaves) {
                let leaf = leaves.get(number);
                let bits = leaf.take_dirty(1);
                for slot in (0..504).filter(|slot| bits[slot / 64] >> (slot % 64) & 1 == 1) {
                    seen[number as usize][slot] = leaf.entry(slot);
                }
            }
        }
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        for (number, seen) in seen.iter().enumerate() {
            let leaf = leaves.get(number as u32);
            assert!((0..504).all(|slot| seen[slot] == leaf.entry(slot)), "leaf {number}");
        }
    }
}
