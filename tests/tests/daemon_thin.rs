//! Thin pools in the real daemon: volumes, snapshots and clones as LUNs, what an operator may do with them while guests
//! use them, and what comes back after a crash, a missing base and a damaged pool.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use common::thin::{SOON, flush, listed, lun, pool, reads, refused, restart_without, served, text, volume, write};
use common::{attach, clear_attentions, connect, controller, file, run_load, within};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, ScsiLoad, ScsiMix, cdb};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

#[test]
fn snapshots_and_clones_hold_what_was_there_and_survive_kill_9() -> Result<()> {
    let mut daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 256 * MIB)?;
    let uuid = volume(&daemon, "lvs", "v", 64)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    reads(&mut front, 0, 0, 0)?;
    write(&mut front, 0, 0, 1)?;
    write(&mut front, 0, 1000, 1)?;
    let snapshot = text(&daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": "s"}))?)?;
    write(&mut front, 0, 0, 2)?;
    let clone = text(&daemon.rpc("bdev_lvol_clone", json!({"snapshot_name": snapshot, "clone_name": "c"}))?)?;
    attach(&daemon, "vm", 1, "lvs/c")?;
    attach(&daemon, "vm", 2, &snapshot)?;
    write(&mut front, 1, 1000, 3)?;
    for target in 0..2 {
        flush(&mut front, target)?;
    }
    let write_protected = |front: &mut FrontEnd| -> Result<()> {
        clear_attentions(front, lun(2))?;
        let refused = front.cdb(lun(2), &cdb::write10(0, 8, false), &[9; 4096], 0)?;
        ensure!(refused.sense_key() == Some((7, 0x27, 0)), "a snapshot is read-only: {refused:?}");
        Ok(())
    };
    let all_there = |front: &mut FrontEnd| -> Result<()> {
        for (target, first, second) in [(0, 2, 1), (1, 1, 3), (2, 1, 1)] {
            reads(front, target, 0, first)?;
            reads(front, target, 1000, second)?;
            reads(front, target, 5000, 0)?;
        }
        Ok(())
    };
    all_there(&mut front)?;
    write_protected(&mut front)?;
    let before = configuration(&daemon)?;
    ensure!(before[0]["children"].as_array().map(Vec::len) == Some(2), "{before}");
    for crash in [true, true, false] {
        drop(front);
        if !crash {
            ensure!(daemon.terminate()?.code() == Some(0));
        }
        daemon.restart()?;
        ensure!(configuration(&daemon)? == before, "{} became {}", before, configuration(&daemon)?);
        front = connect(&daemon, "vm", &DriverOptions::default())?;
        all_there(&mut front)?;
        write_protected(&mut front)?;
    }
    let names = daemon.rpc("bdev_get_bdevs", json!({"name": "lvs/v"}))?;
    ensure!(names[0]["name"] == uuid.as_str() && names[0]["product_name"] == "Logical Volume", "{names}");
    let specific = &names[0]["driver_specific"]["lvol"];
    ensure!(specific["clone"] == true && specific["base_snapshot"] == "s" && specific["base_bdev"] == "f0", "{names}");
    let of = daemon.rpc("bdev_get_bdevs", json!({"name": snapshot}))?;
    ensure!(of[0]["driver_specific"]["lvol"]["clones"] == json!(["v", "c"]), "{of}");
    ensure!(of[0]["read_only"] == true && of[0]["aliases"] == json!(["lvs/s"]), "{of}");
    ensure!(daemon.rpc("bdev_get_bdevs", json!({"name": clone}))?[0]["aliases"] == json!(["lvs/c"]));
    Ok(())
}

/// What a restart has to bring back of volumes; what they own is said anew by the first checkpoint.
fn configuration(daemon: &Daemon) -> Result<Value> {
    let mut all = daemon.rpc("bdev_lvol_get_lvols", Value::Null)?;
    for volume in all.as_array_mut().context("a list")? {
        for counted in ["owned_bytes", "written_bytes", "shared_bytes", "num_allocated_clusters"] {
            volume[counted] = Value::Null;
        }
    }
    Ok(all)
}

#[test]
fn random_commands_on_a_volume_read_what_was_written_while_it_is_snapshotted() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions { reactors: "0,1".into(), ..DaemonOptions::default() })?;
    pool(&daemon, "f0", "lvs", 256 * MIB)?;
    volume(&daemon, "lvs", "v", 4)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions { request_queues: 4, ..DriverOptions::default() })?;
    clear_attentions(&mut front, lun(0))?;
    let mut load = ScsiLoad::new(lun(0), 512, 8192, 5);
    for round in 0..4 {
        run_load(&mut front, &mut load, &ScsiMix::default(), 800, 48, round)?;
        ensure!(load.others.is_empty(), "commands failed: {:?}", load.others);
        let snapshot = json!({"lvol_name": "lvs/v", "snapshot_name": format!("s{round}")});
        daemon.rpc("bdev_lvol_snapshot", snapshot)?;
    }
    Ok(())
}

#[test]
fn guests_see_another_size_and_nothing_is_cut_off_by_mistake() -> Result<()> {
    let daemon = Daemon::start()?;
    let mut front = served(&daemon, &[("v", 16)])?;
    daemon.rpc("bdev_lvol_resize", json!({"name": "lvs/v", "size_in_mib": 32}))?;
    let told = front.cdb(lun(0), &cdb::TEST_UNIT_READY, &[], 0)?;
    ensure!(told.sense_key() == Some((6, 0x2A, 9)), "{told:?}");
    let capacity = front.good(lun(0), &cdb::read_capacity16(), &[], 32)?.data;
    ensure!(u64::from_be_bytes(capacity[..8].try_into()?) == 32 * MIB / 512 - 1, "{capacity:?}");
    write(&mut front, 0, 60000, 7)?;
    reads(&mut front, 0, 60000, 7)?;
    let smaller = json!({"name": "lvs/v", "size": 16 * MIB});
    refused(&daemon, "bdev_lvol_resize", smaller, -32602, "Invalid argument", "would_shrink")?;
    reads(&mut front, 0, 60000, 7)?;
    let neither = json!({"name": "lvs/v"});
    refused(&daemon, "bdev_lvol_resize", neither, -32603, "spdk_json_decode_object failed", "invalid_parameters")?;
    ensure!(listed(&daemon, "lvs/v")?["size_bytes"] == 32 * MIB);
    Ok(())
}

#[test]
fn what_is_used_is_not_deleted_and_what_is_deleted_stays_so() -> Result<()> {
    let mut daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 256 * MIB)?;
    let uuid = volume(&daemon, "lvs", "v", 16)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let busy = "Device or resource busy";
    refused(&daemon, "bdev_lvol_delete", json!({"name": "lvs/v"}), -32603, busy, "in_use")?;
    refused(&daemon, "bdev_lvol_delete_lvstore", json!({"lvs_name": "lvs"}), -32602, busy, "in_use")?;
    refused(&daemon, "bdev_aio_delete", json!({"name": "f0"}), -16, busy, "in_use")?;
    refused(&daemon, "bdev_delete", json!({"name": uuid}), -16, busy, "in_use")?;
    // The pool's base is nobody else's.
    let params = json!({"ctrlr": "vm", "scsi_target_num": 3, "bdev_name": "f0"});
    refused(&daemon, "vhost_scsi_controller_add_target", params, -32602, busy, "in_use")?;
    let params = json!({"name": "p", "base_bdev_name": "f0"});
    refused(&daemon, "bdev_passthru_create", params, -16, busy, "in_use")?;
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 0}))?;
    // A layer above counts as use, too, and works.
    daemon.rpc("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "lvs/v"}))?;
    refused(&daemon, "bdev_lvol_delete", json!({"name": "lvs/v"}), -32603, busy, "in_use")?;
    attach(&daemon, "vm", 0, "p")?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 0, 0, 5)?;
    flush(&mut front, 0)?;
    drop(front);
    daemon.restart()?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    reads(&mut front, 0, 0, 5)?;
    drop(front);
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 0}))?;
    daemon.rpc("bdev_passthru_delete", json!({"name": "p"}))?;
    // A snapshot may go at any time, whoever stands on it.
    for snapshot in ["s", "t"] {
        daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": uuid, "snapshot_name": snapshot}))?;
    }
    daemon.rpc("bdev_lvol_delete", json!({"name": "lvs/t"}))?;
    ensure!(listed(&daemon, "lvs/v")?["parent"]["name"] == "s");
    daemon.rpc("bdev_lvol_delete", json!({"name": "lvs/v"}))?;
    refused(&daemon, "bdev_lvol_delete", json!({"name": "lvs/v"}), -19, "No such device", "not_found")?;
    daemon.rpc("bdev_lvol_delete", json!({"name": "lvs/s"}))?;
    daemon.restart()?;
    ensure!(daemon.rpc("bdev_lvol_get_lvols", Value::Null)? == json!([]));
    volume(&daemon, "lvs", "w", 16)?;
    daemon.rpc("bdev_lvol_delete_lvstore", json!({"lvs_name": "lvs"}))?;
    refused(&daemon, "bdev_lvol_get_lvstores", json!({"lvs_name": "lvs"}), -19, "No such device", "not_found")?;
    daemon.restart()?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)? == json!([]));
    daemon.rpc("bdev_aio_delete", json!({"name": "f0"}))?;
    Ok(())
}

#[test]
fn volumes_of_a_missing_base_come_back_with_it() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let path = pool(&daemon, "f0", "lvs", 256 * MIB)?;
    let uuid = volume(&daemon, "lvs", "v", 16)?;
    volume(&daemon, "lvs", "other", 16)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "lvs/v", "serial": "S1"}))?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 0, 0, 4)?;
    flush(&mut front, 0)?;
    drop(front);
    let away = restart_without(&mut daemon, &path)?;
    let bdev = daemon.rpc("bdev_get_bdevs", json!({"name": uuid}))?;
    ensure!(bdev[0]["state"] == "missing" && bdev[0]["product_name"] == "Logical Volume", "{bdev}");
    ensure!(daemon.rpc_error("bdev_get_bdevs", json!({"name": "lvs/other"}))?.code == -19);
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    within(
        SOON,
        || Ok(front.cdb(lun(0), &cdb::TEST_UNIT_READY, &[], 0)?.sense_key().map(|sense| sense.0) == Some(2)),
        "the LUN is not ready",
    )?;
    refused(&daemon, "bdev_lvol_delete", json!({"name": uuid}), -19, "No such device", "missing")?;
    fs::rename(&away, &path)?;
    let state =
        |name: &str| -> Result<Value> { Ok(daemon.rpc("bdev_get_bdevs", json!({"name": name}))?[0]["state"].clone()) };
    within(SOON, || Ok(state(&uuid)? == "online"), "it does not come back")?;
    ensure!(state("lvs/other")? == "online" && state("lvs/v")? == "online");
    within(SOON, || Ok(front.cdb(lun(0), &cdb::TEST_UNIT_READY, &[], 0)?.good()), "the LUN does not come back")?;
    reads(&mut front, 0, 0, 4)?;
    // Nobody needs what is missing: it is listed no more.
    drop(front);
    daemon.rpc("vhost_delete_controller", json!({"ctrlr": "vm", "force": true}))?;
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "lvs/v"}))?;
    daemon.rpc("bdev_aio_delete", json!({"name": "f0"}))?;
    ensure!(daemon.rpc_error("bdev_get_bdevs", json!({"name": uuid}))?.code == -19);
    // The pool was closed and not deleted.
    daemon.rpc("bdev_aio_create", json!({"name": "again", "filename": path, "block_size": 512}))?;
    ensure!(listed(&daemon, "lvs/v")?["uuid"] == uuid.as_str());
    Ok(())
}

#[test]
fn a_copy_or_a_damaged_pool_is_named_and_the_daemon_goes_on() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let path = pool(&daemon, "f0", "lvs", 256 * MIB)?;
    volume(&daemon, "lvs", "v", 16)?;
    daemon.kill9();
    let copy = daemon.disks_dir().join("copy");
    fs::copy(&path, &copy)?;
    daemon.restart()?;
    let create = |name: &str, path: &PathBuf| {
        daemon.rpc("bdev_aio_create", json!({"name": name, "filename": path, "block_size": 512}))
    };
    create("f1", &copy)?;
    let pools = daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?;
    ensure!(pools[0]["base_bdev"] == "f0" && pools[0]["state"] == "online", "{pools}");
    ensure!(pools[1]["base_bdev"] == "f1" && pools[1]["state"] == "duplicate", "{pools}");
    ensure!(pools[1]["why"].as_str().is_some_and(|why| why.contains("'f0'")), "{pools}");
    // Wherever the superblocks are damaged so that they can no more be believed.
    let damaged = daemon.disks_dir().join("damaged");
    fs::copy(&copy, &damaged)?;
    let image = File::options().write(true).open(&damaged)?;
    for slot in 0..4 {
        image.write_all_at(&[0xAA; 64], slot * 256 * 1024 + 100)?;
    }
    create("f2", &damaged)?;
    let pools = daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?;
    ensure!(pools[2]["base_bdev"] == "f2" && pools[2]["state"] == "damaged", "{pools}");
    ensure!(daemon.log_tail().contains("'f2' is not opened"), "{}", daemon.log_tail());
    let new = json!({"bdev_name": "f2", "lvs_name": "new"});
    ensure!(daemon.rpc_error("bdev_lvol_create_lvstore", new)?.reason.as_deref() == Some("pool_there"));
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "f2", "lvs_name": "new", "force": true}))?;
    daemon.restart()?;
    let pools = daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?;
    let states: Vec<_> = pools.as_array().context("a list")?.iter().map(|pool| &pool["state"]).collect();
    ensure!(states == ["online", "online", "duplicate"], "{pools}");
    daemon.rpc("bdev_aio_delete", json!({"name": "f1"}))?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?.as_array().map(Vec::len) == Some(2));
    Ok(())
}

#[test]
fn a_pool_that_a_guest_has_written_is_not_looked_for() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let path = pool(&daemon, "f0", "lvs", 256 * MIB)?;
    daemon.terminate()?;
    let copy = daemon.disks_dir().join("guests");
    fs::copy(&path, &copy)?;
    daemon.restart()?;
    daemon.rpc("bdev_lvol_delete_lvstore", json!({"lvs_name": "lvs"}))?;
    // As if a guest had written it.
    file(&daemon, "disk", 256 * MIB)?;
    controller(&daemon, "vm", &["disk"])?;
    daemon.kill9();
    fs::copy(&copy, daemon.disks_dir().join("disk"))?;
    daemon.restart()?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)? == json!([]));
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    front.good(lun(0), &cdb::read10(0, 8), &[], 4096)?;
    // Unless an operator says so.
    drop(front);
    daemon.rpc("vhost_delete_controller", json!({"ctrlr": "vm", "force": true}))?;
    daemon.rpc("bdev_examine", json!({"name": "disk"}))?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "lvs"}))?[0]["base_bdev"] == "disk");
    Ok(())
}

#[test]
fn a_pool_whose_base_fails_is_read_only_until_it_is_opened_again() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "f0", 256 * MIB)?;
    daemon.rpc("bdev_error_create", json!({"base_name": "f0"}))?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "EE_f0", "lvs_name": "lvs"}))?;
    volume(&daemon, "lvs", "v", 16)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 0, 0, 1)?;
    flush(&mut front, 0)?;
    let inject = |kind: &str| json!({"name": "EE_f0", "io_type": kind, "error_type": "failure", "num": 4294967295u32});
    daemon.rpc("bdev_error_inject_error", inject("flush"))?;
    write(&mut front, 0, 8, 2)?;
    let failed = front.cdb(lun(0), &cdb::sync10(), &[], 0)?;
    ensure!(matches!(failed.sense_key(), Some((3 | 4, ..))), "{failed:?}");
    let protected = || {
        let refused = front.cdb(lun(0), &cdb::write10(0, 8, false), &[9; 4096], 0)?;
        Ok(refused.sense_key() == Some((7, 0x27, 0)))
    };
    within(SOON, protected, "guests are not told")?;
    reads(&mut front, 0, 0, 1)?;
    let shown = || Ok(daemon.metric("pollux_pool_failed", &[("pool", "lvs")])? == 1.0);
    within(SOON, shown, "metrics do not show it")?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?[0]["state"] == "failed");
    let warnings = daemon.rpc("pollux_get_status", Value::Null)?["warnings"].to_string();
    ensure!(warnings.contains("bdev_examine"), "{warnings}");
    let snapshot = json!({"lvol_name": "lvs/v", "snapshot_name": "s"});
    refused(&daemon, "bdev_lvol_snapshot", snapshot, -32602, "Read-only file system", "pool_failed")?;
    // As often as it is tried: it cannot be opened while the base fails.
    daemon.rpc("bdev_examine", json!({"name": "EE_f0"}))?;
    let state = daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?;
    ensure!(state[0]["state"] == "io" && state[0]["name"] == "lvs", "{state}");
    daemon.rpc("bdev_error_inject_error", inject("clear"))?;
    daemon.rpc("bdev_examine", json!({"name": "EE_f0"}))?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?[0]["state"] == "online");
    within(SOON, || Ok(front.cdb(lun(0), &cdb::TEST_UNIT_READY, &[], 0)?.good()), "the LUN does not come back")?;
    reads(&mut front, 0, 0, 1)?;
    write(&mut front, 0, 0, 3)?;
    flush(&mut front, 0)?;
    reads(&mut front, 0, 0, 3)?;
    Ok(())
}

#[test]
fn rolling_back_needs_no_guest_or_force() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 256 * MIB)?;
    volume(&daemon, "lvs", "v", 16)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 0, 0, 1)?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": "s"}))?;
    write(&mut front, 0, 0, 2)?;
    write(&mut front, 0, 800, 2)?;
    let params = json!({"name": "lvs/v", "snapshot_name": "lvs/s"});
    let busy = "Device or resource busy";
    refused(&daemon, "bdev_lvol_rollback", params.clone(), -32602, busy, "in_use")?;
    reads(&mut front, 0, 0, 2)?;
    daemon.rpc("bdev_lvol_rollback", json!({"name": "lvs/v", "snapshot_name": "lvs/s", "force": true}))?;
    let told =
        |front: &mut FrontEnd| Ok::<_, anyhow::Error>(front.cdb(lun(0), &cdb::TEST_UNIT_READY, &[], 0)?.sense_key());
    ensure!(told(&mut front)? == Some((6, 0x28, 0)) && told(&mut front)? == Some((6, 0x2A, 9)));
    reads(&mut front, 0, 0, 1)?;
    reads(&mut front, 0, 800, 0)?;
    write(&mut front, 0, 0, 3)?;
    drop(front);
    let gone = || Ok(daemon.rpc("vhost_get_controllers", Value::Null)?[0]["sessions"] == json!([]));
    within(SOON, gone, "the session does not end")?;
    daemon.rpc("bdev_lvol_rollback", params)?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    reads(&mut front, 0, 0, 1)?;
    Ok(())
}

#[test]
fn a_repeated_call_is_told_from_another_one() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 256 * MIB)?;
    let exists = "File exists";
    let again = json!({"bdev_name": "f0", "lvs_name": "lvs"});
    refused(&daemon, "bdev_lvol_create_lvstore", again, -32602, exists, "exists_same")?;
    let nothing = json!({"bdev_name": "nothing", "lvs_name": "x"});
    refused(&daemon, "bdev_lvol_create_lvstore", nothing, -19, "No such device", "not_found")?;
    volume(&daemon, "lvs", "v", 16)?;
    let create = |name: &str, mib: u64| json!({"lvs_name": "lvs", "lvol_name": name, "size_in_mib": mib, "thin_provision": true});
    refused(&daemon, "bdev_lvol_create", create("v", 16), -32602, exists, "exists_same")?;
    refused(&daemon, "bdev_lvol_create", create("v", 17), -32602, exists, "exists_different")?;
    let thick = json!({"lvs_name": "lvs", "lvol_name": "w", "size": 300 * MIB});
    refused(&daemon, "bdev_lvol_create", thick, -32602, "No space left on device", "no_space")?;
    let nowhere = json!({"lvs_name": "x", "lvol_name": "w", "size_in_mib": 1});
    refused(&daemon, "bdev_lvol_create", nowhere, -19, "No such device", "not_found")?;
    let neither = json!({"lvol_name": "w", "size_in_mib": 1});
    refused(&daemon, "bdev_lvol_create", neither, -22, "Invalid argument", "invalid")?;
    let snapshot = json!({"lvol_name": "lvs/v", "snapshot_name": "s"});
    daemon.rpc("bdev_lvol_snapshot", snapshot.clone())?;
    refused(&daemon, "bdev_lvol_snapshot", snapshot, -32602, exists, "exists_same")?;
    let clone = |of: &str| json!({"snapshot_name": of, "clone_name": "c"});
    daemon.rpc("bdev_lvol_clone", clone("lvs/s"))?;
    refused(&daemon, "bdev_lvol_clone", clone("lvs/s"), -32602, exists, "exists_same")?;
    refused(&daemon, "bdev_lvol_clone", clone("lvs/x"), -19, "No such device", "not_found")?;
    daemon.rpc("bdev_lvol_rename", json!({"old_name": "lvs/c", "new_name": "d"}))?;
    ensure!(listed(&daemon, "lvs/d")?["parent"]["name"] == "s");
    ensure!(daemon.rpc("bdev_get_bdevs", json!({"name": "lvs/d"}))?[0]["aliases"] == json!(["lvs/d"]));
    let taken = json!({"old_name": "lvs/d", "new_name": "v"});
    refused(&daemon, "bdev_lvol_rename", taken, -32602, exists, "exists_different")?;
    let group = json!({"lvol_names": ["lvs/v", "lvs/d"], "snapshot_names": ["g1", "g2"]});
    let made = daemon.rpc("bdev_lvol_snapshot_group", group)?;
    ensure!(listed(&daemon, "lvs/g1")?["uuid"] == made[0] && listed(&daemon, "lvs/g2")?["uuid"] == made[1]);
    let group = json!({"lvol_names": ["lvs/v", "lvs/d"], "snapshot_names": ["g3", "g2"]});
    ensure!(daemon.rpc_error("bdev_lvol_snapshot_group", group)?.reason.as_deref() == Some("exists_same"));
    ensure!(listed(&daemon, "lvs/g3").is_err(), "one of a refused group was made");
    daemon.rpc("bdev_lvol_set_limits", json!({"name": "lvs/v", "quota": MIB, "reservation": MIB}))?;
    let limited = listed(&daemon, "lvs/v")?;
    ensure!(limited["quota_bytes"] == MIB && limited["reserved_bytes"] == MIB, "{limited}");
    let both = json!({"name": "lvs/v", "lvs_name": "lvs", "discard_mbytes_per_sec": 64});
    ensure!(daemon.rpc_error("bdev_lvol_set_limits", both)?.reason.as_deref() == Some("invalid"));
    for (rate, shown) in [(0, 0), (64, 64)] {
        daemon.rpc("bdev_lvol_set_limits", json!({"lvs_name": "lvs", "discard_mbytes_per_sec": rate}))?;
        let pools = daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "lvs"}))?;
        ensure!(pools[0]["discard_mbytes_per_sec"] == shown && pools[0]["discards_waiting_bytes"] == 0, "{pools}");
    }
    let cli = |args: &[&str]| -> Result<String> {
        let mut command = Command::new(pollux_tests::daemon::binary()?);
        let output = command.arg("--rpc-socket").arg(daemon.rpc_path()).args(args).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    for (rate, shown) in [("512M", "at 512 MiB a second"), ("0", "without a limit")] {
        ensure!(cli(&["pool", "limit", "lvs", "--discards", rate])?.contains(shown));
        let pool = cli(&["pool", "show", "lvs"])?;
        ensure!(pool.contains(shown), "{pool}");
    }
    Ok(())
}

#[test]
fn metrics_show_pools_and_volumes() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 256 * MIB)?;
    volume(&daemon, "lvs", "v", 16)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 0, 0, 1)?;
    let pool = [("pool", "lvs")];
    ensure!(daemon.metric("pollux_volume_size_bytes", &[("volume", "v")])? == 16.0 * MIB as f64);
    let owned = || Ok(daemon.metric("pollux_volume_owned_bytes", &[("volume", "v")])? == 65536.0);
    within(SOON, owned, "what is owned is not shown")?;
    ensure!(daemon.metric("pollux_volume_written_bytes", &pool)? == 4096.0);
    let size = daemon.metric("pollux_pool_size_bytes", &pool)?;
    let parts = ["pollux_pool_free_bytes", "pollux_pool_allocated_bytes", "pollux_pool_quarantined_bytes"];
    let sum = parts.iter().map(|name| daemon.metric(name, &pool)).sum::<Result<f64>>()?;
    ensure!(size > 200.0 * MIB as f64 && sum == size, "{sum} of {size}");
    ensure!(daemon.metrics()?.contains("pollux_pool_failed{pool=\"lvs\"} 0"));
    ensure!(daemon.metric("pollux_bdev_ops_total", &[("bdev", "f0"), ("op", "write")])? > 0.0, "the base counts, too");
    Ok(())
}

#[test]
fn spdks_own_client_uses_volumes() -> Result<()> {
    let Some(program) = std::env::var_os("SPDK_RPC") else {
        eprintln!("SPDK_RPC is not set: SPDK's client is not tried");
        return Ok(());
    };
    let daemon = Daemon::start()?;
    file(&daemon, "f0", 256 * MIB)?;
    let call = |args: &[&str]| -> Result<String> {
        let mut command = Command::new(&program);
        let output = command.arg("-s").arg(daemon.rpc_path()).args(args).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("spdk-rpc {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let pool = call(&["bdev_lvol_create_lvstore", "f0", "lvs", "-c", "1048576", "--clear-method", "none"])?;
    let volume = call(&["bdev_lvol_create", "-l", "lvs", "-t", "v", "10"])?;
    let thick = call(&["bdev_lvol_create", "-u", &pool, "w", "10", "-c", "none"])?;
    let snapshot = call(&["bdev_lvol_snapshot", "lvs/v", "s"])?;
    let clone = call(&["bdev_lvol_clone", "lvs/s", "c"])?;
    for (args, says) in [
        (&["bdev_lvol_get_lvstores", "-l", "lvs"][..], pool.as_str()),
        (&["bdev_lvol_get_lvols"], snapshot.as_str()),
        (&["bdev_lvol_get_lvols", "-l", "lvs"], thick.as_str()),
        (&["bdev_get_bdevs", "-b", "lvs/c"], clone.as_str()),
        (&["bdev_lvol_resize", "lvs/c", "20"], ""),
        (&["bdev_lvol_rename", "lvs/c", "d"], ""),
        (&["bdev_lvol_delete", "lvs/d"], ""),
        (&["bdev_lvol_delete", &volume], ""),
        (&["bdev_lvol_delete_lvstore", "-u", &pool], ""),
    ] {
        let printed = call(args)?;
        ensure!(printed.contains(says), "{args:?}: {printed}");
    }
    Ok(())
}

#[test]
fn a_volume_that_is_made_read_only_is_a_snapshot_for_good() -> Result<()> {
    let mut daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 256 * MIB)?;
    let uuid = volume(&daemon, "lvs", "v", 16)?;
    daemon.rpc("bdev_lvol_set_limits", json!({"name": "lvs/v", "quota": 8 * MIB, "reservation": 4 * MIB}))?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 0, 0, 1)?;
    daemon.rpc("bdev_lvol_set_read_only", json!({"name": "lvs/v"}))?;
    daemon.rpc("bdev_lvol_set_read_only", json!({"name": "lvs/v"}))?;
    daemon.rpc("bdev_lvol_clone", json!({"snapshot_name": "lvs/v", "clone_name": "c"}))?;
    attach(&daemon, "vm", 1, "lvs/c")?;
    write(&mut front, 1, 1000, 2)?;
    flush(&mut front, 1)?;
    for restart in [false, true] {
        if restart {
            drop(front);
            daemon.restart()?;
            front = connect(&daemon, "vm", &DriverOptions::default())?;
        }
        clear_attentions(&mut front, lun(0))?;
        let refused = front.cdb(lun(0), &cdb::write10(0, 8, false), &[9; 4096], 0)?;
        ensure!(refused.sense_key() == Some((7, 0x27, 0)), "it is write-protected: {refused:?}");
        reads(&mut front, 0, 0, 1)?;
        reads(&mut front, 1, 0, 1)?;
        reads(&mut front, 1, 1000, 2)?;
        let now = listed(&daemon, "lvs/v")?;
        let is = (&now["is_snapshot"], &now["uuid"], &now["quota_bytes"], &now["reserved_bytes"]);
        ensure!(is == (&json!(true), &json!(uuid), &json!(0), &json!(0)), "{now}");
    }
    refused(&daemon, "bdev_lvol_set_read_only", json!({"name": "lvs/none"}), -19, "No such device", "not_found")
}

#[test]
fn a_pool_is_not_closed_for_a_bdev_that_stays() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "f0", 256 * MIB)?;
    daemon.rpc("bdev_split_create", json!({"base_bdev": "f0", "split_count": 3}))?;
    for (part, name) in [("f0p0", "a"), ("f0p1", "b")] {
        daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": part, "lvs_name": name}))?;
    }
    volume(&daemon, "a", "v", 8)?;
    volume(&daemon, "b", "v", 8)?;
    let stays = |by: &str| -> Result<()> {
        let error = daemon.rpc_error("bdev_split_delete", json!({"base_bdev": "f0"}))?;
        ensure!(error.reason.as_deref() == Some("in_use"), "{error}");
        ensure!(error.detail.as_deref().is_some_and(|detail| detail.contains(by)), "{:?}", error.detail);
        listed(&daemon, "a/v")?;
        listed(&daemon, "b/v")?;
        Ok(())
    };
    controller(&daemon, "vm", &["f0p2"])?;
    stays("f0p2")?;
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 0}))?;
    attach(&daemon, "vm", 0, "b/v")?;
    stays("b/v")?;
    daemon.rpc("vhost_delete_controller", json!({"ctrlr": "vm"}))?;
    ensure!(daemon.rpc("bdev_split_delete", json!({"base_bdev": "f0"}))? == json!(true));
    Ok(())
}
