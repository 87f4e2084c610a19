//! Reads the record of a fault device (`bdev/src/fault/record.rs`) and makes of it what the medium below might hold if the
//! power had failed after any of its entries.
//!
//! What holds of such a medium: a change is durable when it had completed before a flush was submitted that has completed,
//! or when it has completed and had FUA. Any other that was submitted may be there, or not, or be there in part, block by
//! block. Of two that touch a block the one that was submitted later is what is left, if it is there.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::rng::Rng;

/// What a power cut leaves whole: a sector.
const BLOCK: u64 = 512;
const HEAD: u64 = 32;
/// More requests than there ever are.
const NUMBERS: u64 = (1 << 56) - 1;

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Its data is in the record, from this byte on.
    Data(u64),
    /// Zeroes are there afterwards. Of a discard, too: the file below reads so.
    Zeroes,
}

/// One change of the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    what: What,
    fua: bool,
    /// It is there as a whole or not at all.
    atomic: bool,
    offset: u64,
    len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The device was made, on a medium of this size.
    Begin(u64),
    Change(u64, Change),
    Flush(u64),
    /// Something has ended, and well or not.
    End(u64, bool),
}

/// A record that was read. Data stays in the file.
#[derive(Debug)]
pub struct Record {
    file: File,
    events: Vec<Event>,
    size: u64,
}

impl Record {
    /// Reads all whole entries: the last one may be cut off.
    ///
    /// # Errors
    /// If the file is not a record, or says what cannot be.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let end = file.metadata()?.len();
        let (mut events, mut at, mut size) = (Vec::new(), 0, 0);
        // Numbers begin anew with each begin.
        let (mut before, mut last) = (0, 0);
        while at + HEAD <= end {
            let mut head = [0; HEAD as usize];
            file.read_exact_at(&mut head, at)?;
            let (event, data) =
                parse(&head, at + HEAD, before).with_context(|| format!("entry {} at {at}", events.len()))?;
            at += HEAD + data;
            if at > end {
                break;
            }
            match event {
                Event::Begin(bytes) => (size, before) = (bytes, last),
                Event::Change(id, _) | Event::Flush(id) => last = last.max(id),
                Event::End(..) => {}
            }
            events.push(event);
        }
        ensure!(matches!(events.first(), Some(Event::Begin(_))), "a record begins with the making of its device");
        Ok(Record { file, events, size })
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The numbers of entries after which something new is durable: a flush has just completed, or a change with FUA.
    #[must_use]
    pub fn acknowledged(&self) -> Vec<usize> {
        let mut promises = BTreeMap::new();
        let mut all = Vec::new();
        for (event, at) in self.events.iter().zip(1..) {
            match event {
                Event::Flush(id) => _ = promises.insert(*id, ()),
                Event::Change(id, change) if change.fua => _ = promises.insert(*id, ()),
                Event::End(id, true) if promises.remove(id).is_some() => all.push(at),
                Event::Begin(_) => promises.clear(),
                _ => {}
            }
        }
        all
    }
}

fn parse(head: &[u8; HEAD as usize], data_at: u64, before: u64) -> Result<(Event, u64)> {
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    ensure!(&head[..4] == b"PLXR" && head[6..8] == [0, 0], "no entry: {head:02x?}");
    let (flags, id, offset, len) = (head[5], before + (number(8) & NUMBERS), number(16), number(24));
    ensure!(flags & !3 == 0, "unknown flags {flags:#x}");
    ensure!(offset.checked_add(len).is_some_and(|end| end.is_multiple_of(BLOCK)), "{len} bytes at {offset}");
    let change = |what| Event::Change(id, Change { what, fua: flags & 1 != 0, atomic: flags & 2 != 0, offset, len });
    Ok(match head[4] {
        0 => (Event::Begin(len), 0),
        1 => (change(What::Data(data_at)), len),
        2 | 3 => (change(What::Zeroes), 0),
        4 => (Event::Flush(id), 0),
        5 => (Event::End(id, true), 0),
        6 => (Event::End(id, false), 0),
        kind => bail!("unknown kind {kind}"),
    })
}

/// A promise that a medium does not keep, to see that its user is found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lie {
    /// It keeps all.
    #[default]
    None,
    /// Flushes do nothing.
    Flushes,
    /// FUA does nothing.
    Fua,
}

/// What a power cut leaves of what is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// All of it.
    All,
    /// Of each change all, nothing, or some blocks, by a seed.
    Seeded(u64),
}

/// A change that is not durable.
#[derive(Debug)]
struct Open {
    change: Change,
    done: bool,
}

/// A medium that goes through a record.
#[derive(Debug)]
pub struct Medium<'r> {
    record: &'r Record,
    lie: Lie,
    /// Entries that have happened.
    at: usize,
    /// What is durable.
    image: File,
    path: PathBuf,
    /// By block: the change whose content is durable.
    newest: Vec<u64>,
    open: BTreeMap<u64, Open>,
    /// Flushes under way, and what they make durable.
    flushes: BTreeMap<u64, Vec<u64>>,
}

impl<'r> Medium<'r> {
    /// A medium of zeroes, before everything. What is durable is kept in a new file at `path`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn new(record: &'r Record, path: &Path, lie: Lie) -> Result<Self> {
        let image = File::options().read(true).write(true).create_new(true).open(path)?;
        image.set_len(record.size)?;
        let newest = vec![0; usize::try_from(record.size / BLOCK)?];
        let (open, flushes) = (BTreeMap::new(), BTreeMap::new());
        Ok(Medium { record, lie, at: 0, image, path: path.to_owned(), newest, open, flushes })
    }

    /// Goes on until so many entries have happened.
    ///
    /// # Errors
    /// If the record does not fit the medium, or the file cannot be written.
    pub fn go_to(&mut self, at: usize) -> Result<()> {
        ensure!(self.at <= at && at <= self.record.len(), "from entry {} to {at}", self.at);
        while self.at < at {
            self.happens(self.record.events[self.at]).with_context(|| format!("entry {}", self.at))?;
            self.at += 1;
        }
        Ok(())
    }

    fn happens(&mut self, event: Event) -> Result<()> {
        match event {
            // What was under way is not heard of any more.
            Event::Begin(_) => self.flushes.clear(),
            Event::Change(id, change) => {
                ensure!(change.offset + change.len <= self.record.size, "{change:?} is not on the medium");
                self.open.insert(id, Open { change, done: false });
            }
            Event::Flush(id) => {
                let done = self.open.iter().filter(|(_, open)| open.done).map(|(id, _)| *id);
                self.flushes.insert(id, if self.lie == Lie::Flushes { Vec::new() } else { done.collect() });
            }
            Event::End(_, false) => {}
            Event::End(id, true) => {
                if let Some(covered) = self.flushes.remove(&id) {
                    return covered.into_iter().try_for_each(|id| self.becomes_durable(id));
                }
                let open = self.open.get_mut(&id).context("the end of what has not begun")?;
                open.done = true;
                if open.change.fua && self.lie != Lie::Fua {
                    self.becomes_durable(id)?;
                }
            }
        }
        Ok(())
    }

    fn becomes_durable(&mut self, id: u64) -> Result<()> {
        // Another flush may have been before this one.
        let Some(Open { change, .. }) = self.open.remove(&id) else { return Ok(()) };
        apply(&self.record.file, &self.image, &change, |block| {
            let newest = &mut self.newest[block as usize];
            let wins = id > *newest;
            *newest = id.max(*newest);
            wins
        })
    }

    /// How many changes a power cut would decide about now.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.open.len()
    }

    /// Makes a file with what a power cut leaves now.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn crash(&self, left: Left, to: &Path) -> Result<()> {
        let copied = Command::new("cp").arg("--sparse=always").arg(&self.path).arg(to).status().context("cp")?;
        ensure!(copied.success(), "cp ended with {copied}");
        let image = File::options().write(true).open(to)?;
        let mut rng = Rng::new(match left {
            Left::Seeded(seed) => seed,
            Left::Nothing | Left::All => 0,
        });
        for (id, Open { change, .. }) in &self.open {
            let (some, all) = match left {
                Left::Nothing => continue,
                Left::All => (true, true),
                Left::Seeded(_) => (rng.chance(2, 3), change.atomic || rng.chance(1, 2)),
            };
            if some {
                let newest = &self.newest;
                let stays = |block: u64| *id > newest[block as usize] && (all || rng.chance(1, 2));
                apply(&self.record.file, &image, change, stays)?;
            }
        }
        Ok(())
    }
}

/// Does those blocks of a change that `wanted` wants.
fn apply(record: &File, image: &File, change: &Change, mut wanted: impl FnMut(u64) -> bool) -> Result<()> {
    let first = change.offset / BLOCK;
    let mut bytes = vec![0; usize::try_from(change.len)?];
    if let What::Data(at) = change.what {
        record.read_exact_at(&mut bytes, at).context("a write's data")?;
    }
    let wanted: Vec<bool> = (first..first + change.len / BLOCK).map(&mut wanted).collect();
    // Runs of blocks, for zeroes are many.
    let mut at = 0;
    while at < wanted.len() {
        let run = wanted[at..].iter().take_while(|is| **is == wanted[at]).count();
        if wanted[at] {
            let size = BLOCK as usize;
            image.write_all_at(&bytes[at * size..(at + run) * size], change.offset + at as u64 * BLOCK)?;
        }
        at += run;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use tempfile::TempDir;

    const WRITE: u8 = 1;
    const DISCARD: u8 = 3;
    const FLUSH: u8 = 4;
    const DONE: u8 = 5;
    const FAILED: u8 = 6;

    fn entry(kind: u8, flags: u8, id: u64, block: u64, blocks: u64, fill: u8) -> Vec<u8> {
        let mut bytes = [&b"PLXR"[..], &[kind, flags, 0, 0]].concat();
        [id, block * BLOCK, blocks * BLOCK].iter().for_each(|n| bytes.extend_from_slice(&n.to_le_bytes()));
        bytes.resize(bytes.len() + if kind == WRITE { (blocks * BLOCK) as usize } else { 0 }, fill);
        bytes
    }

    fn begin() -> Vec<u8> {
        entry(0, 0, 0, 0, 4, 0)
    }

    fn record(dir: &TempDir, entries: &[Vec<u8>]) -> Result<Record> {
        let path = dir.path().join("record");
        std::fs::write(&path, entries.concat()).unwrap();
        Record::open(&path)
    }

    /// The first byte of each block that a power cut leaves after each entry.
    fn left(record: &Record, at: usize, lie: Lie, left: Left) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let mut medium = Medium::new(record, &dir.path().join("durable"), lie).unwrap();
        medium.go_to(at).unwrap();
        medium.crash(left, &dir.path().join("left")).unwrap();
        let bytes = std::fs::read(dir.path().join("left")).unwrap();
        bytes.chunks(512).map(|block| block[0]).collect()
    }

    #[test]
    fn what_had_completed_before_a_flush_is_durable_when_that_has() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            begin(),
            entry(WRITE, 0, 1, 0, 1, 1),
            entry(WRITE, 0, 2, 1, 1, 2),
            entry(DONE, 0, 1, 0, 0, 0),
            entry(FLUSH, 0, 3, 0, 0, 0),
            entry(DONE, 0, 2, 0, 0, 0),
            entry(DONE, 0, 3, 0, 0, 0),
        ];
        let record = record(&dir, &entries).unwrap();
        let at = |at, which| left(&record, at, Lie::None, which);
        assert_eq!(at(6, Left::Nothing), [0, 0, 0, 0]);
        assert_eq!(at(7, Left::Nothing), [1, 0, 0, 0]);
        assert_eq!(at(7, Left::All), [1, 2, 0, 0]);
        assert_eq!(at(2, Left::All), [1, 0, 0, 0], "what was not submitted is not there");
        assert_eq!(left(&record, 7, Lie::Flushes, Left::Nothing), [0; 4]);
        assert_eq!(record.acknowledged(), [7]);
    }

    #[test]
    fn fua_is_durable_by_itself_and_what_is_newer_stays() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            begin(),
            entry(WRITE, 0, 1, 0, 2, 1),
            entry(DONE, 0, 1, 0, 0, 0),
            entry(WRITE, 1, 2, 0, 1, 2),
            entry(DONE, 0, 2, 0, 0, 0),
            entry(FLUSH, 0, 3, 0, 0, 0),
            entry(DONE, 0, 3, 0, 0, 0),
            entry(DISCARD, 0, 4, 0, 4, 0),
            entry(FAILED, 0, 4, 0, 0, 0),
        ];
        let record = record(&dir, &entries).unwrap();
        assert_eq!(left(&record, 5, Lie::None, Left::Nothing), [2, 0, 0, 0]);
        assert_eq!(left(&record, 5, Lie::None, Left::All), [2, 1, 0, 0]);
        assert_eq!(left(&record, 7, Lie::None, Left::Nothing), [2, 1, 0, 0], "an older write does not come back");
        assert_eq!(left(&record, 5, Lie::Fua, Left::Nothing), [0; 4]);
        assert_eq!(left(&record, 9, Lie::None, Left::All), [0; 4], "what has failed may be there");
        assert_eq!(record.acknowledged(), [5, 7]);
    }

    #[test]
    fn a_device_that_is_made_again_numbers_anew() {
        let dir = tempfile::tempdir().unwrap();
        let twice =
            [begin(), entry(WRITE, 0, 1, 0, 1, 1), begin(), entry(WRITE, 1, 1, 1, 1, 2), entry(DONE, 0, 1, 0, 0, 0)];
        let record = record(&dir, &twice).unwrap();
        assert_eq!(left(&record, 5, Lie::None, Left::Nothing), [0, 2, 0, 0]);
        assert_eq!(left(&record, 5, Lie::None, Left::All), [1, 2, 0, 0]);
    }

    #[test]
    fn seeds_leave_everything_that_may_be_left() {
        let dir = tempfile::tempdir().unwrap();
        let open = |flags| record(&dir, &[begin(), entry(WRITE, flags, 1, 0, 2, 1)]).unwrap();
        let all = |record: &Record| -> BTreeSet<_> {
            (0..64).map(|seed| left(record, 2, Lie::None, Left::Seeded(seed))).collect()
        };
        assert_eq!(all(&open(0)), [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]].map(Vec::from).into());
        assert_eq!(all(&open(2)), [[0, 0, 0, 0], [1, 1, 0, 0]].map(Vec::from).into(), "an atomic one is not torn");
    }

    #[test]
    fn what_is_no_record_is_refused_and_one_that_is_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let whole = record(&dir, &[begin(), entry(WRITE, 0, 1, 0, 1, 1)]).unwrap();
        assert_eq!((whole.len(), whole.is_empty()), (2, false));
        let mut cut = entry(WRITE, 0, 1, 0, 1, 1);
        cut.pop();
        assert_eq!(record(&dir, &[begin(), cut]).unwrap().len(), 1);
        for bad in [vec![], entry(WRITE, 0, 1, 0, 1, 1), [begin(), vec![0; 32]].concat(), entry(9, 0, 0, 0, 0, 0)] {
            assert!(record(&dir, &[bad]).is_err());
        }
        let beyond = record(&dir, &[begin(), entry(WRITE, 0, 1, 4, 1, 1)]).unwrap();
        let mut medium = Medium::new(&beyond, &dir.path().join("durable"), Lie::None).unwrap();
        assert!(medium.go_to(2).is_err());
    }
}
