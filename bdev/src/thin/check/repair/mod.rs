//! Repairs a pool. What can be worked out from the rest is: bitmaps, counters, pages above leaves, places of the
//! superblock, the log. What cannot be read is left out, and it is said whose it was and where.
//!
//! Nothing is overwritten that the pool has: the trees go to free pages, then a barrier, then the superblock. So a repair
//! that is cut off leaves the pool as it was. The log is empty afterwards: what it said is in the trees.

mod gather;
mod rebuild;
mod relate;
#[cfg(test)]
mod tests;
mod write;

use serde::Serialize;

use super::catalog::Layers;
use super::log::{END, Log};
use super::maps::Owned;
use super::medium::Medium;
use super::replay::Replay;
use super::report::{Findings, Flaw, Report, Verdict};
use super::source::{Blocks, BlocksMut};
use super::trees::Trees;
use super::{check, slots};
use crate::thin::format::{
    BLOCK, ENTRIES_PER_PAGE, Geometry, Layer, LogHeader, SLOTS, SUB_BLOCKS, Superblock, slot_block,
};
use rebuild::{Sources, ranges};

const SUB: u64 = SUB_BLOCKS as u64;
/// Losses that are kept; the others are counted.
const KEPT: usize = 10_000;

/// A part of a volume or snapshot that cannot be read any more. What stands on it has lost it, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The layer.
    pub layer: u64,
    /// Its name.
    pub name: String,
    /// From this byte of it.
    pub from: u64,
    /// To before this one.
    pub to: u64,
    /// Why.
    pub why: &'static str,
}

/// What a repair does, or has done.
#[derive(Clone, Debug, Serialize)]
pub struct Repair {
    /// What was wrong.
    pub before: Report,
    /// What is lost.
    pub losses: Vec<Loss>,
    /// How many parts are lost.
    pub losses_total: u64,
    /// What else changes for those who use the pool.
    pub notes: Vec<String>,
    /// Pages to be written.
    pub pages: u64,
    /// What a check says afterwards, if it was written.
    pub after: Option<Report>,
}

/// Losses as they are found.
#[derive(Default)]
struct Losses {
    kept: Vec<Loss>,
    total: u64,
}

impl Losses {
    fn add(&mut self, layer: &Layer, from: u64, to: u64, why: &'static str) {
        let to = to.min(layer.size);
        match self.kept.last_mut() {
            Some(last) if last.layer == layer.id && last.to == from && last.why == why => last.to = to,
            _ if from >= to => {}
            _ => {
                self.total += 1;
                if self.kept.len() < KEPT {
                    self.kept.push(Loss { layer: layer.id, name: layer.name.clone(), from, to, why });
                }
            }
        }
    }

    /// These leaves of its map.
    fn leaves(&mut self, layer: &Layer, from: u64, to: u64, geometry: &Geometry) {
        let leaf = ENTRIES_PER_PAGE as u64 * u64::from(geometry.cluster_size);
        let why = "its part of the map cannot be read: what was written here since its parent was made is gone";
        self.add(layer, from.saturating_mul(leaf), to.saturating_mul(leaf), why);
    }

    /// These sub-blocks of a cluster.
    fn sub_blocks(&mut self, layer: &Layer, cluster: u64, mask: u16, geometry: &Geometry, why: &'static str) {
        for (from, to) in ranges(cluster, mask, geometry.cluster_size) {
            self.add(layer, from, to, why);
        }
    }
}

/// Finds out what a repair does, and does it if `write` says so.
///
/// # Errors
/// Why it cannot be repaired; if the medium failed meanwhile, the pool is what it was or repaired.
pub fn repair(source: &mut dyn BlocksMut, write: bool, progress: &mut dyn FnMut(u64, u64)) -> Result<Repair, String> {
    let before = check(source, progress);
    if let Some(reason) = &before.reason {
        return Err(reason.clone());
    }
    let (losses, notes) = (Vec::new(), Vec::new());
    let mut result = Repair { before, losses, losses_total: 0, notes, pages: 0, after: None };
    if result.before.verdict == Verdict::Clean {
        return Ok(result);
    }
    if let Some(cut) = result.before.findings.iter().find(|finding| finding.finding == Flaw::DeviceTooSmall) {
        let message = &cut.message;
        return Err(format!("{message}: make it as large as it was (a sparse end will do), then repair the pool"));
    }
    let (plan, wipe) = prepare(source, &mut result, progress)?;
    result.pages = plan.pages.len() as u64;
    if write {
        commit(source, plan, &wipe)
            .map_err(|error| format!("the medium failed while the pool was repaired: {error}"))?;
        result.after = Some(check(source, progress));
    }
    Ok(result)
}

/// What is to be written; and blocks of the log that are to be zeroes.
fn prepare(
    source: &mut dyn BlocksMut,
    result: &mut Repair,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(write::Plan, Vec<u64>), String> {
    let source: &mut dyn Blocks = source;
    let mut medium = Medium::new(source, progress);
    let superblock = slots::choose(&mut medium, &mut Findings::default())?;
    let mut gathered = gather::gather(&superblock, &mut medium);
    let before = gathered.layers.clone();
    let mut replay = Replay::new(&superblock, &before, true, Owned::default());
    replay_log(&superblock, &mut medium, &mut gathered.trees, &mut replay, &mut result.notes);
    let (mut layers, logged): (Layers, _) = (replay.layers, replay.logged);
    say_lost_layers(&gathered, &layers, &mut result.notes);
    relate::relate(&mut layers, &superblock, &mut result.notes);

    let mut losses = Losses::default();
    for missing in &gathered.missing {
        let Some(layer) = layers.get(&missing.layer) else { continue };
        for (mut from, to) in gathered.holes(missing) {
            // What the log says in full does not need the tree.
            let said = logged.range((layer.id, from)..(layer.id, to)).filter(|(_, logged)| logged.is_all());
            for ((_, leaf), _) in said {
                losses.leaves(layer, from, *leaf, &superblock.geometry);
                from = leaf + 1;
            }
            losses.leaves(layer, from, to, &superblock.geometry);
        }
    }
    let inside = Trees::new(&Superblock { extents: write::extents(&superblock), ..superblock.clone() });
    let sources =
        Sources { superblock: &superblock, gathered: &gathered, layers: &layers, logged: &logged, inside: &inside };
    let mut rebuilt = sources.rebuild(&mut medium, &mut losses);
    (result.losses, result.losses_total) = (losses.kept, losses.total);
    let (next, wipe) = end_of_log(&superblock, &mut medium);
    let plan = write::plan(&superblock, &gathered, &layers, &mut rebuilt, next)?;
    medium.finish();
    Ok((plan, wipe))
}

fn replay_log(
    superblock: &Superblock,
    medium: &mut Medium,
    trees: &mut Trees,
    replay: &mut Replay,
    notes: &mut Vec<String>,
) {
    let mut findings = Findings::default();
    if let Some(mut log) = Log::new(superblock, medium, &mut findings) {
        while let Some(batch) = log.next(medium, &mut findings) {
            // What is wrong with a batch was said; its entries are as it says.
            replay.apply(&batch, trees, medium, &mut Findings::default());
        }
    }
    for finding in findings.into_kept() {
        notes.push(format!("what the log says from there on is lost: {}", finding.message));
    }
}

fn say_lost_layers(gathered: &gather::Gathered, layers: &Layers, notes: &mut Vec<String>) {
    for id in &gathered.nameless {
        if let Some(layer) = layers.get(id) {
            let name = &layer.name;
            notes.push(format!(
                "of layer {id} only the map is left: it is called '{name}', and what it stood on, its size and its limits are lost"
            ));
        }
    }
    for id in gathered.unreadable.iter().filter(|id| !layers.contains_key(id)) {
        notes.push(format!("the place of layer {id} in the catalog cannot be read, and nothing of its map was found"));
    }
}

/// The first block and batch of the log that were never used, and blocks that would hide that.
fn end_of_log(superblock: &Superblock, medium: &mut Medium) -> ((u64, u64), Vec<u64>) {
    let valid = |number: u64| if number < END { number } else { 0 };
    let (mut next, mut wipe) = ((valid(superblock.log_from), valid(superblock.batch_from).max(1)), Vec::new());
    let Geometry { log_start, log_blocks, .. } = superblock.geometry;
    for block in log_start..log_start + log_blocks {
        let Ok(bytes) = medium.read(block) else {
            wipe.push(block);
            continue;
        };
        let Some((header, _)) = LogHeader::open(&bytes, superblock.pool) else { continue };
        if header.seq < END - 1 && header.batch < END - 1 {
            next = (next.0.max(header.seq + 1), next.1.max(header.batch + 1));
        } else {
            wipe.push(block);
        }
    }
    (next, wipe)
}

/// Writes it: pages, a barrier, and the superblock in all places, one after the other.
fn commit(source: &mut dyn BlocksMut, plan: write::Plan, wipe: &[u64]) -> std::io::Result<()> {
    for (header, mut page) in plan.pages {
        source.write(header.block, page.close(&header))?;
    }
    source.barrier()?;
    for more in 0..u64::from(SLOTS) {
        let generation = plan.superblock.generation.saturating_add(more);
        let slot = (generation % u64::from(SLOTS)) as u32;
        let one = Superblock { generation, ..plan.superblock.clone() };
        source.write(slot_block(slot), &one.close(slot))?;
        source.barrier()?;
    }
    for block in wipe {
        source.write(*block, &[0; BLOCK])?;
    }
    source.barrier()
}
