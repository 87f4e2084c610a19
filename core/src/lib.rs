//! The words and traits of the data path.
//!
//! Everything else stands on this crate: `reactor` implements [`Ring`] and drives a [`Worker`]; `bdev` implements
//! [`Bdev`] and [`Channel`]; front ends submit [`Io`] to channels and get [`Completion`]s back. Nothing in here starts
//! a thread or makes a system call, and time comes in from outside ([`Ring::now_ns`]), so the same code runs on a pinned
//! core and in a simulator that owns the clock, the disk and the guest.
//!
//! Two verbs on every layer: `submit` goes down, never blocks and never completes inside the call; `poll` brings
//! completions up, each tag exactly once.

#![deny(unsafe_code)]

pub mod bdev;
pub mod copy;
pub mod helpers;
pub mod io;
pub mod resident;
pub mod ring;
pub mod scsi;
pub mod segment;
pub mod slab;
pub mod spin;
pub mod stats;
pub mod worker;

pub use bdev::{
    Alignment, AtomicWrite, Bdev, Channel, CountedChannel, Discard, Erasure, Extent, MOST_THRESHOLDS, Next, OpenArgs,
    OpenError, Provisioning, Shape, Threshold,
};
pub use copy::{CopyEnd, CopyError, CopyRange, CopySide, CopyWatch, CopyWay, PairCopy};
pub use helpers::{Chore, ChoreId, Helpers, Lane};
pub use io::{Completion, FIRST_MARK, Io, IoError, IoFlags, Op, Tag};
pub use resident::{Resident, Wake};
pub use ring::{ClientId, Done, Entry, FileSlot, Ring, RingError, RingOp, Token};
pub use scsi::{Delivery, Direction, SENSE_MAX, ScsiAnswer, ScsiChannel, ScsiCommand};
pub use segment::{Segment, SegmentList};
pub use slab::Slab;
pub use spin::{SPIN_MAX_NS, SpinBudget};
pub use stats::{Counter, Histogram, IoStats};
pub use worker::{Cx, Post, PostError, Worker};
