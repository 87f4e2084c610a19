//! What the target tells the front end to do with a command.

use pollux_core::{IoFlags, Op};

use crate::{Begun, CopyOrder, Job, Key, Pass, Plan, Preempted, Save, Sense, Survey, code};

/// Memory that a front end hands to `execute` for data-in: room for every answer, the longest being REPORT LUNS with
/// 16384 units. With less (64 KiB at least) the longest answers are cut off, with their length fields intact.
pub const SCRATCH_LEN: usize = 132 * 1024;

/// The least that `scratch` may be.
pub const SCRATCH_MIN: usize = 64 * 1024;

/// SCSI status codes (SAM-5, table 36).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// Failed; the sense data says why.
    CheckCondition = 0x02,
    /// Not now; the same command may work later.
    Busy = 0x08,
    /// Another initiator holds a reservation.
    ReservationConflict = 0x18,
    /// No room for another command.
    TaskSetFull = 0x28,
    /// Ended by another initiator.
    TaskAborted = 0x40,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The status byte.
    pub status: Status,
    /// Sense data; present exactly with [`Status::CheckCondition`].
    pub sense: Option<Sense>,
    /// How many bytes of `scratch` are the data-in; never more than the CDB's allocation length.
    pub data_len: usize,
}

impl Outcome {
    /// GOOD without data.
    pub const GOOD: Outcome = Outcome { status: Status::Good, sense: None, data_len: 0 };
    /// BUSY: try again.
    pub const BUSY: Outcome = Outcome { status: Status::Busy, sense: None, data_len: 0 };

    /// TASK SET FULL: try again with fewer at once.
    pub const TASK_SET_FULL: Outcome = Outcome { status: Status::TaskSetFull, sense: None, data_len: 0 };

    /// RESERVATION CONFLICT: another initiator has reserved the unit.
    pub const CONFLICT: Outcome = Outcome { status: Status::ReservationConflict, sense: None, data_len: 0 };

    /// CHECK CONDITION.
    #[must_use]
    pub const fn check(sense: Sense) -> Outcome {
        Outcome { status: Status::CheckCondition, sense: Some(sense), data_len: 0 }
    }

    /// GOOD with data.
    #[must_use]
    pub const fn data(data_len: usize) -> Outcome {
        Outcome { status: Status::Good, sense: None, data_len }
    }
}

/// What a front end has to do for a command.
#[derive(Debug)]
pub enum Action {
    /// Move data between the guest's buffers and the device. `len` is not 0; the range lies inside the capacity.
    Io {
        /// `Read` or `Write`.
        op: Op,
        /// `FUA` where the write has to be durable before it is answered.
        flags: IoFlags,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Gather `len` bytes (at least 1, at most 65535) of parameter data from the guest and call `execute_out`.
    DataOut {
        /// How many bytes.
        len: usize,
    },
    /// Gather parameter data that says itself how long it is: as much as the guest sends, `least` bytes (at least 1),
    /// `most` at most (65535). Then call `execute_out`.
    Parameters {
        /// With less the command is wrong.
        least: usize,
        /// More is not looked at.
        most: usize,
    },
    /// Do these steps one after the other, then answer GOOD (before them if [`Plan::immediate`]).
    Plan(Plan),
    /// Give it memory and do its tasks one after the other; the last says how it ended.
    Job(Job),
    /// Copy from unit to unit: look the names up, start it, and do its tasks one after the other.
    Copy(Box<CopyOrder>),
    /// Have this saved ([`Save::start`]); when it is, the command's answer is told.
    Save(Box<Save>),
    /// End the commands of the paths that this preempted ([`Path::is_preempted`](crate::Path::is_preempted)), then answer
    /// GOOD. The asking command's path is none of them.
    Abort(Preempted),
    /// Have this found out by somebody who may wait ([`Survey::run`]); then answer GOOD with what it returns.
    Survey(Box<Survey>),
    /// Hand the command to the device as it is, and hand back what that answers.
    Pass(Pass),
    /// Have the operation done that has begun ([`LogicalUnit::take_wipe`](crate::LogicalUnit::take_wipe)); then answer, or
    /// before that, if it is immediate.
    Wipe(Begun),
    /// Answer now; `scratch[..data_len]` is the data-in.
    Done(Outcome),
}

impl From<Sense> for Action {
    fn from(sense: Sense) -> Action {
        Action::Done(Outcome::check(sense))
    }
}

impl From<Result<Action, Sense>> for Action {
    fn from(result: Result<Action, Sense>) -> Action {
        result.unwrap_or_else(Action::from)
    }
}

/// The answer to a command whose operation on the device failed.
#[must_use]
pub const fn io_outcome(op: Op, error: pollux_core::IoError) -> Outcome {
    match error {
        pollux_core::IoError::Busy => Outcome::BUSY,
        error => Outcome::check(io_sense(op, error)),
    }
}

/// The sense for a failed operation. The choice follows what initiators do with it: they retry ABORTED COMMAND, give up
/// on HARDWARE ERROR, report "no space" for 27h/07h, stop discarding on ILLEGAL REQUEST.
#[must_use]
pub const fn io_sense(op: Op, error: pollux_core::IoError) -> Sense {
    use pollux_core::IoError;
    match error {
        IoError::Medium if matches!(op, Op::Read) => Sense::new(Key::MediumError, code::UNRECOVERED_READ_ERROR),
        IoError::Medium => Sense::new(Key::MediumError, code::WRITE_ERROR),
        IoError::NoSpace => Sense::new(Key::DataProtect, code::SPACE_ALLOCATION_FAILED),
        IoError::Aborted => Sense::new(Key::AbortedCommand, code::NONE),
        IoError::ReadOnly => Sense::new(Key::DataProtect, code::WRITE_PROTECTED),
        IoError::OutOfRange => Sense::LBA_OUT_OF_RANGE,
        IoError::Unsupported => Sense::INVALID_OPCODE,
        // Not a medium error: initiators retry those, and a flush that failed once must not look as if it might pass.
        IoError::FlushFailed => Sense::new(Key::HardwareError, code::INTERNAL_TARGET_FAILURE),
        IoError::NotReady => Sense::NOT_READY,
        IoError::Busy => Sense::new(Key::AbortedCommand, code::INSUFFICIENT_RESOURCES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_core::IoError;

    #[test]
    fn every_device_error_has_its_answer() {
        let codes = |op| IoError::ALL.map(|error| (io_sense(op, error).key as u8, io_sense(op, error).code()));
        let read = codes(Op::Read);
        assert_eq!(read[0], (3, 0x1100));
        let write = codes(Op::Write);
        let want = [
            (3, 0x0C00),
            (7, 0x2707),
            (0xB, 0x0000),
            (7, 0x2700),
            (5, 0x2100),
            (5, 0x2000),
            (4, 0x4400),
            (2, 0x0400),
            (0xB, 0x5503),
        ];
        assert_eq!(write, want);
        assert_eq!(read[1..], want[1..]);
        assert_eq!(io_outcome(Op::Write, IoError::Busy), Outcome::BUSY);
        assert_eq!(io_outcome(Op::Flush, IoError::Medium).status, Status::CheckCondition);
    }
}
