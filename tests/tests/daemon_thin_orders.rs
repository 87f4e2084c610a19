//! What an operator orders of pools and volumes in the real daemon, while guests use them: other names, other sizes, other
//! parents; and what a saved configuration brings back.

mod common;

use std::fs::File;

use anyhow::{Context as _, Result, ensure};
use common::thin::{SOON, flush, listed, lun, pool, reads, refused, served, volume, write};
use common::{attach, clear_attentions, connect, controller, file, within};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, cdb};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

#[test]
fn a_pool_gets_another_name_under_its_guests() -> Result<()> {
    let mut daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    pool(&daemon, "f1", "taken", 64 * MIB)?;
    let uuid = volume(&daemon, "lvs", "v", 16)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 0, 0, 1)?;
    flush(&mut front, 0)?;
    let rename = |old: &str, new: &str| json!({"old_name": old, "new_name": new});
    let method = "bdev_lvol_rename_lvstore";
    refused(&daemon, method, rename("none", "x"), -2, "Lvol store none not found", "not_found")?;
    refused(&daemon, method, rename("lvs", "taken"), -32602, "File exists", "exists_different")?;
    refused(&daemon, method, rename("lvs", "a/b"), -22, "Invalid argument", "invalid")?;
    ensure!(daemon.rpc(method, rename("lvs", "lvs"))? == json!(true));
    ensure!(daemon.rpc(method, rename("lvs", "store"))? == json!(true));
    let is_called_so = |daemon: &Daemon| -> Result<()> {
        ensure!(listed(daemon, "store/v")?["uuid"] == uuid.as_str());
        ensure!(daemon.rpc("bdev_get_bdevs", json!({"name": "store/v"}))?[0]["name"] == uuid.as_str());
        ensure!(daemon.rpc_error("bdev_get_bdevs", json!({"name": "lvs/v"}))?.code == -19);
        let pool = daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "store"}))?;
        ensure!(pool[0]["base_bdev"] == "f0" && pool[0]["state"] == "online", "{pool}");
        Ok(())
    };
    is_called_so(&daemon)?;
    reads(&mut front, 0, 0, 1)?;
    drop(front);
    daemon.restart()?;
    is_called_so(&daemon)?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    reads(&mut front, 0, 0, 1)?;
    let base = daemon.rpc_error("bdev_aio_delete", json!({"name": "f0"}))?;
    ensure!(base.reason.as_deref() == Some("in_use"), "{base}");
    Ok(())
}

#[test]
fn a_pool_grows_with_its_file() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let path = file(&daemon, "f0", 64 * MIB)?;
    daemon.rpc("bdev_passthru_create", json!({"name": "p0", "base_bdev_name": "f0"}))?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "p0", "lvs_name": "lvs"}))?;
    volume(&daemon, "lvs", "v", 512)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    let clusters = |daemon: &Daemon| -> Result<u64> {
        let pools = daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "lvs"}))?;
        pools[0]["total_data_clusters"].as_u64().context("a number")
    };
    let grow_file = |mib: u64| File::options().write(true).open(&path)?.set_len(mib * MIB);
    let before = clusters(&daemon)?;
    let pools = daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?;
    ensure!(pools[0]["max_growable_size"] == ((1u64 << 31) - 1) << 16, "as many as can be numbered: {pools}");
    let grow = || daemon.rpc("bdev_lvol_grow_lvstore", json!({"lvs_name": "lvs"}));
    ensure!(grow()? == json!(true) && clusters(&daemon)? == before);
    grow_file(128)?;
    ensure!(grow()? == json!(true));
    ensure!(clusters(&daemon)? == before + 1024, "{} of {before}", clusters(&daemon)?);
    // More than there was before is written.
    for cluster in 0..1100 {
        write(&mut front, 0, cluster * 128, 7)?;
    }
    flush(&mut front, 0)?;
    // And by itself, when somebody looks at the file.
    grow_file(192)?;
    daemon.rpc("bdev_aio_rescan", json!({"name": "f0"}))?;
    within(SOON, || Ok(clusters(&daemon)? == before + 2048), "the pool does not grow")?;
    drop(front);
    // And when the file has grown while nobody looked.
    daemon.kill9();
    File::options().write(true).open(&path)?.set_len(256 * MIB)?;
    daemon.restart()?;
    within(SOON, || Ok(clusters(&daemon)? == before + 3072), "the pool does not grow")?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    reads(&mut front, 0, 1099 * 128, 7)?;
    let unknown = json!({"lvs_name": "none"});
    refused(&daemon, "bdev_lvol_grow_lvstore", unknown, -19, "No such device", "not_found")?;
    refused(&daemon, "bdev_lvol_grow_lvstore", json!({}), -22, "Invalid argument", "invalid")?;
    ensure!(daemon.rpc("bdev_lvol_get_lvols", Value::Null)?[0]["name"] == "v");
    Ok(())
}

#[test]
fn a_volume_becomes_smaller_and_its_guests_are_told() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let mut front = served(&daemon, &[("v", 32)])?;
    write(&mut front, 0, 0, 1)?;
    write(&mut front, 0, 60000, 2)?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": "s"}))?;
    write(&mut front, 0, 50000, 3)?;
    let smaller = json!({"name": "lvs/v", "size_in_mib": 16});
    refused(&daemon, "bdev_lvol_resize", smaller, -32602, "Invalid argument", "would_shrink")?;
    daemon.rpc("bdev_lvol_resize", json!({"name": "lvs/v", "size_in_mib": 16, "allow_shrink": true}))?;
    let told = front.cdb(lun(0), &cdb::TEST_UNIT_READY, &[], 0)?;
    ensure!(told.sense_key() == Some((6, 0x2A, 9)), "{told:?}");
    let past = front.cdb(lun(0), &cdb::read10(60000, 8), &[], 4096)?;
    ensure!(past.sense_key() == Some((5, 0x21, 0)), "{past:?}");
    reads(&mut front, 0, 0, 1)?;
    daemon.rpc("bdev_lvol_resize", json!({"name": "lvs/v", "size_in_mib": 32}))?;
    clear_attentions(&mut front, lun(0))?;
    drop(front);
    daemon.restart()?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    for (lba, value) in [(0, 1), (50000, 0), (60000, 0)] {
        reads(&mut front, 0, lba, value)?;
    }
    attach(&daemon, "vm", 1, "lvs/s")?;
    reads(&mut front, 1, 60000, 2)?;
    within(SOON, || Ok(listed(&daemon, "lvs/v")?["owned_bytes"] == 0), "what was cut off is not given back")
}

/// A volume with 16 MiB of data on a snapshot, as target 0 of a controller.
fn volume_on_snapshot(daemon: &Daemon) -> Result<FrontEnd> {
    pool(daemon, "f0", "lvs", 256 * MIB)?;
    volume(daemon, "lvs", "v", 64)?;
    controller(daemon, "vm", &["lvs/v"])?;
    let mut front = connect(daemon, "vm", &DriverOptions::default())?;
    for cluster in 0..256 {
        write(&mut front, 0, cluster * 128, 1)?;
    }
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": "s"}))?;
    write(&mut front, 0, 0, 2)?;
    Ok(front)
}

#[test]
fn a_volume_is_inflated_and_decoupled_while_it_is_used() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let mut front = volume_on_snapshot(&daemon)?;
    let all = |front: &mut FrontEnd, value: u8| -> Result<()> {
        reads(front, 0, 0, value)?;
        (1..256).try_for_each(|cluster| reads(front, 0, cluster * 128, 1))
    };
    daemon.rpc("bdev_lvol_clone", json!({"snapshot_name": "lvs/s", "clone_name": "c"}))?;
    let named = |name: &str| json!({"name": name});
    refused(&daemon, "bdev_lvol_inflate", named("lvs/none"), -19, "No such device", "not_found")?;
    refused(&daemon, "bdev_lvol_inflate", named("lvs/s"), -32602, "Operation not permitted", "unfit")?;
    // As a job, under load.
    let job = daemon.rpc("bdev_lvol_inflate", json!({"name": "lvs/v", "job": true}))?;
    let job = job["job_id"].as_str().context("a job")?.to_owned();
    write(&mut front, 0, 0, 3)?;
    within(
        SOON,
        || {
            let jobs = daemon.rpc("job_get_jobs", Value::Null)?;
            let found = jobs.as_array().context("a list")?.iter().find(|found| found["job_id"] == job.as_str());
            let state = found.context("the job is listed")?["state"].clone();
            ensure!(state == "running" || state == "complete", "{jobs}");
            Ok(state == "complete")
        },
        "the job does not end",
    )?;
    let inflated = listed(&daemon, "lvs/v")?;
    ensure!(inflated["parent"].is_null() && inflated["is_thin_provisioned"] == false, "{inflated}");
    ensure!(inflated["owned_bytes"] == 16 * MIB && inflated["reserved_bytes"] == 64 * MIB, "{inflated}");
    all(&mut front, 3)?;
    // And waiting for it.
    ensure!(daemon.rpc("bdev_lvol_decouple_parent", named("lvs/c"))? == json!(true));
    let decoupled = listed(&daemon, "lvs/c")?;
    ensure!(decoupled["parent"].is_null() && decoupled["is_thin_provisioned"] == true, "{decoupled}");
    refused(&daemon, "bdev_lvol_decouple_parent", named("lvs/c"), -32602, "Invalid argument", "no_parent")?;
    daemon.rpc("bdev_lvol_delete", named("lvs/s"))?;
    drop(front);
    daemon.restart()?;
    ensure!(listed(&daemon, "lvs/v")?["reserved_bytes"] == 64 * MIB);
    attach(&daemon, "vm", 1, "lvs/c")?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    all(&mut front, 3)?;
    (0..256).try_for_each(|cluster| reads(&mut front, 1, cluster * 128, 1))
}

#[test]
fn a_volume_gets_another_parent() -> Result<()> {
    let daemon = Daemon::start()?;
    let front = volume_on_snapshot(&daemon)?;
    volume(&daemon, "lvs", "other", 64)?;
    attach(&daemon, "vm", 1, "lvs/other")?;
    drop(front);
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 1, 128, 9)?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/other", "snapshot_name": "t"}))?;
    let method = "bdev_lvol_set_parent";
    let on = |parent: &str| json!({"lvol_name": "lvs/v", "parent_name": parent});
    refused(&daemon, method, on("lvs/t"), -32602, "Device or resource busy", "in_use")?;
    drop(front);
    // Until the daemon has noticed.
    let busy = || -> Result<bool> { Ok(daemon.rpc_error(method, on("lvs/s"))?.reason.as_deref() == Some("in_use")) };
    within(SOON, || Ok(!busy()?), "the VM stays connected")?;
    refused(&daemon, method, on("lvs/none"), -19, "No such device", "not_found")?;
    refused(&daemon, method, on("lvs/s"), -32602, "File exists", "exists_same")?;
    refused(&daemon, method, on("lvs/other"), -32602, "Operation not permitted", "unfit")?;
    ensure!(daemon.rpc(method, on("lvs/t"))? == json!(true));
    ensure!(listed(&daemon, "lvs/v")?["parent"]["name"] == "t");
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    for (lba, value) in [(0, 2), (128, 9), (256, 0)] {
        reads(&mut front, 0, lba, value)?;
    }
    Ok(())
}

#[test]
fn a_saved_configuration_brings_pools_back_in_another_daemon() -> Result<()> {
    let mut daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    let uuids = ["v", "w"].map(|name| volume(&daemon, "lvs", name, 16));
    daemon.rpc("bdev_passthru_create", json!({"name": "above", "base_bdev_name": "lvs/w"}))?;
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "lvs/v", "product": "THIN"}))?;
    daemon.rpc("bdev_lvol_set_limits", json!({"name": "lvs/v", "quota": 8 * MIB}))?;
    daemon.rpc("bdev_lvol_set_thresholds", json!({"name": "lvs/v", "quota_percent": 50}))?;
    daemon.rpc("bdev_lvol_set_thresholds", json!({"lvs_name": "lvs", "used_percent": [80]}))?;
    daemon.rpc("bdev_lvol_set_limits", json!({"lvs_name": "lvs", "discard_mbytes_per_sec": 7}))?;
    controller(&daemon, "vm", &["lvs/v", "above"])?;
    // Names may change: volumes are saved by their UUIDs.
    daemon.rpc("bdev_lvol_rename_lvstore", json!({"old_name": "lvs", "new_name": "store"}))?;
    daemon.rpc("bdev_lvol_rename", json!({"old_name": "store/w", "new_name": "x"}))?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    for target in 0..2 {
        clear_attentions(&mut front, lun(target))?;
        write(&mut front, target, 0, 3 + target)?;
        flush(&mut front, target)?;
    }
    drop(front);
    let shown = |daemon: &Daemon| -> Result<Value> {
        let pool = daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?[0].take();
        // What else there is changes by itself.
        let kept = ["uuid", "name", "base_bdev", "size_bytes", "state", "thresholds", "discard_mbytes_per_sec"];
        let pool: Vec<&Value> = kept.iter().map(|name| &pool[*name]).collect();
        Ok(json!([pool, daemon.rpc("bdev_lvol_get_lvols", Value::Null)?]))
    };
    let before = shown(&daemon)?;
    let mut calls = Vec::new();
    for subsystem in ["bdev", "vhost_scsi"] {
        let config = daemon.rpc("framework_get_config", json!({ "name": subsystem }))?;
        calls.extend(config.as_array().context("calls")?.clone());
    }
    ensure!(daemon.terminate()?.success());

    let fresh = Daemon::start()?;
    for call in &calls {
        let method = call["method"].as_str().context("a method")?;
        fresh.rpc(method, call["params"].clone()).with_context(|| call.to_string())?;
    }
    ensure!(shown(&fresh)? == before, "{before}\nbecame\n{}", shown(&fresh)?);
    ensure!(before[1][0]["quota_threshold"]["percent"] == 50 && before[0][5][0]["percent"] == 80, "{before}");
    for uuid in uuids {
        ensure!(fresh.rpc("bdev_get_bdevs", json!({"name": uuid?}))?[0]["product_name"] == "Logical Volume");
    }
    let mut front = connect(&fresh, "vm", &DriverOptions::default())?;
    for target in 0..2 {
        clear_attentions(&mut front, lun(target))?;
        reads(&mut front, target, 0, 3 + target)?;
    }
    let inquiry = front.good(lun(0), &cdb::inquiry(None, 64), &[], 64)?.data;
    ensure!(inquiry[16..20] == *b"THIN", "{inquiry:02x?}");
    Ok(())
}
