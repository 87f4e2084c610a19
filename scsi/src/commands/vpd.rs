//! Vital product data (SPC-5, clause 7.7; SBC-4, clause 6.6): what a unit is and what the device below really can.

use pollux_core::{Discard, Shape};

use crate::Sense;
use crate::commands::atomic::compare_and_write_max;
use crate::commands::provisioning::MAX_UNMAP_DESCRIPTORS;
use crate::commands::write_atomic::AtomicLimits;
use crate::commands::{Call, copy_page, ports};
use crate::data_in::DataIn;
use crate::identity::Identity;

/// The page codes there are, sorted.
const PAGES: [u8; 11] = [0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0x8F, 0xB0, 0xB1, 0xB2, 0xB7];

/// The least OPTIMAL UNMAP GRANULARITY that is shown unless something else was chosen, in bytes. Guests that get less
/// trim badly or not at all; ranges below it are discarded all the same.
const UNMAP_GRANULARITY: u32 = 32 * 1024;

/// Puts the VPD page that the CDB asks for.
pub(crate) fn page(call: &mut Call<'_>) -> Result<(), Sense> {
    let identity = &*call.unit.identity();
    let code = call.cdb.byte(2);
    let data = &mut call.data;
    data.put(&[0x00, code, 0, 0]);
    match code {
        0x00 => data.put(&PAGES),
        0x80 => data.put(identity.serial()),
        0x83 => device_identification(identity, call.path.nexus().relative_port(), data),
        0x86 => data.put(&extended_inquiry(call.unit.last_shape().as_ref())),
        // Mode page policy (SPC-5, clause 7.7.13): all pages and subpages are shared by all ports and initiators.
        0x87 => data.put(&[0x3F, 0xFF, 0x00, 0]),
        0x88 => ports::put_ports(call.unit, call.path, data),
        0x8F => copy_page::put(call.geometry.block_size(), data),
        0xB0 => data.put(&block_limits(call.unit.last_shape().as_ref(), identity.unmap_granularity)),
        0xB1 => data.put(&characteristics(call.unit.last_shape().as_ref(), identity)),
        0xB2 => {
            let exponent = call.unit.supply().map_or(0, |supply| supply.exponent);
            data.put(&provisioning(call.unit.last_shape().and_then(|shape| shape.discard), exponent));
        }
        // Block limits extension (SBC-4, clause 6.6.5): no streams, no limits beyond those of B0h.
        0xB7 => data.put(&[0; 60]),
        _ => return Err(Sense::invalid_field(2, None)),
    }
    let len = u16::try_from(data.len() - 4).unwrap_or(u16::MAX);
    data.set(2, &len.to_be_bytes());
    Ok(())
}

/// Page 83h (SPC-5, clause 7.7.6): T10 vendor identification, UUID, relative target port, target port group, and last the
/// NAA, which is the name to use.
fn device_identification(identity: &Identity, relative_port: u16, data: &mut DataIn<'_>) {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const OF_PORT: u8 = 0x10;
    // DESIGNATOR LENGTH is one byte.
    let serial = identity.serial();
    let serial = &serial[..serial.len().min(255 - 24)];
    designator(ASCII, 0x1, &[&identity.vendor, &identity.product, serial], data);
    designator(BINARY, 0xA, &[&[0x10, 0], identity.uuid.as_bytes()], data);
    designator(BINARY, OF_PORT | 0x4, &[&[0, 0], &relative_port.to_be_bytes()], data);
    designator(BINARY, OF_PORT | 0x5, &[&[0, 0], &ports::GROUP.to_be_bytes()], data);
    designator(BINARY, 0x3, &[identity.naa.as_bytes()], data);
}

fn designator(code_set: u8, kind: u8, parts: &[&[u8]], data: &mut DataIn<'_>) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    data.put(&[code_set, kind, 0, len as u8]);
    parts.iter().for_each(|part| data.put(part));
}

/// Page 86h (SPC-5, clause 7.7.7): no protection information; SIMPLE, ORDERED and HEAD OF QUEUE; V_SUP where there is a
/// volatile cache; mode pages revert to their defaults by MODE SELECT (RTD_SUP); 3Fh/0Eh is told once per nexus, by one
/// unit for all (LUICLR).
fn extended_inquiry(shape: Option<&Shape>) -> [u8; 60] {
    const SIMPSUP: u8 = 0x01;
    const ORDSUP: u8 = 0x02;
    const HEADSUP: u8 = 0x04;
    const V_SUP: u8 = 0x01;
    const LUICLR: u8 = 0x01;
    const RTD_SUP: u8 = 0x08;
    let mut page = [0; 60];
    page[1] = HEADSUP | ORDSUP | SIMPSUP;
    page[3] = LUICLR;
    page[4] = RTD_SUP;
    page[2] = if shape.is_some_and(|shape| shape.volatile_cache) { V_SUP } else { 0 };
    page
}

/// Page B0h (SBC-4, clause 6.6.4). Lengths are in blocks; 0 means no limit. Without a shape (the device has never been
/// there) nothing is known, and nothing is claimed.
fn block_limits(shape: Option<&Shape>, unmap: Option<u32>) -> [u8; 60] {
    let mut page = [0; 60];
    let Some(shape) = shape else { return page };
    let block = shape.block_size;
    let granularity = u16::try_from(shape.physical_block_size / block).unwrap_or(u16::MAX);
    page[1] = compare_and_write_max(block);
    page[2..4].copy_from_slice(&granularity.to_be_bytes());
    page[8..12].copy_from_slice(&(shape.optimal_io / block).to_be_bytes());
    if let Some(discard) = shape.discard {
        let (granularity, alignment) = unmap_granularity(discard, block, unmap.unwrap_or(UNMAP_GRANULARITY));
        page[16..20].fill(0xFF);
        page[20..24].copy_from_slice(&MAX_UNMAP_DESCRIPTORS.to_be_bytes());
        page[24..28].copy_from_slice(&granularity.to_be_bytes());
        const UGAVALID: u32 = 1 << 31;
        page[28..32].copy_from_slice(&(UGAVALID | alignment).to_be_bytes());
    }
    if let Some(AtomicLimits { max, granularity, alignment }) = AtomicLimits::of(shape) {
        // What is longer than an atomic write is limited only by what a CDB can say; 0 would be less than that, as the two
        // are compared.
        page[4..8].fill(0xFF);
        // Transfer length, alignment, granularity; with a boundary the same, as the whole is written at once anyway.
        for (at, value) in [(40, max), (44, alignment), (48, granularity), (52, max), (56, max)] {
            page[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
    }
    page
}

/// OPTIMAL UNMAP GRANULARITY and UNMAP GRANULARITY ALIGNMENT in blocks: whole granules of the device, `least` bytes at
/// least.
fn unmap_granularity(discard: Discard, block: u32, least: u32) -> (u32, u32) {
    let granule = discard.granularity.max(block);
    let shown = least.checked_next_multiple_of(granule).unwrap_or(granule);
    let alignment = discard.alignment % shown;
    (shown / block, alignment / block)
}

/// Page B1h (SBC-4, clause 6.6.2): MEDIUM ROTATION RATE, and, where there is a BLOCK ERASE, that what it has erased can be
/// read (WABEREQ 01b); all else is not reported.
fn characteristics(shape: Option<&Shape>, identity: &Identity) -> [u8; 60] {
    const WABEREQ_READS: u8 = 0x40;
    let mut page = [0; 60];
    let rate = identity.rotation_rate.unwrap_or_else(|| shape.map_or(0, |shape| shape.rotation_rate));
    page[..2].copy_from_slice(&rate.to_be_bytes());
    let erases = identity.allow_sanitize && shape.is_some_and(|shape| shape.discard.is_some());
    page[3] = if erases { WABEREQ_READS } else { 0 };
    page
}

/// Page B2h (SBC-4, clause 6.6.7). THRESHOLD EXPONENT is 0 where the unit has no space that could run out.
fn provisioning(discard: Option<Discard>, exponent: u8) -> [u8; 4] {
    const LBPU_LBPWS_LBPWS10: u8 = 0xE0;
    const LBPRZ: u8 = 0x04;
    const THIN: u8 = 2;
    match discard {
        Some(discard) => [exponent, LBPU_LBPWS_LBPWS10 | if discard.reads_zero { LBPRZ } else { 0 }, THIN, 0],
        None => [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, shape};

    fn vpd(bench: &mut Bench, code: u8) -> Vec<u8> {
        bench.data(&[0x12, 1, code, 4, 0, 0])
    }

    #[test]
    fn the_list_of_pages_holds_and_every_page_says_its_length() {
        for shape in [Some(shape()), None] {
            let mut bench = Bench::with(shape);
            let list = vpd(&mut bench, 0x00);
            assert_eq!(list, [0, 0, 0, 11, 0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0x8F, 0xB0, 0xB1, 0xB2, 0xB7]);
            for &code in &list[4..] {
                let page = vpd(&mut bench, code);
                assert_eq!(page[..2], [0, code]);
                assert_eq!(usize::from(page[2]) << 8 | usize::from(page[3]), page.len() - 4);
            }
        }
    }

    #[test]
    fn serial_number() {
        assert_eq!(vpd(&mut Bench::new(), 0x80), b"\0\x80\0\x2401234567-89ab-4cde-8f01-23456789abcd");
    }

    #[test]
    fn device_identification_ends_with_the_naa() {
        let page = vpd(&mut Bench::new(), 0x83);
        let mut want = vec![0x00, 0x83, 0, 4 + 60 + 4 + 18 + 4 + 4 + 4 + 4 + 4 + 16];
        want.extend_from_slice(&[0x02, 0x01, 0, 60]);
        want.extend_from_slice(b"POLLUX  test disk       01234567-89ab-4cde-8f01-23456789abcd");
        want.extend_from_slice(&[0x01, 0x0A, 0, 18, 0x10, 0]);
        want.extend_from_slice(crate::testing::uuid().as_bytes());
        want.extend_from_slice(&[0x01, 0x14, 0, 4, 0, 0, 0, 1]);
        want.extend_from_slice(&[0x01, 0x15, 0, 4, 0, 0, 0, 1]);
        want.extend_from_slice(&[0x01, 0x03, 0, 16]);
        let naa = [0x60, 0x25, 0x04, 0xF7, 0x9B, 0x9F, 0x1A, 0xDE, 0x8F, 0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD];
        want.extend_from_slice(&naa);
        assert_eq!(page, want);
    }

    #[test]
    fn extended_inquiry_and_mode_page_policy() {
        let page = vpd(&mut Bench::new(), 0x86);
        let mut want = vec![0x00, 0x86, 0, 0x3C, 0, 0x07, 0x01, 0x01, 0x08];
        want.resize(64, 0);
        assert_eq!(page, want);
        let page = vpd(&mut Bench::with(Some(Shape { volatile_cache: false, ..shape() })), 0x86);
        assert_eq!(page[4..9], [0, 0x07, 0, 0x01, 0x08]);
        assert_eq!(vpd(&mut Bench::new(), 0x87), [0, 0x87, 0, 4, 0x3F, 0xFF, 0, 0]);
        assert_eq!(vpd(&mut Bench::new(), 0xB7), [&[0, 0xB7, 0, 60][..], &[0; 60]].concat());
    }

    #[test]
    fn scsi_ports_of_the_asking_initiator() {
        let mut bench = Bench::new();
        let second = bench.unit.attach(crate::Nexus::new(1, "vm1 b".into(), 0x0201, 0), 5);
        let mut want = vec![0x00, 0x88, 0, 12 + 4 + 10 + 12 + 4 + 13];
        want.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 14, 0x02, 0x11, 0, 10]);
        want.extend_from_slice(b"POLLUX  c1");
        want.extend_from_slice(&[0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 17, 0x02, 0x11, 0, 13]);
        want.extend_from_slice(b"POLLUX  vm1 b");
        assert_eq!(vpd(&mut bench, 0x88), want);
        drop(second);
        assert_eq!(vpd(&mut bench, 0x88)[3], 12 + 4 + 10);
    }

    #[test]
    fn block_limits_of_a_device_with_everything() {
        let page = vpd(&mut Bench::new(), 0xB0);
        let mut want = vec![0x00, 0xB0, 0, 0x3C, 0, 255, 0, 8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 128, 0, 0, 0, 0];
        want.extend_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 1, 0, 0, 0, 0, 64, 0x80, 0, 0, 0]);
        want.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0]);
        want.extend_from_slice(&[0, 0, 0, 128, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 128, 0, 0, 0, 128]);
        assert_eq!(page, want);
    }

    #[test]
    fn what_the_device_does_not_do_is_not_claimed() {
        let mut bench = Bench::with(Some(Shape {
            discard: None,
            atomic_write: None,
            optimal_io: 0,
            rotation_rate: 7200,
            ..shape()
        }));
        let mut want = vec![0x00, 0xB0, 0, 0x3C, 0, 255, 0, 8];
        want.resize(64, 0);
        assert_eq!(vpd(&mut bench, 0xB0), want);
        assert_eq!(vpd(&mut bench, 0xB1)[..8], [0, 0xB1, 0, 0x3C, 0x1C, 0x20, 0, 0]);
        assert_eq!(vpd(&mut bench, 0xB2), [0, 0xB2, 0, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn provisioning_says_whether_discarded_space_reads_zero() {
        assert_eq!(vpd(&mut Bench::new(), 0xB2), [0, 0xB2, 0, 4, 0, 0xE4, 2, 0]);
        let discard = Some(Discard { reads_zero: false, ..shape().discard.unwrap() });
        let mut bench = Bench::with(Some(Shape { discard, ..shape() }));
        assert_eq!(vpd(&mut bench, 0xB2), [0, 0xB2, 0, 4, 0, 0xE0, 2, 0]);
    }

    #[test]
    fn the_unmap_granularity_is_whole_granules_and_never_small() {
        let granularity = |granularity, alignment| {
            unmap_granularity(Discard { granularity, alignment, reads_zero: true }, 512, 32768)
        };
        assert_eq!(granularity(0, 0), (64, 0));
        assert_eq!(granularity(512, 512), (64, 1));
        assert_eq!(granularity(24576, 0), (96, 0));
        assert_eq!(granularity(1 << 20, 65536), (2048, 128));
    }

    #[test]
    fn what_was_chosen_is_shown() {
        let mut bench = Bench::new();
        let chosen = crate::Chosen {
            serial: Some("SN1".into()),
            naa: Some("5000c500a1b2c3d4".into()),
            rotation_rate: Some(7200),
            unmap_granularity: Some(1 << 20),
            ..crate::Chosen::default()
        };
        let identity = (*bench.unit.identity()).clone().with(&chosen).unwrap();
        assert!(bench.unit.set_identity(identity));
        assert_eq!(bench.sense(&[0, 0, 0, 0, 0, 0]).code(), 0x3F03);
        assert_eq!(vpd(&mut bench, 0x80), b"\0\x80\0\x03SN1");
        assert!(vpd(&mut bench, 0x83).ends_with(&[0x01, 0x03, 0, 8, 0x50, 0, 0xC5, 0, 0xA1, 0xB2, 0xC3, 0xD4]));
        assert_eq!(vpd(&mut bench, 0xB0)[28..32], [0, 0, 8, 0]);
        assert_eq!(vpd(&mut bench, 0xB1)[4..6], [0x1C, 0x20]);
    }
}
