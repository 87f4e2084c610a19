//! What a checkpoint writes is what was logged, and the log can be cut.

use super::model::Model;
use super::*;

#[test]
fn random_batches_checkpoints_and_starts() {
    for seed in 0..8 {
        let base = memory(64 + seed * 40);
        make(&base);
        let mut model = Model::new(seed, 200_000);
        let mut salt = 2;
        let mut rig = Rig::open(&base, salt).unwrap();
        for step in 0..60 {
            model.batch(&mut rig);
            match model.rng().below(8) {
                0 => {
                    rig.checkpoint();
                    model.check_owned(&rig);
                }
                1 => {
                    rig.close();
                    salt += 1;
                    rig = Rig::open(&base, salt).unwrap();
                }
                _ => {}
            }
            if step % 20 == 19 {
                model.check(&mut rig);
            }
        }
        rig.checkpoint();
        model.check(&mut rig);
        model.check_owned(&rig);
        rig.close();
        let mut rig = Rig::open(&base, 1000).unwrap();
        model.check(&mut rig);
        model.check_owned(&rig);
        rig.close();
    }
}

/// Leaves of which nothing is left wait for no page to be read or written; all the same they are not done in one pass.
#[test]
fn no_pass_goes_through_all_leaves() {
    const LEAVES: u64 = 400;
    let base = memory(64);
    make(&base);
    let mut rig = Rig::open(&base, 2).unwrap();
    rig.append(&[new_layer(1, LEAVES * 504 * u64::from(CLUSTER))]);
    rig.checkpoint();
    let nothing = |leaf| Record::Leaf { layer: 1, leaf, entry: Entry::EMPTY };
    rig.append(&(0..LEAVES).map(nothing).collect::<Vec<_>>());
    rig.store.checkpoint();
    let mut passes = 0;
    while rig.store.is_checkpointing() {
        assert!(rig.store.next() != Next::Idle, "after {passes} passes");
        rig.store.poll(&mut Cx { now: 1, reactor: 0, ring: &mut rig.ring }, &mut Vec::new());
        passes += 1;
    }
    assert!(passes > LEAVES / 40, "{passes} passes");
    rig.close();
    Rig::open(&base, 3).unwrap().close();
}
