//! Every pool that is broken on purpose is clean after its repair, and what it lost is what was said.

use super::*;
use crate::thin::testing::damage::{damages, foreign};
use crate::thin::testing::story::story;

fn quiet() -> impl FnMut(u64, u64) {
    |_, _| {}
}

#[test]
fn every_damage_can_be_repaired() {
    let mut wrong = Vec::new();
    for damage in damages() {
        let mut built = damage.build();
        let what = format!("{}: {}", damage.flaw.word(), damage.name);
        if damage.flaw == Flaw::DeviceTooSmall {
            assert!(repair(&mut built.memory, true, &mut quiet()).is_err(), "{what}");
            continue;
        }
        let untouched = built.memory.blocks.clone();
        let dry = repair(&mut built.memory, false, &mut quiet()).unwrap();
        assert!(built.memory.blocks == untouched && dry.after.is_none(), "{what}: a dry run writes nothing");
        let done = repair(&mut built.memory, true, &mut quiet()).unwrap();
        assert_eq!((&dry.losses, &dry.notes), (&done.losses, &done.notes), "{what}");
        let after = done.after.unwrap();
        if !after.is_clean() {
            wrong.push(format!("{what}: {:#?}", after.findings));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_clean_is_left_alone() {
    let mut built = story().build();
    let untouched = built.memory.blocks.clone();
    let done = repair(&mut built.memory, true, &mut quiet()).unwrap();
    assert!(done.before.is_clean() && done.after.is_none() && built.memory.blocks == untouched);
    for (name, mut built) in foreign() {
        assert!(repair(&mut built.memory, true, &mut quiet()).is_err(), "{name}");
    }
}
