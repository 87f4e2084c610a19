//! What an initiator may do at one end of a copy: what its own READ or WRITE would be allowed to at this moment.

use pollux_core::IoFlags;

use crate::copy::End;
use crate::geometry::{Flags, Geometry};
use crate::reservations::access::Need;
use crate::{Key, Sense, Status, code};

/// Why an end refuses, in the words of the READ or WRITE that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: Status,
    pub(crate) sense: Sense,
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Refusal {
        Refusal { status: Status::CheckCondition, sense }
    }
}

impl End {
    /// What its READs and WRITEs find there.
    pub(crate) fn geometry(&self) -> Geometry {
        self.unit.standing().geometry
    }

    /// Whether the range may be read.
    pub(crate) fn may_read(&self, offset: u64, len: u64) -> Result<(), Refusal> {
        self.may(Need::Reading, offset, len).map(drop)
    }

    /// Whether the range may be written; how.
    pub(crate) fn may_write(&self, offset: u64, len: u64) -> Result<IoFlags, Refusal> {
        let geometry = self.may(Need::Writing, offset, len)?;
        geometry.writable()?;
        Ok(geometry.write_flags(false))
    }

    fn may(&self, need: Need, offset: u64, len: u64) -> Result<Geometry, Refusal> {
        if self.unit.refuses(&self.path, need) {
            let sense = Sense::new(Key::NoSense, code::NONE);
            return Err(Refusal { status: Status::ReservationConflict, sense });
        }
        let standing = self.unit.standing();
        if !standing.geometry.has(Flags::READY) {
            return Err(Sense::NOT_READY.into());
        }
        if let Some(blocked) = standing.blocked {
            return Err(blocked.sense.into());
        }
        if standing.stopped {
            return Err(Sense::STOPPED.into());
        }
        if !standing.geometry.holds(offset, len) {
            return Err(Sense::LBA_OUT_OF_RANGE.into());
        }
        Ok(standing.geometry)
    }
}
