//! The checker: whether every invariant of docs/format.md holds in a pool. It only reads.
//!
//! It shares the definitions of the format with the pool and nothing else, so that the one can judge the other. Nothing
//! that it reads is believed before its checksum and its place are right, and then no more than what it says of itself: no
//! image makes it panic or go round in circles. It takes a bit for each cluster and page that it comes upon, the layers,
//! and what the log says; owners are remembered only of clusters that have two.
//!
//! The order: the superblock that counts (`slots`); the trees that it names (`trees`), which are the catalog
//! (`catalog`), the maps (`maps`) and the bitmaps (`space`); then the log (`log`), applied to them (`replay`).

mod bits;
mod catalog;
mod log;
mod maps;
mod medium;
mod repair;
mod replay;
mod report;
mod slots;
mod source;
mod space;
#[cfg(test)]
mod tests;
mod trees;

use crate::thin::format::{BLOCK, Superblock};
use catalog::{Complaint, Layers};
use log::Log;
use maps::{DataArea, Owned};
use medium::Medium;
pub use repair::{Loss, Repair, repair};
use replay::Replay;
use report::Findings;
pub use report::{Finding, Flaw, LayerReport, PoolReport, Report, Verdict};
pub use source::{Block, Blocks, BlocksMut, FileBlocks, OpenError};
use trees::Trees;

/// Checks the pool on a medium. `progress` hears how many blocks were read, of how many.
pub fn check(source: &mut dyn Blocks, progress: &mut dyn FnMut(u64, u64)) -> Report {
    let (mut medium, mut findings) = (Medium::new(source, progress), Findings::default());
    let report = match slots::choose(&mut medium, &mut findings) {
        Ok(superblock) => survey(&superblock, &mut medium, findings),
        Err(reason) => Report::not_checkable(reason),
    };
    medium.finish();
    report
}

/// What is behind a superblock.
fn survey(superblock: &Superblock, medium: &mut Medium, mut findings: Findings) -> Report {
    layout(superblock, medium, &mut findings);
    let mut trees = Trees::new(superblock);
    let pages = space::count_pages(&mut trees, medium, &mut findings, superblock);
    let log_blocks = superblock.geometry.log_blocks;
    medium.expect(pages.min(trees.pages).saturating_add(log_blocks).min(medium.len()));

    let (before, whole) = catalog::read(&mut trees, medium, &mut findings, superblock);
    let owned = maps::walk(&mut trees, medium, &mut findings, superblock, &before);
    let known = whole && owned.layers.values().all(|totals| totals.whole);
    space::check_space(&mut trees, medium, &mut findings, superblock, &owned.clusters, known);
    space::check_pages(&mut trees, medium, &mut findings, superblock);

    let complaints = catalog::judge(&before, &superblock.geometry, whole);
    say(&complaints, "at the last checkpoint", &mut findings);
    let mut replay = Replay::new(superblock, &before, whole, owned);
    let mut batches = 0;
    if let Some(mut log) = Log::new(superblock, medium, &mut findings) {
        while let Some(batch) = log.next(medium, &mut findings) {
            replay.apply(&batch, &mut trees, medium, &mut findings);
            batches += 1;
        }
    }
    replay.finish(medium, &mut findings);
    let mut later = catalog::judge(&replay.layers, &superblock.geometry, whole);
    later.retain(|complaint| !complaints.contains(complaint));
    say(&later, "after the log", &mut findings);

    let used = trees.used.count();
    let pool = pool_report(superblock, &replay.owned, (trees.pages, used));
    Report {
        verdict: if findings.count() == 0 { Verdict::Clean } else { Verdict::Damaged },
        reason: None,
        pool: Some(pool),
        layers: layer_reports(&replay.layers, &replay.owned),
        batches,
        findings_total: findings.count(),
        findings: findings.into_kept(),
    }
}

/// Whether what the superblock lays out fits the medium, and lies where it may.
fn layout(superblock: &Superblock, medium: &Medium, findings: &mut Findings) {
    let geometry = &superblock.geometry;
    let needs = u64::from(geometry.clusters) * u64::from(geometry.cluster_size) / BLOCK as u64;
    if needs > medium.len() {
        findings.add(Flaw::DeviceTooSmall, None, None, || {
            format!("the pool has {needs} blocks, and what it lies on has {}", medium.len())
        });
    }
    for extent in superblock.extents.iter().skip(1).filter(|extent| extent.first < geometry.first_free) {
        findings.add(Flaw::ExtentMisplaced, None, None, || {
            format!("{} clusters of metadata from {} on lie over what was there first", extent.count, extent.first)
        });
    }
}

fn say(complaints: &[Complaint], when: &str, findings: &mut Findings) {
    for Complaint { flaw, layer, what } in complaints {
        findings.add(*flaw, None, Some(*layer), || format!("layer {layer} {what} ({when})"));
    }
}

fn pool_report(superblock: &Superblock, owned: &Owned, pages: (u64, u64)) -> PoolReport {
    let Superblock { pool, name, generation, geometry, .. } = superblock;
    let clusters = owned.clusters.count();
    PoolReport {
        name: name.clone(),
        uuid: *pool,
        generation: *generation,
        cluster_size: geometry.cluster_size,
        clusters: geometry.clusters,
        owned: clusters,
        free: DataArea::new(superblock).count().saturating_sub(clusters),
        pages,
    }
}

fn layer_reports(layers: &Layers, owned: &Owned) -> Vec<LayerReport> {
    let report = |(id, layer): (&u64, &crate::thin::format::Layer)| {
        let totals = owned.layers.get(id).copied().unwrap_or_default();
        LayerReport {
            id: *id,
            name: layer.name.clone(),
            uuid: layer.uuid,
            kind: catalog::kind_word(layer.kind),
            parent: layer.parent,
            size: layer.size,
            owned: totals.owned,
            here: totals.here,
        }
    };
    layers.iter().map(report).collect()
}
