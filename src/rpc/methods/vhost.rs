//! `vhost_*` and `scsi_get_devices`.

use serde::Deserialize;
use serde_json::{Value, json};

use pollux_vhost_scsi::{ControllerInfo, LunInfo};

use crate::node::document::{ControllerRecord, parse_initiator};
use crate::node::vhost::{LunAddress, NewController, NewLun};
use crate::node::{Node, NodeError};
use crate::rpc::error::{RpcError, code, errno};
use crate::rpc::params::{Habit, NoParams};
use crate::rpc::table::Answer;

/// What SPDK shows for a controller whose coalescing was never set.
const IOPS_THRESHOLD: u32 = 60_000;

fn answered(outcome: Result<(), NodeError>) -> Answer {
    outcome.map(|()| Value::Bool(true)).map_err(|error| error.by_params())
}

/// Parameters of `vhost_create_scsi_controller`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    ctrlr: String,
    #[serde(default)]
    cpumask: Option<String>,
    #[serde(default)]
    delay: bool,
    #[serde(default)]
    initiator: Option<String>,
}

pub(crate) fn create(node: &Node, params: &Create) -> Answer {
    let cores = match &params.cpumask {
        None => None,
        Some(mask) => Some(parse_mask(mask).map_err(|detail| Habit::Argument.error(detail))?),
    };
    let initiator = match &params.initiator {
        None => None,
        Some(text) => Some(parse_initiator(text).ok_or_else(|| {
            Habit::Argument.error(format!("initiator '{text}' is not a number of 16 hexadecimal digits, not all 0"))
        })?),
    };
    answered(node.create_controller(NewController {
        name: params.ctrlr.clone(),
        cores,
        initiator,
        started: !params.delay,
    }))
}

/// Parameters of `vhost_start_scsi_controller`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    ctrlr: String,
}

pub(crate) fn start(node: &Node, params: &Start) -> Answer {
    answered(node.start_controller(&params.ctrlr))
}

/// Parameters of `vhost_scsi_controller_add_target`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddTarget {
    ctrlr: String,
    scsi_target_num: i32,
    bdev_name: String,
    #[serde(default)]
    lun: u16,
    #[serde(default)]
    exclusive: bool,
}

pub(crate) fn add_target(node: &Node, params: &AddTarget) -> Answer {
    let target = match params.scsi_target_num {
        ..0 => None,
        number => Some(target_number(i64::from(number))?),
    };
    let lun = NewLun {
        ctrlr: params.ctrlr.clone(),
        target,
        lun: params.lun,
        bdev: params.bdev_name.clone(),
        exclusive: params.exclusive,
    };
    node.add_lun(&lun).map(Value::from).map_err(|error| error.by_params())
}

fn target_number(number: i64) -> Result<u8, RpcError> {
    u8::try_from(number).map_err(|_| Habit::Argument.error(format!("target {number} is beyond the greatest, 255")))
}

/// Parameters of `vhost_scsi_controller_remove_target`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveTarget {
    ctrlr: String,
    scsi_target_num: u32,
    #[serde(default)]
    lun: Option<u16>,
}

pub(crate) fn remove_target(node: &Node, params: &RemoveTarget) -> Answer {
    let target = target_number(i64::from(params.scsi_target_num))?;
    answered(node.remove_lun(&params.ctrlr, target, params.lun))
}

/// Parameters of `vhost_scsi_enable_histogram`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    ctrlr: String,
    scsi_target_num: u32,
    #[serde(default)]
    lun: u16,
}

pub(crate) fn enable_histogram(node: &Node, params: &Histogram) -> Answer {
    let target = target_number(i64::from(params.scsi_target_num))?;
    answered(node.keep_latencies(&params.ctrlr, LunAddress { target, lun: params.lun }))
}

/// Parameters of `vhost_scsi_controller_move_queue`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveQueue {
    ctrlr: String,
    queue: u16,
    core: usize,
}

pub(crate) fn move_queue(node: &Node, params: &MoveQueue) -> Answer {
    let Some(to) = node.reactors.iter().position(|stats| stats.core == params.core) else {
        let error = RpcError::new(code::INVALID_PARAMS, "Invalid parameters", "invalid_parameters");
        return Err(error.detail(format!("no reactor runs on core {}; framework_get_reactors lists them", params.core)));
    };
    let places = node.target.queue_places();
    let place = places.iter().find(|place| place.ctrlr == params.ctrlr && place.index == params.queue);
    // Which of the two is missing is found out by asking for it.
    let session = place.map_or(0, |place| place.session);
    let moved = node.target.move_queue(&params.ctrlr, session, params.queue, to).map_err(NodeError::from);
    let moved = moved.map_err(|error| error.by_params())?;
    Ok(json!({"moved": moved}))
}

/// Parameters of `vhost_get_controllers`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Get {
    #[serde(default)]
    name: Option<String>,
}

pub(crate) fn get_controllers(node: &Node, params: &Get) -> Answer {
    let all = node.target.controllers();
    let document = node.document();
    let wanted = |of: &str| params.name.as_ref().is_none_or(|name| *name == of);
    let there = all.iter().filter(|controller| wanted(&controller.name));
    let shown = there.map(|controller| shape(node, controller, document.controller(&controller.name)));
    let absent = document.controllers.iter().filter(|record| wanted(&record.name));
    let absent = absent.filter_map(|record| Some(missing(record, &node.why_missing(&record.name)?)));
    let shown: Vec<Value> = shown.chain(absent).collect();
    match &params.name {
        Some(name) if shown.is_empty() => {
            let error = RpcError::errno(errno::ENODEV, "not_found").detail(format!("there is no controller '{name}'"));
            Err(error.recoded(code::INTERNAL_ERROR, "No such device"))
        }
        _ => Ok(shown.into()),
    }
}

fn shape(node: &Node, controller: &ControllerInfo, record: Option<&ControllerRecord>) -> Value {
    let cores: Vec<usize> =
        controller.reactors.iter().filter_map(|reactor| node.reactors.get(*reactor)).map(|stats| stats.core).collect();
    let core_of = |reactor: usize| node.reactors.get(reactor).map(|stats| stats.core);
    let session = |(vid, session): (usize, &pollux_vhost_scsi::SessionInfo)| {
        json!({
            "vid": vid,
            "id": session.id,
            "name": format!("{}s{}", controller.name, session.id),
            "started": !session.queues.is_empty(),
            "max_queues": session.queues.iter().map(|(index, _)| u32::from(*index) + 1).max().unwrap_or(0),
            "inflight_task_cnt": session.inflight,
            "queues": session.queues.iter().map(|(index, _)| index).collect::<Vec<_>>(),
            "queue_cores": session.queues.iter().map(|(_, at)| core_of(*at)).collect::<Vec<_>>(),
            "peer_pid": session.peer_pid,
        })
    };
    let sessions: Vec<Value> = controller.sessions.iter().enumerate().map(session).collect();
    json!({
        "ctrlr": controller.name,
        "cpumask": mask(&cores),
        "delay_base_us": 0,
        "iops_threshold": IOPS_THRESHOLD,
        "socket": controller.socket,
        "sessions": sessions,
        "backend_specific": {"scsi": targets(node, &controller.luns, record)},
        "started": controller.started,
        "initiator": format!("{:016x}", controller.initiator),
        "state": "online",
    })
}

/// A controller that did not come back.
fn missing(record: &ControllerRecord, why: &NodeError) -> Value {
    json!({
        "ctrlr": record.name,
        "cpumask": mask(record.cores.as_deref().unwrap_or_default()),
        "delay_base_us": 0,
        "iops_threshold": IOPS_THRESHOLD,
        "socket": "",
        "sessions": [],
        "backend_specific": {"scsi": []},
        "started": false,
        "initiator": format!("{:016x}", record.initiator),
        "state": "missing",
        "missing_reason": why.to_string(),
    })
}

/// LUNs come sorted; those of one target make one entry.
fn targets(node: &Node, luns: &[LunInfo], record: Option<&ControllerRecord>) -> Vec<Value> {
    let exclusive = |lun: &LunInfo| {
        let kept = record.into_iter().flat_map(|record| &record.luns);
        kept.into_iter().any(|kept| (kept.target, kept.lun, kept.exclusive) == (lun.target, lun.lun, true))
    };
    let shape = |lun: &LunInfo| {
        let why = record.and_then(|record| node.why_not_ready(&record.name, lun.target, lun.lun));
        let missing = why.is_some() || node.bdevs.get(&lun.bdev_name).is_none_or(|bdev| bdev.device().is_none());
        let mut shown = json!({
            "id": lun.lun,
            "bdev_name": lun.bdev_name,
            "state": if missing { "missing" } else { "online" },
            "exclusive": exclusive(lun),
        });
        if let Some(why) = why {
            shown["missing_reason"] = why.into();
        }
        shown
    };
    let of_target = |luns: &[LunInfo]| {
        let number = luns[0].target;
        json!({
            "scsi_dev_num": number,
            "id": number,
            "target_name": format!("Target {number}"),
            "luns": luns.iter().map(shape).collect::<Vec<_>>(),
        })
    };
    luns.chunk_by(|one, other| one.target == other.target).map(of_target).collect()
}

/// Parameters of `vhost_delete_controller`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    ctrlr: String,
    #[serde(default)]
    force: bool,
}

pub(crate) fn delete(node: &Node, params: &Delete) -> Answer {
    answered(node.delete_controller(&params.ctrlr, params.force))
}

pub(crate) fn get_scsi_devices(node: &Node, _: &NoParams) -> Answer {
    let mut devices = Vec::new();
    for controller in node.target.controllers() {
        for luns in controller.luns.chunk_by(|one, other| one.target == other.target) {
            let number = luns[0].target;
            devices.push(json!({
                "id": devices.len(),
                "device_name": format!("Target {number}"),
                "ctrlr": controller.name,
                "scsi_target_num": number,
            }));
        }
    }
    Ok(devices.into())
}

/// The calls that make a controller again.
pub(crate) fn replay(record: &ControllerRecord) -> Vec<Value> {
    let mut create = json!({"ctrlr": record.name, "delay": true, "initiator": format!("{:016x}", record.initiator)});
    if let Some(cores) = &record.cores {
        create["cpumask"] = mask(cores).into();
    }
    let mut calls = vec![json!({"method": "vhost_create_scsi_controller", "params": create})];
    for lun in &record.luns {
        let mut params = json!({"ctrlr": record.name, "scsi_target_num": lun.target, "bdev_name": lun.bdev});
        if lun.lun != 0 {
            params["lun"] = lun.lun.into();
        }
        if lun.exclusive {
            params["exclusive"] = true.into();
        }
        calls.push(json!({"method": "vhost_scsi_controller_add_target", "params": params}));
    }
    if record.started {
        calls.push(json!({"method": "vhost_start_scsi_controller", "params": {"ctrlr": record.name}}));
    }
    calls
}

/// Reads a mask as SPDK does: a list in brackets, else hexadecimal digits with or without 0x.
fn parse_mask(text: &str) -> Result<Vec<usize>, String> {
    let text = text.trim();
    let spelt = ["[", "0x", "0X"].iter().any(|start| text.starts_with(start));
    let spelt = if spelt { text.to_owned() } else { format!("0x{text}") };
    pollux_reactor::parse_cores(&spelt).map_err(|error| format!("cpumask '{text}': {error}"))
}

/// Writes a mask: hexadecimal, with 0x.
pub(crate) fn mask(cores: &[usize]) -> String {
    let digits = cores.iter().max().map_or(1, |greatest| greatest / 4 + 1);
    let digit = |place: usize| {
        let bits = cores.iter().filter(|core| **core / 4 == place).fold(0u32, |bits, core| bits | 1 << (core % 4));
        char::from_digit(bits, 16).unwrap_or('0')
    };
    let text: String = (0..digits).rev().map(digit).collect();
    format!("0x{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::document::LunRecord;

    #[test]
    fn masks_go_both_ways() {
        for (text, cores, written) in [
            ("0x3", vec![0, 1], "0x3"),
            ("2", vec![1], "0x2"),
            ("[0,5]", vec![0, 5], "0x21"),
            ("0x10000000000000000", vec![64], "0x10000000000000000"),
        ] {
            assert_eq!(parse_mask(text).as_ref(), Ok(&cores), "{text}");
            assert_eq!(mask(&cores), written);
            assert_eq!(parse_mask(written), Ok(cores));
        }
        for bad in ["", "0x", "[]", "xyz", "[0", "0x0", "[3-1]", "[99999999999999999999]"] {
            assert!(parse_mask(bad).is_err(), "{bad}");
        }
        assert_eq!(mask(&[]), "0x0");
    }

    #[test]
    fn a_controller_is_made_again_before_it_listens() {
        let record = ControllerRecord {
            name: "vm1".into(),
            cores: Some(vec![1]),
            initiator: 0x5001_4050_0000_0001,
            relative_port: None,
            started: true,
            luns: vec![LunRecord { target: 2, lun: 5, bdev: "disk".into(), exclusive: true }],
        };
        let calls = replay(&record);
        let methods: Vec<_> = calls.iter().map(|call| call["method"].as_str().unwrap_or_default()).collect();
        assert_eq!(
            methods,
            ["vhost_create_scsi_controller", "vhost_scsi_controller_add_target", "vhost_start_scsi_controller"]
        );
        assert_eq!(calls[0]["params"]["cpumask"], "0x2");
        assert_eq!(calls[1]["params"]["lun"], 5);
    }
}
