//! GET LBA STATUS (SBC-4, clause 5.4): what is mapped, as far as the device can say at once.

use pollux_core::Extent;

use crate::commands::Call;
use crate::data_in::DataIn;
use crate::{Action, Inventory, Sense};

/// Descriptors in one answer; an initiator that wants more asks again from where it ends.
const DESCRIPTORS: usize = 256;
/// Bytes that are looked at for one answer, if looking is slow enough for devices to do it piece by piece.
const LOOK_LEN: u64 = 1 << 20;

/// The command. The answer begins with the block that was asked for, and has at least one descriptor.
pub(crate) fn get(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let lba = call.cdb.be64(2);
    let blocks = call.geometry.blocks();
    if lba >= blocks {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    let block = u64::from(call.geometry.block_size());
    let medium = call.unit.medium();
    let extent = |offset, len| medium.as_ref().map_or(Extent::mapped(len), |medium| medium.extent(offset, len));
    call.data.put(&[0; 8]);
    let (mut at, end, mut count) = (lba * block, blocks * block, 0);
    let enough = at.saturating_add(LOOK_LEN).min(end);
    let mut open: Option<(u64, Extent)> = None;
    while at < enough && count < DESCRIPTORS {
        let next = extent(at, end - at);
        let len = next.len.clamp(block, end - at);
        open = match open {
            Some((start, run)) if run.mapped == next.mapped => Some((start, Extent { len: run.len + len, ..run })),
            other => {
                count += put(other, block, &mut call.data);
                Some((at, Extent { len, ..next }))
            }
        };
        at += len;
    }
    if count < DESCRIPTORS {
        put(open, block, &mut call.data);
    }
    let len = u32::try_from(call.data.len() - 4).unwrap_or(u32::MAX);
    call.data.set(0, &len.to_be_bytes());
    Ok(call.data.answer(call.cdb.be32(10) as usize))
}

/// Puts an LBA status descriptor; how many that were.
fn put(run: Option<(u64, Extent)>, block: u64, data: &mut DataIn<'_>) -> usize {
    const MAPPED: u8 = 0;
    const DEALLOCATED: u8 = 1;
    let Some((start, Extent { len, mapped })) = run else { return 0 };
    // What is longer than the field can say goes on behind the answer.
    let count = u32::try_from(len / block).unwrap_or(u32::MAX);
    data.put(&(start / block).to_be_bytes());
    data.put(&count.to_be_bytes());
    data.put(&[if mapped { MAPPED } else { DEALLOCATED }, 0, 0, 0]);
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, shape};
    use crate::{Medium, Transfers};
    use pollux_core::Shape;
    use std::sync::Arc;

    /// Blocks of 512 bytes from these numbers on are mapped and unmapped by turns; looked at in pieces of 4 KiB.
    #[derive(Debug)]
    struct Turns(Vec<u64>);

    impl Medium for Turns {
        fn transfers(&self) -> Transfers {
            Transfers::default()
        }

        fn extent(&self, offset: u64, len: u64) -> Extent {
            let lba = offset / 512;
            let turns = self.0.iter().filter(|turn| **turn <= lba).count();
            let until = self.0.get(turns).map_or(u64::MAX, |turn| (turn - lba) * 512);
            Extent { len: len.min(until).min(4096), mapped: turns % 2 == 0 }
        }
    }

    fn cdb(lba: u64, len: u32) -> [u8; 16] {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (0x9E, 0x12);
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&len.to_be_bytes());
        cdb
    }

    fn status(bench: &mut Bench, lba: u64) -> Vec<(u64, u32, u8)> {
        let data = bench.data(&cdb(lba, 65536));
        assert_eq!(data[..8], [&(data.len() as u32 - 4).to_be_bytes()[..], &[0; 4]].concat());
        let descriptors = data[8..].chunks(16).map(|bytes| {
            let lba = u64::from_be_bytes(bytes[..8].try_into().unwrap());
            assert_eq!(bytes[13..], [0; 3]);
            (lba, u32::from_be_bytes(bytes[8..12].try_into().unwrap()), bytes[12])
        });
        descriptors.collect()
    }

    #[test]
    fn without_knowledge_all_is_mapped() {
        let mut bench = Bench::new();
        let mut want = vec![0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0x0F, 0xFB, 0, 0, 0, 0];
        assert_eq!(bench.data(&cdb(5, 24)), want);
        want.truncate(9);
        assert_eq!(bench.data(&cdb(5, 9)), want);
    }

    #[test]
    fn runs_of_one_kind_are_one_descriptor() {
        let mut bench = Bench::new();
        bench.unit.set_medium(Arc::new(Turns(vec![3, 20, 21])));
        assert_eq!(status(&mut bench, 0)[..3], [(0, 3, 0), (3, 17, 1), (20, 1, 0)]);
        assert_eq!(status(&mut bench, 10)[0], (10, 10, 1));
        let last = *status(&mut bench, 0).last().unwrap();
        assert_eq!(last, (21, 2032, 1), "as far as was looked");
        assert_eq!(status(&mut bench, 4090), [(4090, 6, 1)]);
    }

    #[test]
    fn the_number_of_descriptors_is_bounded() {
        let mut bench = Bench::new();
        bench.unit.set_medium(Arc::new(Turns((1..4096).collect())));
        let runs = status(&mut bench, 0);
        assert_eq!((runs.len(), runs[255]), (256, (255, 1, 1)));
    }

    #[test]
    fn the_end_of_the_disk() {
        let mut bench = Bench::new();
        for lba in [4096, 4097, u64::MAX] {
            assert_eq!(bench.sense(&cdb(lba, 24)), Sense::LBA_OUT_OF_RANGE);
        }
        assert_eq!(status(&mut bench, 4095), [(4095, 1, 0)]);
        let mut large = Bench::with(Some(Shape { num_blocks: 1 << 40, ..shape() }));
        assert_eq!(status(&mut large, 7), [(7, u32::MAX, 0)]);
        let mut report_type = cdb(0, 24);
        report_type[14] = 1;
        assert_eq!(bench.sense(&report_type), Sense::invalid_field(14, Some(0)));
    }
}
