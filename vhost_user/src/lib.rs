//! vhost-user: sessions on unix sockets, guest memory, split virtqueues. Knows nothing of what the queues carry.
//!
//! [`Server`] owns the sockets and runs one thread per connection. A session negotiates, maps the guest's memory and
//! hands each [`Queue`] that is ready to the [`Backend`] which the socket's [`BackendFactory`] made for it; the backend
//! drives the queue wherever it likes (on a reactor) until it is asked to stop it. See `docs/vhost-user.md`.
//!
//! The guest is hostile, and so is its VMM. What they can reach is checked here once: descriptors of files are of the
//! right kind, rings lie inside mapped memory, every [`Segment`](pollux_core::Segment) that comes out of
//! [`Queue::pop`] is mapped. What is wrong costs that session and nothing else.

#![deny(unsafe_code)]

mod backend;
mod chain;
mod descriptors;
mod features;
mod mapping;
mod memory;
mod peer;
mod queue;
mod rings;
mod segments;
mod server;
mod session;
mod sigbus;
mod socket;
mod throttle;
mod vring;
mod wire;

pub use backend::{Backend, BackendError, BackendFactory, QueueEvents, SessionHandle};
pub use chain::{Chain, ChainFault};
pub use memory::{Memory, MemoryError, MemoryFault, RegionInfo};
pub use queue::{Queue, QueueError, QueueSetup, RingFault, SetupFault};
pub use segments::SegmentBuf;
pub use server::{ListenerId, Server, SocketOptions};
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
