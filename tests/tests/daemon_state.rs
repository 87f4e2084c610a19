//! What survives: kill -9 and SIGTERM, a disk that is missing at the start, files that no daemon wrote, two daemons on one
//! directory, and a save that fails.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use common::{connect, controller, file, ram};
use pollux_tests::daemon::{Daemon, DaemonOptions, binary};
use pollux_tests::guest::{DriverOptions, Lun};
use serde_json::{Value, json};

/// Everything that a restart has to bring back, as the listings show it.
fn configuration(daemon: &Daemon) -> Result<Value> {
    let mut bdevs = daemon.rpc("bdev_get_bdevs", Value::Null)?;
    for bdev in bdevs.as_array_mut().context("a list")? {
        // Warnings may name what is different about this run.
        bdev["warnings"] = Value::Null;
    }
    let mut saved = Vec::new();
    for subsystem in daemon.rpc("framework_get_subsystems", Value::Null)?.as_array().context("a list")? {
        saved.push(daemon.rpc("framework_get_config", json!({"name": subsystem["subsystem"]}))?);
    }
    Ok(json!([bdevs, daemon.rpc("vhost_get_controllers", Value::Null)?, saved]))
}

/// Starts a daemon that may not come up; for its exit code and what it says.
fn serve(state: &Path, rest: &[&str]) -> Result<Child> {
    let dir = state.parent().context("a parent")?;
    Command::new(binary()?)
        .args(["serve", "--reactors", "0", "--state-dir"])
        .arg(state)
        .arg("--rpc-socket")
        .arg(dir.join("second.sock"))
        .arg("--vhost-dir")
        .arg(dir.join("second-vhost"))
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting")
}

fn ended(child: Child) -> Result<(Option<i32>, String)> {
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    Ok((status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))))
}

fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done()? {
        if Instant::now() > deadline {
            bail!("{what} did not happen");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn everything_comes_back_after_kill_9_and_after_sigterm() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "f0", 8 << 20)?;
    ram(&daemon, "m0", 8192)?;
    daemon.rpc("bdev_malloc_create", json!({"num_blocks": 64, "block_size": 4096}))?;
    daemon.rpc("bdev_split_create", json!({"base_bdev": "m0", "split_count": 3}))?;
    daemon.rpc("bdev_passthru_create", json!({"name": "p0", "base_bdev_name": "f0"}))?;
    daemon.rpc("bdev_null_create", json!({"name": "n0", "num_blocks": 2048, "block_size": 512}))?;
    daemon.rpc("bdev_null_resize", json!({"name": "n0", "new_size": 8}))?;
    let delay = json!({"name": "d0", "base_bdev_name": "n0", "avg_read_latency": 1, "p99_read_latency": 2,
                       "avg_write_latency": 3, "p99_write_latency": 4});
    daemon.rpc("bdev_delay_create", delay)?;
    daemon.rpc(
        "bdev_delay_update_latency",
        json!({"delay_bdev_name": "d0", "latency_type": "avg_read", "latency_us": 9}),
    )?;
    daemon.rpc("bdev_error_create", json!({"base_name": "m0p2"}))?;
    daemon.rpc("bdev_set_options", json!({"bdev_auto_examine": true}))?;
    daemon.rpc("sock_impl_set_options", json!({"impl_name": "posix", "recv_buf_size": 1 << 20}))?;
    controller(&daemon, "vm1", &["p0", "m0p0"])?;
    daemon
        .rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm2", "delay": true, "initiator": "5001405012345678"}))?;
    let at = json!({"ctrlr": "vm2", "scsi_target_num": 7, "lun": 16383, "bdev_name": "m0p1", "exclusive": true});
    daemon.rpc("vhost_scsi_controller_add_target", at)?;
    let before = configuration(&daemon)?;
    assert_eq!(before[0].as_array().map(Vec::len), Some(10));
    for _ in 0..2 {
        daemon.restart()?;
        assert_eq!(configuration(&daemon)?, before);
        assert!(daemon.socket("vm1").exists() && !daemon.socket("vm2").exists());
    }
    assert_eq!(daemon.terminate()?.code(), Some(0));
    assert!(!daemon.rpc_path().exists() && !daemon.socket("vm1").exists());
    daemon.restart()?;
    assert_eq!(configuration(&daemon)?, before);
    // What was deleted stays deleted, and what is exclusive stays so.
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm1", "scsi_target_num": 1}))?;
    daemon.rpc("vhost_start_scsi_controller", json!({"ctrlr": "vm2"}))?;
    daemon.restart()?;
    assert!(daemon.socket("vm2").exists());
    let at = json!({"ctrlr": "vm1", "scsi_target_num": -1, "bdev_name": "m0p1"});
    assert_eq!(daemon.rpc_error("vhost_scsi_controller_add_target", at)?.reason.as_deref(), Some("in_use"));
    let listed = daemon.rpc("vhost_get_controllers", json!({"name": "vm1"}))?;
    assert_eq!(listed[0]["backend_specific"]["scsi"].as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn a_change_is_on_disk_when_it_is_acknowledged() -> Result<()> {
    let mut daemon = Daemon::start()?;
    for number in 0..20 {
        let name = format!("n{number}");
        daemon.rpc("bdev_null_create", json!({"name": name, "num_blocks": 8, "block_size": 512}))?;
        daemon.restart()?;
        assert_eq!(daemon.rpc("bdev_get_bdevs", json!({"name": name}))?[0]["name"], name.as_str());
    }
    Ok(())
}

#[test]
fn a_missing_disk_neither_stops_the_start_nor_is_forgotten() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let path = file(&daemon, "f0", 1 << 20)?;
    daemon.rpc("bdev_passthru_create", json!({"name": "p0", "base_bdev_name": "f0"}))?;
    controller(&daemon, "vm1", &["p0"])?;
    let uuid = daemon.rpc("bdev_get_bdevs", json!({"name": "p0"}))?[0]["uuid"].clone();
    daemon.kill9();
    let away = path.with_extension("away");
    fs::rename(&path, &away)?;
    daemon.restart()?;
    for name in ["f0", "p0"] {
        let listed = daemon.rpc("bdev_get_bdevs", json!({"name": name}))?;
        assert_eq!(listed[0]["state"], "missing", "{listed}");
    }
    let listed = daemon.rpc("vhost_get_controllers", Value::Null)?;
    assert_eq!(listed[0]["backend_specific"]["scsi"][0]["luns"][0]["state"], "missing");
    assert_eq!(daemon.metric("pollux_bdev_missing", &[])?, 2.0);
    let mut front = connect(&daemon, "vm1", &DriverOptions::default())?;
    let disk = Lun::new(0, 0);
    let sense = |front: &mut pollux_tests::frontend::FrontEnd| -> Result<Vec<u8>> {
        let response = front.cdb(disk, &[0; 6], &[], 0)?;
        Ok(response.sense.clone())
    };
    wait_for("NOT READY", || Ok(sense(&mut front)?.get(2).map(|key| key & 0xF) == Some(2)))?;
    // Another change while it is missing must not lose it.
    ram(&daemon, "m0", 64)?;
    daemon.restart()?;
    let mut front = connect(&daemon, "vm1", &DriverOptions::default())?;
    fs::rename(&away, &path)?;
    wait_for("its return", || Ok(daemon.rpc("bdev_get_bdevs", json!({"name": "p0"}))?[0]["state"] == "online"))?;
    wait_for("READY", || Ok(sense(&mut front)?.is_empty()))?;
    front.good(disk, &[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[], 4096)?;
    assert_eq!(daemon.rpc("bdev_get_bdevs", json!({"name": "p0"}))?[0]["uuid"], uuid);
    Ok(())
}

/// Changes the saved state behind the daemon's back.
fn edit(daemon: &Daemon, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = daemon.state_dir().join("state.json");
    let mut file: Value = serde_json::from_slice(&fs::read(&path)?)?;
    change(&mut file["state"]);
    fs::write(&path, serde_json::to_vec(&file)?)?;
    Ok(())
}

#[test]
fn a_controller_that_cannot_be_had_neither_stops_the_start_nor_is_forgotten() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "f0", 1 << 20)?;
    daemon.rpc("bdev_passthru_create", json!({"name": "p0", "base_bdev_name": "f0"}))?;
    file(&daemon, "f1", 1 << 20)?;
    controller(&daemon, "taken", &["f1"])?;
    controller(&daemon, "vm", &["p0", "f1"])?;
    daemon.kill9();
    // Something else is where one is to listen, and a disk is somebody else's.
    let socket = daemon.socket("taken");
    fs::remove_file(&socket)?;
    fs::create_dir(&socket)?;
    edit(&daemon, |state| state["controllers"][1]["luns"][0]["bdev"] = "f0".into())?;
    daemon.restart()?;
    let warnings = daemon.rpc("pollux_get_status", Value::Null)?["warnings"].clone();
    assert_eq!(warnings.as_array().map(Vec::len), Some(2), "{warnings}");
    let get = |daemon: &Daemon, name: &str| -> Result<Value> {
        Ok(daemon.rpc("vhost_get_controllers", json!({"name": name}))?[0].clone())
    };
    let taken = get(&daemon, "taken")?;
    assert!(taken["state"] == "online" && taken["started"] == false, "{taken}");
    let vm = get(&daemon, "vm")?;
    let luns: Vec<&Value> = (0..2).map(|at| &vm["backend_specific"]["scsi"][at]["luns"][0]).collect();
    assert!(luns[0]["state"] == "missing" && luns[1]["state"] == "online", "{vm}");
    assert!(luns[0]["missing_reason"].as_str().is_some_and(|why| why.contains("p0")), "{vm}");

    // What can be had is had, and the rest when it can be.
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0];
    front.good(Lun::new(1, 0), &read, &[], 4096)?;
    let sense = |front: &mut pollux_tests::frontend::FrontEnd| -> Result<Vec<u8>> {
        Ok(front.cdb(Lun::new(0, 0), &[0; 6], &[], 0)?.sense.clone())
    };
    wait_for("NOT READY", || Ok(sense(&mut front)?.get(2).map(|key| key & 0xF) == Some(2)))?;
    daemon.rpc("bdev_passthru_delete", json!({"name": "p0"}))?;
    wait_for("READY", || Ok(sense(&mut front)?.is_empty()))?;
    front.good(Lun::new(0, 0), &read, &[], 4096)?;
    fs::remove_dir(&socket)?;
    wait_for("its socket", || Ok(connect(&daemon, "taken", &DriverOptions::default()).is_ok()))?;
    let warnings = daemon.rpc("pollux_get_status", Value::Null)?["warnings"].clone();
    assert_eq!(warnings, json!([]));
    // The disk is that LUN's now, and nobody's after it.
    let claim = json!({"name": "p0", "base_bdev_name": "f0"});
    assert_eq!(daemon.rpc_error("bdev_passthru_create", claim.clone())?.reason.as_deref(), Some("in_use"));
    drop(front);
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 0}))?;
    daemon.rpc("bdev_passthru_create", claim)?;
    Ok(())
}

#[test]
fn a_controller_that_cannot_be_made_is_listed_as_missing() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "f0", 1 << 20)?;
    for name in ["vm", "gone"] {
        daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": name}))?;
    }
    daemon.rpc("vhost_scsi_controller_add_target", json!({"ctrlr": "vm", "scsi_target_num": 0, "bdev_name": "f0"}))?;
    daemon
        .rpc("vhost_scsi_controller_add_target", json!({"ctrlr": "gone", "scsi_target_num": 0, "bdev_name": "f0"}))?;
    daemon.kill9();
    // Where no path of a socket is short enough.
    let mut child = Command::new(binary()?)
        .args(["serve", "--reactors", "0", "--state-dir"])
        .arg(daemon.state_dir())
        .arg("--rpc-socket")
        .arg(daemon.rpc_path())
        .arg("--vhost-dir")
        .arg(daemon.disks_dir().join("y".repeat(100)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let is_listed = || {
        wait_for("the daemon", || Ok(std::os::unix::net::UnixStream::connect(daemon.rpc_path()).is_ok()))?;
        let listed = daemon.rpc("vhost_get_controllers", json!({"name": "vm"}))?;
        ensure!(listed[0]["state"] == "missing" && listed[0]["missing_reason"].is_string(), "{listed}");
        let add = json!({"ctrlr": "vm", "scsi_target_num": 1, "bdev_name": "f0"});
        let refused = daemon.rpc_error("vhost_scsi_controller_add_target", add)?;
        ensure!(refused.reason.as_deref() == Some("missing"), "{refused}");
        daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 0}))?;
        daemon.rpc("vhost_delete_controller", json!({"ctrlr": "gone"}))?;
        daemon.rpc("bdev_aio_delete", json!({"name": "f0"}))
    };
    let is_listed = is_listed();
    child.kill()?;
    child.wait()?;
    is_listed?;
    daemon.restart()?;
    let listed = daemon.rpc("vhost_get_controllers", Value::Null)?;
    ensure!(listed.as_array().map(Vec::len) == Some(1) && listed[0]["state"] == "online", "{listed}");
    ensure!(listed[0]["started"] == true && listed[0]["backend_specific"]["scsi"] == json!([]), "{listed}");
    Ok(())
}

#[test]
fn a_file_that_no_daemon_wrote_ends_the_start_and_is_left_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    fs::create_dir(&state)?;
    let path = state.join("state.json");
    let ours = |body: &str| format!("{{\"format\":\"pollux-state\",\"version\":1,\"state\":{body}}}");
    let twice = r#"{"name":"a","initiator":"1","started":true}"#;
    for (content, says) in [
        (String::new(), "empty"),
        ("{\"format\":\"pollux-state\",\"ver".into(), "cannot be read"),
        ("\0".repeat(4096), "empty"),
        ("[]".into(), "cannot be read"),
        ("{\"format\":\"pollux-state\",\"version\":99,\"state\":{}}".into(), "version 99"),
        (ours("{\"disks\":[]}"), "disks"),
        (ours("{\"bdevs\":[{\"type\":\"tape\"}]}"), "tape"),
        (ours(&format!("{{\"controllers\":[{twice},{twice}]}}")), "twice"),
        (ours(r#"{"controllers":[{"name":"../a","initiator":"1","started":true}]}"#), "../a"),
        (
            ours(
                r#"{"controllers":[{"name":"a","initiator":"1","started":true,"luns":[{"target":0,"lun":0,"bdev":"x"}]}]}"#,
            ),
            "'x'",
        ),
    ] {
        fs::write(&path, &content)?;
        let (code, text) = ended(serve(&state, &[])?)?;
        assert_eq!(code, Some(1), "{content}: {text}");
        assert!(text.contains(says), "{content}: {text}");
        assert_eq!(fs::read_to_string(&path)?, content);
    }
    Ok(())
}

#[test]
fn a_second_daemon_waits_and_then_names_the_first() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let second = serve(&daemon.state_dir(), &[])?;
    let began = Instant::now();
    let (code, text) = ended(second)?;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("pid {}", daemon.pid())), "{text}");
    assert!(began.elapsed() > Duration::from_secs(8), "it waited only {:?}", began.elapsed());
    // One that ends in time makes way.
    let mut second = serve(&daemon.state_dir(), &[])?;
    std::thread::sleep(Duration::from_millis(500));
    daemon.terminate()?;
    let socket = daemon.state_dir().with_file_name("second.sock");
    wait_for("the second daemon's start", || Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok()))?;
    second.kill()?;
    second.wait()?;
    Ok(())
}

#[test]
fn a_change_that_cannot_be_saved_is_undone() -> Result<()> {
    let mut daemon = Daemon::start()?;
    ram(&daemon, "m0", 64)?;
    ram(&daemon, "m1", 64)?;
    controller(&daemon, "vm1", &["m0"])?;
    let before = configuration(&daemon)?;
    // A directory where the new file would be written: saving fails for root, too.
    let obstacle = daemon.state_dir().join("state.json.new");
    fs::create_dir(&obstacle)?;
    for (method, params) in [
        ("bdev_malloc_create", json!({"name": "m2", "num_blocks": 64, "block_size": 512})),
        ("bdev_split_create", json!({"base_bdev": "m1", "split_count": 2})),
        ("bdev_malloc_delete", json!({"name": "m1"})),
        ("bdev_malloc_delete", json!({"name": "m0", "force": true})),
        ("vhost_create_scsi_controller", json!({"ctrlr": "vm2"})),
        ("vhost_delete_controller", json!({"ctrlr": "vm1"})),
        ("vhost_scsi_controller_add_target", json!({"ctrlr": "vm1", "scsi_target_num": 5, "bdev_name": "m1"})),
        ("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm1", "scsi_target_num": 0})),
        ("iobuf_set_options", json!({"small_pool_count": 7})),
    ] {
        let error = daemon.rpc_error(method, params)?;
        assert_eq!(error.reason.as_deref(), Some("state_save_failed"), "{method}: {error}");
        assert_eq!(configuration(&daemon)?, before, "{method}");
    }
    assert!(!daemon.socket("vm2").exists());
    fs::remove_dir(&obstacle)?;
    daemon.restart()?;
    assert_eq!(configuration(&daemon)?, before);
    ram(&daemon, "m2", 64)?;
    Ok(())
}

#[test]
fn an_ephemeral_daemon_keeps_nothing() -> Result<()> {
    let options = DaemonOptions { args: vec!["--ephemeral".into()], ..DaemonOptions::default() };
    let mut daemon = Daemon::start_with(options)?;
    ram(&daemon, "m0", 64)?;
    assert_eq!(fs::read_dir(daemon.state_dir())?.count(), 0);
    daemon.restart()?;
    assert_eq!(daemon.rpc("bdev_get_bdevs", Value::Null)?, json!([]));
    Ok(())
}

#[test]
fn sigterm_ends_a_daemon_that_serves_a_vm() -> Result<()> {
    let mut daemon = Daemon::start()?;
    ram(&daemon, "m0", 2048)?;
    controller(&daemon, "vm1", &["m0"])?;
    let mut front = connect(&daemon, "vm1", &DriverOptions::default())?;
    front.good(Lun::new(0, 0), &[0; 6], &[], 0)?;
    let began = Instant::now();
    assert_eq!(daemon.terminate()?.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    Ok(())
}

#[test]
fn sockets_are_opened_to_whom_the_flags_say_and_no_wider() -> Result<()> {
    let mode = |path: &Path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o777) };
    let daemon = Daemon::start()?;
    controller(&daemon, "vm1", &[])?;
    assert_eq!((mode(&daemon.rpc_path())?, mode(&daemon.socket("vm1"))?), (0o600, 0o660));
    assert_eq!(mode(&daemon.state_dir().join("state.json"))?, 0o600);
    let args = ["--rpc-socket-group", "0", "--vhost-socket-mode", "0600"].map(String::from).to_vec();
    let daemon = Daemon::start_with(DaemonOptions { args, ..DaemonOptions::default() })?;
    controller(&daemon, "vm1", &[])?;
    assert_eq!((mode(&daemon.rpc_path())?, mode(&daemon.socket("vm1"))?), (0o660, 0o600));
    Ok(())
}

#[test]
fn bad_settings_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("pollux.toml");
    fs::write(&config, "reactor = \"0\"\n")?;
    let config = config.to_str().context("text")?;
    let state = dir.path().join("state");
    for (args, code, says) in [
        (&["--config", config][..], 2, "reactor"),
        (&["--config", "/no/such.toml"], 2, "/no/such.toml"),
        (&["--vhost-socket-mode", "rw"], 2, "rw"),
        (&["--rpc-socket-group", "no such group"], 2, "no such group"),
        (&["--metrics-listen", "203.0.113.1:1"], 1, "--metrics-listen"),
    ] {
        let (got, text) = ended(serve(&state, args)?)?;
        assert_eq!(got, Some(code), "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
    }
    Ok(())
}
