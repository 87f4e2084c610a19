//! `bdev_lvol_get_allocated` and `bdev_lvol_get_delta`: the map of a volume, page by page.

use pollux_bdev::thin::{ExtentKind, MapExtent, Survey};
use serde::Deserialize;
use serde_json::{Value, json};

use super::lvol::refused;
use crate::node::{Node, NodeError};
use crate::rpc::table::Answer;

/// Parameters of `bdev_lvol_get_allocated`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocated {
    name: String,
    #[serde(default)]
    offset: u64,
    #[serde(default = "many")]
    max_extents: usize,
}

/// Parameters of `bdev_lvol_get_delta`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    name: String,
    from_snapshot_name: String,
    #[serde(default)]
    offset: u64,
    #[serde(default = "many")]
    max_extents: usize,
}

const fn many() -> usize {
    1024
}

pub(crate) fn get_allocated(node: &Node, params: &Allocated) -> Answer {
    shape(node.survey_volume(&params.name, None, params.offset, params.max_extents))
}

pub(crate) fn get_delta(node: &Node, params: &Delta) -> Answer {
    shape(node.survey_volume(&params.name, Some(&params.from_snapshot_name), params.offset, params.max_extents))
}

fn shape(survey: Result<Survey, NodeError>) -> Answer {
    let survey = survey.map_err(|error| refused(&error))?;
    let extents: Vec<Value> = survey.extents.iter().map(extent).collect();
    Ok(json!({"extents": extents, "next_offset": survey.next_offset}))
}

fn extent(extent: &MapExtent) -> Value {
    let kind = match extent.kind {
        ExtentKind::Data => "data",
        ExtentKind::Zero => "zero",
    };
    json!({"offset": extent.offset, "length": extent.len, "kind": kind})
}
