//! MODE SENSE and MODE SELECT, (6) and (10) (SPC-5, clauses 6.13 to 6.16): header, block descriptor, pages.

use crate::commands::Call;
use crate::geometry::{Flags, Geometry};
use crate::modes::{Values, leftmost, offset};
use crate::{Action, Inventory, Key, Sense, code};

/// Which of the two forms.
fn is_long(call: &Call<'_>) -> bool {
    call.cdb.opcode() >= 0x40
}

/// MODE SENSE(6), (10).
pub(crate) fn sense(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const DBD: u8 = 0x08;
    const LLBAA: u8 = 0x10;
    const PAGE: usize = 2;
    let long = is_long(call);
    let (page, subpage) = (call.cdb.byte(PAGE) & 0x3F, call.cdb.byte(3));
    let values = match call.cdb.byte(PAGE) >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ if call.geometry.has(Flags::KEEPS) => Values::Saved,
        _ => return Err(Sense::new(Key::IllegalRequest, code::SAVING_NOT_SUPPORTED)),
    };
    let descriptor = match (call.cdb.bit(1, DBD), long && call.cdb.bit(1, LLBAA)) {
        (true, _) => Descriptor::None,
        (false, false) => Descriptor::Short,
        (false, true) => Descriptor::Long,
    };
    put_header(call, long, descriptor);
    put_descriptor(call, descriptor);
    let Call { unit, data, .. } = call;
    let thresholds = unit.supply().map_or_else(Vec::new, |supply| supply.descriptors());
    if !unit.with_modes(|modes| modes.sense(page, subpage, values, &thresholds, |bytes| data.put(bytes))) {
        return Err(unknown_page(page, subpage));
    }
    if long {
        let len = u16::try_from(data.len() - 2).unwrap_or(u16::MAX);
        data.set(0, &len.to_be_bytes());
        return Ok(call.data.answer(usize::from(call.cdb.be16(7))));
    }
    let len = u8::try_from(data.len() - 1).unwrap_or(u8::MAX);
    data.set(0, &[len]);
    Ok(call.data.answer(usize::from(call.cdb.byte(4))))
}

/// Points at the page code, or at the subpage code if that is what is wrong.
fn unknown_page(page: u8, subpage: u8) -> Sense {
    if subpage == 0 || page == 0 { Sense::invalid_field(2, Some(5)) } else { Sense::invalid_field(3, None) }
}

/// Which block descriptor goes between header and pages (SBC-4, clause 6.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Descriptor {
    None,
    Short,
    Long,
}

impl Descriptor {
    const fn len(self) -> u8 {
        match self {
            Descriptor::None => 0,
            Descriptor::Short => 8,
            Descriptor::Long => 16,
        }
    }
}

/// The mode parameter header; its length field is set when the length is known.
fn put_header(call: &mut Call<'_>, long: bool, descriptor: Descriptor) {
    const WP: u8 = 0x80;
    const DPOFUA: u8 = 0x10;
    let protected = if call.geometry.writable().is_err() { WP } else { 0 };
    let specific = DPOFUA | protected;
    if long {
        let long_lba = u8::from(descriptor == Descriptor::Long);
        call.data.put(&[0, 0, 0, specific, long_lba, 0, 0, descriptor.len()]);
    } else {
        call.data.put(&[0, 0, specific, descriptor.len()]);
    }
}

fn put_descriptor(call: &mut Call<'_>, descriptor: Descriptor) {
    let (blocks, block) = (call.geometry.blocks(), call.geometry.block_size());
    match descriptor {
        Descriptor::None => {}
        Descriptor::Short => {
            call.data.put(&u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes());
            // Reserved, then a length of three bytes.
            call.data.put(&(block & 0x00FF_FFFF).to_be_bytes());
        }
        Descriptor::Long => {
            call.data.put(&blocks.to_be_bytes());
            call.data.put(&[0; 4]);
            call.data.put(&block.to_be_bytes());
        }
    }
}

/// SP, in byte 1 of MODE SELECT.
pub(crate) const SP: u8 = 0x01;

/// MODE SELECT(6), (10): the CDB. Pages have to be in the standard's format (PF). RTD returns all pages to their defaults,
/// and takes no list. SP saves what is current afterwards, of all pages, where it can be kept.
pub(crate) fn select(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const PF: u8 = 0x10;
    const RTD: u8 = 0x02;
    let (len_at, len) = if is_long(call) { (7, call.cdb.be16(7).into()) } else { (4, usize::from(call.cdb.byte(4))) };
    let save = call.cdb.bit(1, SP);
    if save && !call.geometry.has(Flags::KEEPS) {
        return Err(Sense::invalid_field(1, Some(0)));
    }
    if call.cdb.bit(1, RTD) {
        if len > 0 {
            return Err(Sense::invalid_field(len_at, None));
        }
        return call.unit.change_modes(call.path, false, |modes| {
            if save {
                modes.forget();
            } else {
                modes.revert();
            }
            Ok(())
        });
    }
    if len == 0 {
        return call.unit.change_modes(call.path, save, |_| Ok(()));
    }
    if !call.cdb.bit(1, PF) {
        return Err(Sense::invalid_field(1, Some(4)));
    }
    Ok(Action::DataOut { len })
}

/// MODE SELECT: the parameter list. Applied as a whole or not at all.
pub(crate) fn select_list(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    let pages = check_header(list, is_long(call), call.geometry)?;
    let mut at = pages;
    let thresholds = call.unit.supply().map_or_else(Vec::new, |supply| supply.descriptors());
    call.unit.change_modes(call.path, call.cdb.bit(1, SP), |modes| {
        while let Some(rest) = list.get(at..).filter(|rest| !rest.is_empty()) {
            at += modes.select(rest, at, &thresholds)?;
        }
        Ok(())
    })
}

/// Checks header and block descriptor; where the pages start. MODE DATA LENGTH is reserved here and the device-specific
/// parameter is not changeable: both are what MODE SENSE gave in practice, and are not looked at.
fn check_header(list: &[u8], long: bool, geometry: Geometry) -> Result<usize, Sense> {
    let (header, medium_type) = if long { (8, 2) } else { (4, 1) };
    if list.len() < header {
        return Err(Sense::LIST_LENGTH);
    }
    if list[medium_type] != 0 {
        return Err(Sense::invalid_parameter(offset(medium_type), None));
    }
    let (long_lba, len_at, len) = if long {
        (list[4], 6, usize::from(list[6]) << 8 | usize::from(list[7]))
    } else {
        (0, 3, usize::from(list[3]))
    };
    if long_lba & !1 != 0 {
        return Err(Sense::invalid_parameter(4, Some(leftmost(long_lba))));
    }
    let one = if long_lba == 1 { 16 } else { 8 };
    if len != 0 && len != one {
        return Err(Sense::invalid_parameter(len_at, None));
    }
    let descriptor = list.get(header..header + len).ok_or(Sense::LIST_LENGTH)?;
    if len != 0 {
        check_descriptor(descriptor, header, geometry)?;
    }
    Ok(header + len)
}

/// Capacity and block length cannot be changed here: the values have to be the unit's own, or "as it is" for the number
/// of blocks (0, or all ones).
fn check_descriptor(descriptor: &[u8], at: usize, geometry: Geometry) -> Result<(), Sense> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    let long = descriptor.len() == 16;
    let (blocks, all_ones) =
        if long { (number(&descriptor[..8]), u64::MAX) } else { (number(&descriptor[..4]), u64::from(u32::MAX)) };
    if blocks != 0 && blocks != all_ones && blocks != geometry.blocks() {
        return Err(Sense::invalid_parameter(offset(at), None));
    }
    let length_at = if long { 12 } else { 5 };
    if number(&descriptor[length_at..]) != u64::from(geometry.block_size()) {
        return Err(Sense::invalid_parameter(offset(at + length_at), None));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, Shelf, drained, sense_of, shape};
    use crate::{Attention, Outcome, Sections, Status};
    use pollux_core::{IoFlags, Shape};
    use std::sync::Arc;

    const DBD: u8 = 0x08;

    fn sense6(bench: &mut Bench, byte1: u8, page: u8) -> Vec<u8> {
        bench.data(&[0x1A, byte1, page, 0, 0xFF, 0])
    }

    /// Asks for a page's current value, changes a byte of it, and selects it.
    fn select(bench: &mut Bench, page: u8, at: usize, value: u8) -> Action {
        let mut list = sense6(bench, DBD, page);
        list[..4].fill(0);
        list[4 + at] = value;
        let len = list.len() as u8;
        bench.send(&[0x15, 0x10, 0, 0, len, 0], &list)
    }

    fn good(action: &Action) {
        assert!(matches!(action, Action::Done(Outcome { status: Status::Good, .. })), "{action:?}");
    }

    #[test]
    fn mode_sense_6_with_a_block_descriptor() {
        let mut bench = Bench::new();
        let mut want = vec![31, 0, 0x10, 8, 0, 0, 0x10, 0, 0, 0, 2, 0];
        want.extend_from_slice(&[0x08, 0x12, 0x04]);
        want.resize(32, 0);
        assert_eq!(sense6(&mut bench, 0, 0x08), want);
    }

    #[test]
    fn mode_sense_6_all_pages() {
        let data = sense6(&mut Bench::new(), DBD, 0x3F);
        let mut want = vec![115, 0, 0x10, 0];
        want.extend_from_slice(&[0x01, 0x0A, 0xC0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0]);
        want.extend_from_slice(&[0x02, 0x0E, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        want.extend_from_slice(&[0x08, 0x12, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        want.extend_from_slice(&[0x0A, 0x0A, 0x02, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]);
        want.extend_from_slice(&[0x1A, 0x26]);
        want.resize(want.len() + 38, 0);
        want.extend_from_slice(&[0x1C, 0x0A, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(data, want);
    }

    #[test]
    fn mode_sense_10_with_a_long_descriptor() {
        let mut bench = Bench::with(Some(Shape { num_blocks: 1 << 33, ..shape() }));
        let data = bench.data(&[0x5A, 0x10, 0x0A, 0, 0, 0, 0, 0x10, 0, 0]);
        let mut want = vec![0, 34, 0, 0x10, 1, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        want.extend_from_slice(&[0x0A, 0x0A, 0x02, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(data, want);
        let short = bench.data(&[0x5A, 0, 0x0A, 0, 0, 0, 0, 0x10, 0, 0]);
        assert_eq!(short[..12], [0, 26, 0, 0x10, 0, 0, 0, 8, 0xFF, 0xFF, 0xFF, 0xFF]);
    }

    #[test]
    fn page_controls_and_pages_that_are_not_there() {
        let mut bench = Bench::new();
        assert_eq!(sense6(&mut bench, DBD, 0x48)[4..8], [0x08, 0x12, 0x04, 0]);
        assert_eq!(sense6(&mut bench, DBD, 0x4A)[4..10], [0x0A, 0x0A, 0x04, 0, 0x08, 0]);
        assert_eq!(sense6(&mut bench, DBD, 0x88)[6], 0x04);
        assert_eq!(bench.sense(&[0x1A, 0, 0xC8, 0, 0xFF, 0]).code(), 0x3900);
        assert_eq!(bench.sense(&[0x1A, 0, 0x03, 0, 0xFF, 0]), Sense::invalid_field(2, Some(5)));
        assert_eq!(bench.sense(&[0x1A, 0, 0x00, 0, 0xFF, 0]), Sense::invalid_field(2, Some(5)));
        assert_eq!(bench.sense(&[0x1A, 0, 0x0A, 5, 0xFF, 0]), Sense::invalid_field(3, None));
        assert_eq!(bench.sense(&[0x1A, 0, 0x3F, 5, 0xFF, 0]), Sense::invalid_field(3, None));
        assert_eq!(bench.data(&[0x1A, DBD, 0x3F, 0xFF, 0xFF, 0]).len(), 116 + 32 + 16);
        assert_eq!(bench.data(&[0x1A, DBD, 0x3F, 0, 3, 0]), [115, 0, 0x10]);
        assert_eq!(bench.data(&[0x1A, DBD, 0x1C, 2, 0xFF, 0])[4..9], [0x5C, 0x02, 0, 0x0C, 0]);
        assert_eq!(bench.data(&[0x1A, DBD, 0x0A, 0xFF, 0xFF, 0]).len(), 4 + 12 + 32);
    }

    #[test]
    fn wce_off_makes_every_write_durable_and_tells_the_others() {
        let mut bench = Bench::new();
        let write = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        let flags = |action| match action {
            Action::Io { flags, .. } => flags,
            other => panic!("{other:?}"),
        };
        assert_eq!(flags(bench.execute(&write)), IoFlags::empty());
        good(&select(&mut bench, 0x08, 2, 0));
        assert!(!bench.unit.write_cache_enabled());
        assert_eq!(sense6(&mut bench, DBD, 0x08)[6], 0);
        assert_eq!(flags(bench.execute(&write)), IoFlags::FUA);
        assert_eq!(flags(bench.execute(&[0x0A, 0, 0, 0, 1, 0])), IoFlags::FUA);
        assert_eq!(drained(&bench.other), [Attention::ModeChanged]);
        assert_eq!(drained(&bench.path), []);
        good(&select(&mut bench, 0x08, 2, 0));
        assert_eq!(drained(&bench.other), [], "nothing has changed");
        good(&select(&mut bench, 0x08, 2, 4));
        assert!(bench.unit.write_cache_enabled());
        assert_eq!(flags(bench.execute(&write)), IoFlags::empty());
    }

    #[test]
    fn d_sense_changes_the_format() {
        let mut bench = Bench::new();
        assert!(!bench.unit.descriptor_sense());
        good(&select(&mut bench, 0x0A, 2, 0x06));
        assert!(bench.unit.descriptor_sense());
        bench.unit.reset(Some(&bench.path));
        assert!(!bench.unit.descriptor_sense());
    }

    #[test]
    fn swp_protects() {
        let mut bench = Bench::new();
        good(&select(&mut bench, 0x0A, 4, 0x08));
        assert_eq!(sense6(&mut bench, DBD, 0x0A)[2], 0x90);
        assert_eq!(bench.sense(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]).code(), 0x2702);
        assert!(matches!(bench.execute(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Action::Io { .. }));
        good(&select(&mut bench, 0x0A, 4, 0));
        assert!(matches!(bench.execute(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Action::Io { .. }));
    }

    #[test]
    fn select_refuses_foreign_formats_and_saving_where_nothing_is_kept() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&[0x15, 0x11, 0, 0, 24, 0]), Sense::invalid_field(1, Some(0)));
        assert_eq!(bench.sense(&[0x15, 0x01, 0, 0, 0, 0]), Sense::invalid_field(1, Some(0)));
        assert_eq!(bench.sense(&[0x55, 0x03, 0, 0, 0, 0, 0, 0, 0, 0]), Sense::invalid_field(1, Some(0)));
        assert_eq!(bench.sense(&[0x15, 0x00, 0, 0, 24, 0]), Sense::invalid_field(1, Some(4)));
        bench.good(&[0x15, 0x10, 0, 0, 0, 0]);
        bench.good(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Page 08h, changed in byte 2, with SP.
    fn save_caching(bench: &mut Bench, value: u8) -> Action {
        let mut list = sense6(bench, DBD, 0x08);
        list[..4].fill(0);
        list[6] = value;
        bench.send(&[0x15, 0x11, 0, 0, 24, 0], &list)
    }

    fn saved(action: Action) -> String {
        let Action::Save(save) = action else { panic!("{action:?}") };
        assert_eq!(save.section(), "modes");
        let text = save.text().to_owned();
        save.done(true);
        text
    }

    #[test]
    fn saved_pages_are_what_a_reset_and_a_restart_return_to() {
        let shelf = Arc::new(Shelf::default());
        let mut bench = Bench::kept(&shelf, Some(&Sections::new()));
        assert_eq!(sense6(&mut bench, DBD, 0xC8)[4..7], [0x88, 0x12, 0x04], "PS, and the default");
        assert_eq!(sense6(&mut bench, DBD, 0x4A)[4..7], [0x8A, 0x0A, 0x04]);
        let action = save_caching(&mut bench, 0);
        assert!(bench.unit.write_cache_enabled(), "not yet");
        assert_eq!(drained(&bench.other), []);
        let text = saved(action);
        assert!(!bench.unit.write_cache_enabled());
        assert_eq!((drained(&bench.other), drained(&bench.path)), (vec![Attention::ModeChanged], vec![]));
        assert_eq!(sense6(&mut bench, DBD, 0xC8)[6], 0);
        assert_eq!(sense6(&mut bench, DBD, 0x88)[6], 0x04);
        // What is not saved is gone with a reset, also a cache that is on or off.
        good(&select(&mut bench, 0x08, 2, 0x04));
        good(&select(&mut bench, 0x0A, 4, 0x08));
        bench.unit.reset(Some(&bench.path));
        drained(&bench.path);
        assert_eq!((bench.unit.write_cache_enabled(), sense6(&mut bench, DBD, 0x08)[2]), (false, 0x10));
        let action = save_caching(&mut bench, 0x04);
        saved(action);
        good(&select(&mut bench, 0x08, 2, 0));
        bench.unit.reset(None);
        assert!(bench.unit.write_cache_enabled());
        let kept = Sections::from([("modes".to_owned(), text)]);
        let mut again = Bench::kept(&shelf, Some(&kept));
        assert!(!again.unit.write_cache_enabled(), "before anybody has asked");
        assert_eq!(again.unit.unreadable(), NONE);
        // The same again has nothing to save.
        good(&save_caching(&mut again, 0));
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn what_is_being_saved_holds_others_up_and_may_fail() {
        let shelf = Arc::new(Shelf::default());
        let mut bench = Bench::kept(&shelf, Some(&Sections::new()));
        let busy = |action: &Action| assert!(matches!(action, Action::Done(Outcome::BUSY)), "{action:?}");
        let action = save_caching(&mut bench, 0);
        busy(&select(&mut bench, 0x0A, 4, 0x08));
        busy(&bench.execute(&[0x15, 0x11, 0, 0, 0, 0]));
        busy(&bench.unit.reset_modes());
        let Action::Save(save) = action else { panic!() };
        save.done(false);
        assert!(bench.unit.write_cache_enabled(), "it could not be saved");
        assert_eq!(drained(&bench.other), []);
        *shelf.full.lock().unwrap() = true;
        busy(&save_caching(&mut bench, 0));
        good(&select(&mut bench, 0x0A, 4, 0x08));
        *shelf.full.lock().unwrap() = false;
        // What changes below meanwhile is not undone by it.
        let action = save_caching(&mut bench, 0);
        bench.unit.set_shape(Some(Shape { volatile_cache: false, ..shape() }));
        saved(action);
        assert_eq!(sense6(&mut bench, DBD, 0x48)[6], 0);
    }

    #[test]
    fn defaults_come_back() {
        let shelf = Arc::new(Shelf::default());
        let mut bench = Bench::kept(&shelf, Some(&Sections::new()));
        saved(save_caching(&mut bench, 0));
        good(&select(&mut bench, 0x0A, 4, 0x08));
        drained(&bench.other);
        // RTD: the current values; with SP the saved ones, too.
        bench.good(&[0x15, 0x02, 0, 0, 0, 0]);
        assert!(bench.unit.write_cache_enabled());
        assert_eq!(drained(&bench.other), [Attention::ModeChanged]);
        assert_eq!(sense6(&mut bench, DBD, 0xC8)[6], 0);
        assert_eq!(saved(bench.execute(&[0x55, 0x03, 0, 0, 0, 0, 0, 0, 0, 0])), "");
        assert_eq!(sense6(&mut bench, DBD, 0xC8)[6], 0x04);
        assert_eq!(bench.sense(&[0x15, 0x12, 0, 0, 24, 0]), Sense::invalid_field(4, None));
        assert_eq!(bench.sense(&[0x55, 0x12, 0, 0, 0, 0, 0, 0, 24, 0]), Sense::invalid_field(7, None));
        // A list of nothing saves what is current.
        good(&select(&mut bench, 0x0A, 2, 0x06));
        assert!(saved(bench.execute(&[0x15, 0x11, 0, 0, 0, 0])).contains("0a 00 0610"));
        drained(&bench.path);
        drained(&bench.other);
        assert_eq!(saved(bench.unit.reset_modes()), "");
        assert!(!bench.unit.descriptor_sense());
        assert_eq!(drained(&bench.path), [Attention::ModeChanged], "the operator's");
        assert_eq!(drained(&bench.other), [Attention::ModeChanged]);
        let bench = Bench::new();
        good(&bench.unit.reset_modes());
        assert_eq!(drained(&bench.path), [], "nothing was different");
    }

    #[test]
    fn what_was_saved_and_cannot_be_read_is_given_up_by_saving_or_resetting() {
        let shelf = Arc::new(Shelf::default());
        let damaged = Sections::from([("modes".to_owned(), "?".to_owned())]);
        let mut bench = Bench::kept(&shelf, Some(&damaged));
        assert_eq!(bench.unit.unreadable(), ["mode pages"]);
        assert_eq!(bench.sense(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]).code(), 0x2702);
        saved(bench.unit.reset_modes());
        assert_eq!(bench.unit.unreadable(), NONE);
        drained(&bench.path);
        assert!(bench.unit.write_cache_enabled());
        let mut bench = Bench::kept(&shelf, Some(&damaged));
        saved(save_caching(&mut bench, 0));
        assert_eq!(bench.unit.unreadable(), NONE);
        // Where nothing at all can be read, the reservations have to be given up first, and that is enough.
        let bench = Bench::kept(&shelf, None);
        assert_eq!(bench.unit.unreadable(), ["reservations", "mode pages", "identifying information"]);
        assert!(matches!(bench.unit.reset_modes(), Action::Done(Outcome::CONFLICT)));
        let Action::Save(save) = bench.unit.clear_reservations() else { panic!() };
        save.done(true);
        assert_eq!(bench.unit.unreadable(), NONE);
        assert!(bench.unit.write_cache_enabled());
    }

    fn select_10(bench: &mut Bench, list: &[u8]) -> Sense {
        let [high, low] = (list.len() as u16).to_be_bytes();
        sense_of(&bench.send(&[0x55, 0x10, 0, 0, 0, 0, 0, high, low, 0], list))
    }

    #[test]
    fn lists_that_are_wrong() {
        let mut bench = Bench::new();
        assert_eq!(select_10(&mut bench, &[0; 7]), Sense::LIST_LENGTH);
        assert_eq!(select_10(&mut bench, &[0, 0, 1, 0, 0, 0, 0, 0]), Sense::invalid_parameter(2, None));
        assert_eq!(select_10(&mut bench, &[0, 0, 0, 0, 2, 0, 0, 0]), Sense::invalid_parameter(4, Some(1)));
        assert_eq!(select_10(&mut bench, &[0, 0, 0, 0, 0, 0, 0, 7]), Sense::invalid_parameter(6, None));
        assert_eq!(select_10(&mut bench, &[0, 0, 0, 0, 1, 0, 0, 8]), Sense::invalid_parameter(6, None));
        assert_eq!(select_10(&mut bench, &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0]), Sense::LIST_LENGTH);
        assert_eq!(select_10(&mut bench, &[0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x12, 0]), Sense::LIST_LENGTH);
        assert_eq!(select_10(&mut bench, &[0, 0, 0, 0, 0, 0, 0, 0, 0x3F, 0]), Sense::invalid_parameter(8, Some(5)));
    }

    #[test]
    fn block_descriptors_may_not_ask_for_another_size() {
        let mut bench = Bench::new();
        let list = |blocks: [u8; 4], length: [u8; 4]| [&[0, 0, 0, 8], &blocks[..], &length[..]].concat();
        let ours = [0, 0, 2, 0];
        for blocks in [[0; 4], [0xFF; 4], [0, 0, 0x10, 0]] {
            good(&bench.send(&[0x15, 0x10, 0, 0, 12, 0], &list(blocks, ours)));
        }
        for length in [[0; 4], [0, 0, 2, 1], [0, 0, 0x10, 0], [0, 0xFF, 0xFF, 0xFF]] {
            let action = bench.send(&[0x15, 0x10, 0, 0, 12, 0], &list([0; 4], length));
            assert_eq!(sense_of(&action), Sense::invalid_parameter(9, None));
        }
        let action = bench.send(&[0x15, 0x10, 0, 0, 12, 0], &list([0, 0, 0, 1], ours));
        assert_eq!(sense_of(&action), Sense::invalid_parameter(4, None));
        let mut long = vec![0, 0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        good(&bench.send(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 24, 0], &long));
        long[23] = 1;
        assert_eq!(select_10(&mut bench, &long), Sense::invalid_parameter(20, None));
    }

    #[test]
    fn one_wrong_page_undoes_the_others() {
        let mut bench = Bench::new();
        let mut list = sense6(&mut bench, DBD, 0x3F);
        list[..4].fill(0);
        list[34] = 0; // WCE
        list[55] = 0x40; // a queue algorithm that there is not
        let len = list.len() as u8;
        let action = bench.send(&[0x15, 0x10, 0, 0, len, 0], &list);
        assert_eq!(sense_of(&action), Sense::invalid_parameter(55, Some(6)));
        assert!(bench.unit.write_cache_enabled());
        assert_eq!(drained(&bench.other), []);
    }

    #[test]
    fn a_read_only_disk_says_so() {
        let mut bench = Bench::with(Some(Shape { read_only: true, volatile_cache: false, ..shape() }));
        assert_eq!(sense6(&mut bench, DBD, 0x3F)[2], 0x90);
        assert_eq!(bench.sense(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]).code(), 0x2700);
        assert_eq!(bench.sense(&[0x42, 0, 0, 0, 0, 0, 0, 0, 8, 0]).code(), 0x2700);
        assert_eq!(bench.sense(&[0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]).code(), 0x2700);
        let action = select(&mut bench, 0x08, 2, 4);
        assert_eq!(sense_of(&action), Sense::invalid_parameter(6, Some(2)), "no cache to switch on");
    }
}
