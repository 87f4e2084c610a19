//! Thin pools: volumes, snapshots and clones.

pub mod format;
