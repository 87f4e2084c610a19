//! `log_*` and `notify_*`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::logging::Level;
use crate::node::Node;
use crate::node::notify::Kind;
use crate::rpc::error::{RpcError, code};
use crate::rpc::params::NoParams;
use crate::rpc::table::Answer;

/// Parameters of `log_set_level` and `log_set_print_level`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLevel {
    level: String,
}

fn level(name: &str) -> Result<Level, RpcError> {
    Level::parse(name).ok_or_else(|| {
        let names: Vec<_> = Level::ALL.iter().map(|(name, _)| *name).collect();
        RpcError::new(code::INVALID_PARAMS, "invalid log level", "invalid_parameters")
            .detail(format!("'{name}' is none of {}", names.join(", ")))
    })
}

pub(crate) fn get_level(node: &Node, _: &NoParams) -> Answer {
    Ok(node.logging.level().name().into())
}

pub(crate) fn set_level(node: &Node, params: &SetLevel) -> Answer {
    node.logging.set_level(level(&params.level)?);
    Ok(true.into())
}

pub(crate) fn get_print_level(node: &Node, _: &NoParams) -> Answer {
    Ok(node.logging.print_level().name().into())
}

pub(crate) fn set_print_level(node: &Node, params: &SetLevel) -> Answer {
    node.logging.set_print_level(level(&params.level)?);
    Ok(true.into())
}

/// Pollux has no log flags: the level is all there is.
pub(crate) fn get_flags(_: &Node, _: &NoParams) -> Answer {
    Ok(json!({}))
}

pub(crate) fn get_types(_: &Node, _: &NoParams) -> Answer {
    Ok(Kind::ALL.iter().map(|kind| kind.name()).collect())
}

/// Parameters of `notify_get_notifications`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetNotifications {
    #[serde(default)]
    id: u64,
    #[serde(default = "no_limit")]
    max: u64,
}

const fn no_limit() -> u64 {
    u64::MAX
}

pub(crate) fn get_notifications(node: &Node, params: &GetNotifications) -> Answer {
    let events = node.notifications.get(params.id, params.max);
    let shape = |event: crate::node::notify::Event| -> Value {
        json!({"type": event.kind.name(), "ctx": event.context, "id": event.id})
    };
    Ok(events.into_iter().map(shape).collect())
}
