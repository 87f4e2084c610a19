//! Why the node refuses a change, by meaning. The RPC methods give it the code and text that SPDK's have for it.

use pollux_bdev::BdevError;
use pollux_vhost_scsi::TargetError;

use crate::rpc::error::{RpcError, errno};
use crate::state::StateError;

/// A refused change or look-up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct NodeError {
    /// `data.reason` in answers: one stable word.
    pub reason: &'static str,
    /// The system error number that says the same.
    pub errno: i32,
    /// What exactly, for people.
    pub detail: String,
}

/// Kinds of refusal that the node itself finds; those of devices have words of their own ([`BdevError::reason`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no such object.
    NotFound,
    /// There is such an object already, and it is like the one asked for.
    ExistsSame,
    /// There is such an object already, and it is another one.
    ExistsDifferent,
    /// Somebody uses it.
    InUse,
    /// Something is done with it that has to end first.
    Busy,
    /// A value makes no sense.
    Invalid,
    /// There is no room.
    NoSpace,
    /// The object does not do that.
    Unsupported,
    /// The device is not there now.
    Missing,
    /// What was in flight did not end in time.
    TimedOut,
    /// The change could not be saved, so it was undone.
    StateSave,
    /// The system refused.
    Os,
    /// It was asked to end before it was done.
    Cancelled,
    /// It is over already.
    Ended,
    /// As many jobs run as may.
    TooManyJobs,
    /// A device failed.
    Io,
    /// What was exported is damaged, torn, or something else.
    BadStream,
    /// A difference to something that is not there.
    WrongBase,
}

impl Reason {
    /// The word in `data.reason`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Reason::NotFound => "not_found",
            Reason::ExistsSame => "exists_same",
            Reason::ExistsDifferent => "exists_different",
            Reason::InUse => "in_use",
            Reason::Busy => "busy",
            Reason::Invalid => "invalid",
            Reason::NoSpace => "no_space",
            Reason::Unsupported => "unsupported",
            Reason::Missing => "missing",
            Reason::TimedOut => "timed_out",
            Reason::StateSave => "state_save_failed",
            Reason::Os => "os_error",
            Reason::Cancelled => "cancelled",
            Reason::Ended => "ended",
            Reason::TooManyJobs => "too_many_jobs",
            Reason::Io => "io",
            Reason::BadStream => "bad_stream",
            Reason::WrongBase => "wrong_base",
        }
    }

    const fn errno(self) -> i32 {
        match self {
            Reason::NotFound | Reason::Missing => errno::ENODEV,
            Reason::ExistsSame | Reason::ExistsDifferent => errno::EEXIST,
            Reason::InUse | Reason::Busy | Reason::TooManyJobs => errno::EBUSY,
            Reason::Invalid | Reason::WrongBase => errno::EINVAL,
            Reason::Cancelled => errno::ECANCELED,
            Reason::Ended => errno::EALREADY,
            Reason::NoSpace => errno::ENOSPC,
            Reason::Unsupported => errno::EOPNOTSUPP,
            Reason::TimedOut => errno::ETIMEDOUT,
            Reason::StateSave | Reason::Os | Reason::Io | Reason::BadStream => errno::EIO,
        }
    }
}

impl NodeError {
    /// A refusal.
    #[must_use]
    pub fn new(reason: Reason, detail: impl std::fmt::Display) -> Self {
        NodeError { reason: reason.word(), errno: reason.errno(), detail: detail.to_string() }
    }

    /// No such bdev.
    #[must_use]
    pub fn no_bdev(name: &str) -> Self {
        Self::new(Reason::NotFound, format!("there is no bdev '{name}'"))
    }

    /// As the bdev methods answer: `-errno` and its text.
    #[must_use]
    pub fn by_errno(&self) -> RpcError {
        RpcError::errno(self.errno, self.reason).detail(&self.detail)
    }

    /// As the vhost methods answer: -32602 and the text of the errno.
    #[must_use]
    pub fn by_params(&self) -> RpcError {
        RpcError::params(self.errno, self.reason).detail(&self.detail)
    }
}

impl From<StateError> for NodeError {
    fn from(error: StateError) -> Self {
        NodeError::new(Reason::StateSave, format!("the change could not be saved and was undone: {error}"))
    }
}

impl From<BdevError> for NodeError {
    fn from(error: BdevError) -> Self {
        NodeError { reason: error.reason(), errno: error.errno(), detail: error.to_string() }
    }
}

impl From<TargetError> for NodeError {
    fn from(error: TargetError) -> Self {
        let reason = match &error {
            TargetError::NoController(_)
            | TargetError::NoLun { .. }
            | TargetError::NoQueue { .. }
            | TargetError::NoResident(_) => Reason::NotFound,
            TargetError::ControllerExists(_) | TargetError::LunExists { .. } => Reason::ExistsDifferent,
            TargetError::BadName(_)
            | TargetError::PathTooLong(_)
            | TargetError::NoReactor(_)
            | TargetError::NotItsReactor { .. }
            | TargetError::BadLun(_) => Reason::Invalid,
            TargetError::NoFreeTarget(_) | TargetError::NoFreePort(_) | TargetError::NoRoom(_) => Reason::NoSpace,
            TargetError::Connected(_) => Reason::InUse,
            TargetError::Draining | TargetError::Post(_) => Reason::TimedOut,
            TargetError::Open(_) => Reason::Missing,
            _ => Reason::Os,
        };
        NodeError::new(reason, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_dialects_of_one_refusal() {
        let error = NodeError::no_bdev("x");
        assert_eq!((error.by_errno().code, error.by_errno().message.as_str()), (-19, "No such device"));
        assert_eq!((error.by_params().code, error.by_params().reason), (-32602, "not_found"));
    }

    #[test]
    fn refusals_of_the_rooms_below_keep_their_meaning() {
        let same: NodeError = BdevError::Exists { name: "d".into(), same: true }.into();
        assert_eq!((same.reason, same.by_errno().message.as_str()), ("exists_same", "File exists"));
        let busy: NodeError = TargetError::Connected("vm1".into()).into();
        assert_eq!((busy.reason, busy.by_params().message.as_str()), ("in_use", "Device or resource busy"));
        assert!(busy.detail.contains("force"), "{}", busy.detail);
    }
}
