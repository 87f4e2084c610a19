//! REPORT IDENTIFYING INFORMATION and SET IDENTIFYING INFORMATION (SPC-5, clauses 6.31 and 6.45).

use crate::commands::Call;
use crate::identifying::Kind;
use crate::modes::offset;
use crate::{Action, Inventory, Sense};

/// IDENTIFYING INFORMATION TYPE, in the upper seven bits.
const TYPE: usize = 10;
/// Asks which types there are.
const SUPPORTED: u8 = 0x7F;

fn kind_of(call: &Call<'_>) -> Result<Kind, Sense> {
    let code = call.cdb.byte(TYPE) >> 1;
    Kind::ALL.into_iter().find(|kind| *kind as u8 == code).ok_or(Sense::invalid_field(TYPE as u16, Some(7)))
}

/// REPORT IDENTIFYING INFORMATION.
pub(crate) fn report(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    call.data.put(&[0; 4]);
    if call.cdb.byte(TYPE) >> 1 == SUPPORTED {
        for kind in Kind::ALL {
            let [high, low] = kind.max().to_be_bytes();
            call.data.put(&[(kind as u8) << 1, 0, high, low]);
        }
    } else {
        let bytes = call.unit.identifying(kind_of(call)?);
        call.data.put(&bytes);
    }
    let len = u16::try_from(call.data.len() - 4).unwrap_or(u16::MAX);
    call.data.set(2, &len.to_be_bytes());
    Ok(call.data.answer(call.cdb.be32(6) as usize))
}

/// SET IDENTIFYING INFORMATION: the CDB. No list takes away what there is.
pub(crate) fn set(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const LENGTH: usize = 6;
    let kind = kind_of(call)?;
    match call.cdb.be32(LENGTH) {
        0 => Ok(call.unit.set_identifying(call.path, kind, &[])),
        len if len <= u32::from(kind.max()) => Ok(Action::DataOut { len: len as usize }),
        _ => Err(Sense::invalid_field(LENGTH as u16, None)),
    }
}

/// SET IDENTIFYING INFORMATION: the list. A text is UTF-8, with a zero at its end and nowhere else.
pub(crate) fn set_list(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    let kind = kind_of(call)?;
    if kind == Kind::Text {
        let end = list.iter().position(|&byte| byte == 0).unwrap_or(list.len());
        let valid = match std::str::from_utf8(&list[..end]) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        if valid + 1 != list.len() {
            return Err(Sense::invalid_parameter(offset(valid), None));
        }
    }
    Ok(call.unit.set_identifying(call.path, kind, list))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, Shelf, drained, sense_of};
    use crate::{Attention, Outcome, Sections};
    use std::sync::Arc;

    const fn report(kind: u8) -> [u8; 12] {
        [0xA3, 0x05, 0, 0, 0, 0, 0, 0, 1, 64, kind << 1, 0]
    }

    fn set(bench: &mut Bench, kind: u8, list: &[u8]) -> Action {
        let [high, low] = (list.len() as u16).to_be_bytes();
        let cdb = [0xA4, 0x06, 0, 0, 0, 0, 0, 0, high, low, kind << 1, 0];
        if list.is_empty() { bench.execute(&cdb) } else { bench.send(&cdb, list) }
    }

    fn saved(action: Action) -> String {
        let Action::Save(save) = action else { panic!("{action:?}") };
        assert_eq!(save.section(), "identifying");
        let text = save.text().to_owned();
        save.done(true);
        text
    }

    #[test]
    fn a_label_is_set_saved_and_told() {
        let shelf = Arc::new(Shelf::default());
        let mut bench = Bench::kept(&shelf, Some(&Sections::new()));
        assert_eq!(bench.data(&report(0x7F)), [0, 0, 0, 8, 0x00, 0, 0, 64, 0x04, 0, 1, 0]);
        assert_eq!(bench.data(&report(0)), [0, 0, 0, 0]);
        let action = set(&mut bench, 0, &[0xAB, 0x00]);
        assert_eq!(bench.data(&report(0)), [0, 0, 0, 0], "not yet");
        assert!(matches!(set(&mut bench, 2, b"x\0"), Action::Done(outcome) if outcome == Outcome::BUSY));
        assert_eq!(saved(action), "device ab00\n");
        assert_eq!((drained(&bench.other), drained(&bench.path)), (vec![Attention::DeviceIdentifierChanged], vec![]));
        let text = saved(set(&mut bench, 2, "R\u{e9}gal 7\0".as_bytes()));
        assert_eq!(text, "device ab00\ntext 52c3a967616c203700\n");
        assert_eq!(bench.data(&report(2)), [&[0, 0, 0, 9], "R\u{e9}gal 7\0".as_bytes()].concat());
        bench.unit.reset(None);
        drained(&bench.path);
        assert_eq!(bench.data(&report(0)), [0, 0, 0, 2, 0xAB, 0]);
        assert_eq!(bench.data(&[0xA3, 0x05, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0]), [0, 0, 0, 2, 0xAB]);
        assert!(matches!(set(&mut bench, 0, &[0xAB, 0x00]), Action::Done(Outcome::GOOD)), "the same");
        let mut again = Bench::kept(&shelf, Some(&Sections::from([("identifying".to_owned(), text)])));
        assert_eq!(again.data(&report(0)), [0, 0, 0, 2, 0xAB, 0]);
        assert_eq!(saved(set(&mut again, 2, &[])), "device ab00\n");
        assert_eq!(saved(set(&mut again, 0, &[])), "");
        let Action::Save(save) = set(&mut again, 0, &[1]) else { panic!() };
        save.done(false);
        assert_eq!(again.data(&report(0)), [0, 0, 0, 0], "it could not be saved");
        *shelf.full.lock().unwrap() = true;
        assert!(matches!(set(&mut again, 0, &[1]), Action::Done(outcome) if outcome == Outcome::BUSY));
    }

    #[test]
    fn types_lengths_and_texts_that_are_wrong() {
        let mut bench = Bench::kept(&Arc::default(), Some(&Sections::new()));
        for kind in [1, 3, 0x7E] {
            assert_eq!(bench.sense(&report(kind)), Sense::invalid_field(10, Some(7)));
        }
        assert_eq!(sense_of(&set(&mut bench, 0x7F, &[])), Sense::invalid_field(10, Some(7)));
        let length = |kind: u8, high, low| [0xA4, 0x06, 0, 0, 0, 0, 0, 0, high, low, kind << 1, 0];
        assert_eq!(bench.sense(&length(0, 0, 65)), Sense::invalid_field(6, None));
        assert_eq!(bench.sense(&length(2, 1, 1)), Sense::invalid_field(6, None));
        assert_eq!(bench.sense(&[0xA4, 0x06, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0]), Sense::invalid_field(6, None));
        for (text, at) in [(&b"abc"[..], 3), (b"a\0b\0", 1), (b"a\xFFb\0", 1), (b"\xC3\0", 0)] {
            assert_eq!(sense_of(&set(&mut bench, 2, text)), Sense::invalid_parameter(at, None), "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_shown_and_what_cannot_be_kept_is_not_taken() {
        let damaged = Sections::from([("identifying".to_owned(), "?".to_owned())]);
        let mut bench = Bench::kept(&Arc::default(), Some(&damaged));
        assert_eq!(bench.unit.unreadable(), ["identifying information"]);
        assert_eq!(bench.data(&report(0)), [0, 0, 0, 0]);
        assert_eq!(saved(set(&mut bench, 0, &[])), "");
        assert_eq!(bench.unit.unreadable(), [""; 0]);
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&report(0)), Sense::invalid_field(1, Some(4)));
        assert_eq!(sense_of(&set(&mut bench, 0, &[])), Sense::invalid_field(1, Some(4)));
    }
}
