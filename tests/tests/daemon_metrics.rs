//! What Prometheus gets: clean by its own tool's judgement, only what has moved, and nothing of what is gone.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use common::{connect, controller, ram};
use pollux_tests::daemon::Daemon;
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use serde_json::json;

const LUN: Lun = Lun::new(0, 0);

/// A daemon that has served reads, writes, a flush, a discard and an error.
fn busy_daemon() -> Result<Daemon> {
    let daemon = Daemon::start()?;
    ram(&daemon, "disk", 4096)?;
    ram(&daemon, "quiet", 4096)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    front.good(LUN, &cdb::write10(0, 2, false), &[1; 1024], 0)?;
    front.good(LUN, &cdb::read10(0, 2), &[], 1024)?;
    Ok(daemon)
}

#[test]
fn promtool_finds_nothing_to_say() -> Result<()> {
    let daemon = busy_daemon()?;
    let mut child = match Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) if std::env::var_os("POLLUX_PROMTOOL").is_none() => {
            eprintln!("no promtool ({error}): install the package prometheus to have the metrics checked");
            return Ok(());
        }
        Err(error) => return Err(error).context("promtool"),
    };
    child.stdin.take().context("a pipe")?.write_all(daemon.metrics()?.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && said.trim().is_empty(), "promtool check metrics: {said}");
    Ok(())
}

#[test]
fn only_what_has_moved_is_shown_and_what_is_deleted_is_gone() -> Result<()> {
    let daemon = busy_daemon()?;
    let shown = daemon.metrics()?;
    ensure!(shown.contains("pollux_bdev_ops_total{bdev=\"disk\""), "the busy disk is shown:\n{shown}");
    ensure!(!shown.contains("bdev=\"quiet\""), "the quiet disk is not shown:\n{shown}");
    ensure!(!shown.contains("op=\"write_zeroes\""), "an operation that nobody used is not shown:\n{shown}");
    daemon.rpc("vhost_delete_controller", json!({"ctrlr": "vm", "force": true}))?;
    daemon.rpc("bdev_malloc_delete", json!({"name": "disk"}))?;
    let shown = daemon.metrics()?;
    ensure!(!shown.contains("\"disk\"") && !shown.contains("\"vm\""), "what is deleted is gone:\n{shown}");
    Ok(())
}
