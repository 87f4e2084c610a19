//! Which clusters of the base are in use, and which may be handed out.
//!
//! Two bits for each cluster. *Used*: an entry of what is logged names it, or metadata lies there; this is what a
//! checkpoint writes. *Taken*: it cannot be handed out, because it is used, handed out already, or freed but still in
//! quarantine. What is used is taken.
//!
//! Bits are in leaves as on disk, loaded when they are needed. A leaf that is not in memory knows how many of its clusters
//! are free, and what has been freed and released of it since; nothing of it has been handed out, so whatever an entry
//! names there was used before. A leaf without a page is all free and needs no reading.

use std::collections::BTreeSet;

use crate::thin::format::{BITS_PER_PAGE, Kind, Page, PageId};

/// Words of a leaf.
const WORDS: usize = BITS_PER_PAGE / 64;
/// Clusters of a leaf.
pub(super) const PER_LEAF: u32 = BITS_PER_PAGE as u32;
/// With fewer free clusters at hand another leaf is loaded.
const LOW: u64 = 8192;

/// The bits of a leaf.
pub(super) type Words = [u64; WORDS];

struct Bits {
    used: Words,
    taken: Words,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Freed,
    Released,
    /// It has to be written, although nothing has changed.
    Touched,
}

struct Leaf {
    /// Whether it has a page on disk.
    stored: bool,
    /// Clusters that are not taken.
    free: u32,
    bits: Option<Box<Bits>>,
    /// Of a leaf that is not in memory: what is to be done to it, in order.
    pending: Vec<(Change, u32, u32)>,
    /// It is being read.
    asked: bool,
}

/// See the module's description.
pub(super) struct Space {
    leaves: Vec<Leaf>,
    clusters: u32,
    free: u64,
    /// Of these, in leaves that are in memory.
    at_hand: u64,
    /// Where to look next.
    cursor: u32,
    /// Leaves in memory that differ from what is stored.
    dirty: BTreeSet<u32>,
    /// One of them: what is used next is mostly there, too.
    last_dirty: Option<u32>,
    /// Leaves that are not in memory and have changed.
    waiting: BTreeSet<u32>,
    /// Leaves that are being read.
    reading: u32,
}

/// Clusters of this leaf of a base with so many.
pub(super) const fn capacity(clusters: u32, leaf: u32) -> u32 {
    let left = clusters - leaf * PER_LEAF;
    if left < PER_LEAF { left } else { PER_LEAF }
}

/// Leaves for so many clusters.
pub(super) const fn leaves_for(clusters: u32) -> u32 {
    clusters.div_ceil(PER_LEAF)
}

impl Space {
    /// Of so many clusters; `stored` says how many are free in a leaf that has a page.
    ///
    /// # Errors
    /// If more are free than there are.
    pub(super) fn new(clusters: u32, stored: impl Fn(u32) -> Option<u16>) -> Result<Space, String> {
        let mut space = Space {
            leaves: Vec::new(),
            clusters,
            free: 0,
            at_hand: 0,
            cursor: 0,
            dirty: BTreeSet::new(),
            last_dirty: None,
            waiting: BTreeSet::new(),
            reading: 0,
        };
        for nth in 0..leaves_for(clusters) {
            let most = capacity(clusters, nth);
            let free = stored(nth).map_or(most, u32::from);
            if free > most {
                return Err(format!("leaf {nth} of the clusters in use has {free} free ones of {most}"));
            }
            let stored = stored(nth).is_some();
            space.free += u64::from(free);
            space.leaves.push(Leaf { stored, free, bits: None, pending: Vec::new(), asked: false });
        }
        Ok(space)
    }

    /// More clusters, all of them free.
    pub(super) fn grow(&mut self, clusters: u32) {
        assert!(clusters >= self.clusters, "a pool does not shrink");
        for nth in 0..leaves_for(clusters) {
            let more = capacity(clusters, nth);
            match self.leaves.get_mut(nth as usize) {
                Some(leaf) => {
                    let more = more - capacity(self.clusters, nth);
                    leaf.free += more;
                    self.free += u64::from(more);
                    self.at_hand += if leaf.bits.is_some() { u64::from(more) } else { 0 };
                }
                None => {
                    let (stored, bits, pending) = (false, None, Vec::new());
                    self.leaves.push(Leaf { stored, free: more, bits, pending, asked: false });
                    self.free += u64::from(more);
                }
            }
        }
        self.clusters = clusters;
    }

    /// Clusters that can be handed out now or once their leaves are loaded.
    pub(super) const fn free(&self) -> u64 {
        self.free
    }

    /// The leaf that a cluster is in.
    pub(super) const fn leaf_of(cluster: u32) -> u32 {
        cluster / PER_LEAF
    }

    /// A leaf that should be read: something waits for it, or few free clusters are at hand. It is not told again.
    pub(super) fn wanted(&mut self) -> Option<u32> {
        let waiting = self.waiting.iter().find(|nth| !self.leaves[**nth as usize].asked).copied();
        let found = waiting.or_else(|| self.next_with_free())?;
        self.leaves[found as usize].asked = true;
        self.reading += 1;
        Some(found)
    }

    /// One of those that are not in memory, if few free clusters are at hand.
    fn next_with_free(&self) -> Option<u32> {
        let low = self.at_hand < LOW && self.at_hand < self.free;
        if !low || self.reading > 0 {
            return None;
        }
        let (first, count) = (Space::leaf_of(self.cursor), self.leaves.len() as u32);
        let order = (0..count).map(|nth| (first + nth) % count);
        let with_free = |leaf: &Leaf| leaf.bits.is_none() && leaf.free > 0;
        order.into_iter().find(|nth| with_free(&self.leaves[*nth as usize]))
    }

    /// Whether a leaf waits to be read because it has changed.
    pub(super) fn has_pending(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Has a leaf written by the next checkpoint although nothing of it has changed.
    pub(super) fn touch(&mut self, cluster: u32) {
        self.change(Change::Touched, cluster, 0);
    }

    fn change(&mut self, change: Change, cluster: u32, many: u32) {
        let (nth, at) = (Space::leaf_of(cluster), cluster % PER_LEAF);
        match self.leaves[nth as usize].bits {
            Some(_) => self.dirty.insert(nth),
            None => {
                self.leaves[nth as usize].pending.push((change, at, many));
                self.waiting.insert(nth)
            }
        };
    }

    /// Whether it has a page on disk.
    pub(super) fn is_stored(&self, leaf: u32) -> bool {
        self.leaves[leaf as usize].stored
    }

    /// A leaf as it is on disk; `None`: it has no page.
    ///
    /// # Errors
    /// What is wrong with it; its free clusters are then not handed out.
    pub(super) fn fill(&mut self, nth: u32, page: Option<&Page>) -> Result<(), String> {
        let most = capacity(self.clusters, nth) as usize;
        let used = page.map_or([0; WORDS], words);
        let in_use = count(&used, 0, BITS_PER_PAGE);
        let leaf = &mut self.leaves[nth as usize];
        if std::mem::take(&mut leaf.asked) {
            self.reading -= 1;
        }
        if leaf.bits.is_some() {
            return Ok(());
        }
        self.waiting.remove(&nth);
        let pending = std::mem::take(&mut leaf.pending);
        let released = pending.iter().filter(|(change, ..)| matches!(change, Change::Released));
        let released: u32 = released.map(|(.., many)| many).sum();
        self.free -= u64::from(leaf.free);
        leaf.free -= released;
        if in_use != count(&used, 0, most) || most as u32 - in_use != leaf.free {
            leaf.free = 0;
            return Err(format!("leaf {nth} of the clusters in use has not as many free ones as its parent says"));
        }
        self.at_hand += u64::from(leaf.free);
        self.free += u64::from(leaf.free);
        leaf.bits = Some(Box::new(Bits { used, taken: used }));
        for (change, at, many) in pending {
            let first = nth * PER_LEAF + at;
            match change {
                Change::Freed => self.set_free(first, many),
                Change::Released => self.release(first, many),
                Change::Touched => drop(self.dirty.insert(nth)),
            }
        }
        Ok(())
    }

    /// Whether an entry may name it. Nothing of a leaf that is not in memory has been handed out.
    pub(super) fn is_used(&self, cluster: u32) -> bool {
        let (nth, at) = (Space::leaf_of(cluster), cluster % PER_LEAF);
        let bits = self.leaves.get(nth as usize).and_then(|leaf| leaf.bits.as_ref());
        bits.is_none_or(|bits| count(&bits.used, at as usize, 1) == 1)
    }

    fn for_parts(first: u32, count: u32, mut f: impl FnMut(u32, u32, u32)) {
        let (mut at, end) = (first, first + count);
        while at < end {
            let (leaf, inside) = (at / PER_LEAF, at % PER_LEAF);
            let part = (end - at).min(PER_LEAF - inside);
            f(leaf, inside, part);
            at += part;
        }
    }

    /// An entry names them, or metadata lies there.
    pub(super) fn set_used(&mut self, first: u32, many: u32) {
        Space::for_parts(first, many, |nth, at, many| {
            let leaf = &mut self.leaves[nth as usize];
            let Some(bits) = &mut leaf.bits else { return };
            if set(&mut bits.used, at as usize, many as usize, true) > 0 && self.last_dirty != Some(nth) {
                self.last_dirty = Some(nth);
                self.dirty.insert(nth);
            }
            let newly = set(&mut bits.taken, at as usize, many as usize, true);
            leaf.free -= newly;
            self.free -= u64::from(newly);
            self.at_hand -= u64::from(newly);
        });
    }

    /// An entry names it: what a commit says of each first write.
    #[inline]
    pub(super) fn set_one_used(&mut self, cluster: u32) {
        let (nth, at) = (Space::leaf_of(cluster), (cluster % PER_LEAF) as usize);
        let leaf = &mut self.leaves[nth as usize];
        let Some(bits) = &mut leaf.bits else { return };
        let (word, bit) = (at / 64, 1 << (at % 64));
        if bits.used[word] & bit == 0 {
            bits.used[word] |= bit;
            if self.last_dirty != Some(nth) {
                self.last_dirty = Some(nth);
                self.dirty.insert(nth);
            }
        }
        if bits.taken[word] & bit == 0 {
            bits.taken[word] |= bit;
            leaf.free -= 1;
            self.free -= 1;
            self.at_hand -= 1;
        }
    }

    /// No entry names them any more; they stay taken until they are released.
    pub(super) fn set_free(&mut self, first: u32, many: u32) {
        Space::for_parts(first, many, |nth, at, many| {
            let bits = self.leaves[nth as usize].bits.as_mut();
            let cleared = bits.is_none_or(|bits| set(&mut bits.used, at as usize, many as usize, false) > 0);
            if cleared {
                self.change(Change::Freed, nth * PER_LEAF + at, many);
            }
        });
    }

    /// They can be handed out again. What is used stays taken.
    pub(super) fn release(&mut self, first: u32, many: u32) {
        Space::for_parts(first, many, |nth, at, many| {
            let leaf = &mut self.leaves[nth as usize];
            let released = match &mut leaf.bits {
                Some(bits) => {
                    debug_assert_eq!(count(&bits.used, at as usize, many as usize), 0, "what is used is not released");
                    let released = set(&mut bits.taken, at as usize, many as usize, false);
                    self.at_hand += u64::from(released);
                    released
                }
                None => {
                    leaf.pending.push((Change::Released, at, many));
                    self.waiting.insert(nth);
                    many
                }
            };
            leaf.free += released;
            self.free += u64::from(released);
        });
    }

    /// Hands out up to `want` clusters, in ascending order, one run if there is one near; fewer if fewer are at hand.
    pub(super) fn allocate(&mut self, want: u32, out: &mut Vec<u32>) {
        let start = out.len();
        if let Some(first) = self.run(want) {
            self.take(first, want);
            out.extend(first..first + want);
            return;
        }
        let from = self.cursor.min(self.clusters);
        self.collect(from, self.clusters, want as usize, start, out);
        self.collect(0, from, want as usize, start, out);
        out[start..].sort_unstable();
    }

    /// Takes the first run of these clusters that can be handed out, empty if there is none; `None`: the leaf where it would
    /// be is not in memory.
    pub(super) fn take_within(&mut self, first: u32, many: u32) -> Option<std::ops::Range<u32>> {
        let (mut at, end) = (first, first + many);
        while at < end {
            let nth = Space::leaf_of(at);
            let bits = self.leaves[nth as usize].bits.as_ref()?;
            let is_free = |at: u32| bits.taken[(at % PER_LEAF) as usize / 64] >> (at % 64) & 1 == 0;
            let stop = end.min((nth + 1) * PER_LEAF);
            let Some(from) = (at..stop).find(|at| is_free(*at)) else {
                at = stop;
                continue;
            };
            let to = (from..stop).find(|at| !is_free(*at)).unwrap_or(stop);
            let before = self.cursor;
            self.take(from, to - from);
            self.cursor = before;
            return Some(from..to);
        }
        Some(end..end)
    }

    /// A run in the leaf of the cursor, behind it.
    fn run(&self, want: u32) -> Option<u32> {
        let nth = Space::leaf_of(self.cursor);
        let leaf = self.leaves.get(nth as usize)?;
        let bits = leaf.bits.as_ref().filter(|_| want > 0 && leaf.free >= want)?;
        let (mut at, mut len) = (self.cursor % PER_LEAF, 0);
        while at < capacity(self.clusters, nth) {
            let word = bits.taken[at as usize / 64];
            if word == u64::MAX {
                (at, len) = ((at / 64 + 1) * 64, 0);
                continue;
            }
            len = if word >> (at % 64) & 1 == 0 { len + 1 } else { 0 };
            at += 1;
            if len == want {
                return Some(nth * PER_LEAF + at - want);
            }
        }
        None
    }

    fn collect(&mut self, from: u32, to: u32, want: usize, start: usize, out: &mut Vec<u32>) {
        let mut at = from;
        while at < to && out.len() - start < want {
            let nth = Space::leaf_of(at);
            let leaf = &self.leaves[nth as usize];
            let word =
                leaf.bits.as_ref().filter(|_| leaf.free > 0).map(|bits| bits.taken[(at % PER_LEAF) as usize / 64]);
            match word {
                None => at = (nth + 1) * PER_LEAF,
                Some(u64::MAX) => at = (at / 64 + 1) * 64,
                Some(word) if word >> (at % 64) & 1 == 1 => at += 1,
                Some(_) => {
                    self.take(at, 1);
                    out.push(at);
                    at += 1;
                }
            }
        }
    }

    fn take(&mut self, first: u32, many: u32) {
        let leaf = &mut self.leaves[Space::leaf_of(first) as usize];
        let bits = leaf.bits.as_mut().expect("free clusters are found in leaves that are in memory");
        let taken = set(&mut bits.taken, (first % PER_LEAF) as usize, many as usize, true);
        debug_assert_eq!(taken, many, "what is handed out was free");
        leaf.free -= taken;
        self.free -= u64::from(taken);
        self.at_hand -= u64::from(taken);
        self.cursor = first + many;
    }

    /// A run of `want` clusters, wherever it is in the leaves in memory, for metadata.
    pub(super) fn allocate_run(&mut self, want: u32) -> Option<u32> {
        let before = self.cursor;
        for nth in 0..self.leaves.len() as u32 {
            self.cursor = nth * PER_LEAF;
            if let Some(first) = self.run(want) {
                self.take(first, want);
                self.cursor = before;
                return Some(first);
            }
        }
        self.cursor = before;
        None
    }

    /// The leaves that differ from what is stored, as they are now; from now on they do not.
    pub(super) fn freeze(&mut self) -> Vec<(u32, Box<Words>)> {
        let mut frozen = Vec::new();
        self.last_dirty = None;
        for nth in std::mem::take(&mut self.dirty) {
            let leaf = &mut self.leaves[nth as usize];
            if let Some(bits) = &leaf.bits {
                leaf.stored = bits.used != [0; WORDS];
                frozen.push((nth, Box::new(bits.used)));
            }
        }
        frozen
    }

    /// How many leaves differ from what is stored.
    pub(super) fn changed(&self) -> u32 {
        (self.dirty.len() + self.waiting.len()) as u32
    }
}

/// The page of a leaf.
pub(super) const fn page_id(leaf: u32) -> PageId {
    PageId { kind: Kind::Space, layer: 0, level: 0, index: leaf as u64 }
}

/// The bits of a page.
pub(super) fn words(page: &Page) -> Words {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(page.payload().chunks_exact(8)) {
        *word = u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes"));
    }
    words
}

/// A page with these bits.
pub(super) fn page_of(words: &[u64]) -> Page {
    let mut page = Page::default();
    for (word, bytes) in words.iter().zip(page.payload_mut().chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    page
}

/// Calls for each word that holds some of the bits, with a mask of them.
fn for_words(at: usize, many: usize, mut f: impl FnMut(usize, u64)) {
    let (mut at, end) = (at, at + many);
    while at < end {
        let (word, bit) = (at / 64, at % 64);
        let part = (end - at).min(64 - bit);
        let mask = if part == 64 { u64::MAX } else { ((1 << part) - 1) << bit };
        f(word, mask);
        at += part;
    }
}

/// Sets bits; returns how many that has changed.
pub(super) fn set(words: &mut [u64], at: usize, many: usize, on: bool) -> u32 {
    let mut changed = 0;
    for_words(at, many, |word, mask| {
        let old = words[word];
        words[word] = if on { old | mask } else { old & !mask };
        changed += (old ^ words[word]).count_ones();
    });
    changed
}

/// How many of the bits are set.
pub(super) fn count(words: &[u64], at: usize, many: usize) -> u32 {
    let mut ones = 0;
    for_words(at, many, |word, mask| ones += (words[word] & mask).count_ones());
    ones
}
