//! What the methods do, by family. Each takes its typed parameters, asks the [`Node`](crate::node::Node) and shapes the
//! answer as SPDK does; members that SPDK does not have are only ever added.

pub mod bdev;
pub mod create;
pub mod fault;
pub mod framework;
pub mod identity;
pub mod job;
pub mod log;
pub mod lvol;
pub mod lvstore;
pub mod map;
pub mod options;
pub mod reservations;
pub mod shallow;
pub mod transfer;
pub mod vhost;

use serde_json::Value;

use crate::node::NodeError;
use crate::rpc::table::Answer;

/// The answer of a bdev method that has nothing to tell.
fn done(outcome: Result<(), NodeError>) -> Answer {
    outcome.map(|()| Value::Bool(true)).map_err(|error| error.by_errno())
}
