//! Which part of a disk is used, and whether the disk can do what is asked for.

use crate::BenchError;
use crate::disk::Disk;
use crate::layout::Shape;
use crate::ledger::Extent;
use crate::options::Options;
use crate::queue::Pass;
use crate::scsi::{Wire, lun_bytes};

/// The part of a disk that is used, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u64,
    /// A multiple of the blocks of one request.
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
}

impl Range {
    /// The part of `disk` that the options name, if the disk can do what they want.
    pub(crate) fn new(options: &Options, disk: &Disk, name: &str) -> Result<Self, BenchError> {
        check_abilities(options, disk, name)?;
        let refuse = |text: String| Err(BenchError::Usage(text));
        let block = u64::from(disk.block_size);
        for (option, value) in [("--bs", options.block_bytes), ("--offset", options.offset)] {
            if !value.is_multiple_of(block) {
                return refuse(format!("{option} {value}: {name} has blocks of {block} bytes; give a multiple"));
            }
        }
        let rest = disk.bytes().saturating_sub(options.offset);
        let size = options.size.unwrap_or(rest);
        if size > rest {
            return refuse(format!(
                "{name} has {} bytes: --offset {} and --size {size} go beyond its end",
                disk.bytes(),
                options.offset
            ));
        }
        let pieces = size / options.block_bytes;
        if pieces == 0 {
            return refuse(format!("{name}: {size} bytes are too few for --bs {}", options.block_bytes));
        }
        let in_flight = u64::from(options.depth) * u64::from(options.queues);
        if options.verify && pieces < 2 * in_flight {
            return refuse(format!(
                "--verify: {name} has room for {pieces} requests, too few for {in_flight} in flight; make --qd or --bs \
                 smaller, or --size larger"
            ));
        }
        Ok(Range {
            first: options.offset / block,
            blocks: pieces * (options.block_bytes / block),
            block_size: disk.block_size,
        })
    }

    /// The requests of this shape over the range from its block `from` on.
    pub(crate) fn pass(self, options: &Options, shape: Shape, from: u64) -> Pass {
        let blocks = (shape.bytes / u64::from(self.block_size)) as u32;
        let wire = Wire::new(lun_bytes(options.target, options.lun), blocks, self.first + self.blocks);
        Pass { wire, shape, blocks, first: self.first + from }
    }

    /// The same in bytes.
    pub(crate) fn extent(self, options: &Options) -> Extent {
        let block = u64::from(self.block_size);
        Extent { first: self.first * block, bytes: self.blocks * block, piece: options.block_bytes, block }
    }
}

fn check_abilities(options: &Options, disk: &Disk, name: &str) -> Result<(), BenchError> {
    let refuse = |text: String| Err(BenchError::Usage(text));
    let (mode, bytes) = (options.mode, options.block_bytes);
    let blocks = bytes / u64::from(disk.block_size);
    let most = disk.transfer_max.map_or(u64::MAX, u64::from);
    if blocks > most && (!mode.trims() || options.fill) {
        let most = most * u64::from(disk.block_size);
        return refuse(format!("--bs {bytes}: {name} takes at most {most} bytes at once"));
    }
    if mode.trims() {
        let Some(most) = disk.unmap_max else {
            return refuse(format!("--rw {}: {name} has no UNMAP", mode.name()));
        };
        if blocks > u64::from(most) {
            return refuse(format!("--bs {bytes}: {name} discards at most {most} blocks at once"));
        }
    }
    if disk.write_protected && (mode.writes() || mode.trims() || options.fill) {
        return refuse(format!("{name} is write-protected: only --rw read and randread work"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Mode;

    fn disk() -> Disk {
        Disk { blocks: 1000, block_size: 4096, transfer_max: Some(256), unmap_max: Some(8), ..Disk::default() }
    }

    fn range(change: impl FnOnce(&mut Options, &mut Disk)) -> Result<Range, String> {
        let (mut options, mut disk) = (Options::new(vec!["/s".into()]), disk());
        change(&mut options, &mut disk);
        Range::new(&options, &disk, "disk").map_err(|error| error.to_string())
    }

    #[test]
    fn whole_requests_inside_the_part_that_is_named() {
        assert_eq!(range(|_, _| {}), Ok(Range { first: 0, blocks: 1000, block_size: 4096 }));
        let part = range(|o, _| (o.offset, o.size, o.block_bytes) = (8192, Some(100_000), 12288));
        assert_eq!(part, Ok(Range { first: 2, blocks: 24, block_size: 4096 }));
        let rest = range(|o, _| (o.offset, o.block_bytes) = (990 * 4096, 12288));
        assert_eq!(rest, Ok(Range { first: 990, blocks: 9, block_size: 4096 }));
    }

    #[test]
    fn what_the_disk_cannot_do_is_refused() {
        let refused = |change: fn(&mut Options, &mut Disk), says: &str| {
            let error = range(change).expect_err(says);
            assert!(error.contains(says), "{error}");
        };
        refused(|o, _| o.block_bytes = 512, "--bs 512");
        refused(|o, _| o.offset = 512, "--offset 512");
        refused(|o, _| o.size = Some(1001 * 4096), "beyond its end");
        refused(|o, _| o.offset = 1001 * 4096, "too few");
        refused(|o, _| o.block_bytes = 2 << 20, "at most 1048576");
        refused(|o, _| (o.mode, o.block_bytes) = (Mode::Trim, 65536), "at most 8 blocks");
        refused(|o, d| (o.mode, d.unmap_max) = (Mode::RandTrim, None), "no UNMAP");
        refused(|o, d| (o.mode, d.write_protected) = (Mode::Write, true), "write-protected");
        refused(|o, d| (o.fill, d.write_protected) = (true, true), "write-protected");
        refused(|o, _| (o.verify, o.mode, o.size) = (true, Mode::Write, Some(63 * 4096)), "--verify");
        assert!(range(|o, d| (o.mode, d.write_protected) = (Mode::RandRead, true)).is_ok());
        assert!(range(|o, _| (o.mode, o.block_bytes) = (Mode::Trim, 32768)).is_ok());
    }
}
