//! Whatever is on a medium, a pool says what is wrong: it neither panics nor goes round in circles.

use super::model::Model;
use super::*;
use crate::rng::Rng;
use crate::testing::medium::{Crash, Geometry as Disk, Order};
use crate::thin::format::{is_sealed, seal};

/// A medium with a pool that has maps of three levels, something in the log, and two extents.
fn image() -> (Medium, Vec<u64>) {
    let medium = Medium::new(Disk::with_4096(16 << 20), Order::InOrder);
    on_medium(&medium, |blocking| create(blocking, &params(false))).unwrap();
    let places: Vec<u64> = (0..30).map(|at| at * 504 * 97).collect();
    let mut model = Model::at(1, &places);
    let mut rig = Rig::on(&medium, 2).unwrap();
    for _ in 0..12 {
        let batch = model.draw(&mut rig, 12);
        rig.append(&batch.records);
        rig.checkpoint();
    }
    let batch = model.draw(&mut rig, 12);
    rig.append(&batch.records);
    let pages = &rig.store.state.pages;
    let counts: Vec<bool> = (0..(16 << 20) / BLOCK as u64).map(|at| at < 256 + 32 || pages.is_used(at)).collect();
    rig.close();
    let medium = medium.crash(Crash::All, Order::InOrder);
    let block = |at: u64| medium.peek(at * BLOCK as u64, BLOCK);
    let sealed = |at: &u64| block(*at).first_chunk::<BLOCK>().is_some_and(is_sealed) && block(*at)[0] != 0;
    // Superblocks, the front of the log, and pages in use.
    let sealed: Vec<u64> = (0..counts.len() as u64).filter(|at| counts[*at as usize]).filter(sealed).collect();
    assert!(sealed.len() > 20, "{} blocks", sealed.len());
    (medium, sealed)
}

/// Does what there is to do with a pool; what comes of it does not matter.
fn use_it(medium: &Medium) -> Result<(), StoreError> {
    let mut rig = Rig::on(medium, 3)?;
    let layers: Vec<u64> = rig.store.layers().keys().copied().collect();
    for layer in layers {
        for leaf in (0..30).map(|at| at * 97) {
            rig.store.load(layer, leaf);
        }
    }
    rig.run();
    rig.allocate(5);
    if rig.store.room() > 400 {
        let id = rig.store.next_layer();
        rig.store.append(&[new_layer(id, 1 << 30)]);
    }
    rig.store.checkpoint();
    rig.run();
    rig.store.checkpoint();
    rig.run();
    rig.close();
    Ok(())
}

#[test]
fn no_image_makes_it_panic() {
    let (whole, sealed) = image();
    use_it(&whole.crash(Crash::All, Order::InOrder)).unwrap();
    let (mut rng, mut refused) = (Rng::new(7), 0);
    for _ in 0..1500 {
        let medium = whole.crash(Crash::All, Order::InOrder);
        for _ in 0..=rng.below(2) {
            let at = sealed[rng.below(sealed.len() as u64) as usize] * BLOCK as u64;
            let mut bytes = medium.peek(at, BLOCK);
            for _ in 0..=rng.below(3) {
                // Where something stands, as a rule.
                let place = if rng.below(2) == 0 { rng.below(400) } else { rng.below(BLOCK as u64) } as usize;
                bytes[place] = [0, 1, 0x7f, 0xff, rng.next() as u8][rng.below(5) as usize];
            }
            seal(bytes.first_chunk_mut().unwrap());
            medium.poke(at, &bytes);
        }
        refused += u32::from(use_it(&medium).is_err());
    }
    assert!(refused > 30, "{refused}");
}
