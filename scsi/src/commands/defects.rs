//! READ DEFECT DATA (SBC-3, clauses 5.17 and 5.18). The devices below replace bad blocks themselves and tell nobody which:
//! the lists are empty.

use crate::commands::Call;
use crate::{Action, Inventory, Sense};

const REQ_PLIST_GLIST: u8 = 0x18;
const FORMAT: u8 = 0x07;

/// READ DEFECT DATA(10): a header of 4 bytes and no descriptors.
pub(crate) fn read_10(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let lists = lists(call, 2)?;
    call.data.put(&[0, lists, 0, 0]);
    Ok(call.data.answer(usize::from(call.cdb.be16(7))))
}

/// READ DEFECT DATA(12): a header of 8 bytes and no descriptors, whatever the index to begin with. A generation code of 0
/// says that changes are not counted.
pub(crate) fn read_12(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let lists = lists(call, 1)?;
    call.data.put(&[0, lists, 0, 0, 0, 0, 0, 0]);
    Ok(call.data.answer(call.cdb.be32(6) as usize))
}

/// PLISTV, GLISTV and the format of the answer: what was asked for. No descriptors are right in every format but the
/// vendor-specific (6) and the reserved one (7), which there is not.
fn lists(call: &Call<'_>, at: usize) -> Result<u8, Sense> {
    let asked = call.cdb.byte(at);
    if asked & FORMAT >= 6 {
        return Err(Sense::invalid_field(at as u16, Some(2)));
    }
    Ok(asked & (REQ_PLIST_GLIST | FORMAT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn lists_are_empty_and_in_the_format_asked_for() {
        let mut bench = Bench::new();
        assert_eq!(bench.data(&[0x37, 0, 0x1D, 0, 0, 0, 0, 0, 255, 0]), [0, 0x1D, 0, 0]);
        assert_eq!(bench.data(&[0x37, 0, 0x08, 0, 0, 0, 0, 0, 3, 0]), [0, 0x08, 0]);
        assert_eq!(bench.data(&[0x37, 0, 0, 0, 0, 0, 0, 0, 0, 0]), []);
        assert_eq!(bench.data(&[0xB7, 0x13, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]), [0, 0x13, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bench.data(&[0xB7, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 2, 0, 0]), [0, 0x18]);
    }

    #[test]
    fn formats_that_there_are_not() {
        let mut bench = Bench::new();
        for format in [6, 7] {
            assert_eq!(bench.sense(&[0x37, 0, format, 0, 0, 0, 0, 0, 8, 0]), Sense::invalid_field(2, Some(2)));
            let long = [0xB7, format, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
            assert_eq!(bench.sense(&long), Sense::invalid_field(1, Some(2)));
        }
    }
}
