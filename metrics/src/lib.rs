//! Metrics for Prometheus: what is counted elsewhere, read when it is scraped.
//!
//! Counters live where they are counted, with one writer each (`pollux_core::stats`). A [`Source`] knows some of them and
//! puts them into a [`Sink`] at each scrape; the [`Exporter`] holds all sources behind a `prometheus` registry, renders
//! the text format and serves it over HTTP on one housekeeping thread. A scrape reads memory and sends no message to a
//! reactor. What no source gives is not in the output: series of deleted objects are gone with them.

#![forbid(unsafe_code)]

mod exporter;
mod histogram;
mod http;
mod sink;

pub use exporter::Exporter;
pub use histogram::HistogramSnapshot;
pub use http::Server;
pub use sink::{Sink, Source};
