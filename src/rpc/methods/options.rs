//! Option methods of SPDK that its own `save_config` writes. Pollux has nothing for most of them to set (no buffer
//! pools, no sockets of its own, no NVMe driver; the scheduler reads what is remembered); they are checked, remembered
//! and given back by `framework_get_config`, so that a saved SPDK configuration loads and comes out again as it was.

use serde_json::Value;

use crate::node::{Node, Scheduler};
use crate::rpc::params::{self, Habit};
use crate::rpc::table::Answer;

/// A type of parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Number,
    Bool,
    Text,
    List,
}

use Type::{Bool, List, Number, Text};

struct OptionMethod {
    name: &'static str,
    subsystem: &'static str,
    habit: Habit,
    required: &'static [&'static str],
    params: &'static [(&'static str, Type)],
}

const OPTIONS: &[OptionMethod] = &[
    OptionMethod {
        name: "accel_set_options",
        subsystem: "accel",
        habit: Habit::Invalid,
        required: &[],
        params: &[
            ("small_cache_size", Number),
            ("large_cache_size", Number),
            ("task_count", Number),
            ("sequence_count", Number),
            ("buf_count", Number),
        ],
    },
    OptionMethod {
        name: "bdev_iscsi_set_options",
        subsystem: "bdev",
        habit: Habit::Decode,
        required: &[],
        params: &[("timeout_sec", Number)],
    },
    OptionMethod {
        name: "bdev_nvme_set_hotplug",
        subsystem: "bdev",
        habit: Habit::Argument,
        required: &["enable"],
        params: &[("enable", Bool), ("period_us", Number)],
    },
    OptionMethod {
        name: "bdev_nvme_set_options",
        subsystem: "bdev",
        habit: Habit::Decode,
        required: &[],
        params: NVME,
    },
    OptionMethod {
        name: "bdev_raid_set_options",
        subsystem: "bdev",
        habit: Habit::Decode,
        required: &[],
        params: &[("process_window_size_kb", Number), ("process_max_bandwidth_mb_sec", Number)],
    },
    OptionMethod {
        name: "bdev_set_options",
        subsystem: "bdev",
        habit: Habit::Invalid,
        required: &[],
        params: &[
            ("bdev_io_pool_size", Number),
            ("bdev_io_cache_size", Number),
            ("bdev_auto_examine", Bool),
            ("iobuf_small_cache_size", Number),
            ("iobuf_large_cache_size", Number),
        ],
    },
    OptionMethod {
        name: "framework_set_scheduler",
        subsystem: "scheduler",
        habit: Habit::Invalid,
        required: &["name"],
        params: &[
            ("name", Text),
            ("period", Number),
            ("load_limit", Number),
            ("core_limit", Number),
            ("core_busy", Number),
            ("mappings", Text),
        ],
    },
    OptionMethod {
        name: "iobuf_set_options",
        subsystem: "iobuf",
        habit: Habit::Invalid,
        required: &[],
        params: &[
            ("small_pool_count", Number),
            ("large_pool_count", Number),
            ("small_bufsize", Number),
            ("large_bufsize", Number),
            ("enable_numa", Bool),
        ],
    },
    OptionMethod {
        name: "sock_impl_set_options",
        subsystem: "sock",
        habit: Habit::Invalid,
        required: &["impl_name"],
        params: &[
            ("impl_name", Text),
            ("recv_buf_size", Number),
            ("send_buf_size", Number),
            ("enable_recv_pipe", Bool),
            ("enable_quickack", Bool),
            ("enable_placement_id", Number),
            ("enable_zerocopy_send_server", Bool),
            ("enable_zerocopy_send_client", Bool),
            ("zerocopy_threshold", Number),
            ("tls_version", Number),
            ("enable_ktls", Bool),
        ],
    },
    OptionMethod {
        name: "sock_set_default_impl",
        subsystem: "sock",
        habit: Habit::Invalid,
        required: &["impl_name"],
        params: &[("impl_name", Text)],
    },
];

const NVME: &[(&str, Type)] = &[
    ("action_on_timeout", Text),
    ("timeout_us", Number),
    ("timeout_admin_us", Number),
    ("keep_alive_timeout_ms", Number),
    ("arbitration_burst", Number),
    ("low_priority_weight", Number),
    ("medium_priority_weight", Number),
    ("high_priority_weight", Number),
    ("nvme_adminq_poll_period_us", Number),
    ("nvme_ioq_poll_period_us", Number),
    ("io_queue_requests", Number),
    ("delay_cmd_submit", Bool),
    ("transport_retry_count", Number),
    ("bdev_retry_count", Number),
    ("transport_ack_timeout", Number),
    ("ctrlr_loss_timeout_sec", Number),
    ("reconnect_delay_sec", Number),
    ("fast_io_fail_timeout_sec", Number),
    ("disable_auto_failback", Bool),
    ("generate_uuids", Bool),
    ("transport_tos", Number),
    ("nvme_error_stat", Bool),
    ("rdma_srq_size", Number),
    ("io_path_stat", Bool),
    ("allow_accel_sequence", Bool),
    ("rdma_max_cq_size", Number),
    ("rdma_cm_event_timeout_ms", Number),
    ("dhchap_digests", List),
    ("dhchap_dhgroups", List),
    ("rdma_umr_per_io", Bool),
    ("tcp_connect_timeout_ms", Number),
    ("enable_flush", Bool),
    ("multipath_opts", List),
];

fn find(name: &str) -> Option<&'static OptionMethod> {
    OPTIONS.iter().find(|method| method.name == name)
}

/// The names of the parameters of an option method.
#[must_use]
pub fn names(name: &str) -> Vec<&'static str> {
    find(name).map(|method| method.params.iter().map(|(name, _)| *name).collect()).unwrap_or_default()
}

/// Takes the call of an option method.
///
/// # Errors
/// The habitual error for parameters that the method does not have, or of another type; or that it was not saved.
pub fn remember(node: &Node, name: &'static str, given: Value) -> Answer {
    let habit = find(name).map_or(Habit::Invalid, |method| method.habit);
    let members = params::members(given, habit)?;
    if let Some(method) = find(name) {
        for (member, value) in &members {
            let Some((_, expected)) = method.params.iter().find(|(known, _)| known == member) else {
                return Err(habit.error(format!("unknown parameter '{member}'")));
            };
            if !fits(*expected, value) {
                return Err(habit.error(format!("'{member}' cannot be {value}")));
            }
        }
        if let Some(missing) = method.required.iter().find(|name| !members.contains_key(**name)) {
            return Err(habit.error(format!("'{missing}' is missing")));
        }
        if name == "framework_set_scheduler" {
            Scheduler::parse(&Value::Object(members.clone())).map_err(|why| habit.error(why))?;
        }
    }
    // One implementation of sockets does not overwrite the options of another.
    let key = match members.get("impl_name").and_then(Value::as_str) {
        Some(implementation) if name == "sock_impl_set_options" => format!("{name}:{implementation}"),
        _ => name.to_owned(),
    };
    node.set_option(&key, members).map_err(|error| error.by_params())?;
    Ok(Value::Bool(true))
}

fn fits(expected: Type, value: &Value) -> bool {
    match expected {
        Number => value.is_i64() || value.is_u64(),
        Bool => value.is_boolean(),
        Text => value.is_string(),
        List => value.is_array() || value.is_object(),
    }
}

/// The subsystem that an option belongs to and the method that sets it, by the key it is remembered under.
#[must_use]
pub fn of_key(key: &str) -> Option<(&'static str, &'static str)> {
    let name = key.split(':').next().unwrap_or(key);
    find(name).map(|method| (method.subsystem, method.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::table::METHODS;

    #[test]
    fn every_option_is_in_the_method_table_and_leads_back() {
        for method in OPTIONS {
            assert!(METHODS.iter().any(|listed| listed.name == method.name), "{}", method.name);
            assert_eq!(of_key(method.name), Some((method.subsystem, method.name)));
            assert!(method.required.iter().all(|name| names(method.name).contains(name)));
        }
        assert_eq!(of_key("sock_impl_set_options:posix"), Some(("sock", "sock_impl_set_options")));
        assert_eq!(of_key("nonsense"), None);
    }
}
