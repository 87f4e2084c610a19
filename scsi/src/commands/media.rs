//! READ, WRITE, PRE-FETCH, SYNCHRONIZE CACHE (SBC-4, clause 5).

use pollux_core::{IoFlags, Op};

use crate::cdb::Blocks;
use crate::commands::Call;
use crate::{Action, Inventory, Outcome, Plan, Sense};

/// READ(6), (10), (12), (16), (32). DPO and FUA are accepted and change nothing: there is no cache in front of the device
/// that could hold older data than the device.
pub(crate) fn read(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    transfer(call, Op::Read, IoFlags::empty())
}

/// WRITE(6), (10), (12), (16), (32).
pub(crate) fn write(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const FUA: u8 = 0x08;
    let fua = !is_short(call) && call.cdb.flags() & FUA != 0;
    transfer(call, Op::Write, call.geometry.write_flags(fua))
}

fn transfer(call: &Call<'_>, op: Op, flags: IoFlags) -> Result<Action, Sense> {
    let Blocks { lba, count } = call.cdb.blocks();
    let (offset, len) = call.geometry.range(lba, count).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    if len == 0 {
        return Ok(Action::Done(Outcome::GOOD));
    }
    Ok(Action::Io { op, flags, offset, len })
}

/// Whether byte 1 is part of the address and not flags.
fn is_short(call: &Call<'_>) -> bool {
    call.cdb.opcode() < 0x20
}

/// PRE-FETCH(10), (16) (SBC-4, clauses 5.10 and 5.11). There is no cache of ours to fetch into: the range is checked, and
/// GOOD, rather than CONDITION MET, says that not all of it is in a cache.
pub(crate) fn pre_fetch(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let Blocks { lba, count } = call.cdb.blocks();
    call.geometry.range_or_rest(lba, count).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    Ok(Action::Done(Outcome::GOOD))
}

/// SYNCHRONIZE CACHE(10), (16). The range is checked, and then everything is made durable: devices flush as a whole.
pub(crate) fn synchronize_cache(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const IMMED: u8 = 0x02;
    let Blocks { lba, count } = call.cdb.blocks();
    call.geometry.range_or_rest(lba, count).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    Ok(Action::Plan(Plan::flush(call.cdb.bit(1, IMMED))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Step;
    use crate::testing::{Bench, shape};
    use pollux_core::Shape;

    /// Operation, FUA, first block and number of blocks of a transfer.
    fn io(action: &Action) -> (Op, bool, u64, u64) {
        match action {
            Action::Io { op, flags, offset, len } => (*op, flags.contains(IoFlags::FUA), offset / 512, len / 512),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn transfers_of_every_form() {
        let mut bench = Bench::new();
        let mut check = |cdb: &[u8], want| assert_eq!(io(&bench.execute(cdb)), want, "{cdb:02X?}");
        check(&[0x08, 0, 1, 2, 3, 0], (Op::Read, false, 0x102, 3));
        check(&[0x08, 0xE0, 1, 2, 0, 0], (Op::Read, false, 0x102, 256));
        check(&[0x0A, 0, 1, 2, 3, 0], (Op::Write, false, 0x102, 3));
        check(&[0x28, 0, 0, 0, 1, 2, 0, 0, 3, 0], (Op::Read, false, 0x102, 3));
        check(&[0x28, 0x1F, 0, 0, 1, 2, 0x1F, 0, 3, 0], (Op::Read, false, 0x102, 3));
        check(&[0x2A, 0, 0, 0, 1, 2, 0, 0, 3, 0], (Op::Write, false, 0x102, 3));
        check(&[0x2A, 0x18, 0, 0, 1, 2, 0, 0, 3, 0], (Op::Write, true, 0x102, 3));
        check(&[0x2A, 0x0B, 0, 0, 1, 2, 5, 0, 3, 0x80], (Op::Write, true, 0x102, 3));
        check(&[0xA8, 0, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0], (Op::Read, false, 0x102, 3));
        check(&[0xAA, 8, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0], (Op::Write, true, 0x102, 3));
        check(&[0x88, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0], (Op::Read, false, 0x102, 3));
        check(&[0x8A, 8, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0], (Op::Write, true, 0x102, 3));
        check(&[0x28, 0, 0, 0, 0x0F, 0xFF, 0, 0, 1, 0], (Op::Read, false, 4095, 1));
        check(&long(0x09, 0x00, 0x102, 3), (Op::Read, false, 0x102, 3));
        check(&long(0x09, 0x1E, 0x102, 3), (Op::Read, false, 0x102, 3));
        check(&long(0x0B, 0x00, 0x102, 3), (Op::Write, false, 0x102, 3));
        check(&long(0x0B, 0x1A, 0x102, 3), (Op::Write, true, 0x102, 3));
    }

    /// READ(32) or WRITE(32) with tags that nobody looks at.
    fn long(action: u8, flags: u8, lba: u64, count: u32) -> [u8; 32] {
        let mut cdb = [0; 32];
        (cdb[0], cdb[7], cdb[9], cdb[10]) = (0x7F, 0x18, action, flags);
        cdb[12..20].copy_from_slice(&lba.to_be_bytes());
        cdb[20..28].fill(0xAA);
        cdb[28..].copy_from_slice(&count.to_be_bytes());
        cdb
    }

    #[test]
    fn ranges_beyond_the_end_and_beyond_64_bits() {
        let mut bench = Bench::new();
        let mut out = |cdb: &[u8]| assert_eq!(bench.sense(cdb), Sense::LBA_OUT_OF_RANGE, "{cdb:02X?}");
        out(&[0x08, 0, 0x0F, 0xFF, 2, 0]);
        out(&[0x0A, 0, 0x10, 0, 1, 0]);
        out(&[0x28, 0, 0, 0, 0x10, 0, 0, 0, 1, 0]);
        out(&[0x28, 0, 0, 0, 0x10, 1, 0, 0, 0, 0]);
        out(&[0x2A, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]);
        out(&[0xA8, 0, 0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);
        out(&[0xAA, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let all = 0xFF;
        out(&[0x88, 0, all, all, all, all, all, all, all, all, 0, 0, 0, 1, 0, 0]);
        out(&[0x8A, 0, all, all, all, all, all, all, all, all, all, all, all, all, 0, 0]);
        // LBA * 512 is 0 in 64 bits.
        out(&[0x88, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        out(&[0x35, 0, 0, 0, 0x10, 1, 0, 0, 0, 0]);
        out(&[0x91, 0, 0, 0, 0, 0, 0, 0, 0x0F, 0xFF, 0, 0, 0, 2, 0, 0]);
        for action in [0x09, 0x0B] {
            out(&long(action, 0, 4096, 1));
            out(&long(action, 0, 4095, 2));
            out(&long(action, 0, u64::MAX, u32::MAX));
            out(&long(action, 0, 1 << 63, 1));
        }
    }

    #[test]
    fn pre_fetch_checks_its_range() {
        let mut bench = Bench::new();
        bench.good(&[0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bench.good(&[0x34, 0x02, 0, 0, 0x0F, 0xFF, 0x1F, 0, 1, 0]);
        bench.good(&[0x90, 0x02, 0, 0, 0, 0, 0, 0, 0x0F, 0xFF, 0, 0, 0, 1, 0x1F, 0]);
        let mut out = |cdb: &[u8]| assert_eq!(bench.sense(cdb), Sense::LBA_OUT_OF_RANGE, "{cdb:02X?}");
        out(&[0x34, 0, 0, 0, 0x0F, 0xFF, 0, 0, 2, 0]);
        out(&[0x34, 0, 0, 0, 0x10, 0x01, 0, 0, 0, 0]);
        out(&[0x90, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 1, 0, 0]);
        out(&[0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 1, 0, 0]);
    }

    #[test]
    fn nothing_to_transfer_is_good() {
        let mut bench = Bench::new();
        bench.good(&[0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bench.good(&[0x2A, 0, 0, 0, 0x10, 0, 0, 0, 0, 0]);
        bench.good(&[0x8A, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bench.good(&long(0x09, 0, 4096, 0));
        bench.good(&long(0x0B, 0, 0, 0));
    }

    #[test]
    fn protection_is_refused() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0]), Sense::invalid_field(1, Some(5)));
        assert_eq!(bench.sense(&[0x8A, 0xE0]), Sense::invalid_field(1, Some(7)));
        assert_eq!(bench.sense(&long(0x09, 0x20, 0, 1)), Sense::invalid_field(10, Some(5)));
        assert_eq!(bench.sense(&long(0x0B, 0xE0, 0, 1)), Sense::invalid_field(10, Some(7)));
    }

    #[test]
    fn large_transfers_are_one_action() {
        let mut bench = Bench::with(Some(Shape { num_blocks: 1 << 24, ..shape() }));
        let action = bench.execute(&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0]);
        assert_eq!(io(&action), (Op::Read, false, 0, 1 << 23));
    }

    fn flush(action: Action) -> bool {
        let Action::Plan(mut plan) = action else { panic!("{action:?}") };
        assert_eq!((plan.next(), plan.next()), (Some(Step::Flush), None));
        plan.immediate()
    }

    #[test]
    fn synchronize_cache_flushes() {
        let mut bench = Bench::new();
        assert!(!flush(bench.execute(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0])));
        assert!(flush(bench.execute(&[0x35, 0x02, 0, 0, 0x0F, 0xFF, 0, 0, 1, 0])));
        assert!(flush(bench.execute(&[0x91, 0x06, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])));
    }
}
