//! Parameter lists of MODE SELECT. A block descriptor says how many blocks a disk has and how long they are: fewer stay
//! fewer without SP, and another length leaves a disk that has to be formatted. So a guest sends none unless the owner
//! allows it, except to tapes and optical drives, where it is about the medium, which is the guest's own.

use super::filter::Allow;
use crate::{Cdb, Sense};

/// The longest list that is looked at: each command has a copy of its own. All pages of a disk together are shorter.
const MOST: usize = 4096;

/// Where a list has BLOCK DESCRIPTOR LENGTH.
struct Form {
    header: usize,
    descriptors: std::ops::Range<usize>,
    /// PARAMETER LIST LENGTH, and where it is in the CDB.
    len: usize,
    at: u16,
}

fn form(cdb: &Cdb) -> Option<Form> {
    match cdb.opcode() {
        0x15 => Some(Form { header: 4, descriptors: 3..4, len: cdb.byte(4).into(), at: 4 }),
        0x55 => Some(Form { header: 8, descriptors: 6..8, len: cdb.be16(7).into(), at: 7 }),
        _ => None,
    }
}

/// How much parameter data has to be looked at, if any.
///
/// # Errors
/// A list without a header, and one that is too long to be looked at.
pub(super) fn list_len(device_type: u8, cdb: &Cdb, allow: Allow) -> Result<Option<usize>, Sense> {
    const TAPE: u8 = 0x01;
    const OPTICAL: u8 = 0x05;
    if matches!(device_type, TAPE | OPTICAL) || allow.intersects(Allow::SETTINGS | Allow::FORMAT) {
        return Ok(None);
    }
    match form(cdb) {
        None | Some(Form { len: 0, .. }) => Ok(None),
        Some(Form { len, at, .. }) if len > MOST => Err(Sense::invalid_field(at, Some(7))),
        Some(Form { len, header, .. }) if len < header => Err(Sense::LIST_LENGTH),
        Some(Form { len, .. }) => Ok(Some(len)),
    }
}

/// Looks at a list.
///
/// # Errors
/// If it has a block descriptor, or less than the CDB says.
pub(super) fn check_list(cdb: &Cdb, list: &[u8]) -> Result<(), Sense> {
    let Some(form) = form(cdb) else { return Ok(()) };
    if list.len() != form.len {
        return Err(Sense::LIST_LENGTH);
    }
    let descriptors = list.get(form.descriptors.clone()).ok_or(Sense::LIST_LENGTH)?;
    if descriptors.iter().any(|byte| *byte != 0) {
        return Err(Sense::invalid_parameter(form.descriptors.start as u16, None));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn six(len: u8) -> Cdb {
        Cdb::from_slice(&[0x15, 0x10, 0, 0, len, 0])
    }

    fn ten(len: u16) -> Cdb {
        let [high, low] = len.to_be_bytes();
        Cdb::from_slice(&[0x55, 0x10, 0, 0, 0, 0, 0, high, low, 0])
    }

    #[test]
    fn lists_are_looked_at_except_where_descriptors_are_the_mediums() {
        let none = Allow::empty();
        for disk in [0x00, 0x04, 0x07, 0x0E, 0x14, 0x0D, 0x1F] {
            assert_eq!(list_len(disk, &six(24), none), Ok(Some(24)));
            assert_eq!(list_len(disk, &ten(300), none), Ok(Some(300)));
            assert_eq!(list_len(disk, &ten(0), none), Ok(None), "no list");
            assert_eq!(list_len(disk, &Cdb::from_slice(&[0x1A, 0, 0, 0, 24]), none), Ok(None));
        }
        for other in [0x01, 0x05] {
            assert_eq!(list_len(other, &six(24), none), Ok(None));
        }
        for allow in [Allow::SETTINGS, Allow::FORMAT, Allow::all()] {
            assert_eq!(list_len(0, &six(24), allow), Ok(None));
        }
        assert_eq!(list_len(0, &six(24), Allow::all() - Allow::SETTINGS - Allow::FORMAT), Ok(Some(24)));
    }

    #[test]
    fn what_cannot_be_looked_at_does_not_go_on() {
        let none = Allow::empty();
        assert_eq!((list_len(0, &six(3), none), list_len(0, &six(4), none)), (Err(Sense::LIST_LENGTH), Ok(Some(4))));
        assert_eq!((list_len(0, &ten(7), none), list_len(0, &ten(8), none)), (Err(Sense::LIST_LENGTH), Ok(Some(8))));
        assert_eq!(list_len(0, &ten(4096), none), Ok(Some(4096)));
        assert_eq!(list_len(0, &ten(4097), none), Err(Sense::invalid_field(7, Some(7))));
        assert_eq!(check_list(&ten(20), &[0; 19]), Err(Sense::LIST_LENGTH));
        assert_eq!(check_list(&six(20), &[0; 21]), Err(Sense::LIST_LENGTH));
    }

    #[test]
    fn descriptors_are_refused_wherever_their_length_is() {
        let mut list = [0xFF; 12];
        list[3] = 0;
        assert_eq!(check_list(&six(12), &list), Ok(()));
        list[3] = 8;
        assert_eq!(check_list(&six(12), &list), Err(Sense::invalid_parameter(3, None)));
        for at in [6, 7] {
            let mut list = [0xFF; 12];
            list[6..8].fill(0);
            assert_eq!(check_list(&ten(12), &list), Ok(()));
            list[at] = 1;
            assert_eq!(check_list(&ten(12), &list), Err(Sense::invalid_parameter(6, None)));
        }
    }
}
