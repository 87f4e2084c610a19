//! Whether the layers of a pool can be, before anybody believes them: whoever follows a layer to what it stands on has to
//! come to an end, and what layers take in memory, whatever is in them, has to be within reason.
//!
//! Who makes layers keeps to [`Weight::MOST`]; a pool that has twice as much is taken all the same, because one order may
//! make a new layer for each that there is.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::error::StoreError;
use crate::thin::format::{Geometry, Layer, LayerKind, SUB_BLOCKS};

/// What counts of a bdev outside is whole ones of these.
const SECTOR: u64 = 512;
/// Most bytes of a layer.
pub const MOST_BYTES: u64 = 1 << 50;

/// What layers take in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// How many there are.
    pub layers: u64,
    /// The bytes of all of them: tables of their maps go by that.
    pub bytes: u64,
    /// For each layer how many it stands on, and itself: chains go by that.
    pub links: u64,
}

impl Weight {
    /// About half a gigabyte for each of the three.
    pub const MOST: Weight = Weight { layers: 1 << 20, bytes: 1 << 60, links: 1 << 26 };

    /// Of these layers.
    ///
    /// # Errors
    /// A layer that stands on itself in the end.
    pub fn of<'a>(layers: impl Iterator<Item = &'a Layer>) -> Result<Weight, u64> {
        let mut weight = Weight::default();
        // What each stands on, and how many that are with itself; 0: not known yet.
        let mut depths = HashMap::new();
        for layer in layers {
            weight.layers += 1;
            weight.bytes = weight.bytes.saturating_add(layer.size);
            depths.insert(layer.id, (layer.parent, 0));
        }
        let (ids, mut path): (Vec<u64>, Vec<u64>) = (depths.keys().copied().collect(), Vec::new());
        for id in ids {
            let mut at = Some(id);
            let mut depth = loop {
                let Some((here, (parent, depth))) = at.and_then(|id| Some((id, *depths.get(&id)?))) else { break 0 };
                if depth > 0 {
                    break depth;
                }
                if path.len() == depths.len() {
                    return Err(id);
                }
                path.push(here);
                at = parent;
            };
            for id in path.drain(..).rev() {
                depth += 1;
                weight.links = weight.links.saturating_add(depth);
                depths.entry(id).and_modify(|(_, known)| *known = depth);
            }
        }
        Ok(weight)
    }

    /// Whether it is this many times what layers may have, at most.
    #[must_use]
    pub const fn is_within(&self, times: u64) -> bool {
        let most = Weight::MOST;
        self.layers <= most.layers * times && self.bytes <= most.bytes * times && self.links <= most.links * times
    }
}

/// Whether layers that were read fit together, so far as those who use them go by it.
///
/// # Errors
/// [`StoreError::Damaged`].
pub(super) fn check(layers: &BTreeMap<u64, Layer>, geometry: &Geometry) -> Result<(), StoreError> {
    let wrong = |id: u64, what: &str| Err(StoreError::Damaged(format!("layer {id} {what}")));
    let (mut uuids, mut children) = (HashSet::new(), HashMap::<u64, u32>::new());
    for (id, layer) in layers {
        let clusters = u64::from(geometry.clusters);
        if layer.size > MOST_BYTES {
            return wrong(*id, &format!("cannot have {} bytes", layer.size));
        }
        if layer.owned > clusters || layer.here > clusters * u64::from(SUB_BLOCKS) {
            return wrong(*id, "is said to own more than there is");
        }
        let is_known = matches!(layer.kind, LayerKind::Head | LayerKind::Snapshot);
        if is_known && (layer.uuid.is_nil() || !uuids.insert(layer.uuid)) {
            return wrong(*id, &format!("has the UUID {}, which is none or that of another", layer.uuid));
        }
        if layer.parent.is_some() && layer.origin.is_some() {
            return wrong(*id, "stands on a layer of the pool and on a bdev outside of it");
        }
        if layer.origin_bytes % SECTOR != 0 || layer.origin_bytes > 0 && layer.origin.is_none() {
            return wrong(*id, &format!("has {} bytes that count of a bdev outside of the pool", layer.origin_bytes));
        }
        let Some(parent) = layer.parent else { continue };
        *children.entry(parent).or_default() += 1;
        match layers.get(&parent) {
            None => return wrong(*id, &format!("stands on layer {parent}, which is not there")),
            Some(on) if on.kind == LayerKind::Head => {
                return wrong(*id, &format!("stands on layer {parent}, which is a volume that is written"));
            }
            Some(_) => {}
        }
    }
    let several = |layer: &&Layer| layer.kind == LayerKind::Going && children.get(&layer.id).is_some_and(|n| *n > 1);
    if let Some(going) = layers.values().find(several) {
        return wrong(going.id, "is going, and several layers stand on it");
    }
    match Weight::of(layers.values()) {
        Err(id) => wrong(id, "stands on itself in the end"),
        Ok(weight) if !weight.is_within(2) => Err(StoreError::Damaged(format!(
            "there are more layers, or larger ones, or longer chains of them than there can be: {weight:?}"
        ))),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thin::testing::story::layer;

    fn weight(parents: &[(u64, Option<u64>)]) -> Result<Weight, u64> {
        let layers: Vec<Layer> =
            parents.iter().map(|(id, parent)| layer(*id, LayerKind::Snapshot, *parent, 1)).collect();
        Weight::of(layers.iter())
    }

    #[test]
    fn links_are_counted_and_circles_are_found() {
        let of = |layers: u64, links| Ok(Weight { layers, bytes: layers << 16, links });
        assert_eq!(weight(&[]), of(0, 0));
        assert_eq!(
            weight(&[(1, None), (2, Some(1)), (3, Some(2)), (4, Some(1)), (5, Some(99))]),
            of(5, 1 + 2 + 3 + 2 + 1)
        );
        assert!(
            weight(&[(1, Some(1))]).is_err() && weight(&[(9, None), (1, Some(2)), (2, Some(1)), (3, Some(2))]).is_err()
        );
        let chain: Vec<_> = (1..=3000).map(|id| (id, Some(id - 1).filter(|id| *id > 0))).collect();
        assert_eq!(weight(&chain), of(3000, 3000 * 3001 / 2));
    }

    /// Nobody is to read a part of a sector of a bdev outside.
    #[test]
    fn what_stands_on_a_bdev_outside_counts_whole_sectors_of_it() {
        let geometry = Geometry::new(64 << 20, 64 << 10).expect("it is large enough");
        let below = layer(1, LayerKind::Snapshot, None, 1 << 20);
        let with = |parent, origin: Option<u128>, origin_bytes| {
            let origin = origin.map(uuid::Uuid::from_u128);
            let above = Layer { origin, origin_bytes, ..layer(2, LayerKind::Head, parent, 1 << 20) };
            check(&[(1, below.clone()), (2, above)].into(), &geometry).map_err(|error| error.to_string())
        };
        assert_eq!([with(Some(1), None, 0), with(None, Some(9), 512), with(None, None, 0)], [Ok(()), Ok(()), Ok(())]);
        for (parent, origin, bytes) in [(Some(1), Some(9), 512), (None, Some(9), 1000), (None, None, 512)] {
            let refused = with(parent, origin, bytes);
            assert!(refused.as_ref().is_err_and(|what| what.contains("layer 2")), "{refused:?}");
        }
    }

    #[test]
    fn what_would_fill_the_memory_is_too_much() {
        let most = Weight::MOST;
        assert!(most.is_within(1));
        for too_much in [
            Weight { layers: most.layers + 1, ..most },
            Weight { bytes: u64::MAX, ..most },
            Weight { links: most.links * 2 + 1, ..most },
        ] {
            assert!(!too_much.is_within(1), "{too_much:?}");
        }
    }
}
