//! `bdev_lvol_export` and `bdev_lvol_import`: volumes as streams.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::lvol::refused;
use crate::node::Node;
use crate::node::jobs::NewJob;
use crate::node::pools::{Export, Import, Place, PoolName};
use crate::rpc::error::RpcError;
use crate::rpc::params::Habit;
use crate::rpc::table::Answer;

/// Parameters of `bdev_lvol_export`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportParams {
    name: String,
    #[serde(default)]
    from_snapshot_name: Option<String>,
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    job: bool,
}

pub(crate) fn export(node: &Arc<Node>, params: &ExportParams) -> Answer {
    let export = Export {
        name: params.name.clone(),
        since: params.from_snapshot_name.clone(),
        to: place(params.socket.as_ref(), params.file.as_ref())?,
    };
    // A volume is not cut for an export for which there is no place.
    let place = node.jobs.reserve(NewJob { kind: "export", object: export.name.clone() });
    let done = place.and_then(|place| {
        let exporting = node.begin_export(&export)?;
        place.run(params.job, move |job| exporting.run(job))
    });
    done.map_err(|error| refused(&error))
}

/// Parameters of `bdev_lvol_import`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportParams {
    lvol_name: String,
    /// Of the pool.
    #[serde(default)]
    uuid: Option<String>,
    #[serde(default)]
    lvs_name: Option<String>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    job: bool,
}

pub(crate) fn import(node: &Arc<Node>, params: &ImportParams) -> Answer {
    let import = Import {
        pool: PoolName { uuid: params.uuid.clone(), name: params.lvs_name.clone() },
        name: params.lvol_name.clone(),
        read_only: params.read_only,
        from: place(params.socket.as_ref(), params.file.as_ref())?,
    };
    let done = node.begin_import(&import).and_then(|importing| {
        let worker = Arc::clone(node);
        let new = NewJob { kind: "import", object: import.name };
        node.jobs.run(new, params.job, move |job| worker.run_import(&importing, job))
    });
    done.map_err(|error| refused(&error))
}

fn place(socket: Option<&PathBuf>, file: Option<&PathBuf>) -> Result<Place, RpcError> {
    match (socket, file) {
        (Some(path), None) => Ok(Place::Socket(path.clone())),
        (None, Some(path)) => Ok(Place::File(path.clone())),
        _ => Err(Habit::Decode.error("give socket, where somebody listens, or file, and not both")),
    }
}
