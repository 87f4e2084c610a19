//! SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS (SPC-5, clauses 6.43 and 6.32): the default self-test, and the one
//! diagnostic page that every unit has, the list of pages (SPC-5, clause 7.2.3).

use crate::commands::Call;
use crate::{Action, Inventory, Outcome, Sense};

/// SEND DIAGNOSTIC: the CDB. The default self-test is what was checked before: the device is there. There is nothing that
/// UNITOFFL and DEVOFFL would have to allow. The table refuses the other self-tests.
pub(crate) fn send(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const SELFTEST: u8 = 0x04;
    const PF: u8 = 0x10;
    let len = usize::from(call.cdb.be16(3));
    if len == 0 {
        return Ok(Action::Done(Outcome::GOOD));
    }
    if call.cdb.bit(1, SELFTEST) {
        return Err(Sense::invalid_field(3, None));
    }
    if !call.cdb.bit(1, PF) {
        return Err(Sense::invalid_field(1, Some(4)));
    }
    Ok(Action::DataOut { len })
}

/// SEND DIAGNOSTIC: the parameter list, which is page 00h without content. What it asks for is what RECEIVE DIAGNOSTIC
/// RESULTS answers in any case.
pub(crate) fn send_list(_: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    let Some(&[page, _, high, low]) = list.first_chunk() else { return Err(Sense::LIST_LENGTH) };
    if page != 0 {
        return Err(Sense::invalid_parameter(0, None));
    }
    if (high, low) != (0, 0) {
        return Err(Sense::invalid_parameter(2, None));
    }
    if list.len() > 4 {
        return Err(Sense::LIST_LENGTH);
    }
    Ok(Action::Done(Outcome::GOOD))
}

/// RECEIVE DIAGNOSTIC RESULTS.
pub(crate) fn receive(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const PCV: u8 = 0x01;
    const PAGE: usize = 2;
    if call.cdb.bit(1, PCV) && call.cdb.byte(PAGE) != 0 {
        return Err(Sense::invalid_field(PAGE as u16, None));
    }
    call.data.put(&[0x00, 0, 0, 1, 0x00]);
    Ok(call.data.answer(usize::from(call.cdb.be16(3))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, sense_of};

    #[test]
    fn self_tests() {
        let mut bench = Bench::new();
        bench.good(&[0x1D, 0x04, 0, 0, 0, 0]);
        bench.good(&[0x1D, 0x07, 0, 0, 0, 0]);
        bench.good(&[0x1D, 0x10, 0, 0, 0, 0]);
        for code in [1u8, 2, 4, 5, 6] {
            let sense = bench.sense(&[0x1D, code << 5, 0, 0, 0, 0]);
            assert_eq!((sense.code(), sense.field.unwrap().byte), (0x2400, 1), "code {code}");
        }
        assert_eq!(bench.sense(&[0x1D, 0x14, 0, 0, 4, 0]), Sense::invalid_field(3, None));
        assert_eq!(bench.sense(&[0x1D, 0x00, 0, 0, 4, 0]), Sense::invalid_field(1, Some(4)));
        bench.unit.set_shape(None);
        assert_eq!(bench.sense(&[0x1D, 0x04, 0, 0, 0, 0]), Sense::NOT_READY);
    }

    #[test]
    fn the_list_of_pages() {
        let mut bench = Bench::new();
        let action = bench.send(&[0x1D, 0x10, 0, 0, 4, 0], &[0, 0, 0, 0]);
        assert!(matches!(action, Action::Done(Outcome::GOOD)));
        assert_eq!(bench.data(&[0x1C, 0, 0x77, 0, 255, 0]), [0, 0, 0, 1, 0]);
        assert_eq!(bench.data(&[0x1C, 1, 0, 0, 255, 0]), [0, 0, 0, 1, 0]);
        assert_eq!(bench.data(&[0x1C, 1, 0, 0, 4, 0]), [0, 0, 0, 1]);
        assert_eq!(bench.sense(&[0x1C, 1, 0x40, 0, 255, 0]), Sense::invalid_field(2, None));
    }

    #[test]
    fn lists_that_are_wrong() {
        let mut bench = Bench::new();
        let mut list = |list: &[u8]| sense_of(&bench.send(&[0x1D, 0x10, 0, 0, list.len() as u8, 0], list));
        assert_eq!(list(&[0, 0, 0]), Sense::LIST_LENGTH);
        assert_eq!(list(&[0x40, 0, 0, 0]), Sense::invalid_parameter(0, None));
        assert_eq!(list(&[0, 0, 0, 1, 0]), Sense::invalid_parameter(2, None));
        assert_eq!(list(&[0, 0, 0, 0, 0]), Sense::LIST_LENGTH);
    }
}
