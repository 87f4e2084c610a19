//! Whole SCSI devices by RPC, on a machine that has none: what is refused, and a device that is not there when the daemon
//! starts. With devices: `guest_sg.rs`.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::{attach, connect, controller};
use pollux_tests::daemon::Daemon;
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use serde_json::{Value, json};

#[test]
fn what_is_no_scsi_device_is_refused_and_nothing_is_made() -> Result<()> {
    let daemon = Daemon::start()?;
    let file = daemon.disks_dir().join("file");
    std::fs::write(&file, [0; 4096])?;
    for (params, reason) in [
        (json!({"name": "sg", "path": "/dev/null"}), "invalid"),
        (json!({"name": "sg", "path": file}), "invalid"),
        (json!({"name": "sg", "path": "/dev/there-is-no-such-device"}), "no_such_file"),
        (json!({"name": "sg", "path": ""}), "invalid"),
        (json!({"name": "sg", "path": "/dev/sg0", "allow": ["everything"]}), "invalid_parameters"),
        (json!({"name": "sg"}), "invalid_parameters"),
    ] {
        let error = daemon.rpc_error("bdev_sg_create", params.clone())?;
        ensure!(error.reason.as_deref() == Some(reason), "{params}: {error:?}");
    }
    ensure!(daemon.rpc("bdev_get_bdevs", json!({}))? == json!([]));
    let error = daemon.rpc_error("bdev_sg_delete", json!({"name": "sg"}))?;
    ensure!(error.reason.as_deref() == Some("not_found"), "{error:?}");
    daemon.rpc("bdev_null_create", json!({"name": "n", "num_blocks": 8, "block_size": 512}))?;
    let error = daemon.rpc_error("bdev_sg_delete", json!({"name": "n"}))?;
    ensure!(error.reason.as_deref() == Some("not_found"), "of another kind: {error:?}");
    Ok(())
}

/// A daemon whose state file says that a device was passed through, which this machine does not have.
fn without_its_device() -> Result<Daemon> {
    let mut daemon = Daemon::start()?;
    daemon.rpc("bdev_null_create", json!({"name": "tape", "num_blocks": 8, "block_size": 512}))?;
    controller(&daemon, "vm", &["tape"])?;
    daemon.terminate()?;
    let path = daemon.state_dir().join("state.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let bdevs = state["state"].get_mut("bdevs").context("the state has bdevs")?;
    let uuid = bdevs[0]["uuid"].clone();
    *bdevs = json!([{"type": "sg", "name": "tape", "path": "/dev/there-is-no-such-device", "allow": ["security"],
                     "identity": "naa.5000000000000001", "uuid": uuid}]);
    std::fs::write(&path, serde_json::to_vec(&state)?)?;
    daemon.restart()?;
    Ok(daemon)
}

#[test]
fn a_device_that_is_not_there_is_listed_and_its_lun_is_a_bad_target() -> Result<()> {
    let mut daemon = without_its_device()?;
    let listed = daemon.rpc("bdev_get_bdevs", json!({"name": "tape"}))?;
    ensure!(listed[0]["state"] == "missing" && listed[0]["product_name"] == "SCSI generic device", "{listed}");
    let config = daemon.rpc("framework_get_config", json!({"name": "bdev"}))?;
    let calls = config.as_array().map(Vec::as_slice).unwrap_or_default();
    let call = calls.iter().find(|call| call["method"] == "bdev_sg_create").context("it is replayed")?;
    ensure!(call["params"]["allow"] == json!(["security"]), "{call}");
    ensure!(call["params"]["identity"] == "naa.5000000000000001", "{call}");
    let lun = Lun::new(0, 0);
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    // The path's own attentions are told first.
    let mut told = Vec::new();
    while let Some(sense) = front.cdb(lun, &cdb::TEST_UNIT_READY, &[], 0)?.sense_key() {
        told.push(sense);
    }
    ensure!(told.contains(&(6, 0x29, 0)) && told.iter().all(|sense| sense.0 == 6), "{told:?}");
    for command in [&cdb::TEST_UNIT_READY, &cdb::inquiry(None, 36)] {
        let response = front.cdb(lun, command, &[], 36)?;
        ensure!((response.response, response.residual) == (3, 36), "BAD_TARGET: {response:?}");
    }
    let refused = front.cdb(lun, &[0x83; 16], &[], 0)?;
    ensure!(refused.response == 0 && refused.sense_key().is_some_and(|sense| sense.0 == 5), "{refused:?}");
    ensure!(front.cdb(lun, &cdb::report_luns(64), &[], 64)?.data[3] == 8);
    ensure!(daemon.metric("pollux_sg_refused_total", &[("bdev", "tape")])? >= 1.0);
    drop(front);
    daemon.restart()?;
    Ok(())
}

#[test]
fn a_whole_device_has_one_controller_and_nothing_on_it() -> Result<()> {
    let daemon = without_its_device()?;
    daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "other"}))?;
    let again = attach(&daemon, "other", 0, "tape");
    ensure!(again.is_err_and(|error| format!("{error:#}").contains("in_use")), "a second controller got it");
    let error = daemon.rpc_error("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "tape"}))?;
    ensure!(error.reason.as_deref() == Some("invalid"), "{error:?}");
    for method in ["bdev_set_scsi_identity", "bdev_clear_reservations", "bdev_reset_mode_pages"] {
        let error = daemon.rpc_error(method, json!({"name": "tape"}))?;
        ensure!(error.reason.as_deref() == Some("unsupported"), "{method}: {error:?}");
    }
    let error = daemon.rpc_error("bdev_sg_delete", json!({"name": "tape"}))?;
    ensure!(error.reason.as_deref() == Some("in_use"), "{error:?}");
    daemon.rpc("bdev_sg_delete", json!({"name": "tape", "force": true}))?;
    ensure!(daemon.rpc("bdev_get_bdevs", json!({}))? == json!([]));
    Ok(())
}
