//! Block devices, one file each, stackable, and the registry that knows them all.
//!
//! `null` and `ram` have no medium, `file` is a regular file or block device through the reactor's ring, `sg` a whole SCSI
//! device that takes commands instead of reads and writes; `passthru`
//! (read this one first), `split`, `delay` and `fault` stand on another device. All of them are
//! [`pollux_core::Bdev`]s on the data path and [`Device`]s for the control plane. [`Spec`] says how to make one, and is
//! what a state file stores; [`Registry`] makes, names, claims and deletes them.
//!
//! The data path is single-threaded per channel: what a channel owns, only its reactor touches. What reactors share is
//! said at each device: an atomic for a size or a flag, memory for `ram`, a short lock for `fault` (a test device).

#![deny(unsafe_code)]

mod delay;
mod device;
mod error;
pub mod fault;
mod file;
mod measured;
mod memory;
mod null;
mod passthru;
mod ram;
mod registry;
mod rng;
mod sg;
mod spec;
mod split;
mod stats;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod thin;

pub use delay::{Delay, LatencyKind};
pub use device::{Device, Supported};
pub use error::BdevError;
pub use fault::Fault;
pub use file::File;
pub use measured::Measured;
pub use null::Null;
pub use passthru::Passthru;
pub use ram::Ram;
pub use registry::{Claim, Entry, FrontEnd, FrontEndKind, Placing, Registry, State};
pub use sg::{Counters, Sg};
pub use spec::{
    DelaySpec, FaultSpec, FileSpec, Flavor, Kind, NullSpec, PassthruSpec, RamSpec, SgSpec, Spec, SplitSpec,
};
pub use split::Part;
pub use stats::{IoSnapshot, LatencySnapshot, OpSnapshot, ResetMode, StatsSet};

/// How many requests an opener has in flight on a channel if it has no reason for another number.
pub const DEFAULT_DEPTH: u32 = 128;

/// The most requests that any channel of this crate lets be in flight.
pub const MAX_DEPTH: u32 = 1024;
