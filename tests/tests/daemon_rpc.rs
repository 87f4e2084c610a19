//! The RPC of the real daemon: SPDK's shapes and errors, sharing, deleting what is in use, bad input of every kind, and
//! what Prometheus sees after traffic.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use common::{connect, controller, file, ram};
use pollux_tests::daemon::{Daemon, binary};
use pollux_tests::guest::{DriverOptions, Lun};
use serde_json::{Value, json};

fn members(value: &Value) -> Vec<&str> {
    value.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

/// Runs the binary as a client of the daemon.
fn pollux(daemon: &Daemon, args: &[&str]) -> Result<Output> {
    Command::new(binary()?)
        .args(args)
        .env("POLLUX_RPC_SOCKET", daemon.rpc_path())
        .stdin(Stdio::null())
        .output()
        .context("running pollux")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A raw connection.
struct Raw(BufReader<UnixStream>);

impl Raw {
    fn new(daemon: &Daemon) -> Result<Raw> {
        let stream = UnixStream::connect(daemon.rpc_path())?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Raw(BufReader::new(stream)))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.get_mut().write_all(bytes)?)
    }

    /// The next answer; null at the end of the connection.
    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        if line.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&line)?) }
    }
}

#[test]
fn bdevs_are_listed_in_spdks_shape() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "m0", 2048)?;
    let uuid = "11111111-2222-4333-8444-555555555555";
    let named =
        daemon.rpc("bdev_null_create", json!({"name": "n0", "size": 1 << 20, "block_size": 4096, "uuid": uuid}))?;
    assert_eq!(named, "n0");
    let listed = daemon.rpc("bdev_get_bdevs", Value::Null)?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    assert_eq!(
        members(&listed[0])[..16],
        [
            "name",
            "aliases",
            "product_name",
            "block_size",
            "num_blocks",
            "preferred_write_alignment",
            "preferred_write_granularity",
            "optimal_write_size",
            "preferred_unmap_alignment",
            "preferred_unmap_granularity",
            "uuid",
            "assigned_rate_limits",
            "claimed",
            "zoned",
            "supported_io_types",
            "driver_specific",
        ]
    );
    assert_eq!((&listed[0]["product_name"], &listed[0]["num_blocks"]), (&json!("Malloc disk"), &json!(2048)));
    assert_eq!(listed[0]["state"], "online");
    assert_eq!((&listed[1]["uuid"], &listed[1]["num_blocks"]), (&json!(uuid), &json!(256)));
    assert_eq!(members(&listed[0]["supported_io_types"]).len(), 22);
    for by in ["n0", uuid] {
        assert_eq!(daemon.rpc("bdev_get_bdevs", json!({"name": by}))?[0]["name"], "n0");
    }
    let stats = daemon.rpc("bdev_get_iostat", json!({"names": ["m0"]}))?;
    assert_eq!((members(&stats), &stats["bdevs"][0]["name"]), (vec!["tick_rate", "ticks", "bdevs"], &json!("m0")));
    Ok(())
}

#[test]
fn repeated_creates_say_whether_it_is_the_same() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "m0", 2048)?;
    let again = |blocks| json!({"name": "m0", "num_blocks": blocks, "block_size": 512});
    let same = daemon.rpc_error("bdev_malloc_create", again(2048))?;
    assert_eq!((same.code, same.message.as_str(), same.reason.as_deref()), (-17, "File exists", Some("exists_same")));
    let other = daemon.rpc_error("bdev_malloc_create", again(4096))?;
    assert_eq!((other.code, other.reason.as_deref()), (-17, Some("exists_different")));

    controller(&daemon, "vm1", &["m0"])?;
    let same = daemon.rpc_error("vhost_create_scsi_controller", json!({"ctrlr": "vm1"}))?;
    assert_eq!(
        (same.code, same.message.as_str(), same.reason.as_deref()),
        (-32602, "File exists", Some("exists_same"))
    );
    let other = daemon.rpc_error("vhost_create_scsi_controller", json!({"ctrlr": "vm1", "cpumask": "0x1"}))?;
    assert_eq!(other.reason.as_deref(), Some("exists_different"));
    let at = |bdev| json!({"ctrlr": "vm1", "scsi_target_num": 0, "bdev_name": bdev});
    ram(&daemon, "m1", 2048)?;
    let same = daemon.rpc_error("vhost_scsi_controller_add_target", at("m0"))?;
    let other = daemon.rpc_error("vhost_scsi_controller_add_target", at("m1"))?;
    assert_eq!((same.reason.as_deref(), other.reason.as_deref()), (Some("exists_same"), Some("exists_different")));
    Ok(())
}

#[test]
fn errors_have_spdks_codes_and_our_reasons() -> Result<()> {
    let daemon = Daemon::start()?;
    controller(&daemon, "vm1", &[])?;
    let cases = [
        ("bdev_get_bdevs", json!({"name": "x"}), -19, "No such device", "not_found"),
        ("bdev_get_iostat", json!({"names": ["x"]}), -19, "No such device", "not_found"),
        ("bdev_malloc_delete", json!({"name": "x"}), -19, "No such device", "not_found"),
        ("bdev_malloc_create", json!({"name": "m"}), -32603, "spdk_json_decode_object failed", "invalid_parameters"),
        (
            "bdev_malloc_create",
            json!({"name": "m", "num_blocks": 1, "block_size": 513}),
            -22,
            "Invalid argument",
            "invalid",
        ),
        (
            "bdev_aio_create",
            json!({"name": "a", "filename": "/no/such"}),
            -2,
            "No such file or directory",
            "no_such_file",
        ),
        (
            "bdev_uring_create",
            json!({"name": "a", "filename": "/no"}),
            -32603,
            "Unable to create URING bdev.",
            "no_such_file",
        ),
        ("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "x"}), -19, "No such device", "not_found"),
        (
            "bdev_delay_update_latency",
            json!({"delay_bdev_name": "x", "latency_type": "avg_read", "latency_us": 1}),
            -19,
            "The requested bdev does not exist.",
            "not_found",
        ),
        ("vhost_delete_controller", json!({"ctrlr": "x"}), -32602, "No such device", "not_found"),
        ("vhost_get_controllers", json!({"name": "x"}), -32603, "No such device", "not_found"),
        ("vhost_create_scsi_controller", json!({"ctrlr": "../x"}), -32602, "Invalid argument", "invalid"),
        ("vhost_create_scsi_controller", json!({"ctrlr": "a".repeat(65)}), -32602, "Invalid argument", "invalid"),
        (
            "vhost_create_scsi_controller",
            json!({"ctrlr": "v", "cpumask": "zz"}),
            -32602,
            "Invalid argument",
            "invalid_parameters",
        ),
        (
            "vhost_create_scsi_controller",
            json!({"ctrlr": "v", "initiator": "0"}),
            -32602,
            "Invalid argument",
            "invalid_parameters",
        ),
        (
            "vhost_scsi_controller_add_target",
            json!({"ctrlr": "vm1", "scsi_target_num": 0, "bdev_name": "x"}),
            -32602,
            "No such device",
            "not_found",
        ),
        (
            "vhost_scsi_controller_add_target",
            json!({"ctrlr": "vm1", "scsi_target_num": 256, "bdev_name": "x"}),
            -32602,
            "Invalid argument",
            "invalid_parameters",
        ),
        (
            "vhost_scsi_controller_remove_target",
            json!({"ctrlr": "vm1", "scsi_target_num": 3}),
            -32602,
            "No such device",
            "not_found",
        ),
        ("framework_get_config", json!({"name": "nvmf"}), -32602, "Subsystem 'nvmf' not found", "not_found"),
        ("log_set_level", json!({"level": "LOUD"}), -32602, "invalid log level", "invalid_parameters"),
        ("spdk_get_version", json!({"x": 1}), -32602, "Invalid parameters", "invalid_parameters"),
        ("no_such_method", Value::Null, -32601, "Method not found", "method_not_found"),
    ];
    for (method, params, code, message, reason) in cases {
        let error = daemon.rpc_error(method, params.clone())?;
        let got = (error.code, error.message.as_str(), error.reason.as_deref());
        assert_eq!(got, (code, message, Some(reason)), "{method} {params}");
    }
    for none in [Value::Null, json!({}), json!([])] {
        assert_eq!(daemon.rpc("framework_wait_init", none)?, true);
    }
    Ok(())
}

#[test]
fn a_bdev_is_shared_unless_it_is_taken_alone() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "m0", 2048)?;
    controller(&daemon, "vm1", &["m0"])?;
    controller(&daemon, "vm2", &[])?;
    let at = |exclusive| json!({"ctrlr": "vm2", "scsi_target_num": -1, "bdev_name": "m0", "exclusive": exclusive});
    let refused = daemon.rpc_error("vhost_scsi_controller_add_target", at(true))?;
    assert_eq!((refused.reason.as_deref(), refused.message.as_str()), (Some("in_use"), "Device or resource busy"));
    assert_eq!(daemon.rpc("vhost_scsi_controller_add_target", at(false))?, 0);
    let listed = daemon.rpc("bdev_get_bdevs", json!({"name": "m0"}))?;
    let shown: Vec<_> =
        listed[0]["attached_to"].as_array().into_iter().flatten().map(|at| at["ctrlr"].clone()).collect();
    assert_eq!(shown, ["vm1", "vm2"]);
    let refused = daemon.rpc_error("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "m0"}))?;
    assert_eq!(refused.reason.as_deref(), Some("in_use"));
    Ok(())
}

#[test]
fn what_is_in_use_is_deleted_only_by_force() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "m0", 2048)?;
    ram(&daemon, "m1", 2048)?;
    controller(&daemon, "vm1", &["m0", "m1"])?;
    let mut front = connect(&daemon, "vm1", &DriverOptions::default())?;
    front.good(Lun::new(0, 0), &[0; 6], &[], 0)?;
    let busy = daemon.rpc_error("bdev_malloc_delete", json!({"name": "m0"}))?;
    assert_eq!((busy.code, busy.reason.as_deref()), (-16, Some("in_use")));
    assert_eq!(daemon.rpc("bdev_malloc_delete", json!({"name": "m0", "force": true}))?, true);
    let busy = daemon.rpc_error("vhost_delete_controller", json!({"ctrlr": "vm1"}))?;
    assert_eq!((busy.code, busy.reason.as_deref()), (-32602, Some("in_use")));
    let listed = daemon.rpc("vhost_get_controllers", json!({"name": "vm1"}))?;
    assert_eq!(
        members(&listed[0])[..7],
        ["ctrlr", "cpumask", "delay_base_us", "iops_threshold", "socket", "sessions", "backend_specific",]
    );
    let scsi = &listed[0]["backend_specific"]["scsi"];
    assert_eq!((scsi.as_array().map(Vec::len), &scsi[0]["luns"][0]["bdev_name"]), (Some(1), &json!("m1")));
    assert_eq!(listed[0]["sessions"].as_array().map(Vec::len), Some(1));
    assert_eq!(daemon.rpc("vhost_delete_controller", json!({"ctrlr": "vm1", "force": true}))?, true);
    assert!(!daemon.socket("vm1").exists());
    assert_eq!(daemon.rpc("bdev_malloc_delete", json!({"name": "m1"}))?, true);
    assert_eq!(daemon.rpc("bdev_get_bdevs", Value::Null)?, json!([]));
    Ok(())
}

#[test]
fn stacks_come_and_go_from_the_top() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "m0", 8192)?;
    let names = daemon.rpc("bdev_split_create", json!({"base_bdev": "m0", "split_count": 2}))?;
    assert_eq!(names, json!(["m0p0", "m0p1"]));
    assert_eq!(daemon.rpc("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "m0p0"}))?, "p");
    let delay = json!({"name": "d", "base_bdev_name": "m0p1", "avg_read_latency": 1, "p99_read_latency": 2,
                       "avg_write_latency": 3, "p99_write_latency": 4});
    assert_eq!(daemon.rpc("bdev_delay_create", delay)?, "d");
    assert_eq!(daemon.rpc("bdev_error_create", json!({"base_name": "d"}))?, true);
    let update = json!({"delay_bdev_name": "d", "latency_type": "p99_write", "latency_us": 77});
    assert_eq!(daemon.rpc("bdev_delay_update_latency", update)?, true);
    let listed = daemon.rpc("bdev_get_bdevs", json!({"name": "d"}))?;
    assert_eq!(listed[0]["driver_specific"]["delay"]["p99_write_latency"], 77);
    assert_eq!((&listed[0]["claimed"], &listed[0]["claim_type"]), (&json!(true), &json!("exclusive_write")));
    for (method, name) in [("bdev_malloc_delete", "m0"), ("bdev_delay_delete", "d"), ("bdev_delete", "m0p0")] {
        let busy = daemon.rpc_error(method, json!({"name": name}))?;
        assert_eq!(busy.reason.as_deref(), Some("in_use"), "{method} {name}");
    }
    daemon.rpc("bdev_error_delete", json!({"name": "EE_d"}))?;
    daemon.rpc("bdev_delay_delete", json!({"name": "d"}))?;
    daemon.rpc("bdev_passthru_delete", json!({"name": "p"}))?;
    daemon.rpc("bdev_split_delete", json!({"base_bdev": "m0"}))?;
    daemon.rpc("bdev_malloc_delete", json!({"name": "m0"}))?;
    let told = daemon.rpc("notify_get_notifications", json!({"max": 3}))?;
    assert_eq!(told[0], json!({"type": "bdev_register", "ctx": "m0", "id": 0}));
    assert_eq!(told.as_array().map(Vec::len), Some(3));
    Ok(())
}

#[test]
fn the_daemon_lives_on_whatever_is_sent() -> Result<()> {
    let daemon = Daemon::start()?;
    let deep = "[".repeat(100_000);
    let huge = format!("{{\"method\":\"{}", "x".repeat(400 << 10));
    let garbage: [&[u8]; 8] = [
        b"}",
        b"\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{\"a\" 1}",
        b"[1 2]",
        b"{\"\xff\":1}",
        deep.as_bytes(),
        huge.as_bytes(),
    ];
    for bytes in garbage {
        let mut raw = Raw::new(&daemon)?;
        // The daemon may hang up while this is still being sent.
        let _ = raw.send(bytes);
        assert_eq!(raw.line()?["error"]["code"], -32700, "{}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
    }
    let mut half = Raw::new(&daemon)?;
    half.send(b"{\"method\":\"spdk_get_version\",")?;
    half.0.get_ref().shutdown(Shutdown::Write)?;
    assert_eq!(half.line()?["error"]["code"], -32700);
    let mut raw = Raw::new(&daemon)?;
    raw.send(
        b"[{\"method\":\"spdk_get_version\",\"id\":1},{\"method\":\"spdk_get_version\"},{\"id\":1}] 7 {\"method\":[]}",
    )?;
    assert_eq!(raw.line()?.as_array().map(Vec::len), Some(2));
    assert_eq!(
        (raw.line()?["error"]["code"].clone(), raw.line()?["error"]["code"].clone()),
        (json!(-32600), json!(-32600))
    );
    let methods = daemon.rpc("rpc_get_methods", Value::Null)?;
    let nonsense =
        [json!([1]), json!({"name": 7}), json!({"name": "\u{0}/../x", "ctrlr": "", "size": -1}), json!({"": {}})];
    for method in methods.as_array().into_iter().flatten().filter_map(Value::as_str) {
        for params in &nonsense {
            let request = json!({"method": method, "params": params, "id": method});
            raw.send(request.to_string().as_bytes())?;
            assert_eq!(raw.line()?["error"]["data"]["reason"], "invalid_parameters", "{method} {params}");
        }
    }
    assert_eq!(daemon.rpc("bdev_get_bdevs", Value::Null)?, json!([]));
    Ok(())
}

#[test]
fn open_files_stay_constant_over_a_storm_of_connections() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.rpc("spdk_get_version", Value::Null)?;
    std::thread::sleep(Duration::from_millis(100));
    let before = daemon.open_files()?;
    for _ in 0..2000 {
        let mut raw = Raw::new(&daemon)?;
        let _ = raw.send(b"{\"method\"");
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while daemon.open_files()? > before {
        assert!(std::time::Instant::now() < deadline, "{} files are open, {before} before", daemon.open_files()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn prometheus_sees_what_has_moved_and_nothing_else() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "f0", 1 << 20)?;
    ram(&daemon, "idle", 2048)?;
    controller(&daemon, "vm1", &["f0", "idle"])?;
    let unmoved = daemon.metrics()?;
    assert!(!unmoved.contains("pollux_bdev_") && !unmoved.contains("pollux_sessions"), "{unmoved}");
    daemon.rpc("vhost_scsi_enable_histogram", json!({"ctrlr": "vm1", "scsi_target_num": 0}))?;
    let mut front = connect(&daemon, "vm1", &DriverOptions::default())?;
    let disk = Lun::new(0, 0);
    front.good(disk, &[0; 6], &[], 0)?;
    let block = [7u8; 4096];
    for _ in 0..5 {
        front.good(disk, &[0x2A, 0, 0, 0, 0, 8, 0, 0, 8, 0], &block, 0)?;
    }
    front.good(disk, &[0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0], &[], 4096)?;
    front.good(disk, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0)?;
    let write = [("bdev", "f0"), ("op", "write")];
    assert_eq!(daemon.metric("pollux_bdev_ops_total", &write)?, 5.0);
    assert_eq!(daemon.metric("pollux_bdev_bytes_total", &write)?, 5.0 * 4096.0);
    assert_eq!(daemon.metric("pollux_bdev_latency_seconds_count", &write)?, 5.0);
    let lun = [("ctrlr", "vm1"), ("target", "0"), ("lun", "0"), ("op", "read")];
    assert_eq!(daemon.metric("pollux_lun_ops_total", &lun)?, 1.0);
    assert_eq!(daemon.metric("pollux_lun_latency_seconds_count", &lun)?, 1.0);
    assert_eq!(daemon.metric("pollux_sessions", &[("ctrlr", "vm1"), ("state", "running")])?, 1.0);
    let seen = daemon.metrics()?;
    assert!(!seen.contains("bdev=\"idle\""), "{seen}");
    documented(&seen);
    daemon.rpc("bdev_reset_iostat", Value::Null)?;
    assert_eq!(daemon.metric("pollux_bdev_ops_total", &write)?, 5.0);
    assert_eq!(daemon.rpc("bdev_get_iostat", json!({"names": ["f0"]}))?["bdevs"][0]["num_write_ops"], 0);
    drop(front);
    daemon.rpc("vhost_delete_controller", json!({"ctrlr": "vm1", "force": true}))?;
    daemon.rpc("bdev_aio_delete", json!({"name": "f0"}))?;
    let gone = daemon.metrics()?;
    assert!(!gone.contains("f0") && !gone.contains("vm1"), "{gone}");
    Ok(())
}

/// Every metric that is shown is a row of docs/metrics.md.
fn documented(shown: &str) {
    let page = include_str!("../../docs/metrics.md");
    let rows: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `pollux_")?.split('`').next()).collect();
    let types = shown.lines().filter_map(|line| line.strip_prefix("# TYPE pollux_"));
    for name in types.map(|line| line.split(' ').next().unwrap_or(line)) {
        assert!(rows.contains(name), "docs/metrics.md does not know pollux_{name}");
    }
}

/// Runs SPDK's own client, if `SPDK_RPC` names its `spdk-rpc` (from the Python package `spdk`).
fn spdk_rpc(daemon: &Daemon, args: &[&str], input: &str) -> Result<Option<String>> {
    let Some(program) = std::env::var_os("SPDK_RPC") else { return Ok(None) };
    let mut child = Command::new(program)
        .arg("-s")
        .arg(daemon.rpc_path())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running spdk-rpc")?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("spdk-rpc {args:?}: {}", text(&output));
    }
    Ok(Some(String::from_utf8(output.stdout)?))
}

#[test]
fn spdks_own_client_configures_saves_and_loads() -> Result<()> {
    let daemon = Daemon::start()?;
    let path = daemon.disks_dir().join("f0");
    std::fs::File::create(&path)?.set_len(16 << 20)?;
    let path = path.to_str().context("text")?;
    let calls: [(&[&str], &str); 26] = [
        (&["spdk_get_version"], "26"),
        (&["rpc_get_methods"], "vhost_get_controllers"),
        (&["bdev_set_options", "--bdev-io-pool-size", "4096"], ""),
        (&["iobuf_set_options", "--small-pool-count", "8192"], ""),
        (&["sock_impl_set_options", "-i", "posix", "--recv-buf-size", "4096"], ""),
        (&["accel_set_options", "--task-count", "64"], ""),
        (&["bdev_malloc_create", "-b", "m0", "64", "512"], "m0"),
        (&["bdev_null_create", "n0", "100", "4096"], "n0"),
        (&["bdev_null_resize", "n0", "200"], "true"),
        (&["bdev_aio_create", path, "a0", "512"], "a0"),
        (&["bdev_aio_rescan", "a0"], "true"),
        (&["bdev_split_create", "m0", "2"], "m0p0 m0p1"),
        (&["bdev_passthru_create", "-b", "m0p0", "-p", "p0"], "p0"),
        (&["bdev_delay_create", "-b", "n0", "-d", "d0", "-r", "1", "-t", "2", "-w", "3", "-n", "4"], "d0"),
        (&["bdev_error_create", "m0p1"], ""),
        (&["bdev_wait_for_examine"], ""),
        (&["bdev_get_bdevs", "-b", "EE_m0p1"], "Error Injection Disk"),
        (&["bdev_get_iostat", "--names", "a0,n0"], "num_read_ops"),
        (&["vhost_create_scsi_controller", "vm1", "--cpumask", "0x1"], ""),
        (&["vhost_scsi_controller_add_target", "vm1", "-1", "p0"], "0"),
        (&["vhost_get_controllers"], "Target 0"),
        (&["scsi_get_devices"], "Target 0"),
        (&["framework_get_reactors"], "lcore"),
        (&["thread_get_stats"], "reactor_0"),
        (&["log_set_level", "INFO"], ""),
        (&["notify_get_notifications"], "bdev_register"),
    ];
    for (args, says) in calls {
        match spdk_rpc(&daemon, args, "")? {
            Some(printed) => assert!(printed.contains(says), "{args:?}: {printed}"),
            None => {
                eprintln!("SPDK_RPC is not set: SPDK's client is not tried");
                return Ok(());
            }
        }
    }
    let saved = spdk_rpc(&daemon, &["save_config"], "")?.context("ran before")?;
    drop(daemon);
    let fresh = Daemon::start()?;
    // The file of the first daemon is gone with it.
    std::fs::create_dir_all(std::path::Path::new(path).parent().context("a parent")?)?;
    std::fs::File::create(path)?.set_len(16 << 20)?;
    spdk_rpc(&fresh, &["load_config"], &saved)?;
    assert_eq!(spdk_rpc(&fresh, &["save_config"], "")?, Some(saved));
    drop(fresh);
    std::fs::remove_dir_all(std::path::Path::new(path).ancestors().nth(2).context("its folder")?)?;
    Ok(())
}

#[test]
fn a_person_can_do_it_all_by_hand() -> Result<()> {
    let daemon = Daemon::start()?;
    for (args, says) in [
        (&["bdev", "create", "malloc", "m0", "--size", "64M"][..], "created m0"),
        (&["bdev", "create", "split", "m0", "2"], "created m0p0 m0p1"),
        (&["bdev", "create", "error", "m0p0"], "created EE_m0p0"),
        (&["bdev", "list"], "EE_m0p0"),
        (&["vhost", "create", "vm1", "--cores", "0"], "created vm1"),
        (&["vhost", "attach", "vm1", "m0p1", "--lun", "5"], "target 0 LUN 5"),
        (&["vhost", "list"], "0:5"),
        (&["status"], "controllers  1 (0 sessions)"),
        (&["vhost", "detach", "vm1", "--target", "0"], "detached"),
        (&["vhost", "delete", "vm1"], "deleted vm1"),
        (&["bdev", "delete", "EE_m0p0"], "deleted"),
        (&["rpc", "bdev_get_bdevs", "{\"name\":\"m0\"}"], "Malloc disk"),
        (&["completions", "bash"], "complete"),
    ] {
        let output = pollux(&daemon, args)?;
        assert!(output.status.success() && text(&output).contains(says), "{args:?}: {}", text(&output));
    }
    let listed = pollux(&daemon, &["--json", "bdev", "list", "m0"])?;
    assert_eq!(serde_json::from_slice::<Value>(&listed.stdout)?[0]["name"], "m0");
    for (args, code, says) in [
        (&["bdev", "delete", "nothing"][..], 1, "nothing"),
        (&["rpc", "bdev_get_bdevs", "{name}"], 2, "not JSON"),
        (&["vhost", "detach"], 2, "Usage"),
        (&["--rpc-socket", "/nowhere/rpc.sock", "status"], 3, "pollux serve"),
    ] {
        let output = pollux(&daemon, args)?;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{args:?}: {}", text(&output));
    }
    Ok(())
}
