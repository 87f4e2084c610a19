//! Words for a device that takes whole SCSI commands: what is asked of it, and what became of that.
//!
//! Such a device has a [`Channel`](crate::Channel) like any other, so its room, its completions and its end are those of
//! all devices; only what goes down and what comes up is another thing. A completion of its `poll` says that a command has
//! ended, and [`ScsiChannel::take_answer`] how.

use crate::{Cx, SegmentList, Tag};

/// The most sense data that is handed on, in bytes.
pub const SENSE_MAX: usize = 96;

/// Where a command's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It has none.
    None,
    /// From the device.
    In,
    /// To the device.
    Out,
}

/// A command for a SCSI device.
#[derive(Clone, Copy, Debug)]
pub struct ScsiCommand {
    /// Comes back in the completion.
    pub tag: Tag,
    /// The CDB; what is behind `cdb_len` is not sent.
    pub cdb: [u8; 32],
    /// 6 to 32.
    pub cdb_len: u8,
    /// Where the data goes.
    pub direction: Direction,
    /// How much memory there is for it, whatever the CDB says: never more is moved. 0 exactly with [`Direction::None`].
    pub len: u64,
    /// That memory; valid until the completion.
    pub data: SegmentList,
    /// How long the device may take, in milliseconds.
    pub timeout_ms: u32,
}

/// Whether a command has reached its device, and come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Delivery {
    /// The device has answered with a status.
    Answered,
    /// More data at once than the way to the device takes; the device has not seen the command.
    TooLong,
    /// The device is not there, or not any more.
    Gone,
    /// No room on the way, for a moment.
    Busy,
    /// Ended by a reset.
    Reset,
    /// Given up: asked for, or because the device took too long.
    Aborted,
    /// The way to the device was disturbed; the command may be sent again.
    Transport,
    /// The device failed for good.
    Target,
    /// Another initiator stands in the way.
    Nexus,
    /// Anything else, the memory for the data included.
    Failed,
}

impl Delivery {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Delivery; 10] = [
        Delivery::Answered,
        Delivery::TooLong,
        Delivery::Gone,
        Delivery::Busy,
        Delivery::Reset,
        Delivery::Aborted,
        Delivery::Transport,
        Delivery::Target,
        Delivery::Nexus,
        Delivery::Failed,
    ];

    /// The name used in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Delivery::Answered => "answered",
            Delivery::TooLong => "too_long",
            Delivery::Gone => "gone",
            Delivery::Busy => "busy",
            Delivery::Reset => "reset",
            Delivery::Aborted => "aborted",
            Delivery::Transport => "transport",
            Delivery::Target => "target",
            Delivery::Nexus => "nexus",
            Delivery::Failed => "failed",
        }
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiAnswer {
    /// Whether the device has answered.
    pub delivery: Delivery,
    /// If so, its status byte.
    pub status: u8,
    /// Bytes of the memory that were not used; never more than there were.
    pub residual: u64,
    sense: [u8; SENSE_MAX],
    sense_len: u8,
}

impl ScsiAnswer {
    /// A command of which the device has said nothing, and of whose data, `len` bytes, nobody says anything either.
    #[must_use]
    pub const fn undelivered(delivery: Delivery, len: u64) -> ScsiAnswer {
        ScsiAnswer { delivery, status: 0, residual: len, sense: [0; SENSE_MAX], sense_len: 0 }
    }

    /// The device's own answer. What is longer than [`SENSE_MAX`] is cut off.
    #[must_use]
    pub fn answered(status: u8, sense: &[u8], residual: u64) -> ScsiAnswer {
        let len = sense.len().min(SENSE_MAX);
        let mut bytes = [0; SENSE_MAX];
        bytes[..len].copy_from_slice(&sense[..len]);
        ScsiAnswer { delivery: Delivery::Answered, status, residual, sense: bytes, sense_len: len as u8 }
    }

    /// Its sense data, as the device gave it; empty if it gave none.
    #[must_use]
    pub fn sense(&self) -> &[u8] {
        &self.sense[..usize::from(self.sense_len)]
    }
}

/// The part of a [`Channel`](crate::Channel) that only a device for whole commands has. Its depth, `poll`, `next` and
/// `cancel` are those of the channel; `submit` is not used.
pub trait ScsiChannel {
    /// Takes a command. Never blocks, never completes inside the call.
    fn submit_scsi(&mut self, command: ScsiCommand, cx: &mut Cx<'_>);

    /// What became of a command that a `poll` has completed; once. `None` for any other tag.
    fn take_answer(&mut self, tag: Tag) -> Option<ScsiAnswer>;

    /// Resets the device, which ends what it has in hand. Completes by `poll` like a command, when the reset has been done
    /// or could not be. Not counted in the depth.
    fn reset(&mut self, tag: Tag, cx: &mut Cx<'_>);

    /// Who has sent the commands so far is not there any more, and none of them is under way: what the device keeps for
    /// them it lets go, before it does what is sent from now on. (That it holds its medium, for one.)
    fn nexus_lost(&mut self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sense_is_handed_on_as_it_is_up_to_the_room_for_it() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(ScsiAnswer::answered(2, &bytes[..18], 0).sense(), &bytes[..18]);
        assert_eq!(ScsiAnswer::answered(2, &bytes, 0).sense(), &bytes[..SENSE_MAX]);
        assert!(ScsiAnswer::undelivered(Delivery::Gone, 7).sense().is_empty());
    }

    #[test]
    fn deliveries_are_listed_in_order() {
        for (at, delivery) in Delivery::ALL.into_iter().enumerate() {
            assert_eq!(delivery as usize, at, "{}", delivery.name());
        }
    }
}
