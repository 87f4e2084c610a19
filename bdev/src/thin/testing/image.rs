//! A pool from a description: what the layers have at the last checkpoint, and what the log says since.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::Memory;
use super::tree::Plan;
use crate::thin::format::{
    BITS_PER_PAGE, BLOCK, ENTRIES_PER_PAGE, Entry, Extent, Geometry, Kind, LAYER_LEN, LAYERS_PER_PAGE, Layer,
    LogHeader, LogSpan, Page, PageHeader, PageId, Pointer, Record, Records, SLOTS, Superblock, batch_blocks, seal,
    slot_block,
};

/// Where the pages are: block and generation.
pub type Pages = HashMap<PageId, (u64, u64)>;

/// Batches that were written between one start and the next.
#[derive(Clone, Debug)]
pub struct Start {
    /// What its blocks carry.
    pub salt: u64,
    /// By how much the number of its first batch is higher than it has to be.
    pub jump: u64,
    /// What it wrote.
    pub batches: Vec<Vec<Record>>,
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its trees and spans are worked out.
    pub superblock: Superblock,
    /// The layers and their maps; what they own is worked out.
    pub layers: Vec<(Layer, BTreeMap<u64, Entry>)>,
    /// The log.
    pub log: Vec<Start>,
    /// A batch behind the log that is not whole: its last block but one is missing.
    pub torn: Vec<Record>,
    /// Clusters that are marked wrongly in the bitmap.
    pub wrong_clusters: BTreeSet<u64>,
    /// Pages that are marked wrongly.
    pub wrong_pages: BTreeSet<u64>,
}

/// A pool that was written.
#[derive(Clone)]
pub struct Built {
    /// On what.
    pub memory: Memory,
    /// Where its pages are.
    pub pages: Pages,
    /// The superblock that counts.
    pub superblock: Superblock,
    /// The first block of each batch in the log.
    pub batches: Vec<u64>,
    /// The number of the first block of the log behind all batches.
    pub log_end: u64,
}

impl Image {
    /// An empty pool.
    ///
    /// # Panics
    /// If there can be none of this geometry.
    #[must_use]
    pub fn new(bytes: u64, cluster_size: u32) -> Image {
        let geometry = Geometry::new(bytes, cluster_size).expect("the geometry of a test");
        let (first, count) = geometry.metadata;
        let superblock = Superblock {
            pool: Uuid::from_u128(0xA1),
            name: "pool".into(),
            created: 1_700_000_000,
            generation: 6,
            geometry,
            next_layer: 1,
            log_from: 0,
            batch_from: 1,
            spans: Vec::new(),
            overcommit: 0,
            catalog: (0, Pointer::NONE),
            space: (0, Pointer::NONE),
            pages: (0, Pointer::NONE),
            extents: vec![Extent { first, count }],
            thresholds: [0; 4],
            discard_rate: 0,
            unknown: (0, Vec::new()),
        };
        let (layers, log, torn) = (Vec::new(), Vec::new(), Vec::new());
        Image { superblock, layers, log, torn, wrong_clusters: BTreeSet::new(), wrong_pages: BTreeSet::new() }
    }

    /// Writes it.
    #[must_use]
    pub fn build(&self) -> Built {
        let mut superblock = self.superblock.clone();
        let bytes = u64::from(superblock.geometry.clusters) * u64::from(superblock.geometry.cluster_size);
        let mut memory = Memory { len: bytes / BLOCK as u64, ..Memory::default() };
        let mut pages = Pages::new();
        self.trees(&mut superblock, &mut memory, &mut pages);
        let (batches, log_end) = self.write_log(&mut superblock, &mut memory);
        let newest = superblock.generation;
        // Places that had no turn yet hold the first generation.
        for turn in newest + 1..=newest + u64::from(SLOTS) {
            let slot = (turn % u64::from(SLOTS)) as u32;
            let one = Superblock { generation: turn.saturating_sub(u64::from(SLOTS)).max(1), ..superblock.clone() };
            memory.blocks.insert(slot_block(slot), one.close(slot));
        }
        Built { memory, pages, superblock, batches, log_end }
    }

    fn plan<'a>(&self, kind: Kind, layer: u64, room: u64, free: &'a dyn Fn(u64, u64) -> u64) -> Plan<'a> {
        let Superblock { pool, generation, .. } = self.superblock;
        Plan { kind, layer, room, pool, generation, free }
    }

    fn trees(&self, superblock: &mut Superblock, memory: &mut Memory, pages: &mut Pages) {
        let generation = superblock.generation;
        let geometry = superblock.geometry;
        // Every third page is free, so that pages and their numbers are apart.
        let blocks = page_blocks(superblock);
        let mut free_pages = blocks.iter().copied().enumerate().filter(|(at, _)| at % 3 != 2).map(|(_, block)| block);
        let mut place = |pages: &mut Pages, ids: Vec<PageId>| {
            for id in ids {
                pages.insert(id, (free_pages.next().expect("the extents of a test are large enough"), generation));
            }
        };
        let none: &dyn Fn(u64, u64) -> u64 = &|_, _| 0;

        let mut catalog: BTreeMap<u64, Page> = BTreeMap::new();
        for (layer, entries) in &self.layers {
            let clusters = layer.size.div_ceil(u64::from(geometry.cluster_size));
            let plan = self.plan(Kind::Map, layer.id, clusters.div_ceil(ENTRIES_PER_PAGE as u64), none);
            let mut leaves: BTreeMap<u64, Page> = BTreeMap::new();
            for (at, entry) in entries {
                let per_leaf = ENTRIES_PER_PAGE as u64;
                leaves.entry(at / per_leaf).or_default().set_entry((at % per_leaf) as usize, *entry);
            }
            place(pages, plan.pages(leaves.keys().copied()));
            let (levels, root) = plan.write(leaves, pages, memory);
            let owned = entries.values().filter(|entry| entry.cluster().is_some()).count() as u64;
            let here = entries.values().map(|entry| u64::from(entry.here().count_ones())).sum();
            let layer = Layer { levels, root, owned, here, ..layer.clone() };
            let per_leaf = LAYERS_PER_PAGE as u64;
            let leaf = catalog.entry(layer.id / per_leaf).or_default().payload_mut();
            leaf[(layer.id % per_leaf) as usize * LAYER_LEN..][..LAYER_LEN].copy_from_slice(&layer.to_bytes());
        }
        let plan = self.plan(Kind::Catalog, 0, superblock.next_layer.div_ceil(LAYERS_PER_PAGE as u64), none);
        place(pages, plan.pages(catalog.keys().copied()));
        superblock.catalog = plan.write(catalog, pages, memory);

        let clusters = u64::from(geometry.clusters);
        let used: BTreeSet<u64> = self.used_clusters();
        let free = |first: u64, count: u64| {
            let (from, to) = (first * BITS_PER_PAGE as u64, ((first + count) * BITS_PER_PAGE as u64).min(clusters));
            to.saturating_sub(from) - used.range(from..to.max(from)).count() as u64
        };
        let plan = self.plan(Kind::Space, 0, clusters.div_ceil(BITS_PER_PAGE as u64), &free);
        let leaves = bitmap(&used);
        place(pages, plan.pages(leaves.keys().copied()));
        superblock.space = plan.write(leaves, pages, memory);

        let plan = self.plan(Kind::Pages, 0, (blocks.len() as u64).div_ceil(BITS_PER_PAGE as u64), none);
        place(pages, plan.pages(0..(blocks.len() as u64).div_ceil(BITS_PER_PAGE as u64)));
        let taken: BTreeSet<u64> = pages.values().map(|(block, _)| *block).collect();
        let numbers = blocks.iter().zip(0..).filter(|(block, _)| taken.contains(block)).map(|(_, number)| number);
        let used: BTreeSet<u64> =
            numbers.collect::<BTreeSet<_>>().symmetric_difference(&self.wrong_pages).copied().collect();
        superblock.pages = plan.write(bitmap(&used), pages, memory);
    }

    /// Clusters that cannot be allocated.
    fn used_clusters(&self) -> BTreeSet<u64> {
        let mut used: BTreeSet<u64> = (0..u64::from(self.superblock.geometry.first_free)).collect();
        for extent in &self.superblock.extents {
            used.extend((0..extent.count).map(|at| u64::from(extent.first + at)));
        }
        let entries = self.layers.iter().flat_map(|(_, entries)| entries.values());
        used.extend(entries.filter_map(|entry| entry.cluster()).map(u64::from));
        used.symmetric_difference(&self.wrong_clusters).copied().collect()
    }

    fn write_log(&self, superblock: &mut Superblock, memory: &mut Memory) -> (Vec<u64>, u64) {
        let (mut seq, mut batch, mut places) = (superblock.log_from, superblock.batch_from, Vec::new());
        let mut salt = 1;
        superblock.spans.clear();
        let header = |salt, seq, batch: u64| {
            let (pool, durable) = (superblock.pool, batch - 1);
            LogHeader { pool, salt, seq, batch, index: 0, count: 0, durable }
        };
        let geometry = superblock.geometry;
        for start in &self.log {
            (salt, batch) = (start.salt, batch + start.jump);
            superblock.spans.push(LogSpan { salt, from: seq });
            for records in &start.batches {
                places.push(geometry.log_block(seq));
                for bytes in batch_blocks(header(salt, seq, batch), &bytes_of(records)) {
                    memory.blocks.insert(geometry.log_block(seq), bytes);
                    seq += 1;
                }
                batch += 1;
            }
        }
        if superblock.spans.is_empty() {
            superblock.spans.push(LogSpan { salt, from: seq });
        }
        let end = seq;
        if !self.torn.is_empty() {
            let blocks: Vec<_> = batch_blocks(header(salt, seq, batch), &bytes_of(&self.torn)).collect();
            let missing = blocks.len().saturating_sub(2);
            for (at, bytes) in blocks.into_iter().enumerate().filter(|(at, _)| *at != missing) {
                memory.blocks.insert(geometry.log_block(seq + at as u64), bytes);
            }
        }
        (places, end)
    }
}

impl Built {
    /// Where the block of the log lies that is so many behind the last batch.
    #[must_use]
    pub fn log_block(&self, ahead: u64) -> u64 {
        self.superblock.geometry.log_block(self.log_end + ahead)
    }

    /// Changes a page; its header and its checksum fit afterwards.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn edit(&mut self, id: PageId, change: impl FnOnce(&mut Page)) {
        let (block, generation) = self.pages[&id];
        let header = PageHeader { id, generation, block, pool: self.superblock.pool };
        let mut page = Page::open(self.memory.block(block), &header).expect("a page of the image");
        change(&mut page);
        self.memory.blocks.insert(block, Box::new(*page.close(&header)));
    }

    /// Changes the bytes of a block; the checksum fits afterwards.
    pub fn edit_block(&mut self, block: u64, change: impl FnOnce(&mut [u8; BLOCK])) {
        let mut bytes = self.memory.block(block);
        change(&mut bytes);
        seal(&mut bytes);
        self.memory.blocks.insert(block, bytes);
    }

    /// Changes a layer of the catalog.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn edit_layer(&mut self, id: u64, change: impl FnOnce(&mut Layer)) {
        let leaf = PageId { kind: Kind::Catalog, layer: 0, level: 0, index: id / LAYERS_PER_PAGE as u64 };
        self.edit(leaf, |page| {
            let bytes = &mut page.payload_mut()[(id % LAYERS_PER_PAGE as u64) as usize * LAYER_LEN..][..LAYER_LEN];
            let bytes: &mut [u8; LAYER_LEN] = bytes.try_into().expect("the length of a layer");
            let mut layer = Layer::from_bytes(bytes).ok().flatten().expect("a layer of the image");
            change(&mut layer);
            *bytes = layer.to_bytes();
        });
    }

    /// Changes an entry of a leaf that exists, and the counters of its layer with it.
    ///
    /// # Panics
    /// If there is no such leaf.
    pub fn edit_entry(&mut self, layer: u64, cluster: u64, entry: Entry) {
        let per_leaf = ENTRIES_PER_PAGE as u64;
        let mut old = None;
        self.edit(PageId { kind: Kind::Map, layer, level: 0, index: cluster / per_leaf }, |page| {
            old = page.entry((cluster % per_leaf) as usize);
            page.set_entry((cluster % per_leaf) as usize, entry);
        });
        let old = old.unwrap_or(Entry::EMPTY);
        self.edit_layer(layer, |layer| {
            layer.owned = layer.owned + u64::from(entry.cluster().is_some()) - u64::from(old.cluster().is_some());
            layer.here = layer.here + u64::from(entry.here().count_ones()) - u64::from(old.here().count_ones());
        });
    }

    /// Changes the superblock that counts.
    pub fn edit_superblock(&mut self, change: impl FnOnce(&mut Superblock)) {
        change(&mut self.superblock);
        let slot = (self.superblock.generation % u64::from(SLOTS)) as u32;
        self.memory.blocks.insert(slot_block(slot), self.superblock.close(slot));
    }
}

/// Records as the log has them.
fn bytes_of(records: &[Record]) -> Vec<u8> {
    let mut all = Records::default();
    records.iter().for_each(|record| all.push(record));
    all.bytes().to_vec()
}

/// The blocks of all pages, by number.
fn page_blocks(superblock: &Superblock) -> Vec<u64> {
    let blocks = u64::from(superblock.geometry.cluster_size) / BLOCK as u64;
    let of = |extent: &Extent| u64::from(extent.first) * blocks..u64::from(extent.first + extent.count) * blocks;
    superblock.extents.iter().flat_map(of).collect()
}

fn bitmap(numbers: &BTreeSet<u64>) -> BTreeMap<u64, Page> {
    let mut leaves: BTreeMap<u64, Page> = BTreeMap::new();
    for number in numbers {
        let per_leaf = BITS_PER_PAGE as u64;
        leaves.entry(number / per_leaf).or_default().set_bit((number % per_leaf) as usize, true);
    }
    leaves
}
