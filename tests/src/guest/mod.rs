//! A guest, as far as a storage device sees it: memory, the driver's half of split virtqueues, and virtio-scsi requests
//! in every framing that the specification allows.
//!
//! Nothing here depends on a transport: [`crate::frontend`] connects a [`Driver`] to a socket, the simulator hands its
//! queues to the device directly. Attack tests use the lower layers ([`GuestMemory`], [`DriverRing`]) and write what
//! they like.

mod arena;
pub mod copy;
mod driver;
mod load;
mod memory;
mod ring;
mod scsi;

pub use arena::Arena;
pub use driver::{Command, CompletionError, Driver, DriverOptions, Queue, SCRIBBLE, Ticket};
pub use load::{NotGood, ScsiLoad, ScsiMix, SharedModel};
pub use memory::{GuestMemory, Region};
pub use ring::{Buffer, DriverRing, Indirect, RingError, desc};
pub use scsi::{Framing, Lun, REQUEST_LEN, RESPONSE_LEN, Response, Tmf, cdb, request_header};

/// Number of the control queue.
pub const CONTROL_QUEUE: usize = 0;
/// Number of the event queue.
pub const EVENT_QUEUE: usize = 1;
/// Number of the first request queue.
pub const FIRST_REQUEST_QUEUE: usize = 2;
