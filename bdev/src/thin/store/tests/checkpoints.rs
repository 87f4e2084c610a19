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
