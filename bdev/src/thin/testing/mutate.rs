//! Breaks a pool at random, with checksums that fit: what a fuzzer's bytes, or a property test's, make of the story.

use super::image::Built;
use crate::thin::check::{Verdict, check, repair};
use crate::thin::format::{BLOCK, SLOTS, slot_block};

/// Bytes that one change takes.
const STEP: usize = 12;

/// Changes the pool as these bytes say, any bytes.
pub fn mutate(built: &mut Built, bytes: &[u8]) {
    let mut blocks: Vec<u64> = built.memory.blocks.keys().copied().collect();
    blocks.sort_unstable();
    for step in bytes.chunks_exact(STEP) {
        let short = |at: usize| usize::from(u16::from_le_bytes([step[at], step[at + 1]]));
        let (one, other, offset) = (blocks[short(1) % blocks.len()], blocks[short(3) % blocks.len()], short(5) % BLOCK);
        let value = value(&blocks, step[7], short(8));
        change(built, step[0] % 9, (one, other), offset, value);
    }
}

/// A number that may mean something.
fn value(blocks: &[u64], kind: u8, raw: usize) -> u64 {
    let interesting = [0, 1, u64::MAX, 1 << 31, (1 << 31) - 1, 1 << 47, 1 << 62, 252, 504, 0xFFFF_0000_0000_0000];
    match kind % 4 {
        0 => interesting[raw % interesting.len()],
        1 => blocks[raw % blocks.len()],
        2 => raw as u64,
        _ => (raw as u64) << (raw % 48),
    }
}

fn change(built: &mut Built, kind: u8, (one, other): (u64, u64), offset: usize, value: u64) {
    let word = offset & !7;
    let set = |bytes: &mut [u8; BLOCK]| bytes[word..word + 8].copy_from_slice(&value.to_le_bytes());
    match kind {
        0 => _ = built.memory.blocks.entry(one).and_modify(|bytes| bytes[offset] ^= value as u8 | 1),
        1 => built.edit_block(one, |bytes| bytes[offset] ^= value as u8 | 1),
        2 => built.edit_block(one, set),
        3 => {
            let bytes = built.memory.block(other);
            built.memory.blocks.insert(one, bytes);
        }
        // Another page in its place, which says that it belongs there.
        4 => {
            let mut bytes = built.memory.block(other);
            bytes[24..32].copy_from_slice(&one.to_le_bytes());
            built.memory.blocks.insert(one, bytes);
            built.edit_block(one, |_| {});
        }
        // A pointer, entry or record of another page.
        5 => {
            let at = offset & !15;
            let bytes = built.memory.block(other);
            built.edit_block(one, |to| to[at..at + 16].copy_from_slice(&bytes[at..at + 16]));
        }
        6 => (0..SLOTS).for_each(|slot| built.edit_block(slot_block(slot), |bytes| bytes[offset] = value as u8)),
        7 => (0..SLOTS).for_each(|slot| built.edit_block(slot_block(slot), set)),
        _ => _ = built.memory.bad.insert(one),
    }
}

/// Checks and repairs what may be anything.
///
/// # Errors
/// If it takes too long, or the pool is not clean afterwards.
pub fn survive(mut built: Built) -> Result<(), String> {
    let report = check(&mut built.memory, &mut |_, _| {});
    // Superblocks, the pages twice, the log twice, and a few for each record.
    let (reads, len) = (built.memory.reads, built.memory.len);
    if reads > len * 4 {
        return Err(format!("{reads} blocks were read of {len}"));
    }
    if report.verdict != Verdict::Damaged {
        return Ok(());
    }
    // It may say that it cannot: no room, a medium that was cut, numbers that are used up.
    let Ok(repaired) = repair(&mut built.memory, true, &mut |_, _| {}) else { return Ok(()) };
    match repaired.after {
        Some(after) if after.is_clean() => Ok(()),
        after => Err(format!("{after:#?}")),
    }
}
