//! Controls of `delay` and `fault` bdevs.

use pollux_bdev::fault::rules::{Effect, Rule};
use pollux_bdev::{Fault, Kind, LatencyKind};
use pollux_core::{IoError, Op};
use serde::Deserialize;
use serde_json::json;

use super::done;
use crate::node::bdevs::missing;
use crate::node::{Node, NodeError, Reason};
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

/// Runs `act` on a fault device.
fn with_fault<T>(node: &Node, name: &str, act: impl FnOnce(&Fault) -> Result<T, NodeError>) -> Result<T, NodeError> {
    let entry = node.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
    let device = entry.device().ok_or_else(|| missing(&entry))?;
    let Some(fault) = device.as_fault() else {
        let detail = format!("bdev '{name}' is no fault bdev; bdev_error_create makes one");
        return Err(NodeError::new(Reason::NotFound, detail));
    };
    act(fault)
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
    #[serde(default)]
    queue_depth: u64,
    #[serde(default)]
    corrupt_offset: u64,
    #[serde(default = "all_bits")]
    corrupt_value: u8,
    #[serde(default)]
    delay_us: u64,
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

impl IoType {
    /// The operation; none: all of them.
    const fn op(self) -> Option<Op> {
        match self {
            IoType::Read => Some(Op::Read),
            IoType::Write => Some(Op::Write),
            IoType::Unmap => Some(Op::Discard),
            IoType::Flush => Some(Op::Flush),
            IoType::WriteZeroes => Some(Op::WriteZeroes),
            IoType::Clear | IoType::All => None,
        }
    }
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
    /// They are answered late.
    Delay,
}

impl Inject {
    fn effect(&self) -> Effect {
        match self.error_type {
            ErrorType::Failure | ErrorType::NvmeFailure => Effect::Fail(IoError::Medium),
            ErrorType::Nomem => Effect::Fail(IoError::Busy),
            ErrorType::Pending => Effect::Stuck,
            ErrorType::CorruptData => Effect::Corrupt { offset: self.corrupt_offset, value: self.corrupt_value },
            ErrorType::Torn => Effect::Torn,
            ErrorType::Delay => Effect::Delay(self.delay_us.saturating_mul(1000)),
        }
    }
}

pub(crate) fn inject_error(node: &Node, params: &Inject) -> Answer {
    done(with_fault(node, &params.name, |fault| {
        if params.io_type == IoType::Clear {
            fault.clear();
            return Ok(());
        }
        let rule = Rule { effect: params.effect(), count: params.num, queue_depth: params.queue_depth };
        Ok(fault.inject(params.io_type.op(), rule)?)
    }))
}

pub(crate) fn resume_pending(node: &Node, params: &Named) -> Answer {
    done(with_fault(node, &params.name, |fault| {
        fault.resume();
        Ok(())
    }))
}

/// Parameters of `bdev_error_power_cut`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerCut {
    name: String,
    #[serde(default)]
    seed: Option<u64>,
}

pub(crate) fn power_cut(node: &Node, params: &PowerCut) -> Answer {
    let cut = with_fault(node, &params.name, |fault| {
        let cut = match params.seed {
            Some(seed) => fault.power_cut(seed),
            None => fault.drop_cache(),
        };
        cut.ok_or_else(|| {
            let detail = format!("bdev '{}' has no volatile cache; create it with volatile_cache", params.name);
            NodeError::new(Reason::Unsupported, detail)
        })
    });
    let cut = cut.map_err(|error| error.by_errno())?;
    Ok(json!({"kept": cut.kept, "torn": cut.torn, "lost": cut.lost}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::params::{Habit, decode};

    #[test]
    fn injections_become_rules() {
        let inject = |params| decode::<Inject>(params, Habit::Decode).expect("good");
        let plain = inject(json!({"name": "e", "io_type": "all", "error_type": "corrupt_data", "corrupt_offset": 3}));
        assert_eq!((plain.num, plain.io_type.op()), (1, None));
        assert_eq!(plain.effect(), Effect::Corrupt { offset: 3, value: 0xFF });
        let late = inject(json!({"name": "e", "io_type": "unmap", "error_type": "delay", "delay_us": 5, "num": 9}));
        assert_eq!((late.effect(), late.io_type.op()), (Effect::Delay(5000), Some(Op::Discard)));
        let bad = json!({"name": "e", "io_type": "reset", "error_type": "failure"});
        assert!(decode::<Inject>(bad, Habit::Decode).is_err());
    }
}
