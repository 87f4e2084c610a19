//! The structures of the virtio-scsi queues (virtio 1.2, 5.6.6), read from and written to plain bytes. The CDB field is
//! always 32 bytes and the sense field always 96: the configuration space that could say otherwise is the VMM's and never
//! reaches this side.

use pollux_scsi::Attribute;

/// Length of a command request's header: LUN, tag, attributes, CDB.
pub const COMMAND_LEN: usize = 51;
/// Length of a command's response: 12 bytes and the sense data.
pub const RESPONSE_LEN: usize = 12 + SENSE_LEN;
/// Length of the sense field.
pub const SENSE_LEN: usize = 96;
/// Length of a task management request.
pub const TMF_LEN: usize = 24;
/// Length of an asynchronous notification request.
pub const AN_LEN: usize = 16;
/// Length of an event.
pub const EVENT_LEN: usize = 16;

/// `VIRTIO_SCSI_F_INOUT`: requests may carry both directions (none of our commands does).
pub const F_INOUT: u64 = 1 << 0;
/// `VIRTIO_SCSI_F_HOTPLUG`: the driver takes transport reset events.
pub const F_HOTPLUG: u64 = 1 << 1;
/// `VIRTIO_SCSI_F_CHANGE`: the driver takes parameter change events.
pub const F_CHANGE: u64 = 1 << 2;

/// `response` of a command or task management function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Response {
    /// The command ran; see its status. For task management: FUNCTION COMPLETE.
    Ok = 0,
    /// The CDB asks for more data than the request has room for.
    Overrun = 1,
    /// Ended by a task management function.
    Aborted = 2,
    /// There is no such target.
    BadTarget = 3,
    /// Ended by a reset.
    Reset = 4,
    /// Not now; it may be sent again.
    Busy = 5,
    /// The way to the target was disturbed; it may be sent again.
    TransportFailure = 6,
    /// The target failed for good.
    TargetFailure = 7,
    /// The nexus is in the way of another.
    NexusFailure = 8,
    /// The request is malformed.
    Failure = 9,
    /// FUNCTION SUCCEEDED (QUERY TASK: it is there).
    FunctionSucceeded = 10,
    /// FUNCTION REJECTED.
    FunctionRejected = 11,
    /// There is no such logical unit.
    IncorrectLun = 12,
}

/// A command request's header, as the guest wrote it: the one copy that all decisions are made on.
#[derive(Clone, Copy, Debug)]
pub struct Command([u8; COMMAND_LEN]);

impl Command {
    /// The header in these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: [u8; COMMAND_LEN]) -> Command {
        Command(bytes)
    }

    /// Which unit.
    #[inline(always)]
    #[must_use]
    pub fn lun(&self) -> [u8; 8] {
        array(&self.0, 0)
    }

    /// The guest's name for the command.
    #[inline(always)]
    #[must_use]
    pub fn tag(&self) -> u64 {
        u64::from_le_bytes(array(&self.0, 8))
    }

    /// The task attribute. `None`: ACA, which needs what we do not have (NORMACA is 0), or a value that stands for none.
    #[must_use]
    pub const fn attribute(&self) -> Option<Attribute> {
        match self.0[16] {
            0 => Some(Attribute::Simple),
            1 => Some(Attribute::Ordered),
            2 => Some(Attribute::Head),
            _ => None,
        }
    }

    /// 0 if the task attribute is SIMPLE.
    #[inline(always)]
    pub(crate) const fn odd(&self) -> u8 {
        self.0[16]
    }

    /// The CDB, zero-padded.
    #[inline(always)]
    #[must_use]
    pub fn cdb(&self) -> &[u8; 32] {
        self.0[19..].first_chunk().expect("the CDB ends the header")
    }
}

/// A task management function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// Ends one command of the nexus.
    AbortTask,
    /// Ends all commands of the nexus on the unit.
    AbortTaskSet,
    /// Clears an auto contingent allegiance: there is none.
    ClearAca,
    /// Ends all commands of all nexuses on the unit.
    ClearTaskSet,
    /// Ends all commands of the nexus on all units of the target.
    NexusReset,
    /// Ends all commands on the unit and resets it.
    LogicalUnitReset,
    /// Whether a command is there.
    QueryTask,
    /// Whether any command of the nexus is there.
    QueryTaskSet,
}

/// A request on the control queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Task management.
    Tmf {
        /// Which function; `None`: an unknown one.
        function: Option<Function>,
        /// On which unit.
        lun: [u8; 8],
        /// On which command.
        tag: u64,
    },
    /// Query of or subscription to asynchronous notifications: none are offered.
    Notification,
    /// An unknown type.
    Unknown,
}

impl Control {
    /// Reads a request from its first bytes; `None` if there are too few.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Control> {
        let kind = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
        match kind {
            0 => {
                let bytes: &[u8; TMF_LEN] = bytes.get(..TMF_LEN)?.try_into().ok()?;
                let function = match u32::from_le_bytes(array(bytes, 4)) {
                    0 => Some(Function::AbortTask),
                    1 => Some(Function::AbortTaskSet),
                    2 => Some(Function::ClearAca),
                    3 => Some(Function::ClearTaskSet),
                    4 => Some(Function::NexusReset),
                    5 => Some(Function::LogicalUnitReset),
                    6 => Some(Function::QueryTask),
                    7 => Some(Function::QueryTaskSet),
                    _ => None,
                };
                Some(Control::Tmf { function, lun: array(bytes, 8), tag: u64::from_le_bytes(array(bytes, 16)) })
            }
            1 | 2 => bytes.get(..AN_LEN).map(|_| Control::Notification),
            _ => Some(Control::Unknown),
        }
    }
}

/// The fixed part of a command's response.
#[must_use]
pub fn response_header(response: Response, status: u8, sense_len: u32, residual: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&sense_len.to_le_bytes());
    bytes[4..8].copy_from_slice(&residual.to_le_bytes());
    bytes[10] = status;
    bytes[11] = response as u8;
    bytes
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A unit appeared.
    Added {
        /// Where.
        target: u8,
        /// Where.
        lun: u16,
    },
    /// A unit has gone.
    Removed {
        /// Where.
        target: u8,
        /// Where.
        lun: u16,
    },
    /// A unit raised this unit attention (capacity, mode parameters).
    Changed {
        /// Where.
        target: u8,
        /// Where.
        lun: u16,
        /// Additional sense code.
        asc: u8,
        /// And its qualifier.
        ascq: u8,
    },
}

impl Event {
    /// The feature that the driver must have accepted to get it.
    #[must_use]
    pub const fn feature(self) -> u64 {
        match self {
            Event::Added { .. } | Event::Removed { .. } => F_HOTPLUG,
            Event::Changed { .. } => F_CHANGE,
        }
    }

    /// The event's bytes; `missed` says that others before it were lost.
    #[must_use]
    pub fn encode(self, missed: bool) -> [u8; EVENT_LEN] {
        let (kind, target, lun, reason) = match self {
            Event::Added { target, lun } => (1u32, target, lun, 1u32),
            Event::Removed { target, lun } => (1, target, lun, 2),
            Event::Changed { target, lun, asc, ascq } => (3, target, lun, u32::from(asc) | u32::from(ascq) << 8),
        };
        let mut bytes = [0; EVENT_LEN];
        bytes[..4].copy_from_slice(&(kind | if missed { EVENTS_MISSED } else { 0 }).to_le_bytes());
        bytes[4..12].copy_from_slice(&crate::lun::encode(target, lun));
        bytes[12..].copy_from_slice(&reason.to_le_bytes());
        bytes
    }
}

/// `VIRTIO_SCSI_T_EVENTS_MISSED`.
pub const EVENTS_MISSED: u32 = 0x8000_0000;

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_command_header_lies_as_the_standard_says() {
        let mut bytes = [0u8; COMMAND_LEN];
        bytes[..8].copy_from_slice(&[1, 2, 0x40, 3, 0, 0, 0, 0]);
        bytes[8..16].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
        bytes[16] = 2;
        bytes[19] = 0x28;
        bytes[50] = 9;
        let command = Command::new(bytes);
        assert_eq!(command.lun(), [1, 2, 0x40, 3, 0, 0, 0, 0]);
        assert_eq!((command.tag(), command.attribute()), (0x1122_3344_5566_7788, Some(Attribute::Head)));
        assert_eq!((command.cdb()[0], command.cdb()[31]), (0x28, 9));
    }

    #[test]
    fn a_response_header_lies_as_the_standard_says() {
        assert_eq!(
            response_header(Response::Reset, 2, 18, 0x0403_0201),
            [18, 0, 0, 0, 1, 2, 3, 4, 0, 0, 2, Response::Reset as u8]
        );
    }

    #[test]
    fn events_say_what_was_missed() {
        let event = Event::Changed { target: 4, lun: 0x102, asc: 0x2a, ascq: 9 };
        assert_eq!(event.encode(true), [3, 0, 0, 0x80, 1, 4, 0x41, 2, 0, 0, 0, 0, 0x2a, 9, 0, 0]);
        assert_eq!(Event::Removed { target: 0, lun: 0 }.encode(false)[12], 2);
    }

    proptest! {
        #[test]
        fn control_requests_of_any_bytes_are_told_apart(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(Control::Tmf { tag, .. }) = Control::parse(&bytes) {
                prop_assert!(bytes.len() >= TMF_LEN);
                prop_assert_eq!(&tag.to_le_bytes()[..], &bytes[16..24]);
            }
        }
    }
}
