//! The one list of RPC methods: name, where it may be called, whether it changes anything, its parameters and what runs
//! it. `rpc_get_methods`, the dispatcher and the check of docs/rpc.md all read it.

use std::sync::Arc;

use serde_json::Value;

use super::error::{RpcError, code};
use super::message::Request;
use super::methods::{
    bdev, create, fault, framework, identity, job, log, lvol, lvstore, map, options, reservations, shallow, transfer,
    vhost,
};
use super::params::{self, Habit, NoParams};
use crate::node::Node;

/// What a method answers.
pub type Answer = Result<Value, RpcError>;

/// In which state of the daemon SPDK allows a method. Pollux has only one state (the socket opens when the restore is
/// done, which is SPDK's RUNTIME), so this decides only what `rpc_get_methods {"current": true}` shows: a start-up method
/// is accepted and does nothing, as a client that replays a configuration expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// At any time.
    Runtime,
    /// Only before `framework_start_init`.
    Startup,
}

/// A method.
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// When it is listed as callable.
    pub gate: Gate,
    /// Whether it changes the configuration (and therefore saves it before it answers).
    pub changes: bool,
    /// The names of its parameters.
    pub params: fn() -> Vec<&'static str>,
    /// What runs it.
    pub call: fn(&Arc<Node>, Value) -> Answer,
}

/// A method with typed parameters.
macro_rules! typed {
    ($name:literal, $changes:ident, $habit:ident, $params:ty, $run:path) => {
        Method {
            name: $name,
            gate: Gate::Runtime,
            changes: is_change!($changes),
            params: || params::names::<$params>().to_vec(),
            call: |node, given| $run(node, &params::decode::<$params>(given, Habit::$habit)?),
        }
    };
}

/// An option method of SPDK: checked, remembered and without effect.
macro_rules! remembered {
    ($name:literal) => {
        Method {
            name: $name,
            gate: Gate::Runtime,
            changes: true,
            params: || options::names($name),
            call: |node, given| options::remember(node, $name, given),
        }
    };
}

macro_rules! is_change {
    (reads) => {
        false
    };
    (changes) => {
        true
    };
}

/// All methods, by family.
pub static METHODS: &[Method] = &[
    typed!("spdk_get_version", reads, Invalid, NoParams, framework::get_version),
    typed!("spdk_kill_instance", reads, Invalid, framework::Kill, framework::kill_instance),
    typed!("rpc_get_methods", reads, Invalid, framework::GetMethods, framework::get_methods),
    typed!("pollux_get_status", reads, Invalid, NoParams, framework::get_status),
    typed!("framework_get_reactors", reads, Invalid, NoParams, framework::get_reactors),
    typed!("framework_get_subsystems", reads, Invalid, NoParams, framework::get_subsystems),
    typed!("framework_get_config", reads, Argument, framework::GetConfig, framework::get_config),
    Method { gate: Gate::Startup, ..typed!("framework_start_init", reads, Invalid, NoParams, framework::done) },
    typed!("framework_wait_init", reads, Invalid, NoParams, framework::done),
    typed!("thread_get_stats", reads, Invalid, NoParams, framework::get_thread_stats),
    typed!("log_get_level", reads, Invalid, NoParams, log::get_level),
    typed!("log_set_level", reads, Invalid, log::SetLevel, log::set_level),
    typed!("log_get_print_level", reads, Invalid, NoParams, log::get_print_level),
    typed!("log_set_print_level", reads, Invalid, log::SetLevel, log::set_print_level),
    typed!("log_get_flags", reads, Invalid, NoParams, log::get_flags),
    typed!("notify_get_types", reads, Invalid, NoParams, log::get_types),
    typed!("notify_get_notifications", reads, Argument, log::GetNotifications, log::get_notifications),
    remembered!("accel_set_options"),
    remembered!("bdev_iscsi_set_options"),
    remembered!("bdev_nvme_set_hotplug"),
    remembered!("bdev_nvme_set_options"),
    remembered!("bdev_raid_set_options"),
    remembered!("bdev_set_options"),
    remembered!("framework_set_scheduler"),
    typed!("framework_get_scheduler", reads, Invalid, NoParams, framework::get_scheduler),
    remembered!("iobuf_set_options"),
    remembered!("sock_impl_set_options"),
    remembered!("sock_set_default_impl"),
    typed!("bdev_get_bdevs", reads, Decode, bdev::GetBdevs, bdev::get_bdevs),
    typed!("bdev_get_iostat", reads, Decode, bdev::GetIostat, bdev::get_iostat),
    typed!("bdev_reset_iostat", reads, Decode, bdev::ResetIostat, bdev::reset_iostat),
    typed!("bdev_examine", reads, Decode, bdev::Examine, bdev::examine),
    typed!("bdev_get_reservations", reads, Decode, reservations::Named, reservations::get),
    typed!("bdev_clear_reservations", changes, Decode, reservations::Named, reservations::clear),
    typed!("bdev_reset_mode_pages", changes, Decode, reservations::Named, reservations::reset_mode_pages),
    typed!("bdev_wait_for_examine", reads, Invalid, NoParams, framework::done),
    typed!("bdev_delete", changes, Decode, bdev::Delete, bdev::delete),
    typed!("bdev_malloc_create", changes, Decode, create::Malloc, create::malloc),
    typed!("bdev_malloc_delete", changes, Decode, bdev::Delete, bdev::delete_malloc),
    typed!("bdev_null_create", changes, Decode, create::Null, create::null),
    typed!("bdev_null_delete", changes, Decode, bdev::Delete, bdev::delete_null),
    typed!("bdev_null_resize", changes, Decode, bdev::Resize, bdev::null_resize),
    typed!("bdev_aio_create", changes, Decode, create::Aio, create::aio),
    typed!("bdev_aio_delete", changes, Decode, bdev::Delete, bdev::delete_file),
    typed!("bdev_aio_rescan", changes, Decode, bdev::Rescan, bdev::rescan),
    typed!("bdev_uring_create", changes, Decode, create::Uring, create::uring),
    typed!("bdev_uring_delete", changes, Decode, bdev::Delete, bdev::delete_file),
    typed!("bdev_uring_rescan", changes, Decode, bdev::Rescan, bdev::rescan),
    typed!("bdev_sg_create", changes, Decode, create::Sg, create::sg),
    typed!("bdev_sg_delete", changes, Decode, bdev::Delete, bdev::delete_sg),
    typed!("bdev_passthru_create", changes, Decode, create::Passthru, create::passthru),
    typed!("bdev_passthru_delete", changes, Decode, bdev::Delete, bdev::delete_passthru),
    typed!("bdev_split_create", changes, Decode, create::Split, create::split),
    typed!("bdev_split_delete", changes, Decode, bdev::DeleteSplit, bdev::delete_split),
    typed!("bdev_delay_create", changes, Decode, create::Delay, create::delay),
    typed!("bdev_delay_delete", changes, Decode, bdev::Delete, bdev::delete_delay),
    typed!("bdev_delay_update_latency", changes, Decode, fault::UpdateLatency, fault::update_latency),
    typed!("bdev_set_scsi_identity", changes, Decode, identity::SetScsiIdentity, identity::set_scsi_identity),
    typed!("bdev_error_create", changes, Decode, create::Error, create::error),
    typed!("bdev_error_delete", changes, Decode, bdev::Delete, bdev::delete_error),
    typed!("bdev_error_inject_error", reads, Decode, fault::Inject, fault::inject_error),
    typed!("bdev_error_resume_pending", reads, Decode, fault::Named, fault::resume_pending),
    typed!("bdev_error_power_cut", reads, Decode, fault::PowerCut, fault::power_cut),
    typed!("bdev_lvol_create_lvstore", changes, Decode, lvstore::Create, lvstore::create),
    typed!("bdev_lvol_delete_lvstore", changes, Decode, lvstore::Named, lvstore::delete),
    typed!("bdev_lvol_get_lvstores", reads, Decode, lvstore::Named, lvstore::get),
    typed!("bdev_lvol_scrub_lvstore", reads, Decode, lvstore::Scrub, lvstore::scrub),
    typed!("bdev_lvol_rename_lvstore", changes, Decode, lvstore::Rename, lvstore::rename),
    typed!("bdev_lvol_grow_lvstore", changes, Decode, lvstore::Named, lvstore::grow),
    typed!("bdev_lvol_create", changes, Decode, lvol::Create, lvol::create),
    typed!("bdev_lvol_get_lvols", reads, Decode, lvstore::GetLvols, lvstore::get_lvols),
    typed!("bdev_lvol_snapshot", changes, Decode, lvol::Snapshot, lvol::snapshot),
    typed!("bdev_lvol_snapshot_group", changes, Decode, lvol::SnapshotGroup, lvol::snapshot_group),
    typed!("bdev_lvol_clone", changes, Decode, lvol::Clone, lvol::clone),
    typed!("bdev_lvol_clone_bdev", changes, Decode, lvol::CloneBdev, lvol::clone_bdev),
    typed!("bdev_lvol_resize", changes, Decode, lvol::Resize, lvol::resize),
    typed!("bdev_lvol_rename", changes, Decode, lvol::Rename, lvol::rename),
    typed!("bdev_lvol_set_read_only", changes, Decode, lvol::Named, lvol::set_read_only),
    typed!("bdev_lvol_rollback", changes, Decode, lvol::Rollback, lvol::roll_back),
    typed!("bdev_lvol_inflate", changes, Decode, lvol::Inflate, lvol::inflate),
    typed!("bdev_lvol_decouple_parent", changes, Decode, lvol::Inflate, lvol::decouple_parent),
    typed!("bdev_lvol_set_parent", changes, Decode, lvol::SetParent, lvol::set_parent),
    typed!("bdev_lvol_set_parent_bdev", changes, Decode, lvol::SetParent, lvol::set_parent_bdev),
    typed!("bdev_lvol_set_limits", changes, Decode, lvol::SetLimits, lvol::set_limits),
    typed!("bdev_lvol_get_allocated", reads, Decode, map::Allocated, map::get_allocated),
    typed!("bdev_lvol_get_delta", reads, Decode, map::Delta, map::get_delta),
    typed!("bdev_lvol_export", reads, Decode, transfer::ExportParams, transfer::export),
    typed!("bdev_lvol_import", changes, Decode, transfer::ImportParams, transfer::import),
    typed!("bdev_lvol_start_shallow_copy", reads, Decode, shallow::Start, shallow::start),
    typed!("bdev_lvol_check_shallow_copy", reads, Decode, shallow::Check, shallow::check),
    typed!("bdev_lvol_set_thresholds", changes, Decode, lvstore::SetThresholds, lvstore::set_thresholds),
    typed!("bdev_lvol_delete", changes, Decode, lvol::Delete, lvol::delete),
    typed!("job_get_jobs", reads, Decode, job::GetJobs, job::get_jobs),
    typed!("job_cancel", reads, Decode, job::Cancel, job::cancel),
    typed!("vhost_create_scsi_controller", changes, Argument, vhost::Create, vhost::create),
    typed!("vhost_start_scsi_controller", changes, Argument, vhost::Start, vhost::start),
    typed!("vhost_scsi_controller_add_target", changes, Argument, vhost::AddTarget, vhost::add_target),
    typed!("vhost_scsi_controller_remove_target", changes, Argument, vhost::RemoveTarget, vhost::remove_target),
    typed!("vhost_scsi_enable_histogram", reads, Argument, vhost::Histogram, vhost::enable_histogram),
    typed!("vhost_scsi_controller_move_queue", reads, Argument, vhost::MoveQueue, vhost::move_queue),
    typed!("vhost_get_controllers", reads, Decode, vhost::Get, vhost::get_controllers),
    typed!("vhost_delete_controller", changes, Argument, vhost::Delete, vhost::delete),
    typed!("scsi_get_devices", reads, Invalid, NoParams, vhost::get_scsi_devices),
];

/// Finds a method.
#[must_use]
pub fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// Runs a request.
///
/// # Errors
/// What the method answers, or that there is none.
pub fn call(node: &Arc<Node>, request: &Request) -> Answer {
    let Some(method) = find(&request.method) else {
        let name: String = request.method.chars().take(64).collect();
        let error = RpcError::new(code::METHOD_NOT_FOUND, "Method not found", "method_not_found");
        return Err(error.detail(format!("there is no method '{name}'; rpc_get_methods lists them")));
    };
    let outcome = (method.call)(node, request.params.clone());
    match &outcome {
        Ok(_) if method.changes => tracing::info!("{} {}", method.name, shown(&request.params)),
        Err(error) if method.changes => tracing::warn!("{} {}: {error}", method.name, shown(&request.params)),
        _ => tracing::debug!("{} {}", method.name, shown(&request.params)),
    }
    outcome
}

/// Parameters for the log: JSON (so nothing in them can break a line), and not more than fits on a screen.
fn shown(params: &Value) -> String {
    params.to_string().chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The table of reasons in docs/rpc.md has each word that is in the sources.
    #[test]
    fn the_documentation_lists_all_reasons() {
        let text = include_str!("../../docs/rpc.md");
        let (_, table) = text.split_once("| reason | meaning |").expect("the table of reasons");
        let rows = table.split("\n\n").next().unwrap_or_default().lines();
        let words = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2));
        let documented: BTreeSet<&str> = words.collect();
        let sources = [
            (include_str!("../../bdev/src/error.rs"), "fn reason"),
            (include_str!("../../bdev/src/thin/error.rs"), "fn reason"),
            (include_str!("../../bdev/src/thin/store/error.rs"), "fn reason"),
            (include_str!("../node/error.rs"), "fn word"),
        ];
        for (source, function) in sources {
            let body = source.split_once(function).and_then(|(_, rest)| rest.split_once("\n    }\n"));
            let (body, _) = body.expect("a function that says the word");
            for word in body.split('"').skip(1).step_by(2).filter(|word| *word != "exists") {
                assert!(documented.contains(word), "docs/rpc.md does not say what reason {word} means");
            }
        }
        for word in ["duplicate", "same_pool", "not_persistent"] {
            assert!(documented.contains(word), "docs/rpc.md does not say what reason {word} means");
        }
    }

    #[test]
    fn names_are_there_once() {
        let names: BTreeSet<_> = METHODS.iter().map(|method| method.name).collect();
        assert_eq!(names.len(), METHODS.len());
    }

    /// docs/rpc.md has a heading for each method, and none for anything else; each parameter is named below its method.
    #[test]
    fn the_documentation_lists_exactly_the_table() {
        let text = include_str!("../../docs/rpc.md");
        let mut documented = BTreeSet::new();
        for section in text.split("\n### ").skip(1) {
            let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
            let body = body.split("\n## ").next().unwrap_or(body);
            for name in heading.split(',').map(|name| name.trim().trim_matches('`')) {
                let Some(method) = find(name) else { panic!("docs/rpc.md describes {name}, which is no method") };
                assert!(documented.insert(name), "docs/rpc.md describes {name} twice");
                for param in (method.params)() {
                    assert!(body.contains(&format!("`{param}`")), "docs/rpc.md does not name {param} of {name}");
                }
            }
        }
        for method in METHODS {
            assert!(documented.contains(method.name), "docs/rpc.md does not describe {}", method.name);
        }
    }
}
