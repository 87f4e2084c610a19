//! Numbered records on a disk, and what of them has to be there: for a guest that never flushes.
//!
//! `record_writer` runs in the guest: each of its threads writes records one after the other into blocks of its own, and
//! says so on the console when a write was acknowledged ([`Report`]). The test reads the console and holds the medium
//! against it ([`Ledger`]). A block that was acknowledged holds that record or a later one of its thread. Reports may be
//! late, never early; so the medium may be looked at later than the console, but for zeroes.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// The content of a block of a record.
#[must_use]
pub fn content(seq: u64, block: u64) -> Vec<u8> {
    [seq.to_le_bytes(), block.to_le_bytes()].concat().repeat(BLOCK / 16)
}

/// What is said about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Data was written, and that was acknowledged.
    Wrote,
    /// The blocks are about to be zeroed: zeroes do not say who made them. This comes early, not late.
    Zeroing,
    /// That was acknowledged.
    Zeroed,
}

/// One line on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which disk, as the test numbers them.
    pub disk: u8,
    /// What has happened.
    pub stage: Stage,
    /// The record's number: rising for each block.
    pub seq: u64,
    /// Its first block.
    pub first: u64,
    /// How many.
    pub blocks: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { disk, stage, seq, first, blocks } = self;
        let stage = match stage {
            Stage::Wrote => 'W',
            Stage::Zeroing => 'z',
            Stage::Zeroed => 'Z',
        };
        // The last word shows a line that the kernel broke in the middle.
        write!(f, "#{disk} {stage} {seq} {first} {blocks} .")
    }
}

impl FromStr for Report {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.trim().split(' ').collect();
        let [disk, stage, seq, first, blocks, "."] = words[..] else { bail!("no report: {line}") };
        let stage = match stage {
            "W" => Stage::Wrote,
            "z" => Stage::Zeroing,
            "Z" => Stage::Zeroed,
            _ => bail!("no stage: {line}"),
        };
        let disk = disk.strip_prefix('#').context("no report")?.parse()?;
        Ok(Report { disk, stage, seq: seq.parse()?, first: first.parse()?, blocks: blocks.parse()? })
    }
}

/// What a block has to hold.
#[derive(Clone, Copy, Default)]
struct Due {
    /// The last record that was acknowledged, and whether it was zeroes.
    seq: u64,
    zeroes: bool,
    /// The last zeroing that was begun.
    zeroing: u64,
}

/// What was acknowledged on one disk.
pub struct Ledger {
    due: Vec<Due>,
    /// Records that were acknowledged.
    pub acknowledged: u64,
}

impl Ledger {
    /// Of a disk that holds zeroes.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        Ledger { due: vec![Due { zeroes: true, ..Due::default() }; blocks], acknowledged: 0 }
    }

    /// Takes in a report.
    ///
    /// # Errors
    /// If it is none of this disk.
    pub fn note(&mut self, report: &Report) -> Result<()> {
        let Report { stage, seq, first, blocks, .. } = *report;
        let range = first as usize..(first + blocks) as usize;
        for due in self.due.get_mut(range).with_context(|| format!("{report} is not on the disk"))? {
            match stage {
                Stage::Zeroing => due.zeroing = seq.max(due.zeroing),
                Stage::Wrote | Stage::Zeroed => {
                    ensure!(seq > due.seq, "{report} comes after {}", due.seq);
                    (due.seq, due.zeroes) = (seq, stage == Stage::Zeroed);
                }
            }
        }
        self.acknowledged += u64::from(stage != Stage::Zeroing);
        Ok(())
    }

    /// Which blocks hold less than was acknowledged, on a disk whose blocks hold these records.
    #[must_use]
    pub fn lost(&self, held: &[u64]) -> Vec<String> {
        let is_lost = |&(_, (due, held)): &(usize, (&Due, &u64))| match held {
            0 => !due.zeroes && due.zeroing <= due.seq,
            seq => *seq < due.seq || (*seq == due.seq && due.zeroes),
        };
        let text = |(block, (due, held)): (usize, (&Due, &u64))| {
            let kind = if due.zeroes { "zeroes of " } else { "" };
            format!("block {block} holds record {held} instead of {kind}record {}", due.seq)
        };
        self.due.iter().zip(held).enumerate().filter(is_lost).map(text).collect()
    }
}

/// The numbers of the records that the blocks of a disk hold; 0 for zeroes.
///
/// # Errors
/// If a block holds what nobody wrote there.
pub fn held(disk: &[u8]) -> Result<Vec<u64>> {
    disk.chunks(BLOCK).enumerate().map(|(block, bytes)| held_by(block as u64, bytes)).collect()
}

fn held_by(block: u64, bytes: &[u8]) -> Result<u64> {
    let seq = u64::from_le_bytes(bytes[..8].try_into()?);
    let good = if seq == 0 { bytes.iter().all(|byte| *byte == 0) } else { bytes == content(seq, block) };
    ensure!(good, "block {block} is torn or foreign: it begins with {:02x?}", &bytes[..32]);
    Ok(seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stage: Stage, seq: u64) -> Report {
        Report { disk: 3, stage, seq, first: 1, blocks: 2 }
    }

    fn disk(seq: u64) -> Vec<u8> {
        let block = |block| if seq == 0 { vec![0; BLOCK] } else { content(seq, block) };
        [vec![0; BLOCK], block(1), block(2), vec![0; BLOCK]].concat()
    }

    #[test]
    fn lines_are_whole_or_none() {
        let written = report(Stage::Zeroing, 12);
        let line = written.to_string();
        assert_eq!(line.parse::<Report>().unwrap(), written);
        for cut in 0..line.len() {
            assert!(line[..cut].parse::<Report>().is_err(), "{}", &line[..cut]);
        }
        assert!("#3 W 12 1[ 1.5] sd 2 .".parse::<Report>().is_err());
    }

    #[test]
    fn an_acknowledged_record_or_a_later_one_is_there() {
        let mut ledger = Ledger::new(4);
        ledger.note(&report(Stage::Wrote, 5)).unwrap();
        let lost = |ledger: &Ledger, seq| ledger.lost(&held(&disk(seq)).unwrap()).len();
        assert_eq!([0, 4, 5, 6].map(|seq| lost(&ledger, seq)), [2, 2, 0, 0]);
        ledger.note(&report(Stage::Zeroing, 6)).unwrap();
        assert_eq!([0, 4, 5, 6].map(|seq| lost(&ledger, seq)), [0, 2, 0, 0], "zeroes may be there already");
        ledger.note(&report(Stage::Zeroed, 6)).unwrap();
        assert_eq!([0, 4, 5, 7].map(|seq| lost(&ledger, seq)), [0, 2, 2, 0]);
        ledger.note(&report(Stage::Wrote, 7)).unwrap();
        assert_eq!([0, 5, 7].map(|seq| lost(&ledger, seq)), [2, 2, 0]);
        assert_eq!(ledger.acknowledged, 3);
        assert!(ledger.note(&report(Stage::Wrote, 6)).is_err());
    }

    #[test]
    fn what_nobody_wrote_is_an_error() {
        let mut torn = disk(5);
        torn[BLOCK + 100] ^= 1;
        assert!(held(&torn).is_err());
        let moved = [content(5, 1), disk(0)[BLOCK..].to_vec()].concat();
        assert!(held(&moved).is_err());
    }
}
