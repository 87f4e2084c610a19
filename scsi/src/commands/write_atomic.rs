//! WRITE ATOMIC(16) (SBC-4, clauses 4.29 and 5.47): all of it is on the medium or nothing, whatever happens, and nobody
//! ever reads a part of it.
//!
//! The first is the device's doing ([`IoFlags::ATOMIC`]), so the command is there only where the device can. The second is
//! ours: the command has its range to itself, as COMPARE AND WRITE has. The (32) form belongs to type 2 protection.

use pollux_core::{IoFlags, Shape};

use crate::commands::Call;
use crate::job::{Job, Kind, PIECE_LEN};
use crate::plan::Range;
use crate::{Action, Inventory, Outcome, Sense};

/// Which writes can be atomic, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtomicLimits {
    /// The longest, which is a multiple of the granularity.
    pub(crate) max: u32,
    /// Lengths are multiples of it.
    pub(crate) granularity: u32,
    /// They begin at multiples of it.
    pub(crate) alignment: u32,
}

impl AtomicLimits {
    /// Those of a device like this, as far as the data fits into a piece of memory. `None`: there are no atomic writes.
    pub(crate) fn of(shape: &Shape) -> Option<AtomicLimits> {
        let atomic = shape.atomic_write?;
        let granularity = atomic.granularity / shape.block_size;
        let most = atomic.max.min(PIECE_LEN as u32) / shape.block_size;
        let max = most - most.checked_rem(granularity)?;
        (max > 0).then_some(AtomicLimits { max, granularity, alignment: atomic.alignment / shape.block_size })
    }
}

/// The command. With an atomic boundary several writes would do, each of so many blocks; one is as good.
pub(crate) fn write_atomic(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const FUA: u8 = 0x08;
    const LBA: usize = 2;
    const BOUNDARY: usize = 10;
    const TRANSFER_LENGTH: usize = 12;
    let invalid = |field: usize| Err(Sense::invalid_field(field as u16, None));
    let (lba, boundary) = (call.cdb.be64(LBA), u32::from(call.cdb.be16(BOUNDARY)));
    let count = u32::from(call.cdb.be16(TRANSFER_LENGTH));
    let (offset, len) = call.geometry.range(lba, count.into()).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    let limits = call.unit.last_shape().as_ref().and_then(AtomicLimits::of);
    let AtomicLimits { max, granularity, alignment } = limits.ok_or(Sense::INVALID_OPCODE)?;
    if !lba.is_multiple_of(alignment.into()) {
        return invalid(LBA);
    }
    if boundary > max || !boundary.is_multiple_of(granularity) {
        return invalid(BOUNDARY);
    }
    if count > max || !count.is_multiple_of(granularity) {
        return invalid(TRANSFER_LENGTH);
    }
    if len == 0 {
        return Ok(Action::Done(Outcome::GOOD));
    }
    let flags = call.geometry.write_flags(call.cdb.bit(1, FUA)) | IoFlags::ATOMIC;
    Ok(Action::Job(Job::new(Kind::WriteAtomic, Range { offset, len }, flags)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;
    use crate::testing::{Bench, Platter, shape, two_paths};
    use pollux_core::{AtomicWrite, IoError};
    use proptest::prelude::*;

    const BLOCK: usize = 512;

    fn atomic(max: u32, granularity: u32, alignment: u32) -> Option<Shape> {
        Some(Shape { atomic_write: Some(AtomicWrite { max, granularity, alignment }), ..shape() })
    }

    /// 8 blocks to 256, in eights, from each eighth on.
    fn bench() -> Bench {
        Bench::with(atomic(1 << 20, 4096, 4096))
    }

    fn cdb(flags: u8, lba: u64, boundary: u16, count: u16) -> [u8; 16] {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (0x9C, flags);
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..12].copy_from_slice(&boundary.to_be_bytes());
        cdb[12..14].copy_from_slice(&count.to_be_bytes());
        cdb
    }

    #[test]
    fn one_write_of_the_device() {
        let (mut bench, mut medium) = (bench(), Platter::new(4096 * BLOCK));
        let data: Vec<u8> = (0..256 * BLOCK).map(|at| (at / 7) as u8).collect();
        medium.good(bench.execute(&cdb(0, 8, 0, 8)), &data[..8 * BLOCK]);
        medium.good(bench.execute(&cdb(0x18, 16, 0, 256)), &data);
        medium.good(bench.execute(&cdb(0x10, 4088, 0, 8)), &data[..8 * BLOCK]);
        let kib = 1024;
        assert_eq!(medium.writes, [(4096, 4 * kib, false), (8192, 128 * kib, true), (4088 * 512, 4 * kib, false)]);
        assert!(medium.bytes[16 * BLOCK..][..256 * BLOCK] == data);
        assert!(medium.bytes[..8 * BLOCK].iter().all(|&byte| byte == 0), "nothing before it");
    }

    #[test]
    fn it_claims_its_range_and_hands_the_device_all_at_once() {
        let mut bench = bench();
        let Action::Job(mut job) = bench.execute(&cdb(0x08, 24, 0, 248)) else { panic!("a job") };
        assert!(job.is_exclusive() && job.changes());
        assert_eq!((job.data_out(), job.span()), (248 * 512, (24 * 512, 248 * 512)));
        let (mut sent, held) = (vec![0; PIECE_LEN], vec![0; PIECE_LEN]);
        let len = 248 * BLOCK;
        assert_eq!(job.next(&mut sent, &held), Task::Fetch { at: 0, len });
        let flags = IoFlags::FUA | IoFlags::ATOMIC;
        assert_eq!(job.next(&mut sent, &held), Task::Store { offset: 24 * 512, len, flags });
        assert_eq!(job.fail_outcome(IoError::Medium).sense.map(|sense| sense.code()), Some(0x0C00));
        assert_eq!(job.next(&mut sent, &held), Task::End(Outcome::GOOD));
    }

    #[test]
    fn what_does_not_fit_is_pointed_at() {
        let mut bench = bench();
        for (lba, boundary, count, field) in [
            (1, 0, 8, 2),
            (12, 0, 8, 2),
            (1, 0, 0, 2),
            (8, 4, 8, 10),
            (8, 264, 8, 10),
            (8, 0xFFFF, 8, 10),
            (8, 0, 1, 12),
            (8, 8, 12, 12),
            (8, 0, 264, 12),
            (8, 256, 264, 12),
        ] {
            let sense = bench.sense(&cdb(0, lba, boundary, count));
            assert_eq!(sense, Sense::invalid_field(field, None), "{lba} {boundary} {count}");
        }
        for (boundary, count) in [(8, 8), (8, 256), (256, 8), (256, 256), (16, 24)] {
            assert!(matches!(bench.execute(&cdb(0, 8, boundary, count)), Action::Job(_)), "{boundary} {count}");
        }
        // WRPROTECT, the reserved bits of byte 1 and of the group number's byte, NACA.
        for (at, bit, place) in [(1, 0x20, 5), (1, 0xE0, 7), (1, 0x02, 1), (14, 0x40, 6), (15, 0x04, 2)] {
            let mut wrong = cdb(0, 8, 0, 8);
            wrong[at] |= bit;
            assert_eq!(bench.sense(&wrong), Sense::invalid_field(at as u16, Some(place)));
        }
    }

    #[test]
    fn ranges_behind_the_end_come_first_and_nothing_is_good() {
        let mut bench = bench();
        for (lba, count) in [(4096, 1), (4088, 16), (4097, 0), (4104, 0), (1 << 63, 8), (u64::MAX - 7, 8), (3840, 512)]
        {
            assert_eq!(bench.sense(&cdb(0, lba, 0, count)), Sense::LBA_OUT_OF_RANGE, "{lba} {count}");
        }
        bench.good(&cdb(0, 0, 0, 0));
        bench.good(&cdb(0x18, 4096, 8, 0));
    }

    #[test]
    fn it_is_there_where_the_device_can() {
        let report = [0xA3, 0x0C, 1, 0x9C, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0];
        let mut usage = vec![0, 3, 0, 16, 0x9C, 0x18];
        usage.extend_from_slice(&[0xFF; 12]);
        usage.extend_from_slice(&[0, 0]);
        assert_eq!(bench().data(&report), usage);
        // None, more than a piece at once, and less than a block.
        for shape in
            [Some(Shape { atomic_write: None, ..shape() }), atomic(1 << 20, 1 << 20, 1 << 20), atomic(256, 256, 256)]
        {
            let mut bench = Bench::with(shape);
            assert_eq!(bench.sense(&cdb(0, 0, 0, 8)), Sense::INVALID_OPCODE);
            assert_eq!(bench.data(&report), [0, 1, 0, 0]);
            let page = bench.data(&[0x12, 1, 0xB0, 1, 0, 0]);
            assert_eq!((&page[8..12], &page[44..]), (&[0; 4][..], &[0; 20][..]));
        }
        let mut gone = Bench::with(None);
        assert_eq!(gone.sense(&cdb(0, 0, 0, 8)), Sense::NOT_READY);
    }

    #[test]
    fn the_page_says_what_the_command_takes() {
        let limits = |bench: &mut Bench| {
            let page = bench.data(&[0x12, 1, 0xB0, 1, 0, 0]);
            let number = |at: usize| page[at..at + 4].iter().fold(0, |sum: u32, byte| sum << 8 | u32::from(*byte));
            [8, 44, 48, 52, 56, 60].map(number)
        };
        assert_eq!(limits(&mut bench()), [u32::MAX, 256, 8, 8, 256, 256]);
        assert_eq!(limits(&mut Bench::with(atomic(16384, 16384, 16384))), [u32::MAX, 32, 32, 32, 32, 32]);
        assert_eq!(limits(&mut Bench::with(atomic(100 << 10, 24 << 10, 512))), [u32::MAX, 192, 1, 48, 192, 192]);
        let large = Shape { block_size: 4096, ..atomic(1 << 20, 4096, 4096).unwrap() };
        assert_eq!(limits(&mut Bench::with(Some(large))), [u32::MAX, 32, 1, 1, 32, 32]);
    }

    #[test]
    fn it_is_a_write_to_protection_and_reservations() {
        let mut read_only = Bench::with(Some(Shape { read_only: true, ..atomic(4096, 4096, 4096).unwrap() }));
        assert_eq!(read_only.sense(&cdb(0, 0, 0, 8)).code(), 0x2700);
        let (unit, [holder, other]) = two_paths(atomic(4096, 4096, 4096));
        let mut scratch = vec![0; crate::SCRATCH_LEN];
        let mut run = |path: &crate::Path, bytes: &[u8], list: &[u8]| {
            let cdb = crate::Cdb::from_slice(bytes);
            match unit.execute(path, &cdb, &crate::testing::Luns, &mut scratch) {
                Action::DataOut { .. } | Action::Parameters { .. } => unit.execute_out(path, &cdb, list, &mut scratch),
                action => action,
            }
        };
        let mut list = [0; 24];
        list[15] = 0xAB;
        run(&holder, &[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list);
        list.rotate_left(8);
        // Write exclusive.
        let reserved = run(&holder, &[0x5F, 1, 1, 0, 0, 0, 0, 0, 24, 0], &list);
        assert!(matches!(reserved, Action::Done(Outcome::GOOD)), "{reserved:?}");
        assert!(matches!(run(&other, &cdb(0, 0, 0, 8), &[]), Action::Done(Outcome::CONFLICT)));
        assert!(matches!(run(&holder, &cdb(0, 0, 0, 8), &[]), Action::Job(_)));
    }

    proptest! {
        /// Whatever is asked for: what begins is a write that the device allows, as a whole, inside the capacity.
        #[test]
        fn the_device_is_asked_for_nothing_that_it_does_not_do(
            large in any::<bool>(), max in 0u32..2 << 20, granularity in 1u32..64, alignment in 1u32..64,
            flags in any::<u8>(), lba in 0u64..1100, far in any::<u64>(), boundary in 0u16..300, count in 0u16..300,
        ) {
            let block_size = if large { 4096 } else { 512 };
            let (granularity, alignment) = (granularity * block_size, alignment * block_size);
            let write = AtomicWrite { max: max / granularity * granularity, granularity, alignment };
            let shape = Shape { block_size, num_blocks: 1000, atomic_write: Some(write), ..shape() };
            let mut bench = Bench::with(Some(shape));
            for (lba, count) in [(lba, count), (far, count), (lba / 8 * 8, count / 8 * 8)] {
                if let Action::Job(job) = bench.execute(&cdb(flags & 0x18, lba, boundary, count)) {
                    let (offset, len) = job.span();
                    prop_assert!(write.allows(offset, len) && offset + len <= shape.bytes());
                    prop_assert_eq!((offset, len), (lba * u64::from(block_size), u64::from(count) * u64::from(block_size)));
                    prop_assert!(len <= PIECE_LEN as u64);
                }
            }
        }
    }
}
