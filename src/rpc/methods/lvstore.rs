//! `bdev_lvol_*_lvstore*`, and `bdev_lvol_get_lvols`: pools, and what is in them.

use std::collections::HashMap;
use std::sync::Arc;

use pollux_bdev::thin::format::Entry;
use pollux_bdev::thin::{Origin, PoolInfo, Role, ThresholdInfo, VolumeInfo};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::lvol::refused;
use crate::node::jobs::NewJob;
use crate::node::pools::{ClosedPool, NewPool, OpenPool, PoolName, clusters, is_degraded};
use crate::node::{Node, NodeError, Reason};
use crate::rpc::error::{RpcError, errno};
use crate::rpc::table::Answer;

/// Parameters of `bdev_lvol_create_lvstore`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    bdev_name: String,
    lvs_name: String,
    /// Bytes.
    #[serde(default)]
    cluster_sz: Option<u32>,
    #[serde(default)]
    clear_method: Option<String>,
    /// SPDK's; a pool makes room for metadata when it needs some.
    #[serde(default, rename = "num_md_pages_per_cluster_ratio")]
    _num_md_pages_per_cluster_ratio: Option<u32>,
    /// SPDK's.
    #[serde(default, rename = "md_page_size")]
    _md_page_size: Option<u32>,
    /// Percent.
    #[serde(default)]
    overcommit: u32,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    job: bool,
}

pub(crate) fn create(node: &Arc<Node>, params: &Create) -> Answer {
    if let Some(method) = &params.clear_method {
        check_clear(method, &["none", "unmap", "write_zeroes"], "Invalid clear_method parameter")?;
    }
    let new = NewPool {
        base: params.bdev_name.clone(),
        name: params.lvs_name.clone(),
        cluster_size: params.cluster_sz.filter(|size| *size > 0),
        overcommit: params.overcommit,
        force: params.force,
    };
    let made = node.check_new_pool(&new).and_then(|_| {
        let (job, worker) = (NewJob { kind: "create_lvstore", object: new.name.clone() }, Arc::clone(node));
        node.jobs.run(job, params.job, move |job| Ok(worker.create_pool(&new, job)?.to_string().into()))
    });
    made.map_err(|error| match error.errno {
        // SPDK finds out about these two before it begins.
        errno::ENODEV | errno::EINVAL => error.by_errno(),
        _ => error.by_params(),
    })
}

/// Nothing has to be cleared: what was never written reads as zeroes.
pub(super) fn check_clear(method: &str, known: &[&str], message: &str) -> Result<(), RpcError> {
    if known.contains(&method) {
        return Ok(());
    }
    let error = RpcError::new(-i64::from(errno::EINVAL), message, "invalid_parameters");
    Err(error.detail(format!("clear_method is one of {}", known.join(", "))))
}

/// Parameters of methods that are about a pool.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    #[serde(default)]
    uuid: Option<String>,
    #[serde(default)]
    lvs_name: Option<String>,
}

impl Named {
    fn name(&self) -> PoolName {
        PoolName { uuid: self.uuid.clone(), name: self.lvs_name.clone() }
    }
}

pub(crate) fn delete(node: &Node, params: &Named) -> Answer {
    node.delete_pool(&params.name()).map(|()| true.into()).map_err(|error| refused(&error))
}

/// Parameters of `bdev_lvol_scrub_lvstore`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scrub {
    #[serde(default)]
    uuid: Option<String>,
    #[serde(default)]
    lvs_name: Option<String>,
    #[serde(default)]
    max_mib_per_second: Option<u64>,
    #[serde(default)]
    job: bool,
}

pub(crate) fn scrub(node: &Node, params: &Scrub) -> Answer {
    let name = PoolName { uuid: params.uuid.clone(), name: params.lvs_name.clone() };
    let scrubbed = node.begin_scrub(&name, params.max_mib_per_second).and_then(|scrub| {
        let new = NewJob { kind: "scrub", object: scrub.pool() };
        node.jobs.run(new, params.job, move |job| scrub.run(job))
    });
    scrubbed.map_err(|error| refused(&error))
}

/// Parameters of `bdev_lvol_rename_lvstore`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    old_name: String,
    new_name: String,
}

pub(crate) fn rename(node: &Node, params: &Rename) -> Answer {
    node.rename_pool(&params.old_name, &params.new_name).map(|()| true.into()).map_err(|error| match error.reason {
        "not_found" | "missing" => {
            let message = format!("Lvol store {} not found", params.old_name);
            error.by_errno().recoded(-i64::from(errno::ENOENT), message)
        }
        _ => refused(&error),
    })
}

pub(crate) fn grow(node: &Node, params: &Named) -> Answer {
    node.grow_pool(&params.name()).map(|()| true.into()).map_err(|error| refused(&error))
}

pub(crate) fn get(node: &Node, params: &Named) -> Answer {
    let pools = pools(node, &params.name())?;
    let mut listed = Vec::new();
    for open in &pools {
        // One that is being closed at this moment is not listed.
        if let Ok(info) = open.refresh() {
            listed.push(shape(open, &info));
        }
    }
    if params.uuid.is_none() && params.lvs_name.is_none() {
        let closed = node.pools.closed();
        listed.extend(closed.iter().filter(|(base, _)| node.bdevs.get(base).is_some()).map(closed_shape));
    }
    Ok(listed.into())
}

/// Parameters of `bdev_lvol_set_thresholds`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetThresholds {
    #[serde(default)]
    uuid: Option<String>,
    #[serde(default)]
    lvs_name: Option<String>,
    #[serde(default)]
    used_percent: Vec<u8>,
    #[serde(default)]
    used_bytes: Vec<u64>,
    /// A volume.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    quota_percent: Option<u8>,
}

pub(crate) fn set_thresholds(node: &Node, params: &SetThresholds) -> Answer {
    let of_pool = params.uuid.is_some() || params.lvs_name.is_some();
    let done = match (&params.name, params.quota_percent) {
        (Some(name), Some(percent)) if !of_pool && params.used_percent.is_empty() && params.used_bytes.is_empty() => {
            node.set_quota_threshold(name, percent)
        }
        (None, None) => {
            let name = PoolName { uuid: params.uuid.clone(), name: params.lvs_name.clone() };
            node.set_pool_thresholds(&name, &params.used_percent, &params.used_bytes)
        }
        _ => Err(NodeError::new(
            Reason::Invalid,
            "give a pool with used_percent and used_bytes, or name and quota_percent of a volume",
        )),
    };
    done.map(|()| true.into()).map_err(|error| refused(&error))
}

fn threshold_shape(threshold: &ThresholdInfo) -> Value {
    json!({
        "percent": threshold.percent,
        "used_bytes": threshold.used_bytes,
        "reached": threshold.reached,
        "crossings": threshold.crossings,
    })
}

/// All pools, or the one that is named.
fn pools(node: &Node, name: &PoolName) -> Result<Vec<Arc<OpenPool>>, RpcError> {
    if name.uuid.is_none() && name.name.is_none() {
        return Ok(node.pools.all());
    }
    let found = node.find_pool(name).map_err(|error| error.by_errno())?;
    Ok(vec![found])
}

/// A pool as SPDK lists it, then what Pollux adds.
fn shape(open: &OpenPool, info: &PoolInfo) -> Value {
    let size = u64::from(info.cluster_size.max(1));
    let base = open.base();
    let block_size = base.device().map_or(0, |device| device.shape().block_size);
    let state = match (info.failed, info.full) {
        (true, _) => "failed",
        (false, true) => "full",
        (false, false) => "online",
    };
    json!({
        "uuid": info.uuid,
        "name": info.name,
        "base_bdev": base.name(),
        "total_data_clusters": info.total_bytes / size,
        "free_clusters": info.free_bytes / size,
        "block_size": block_size,
        "cluster_size": size,
        "max_growable_size": u64::from(Entry::MAX_CLUSTER) * size,
        "state": state,
        "size_bytes": info.total_bytes,
        "free_bytes": info.free_bytes,
        "quarantined_bytes": info.quarantined_bytes,
        "discards_waiting_bytes": info.discards.waiting_bytes,
        "discard_mbytes_per_sec": if info.discards.rate == u64::MAX { 0 } else { info.discards.rate >> 20 },
        "thresholds": info.thresholds.iter().map(threshold_shape).collect::<Vec<_>>(),
        "volumes": info.volumes.iter().filter(|volume| volume.role == Role::Volume).count(),
        "snapshots": info.volumes.iter().filter(|volume| volume.role == Role::Snapshot).count(),
        "reactor": open.reactor(),
    })
}

/// A pool that cannot be opened, as much as is known of it.
fn closed_shape((base, closed): (&String, &ClosedPool)) -> Value {
    json!({
        "uuid": closed.uuid,
        "name": closed.name,
        "base_bdev": base,
        "total_data_clusters": 0,
        "free_clusters": 0,
        "block_size": 0,
        "cluster_size": 0,
        "max_growable_size": 0,
        "state": closed.state,
        "why": closed.why,
    })
}

/// Parameters of `bdev_lvol_get_lvols`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetLvols {
    #[serde(default)]
    lvs_uuid: Option<String>,
    #[serde(default)]
    lvs_name: Option<String>,
}

pub(crate) fn get_lvols(node: &Node, params: &GetLvols) -> Answer {
    let name = PoolName { uuid: params.lvs_uuid.clone(), name: params.lvs_name.clone() };
    let (mut listed, bdevs) = (Vec::new(), node.bdevs_by_uuid());
    for open in pools(node, &name)? {
        if let Ok(info) = open.refresh() {
            let names: Names<'_> = info.volumes.iter().map(|volume| (volume.uuid, volume.name.as_str())).collect();
            let known = info.volumes.iter().filter(|volume| volume.role != Role::Leaving);
            listed.extend(known.map(|volume| volume_shape(&bdevs, &info, &names, volume)));
        }
    }
    Ok(listed.into())
}

/// The bdev outside of the pool that a volume stands on in the end.
fn origin_shape(bdevs: &HashMap<Uuid, Arc<pollux_bdev::Entry>>, origin: Origin) -> Value {
    let entry = bdevs.get(&origin.uuid);
    json!({"uuid": origin.uuid, "name": entry.map(|entry| entry.name().to_owned()), "bytes": origin.bytes})
}

/// How the volumes and snapshots of a pool are called.
type Names<'a> = HashMap<Uuid, &'a str>;

/// A volume as SPDK lists it, then what Pollux adds.
fn volume_shape(
    bdevs: &HashMap<Uuid, Arc<pollux_bdev::Entry>>,
    info: &PoolInfo,
    names: &Names<'_>,
    volume: &VolumeInfo,
) -> Value {
    let kin = |uuid: &Uuid| names.get(uuid).map(|name| json!({"name": name, "uuid": uuid}));
    let parent = volume.parent.as_ref().and_then(kin);
    json!({
        "alias": format!("{}/{}", info.name, volume.name),
        "uuid": volume.uuid,
        "name": volume.name,
        "is_thin_provisioned": volume.reserved_bytes == 0,
        "is_snapshot": volume.role == Role::Snapshot,
        "is_clone": parent.is_some(),
        "is_esnap_clone": volume.is_of_bdev(),
        "is_degraded": info.failed || is_degraded(bdevs, volume),
        "num_allocated_clusters": clusters(info, volume),
        "lvs": {"name": info.name, "uuid": info.uuid},
        "size_bytes": volume.bytes,
        "parent": parent,
        "origin": volume.origin.map(|origin| origin_shape(bdevs, origin)),
        "children": volume.children.iter().filter_map(kin).collect::<Vec<_>>(),
        "created": volume.created,
        "owned_bytes": volume.owned_bytes,
        "written_bytes": volume.written_bytes,
        "shared_bytes": volume.shared_bytes,
        "quota_bytes": volume.quota_bytes,
        "reserved_bytes": volume.reserved_bytes,
        "quota_threshold": volume.quota_threshold.as_ref().map(threshold_shape),
    })
}
