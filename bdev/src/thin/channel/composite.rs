//! Where sub-blocks are that a volume's head leaves to the layers below it, remembered so that a long chain is walked once.
//!
//! Layers below a head do not change, but for two things. The chain is replaced: then the volume has another word, and the
//! channel forgets all. A deleted snapshot among them is folded into its child: where that frees a cluster, the engine
//! raises the pool's count of `folds` before the cluster can leave the quarantine. So whoever begins after that forgets
//! what it knew, and whoever began before holds up the quarantine.
//!
//! A page is of 64 clusters; pages are taken from the pool's budget, and when that is gone a channel uses its own again.

use std::sync::Arc;

use crate::thin::format::SUB_BLOCKS;
use crate::thin::shared::{Budget, Chain, Miss, Shared};

/// Chains of so many layers are walked: that is as fast.
const SHORT: usize = 2;
/// Clusters of a page.
const CLUSTERS: u64 = 64;
/// Bytes that a page takes of the budget.
const PAGE: usize = size_of::<Page>();

/// What the layers below the head say of the sub-blocks of one cluster: the cluster of the base that a sub-block is on, at its
/// own place in it, or one of the words below.
pub(super) type Places = [u32; SUB_BLOCKS as usize];
/// No layer has said anything of it.
pub(super) const NOBODY: u32 = 0;
/// It is zero.
pub(super) const ZERO: u32 = u32::MAX;

struct Page {
    /// The number of its first cluster, in pages.
    number: u64,
    /// When it was begun: see [`Composite::age`].
    age: u64,
    /// Which of its clusters are known.
    known: u64,
    places: [Places; CLUSTERS as usize],
}

/// See the module's description.
pub(super) struct Composite {
    pages: Box<[Option<Box<Page>>]>,
    /// How many places for pages there are, less one: there is a power of two of them, or none.
    mask: usize,
    budget: Arc<Budget>,
    /// Rises when all is forgotten.
    age: u64,
    /// Folds that have been seen.
    folds: u64,
}

impl Composite {
    pub(super) fn new(budget: Arc<Budget>) -> Composite {
        Composite { pages: Box::default(), mask: 0, budget, age: 1, folds: 0 }
    }

    /// The chain is another one.
    pub(super) fn forget(&mut self) {
        self.age += 1;
    }

    /// What the layers below the head say of a cluster; `None`: the chain is to be walked. For a request that has begun its
    /// stay.
    #[inline]
    pub(super) fn places(&mut self, shared: &Shared, chain: &Chain, cluster: u64) -> Option<Result<&Places, Miss>> {
        let (number, nth) = (cluster / CLUSTERS, (cluster % CLUSTERS) as usize);
        let at = number as usize & self.mask;
        let is_known = |page: &Page| page.number == number && page.age == self.age && page.known >> nth & 1 == 1;
        let is_here = shared.folds() == self.folds && matches!(self.pages.get(at), Some(Some(page)) if is_known(page));
        if is_here {
            self.pages[at].as_ref().map(|page| Ok(&page.places[nth]))
        } else {
            self.find(shared, chain, cluster)
        }
    }

    /// The same, of what is not remembered.
    #[inline(never)]
    fn find(&mut self, shared: &Shared, chain: &Chain, cluster: u64) -> Option<Result<&Places, Miss>> {
        if chain.layers.len() <= SHORT {
            return None;
        }
        let folds = shared.folds();
        if folds != self.folds {
            (self.folds, self.age) = (folds, self.age + 1);
        }
        let (number, nth) = (cluster / CLUSTERS, (cluster % CLUSTERS) as usize);
        let at = self.page(shared, chain, number)?;
        let page = self.pages[at].as_mut()?;
        if page.known >> nth & 1 == 0 {
            if let Err(miss) = resolve(shared, chain, cluster, &mut page.places[nth]) {
                return Some(Err(miss));
            }
            page.known |= 1 << nth;
        }
        Some(Ok(&page.places[nth]))
    }

    /// Where the page of this number is or may be now; `None`: nowhere.
    fn page(&mut self, shared: &Shared, chain: &Chain, number: u64) -> Option<usize> {
        if self.pages.is_empty() {
            self.make_room(shared, chain);
        }
        let at = number as usize & self.mask;
        match &self.pages[at] {
            Some(page) if page.number == number && page.age == self.age => Some(at),
            _ => self.begin_page(chain, number, at),
        }
    }

    #[cold]
    fn begin_page(&mut self, chain: &Chain, number: u64, at: usize) -> Option<usize> {
        // Not while something is on its way into the layer below the head.
        if !chain.settled.load(std::sync::atomic::Ordering::Acquire) {
            return None;
        }
        match &mut self.pages[at] {
            Some(page) => (page.number, page.age, page.known) = (number, self.age, 0),
            free if self.budget.take(PAGE) => {
                let places = [[NOBODY; SUB_BLOCKS as usize]; CLUSTERS as usize];
                *free = Some(Box::new(Page { number, age: self.age, known: 0, places }));
            }
            _ => return None,
        }
        Some(at)
    }

    /// As many places for pages as the volume has, or as the budget has for all.
    #[cold]
    fn make_room(&mut self, shared: &Shared, chain: &Chain) {
        let clusters = chain.bytes >> shared.cluster_shift;
        let most = (self.budget.limit() / PAGE).max(1) as u64;
        let places = (clusters / CLUSTERS + 1).min(most).next_power_of_two();
        self.pages = (0..places).map(|_| None).collect();
        self.mask = self.pages.len() - 1;
    }
}

/// How many of the sub-blocks from `from` to `to` follow each other where the first is: at the same word.
#[inline]
pub(super) fn run(places: &Places, from: u64, to: u64, among: u16) -> u64 {
    let first = places[from as usize];
    let joins = |at: &u64| among >> at & 1 == 1 && places[*at as usize] == first;
    (from..=to).take_while(joins).count() as u64
}

/// The cluster that all of these sub-blocks are on.
#[inline]
pub(super) fn together(places: &Places, wanted: u16) -> Option<u32> {
    let first = places[wanted.trailing_zeros() as usize % SUB_BLOCKS as usize];
    let is_one = wanted & (wanted - 1) == 0;
    let joins = |(nth, word): (usize, &u32)| wanted >> nth & 1 == 0 || *word == first;
    let together = first != NOBODY && first != ZERO && (is_one || places.iter().enumerate().all(joins));
    together.then_some(first)
}

impl Drop for Composite {
    fn drop(&mut self) {
        self.pages.iter().flatten().for_each(|_| self.budget.give(PAGE));
    }
}

/// Walks the layers below the head.
fn resolve(shared: &Shared, chain: &Chain, cluster: u64, places: &mut Places) -> Result<(), Miss> {
    places.fill(NOBODY);
    let mut open = u16::MAX;
    for layer in chain.seen(cluster, 1) {
        let entry = shared.entry(layer, cluster)?;
        for (says, word) in [(entry.here(), entry.cluster().unwrap_or(NOBODY)), (entry.zero(), ZERO)] {
            let mut left = says & open;
            while left != 0 {
                places[left.trailing_zeros() as usize] = word;
                left &= left - 1;
            }
        }
        open &= entry.parent();
        if open == 0 {
            break;
        }
    }
    Ok(())
}
