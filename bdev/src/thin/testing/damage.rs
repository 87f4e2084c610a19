//! For each invariant at least one pool in which it, and nothing else, does not hold.

use super::image::{Built, Image, Start};
use super::story::{entry, free, layer, story};
use crate::thin::check::Flaw;
use crate::thin::format::{
    BLOCK, Entry, Extent, Kind, LAYER_LEN, Layer, LayerKind, LogHeader, PageHeader, PageId, Pointer, Record, SLOTS,
    slot_block,
};

/// A way to break a pool.
pub struct Damage {
    /// What it breaks.
    pub flaw: Flaw,
    /// How, in words.
    pub name: &'static str,
    break_it: fn() -> Built,
}

impl Damage {
    /// The pool, broken.
    #[must_use]
    pub fn build(&self) -> Built {
        (self.break_it)()
    }
}

/// A leaf of a layer's map.
#[must_use]
pub const fn leaf(layer: u64, index: u64) -> PageId {
    PageId { kind: Kind::Map, layer, level: 0, index }
}

const CATALOG: PageId = PageId { kind: Kind::Catalog, layer: 0, level: 0, index: 0 };
const PAGES: PageId = PageId { kind: Kind::Pages, layer: 0, level: 0, index: 0 };

/// The story, broken after it was written.
fn after(change: impl FnOnce(&mut Built)) -> Built {
    let mut built = story().build();
    change(&mut built);
    built
}

/// The story with something else in its description.
fn before(change: impl FnOnce(&mut Image)) -> Built {
    let mut image = story();
    change(&mut image);
    image.build()
}

/// The story with one more batch.
fn batch(records: &[Record]) -> Built {
    before(|image| image.log[1].batches.push(records.to_vec()))
}

/// The place of a superblock that is so much older than the one that counts.
fn older(built: &Built, by: u64) -> (u32, u64) {
    let generation = built.superblock.generation - by;
    let slot = (generation % u64::from(SLOTS)) as u32;
    (slot, slot_block(slot))
}

/// Damages bytes, so that the checksum does not fit.
fn tear(built: &mut Built, block: u64) {
    let mut bytes = built.memory.block(block);
    bytes[BLOCK - 1] ^= 0x55;
    built.memory.blocks.insert(block, bytes);
}

/// Writes a page as another one, or as another generation of itself.
fn disguise(built: &mut Built, id: PageId, change: impl FnOnce(&mut PageHeader)) {
    let (block, generation) = built.pages[&id];
    let mut header = PageHeader { id, generation, block, pool: built.superblock.pool };
    let mut page = crate::thin::format::Page::open(built.memory.block(block), &header).expect("a page of the story");
    change(&mut header);
    built.memory.blocks.insert(block, Box::new(*page.close(&header)));
}

macro_rules! damages {
    ($($flaw:ident, $name:literal, $break_it:expr;)+) => {
        /// All of them.
        #[must_use]
        pub fn damages() -> Vec<Damage> {
            vec![$(Damage { flaw: Flaw::$flaw, name: $name, break_it: || $break_it },)+]
        }
    };
}

damages! {
    SuperblockUnreadable, "a place is torn, not the next one", after(|it| {
        let (_, block) = older(it, 1);
        tear(it, block);
    });
    SuperblockUnreadable, "a place cannot be read", after(|it| {
        let (_, block) = older(it, 2);
        it.memory.bad.insert(block);
    });
    SuperblockUnreadable, "a place holds zeroes", after(|it| {
        let (_, block) = older(it, 2);
        it.memory.blocks.remove(&block);
    });
    SuperblockMisplaced, "an older one was not overwritten", after(|it| {
        let (slot, block) = older(it, 1);
        let mut one = it.superblock.clone();
        one.generation -= 5;
        it.memory.blocks.insert(block, one.close(slot));
    });
    SuperblockMisplaced, "one was written to another place", after(|it| {
        let (slot, block) = older(it, 2);
        it.memory.blocks.insert(block, it.superblock.close((slot + 1) % SLOTS));
    });
    SuperblockDiffers, "one says that the pool was made at another time", after(|it| {
        let (slot, block) = older(it, 2);
        let mut one = it.superblock.clone();
        (one.generation, one.created) = (one.generation - 2, 5);
        it.memory.blocks.insert(block, one.close(slot));
    });
    DeviceTooSmall, "the medium was cut", after(|it| it.memory.len -= 1);
    ExtentMisplaced, "metadata over the log", after(|it| {
        it.edit_superblock(|superblock| superblock.extents.push(Extent { first: 20, count: 1 }));
    });
    PageUnreadable, "a leaf", after(|it| _ = it.memory.bad.insert(it.pages[&leaf(3, 0)].0));
    PageUnreadable, "a page of the catalog", after(|it| _ = it.memory.bad.insert(it.pages[&CATALOG].0));
    PageChecksum, "a leaf", after(|it| tear(it, it.pages[&leaf(3, 0)].0));
    PageChecksum, "a page above leaves", after(|it| tear(it, it.pages[&PageId { level: 1, ..leaf(1, 0) }].0));
    PageChecksum, "the bitmap of clusters", after(|it| tear(it, it.superblock.space.1.block));
    PageChecksum, "the bitmap of pages", after(|it| tear(it, it.superblock.pages.1.block));
    PageMisplaced, "another number", after(|it| disguise(it, leaf(1, 1), |header| header.id.index = 2));
    PageMisplaced, "another place", after(|it| disguise(it, leaf(1, 1), |header| header.block += 1));
    PageStale, "an older one was not overwritten", after(|it| disguise(it, leaf(1, 1), |header| header.generation -= 1));
    PageGeneration, "a map that is newer than its pool", after(|it| {
        disguise(it, leaf(5, 0), |header| header.generation += 1);
        it.edit_layer(5, |layer| layer.root.generation += 1);
    });
    PageOutside, "a map among the data", after(|it| it.edit_layer(5, |layer| layer.root.block = 16 * 500));
    PageUsedTwice, "two volumes with one map", after(|it| {
        let root = it.pages[&leaf(4, 0)];
        it.edit_layer(5, |layer| layer.root.block = root.0);
    });
    PageLeaked, "a page is marked", before(|image| _ = image.wrong_pages.insert(200));
    PageNotMarked, "a page is not marked", before(|image| _ = image.wrong_pages.insert(0));
    TreeHeight, "a map of one level for three leaves", after(|it| it.edit_layer(1, |layer| layer.levels = 1));
    TreeHeight, "more levels than there are numbers", after(|it| it.edit_layer(1, |layer| layer.levels = 10));
    TreeHeight, "levels without a page", after(|it| it.edit_layer(18, |layer| layer.levels = 1));
    TreeBeyondEnd, "a page that there is not", after(|it| it.edit(PAGES, |page| page.set_bit(300, true)));
    TreeBeyondEnd, "a leaf behind the volume", after(|it| {
        let (block, generation) = it.pages[&leaf(1, 2)];
        it.edit(PageId { level: 1, ..leaf(1, 0) }, |page| page.set_pointer(3, Pointer { block, generation, free: 0 }));
    });
    FreeCount, "too many", after(|it| it.edit_superblock(|superblock| superblock.space.1.free += 1));
    FreeCount, "in a map", after(|it| it.edit_layer(1, |layer| layer.root.free = 1));
    LayerUnreadable, "of no kind", after(|it| it.edit(CATALOG, |page| page.payload_mut()[3 * LAYER_LEN + 32] = 9));
    LayerMisplaced, "in the place of another", after(|it| it.edit_layer(3, |layer| layer.id = 4));
    LayerNumber, "not given out yet", after(|it| it.edit_superblock(|superblock| superblock.next_layer = 19));
    LayerNumber, "given out again", batch(&[Record::Layer(Box::new(layer(16, LayerKind::Head, None, 1)))]);
    LayerName, "none", after(|it| it.edit_layer(5, |layer| layer.name.clear()));
    LayerNameTaken, "that of a snapshot", after(|it| it.edit_layer(5, |layer| layer.name = "layer-1".into()));
    LayerNameTaken, "by the log", batch(&[Record::Layer(Box::new(Layer { name: "layer-1".into(), ..layer(21, LayerKind::Head, None, 1) }))]);
    LayerUuid, "twice", after(|it| it.edit_layer(5, |layer| layer.uuid = uuid::Uuid::from_u128(1001)));
    LayerUuid, "none", after(|it| it.edit_layer(5, |layer| layer.uuid = uuid::Uuid::nil()));
    LayerParentMissing, "never there", after(|it| it.edit_layer(5, |layer| layer.parent = Some(9)));
    LayerParentMissing, "gone", batch(&[Record::Layer(Box::new(layer(21, LayerKind::Head, Some(16), 1)))]);
    LayerParentCycle, "a child as parent", after(|it| it.edit_layer(1, |layer| layer.parent = Some(2)));
    LayerParentCycle, "itself", after(|it| it.edit_layer(1, |layer| layer.parent = Some(1)));
    LayerChildren, "on a volume", after(|it| it.edit_layer(18, |layer| layer.parent = Some(3)));
    LayerChildren, "two on one that goes", after(|it| it.edit_layer(2, |layer| layer.kind = LayerKind::Going));
    LayerOrigin, "two", after(|it| it.edit_layer(19, |layer| layer.parent = Some(1)));
    LayerOrigin, "bytes of none", after(|it| it.edit_layer(5, |layer| layer.origin_bytes = 1 << 20));
    LayerOrigin, "a part of a sector", after(|it| it.edit_layer(19, |layer| layer.origin_bytes = 1000));
    LayerSees, "a part of a cluster", after(|it| it.edit_layer(2, |layer| layer.sees = Some(4096)));
    LayerSees, "of nothing", after(|it| it.edit_layer(1, |layer| layer.sees = Some(1 << 20)));
    LayerLimits, "more than its size", after(|it| it.edit_layer(5, |layer| layer.reserved = 301));
    LayerLimits, "more than it may own", after(|it| it.edit_layer(5, |layer| (layer.quota, layer.reserved) = (2, 3)));
    EntryInvalid, "the spare bit", after(|it| it.edit(leaf(3, 0), |page| page.payload_mut()[2 * 8 + 3] |= 0x80));
    EntryBeyondSize, "in the last leaf", after(|it| it.edit_entry(1, 1505, Entry::EMPTY.with_zero(1)));
    EntryBeyondSize, "by the log", batch(&[entry(4, 350, Entry::EMPTY.with_zero(1))]);
    EntryBeyondSize, "a volume that shrank", batch(&[Record::Layer(Box::new(layer(1, LayerKind::Snapshot, None, 1499)))]);
    EntryBeyondSize, "a leaf that is cut", batch(&[Record::Leaf { layer: 4, leaf: 0, entry: Entry::EMPTY.with_zero(1) }, free(201)]);
    ClusterOutside, "one of the log", after(|it| it.edit_entry(5, 9, Entry::on(5)));
    ClusterOutside, "one of the metadata", after(|it| it.edit_entry(5, 9, Entry::on(901)));
    ClusterOutside, "behind the end", after(|it| it.edit_entry(5, 9, Entry::on(1024)));
    ClusterOutside, "by the log", batch(&[entry(5, 9, Entry::on(5))]);
    ClusterOwnedTwice, "by two layers", after(|it| it.edit_entry(5, 9, Entry::on(104).with_here(1)));
    ClusterOwnedTwice, "by one layer", after(|it| it.edit_entry(5, 9, Entry::on(140)));
    ClusterLeaked, "nobody's", before(|image| _ = image.wrong_clusters.insert(300));
    ClusterNotMarked, "a volume's", before(|image| _ = image.wrong_clusters.insert(104));
    ClusterNotMarked, "of the metadata", before(|image| _ = image.wrong_clusters.insert(901));
    OwnedCount, "too many", after(|it| it.edit_layer(1, |layer| layer.owned += 1));
    HereCount, "too few", after(|it| it.edit_layer(1, |layer| layer.here -= 1));
    LogSpan, "the first start is too late", after(|it| it.edit_superblock(|superblock| superblock.spans[0].from += 1));
    LogSpan, "the last start is a ring away", after(|it| it.edit_superblock(|superblock| superblock.spans[1].from += 257));
    LogUnreadable, "in a batch", after(|it| _ = it.memory.bad.insert(it.batches[6]));
    LogUnreadable, "behind the end", after(|it| _ = it.memory.bad.insert(it.log_block(20)));
    LogGap, "before a later start", after(|it| tear(it, it.batches[1] + 1));
    LogGap, "before a later batch", after(|it| tear(it, it.batches[6]));
    LogNewer, "of a start that is not known", after(|it| {
        let block = it.log_block(25);
        let (seq, batch) = (it.log_end + 25, it.superblock.batch_from + 50);
        let pool = it.superblock.pool;
        let header = LogHeader { pool, salt: 99, seq, batch, index: 0, count: 1, durable: batch - 1 };
        it.memory.blocks.insert(block, header.close(&[]));
    });
    LogNewer, "a round later", after(|it| {
        let (pool, log_blocks) = (it.superblock.pool, it.superblock.geometry.log_blocks);
        let (seq, batch) = (it.log_end + 25 + log_blocks, it.superblock.batch_from + 500);
        let header = LogHeader { pool, salt: 12, seq, batch, index: 0, count: 1, durable: batch - 1 };
        it.memory.blocks.insert(it.log_block(25), header.close(&[]));
    });
    LogOrder, "a batch is left out", after(|it| it.edit_block(it.batches[7], |bytes| {
        bytes[32] += 1;
        bytes[48] += 1;
    }));
    LogOrder, "a block is of another batch", after(|it| it.edit_block(it.batches[1] + 1, |bytes| bytes[40] = 0));
    LogRecord, "of no kind", after(|it| it.edit_block(it.batches[7], |bytes| bytes[64] = 99));
    LogLayerUnknown, "an entry", batch(&[entry(16, 0, Entry::EMPTY)]);
    LogLayerUnknown, "gone twice", batch(&[Record::Gone(16)]);
    LogLayerMap, "clusters", batch(&[Record::Layer(Box::new(Layer { owned: 1, ..layer(21, LayerKind::Head, None, 1) }))]);
    LogFree, "nobody's", batch(&[free(300)]);
    LogFree, "of another", batch(&[entry(18, 3, Entry::EMPTY), Record::Free { first: 120, count: 2 }]);
    LogFree, "twice", batch(&[entry(18, 3, Entry::EMPTY), free(120), free(120)]);
    LogFree, "given away", batch(&[entry(18, 3, Entry::EMPTY), entry(18, 5, Entry::on(120)), free(120)]);
    LogLeak, "an entry", batch(&[entry(18, 3, Entry::EMPTY)]);
    LogLeak, "a leaf", batch(&[Record::Leaf { layer: 5, leaf: 0, entry: Entry::EMPTY }, free(140)]);
    LogClusterTaken, "from another layer", batch(&[entry(5, 9, Entry::on(104))]);
    LogClusterTaken, "from itself", batch(&[entry(5, 9, Entry::on(140))]);
    LogClusterTaken, "twice at once", batch(&[entry(5, 9, Entry::on(300)), entry(5, 10, Entry::on(300))]);
    LogGone, "with clusters", batch(&[Record::Gone(5)]);
}

/// Pools in which every invariant holds, beside the story itself.
#[must_use]
pub fn crashed() -> Vec<(&'static str, Built)> {
    vec![
        ("the story", story().build()),
        (
            "the next superblock is torn",
            after(|it| {
                let (_, block) = older(it, 3);
                tear(it, block);
            }),
        ),
        ("nothing was logged", before(|image| (image.log, image.torn) = (Vec::new(), Vec::new()))),
        (
            "the last start wrote nothing",
            before(|image| image.log.push(Start { salt: 13, jump: 0, batches: Vec::new() })),
        ),
        ("the last batch is torn", {
            let mut built = before(|image| image.torn.clear());
            let block = built.batches[7];
            tear(&mut built, block);
            built
        }),
        (
            "an older pool's log is behind the end",
            after(|it| {
                let block = it.log_block(30);
                it.memory.blocks.insert(block, it.memory.block(it.batches[7]));
                it.edit_block(block, |bytes| bytes[8] ^= 1);
            }),
        ),
        ("a young pool", {
            let mut image = Image::new(64 << 20, 64 << 10);
            image.superblock.generation = 1;
            image.build()
        }),
        ("a pool that was made a moment ago", {
            let mut image = Image::new(64 << 20, 64 << 10);
            image.superblock.generation = 2;
            let mut built = image.build();
            tear(&mut built, slot_block(0));
            built.memory.blocks.remove(&slot_block(3));
            built
        }),
        ("a start after a torn batch", {
            // What it left is of a start that is not known any more; its batch is too old to matter.
            let mut built = story().build();
            let (block, old) = (built.log_block(25), built.batches[0]);
            let seq = built.log_end + 25;
            built.memory.blocks.insert(block, built.memory.block(old));
            built.edit_block(block, |bytes| {
                bytes[16] = 99;
                bytes[24..32].copy_from_slice(&seq.to_le_bytes());
                bytes[32..40].copy_from_slice(&76u64.to_le_bytes());
                bytes[48..56].copy_from_slice(&75u64.to_le_bytes());
            });
            built
        }),
    ]
}

/// Pools that cannot be checked.
#[must_use]
pub fn foreign() -> Vec<(&'static str, Built)> {
    let all = |it: &mut Built, change: fn(&mut [u8; BLOCK])| {
        for slot in 0..SLOTS {
            it.edit_block(slot_block(slot), change);
        }
    };
    vec![
        ("zeroes", after(|it| it.memory.blocks.clear())),
        ("nothing", after(|it| it.memory.len = 0)),
        ("no superblock", after(|it| all(it, |bytes| bytes[0] = 0))),
        ("all superblocks torn", after(|it| (0..SLOTS).for_each(|slot| tear(it, slot_block(slot))))),
        ("all superblocks impossible", after(|it| all(it, |bytes| bytes[67] = 0xFF))),
        ("a later version in one place", after(|it| it.edit_block(slot_block(0), |bytes| bytes[24] = 2))),
        ("features of a later version", after(|it| all(it, |bytes| bytes[48] = 1))),
    ]
}
