//! Layers that fit together again: each thing that does not is changed as little as can be.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use uuid::Uuid;

use super::super::catalog::{Layers, cycles};
use super::super::trees::clusters_of;
use crate::thin::format::{LayerKind, NAME_LEN, Superblock};

/// Makes them fit; says what was changed.
pub(super) fn relate(layers: &mut Layers, superblock: &Superblock, notes: &mut Vec<String>) {
    let ids: BTreeSet<u64> = layers.keys().copied().collect();
    for (id, layer) in layers.iter_mut() {
        if let Some(parent) = layer.parent.filter(|parent| !ids.contains(parent)) {
            layer.parent = None;
            notes.push(format!(
                "layer {id} ('{}') stood on layer {parent}, which is lost: what it had from it reads as zeroes",
                layer.name
            ));
        }
        if layer.parent.is_some() && layer.origin.take().is_some() {
            layer.origin_bytes = 0;
            notes.push(format!("layer {id} ('{}') stands on a layer of the pool; its origin was dropped", layer.name));
        }
        let counts = if layer.origin.is_some() { layer.origin_bytes / 512 * 512 } else { 0 };
        if counts != layer.origin_bytes {
            notes.push(format!(
                "layer {id} ('{}') has {counts} bytes that count of a bdev outside of the pool, not {}",
                layer.name, layer.origin_bytes
            ));
            layer.origin_bytes = counts;
        }
        if let Some(sees) = layer.sees {
            let size = u64::from(superblock.geometry.cluster_size);
            let right =
                Some(sees / size * size).filter(|sees| *sees > 0 && layer.parent.or(layer.origin.map(|_| 0)).is_some());
            if right != layer.sees {
                // Of nothing it sees nothing, with or without.
                layer.sees = right;
                notes.push(format!(
                    "layer {id} ('{}') sees {right:?} bytes of what it stands on, not {sees}",
                    layer.name
                ));
            }
        }
        let useful = clusters_of(layer.size, &superblock.geometry);
        let useful = if layer.quota == 0 { useful } else { useful.min(layer.quota) };
        if layer.reserved > useful {
            notes.push(format!(
                "layer {id} ('{}') has {useful} clusters kept for it, not {}",
                layer.name, layer.reserved
            ));
            layer.reserved = useful;
        }
    }
    for id in cycles(layers) {
        if let Some(layer) = layers.get_mut(&id) {
            (layer.parent, layer.sees) = (None, None);
            notes.push(format!("layer {id} ('{}') stood on itself in the end: it stands on nothing now", layer.name));
        }
    }
    parents(layers, notes);
    names(layers, superblock, notes);
}

/// Kinds that fit what stands on a layer.
fn parents(layers: &mut Layers, notes: &mut Vec<String>) {
    let mut children: BTreeMap<u64, u64> = BTreeMap::new();
    for parent in layers.values().filter_map(|layer| layer.parent) {
        *children.entry(parent).or_default() += 1;
    }
    for (id, count) in children {
        let Some(layer) = layers.get_mut(&id) else { continue };
        let name = &layer.name;
        match layer.kind {
            LayerKind::Head => {
                notes.push(format!("layer {id} ('{name}') is a snapshot now, because {count} others stand on it"));
                layer.kind = LayerKind::Snapshot;
            }
            LayerKind::Going if count > 1 => {
                notes.push(format!("layer {id} stays, because {count} others stand on it"));
                layer.kind = LayerKind::Unnamed;
            }
            _ => {}
        }
    }
}

/// Names and UUIDs that are there and different.
fn names(layers: &mut Layers, superblock: &Superblock, notes: &mut Vec<String>) {
    let shown = |kind: LayerKind| matches!(kind, LayerKind::Head | LayerKind::Snapshot);
    let mut all: HashSet<String> = HashSet::new();
    let mut uuids: HashSet<Uuid> = HashSet::new();
    let taken: HashSet<String> = layers.values().map(|layer| layer.name.clone()).collect();
    for (id, layer) in layers.iter_mut().filter(|(_, layer)| shown(layer.kind)) {
        if layer.name.is_empty() || !all.insert(layer.name.clone()) {
            let old = std::mem::take(&mut layer.name);
            let tries = (0u64..).map(|nth| if nth == 0 { format!("-{id}") } else { format!("-{id}-{nth}") });
            let mut names = tries.map(|tail| {
                let stem = if old.is_empty() { "unnamed" } else { &old };
                let most = NAME_LEN - tail.len();
                let end = (0..=most.min(stem.len())).rev().find(|end| stem.is_char_boundary(*end)).unwrap_or(0);
                format!("{}{tail}", &stem[..end])
            });
            let name = names.find(|name| !taken.contains(name) && !all.contains(name)).unwrap_or_default();
            notes.push(format!("layer {id} ('{old}') is called '{name}' now"));
            all.insert(name.clone());
            layer.name = name;
        }
        if layer.uuid.is_nil() || !uuids.insert(layer.uuid) {
            let mut seed = id.to_le_bytes().to_vec();
            while layer.uuid.is_nil() || !uuids.insert(layer.uuid) {
                layer.uuid = Uuid::new_v5(&superblock.pool, &seed);
                seed.push(0);
            }
            notes.push(format!("layer {id} ('{}') has the UUID {} now", layer.name, layer.uuid));
        }
    }
}
