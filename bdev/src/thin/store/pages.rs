//! The pages of the metadata extents: which of them are in use, and which a checkpoint may write.
//!
//! Pages are numbered through the extents, in the superblock's order. A page that a checkpoint no longer needs can be
//! written again once its superblock is durable; a page that it writes is in use from then on.

use std::collections::BTreeSet;

use super::space::{self, count, set};
use crate::thin::format::{BITS_PER_PAGE, BLOCK, Extent, Page};

/// See the module's description.
pub(super) struct Pages {
    extents: Vec<Extent>,
    per_cluster: u64,
    total: u64,
    /// As of the last superblock.
    used: Vec<u64>,
    /// Not to be written: in use, or written by the checkpoint that runs.
    busy: Vec<u64>,
    free: u64,
    cursor: u64,
    /// What the checkpoint that runs has taken, and what it no longer needs.
    taken: Vec<u64>,
    given: Vec<u64>,
    /// The leaves of the bitmap that these are in.
    changed: BTreeSet<u64>,
    /// What is no longer needed and is to stay as it is all the same, while somebody reads it.
    held: Option<Vec<u64>>,
}

impl Pages {
    /// All of them free.
    pub(super) fn new(extents: &[Extent], cluster_size: u32) -> Self {
        let per_cluster = u64::from(cluster_size) / BLOCK as u64;
        let mut pages = Pages {
            extents: Vec::new(),
            per_cluster,
            total: 0,
            used: Vec::new(),
            busy: Vec::new(),
            free: 0,
            cursor: 0,
            taken: Vec::new(),
            given: Vec::new(),
            changed: BTreeSet::new(),
            held: None,
        };
        extents.iter().for_each(|extent| pages.extend(*extent));
        pages
    }

    /// One more extent.
    pub(super) fn extend(&mut self, extent: Extent) {
        let more = u64::from(extent.count) * self.per_cluster;
        self.extents.push(extent);
        self.total += more;
        self.free += more;
        // Whole leaves, so that one can be taken out as it is stored.
        let words = self.leaves() as usize * (BITS_PER_PAGE / 64);
        self.used.resize(words, 0);
        self.busy.resize(words, 0);
    }

    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    /// Pages that can be written now.
    pub(super) const fn free(&self) -> u64 {
        self.free
    }

    /// Pages that the checkpoint that runs has taken.
    pub(super) const fn taken(&self) -> u64 {
        self.taken.len() as u64
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Leaves of the bitmap.
    pub(super) const fn leaves(&self) -> u64 {
        self.total.div_ceil(BITS_PER_PAGE as u64)
    }

    /// The same with one more extent.
    pub(super) fn leaves_with(&self, extent: Option<Extent>) -> u64 {
        let more = extent.map_or(0, |extent| u64::from(extent.count) * self.per_cluster);
        (self.total + more).div_ceil(BITS_PER_PAGE as u64)
    }

    /// A leaf of the bitmap, as it was stored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn fill(&mut self, leaf: u64, page: &Page) -> Result<(), String> {
        let words = space::words(page);
        let first = leaf * BITS_PER_PAGE as u64;
        let most = (self.total - first).min(BITS_PER_PAGE as u64) as usize;
        let in_use = count(&words, 0, BITS_PER_PAGE);
        if in_use != count(&words, 0, most) {
            return Err(format!("leaf {leaf} of the pages in use has pages that do not exist"));
        }
        let at = leaf as usize * words.len();
        self.used[at..at + words.len()].copy_from_slice(&words);
        self.busy[at..at + words.len()].copy_from_slice(&words);
        self.free -= u64::from(in_use);
        Ok(())
    }

    /// Where a page lies.
    fn block_of(&self, mut number: u64) -> u64 {
        for extent in &self.extents {
            let pages = u64::from(extent.count) * self.per_cluster;
            if number < pages {
                return u64::from(extent.first) * self.per_cluster + number;
            }
            number -= pages;
        }
        unreachable!("the bitmap has no pages but those of the extents")
    }

    fn number_of(&self, block: u64) -> Option<u64> {
        let (cluster, mut first) = (block / self.per_cluster, 0);
        for extent in &self.extents {
            let start = u64::from(extent.first);
            if (start..start + u64::from(extent.count)).contains(&cluster) {
                return Some(first + block - start * self.per_cluster);
            }
            first += u64::from(extent.count) * self.per_cluster;
        }
        None
    }

    /// Whether the last superblock, or the checkpoint that runs, knows this block as a page in use.
    pub(super) fn is_used(&self, block: u64) -> bool {
        self.number_of(block).is_some_and(|number| count(&self.busy, number as usize, 1) == 1)
    }

    /// Whether metadata lies in a cluster.
    pub(super) fn holds(&self, cluster: u32) -> bool {
        self.extents.iter().any(|extent| (extent.first..extent.first + extent.count).contains(&cluster))
    }

    /// A page to write; `None`: there is none.
    pub(super) fn take(&mut self) -> Option<u64> {
        if self.free == 0 {
            return None;
        }
        let number = self.find(self.cursor, self.total).or_else(|| self.find(0, self.cursor))?;
        set(&mut self.busy, number as usize, 1, true);
        self.free -= 1;
        self.cursor = number + 1;
        self.taken.push(number);
        self.changed.insert(number / BITS_PER_PAGE as u64);
        Some(self.block_of(number))
    }

    fn find(&self, from: u64, to: u64) -> Option<u64> {
        let mut at = from;
        while at < to {
            let word = self.busy[at as usize / 64];
            let free = (!word >> (at % 64)).trailing_zeros();
            if u64::from(free) < 64 - at % 64 {
                return Some(at + u64::from(free)).filter(|at| *at < to);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// The checkpoint that runs no longer needs this block.
    ///
    /// # Errors
    /// If it was not in use, or nobody needs it already.
    pub(super) fn give(&mut self, block: u64) -> Result<(), String> {
        let number = self.number_of(block).filter(|number| set(&mut self.used, *number as usize, 1, false) == 1);
        let number = number.ok_or_else(|| format!("block {block} is a page twice, or one that is not in use"))?;
        self.given.push(number);
        self.changed.insert(number / BITS_PER_PAGE as u64);
        Ok(())
    }

    /// The leaves of the bitmap that the checkpoint that runs changes.
    pub(super) const fn changed(&self) -> &BTreeSet<u64> {
        &self.changed
    }

    /// A leaf as the checkpoint that runs has to store it.
    pub(super) fn leaf(&self, leaf: u64) -> Page {
        let words = BITS_PER_PAGE / 64;
        let at = leaf as usize * words;
        let mut bits = self.used[at..at + words].to_vec();
        let first = leaf * BITS_PER_PAGE as u64;
        for number in self.taken.iter().filter(|number| **number / BITS_PER_PAGE as u64 == leaf) {
            set(&mut bits, (number - first) as usize, 1, true);
        }
        space::page_of(&bits)
    }

    /// Pages that are no longer needed are not written again from now on.
    pub(super) fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// How many are held, if any are to be.
    pub(super) fn held(&self) -> Option<usize> {
        self.held.as_ref().map(Vec::len)
    }

    /// They can be written again.
    pub(super) fn let_go(&mut self) {
        let held = self.held.take().unwrap_or_default();
        self.release(held);
    }

    fn release(&mut self, numbers: Vec<u64>) {
        for number in numbers {
            self.free += u64::from(set(&mut self.busy, number as usize, 1, false));
        }
    }

    /// The superblock of the checkpoint is durable.
    pub(super) fn settle(&mut self) {
        self.changed.clear();
        let given = std::mem::take(&mut self.given);
        match &mut self.held {
            Some(held) => held.extend(given),
            None => self.release(given),
        }
        for number in std::mem::take(&mut self.taken) {
            set(&mut self.used, number as usize, 1, true);
        }
    }
}
