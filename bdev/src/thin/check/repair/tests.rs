//! Every pool that is broken on purpose is clean after its repair, and what it lost is what was said.

use super::*;
use crate::thin::format::{Entry, Page};
use crate::thin::testing::Memory;
use crate::thin::testing::damage::{damages, foreign};
use crate::thin::testing::story::{CLUSTER, story};
use std::collections::BTreeMap;

type Entries = BTreeMap<(u64, u64), Entry>;

/// All entries of a pool whose log is empty.
fn entries(memory: &mut Memory) -> Entries {
    let mut progress = quiet();
    let mut medium = Medium::new(memory, &mut progress);
    let mut findings = Findings::default();
    let superblock = slots::choose(&mut medium, &mut findings).unwrap();
    let mut trees = Trees::new(&superblock);
    let (layers, _) = super::super::catalog::read(&mut trees, &mut medium, &mut findings, &superblock);
    let mut all = Entries::new();
    for layer in layers.values() {
        let tree = super::super::catalog::map_tree(layer, &superblock.geometry, superblock.generation);
        trees.walk(&mut medium, &mut findings, &tree, &mut |_, seen| {
            if let super::super::trees::Seen::Leaf { index, page, .. } = seen {
                let of = |page: &Page, at| page.entry(at).filter(|entry| *entry != Entry::EMPTY);
                let found = (0..ENTRIES_PER_PAGE).filter_map(|at| Some((at, of(page, at)?)));
                all.extend(found.map(|(at, entry)| ((layer.id, index * 504 + at as u64), entry)));
            }
            0
        });
    }
    assert_eq!(findings.count(), 0);
    all
}

/// The story with its log in its trees.
fn settled() -> Memory {
    let mut memory = story().build().memory;
    let before = check(&mut memory, &mut quiet());
    let (losses, notes) = (Vec::new(), Vec::new());
    let mut result = Repair { before, losses, losses_total: 0, notes, pages: 0, after: None };
    let (plan, wipe) = prepare(&mut memory, &mut result, &mut quiet()).unwrap();
    assert!(result.losses.is_empty() && result.notes.is_empty(), "{result:#?}");
    commit(&mut memory, plan, &wipe).unwrap();
    memory
}

fn repaired(damage: &crate::thin::testing::damage::Damage) -> (Memory, Repair) {
    let mut built = damage.build();
    let done = repair(&mut built.memory, true, &mut quiet()).unwrap();
    (built.memory, done)
}

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

#[test]
fn a_pool_without_damage_comes_out_as_it_was() {
    let before = check(&mut story().build().memory, &mut quiet());
    let mut memory = settled();
    let after = check(&mut memory, &mut quiet());
    assert!(after.is_clean(), "{:#?}", after.findings);
    assert_eq!((after.layers, after.batches), (before.layers, 0));
    assert_eq!(after.pool.unwrap().free, before.pool.unwrap().free);
}

/// Damage that is not in what entries say.
fn leaves_entries_alone(flaw: Flaw) -> bool {
    let word = flaw.word();
    let entries = [Flaw::EntryInvalid, Flaw::EntryBeyondSize, Flaw::ClusterOutside, Flaw::ClusterOwnedTwice];
    !entries.contains(&flaw) && flaw != Flaw::DeviceTooSmall && !word.starts_with("log_")
}

#[test]
fn nothing_is_lost_but_what_is_said() {
    let expected = entries(&mut settled());
    for damage in damages().iter().filter(|damage| leaves_entries_alone(damage.flaw)) {
        let what = format!("{}: {}", damage.flaw.word(), damage.name);
        let (mut memory, done) = repaired(damage);
        let found = entries(&mut memory);
        let lost = |layer: u64, cluster: u64| {
            let covers = |loss: &&Loss| loss.layer == layer && (loss.from..loss.to).contains(&(cluster * CLUSTER));
            done.losses.iter().any(|loss| covers(&loss))
        };
        for ((layer, cluster), entry) in &expected {
            let same = found.get(&(*layer, *cluster)) == Some(entry);
            assert!(same || lost(*layer, *cluster), "{what}: layer {layer}, cluster {cluster}: {:#?}", done.losses);
        }
        for (layer, cluster) in found.keys() {
            assert!(expected.contains_key(&(*layer, *cluster)), "{what}: layer {layer}, cluster {cluster} came up");
        }
    }
}

#[test]
fn no_more_is_lost_than_cannot_be_read() {
    let leaf = 504 * CLUSTER;
    let lost = |flaw: Flaw, name: &str| -> Vec<(u64, u64, u64)> {
        let damage = damages().into_iter().find(|damage| damage.flaw == flaw && damage.name == name).unwrap();
        repaired(&damage).1.losses.iter().map(|loss| (loss.layer, loss.from, loss.to)).collect()
    };
    let nothing: &[(Flaw, &str)] = &[
        (Flaw::SuperblockUnreadable, "a place is torn, not the next one"),
        (Flaw::PageUnreadable, "a page of the catalog"),
        (Flaw::PageChecksum, "a leaf"),
        (Flaw::PageChecksum, "a page above leaves"),
        (Flaw::PageChecksum, "the bitmap of clusters"),
        (Flaw::PageChecksum, "the bitmap of pages"),
        (Flaw::PageGeneration, "a map that is newer than its pool"),
        (Flaw::PageOutside, "a map among the data"),
        (Flaw::PageUsedTwice, "two volumes with one map"),
        (Flaw::TreeHeight, "a map of one level for three leaves"),
        (Flaw::LayerUnreadable, "of no kind"),
        (Flaw::ClusterLeaked, "nobody's"),
        (Flaw::ClusterNotMarked, "a volume's"),
        (Flaw::OwnedCount, "too many"),
        (Flaw::LogFree, "nobody's"),
    ];
    for (flaw, name) in nothing {
        assert_eq!(lost(*flaw, name), [], "{}: {name}", flaw.word());
    }
    assert_eq!(lost(Flaw::PageMisplaced, "another number"), [(1, leaf, 2 * leaf)]);
    assert_eq!(lost(Flaw::PageStale, "an older one was not overwritten"), [(1, leaf, 2 * leaf)]);
    assert_eq!(lost(Flaw::ClusterOwnedTwice, "by two layers"), [(5, 9 * CLUSTER, 9 * CLUSTER + CLUSTER / 16)]);
    assert_eq!(lost(Flaw::EntryInvalid, "the spare bit"), [], "the log has discarded it");
}

#[test]
fn a_layer_that_the_catalog_lost_keeps_its_map() {
    let damage = damages().into_iter().find(|damage| damage.flaw == Flaw::LayerUnreadable).unwrap();
    let (_, done) = repaired(&damage);
    let after = done.after.unwrap();
    let layer = after.layers.iter().find(|layer| layer.id == 3).unwrap();
    assert_eq!((layer.name.as_str(), layer.kind), ("recovered-3", "head"));
    assert!(done.notes.iter().any(|note| note.contains("layer 3")), "{:?}", done.notes);
}

#[test]
fn a_repair_that_is_cut_off_changes_nothing() {
    // The pages were written, the superblock was not.
    let damage = damages().into_iter().find(|damage| damage.name == "a page above leaves").unwrap();
    let mut built = damage.build();
    let before = repair(&mut built.memory, false, &mut quiet()).unwrap();
    let mut result = before.clone();
    let (plan, _) = prepare(&mut built.memory, &mut result, &mut quiet()).unwrap();
    for (header, mut page) in plan.pages {
        built.memory.write(header.block, page.close(&header)).unwrap();
    }
    let again = repair(&mut built.memory, false, &mut quiet()).unwrap();
    assert_eq!(again.before, before.before);
    assert_eq!(again.losses, before.losses);
}

#[test]
fn a_full_extent_gets_another_one() {
    let mut image = story();
    image.superblock.extents.truncate(1);
    image.superblock.geometry.metadata.1 = 2;
    image.superblock.extents[0].count = 2;
    let mut built = image.build();
    let (block, _) = built.pages[&crate::thin::format::PageId { level: 1, ..crate::thin::testing::damage::leaf(1, 0) }];
    built.memory.blocks.remove(&block);
    let done = repair(&mut built.memory, true, &mut quiet()).unwrap();
    assert!(done.after.as_ref().is_some_and(Report::is_clean), "{:#?}", done.after);
    assert!(done.after.unwrap().pool.unwrap().pages.0 > 32);
}
