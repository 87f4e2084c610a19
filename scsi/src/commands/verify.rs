//! VERIFY and WRITE AND VERIFY (SBC-4, clauses 5.36 ff. and 5.46 ff.): what the medium holds is really read, and really
//! compared.

use crate::commands::Call;
use crate::job::{Job, Kind};
use crate::plan::Range;
use crate::{Action, Inventory, Outcome, Sense};

/// VERIFY(10), (12), (16), (32). BYTCHK says with what the medium is compared: 00b nothing, 01b the data-out, 11b each
/// block with the one block that is the data-out.
pub(crate) fn verify(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let kind = match bytchk(call) {
        0 => Kind::Read,
        1 => Kind::Compare,
        3 => Kind::CompareEach { block: call.geometry.block_size() as usize },
        _ => return Err(bad_bytchk(call)),
    };
    start(call, kind)
}

/// WRITE AND VERIFY(10), (12), (16), (32). What is read again has to come from the medium, so it is written durably first.
pub(crate) fn write_and_verify(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let compare = match bytchk(call) {
        0 => false,
        1 => true,
        _ => return Err(bad_bytchk(call)),
    };
    start(call, Kind::WriteAndRead { compare })
}

fn bad_bytchk(call: &Call<'_>) -> Sense {
    Sense::invalid_field(call.cdb.flags_at(), Some(2))
}

fn bytchk(call: &Call<'_>) -> u8 {
    call.cdb.flags() >> 1 & 3
}

fn start(call: &Call<'_>, kind: Kind) -> Result<Action, Sense> {
    let blocks = call.cdb.blocks();
    let (offset, len) = call.geometry.range(blocks.lba, blocks.count).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    if len == 0 {
        return Ok(Action::Done(Outcome::GOOD));
    }
    Ok(Action::Job(Job::new(kind, Range { offset, len }, call.geometry.write_flags(true))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, Platter, shape};
    use pollux_core::Shape;

    const BLOCK: usize = 512;

    /// With a service action for an opcode, in the 32-byte form.
    fn cdb(opcode: u8, bytchk: u8, lba: u8, count: u8) -> Vec<u8> {
        let flags = bytchk << 1 | 0x10;
        match opcode >> 4 {
            0x0 => {
                let mut cdb = vec![0; 32];
                (cdb[0], cdb[7], cdb[9], cdb[10], cdb[19], cdb[31]) = (0x7F, 0x18, opcode, flags, lba, count);
                cdb
            }
            0x2 => vec![opcode, flags, 0, 0, 0, lba, 0, 0, count, 0],
            0xA => vec![opcode, flags, 0, 0, 0, lba, 0, 0, 0, count, 0, 0],
            _ => vec![opcode, flags, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, count, 0, 0],
        }
    }

    fn refused(opcode: u8) -> Sense {
        Sense::invalid_field(if opcode < 0x10 { 10 } else { 1 }, Some(2))
    }

    #[test]
    fn verify_compares_as_bytchk_says() {
        for opcode in [0x2F, 0xAF, 0x8F, 0x0A] {
            let (mut bench, mut medium) = (Bench::new(), Platter::new(64 * BLOCK));
            medium.bytes[5 * BLOCK..8 * BLOCK].fill(7);
            medium.good(bench.execute(&cdb(opcode, 0, 5, 3)), &[]);
            medium.good(bench.execute(&cdb(opcode, 1, 5, 3)), &[7; 3 * BLOCK]);
            medium.good(bench.execute(&cdb(opcode, 3, 5, 3)), &[7; BLOCK]);
            let mut other = vec![7; 3 * BLOCK];
            other[BLOCK + 9] = 6;
            assert_eq!(medium.miscompare(bench.execute(&cdb(opcode, 1, 5, 3)), &other), 521);
            assert_eq!(medium.miscompare(bench.execute(&cdb(opcode, 3, 5, 4)), &[7; BLOCK]), 3 * 512);
            assert_eq!(bench.sense(&cdb(opcode, 2, 5, 3)), refused(opcode));
            assert!(medium.writes.is_empty());
        }
    }

    #[test]
    fn write_and_verify_writes_durably_before_it_reads() {
        for opcode in [0x2E, 0xAE, 0x8E, 0x0C] {
            let (mut bench, mut medium) = (Bench::new(), Platter::new(64 * BLOCK));
            medium.good(bench.execute(&cdb(opcode, 0, 1, 2)), &[3; 2 * BLOCK]);
            medium.good(bench.execute(&cdb(opcode, 1, 2, 2)), &[4; 2 * BLOCK]);
            assert_eq!(
                medium.bytes[..5 * BLOCK],
                [[0; BLOCK], [3; BLOCK], [4; BLOCK], [4; BLOCK], [0; BLOCK]].concat()
            );
            assert_eq!(medium.writes, [(512, 1024, true), (1024, 1024, true)]);
            for bytchk in [2, 3] {
                assert_eq!(bench.sense(&cdb(opcode, bytchk, 5, 3)), refused(opcode));
            }
        }
    }

    #[test]
    fn a_medium_that_keeps_something_else_is_found_out() {
        let (mut bench, mut medium) = (Bench::new(), Platter::new(64 * BLOCK));
        medium.forgets = true;
        medium.good(bench.execute(&cdb(0x2E, 0, 1, 2)), &[3; 2 * BLOCK]);
        assert_eq!(medium.miscompare(bench.execute(&cdb(0x2E, 1, 1, 2)), &[3; 2 * BLOCK]), 0);
    }

    #[test]
    fn ranges_and_protection() {
        let mut bench = Bench::new();
        for opcode in [0x2E, 0x2F, 0x8E, 0x8F, 0xAE, 0xAF] {
            bench.good(&cdb(opcode, 1, 9, 0));
            let mut out = cdb(opcode, 0, 0, 1);
            let lba_end = if opcode >> 4 == 8 { 10 } else { 6 };
            out[lba_end - 2] = 0x10;
            assert_eq!(bench.sense(&out), Sense::LBA_OUT_OF_RANGE);
            let mut protected = cdb(opcode, 0, 0, 1);
            protected[1] |= 0x20;
            assert_eq!(bench.sense(&protected), Sense::invalid_field(1, Some(5)));
        }
        let mut read_only = Bench::with(Some(Shape { read_only: true, ..shape() }));
        assert_eq!(read_only.sense(&cdb(0x2E, 0, 0, 1)).code(), 0x2700);
        assert!(matches!(read_only.execute(&cdb(0x2F, 0, 0, 1)), Action::Job(_)));
    }
}
