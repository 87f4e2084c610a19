//! What several tests against the real daemon share.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod attack;
pub(crate) mod thin;

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::{FrontEnd, PATIENCE};
use pollux_tests::guest::{DriverOptions, FIRST_REQUEST_QUEUE, Lun, ScsiLoad, ScsiMix, cdb};
use pollux_tests::rng::Rng;
use serde_json::json;

/// A RAM disk.
pub(crate) fn ram(daemon: &Daemon, name: &str, blocks: u64) -> Result<()> {
    daemon.rpc("bdev_malloc_create", json!({"name": name, "num_blocks": blocks, "block_size": 512}))?;
    Ok(())
}

/// A file of `bytes` zeroes as a disk.
pub(crate) fn file(daemon: &Daemon, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = daemon.disks_dir().join(name);
    File::create(&path)?.set_len(bytes)?;
    daemon.rpc("bdev_aio_create", json!({"name": name, "filename": path, "block_size": 512}))?;
    Ok(path)
}

/// A controller that listens, with these bdevs as LUN 0 of targets 0, 1, ...
pub(crate) fn controller(daemon: &Daemon, name: &str, bdevs: &[&str]) -> Result<()> {
    daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": name}))?;
    for (target, bdev) in bdevs.iter().enumerate() {
        attach(daemon, name, target as i64, bdev)?;
    }
    Ok(())
}

/// Attaches a bdev as LUN 0 of a target.
pub(crate) fn attach(daemon: &Daemon, ctrlr: &str, target: i64, bdev: &str) -> Result<i64> {
    let params = json!({"ctrlr": ctrlr, "scsi_target_num": target, "bdev_name": bdev});
    let number = daemon.rpc("vhost_scsi_controller_add_target", params)?;
    Ok(number.as_i64().unwrap_or(-1))
}

/// A front end of a controller.
pub(crate) fn connect(daemon: &Daemon, ctrlr: &str, options: &DriverOptions) -> Result<FrontEnd> {
    FrontEnd::connect(&daemon.socket(ctrlr), options)
}

/// Clears what a new nexus reports first.
pub(crate) fn clear_attentions(front: &mut FrontEnd, lun: Lun) -> Result<()> {
    front.good(lun, &[0; 6], &[], 0)?;
    Ok(())
}

/// The NAA of a unit, from page 83h.
pub(crate) fn naa(front: &mut FrontEnd, lun: Lun) -> Result<[u8; 16]> {
    let page = front.good(lun, &cdb::inquiry(Some(0x83), 252), &[], 252)?.data;
    let mut at = 4;
    while at + 4 < page.len() {
        let (kind, len) = (page[at + 1] & 0xF, usize::from(page[at + 3]));
        if (kind, len) == (3, 16) {
            return Ok(page[at + 4..at + 20].try_into()?);
        }
        at += 4 + len;
    }
    Err(anyhow!("no NAA in {page:02x?}"))
}

/// Runs `count` random commands on the load's unit over all request queues, at most `depth` at once, and checks every
/// answer.
pub(crate) fn run_load(
    front: &mut FrontEnd,
    load: &mut ScsiLoad,
    mix: &ScsiMix,
    count: usize,
    depth: usize,
    seed: u64,
) -> Result<()> {
    load.model().without_crashes();
    let mut rng = Rng::new(seed);
    let queues: Vec<usize> = (FIRST_REQUEST_QUEUE..front.driver.queues.len()).collect();
    let mut left = count;
    while left > 0 || load.in_flight() > 0 {
        let queue = queues[rng.index(queues.len())];
        if left > 0 && load.in_flight() < depth && load.submit(&mut front.driver, queue, mix) {
            left -= 1;
            if rng.chance(1, 2) {
                front.driver.queues[queue].flush();
            }
            continue;
        }
        for &queue in &queues {
            front.driver.queues[queue].flush();
        }
        let busy: Vec<usize> = queues.iter().copied().filter(|q| front.driver.in_flight(*q) > 0).collect();
        let queue = busy[rng.index(busy.len())];
        let (ticket, response) = front.wait(queue, PATIENCE)?;
        if !load.answered(queue, ticket, &response).map_err(|why| anyhow!(why))? {
            bail!("an answer to {ticket}, which nobody asked");
        }
    }
    Ok(())
}

/// The blocks of 512 bytes that a file takes on its file system.
pub(crate) fn allocated(path: &std::path::Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

/// Waits until something is so.
pub(crate) fn within(time: Duration, mut is_so: impl FnMut() -> Result<bool>, otherwise: &str) -> Result<()> {
    let end = Instant::now() + time;
    while !is_so()? {
        if Instant::now() > end {
            bail!("{otherwise}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
