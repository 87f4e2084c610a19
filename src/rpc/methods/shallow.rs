//! `bdev_lvol_start_shallow_copy` and `bdev_lvol_check_shallow_copy`, as SPDK has them: a job that is known by a number.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::lvol::refused;
use crate::node::jobs::{Job, JobState, NewJob};
use crate::node::pools::SHALLOW_COPY;
use crate::node::{Node, NodeError, Reason};
use crate::rpc::error::strerror;
use crate::rpc::table::Answer;

/// Parameters of `bdev_lvol_start_shallow_copy`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    src_lvol_name: String,
    dst_bdev_name: String,
}

pub(crate) fn start(node: &Arc<Node>, params: &Start) -> Answer {
    let started = node.begin_shallow_copy(&params.src_lvol_name, &params.dst_bdev_name).and_then(|copy| {
        let object = format!("{} to {}", params.src_lvol_name, params.dst_bdev_name);
        node.jobs.start(NewJob { kind: SHALLOW_COPY, object }, move |job| copy.run(job))
    });
    let job = started.map_err(|error| refused(&error))?;
    Ok(json!({"operation_id": job.number(), "job_id": job.id()}))
}

/// Parameters of `bdev_lvol_check_shallow_copy`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    operation_id: u32,
}

pub(crate) fn check(node: &Node, params: &Check) -> Answer {
    let is_it = |job: &Arc<Job>| job.kind() == SHALLOW_COPY && job.number() == params.operation_id;
    let none = || NodeError::new(Reason::NotFound, format!("there is no shallow copy {}", params.operation_id));
    let job = node.jobs.all().into_iter().find(is_it).ok_or_else(|| refused(&none()))?;
    let (done, total) = job.progressed();
    let mut shown = json!({
        "copied_clusters": done.div_ceil(CLUSTER),
        "total_clusters": total.div_ceil(CLUSTER),
        "state": match job.state() {
            JobState::Running => "in progress",
            JobState::Complete => "complete",
            JobState::Cancelled | JobState::Failed => "error",
        },
    });
    if let Some(Err(error)) = job.end().map(|end| &end.outcome) {
        shown["error"] = strerror(error.errno).into();
        shown["detail"] = error.detail.as_str().into();
    }
    Ok(shown)
}

/// What is counted: data is copied in parts of clusters, so these are of the smallest size that a pool may have.
const CLUSTER: u64 = 64 << 10;
