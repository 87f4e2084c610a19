//! `bdev_get_*`, `bdev_*_delete`, rescans and resizes.

use std::time::{Duration, Instant};

use pollux_bdev::{Entry, IoSnapshot, Kind, OpSnapshot, ResetMode, State};
use pollux_core::{IoError, Op};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{done, framework::TICK_RATE};
use crate::node::document::Document;
use crate::node::{Node, NodeError};
use crate::rpc::error::{RpcError, errno};
use crate::rpc::table::Answer;

/// The longest that `bdev_get_bdevs` waits for a bdev.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Parameters of `bdev_get_bdevs`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetBdevs {
    #[serde(default)]
    name: Option<String>,
    /// Milliseconds.
    #[serde(default)]
    timeout: u64,
}

pub(crate) fn get_bdevs(node: &Node, params: &GetBdevs) -> Answer {
    let document = node.document();
    let Some(name) = &params.name else {
        return Ok(node.bdevs.list().iter().map(|entry| shape(node, entry, &document)).collect());
    };
    let began = Instant::now();
    let patience = Duration::from_millis(params.timeout).min(WAIT_MAX);
    loop {
        if let Some(entry) = node.bdevs.get(name) {
            return Ok(json!([shape(node, &entry, &node.document())]));
        }
        if began.elapsed() >= patience {
            return Err(NodeError::no_bdev(name).by_errno());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A bdev as SPDK lists it, then what Pollux adds.
fn shape(node: &Node, entry: &Entry, document: &Document) -> Value {
    let device = entry.device();
    let shape = device.as_ref().map(|device| device.shape());
    let claimed_by = entry.claimed_by();
    let discard = shape.and_then(|shape| shape.discard).map_or(0, |discard| discard.granularity);
    let block_size = shape.map_or(0, |shape| shape.block_size);
    let in_blocks = |bytes: u32| bytes.checked_div(block_size).unwrap_or(0);
    let mut listed = json!({
        "name": entry.name(),
        "aliases": entry.aliases(),
        "product_name": entry.product_name(),
        "block_size": block_size,
        "num_blocks": shape.map_or(0, |shape| shape.num_blocks),
        "preferred_write_alignment": 0,
        "preferred_write_granularity": 0,
        "optimal_write_size": shape.map_or(0, |shape| in_blocks(shape.optimal_io)),
        "preferred_unmap_alignment": 0,
        "preferred_unmap_granularity": in_blocks(discard),
        "uuid": entry.uuid(),
        "assigned_rate_limits": {
            "rw_ios_per_sec": 0, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 0,
        },
        "claimed": claimed_by.is_some(),
    });
    if let Some(claim) = entry.claim() {
        let shared = claim.kind == Kind::Clone;
        listed["claim_type"] = if shared { "read_many_write_none" } else { "exclusive_write" }.into();
    }
    listed["zoned"] = false.into();
    let served = device.as_ref().map(|device| device.supported());
    listed["supported_io_types"] = supported(served, entry.kind() != Kind::Sg);
    listed["driver_specific"] = match &device {
        _ if entry.kind() == Kind::Lvol => node.volume_specific(entry),
        Some(device) => device.driver_specific(),
        None => json!({}),
    };
    let (state, why) = match entry.state() {
        State::Online => ("online", Value::Null),
        State::Missing(why) => ("missing", why.to_string().into()),
    };
    listed["state"] = state.into();
    if !why.is_null() {
        listed["missing_reason"] = why;
    }
    if let Some(shape) = shape {
        listed["physical_block_size"] = shape.physical_block_size.into();
        listed["read_only"] = shape.read_only.into();
        listed["volatile_cache"] = shape.volatile_cache.into();
    }
    listed["claimed_by"] = claimed_by.into();
    let attached: Vec<Value> = document
        .attachments(entry.name())
        .map(|(ctrlr, lun)| {
            json!({"ctrlr": ctrlr, "scsi_target_num": lun.target, "lun": lun.lun, "exclusive": lun.exclusive})
        })
        .collect();
    listed["attached_to"] = attached.into();
    if let Some(record) = document.identities.get(entry.name()) {
        listed["scsi_identity"] = json!(record);
    }
    let mut warnings = node.unit_warnings(entry);
    warnings.extend(device.map_or_else(Vec::new, |device| device.warnings()));
    listed["warnings"] = warnings.into();
    listed
}

/// `blocks`: whether it has blocks to read; a whole SCSI device has not.
fn supported(of: Option<pollux_bdev::Supported>, blocks: bool) -> Value {
    let here = of.is_some();
    let has = |does: fn(&pollux_bdev::Supported) -> bool| of.as_ref().is_some_and(does);
    json!({
        "read": here && blocks,
        "write": has(|of| of.write),
        "unmap": has(|of| of.unmap),
        "flush": here && blocks,
        "reset": here,
        "nvme_admin": false,
        "nvme_io": false,
        "nvme_io_md": false,
        "write_zeroes": has(|of| of.write_zeroes),
        "zcopy": false,
        "get_zone_info": false,
        "zone_management": false,
        "zone_append": false,
        "compare": false,
        "compare_and_write": false,
        "abort": here,
        "seek_hole": false,
        "seek_data": false,
        "copy": false,
        "nvme_iov_md": false,
        "nvme_nssr": false,
        "write_uncorrectable": false,
    })
}

/// Parameters of `bdev_get_iostat`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetIostat {
    #[serde(default)]
    names: Option<Vec<String>>,
    /// What older clients send.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    per_channel: bool,
    #[serde(default)]
    reset_mode: Option<Mode>,
}

/// What is forgotten.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything.
    All,
    /// The least and greatest latencies.
    Maxmin,
    /// Errors.
    Error,
    /// Nothing.
    None,
}

impl From<Mode> for ResetMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::All => ResetMode::All,
            Mode::Maxmin => ResetMode::MaxMin,
            Mode::Error => ResetMode::Error,
            Mode::None => ResetMode::None,
        }
    }
}

pub(crate) fn get_iostat(node: &Node, params: &GetIostat) -> Answer {
    let named: Vec<&String> = params.names.iter().flatten().chain(&params.name).collect();
    let find = |name: &&String| node.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name).by_errno());
    let entries =
        if named.is_empty() { node.bdevs.list() } else { named.iter().map(find).collect::<Result<_, _>>()? };
    let reset = ResetMode::from(params.reset_mode.unwrap_or(Mode::None));
    let answer = if params.per_channel {
        let ([entry], [_]) = (entries.as_slice(), named.as_slice()) else {
            let error = RpcError::errno(errno::EINVAL, "invalid_parameters");
            return Err(error.detail("per_channel needs exactly one name"));
        };
        channels(entry)
    } else {
        let bdevs: Vec<Value> =
            entries.iter().map(|entry| counters(entry.name(), &entry.stats().since_reset())).collect();
        json!({"tick_rate": TICK_RATE, "ticks": ticks(), "bdevs": bdevs})
    };
    for entry in &entries {
        entry.stats().reset(reset);
    }
    Ok(answer)
}

fn channels(entry: &Entry) -> Value {
    let of = |(number, sums): (usize, IoSnapshot)| {
        let mut members = Map::new();
        members.insert("thread_id".into(), (number + 1).into());
        add_counters(&mut members, &sums);
        Value::Object(members)
    };
    let channels: Vec<Value> = entry.stats().per_opener().into_iter().enumerate().map(of).collect();
    json!({"tick_rate": TICK_RATE, "ticks": ticks(), "name": entry.name(), "channels": channels})
}

fn counters(name: &str, sums: &IoSnapshot) -> Value {
    let mut members = Map::new();
    members.insert("name".into(), name.into());
    add_counters(&mut members, sums);
    Value::Object(members)
}

/// SPDK's counters in its order, then those it does not have.
fn add_counters(members: &mut Map<String, Value>, sums: &IoSnapshot) {
    let mut put = |name: &str, value: Value| {
        members.insert(name.to_owned(), value);
    };
    let none = OpSnapshot::default();
    let kinds: [(&str, &str, &OpSnapshot); 4] = [
        ("read", "read", sums.op(Op::Read)),
        ("written", "write", sums.op(Op::Write)),
        ("unmapped", "unmap", sums.op(Op::Discard)),
        ("copied", "copy", &none),
    ];
    for (bytes, ops, of) in kinds {
        put(&format!("bytes_{bytes}"), of.bytes.into());
        put(&format!("num_{ops}_ops"), of.ops.into());
    }
    for (_, name, of) in kinds {
        put(&format!("{name}_latency_ticks"), of.latency.sum_ns.into());
        put(&format!("max_{name}_latency_ticks"), of.latency.max_ns.into());
        put(&format!("min_{name}_latency_ticks"), of.latency.min_ns.into());
    }
    put("io_error", errors(sums));
    put("num_flush_ops", sums.op(Op::Flush).ops.into());
    put("num_write_zeroes_ops", sums.op(Op::WriteZeroes).ops.into());
    put("bytes_write_zeroes", sums.op(Op::WriteZeroes).bytes.into());
    put("inflight", sums.inflight.into());
}

/// Errors under SPDK's names, only those that have happened.
fn errors(sums: &IoSnapshot) -> Value {
    let named = |error: IoError| match error {
        IoError::Aborted => "aborted",
        IoError::Busy => "nomem",
        _ => "failed",
    };
    let mut counts = Map::new();
    for error in IoError::ALL {
        let count = sums.errors(error);
        if count > 0 {
            let so_far = counts.get(named(error)).and_then(Value::as_u64).unwrap_or(0);
            counts.insert(named(error).into(), (so_far + count).into());
        }
    }
    Value::Object(counts)
}

fn ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * TICK_RATE + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Parameters of `bdev_reset_iostat`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetIostat {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    mode: Option<Mode>,
}

pub(crate) fn reset_iostat(node: &Node, params: &ResetIostat) -> Answer {
    let mode = ResetMode::from(params.mode.unwrap_or(Mode::All));
    let entries = match &params.name {
        None => node.bdevs.list(),
        Some(name) => vec![node.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name).by_errno())?],
    };
    for entry in entries {
        entry.stats().reset(mode);
    }
    Ok(true.into())
}

/// Parameters of `bdev_examine`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Examine {
    name: String,
}

/// Looks for a pool, also where it is not looked for without being asked. Like SPDK's, says nothing of what is there.
pub(crate) fn examine(node: &Node, params: &Examine) -> Answer {
    let entry = node.bdevs.get(&params.name).ok_or_else(|| NodeError::no_bdev(&params.name).by_errno())?;
    done(node.examine_now(&entry))
}

/// Parameters of the delete methods.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    name: String,
    #[serde(default)]
    force: bool,
}

pub(crate) fn delete(node: &Node, params: &Delete) -> Answer {
    done(node.delete_bdev(&params.name, None, params.force))
}

pub(crate) fn delete_malloc(node: &Node, params: &Delete) -> Answer {
    done(node.delete_bdev(&params.name, Some(Kind::Malloc), params.force))
}

pub(crate) fn delete_null(node: &Node, params: &Delete) -> Answer {
    done(node.delete_bdev(&params.name, Some(Kind::Null), params.force))
}

pub(crate) fn delete_file(node: &Node, params: &Delete) -> Answer {
    done(node.delete_bdev(&params.name, Some(Kind::File), params.force))
}

pub(crate) fn delete_passthru(node: &Node, params: &Delete) -> Answer {
    done(node.delete_bdev(&params.name, Some(Kind::Passthru), params.force))
}

pub(crate) fn delete_delay(node: &Node, params: &Delete) -> Answer {
    done(node.delete_bdev(&params.name, Some(Kind::Delay), params.force))
}

pub(crate) fn delete_error(node: &Node, params: &Delete) -> Answer {
    done(node.delete_bdev(&params.name, Some(Kind::Fault), params.force))
}

pub(crate) fn delete_sg(node: &Node, params: &Delete) -> Answer {
    done(node.delete_bdev(&params.name, Some(Kind::Sg), params.force))
}

/// Parameters of `bdev_split_delete`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteSplit {
    base_bdev: String,
    #[serde(default)]
    force: bool,
}

pub(crate) fn delete_split(node: &Node, params: &DeleteSplit) -> Answer {
    done(node.delete_bdev(&params.base_bdev, Some(Kind::Split), params.force))
}

/// Parameters of the rescan methods.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rescan {
    name: String,
}

pub(crate) fn rescan(node: &Node, params: &Rescan) -> Answer {
    done(node.rescan_bdev(&params.name))
}

/// Parameters of `bdev_null_resize`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    name: String,
    /// MiB.
    new_size: u64,
}

pub(crate) fn null_resize(node: &Node, params: &Resize) -> Answer {
    let bytes = params.new_size.checked_mul(1 << 20).filter(|bytes| *bytes > 0).ok_or_else(|| {
        RpcError::errno(errno::EINVAL, "invalid").detail(format!("new_size {} MiB is no size", params.new_size))
    })?;
    done(node.resize_bdev(&params.name, Kind::Null, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iostat_has_spdks_members_in_order() {
        let listed = counters("n", &IoSnapshot::default());
        let members: Vec<&str> = listed.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let spdk = [
            "name",
            "bytes_read",
            "num_read_ops",
            "bytes_written",
            "num_write_ops",
            "bytes_unmapped",
            "num_unmap_ops",
            "bytes_copied",
            "num_copy_ops",
            "read_latency_ticks",
            "max_read_latency_ticks",
            "min_read_latency_ticks",
            "write_latency_ticks",
            "max_write_latency_ticks",
            "min_write_latency_ticks",
            "unmap_latency_ticks",
            "max_unmap_latency_ticks",
            "min_unmap_latency_ticks",
            "copy_latency_ticks",
            "max_copy_latency_ticks",
            "min_copy_latency_ticks",
            "io_error",
        ];
        assert_eq!(members[..spdk.len()], spdk);
    }

    #[test]
    fn errors_are_summed_under_spdks_names() {
        let mut sums = IoSnapshot::default();
        assert_eq!(errors(&sums), json!({}));
        sums.errors[IoError::Medium as usize] = 2;
        sums.errors[IoError::NoSpace as usize] = 3;
        sums.errors[IoError::Aborted as usize] = 1;
        assert_eq!(errors(&sums), json!({"failed": 5, "aborted": 1}));
    }

    #[test]
    fn time_goes_on() {
        let before = ticks();
        assert!(before > 0 && ticks() >= before);
    }
}
