//! For tests: a simulated medium with a volatile cache ([`medium`]), a floor of reactors that drives channels and engines
//! on it ([`floor`]), and an oracle for volumes and their snapshots ([`expect`]). Runs of all three with a pool between them are
//! `thin::tests`.
//!
//! Built for the crate's own tests and with the feature `testing`, never into the daemon. The rest (a ring that does
//! everything on the spot, a rig for one channel on it, a model that devices are compared with) is for unit tests only.

pub mod expect;
pub mod floor;
mod heap;
pub mod medium;
#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod rig;
pub mod stamp;

#[cfg(test)]
pub(crate) use rig::{Fate, FileRing, Rig, pattern, ram};
