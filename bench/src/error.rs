//! Why a run did not give a result.

/// An error, in words that say what to do.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The options cannot work.
    #[error("{0}")]
    Usage(String),
    /// This machine, or the target, is not as it has to be.
    #[error("{0}")]
    Setup(String),
    /// The target failed while the load ran.
    #[error("{0}")]
    Target(String),
}
