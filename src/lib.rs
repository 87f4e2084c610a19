//! The daemon and the command line of Pollux.
//!
//! [`cli`] reads the command line; [`daemon`] puts the rooms together; [`node`] is what can be changed while it runs;
//! [`rpc`] is how others ask for changes; [`state`] keeps them over a restart; [`sources`] shows numbers to Prometheus.

#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod logging;
pub mod node;
pub mod rpc;
pub mod sources;
pub mod state;
pub mod stream;
pub mod units;
