//! `pollux vhost`: list, create, attach, detach, delete.

use clap::Subcommand;
use serde_json::{Value, json};

use super::CliError;
use super::client::{CallError, Client};
use super::output::{Output, cell, table, text};

#[derive(Debug, Subcommand)]
pub(crate) enum VhostCommand {
    /// List controllers and what is attached to them
    List {
        /// Only this one
        name: Option<String>,
    },
    /// Create a controller
    Create {
        /// Its name; its socket is VHOST_DIR/NAME
        name: String,
        /// Cores that serve its queues, as in --reactors [default: all reactors]
        #[arg(long)]
        cores: Option<String>,
        /// Initiator port, 16 hex digits; controllers of one machine share it [default: random, kept]
        #[arg(long)]
        initiator: Option<String>,
        /// Do not listen yet (vhost_start_scsi_controller does)
        #[arg(long)]
        delay: bool,
    },
    /// Attach a block device to a controller
    Attach {
        /// The controller
        name: String,
        /// The block device
        bdev: String,
        /// Target number [default: the first free one]
        #[arg(long)]
        target: Option<u8>,
        /// LUN of the target
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..16384))]
        lun: u16,
        /// Refuse to share the device with other controllers
        #[arg(long)]
        exclusive: bool,
    },
    /// Detach a target, or one LUN of it
    Detach {
        /// The controller
        name: String,
        /// The target
        #[arg(long)]
        target: u8,
        /// Only this LUN [default: all of the target]
        #[arg(long, value_parser = clap::value_parser!(u16).range(0..16384))]
        lun: Option<u16>,
    },
    /// Delete a controller
    Delete {
        /// The controller
        name: String,
        /// Even if a virtual machine is connected
        #[arg(long)]
        force: bool,
    },
}

pub(crate) fn run(
    command: &VhostCommand,
    connect: impl FnOnce() -> Result<Client, CallError>,
    output: &Output,
) -> Result<(), CliError> {
    match command {
        VhostCommand::List { name } => {
            let params = name.as_ref().map_or(Value::Null, |name| json!({"name": name}));
            let controllers = connect()?.call("vhost_get_controllers", params)?;
            output.show(&controllers, list)
        }
        VhostCommand::Create { name, cores, initiator, delay } => {
            let mut params = json!({"ctrlr": name, "delay": delay});
            if let Some(cores) = cores {
                params["cpumask"] = mask(cores).into();
            }
            if let Some(initiator) = initiator {
                params["initiator"] = initiator.as_str().into();
            }
            let done = connect()?.call("vhost_create_scsi_controller", params)?;
            output.show(&done, |_| format!("created {name}\n"))
        }
        VhostCommand::Attach { name, bdev, target, lun, exclusive } => {
            let target = target.map_or(-1, i32::from);
            let params = json!({"ctrlr": name, "scsi_target_num": target, "bdev_name": bdev, "lun": lun,
                                "exclusive": exclusive});
            let target = connect()?.call("vhost_scsi_controller_add_target", params)?;
            output.show(&target, |target| format!("attached {bdev} to {name} as target {} LUN {lun}\n", cell(target)))
        }
        VhostCommand::Detach { name, target, lun } => {
            let mut params = json!({"ctrlr": name, "scsi_target_num": target});
            if let Some(lun) = lun {
                params["lun"] = (*lun).into();
            }
            let done = connect()?.call("vhost_scsi_controller_remove_target", params)?;
            output.show(&done, |_| format!("detached target {target} from {name}\n"))
        }
        VhostCommand::Delete { name, force } => {
            let mut params = json!({"ctrlr": name});
            if *force {
                params["force"] = true.into();
            }
            let done = connect()?.call("vhost_delete_controller", params)?;
            output.show(&done, |_| format!("deleted {name}\n"))
        }
    }
}

/// A core list as the RPC takes it: without brackets and without 0x it would be read as a mask there.
fn mask(cores: &str) -> String {
    let plain = !cores.starts_with('[') && !cores.starts_with("0x") && !cores.starts_with("0X");
    if plain { format!("[{cores}]") } else { cores.to_owned() }
}

fn list(controllers: &Value) -> String {
    let controllers = controllers.as_array().map(Vec::as_slice).unwrap_or_default();
    if controllers.is_empty() {
        return "no controllers; `pollux vhost create` makes one\n".into();
    }
    let mut rows = table(&["CONTROLLER", "CORES", "CONNECTED", "TARGET:LUN", "BDEV", "SOCKET"]);
    for controller in controllers {
        let sessions = controller["sessions"].as_array().map_or(0, Vec::len);
        let mut first = true;
        let mut add = |at: String, bdev: String| {
            let once = |text: String| if first { text } else { String::new() };
            rows.add_row([
                once(cell(&controller["ctrlr"])),
                once(cell(&controller["cpumask"])),
                once(sessions.to_string()),
                at,
                bdev,
                once(cell(&controller["socket"])),
            ]);
            first = false;
        };
        let luns = luns(controller);
        if luns.is_empty() {
            add("-".into(), "-".into());
        }
        for (at, bdev) in luns {
            add(at, bdev);
        }
    }
    text(&rows)
}

fn luns(controller: &Value) -> Vec<(String, String)> {
    let targets = controller["backend_specific"]["scsi"].as_array().into_iter().flatten();
    let of_target = |target: &Value| {
        let number = cell(&target["scsi_dev_num"]);
        let luns = target["luns"].as_array().cloned().unwrap_or_default();
        luns.into_iter().map(move |lun| (format!("{number}:{}", cell(&lun["id"])), cell(&lun["bdev_name"])))
    };
    targets.flat_map(of_target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists_are_lists() {
        assert_eq!(
            (mask("0,1"), mask("10"), mask("0x3"), mask("[2]")),
            ("[0,1]".into(), "[10]".into(), "0x3".into(), "[2]".into())
        );
    }

    #[test]
    fn listings_show_each_lun_and_survive_any_answer() {
        assert!(list(&json!([])).contains("vhost create"));
        for odd in [json!(7), json!([{}]), json!([{"backend_specific": {"scsi": [{"luns": 3}, 4]}}])] {
            assert!(!list(&odd).is_empty());
        }
        let text = list(&json!([{"ctrlr": "vm1", "cpumask": "0x1", "socket": "/v/vm1", "sessions": [{}],
            "backend_specific": {"scsi": [{"scsi_dev_num": 0, "luns": [{"id": 0, "bdev_name": "a"},
                                                                       {"id": 3, "bdev_name": "b"}]}]}}]));
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("0:3"), "{text}");
    }
}
