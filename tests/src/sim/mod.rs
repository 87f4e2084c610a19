//! The simulated world: clock, media, rings and reactors in one thread, all from one seed.
//!
//! The real controller and the real devices run in it unchanged: they see [`pollux_core::Ring`] and nothing else of the
//! outside. Guest memory and eventfds are real ones (they are deterministic as long as one thread uses them); the disk
//! and the time are not.

mod appliance;
mod asked;
mod bdev;
mod disk;
mod fault;
mod filled;
mod guest;
mod helpers;
mod kernel;
mod load;
mod machine;
mod ring;
mod scsi;
mod shelf;
mod world;

pub use appliance::{PATIENT, SimAppliance, VERY_PATIENT, backing, naa_of, unit_of, unit_with_medium};
pub use asked::{Asked, Name};
pub use bdev::SimBdev;
pub use disk::{Mark, SECTOR, SimDisk};
pub use fault::{Effect, Fault, Kind};
pub use filled::{filled, value_of};
pub use guest::{LUN, SimGuest};
pub use helpers::SimHelpers;
pub use load::{BdevLoad, Mix};
pub use machine::{Call, SimMachine, SimPost};
pub use ring::SimRing;
pub use scsi::SimSg;
pub use shelf::Shelf;
pub use world::{DiskId, SimWorld, Switches, Transfer};
