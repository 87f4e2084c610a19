//! Writes what was rebuilt: trees to pages that nothing uses, a barrier, then the superblock. Until that is durable the
//! pool is what it was.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;

use super::super::bits::Bits;
use super::super::catalog::Layers;
use super::super::maps::DataArea;
use super::super::space::reserved;
use super::super::trees::{Trees, map_leaves};
use super::gather::Gathered;
use super::rebuild::{Leaf, Rebuilt};
use crate::thin::format::{
    BITS_PER_PAGE, BLOCK, Extent, Kind, LAYER_LEN, LAYERS_PER_PAGE, Layer, LogSpan, MAX_EXTENTS, POINTERS_PER_PAGE,
    Page, PageHeader, PageId, Pointer, Superblock, levels_for,
};

/// What is to be written.
pub(super) struct Plan {
    pub(super) superblock: Superblock,
    pub(super) pages: Vec<(PageHeader, Page)>,
}

/// Places for pages.
struct Places {
    trees: Trees,
    /// Not to be written.
    busy: Bits,
    next: u64,
}

impl Places {
    fn take(&mut self) -> Result<u64, String> {
        while self.next < self.trees.pages {
            let number = self.next;
            self.next += 1;
            if let Some(block) = self.trees.block(number).filter(|_| self.busy.set(number)) {
                return Ok(block);
            }
        }
        Err("there is no room for the pages of metadata that have to be written".into())
    }
}

/// Lays out the trees of the repaired pool. `log`: the first block and batch that were never used.
pub(super) fn plan(
    old: &Superblock,
    gathered: &Gathered,
    layers: &Layers,
    rebuilt: &mut Rebuilt,
    log: (u64, u64),
) -> Result<Plan, String> {
    let mut superblock = old.clone();
    superblock.generation = old.generation.checked_add(1).ok_or("its generation is the last one")?;
    superblock.next_layer = layers.last_key_value().map_or(1, |(id, _)| id.saturating_add(1)).max(old.next_layer);
    superblock.spans = vec![LogSpan { salt: uuid::Uuid::new_v4().as_u64_pair().0, from: log.0 }];
    (superblock.log_from, superblock.batch_from) = log;
    superblock.extents = extents(old);
    let needed = pages_needed(&superblock, layers, rebuilt);
    make_room(&mut superblock, gathered, &mut rebuilt.clusters, needed)?;
    let mut places = places(&superblock, gathered);
    let mut writer = Writer { superblock: &superblock, places: &mut places, pages: Vec::new(), kept: Vec::new() };
    let (catalog, space) = writer.trees(layers, rebuilt)?;
    let pages = writer.bitmap_of_pages()?;
    let pages_written = writer.pages;
    (superblock.catalog, superblock.space, superblock.pages) = (catalog, space, pages);
    Ok(Plan { superblock, pages: pages_written })
}

/// The extents that can stay.
pub(super) fn extents(old: &Superblock) -> Vec<Extent> {
    let all = old.extents.iter().enumerate();
    all.filter(|(at, it)| *at == 0 || it.first >= old.geometry.first_free).map(|(_, it)| *it).collect()
}

/// Pages that have to be written at most.
fn pages_needed(superblock: &Superblock, layers: &Layers, rebuilt: &Rebuilt) -> u64 {
    let new = rebuilt.leaves.values().filter(|leaf| matches!(leaf, Leaf::New(_))).count() as u64;
    let maps = layers.iter().map(|(id, layer)| {
        let leaves = rebuilt.leaves.range((*id, 0)..=(*id, u64::MAX)).map(|((_, leaf), _)| *leaf);
        above(leaves.collect(), levels_for(map_leaves(layer.size, &superblock.geometry)))
    });
    let tree = |leaves: Vec<u64>, room: u64| leaves.len() as u64 + above(leaves, levels_for(room));
    let per_leaf = LAYERS_PER_PAGE as u64;
    let mut catalog: Vec<u64> = layers.keys().map(|id| id / per_leaf).collect();
    catalog.dedup();
    let clusters = u64::from(superblock.geometry.clusters).div_ceil(BITS_PER_PAGE as u64);
    // There may be one more extent.
    let pages = Trees::new(superblock).pages.div_ceil(BITS_PER_PAGE as u64) + 1;
    new + maps.sum::<u64>()
        + tree(catalog, superblock.next_layer.div_ceil(per_leaf))
        + tree((0..clusters).collect(), clusters)
        + tree((0..pages).collect(), pages)
}

/// Pages above these leaves.
fn above(mut level: Vec<u64>, levels: u8) -> u64 {
    let mut pages = 0;
    for _ in 1..levels {
        level.iter_mut().for_each(|index| *index /= POINTERS_PER_PAGE as u64);
        level.dedup();
        pages += level.len() as u64;
    }
    pages
}

/// Pages that must not be written: those of the old trees, and those that hold what was found.
fn places(superblock: &Superblock, gathered: &Gathered) -> Places {
    let trees = Trees::new(superblock);
    let mut busy = Bits::default();
    for number in 0..gathered.trees.pages {
        let taken = gathered.trees.used.get(number);
        let block = gathered.trees.block(number).filter(|block| taken || gathered.dead.contains(block));
        if let Some(number) = block.and_then(|block| trees.number(block)) {
            busy.set(number);
        }
    }
    Places { trees, busy, next: 0 }
}

/// Takes clusters that nobody has if there are too few free pages.
fn make_room(superblock: &mut Superblock, gathered: &Gathered, owned: &mut Bits, needed: u64) -> Result<(), String> {
    let places = places(superblock, gathered);
    let free = places.trees.pages - places.busy.count().min(places.trees.pages);
    if free >= needed {
        return Ok(());
    }
    let per_cluster = u64::from(superblock.geometry.cluster_size) / BLOCK as u64;
    let count = (needed - free).div_ceil(per_cluster) as u32;
    let data = DataArea::new(superblock);
    let mut run = 0;
    for cluster in superblock.geometry.first_free..superblock.geometry.clusters {
        run = if data.contains(cluster) && !owned.get(u64::from(cluster)) { run + 1 } else { 0 };
        if run == count {
            if superblock.extents.len() == MAX_EXTENTS {
                return Err("there is no room for one more extent of metadata".into());
            }
            superblock.extents.push(Extent { first: cluster + 1 - count, count });
            return Ok(());
        }
    }
    Err(format!("there are no {count} free clusters next to each other for pages of metadata"))
}

struct Writer<'a> {
    superblock: &'a Superblock,
    places: &'a mut Places,
    pages: Vec<(PageHeader, Page)>,
    /// Blocks of pages that stay.
    kept: Vec<u64>,
}

type Root = (u8, Pointer);

impl Writer<'_> {
    /// The maps, the catalog and the tree of clusters.
    fn trees(&mut self, layers: &Layers, rebuilt: &mut Rebuilt) -> Result<(Root, Root), String> {
        let mut catalog: BTreeMap<u64, Page> = BTreeMap::new();
        for (id, layer) in layers {
            let mut pointers = BTreeMap::new();
            let leaves: Vec<u64> =
                rebuilt.leaves.range((*id, 0)..=(*id, u64::MAX)).map(|((_, leaf), _)| *leaf).collect();
            for index in leaves {
                let place = PageId { kind: Kind::Map, layer: *id, level: 0, index };
                let pointer = match rebuilt.leaves.remove(&(*id, index)) {
                    Some(Leaf::Keep(at)) => {
                        self.kept.push(at.block);
                        Pointer { block: at.block, generation: at.generation, free: 0 }
                    }
                    Some(Leaf::New(page)) => self.page(place, page, 0)?,
                    None => continue,
                };
                pointers.insert(index, pointer);
            }
            let room = map_leaves(layer.size, &self.superblock.geometry);
            let (levels, root) = self.index(Kind::Map, *id, levels_for(room), pointers, &|_, _| 0)?;
            let totals = rebuilt.totals.get(id).copied().unwrap_or_default();
            let layer = Layer { levels, root, owned: totals.owned, here: totals.here, ..layer.clone() };
            let per_leaf = LAYERS_PER_PAGE as u64;
            let leaf = catalog.entry(id / per_leaf).or_default().payload_mut();
            leaf[(id % per_leaf) as usize * LAYER_LEN..][..LAYER_LEN].copy_from_slice(&layer.to_bytes());
        }
        let room = self.superblock.next_layer.div_ceil(LAYERS_PER_PAGE as u64);
        let catalog = self.tree(Kind::Catalog, levels_for(room), catalog, &|_, _| 0)?;
        let clusters = u64::from(self.superblock.geometry.clusters);
        let mut used = std::mem::take(&mut rebuilt.clusters);
        for (from, to) in reserved(self.superblock) {
            (from..to).for_each(|cluster| _ = used.set(cluster));
        }
        let leaves = bitmap(&used, clusters);
        let counts: BTreeMap<u64, u64> = leaves.iter().map(|(index, page)| (*index, ones(page))).collect();
        let free = |first: u64, count: u64| {
            let (from, to) =
                (first * BITS_PER_PAGE as u64, (first + count).saturating_mul(BITS_PER_PAGE as u64).min(clusters));
            to.saturating_sub(from) - counts.range(first..first + count).map(|(_, ones)| ones).sum::<u64>()
        };
        let room = clusters.div_ceil(BITS_PER_PAGE as u64);
        let space = self.tree(Kind::Space, levels_for(room), leaves, &free)?;
        Ok((catalog, space))
    }

    /// The tree of pages, which has its own pages in it.
    fn bitmap_of_pages(&mut self) -> Result<Root, String> {
        let room = self.places.trees.pages.div_ceil(BITS_PER_PAGE as u64);
        let first = self.pages.len();
        let empty: BTreeMap<u64, Page> = (0..room).map(|index| (index, Page::default())).collect();
        let root = self.tree(Kind::Pages, levels_for(room), empty, &|_, _| 0)?;
        let mut used = Bits::default();
        let blocks = self.pages.iter().map(|(header, _)| header.block).chain(self.kept.iter().copied());
        blocks.filter_map(|block| self.places.trees.number(block)).for_each(|number| _ = used.set(number));
        let mut leaves = bitmap(&used, self.places.trees.pages);
        for (header, page) in &mut self.pages[first..] {
            if let Some(leaf) = leaves.remove(&header.id.index).filter(|_| header.id.level == 0) {
                *page = leaf;
            }
        }
        Ok(root)
    }

    fn page(&mut self, id: PageId, page: Page, free: u64) -> Result<Pointer, String> {
        let (block, generation) = (self.places.take()?, self.superblock.generation);
        let free = free.min(u64::from(u16::MAX)) as u16;
        self.pages.push((PageHeader { id, generation, block, pool: self.superblock.pool }, page));
        Ok(Pointer { block, generation, free })
    }

    /// A tree of the pool itself.
    fn tree(
        &mut self,
        kind: Kind,
        levels: u8,
        leaves: BTreeMap<u64, Page>,
        free: &dyn Fn(u64, u64) -> u64,
    ) -> Result<Root, String> {
        let mut pointers = BTreeMap::new();
        for (index, page) in leaves {
            let id = PageId { kind, layer: 0, level: 0, index };
            pointers.insert(index, self.page(id, page, free(index, 1))?);
        }
        self.index(kind, 0, levels, pointers, free)
    }

    /// The pages above leaves.
    fn index(
        &mut self,
        kind: Kind,
        layer: u64,
        levels: u8,
        mut pointers: BTreeMap<u64, Pointer>,
        free: &dyn Fn(u64, u64) -> u64,
    ) -> Result<Root, String> {
        if pointers.is_empty() {
            return Ok((0, Pointer::NONE));
        }
        let fan = POINTERS_PER_PAGE as u64;
        for level in 1..levels {
            let mut pages: BTreeMap<u64, Page> = BTreeMap::new();
            for (index, pointer) in pointers {
                let page = match pages.entry(index / fan) {
                    MapEntry::Vacant(new) => new.insert(Page::default()),
                    MapEntry::Occupied(page) => page.into_mut(),
                };
                page.set_pointer((index % fan) as usize, pointer);
            }
            pointers = BTreeMap::new();
            let span = fan.saturating_pow(u32::from(level));
            for (index, page) in pages {
                let id = PageId { kind, layer, level, index };
                let below = free(index.saturating_mul(span), span);
                pointers.insert(index, self.page(id, page, below)?);
            }
        }
        let root = pointers.get(&0).copied().ok_or("a map has leaves behind its end")?;
        Ok((levels, root))
    }
}

fn ones(page: &Page) -> u64 {
    page.payload().iter().map(|byte| u64::from(byte.count_ones())).sum()
}

/// Leaves of a bitmap of so many bits.
fn bitmap(bits: &Bits, end: u64) -> BTreeMap<u64, Page> {
    let words = BITS_PER_PAGE as u64 / 64;
    let mut leaves = BTreeMap::new();
    for index in 0..end.div_ceil(BITS_PER_PAGE as u64) {
        if bits.any_in(index * BITS_PER_PAGE as u64, (index + 1) * BITS_PER_PAGE as u64).is_none() {
            continue;
        }
        let mut page = Page::default();
        let (bytes, _) = page.payload_mut().as_chunks_mut::<8>();
        bytes.iter_mut().zip(index * words..).for_each(|(bytes, at)| *bytes = bits.word(at).to_le_bytes());
        leaves.insert(index, page);
    }
    leaves
}
