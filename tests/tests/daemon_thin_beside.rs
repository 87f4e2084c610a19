//! What an operator does with volumes and pools beside jobs that are under way: an export that takes nothing from its volume,
//! what is left by those whose base did not answer, and pools that are being made on a base that hangs.

mod common;

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context as _, Result, ensure};
use common::thin::{SOON, flush, goes_on, hang, impatient, listed, lun, pool, reads, refused, served, volume};
use common::{attach, clear_attentions, connect, controller, file, within};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, cdb};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Writes so many MiB of a target, from one on.
fn fill(front: &mut FrontEnd, target: u8, from: u64, mib: u64, value: u8) -> Result<()> {
    for at in (from * 8..(from + mib) * 8).map(|eighth| eighth * 256) {
        front.good(lun(target), &cdb::write16(at, 256, false), &[value; 128 << 10], 0)?;
    }
    flush(front, target)
}

/// An export to a socket from which nobody has read anything.
struct Held {
    job: Value,
    stream: UnixStream,
}

impl Held {
    fn begin(daemon: &Daemon, volume: &str) -> Result<Held> {
        let path = daemon.disks_dir().join("socket");
        let listener = UnixListener::bind(&path)?;
        let job = daemon.rpc("bdev_lvol_export", json!({"name": volume, "socket": path, "job": true}))?;
        let (job, mut stream) = (job["job_id"].clone(), None);
        listener.set_nonblocking(true)?;
        let connects = || {
            stream = listener.accept().ok();
            let state = state(daemon, &job)?;
            ensure!(stream.is_some() || state["state"] == "running", "{state}");
            Ok(stream.is_some())
        };
        within(SOON, connects, "nobody connects")?;
        let (stream, _) = stream.context("a connection")?;
        stream.set_nonblocking(false)?;
        std::fs::remove_file(path)?;
        Ok(Held { job, stream })
    }

    /// Takes all of it; how much that was.
    fn end(mut self, daemon: &Daemon) -> Result<usize> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        ended_well(daemon, &self.job)?;
        Ok(bytes.len())
    }
}

fn state(daemon: &Daemon, job: &Value) -> Result<Value> {
    Ok(daemon.rpc("job_get_jobs", json!({ "job_id": job }))?[0].take())
}

fn ended_well(daemon: &Daemon, job: &Value) -> Result<()> {
    within(SOON, || Ok(state(daemon, job)?["state"] != "running"), "the job does not end")?;
    let ended = state(daemon, job)?;
    ensure!(ended["state"] == "complete", "{ended}");
    Ok(())
}

#[test]
fn an_export_takes_nothing_from_its_volume() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 256 * MIB)?;
    for name in ["v", "other"] {
        volume(&daemon, "lvs", name, 16)?;
    }
    controller(&daemon, "vm", &["lvs/v", "lvs/other"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    clear_attentions(&mut front, lun(1))?;
    fill(&mut front, 0, 0, 1, 1)?;
    fill(&mut front, 1, 0, 1, 9)?;
    for (of, name) in [("lvs/v", "s"), ("lvs/other", "t")] {
        daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": of, "snapshot_name": name}))?;
    }
    // What it has itself now, and what a socket does not hold.
    fill(&mut front, 0, 4, 4, 2)?;
    let held = Held::begin(&daemon, "lvs/v")?;

    // It is as without the export: it has what it has written.
    let parent = json!({"lvol_name": "lvs/v", "parent_name": "lvs/t", "force": true});
    refused(&daemon, "bdev_lvol_set_parent", parent.clone(), -32602, "Device or resource busy", "busy")?;
    refused(
        &daemon,
        "bdev_lvol_delete_lvstore",
        json!({"lvs_name": "lvs"}),
        -32602,
        "Device or resource busy",
        "in_use",
    )?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": "u"}))?;
    daemon.rpc("bdev_malloc_create", json!({"name": "m", "num_blocks": 16 * MIB / 512, "block_size": 512}))?;
    let copy = json!({"src_lvol_name": "lvs/u", "dst_bdev_name": "m"});
    let copy = daemon.rpc("bdev_lvol_start_shallow_copy", copy)?["job_id"].clone();
    ended_well(&daemon, &copy)?;
    attach(&daemon, "vm", 2, "m")?;
    clear_attentions(&mut front, lun(2))?;
    for (mib, value) in [(0, 0), (4, 2), (7, 2), (8, 0)] {
        reads(&mut front, 2, mib * 2048, value)?;
    }
    // Decoupled from `u`, and from what the export has put below it, too.
    ensure!(daemon.rpc("bdev_lvol_decouple_parent", json!({"name": "lvs/v"}))? == json!(true));
    ensure!(listed(&daemon, "lvs/v")?["parent"]["name"] == "s", "{}", listed(&daemon, "lvs/v")?);
    let bytes = held.end(&daemon)?;
    ensure!(bytes as u64 > 5 * MIB, "{bytes}");
    let set_parent = || Ok(daemon.rpc("bdev_lvol_set_parent", parent.clone()).is_ok());
    within(SOON, set_parent, "it still has no other parent")?;
    clear_attentions(&mut front, lun(0))?;
    for (mib, value) in [(0, 9), (4, 2), (7, 2), (8, 0)] {
        reads(&mut front, 0, mib * 2048, value)?;
    }
    Ok(())
}

#[test]
fn a_volume_is_decoupled_from_its_parent_and_not_from_an_exports_snapshot() -> Result<()> {
    let daemon = Daemon::start()?;
    let mut front = served(&daemon, &[("v", 16)])?;
    fill(&mut front, 0, 0, 4, 1)?;
    let held = Held::begin(&daemon, "lvs/v")?;
    let none = json!({"name": "lvs/v"});
    refused(&daemon, "bdev_lvol_decouple_parent", none.clone(), -32602, "Invalid argument", "no_parent")?;
    held.end(&daemon)?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": "s"}))?;
    fill(&mut front, 0, 2, 4, 2)?;
    let held = Held::begin(&daemon, "lvs/v")?;
    ensure!(daemon.rpc("bdev_lvol_decouple_parent", none)? == json!(true));
    ensure!(listed(&daemon, "lvs/v")?["parent"].is_null(), "{}", listed(&daemon, "lvs/v")?);
    let deleted = || Ok(daemon.rpc("bdev_lvol_delete", json!({"name": "lvs/s"})).is_ok());
    within(SOON, deleted, "the snapshot is still needed")?;
    held.end(&daemon)?;
    for (mib, value) in [(0, 1), (2, 2), (5, 2), (6, 0)] {
        reads(&mut front, 0, mib * 2048, value)?;
    }
    Ok(())
}

#[test]
fn what_an_export_leaves_that_could_not_wait_for_its_base_goes_by_itself() -> Result<()> {
    let daemon = impatient()?;
    volume(&daemon, "lvs", "v", 16)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    fill(&mut front, 0, 0, 1, 1)?;
    let has = |bytes: u64| {
        let v = listed(&daemon, "lvs/v")?;
        Ok::<_, anyhow::Error>(v["owned_bytes"] == bytes && v["shared_bytes"] == MIB - bytes)
    };
    ensure!(has(MIB)?);
    hang(&daemon, "EE_f0", "write")?;
    let export = json!({"name": "lvs/v", "file": daemon.disks_dir().join("export")});
    refused(&daemon, "bdev_lvol_export", export, -32602, "Connection timed out", "timed_out")?;
    ensure!(has(0)?, "the snapshot has come to be, though nobody waits for it: {}", listed(&daemon, "lvs/v")?);
    goes_on(&daemon, "EE_f0")?;
    within(SOON, || has(MIB), "the snapshot stays")?;
    reads(&mut front, 0, 0, 1)?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?[0]["snapshots"] == 0);
    Ok(())
}

#[test]
fn a_pool_that_is_made_on_a_base_that_hangs_holds_up_no_other_and_not_the_end() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "f0", 64 * MIB)?;
    daemon.rpc("bdev_error_create", json!({"base_name": "f0"}))?;
    hang(&daemon, "EE_f0", "write")?;
    let create = |bdev: &str, name: &str| json!({"bdev_name": bdev, "lvs_name": name, "job": true});
    let job = daemon.rpc("bdev_lvol_create_lvstore", create("EE_f0", "lvs"))?["job_id"].clone();
    file(&daemon, "f1", 64 * MIB)?;
    let method = "bdev_lvol_create_lvstore";
    refused(&daemon, method, create("f1", "lvs"), -32602, "File exists", "exists_different")?;
    let other = daemon.rpc(method, json!({"bdev_name": "f1", "lvs_name": "other"}))?;
    let again = daemon.rpc(method, create("EE_f0", "again"))?["job_id"].clone();
    within(SOON, || Ok(state(&daemon, &again)?["state"] != "running"), "it waits for the first one")?;
    ensure!(state(&daemon, &again)?["error"]["reason"] == "in_use", "{}", state(&daemon, &again)?);
    let rename = json!({"old_name": "other", "new_name": "lvs"});
    refused(&daemon, "bdev_lvol_rename_lvstore", rename, -32602, "File exists", "exists_different")?;
    daemon.rpc("bdev_aio_delete", json!({"name": "f1"}))?;
    ensure!(state(&daemon, &job)?["state"] == "running");
    let status = daemon.terminate().context("it ends")?;
    ensure!(status.code() == Some(0), "{status}");
    daemon.restart()?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)? == json!([]), "nothing is half made");
    file_again(&daemon, "f1")?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?[0]["uuid"] == other);
    Ok(())
}

/// The bdev of a file that is there.
fn file_again(daemon: &Daemon, name: &str) -> Result<()> {
    let path = daemon.disks_dir().join(name);
    daemon.rpc("bdev_aio_create", json!({"name": name, "filename": path, "block_size": 512}))?;
    Ok(())
}

#[test]
fn a_guest_does_not_lose_a_volume_that_stays() -> Result<()> {
    let daemon = impatient()?;
    volume(&daemon, "lvs", "v", 16)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    fill(&mut front, 0, 0, 4, 7)?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": "s"}))?;
    attach(&daemon, "vm", 1, "lvs/s")?;
    clear_attentions(&mut front, lun(1))?;
    let method = "bdev_lvol_delete";
    let delete = |name: &str| json!({"name": name, "force": true});
    // It is being exported.
    let held = Held::begin(&daemon, "lvs/s")?;
    refused(&daemon, method, delete("lvs/s"), -32603, "Device or resource busy", "in_use")?;
    reads(&mut front, 1, 0, 7)?;
    held.end(&daemon)?;
    // Its pool does something else first.
    hang(&daemon, "EE_f0", "write")?;
    let snapshot = json!({"lvol_name": "lvs/v", "snapshot_name": "t"});
    refused(&daemon, "bdev_lvol_snapshot", snapshot, -32602, "Connection timed out", "timed_out")?;
    let late = daemon.rpc_error(method, delete("lvs/s"))?;
    ensure!(late.reason.as_deref() == Some("timed_out"), "{late}");
    reads(&mut front, 1, 0, 7)?;
    goes_on(&daemon, "EE_f0")?;
    within(SOON, || Ok(listed(&daemon, "lvs/t").is_ok()), "the snapshot does not come to be")?;
    // Its pool has failed.
    let inject = |kind: &str| json!({"name": "EE_f0", "io_type": kind, "error_type": "failure", "num": 4294967295u32});
    daemon.rpc("bdev_error_inject_error", inject("flush"))?;
    front.good(lun(0), &cdb::write16(0, 8, false), &[8; 4096], 0)?;
    front.cdb(lun(0), &cdb::sync10(), &[], 0)?;
    let failed = daemon.rpc_error(method, delete("lvs/s"))?;
    ensure!(failed.reason.as_deref() == Some("pool_failed"), "{failed}");
    clear_attentions(&mut front, lun(1))?;
    reads(&mut front, 1, 0, 7)?;
    daemon.rpc("bdev_error_inject_error", inject("clear"))?;
    daemon.rpc("bdev_examine", json!({"name": "EE_f0"}))?;
    daemon.rpc(method, delete("lvs/s"))?;
    let luns = daemon.rpc("vhost_get_controllers", Value::Null)?[0]["backend_specific"]["scsi"].clone();
    ensure!(luns.as_array().map(Vec::len) == Some(1), "{luns}");
    Ok(())
}

#[test]
fn an_export_that_cannot_begin_is_refused_at_once() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    volume(&daemon, "lvs", "v", 16)?;
    let file = daemon.disks_dir().join("f0");
    let export = json!({"name": "lvs/v", "file": file, "job": true});
    refused(&daemon, "bdev_lvol_export", export, -32602, "File exists", "exists_different")?;
    let jobs = daemon.rpc("job_get_jobs", Value::Null)?;
    ensure!(jobs.as_array().context("a list")?.iter().all(|job| job["kind"] != "export"), "{jobs}");
    Ok(())
}
