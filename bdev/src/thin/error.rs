//! Why the control plane could not do something with a pool.

use pollux_core::IoError;

use super::store::StoreError;

/// See [`PoolError::reason`] for the word that programs look at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// There is no such volume or snapshot.
    #[error("the pool has no volume or snapshot {0}")]
    NotFound(String),
    /// The name, or the UUID, is another one's.
    #[error("the pool has {0} already")]
    Exists(String),
    /// A parameter is no good.
    #[error("{field}: {why}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A smaller size was asked for, and nobody said that it may cut data off.
    #[error("{name} has {has} bytes: to make it smaller, which loses what lies behind, say allow_shrink")]
    Shrinks {
        /// Which volume.
        name: String,
        /// How large it is.
        has: u64,
    },
    /// There is not as much space.
    #[error("the pool has no space for that: {0}")]
    NoSpace(String),
    /// What is asked for cannot be done with such a one.
    #[error("{name} {what}")]
    Unfit {
        /// Which volume or snapshot.
        name: String,
        /// Why not.
        what: &'static str,
    },
    /// Something else is done with it that has to end first.
    #[error("{name} {what}: wait until that has ended, or cancel it")]
    Busy {
        /// Which volume.
        name: String,
        /// What is done.
        what: &'static str,
    },
    /// It stands on nothing.
    #[error("{name} has no parent")]
    NoParent {
        /// Which volume.
        name: String,
    },
    /// It stands on that already.
    #[error("that is the parent of {name} already")]
    IsParent {
        /// Which volume.
        name: String,
    },
    /// What it stands on outside of the pool is not there.
    #[error("{name} stands on a bdev that is not there ({origin}): bring it back first")]
    NoOrigin {
        /// Which volume.
        name: String,
        /// The bdev.
        origin: uuid::Uuid,
    },
    /// Something long was not done to its end because somebody wanted that.
    #[error("it was cancelled: what has been done so far stays")]
    Cancelled,
    /// Data could not be copied.
    #[error(
        "the base, or what the volume stands on, failed while data was copied ({0}): what has been copied so far stays"
    )]
    Copy(IoError),
    /// The pool has failed.
    #[error("the pool is read-only because its base failed ({0}): look at the base, then close and open the pool")]
    Failed(IoError),
    /// The pool is being closed.
    #[error("the pool is being closed")]
    Closed,
    /// The pool, or what it lies on, takes too long.
    #[error("the pool has not answered within {seconds} s, because what it lies on does not: {}", afterwards(*begun))]
    TimedOut {
        /// How long was waited.
        seconds: u64,
        /// Whether it may still come to be.
        begun: bool,
    },
    /// The pool's base.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PoolError {
    /// A stable word for the error, for `data.reason` of an answer.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            PoolError::NotFound(_) => "not_found",
            PoolError::Exists(_) => "exists",
            PoolError::Invalid { .. } => "invalid",
            PoolError::Shrinks { .. } => "would_shrink",
            PoolError::NoSpace(_) => "no_space",
            PoolError::Unfit { .. } => "unfit",
            PoolError::Busy { .. } => "busy",
            PoolError::NoParent { .. } => "no_parent",
            PoolError::IsParent { .. } => "exists_same",
            PoolError::NoOrigin { .. } => "missing",
            PoolError::Cancelled => "cancelled",
            PoolError::Copy(_) => "io",
            PoolError::Failed(_) => "pool_failed",
            PoolError::Closed => "closed",
            PoolError::TimedOut { .. } => "timed_out",
            PoolError::Store(error) => error.reason(),
        }
    }

    /// The `errno` that says the same, for answers in SPDK's dialect.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            PoolError::NotFound(_) | PoolError::Closed | PoolError::NoOrigin { .. } => libc::ENODEV,
            PoolError::Exists(_) => libc::EEXIST,
            PoolError::Invalid { .. } | PoolError::Shrinks { .. } | PoolError::NoParent { .. } => libc::EINVAL,
            PoolError::IsParent { .. } => libc::EEXIST,
            PoolError::Busy { .. } => libc::EBUSY,
            PoolError::Cancelled => libc::ECANCELED,
            PoolError::Copy(_) => libc::EIO,
            PoolError::NoSpace(_) => libc::ENOSPC,
            PoolError::Unfit { .. } => libc::EPERM,
            PoolError::Failed(_) => libc::EROFS,
            PoolError::TimedOut { .. } => libc::ETIMEDOUT,
            PoolError::Store(_) => libc::EIO,
        }
    }

    pub(crate) fn busy(name: &str, what: &'static str) -> Self {
        PoolError::Busy { name: name.to_owned(), what }
    }

    pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        PoolError::Invalid { field, why: why.into() }
    }
}

/// What becomes of an order that was given up.
const fn afterwards(begun: bool) -> &'static str {
    if begun {
        "what was asked for has been begun, and comes to be when the base answers; look at the base, and at the pool's volumes \
         before asking again"
    } else {
        "what was asked for was not begun and will not be; look at the base, then ask again"
    }
}
