//! Each invariant has a pool that breaks it and nothing else; pools after a crash are clean.

use std::collections::BTreeSet;

use super::*;
use crate::thin::testing::damage::{crashed, damages, foreign};
use crate::thin::testing::story::story;

fn check_all(source: &mut dyn Blocks) -> Report {
    let (mut last, mut calls) = ((0, 0), 0);
    let report = check(source, &mut |done, total| {
        assert!(done <= total && total > 0, "{done} of {total}");
        (last, calls) = ((done, total), calls + 1);
    });
    assert!(last.0 == last.1 && calls > 0, "the progress ends at its end");
    assert_eq!(report.findings.is_empty(), report.findings_total == 0);
    assert_eq!(report.is_clean(), report.findings.is_empty() && report.pool.is_some());
    report
}

#[test]
fn what_a_crash_leaves_is_clean() {
    for (name, mut built) in crashed() {
        let report = check_all(&mut built.memory);
        assert_eq!(report.findings, [], "{name}");
        assert_eq!(report.verdict, Verdict::Clean, "{name}");
    }
}

#[test]
fn every_flaw_is_found_and_nothing_else() {
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for damage in damages() {
        let mut built = damage.build();
        let report = check_all(&mut built.memory);
        let found: BTreeSet<_> = report.findings.iter().map(|finding| finding.finding.word()).collect();
        if found != BTreeSet::from([damage.flaw.word()]) || report.verdict != Verdict::Damaged {
            wrong.push(format!("{}: {}: {:#?}", damage.flaw.word(), damage.name, report.findings));
        }
        seen.insert(damage.flaw);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let missing: Vec<_> = Flaw::ALL.iter().filter(|flaw| !seen.contains(*flaw)).collect();
    assert!(missing.is_empty(), "nothing breaks {missing:?}");
}

#[test]
fn what_is_no_pool_is_not_judged() {
    for (name, mut built) in foreign() {
        let report = check_all(&mut built.memory);
        assert_eq!(report.verdict, Verdict::NotCheckable, "{name}");
        assert!(report.reason.is_some() && report.pool.is_none(), "{name}");
    }
}

#[test]
fn what_is_there_is_counted_as_the_log_leaves_it() {
    let report = check_all(&mut story().build().memory);
    let of = |id| report.layers.iter().find(|layer| layer.id == id).unwrap_or_else(|| panic!("layer {id}"));
    assert_eq!(report.batches, 8);
    assert!(report.layers.iter().all(|layer| layer.id != 16), "it is gone");
    assert_eq!((of(1).owned, of(1).here, of(1).kind), (5, 4 * 16 + 6, "snapshot"));
    assert_eq!((of(3).owned, of(3).here), (0, 0), "discarded, but for what was discarded before");
    assert_eq!((of(4).owned, of(4).size), (1, 300 << 16));
    assert_eq!((of(17).owned, of(17).here, of(17).parent), (3, 2 * 16 + 6, Some(1)));
    assert_eq!((of(18).owned, of(18).here), (3, 2 * 16));
    assert_eq!((of(20).owned, of(20).name.as_str()), (1, "layer-20"));
    let pool = report.pool.as_ref().unwrap();
    assert_eq!(pool.owned, report.layers.iter().map(|layer| layer.owned).sum::<u64>());
    assert_eq!(pool.free + pool.owned, 1024 - 48 - 2);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((json["verdict"].as_str(), json["pool"]["name"].as_str()), (Some("clean"), Some("pool")));
}

#[test]
fn pools_of_earlier_versions_can_be_checked() {
    let report = check_all(&mut crate::thin::testing::images::v1());
    let expected: serde_json::Value = serde_json::from_str(crate::thin::testing::images::V1_REPORT).unwrap();
    assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    assert_eq!(expected["verdict"], "clean");
}

#[test]
fn both_owners_are_named() {
    let damage = damages().into_iter().find(|damage| damage.flaw == Flaw::ClusterOwnedTwice).unwrap();
    let report = check_all(&mut damage.build().memory);
    let message = &report.findings[0].message;
    assert!(
        message.contains("layer 1 for its cluster 1499") && message.contains("layer 5 for its cluster 9"),
        "{message}"
    );
}

#[test]
fn the_document_lists_every_invariant() {
    let document = include_str!("../../../../docs/format.md");
    let (_, invariants) = document.split_once("## Invariants").expect("a part on invariants");
    let words: BTreeSet<_> =
        invariants.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(word, _)| word).collect();
    assert_eq!(words, Flaw::ALL.iter().map(|flaw| flaw.word()).collect());
}

proptest::proptest! {
    #[test]
    fn nothing_in_an_image_makes_it_panic_or_go_round(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 12..=48)) {
        let mut built = story().build();
        crate::thin::testing::mutate::mutate(&mut built, &bytes);
        if let Err(what) = crate::thin::testing::mutate::survive(built) {
            proptest::prop_assert!(false, "{}", what);
        }
    }
}
