//! Reads leaves of maps: down the tree as the last checkpoint has left it, and what is logged over it.
//!
//! A checkpoint that becomes durable meanwhile puts its pages in the place of those that a load is following, and what was
//! over them is in them now; so a load that ends in another generation than it began in starts again.

use std::collections::HashMap;

use super::disk::{Class, Disk};
use super::error::LoadError;
use super::index::page_text;
use super::maps::{Cache, Step, Walk};
use super::overlay::LeafBits;
use super::state::State;
use super::trees::Mark;
use super::{Event, Job};
use crate::thin::format::{BLOCK, ENTRIES_PER_PAGE, Kind, Page, PageHeader, PageId};
use uuid::Uuid;

/// Names a load.
pub(super) type LoadId = u64;

struct Load {
    layer: u64,
    leaf: u64,
    generation: u64,
    walk: Walk,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Loads {
    all: HashMap<LoadId, Load>,
    last: LoadId,
}

/// What a load needs of the store.
pub(super) struct Around<'a> {
    pub(super) state: &'a State,
    pub(super) cache: &'a mut Cache,
    pub(super) disk: &'a mut Disk<Job>,
    pub(super) events: &'a mut Vec<Event>,
    pub(super) pool: Uuid,
    pub(super) generation: u64,
}

impl Loads {
    pub(super) fn is_idle(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn start(&mut self, layer: u64, leaf: u64, around: &mut Around<'_>) {
        self.last += 1;
        let walk = Walk::new(around.state.saved.get(&layer), 0, leaf);
        self.all.insert(self.last, Load { layer, leaf, generation: around.generation, walk });
        self.advance(self.last, around);
    }

    fn advance(&mut self, id: LoadId, around: &mut Around<'_>) {
        let Some(load) = self.all.get_mut(&id) else { return };
        match load.walk.step(around.cache, around.pool) {
            Step::Read(header) => self.read(id, header, around),
            Step::There(pointer) if pointer.is_some() => {
                let page = PageId { kind: Kind::Map, layer: load.layer, level: 0, index: load.leaf };
                let mark = Mark { pool: around.pool, generation: pointer.generation };
                self.read(id, mark.header(page, pointer.block), around);
            }
            Step::There(_) => self.finish(id, None, around),
        }
    }

    fn read(&mut self, id: LoadId, header: PageHeader, around: &mut Around<'_>) {
        if around.state.pages.is_used(header.block) {
            return around.disk.read(Job::Load(id, header), Class::Urgent, header.block);
        }
        let what = page_text(&header, "that block is not in use as a page");
        self.fail(id, LoadError::Damaged(what), around);
    }

    /// A page has come.
    pub(super) fn read_done(
        &mut self,
        id: LoadId,
        header: PageHeader,
        bytes: Result<Box<[u8; BLOCK]>, pollux_core::IoError>,
        around: &mut Around<'_>,
    ) {
        let Some(load) = self.all.get(&id) else { return };
        if load.generation != around.generation {
            return self.restart(id, around);
        }
        let page = bytes
            .map_err(LoadError::Io)
            .and_then(|bytes| Page::open(bytes, &header).map_err(|what| LoadError::Damaged(page_text(&header, what))));
        match page {
            Err(error) => self.fail(id, error, around),
            Ok(page) if header.id.level == 0 => self.finish(id, Some((&page, &header)), around),
            Ok(page) => {
                around.cache.put(header, page);
                self.advance(id, around);
            }
        }
    }

    fn restart(&mut self, id: LoadId, around: &mut Around<'_>) {
        if let Some(load) = self.all.get_mut(&id) {
            load.generation = around.generation;
            load.walk = Walk::new(around.state.saved.get(&load.layer), 0, load.leaf);
        }
        self.advance(id, around);
    }

    fn fail(&mut self, id: LoadId, error: LoadError, around: &mut Around<'_>) {
        if let Some(Load { layer, leaf, .. }) = self.all.remove(&id) {
            around.events.push(Event::Loaded { layer, leaf, entries: Err(error) });
        }
    }

    fn finish(&mut self, id: LoadId, page: Option<(&Page, &PageHeader)>, around: &mut Around<'_>) {
        let Some(Load { layer, leaf, .. }) = self.all.remove(&id) else { return };
        let entries = leaf_now(around.state, layer, leaf, page).map_err(LoadError::Damaged);
        around.events.push(Event::Loaded { layer, leaf, entries });
    }
}

/// A leaf as of everything logged.
fn leaf_now(
    state: &State,
    layer: u64,
    leaf: u64,
    page: Option<(&Page, &PageHeader)>,
) -> Result<Option<Box<LeafBits>>, String> {
    let over = [&state.frozen, &state.overlay].map(|overlay| overlay.leaf(layer, leaf));
    if page.is_none() && over.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut bits = Box::new([0; ENTRIES_PER_PAGE]);
    if let Some((page, header)) = page {
        read_leaf(state, page, header, &mut bits)?;
    }
    over.into_iter().flatten().for_each(|delta| delta.apply(&mut bits));
    Ok(Some(bits))
}

/// The entries of a leaf, each of which makes sense.
pub(super) fn read_leaf(state: &State, page: &Page, header: &PageHeader, bits: &mut LeafBits) -> Result<(), String> {
    for (at, bits) in bits.iter_mut().enumerate() {
        let wrong = |what: &str| page_text(header, &format!("entry {at} of it {what}"));
        let entry = page.entry(at).ok_or_else(|| wrong("makes no sense"))?;
        state.check_entry(entry).map_err(|what| wrong(&format!("cannot be: {what}")))?;
        *bits = entry.bits();
    }
    Ok(())
}
