//! What the logical unit says about itself before the load begins.

use std::time::{Duration, Instant};

use crate::BenchError;
use crate::clock::Clock;
use crate::layout::SETUP_DATA;
use crate::queue::Queue;
use crate::scsi::Answer;

/// How long one command of the set-up may take, and how long the unit may take to become ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// A logical unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
    /// Vendor and product.
    pub(crate) name: String,
    /// The most blocks of one read or write.
    pub(crate) transfer_max: Option<u32>,
    /// The most blocks of one UNMAP; `None`: it has none.
    pub(crate) unmap_max: Option<u32>,
    /// Blocks that were unmapped read as zeroes.
    pub(crate) unmapped_is_zero: bool,
    pub(crate) write_protected: bool,
    /// The designators of page 83h that name the disk itself: equal for equal disks.
    pub(crate) identity: Vec<u8>,
}

impl Disk {
    pub(crate) const fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size as u64)
    }

    /// Asks the unit behind a queue with nothing in flight.
    pub(crate) fn probe(queue: &mut Queue, clock: &Clock, name: &str) -> Result<Self, BenchError> {
        Probe { queue, clock, name }.run()
    }
}

impl std::fmt::Display for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} blocks of {} bytes", self.name, self.blocks, self.block_size)?;
        if let Some(most) = self.transfer_max {
            write!(f, ", at most {most} at once")?;
        }
        match self.unmap_max {
            Some(most) => write!(f, ", UNMAP of at most {most}")?,
            None => f.write_str(", no UNMAP")?,
        }
        f.write_str(if self.write_protected { ", write-protected" } else { "" })
    }
}

struct Probe<'a> {
    queue: &'a mut Queue,
    clock: &'a Clock,
    /// Which unit, for errors.
    name: &'a str,
}

impl Probe<'_> {
    fn run(mut self) -> Result<Disk, BenchError> {
        let inquiry = self.must(&[0x12, 0, 0, 0, 36, 0], 36, "INQUIRY")?;
        self.check_type(inquiry[0])?;
        self.wait_ready()?;
        let mut disk = Disk { name: text(&inquiry[8..32]), ..Disk::default() };
        self.capacity(&mut disk)?;
        let pages = self.page(0);
        let has = |page: u8| pages.get(4..).is_some_and(|list| list.contains(&page));
        if has(0xb0) {
            let limits = self.page(0xb0);
            disk.transfer_max = be32(&limits, 8).filter(|blocks| *blocks > 0);
            disk.unmap_max = be32(&limits, 20).filter(|blocks| *blocks > 0);
        }
        if has(0x83) {
            disk.identity = designators(&self.page(0x83));
        }
        // MODE SENSE (10), all pages, no block descriptors: the header's device-specific byte has the WP bit.
        let (answer, header) = self.command(&[0x5a, 8, 0x3f, 0, 0, 0, 0, 0, 252, 0], 252)?;
        disk.write_protected = answer.done() && header[3] & 0x80 != 0;
        Ok(disk)
    }

    fn check_type(&self, byte: u8) -> Result<(), BenchError> {
        match (byte >> 5, byte & 0x1f) {
            (0, 0) => Ok(()),
            (0, kind) => Err(self.error(format_args!("is no disk but a device of type {kind:#x}"))),
            _ => Err(self.error(format_args!("is not there: give another --lun, or attach a disk"))),
        }
    }

    fn wait_ready(&mut self) -> Result<(), BenchError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let (answer, _) = self.command(&[0; 6], 0)?;
            if answer.done() {
                return Ok(());
            }
            // Becoming ready.
            if answer.sense_key() != Some((2, 4, 1)) || Instant::now() > end {
                return Err(self.error(format_args!("is not ready: {answer}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn capacity(&mut self, disk: &mut Disk) -> Result<(), BenchError> {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
        let (answer, long) = self.command(&cdb, 32)?;
        if answer.done() {
            disk.blocks = be64(&long, 0).unwrap_or(0).saturating_add(1);
            disk.block_size = be32(&long, 8).unwrap_or(0);
            disk.unmapped_is_zero = long[14] & 0x40 != 0;
        } else {
            let short = self.must(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8, "READ CAPACITY")?;
            disk.blocks = u64::from(be32(&short, 0).unwrap_or(0)) + 1;
            disk.block_size = be32(&short, 4).unwrap_or(0);
        }
        if disk.block_size < 512 || !disk.block_size.is_power_of_two() {
            return Err(self.error(format_args!("has blocks of {} bytes, which are not driven", disk.block_size)));
        }
        Ok(())
    }

    /// A page of vital product data; empty if there is none.
    fn page(&mut self, page: u8) -> Vec<u8> {
        match self.command(&[0x12, 1, page, 0, 252, 0], 252) {
            Ok((answer, mut bytes)) if answer.done() => {
                bytes.truncate(4 + usize::from(bytes[3]));
                bytes
            }
            _ => Vec::new(),
        }
    }

    fn must(&mut self, cdb: &[u8], len: u32, what: &str) -> Result<Vec<u8>, BenchError> {
        let (answer, data) = self.command(cdb, len)?;
        if answer.done() {
            return Ok(data);
        }
        Err(self.error(format_args!("does not answer {what}: {answer}")))
    }

    /// One command, sent again while the unit asks for that.
    fn command(&mut self, cdb: &[u8], len: u32) -> Result<(Answer, Vec<u8>), BenchError> {
        debug_assert!(len as usize <= SETUP_DATA);
        let end = Instant::now() + PATIENCE;
        loop {
            let result = self.queue.command(self.clock, cdb, len, PATIENCE);
            let (answer, data) = result.map_err(|error| self.error(format_args!("does not answer: {error}")))?;
            if !answer.retry() || Instant::now() > end {
                return Ok((answer, data));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn error(&self, what: std::fmt::Arguments<'_>) -> BenchError {
        BenchError::Setup(format!("{} {what}", self.name))
    }
}

/// The designators of a logical unit (not those of its ports) in a page 83h.
fn designators(page: &[u8]) -> Vec<u8> {
    let mut own = Vec::new();
    let mut rest = page.get(4..).unwrap_or_default();
    while let [_, kind, _, len, ..] = rest {
        let end = (4 + usize::from(*len)).min(rest.len());
        if kind & 0x30 == 0 {
            own.extend_from_slice(&rest[..end]);
        }
        rest = &rest[end..];
    }
    own
}

fn text(bytes: &[u8]) -> String {
    let words: Vec<&str> = std::str::from_utf8(bytes).unwrap_or("?").split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).collect()
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_units_own_designators_count() {
        let page = [0, 0x83, 0, 17, 1, 3, 0, 3, 7, 8, 9, 1, 0x14, 0, 2, 1, 1, 2, 1, 0, 0];
        assert_eq!(designators(&page), [1, 3, 0, 3, 7, 8, 9, 2, 1, 0, 0]);
        assert!(designators(&[]).is_empty());
        assert_eq!(designators(&[0, 0x83, 0, 9, 1, 3, 0, 200, 7]), [1, 3, 0, 200, 7]);
    }

    #[test]
    fn names_are_plain_text() {
        assert_eq!(text(b"POLLUX  Pollux disk     "), "POLLUX Pollux disk");
        assert_eq!(text(b"A\x1b[2JB"), "A[2JB");
    }
}
