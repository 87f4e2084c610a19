//! A unit that is a whole SCSI device of the host: commands go to it as they are.
//!
//! What a front end has to answer itself is answered here: REPORT LUNS, which lists the controller's units and not the
//! host's, and unit attentions that concern the path to the guest. Of the rest, what may be sent on is decided by
//! [`filter`], and how long it may take by [`timeout`]; status, data and sense are the device's own, INQUIRY's too. Where
//! parameter data is the reason ([`modes`]) it is asked for first, and that copy is what goes to the device: the guest
//! could change what it has after we have looked.

pub(crate) mod filter;
mod modes;
mod timeout;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use pollux_core::Direction;

use crate::commands::{self, Call, discovery};
use crate::data_in::DataIn;
use crate::geometry::{Flags, Geometry};
use crate::{Action, Attention, Cdb, Inventory, LogicalUnit, Path, Sense};
pub use filter::Allow;

const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const REPORT_LUNS: u8 = 0xA0;

/// A command that goes to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// How long its CDB is.
    pub cdb_len: u8,
    /// How long the device may take, in milliseconds.
    pub timeout_ms: u32,
}

/// What a unit knows of the device behind it.
#[derive(Debug)]
pub(crate) struct Through {
    /// PERIPHERAL DEVICE TYPE; [`UNKNOWN`] as long as the device has not been seen.
    device_type: AtomicU8,
    allow: Allow,
    /// Commands that were not sent on.
    refused: AtomicU64,
}

impl Through {
    /// Sends a command on, or refuses it; asks for its parameter data first if they have to be looked at.
    pub(crate) fn send_on(&self, cdb: &Cdb, parameters: Option<&[u8]>) -> Action {
        let device_type = self.device_type.load(Ordering::Acquire);
        let checked = filter::check(device_type, cdb, self.allow).and_then(|cdb_len| {
            let wanted = modes::list_len(device_type, cdb, self.allow)?;
            match (wanted, parameters) {
                (Some(len), None) => return Ok(Action::DataOut { len }),
                (Some(_), Some(list)) => modes::check_list(cdb, list)?,
                (None, _) => {}
            }
            Ok(Action::Pass(Pass { cdb_len, timeout_ms: timeout::of(device_type, cdb) }))
        });
        checked.unwrap_or_else(|sense| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            sense.into()
        })
    }
}

/// What PERIPHERAL DEVICE TYPE is where there is none.
const UNKNOWN: u8 = 0x1F;

impl LogicalUnit {
    /// Makes the unit one whose commands go to a device as they are; once, before it is used. `allow` is what the device's
    /// owner allows beyond what every guest may do.
    pub fn pass_through(&self, allow: Allow) {
        let set = self.through.set(Through { device_type: AtomicU8::new(UNKNOWN), allow, refused: AtomicU64::new(0) });
        debug_assert!(set.is_ok(), "said once");
    }

    /// Says what the device is (PERIPHERAL DEVICE TYPE of its INQUIRY data): which commands there are depends on it.
    pub fn set_device_type(&self, device_type: u8) {
        if let Some(through) = self.through.get() {
            through.device_type.store(device_type & 0x1F, Ordering::Release);
        }
    }

    /// Whether commands go to the device as they are.
    #[must_use]
    pub fn passes_through(&self) -> bool {
        self.through.get().is_some()
    }

    /// How many commands were not sent on, because they are not a guest's to give.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.through.get().map_or(0, |through| through.refused.load(Ordering::Relaxed))
    }

    pub(crate) fn execute_through(
        &self,
        through: &Through,
        path: &Path,
        cdb: &Cdb,
        inventory: &dyn Inventory,
        scratch: &mut [u8],
    ) -> Action {
        let own = match cdb.opcode() {
            REPORT_LUNS => true,
            // What the guest has not been told yet is told here; when there is nothing, the device has the word.
            REQUEST_SENSE => path.has_attention(),
            INQUIRY => false,
            _ => match path.take() {
                Some(attention) => return attention.sense().into(),
                None => false,
            },
        };
        if !own {
            return through.send_on(cdb, None);
        }
        let geometry = Geometry::missing(Flags::empty());
        let data = DataIn::new(scratch);
        let mut call = Call { unit: self, path, cdb, geometry, stopped: false, blocked: None, data };
        let answer = commands::find(cdb, geometry).and_then(|row| {
            row.check(cdb)?;
            match cdb.opcode() {
                REPORT_LUNS => discovery::report_luns_of_unit(&mut call, inventory),
                _ => {
                    let sense = path.take().map_or(Sense::NONE, Attention::sense);
                    Ok(discovery::sense_data(cdb, sense, &mut call.data))
                }
            }
        });
        answer.into()
    }
}

/// Which way a command's data goes, by the room that its request has. There is never room both ways.
#[must_use]
pub const fn direction(data_out: u64, data_in: u64) -> (Direction, u64) {
    match (data_out, data_in) {
        (0, 0) => (Direction::None, 0),
        (0, len) => (Direction::In, len),
        (len, _) => (Direction::Out, len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Luns, drained, sense_of, two_paths};
    use crate::{Outcome, SCRATCH_LEN};

    fn execute(unit: &LogicalUnit, path: &Path, cdb: &[u8]) -> (Action, Vec<u8>) {
        let mut scratch = vec![0; SCRATCH_LEN];
        let action = unit.execute(path, &Cdb::from_slice(cdb), &Luns, &mut scratch);
        let len = if let Action::Done(Outcome { data_len, .. }) = action { data_len } else { 0 };
        scratch.truncate(len);
        (action, scratch)
    }

    #[test]
    fn commands_go_to_the_device_and_report_luns_does_not() {
        let (unit, [path, _]) = two_paths(None);
        unit.pass_through(Allow::empty());
        unit.set_device_type(0);
        for cdb in [&[0x12, 1, 0x83, 0, 255, 0][..], &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0x03, 0, 0, 0, 18, 0]] {
            let (action, _) = execute(&unit, &path, cdb);
            let Action::Pass(pass) = action else { panic!("{cdb:x?}: {action:?}") };
            assert_eq!(usize::from(pass.cdb_len), cdb.len());
        }
        let (_, data) = execute(&unit, &path, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!((data.len(), data[3]), (32, 24), "the controller's list");
        let (refused, _) = execute(&unit, &path, &[0x83; 16]);
        assert_eq!((sense_of(&refused), unit.refused()), (Sense::INVALID_OPCODE, 1));
    }

    #[test]
    fn a_mode_list_is_looked_at_before_it_goes_to_a_disk() {
        let (unit, [path, _]) = two_paths(None);
        unit.pass_through(Allow::empty());
        unit.set_device_type(0);
        let cdb = [0x15, 0x10, 0, 0, 12, 0];
        let (asked, _) = execute(&unit, &path, &cdb);
        assert!(matches!(asked, Action::DataOut { len: 12 }), "{asked:?}");
        let out = |list: &[u8]| unit.execute_out(&path, &Cdb::from_slice(&cdb), list, &mut [0; SCRATCH_LEN]);
        assert!(matches!(out(&[0; 12]), Action::Pass(Pass { cdb_len: 6, .. })));
        // A block descriptor with half of the blocks
        let refused = out(&[0, 0, 0, 8, 0, 0, 0x40, 0, 0, 0, 2, 0]);
        assert_eq!((sense_of(&refused), unit.refused()), (Sense::invalid_parameter(3, None), 1));
    }

    #[test]
    fn the_paths_own_attentions_come_before_the_device_has_the_word() {
        let (unit, [path, _]) = two_paths(None);
        unit.pass_through(Allow::empty());
        unit.set_device_type(1);
        path.raise(Attention::NexusLoss);
        path.nexus().raise_luns_changed();
        assert!(matches!(execute(&unit, &path, &[0x12, 0, 0, 0, 36, 0]).0, Action::Pass(_)), "INQUIRY goes by");
        let (told, _) = execute(&unit, &path, &[0; 6]);
        assert_eq!(sense_of(&told).code(), 0x2907);
        let (_, data) = execute(&unit, &path, &[0x03, 0, 0, 0, 18, 0]);
        assert_eq!((data[2] & 0x0F, data[12], data[13]), (6, 0x3F, 0x0E));
        assert_eq!(drained(&path), []);
        assert!(matches!(execute(&unit, &path, &[0x03, 0, 0, 0, 18, 0]).0, Action::Pass(_)));
    }

    #[test]
    fn report_luns_takes_the_news_of_changed_units() {
        let (unit, [path, _]) = two_paths(None);
        unit.pass_through(Allow::empty());
        path.nexus().raise_luns_changed();
        execute(&unit, &path, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert!(!path.has_attention());
    }

    #[test]
    fn directions_follow_the_room() {
        assert_eq!(direction(0, 0), (Direction::None, 0));
        assert_eq!(direction(5, 0), (Direction::Out, 5));
        assert_eq!(direction(0, 6), (Direction::In, 6));
    }
}
