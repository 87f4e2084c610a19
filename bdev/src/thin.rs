//! Thin pools: volumes, snapshots and clones.

mod channel;
pub mod format;
mod shared;
