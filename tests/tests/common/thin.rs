//! What the tests of thin pools share.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use serde_json::{Value, json};

use super::{clear_attentions, connect, controller, file};

/// What happens within a second, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// LUN 0 of a target.
pub(crate) fn lun(target: u8) -> Lun {
    Lun::new(target, 0)
}

pub(crate) fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().with_context(|| format!("{value} is text"))?.to_owned())
}

/// A pool `lvs` on a new file; returns the file.
pub(crate) fn pool(daemon: &Daemon, base: &str, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = file(daemon, base, bytes)?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": base, "lvs_name": name}))?;
    Ok(path)
}

pub(crate) fn volume(daemon: &Daemon, pool: &str, name: &str, mib: u64) -> Result<String> {
    let params = json!({"lvs_name": pool, "lvol_name": name, "size_in_mib": mib, "thin_provision": true});
    text(&daemon.rpc("bdev_lvol_create", params)?)
}

/// A pool `lvs` with volumes of so many MiB, and a VM `vm` that has them as targets 0, 1, ...
pub(crate) fn served(daemon: &Daemon, volumes: &[(&str, u64)]) -> Result<FrontEnd> {
    pool(daemon, "f0", "lvs", 256 << 20)?;
    let mut aliases = Vec::new();
    for (name, mib) in volumes {
        volume(daemon, "lvs", name, *mib)?;
        aliases.push(format!("lvs/{name}"));
    }
    controller(daemon, "vm", &aliases.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut front = connect(daemon, "vm", &DriverOptions::default())?;
    for target in 0..volumes.len() as u8 {
        clear_attentions(&mut front, lun(target))?;
    }
    Ok(front)
}

/// A crash, and a start without this file; where it is meanwhile.
pub(crate) fn restart_without(daemon: &mut Daemon, path: &Path) -> Result<PathBuf> {
    daemon.kill9();
    let away = path.with_extension("away");
    std::fs::rename(path, &away)?;
    daemon.restart()?;
    Ok(away)
}

pub(crate) fn listed(daemon: &Daemon, alias: &str) -> Result<Value> {
    let all = daemon.rpc("bdev_lvol_get_lvols", Value::Null)?;
    let found = all.as_array().context("a list")?.iter().find(|volume| volume["alias"] == alias);
    found.cloned().with_context(|| format!("{alias} is not in {all}"))
}

pub(crate) fn write(front: &mut FrontEnd, target: u8, lba: u32, value: u8) -> Result<()> {
    front.good(lun(target), &cdb::write10(lba, 8, false), &[value; 4096], 0)?;
    Ok(())
}

pub(crate) fn reads(front: &mut FrontEnd, target: u8, lba: u32, value: u8) -> Result<()> {
    let read = front.good(lun(target), &cdb::read10(lba, 8), &[], 4096)?.data;
    ensure!(read == [value; 4096], "target {target} block {lba} reads {} and not {value}", read[0]);
    Ok(())
}

pub(crate) fn flush(front: &mut FrontEnd, target: u8) -> Result<()> {
    front.good(lun(target), &cdb::sync10(), &[], 0)?;
    Ok(())
}

pub(crate) fn refused(
    daemon: &Daemon,
    method: &str,
    params: Value,
    code: i64,
    message: &str,
    reason: &str,
) -> Result<()> {
    let shown = params.to_string();
    let error = daemon.rpc_error(method, params)?;
    let is = (error.code, error.message.as_str(), error.reason.as_deref());
    ensure!(is == (code, message, Some(reason)), "{method} {shown}: {error}");
    Ok(())
}

/// What a fault bdev is asked of this kind (`read`, `write`) hangs from now on.
pub(crate) fn hang(daemon: &Daemon, name: &str, io_type: &str) -> Result<()> {
    let params = json!({"name": name, "io_type": io_type, "error_type": "pending", "num": 1_000_000});
    daemon.rpc("bdev_error_inject_error", params)?;
    Ok(())
}

/// Nothing hangs any longer.
pub(crate) fn goes_on(daemon: &Daemon, name: &str) -> Result<()> {
    let params = json!({"name": name, "io_type": "clear", "error_type": "failure", "num": 1});
    daemon.rpc("bdev_error_inject_error", params)?;
    daemon.rpc("bdev_error_resume_pending", json!({ "name": name }))?;
    Ok(())
}

/// A pool `lvs` on a fault bdev `EE_f0`, in a daemon that waits a second for it.
pub(crate) fn impatient() -> Result<Daemon> {
    let args = vec!["--pool-timeout".to_owned(), "1".to_owned()];
    let daemon = Daemon::start_with(DaemonOptions { args, ..DaemonOptions::default() })?;
    file(&daemon, "f0", 64 << 20)?;
    daemon.rpc("bdev_error_create", json!({"base_name": "f0"}))?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "EE_f0", "lvs_name": "lvs"}))?;
    Ok(daemon)
}
