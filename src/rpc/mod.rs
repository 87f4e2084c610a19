//! JSON-RPC 2.0 on a unix socket, in SPDK's dialect.
//!
//! Downwards: [`socket`] (a place in the file system), [`server`] (connections), [`framing`] (bytes to values),
//! [`message`] (values to requests), [`table`] (requests to methods), [`methods`] (what they do).

pub mod error;
pub mod framing;
pub mod message;
pub mod peer;
pub mod server;
pub mod socket;
