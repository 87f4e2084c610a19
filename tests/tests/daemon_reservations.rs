//! Reservations between the guests of a real daemon: they fence, they survive kill -9 if they were asked to, and a file
//! that no daemon wrote lets nobody in.

mod common;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use common::{clear_attentions, connect, file, ram};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, Lun, Response, cdb};
use serde_json::{Value, json};

const DURABLE: Lun = Lun::new(0, 0);
const PASSING: Lun = Lun::new(1, 0);
const CONFLICT: u8 = 0x18;
const REGISTER_AND_IGNORE: u8 = 6;
const RESERVE: u8 = 1;
const PREEMPT: u8 = 4;
const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
const APTPL: u8 = 1;

fn out(front: &mut FrontEnd, lun: Lun, action: u8, (key, new_key): (u64, u64), flags: u8) -> Result<Response> {
    let mut list = [key.to_be_bytes(), new_key.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    front.cdb(lun, &[0x5F, action, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 0, 0, 0, 0, 0, 24, 0], &list, 0)
}

fn good(front: &mut FrontEnd, lun: Lun, action: u8, keys: (u64, u64), flags: u8) -> Result<()> {
    let response = out(front, lun, action, keys, flags)?;
    ensure!(response.good(), "{action}: status {:#x} sense {:?}", response.status, response.sense_key());
    Ok(())
}

fn write(front: &mut FrontEnd, lun: Lun) -> Result<u8> {
    Ok(front.cdb(lun, &cdb::write10(0, 1, false), &[7; 512], 0)?.status)
}

fn create(daemon: &Daemon, name: &str, initiator: &str) -> Result<()> {
    daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": name, "initiator": initiator}))?;
    for (target, bdev) in ["durable", "passing"].into_iter().enumerate() {
        common::attach(daemon, name, target as i64, bdev)?;
    }
    Ok(())
}

fn two_guests(daemon: &Daemon) -> Result<[FrontEnd; 2]> {
    let guest = |name| -> Result<FrontEnd> {
        let mut front = connect(daemon, name, &DriverOptions::default())?;
        for lun in [DURABLE, PASSING] {
            clear_attentions(&mut front, lun)?;
        }
        Ok(front)
    };
    Ok([guest("vm1")?, guest("vm2")?])
}

fn unit_file(daemon: &Daemon, bdev: &str) -> Result<PathBuf> {
    let listed = daemon.rpc("bdev_get_bdevs", json!({"name": bdev}))?;
    let uuid = listed[0]["uuid"].as_str().context("a UUID")?;
    Ok(daemon.state_dir().join(format!("units/{uuid}.json")))
}

fn reservations(daemon: &Daemon, bdev: &str) -> Result<Value> {
    daemon.rpc("bdev_get_reservations", json!({"name": bdev}))
}

#[test]
fn what_is_durable_survives_kill_9_and_re_creation() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "durable", 1 << 20)?;
    file(&daemon, "passing", 1 << 20)?;
    create(&daemon, "vm1", "3000000000000001")?;
    create(&daemon, "vm2", "3000000000000002")?;
    {
        let [mut one, mut other] = two_guests(&daemon)?;
        good(&mut one, DURABLE, REGISTER_AND_IGNORE, (0, 0xAB), APTPL)?;
        good(&mut one, DURABLE, RESERVE, (0xAB, 0), 0)?;
        good(&mut one, PASSING, REGISTER_AND_IGNORE, (0, 0xAB), 0)?;
        good(&mut one, PASSING, RESERVE, (0xAB, 0), 0)?;
        for lun in [DURABLE, PASSING] {
            assert_eq!((write(&mut one, lun)?, write(&mut other, lun)?), (0, CONFLICT));
        }
        daemon.kill9();
    }
    daemon.restart()?;
    let expected = json!({
        "generation": 0, "durable": true, "type": "write_exclusive_registrants_only", "reserved_by": null,
        "registrations": [
            {"initiator": "3000000000000001", "ctrlr": "vm1", "key": "00000000000000ab", "holder": true}
        ],
        "unreadable": false,
    });
    assert_eq!(reservations(&daemon, "durable")?, expected);
    assert_eq!(reservations(&daemon, "passing")?["registrations"], json!([]));
    assert!(unit_file(&daemon, "durable")?.exists() && !unit_file(&daemon, "passing")?.exists());
    {
        let [mut one, mut other] = two_guests(&daemon)?;
        assert_eq!((write(&mut one, DURABLE)?, write(&mut other, DURABLE)?), (0, CONFLICT));
        assert_eq!((write(&mut one, PASSING)?, write(&mut other, PASSING)?), (0, 0));
        // One guest takes it from the other; that is as durable.
        good(&mut other, DURABLE, REGISTER_AND_IGNORE, (0, 0xCD), APTPL)?;
        good(&mut other, DURABLE, PREEMPT, (0xCD, 0xAB), 0)?;
        let told = one.cdb(DURABLE, &cdb::write10(0, 1, false), &[7; 512], 0)?;
        assert_eq!(told.sense_key(), Some((6, 0x2A, 0x05)));
        assert_eq!((write(&mut one, DURABLE)?, write(&mut other, DURABLE)?), (CONFLICT, 0));
        daemon.kill9();
    }
    daemon.restart()?;
    // A controller that is made again with the same initiator is the same nexus.
    daemon.rpc("vhost_delete_controller", json!({"ctrlr": "vm2"}))?;
    create(&daemon, "vm2", "3000000000000002")?;
    {
        let [mut one, mut other] = two_guests(&daemon)?;
        assert_eq!((write(&mut one, DURABLE)?, write(&mut other, DURABLE)?), (CONFLICT, 0));
        // With APTPL=0 the rest is for this run only.
        good(&mut other, DURABLE, REGISTER_AND_IGNORE, (0, 0xEF), 0)?;
        assert!(!unit_file(&daemon, "durable")?.exists());
        assert_eq!(write(&mut one, DURABLE)?, CONFLICT);
        // An operator takes it away.
        daemon.rpc("bdev_clear_reservations", json!({"name": "durable"}))?;
        let told = other.cdb(DURABLE, &cdb::write10(0, 1, false), &[7; 512], 0)?;
        assert_eq!(told.sense_key(), Some((6, 0x2A, 0x03)));
        assert_eq!((write(&mut one, DURABLE)?, write(&mut other, DURABLE)?), (0, 0));
        good(&mut one, DURABLE, REGISTER_AND_IGNORE, (0, 1), APTPL)?;
    }
    // What belongs to a disk goes with it.
    let file = unit_file(&daemon, "durable")?;
    assert!(file.exists());
    daemon.rpc("bdev_delete", json!({"name": "durable", "force": true}))?;
    assert!(!file.exists());
    assert_eq!(
        daemon.rpc_error("bdev_get_reservations", json!({"name": "durable"}))?.reason.as_deref(),
        Some("not_found")
    );
    Ok(())
}

#[test]
fn a_file_that_cannot_be_read_lets_nobody_in() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "durable", 1 << 20)?;
    file(&daemon, "passing", 1 << 20)?;
    create(&daemon, "vm1", "3000000000000001")?;
    create(&daemon, "vm2", "3000000000000002")?;
    {
        let [mut one, _] = two_guests(&daemon)?;
        good(&mut one, DURABLE, REGISTER_AND_IGNORE, (0, 0xAB), APTPL)?;
    }
    daemon.kill9();
    let file = unit_file_of(&daemon)?;
    let damaged = fs::read_to_string(&file)?.replace("registration", "registratiom");
    fs::write(&file, &damaged)?;
    daemon.restart()?;
    assert_eq!(reservations(&daemon, "durable")?["unreadable"], json!(true));
    let [mut one, mut other] = two_guests(&daemon)?;
    for front in [&mut one, &mut other] {
        assert_eq!((write(front, DURABLE)?, write(front, PASSING)?), (CONFLICT, 0));
        assert_eq!(out(front, DURABLE, REGISTER_AND_IGNORE, (0, 1), APTPL)?.status, CONFLICT);
    }
    assert_eq!(fs::read_to_string(&file)?, damaged);
    daemon.rpc("bdev_clear_reservations", json!({"name": "durable"}))?;
    assert_eq!((write(&mut one, DURABLE)?, write(&mut other, DURABLE)?), (0, 0));
    assert_eq!(reservations(&daemon, "durable")?["unreadable"], json!(false));
    assert!(!file.exists());
    Ok(())
}

/// The only file there is, while no daemon can be asked.
fn unit_file_of(daemon: &Daemon) -> Result<PathBuf> {
    let mut files = fs::read_dir(daemon.state_dir().join("units"))?;
    Ok(files.next().context("a file")??.path())
}

#[test]
fn a_guest_that_has_things_saved_in_a_loop_is_slowed_down() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "durable", 1 << 20)?;
    file(&daemon, "passing", 1 << 20)?;
    create(&daemon, "vm1", "3000000000000001")?;
    create(&daemon, "vm2", "3000000000000002")?;
    let [mut one, mut other] = two_guests(&daemon)?;
    let mut busy = 0;
    for key in 1..=200 {
        match out(&mut one, DURABLE, REGISTER_AND_IGNORE, (0, key), APTPL)?.status {
            0 => {}
            8 => busy += 1,
            other => anyhow::bail!("status {other:#x}"),
        }
    }
    assert!(busy > 0, "200 saves at once");
    good(&mut other, DURABLE, REGISTER_AND_IGNORE, (0, 1), APTPL)?;
    Ok(())
}

#[test]
fn nothing_is_promised_that_is_not_kept() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions { args: vec!["--ephemeral".into()], ..DaemonOptions::default() })?;
    ram(&daemon, "durable", 2048)?;
    ram(&daemon, "passing", 2048)?;
    create(&daemon, "vm1", "3000000000000001")?;
    let mut front = connect(&daemon, "vm1", &DriverOptions::default())?;
    clear_attentions(&mut front, DURABLE)?;
    let capabilities = front.good(DURABLE, &[0x5E, 2, 0, 0, 0, 0, 0, 0, 8, 0], &[], 8)?.data;
    assert_eq!(capabilities[2] & 1, 0, "PTPL_C");
    let refused = out(&mut front, DURABLE, REGISTER_AND_IGNORE, (0, 1), APTPL)?;
    assert_eq!(refused.sense_key(), Some((5, 0x26, 0x00)));
    good(&mut front, DURABLE, REGISTER_AND_IGNORE, (0, 1), 0)
}
