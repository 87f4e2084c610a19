//! The four places of the superblock: which one counts, and whether the others are what they have to be.
//!
//! Generation `g` lies in place `g % 4`, and each generation is written once. So if `G` counts, the others hold `G-1`,
//! `G-2` and `G-3`. The last of these is the one that is written next: a crash may have torn it. Generation 1 is written to
//! all places, and a crash may have come between; so places that had no turn yet hold it, or nothing.

use super::medium::Medium;
use super::report::{Findings, Flaw};
use crate::thin::format::{BLOCK, SLOTS, Superblock, SuperblockError, is_sealed, slot_block};

/// What lies in a place.
enum Slot {
    Good(Box<Superblock>),
    /// Nothing was ever written there.
    Zeroes,
    /// It was cut off, or damaged.
    Torn(String),
    /// It was written as a whole, but not by a pool that works.
    Wrong(&'static str),
    Newer(SuperblockError),
}

/// The superblock that counts.
///
/// # Errors
/// Why there is none.
pub(super) fn choose(medium: &mut Medium, findings: &mut Findings) -> Result<Superblock, String> {
    let slots: Vec<Slot> = (0..SLOTS).map(|slot| look(medium, slot)).collect();
    // A later version would have left older superblocks in the other places: they do not count.
    if let Some(error) = slots.iter().find_map(|slot| if let Slot::Newer(error) = slot { Some(error) } else { None }) {
        return Err(error.to_string());
    }
    let good = slots.iter().filter_map(|slot| if let Slot::Good(superblock) = slot { Some(superblock) } else { None });
    let Some(best) = good.max_by_key(|superblock| superblock.generation).cloned() else {
        return Err("it is no thin pool, or all four of its superblocks are damaged".into());
    };
    for (slot, number) in slots.iter().zip(0..) {
        judge(slot, number, &best, findings);
    }
    Ok(*best)
}

fn look(medium: &mut Medium, slot: u32) -> Slot {
    let bytes = match medium.read(slot_block(slot)) {
        Ok(bytes) => bytes,
        Err(error) => return Slot::Torn(error.to_string()),
    };
    match Superblock::open(&bytes, slot) {
        Ok(superblock) => Slot::Good(Box::new(superblock)),
        Err(SuperblockError::Damaged(_)) if *bytes == [0; BLOCK] => Slot::Zeroes,
        Err(SuperblockError::Damaged(what)) if is_sealed(&bytes) => Slot::Wrong(what),
        Err(SuperblockError::Damaged(what)) => Slot::Torn(what.into()),
        Err(newer) => Slot::Newer(newer),
    }
}

/// Whether what lies in a place fits the superblock that counts.
fn judge(slot: &Slot, number: u32, best: &Superblock, findings: &mut Findings) {
    let block = Some(slot_block(number));
    let age = (best.generation % u64::from(SLOTS) + u64::from(SLOTS - number)) % u64::from(SLOTS);
    // The generation whose turn it was here; 0: none yet.
    let turn = best.generation.saturating_sub(age);
    let next = age == u64::from(SLOTS) - 1;
    match slot {
        Slot::Good(found) if found.generation != turn.max(1) => {
            let found = found.generation;
            findings.add(Flaw::SuperblockMisplaced, block, None, || {
                format!("place {number} of the superblock has generation {found}, and it was the turn of {turn}")
            });
        }
        Slot::Good(found) if constants(found) != constants(best) => {
            findings.add(Flaw::SuperblockDiffers, block, None, || {
                format!("the superblock in place {number} is another pool's, or its geometry is another")
            });
        }
        Slot::Wrong(what) => {
            findings
                .add(Flaw::SuperblockMisplaced, block, None, || format!("place {number} of the superblock: {what}"));
        }
        Slot::Torn(what) if turn > 0 && !next => {
            findings
                .add(Flaw::SuperblockUnreadable, block, None, || format!("place {number} of the superblock: {what}"));
        }
        Slot::Zeroes if turn > 0 && !next => {
            findings.add(Flaw::SuperblockUnreadable, block, None, || {
                format!("place {number} of the superblock holds zeroes, and it was the turn of generation {turn}")
            });
        }
        _ => {}
    }
}

/// What is the same in all superblocks of a pool, ever.
fn constants(superblock: &Superblock) -> impl PartialEq + use<> {
    let geometry = superblock.geometry;
    let layout =
        (geometry.cluster_size, geometry.log_start, geometry.log_blocks, geometry.first_free, geometry.metadata);
    (superblock.pool, superblock.created, layout)
}
