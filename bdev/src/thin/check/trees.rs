//! The way through a tree, from its top page to its leaves.
//!
//! Each page is read once and only if its parent names it, it is where it says, and nobody else has it. So a walk ends
//! after as many pages as the medium has, whatever the pointers say.

use std::collections::HashMap;

use uuid::Uuid;

use super::bits::Bits;
use super::medium::Medium;
use super::report::{Findings, Flaw};
use crate::thin::format::{
    BLOCK, Extent, Geometry, Kind, POINTERS_PER_PAGE, Page, PageHeader, PageId, Pointer, Superblock, levels_for,
};

/// No tree of 2^64 leaves is higher.
const MAX_LEVELS: u8 = 9;
/// Pages that are kept for those who look at single leaves.
const CACHED: usize = 4096;

/// A tree, as the one who names it knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    pub(super) kind: Kind,
    /// Whose map it is; 0: the pool's.
    pub(super) layer: u64,
    pub(super) levels: u8,
    pub(super) root: Pointer,
    /// Leaves that it has room for.
    pub(super) leaves: u64,
    /// Of the page or superblock that names it.
    pub(super) generation: u64,
}

/// What a walk comes upon. Each answers how many clusters are free there, which matters in the tree of space only.
pub(super) enum Seen<'a> {
    /// A leaf.
    Leaf { index: u64, block: u64, generation: u64, page: &'a Page },
    /// Leaves that are empty and have no page.
    Hole { first: u64, count: u64 },
    /// Leaves that nobody can know, because the page of this level in this block cannot be used.
    Lost { first: u64, count: u64, level: u8, block: u64 },
}

/// What a part of a tree comes to.
#[derive(Clone, Copy)]
struct Below {
    free: u64,
    /// Whether all of it could be read.
    whole: bool,
}

/// The pages of a pool.
pub(super) struct Trees {
    pool: Uuid,
    /// Extents with the number of their first page, in the superblock's order.
    extents: Vec<(Extent, u64)>,
    blocks_per_cluster: u64,
    /// Pages of all extents.
    pub(super) pages: u64,
    /// Those that were found in a tree.
    pub(super) used: Bits,
    /// A page is missing, and what was below it with it.
    pub(super) lost: bool,
    cache: HashMap<(u64, PageId), Option<Page>>,
}

impl Trees {
    pub(super) fn new(superblock: &Superblock) -> Trees {
        let blocks_per_cluster = u64::from(superblock.geometry.cluster_size) / BLOCK as u64;
        let (mut extents, mut pages) = (Vec::new(), 0);
        for extent in &superblock.extents {
            extents.push((*extent, pages));
            pages += u64::from(extent.count) * blocks_per_cluster;
        }
        let (pool, used, cache) = (superblock.pool, Bits::default(), HashMap::new());
        Trees { pool, extents, blocks_per_cluster, pages, used, lost: false, cache }
    }

    /// The block of a page.
    pub(super) fn block(&self, number: u64) -> Option<u64> {
        self.extents.iter().find_map(|(extent, first)| {
            let at = number.checked_sub(*first)?;
            let inside = at < u64::from(extent.count) * self.blocks_per_cluster;
            inside.then_some(u64::from(extent.first) * self.blocks_per_cluster + at)
        })
    }

    /// The number of the page that this block is.
    pub(super) fn number(&self, block: u64) -> Option<u64> {
        self.extents.iter().find_map(|(extent, first)| {
            let at = block.checked_sub(u64::from(extent.first) * self.blocks_per_cluster)?;
            (at < u64::from(extent.count) * self.blocks_per_cluster).then_some(first + at)
        })
    }

    /// Goes through a tree for the first time. Whether all of it could be read.
    pub(super) fn walk(
        &mut self,
        medium: &mut Medium,
        findings: &mut Findings,
        tree: &Tree,
        look: &mut dyn FnMut(&mut Findings, &Seen) -> u64,
    ) -> bool {
        let high = levels_for(tree.leaves).max(1)..=MAX_LEVELS;
        let fits = if tree.root.is_some() { high.contains(&tree.levels) } else { tree.levels == 0 };
        if !fits {
            let Tree { levels, leaves, .. } = *tree;
            findings.add(Flaw::TreeHeight, Some(tree.root.block), Some(tree.layer), || {
                format!("the tree of {} has {levels} levels, for {leaves} leaves", whose(tree))
            });
            self.lost = true;
            look(
                findings,
                &Seen::Lost { first: 0, count: tree.leaves, level: tree.levels.max(1), block: tree.root.block },
            );
            return false;
        }
        let level = if tree.root.is_some() { tree.levels - 1 } else { 0 };
        let mut walk = Walk { trees: self, medium, findings, tree, look };
        let span = if tree.root.is_some() { span(level) } else { tree.leaves };
        walk.pointer(tree.root, level, 0, span, tree.generation, None).whole
    }

    /// Reads a leaf again, without a word about what is wrong. `None`: it cannot be known; `Some(None)`: it is empty.
    pub(super) fn leaf(&mut self, medium: &mut Medium, tree: &Tree, index: u64) -> Option<Option<Page>> {
        if !tree.root.is_some() {
            return Some(None);
        }
        if tree.levels == 0 || tree.levels > MAX_LEVELS {
            return None;
        }
        if index >= span(tree.levels - 1) {
            return Some(None);
        }
        let mut pointer = tree.root;
        for level in (0..tree.levels).rev() {
            let id = PageId { kind: tree.kind, layer: tree.layer, level, index: index / span(level) };
            let page = self.cached(medium, id, pointer)?;
            if level == 0 {
                return Some(Some(page.clone()));
            }
            pointer = page.pointer((index / span(level - 1) % POINTERS_PER_PAGE as u64) as usize);
            if !pointer.is_some() {
                return Some(None);
            }
        }
        None
    }

    fn cached(&mut self, medium: &mut Medium, id: PageId, pointer: Pointer) -> Option<&Page> {
        self.number(pointer.block)?;
        let header = PageHeader { id, generation: pointer.generation, block: pointer.block, pool: self.pool };
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        let read = || medium.read(pointer.block).ok().and_then(|bytes| Page::open(bytes, &header).ok());
        self.cache.entry((pointer.block, id)).or_insert_with(read).as_ref()
    }
}

/// Leaves below a page of this level.
fn span(level: u8) -> u64 {
    (POINTERS_PER_PAGE as u64).saturating_pow(u32::from(level))
}

fn whose(tree: &Tree) -> String {
    match tree.kind {
        Kind::Map => format!("layer {}", tree.layer),
        Kind::Catalog => "the catalog".into(),
        Kind::Space => "space".into(),
        Kind::Pages => "the pages".into(),
    }
}

struct Walk<'a, 'm> {
    trees: &'a mut Trees,
    medium: &'a mut Medium<'m>,
    findings: &'a mut Findings,
    tree: &'a Tree,
    look: &'a mut dyn FnMut(&mut Findings, &Seen) -> u64,
}

impl Walk<'_, '_> {
    /// What a pointer leads to; `index`: which page of its level that is, `leaves`: how many can be below, `parent`: the
    /// page that has the pointer, unless that is the superblock or the catalog.
    fn pointer(&mut self, to: Pointer, level: u8, index: u64, leaves: u64, newest: u64, parent: Option<u64>) -> Below {
        let first = index.saturating_mul(leaves);
        let existing = self.tree.leaves.saturating_sub(first).min(leaves);
        let below = if to.is_some() {
            if existing == 0 {
                self.complain(Flaw::TreeBeyondEnd, parent.unwrap_or(to.block), "has a page behind its end");
                self.trees.lost = true;
                return Below { free: 0, whole: false };
            }
            let below = self.page(to, level, index, newest);
            below.unwrap_or_else(|| {
                self.trees.lost = true;
                let lost = Seen::Lost { first, count: existing, level, block: to.block };
                (self.look)(self.findings, &lost);
                Below { free: 0, whole: false }
            })
        } else if existing > 0 {
            Below { free: (self.look)(self.findings, &Seen::Hole { first, count: existing }), whole: true }
        } else {
            Below { free: 0, whole: true }
        };
        let free = if self.tree.kind == Kind::Space { below.free.min(u64::from(u16::MAX)) as u16 } else { 0 };
        if below.whole && to.free != free && (to.is_some() || to.free != 0) {
            let says = to.free;
            let at = parent.unwrap_or(to.block);
            self.complain(
                Flaw::FreeCount,
                at,
                &format!("has a pointer with {says} free clusters, and there are {free}"),
            );
        }
        below
    }

    /// `None`: it cannot be used.
    fn page(&mut self, at: Pointer, level: u8, index: u64, newest: u64) -> Option<Below> {
        let page = self.read(at, level, index, newest)?;
        if level == 0 {
            let seen = Seen::Leaf { index, block: at.block, generation: at.generation, page: &page };
            return Some(Below { free: (self.look)(self.findings, &seen), whole: true });
        }
        let mut all = Below { free: 0, whole: true };
        for child in 0..POINTERS_PER_PAGE {
            let number = index * POINTERS_PER_PAGE as u64 + child as u64;
            let pointer = page.pointer(child);
            let below = self.pointer(pointer, level - 1, number, span(level - 1), at.generation, Some(at.block));
            all = Below { free: all.free.saturating_add(below.free), whole: all.whole && below.whole };
        }
        Some(all)
    }

    /// A page, if it is the one that is meant.
    fn read(&mut self, at: Pointer, level: u8, index: u64, newest: u64) -> Option<Page> {
        let Pointer { block, generation, .. } = at;
        let Some(number) = self.trees.number(block) else {
            self.complain(Flaw::PageOutside, block, "has a page outside of the metadata extents");
            return None;
        };
        if self.trees.used.get(number) {
            self.complain(Flaw::PageUsedTwice, block, "has a page that belongs to another place of a tree");
            return None;
        }
        let bytes = match self.medium.read(block) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.complain(Flaw::PageUnreadable, block, &format!("has a page that cannot be read: {error}"));
                return None;
            }
        };
        let id = PageId { kind: self.tree.kind, layer: self.tree.layer, level, index };
        let found = PageHeader::of(&bytes);
        let meant = PageHeader { id, generation, block, pool: self.trees.pool };
        match (Page::open(bytes, &meant), found) {
            (Ok(page), _) => {
                self.trees.used.set(number);
                if generation > newest {
                    let what = format!("has a page of generation {generation} below one of generation {newest}");
                    self.complain(Flaw::PageGeneration, block, &what);
                }
                Some(page)
            }
            (Err(what), found) => {
                let flaw = match found {
                    None => Flaw::PageChecksum,
                    Some(found) if found == (PageHeader { generation: found.generation, ..meant }) => Flaw::PageStale,
                    Some(_) => Flaw::PageMisplaced,
                };
                self.complain(flaw, block, &format!("has a wrong page, level {level}, number {index}: {what}"));
                None
            }
        }
    }

    fn complain(&mut self, flaw: Flaw, block: u64, what: &str) {
        let tree = self.tree;
        let message = || format!("the tree of {} {what}", whose(tree));
        self.findings.add(flaw, Some(block), Some(tree.layer), message);
    }
}

/// Leaves of a layer's map.
pub(super) fn map_leaves(size: u64, geometry: &Geometry) -> u64 {
    clusters_of(size, geometry).div_ceil(Kind::Map.per_leaf())
}

/// Clusters that a volume of this size has entries for.
pub(super) fn clusters_of(size: u64, geometry: &Geometry) -> u64 {
    size.div_ceil(u64::from(geometry.cluster_size))
}
