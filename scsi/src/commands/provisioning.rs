//! UNMAP and WRITE SAME (SBC-4, clauses 5.35 and 5.52 ff.): each range becomes one discard, write-zeroes or pattern of
//! the device below, never a loop over blocks.

use pollux_core::IoFlags;

use crate::commands::Call;
use crate::geometry::{Flags, Geometry};
use crate::plan::Range;
use crate::{Action, Inventory, Outcome, Plan, Sense};

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
pub(crate) const MAX_UNMAP_DESCRIPTORS: u32 = 256;

/// The two lengths at the front of an UNMAP parameter list, and 4 bytes reserved.
const UNMAP_HEADER: usize = 8;

/// UNMAP: the CDB. The table refuses ANCHOR.
pub(crate) fn unmap(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    match usize::from(call.cdb.be16(7)) {
        0 => Ok(Action::Done(Outcome::GOOD)),
        len if len < UNMAP_HEADER => Err(Sense::LIST_LENGTH),
        len => Ok(Action::DataOut { len }),
    }
}

/// UNMAP: the parameter list. All descriptors are checked before the first one is worked on. An incomplete descriptor
/// at the end is ignored, as the standard says.
pub(crate) fn unmap_list(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    const DESCRIPTOR: usize = 16;
    let Some((header, rest)) = list.split_at_checked(UNMAP_HEADER) else { return Err(Sense::LIST_LENGTH) };
    let data_len = usize::from(header[0]) << 8 | usize::from(header[1]);
    let descriptors_len = usize::from(header[2]) << 8 | usize::from(header[3]);
    if data_len + 2 > list.len() {
        return Err(Sense::LIST_LENGTH);
    }
    let descriptors = rest.get(..descriptors_len).ok_or(Sense::LIST_LENGTH)?;
    if descriptors_len > data_len.saturating_sub(UNMAP_HEADER - 2) {
        return Err(Sense::invalid_parameter(2, None));
    }
    let mut descriptors = descriptors.chunks_exact(DESCRIPTOR);
    if descriptors.len() > MAX_UNMAP_DESCRIPTORS as usize {
        return Err(Sense::invalid_parameter(2, None));
    }
    let range = |bytes: &[u8]| descriptor_range(bytes, call.geometry);
    let Some(first) = descriptors.next() else { return Ok(Action::Done(Outcome::GOOD)) };
    let first = range(first)?;
    let later = descriptors.map(range).collect::<Result<Vec<_>, _>>()?;
    if first.len == 0 && later.iter().all(|range| range.len == 0) {
        return Ok(Action::Done(Outcome::GOOD));
    }
    Ok(Action::Plan(Plan::discard(first, later, call.geometry.write_flags(false))))
}

/// An UNMAP block descriptor: address, number of blocks, 4 bytes reserved.
fn descriptor_range(bytes: &[u8], geometry: Geometry) -> Result<Range, Sense> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    let range = geometry.range(number(&bytes[..8]), number(&bytes[8..12]));
    range.map(|(offset, len)| Range { offset, len }).ok_or(Sense::LBA_OUT_OF_RANGE)
}

/// UNMAP of WRITE SAME, in the byte of flags.
pub(crate) const UNMAP: u8 = 0x08;

/// WRITE SAME(10), (16), (32): the CDB. With NDOB there is no block to fetch, and zeroes are meant.
/// The table refuses ANCHOR (ANC_SUP is 0), and PBDATA and LBDATA: they are obsolete, but had a meaning that nobody may
/// believe was served.
pub(crate) fn write_same(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const NDOB: u8 = 0x01;
    let flags = call.cdb.flags();
    if flags & UNMAP != 0 && !call.geometry.has(Flags::DISCARDS) {
        return Err(Sense::invalid_field(call.cdb.flags_at(), Some(3)));
    }
    let range = same_range(call)?;
    // In WRITE SAME(10) the bit is RELADR, which is ignored.
    if call.cdb.opcode() != 0x41 && flags & NDOB != 0 {
        return Ok(zeroes(call, range));
    }
    if range.len == 0 {
        return Ok(Action::Done(Outcome::GOOD));
    }
    Ok(Action::DataOut { len: call.geometry.block_size() as usize })
}

/// WRITE SAME: the block to write. Zeroes are not written but left to the device; other data is written also where the
/// initiator would rather have it unmapped, as an unmapped block could not read as that.
pub(crate) fn write_same_block(call: &mut Call<'_>, block: &[u8]) -> Result<Action, Sense> {
    if block.len() != call.geometry.block_size() as usize {
        return Err(Sense::LIST_LENGTH);
    }
    let range = same_range(call)?;
    if block.iter().all(|&byte| byte == 0) {
        return Ok(zeroes(call, range));
    }
    Ok(Action::Plan(Plan::write_pattern(range, block, call.geometry.write_flags(false))))
}

/// The range of a WRITE SAME; a number of blocks of 0 means up to the last one (WSNZ is 0).
fn same_range(call: &Call<'_>) -> Result<Range, Sense> {
    let blocks = call.cdb.blocks();
    let range = call.geometry.range_or_rest(blocks.lba, blocks.count);
    range.map(|(offset, len)| Range { offset, len }).ok_or(Sense::LBA_OUT_OF_RANGE)
}

fn zeroes(call: &Call<'_>, range: Range) -> Action {
    if range.len == 0 {
        return Action::Done(Outcome::GOOD);
    }
    let mut flags = call.geometry.write_flags(false);
    flags.set(IoFlags::MAY_DEALLOCATE, call.cdb.flags() & UNMAP != 0);
    Action::Plan(Plan::write_zeroes(range, flags))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Step;
    use crate::testing::{Bench, sense_of, shape};
    use pollux_core::Shape;

    fn steps(action: Action) -> Vec<Step> {
        match action {
            Action::Plan(mut plan) => std::iter::from_fn(|| plan.next()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// An UNMAP parameter list whose lengths agree.
    fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
        let len = ranges.len() as u16 * 16;
        let mut list = [(len + 6).to_be_bytes(), len.to_be_bytes(), [0; 2], [0; 2]].concat();
        for (lba, count) in ranges {
            list.extend_from_slice(&lba.to_be_bytes());
            list.extend_from_slice(&count.to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        list
    }

    fn unmap(bench: &mut Bench, list: &[u8]) -> Action {
        let [high, low] = (list.len() as u16).to_be_bytes();
        bench.send(&[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], list)
    }

    #[test]
    fn unmap_is_one_discard_per_descriptor() {
        let mut bench = Bench::new();
        let flags = IoFlags::empty();
        let action = unmap(&mut bench, &list(&[(1, 2), (0, 0), (4095, 1), (0, 4096)]));
        let want = [(512, 1024), (4095 * 512, 512), (0, 4096 * 512)];
        assert_eq!(steps(action), want.map(|(offset, len)| Step::Discard { offset, len, flags }));
    }

    #[test]
    fn unmap_of_nothing_is_good() {
        let mut bench = Bench::new();
        bench.good(&[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for list in [list(&[]), list(&[(0, 0), (4096, 0)]), vec![0, 14, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            let action = unmap(&mut bench, &list);
            assert!(matches!(action, Action::Done(Outcome::GOOD)), "{action:?}");
        }
    }

    #[test]
    fn unmap_ranges_are_checked_before_any_is_done() {
        let mut bench = Bench::new();
        for bad in [(4095, 2), (4096, 1), (4097, 0), (u64::MAX, 1), (1, u32::MAX)] {
            let action = unmap(&mut bench, &list(&[(0, 1), bad]));
            assert_eq!(sense_of(&action), Sense::LBA_OUT_OF_RANGE, "{bad:?}");
        }
    }

    #[test]
    fn unmap_lists_whose_lengths_disagree() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&[0x42, 0, 0, 0, 0, 0, 0, 0, 7, 0]), Sense::LIST_LENGTH);
        assert_eq!(bench.sense(&[0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0]), Sense::invalid_field(1, Some(0)));
        let with = |at: usize, value: u8| {
            let mut list = list(&[(0, 1)]);
            list[at] = value;
            list
        };
        assert_eq!(sense_of(&unmap(&mut bench, &with(1, 23))), Sense::LIST_LENGTH, "data length behind the end");
        assert_eq!(sense_of(&unmap(&mut bench, &with(3, 17))), Sense::LIST_LENGTH, "descriptors behind the end");
        assert_eq!(sense_of(&unmap(&mut bench, &with(1, 21))), Sense::invalid_parameter(2, None), "one in the other");
        assert_eq!(sense_of(&unmap(&mut bench, &with(2, 0xFF))), Sense::LIST_LENGTH);
        let full = list(&[(0, 1); 256]);
        assert_eq!(steps(unmap(&mut bench, &full)).len(), 256);
        let over = list(&[(0, 1); 257]);
        assert_eq!(sense_of(&unmap(&mut bench, &over)), Sense::invalid_parameter(2, None));
    }

    #[test]
    fn a_list_that_came_short_is_refused() {
        let bench = Bench::new();
        let mut scratch = vec![0; crate::SCRATCH_MIN];
        let cdb = crate::Cdb::from_slice(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        for len in [0, 7, 8, 23] {
            let action = bench.unit.execute_out(&bench.path, &cdb, &list(&[(0, 1)])[..len], &mut scratch);
            assert_eq!(sense_of(&action), Sense::LIST_LENGTH);
        }
    }

    fn same_16(flags: u8, lba: u64, count: u32) -> [u8; 16] {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (0x93, flags);
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&count.to_be_bytes());
        cdb
    }

    #[test]
    fn write_same_of_zeroes_is_left_to_the_device() {
        let mut bench = Bench::new();
        let zeroes = |offset, len, flags| vec![Step::WriteZeroes { offset, len, flags }];
        let action = bench.send(&same_16(0, 8, 8), &[0; 512]);
        assert_eq!(steps(action), zeroes(4096, 4096, IoFlags::empty()));
        let action = bench.send(&same_16(UNMAP, 8, 8), &[0; 512]);
        assert_eq!(steps(action), zeroes(4096, 4096, IoFlags::MAY_DEALLOCATE));
        let action = bench.execute(&same_16(UNMAP | 1, 8, 0));
        assert_eq!(steps(action), zeroes(4096, 4088 * 512, IoFlags::MAY_DEALLOCATE));
        let action = bench.send(&[0x41, UNMAP, 0, 0, 0, 1, 0, 0, 2, 0], &[0; 512]);
        assert_eq!(steps(action), zeroes(512, 1024, IoFlags::MAY_DEALLOCATE));
    }

    fn same_32(flags: u8, lba: u64, count: u32) -> [u8; 32] {
        let mut cdb = [0; 32];
        (cdb[0], cdb[7], cdb[9], cdb[10]) = (0x7F, 0x18, 0x0D, flags);
        cdb[12..20].copy_from_slice(&lba.to_be_bytes());
        cdb[28..].copy_from_slice(&count.to_be_bytes());
        cdb
    }

    #[test]
    fn write_same_32_is_the_same() {
        let mut bench = Bench::new();
        let zeroes = |offset, len, flags| vec![Step::WriteZeroes { offset, len, flags }];
        let action = bench.send(&same_32(UNMAP, 8, 8), &[0; 512]);
        assert_eq!(steps(action), zeroes(4096, 4096, IoFlags::MAY_DEALLOCATE));
        assert_eq!(steps(bench.execute(&same_32(1, 8, 0))), zeroes(4096, 4088 * 512, IoFlags::empty()));
        let Action::Plan(plan) = bench.send(&same_32(0, 0, 1), &[3; 512]) else { panic!() };
        assert_eq!(plan.pattern(), [3; 512]);
        for (flags, bit) in [(0x10, 4), (0x04, 2), (0x02, 1), (0x20, 5)] {
            assert_eq!(bench.sense(&same_32(flags, 0, 1)), Sense::invalid_field(10, Some(bit)));
        }
        assert_eq!(bench.sense(&same_32(0, u64::MAX, 1)), Sense::LBA_OUT_OF_RANGE);
        let mut plain = Bench::with(Some(Shape { discard: None, ..shape() }));
        assert_eq!(plain.sense(&same_32(UNMAP, 0, 1)), Sense::invalid_field(10, Some(3)));
    }

    #[test]
    fn write_same_of_data_is_written_even_if_unmap_is_wished() {
        let mut bench = Bench::new();
        let mut block = [0; 512];
        block[511] = 1;
        for flags in [0, UNMAP] {
            let Action::Plan(mut plan) = bench.send(&same_16(flags, 4095, 1), &block) else { panic!() };
            assert_eq!(plan.pattern(), block);
            let want = Step::WritePattern { offset: 4095 * 512, len: 512, flags: IoFlags::empty() };
            assert_eq!((plan.next(), plan.next()), (Some(want), None));
        }
    }

    #[test]
    fn write_same_refusals() {
        let mut bench = Bench::new();
        for (flags, bit) in [(0x10, 4), (0x18, 4), (0x04, 2), (0x02, 1), (0x20, 5)] {
            assert_eq!(bench.sense(&same_16(flags, 0, 1)), Sense::invalid_field(1, Some(bit)));
        }
        for (lba, count) in [(4096, 1), (4097, 0), (u64::MAX, 1), (u64::MAX, 0), (1 << 63, 1), (1, u32::MAX)] {
            assert_eq!(bench.sense(&same_16(0, lba, count)), Sense::LBA_OUT_OF_RANGE);
        }
        assert_eq!(bench.sense(&[0x41, 0x01, 0, 0, 0x10, 0, 0, 0, 1, 0]), Sense::LBA_OUT_OF_RANGE, "bit 0 is RELADR");
        let mut plain = Bench::with(Some(Shape { discard: None, ..shape() }));
        assert_eq!(plain.sense(&same_16(UNMAP, 0, 1)), Sense::invalid_field(1, Some(3)));
        let short = bench.send(&same_16(0, 0, 1), &[0; 512]);
        assert!(matches!(short, Action::Plan(_)));
    }

    #[test]
    fn write_cache_off_makes_plans_durable() {
        let mut bench = Bench::new();
        let mut caching = vec![0, 0, 0, 0, 0x08, 0x12];
        caching.resize(24, 0);
        bench.send(&[0x15, 0x10, 0, 0, 24, 0], &caching);
        let action = unmap(&mut bench, &list(&[(0, 1)]));
        assert_eq!(steps(action), [Step::Discard { offset: 0, len: 512, flags: IoFlags::FUA }]);
        let flags = IoFlags::FUA | IoFlags::MAY_DEALLOCATE;
        let action = bench.execute(&same_16(UNMAP | 1, 0, 1));
        assert_eq!(steps(action), [Step::WriteZeroes { offset: 0, len: 512, flags }]);
    }
}
