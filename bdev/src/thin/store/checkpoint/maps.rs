//! The maps' part of a checkpoint: every leaf that is logged is written to a new place, then the pages above those, level
//! by level over all layers; and the pages of layers that are gone are given back.
//!
//! A few pages are under way at a time, and nothing is done for all leaves at once: there may be very many. What was at the
//! old place is read first, because a leaf keeps what is not logged,
//! and because what a layer owns is told by the difference.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::{CheckpointJob, Parts, Trouble, WorkId};
use crate::thin::format::{
    BLOCK, ENTRIES_PER_PAGE, Entry, Kind, Layer, POINTERS_PER_PAGE, Page, PageHeader, PageId, Pointer, levels_for,
};
use crate::thin::store::disk::Class;
use crate::thin::store::index::page_text;
use crate::thin::store::loads::read_leaf;
use crate::thin::store::maps::{Step, Walk};
use crate::thin::store::overlay::LeafBits;
use crate::thin::store::state::{State, leaves_of};
use crate::thin::store::{Job, labels};

const FAN: u64 = POINTERS_PER_PAGE as u64;
/// Pages under way at a time.
const WIDTH: usize = 16;
/// Pages that are begun in one pass: of leaves that come to nothing none is under way.
const A_PASS: usize = 32;

/// A page of a map by layer and place, all of one level.
type Place = (u64, u64);

enum Work {
    /// A page of the level that is being written, and the way to where it is now.
    Rewrite { place: Place, walk: Walk },
    /// A page above the leaves of a layer that is gone.
    Free,
    /// A page is being written.
    Write,
}

/// What a layer has become.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    /// Levels and top page, if they have changed.
    pub(super) root: Option<(u8, Pointer)>,
    /// Clusters that it owns more than before.
    pub(super) owned: i64,
    /// Sub-blocks that are here more than before.
    pub(super) here: i64,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Maps {
    level: u8,
    /// How high the maps are that change.
    heights: BTreeMap<u64, u8>,
    /// The leaf that was begun last, of those that are frozen.
    last_leaf: Option<Place>,
    /// Pages of a level above the leaves.
    todo: VecDeque<Place>,
    /// Those of the next level.
    above: BTreeSet<Place>,
    /// Where the pages of the level below are now.
    below: BTreeMap<Place, Pointer>,
    /// Where those of this level are now.
    moved: BTreeMap<Place, Pointer>,
    /// Where the leaves are now, when nobody needs to know it any more.
    pub(super) leaves: BTreeMap<Place, Pointer>,
    gone: VecDeque<PageHeader>,
    under_way: HashMap<WorkId, Work>,
    /// Something is left that nothing under way leads to.
    pub(super) has_more: bool,
    last: WorkId,
    pub(super) changes: BTreeMap<u64, Change>,
}

impl Maps {
    /// For what is frozen; `updates` are the layers that have changed.
    pub(super) fn new(state: &State, updates: &BTreeMap<u64, Option<Layer>>, pool: uuid::Uuid) -> Self {
        let mut maps = Maps::default();
        let size_of = |id: u64| {
            let layer = updates.get(&id).and_then(Option::as_ref).or_else(|| state.saved.get(&id));
            layer.map_or(0, |layer| leaves_of(&state.geometry, layer))
        };
        let old = |id: u64| state.saved.get(&id).map_or((0, Pointer::NONE), |layer| (layer.levels, layer.root));
        for (id, leaf) in state.frozen.last_leaves() {
            maps.heights.insert(id, levels_for(size_of(id).max(leaf + 1)).max(old(id).0));
        }
        for (id, layer) in updates {
            let (levels, root) = old(*id);
            if !root.is_some() {
                continue;
            }
            match layer {
                None => {
                    let page = PageId { kind: Kind::Map, layer: *id, level: levels - 1, index: 0 };
                    let (generation, block) = (root.generation, root.block);
                    maps.gone.push_back(PageHeader { id: page, generation, block, pool });
                }
                Some(_) if levels_for(size_of(*id)) > levels => {
                    maps.heights.entry(*id).or_insert_with(|| levels_for(size_of(*id)));
                }
                Some(_) => {}
            }
        }
        maps
    }

    /// Starts what can be; whether all is done.
    pub(super) fn advance(&mut self, parts: &mut Parts<'_>) -> Result<bool, Trouble> {
        let mut begun = 0;
        self.has_more = false;
        loop {
            while self.under_way.len() < WIDTH {
                if begun == A_PASS {
                    self.has_more = true;
                    return Ok(false);
                }
                begun += 1;
                if let Some(place) = self.next_place(parts.state) {
                    let walk = Walk::new(parts.state.saved.get(&place.0), self.level, place.1);
                    let id = self.begin(Work::Rewrite { place, walk });
                    self.walk(id, parts)?;
                } else if let Some(header) = self.gone.pop_front() {
                    self.free(header, parts)?;
                } else {
                    break;
                }
            }
            // If there is room for more there are none.
            if !self.under_way.is_empty() {
                return Ok(false);
            }
            if self.moved.is_empty() && !self.rises(parts.state) && self.gone.is_empty() {
                return Ok(true);
            }
            self.next_level(parts.state);
        }
    }

    /// The page of this level that is to be written next.
    fn next_place(&mut self, state: &State) -> Option<Place> {
        if self.level > 0 {
            return self.todo.pop_front();
        }
        let next = state.frozen.leaf_after(self.last_leaf);
        self.last_leaf = next.or(self.last_leaf);
        next
    }

    /// A page of this level is there now: a page of the next one has to say so, unless this is the top.
    fn moves(&mut self, place @ (layer, index): Place, pointer: Pointer) {
        let next = self.level + 1;
        if self.heights.get(&layer).copied() == Some(next) {
            let root = if pointer.is_some() { (next, pointer) } else { (0, Pointer::NONE) };
            self.changes.entry(layer).or_default().root = Some(root);
        } else {
            self.above.insert((layer, index / FAN));
        }
        self.moved.insert(place, pointer);
    }

    fn begin(&mut self, work: Work) -> WorkId {
        self.last += 1;
        self.under_way.insert(self.last, work);
        self.last
    }

    /// Whether there is a map that has no page yet on a level above.
    fn rises(&self, state: &State) -> bool {
        let old = |id: &u64| state.saved.get(id).filter(|layer| layer.root.is_some());
        self.heights
            .iter()
            .any(|(id, height)| old(id).is_some_and(|old| old.levels < *height) && self.level + 1 < *height)
    }

    /// The level above: the pages that name those that have moved, and the first one of a map that has become higher.
    fn next_level(&mut self, state: &State) {
        let next = self.level + 1;
        let mut todo = std::mem::take(&mut self.above);
        for (layer, height) in &self.heights {
            let old = state.saved.get(layer).filter(|layer| layer.root.is_some());
            if old.is_some_and(|old| old.levels <= next) && next < *height {
                todo.insert((*layer, 0));
            }
        }
        let past = std::mem::replace(&mut self.below, std::mem::take(&mut self.moved));
        if self.level == 1 {
            self.leaves = past;
        }
        self.todo = todo.into_iter().collect();
        self.level = next;
    }

    /// Goes down to where a page is now.
    fn walk(&mut self, id: WorkId, parts: &mut Parts<'_>) -> Result<(), Trouble> {
        let Some(Work::Rewrite { place, walk }) = self.under_way.get_mut(&id) else { return Ok(()) };
        let place = *place;
        match walk.step(parts.cache, parts.mark.pool) {
            Step::Read(header) => Self::read(id, header, parts),
            Step::There(Pointer { block: 0, .. }) => self.rewrite(id, place, None, parts),
            Step::There(pointer) => {
                let page = PageId { kind: Kind::Map, layer: place.0, level: self.level, index: place.1 };
                let header = PageHeader { generation: pointer.generation, ..parts.mark.header(page, pointer.block) };
                match parts.cache.get(&header).cloned() {
                    Some(page) => self.rewrite(id, place, Some(&(page, header)), parts),
                    None => Self::read(id, header, parts),
                }
            }
        }
    }

    fn read(id: WorkId, header: PageHeader, parts: &mut Parts<'_>) -> Result<(), Trouble> {
        if !parts.state.pages.is_used(header.block) {
            return Err(Trouble::damaged(page_text(&header, "that block is not in use as a page")));
        }
        parts.disk.read(Job::Checkpoint(CheckpointJob::Read(id, header)), Class::Background, header.block);
        Ok(())
    }

    /// A page has come.
    pub(super) fn read_done(
        &mut self,
        id: WorkId,
        header: PageHeader,
        bytes: Box<[u8; BLOCK]>,
        parts: &mut Parts<'_>,
    ) -> Result<(), Trouble> {
        let page = Page::open(bytes, &header).map_err(|what| Trouble::damaged(page_text(&header, what)))?;
        match self.under_way.get(&id) {
            Some(Work::Rewrite { place, .. }) => {
                let place = *place;
                if (header.id.level, header.id.index) == (self.level, place.1) {
                    return self.rewrite(id, place, Some(&(page, header)), parts);
                }
                parts.cache.put(header, page);
                self.walk(id, parts)
            }
            Some(Work::Free) => {
                self.under_way.remove(&id);
                self.free_below(&header, &page, parts)
            }
            Some(Work::Write) | None => Ok(()),
        }
    }

    /// A page is written.
    pub(super) fn write_done(&mut self, id: WorkId) {
        self.under_way.remove(&id);
    }

    /// Makes the page that comes in the place of the old one.
    fn rewrite(
        &mut self,
        id: WorkId,
        place: Place,
        old: Option<&(Page, PageHeader)>,
        parts: &mut Parts<'_>,
    ) -> Result<(), Trouble> {
        let mut page = match self.level {
            0 => self.leaf(place, old, parts)?,
            _ => self.above(place, old, parts.state),
        };
        if let Some((_, header)) = old {
            parts.state.pages.give(header.block).map_err(Trouble::damaged)?;
        }
        if page.is_empty() {
            self.under_way.remove(&id);
            self.moves(place, Pointer::NONE);
            return Ok(());
        }
        let block = parts.state.pages.take().ok_or_else(Trouble::full)?;
        let page_id = PageId { kind: Kind::Map, layer: place.0, level: self.level, index: place.1 };
        let header = parts.mark.header(page_id, block);
        let job = Job::Checkpoint(CheckpointJob::Write(id));
        parts.disk.write(job, Class::Background, block, page.close(&header), false, labels::CHECKPOINT_PAGE);
        self.moves(place, Pointer { block, generation: header.generation, free: 0 });
        self.under_way.insert(id, Work::Write);
        match self.level {
            0 => parts.cache.forget(block),
            _ => parts.cache.put(header, page),
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        (layer, leaf): Place,
        old: Option<&(Page, PageHeader)>,
        parts: &Parts<'_>,
    ) -> Result<Page, Trouble> {
        let mut bits = [0; ENTRIES_PER_PAGE];
        if let Some((page, header)) = old {
            read_leaf(parts.state, page, header, &mut bits).map_err(Trouble::damaged)?;
        }
        let before = owned(&bits);
        if let Some(delta) = parts.state.frozen.leaf(layer, leaf) {
            delta.apply(&mut bits);
        }
        let after = owned(&bits);
        let change = self.changes.entry(layer).or_default();
        change.owned += after.0 - before.0;
        change.here += after.1 - before.1;
        let mut page = Page::default();
        for (at, bits) in bits.iter().enumerate() {
            page.set_entry(at, Entry::from_bits(*bits).expect("entries were looked at when they came"));
        }
        Ok(page)
    }

    fn above(&self, (layer, index): Place, old: Option<&(Page, PageHeader)>, state: &State) -> Page {
        let mut page = old.map_or_else(Page::default, |(page, _)| page.clone());
        let saved = state.saved.get(&layer);
        if let Some(saved) = saved.filter(|saved| old.is_none() && saved.levels == self.level && index == 0) {
            // The map has become higher: what was its top page is the first one below.
            page.set_pointer(0, saved.root);
        }
        let first = index * FAN;
        for ((_, child), pointer) in self.below.range((layer, first)..(layer, first + FAN)) {
            page.set_pointer((child - first) as usize, *pointer);
        }
        page
    }

    /// Gives back a page of a layer that is gone, and all below it.
    fn free(&mut self, header: PageHeader, parts: &mut Parts<'_>) -> Result<(), Trouble> {
        if header.id.level == 0 {
            return parts.state.pages.give(header.block).map_err(Trouble::damaged);
        }
        match parts.cache.get(&header).cloned() {
            Some(page) => self.free_below(&header, &page, parts),
            None => {
                let id = self.begin(Work::Free);
                Self::read(id, header, parts)
            }
        }
    }

    fn free_below(&mut self, header: &PageHeader, page: &Page, parts: &mut Parts<'_>) -> Result<(), Trouble> {
        parts.state.pages.give(header.block).map_err(Trouble::damaged)?;
        parts.cache.forget(header.block);
        for at in 0..POINTERS_PER_PAGE {
            let pointer = page.pointer(at);
            if pointer.is_some() {
                let (level, index) = (header.id.level - 1, header.id.index * FAN + at as u64);
                let id = PageId { level, index, ..header.id };
                let (generation, block) = (pointer.generation, pointer.block);
                self.gone.push_back(PageHeader { id, generation, block, pool: header.pool });
            }
        }
        Ok(())
    }
}

/// Clusters that these entries own, and sub-blocks that are here.
fn owned(bits: &LeafBits) -> (i64, i64) {
    let entries = bits.iter().filter_map(|bits| Entry::from_bits(*bits));
    entries.fold((0, 0), |(owned, here), entry| {
        (owned + i64::from(entry.cluster().is_some()), here + i64::from(entry.here().count_ones()))
    })
}
