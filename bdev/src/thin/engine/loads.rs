//! Leaves: loaded when somebody wants them, and made ready for who needs an empty one.

use std::sync::Arc;

use super::Engine;
use crate::thin::format::ENTRIES_PER_PAGE;
use crate::thin::shared::{LayerMap, Place};
use crate::thin::store::LoadError;

/// Leaves that are loaded at once.
const LOADS: usize = 64;

/// Numbers of leaves that nobody has.
#[derive(Default)]
pub(super) struct Spare {
    /// Were somebody's, and are empty again.
    returned: Vec<u32>,
    /// How many have ever been given a number.
    numbered: u32,
}

impl Spare {
    /// How many leaves could be given to somebody.
    pub(super) fn free(&self, most: usize) -> usize {
        self.returned.len() + most - self.numbered as usize
    }

    /// How many have a number.
    pub(super) const fn numbered(&self) -> u32 {
        self.numbered
    }
}

impl Engine {
    /// A leaf with nothing in it; `None`: the limit is reached.
    pub(super) fn spare_leaf(&mut self) -> Option<u32> {
        if let Some(leaf) = self.spare.returned.pop() {
            return Some(leaf);
        }
        let leaf = self.spare.numbered;
        if leaf as usize >= self.shared.leaves.most() {
            return None;
        }
        self.spare.numbered += 1;
        self.shared.leaves.provide(leaf);
        Some(leaf)
    }

    /// A leaf that nobody looks at any more.
    pub(super) fn return_leaf(&mut self, leaf: u32) {
        self.shared.leaves.fill(leaf, &[0; ENTRIES_PER_PAGE]);
        let _nobodys = self.shared.leaves.get(leaf).take_dirty(0);
        self.spare.returned.push(leaf);
    }

    /// Makes empty leaves ready for channels.
    pub(super) fn make_ready(&mut self) -> u32 {
        let wanted = self.shared.leaves.wanted();
        for _ in 0..wanted {
            let Some(leaf) = self.spare_leaf() else { break };
            self.shared.leaves.return_ready(leaf);
        }
        if wanted > 0 {
            self.shared.tell_waiters();
        }
        wanted as u32
    }

    /// Begins to load what somebody wants.
    pub(super) fn begin_loads(&mut self) -> u32 {
        let mut begun = 0;
        while self.loading.len() < LOADS
            && let Some(wanted) = self.shared.next_wanted()
        {
            begun += 1;
            if let Some(number) = self.keep_evicting(wanted.map.id, wanted.leaf) {
                wanted.map.put(wanted.leaf, Place::At(number));
                self.shared.tell_waiters();
                continue;
            }
            self.store.load(wanted.map.id, wanted.leaf);
            self.loading.insert((wanted.map.id, wanted.leaf), wanted.map);
        }
        begun
    }

    /// A leaf has come, for whoever wants it.
    pub(super) fn loaded(
        &mut self,
        layer: u64,
        leaf: u64,
        entries: Result<Option<Box<[u64; ENTRIES_PER_PAGE]>>, LoadError>,
    ) {
        if let Some(map) = self.loading.remove(&(layer, leaf)) {
            let place = self.place_leaf(&map, leaf, &entries);
            map.put(leaf, place);
            self.shared.tell_waiters();
        }
        self.removal_loaded(layer, leaf, entries);
    }

    fn place_leaf(
        &mut self,
        map: &Arc<LayerMap>,
        leaf: u64,
        entries: &Result<Option<Box<[u64; ENTRIES_PER_PAGE]>>, LoadError>,
    ) -> Place {
        match entries {
            Ok(None) => Place::Empty,
            Ok(Some(entries)) => match self.spare_leaf() {
                Some(number) => {
                    self.shared.leaves.name(number, map.id, leaf);
                    self.shared.leaves.fill(number, entries);
                    Place::At(number)
                }
                // It is asked for again, until there is room.
                None => Place::Unknown,
            },
            Err(error) => {
                tracing::error!(layer = map.id, leaf, "a part of a volume's map is lost: {error}");
                Place::Lost
            }
        }
    }
}
