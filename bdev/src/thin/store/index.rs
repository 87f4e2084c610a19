//! The trees of the pool itself (catalog, space, pages): all pointers are in memory, so a changed leaf tells at once which
//! pages above it are to be written anew.

use std::collections::{BTreeMap, BTreeSet};

use super::blocking::Blocking;
use super::error::{StoreError, io};
use super::layers::Weight;
use crate::thin::format::{BLOCK, Kind, POINTERS_PER_PAGE, Page, PageHeader, PageId, Pointer, Superblock, levels_for};

/// Pages that are in memory at once while a tree is read.
pub(super) const READ_AT_ONCE: usize = 1024;
/// More levels than any tree needs.
pub(super) const MOST_LEVELS: u8 = 8;
const FAN: u64 = POINTERS_PER_PAGE as u64;

/// Pointers by level: of the leaves first, the top page last.
#[derive(Clone, Debug)]
pub(super) struct Index {
    kind: Kind,
    levels: Vec<BTreeMap<u64, Pointer>>,
}

impl Index {
    pub(super) const fn new(kind: Kind) -> Self {
        Index { kind, levels: Vec::new() }
    }

    /// Reads all but the leaves; a tree has leaves below `end` only.
    pub(super) fn read(
        blocking: &mut Blocking<'_>,
        superblock: &Superblock,
        kind: Kind,
        end: u64,
    ) -> Result<Index, StoreError> {
        let (levels, root) = match kind {
            Kind::Catalog => superblock.catalog,
            Kind::Space => superblock.space,
            Kind::Pages => superblock.pages,
            Kind::Map => unreachable!("a layer's map is walked, not read"),
        };
        if levels > MOST_LEVELS || (levels == 0) == root.is_some() {
            return Err(StoreError::damaged(format!("the tree of {kind:?} has {levels} levels")));
        }
        let mut index = Index { kind, levels: vec![BTreeMap::new(); usize::from(levels)] };
        if let Some(top) = index.levels.last_mut() {
            top.insert(0, root);
        }
        for level in (1..usize::from(levels)).rev() {
            let above: Vec<(u64, Pointer)> = index.levels[level].iter().map(|(at, to)| (*at, *to)).collect();
            for some in above.chunks(READ_AT_ONCE) {
                let pages = read_pages(blocking, superblock, kind, level as u8, &some.iter().copied().collect())?;
                for (at, page) in pages {
                    let children = (0..FAN).map(|child| (at * FAN + child, page.pointer(child as usize)));
                    index.levels[level - 1].extend(children.filter(|(_, pointer)| pointer.is_some()));
                }
                index.check_level(level - 1, end)?;
            }
        }
        index.check_level(0, end).map(|()| index)
    }

    /// Whether a level has only pages with leaves below `end`, and no more than can be.
    fn check_level(&self, level: usize, end: u64) -> Result<(), StoreError> {
        let Some(pages) = self.levels.get(level) else { return Ok(()) };
        let (kind, first_of) = (self.kind, |at: u64| at.saturating_mul(FAN.saturating_pow(level as u32)));
        if let Some(last) = pages.last_key_value().map(|(last, _)| first_of(*last)).filter(|last| *last >= end) {
            return Err(StoreError::damaged(format!("the tree of {kind:?} has leaf {last}, and there are only {end}")));
        }
        // No leaf of the catalog is without layers; leaves of the others are as many as the base is large.
        if kind == Kind::Catalog && pages.len() as u64 > Weight::MOST.layers * 2 {
            return Err(StoreError::damaged("the catalog has more layers than there can be"));
        }
        Ok(())
    }

    /// The leaves that have a page.
    pub(super) fn leaves(&self) -> impl Iterator<Item = (u64, Pointer)> {
        self.levels.first().into_iter().flatten().map(|(at, pointer)| (*at, *pointer))
    }

    /// All pages of it.
    pub(super) fn pointers(&self) -> impl Iterator<Item = Pointer> {
        self.levels.iter().flatten().map(|(_, pointer)| *pointer)
    }

    /// Where a leaf is.
    pub(super) fn leaf(&self, at: u64) -> Pointer {
        self.levels.first().and_then(|leaves| leaves.get(&at)).copied().unwrap_or_default()
    }

    /// Levels and top page, for the superblock.
    pub(super) fn root(&self) -> (u8, Pointer) {
        let root = self.levels.last().and_then(|top| top.get(&0)).copied();
        root.map_or((0, Pointer::NONE), |root| (self.levels.len() as u8, root))
    }

    /// Levels of the tree when it has to have room for so many leaves.
    fn height(&self, end: u64) -> usize {
        usize::from(levels_for(end)).max(self.levels.len())
    }

    /// The pages that change when these leaves do, leaves first, each with where it is now. Makes the tree as high as it has
    /// to be for leaves below `end`; what was its top page is then the first one of its level.
    pub(super) fn touched(&mut self, leaves: &BTreeSet<u64>, end: u64) -> Vec<(PageId, Pointer)> {
        let before = self.levels.iter().take_while(|level| !level.is_empty()).count();
        self.levels.resize(self.height(end), BTreeMap::new());
        let mut touched = Vec::new();
        let mut at = leaves.clone();
        for (level, pointers) in (0..).zip(&self.levels) {
            if level > 0 {
                at = at.iter().map(|at| at / FAN).collect();
            }
            if before > 0 && usize::from(level) >= before {
                at.insert(0);
            }
            let id = |index: u64| PageId { kind: self.kind, layer: 0, level, index };
            touched.extend(at.iter().map(|at| (id(*at), pointers.get(at).copied().unwrap_or_default())));
        }
        touched
    }

    /// Where a page is from now on; a pointer to nothing takes it out.
    pub(super) fn set(&mut self, id: PageId, pointer: Pointer) {
        let level = &mut self.levels[usize::from(id.level)];
        match pointer.is_some() {
            true => level.insert(id.index, pointer),
            false => level.remove(&id.index),
        };
    }

    /// A page above the leaves, from where those below it are.
    pub(super) fn page(&self, id: PageId) -> Page {
        let mut page = Page::default();
        let first = id.index * FAN;
        for (at, pointer) in self.levels[usize::from(id.level) - 1].range(first..first + FAN) {
            page.set_pointer((at - first) as usize, *pointer);
        }
        page
    }

    /// How many of the clusters below a page are free (the tree of clusters alone). `below` says
    /// it of a leaf without a page.
    pub(super) fn free_below(&self, id: PageId, leaves: u64, below: impl Fn(u64) -> u64) -> u16 {
        let span = FAN.pow(u32::from(id.level));
        let range = id.index * span..((id.index + 1) * span).min(leaves);
        let free: u64 = range
            .map(|leaf| match self.leaf(leaf) {
                Pointer { block: 0, .. } => below(leaf),
                pointer => u64::from(pointer.free),
            })
            .sum();
        u16::try_from(free).unwrap_or(u16::MAX)
    }
}

/// Reads the pages of one level.
pub(super) fn read_pages(
    blocking: &mut Blocking<'_>,
    superblock: &Superblock,
    kind: Kind,
    level: u8,
    pointers: &BTreeMap<u64, Pointer>,
) -> Result<Vec<(u64, Page)>, StoreError> {
    let inside = |block: u64| {
        let cluster = block / (u64::from(superblock.geometry.cluster_size) / BLOCK as u64);
        superblock.extents.iter().any(|extent| {
            let first = u64::from(extent.first);
            (first..first + u64::from(extent.count)).contains(&cluster)
        })
    };
    let mut pages = Vec::new();
    let all: Vec<(u64, Pointer)> = pointers.iter().map(|(at, pointer)| (*at, *pointer)).collect();
    for some in all.chunks(1024) {
        if let Some((at, pointer)) = some.iter().find(|(_, pointer)| !inside(pointer.block)) {
            let block = pointer.block;
            let what = format!(
                "page {at} of level {level} of {kind:?} is said to be in block {block}, which is no place for one"
            );
            return Err(StoreError::Damaged(what));
        }
        let blocks: Vec<u64> = some.iter().map(|(_, pointer)| pointer.block).collect();
        let read = blocking.read_blocks(&blocks).map_err(io("metadata"))?;
        for (bytes, (at, Pointer { block, generation, .. })) in read.into_iter().zip(some) {
            let id = PageId { kind, layer: 0, level, index: *at };
            let header = PageHeader { id, generation: *generation, block: *block, pool: superblock.pool };
            pages.push((*at, Page::open(bytes, &header).map_err(|what| wrong_page(&header, what))?));
        }
    }
    Ok(pages)
}

/// A page is not what it should be.
pub(super) fn wrong_page(header: &PageHeader, what: &str) -> StoreError {
    StoreError::Damaged(page_text(header, what))
}

/// The same as text.
pub(super) fn page_text(header: &PageHeader, what: &str) -> String {
    let PageId { kind, layer, level, index } = header.id;
    let owner = if layer == 0 { String::new() } else { format!(" of layer {layer}") };
    format!("block {} should hold page {index} of level {level} of {kind:?}{owner}, but {what}", header.block)
}
