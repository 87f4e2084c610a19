//! JSON-RPC 2.0 on a unix socket, in SPDK's dialect.
//!
//! From the outside in: [`socket`] (a place in the file system), [`server`] (connections), [`framing`] (bytes to values),
//! [`message`] (values to requests), [`table`] (requests to methods), [`params`] (JSON to types), [`methods`] (what they
//! do), [`error`] (how they refuse).

pub mod error;
pub mod framing;
pub mod message;
pub mod methods;
pub mod params;
pub mod peer;
pub mod server;
pub mod socket;
pub mod table;
