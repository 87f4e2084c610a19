//! Whatever is on a medium, a pool is refused or served: opening it neither goes round in circles nor takes memory without
//! end, because whoever had the medium before may have put it there.

use uuid::Uuid;

use crate::rng::Rng;
use crate::thin::PoolError;
use crate::thin::format::{Extent, Layer, LayerKind, Record};
use crate::thin::store::StoreError;
use crate::thin::testing::image::{Built, Image};
use crate::thin::testing::mutate::mutate;
use crate::thin::testing::serve::serve;
use crate::thin::testing::story::{layer, story};

/// Why a pool is refused, which is for what is in it.
fn refused(built: &Built) -> String {
    match serve(&built.memory) {
        Err(PoolError::Store(StoreError::Damaged(what))) => what,
        other => panic!("{other:?}"),
    }
}

fn edited(id: u64, change: impl FnOnce(&mut Layer)) -> Built {
    let mut built = story().build();
    built.edit_layer(id, change);
    built
}

/// The story, and then this in the log.
fn logged(records: Vec<Record>) -> Built {
    let mut image: Image = story();
    image.torn.clear();
    image.log.last_mut().unwrap().batches.push(records);
    image.build()
}

#[test]
fn the_story_is_served() {
    serve(&story().build().memory).unwrap();
}

/// Of what only says how much is meant, not how much is there, nothing is refused.
#[test]
fn numbers_without_end_are_served() {
    for change in [|layer: &mut Layer| layer.quota = u64::MAX, |layer: &mut Layer| layer.reserved = u64::MAX] {
        serve(&edited(5, change).memory).unwrap();
        serve(&edited(17, change).memory).unwrap();
    }
    serve(&edited(3, |layer| (layer.owned, layer.here) = (900, 900)).memory).unwrap();
}

#[test]
fn layers_that_cannot_be_are_refused() {
    let cases: [(Built, &str); 9] = [
        (edited(1, |layer| layer.parent = Some(2)), "stands on itself in the end"),
        (edited(1, |layer| layer.parent = Some(1)), "stands on itself in the end"),
        (edited(5, |layer| layer.parent = Some(15)), "stands on layer 15, which is not there"),
        (edited(5, |layer| layer.parent = Some(3)), "stands on layer 3, which is a volume that is written"),
        (edited(4, |layer| layer.parent = Some(16)), "is going, and several layers stand on it"),
        (edited(18, |layer| layer.size = u64::MAX), "cannot have"),
        (edited(18, |layer| layer.owned = 1 << 40), "is said to own more than there is"),
        (edited(5, |layer| layer.here = u64::MAX), "is said to own more than there is"),
        (edited(5, |layer| layer.uuid = Uuid::from_u128(1003)), "has the UUID"),
    ];
    for (built, expected) in cases {
        let what = refused(&built);
        assert!(what.contains(expected), "{what}, and not: {expected}");
    }
}

#[test]
fn layers_that_the_log_makes_impossible_are_refused() {
    let changed = |id: u64, kind, parent| Record::Layer(Box::new(layer(id, kind, parent, 1500)));
    let large = Layer { size: (1 << 50) + 1, ..layer(30, LayerKind::Head, None, 1) };
    let cases = [
        (vec![changed(1, LayerKind::Snapshot, Some(2))], "stands on itself in the end"),
        (vec![Record::Gone(1)], "stands on layer 1, which is not there"),
        (vec![changed(21, LayerKind::Head, Some(3))], "stands on layer 3, which is a volume that is written"),
        (vec![changed(2, LayerKind::Going, Some(1))], "is going, and several layers stand on it"),
        (vec![Record::Layer(Box::new(large))], "cannot have"),
    ];
    for (records, expected) in cases {
        let what = refused(&logged(records));
        assert!(what.contains(expected), "{what}, and not: {expected}");
    }
}

/// More layers than memory has room for chains of: each of them stands on the one before.
#[test]
fn a_chain_that_is_too_long_is_refused() {
    let mut image = Image::new(64 << 20, 64 << 10);
    let count = 17_000;
    image.superblock.next_layer = count + 1;
    image.superblock.extents.push(Extent { first: 500, count: 300 });
    let of = |id: u64| layer(id, LayerKind::Snapshot, Some(id - 1).filter(|id| *id > 0), 1);
    image.layers = (1..=count).map(|id| (of(id), Default::default())).collect();
    let what = refused(&image.build());
    assert!(what.contains("longer chains"), "{what}");
}

#[test]
fn no_image_ends_who_serves_it() {
    let (mut rng, mut refused) = (Rng::new(11), 0);
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..12 * (1 + rng.below(3))).map(|_| rng.next() as u8).collect();
        let mut built = story().build();
        mutate(&mut built, &bytes);
        refused += u32::from(serve(&built.memory).is_err());
    }
    assert!(refused > 30 && refused < 290, "{refused}");
}
