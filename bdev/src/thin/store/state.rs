//! What a pool is, as of everything that is logged: built by opening it, kept up by each batch, written by checkpoints.

use std::collections::BTreeMap;

use super::index::Index;
use super::overlay::Overlay;
use super::pages::Pages;
use super::retired::Retired;
use super::space::Space;
use crate::thin::format::{ENTRIES_PER_PAGE, Entry, Geometry, LAYERS_PER_PAGE, Layer, Pointer, Record};

/// Numbers of clusters of a layer, and of layers, stay below it.
pub(super) const MOST: u64 = 1 << 48;

/// See the module's description.
pub(super) struct State {
    pub(super) geometry: Geometry,
    /// The catalog as the last checkpoint has written it.
    pub(super) saved: BTreeMap<u64, Layer>,
    /// The same as of everything logged; maps and what is owned are as of the last checkpoint.
    pub(super) layers: BTreeMap<u64, Layer>,
    /// Pages that the maps of these take at most.
    pub(super) map_pages: u64,
    pub(super) next_layer: u64,
    /// What is logged and no checkpoint has begun to write.
    pub(super) overlay: Overlay,
    /// What the checkpoint that runs is writing.
    pub(super) frozen: Overlay,
    /// What was frozen before.
    pub(super) retired: Retired,
    pub(super) space: Space,
    /// What the log had freed when the pool was opened.
    pub(super) freed: Vec<(u32, u32)>,
    pub(super) pages: Pages,
    pub(super) catalog_index: Index,
    pub(super) space_index: Index,
    pub(super) pages_index: Index,
}

/// Leaves of a layer's map.
pub(super) const fn leaves_of(geometry: &Geometry, layer: &Layer) -> u64 {
    layer.size.div_ceil(geometry.cluster_size as u64).div_ceil(ENTRIES_PER_PAGE as u64)
}

/// Pages that the maps of layers take at most: of each leaf its own, and one above.
pub(super) fn map_pages<'a>(geometry: &Geometry, layers: impl IntoIterator<Item = &'a Layer>) -> u64 {
    let pages = layers.into_iter().map(|layer| leaves_of(geometry, layer).saturating_mul(2));
    pages.fold(0, u64::saturating_add)
}

/// The leaf of the catalog that holds a layer, and its place there.
pub(super) const fn catalog_place(layer: u64) -> (u64, usize) {
    (layer / LAYERS_PER_PAGE as u64, (layer % LAYERS_PER_PAGE as u64) as usize)
}

impl State {
    /// Whether a record can be true.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(&self, record: &Record) -> Result<(), String> {
        let known = |layer: u64| match self.layers.contains_key(&layer) {
            true => Ok(()),
            false => Err(format!("layer {layer} does not exist")),
        };
        match record {
            Record::Entry { layer, cluster, entry } => {
                known(*layer)?;
                if *cluster >= MOST {
                    return Err(format!("layer {layer} cannot have a cluster {cluster}"));
                }
                self.check_entry(*entry)
            }
            Record::Leaf { layer, leaf, .. } => {
                known(*layer)?;
                let sane = *leaf < MOST / ENTRIES_PER_PAGE as u64;
                if sane { Ok(()) } else { Err(format!("layer {layer} cannot have a leaf {leaf}")) }
            }
            Record::Free { first, count } => {
                let last = first + (count - 1);
                self.check_cluster(*first).and_then(|()| self.check_cluster(last))?;
                let over =
                    |extent: &crate::thin::format::Extent| *first < extent.first + extent.count && extent.first <= last;
                let metadata = self.pages.extents().iter().any(over);
                if metadata { Err(format!("clusters {first} to {last} hold metadata")) } else { Ok(()) }
            }
            Record::Layer(layer) => {
                let sane = layer.id < MOST && layer.size / u64::from(self.geometry.cluster_size) < MOST;
                if sane { Ok(()) } else { Err(format!("there can be no layer {} of {} bytes", layer.id, layer.size)) }
            }
            Record::Gone(layer) => known(*layer),
        }
    }

    /// Whether an entry can be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check_entry(&self, entry: Entry) -> Result<(), String> {
        entry.cluster().map_or(Ok(()), |cluster| self.check_cluster(cluster))
    }

    fn check_cluster(&self, cluster: u32) -> Result<(), String> {
        let inside = (self.geometry.first_free..self.geometry.clusters).contains(&cluster);
        if inside && !self.pages.holds(cluster) { Ok(()) } else { Err(format!("cluster {cluster} holds no data")) }
    }

    /// Takes records: one, or some that are entries of the same leaf.
    ///
    /// # Errors
    /// The first that cannot be true, and why; those before it are taken.
    pub(super) fn take<'a>(&mut self, run: &'a [Record]) -> Result<(), (String, &'a Record)> {
        let [first @ Record::Entry { layer, cluster, .. }, _, ..] = run else {
            for record in run {
                self.check(record).map_err(|what| (what, record))?;
                self.apply(record, false);
            }
            return Ok(());
        };
        self.check(first).map_err(|what| (what, first))?;
        for record in run {
            if let Record::Entry { entry, .. } = record {
                self.check_entry(*entry).map_err(|what| (what, record))?;
                entry.cluster().into_iter().for_each(|cluster| self.space.set_one_used(cluster));
            }
        }
        let (geometry, layers) = (&self.geometry, &self.layers);
        let leaves = |layer| layers.get(&layer).map_or(0, |layer| leaves_of(geometry, layer));
        let entries = run.iter().filter_map(|record| match record {
            Record::Entry { cluster, entry, .. } => Some((*cluster, *entry)),
            _ => None,
        });
        self.overlay.apply_entries(*layer, cluster / ENTRIES_PER_PAGE as u64, entries, leaves);
        Ok(())
    }

    /// Takes a record. `release`: clusters that it frees can be handed out at once, because nobody uses them yet.
    pub(super) fn apply(&mut self, record: &Record, release: bool) {
        match record {
            Record::Entry { entry, .. } => {
                if let Some(cluster) = entry.cluster() {
                    self.space.set_one_used(cluster);
                }
            }
            Record::Free { first, count } => {
                self.space.set_free(*first, *count);
                if release {
                    self.space.release(*first, *count);
                    self.freed.push((*first, *count));
                }
            }
            Record::Layer(layer) => {
                self.next_layer = self.next_layer.max(layer.id + 1);
                let old = self.layers.get(&layer.id);
                let (levels, root) = old.map_or((0, Pointer::NONE), |old| (old.levels, old.root));
                if old.is_some_and(|old| old.size > layer.size) {
                    self.overlay.shrunk(layer.id);
                }
                let (owned, here) = old.map_or((0, 0), |old| (old.owned, old.here));
                let layer = Layer { levels, root, owned, here, ..(**layer).clone() };
                self.map_pages = self.map_pages.saturating_add(map_pages(&self.geometry, [&layer]));
                let old = self.layers.insert(layer.id, layer);
                self.map_pages = self.map_pages.saturating_sub(map_pages(&self.geometry, &old));
            }
            Record::Gone(layer) => {
                let old = self.layers.remove(layer);
                self.map_pages = self.map_pages.saturating_sub(map_pages(&self.geometry, &old));
            }
            Record::Leaf { .. } => {}
        }
        let (geometry, layers) = (&self.geometry, &self.layers);
        self.overlay.apply(record, |layer| layers.get(&layer).map_or(0, |layer| leaves_of(geometry, layer)));
    }

    /// Pages that a checkpoint of what is logged takes at most, but for what the checkpoint that runs has set apart.
    pub(super) fn pages_needed(&self) -> u64 {
        let layers = self.overlay.layers() as u64;
        // Of each tree of the pool: its leaves, no more pages above them, and a few for its growth.
        let catalog = layers * 2 + 8;
        let space = u64::from(self.space.changed()) * 2 + 8;
        let pages = self.pages.leaves() * 2 + 8;
        self.overlay.pages() as u64 + catalog + space + pages
    }

    /// Pages of maps that records may need beyond those that are needed already, whatever they say.
    pub(super) fn pages_untouched(&self) -> u64 {
        self.map_pages.saturating_sub(self.overlay.pages_inside())
    }
}
