//! `pollux bench` against the real daemon: what it does, what it finds, and how it ends. Nothing here judges speed.

mod common;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::{attach, connect, controller, ram};
use pollux_tests::daemon::{Daemon, DaemonOptions, binary};
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use serde_json::{Value, json};

/// Blocks of the disks: 8 MiB.
const BLOCKS: u64 = 16384;
const PATIENCE: Duration = Duration::from_secs(30);

fn command(sockets: &[PathBuf], args: &str) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.arg("bench").args(args.split_whitespace());
    for (option, value) in [("--core", "none"), ("--time", "0.2")] {
        if !args.contains(option) {
            command.args([option, value]);
        }
    }
    sockets.iter().for_each(|socket| {
        command.arg("--socket").arg(socket);
    });
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn run(sockets: &[PathBuf], args: &str) -> Result<Output> {
    Ok(command(sockets, args)?.output()?)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run that has to end well; its report.
fn good(sockets: &[PathBuf], args: &str) -> Result<Value> {
    let output = run(sockets, &format!("{args} --json"))?;
    ensure!(output.status.success(), "{args}: {}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| args.to_owned())?;
    ensure!(report["ios"].as_u64() > Some(0) && report["errors"] == 0 && report["verify_errors"] == 0, "{report:#}");
    Ok(report)
}

/// A run that has to fail; its report.
fn bad(sockets: &[PathBuf], args: &str) -> Result<Value> {
    let output = run(sockets, &format!("{args} --json"))?;
    ensure!(output.status.code() == Some(1), "{args}: {:?} {}", output.status, stderr(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A run that has to be refused with these words.
fn refused(sockets: &[PathBuf], args: &str, code: i32, words: &str) -> Result<()> {
    let output = run(sockets, args)?;
    let text = stderr(&output);
    ensure!(output.status.code() == Some(code) && text.contains(words), "{args}: {:?} {text}", output.status);
    ensure!(output.stdout.is_empty(), "{args} printed a result");
    Ok(())
}

/// A daemon with a RAM disk on a controller.
fn daemon() -> Result<(Daemon, [PathBuf; 1])> {
    let daemon = Daemon::start()?;
    ram(&daemon, "disk", BLOCKS)?;
    controller(&daemon, "vm", &["disk"])?;
    let socket = daemon.socket("vm");
    Ok((daemon, [socket]))
}

/// The same with a disk that fails on demand.
fn faulty() -> Result<(Daemon, [PathBuf; 1])> {
    let daemon = Daemon::start()?;
    ram(&daemon, "disk", BLOCKS)?;
    daemon.rpc("bdev_error_create", json!({"base_name": "disk", "volatile_cache": true}))?;
    controller(&daemon, "vm", &["EE_disk"])?;
    let socket = daemon.socket("vm");
    Ok((daemon, [socket]))
}

fn inject(daemon: &Daemon, io: &str, error: &str, num: u64) -> Result<()> {
    let mut rule = json!({"name": "EE_disk", "io_type": io, "error_type": error, "num": num});
    if error == "corrupt_data" {
        (rule["corrupt_offset"], rule["corrupt_value"]) = (json!(700), json!(1));
    }
    daemon.rpc("bdev_error_inject_error", rule)?;
    Ok(())
}

/// Requests of a kind that a bdev has served.
fn served(daemon: &Daemon, bdev: &str, counter: &str) -> Result<u64> {
    let stats = daemon.rpc("bdev_get_iostat", json!({"name": bdev}))?;
    stats["bdevs"][0][counter].as_u64().with_context(|| format!("{counter} in {stats}"))
}

/// A run that goes on until it is ended, and that has begun.
fn begun(daemon: &Daemon, sockets: &[PathBuf], bdev: &str, args: &str) -> Result<Child> {
    let before = served(daemon, bdev, "num_read_ops")? + served(daemon, bdev, "num_write_ops")?;
    let mut child = command(sockets, &format!("{args} --json --time 300"))?.spawn()?;
    let end = Instant::now() + PATIENCE;
    while served(daemon, bdev, "num_read_ops")? + served(daemon, bdev, "num_write_ops")? < before + 1000 {
        if Instant::now() > end || child.try_wait()?.is_some() {
            let _ = child.kill();
            let output = child.wait_with_output()?;
            anyhow::bail!("{args}: no load: {:?} {}", output.status, stderr(&output));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child)
}

/// What a run says when it has ended by itself.
fn ended(mut child: Child) -> Result<Output> {
    let end = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            let mut text = String::new();
            child.stderr.take().context("stderr")?.read_to_string(&mut text)?;
            child.wait()?;
            anyhow::bail!("it does not end: {text}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?)
}

fn interrupt(child: &Child) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(child.id() as i32).context("a pid")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::INT)?)
}

#[test]
fn every_mode_reads_what_it_wrote() -> Result<()> {
    let (_daemon, sockets) = daemon()?;
    for mode in ["read", "write", "rw", "randread", "randwrite", "randrw", "trim", "randtrim"] {
        for shape in [
            "--bs 4k --qd 32",
            "--bs 512 --qd 1 --indirect on --misalign 8",
            "--bs 20k --qd 40 --queues 3 --event-idx off",
        ] {
            let report = good(&sockets, &format!("--rw {mode} --fill --verify {shape}"))?;
            // At the end alone everything is compared once.
            ensure!(report["verified_bytes"].as_u64() >= Some(BLOCKS * 512 / 20480 * 20480), "{report:#}");
            let kind = |name: &str| report[name]["ios"].as_u64().unwrap_or(0);
            let [reads, writes, trims] = [kind("read"), kind("write"), kind("trim")];
            let expected = match mode {
                "read" | "randread" => reads > 0 && writes + trims == 0,
                "write" | "randwrite" => writes > 0 && reads + trims == 0,
                "trim" | "randtrim" => trims > 0 && reads + writes == 0,
                _ => reads > writes && writes > 0 && trims == 0,
            };
            ensure!(expected, "{mode}: {reads} reads, {writes} writes, {trims} discards");
            ensure!(report["ios"].as_u64() == Some(reads + writes + trims), "{report:#}");
        }
    }
    Ok(())
}

#[test]
fn plain_runs_and_the_ways_to_wait() -> Result<()> {
    let (daemon, sockets) = daemon()?;
    for args in [
        "",
        "--rw randrw --rwmixread 10 --ramp 0.1",
        "--interrupt --qd 1",
        "--interrupt --qd 16 --queues 4 --event-idx off --kick always",
        "--gap 200 --qd 1 --queues 2",
        "--gap 200 --qd 1 --interrupt",
        "--hugepages off --queue-size 1024 --qd 341",
        "--offset 1m --size 3m --rw write --bs 1m --qd 2",
    ] {
        let report = good(&sockets, args)?;
        let interrupts = report["client"]["interrupts"].as_u64().context("interrupts")?;
        ensure!((interrupts > 0) == args.contains("--interrupt"), "{args}: {interrupts} interrupts");
    }
    let before = served(&daemon, "disk", "num_write_ops")?;
    // Fill alone: everything once, in big blocks.
    good(&sockets, "--fill --rw randread")?;
    let writes = served(&daemon, "disk", "num_write_ops")? - before;
    ensure!(writes == BLOCKS * 512 / (256 << 10), "{writes} writes to fill the disk");
    Ok(())
}

/// What a disk holds, a KiB at a time, read by another driver.
fn content(daemon: &Daemon) -> Result<Vec<Vec<u8>>> {
    let mut front = connect(daemon, "vm", &DriverOptions::default())?;
    let lun = Lun::new(0, 0);
    (0..BLOCKS as u32 / 2).map(|kib| Ok(front.good(lun, &cdb::read10(2 * kib, 2), &[], 1024)?.data)).collect()
}

#[test]
fn requests_go_where_they_say_and_nowhere_else() -> Result<()> {
    let (daemon, sockets) = daemon()?;
    for verify in ["", "--verify"] {
        good(&sockets, &format!("--fill --rw randread --bs 64k --qd 4 {verify}"))?;
        let before = content(&daemon)?;
        ensure!(before.iter().all(|kib| kib.iter().any(|byte| *byte != 0)), "not all was filled");
        // All of one MiB in the middle, in requests that do not divide a big block evenly.
        good(&sockets, &format!("--fill --rw write --bs 12k --qd 4 --seed 2 --offset 2m --size 1m {verify}"))?;
        let after = content(&daemon)?;
        // 85 whole requests fit.
        let middle = 2048..2048 + 85 * 12;
        for kib in 0..before.len() {
            ensure!((before[kib] != after[kib]) == middle.contains(&kib), "KiB {kib} {verify}");
        }
    }
    Ok(())
}

#[test]
fn several_vms_from_one_thread() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions { reactors: "0,1".into(), ..DaemonOptions::default() })?;
    let mut sockets = Vec::new();
    for n in 0..20 {
        ram(&daemon, &format!("disk{n}"), BLOCKS)?;
        controller(&daemon, &format!("vm{n}"), &[&format!("disk{n}")])?;
        sockets.push(daemon.socket(&format!("vm{n}")));
    }
    let report = good(&sockets, "--rw randrw --verify --qd 4 --queues 2 --hugepages off")?;
    ensure!(report["sockets"] == 20 && report["queues"] == 2, "{report:#}");
    for n in 0..20 {
        ensure!(served(&daemon, &format!("disk{n}"), "num_write_ops")? > 0, "disk{n} was not written");
    }
    good(&sockets, "--interrupt --qd 1 --hugepages off")?;
    // One disk behind two sockets.
    controller(&daemon, "again", &["disk3"])?;
    let both = [daemon.socket("vm3"), daemon.socket("again")];
    refused(&both, "--rw randwrite --verify", 2, "the same disk")?;
    good(&both, "--rw randwrite")?;
    Ok(())
}

#[test]
fn a_run_ends_with_its_requests_or_its_places_and_flushes_between_them() -> Result<()> {
    let (daemon, sockets) = faulty()?;
    let before = served(&daemon, "EE_disk", "num_flush_ops")?;
    let report = good(&sockets, "--rw randwrite --ios 1000 --flush-every 64 --qd 4 --queues 2 --time 20")?;
    // Each queue has sent half of them.
    ensure!(report["ios"] == 1000 && report["write"]["ios"] == 1000 && report["flush"]["ios"] == 14, "{report:#}");
    ensure!(served(&daemon, "EE_disk", "num_flush_ops")? - before == 14, "{report:#}");
    ensure!(report["flush"]["bytes_per_second"] == 0 && report["flush"]["latency_ns"]["p50"].as_u64() > Some(0));
    ensure!(report["duration_s"].as_f64() < Some(10.0), "{report:#}");
    let pieces = BLOCKS * 512 / 8192;
    for mode in ["randwrite", "write", "randread"] {
        let report = good(&sockets, &format!("--rw {mode} --bs 8k --once --queues 3 --time 20"))?;
        ensure!(report["ios"] == pieces && report["duration_s"].as_f64() < Some(10.0), "{pieces}: {report:#}");
    }
    Ok(())
}

#[test]
fn a_report_has_every_field() -> Result<()> {
    let (_daemon, sockets) = daemon()?;
    let report = good(&sockets, "--rw randrw --qd 8 --bs 8k --queues 2 --time 0.5")?;
    let number =
        |value: &Value, name: &str| value[name].as_f64().with_context(|| format!("{name} is no number in {value:#}"));
    ensure!(report["flush"]["ios"] == 0, "{report:#}");
    for part in [&report, &report["read"], &report["write"], &report["trim"]] {
        let (ios, iops, rate) = (number(part, "ios")?, number(part, "iops")?, number(part, "bytes_per_second")?);
        ensure!((rate - iops * 8192.0).abs() <= 8192.0, "{part:#}");
        ensure!((ios - iops * number(&report, "duration_s")?).abs() <= 1.0 + ios / 1000.0, "{part:#}");
        let latency = &part["latency_ns"];
        let mut last = 0.0;
        for name in ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"] {
            let ns = number(latency, name)?;
            ensure!(ns >= last, "{name} in {latency:#}");
            last = ns;
        }
        let mean = number(latency, "mean")?;
        ensure!(mean >= number(latency, "min")? && mean <= number(latency, "max")? + 1.0, "{latency:#}");
        ensure!((ios > 0.0) == (mean > 0.0), "{part:#}");
    }
    ensure!(number(&report, "duration_s")? > 0.49, "{report:#}");
    for (name, value) in [
        ("errors", json!(0)),
        ("verify_errors", json!(0)),
        ("verified_bytes", json!(0)),
        ("retries", json!(0)),
        ("rw", json!("randrw")),
        ("rwmixread", json!(70)),
        ("bs", json!(8192)),
        ("qd", json!(8)),
        ("queues", json!(2)),
        ("queue_size", json!(128)),
        ("sockets", json!(1)),
        ("interrupt", json!(false)),
        ("gap_us", json!(0.0)),
        ("event_idx", json!(true)),
        ("indirect", json!(false)),
        ("misalign", json!(0)),
        ("once", json!(false)),
        ("flush_every", Value::Null),
        ("core", Value::Null),
        ("seed", json!(1)),
        ("messages", json!([])),
        ("disk", json!({"name": "POLLUX Pollux disk", "bytes": BLOCKS * 512, "block_size": 512})),
    ] {
        ensure!(report[name] == value, "{name}: {} instead of {value}", report[name]);
    }
    ensure!(report["pages"].is_string(), "{report:#}");
    let client = &report["client"];
    for name in ["ns_per_io", "busy_share", "polls", "empty_polls", "ios_per_batch", "kicks", "interrupts"] {
        number(client, name)?;
    }
    ensure!(number(client, "ns_per_io")? > 0.0 && number(client, "polls")? >= number(client, "empty_polls")?);
    // For people.
    let text = run(&sockets, "--rw randrw")?;
    let text = String::from_utf8(text.stdout)?;
    for word in ["IOPS", "p99.99", "read", "write", "client", "errors 0"] {
        ensure!(text.contains(word), "{word} is not in {text}");
    }
    Ok(())
}

#[test]
fn a_disk_that_changes_data_is_found_out() -> Result<()> {
    let (daemon, sockets) = faulty()?;
    inject(&daemon, "write", "corrupt_data", 5)?;
    let report = bad(&sockets, "--rw randwrite --verify --bs 4k")?;
    ensure!(report["verify_errors"] == 5 && report["errors"] == 0, "{report:#}");
    let message = report["messages"][0].as_str().unwrap_or_default();
    ensure!(message.contains("read back: LBA") && message.contains("corrupt: differs from byte 188"), "{message}");
    // On the way back the disk's content is right, and what is read is not.
    inject(&daemon, "read", "corrupt_data", 3)?;
    let report = bad(&sockets, "--rw randread --fill --verify --bs 4k")?;
    ensure!(report["verify_errors"] == 3, "{report:#}");
    good(&sockets, "--rw randrw --fill --verify --bs 4k")?;
    Ok(())
}

#[test]
fn lost_writes_are_found_out() -> Result<()> {
    let (daemon, sockets) = faulty()?;
    // Nothing is flushed, so the cut takes back all that was written; the load reads it as it goes on.
    let child = begun(&daemon, &sockets, "EE_disk", "--rw randrw --verify --qd 8 --fill")?;
    daemon.rpc("bdev_error_power_cut", json!({"name": "EE_disk"}))?;
    let before = served(&daemon, "EE_disk", "num_read_ops")?;
    let end = Instant::now() + PATIENCE;
    while served(&daemon, "EE_disk", "num_read_ops")? < before + 20_000 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    interrupt(&child)?;
    let output = ended(child)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.code() == Some(1) && report["verify_errors"].as_u64() > Some(0), "{report:#}");
    let messages = report["messages"].to_string();
    ensure!(messages.contains("lost"), "{messages}");
    Ok(())
}

#[test]
fn failed_requests_are_counted_and_named() -> Result<()> {
    let (daemon, sockets) = faulty()?;
    inject(&daemon, "read", "failure", 3)?;
    let report = bad(&sockets, "--rw randread")?;
    ensure!(report["errors"] == 3 && report["verify_errors"] == 0, "{report:#}");
    let message = report["messages"][0].as_str().unwrap_or_default();
    ensure!(message.starts_with("read of 8 blocks at LBA ") && message.contains("sense "), "{message}");
    // A torn write fails, so nobody expects its data.
    inject(&daemon, "write", "torn", 4)?;
    let report = bad(&sockets, "--rw randwrite --verify")?;
    ensure!(report["errors"] == 4 && report["verify_errors"] == 0, "{report:#}");
    Ok(())
}

#[test]
fn what_cannot_work_is_refused_in_words() -> Result<()> {
    let (daemon, sockets) = daemon()?;
    refused(&[daemon.socket("none")], "", 1, "does the controller exist?")?;
    refused(&sockets, "--target 9", 1, "BAD TARGET")?;
    refused(&sockets, "--lun 5", 1, "is not there: give another --lun")?;
    refused(&sockets, "--size 9m", 2, "beyond its end")?;
    refused(&sockets, "--offset 8m", 2, "too few for --bs")?;
    refused(&sockets, "--offset 100", 2, "--offset 100")?;
    refused(&sockets, "--bs 1000", 2, "--bs 1000")?;
    refused(&sockets, "--bs 16m", 2, "--bs 16777216")?;
    refused(&sockets, "--queues 500", 1, "request queues, not --queues 500")?;
    refused(&sockets, "--qd 64 --queue-size 128", 2, "--queue-size larger")?;
    refused(&sockets, "--queue-size 2048", 1, "SET_VRING")?;
    refused(&sockets, "--rw randread --verify", 2, "needs --fill")?;
    refused(&sockets, "--rw randwrite --verify --size 64k --qd 32", 2, "--verify")?;
    refused(&sockets, "--core 1000000", 2, "--core 1000000")?;
    let other = sockets[0].with_extension("file");
    std::fs::write(&other, "no socket")?;
    refused(&[other], "", 1, "cannot connect to")?;
    // A block size that is not 512.
    let params = json!({"name": "big", "num_blocks": 1024, "block_size": 4096});
    daemon.rpc("bdev_malloc_create", params)?;
    attach(&daemon, "vm", 1, "big")?;
    refused(&sockets, "--target 1 --bs 512", 2, "blocks of 4096 bytes")?;
    good(&sockets, "--target 1 --bs 8k --rw randrw --verify")?;
    // After all that the daemon serves as before.
    good(&sockets, "--rw randrw --verify")?;
    Ok(())
}

#[test]
fn a_session_that_another_client_has_is_told_from_a_broken_one() -> Result<()> {
    let (daemon, sockets) = daemon()?;
    let child = begun(&daemon, &sockets, "disk", "--rw randread")?;
    refused(&sockets, "", 1, "it takes one client at a time")?;
    interrupt(&child)?;
    ensure!(ended(child)?.status.success());
    Ok(())
}

#[test]
fn a_daemon_that_vanishes_ends_the_run_with_an_error() -> Result<()> {
    for args in ["--rw randread", "--rw randwrite --verify", "--interrupt --qd 1", "--interrupt --qd 1 --gap 1000"] {
        let (mut daemon, sockets) = daemon()?;
        let child = begun(&daemon, &sockets, "disk", args)?;
        daemon.kill9();
        let output = ended(child)?;
        let text = stderr(&output);
        ensure!(output.status.code() == Some(1) && text.contains("closed the connection"), "{args}: {text}");
    }
    Ok(())
}

#[test]
fn a_request_that_is_never_answered_ends_the_run_with_an_error() -> Result<()> {
    let (daemon, sockets) = faulty()?;
    inject(&daemon, "read", "pending", 1)?;
    let output = run(&sockets, "--time 60 --timeout 1")?;
    let text = stderr(&output);
    ensure!(output.status.code() == Some(1) && text.contains("in flight for more than 1 s"), "{text}");
    Ok(())
}

#[test]
fn interrupted_runs_give_the_result_so_far() -> Result<()> {
    let (daemon, sockets) = daemon()?;
    for args in ["--rw randread --ramp 0.01", "--rw randrw --verify", "--interrupt --qd 1"] {
        let child = begun(&daemon, &sockets, "disk", args)?;
        interrupt(&child)?;
        let output = ended(child)?;
        ensure!(output.status.success(), "{args}: {}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let seconds = report["duration_s"].as_f64().context("duration_s")?;
        ensure!(seconds < 300.0, "{report:#}");
        ensure!(report["ios"].as_u64() > Some(0) || seconds < 0.05, "{report:#}");
    }
    Ok(())
}
