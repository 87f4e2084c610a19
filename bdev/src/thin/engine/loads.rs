//! Leaves: loaded when somebody wants them, and made ready for who needs an empty one.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::Engine;
use super::commit::Commit;
use crate::thin::format::ENTRIES_PER_PAGE;
use crate::thin::shared::{CHUNK, DIRTY_WORDS, LayerMap, Miss, Place};
use crate::thin::store::{LoadError, PAGES_PER_LEAF};

/// Leaves that are loaded at once. In tests others soon have to wait.
const LOADS: usize = if cfg!(test) { 4 } else { 64 };
/// How often it is looked whether there is company, and for how long there was if it is gone.
const COMPANY_LOOK_NS: u64 = 500_000;
const COMPANY_NS: u64 = 10_000_000;
/// After so long a leaf is tried again that could not be read.
const RETRY_NS: u64 = 1_000_000_000;

/// A leaf that could not be read because the base has failed, and when it is tried again.
pub(super) struct Unread {
    until: u64,
    map: Arc<LayerMap>,
    leaf: u64,
}

impl Unread {
    pub(super) const fn until(&self) -> u64 {
        self.until
    }
}

/// Whether others than those who wait for leaves use the base.
#[derive(Default)]
pub(super) struct Company {
    looked: Option<u64>,
    until: u64,
}

/// Numbers of leaves that nobody has.
#[derive(Default)]
pub(super) struct Spare {
    /// Were somebody's, and are empty again.
    returned: Vec<u32>,
    /// How many have ever been given a number.
    numbered: u32,
    /// Not as many have been made ready as there should be.
    more_wanted: bool,
}

impl Spare {
    /// How many leaves could be given to somebody.
    pub(super) fn free(&self, most: usize) -> usize {
        self.returned.len() + most - self.numbered as usize
    }

    /// Whether more are to be made ready.
    pub(super) const fn more_wanted(&self) -> bool {
        self.more_wanted
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
        self.fresh.remove(&leaf);
        let page = self.shared.leaves.get(leaf);
        let _nobodys = (page.take_dirty(0), page.take_pared(&[u64::MAX; DIRTY_WORDS]));
        self.spare.returned.push(leaf);
    }

    /// Makes empty leaves ready for channels, as far as the pages on the base go: each of them will need some. Not all of
    /// them in one pass: memory that was never used takes its time.
    pub(super) fn make_ready(&mut self) -> u32 {
        let wanted = self.shared.leaves.wanted();
        let room = usize::try_from(self.leaf_room()).unwrap_or(usize::MAX);
        let mut made = 0;
        while made < wanted.min(room).min(CHUNK)
            && let Some(leaf) = self.spare_leaf()
        {
            self.fresh.insert(leaf);
            self.shared.leaves.return_ready(leaf);
            made += 1;
        }
        self.spare.more_wanted = made == CHUNK;
        if made > 0 {
            self.shared.tell_waiters();
        }
        made as u32
    }

    /// How many leaves may come into being.
    pub(super) fn leaf_room(&self) -> u64 {
        self.store.leaf_room(self.unsaid_pages())
    }

    /// Pages that will be needed for what the store has not heard of.
    fn unsaid_pages(&self) -> u64 {
        let said_next = self.commit.as_ref().map_or(0, Commit::unsaid_pages) + self.to_log.pages();
        said_next + self.fresh.len() as u64 * PAGES_PER_LEAF
    }

    /// Whether somebody waits for a leaf for which there are no pages.
    pub(super) fn lacks_pages(&self) -> bool {
        self.shared.leaves.is_starving() && self.leaf_room() == 0
    }

    /// Whether so many leaves of the catalog can change and come into being, if not now then after a checkpoint.
    pub(super) fn has_room_for_layers(&self, leaves: usize) -> bool {
        self.store.leaf_room_of_reserve(self.unsaid_pages()) >= leaves as u64
            || self.store.has_logged()
            || self.store.is_checkpointing()
            || self.store.can_extend()
    }

    /// A leaf of a layer that can be changed, made if there is none, from the reserve of pages if it has to be: for what gives
    /// space back.
    pub(super) fn leaf_to_change(&mut self, map: &Arc<LayerMap>, leaf: u64) -> Result<u32, Miss> {
        match self.shared.leaf_to_change(map, leaf) {
            Err(Miss::Space) if self.store.leaf_room_of_reserve(self.unsaid_pages()) > 0 => {
                let number = self.spare_leaf().ok_or(Miss::Space)?;
                self.fresh.insert(number);
                self.shared.leaves.name(number, map.id, leaf);
                if map.set(leaf, Place::Empty, Place::At(number)) {
                    return Ok(number);
                }
                self.return_leaf(number);
                Err(Miss::Wait)
            }
            found => found,
        }
    }

    /// Says whether there is company. Looked at now and then, since there may be many channels.
    fn look_for_company(&mut self) {
        let Company { looked, until } = &mut self.company;
        if looked.is_none_or(|looked| self.now >= looked + COMPANY_LOOK_NS) {
            *looked = Some(self.now);
            if self.shared.is_any_inside() {
                *until = self.now + COMPANY_NS;
            }
            self.shared.has_company.store(self.now < *until, Relaxed);
        }
    }

    /// Begins to load what somebody wants.
    pub(super) fn begin_loads(&mut self) -> u32 {
        let mut begun = 0;
        while self.loading.len() < LOADS
            && let Some(wanted) = self.shared.next_wanted()
        {
            begun += 1;
            if wanted.map.place(wanted.leaf) != Place::Loading {
                // It was on its way out, and has been put back: it is there, and newer than what the store has. Or it could
                // not be read, or somebody else has wanted it too.
                self.shared.tell_waiters();
                continue;
            }
            if self.loading.contains_key(&(wanted.map.id, wanted.leaf)) {
                continue;
            }
            if let Some(number) = self.keep_evicting(wanted.map.id, wanted.leaf) {
                wanted.map.put(wanted.leaf, Place::At(number));
                self.shared.tell_waiters();
                continue;
            }
            self.store.load(wanted.map.id, wanted.leaf);
            self.loading.insert((wanted.map.id, wanted.leaf), wanted.map);
        }
        if begun > 0 {
            self.look_for_company();
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
            if !map.set(leaf, Place::Loading, place)
                && let Place::At(number) = place
            {
                self.return_leaf(number);
            }
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
            Err(LoadError::Io(error)) => {
                tracing::error!(layer = map.id, leaf, %error, "a part of a volume's map cannot be read; it is tried again");
                let until = self.now.saturating_add(RETRY_NS);
                self.unread.push_back(Unread { until, map: map.clone(), leaf });
                Place::Lost
            }
            Err(error) => {
                tracing::error!(layer = map.id, leaf, "a part of a volume's map is lost: {error}");
                Place::Lost
            }
        }
    }

    /// What could not be read for a while may be asked for again: who has waited for it has been told, and nobody else is
    /// to be told of an error that has passed.
    pub(super) fn advance_retries(&mut self) -> u32 {
        let mut count = 0;
        while self.unread.front().is_some_and(|unread| unread.until <= self.now)
            && let Some(Unread { map, leaf, .. }) = self.unread.pop_front()
        {
            map.set(leaf, Place::Lost, Place::Unknown);
            count += 1;
        }
        let now = self.now;
        self.stuck.retain(|_, until| until.is_none_or(|until| until > now));
        count
    }

    /// Whether a leaf is lost only for a while.
    pub(super) fn is_unread(&self, layer: u64, leaf: u64) -> bool {
        self.unread.iter().any(|unread| (unread.map.id, unread.leaf) == (layer, leaf))
    }

    /// When something that the base has failed is tried again.
    pub(super) fn next_retry(&self) -> Option<u64> {
        let stuck = self.stuck.values().flatten().min().copied();
        self.unread.front().map(Unread::until).into_iter().chain(stuck).min()
    }
}
