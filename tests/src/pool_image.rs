//! Images of large pools whose volumes are mapped from end to end, written in one go: a pool of 8 TiB takes seconds and
//! about a gigabyte, because nothing is stored but what describes it. Its data are holes.
//!
//! Pages are written one after the other into the first extent, leaves before what points to them, clusters are given out
//! in order. Nothing of the pool's own code is used but the definitions of the format; `pollux pool check` has to find the
//! result clean.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pollux_bdev::thin::format::{
    BITS_PER_PAGE, BLOCK, ENTRIES_PER_PAGE, Entry, Extent, Geometry, Kind, LAYER_LEN, LAYERS_PER_PAGE, Layer,
    LayerKind, LogSpan, POINTERS_PER_PAGE, Page, PageHeader, PageId, Pointer, SLOTS, Superblock, levels_for,
    slot_block,
};
use uuid::Uuid;

/// Any generation that leaves room for one in each place before it.
const GENERATION: u64 = 6;
/// Blocks that are zeroed at once.
const ZEROES: usize = 256;

/// A pool to be written.
#[derive(Clone, Debug)]
pub struct PoolImage {
    /// Its name.
    pub name: String,
    /// Bytes of a cluster.
    pub cluster_size: u32,
    /// Volumes, all mapped.
    pub volumes: u64,
    /// Bytes of each, in whole clusters.
    pub volume_bytes: u64,
    /// Bytes of the base beyond what the volumes take, for what is written later; metadata come out of it.
    pub spare_bytes: u64,
}

impl PoolImage {
    /// Writes it; the file must not exist.
    ///
    /// # Errors
    /// If it cannot be, or makes no sense.
    pub fn write(&self, path: &Path) -> Result<Superblock> {
        let cluster = u64::from(self.cluster_size);
        ensure!(self.volume_bytes.is_multiple_of(cluster), "volumes have whole clusters of {cluster} bytes");
        let bytes = self.volumes * self.volume_bytes + self.spare_bytes;
        let geometry = Geometry::new(bytes, self.cluster_size)?;
        let taken = u64::from(geometry.first_free) + self.volumes * (self.volume_bytes / cluster);
        ensure!(taken <= u64::from(geometry.clusters), "the volumes do not fit: more spare bytes are needed");
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        file.set_len(bytes)?;
        zero_log(&file, &geometry)?;
        let superblock = Writer::new(&file, geometry)?.write(self)?;
        for turn in GENERATION + 1..=GENERATION + u64::from(SLOTS) {
            let slot = (turn % u64::from(SLOTS)) as u32;
            let one = Superblock { generation: turn - u64::from(SLOTS), ..superblock.clone() };
            file.write_all_at(&*one.close(slot), slot_block(slot) * BLOCK as u64)?;
        }
        file.sync_all()?;
        Ok(superblock)
    }

    /// The UUID of a volume, counted from 0; its name is `v` and the number.
    #[must_use]
    pub const fn uuid(volume: u64) -> Uuid {
        Uuid::from_u128(0xB000 + volume as u128)
    }
}

/// The log is written in full, as by who makes a pool, so that later writes find their places.
fn zero_log(file: &File, geometry: &Geometry) -> Result<()> {
    let zeroes = vec![0; ZEROES * BLOCK];
    for at in (0..geometry.log_blocks).step_by(ZEROES) {
        let blocks = (geometry.log_blocks - at).min(ZEROES as u64) as usize;
        file.write_all_at(&zeroes[..blocks * BLOCK], (geometry.log_start + at) * BLOCK as u64)?;
    }
    Ok(())
}

struct Writer<'a> {
    out: BufWriter<&'a File>,
    geometry: Geometry,
    pool: Uuid,
    /// The block of page 0, how many there are, and how many are written.
    first: u64,
    room: u64,
    pages: u64,
}

/// What a tree is of, and for how many leaves it has room.
#[derive(Clone, Copy)]
struct Tree {
    kind: Kind,
    layer: u64,
    room: u64,
}

/// The leaves of a tree, from 0 on, and what is free below each if that counts.
type Leaves<'a> = &'a mut dyn Iterator<Item = (Page, u64)>;

impl<'a> Writer<'a> {
    fn new(file: &'a File, geometry: Geometry) -> Result<Writer<'a>> {
        let per_cluster = u64::from(geometry.cluster_size) / BLOCK as u64;
        let (first, count) = geometry.metadata;
        let (first, room) = (u64::from(first) * per_cluster, u64::from(count) * per_cluster);
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.seek(SeekFrom::Start(first * BLOCK as u64))?;
        Ok(Writer { out, geometry, pool: Uuid::new_v4(), first, room, pages: 0 })
    }

    fn write(mut self, image: &PoolImage) -> Result<Superblock> {
        let geometry = self.geometry;
        let clusters = image.volume_bytes / u64::from(geometry.cluster_size);
        let mut layers = Vec::new();
        for volume in 0..image.volumes {
            let first = u64::from(geometry.first_free) + volume * clusters;
            layers.push(self.volume(image, volume, first, clusters)?);
        }
        let mut catalog = catalog(&layers).into_iter().map(|page| (page, 0));
        let room = (image.volumes + 1).div_ceil(LAYERS_PER_PAGE as u64);
        let catalog = self.tree(Tree { kind: Kind::Catalog, layer: 0, room }, &mut catalog)?;
        let space = self.bits(
            Kind::Space,
            u64::from(geometry.clusters),
            u64::from(geometry.first_free) + clusters * image.volumes,
        )?;
        let used = self.pages + self.pages_of_pages();
        let pages = self.bits(Kind::Pages, self.room, used)?;
        ensure!(self.pages == used, "{} pages were written instead of {used}", self.pages);
        self.out.flush()?;
        let (first, count) = geometry.metadata;
        Ok(Superblock {
            pool: self.pool,
            name: image.name.clone(),
            created: 1_700_000_000,
            generation: GENERATION,
            geometry,
            next_layer: image.volumes + 1,
            log_from: 0,
            batch_from: 1,
            spans: vec![LogSpan { salt: 1, from: 0 }],
            overcommit: 0,
            discard_rate: 0,
            catalog,
            space,
            pages,
            extents: vec![Extent { first, count }],
            thresholds: Default::default(),
            unknown: Default::default(),
        })
    }

    /// The map of a volume on clusters from `first` on.
    fn volume(&mut self, image: &PoolImage, volume: u64, first: u64, clusters: u64) -> Result<Layer> {
        let per_leaf = ENTRIES_PER_PAGE as u64;
        let room = clusters.div_ceil(per_leaf);
        let mut leaves = (0..room).map(|leaf| {
            let mut page = Page::default();
            for (at, cluster) in (leaf * per_leaf..clusters.min((leaf + 1) * per_leaf)).enumerate() {
                page.set_entry(at, Entry::on((first + cluster) as u32).with_here(u16::MAX));
            }
            (page, 0)
        });
        let (levels, root) = self.tree(Tree { kind: Kind::Map, layer: volume + 1, room }, &mut leaves)?;
        Ok(Layer {
            id: volume + 1,
            parent: None,
            uuid: PoolImage::uuid(volume),
            kind: LayerKind::Head,
            name: format!("v{volume}"),
            size: image.volume_bytes,
            levels,
            root,
            owned: clusters,
            here: clusters * 16,
            quota: 0,
            reserved: 0,
            created: 1_700_000_000,
            origin: None,
            origin_bytes: 0,
            sees: None,
            warn_percent: 0,
        })
    }

    /// A bitmap of `count` of which the first `used` are set.
    fn bits(&mut self, kind: Kind, count: u64, used: u64) -> Result<(u8, Pointer)> {
        let per_leaf = BITS_PER_PAGE as u64;
        let mut leaves = (0..used.div_ceil(per_leaf)).map(|leaf| {
            let mut page = Page::default();
            let set = (used - leaf * per_leaf).min(per_leaf);
            (0..set as usize).for_each(|bit| page.set_bit(bit, true));
            let free = if kind == Kind::Space { (count - leaf * per_leaf).min(per_leaf) - set } else { 0 };
            (page, free)
        });
        self.tree(Tree { kind, layer: 0, room: count.div_ceil(per_leaf) }, &mut leaves)
    }

    /// How many pages the tree of pages takes that has its own pages in it.
    fn pages_of_pages(&self) -> u64 {
        let levels = levels_for(self.room.div_ceil(BITS_PER_PAGE as u64));
        let mut own = 0;
        loop {
            let mut level = (self.pages + own).div_ceil(BITS_PER_PAGE as u64);
            let mut all = level;
            for _ in 1..levels {
                level = level.div_ceil(POINTERS_PER_PAGE as u64);
                all += level;
            }
            if all == own {
                return own;
            }
            own = all;
        }
    }

    /// A tree from its leaves up. Its levels and its top page.
    fn tree(&mut self, tree: Tree, leaves: Leaves<'_>) -> Result<(u8, Pointer)> {
        let levels = levels_for(tree.room);
        let mut below = Vec::new();
        for (page, free) in leaves {
            below.push((self.page(tree, 0, below.len() as u64, page)?, free));
        }
        for level in 1..levels {
            let mut above = Vec::new();
            for (index, group) in (0..).zip(below.chunks(POINTERS_PER_PAGE)) {
                let mut page = Page::default();
                for (at, (block, free)) in group.iter().enumerate() {
                    page.set_pointer(at, pointer(*block, *free));
                }
                let missing = if tree.kind == Kind::Space { self.free_behind(level, index, group.len()) } else { 0 };
                let free = group.iter().map(|(_, free)| free).sum::<u64>() + missing;
                above.push((self.page(tree, level, index, page)?, free));
            }
            below = above;
        }
        ensure!(below.len() <= 1, "a tree of {levels} levels has {} top pages", below.len());
        Ok(below.first().map_or((0, Pointer::NONE), |(block, free)| (levels, pointer(*block, *free))))
    }

    /// Free clusters below a page whose pages are not there: all of them.
    fn free_behind(&self, level: u8, index: u64, there: usize) -> u64 {
        let clusters = u64::from(self.geometry.clusters);
        let below = BITS_PER_PAGE as u64 * (POINTERS_PER_PAGE as u64).pow(u32::from(level) - 1);
        let first = (index * POINTERS_PER_PAGE as u64 + there as u64) * below;
        let end = ((index + 1) * POINTERS_PER_PAGE as u64 * below).min(clusters);
        end.saturating_sub(first)
    }

    /// Writes a page behind the last one; its block.
    fn page(&mut self, tree: Tree, level: u8, index: u64, mut page: Page) -> Result<u64> {
        ensure!(self.pages < self.room, "the metadata do not fit into the first extent");
        let block = self.first + self.pages;
        let id = PageId { kind: tree.kind, layer: tree.layer, level, index };
        self.out.write_all(page.close(&PageHeader { id, generation: GENERATION, block, pool: self.pool }))?;
        self.pages += 1;
        Ok(block)
    }
}

fn pointer(block: u64, free: u64) -> Pointer {
    Pointer { block, generation: GENERATION, free: free.min(u64::from(u16::MAX)) as u16 }
}

/// The leaves of the catalog: layers lie by their numbers, which begin at 1.
fn catalog(layers: &[Layer]) -> Vec<Page> {
    let mut pages = vec![Page::default(); (layers.len() + 1).div_ceil(LAYERS_PER_PAGE)];
    for layer in layers {
        let id = layer.id as usize;
        let page = pages[id / LAYERS_PER_PAGE].payload_mut();
        page[id % LAYERS_PER_PAGE * LAYER_LEN..][..LAYER_LEN].copy_from_slice(&layer.to_bytes());
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_bdev::thin::check::{FileBlocks, check};

    fn image(cluster_size: u32, volumes: u64, volume_bytes: u64, spare_bytes: u64) -> PoolImage {
        PoolImage { name: "large".into(), cluster_size, volumes, volume_bytes, spare_bytes }
    }

    #[test]
    fn the_checker_finds_them_clean() {
        let folder = tempfile::tempdir().unwrap();
        // One leaf; three levels of a map and two pages of layers; bitmaps with and without pages missing at the end.
        let cases = [
            (64 << 10, 1, 1 << 20, 512 << 20),
            (64 << 10, 15, 9 << 30, 4 << 30),
            (4 << 20, 2, 4 << 40, 1 << 40),
            (64 << 10, 1, 63 << 30, 1 << 30),
        ];
        for (at, (cluster, volumes, bytes, spare)) in cases.into_iter().enumerate() {
            let path = folder.path().join(at.to_string());
            let image = image(cluster, volumes, bytes, spare);
            image.write(&path).unwrap();
            let report = check(&mut FileBlocks::open(&path).unwrap(), &mut |_, _| {});
            assert!(report.is_clean(), "{image:?}: {report:#?}");
            assert_eq!(report.layers.len() as u64, volumes);
            let owned = image.volume_bytes / u64::from(cluster);
            assert!(report.layers.iter().all(|layer| layer.owned == owned && layer.here == owned * 16));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        assert!(image(64 << 10, 1, (1 << 20) + 1, 1 << 30).write(&path).is_err());
        assert!(image(64 << 10, 1, 1 << 30, 1 << 20).write(&path).is_err());
        assert!(!path.exists());
        std::fs::write(&path, "something").unwrap();
        assert!(image(64 << 10, 1, 1 << 20, 1 << 30).write(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"something");
    }
}
