//! What is still there: the trees as far as their pages can be read, and leaves that no tree leads to any more, found by
//! what they say of themselves.
//!
//! A leaf that was found so counts only below a page that was lost, and only if the bitmap of pages has it: then it is the
//! one that was meant. Without that bitmap the newest one is taken.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::super::bits::Bits;
use super::super::catalog::{Layers, MOST_LAYERS, catalog_tree, map_tree};
use super::super::medium::Medium;
use super::super::report::Findings;
use super::super::space::{pages_tree, space_tree};
use super::super::trees::{Seen, Trees};
use crate::thin::format::{
    BITS_PER_PAGE, ENTRIES_PER_PAGE, Kind, LAYER_LEN, LAYERS_PER_PAGE, Layer, LayerKind, Page, PageHeader, PageId,
    Pointer, Superblock,
};

/// Where a leaf lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) block: u64,
    pub(super) generation: u64,
    /// No tree leads to it any more.
    pub(super) found: bool,
}

/// Leaves that cannot be known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missing {
    pub(super) layer: u64,
    pub(super) first: u64,
    pub(super) count: u64,
    level: u8,
    block: u64,
}

/// See the module's description.
pub(super) struct Gathered {
    pub(super) trees: Trees,
    pub(super) layers: Layers,
    pub(super) leaves: BTreeMap<(u64, u64), Place>,
    pub(super) missing: Vec<Missing>,
    /// Layers of which only the map is left.
    pub(super) nameless: BTreeSet<u64>,
    /// Places of layers that cannot be read, and nothing of them is left.
    pub(super) unreadable: BTreeSet<u64>,
    /// Blocks of pages in use that hold nothing that can be read.
    pub(super) dead: BTreeSet<u64>,
    /// The bitmap of pages, if it is whole.
    marked: Option<Bits>,
}

/// Pages that say what they are, the newest one of each.
type Scanned = HashMap<PageId, (u64, u64)>;

/// Gathers what there is.
pub(super) fn gather(superblock: &Superblock, medium: &mut Medium) -> Gathered {
    let mut trees = Trees::new(superblock);
    let marked = marked_pages(&mut trees, medium, superblock);
    let mut all = Gathered {
        trees,
        layers: Layers::new(),
        leaves: BTreeMap::new(),
        missing: Vec::new(),
        nameless: BTreeSet::new(),
        unreadable: BTreeSet::new(),
        dead: BTreeSet::new(),
        marked,
    };
    let tree = space_tree(superblock);
    let mut space = Vec::new();
    all.trees.walk(medium, &mut Findings::default(), &tree, &mut |_, seen| {
        if let Seen::Lost { block, .. } = seen {
            space.push(*block);
        }
        0
    });
    let lost = all.catalog(superblock, medium);
    let known: Vec<u64> = all.layers.keys().copied().collect();
    for id in known {
        all.map(superblock, medium, id);
    }
    if all.trees.lost || !all.unreadable.is_empty() {
        let scanned = all.scan(superblock, medium);
        // The tree of clusters is made anew, whatever it had.
        space.iter().for_each(|block| _ = all.dead.remove(block));
        all.find_layers(superblock, medium, &lost, &scanned);
        all.find_leaves(&scanned);
    }
    all
}

/// The bitmap of pages, if all of it can be read.
fn marked_pages(trees: &mut Trees, medium: &mut Medium, superblock: &Superblock) -> Option<Bits> {
    let (tree, mut marked) = (pages_tree(superblock, trees.pages), Bits::default());
    let whole = trees.walk(medium, &mut Findings::default(), &tree, &mut |_, seen| {
        if let Seen::Leaf { index, page, .. } = seen {
            for at in (0..BITS_PER_PAGE).filter(|at| page.bit(*at)) {
                marked.set(index * BITS_PER_PAGE as u64 + at as u64);
            }
        }
        0
    });
    whole.then_some(marked)
}

impl Gathered {
    /// Reads the catalog; answers which of its leaves are lost.
    fn catalog(&mut self, superblock: &Superblock, medium: &mut Medium) -> Vec<Missing> {
        let (mut lost, mut pages) = (Vec::new(), Vec::new());
        self.trees.walk(medium, &mut Findings::default(), &catalog_tree(superblock), &mut |_, seen| {
            match seen {
                Seen::Leaf { index, page, .. } => pages.push((*index, Page::clone(page))),
                Seen::Lost { first, count, level, block } => {
                    lost.push(Missing { layer: 0, first: *first, count: *count, level: *level, block: *block });
                }
                Seen::Hole { .. } => {}
            }
            0
        });
        pages.iter().for_each(|(index, page)| self.take_layers(*index, page));
        lost
    }

    fn take_layers(&mut self, index: u64, page: &Page) {
        let (places, _) = page.payload().as_chunks::<LAYER_LEN>();
        for (bytes, place) in places.iter().zip(index * LAYERS_PER_PAGE as u64..) {
            match Layer::from_bytes(bytes) {
                Ok(None) => {}
                Ok(Some(layer)) if layer.id == place => _ = self.layers.insert(place, layer),
                _ => _ = self.unreadable.insert(place),
            }
        }
    }

    /// Walks the map of a layer.
    fn map(&mut self, superblock: &Superblock, medium: &mut Medium, id: u64) {
        let tree = map_tree(&self.layers[&id], &superblock.geometry, superblock.generation);
        let Gathered { trees, leaves, missing, .. } = self;
        trees.walk(medium, &mut Findings::default(), &tree, &mut |_, seen| {
            match *seen {
                Seen::Leaf { index, block, generation, .. } => {
                    leaves.insert((id, index), Place { block, generation, found: false });
                }
                Seen::Lost { first, count, level, block } if count > 0 => {
                    missing.push(Missing { layer: id, first, count, level, block });
                }
                _ => {}
            }
            0
        });
    }

    /// Reads the pages that no tree has.
    fn scan(&mut self, superblock: &Superblock, medium: &mut Medium) -> Scanned {
        let mut scanned = Scanned::new();
        for number in 0..self.trees.pages {
            let stale = self.marked.as_ref().is_some_and(|marked| !marked.get(number));
            let Some(block) = self.trees.block(number).filter(|_| !stale && !self.trees.used.get(number)) else {
                continue;
            };
            // A medium that was cut has nothing behind its end.
            if block >= medium.len() {
                break;
            }
            let header = medium.read(block).ok().and_then(|bytes| PageHeader::of(&bytes));
            let ours = |header: &PageHeader| {
                header.block == block && header.pool == superblock.pool && header.generation <= superblock.generation
            };
            let Some(PageHeader { id, generation, .. }) = header.filter(ours) else {
                if self.marked.is_some() {
                    self.dead.insert(block);
                }
                continue;
            };
            let newest = scanned.entry(id).or_insert((generation, block));
            *newest = (*newest).max((generation, block));
        }
        scanned
    }

    /// Layers in leaves of the catalog that no tree leads to, and those of which only the map is left.
    fn find_layers(&mut self, superblock: &Superblock, medium: &mut Medium, lost: &[Missing], scanned: &Scanned) {
        let hidden = |leaf: u64| lost.iter().any(|lost| (lost.first..lost.first + lost.count).contains(&leaf));
        let mut found = BTreeSet::new();
        for (id, (generation, block)) in scanned.iter().filter(|(id, _)| id.kind == Kind::Catalog && id.level == 0) {
            let header = PageHeader { id: *id, generation: *generation, block: *block, pool: superblock.pool };
            let page = medium.read(*block).ok().and_then(|bytes| Page::open(bytes, &header).ok());
            let refused = lost.iter().any(|lost| lost.block == *block);
            if let Some(page) = page.filter(|_| hidden(id.index) && !refused) {
                let before: BTreeSet<u64> = self.layers.keys().copied().collect();
                self.take_layers(id.index, &page);
                found.insert(id.index);
                let new: Vec<u64> = self.layers.keys().copied().filter(|id| !before.contains(id)).collect();
                new.iter().for_each(|id| self.map(superblock, medium, *id));
            }
        }
        let per_leaf = LAYERS_PER_PAGE as u64;
        let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
        for id in scanned.keys().filter(|id| id.kind == Kind::Map && id.level == 0 && id.layer > 0) {
            let leaf = id.layer / per_leaf;
            let gone = self.unreadable.contains(&id.layer) || hidden(leaf) && !found.contains(&leaf);
            if gone && id.layer < superblock.next_layer.min(MOST_LAYERS) && !self.layers.contains_key(&id.layer) {
                let end = ends.entry(id.layer).or_default();
                *end = (*end).max(id.index + 1);
            }
        }
        for (id, leaves) in ends {
            let size = leaves.saturating_mul(ENTRIES_PER_PAGE as u64);
            let size = size.saturating_mul(u64::from(superblock.geometry.cluster_size));
            self.layers.insert(id, nameless(superblock.pool, id, size));
            self.nameless.insert(id);
            self.unreadable.remove(&id);
            self.missing.push(Missing { layer: id, first: 0, count: leaves, level: 1, block: 0 });
        }
        // Whole leaves of the catalog that are gone.
        for leaf in lost.iter().flat_map(|lost| lost.first..lost.first + lost.count.min(1 << 16)) {
            if !found.contains(&leaf) {
                let ids = (leaf * per_leaf).max(1)..(leaf + 1).saturating_mul(per_leaf).min(superblock.next_layer);
                self.unreadable.extend(ids.filter(|id| !self.layers.contains_key(id)));
            }
        }
        let tops = lost.iter().map(|lost| lost.block);
        tops.for_each(|block| _ = self.dead.remove(&block));
    }

    /// Leaves of maps below pages that are lost.
    fn find_leaves(&mut self, scanned: &Scanned) {
        for missing in &self.missing {
            let pages = scanned.iter().filter(|(id, _)| {
                let inside = id.index >= missing.first && id.index - missing.first < missing.count;
                // Without the bitmap an older one might be taken for a leaf that is lost itself.
                let meant = missing.level > 0 || self.marked.is_some();
                id.kind == Kind::Map && id.level == 0 && id.layer == missing.layer && inside && meant
            });
            for (id, (generation, block)) in pages.filter(|(_, (_, block))| *block != missing.block) {
                let place = Place { block: *block, generation: *generation, found: true };
                self.leaves.entry((id.layer, id.index)).or_insert(place);
                if let Some(number) = self.trees.number(*block) {
                    self.trees.used.set(number);
                }
            }
        }
        let above: Vec<u64> = self.missing.iter().filter(|missing| missing.level > 0).map(|it| it.block).collect();
        let mut dead = self.dead.clone();
        above.iter().for_each(|block| _ = dead.remove(block));
        self.missing.iter().for_each(|missing| _ = dead.remove(&missing.block));
        // Every page that was in use is accounted for: what no leaf was found of was empty.
        if self.marked.is_some() && dead.is_empty() {
            self.missing.retain(|missing| missing.level == 0);
        }
    }

    /// The parts of a lost range of which no leaf was found.
    pub(super) fn holes(&self, missing: &Missing) -> Vec<(u64, u64)> {
        let (mut from, end, mut holes) = (missing.first, missing.first.saturating_add(missing.count), Vec::new());
        for ((_, leaf), _) in self.leaves.range((missing.layer, from)..(missing.layer, end)) {
            if *leaf > from {
                holes.push((from, *leaf));
            }
            from = leaf + 1;
        }
        if from < end {
            holes.push((from, end));
        }
        holes
    }
}

/// A layer of which only the map is left.
fn nameless(pool: Uuid, id: u64, size: u64) -> Layer {
    Layer {
        id,
        parent: None,
        uuid: Uuid::new_v5(&pool, &id.to_le_bytes()),
        kind: LayerKind::Head,
        name: format!("recovered-{id}"),
        size,
        levels: 0,
        root: Pointer::NONE,
        owned: 0,
        here: 0,
        quota: 0,
        reserved: 0,
        created: 0,
        origin: None,
        origin_bytes: 0,
        sees: None,
        warn_percent: 0,
    }
}
