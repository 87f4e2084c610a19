//! Writes what is logged into the trees, so that the log can be cut: in the background, while batches go on.
//!
//! 1. [`Stage::Prepare`]: leaves of the clusters in use that have changed are read; if pages get scarce, clusters are taken
//!    for a further extent of them, and filled with zeroes. Where the base has no space for these it goes on without.
//! 2. Everything appended so far is *frozen*; what comes now is kept apart and waits for the next checkpoint.
//! 3. [`Stage::Maps`]: the maps of layers, see [`maps`].
//! 4. [`Stage::Trees`]: catalog, clusters in use, and last pages in use, which know of all the others.
//! 5. [`Stage::Log`]: all that was frozen is durable in the log, too. So the superblock never says what the log could not.
//! 6. [`Stage::Barrier`], [`Stage::Superblock`]: then the checkpoint counts, the log's tail moves, and the pages that are
//!    not needed any more can be written again.
//!
//! A page that cannot be read ends all writing of the pool: nothing is made up for it.

mod maps;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pollux_core::IoError;

use super::disk::{Class, Disk};
use super::index::page_text;
use super::log::{Log, Position};
use super::maps::Cache;
use super::space::{self, PER_LEAF, Words};
use super::state::{State, catalog_place};
use super::trees::{Mark, TreeError, Written, rewrite, rewrite_pages, rewrite_space};
use super::{Job, labels};
use crate::thin::format::{
    BLOCK, Extent, LAYER_LEN, LAYERS_PER_PAGE, Layer, LogSpan, MAX_EXTENTS, Page, PageHeader, SLOTS, Superblock,
    THRESHOLDS, slot_block,
};
use maps::Maps;

/// Blocks of zeroes that are written at once.
const ZEROES: u64 = 256;

/// Names a page that is under way.
pub(super) type WorkId = u64;

/// What has completed of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(super) enum CheckpointJob {
    Zeroes,
    Read(WorkId, PageHeader),
    Write(WorkId),
    Page,
    Barrier,
    Superblock,
}

/// Why a checkpoint cannot go on.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) error: IoError,
    pub(super) what: String,
}

impl Trouble {
    fn damaged(what: String) -> Self {
        Trouble { error: IoError::Medium, what }
    }

    /// The base has failed.
    pub(super) fn of(job: CheckpointJob, error: IoError) -> Self {
        let what = match job {
            CheckpointJob::Read(_, header) => page_text(&header, "it cannot be read"),
            CheckpointJob::Zeroes => "a new extent of pages cannot be written".into(),
            CheckpointJob::Write(_) | CheckpointJob::Page => "a page cannot be written".into(),
            CheckpointJob::Barrier => "the barrier before its superblock failed".into(),
            CheckpointJob::Superblock => "its superblock cannot be written".into(),
        };
        Trouble { error, what }
    }

    fn full() -> Self {
        Trouble { error: IoError::NoSpace, what: "no page is left for a checkpoint".into() }
    }
}

impl From<TreeError> for Trouble {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Full => Trouble::full(),
            TreeError::Damaged(what) => Trouble::damaged(what),
        }
    }
}

/// What the superblock says beside the trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) overcommit: u32,
    pub(super) clusters: u32,
    pub(super) thresholds: [u64; THRESHOLDS],
    pub(super) discard_rate: u64,
}

/// What a checkpoint needs of the store.
pub(super) struct Parts<'a> {
    pub(super) state: &'a mut State,
    pub(super) cache: &'a mut Cache,
    pub(super) disk: &'a mut Disk<Job>,
    pub(super) log: &'a Log,
    pub(super) superblock: &'a Superblock,
    pub(super) facts: &'a Facts,
    pub(super) span: LogSpan,
    pub(super) mark: Mark,
}

enum Stage {
    /// See the module's description.
    Prepare,
    /// These blocks are still to be filled with zeroes.
    Extent(Range<u64>),
    Maps,
    Trees,
    Log,
    Barrier,
    Superblock,
    Done,
}

/// See the module's description.
pub(super) struct Checkpoint {
    stage: Stage,
    extent: Option<Extent>,
    /// The base has no space for that.
    lacks_extent: bool,
    /// Where the log was when all was frozen.
    position: Position,
    next_layer: u64,
    facts: Facts,
    /// Layers that have changed: as they were when all was frozen, then with their new maps. `None`: gone.
    updates: BTreeMap<u64, Option<Layer>>,
    space: Vec<(u32, Box<Words>)>,
    maps: Maps,
    /// Requests under way that are not the maps'.
    under_way: u32,
    /// Pages that it may still take.
    budget: u64,
    superblock: Option<Superblock>,
}

impl Checkpoint {
    pub(super) fn new(parts: &Parts<'_>) -> Self {
        Checkpoint {
            stage: Stage::Prepare,
            extent: None,
            lacks_extent: false,
            position: parts.log.position(),
            next_layer: 0,
            facts: parts.facts.clone(),
            updates: BTreeMap::new(),
            space: Vec::new(),
            maps: Maps::default(),
            under_way: 0,
            budget: 0,
            superblock: None,
        }
    }

    /// Pages that it may still take.
    pub(super) fn budget(&self, state: &State) -> u64 {
        self.budget.saturating_sub(state.pages.taken())
    }

    /// Whether it could go on at once.
    pub(super) const fn has_more(&self) -> bool {
        self.maps.has_more
    }

    /// Goes on as far as it can, but for what is too much for one pass. At the end there is the superblock that is durable
    /// now, and the batch before which all is in it.
    pub(super) fn advance(&mut self, parts: &mut Parts<'_>) -> Result<Option<Superblock>, Trouble> {
        loop {
            match &mut self.stage {
                Stage::Prepare => {
                    if parts.state.space.has_pending() {
                        return Ok(None);
                    }
                    self.extent = new_extent(parts.state);
                    let per_cluster = u64::from(parts.state.geometry.cluster_size) / BLOCK as u64;
                    let blocks = self.extent.map_or(0..0, |Extent { first, count }| {
                        u64::from(first) * per_cluster..u64::from(first + count) * per_cluster
                    });
                    self.freeze(parts);
                    self.stage = Stage::Extent(blocks);
                }
                Stage::Extent(left) if left.is_empty() => {
                    if self.under_way > 0 {
                        return Ok(None);
                    }
                    if self.lacks_extent {
                        self.go_without_extent(parts.state);
                    }
                    self.stage = Stage::Maps;
                }
                Stage::Extent(left) => {
                    if self.under_way > 3 {
                        return Ok(None);
                    }
                    let blocks = (left.end - left.start).min(ZEROES);
                    let zeroes = vec![0; blocks as usize * BLOCK];
                    let job = Job::Checkpoint(CheckpointJob::Zeroes);
                    parts.disk.write(job, Class::Background, left.start, &zeroes, false, labels::CHECKPOINT_EXTENT);
                    left.start += blocks;
                    self.under_way += 1;
                }
                Stage::Maps => {
                    if !self.maps.advance(parts)? {
                        return Ok(None);
                    }
                    self.write_trees(parts)?;
                    self.stage = Stage::Trees;
                }
                Stage::Trees if self.under_way > 0 => return Ok(None),
                Stage::Trees => self.stage = Stage::Log,
                Stage::Log => {
                    if !parts.log.is_durable(self.position) {
                        return Ok(None);
                    }
                    parts.disk.flush(Job::Checkpoint(CheckpointJob::Barrier), labels::CHECKPOINT_BARRIER);
                    self.under_way = 1;
                    self.stage = Stage::Barrier;
                }
                Stage::Barrier if self.under_way > 0 => return Ok(None),
                Stage::Barrier => {
                    self.write_superblock(parts);
                    self.stage = Stage::Superblock;
                }
                Stage::Superblock if self.under_way > 0 => return Ok(None),
                Stage::Superblock => {
                    self.stage = Stage::Done;
                    return Ok(self.superblock.take());
                }
                Stage::Done => return Ok(None),
            }
        }
    }

    /// Sets apart what is logged.
    fn freeze(&mut self, parts: &mut Parts<'_>) {
        let state = &mut *parts.state;
        self.position = parts.log.position();
        self.next_layer = state.next_layer;
        self.facts = parts.facts.clone();
        self.budget = state.pages_needed();
        state.frozen = std::mem::take(&mut state.overlay);
        self.updates = state.frozen.changed.iter().map(|id| (*id, state.layers.get(id).cloned())).collect();
        self.space = state.space.freeze();
        self.maps = Maps::new(state, &self.updates, parts.mark.pool);
    }

    /// The base has no space for what is to be the further extent. There are pages enough for this checkpoint without it.
    pub(super) fn extent_failed(&mut self) {
        self.under_way -= 1;
        self.lacks_extent = true;
        self.stage = Stage::Extent(0..0);
    }

    /// Nothing of it is on its way to the base any more: its clusters are as free as they were.
    fn go_without_extent(&mut self, state: &mut State) {
        let Some(Extent { first, count }) = self.extent.take() else { return };
        tracing::warn!(
            "the base has no space for more metadata: what needs some waits, or fails, until there is space below"
        );
        for (leaf, words) in &mut self.space {
            let (from, to) = (first.max(*leaf * PER_LEAF), (first + count).min((*leaf + 1) * PER_LEAF));
            if from < to {
                space::set(&mut words[..], (from % PER_LEAF) as usize, (to - from) as usize, false);
            }
        }
        state.space.set_free(first, count);
        state.space.release(first, count);
    }

    /// A request has completed.
    pub(super) fn done(
        &mut self,
        job: CheckpointJob,
        bytes: Option<Box<[u8; BLOCK]>>,
        parts: &mut Parts<'_>,
    ) -> Result<(), Trouble> {
        match (job, bytes) {
            (CheckpointJob::Read(id, header), Some(bytes)) => self.maps.read_done(id, header, bytes, parts)?,
            (CheckpointJob::Write(id), _) => self.maps.write_done(id),
            _ => self.under_way -= 1,
        }
        Ok(())
    }

    /// Catalog, clusters, pages.
    fn write_trees(&mut self, parts: &mut Parts<'_>) -> Result<(), Trouble> {
        self.update_layers(parts.state);
        let (mark, state) = (parts.mark, &mut *parts.state);
        let leaves: BTreeSet<u64> = self.updates.keys().map(|id| catalog_place(*id).0).collect();
        let leaves = leaves.into_iter().map(|leaf| (leaf, self.catalog_leaf(leaf, &state.saved))).collect();
        let end = catalog_place(self.next_layer - 1).0 + 1;
        let mut written = rewrite(&mut state.catalog_index, &mut state.pages, mark, leaves, end, |_, _, _| 0)?;
        let clusters = self.facts.clusters;
        written.extend(rewrite_space(&mut state.space_index, &mut state.pages, mark, &self.space, clusters)?);
        let end = state.pages.leaves_with(self.extent);
        written.extend(rewrite_pages(&mut state.pages_index, &mut state.pages, mark, end)?);
        self.write(written, parts.disk);
        Ok(())
    }

    fn write(&mut self, written: Written, disk: &mut Disk<Job>) {
        for (header, mut page) in written {
            let job = Job::Checkpoint(CheckpointJob::Page);
            disk.write(job, Class::Background, header.block, page.close(&header), false, labels::CHECKPOINT_PAGE);
            self.under_way += 1;
        }
    }

    /// The layers as the catalog is to have them.
    fn update_layers(&mut self, state: &State) {
        for (id, layer) in &mut self.updates {
            if let (Some(layer), Some(saved)) = (layer, state.saved.get(id)) {
                (layer.levels, layer.root, layer.owned, layer.here) =
                    (saved.levels, saved.root, saved.owned, saved.here);
            }
        }
        for (id, change) in &self.maps.changes {
            let layer = self.updates.entry(*id).or_insert_with(|| state.saved.get(id).cloned());
            let Some(layer) = layer else { continue };
            layer.owned = layer.owned.saturating_add_signed(change.owned);
            layer.here = layer.here.saturating_add_signed(change.here);
            if let Some((levels, root)) = change.root {
                (layer.levels, layer.root) = (levels, root);
            }
        }
    }

    fn catalog_leaf(&self, leaf: u64, saved: &BTreeMap<u64, Layer>) -> Page {
        let mut page = Page::default();
        for at in 0..LAYERS_PER_PAGE {
            let id = leaf * LAYERS_PER_PAGE as u64 + at as u64;
            let layer = match self.updates.get(&id) {
                Some(update) => update.as_ref(),
                None => saved.get(&id),
            };
            if let Some(layer) = layer {
                page.payload_mut()[at * LAYER_LEN..][..LAYER_LEN].copy_from_slice(&layer.to_bytes());
            }
        }
        page
    }

    fn write_superblock(&mut self, parts: &mut Parts<'_>) {
        let mut superblock = parts.superblock.clone();
        superblock.name.clone_from(&self.facts.name);
        superblock.overcommit = self.facts.overcommit;
        superblock.geometry.clusters = self.facts.clusters;
        superblock.thresholds = self.facts.thresholds;
        superblock.discard_rate = self.facts.discard_rate;
        superblock.generation = parts.mark.generation;
        superblock.next_layer = self.next_layer;
        superblock.log_from = self.position.seq;
        superblock.batch_from = self.position.batch;
        // What earlier starts have left has lower numbers of batches than this one's.
        superblock.spans = vec![parts.span];
        superblock.catalog = parts.state.catalog_index.root();
        superblock.space = parts.state.space_index.root();
        superblock.pages = parts.state.pages_index.root();
        superblock.extents.extend(self.extent);
        let slot = (superblock.generation % u64::from(SLOTS)) as u32;
        let job = Job::Checkpoint(CheckpointJob::Superblock);
        let bytes = superblock.close(slot);
        parts.disk.write(job, Class::Urgent, slot_block(slot), &*bytes, true, labels::CHECKPOINT_SUPERBLOCK);
        self.under_way = 1;
        self.superblock = Some(superblock);
    }

    /// The superblock is durable: what it says is so from now on.
    pub(super) fn settle(self, state: &mut State) {
        for (id, update) in self.updates {
            match update {
                Some(layer) => {
                    if let Some(now) = state.layers.get_mut(&id) {
                        (now.levels, now.root, now.owned, now.here) =
                            (layer.levels, layer.root, layer.owned, layer.here);
                    }
                    state.saved.insert(id, layer);
                }
                None => drop(state.saved.remove(&id)),
            }
        }
        state.retired.put(std::mem::take(&mut state.frozen), self.maps.leaves);
        state.pages.settle();
        self.extent.into_iter().for_each(|extent| state.pages.extend(extent));
        if self.facts.clusters > state.geometry.clusters {
            state.geometry.clusters = self.facts.clusters;
            state.space.grow(self.facts.clusters);
        }
    }
}

/// Clusters for more pages, if they get scarce and there are some.
fn new_extent(state: &mut State) -> Option<Extent> {
    let pages = &state.pages;
    let scarce = pages.free() < state.pages_needed() + pages.total() / 4;
    if !scarce || pages.extents().len() == MAX_EXTENTS {
        return None;
    }
    let mut count = pages.extents()[0].count.min(PER_LEAF / 4);
    while count > 0 {
        if let Some(first) = state.space.allocate_run(count) {
            state.space.set_used(first, count);
            return Some(Extent { first, count });
        }
        count /= 2;
    }
    None
}
