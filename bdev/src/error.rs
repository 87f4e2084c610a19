//! Why the control plane could not do something with a device.

use rustix::io::Errno;

/// An error of the registry or of a device's control side. [`BdevError::reason`] is stable and meant for programs, the
/// message is meant for people and says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BdevError {
    /// No device has this name, alias or UUID (or it is of another kind than asked for).
    #[error("no such device: {name}")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// The name, alias or UUID is taken.
    #[error("{name} exists already{}", if *.same { ", made with the same parameters" } else { ", and is another device" })]
    Exists {
        /// What is taken.
        name: String,
        /// Whether what exists was made with the same parameters: a repeated create.
        same: bool,
    },
    /// Something else uses the device.
    #[error("{name} is in use by {by}")]
    InUse {
        /// The device.
        name: String,
        /// Who uses it.
        by: String,
    },
    /// A parameter is no good.
    #[error("{field}: {why}")]
    Invalid {
        /// The parameter.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Another process, or another device of this one, has the file open for writing.
    #[error("{path} is locked: another daemon, or another device of this one, has it open; close it there first")]
    Locked {
        /// The file.
        path: String,
    },
    /// The operating system refused.
    #[error("{op} {path}: {}", errno_text(*.errno))]
    Os {
        /// What was tried.
        op: &'static str,
        /// On which file, if on one.
        path: String,
        /// The error number.
        errno: i32,
    },
    /// The device, or one below it, is listed but not there now.
    #[error("{name} is missing: {why}")]
    Missing {
        /// The device.
        name: String,
        /// What happened when it was opened last.
        why: String,
    },
    /// The device does not do that.
    #[error("{name} cannot do that: {what}")]
    Unsupported {
        /// The device.
        name: String,
        /// What it cannot do.
        what: &'static str,
    },
}

impl BdevError {
    /// A stable word for the error, for `data.reason` of an answer.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            BdevError::NotFound { .. } => "not_found",
            BdevError::Exists { same: true, .. } => "exists_same",
            BdevError::Exists { same: false, .. } => "exists_different",
            BdevError::InUse { .. } => "in_use",
            BdevError::Invalid { .. } => "invalid",
            BdevError::Locked { .. } => "locked",
            BdevError::Os { errno: libc::ENOENT, .. } => "no_such_file",
            BdevError::Os { errno: libc::ENOMEM, .. } => "no_memory",
            BdevError::Os { .. } => "os_error",
            BdevError::Missing { .. } => "missing",
            BdevError::Unsupported { .. } => "unsupported",
        }
    }

    /// The `errno` that says the same, for answers in SPDK's dialect.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            BdevError::NotFound { .. } | BdevError::Missing { .. } => libc::ENODEV,
            BdevError::Exists { .. } => libc::EEXIST,
            BdevError::InUse { .. } | BdevError::Locked { .. } => libc::EBUSY,
            BdevError::Invalid { .. } => libc::EINVAL,
            BdevError::Os { errno, .. } => *errno,
            BdevError::Unsupported { .. } => libc::EOPNOTSUPP,
        }
    }

    pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        BdevError::Invalid { field, why: why.into() }
    }

    pub(crate) fn os(op: &'static str, path: &str, errno: Errno) -> Self {
        BdevError::Os { op, path: path.to_owned(), errno: errno.raw_os_error() }
    }

    pub(crate) fn not_found(name: &str) -> Self {
        BdevError::NotFound { name: name.to_owned() }
    }
}

fn errno_text(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_reasons_say_what_happened() {
        let exists = |same| BdevError::Exists { name: "d".into(), same };
        assert_eq!((exists(true).reason(), exists(false).reason()), ("exists_same", "exists_different"));
        assert_eq!(exists(true).to_string(), "d exists already, made with the same parameters");
        let os = BdevError::os("open", "/x", Errno::NOENT);
        assert_eq!(os.to_string(), "open /x: No such file or directory (os error 2)");
        assert_eq!((os.reason(), os.errno()), ("no_such_file", libc::ENOENT));
    }
}
