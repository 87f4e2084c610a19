//! ORWRITE and COMPARE AND WRITE (SBC-4, clauses 5.12 and 5.3): they read, decide and write, and nobody comes in between,
//! from whatever initiator ([`Job::is_exclusive`]).

use crate::commands::Call;
use crate::job::{Job, Kind, PIECE_LEN};
use crate::plan::Range;
use crate::{Action, Inventory, Outcome, Sense};

/// MAXIMUM COMPARE AND WRITE LENGTH in blocks: what is compared as a whole before any of it is written.
pub(crate) const fn compare_and_write_max(block_size: u32) -> u8 {
    let fit = PIECE_LEN / block_size as usize;
    if fit < 255 { fit as u8 } else { 255 }
}

/// What one ORWRITE changes at most: it has its range to itself, and its memory, until the last piece is done. No field of
/// the block limits page is about it alone (MAXIMUM TRANSFER LENGTH would be READ's and WRITE's, too).
const OR_WRITE_MOST: u64 = 64 * PIECE_LEN as u64;

/// ORWRITE(16).
pub(crate) fn or_write(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const TRANSFER_LENGTH: u16 = 10;
    if u64::from(call.cdb.be32(10)) > OR_WRITE_MOST / u64::from(call.geometry.block_size()) {
        return Err(Sense::invalid_field(TRANSFER_LENGTH, None));
    }
    start(call, Kind::Or)
}

/// COMPARE AND WRITE.
pub(crate) fn compare_and_write(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const NUMBER_OF_LOGICAL_BLOCKS: usize = 13;
    if call.cdb.byte(NUMBER_OF_LOGICAL_BLOCKS) > compare_and_write_max(call.geometry.block_size()) {
        return Err(Sense::invalid_field(NUMBER_OF_LOGICAL_BLOCKS as u16, None));
    }
    start(call, Kind::CompareAndWrite)
}

fn start(call: &Call<'_>, kind: Kind) -> Result<Action, Sense> {
    const FUA: u8 = 0x08;
    let blocks = call.cdb.blocks();
    let (offset, len) = call.geometry.range(blocks.lba, blocks.count).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    if len == 0 {
        return Ok(Action::Done(Outcome::GOOD));
    }
    Ok(Action::Job(Job::new(kind, Range { offset, len }, call.geometry.write_flags(call.cdb.bit(1, FUA)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, Platter, shape};
    use pollux_core::Shape;

    const BLOCK: usize = 512;

    fn cdb(opcode: u8, flags: u8, lba: u8, count: u8) -> [u8; 16] {
        [opcode, flags, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, count, 0, 0]
    }

    fn halves(compare: u8, write: u8, blocks: usize) -> Vec<u8> {
        [vec![compare; blocks * BLOCK], vec![write; blocks * BLOCK]].concat()
    }

    #[test]
    fn compare_and_write_writes_what_is_second_where_the_first_is() {
        let (mut bench, mut medium) = (Bench::new(), Platter::new(300 * BLOCK));
        medium.good(bench.execute(&cdb(0x89, 0, 3, 2)), &halves(0, 1, 2));
        medium.good(bench.execute(&cdb(0x89, 0x18, 3, 2)), &halves(1, 2, 2));
        medium.good(bench.execute(&cdb(0x89, 0, 9, 255)), &halves(0, 5, 255));
        assert_eq!(medium.bytes[3 * BLOCK..5 * BLOCK], [2; 2 * BLOCK]);
        let all = 255 * 512;
        assert_eq!(medium.writes, [(1536, 1024, false), (1536, 1024, true), (9 * 512, all, false)], "each as one");
    }

    #[test]
    fn a_miscompare_writes_nothing_and_says_where() {
        let (mut bench, mut medium) = (Bench::new(), Platter::new(64 * BLOCK));
        medium.bytes[4 * BLOCK + 17] = 1;
        assert_eq!(medium.miscompare(bench.execute(&cdb(0x89, 0, 3, 2)), &halves(0, 1, 2)), 512 + 17);
        assert!(medium.writes.is_empty());
        let mut sense = [0; crate::SENSE_LEN];
        let Action::Job(job) = bench.execute(&cdb(0x89, 0, 3, 2)) else { panic!() };
        medium.run(job, &halves(0, 1, 2)).sense.unwrap().encode(false, &mut sense);
        assert_eq!(sense[..18], [0xF0, 0, 0x0E, 0, 0, 2, 17, 10, 0, 0, 0, 0, 0x1D, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn compare_and_write_of_nothing_of_too_much_and_beyond_the_end() {
        let mut bench = Bench::new();
        bench.good(&cdb(0x89, 0, 3, 0));
        let mut beyond = cdb(0x89, 0, 0xFF, 2);
        beyond[8] = 0x0F;
        assert_eq!(bench.sense(&beyond), Sense::LBA_OUT_OF_RANGE);
        let mut large = Bench::with(Some(Shape { block_size: 4096, ..shape() }));
        assert!(matches!(large.execute(&cdb(0x89, 0, 0, 32)), Action::Job(_)));
        assert_eq!(large.sense(&cdb(0x89, 0, 0, 33)), Sense::invalid_field(13, None));
        let mut read_only = Bench::with(Some(Shape { read_only: true, ..shape() }));
        assert_eq!(read_only.sense(&cdb(0x89, 0, 0, 1)).code(), 0x2700);
        assert_eq!((compare_and_write_max(512), compare_and_write_max(4096)), (255, 32));
    }

    #[test]
    fn orwrite_adds_bits() {
        let (mut bench, mut medium) = (Bench::new(), Platter::new(64 * BLOCK));
        medium.bytes[2 * BLOCK..3 * BLOCK].fill(0x81);
        medium.good(bench.execute(&cdb(0x8B, 0x08, 1, 2)), &[0x13; 2 * BLOCK]);
        assert_eq!(medium.bytes[..4 * BLOCK], [[0; BLOCK], [0x13; BLOCK], [0x93; BLOCK], [0; BLOCK]].concat());
        assert_eq!(medium.writes, [(512, 1024, true)]);
        bench.good(&cdb(0x8B, 0, 1, 0));
    }

    #[test]
    fn what_must_not_be_disturbed_claims_its_whole_range() {
        let mut bench = Bench::with(Some(Shape { num_blocks: 1 << 20, ..shape() }));
        let mut large = cdb(0x8B, 0, 1, 1);
        large[12] = 0x40;
        assert_eq!(bench.sense(&large), Sense::invalid_field(10, None), "others wait until it is done");
        large[13] = 0;
        let Action::Job(mut job) = bench.execute(&large) else { panic!() };
        let mut medium = Platter::new(20_000 * BLOCK);
        assert!(job.is_exclusive());
        assert_eq!(job.span(), (512, 16384 * 512));
        let mut fetched = 0;
        let end = medium.each(&mut job, &vec![1; 16384 * BLOCK], |job, task| {
            fetched += u64::from(matches!(task, crate::Task::Fetch { .. }));
            assert_ne!(*task, crate::Task::Pause, "it keeps its memory to the end");
            assert_eq!(job.span(), (512, 16384 * 512));
        });
        assert_eq!((end, fetched), (Outcome::GOOD, 65));
    }
}
