//! Writes the pool's own trees anew: gives each page that changes a new place, and makes the pages above it.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::index::Index;
use super::pages::Pages;
use super::space::{self, Space, Words, capacity};
use crate::thin::format::{Page, PageHeader, PageId, Pointer};

/// Pages that are to be written.
pub(super) type Written = Vec<(PageHeader, Page)>;

/// Why a tree cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TreeError {
    /// No page is free.
    Full,
    /// What is there cannot be.
    Damaged(String),
}

/// What all pages of a checkpoint have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) pool: Uuid,
    pub(super) generation: u64,
}

impl Mark {
    pub(super) const fn header(&self, id: PageId, block: u64) -> PageHeader {
        PageHeader { id, generation: self.generation, block, pool: self.pool }
    }
}

/// Changes leaves of a tree, which has some below `end` only; one that is empty goes. `free` says how many clusters are free below a page.
pub(super) fn rewrite(
    index: &mut Index,
    pages: &mut Pages,
    mark: Mark,
    mut leaves: BTreeMap<u64, Page>,
    end: u64,
    free: impl Fn(&Index, PageId, &Page) -> u16,
) -> Result<Written, TreeError> {
    let mut written = Vec::new();
    for (id, old) in index.touched(&leaves.keys().copied().collect(), end) {
        if old.is_some() {
            pages.give(old.block).map_err(TreeError::Damaged)?;
        }
        let page = if id.level == 0 { leaves.remove(&id.index) } else { Some(index.page(id)) };
        let page = page.unwrap_or_default();
        if page.is_empty() {
            index.set(id, Pointer::NONE);
            continue;
        }
        let block = pages.take().ok_or(TreeError::Full)?;
        index.set(id, Pointer { block, generation: mark.generation, free: free(index, id, &page) });
        written.push((mark.header(id, block), page));
    }
    Ok(written)
}

/// The tree of clusters in use.
pub(super) fn rewrite_space(
    index: &mut Index,
    pages: &mut Pages,
    mark: Mark,
    frozen: &[(u32, Box<Words>)],
    clusters: u32,
) -> Result<Written, TreeError> {
    let leaves = frozen.iter().map(|(nth, words)| (u64::from(*nth), space::page_of(&**words))).collect();
    let most = |leaf: u64| u64::from(capacity(clusters, leaf as u32));
    let end = u64::from(space::leaves_for(clusters));
    rewrite(index, pages, mark, leaves, end, |index, id, page| match id.level {
        0 => {
            let most = most(id.index) as u32;
            (most - space::count(&space::words(page), 0, most as usize)) as u16
        }
        _ => index.free_below(id, end, most),
    })
}

/// The tree of pages in use, of which there will be as many as `end` leaves hold. It takes pages itself: first all that it
/// takes, then what that makes of it.
pub(super) fn rewrite_pages(index: &mut Index, pages: &mut Pages, mark: Mark, end: u64) -> Result<Written, TreeError> {
    let mut places: BTreeMap<(u8, u64), (PageId, u64)> = BTreeMap::new();
    loop {
        let leaves = pages.changed().clone();
        let before = places.len();
        for (id, old) in index.touched(&leaves, end) {
            if places.contains_key(&(id.level, id.index)) {
                continue;
            }
            if old.is_some() {
                pages.give(old.block).map_err(TreeError::Damaged)?;
            }
            let block = pages.take().ok_or(TreeError::Full)?;
            places.insert((id.level, id.index), (id, block));
        }
        if places.len() == before {
            break;
        }
    }
    let mut written = Vec::new();
    for (id, block) in places.into_values() {
        let page = if id.level == 0 { pages.leaf(id.index) } else { index.page(id) };
        index.set(id, Pointer { block, generation: mark.generation, free: 0 });
        written.push((mark.header(id, block), page));
    }
    Ok(written)
}

/// All clusters from the first one on are in use.
pub(super) fn first_clusters(clusters: u32, used: u32) -> Result<Space, String> {
    let mut space = Space::new(clusters, |_| None)?;
    for leaf in 0..=Space::leaf_of(used) {
        space.fill(leaf, None)?;
    }
    space.set_used(0, used);
    Ok(space)
}
