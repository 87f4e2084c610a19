//! FORMAT UNIT and SANITIZE on a real daemon: what is asked for is on the file behind the disk, and kill -9 in the middle
//! leaves nothing to read.

mod common;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use common::{clear_attentions, connect, file};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use serde_json::json;

const DISK: Lun = Lun::new(0, 0);
const BYTES: u64 = 16 << 20;
const IMMED: u8 = 0x80;
const AUSE: u8 = 0x20;
const SANITIZE_IN_PROGRESS: Option<(u8, u8, u8)> = Some((2, 0x04, 0x1B));
const FORMAT_CORRUPTED: Option<(u8, u8, u8)> = Some((3, 0x31, 0x00));

/// OVERWRITE, three times, with a pattern of one byte.
fn overwrite(byte: u8, flags: u8) -> ([u8; 10], [u8; 5]) {
    ([0x48, 0x01 | flags, 0, 0, 0, 0, 0, 0, 5, 0], [3, 0, 0, 1, byte])
}

/// A daemon with a file of 11h behind a bdev that takes its time for each request.
fn slow_disk() -> Result<Daemon> {
    let daemon = Daemon::start()?;
    file(&daemon, "disk", BYTES)?;
    fs::write(daemon.disks_dir().join("disk"), vec![0x11; BYTES as usize])?;
    let slow = json!({"base_bdev_name": "disk", "name": "slow", "avg_read_latency": 0, "p99_read_latency": 0,
        "avg_write_latency": 30_000, "p99_write_latency": 30_000});
    daemon.rpc("bdev_delay_create", slow)?;
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "slow", "allow_sanitize": true}))?;
    daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm", "initiator": "3000000000000001"}))?;
    common::attach(&daemon, "vm", 0, "slow")?;
    Ok(daemon)
}

fn guest(daemon: &Daemon) -> Result<FrontEnd> {
    let mut front = connect(daemon, "vm", &DriverOptions::default())?;
    for _ in 0..8 {
        if !matches!(front.cdb(DISK, &cdb::TEST_UNIT_READY, &[], 0)?.sense_key(), Some((6, ..))) {
            return Ok(front);
        }
    }
    bail!("unit attentions without end")
}

/// Waits until the unit is ready again.
fn await_ready(front: &mut FrontEnd, in_progress: Option<(u8, u8, u8)>) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        match front.cdb(DISK, &cdb::TEST_UNIT_READY, &[], 0)?.sense_key() {
            None => return Ok(()),
            told => ensure!(told == in_progress, "{told:x?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("it does not end")
}

fn content(daemon: &Daemon) -> Result<Vec<u8>> {
    let mut bytes = vec![0; BYTES as usize];
    fs::File::open(daemon.disks_dir().join("disk"))?.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[test]
fn a_sanitize_that_is_killed_begins_again() -> Result<()> {
    let mut daemon = slow_disk()?;
    {
        let mut front = guest(&daemon)?;
        let (cdb, list) = overwrite(0x5C, IMMED);
        ensure!(front.cdb(DISK, &cdb, &list, 0)?.good(), "IMMED");
        let read = front.cdb(DISK, &cdb::read10(0, 8), &[], 4096)?;
        ensure!(read.sense_key() == SANITIZE_IN_PROGRESS, "{:x?}", read.sense_key());
        // REQUEST SENSE says how far it is.
        let mut told = 0;
        while told == 0 {
            let sense = front.cdb(DISK, &[0x03, 0, 0, 0, 18, 0], &[], 18)?.data;
            ensure!((sense[2], sense[12], sense[13], sense[15]) == (2, 0x04, 0x1B, 0x80), "{sense:02x?}");
            told = u16::from_be_bytes([sense[16], sense[17]]);
        }
        daemon.kill9();
    }
    ensure!(content(&daemon)?.contains(&0x11), "it was done before it was killed");
    daemon.restart()?;
    let mut front = guest(&daemon)?;
    let read = front.cdb(DISK, &cdb::read10((BYTES / 512 - 8) as u32, 8), &[], 4096)?;
    ensure!(read.sense_key() == SANITIZE_IN_PROGRESS, "what was left of it could be read: {:x?}", read.sense_key());
    await_ready(&mut front, SANITIZE_IN_PROGRESS)?;
    ensure!(content(&daemon)?.iter().all(|byte| *byte == 0x5C), "not all is overwritten");
    drop(front);
    daemon.kill9();
    daemon.restart()?;
    ensure!(guest(&daemon)?.cdb(DISK, &cdb::TEST_UNIT_READY, &[], 0)?.good(), "it is over, durably");
    Ok(())
}

#[test]
fn a_format_that_is_killed_has_failed() -> Result<()> {
    let mut daemon = slow_disk()?;
    {
        let mut front = guest(&daemon)?;
        // IMMED and a pattern, which takes some steps.
        let list = [0, 0x8A, 0, 0, 0, 1, 0, 1, 0x42];
        ensure!(front.cdb(DISK, &[0x04, 0x10, 0, 0, 0, 0], &list, 0)?.good(), "IMMED");
        daemon.kill9();
    }
    daemon.restart()?;
    let mut front = guest(&daemon)?;
    let read = front.cdb(DISK, &cdb::read10(0, 8), &[], 4096)?;
    ensure!(read.sense_key() == FORMAT_CORRUPTED, "{:x?}", read.sense_key());
    ensure!(front.cdb(DISK, &[0x04, 0, 0, 0, 0, 0], &[], 0)?.good(), "the next format");
    ensure!(content(&daemon)?.iter().all(|byte| *byte == 0), "not all is zero");
    clear_attentions(&mut front, DISK)?;
    front.good(DISK, &cdb::read10(0, 8), &[], 4096)?;
    Ok(())
}

#[test]
fn a_sanitize_that_fails_closes_the_disk_over_a_restart() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "disk", BYTES)?;
    daemon.rpc("bdev_error_create", json!({"base_name": "disk"}))?;
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "EE_disk", "allow_sanitize": true}))?;
    daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm", "initiator": "3000000000000001"}))?;
    common::attach(&daemon, "vm", 0, "EE_disk")?;
    const FAILED: Option<(u8, u8, u8)> = Some((3, 0x31, 0x03));
    {
        let mut front = guest(&daemon)?;
        let fail = json!({"name": "EE_disk", "io_type": "write", "error_type": "failure", "num": 1});
        daemon.rpc("bdev_error_inject_error", fail)?;
        let (cdb, list) = overwrite(0x5C, AUSE);
        ensure!(front.cdb(DISK, &cdb, &list, 0)?.sense_key() == FAILED);
        daemon.kill9();
    }
    daemon.restart()?;
    let mut front = guest(&daemon)?;
    ensure!(front.cdb(DISK, &cdb::read10(0, 8), &[], 4096)?.sense_key() == FAILED);
    let exit = [0x48, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0];
    ensure!(front.cdb(DISK, &exit, &[], 0)?.good(), "EXIT FAILURE MODE");
    front.good(DISK, &cdb::read10(0, 8), &[], 4096)?;
    // Without leave there is no such command.
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "EE_disk"}))?;
    clear_attentions(&mut front, DISK)?;
    ensure!(front.cdb(DISK, &exit, &[], 0)?.sense_key() == Some((5, 0x20, 0)));
    Ok(())
}
