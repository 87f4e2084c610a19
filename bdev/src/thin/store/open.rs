//! Opens a pool: superblock, catalog, which pages and clusters are in use, and the log. How long that takes depends on the
//! log and on how many layers there are, not on what they hold: maps are read when they are needed.
//!
//! Last, the start is announced: what was read is made durable, and a new superblock tells with which salt the log goes on
//! from where. A superblock has room for eight starts since the last checkpoint. If they are used up, none is written: the
//! pool can be read, nothing can be appended, and the first checkpoint's superblock announces the start.

use std::collections::{BTreeMap, BTreeSet};

use pollux_core::IoError;

use super::blocking::Blocking;
use super::error::{StoreError, io};
use super::index::{Index, READ_AT_ONCE, read_pages};
use super::labels;
use super::layers::{self, Weight};
use super::overlay::Overlay;
use super::pages::Pages;
use super::replay::{Found, Ring};
use super::retired::Retired;
use super::space::{self, Space};
use super::state::{MOST, State, catalog_place, map_pages};
use crate::thin::format::{
    BLOCK, Kind, LAYER_LEN, Layer, LogSpan, MAX_SPANS, Page, Pointer, Record, SLOTS, Superblock, SuperblockError,
    slot_block,
};

/// Leaves of the clusters in use that are read when a pool is opened; the others when they are needed.
const FIRST_LEAVES: usize = 4;

/// What the four places hold.
#[derive(Default)]
pub(super) struct Slots {
    found: Vec<Result<Superblock, SuperblockError>>,
    /// Something of a pool is in one of them.
    traces: bool,
    /// Those that could not be read.
    unread: Vec<(u32, IoError)>,
}

impl Slots {
    /// Why nobody can know whether a later superblock than this was written: the place where it would be cannot be read. What is
    /// damaged there was cut off; but of what was acknowledged nothing is to be forgotten because a read has failed.
    fn hides_one_behind(&self, newest: &Superblock) -> Option<IoError> {
        let next = (newest.generation + 1) % u64::from(SLOTS);
        self.unread.iter().find(|(slot, _)| u64::from(*slot) == next).map(|(_, error)| *error)
    }

    /// The superblock that counts.
    pub(super) fn newest(&self) -> Result<Superblock, StoreError> {
        let mut newest: Option<Superblock> = None;
        for found in &self.found {
            match found {
                Err(SuperblockError::Version(version)) => return Err(StoreError::Version(*version)),
                Err(SuperblockError::Features(features)) => return Err(StoreError::Features(*features)),
                Err(SuperblockError::Damaged(_)) => {}
                Ok(found) => {
                    if newest.as_ref().is_some_and(|newest| newest.pool != found.pool) {
                        return Err(StoreError::damaged("its superblocks are of different pools"));
                    }
                    if newest.as_ref().is_none_or(|newest| newest.generation < found.generation) {
                        newest = Some(found.clone());
                    }
                }
            }
        }
        newest.ok_or_else(|| match self.traces {
            true => StoreError::damaged("none of its superblocks can be read"),
            false => StoreError::NotAPool,
        })
    }
}

/// Reads the four places.
pub(super) fn read_slots(blocking: &mut Blocking<'_>) -> Result<Slots, StoreError> {
    let places: Vec<u64> = (0..SLOTS).map(slot_block).collect();
    if blocking.bytes() / (BLOCK as u64) <= places[places.len() - 1] {
        return Ok(Slots::default());
    }
    let mut slots = Slots::default();
    for (slot, place) in (0..SLOTS).zip(places) {
        // One that cannot be read is like one that is damaged: three others are there.
        match blocking.read_blocks(&[place]) {
            Ok(read) => {
                slots.traces |= read[0].starts_with(b"PLXT");
                slots.found.push(Superblock::open(&read[0], slot));
            }
            Err(error) => {
                slots.unread.push((slot, error));
                slots.found.push(Err(SuperblockError::Damaged("it cannot be read")));
            }
        }
    }
    if slots.unread.len() == slots.found.len() {
        blocking.read(slot_block(0), 1).map_err(io("superblock"))?;
    }
    Ok(slots)
}

/// The superblock of the pool that is there, if its base is as large as it has to be. Reads only.
///
/// # Errors
/// If there is no pool, or none that can be opened.
pub fn probe(blocking: &mut Blocking<'_>) -> Result<Superblock, StoreError> {
    let slots = read_slots(blocking)?;
    let superblock = slots.newest()?;
    if let Some(error) = slots.hides_one_behind(&superblock) {
        return Err(io("superblock that may be the newest")(error));
    }
    let geometry = &superblock.geometry;
    let pool = u64::from(geometry.clusters) * u64::from(geometry.cluster_size);
    match blocking.bytes() {
        base if base < pool => Err(StoreError::TooSmall { pool, base }),
        _ => Ok(superblock),
    }
}

/// A pool that was opened, for [`Store::new`](super::Store::new).
pub struct Opened {
    pub(super) superblock: Superblock,
    pub(super) state: State,
    /// The block of the log that is written next.
    pub(super) head: u64,
    /// Its batch.
    pub(super) batch: u64,
    /// The last batch that is durable.
    pub(super) durable: u64,
    pub(super) salt: u64,
    /// The start is not announced yet.
    pub(super) unannounced: bool,
    /// How many batches were read from the log.
    replayed: usize,
}

impl Opened {
    /// The superblock, as it is now.
    #[must_use]
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// How many batches the log held.
    #[must_use]
    pub const fn replayed(&self) -> usize {
        self.replayed
    }
}

/// Opens the pool that is there. `salt` is any random number that no other start has had.
///
/// # Errors
/// If there is no pool, or none that can be opened; then nothing has been written.
pub fn open(blocking: &mut Blocking<'_>, salt: u64) -> Result<Opened, StoreError> {
    let superblock = probe(blocking)?;
    check_superblock(&superblock)?;
    let mut state = read_state(blocking, &superblock)?;
    let geometry = superblock.geometry;
    let bytes = blocking.read(geometry.log_start, geometry.log_blocks as usize).map_err(io("log"))?;
    let ring = Ring::new(&superblock, &bytes);
    let found = ring.scan()?;
    replay(blocking, &superblock, &ring, &found, &mut state)?;
    if !found.batches.is_empty() {
        layers::check(&state.layers, &geometry)?;
    }
    for _ in 0..FIRST_LEAVES {
        let Some(leaf) = state.space.wanted() else { break };
        fill(blocking, &superblock, &mut state, leaf)?;
    }
    let (head, batch, durable) = (found.end, found.new_batch, found.next_batch - 1);
    let replayed = found.batches.len();
    let mut opened = Opened { superblock, state, head, batch, durable, salt, unannounced: false, replayed };
    announce(blocking, &mut opened, found.last_start_unseen)?;
    Ok(opened)
}

/// What a superblock that can be read says may still be absurd.
fn check_superblock(superblock: &Superblock) -> Result<(), StoreError> {
    let first_free = superblock.geometry.first_free;
    if superblock.next_layer > MOST || superblock.generation >= u64::MAX / 2 {
        return Err(StoreError::damaged("its numbers of layers and generations cannot be"));
    }
    if superblock.extents[1..].iter().any(|extent| extent.first < first_free) {
        return Err(StoreError::damaged("metadata lies over what was laid out when it was made"));
    }
    Ok(())
}

/// Everything but the log.
fn read_state(blocking: &mut Blocking<'_>, superblock: &Superblock) -> Result<State, StoreError> {
    let geometry = superblock.geometry;
    let mut pages = Pages::new(&superblock.extents, geometry.cluster_size);
    let pages_index = Index::read(blocking, superblock, Kind::Pages, pages.leaves())?;
    for (leaf, page) in read_pages(blocking, superblock, Kind::Pages, 0, &pages_index.leaves().collect())? {
        pages.fill(leaf, &page).map_err(StoreError::Damaged)?;
    }
    let leaves = u64::from(space::leaves_for(geometry.clusters));
    let space_index = Index::read(blocking, superblock, Kind::Space, leaves)?;
    let stored = |leaf| Some(space_index.leaf(u64::from(leaf))).filter(|pointer| pointer.is_some());
    let space = Space::new(geometry.clusters, |leaf| stored(leaf).map(|pointer| pointer.free));
    let catalog_index =
        Index::read(blocking, superblock, Kind::Catalog, catalog_place(superblock.next_layer - 1).0 + 1)?;
    let saved = read_catalog(blocking, superblock, &catalog_index)?;
    layers::check(&saved, &geometry)?;
    let state = State {
        geometry,
        map_pages: map_pages(&geometry, saved.values()),
        layers: saved.clone(),
        saved,
        next_layer: superblock.next_layer,
        overlay: Overlay::default(),
        frozen: Overlay::default(),
        retired: Retired::default(),
        space: space.map_err(StoreError::Damaged)?,
        freed: Vec::new(),
        pages,
        catalog_index,
        space_index,
        pages_index,
    };
    let trees = [&state.catalog_index, &state.space_index, &state.pages_index];
    let lost = trees.into_iter().flat_map(Index::pointers).find(|pointer| !state.pages.is_used(pointer.block));
    match lost {
        Some(Pointer { block, .. }) => {
            Err(StoreError::Damaged(format!("the page in block {block} is not marked as in use")))
        }
        None => Ok(state),
    }
}

fn read_catalog(
    blocking: &mut Blocking<'_>,
    superblock: &Superblock,
    index: &Index,
) -> Result<BTreeMap<u64, Layer>, StoreError> {
    let mut layers = BTreeMap::new();
    let pointers: Vec<(u64, Pointer)> = index.leaves().collect();
    for some in pointers.chunks(READ_AT_ONCE) {
        for (leaf, page) in read_pages(blocking, superblock, Kind::Catalog, 0, &some.iter().copied().collect())? {
            take_layers(superblock, leaf, &page, &mut layers)?;
        }
        if layers.len() as u64 > Weight::MOST.layers * 2 {
            return Err(StoreError::damaged("the catalog has more layers than there can be"));
        }
    }
    Ok(layers)
}

/// The layers of a leaf of the catalog.
fn take_layers(
    superblock: &Superblock,
    leaf: u64,
    page: &Page,
    layers: &mut BTreeMap<u64, Layer>,
) -> Result<(), StoreError> {
    let (places, _) = page.payload().as_chunks::<LAYER_LEN>();
    for (at, bytes) in places.iter().enumerate() {
        let wrong = |what: &str| StoreError::Damaged(format!("place {at} of leaf {leaf} of the catalog holds {what}"));
        let Some(layer) = Layer::from_bytes(bytes).map_err(wrong)? else { continue };
        if catalog_place(layer.id) != (leaf, at) || layer.id >= superblock.next_layer {
            return Err(wrong("a layer that should be elsewhere"));
        }
        if layer.levels > super::index::MOST_LEVELS || (layer.levels == 0) == layer.root.is_some() {
            return Err(wrong("a layer with a map that cannot be"));
        }
        layers.insert(layer.id, layer);
    }
    Ok(())
}

/// Reads a leaf of the clusters in use.
fn fill(blocking: &mut Blocking<'_>, superblock: &Superblock, state: &mut State, leaf: u32) -> Result<(), StoreError> {
    let at = u64::from(leaf);
    let pointers = [(at, state.space_index.leaf(at))].into_iter().filter(|(_, pointer)| pointer.is_some()).collect();
    let pages = read_pages(blocking, superblock, Kind::Space, 0, &pointers)?;
    state.space.fill(leaf, pages.first().map(|(_, page)| page)).map_err(StoreError::Damaged)
}

/// Takes the records of all batches.
fn replay(
    blocking: &mut Blocking<'_>,
    superblock: &Superblock,
    ring: &Ring<'_>,
    found: &Found,
    state: &mut State,
) -> Result<(), StoreError> {
    // Whether a cluster changes hands can be told only with its leaf in memory. These are as many as the log is long.
    let mut touched = BTreeSet::new();
    for batch in &found.batches {
        touch(&ring.records(batch)?, state, &mut touched);
    }
    for leaf in touched {
        fill(blocking, superblock, state, leaf)?;
    }
    for batch in &found.batches {
        for record in ring.records(batch)? {
            let at = batch.start;
            state.check(&record).map_err(|what| StoreError::Damaged(format!("the log says at block {at}: {what}")))?;
            state.apply(&record, true);
        }
    }
    Ok(())
}

fn touch(records: &[Record], state: &State, touched: &mut BTreeSet<u32>) {
    let clusters = state.geometry.clusters;
    for record in records {
        match record {
            Record::Entry { entry, .. } => {
                touched.extend(entry.cluster().filter(|cluster| *cluster < clusters).map(Space::leaf_of));
            }
            Record::Free { first, count } if first + (count - 1) < clusters => {
                touched.extend(Space::leaf_of(*first)..=Space::leaf_of(first + (count - 1)));
            }
            _ => {}
        }
    }
}

/// Makes durable what was read, and says so.
fn announce(blocking: &mut Blocking<'_>, opened: &mut Opened, last_start_unseen: bool) -> Result<(), StoreError> {
    let superblock = &mut opened.superblock;
    if last_start_unseen && superblock.spans.len() > 1 {
        superblock.spans.pop();
    }
    // None of the others is left out before a checkpoint, because it may have left something of a torn tail.
    let mut spans = superblock.spans.clone();
    spans.push(LogSpan { salt: opened.salt, from: opened.head });
    blocking.step(labels::OPEN_BARRIER);
    blocking.flush().map_err(io("log"))?;
    if spans.len() > MAX_SPANS {
        opened.unannounced = true;
        return Ok(());
    }
    superblock.spans = spans;
    superblock.generation += 1;
    let slot = (superblock.generation % u64::from(SLOTS)) as u32;
    blocking.step(labels::OPEN_SUPERBLOCK);
    blocking.write(slot_block(slot), &*superblock.close(slot), true).map_err(io("superblock"))
}
