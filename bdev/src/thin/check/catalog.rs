//! The layers: what the catalog says of each, and how they stand on each other.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::medium::Medium;
use super::report::{Findings, Flaw};
use super::trees::{Seen, Tree, Trees, clusters_of};
use crate::thin::format::{Geometry, Kind, LAYER_LEN, LAYERS_PER_PAGE, Layer, LayerKind, Pointer, Superblock};

/// A bdev outside counts by the sector.
const SECTOR: u64 = 512;
/// Numbers of layers stay below it.
pub(super) const MOST_LAYERS: u64 = 1 << 62;

/// All layers by number.
pub(super) type Layers = BTreeMap<u64, Layer>;

/// Reads the catalog. Whether all of it could be read.
pub(super) fn read(
    trees: &mut Trees,
    medium: &mut Medium,
    findings: &mut Findings,
    superblock: &Superblock,
) -> (Layers, bool) {
    let (mut layers, mut whole) = (Layers::new(), true);
    let next = superblock.next_layer;
    let tree = catalog_tree(superblock);
    let all = trees.walk(medium, findings, &tree, &mut |findings, seen| {
        let Seen::Leaf { index, block, page, .. } = seen else { return 0 };
        let (places, _) = page.payload().as_chunks::<LAYER_LEN>();
        for (bytes, place) in places.iter().zip(index * LAYERS_PER_PAGE as u64..) {
            match Layer::from_bytes(bytes) {
                Ok(None) => {}
                Ok(Some(layer)) if layer.id == place && place < next => {
                    layers.insert(place, layer);
                }
                Ok(Some(layer)) if layer.id == place => {
                    whole = false;
                    findings.add(Flaw::LayerNumber, Some(*block), Some(place), || {
                        format!("layer {place} is there, and the next one that is made will be {next}")
                    });
                }
                Ok(Some(layer)) => {
                    whole = false;
                    let id = layer.id;
                    findings.add(Flaw::LayerMisplaced, Some(*block), Some(id), || {
                        format!("layer {id} lies in the place of layer {place}")
                    });
                }
                Err(what) => {
                    whole = false;
                    findings.add(Flaw::LayerUnreadable, Some(*block), Some(place), || {
                        format!("the catalog has {what} in the place of layer {place}")
                    });
                }
            }
        }
        0
    });
    // The map of a layer that is not known cannot be walked.
    trees.lost |= !whole;
    (layers, all && whole)
}

/// The tree of all layers.
pub(super) fn catalog_tree(superblock: &Superblock) -> Tree {
    let (levels, root) = superblock.catalog;
    let leaves = superblock.next_layer.min(MOST_LAYERS).div_ceil(LAYERS_PER_PAGE as u64);
    Tree { kind: Kind::Catalog, layer: 0, levels, root, leaves, generation: superblock.generation }
}

/// What is wrong with a layer among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) flaw: Flaw,
    pub(super) layer: u64,
    pub(super) what: String,
}

/// Whether the layers fit together. `whole`: all of them are known.
pub(super) fn judge(layers: &Layers, geometry: &Geometry, whole: bool) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut complain = |flaw: Flaw, layer: u64, what: String| complaints.push(Complaint { flaw, layer, what });
    let (mut names, mut uuids) = (HashMap::new(), HashMap::new());
    let mut children: HashMap<u64, u64> = HashMap::new();
    for (id, layer) in layers {
        if matches!(layer.kind, LayerKind::Head | LayerKind::Snapshot) {
            if layer.name.is_empty() {
                complain(Flaw::LayerName, *id, "has no name".into());
            } else if let Some(other) = names.insert(&layer.name, id) {
                complain(Flaw::LayerNameTaken, *id, format!("has the name of layer {other}, '{}'", layer.name));
            }
            if layer.uuid.is_nil() {
                complain(Flaw::LayerUuid, *id, "has no UUID".into());
            } else if let Some(other) = uuids.insert(layer.uuid, id) {
                complain(Flaw::LayerUuid, *id, format!("has the UUID of layer {other}, {}", layer.uuid));
            }
        }
        if layer.parent.is_some() && layer.origin.is_some() {
            complain(Flaw::LayerOrigin, *id, "stands on a layer of the pool and on a bdev outside of it".into());
        }
        let counted = layer.origin_bytes;
        if counted % SECTOR != 0 || counted > 0 && layer.origin.is_none() {
            complain(Flaw::LayerOrigin, *id, format!("has {counted} bytes that count of a bdev outside of the pool"));
        }
        let on_nothing = layer.parent.is_none() && layer.origin.is_none();
        if let Some(sees) = layer.sees
            && (on_nothing || sees % u64::from(geometry.cluster_size) != 0)
        {
            complain(Flaw::LayerSees, *id, format!("sees {sees} bytes of what it stands on"));
        }
        let useful = clusters_of(layer.size, geometry).min(if layer.quota == 0 { u64::MAX } else { layer.quota });
        if layer.reserved > useful {
            let kept = layer.reserved;
            complain(Flaw::LayerLimits, *id, format!("has {kept} clusters kept for it and can use {useful}"));
        }
        if let Some(parent) = layer.parent {
            *children.entry(parent).or_default() += 1;
            match layers.get(&parent) {
                None if whole => {
                    complain(Flaw::LayerParentMissing, *id, format!("stands on {parent}, which is not there"));
                }
                Some(on) if on.kind == LayerKind::Head && *id != parent => {
                    complain(
                        Flaw::LayerChildren,
                        *id,
                        format!("stands on layer {parent}, which is a volume that is written"),
                    );
                }
                _ => {}
            }
        }
    }
    for (id, layer) in layers.iter().filter(|(_, layer)| layer.kind == LayerKind::Going) {
        let count = children.get(id).copied().unwrap_or(0);
        if count > 1 && layer.parent != Some(*id) {
            complain(Flaw::LayerChildren, *id, format!("is going, and {count} layers stand on it"));
        }
    }
    for id in cycles(layers) {
        complain(Flaw::LayerParentCycle, id, "stands on itself in the end".into());
    }
    complaints
}

/// The smallest layer of each circle.
pub(super) fn cycles(layers: &Layers) -> Vec<u64> {
    let (mut good, mut found) = (HashSet::new(), Vec::new());
    for start in layers.keys() {
        let (mut path, mut on_path, mut at) = (Vec::new(), HashSet::new(), Some(*start));
        while let Some(id) = at.filter(|id| !good.contains(id)) {
            if !on_path.insert(id) {
                let circle = path.iter().skip_while(|other| **other != id);
                found.extend(circle.min());
                break;
            }
            path.push(id);
            at = layers.get(&id).and_then(|layer| layer.parent);
        }
        good.extend(path);
    }
    found
}

/// The map of a layer.
pub(super) fn map_tree(layer: &Layer, geometry: &Geometry, generation: u64) -> Tree {
    let Layer { id, levels, root, size, .. } = *layer;
    let leaves = super::trees::map_leaves(size, geometry);
    Tree { kind: Kind::Map, layer: id, levels, root, leaves, generation }
}

/// What the log says of a layer, with what only the catalog knows.
pub(super) fn merged(new: &Layer, old: Option<&Layer>) -> Layer {
    let (levels, root) = old.map_or((0, Pointer::NONE), |old| (old.levels, old.root));
    let (owned, here) = old.map_or((0, 0), |old| (old.owned, old.here));
    Layer { levels, root, owned, here, ..new.clone() }
}

/// The word for a kind.
pub(super) const fn kind_word(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Head => "head",
        LayerKind::Snapshot => "snapshot",
        LayerKind::Unnamed => "unnamed",
        LayerKind::Going => "going",
    }
}
