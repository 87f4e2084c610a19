//! `job_*`: what takes long.

use serde::Deserialize;
use serde_json::Value;

use super::done;
use crate::node::Node;
use crate::rpc::table::Answer;

/// Parameters of `job_get_jobs`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetJobs {
    #[serde(default)]
    job_id: Option<String>,
}

pub(crate) fn get_jobs(node: &Node, params: &GetJobs) -> Answer {
    let jobs = match &params.job_id {
        Some(id) => vec![node.jobs.find(id).map_err(|error| error.by_errno())?],
        None => node.jobs.all(),
    };
    Ok(jobs.iter().map(|job| job.to_json()).collect::<Vec<Value>>().into())
}

/// Parameters of `job_cancel`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    job_id: String,
}

pub(crate) fn cancel(node: &Node, params: &Cancel) -> Answer {
    done(node.jobs.cancel(&params.job_id))
}
