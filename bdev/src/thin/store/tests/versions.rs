//! Pools that earlier versions left, and one that other code than the store's has written: they open, hold what the checker
//! says that they hold, and are clean after a checkpoint.

use super::*;
use crate::thin::check::{Report, check};
use crate::thin::format::BLOCK;
use crate::thin::testing::{Memory, images, story};

fn quiet(memory: &mut Memory) -> Report {
    check(memory, &mut |_, _| {})
}

/// A base that holds this.
fn base_of(image: &Memory) -> Arc<dyn Bdev> {
    let base = memory((image.len * BLOCK as u64) >> 20);
    blocking(&base, |blocking| {
        for (block, bytes) in &image.blocks {
            blocking.write(*block, &bytes[..], false).unwrap();
        }
    });
    base
}

/// What a base holds.
fn read_back(base: &Arc<dyn Bdev>, image: &Memory) -> Memory {
    let all: Vec<u64> = (0..image.len).collect();
    let blocks = blocking(base, |blocking| blocking.read_blocks(&all).unwrap());
    Memory { len: image.len, blocks: all.into_iter().zip(blocks).collect(), ..Memory::default() }
}

/// What the leaves of a layer come to: clusters, and sub-blocks that are here.
fn totals(rig: &mut Rig, id: u64) -> (u64, u64) {
    let size = rig.store.layers()[&id].size;
    let (mut owned, mut here) = (0, 0);
    for leaf in 0..size.div_ceil(u64::from(CLUSTER) * 504) {
        for entry in rig.load(id, leaf).values() {
            owned += u64::from(entry.cluster().is_some());
            here += u64::from(entry.here().count_ones());
        }
    }
    (owned, here)
}

fn opens(mut image: Memory) {
    let report = quiet(&mut image);
    assert!(report.is_clean());
    let base = base_of(&image);
    let mut rig = Rig::open(&base, 77).unwrap();
    let ids: Vec<u64> = rig.store.layers().keys().copied().collect();
    assert_eq!(ids, report.layers.iter().map(|layer| layer.id).collect::<Vec<_>>());
    for layer in &report.layers {
        let found = rig.store.layers()[&layer.id].clone();
        assert_eq!((found.name, found.uuid, found.parent), (layer.name.clone(), layer.uuid, layer.parent));
        assert_eq!(totals(&mut rig, layer.id), (layer.owned, layer.here), "layer {}", layer.id);
    }
    assert_eq!(rig.store.free_clusters(), report.pool.as_ref().unwrap().free);
    rig.checkpoint();
    rig.close();
    let after = quiet(&mut read_back(&base, &image));
    assert_eq!(after.findings, []);
    assert_eq!((after.layers, after.batches), (report.layers, 0));
    assert_eq!(after.pool.unwrap().owned, report.pool.unwrap().owned);
}

#[test]
fn a_pool_of_version_1_opens() {
    opens(images::v1());
}

#[test]
fn a_pool_that_other_code_has_written_opens() {
    opens(story::story().build().memory);
}
