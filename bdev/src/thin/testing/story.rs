//! A pool with something of everything: a tree of layers in each state, maps of one and two levels, a second extent of
//! metadata, a log of two starts that wraps around its ring and ends in a batch that a crash has torn.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::image::{Image, Start};
use crate::thin::format::{Entry, Extent, Layer, LayerKind, Pointer, Record};

/// Bytes of a cluster.
pub const CLUSTER: u64 = 64 << 10;

/// A layer without anything in it.
#[must_use]
pub fn layer(id: u64, kind: LayerKind, parent: Option<u64>, clusters: u64) -> Layer {
    let named = matches!(kind, LayerKind::Head | LayerKind::Snapshot);
    Layer {
        id,
        parent,
        uuid: if named { Uuid::from_u128(u128::from(id) + 1000) } else { Uuid::nil() },
        kind,
        name: if named { format!("layer-{id}") } else { String::new() },
        size: clusters * CLUSTER,
        levels: 0,
        root: Pointer::NONE,
        owned: 0,
        here: 0,
        quota: 0,
        reserved: 0,
        created: 1_700_000_000 + id,
        origin: None,
        origin_bytes: 0,
        sees: None,
        warn_percent: 0,
    }
}

/// An entry of a layer's cluster.
#[must_use]
pub fn entry(layer: u64, cluster: u64, entry: Entry) -> Record {
    Record::Entry { layer, cluster, entry }
}

/// One cluster is free from now on.
#[must_use]
pub fn free(cluster: u32) -> Record {
    Record::Free { first: cluster, count: 1 }
}

/// See the module's description.
#[must_use]
pub fn story() -> Image {
    let mut image = Image::new(64 << 20, CLUSTER as u32);
    image.superblock.extents.push(Extent { first: 900, count: 2 });
    image.superblock.next_layer = 20;
    image.superblock.log_from = 1000;
    image.superblock.batch_from = 77;
    image.layers = layers();
    image.log =
        vec![Start { salt: 11, jump: 0, batches: first_start() }, Start { salt: 12, jump: 3, batches: second_start() }];
    // More than fits a block, and than two.
    image.torn = (0..900).map(|at| entry(18, at * 2, Entry::EMPTY.with_zero(1))).collect();
    image
}

fn layers() -> Vec<(Layer, BTreeMap<u64, Entry>)> {
    use LayerKind::{Going, Head, Snapshot, Unnamed};
    let full = |cluster: u32| Entry::on(cluster).with_here(0xFFFF);
    let some = |cluster: u32| Entry::on(cluster).with_here(0x00F3).with_zero(0x1000);
    let zero = Entry::EMPTY.with_zero(0x0F0F);
    vec![
        (
            layer(1, Snapshot, None, 1500),
            BTreeMap::from([(0, full(100)), (1, full(101)), (503, some(102)), (504, full(103)), (1499, full(104))]),
        ),
        (layer(2, Unnamed, Some(1), 1500), BTreeMap::from([(0, some(110)), (700, full(111))])),
        (layer(3, Head, Some(2), 1500), BTreeMap::from([(0, some(120)), (2, full(121)), (3, zero), (800, full(122))])),
        (layer(4, Head, Some(1), 400), BTreeMap::from([(1, zero), (399, some(130))])),
        (layer(5, Head, Some(2), 300), BTreeMap::from([(7, full(140))])),
        (layer(16, Going, Some(1), 400), BTreeMap::from([(0, full(150)), (1, some(151)), (2, full(152))])),
        (Layer { quota: 500, reserved: 400, ..layer(17, Head, Some(16), 400) }, BTreeMap::from([(1, some(160))])),
        (layer(18, Head, None, 1 << 24), BTreeMap::new()),
        (Layer { origin: Some(Uuid::from_u128(7)), ..layer(19, Head, None, 10) }, BTreeMap::new()),
    ]
}

/// New clusters, a discard, a new layer, and a batch of two blocks.
fn first_start() -> Vec<Vec<Record>> {
    let full = |cluster: u32| Entry::on(cluster).with_here(0xFFFF);
    let zeroes = (0..450).map(|at| entry(18, at, Entry::EMPTY.with_zero(0x00FF)));
    vec![
        vec![entry(3, 4, full(200)), entry(3, 0, Entry::on(120).with_here(0xFFFF)), entry(4, 0, full(201))],
        zeroes.chain([entry(18, 1 << 23, full(202))]).collect(),
        vec![
            Record::Layer(Box::new(layer(20, LayerKind::Head, Some(1), 1500))),
            entry(20, 9, full(203)),
            entry(3, 800, Entry::EMPTY.with_zero(0xFFFF)),
            free(122),
        ],
    ]
}

/// A layer is folded into its child and goes; a volume shrinks; clusters are used again; leaves are discarded.
fn second_start() -> Vec<Vec<Record>> {
    let full = |cluster: u32| Entry::on(cluster).with_here(0xFFFF);
    vec![
        vec![
            entry(17, 0, full(150)),
            entry(17, 2, full(152)),
            entry(16, 0, Entry::EMPTY),
            entry(16, 1, Entry::EMPTY),
            entry(16, 2, Entry::EMPTY),
            free(151),
        ],
        vec![
            Record::Layer(Box::new(Layer { quota: 500, reserved: 400, ..layer(17, LayerKind::Head, Some(1), 400) })),
            Record::Gone(16),
        ],
        vec![
            entry(4, 399, Entry::EMPTY),
            free(130),
            Record::Layer(Box::new(layer(4, LayerKind::Head, Some(1), 300))),
            entry(5, 8, full(151)),
        ],
        vec![
            Record::Leaf { layer: 18, leaf: 0, entry: Entry::EMPTY.with_zero(0xFFFF) },
            Record::Leaf { layer: 3, leaf: 0, entry: Entry::EMPTY.with_zero(0xFFFF) },
            free(120),
            free(121),
            free(200),
        ],
        vec![entry(18, 3, full(120)), entry(18, 4, Entry::on(121))],
    ]
}
