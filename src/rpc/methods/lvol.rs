//! `bdev_lvol_*`: volumes, snapshots and clones.

use std::sync::Arc;

use pollux_bdev::Kind;
use serde::Deserialize;
use serde_json::Value;

use super::lvstore::check_clear;
use crate::node::jobs::NewJob;
use crate::node::pools::{NewVolume, PoolName, VolumeSize};
use crate::node::{Node, NodeError, Reason};
use crate::rpc::error::{RpcError, code, errno};
use crate::rpc::params::Habit;
use crate::rpc::table::Answer;

/// As most of SPDK's lvol methods refuse: what is not found, or not said clearly, by its number; what fails later as
/// "invalid parameters", with the number's text.
pub(super) fn refused(error: &NodeError) -> RpcError {
    let at_once =
        matches!(error.reason, "not_found" | "missing") || error.errno == errno::EINVAL && error.reason == "invalid";
    if at_once { error.by_errno() } else { error.by_params() }
}

fn done(outcome: Result<(), NodeError>) -> Answer {
    outcome.map(|()| Value::Bool(true)).map_err(|error| refused(&error))
}

/// What was asked for: SPDK's MiB, or bytes, as it was once and as Cinder still says it.
fn bytes(size: Option<u64>, size_in_mib: Option<u64>) -> Result<u64, RpcError> {
    match (size, size_in_mib) {
        (Some(bytes), None) => Ok(bytes),
        (None, Some(mib)) => mib
            .checked_mul(1 << 20)
            .ok_or_else(|| RpcError::errno(errno::EINVAL, "invalid").detail(format!("size_in_mib {mib} is no size"))),
        _ => Err(Habit::Decode.error("give size_in_mib, or size in bytes, and not both")),
    }
}

/// Parameters of `bdev_lvol_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    lvol_name: String,
    #[serde(default)]
    size_in_mib: Option<u64>,
    /// Bytes.
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    thin_provision: bool,
    /// Of the pool.
    #[serde(default)]
    uuid: Option<String>,
    #[serde(default)]
    lvs_name: Option<String>,
    #[serde(default)]
    clear_method: Option<String>,
}

pub(crate) fn create(node: &Node, params: &Create) -> Answer {
    if let Some(method) = &params.clear_method {
        check_clear(method, &["default", "none", "unmap", "write_zeroes"], "Invalid clean_method option")?;
    }
    let new = NewVolume {
        pool: PoolName { uuid: params.uuid.clone(), name: params.lvs_name.clone() },
        name: params.lvol_name.clone(),
        bytes: bytes(params.size, params.size_in_mib)?,
        thin: params.thin_provision,
    };
    node.create_volume(&new).map(|uuid| uuid.to_string().into()).map_err(|error| refused(&error))
}

/// Parameters of `bdev_lvol_snapshot`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    lvol_name: String,
    snapshot_name: String,
}

pub(crate) fn snapshot(node: &Node, params: &Snapshot) -> Answer {
    let of = [(params.lvol_name.clone(), params.snapshot_name.clone())];
    let made = node.snapshot_volumes(&of).map_err(|error| refused(&error))?;
    Ok(made.first().map(ToString::to_string).into())
}

/// Parameters of `bdev_lvol_snapshot_group`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotGroup {
    lvol_names: Vec<String>,
    snapshot_names: Vec<String>,
}

pub(crate) fn snapshot_group(node: &Node, params: &SnapshotGroup) -> Answer {
    if params.lvol_names.len() != params.snapshot_names.len() {
        return Err(Habit::Decode.error("snapshot_names has to have a name for each of lvol_names"));
    }
    let of: Vec<_> = params.lvol_names.iter().cloned().zip(params.snapshot_names.iter().cloned()).collect();
    let made = node.snapshot_volumes(&of).map_err(|error| refused(&error))?;
    Ok(made.iter().map(ToString::to_string).collect())
}

/// Parameters of `bdev_lvol_clone`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clone {
    snapshot_name: String,
    clone_name: String,
}

pub(crate) fn clone(node: &Node, params: &Clone) -> Answer {
    let made = node.clone_snapshot(&params.snapshot_name, &params.clone_name);
    made.map(|uuid| uuid.to_string().into()).map_err(|error| refused(&error))
}

/// Parameters of `bdev_lvol_clone_bdev`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneBdev {
    bdev: String,
    lvs_name: String,
    clone_name: String,
}

/// As SPDK refuses it: all by "invalid parameters", some in words of their own.
pub(crate) fn clone_bdev(node: &Node, params: &CloneBdev) -> Answer {
    let in_words = |error: &NodeError, message: &str| error.by_params().recoded(code::INVALID_PARAMS, message);
    let pool = PoolName { uuid: None, name: Some(params.lvs_name.clone()) };
    node.find_pool(&pool).map_err(|error| in_words(&error, "lvs does not exist"))?;
    if node.bdevs.get(&params.bdev).is_none() {
        return Err(in_words(&NodeError::no_bdev(&params.bdev), "bdev does not exist"));
    }
    let made = node.clone_bdev(&params.bdev, &pool, &params.clone_name);
    made.map(|uuid| uuid.to_string().into()).map_err(|error| match error.reason {
        "same_pool" => in_words(&error, "bdev is an lvol in same lvs as clone; use bdev_lvol_clone instead"),
        _ => error.by_params(),
    })
}

/// Parameters of `bdev_lvol_resize`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    name: String,
    #[serde(default)]
    size_in_mib: Option<u64>,
    /// Bytes.
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    allow_shrink: bool,
}

pub(crate) fn resize(node: &Node, params: &Resize) -> Answer {
    let bytes = bytes(params.size, params.size_in_mib)?;
    done(node.resize_volume(&params.name, VolumeSize { bytes, allow_shrink: params.allow_shrink }))
}

/// Parameters of `bdev_lvol_rename`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    old_name: String,
    new_name: String,
}

pub(crate) fn rename(node: &Node, params: &Rename) -> Answer {
    done(node.rename_volume(&params.old_name, &params.new_name))
}

/// Parameters of methods that take a volume and nothing else.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    name: String,
}

pub(crate) fn set_read_only(node: &Node, params: &Named) -> Answer {
    done(node.set_volume_read_only(&params.name))
}

/// Parameters of `bdev_lvol_rollback`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    name: String,
    snapshot_name: String,
    #[serde(default)]
    force: bool,
}

pub(crate) fn roll_back(node: &Node, params: &Rollback) -> Answer {
    done(node.roll_back_volume(&params.name, &params.snapshot_name, params.force))
}

/// Parameters of `bdev_lvol_inflate` and `bdev_lvol_decouple_parent`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inflate {
    name: String,
    #[serde(default)]
    job: bool,
}

pub(crate) fn inflate(node: &Arc<Node>, params: &Inflate) -> Answer {
    copy_from_below(node, params, "inflate", false)
}

pub(crate) fn decouple_parent(node: &Arc<Node>, params: &Inflate) -> Answer {
    copy_from_below(node, params, "decouple_parent", true)
}

fn copy_from_below(node: &Arc<Node>, params: &Inflate, kind: &'static str, decouple: bool) -> Answer {
    let done = node.begin_inflation(&params.name, decouple).and_then(|inflation| {
        let (job, worker) = (NewJob { kind, object: params.name.clone() }, Arc::clone(node));
        node.jobs.run(job, params.job, move |job| worker.inflate_volume(&inflation, job).map(|()| true.into()))
    });
    done.map_err(|error| refused(&error))
}

/// Parameters of `bdev_lvol_set_parent` and `bdev_lvol_set_parent_bdev`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetParent {
    lvol_name: String,
    parent_name: String,
    #[serde(default)]
    force: bool,
}

pub(crate) fn set_parent(node: &Node, params: &SetParent) -> Answer {
    done(node.set_parent(&params.lvol_name, &params.parent_name, params.force))
}

pub(crate) fn set_parent_bdev(node: &Node, params: &SetParent) -> Answer {
    let set = node.set_parent_bdev(&params.lvol_name, &params.parent_name, params.force);
    set.map(|()| Value::Bool(true)).map_err(|error| {
        // The volume is looked for at once, the bdev later.
        let known = node.bdevs.get(&params.lvol_name).is_some_and(|entry| entry.kind() == Kind::Lvol);
        if known { error.by_params() } else { refused(&error) }
    })
}

/// Parameters of `bdev_lvol_set_limits`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLimits {
    /// A volume.
    #[serde(default)]
    name: Option<String>,
    /// Bytes.
    #[serde(default)]
    quota: Option<u64>,
    /// Bytes.
    #[serde(default)]
    reservation: Option<u64>,
    /// A pool.
    #[serde(default)]
    uuid: Option<String>,
    #[serde(default)]
    lvs_name: Option<String>,
    /// MiB; 0: no limit.
    #[serde(default)]
    discard_mbytes_per_sec: Option<u64>,
}

pub(crate) fn set_limits(node: &Node, params: &SetLimits) -> Answer {
    let of_pool = params.uuid.is_some() || params.lvs_name.is_some();
    let of_volume = params.quota.is_some() || params.reservation.is_some();
    done(match (&params.name, params.discard_mbytes_per_sec) {
        (Some(name), None) if !of_pool => node.limit_volume(name, params.quota, params.reservation),
        (None, Some(rate)) if of_pool && !of_volume => {
            node.limit_discards(&PoolName { uuid: params.uuid.clone(), name: params.lvs_name.clone() }, rate)
        }
        _ => Err(NodeError::new(
            Reason::Invalid,
            "give name with quota or reservation of a volume, or a pool with discard_mbytes_per_sec",
        )),
    })
}

/// Parameters of `bdev_lvol_delete`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    name: String,
    #[serde(default)]
    force: bool,
}

pub(crate) fn delete(node: &Node, params: &Delete) -> Answer {
    let deleted = node.delete_volume(&params.name, params.force);
    deleted.map(|()| Value::Bool(true)).map_err(|error| match refused(&error) {
        late if late.code == code::INVALID_PARAMS => late.clone().recoded(code::INTERNAL_ERROR, late.message),
        at_once => at_once,
    })
}
