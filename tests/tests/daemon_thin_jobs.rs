//! Jobs in the real daemon: what they say while they run, that they can be cancelled and leave nothing half, and that the
//! end of the daemon is theirs.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::{clear_attentions, connect, controller, file, run_load};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::guest::{DriverOptions, Lun, ScsiLoad, ScsiMix};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A job as it is now.
fn job(daemon: &Daemon, id: &Value) -> Result<Value> {
    let mut listed = daemon.rpc("job_get_jobs", json!({ "job_id": id }))?;
    Ok(listed[0].take())
}

/// Asks until there is an answer.
fn wait_for<T>(mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < until, "it takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for its end.
fn ended(daemon: &Daemon, id: &Value) -> Result<Value> {
    wait_for(|| {
        let job = job(daemon, id)?;
        Ok((job["state"] != "running").then_some(job))
    })
}

/// A base whose writes take a second.
fn slow_base(daemon: &Daemon) -> Result<()> {
    file(daemon, "f0", 256 * MIB)?;
    let slow = 1_000_000;
    daemon.rpc(
        "bdev_delay_create",
        json!({"name": "d0", "base_bdev_name": "f0", "avg_read_latency": 0, "p99_read_latency": 0,
               "avg_write_latency": slow, "p99_write_latency": slow}),
    )?;
    Ok(())
}

#[test]
fn a_job_tells_how_far_it_is_and_a_cancelled_one_leaves_nothing() -> Result<()> {
    let daemon = Daemon::start()?;
    slow_base(&daemon)?;
    let params = json!({"bdev_name": "d0", "lvs_name": "lvs", "job": true});
    let id = daemon.rpc("bdev_lvol_create_lvstore", params.clone())?["job_id"].clone();
    let running = wait_for(|| {
        let job = job(&daemon, &id)?;
        Ok((job["done_bytes"] != 0).then_some(job))
    })?;
    ensure!(running["state"] == "running" && running["kind"] == "create_lvstore", "{running}");
    ensure!(running["object"] == "lvs" && running["total_bytes"] == 20 * MIB, "{running}");
    daemon.rpc("job_cancel", json!({ "job_id": id }))?;
    let cancelled = ended(&daemon, &id)?;
    ensure!(cancelled["state"] == "cancelled" && cancelled["error"]["reason"] == "cancelled", "{cancelled}");
    let late = daemon.rpc_error("job_cancel", json!({ "job_id": id }))?;
    ensure!(late.reason.as_deref() == Some("ended"), "{late}");
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)? == json!([]));
    // The base is nobody's.
    for kind in ["avg_write", "p99_write"] {
        let params = json!({"delay_bdev_name": "d0", "latency_type": kind, "latency_us": 0});
        daemon.rpc("bdev_delay_update_latency", params)?;
    }
    let id = daemon.rpc("bdev_lvol_create_lvstore", params)?["job_id"].clone();
    let complete = ended(&daemon, &id)?;
    ensure!(complete["state"] == "complete" && complete["result"].is_string(), "{complete}");
    ensure!(complete["done_bytes"].as_u64() >= Some(20 * MIB), "{complete}");
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?[0]["uuid"] == complete["result"]);
    Ok(())
}

#[test]
fn what_can_be_refused_at_once_is_and_what_is_waited_for_is_in_the_table_too() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "f0", 64 * MIB)?;
    let uuid = daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "f0", "lvs_name": "lvs"}))?;
    let twice = json!({"bdev_name": "f0", "lvs_name": "lvs", "job": true});
    ensure!(daemon.rpc_error("bdev_lvol_create_lvstore", twice)?.reason.as_deref() == Some("exists_same"));
    let jobs = daemon.rpc("job_get_jobs", Value::Null)?;
    ensure!(jobs.as_array().map(Vec::len) == Some(1) && jobs[0]["state"] == "complete", "{jobs}");
    ensure!(jobs[0]["result"] == uuid && jobs[0]["ended"].is_u64(), "{jobs}");
    for method in ["job_get_jobs", "job_cancel"] {
        let none = daemon.rpc_error(method, json!({"job_id": "nonsense"}))?;
        ensure!((none.code, none.reason.as_deref()) == (-19, Some("not_found")), "{method}: {none}");
    }
    Ok(())
}

#[test]
fn the_daemon_ends_in_time_while_a_job_runs() -> Result<()> {
    let mut daemon = Daemon::start()?;
    slow_base(&daemon)?;
    let id = daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "d0", "lvs_name": "lvs", "job": true}))?;
    ensure!(job(&daemon, &id["job_id"])?["state"] == "running");
    let status = daemon.terminate().context("it ends")?;
    ensure!(status.code() == Some(0), "{status}");
    daemon.restart()?;
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)? == json!([]), "nothing is half made");
    ensure!(daemon.rpc("job_get_jobs", Value::Null)? == json!([]));
    Ok(())
}

/// A change that waits for a base that hangs is answered, says what becomes of it, and does.
#[test]
fn a_change_does_not_wait_for_a_hanging_base_for_ever_and_is_shown_when_it_comes_to_be() -> Result<()> {
    let args = vec!["--pool-timeout".to_owned(), "1".to_owned()];
    let daemon = Daemon::start_with(DaemonOptions { args, ..DaemonOptions::default() })?;
    file(&daemon, "f0", 64 * MIB)?;
    daemon.rpc("bdev_error_create", json!({"base_name": "f0"}))?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "EE_f0", "lvs_name": "lvs"}))?;
    let volume = |name: &str| json!({"lvs_name": "lvs", "lvol_name": name, "size": MIB, "thin_provision": true});
    daemon.rpc("bdev_lvol_create", volume("a"))?;
    let hang = json!({"name": "EE_f0", "io_type": "write", "error_type": "pending", "num": 1000});
    daemon.rpc("bdev_error_inject_error", hang)?;
    let told = |method: &str, params: Value| -> Result<String> {
        let error = daemon.rpc_error(method, params)?;
        ensure!(error.reason.as_deref() == Some("timed_out") && error.message == "Connection timed out", "{error}");
        Ok(error.detail.unwrap_or_default())
    };
    let first = told("bdev_lvol_create", volume("b"))?;
    ensure!(first.contains("has been begun"), "{first}");
    let second = told("bdev_lvol_delete", json!({"name": "lvs/a"}))?;
    ensure!(second.contains("not begun"), "{second}");
    // Who only asks is answered, and an operator hears of it.
    ensure!(daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?[0]["name"] == "lvs");
    let status = daemon.rpc("pollux_get_status", Value::Null)?;
    ensure!(status["warnings"].to_string().contains("a change waits for bdev 'EE_f0'"), "{status}");
    ensure!(daemon.rpc_error("bdev_get_bdevs", json!({"name": "lvs/b"}))?.reason.as_deref() == Some("not_found"));
    daemon.rpc("bdev_error_inject_error", json!({"name": "EE_f0", "io_type": "clear", "error_type": "failure"}))?;
    daemon.rpc("bdev_error_resume_pending", json!({"name": "EE_f0"}))?;
    wait_for(|| Ok(daemon.rpc("bdev_get_bdevs", json!({"name": "lvs/b"})).ok()))?;
    daemon.rpc("bdev_lvol_delete", json!({"name": "lvs/a"}))?;
    // The same for one that goes.
    daemon.rpc(
        "bdev_error_inject_error",
        json!({"name": "EE_f0", "io_type": "write", "error_type": "pending", "num": 1000}),
    )?;
    ensure!(told("bdev_lvol_delete", json!({"name": "lvs/b"}))?.contains("has been begun"));
    daemon.rpc("bdev_error_inject_error", json!({"name": "EE_f0", "io_type": "clear", "error_type": "failure"}))?;
    daemon.rpc("bdev_error_resume_pending", json!({"name": "EE_f0"}))?;
    wait_for(|| Ok(daemon.rpc_error("bdev_get_bdevs", json!({"name": "lvs/b"})).ok()))?;
    Ok(())
}

/// While a guest writes and snapshots come and go the pool is looked at as it was, and damage is seen.
#[test]
fn a_pool_is_scrubbed_while_it_is_used() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions { reactors: "0,1".into(), ..DaemonOptions::default() })?;
    let path = file(&daemon, "f0", 256 * MIB)?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "f0", "lvs_name": "lvs"}))?;
    let params = json!({"lvs_name": "lvs", "lvol_name": "v", "size": 64 * MIB, "thin_provision": true});
    daemon.rpc("bdev_lvol_create", params)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions { request_queues: 2, ..DriverOptions::default() })?;
    clear_attentions(&mut front, Lun::new(0, 0))?;
    let mut load = ScsiLoad::new(Lun::new(0, 0), 512, 8192, 5);
    for round in 0..6 {
        let params = json!({"lvs_name": "lvs", "max_mib_per_second": 1, "job": true});
        let id = daemon.rpc("bdev_lvol_scrub_lvstore", params)?["job_id"].clone();
        run_load(&mut front, &mut load, &ScsiMix::default(), 300, 32, round)?;
        ensure!(load.others.is_empty(), "commands failed: {:?}", load.others);
        let name = format!("s{round}");
        daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": name}))?;
        if round > 1 {
            daemon.rpc("bdev_lvol_delete", json!({"name": format!("lvs/s{}", round - 2)}))?;
        }
        let scrubbed = ended(&daemon, &id)?;
        ensure!(scrubbed["state"] == "complete" && scrubbed["result"]["verdict"] == "clean", "{scrubbed}");
    }
    let cli = |args: &[&str]| {
        let mut command = Command::new(pollux_tests::daemon::binary()?);
        Ok::<_, anyhow::Error>(command.arg("--rpc-socket").arg(daemon.rpc_path()).args(args).output()?)
    };
    let clean = cli(&["pool", "scrub", "lvs"])?;
    ensure!(clean.status.code() == Some(0), "{clean:?}");
    // One of the four places of the superblock; not the one that is written next.
    let generation = |bytes: &[u8]| u64::from_le_bytes(bytes[56..64].try_into().unwrap_or_default());
    let disk = File::options().read(true).write(true).open(path)?;
    let mut best = (0, 0);
    for place in 0..4 {
        let mut block = [0; 4096];
        disk.read_exact_at(&mut block, place * 64 * 4096)?;
        best = best.max((generation(&block), place));
    }
    let before = (best.1 + 3) % 4;
    disk.write_all_at(&[0xA5; 512], before * 64 * 4096 + 512)?;
    let damaged = cli(&["--json", "pool", "scrub", "lvs"])?;
    ensure!(damaged.status.code() == Some(4), "{damaged:?}");
    let report: Value = serde_json::from_slice(&damaged.stdout)?;
    ensure!(report["findings"][0]["finding"] == "superblock_unreadable", "{report}");
    Ok(())
}
