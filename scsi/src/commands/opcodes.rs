//! REPORT SUPPORTED OPERATION CODES (SPC-5, clause 6.34), generated from the table that commands are decoded with, and
//! REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (clause 6.35).

use crate::commands::{Call, ROWS, Row, rows_of};
use crate::data_in::DataIn;
use crate::geometry::Geometry;
use crate::{Action, Inventory, Sense};

const REPORTING: usize = 2;

/// The command.
pub(crate) fn report(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const RCTD: u8 = 0x80;
    let timeouts = call.cdb.bit(REPORTING, RCTD);
    match call.cdb.byte(REPORTING) & 0x07 {
        0 => report_all(call, timeouts),
        option @ 1..=3 => {
            let row = one(call, option)?;
            put_one(row, call.geometry, timeouts, &mut call.data);
        }
        _ => return Err(Sense::invalid_field(REPORTING as u16, Some(2))),
    }
    Ok(call.data.answer(call.cdb.be32(6) as usize))
}

fn report_all(call: &mut Call<'_>, timeouts: bool) {
    const SERVACTV: u8 = 0x01;
    const CTDP: u8 = 0x02;
    call.data.put(&[0; 4]);
    for row in ROWS.iter().filter(|row| row.exists(call.geometry)) {
        let [action_high, action_low] = row.service_action.unwrap_or_default().to_be_bytes();
        let action = if row.service_action.is_some() { SERVACTV } else { 0 };
        let flags = action | if timeouts { CTDP } else { 0 };
        let [len_high, len_low] = (row.usage.len() as u16).to_be_bytes();
        call.data.put(&[row.opcode, 0, action_high, action_low, 0, flags, len_high, len_low]);
        if timeouts {
            put_timeouts(row, call.geometry, &mut call.data);
        }
    }
    let len = (call.data.len() - 4) as u32;
    call.data.set(0, &len.to_be_bytes());
}

/// The row that is asked for. An option that does not fit the opcode (with or without service actions) is an error;
/// a command that there is not, is `None`.
fn one(call: &Call<'_>, option: u8) -> Result<Option<&'static Row>, Sense> {
    const REQUESTED_OPCODE: usize = 3;
    const REQUESTED_ACTION: usize = 4;
    let action = call.cdb.be16(REQUESTED_ACTION);
    let mut rows = rows_of(call.cdb.byte(REQUESTED_OPCODE), call.geometry).peekable();
    let Some(first) = rows.peek() else { return Ok(None) };
    match (option, first.service_action.is_some()) {
        (1, true) | (2, false) => Err(Sense::invalid_field(REPORTING as u16, Some(2))),
        (_, false) => Ok(rows.next().filter(|_| option == 1 || action == 0)),
        (_, true) => Ok(rows.find(|row| row.service_action == Some(action))),
    }
}

fn put_one(row: Option<&Row>, unit: Geometry, timeouts: bool, data: &mut DataIn<'_>) {
    const CTDP: u8 = 0x80;
    const NOT_SUPPORTED: u8 = 1;
    const AS_IN_THE_STANDARD: u8 = 3;
    let Some(row) = row else { return data.put(&[0, NOT_SUPPORTED, 0, 0]) };
    let [len_high, len_low] = (row.usage.len() as u16).to_be_bytes();
    data.put(&[0, AS_IN_THE_STANDARD | if timeouts { CTDP } else { 0 }, len_high, len_low]);
    data.put(row.usage);
    if let Some((at, bits)) = row.refused(unit) {
        data.set(4 + at, &[row.usage[at] & !bits]);
    }
    if timeouts {
        put_timeouts(row, unit, data);
    }
}

/// A command timeouts descriptor.
fn put_timeouts(row: &Row, unit: Geometry, data: &mut DataIn<'_>) {
    let (nominal, recommended) = row.takes.seconds(unit);
    data.put(&[0x00, 0x0A, 0, 0]);
    data.put(&nominal.to_be_bytes());
    data.put(&recommended.to_be_bytes());
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: those of virtio-scsi but CLEAR ACA, as there is no ACA. With REPD there are
/// timeouts: functions that end commands wait for the device, queries are answered at once.
pub(crate) fn report_task_functions(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const REPD: u8 = 0x80;
    const ATS_ATSS_CTSS_LURS_QTS: u8 = 0x80 | 0x40 | 0x10 | 0x08 | 0x04;
    const QTSS_ITNRS: u8 = 0x02 | 0x01;
    let mut data = [0; 16];
    data[..2].copy_from_slice(&[ATS_ATSS_CTSS_LURS_QTS, QTSS_ITNRS]);
    // TMFTMOV, which functions have the short timeout, the long one and the short one in tenths of a second.
    const TMFTMOV: u8 = 0x01;
    const QTTS: u8 = 0x04;
    const QTSTS: u8 = 0x02;
    data[4..8].copy_from_slice(&[TMFTMOV, 0, QTTS, QTSTS]);
    data[8..12].copy_from_slice(&300_u32.to_be_bytes());
    data[12..].copy_from_slice(&10_u32.to_be_bytes());
    let len = if call.cdb.bit(2, REPD) { data.len() } else { 4 };
    data[3] = len as u8 - 4;
    call.data.put(&data[..len]);
    Ok(call.data.answer(call.cdb.be32(6) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sections;
    use crate::testing::{Bench, shape};
    use pollux_core::Shape;
    use std::sync::Arc;

    fn cdb(option: u8, opcode: u8, action: u8) -> [u8; 12] {
        [0xA3, 0x0C, option, opcode, 0, action, 0, 0, 0xFF, 0xFF, 0, 0]
    }

    #[test]
    fn all_commands_of_the_table() {
        let mut bench = Bench::kept(&Arc::default(), Some(&Sections::new()));
        bench.allow_sanitize(true);
        let all = bench.data(&cdb(0, 0, 0));
        assert_eq!(all.len(), 4 + ROWS.len() * 8);
        assert_eq!(all[..4], (ROWS.len() as u32 * 8).to_be_bytes());
        assert_eq!(all[4..12], [0x00, 0, 0, 0, 0, 0, 0, 6]);
        assert!(all[4..].chunks(8).any(|row| row == [0x9E, 0, 0, 0x10, 0, 0x01, 0, 16]));
        let timed = bench.data(&cdb(0x80, 0, 0));
        assert_eq!(timed.len(), 4 + ROWS.len() * 20);
        assert_eq!(timed[4..24], [0, 0, 0, 0, 0, 2, 0, 6, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30]);
    }

    #[test]
    fn one_command() {
        let mut bench = Bench::new();
        assert_eq!(bench.data(&cdb(1, 0x12, 0)), [0, 3, 0, 6, 0x12, 0x01, 0xFF, 0xFF, 0xFF, 0]);
        let rc16 = bench.data(&cdb(2, 0x9E, 0x10));
        assert_eq!(rc16[..6], [0, 3, 0, 16, 0x9E, 0x10]);
        assert_eq!(bench.data(&cdb(3, 0x9E, 0x10)), rc16);
        assert_eq!(bench.data(&cdb(3, 0x12, 0)).len(), 10);
        assert_eq!(bench.data(&cdb(0x81, 0x00, 0))[10..], [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30]);
        assert_eq!(bench.data(&cdb(0x81, 0x2F, 0))[14..], [0, 10, 0, 0, 0, 0, 0, 30, 0, 0, 0, 60]);
        for unknown in [cdb(1, 0x5D, 0), cdb(2, 0x5D, 0), cdb(2, 0x9E, 0x13), cdb(3, 0x9E, 0), cdb(3, 0x12, 1)] {
            assert_eq!(bench.data(&unknown), [0, 1, 0, 0]);
        }
    }

    #[test]
    fn a_command_of_variable_length() {
        let mut bench = Bench::new();
        let read = bench.data(&cdb(2, 0x7F, 0x09));
        assert_eq!(read[..4], [0, 3, 0, 32]);
        assert_eq!(read[4..16], [0x7F, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x09, 0x18, 0]);
        assert_eq!(read[16..], [&[0xFF; 8][..], &[0; 8], &[0xFF; 4]].concat());
        assert!(bench.data(&cdb(0, 0, 0))[4..].chunks(8).any(|row| row == [0x7F, 0, 0, 0x0D, 0, 0x01, 0, 32]));
    }

    #[test]
    fn task_management_functions() {
        let mut bench = Bench::new();
        let report = |repd, len| [0xA3, 0x0D, repd, 0, 0, 0, 0, 0, 0, len, 0, 0];
        assert_eq!(bench.data(&report(0, 255)), [0xDC, 0x03, 0, 0]);
        assert_eq!(bench.data(&report(0, 2)), [0xDC, 0x03]);
        assert_eq!(bench.data(&report(0x80, 255)), [0xDC, 3, 0, 12, 1, 0, 4, 2, 0, 0, 1, 44, 0, 0, 0, 10]);
        assert_eq!(bench.sense(&report(0x40, 4)), Sense::invalid_field(2, Some(6)));
    }

    #[test]
    fn options_that_do_not_fit() {
        let mut bench = Bench::new();
        for wrong in [cdb(1, 0x9E, 0x10), cdb(2, 0x12, 0), cdb(4, 0, 0)] {
            assert_eq!(bench.sense(&wrong), Sense::invalid_field(2, Some(2)));
        }
    }

    #[test]
    fn saving_is_reported_where_something_can_be_kept() {
        let mut bench = Bench::kept(&Arc::default(), Some(&Sections::new()));
        assert_eq!(bench.data(&cdb(1, 0x15, 0))[4..], [0x15, 0x13, 0, 0, 0xFF, 0]);
        let mut bench = Bench::new();
        assert_eq!(bench.data(&cdb(1, 0x15, 0))[4..], [0x15, 0x12, 0, 0, 0xFF, 0]);
        assert_eq!(bench.data(&cdb(1, 0x55, 0))[4..7], [0x55, 0x12, 0]);
    }

    /// What usage data shows is what a command may have: each bit of each command is tried where it is not reported, and
    /// where the table has it and this unit has not.
    #[test]
    fn bits_that_are_refused_are_not_reported() {
        let without = Some(Shape { discard: None, ..shape() });
        let mut seen = 0;
        for row in ROWS {
            let action = row.service_action.unwrap_or_default();
            let option = if row.service_action.is_some() { 2 } else { 1 };
            let ask = cdb(option, row.opcode, action as u8);
            for shape in [without, Some(shape())] {
                let mut bench = Bench::with(shape);
                bench.allow_sanitize(true);
                let usage = bench.data(&ask);
                let Some(usage) = usage.get(4..).filter(|usage| !usage.is_empty()) else { continue };
                for (at, (table, reported)) in row.usage.iter().zip(usage).enumerate() {
                    let bits = table & !reported;
                    if bits == 0 {
                        continue;
                    }
                    seen += 1;
                    let mut refused = [0; 32];
                    refused[..usage.len()].copy_from_slice(row.usage);
                    refused.iter_mut().enumerate().for_each(|(byte, bits)| *bits = if byte == 0 { *bits } else { 0 });
                    if row.opcode == 0x7F {
                        (refused[7], refused[9]) = (0x18, action as u8);
                    }
                    refused[at] |= bits;
                    let sense = bench.sense(&refused);
                    assert_eq!(
                        (sense.code(), sense.field.map(|field| field.byte)),
                        (0x2400, Some(at as u16)),
                        "{}",
                        row.name
                    );
                }
            }
        }
        assert_eq!(seen, 3 + 2 * 2, "WRITE SAME without discards, MODE SELECT without a keeper");
    }

    #[test]
    fn what_the_device_does_not_do_is_not_reported() {
        let mut bench = Bench::with(Some(Shape { discard: None, ..shape() }));
        assert_eq!(bench.data(&cdb(1, 0x42, 0)), [0, 1, 0, 0]);
        let all = bench.data(&cdb(0, 0, 0));
        assert!(!all[4..].chunks(8).any(|row| row[0] == 0x42));
        assert!(!all[4..].chunks(8).any(|row| row[..4] == [0xA4, 0, 0, 0x06]), "nothing can be kept");
    }
}
