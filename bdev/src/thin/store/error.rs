//! Why a pool cannot be made, opened or used.

use pollux_core::{IoError, OpenError};

use crate::thin::format::GeometryError;

/// See [`StoreError::reason`] for the word that programs look at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No superblock of a pool is there.
    #[error("there is no pool on it: make one first, or name the bdev that it is on")]
    NotAPool,
    /// A pool is there where one is to be made.
    #[error("pool {name} is on it: delete it first, or ask for force, which loses all of its volumes")]
    PoolThere {
        /// Its name.
        name: String,
    },
    /// What is there cannot be believed.
    #[error("the pool is damaged: {0}; \"pollux pool check\" says more, \"pollux pool repair\" keeps what can be read")]
    Damaged(String),
    /// A later format.
    #[error("the pool has format {0}: use the newer Pollux that made it")]
    Version(u32),
    /// Features of a later version.
    #[error("the pool has features {0:#x} that this version does not know: use the newer Pollux that made it")]
    Features(u64),
    /// The base has lost bytes.
    #[error("the pool takes {pool} bytes, but the bdev has only {base}: give it back its size")]
    TooSmall {
        /// Bytes of the pool.
        pool: u64,
        /// Bytes of the base.
        base: u64,
    },
    /// There can be no such pool.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A parameter cannot be.
    #[error("{0}")]
    Invalid(&'static str),
    /// The base cannot be read or written.
    #[error("the bdev below failed when the pool's {what} was accessed: {error}")]
    Io {
        /// What for.
        what: &'static str,
        /// How.
        error: IoError,
    },
    /// The base gives no channel.
    #[error("the bdev below cannot be used: {0}")]
    Open(#[from] OpenError),
}

impl StoreError {
    /// A stable word for the error, for `data.reason` of an answer.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            StoreError::NotAPool => "not_a_pool",
            StoreError::PoolThere { .. } => "pool_there",
            StoreError::Damaged(_) => "damaged",
            StoreError::Version(_) => "version",
            StoreError::Features(_) => "features",
            StoreError::TooSmall { .. } => "too_small",
            StoreError::Geometry(_) | StoreError::Invalid(_) => "invalid",
            StoreError::Io { .. } => "io",
            StoreError::Open(_) => "missing",
        }
    }

    pub(super) fn damaged(what: impl Into<String>) -> Self {
        StoreError::Damaged(what.into())
    }
}

/// For `map_err`: the base failed at this.
pub(super) fn io(what: &'static str) -> impl Fn(IoError) -> StoreError {
    move |error| StoreError::Io { what, error }
}

/// Why a store has stopped writing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {error}")]
pub struct Failure {
    /// As guests and channels are told.
    pub error: IoError,
    /// What was being done, and where.
    pub what: String,
}

/// Why a leaf could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The base failed.
    #[error("a page of the map cannot be read: {0}")]
    Io(IoError),
    /// A page is not what its parent says, or holds what makes no sense.
    #[error("{0}")]
    Damaged(String),
}

impl LoadError {
    /// What a guest is told.
    #[must_use]
    pub const fn io_error(&self) -> IoError {
        match self {
            LoadError::Io(error) => *error,
            LoadError::Damaged(_) => IoError::Medium,
        }
    }
}
