//! What initiators ask first: TEST UNIT READY, REQUEST SENSE, INQUIRY, REPORT LUNS.

use crate::commands::{Call, vpd};
use crate::data_in::DataIn;
use crate::geometry::Flags;
use crate::{Action, Cdb, Inventory, Nexus, Outcome, SENSE_LEN, Sense};

/// TEST UNIT READY (SPC-5, clause 6.47). That the unit is ready was checked before.
pub(crate) fn test_unit_ready(_: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    Ok(Action::Done(Outcome::GOOD))
}

/// REQUEST SENSE (SPC-5, clause 6.39): the next unit attention, which is no longer pending then, else the unit's state.
pub(crate) fn request_sense(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let sense = match call.path.take() {
        Some(attention) => attention.sense(),
        None if !call.geometry.has(Flags::READY) => Sense::NOT_READY,
        None if call.blocked.is_some() => call.blocked.map_or(Sense::NONE, |blocked| blocked.sense),
        None if call.stopped => Sense::STOPPED,
        None => Sense::NONE,
    };
    Ok(sense_data(call.cdb, sense, &mut call.data))
}

/// Sense data as parameter data, in the format that DESC asks for.
pub(crate) fn sense_data(cdb: &Cdb, sense: Sense, data: &mut DataIn<'_>) -> Action {
    const DESC: u8 = 0x01;
    let mut bytes = [0; SENSE_LEN];
    let len = sense.encode(cdb.bit(1, DESC), &mut bytes);
    data.put(&bytes[..len]);
    data.answer(usize::from(cdb.byte(4)))
}

const EVPD: u8 = 0x01;
/// In byte 6 of standard INQUIRY data.
const MULTIP: u8 = 0x10;
const PAGE_CODE: usize = 2;

/// INQUIRY (SPC-5, clause 6.7).
pub(crate) fn inquiry(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    if call.cdb.bit(1, EVPD) {
        vpd::page(call)?;
    } else {
        no_page_code(call.cdb)?;
        let identity = call.unit.identity();
        let mut data = standard(0x00, &identity.vendor, &identity.product, &identity.revision);
        data[6] = if call.unit.is_multi_port() { MULTIP } else { 0 };
        call.data.put(&data);
    }
    Ok(call.data.answer(usize::from(call.cdb.be16(3))))
}

/// INQUIRY where there is no disk. The only VPD page is the list of VPD pages.
pub(crate) fn inquiry_without_unit(cdb: &Cdb, peripheral: u8, data: &mut DataIn<'_>) -> Result<Action, Sense> {
    if !cdb.bit(1, EVPD) {
        no_page_code(cdb)?;
        data.put(&standard(peripheral, b"POLLUX  ", &[b' '; 16], &[b' '; 4]));
    } else if cdb.byte(PAGE_CODE) == 0 {
        data.put(&[peripheral, 0, 0, 1, 0]);
    } else {
        return Err(Sense::invalid_field(PAGE_CODE as u16, None));
    }
    Ok(data.answer(usize::from(cdb.be16(3))))
}

fn no_page_code(cdb: &Cdb) -> Result<(), Sense> {
    if cdb.byte(PAGE_CODE) == 0 { Ok(()) } else { Err(Sense::invalid_field(PAGE_CODE as u16, None)) }
}

/// Standard INQUIRY data (SPC-5, clause 6.7.2). `peripheral` is qualifier and device type.
fn standard(peripheral: u8, vendor: &[u8; 8], product: &[u8; 16], revision: &[u8; 4]) -> [u8; 96] {
    const VERSION_SPC4: u8 = 0x06;
    const HISUP_FORMAT_2: u8 = 0x12;
    const TPGS_IMPLICIT: u8 = 0x10;
    const THIRD_PARTY_COPY: u8 = 0x08;
    const CMDQUE: u8 = 0x02;
    // SAM-5, SPC-4, SBC-3: no version claimed. 04C0h is what initiators look for.
    const VERSION_DESCRIPTORS: [u8; 6] = [0x00, 0xA0, 0x04, 0x60, 0x04, 0xC0];
    let mut data = [0; 96];
    data[0] = peripheral;
    data[2] = VERSION_SPC4;
    data[3] = HISUP_FORMAT_2;
    data[4] = data.len() as u8 - 5;
    // A well-known unit and no unit at all have no ports to choose from, and nothing to copy.
    data[5] = if peripheral == 0 { TPGS_IMPLICIT | THIRD_PARTY_COPY } else { 0 };
    data[7] = CMDQUE;
    data[8..16].copy_from_slice(vendor);
    data[16..32].copy_from_slice(product);
    data[32..36].copy_from_slice(revision);
    // A well-known unit and no unit at all are no block devices.
    let versions = if peripheral == 0 { 6 } else { 4 };
    data[58..58 + versions].copy_from_slice(&VERSION_DESCRIPTORS[..versions]);
    data
}

/// REPORT LUNS by a unit.
pub(crate) fn report_luns_of_unit(call: &mut Call<'_>, inventory: &dyn Inventory) -> Result<Action, Sense> {
    report_luns(call.cdb, call.path.nexus(), inventory, &mut call.data)
}

/// REPORT LUNS (SPC-5, clause 6.33). The initiator knows the list then, so 3Fh/0Eh is no longer pending.
pub(crate) fn report_luns(
    cdb: &Cdb,
    nexus: &Nexus,
    inventory: &dyn Inventory,
    data: &mut DataIn<'_>,
) -> Result<Action, Sense> {
    const SELECT_REPORT: usize = 2;
    let (units, well_known) = match cdb.byte(SELECT_REPORT) {
        0x00 => (true, false),
        0x01 => (false, true),
        0x02 => (true, true),
        _ => return Err(Sense::invalid_field(SELECT_REPORT as u16, None)),
    };
    // Cleared before the list is taken: a change in between is told again rather than lost.
    nexus.take_luns_changed();
    data.put(&[0; 8]);
    if units {
        inventory.luns(&mut |lun| data.put(&lun_field(lun)));
    }
    if well_known && inventory.well_known() {
        data.put(&[0xC1, 0x01, 0, 0, 0, 0, 0, 0]);
    }
    let list_len = u32::try_from(data.len() - 8).unwrap_or(u32::MAX);
    data.set(0, &list_len.to_be_bytes());
    Ok(data.answer(cdb.be32(6) as usize))
}

/// A unit's number as a single-level LUN (SAM-5, clause 4.7.7): peripheral device addressing below 256, flat space
/// addressing from there on.
fn lun_field(lun: u16) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    let method = if lun < 256 { 0x00 } else { 0x40 };
    [method | high & 0x3F, low, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, Luns, drained, shape};
    use crate::{Attention, SCRATCH_LEN, execute_absent, execute_well_known};

    #[test]
    fn standard_inquiry_data() {
        let data = Bench::new().data(&[0x12, 0, 0, 0, 0xFF, 0]);
        let mut want = vec![0x00, 0x00, 0x06, 0x12, 91, 0x18, 0x10, 0x02];
        want.extend_from_slice(b"POLLUX  test disk       0.1 ");
        want.resize(58, 0);
        want.extend_from_slice(&[0x00, 0xA0, 0x04, 0x60, 0x04, 0xC0]);
        want.resize(96, 0);
        assert_eq!(data, want);
    }

    #[test]
    fn a_second_port_shows_and_is_told() {
        let mut bench = Bench::new();
        let multi_port = |bench: &mut Bench| bench.data(&[0x12, 0, 0, 0, 0xFF, 0])[6] == 0x10;
        assert!(multi_port(&mut bench));
        bench.unit.detach(&bench.other);
        assert_eq!(drained(&bench.path), [Attention::InquiryChanged]);
        assert!(!multi_port(&mut bench));
        let same_port = Nexus::new(9, "c1".into(), 1, 0);
        let third = bench.unit.attach(same_port, 3);
        assert_eq!(drained(&bench.path), [], "another unit number of the same port");
        let fourth = bench.unit.attach(Nexus::new(9, "c9".into(), 9, 0), 0);
        assert!(multi_port(&mut bench));
        assert_eq!(drained(&bench.path), [Attention::InquiryChanged]);
        for new in [third, fourth] {
            assert_eq!(drained(&new), [Attention::PowerOn], "who is new asks anyway");
        }
    }

    #[test]
    fn allocation_lengths_cut_and_nothing_more() {
        let mut bench = Bench::new();
        let full = bench.data(&[0x12, 0, 0, 0xFF, 0xFF, 0]);
        assert_eq!(full.len(), 96);
        for len in [0u8, 1, 5, 36, 95, 96] {
            assert_eq!(bench.data(&[0x12, 0, 0, 0, len, 0]), full[..usize::from(len)]);
        }
        assert_eq!(bench.data(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), []);
        assert_eq!(bench.data(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0]), [0, 0, 0, 24, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn inquiry_refuses_what_it_does_not_know() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&[0x12, 0, 1, 0, 36, 0]), Sense::invalid_field(2, None), "page code without EVPD");
        assert_eq!(bench.sense(&[0x12, 1, 0xC7, 0, 36, 0]), Sense::invalid_field(2, None));
        assert_eq!(bench.sense(&[0x12, 2, 0, 0, 36, 0]), Sense::invalid_field(1, Some(1)), "CMDDT");
    }

    #[test]
    fn luns_are_listed_by_select_report() {
        let mut bench = Bench::new();
        let mut report = |select| bench.data(&[0xA0, 0, select, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        let units = [
            [0, 0, 0, 24, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0, 3, 0, 0, 0, 0, 0, 0],
            [0x41, 0x2C, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(report(0), units.concat());
        assert_eq!(report(1), [0; 8]);
        assert_eq!(report(2), units.concat());
        assert_eq!(bench.sense(&[0xA0, 0, 0x10, 0, 0, 0, 0, 0, 0, 16, 0, 0]), Sense::invalid_field(2, None));
    }

    struct Many;

    impl Inventory for Many {
        fn luns(&self, visit: &mut dyn FnMut(u16)) {
            (0..16384).for_each(visit);
        }

        fn well_known(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_full_target_fits_and_a_short_scratch_only_cuts() {
        let bench = Bench::new();
        let cdb = Cdb::from_slice(&[0xA0, 0, 2, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);
        let full = 8 + 16385 * 8;
        for (size, want) in [(SCRATCH_LEN, full), (65536, 65536)] {
            let mut scratch = vec![0; size];
            let action = bench.unit.execute(&bench.path, &cdb, &Many, &mut scratch);
            let Action::Done(outcome) = action else { panic!("{action:?}") };
            assert_eq!(outcome, Outcome::data(want));
            assert_eq!(scratch[..4], (full as u32 - 8).to_be_bytes());
        }
    }

    #[test]
    fn report_luns_clears_what_it_answers_and_nothing_else() {
        let mut bench = Bench::new();
        bench.path.nexus().raise_luns_changed();
        bench.path.raise(Attention::ModeChanged);
        bench.data(&[0xA0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(drained(&bench.path), [Attention::ModeChanged]);
    }

    #[test]
    fn attentions_come_before_the_command_but_not_before_inquiry() {
        let mut bench = Bench::new();
        bench.path.raise(Attention::CapacityChanged);
        bench.path.raise(Attention::PowerOn);
        bench.path.raise(Attention::SoftThreshold);
        bench.data(&[0x12, 0, 0, 0, 36, 0]);
        assert_eq!(bench.sense(&[0xFF]).code(), 0x2900, "before the unknown opcode");
        assert_eq!(bench.data(&[0x03, 0, 0, 0, 252, 0])[12..14], [0x38, 0x07]);
        bench.good(&[0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn request_sense_says_what_there_is_in_the_format_asked_for() {
        let mut bench = Bench::new();
        assert_eq!(bench.data(&[0x03, 0, 0, 0, 252, 0])[..3], [0x70, 0, 0]);
        assert_eq!(bench.data(&[0x03, 1, 0, 0, 252, 0]), [0x72, 0, 0, 0, 0, 0, 0, 0]);
        bench.unit.set_shape(None);
        assert_eq!(bench.data(&[0x03, 1, 0, 0, 252, 0]), [0x72, 2, 4, 0, 0, 0, 0, 0]);
        assert_eq!(bench.data(&[0x03, 1, 0, 0, 3, 0]), [0x72, 2, 4]);
    }

    #[test]
    fn a_missing_device_answers_discovery_only() {
        let mut bench = Bench::with(None);
        assert_eq!(bench.sense(&[0, 0, 0, 0, 0, 0]), Sense::NOT_READY);
        assert_eq!(bench.sense(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Sense::NOT_READY);
        assert_eq!(bench.sense(&[0x25]), Sense::NOT_READY);
        assert_eq!(bench.data(&[0x12, 0, 0, 0, 96, 0])[0], 0, "the unit itself is there");
        assert_eq!(bench.data(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])[3], 24);
        bench.unit.set_shape(Some(shape()));
        assert_eq!(bench.sense(&[0, 0, 0, 0, 0, 0]).code(), 0x2800);
        bench.good(&[0, 0, 0, 0, 0, 0]);
    }

    fn without_unit(cdb: &[u8], well_known: bool) -> Result<Vec<u8>, Sense> {
        let nexus = Nexus::new(1, "c".into(), 1, 0);
        let mut scratch = vec![0xEE; SCRATCH_LEN];
        let cdb = Cdb::from_slice(cdb);
        let execute = if well_known { execute_well_known } else { execute_absent };
        match execute(&cdb, &nexus, &Luns, &mut scratch) {
            Action::Done(Outcome { sense: Some(sense), .. }) => Err(sense),
            Action::Done(Outcome { data_len, .. }) => Ok(scratch[..data_len].to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_number_without_a_unit() {
        let absent = |cdb: &[u8]| without_unit(cdb, false);
        assert_eq!(absent(&[0x12, 0, 0, 0, 36, 0]).unwrap()[..4], [0x7F, 0, 6, 0x12]);
        assert_eq!(absent(&[0x12, 1, 0, 0, 36, 0]).unwrap(), [0x7F, 0, 0, 1, 0]);
        assert_eq!(absent(&[0x12, 1, 0x83, 0, 36, 0]), Err(Sense::invalid_field(2, None)));
        assert_eq!(absent(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).unwrap()[3], 24);
        assert_eq!(absent(&[0x03, 0, 0, 0, 18, 0]).unwrap()[12..14], [0x25, 0]);
        for opcode in [0x00, 0x28, 0x1A, 0x25, 0xFF] {
            assert_eq!(absent(&[opcode]), Err(Sense::LUN_NOT_SUPPORTED));
        }
    }

    #[test]
    fn the_well_known_unit() {
        let well_known = |cdb: &[u8]| without_unit(cdb, true);
        assert_eq!(well_known(&[0x12, 0, 0, 0, 36, 0]).unwrap()[0], 0x1E);
        assert_eq!(well_known(&[0; 6]), Ok(vec![]));
        assert_eq!(well_known(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).unwrap()[3], 24);
        assert_eq!(well_known(&[0x03, 1, 0, 0, 18, 0]).unwrap()[..3], [0x72, 0, 0]);
        assert_eq!(well_known(&[0x28]), Err(Sense::INVALID_OPCODE));
    }
}
