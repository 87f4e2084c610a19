//! `framework_*`, `thread_*`, `rpc_get_methods`, `spdk_*` and `pollux_get_status`.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{create, identity, options, vhost};
use crate::node::Node;
use crate::rpc::error::{RpcError, code};
use crate::rpc::params::NoParams;
use crate::rpc::table::{Answer, Gate, METHODS};

/// Times in answers are nanoseconds: a billion ticks a second.
pub const TICK_RATE: u64 = 1_000_000_000;

/// The release of SPDK whose dialect is spoken: clients decide by it which parameters to send.
const DIALECT: (u32, u32) = (26, 9);

pub(crate) fn get_version(_: &Node, _: &NoParams) -> Answer {
    let (major, minor) = DIALECT;
    let own = env!("CARGO_PKG_VERSION");
    Ok(json!({
        "version": format!("SPDK v{major}.{minor:02} (dialect of Pollux {own})"),
        "fields": {"major": major, "minor": minor, "patch": 0, "suffix": "-pollux"},
        "pollux": own,
    }))
}

/// Parameters of `spdk_kill_instance`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    sig_name: String,
}

pub(crate) fn kill_instance(_: &Node, params: &Kill) -> Answer {
    use rustix::process::Signal;
    let name = params.sig_name.strip_prefix("SIG").unwrap_or(&params.sig_name);
    let signal = match name {
        "INT" => Signal::INT,
        "TERM" => Signal::TERM,
        "QUIT" => Signal::QUIT,
        "HUP" => Signal::HUP,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        _ => {
            let error = RpcError::new(code::INVALID_PARAMS, "Invalid parameters", "invalid_parameters");
            return Err(error.detail("sig_name is SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGKILL or SIGUSR1"));
        }
    };
    rustix::process::kill_process(rustix::process::getpid(), signal)
        .map_err(|error| RpcError::errno(error.raw_os_error(), "io_error"))?;
    Ok(true.into())
}

/// Parameters of `rpc_get_methods`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetMethods {
    #[serde(default)]
    current: bool,
    /// There are no aliases.
    #[serde(default, rename = "include_aliases")]
    _include_aliases: bool,
}

pub(crate) fn get_methods(_: &Node, params: &GetMethods) -> Answer {
    let shown = METHODS.iter().filter(|method| !params.current || method.gate == Gate::Runtime);
    Ok(shown.map(|method| method.name).collect())
}

/// What is always done when the socket answers.
pub(crate) fn done(_: &Node, _: &NoParams) -> Answer {
    Ok(true.into())
}

pub(crate) fn get_status(node: &Node, _: &NoParams) -> Answer {
    let settings = &node.settings;
    let bdevs = node.bdevs.list();
    let missing = bdevs.iter().filter(|bdev| bdev.device().is_none()).count();
    let controllers = node.target.controllers();
    let sessions: usize = controllers.iter().map(|controller| controller.sessions.len()).sum();
    let warnings: Vec<String> = bdevs
        .iter()
        .filter_map(|bdev| bdev.device().map(|device| (bdev.name().to_owned(), device.warnings())))
        .flat_map(|(name, warnings)| warnings.into_iter().map(move |warning| format!("{name}: {warning}")))
        .chain(node.pool_warnings())
        .chain(node.restore_warnings())
        .collect();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_seconds": node.started.elapsed().as_secs(),
        "ephemeral": settings.ephemeral,
        "state_dir": settings.state_dir,
        "rpc_socket": settings.rpc_socket,
        "vhost_dir": settings.vhost_dir,
        "metrics_listen": node.metrics_address().map(|address| address.to_string()),
        "poll": settings.poll.name(),
        "spin_max_us": settings.spin_max_us,
        "cores": settings.reactors,
        // This thread runs where all but the reactors do.
        "other_cores": pollux_reactor::allowed_cores(),
        "bdevs": bdevs.len(),
        "bdevs_missing": missing,
        "controllers": controllers.len(),
        "sessions": sessions,
        "warnings": warnings,
    }))
}

pub(crate) fn get_reactors(node: &Node, _: &NoParams) -> Answer {
    let shape = |stats: &pollux_reactor::ReactorStats| {
        let (user, system) = thread_times(stats.tid);
        json!({
            "lcore": stats.core,
            "numa_id": pollux_reactor::node_of(stats.core).unwrap_or(0),
            "tid": stats.tid,
            "busy": stats.busy_ns.get(),
            "idle": stats.idle_ns.get(),
            "in_interrupt": stats.in_sleep(),
            "worker_cores": stats.ring.worker_cores,
            "data_ring": stats.ring.data_ring.name(),
            "sq_core": stats.ring.sq_core,
            "irq": 0,
            "sys": system,
            "usr": user,
            "lw_threads": [{
                "name": format!("reactor_{}", stats.reactor),
                "id": stats.reactor + 1,
                "cpumask": vhost::mask(&[stats.core]).trim_start_matches("0x"),
                "elapsed": stats.busy_ns.get() + stats.idle_ns.get(),
            }],
        })
    };
    let reactors: Vec<Value> = node.reactors.iter().map(|stats| shape(stats)).collect();
    Ok(json!({"tick_rate": TICK_RATE, "pid": std::process::id(), "reactors": reactors}))
}

pub(crate) fn get_scheduler(node: &Node, _: &NoParams) -> Answer {
    let scheduler = node.scheduler();
    let moves = node.target.move_stats();
    Ok(json!({
        "scheduler_name": scheduler.name(),
        "scheduler_period": scheduler.period_us,
        "isolated_core_mask": "0x0",
        "load_limit": scheduler.load_limit,
        "core_limit": scheduler.core_limit,
        "core_busy": scheduler.core_busy,
        "queues_moved": moves.moved(),
        "moves_given_up": moves.given_up(),
    }))
}

pub(crate) fn get_thread_stats(node: &Node, _: &NoParams) -> Answer {
    let shape = |stats: &pollux_reactor::ReactorStats| {
        json!({
            "name": format!("reactor_{}", stats.reactor),
            "id": stats.reactor + 1,
            "cpumask": vhost::mask(&[stats.core]).trim_start_matches("0x"),
            "busy": stats.busy_ns.get(),
            "idle": stats.idle_ns.get(),
            "active_pollers_count": 1,
            "timed_pollers_count": 0,
            "paused_pollers_count": 0,
        })
    };
    let threads: Vec<Value> = node.reactors.iter().map(|stats| shape(stats)).collect();
    Ok(json!({"tick_rate": TICK_RATE, "threads": threads}))
}

/// User and system time of a thread in clock ticks; zeroes if the kernel does not say.
fn thread_times(tid: i32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    // Fields 14 and 15 of proc(5), counted from behind the name in parentheses, which may hold anything.
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect())
        .unwrap_or_default();
    match fields.as_slice() {
        [user, system] => (*user, *system),
        _ => (0, 0),
    }
}

/// Subsystems with what they depend on, in that order.
const SUBSYSTEMS: [(&str, &[&str]); 7] = [
    ("scheduler", &[]),
    ("iobuf", &[]),
    ("sock", &[]),
    ("accel", &["iobuf"]),
    ("bdev", &["accel", "sock", "iobuf"]),
    ("scsi", &["bdev"]),
    ("vhost_scsi", &["scheduler", "scsi"]),
];

pub(crate) fn get_subsystems(_: &Node, _: &NoParams) -> Answer {
    let shape = |(name, depends): &(&str, &[&str])| json!({"subsystem": name, "depends_on": depends});
    Ok(SUBSYSTEMS.iter().map(shape).collect())
}

/// Parameters of `framework_get_config`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetConfig {
    name: String,
    /// Pollux's configuration has no batches.
    #[serde(default, rename = "with_batches")]
    _with_batches: bool,
}

pub(crate) fn get_config(node: &Node, params: &GetConfig) -> Answer {
    let Some((name, _)) = SUBSYSTEMS.iter().find(|(name, _)| *name == params.name) else {
        let message = format!("Subsystem '{}' not found", params.name);
        return Err(RpcError::new(code::INVALID_PARAMS, message, "not_found"));
    };
    if *name == "scsi" {
        return Ok(Value::Null);
    }
    let document = node.document();
    let mut calls = options_of(name, &document.options);
    match *name {
        "bdev" => {
            calls.extend(document.bdevs.iter().map(create::replay));
            calls.extend(document.identities.iter().map(identity::replay));
            calls.push(json!({"method": "bdev_wait_for_examine"}));
        }
        "vhost_scsi" => calls.extend(document.controllers.iter().flat_map(vhost::replay)),
        _ => {}
    }
    Ok(calls.into())
}

fn options_of(subsystem: &str, set: &Map<String, Value>) -> Vec<Value> {
    let of = set.iter().filter_map(|(key, params)| match options::of_key(key) {
        Some((of, method)) if of == subsystem => Some(json!({"method": method, "params": params})),
        _ => None,
    });
    of.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        for (at, (name, depends)) in SUBSYSTEMS.iter().enumerate() {
            for depend in *depends {
                assert!(SUBSYSTEMS[..at].iter().any(|(earlier, _)| earlier == depend), "{name} before {depend}");
            }
        }
    }

    #[test]
    fn options_go_to_their_subsystem() {
        let set = json!({"sock_impl_set_options:posix": {"impl_name": "posix"}, "iobuf_set_options": {}, "old": {}});
        let set = set.as_object().cloned().unwrap_or_default();
        assert_eq!(
            options_of("sock", &set),
            [json!({"method": "sock_impl_set_options", "params": {"impl_name": "posix"}})]
        );
        assert_eq!(options_of("bdev", &set), Vec::<Value>::new());
    }

    #[test]
    fn a_thread_that_is_not_there_has_no_times() {
        assert_eq!(thread_times(-1), (0, 0));
    }
}
