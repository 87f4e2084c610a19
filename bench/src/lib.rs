//! A load generator: the driver's half of a disk behind vhost-user, made to cost less per request than any target.
//!
//! [`run()`] connects to one or more controllers as a VMM would, lays out all requests once, and then only moves ring
//! indexes and LBAs on one polling thread. It knows nothing of Pollux: any vhost-user-scsi target is driven the same way.
//!
//! - `session` says what a VMM says; `memory` and `layout` are the guest's memory; `ring` is the virtqueue;
//! - `scsi` is the request format, `disk` what the unit says about itself;
//! - `queue` is the path of an I/O, `engine` the polling loop, `work` what is asked for;
//! - `stamp`, `ledger` and `verify` know what was written and compare it with what is read;
//! - `start`, `range` and `phases` are a run from its beginning to its end;
//! - `run`, `histogram`, `clock` and `report` count, time and tell.

#![deny(unsafe_code)]

mod bounded;
#[allow(unsafe_code)]
mod clock;
mod disk;
mod engine;
mod error;
#[allow(unsafe_code)]
mod event;
mod histogram;
mod layout;
mod ledger;
#[allow(unsafe_code)]
mod memory;
mod options;
mod phases;
mod queue;
mod range;
mod report;
mod ring;
mod rng;
mod run;
mod scsi;
mod session;
mod stamp;
mod start;
mod verify;
mod watch;
mod work;

pub use error::BenchError;
pub use options::{Core, HugePages, Kick, Mode, Options, Use};
pub use report::Report;
pub use start::run;
