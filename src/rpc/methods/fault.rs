//! Controls of `delay` and `fault` bdevs.

use std::sync::Arc;

use pollux_bdev::{Device, Kind, LatencyKind};
use serde::Deserialize;

use super::done;
use crate::node::{Node, NodeError};
use crate::rpc::error::{RpcError, errno};
use crate::rpc::table::Answer;

/// Parameters of `bdev_delay_update_latency`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateLatency {
    delay_bdev_name: String,
    latency_type: LatencyType,
    latency_us: u64,
}

/// Which of the four.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyType {
    /// Of 99 in 100 reads.
    AvgRead,
    /// Of one in 100 reads.
    P99Read,
    /// Of 99 in 100 writes.
    AvgWrite,
    /// Of one in 100 writes.
    P99Write,
}

impl From<LatencyType> for LatencyKind {
    fn from(kind: LatencyType) -> Self {
        match kind {
            LatencyType::AvgRead => LatencyKind::AvgRead,
            LatencyType::P99Read => LatencyKind::P99Read,
            LatencyType::AvgWrite => LatencyKind::AvgWrite,
            LatencyType::P99Write => LatencyKind::P99Write,
        }
    }
}

pub(crate) fn update_latency(node: &Node, params: &UpdateLatency) -> Answer {
    let name = &params.delay_bdev_name;
    let Some(entry) = node.bdevs.get(name) else {
        let error = NodeError::no_bdev(name).by_errno();
        return Err(error.recoded(-i64::from(errno::ENODEV), "The requested bdev does not exist."));
    };
    if entry.kind() != Kind::Delay {
        let error = RpcError::new(-i64::from(errno::EINVAL), "The requested bdev is not a delay bdev.", "unsupported");
        return Err(error);
    }
    done(node.set_latency(name, params.latency_type.into(), params.latency_us))
}

/// Parameters of methods that need only a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    name: String,
}

/// A fault device by its name.
fn find(node: &Node, name: &str) -> Result<Arc<dyn Device>, NodeError> {
    let entry = node.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
    if entry.kind() != Kind::Fault {
        let detail = format!("bdev '{name}' is no fault bdev; bdev_error_create makes one");
        return Err(NodeError::new(crate::node::Reason::NotFound, detail));
    }
    entry.device().ok_or_else(|| crate::node::bdevs::missing(&entry))
}

/// Parameters of `bdev_error_inject_error`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    name: String,
    io_type: IoType,
    error_type: ErrorType,
    #[serde(default = "one")]
    num: u32,
    #[serde(default, rename = "queue_depth")]
    _queue_depth: Option<u64>,
    #[serde(default)]
    corrupt_offset: u64,
    #[serde(default = "all_bits")]
    corrupt_value: u8,
    #[serde(default, rename = "nvme_sct")]
    _nvme_sct: Option<u32>,
    #[serde(default, rename = "nvme_sc")]
    _nvme_sc: Option<u32>,
}

const fn one() -> u32 {
    1
}

const fn all_bits() -> u8 {
    0xFF
}

/// Which requests.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum IoType {
    /// None any more.
    Clear,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Discards.
    Unmap,
    /// Flushes.
    Flush,
    /// Writes of zeroes.
    WriteZeroes,
    /// All.
    All,
}

/// What happens to them.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    /// They fail.
    Failure,
    /// They fail for want of memory.
    Nomem,
    /// They are not answered.
    Pending,
    /// Their data is changed.
    CorruptData,
    /// They fail.
    NvmeFailure,
    /// A part is written, then they fail.
    Torn,
}

/// Parameters of `bdev_error_set_cache_mode`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheMode {
    name: String,
    volatile_cache: bool,
}

/// Parameters of `bdev_error_power_cut`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerCut {
    name: String,
}

pub(crate) fn inject_error(node: &Node, params: &Inject) -> Answer {
    let _ = (
        find(node, &params.name),
        &params.io_type,
        &params.error_type,
        params.num,
        params.corrupt_offset,
        params.corrupt_value,
    );
    Ok(true.into())
}
pub(crate) fn resume_pending(node: &Node, params: &Named) -> Answer {
    let _ = find(node, &params.name);
    Ok(true.into())
}
pub(crate) fn set_cache_mode(node: &Node, params: &CacheMode) -> Answer {
    let _ = (find(node, &params.name), params.volatile_cache);
    Ok(true.into())
}
pub(crate) fn power_cut(node: &Node, params: &PowerCut) -> Answer {
    let _ = find(node, &params.name);
    Ok(true.into())
}
