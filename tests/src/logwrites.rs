//! Reads the log of the kernel's `dm-log-writes` target and replays it: what a disk would hold if the power had failed at
//! any point of its history.
//!
//! The target stands above a disk and writes a second one, the log. What makes it a judge of flushes: a write enters the
//! log not when it completes but with the next flush that is submitted after that (or at once, if it has FUA), so a write
//! that no flush covered is missing from everything before the next flush. A mark (`dmsetup message DEVICE 0 mark NAME`)
//! enters the log at once.
//!
//! Layout (Linux, `drivers/md/dm-log-writes.c`; all numbers little-endian, lengths and positions in sectors of the size
//! that the superblock names):
//!
//! ```text
//! sector 0        superblock: magic u64, version u64, entries u64, bytes per sector u32
//! then, in turn   entry: sector u64, sectors u64, flags u64, length of inline data u64; a mark's text follows in the
//!                 same sector
//!                 the data of a write, `sectors` long; a discard has none
//! ```
//!
//! A log comes from the kernel of a test VM whose disks hold anything: nothing in it is trusted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const ENTRY_LEN: usize = 32;

const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
const METADATA: u64 = 1 << 4;

/// What a discarded range holds after a replay. A device promises nothing about it, so it is not zeroes, which would hide
/// a reliance on them.
pub const DISCARDED: u8 = 0xdd;

/// One step of a disk's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Data, or none for a flush alone.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
        /// It began with a flush.
        flush: bool,
        /// It was written through the cache.
        fua: bool,
        /// Where its data is in the log, in bytes.
        data_at: u64,
    },
    /// A range was given back.
    Discard {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// Somebody wrote a name into the log.
    Mark(String),
}

/// A log that was read.
#[derive(Debug)]
pub struct Log {
    file: File,
    entries: Vec<Entry>,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Log {
    /// Reads all entries of a log; data stays in the file.
    ///
    /// # Errors
    /// If the file is not a log, or says what cannot be.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let end = file.metadata()?.len();
        let mut head = [0; 28];
        file.read_exact_at(&mut head, 0).context("the superblock")?;
        let (magic, version, count) = (number(&head, 0), number(&head, 8), number(&head, 16));
        let sector = u64::from(u32::from_le_bytes(head[24..].try_into()?));
        ensure!(magic == MAGIC, "the superblock has the magic number {magic:#x}, not {MAGIC:#x}");
        ensure!(version == VERSION, "the log has version {version}; only {VERSION} is known");
        ensure!((512..=65536).contains(&sector) && sector.is_power_of_two(), "sectors of {sector} bytes");

        let mut entries = Vec::new();
        let mut at = sector;
        for index in 0..count {
            let (entry, next) = read_entry(&file, at, sector, end).with_context(|| format!("entry {index} at {at}"))?;
            entries.push(entry);
            at = next;
        }
        Ok(Log { file, entries })
    }

    /// The history.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// A replay from a disk of `size` zero bytes.
    #[must_use]
    pub fn replay(&self, size: usize) -> Replay<'_> {
        Replay { log: self, next: 0, image: vec![0; size] }
    }
}

fn read_entry(file: &File, at: u64, sector: u64, end: u64) -> Result<(Entry, u64)> {
    let mut bytes = vec![0; sector as usize];
    file.read_exact_at(&mut bytes, at)?;
    let (flags, inline) = (number(&bytes, 16), number(&bytes, 24));
    ensure!(flags & !(FLUSH | FUA | DISCARD | MARK | METADATA) == 0, "unknown flags {flags:#x}");
    let scale = |sectors: u64| sectors.checked_mul(sector).context("a position beyond 64 bits");
    let (offset, len) = (scale(number(&bytes, 0))?, scale(number(&bytes, 8))?);
    let after = at + sector;
    if flags & MARK != 0 {
        let text = usize::try_from(inline).ok().and_then(|len| bytes[ENTRY_LEN..].get(..len));
        let text = text.with_context(|| format!("a mark of {inline} bytes"))?;
        let name = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
        return Ok((Entry::Mark(name), after));
    }
    ensure!(inline == 0, "a write with {inline} bytes of inline data");
    ensure!(offset.checked_add(len).is_some(), "a range beyond 64 bits");
    if flags & DISCARD != 0 {
        return Ok((Entry::Discard { offset, len }, after));
    }
    let next = after.checked_add(len).filter(|&next| next <= end).context("data beyond the end of the log")?;
    let (flush, fua) = (flags & FLUSH != 0, flags & FUA != 0);
    Ok((Entry::Write { offset, len, flush, fua, data_at: after }, next))
}

/// A disk that goes through a log.
#[derive(Debug)]
pub struct Replay<'a> {
    log: &'a Log,
    next: usize,
    image: Vec<u8>,
}

impl Replay<'_> {
    /// What the disk holds now.
    #[must_use]
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// Goes on up to a mark.
    ///
    /// # Errors
    /// If it is not in the rest of the log, or the log cannot be read or does not fit the disk.
    pub fn to_mark(&mut self, name: &str) -> Result<()> {
        while let Some(entry) = self.log.entries.get(self.next) {
            self.next += 1;
            if matches!(entry, Entry::Mark(mark) if mark == name) {
                return Ok(());
            }
            self.apply(entry)?;
        }
        bail!("the mark {name} is not in the rest of the log")
    }

    fn apply(&mut self, entry: &Entry) -> Result<()> {
        match *entry {
            Entry::Mark(_) => {}
            Entry::Discard { offset, len } => range(&mut self.image, offset, len)?.fill(DISCARDED),
            Entry::Write { offset, len, data_at, .. } => {
                let target = range(&mut self.image, offset, len)?;
                self.log.file.read_exact_at(target, data_at).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}

fn range(image: &mut [u8], offset: u64, len: u64) -> Result<&mut [u8]> {
    let size = image.len();
    let (from, to) = (usize::try_from(offset)?, usize::try_from(offset + len)?);
    // A flush alone may stand anywhere.
    if len == 0 {
        return Ok(&mut []);
    }
    image.get_mut(from..to).with_context(|| format!("bytes {from} to {to} of a disk of {size}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a log as the kernel does.
    struct Writer {
        bytes: Vec<u8>,
        sector: usize,
        count: u64,
    }

    impl Writer {
        fn new(sector: usize) -> Self {
            Writer { bytes: vec![0; sector], sector, count: 0 }
        }

        fn entry(&mut self, place: [u64; 2], flags: u64, inline: &[u8], data: &[u8]) -> &mut Self {
            let from = self.bytes.len();
            for word in [place[0], place[1], flags, inline.len() as u64] {
                self.bytes.extend_from_slice(&word.to_le_bytes());
            }
            self.bytes.extend_from_slice(inline);
            self.bytes.resize(from + self.sector, 0);
            self.bytes.extend_from_slice(data);
            self.count += 1;
            self
        }

        fn write(&mut self, sector: u64, sectors: u64, flags: u64, fill: u8) -> &mut Self {
            let data = vec![fill; self.sector * sectors as usize];
            self.entry([sector, sectors], flags, &[], &data)
        }

        fn mark(&mut self, name: &str) -> &mut Self {
            self.entry([0, 0], MARK, name.as_bytes(), &[])
        }

        fn log(&mut self) -> Result<Log> {
            let mut head = Vec::new();
            [MAGIC, VERSION, self.count].iter().for_each(|word| head.extend_from_slice(&word.to_le_bytes()));
            head.extend_from_slice(&(self.sector as u32).to_le_bytes());
            self.bytes[..head.len()].copy_from_slice(&head);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &self.bytes).unwrap();
            Log::open(file.path())
        }
    }

    #[test]
    fn a_log_is_replayed_mark_by_mark() {
        for sector in [512, 4096] {
            let mut writer = Writer::new(sector);
            writer.write(2, 2, 0, 0xaa).entry([0, 0], FLUSH, &[], &[]).mark("one");
            writer
                .write(3, 1, FUA, 0xbb)
                .mark("two")
                .entry([2, 1], DISCARD, &[], &[])
                .write(0, 1, METADATA, 1)
                .mark("end");
            let log = writer.log().unwrap();
            assert_eq!(log.entries().len(), 8);
            assert_eq!(log.entries()[2], Entry::Mark("one".into()));
            assert!(matches!(log.entries()[1], Entry::Write { len: 0, flush: true, fua: false, .. }));
            assert!(matches!(log.entries()[3], Entry::Write { flush: false, fua: true, .. }));

            let at = |replay: &Replay<'_>| [0, 1, 2, 3, 4].map(|n| replay.image()[n * sector + sector - 1]);
            let mut replay = log.replay(5 * sector);
            replay.to_mark("one").unwrap();
            assert_eq!(at(&replay), [0, 0, 0xaa, 0xaa, 0]);
            replay.to_mark("two").unwrap();
            assert_eq!(at(&replay), [0, 0, 0xaa, 0xbb, 0]);
            replay.to_mark("end").unwrap();
            assert_eq!(at(&replay), [1, 0, DISCARDED, 0xbb, 0]);
            assert!(replay.to_mark("one").is_err(), "marks do not come back");
        }
    }

    #[test]
    fn a_write_beyond_the_disk_is_refused() {
        let log = Writer::new(512).write(4, 2, 0, 1).mark("end").log().unwrap();
        assert!(log.replay(5 * 512).to_mark("end").is_err());
        log.replay(6 * 512).to_mark("end").unwrap();
    }

    #[test]
    fn what_is_not_a_log_is_refused() {
        let refused = |change: &dyn Fn(&mut Writer)| {
            let mut writer = Writer::new(512);
            writer.write(0, 1, 0, 1);
            change(&mut writer);
            writer.log().is_err()
        };
        assert!(!refused(&|_| {}), "the log without changes is good");
        assert!(refused(&|w| w.sector = 100));
        assert!(refused(&|w| w.count += 1));
        assert!(refused(&|w| w.count = u64::MAX));
        assert!(refused(&|w| w.bytes.truncate(1024)));
        assert!(refused(&|w| w.bytes[512 + 16] = 0x20));
        assert!(refused(&|w| w.bytes[512 + 24] = 1));
        assert!(refused(&|w| w.bytes[512..528].fill(0xff)));
        assert!(refused(&|w| {
            w.entry([0, 0], MARK, &[], &[]);
            let at = w.bytes.len() - 512 + 24;
            w.bytes[at..at + 8].fill(0xff);
        }));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(Log::open(empty.path()).is_err());
    }
}
