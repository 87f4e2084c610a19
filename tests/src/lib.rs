//! What the tests of Pollux stand on: the simulated world, a guest's driver, a vhost-user front end in this process, and
//! a harness for the real daemon.
//!
//! - [`sim`]: clock, media and rings from one seed; the real devices and workers run in it.
//! - [`guest`]: guest memory and the driver's half of virtqueues and of virtio-scsi, well-behaved or not.
//! - [`frontend`]: [`guest`] connected to a vhost-user socket.
//! - [`daemon`]: starts, kills and restarts the real binary.
//! - [`model`]: what a disk may return after any mix of writes, crashes and flushes.
//! - [`vm`]: real guests under QEMU.
//! - [`scsi_suite`]: public suites for SCSI targets, counted honestly, and what is expected of them.
//! - [`sg_device`]: a SCSI generic device, asked directly.
//! - [`pool_image`]: large pools with nothing in them but what describes them.
//! - [`record`]: what a medium may hold if the power fails at any instant, from the record that a fault device made of it.
//! - [`records`]: numbered records that a guest writes without a flush, and what of them has to be there.
//! - [`scribe`]: a toy for what a reactor does for nobody's request.
//! - [`logwrites`], [`durability`]: what a medium held at each acknowledgement, and whether that was enough.

pub mod daemon;
pub mod durability;
pub mod frontend;
pub mod guest;
pub mod logwrites;
pub mod model;
pub mod pool_image;
pub mod record;
pub mod records;
pub mod rng;
pub mod scribe;
pub mod scsi_suite;
pub mod sg_device;
pub mod sim;
pub mod vm;
