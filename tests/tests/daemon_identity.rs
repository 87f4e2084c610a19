//! What a unit shows of itself: chosen by `bdev_set_scsi_identity`, told to guests, kept over a restart.

mod common;

use anyhow::{Result, ensure};
use common::{clear_attentions, connect, controller, ram};
use pollux_tests::daemon::Daemon;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, cdb};
use serde_json::json;

const LUN: Lun = Lun::new(0, 0);

#[test]
fn an_identity_is_shown_told_kept_and_taken_back() -> Result<()> {
    let mut daemon = Daemon::start()?;
    ram(&daemon, "disk", 8192)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, LUN)?;
    let before = front.good(LUN, &cdb::inquiry(Some(0x83), 255), &[], 255)?.data;
    let chosen = json!({"name": "disk", "vendor": "ACME", "product": "Anvil", "revision": "7", "serial": "S-1",
                        "naa": "5000c500a1b2c3d4", "rotation_rate": 7200, "unmap_granularity": 1 << 20});
    daemon.rpc("bdev_set_scsi_identity", chosen.clone())?;
    let told = front.command(FIRST_REQUEST_QUEUE, &Command::new(LUN, &cdb::TEST_UNIT_READY, &[], 0))?;
    ensure!(told.sense_key() == Some((0x06, 0x3F, 0x03)), "{told:?}");
    for _ in 0..2 {
        let standard = front.good(LUN, &cdb::inquiry(None, 96), &[], 96)?.data;
        ensure!(&standard[8..36] == b"ACME    Anvil           7   ", "{standard:02X?}");
        let serial = front.good(LUN, &cdb::inquiry(Some(0x80), 255), &[], 255)?.data;
        ensure!(serial.starts_with(b"\0\x80\0\x03S-1"), "{serial:02X?}");
        let names = front.good(LUN, &cdb::inquiry(Some(0x83), 255), &[], 255)?.data;
        let len = usize::from(names[3]) + 4;
        ensure!(names[..len].ends_with(&[0, 8, 0x50, 0, 0xC5, 0, 0xA1, 0xB2, 0xC3, 0xD4]), "{names:02X?}");
        let rate = front.good(LUN, &cdb::inquiry(Some(0xB1), 64), &[], 64)?.data;
        ensure!(rate[4..6] == [0x1C, 0x20], "{rate:02X?}");
        let listed = daemon.rpc("bdev_get_bdevs", json!({"name": "disk"}))?;
        ensure!(listed[0]["scsi_identity"]["serial"] == "S-1", "{listed}");
        let config = daemon.rpc("framework_get_config", json!({"name": "bdev"}))?;
        let calls = config.as_array().map(Vec::as_slice).unwrap_or_default();
        let call = calls.iter().find(|call| call["method"] == "bdev_set_scsi_identity");
        ensure!(call.is_some_and(|call| call["params"] == chosen), "{config}");
        drop(front);
        daemon.restart()?;
        front = connect(&daemon, "vm", &DriverOptions::default())?;
        clear_attentions(&mut front, LUN)?;
    }
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "disk"}))?;
    ensure!(front.good(LUN, &cdb::inquiry(Some(0x83), 255), &[], 255)?.data == before, "taken back");
    Ok(())
}

#[test]
fn an_identity_goes_with_its_bdev() -> Result<()> {
    let mut daemon = Daemon::start()?;
    ram(&daemon, "disk", 64)?;
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "disk", "serial": "S"}))?;
    daemon.rpc("bdev_delete", json!({"name": "disk"}))?;
    ram(&daemon, "disk", 64)?;
    daemon.restart()?;
    let listed = daemon.rpc("bdev_get_bdevs", json!({"name": "disk"}))?;
    ensure!(listed[0].get("scsi_identity").is_none(), "{listed}");
    Ok(())
}

#[test]
fn names_can_be_handed_on_and_no_two_disks_have_one() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let set = |daemon: &Daemon, bdev: &str, naa: Option<&str>| {
        daemon.rpc("bdev_set_scsi_identity", json!({"name": bdev, "naa": naa}))
    };
    let made = |daemon: &Daemon, name: &str, uuid: u8| {
        let uuid = format!("7f0c4a56-25d1-4c3f-9d5e-0000000000{uuid:02x}");
        daemon.rpc("bdev_malloc_create", json!({"name": name, "block_size": 512, "num_blocks": 64, "uuid": uuid}))
    };
    made(&daemon, "b", 1)?;
    controller(&daemon, "vm", &["b"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, LUN)?;
    let names = front.good(LUN, &cdb::inquiry(Some(0x83), 255), &[], 255)?.data;
    drop(front);
    let end = usize::from(names[3]) + 4;
    let default: String = names[end - 16..end].iter().map(|byte| format!("{byte:02x}")).collect();
    // `a`, which comes first after a restart, takes what `b` had by default.
    made(&daemon, "a", 2)?;
    set(&daemon, "b", Some("5000c500a1b2c3d4"))?;
    set(&daemon, "a", Some(&default))?;
    daemon.restart()?;
    let listed = daemon.rpc("bdev_get_bdevs", json!({"name": "a"}))?;
    ensure!(listed[0]["scsi_identity"]["naa"] == default.as_str(), "{listed}");
    let error = daemon.rpc_error("bdev_set_scsi_identity", json!({"name": "b"}))?;
    ensure!(error.reason.as_deref() == Some("invalid"), "its own name is taken: {error:?}");
    // A disk that comes with a UUID whose name another one has.
    set(&daemon, "b", Some("5000c500a1b2c3d5"))?;
    daemon.rpc("bdev_delete", json!({"name": "b", "force": true}))?;
    let again =
        json!({"name": "b", "block_size": 512, "num_blocks": 64, "uuid": "7f0c4a56-25d1-4c3f-9d5e-000000000001"});
    let error = daemon.rpc_error("bdev_malloc_create", again.clone())?;
    ensure!(error.reason.as_deref() == Some("invalid"), "`a` has that name: {error:?}");
    set(&daemon, "a", None)?;
    daemon.rpc("bdev_malloc_create", again)?;
    Ok(())
}

#[test]
fn what_cannot_be_shown_is_refused_and_changes_nothing() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "a", 64)?;
    ram(&daemon, "b", 64)?;
    let set = "bdev_set_scsi_identity";
    daemon.rpc(set, json!({"name": "a", "naa": "5000c500a1b2c3d4"}))?;
    let reason = |params| Ok::<_, anyhow::Error>(daemon.rpc_error(set, params)?.reason.unwrap_or_default());
    ensure!(reason(json!({"name": "x", "vendor": "V"}))? == "not_found");
    for wrong in [
        json!({"name": "b", "vendor": "NINECHARS"}),
        json!({"name": "b", "serial": "\u{e9}"}),
        json!({"name": "b", "naa": "6000c500a1b2c3d4"}),
        json!({"name": "b", "naa": "5000C500A1B2C3D4"}),
        json!({"name": "b", "rotation_rate": 2}),
        json!({"name": "b", "unmap_granularity": 512}),
    ] {
        ensure!(reason(wrong.clone())? == "invalid", "{wrong}");
    }
    ensure!(reason(json!({"name": "b", "colour": "red"}))? == "invalid_parameters");
    let listed = daemon.rpc("bdev_get_bdevs", json!({"name": "b"}))?;
    ensure!(listed[0].get("scsi_identity").is_none(), "{listed}");
    Ok(())
}
