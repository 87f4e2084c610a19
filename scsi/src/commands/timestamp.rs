//! REPORT TIMESTAMP and SET TIMESTAMP (SPC-5, clauses 6.38 and 6.46).

use std::time::Instant;

use crate::clock::host_ms;
use crate::commands::Call;
use crate::{Action, Inventory, Outcome, Sense};

/// Bytes of the parameter data of both.
const LEN: usize = 12;

/// REPORT TIMESTAMP.
pub(crate) fn report(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let (origin, time) = call.unit.clock().time(host_ms(), Instant::now());
    let mut data = [0; LEN];
    data[1] = LEN as u8 - 2;
    data[2] = origin as u8;
    data[4..10].copy_from_slice(&time.to_be_bytes()[2..]);
    call.data.put(&data);
    Ok(call.data.answer(call.cdb.be32(6) as usize))
}

/// SET TIMESTAMP: the CDB.
pub(crate) fn set(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    match call.cdb.be32(6) as usize {
        0 => Ok(Action::Done(Outcome::GOOD)),
        LEN => Ok(Action::DataOut { len: LEN }),
        len if len < LEN => Err(Sense::LIST_LENGTH),
        _ => Err(Sense::invalid_field(6, None)),
    }
}

/// SET TIMESTAMP: the parameter list. The other initiators are told.
pub(crate) fn set_list(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    let list: &[u8; LEN] = list.try_into().map_err(|_| Sense::LIST_LENGTH)?;
    let reserved = [0, 1, 2, 3, 10, 11];
    if let Some(at) = reserved.into_iter().find(|at| list[usize::from(*at)] != 0) {
        return Err(Sense::invalid_parameter(at, None));
    }
    let time = list[4..10].iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    call.unit.set_clock(call.path, time, Instant::now());
    Ok(Action::Done(Outcome::GOOD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attention;
    use crate::testing::{Bench, drained, sense_of};

    const REPORT: [u8; 12] = [0xA3, 0x0F, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0];
    const SET: [u8; 12] = [0xA4, 0x0F, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0];

    fn time(data: &[u8]) -> u64 {
        data[4..10].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    #[test]
    fn the_time_is_the_hosts_until_it_is_set() {
        let mut bench = Bench::new();
        let before = host_ms();
        let data = bench.data(&REPORT);
        assert_eq!((data.len(), &data[..4], &data[10..]), (12, &[0, 10, 3, 0][..], &[0, 0][..]));
        assert!((before..=host_ms()).contains(&time(&data)));
        let action = bench.send(&SET, &[0, 0, 0, 0, 0x7F, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(action, Action::Done(Outcome::GOOD)));
        bench.unit.reset(None);
        assert_eq!(drained(&bench.path), [Attention::PowerOn]);
        let data = bench.data(&REPORT);
        assert_eq!((data[2], data[4], data[5]), (2, 0x7F, 0), "set by an initiator, and kept over a reset");
        let mut short = REPORT;
        short[9] = 3;
        assert_eq!(bench.data(&short), [0, 10, 2]);
    }

    #[test]
    fn others_are_told_that_it_was_set() {
        let mut bench = Bench::new();
        bench.send(&SET, &[0; 12]);
        assert_eq!(drained(&bench.other), [Attention::TimestampChanged]);
        assert_eq!(drained(&bench.path), []);
    }

    #[test]
    fn lists_that_are_wrong() {
        let mut bench = Bench::new();
        let of_len = |len| [0xA4, 0x0F, 0, 0, 0, 0, 0, 0, 0, len, 0, 0];
        bench.good(&of_len(0));
        assert_eq!(bench.sense(&of_len(11)), Sense::LIST_LENGTH);
        assert_eq!(bench.sense(&of_len(13)), Sense::invalid_field(6, None));
        let mut list = [0; 12];
        list[10] = 1;
        assert_eq!(sense_of(&bench.send(&SET, &list)), Sense::invalid_parameter(10, None));
        assert_eq!(bench.data(&REPORT)[2], 3, "nothing was set");
    }
}
