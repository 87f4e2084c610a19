//! The loop: one pinned thread per core, one io_uring per thread, mailboxes between them, and one place to wait.
//!
//! A *turn* of a reactor: messages from the control plane and from other reactors, [`Worker::poll`], messages for other
//! reactors, one `io_uring_enter` if there is something to enter for. When turns stop being useful and
//! [`PollMode::Adaptive`] allows it, the reactor sleeps in its ring; whoever puts something into one of its mailboxes
//! wakes it by an eventfd that the ring polls (the argument that no wake-up is lost is in `mailbox.rs`).
//!
//! Road map, in the order of a reactor's life: [`parse_cores`] (`cores.rs`), [`start()`] (`start.rs`), `turn.rs` (the
//! loop), [`UringRing`] (`ring.rs`; its table of clients is `clients.rs`, an entry's way into the kernel's format
//! `sqe.rs`, and the optional second ring for reads and writes of files `data.rs`, and everything unsafe but reading
//! the processor's counter (`clock.rs`) and choosing where memory comes from (`numa.rs`) in `kernel.rs`),
//! [`ReactorStats`] (`stats.rs`). Beside them: [`HelperPool`] (`helpers.rs`), threads for what may block,
//! and [`WaitingRing`] (`waiting.rs`), for a thread that does one thing and waits.
//!
//! [`Worker`]: pollux_core::Worker
//! [`Worker::poll`]: pollux_core::Worker::poll

#![deny(unsafe_code)]

mod clients;
mod clock;
mod cores;
mod data;
mod helpers;
mod kernel;
mod mailbox;
mod numa;
mod ring;
mod sqe;
mod start;
mod stats;
mod turn;
mod waiting;

pub use cores::{CoresError, allowed as allowed_cores, describe as describe_cores, keep_off, parse_cores};
pub use data::DataMode;
pub use helpers::HelperPool;
pub use kernel::{RingFeatures, SetupError};
pub use numa::{keep_memory_near, node_of};
pub use ring::{RingConfig, UringRing};
pub use start::{Config, PollMode, Reactors, StartError, start};
pub use stats::ReactorStats;
pub use waiting::WaitingRing;
