//! LOG SENSE and LOG SELECT (SPC-5, clauses 6.8 and 6.9; pages: clause 7.3). Every number is one that somebody counts; a
//! page that nobody could fill is not there.

use std::time::Duration;

use crate::commands::Call;
use crate::data_in::DataIn;
use crate::supply::{AVAILABLE, Supply, USED};
use crate::{Action, Inventory, Outcome, Sense, Transfers};

const SUPPORTED: u8 = 0x00;
const PROVISIONING: u8 = 0x0C;
const STATISTICS: u8 = 0x19;
const INFORMATIONAL: u8 = 0x2F;
const SUBPAGES: u8 = 0xFF;

const PAGE: usize = 2;
const SUBPAGE: usize = 3;
/// FORMAT AND LINKING: a list of binary numbers.
const BINARY_LIST: u8 = 0x03;

/// The pages without subpages that a unit has. Statistics are there if somebody counts, and space if it can run out.
fn pages(counted: bool, thin: bool) -> &'static [u8] {
    match (counted, thin) {
        (true, true) => &[SUPPORTED, PROVISIONING, STATISTICS, INFORMATIONAL],
        (true, false) => &[SUPPORTED, STATISTICS, INFORMATIONAL],
        (false, true) => &[SUPPORTED, PROVISIONING, INFORMATIONAL],
        (false, false) => &[SUPPORTED, INFORMATIONAL],
    }
}

/// LOG SENSE. Thresholds there are none, and PC means nothing for lists. The table refuses SP, as nothing is saved.
pub(crate) fn sense(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const POINTER: usize = 5;
    let (page, subpage) = page_of(call);
    let pointer = call.cdb.be16(POINTER);
    let (statistics, supply) = (call.unit.statistics(), call.unit.supply());
    let there = pages(statistics.is_some(), supply.is_some());
    let last = match (page, subpage) {
        (SUPPORTED, 0) => {
            call.data.put(&[SUPPORTED, 0, 0, 0]);
            call.data.put(there);
            0
        }
        (SUPPORTED, SUBPAGES) => {
            call.data.put(&[SUPPORTED | SPF, SUBPAGES, 0, 0]);
            put_subpages(there, &mut call.data);
            0
        }
        (PROVISIONING, 0) => {
            let supply = supply.ok_or(NO_PAGE)?;
            call.data.put(&[PROVISIONING, 0, 0, 0]);
            put_provisioning(&supply, pointer, &mut call.data)
        }
        (STATISTICS, 0) => {
            let statistics = statistics.ok_or(NO_PAGE)?;
            call.data.put(&[STATISTICS, 0, 0, 0]);
            put_statistics(&statistics, call.geometry.block_size(), pointer, &mut call.data)
        }
        (INFORMATIONAL, 0) => {
            call.data.put(&[INFORMATIONAL, 0, 0, 0]);
            // No informational exception, and no thermometer.
            parameter(0, &[0x00, 0x00, 0xFF, 0xFF], &mut call.data);
            0
        }
        (PROVISIONING, _) if supply.is_some() => return Err(Sense::invalid_field(SUBPAGE as u16, None)),
        (SUPPORTED | STATISTICS | INFORMATIONAL, _) => return Err(Sense::invalid_field(SUBPAGE as u16, None)),
        _ => return Err(NO_PAGE),
    };
    if pointer > last {
        return Err(Sense::invalid_field(POINTER as u16, None));
    }
    let len = u16::try_from(call.data.len() - 4).unwrap_or(u16::MAX);
    call.data.set(2, &len.to_be_bytes());
    Ok(call.data.answer(usize::from(call.cdb.be16(7))))
}

const SPF: u8 = 0x40;
const NO_PAGE: Sense = Sense::invalid_field(PAGE as u16, Some(5));

fn page_of(call: &Call<'_>) -> (u8, u8) {
    (call.cdb.byte(PAGE) & 0x3F, call.cdb.byte(SUBPAGE))
}

/// Page 00h, subpage FFh: each page with its subpages.
fn put_subpages(pages: &[u8], data: &mut DataIn<'_>) {
    for &page in pages {
        data.put(&[page, 0]);
        if page == SUPPORTED {
            data.put(&[SUPPORTED, SUBPAGES]);
        }
    }
}

/// Page 0Ch (SBC-4, clause 6.4.5) from the parameter `from` on: what is available and what is used. Returns the last
/// parameter code.
fn put_provisioning(supply: &Supply, from: u16, data: &mut DataIn<'_>) -> u16 {
    for code in [AVAILABLE, USED].into_iter().filter(|code| *code >= from) {
        parameter(code, &supply.parameter(code), data);
    }
    USED
}

/// Page 19h (SPC-5, clause 7.3.10) from the parameter `from` on: general access statistics (0001h), idle time (0002h), and
/// the time interval that they count in (0003h), a microsecond. Returns the last parameter code.
fn put_statistics(statistics: &(Transfers, Duration), block: u32, from: u16, data: &mut DataIn<'_>) -> u16 {
    const ACCESS: u16 = 0x0001;
    const IDLE: u16 = 0x0002;
    const INTERVAL: u16 = 0x0003;
    let (Transfers { read, written }, idle) = statistics;
    let blocks = |bytes: u64| bytes / u64::from(block);
    let intervals = |ns: u64| ns / 1000;
    if from <= ACCESS {
        // Added up over requests, so the time spent in processing is weighted by how many there were at once.
        let both = intervals(read.time_ns.wrapping_add(written.time_ns));
        let numbers = [
            read.requests,
            written.requests,
            blocks(written.bytes),
            blocks(read.bytes),
            intervals(read.time_ns),
            intervals(written.time_ns),
            read.requests.wrapping_add(written.requests),
            both,
        ];
        parameter(ACCESS, numbers.map(u64::to_be_bytes).as_flattened(), data);
    }
    if from <= IDLE {
        let intervals = u64::try_from(idle.as_micros()).unwrap_or(u64::MAX);
        parameter(IDLE, &intervals.to_be_bytes(), data);
    }
    if from <= INTERVAL {
        // 1 * 10^-6 seconds; the exponent is negative by definition.
        parameter(INTERVAL, &[0, 0, 0, 6, 0, 0, 0, 1], data);
    }
    INTERVAL
}

fn parameter(code: u16, value: &[u8], data: &mut DataIn<'_>) {
    let [high, low] = code.to_be_bytes();
    data.put(&[high, low, BINARY_LIST, value.len() as u8]);
    data.put(value);
}

/// LOG SELECT: the CDB. PCR, or PC=11b without a list, lets the statistics begin at zero again. The table refuses SP.
pub(crate) fn select(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const PCR: u8 = 0x02;
    const LENGTH: usize = 7;
    let len = usize::from(call.cdb.be16(LENGTH));
    let reset = call.cdb.bit(1, PCR);
    if len > 0 {
        // A list names its pages itself (SPC-5, clause 6.8).
        match page_of(call) {
            (SUPPORTED, 0) => {}
            (SUPPORTED, _) => return Err(Sense::invalid_field(SUBPAGE as u16, None)),
            _ => return Err(NO_PAGE),
        }
        return if reset { Err(Sense::invalid_field(LENGTH as u16, None)) } else { Ok(Action::DataOut { len }) };
    }
    let there = pages(call.unit.statistics().is_some(), call.unit.supply().is_some());
    let of = match page_of(call) {
        (SUPPORTED, SUBPAGES) => SUPPORTED,
        (_, subpage) if subpage != 0 => return Err(Sense::invalid_field(SUBPAGE as u16, None)),
        (page, _) if there.contains(&page) => page,
        _ => return Err(NO_PAGE),
    };
    let defaults = call.cdb.byte(PAGE) >> 6 == 3;
    if (reset || defaults) && matches!(of, SUPPORTED | STATISTICS) {
        call.unit.restart_statistics(call.path);
    }
    Ok(Action::Done(Outcome::GOOD))
}

/// LOG SELECT: the parameter list. No parameter can be set, so none is right.
pub(crate) fn select_list(_: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    if list.len() < 4 {
        return Err(Sense::LIST_LENGTH);
    }
    Err(Sense::invalid_parameter(0, Some(5)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, drained, sense_of};
    use crate::{Attention, Medium, Share};
    use pollux_core::{Extent, MOST_THRESHOLDS, Provisioning, Threshold};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug)]
    struct Counted(AtomicU64);

    impl Medium for Counted {
        fn transfers(&self) -> Transfers {
            let n = self.0.load(Ordering::Relaxed);
            Transfers {
                read: Share { requests: n, bytes: n * 1024, time_ns: n * 3000 },
                written: Share { requests: 2 * n, bytes: n * 512, time_ns: n * 7000 },
            }
        }

        fn extent(&self, _: u64, len: u64) -> Extent {
            Extent::mapped(len)
        }
    }

    fn counted() -> (Bench, Arc<Counted>) {
        let bench = Bench::new();
        let counters = Arc::new(Counted(AtomicU64::new(7)));
        bench.unit.set_medium(counters.clone());
        counters.0.fetch_add(100, Ordering::Relaxed);
        (bench, counters)
    }

    #[derive(Debug)]
    struct Thin;

    impl Medium for Thin {
        fn transfers(&self) -> Transfers {
            Transfers::default()
        }

        fn extent(&self, _: u64, len: u64) -> Extent {
            Extent::mapped(len)
        }

        fn provisioning(&self) -> Option<Provisioning> {
            let mut thresholds = [None; MOST_THRESHOLDS];
            thresholds[0] = Some(Threshold::Available(10 << 16));
            Some(Provisioning { grain: 1 << 16, available: 50 << 16, dedicated: false, used: 3 << 16, thresholds })
        }
    }

    #[test]
    fn the_space_of_a_thin_unit() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&log(0x0C, 0, 0)), NO_PAGE);
        bench.unit.set_medium(Arc::new(Thin));
        assert_eq!(bench.data(&log(0, 0, 0))[4..], [0x00, 0x0C, 0x19, 0x2F]);
        let available = [0, 1, 3, 8, 0, 0, 0, 50, 2, 0, 0, 0];
        let used = [0, 2, 3, 8, 0, 0, 0, 3, 1, 0, 0, 0];
        assert_eq!(bench.data(&log(0x0C, 0, 0)), [&[0x0C, 0, 0, 24][..], &available, &used].concat());
        assert_eq!(bench.data(&log(0x0C, 0, 2)), [&[0x0C, 0, 0, 12][..], &used].concat());
        assert_eq!(bench.sense(&log(0x0C, 0, 3)), Sense::invalid_field(5, None));
        assert_eq!(bench.sense(&log(0x0C, 1, 0)), Sense::invalid_field(3, None));
        assert_eq!(bench.data(&[0x12, 1, 0xB2, 4, 0, 0])[4], 7, "THRESHOLD EXPONENT");
        // MODE SENSE, and the same by MODE SELECT: nothing of it can be changed.
        let page = [0x5C, 0x02, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 1, 0, 0, 0, 0, 0, 10];
        let sense = |pc: u8| [0x5A, 8, pc << 6 | 0x1C, 0x02, 0, 0, 0, 1, 0, 0];
        assert_eq!(bench.data(&sense(0))[8..], page);
        assert_eq!(bench.data(&sense(1))[8..], [&page[..4], &[0; 20]].concat());
    }

    fn log(page: u8, subpage: u8, pointer: u8) -> [u8; 10] {
        [0x4D, 0, 0x40 | page, subpage, 0, 0, pointer, 1, 0, 0]
    }

    #[test]
    fn the_lists_of_pages() {
        let (mut bench, _) = counted();
        assert_eq!(bench.data(&log(0, 0, 0)), [0x00, 0, 0, 3, 0x00, 0x19, 0x2F]);
        let subpages = [0x40, 0xFF, 0, 8, 0, 0, 0, 0xFF, 0x19, 0, 0x2F, 0];
        assert_eq!(bench.data(&log(0, 0xFF, 0)), subpages);
        let mut plain = Bench::new();
        assert_eq!(plain.data(&log(0, 0, 0)), [0x00, 0, 0, 2, 0x00, 0x2F]);
        assert_eq!(plain.sense(&log(0x19, 0, 0)), Sense::invalid_field(2, Some(5)));
        assert_eq!(plain.data(&[0x4D, 0, 0, 0, 0, 0, 0, 0, 3, 0]), [0, 0, 0]);
    }

    fn numbers(page: &[u8]) -> Vec<u64> {
        page[8..72].chunks(8).map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap())).collect()
    }

    #[test]
    fn general_statistics_are_what_was_counted() {
        let (mut bench, counters) = counted();
        let page = bench.data(&log(0x19, 0, 0));
        assert_eq!(page[..8], [0x19, 0, 0, 92, 0, 1, 0x03, 64]);
        assert_eq!(numbers(&page), [100, 200, 100, 200, 300, 700, 300, 1000]);
        assert_eq!(page[72..76], [0, 2, 0x03, 8]);
        assert_eq!(page[84..], [0, 3, 0x03, 8, 0, 0, 0, 6, 0, 0, 0, 1]);
        counters.0.store(108, Ordering::Relaxed);
        assert_eq!(numbers(&bench.data(&log(0x19, 0, 1)))[0], 101);
        assert_eq!(bench.data(&log(0x19, 0, 2))[..6], [0x19, 0, 0, 24, 0, 2]);
        assert_eq!(bench.sense(&log(0x19, 0, 4)), Sense::invalid_field(5, None));
    }

    #[test]
    fn informational_exceptions() {
        let mut bench = Bench::new();
        assert_eq!(bench.data(&log(0x2F, 0, 0)), [0x2F, 0, 0, 8, 0, 0, 0x03, 4, 0, 0, 0xFF, 0xFF]);
        assert_eq!(bench.sense(&log(0x2F, 1, 0)), Sense::invalid_field(3, None));
        assert_eq!(bench.sense(&log(0x0D, 0, 0)), Sense::invalid_field(2, Some(5)));
        assert_eq!(bench.sense(&[0x4D, 1, 0x40, 0, 0, 0, 0, 1, 0, 0]), Sense::invalid_field(1, Some(0)), "SP");
    }

    #[test]
    fn a_reset_begins_at_zero_and_tells_the_others() {
        let (mut bench, counters) = counted();
        for (cdb, resets) in [
            ([0x4C, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], true),
            ([0x4C, 0x02, 0, 0xFF, 0, 0, 0, 0, 0, 0], true),
            ([0x4C, 0x02, 0x59, 0, 0, 0, 0, 0, 0, 0], true),
            ([0x4C, 0x00, 0xD9, 0, 0, 0, 0, 0, 0, 0], true),
            ([0x4C, 0x00, 0x59, 0, 0, 0, 0, 0, 0, 0], false),
            ([0x4C, 0x02, 0x6F, 0, 0, 0, 0, 0, 0, 0], false),
        ] {
            counters.0.fetch_add(5, Ordering::Relaxed);
            bench.good(&cdb);
            let told = if resets { vec![Attention::LogChanged] } else { vec![] };
            assert_eq!(drained(&bench.other), told, "{cdb:02X?}");
            assert_eq!(numbers(&bench.data(&log(0x19, 0, 0)))[0] == 0, resets, "{cdb:02X?}");
        }
        assert_eq!(drained(&bench.path), []);
    }

    #[test]
    fn selects_that_are_wrong() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&[0x4C, 0x02, 0, 0, 0, 0, 0, 0, 4, 0]), Sense::invalid_field(7, None));
        assert_eq!(bench.sense(&[0x4C, 0x01, 0, 0, 0, 0, 0, 0, 0, 0]), Sense::invalid_field(1, Some(0)), "SP");
        assert_eq!(bench.sense(&[0x4C, 0, 0x59, 0, 0, 0, 0, 0, 0, 0]), Sense::invalid_field(2, Some(5)));
        assert_eq!(bench.sense(&[0x4C, 0, 0, 1, 0, 0, 0, 0, 0, 0]), Sense::invalid_field(3, None));
        for (page, field) in [([0x59, 0], Sense::invalid_field(2, Some(5))), ([0, 0xFF], Sense::invalid_field(3, None))]
        {
            assert_eq!(
                bench.sense(&[0x4C, 0, page[0], page[1], 0, 0, 0, 0, 4, 0]),
                field,
                "a list names its pages itself"
            );
        }
        let mut list = |list: &[u8]| sense_of(&bench.send(&[0x4C, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], list));
        assert_eq!(list(&[0x19, 0, 0]), Sense::LIST_LENGTH);
        assert_eq!(list(&[0x19, 0, 0, 0]), Sense::invalid_parameter(0, Some(5)));
    }
}
