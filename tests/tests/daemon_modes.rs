//! Mode pages and labels that a guest of a real daemon has saved: they survive kill -9, an operator takes them back,
//! and what cannot be read of them costs nothing else.

mod common;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use common::{clear_attentions, connect, file, ram};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, Lun, Response, cdb};
use serde_json::json;

const DISK: Lun = Lun::new(0, 0);
const WCE: u8 = 0x04;
const SP: u8 = 0x01;

fn guest(daemon: &Daemon, name: &str) -> Result<FrontEnd> {
    let mut front = connect(daemon, name, &DriverOptions::default())?;
    clear_attentions(&mut front, DISK)?;
    Ok(front)
}

fn daemon() -> Result<Daemon> {
    let daemon = Daemon::start()?;
    file(&daemon, "disk", 1 << 20)?;
    for (name, initiator) in [("vm1", "3000000000000001"), ("vm2", "3000000000000002")] {
        daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": name, "initiator": initiator}))?;
        common::attach(&daemon, name, 0, "disk")?;
    }
    Ok(daemon)
}

/// Byte 2 of the caching page: current (0) or saved (3).
fn caching(front: &mut FrontEnd, pc: u8) -> Result<u8> {
    Ok(front.good(DISK, &[0x1A, 0x08, pc << 6 | 0x08, 0, 24, 0], &[], 24)?.data[6])
}

fn select(front: &mut FrontEnd, flags: u8, wce: u8) -> Result<Response> {
    let mut list = vec![0; 24];
    (list[4], list[5], list[6]) = (0x08, 0x12, wce);
    front.cdb(DISK, &[0x15, 0x10 | flags, 0, 0, 24, 0], &list, 0)
}

fn good(response: &Response) -> Result<()> {
    ensure!(response.good(), "status {:#x} sense {:?}", response.status, response.sense_key());
    Ok(())
}

fn write(front: &mut FrontEnd) -> Result<Response> {
    front.cdb(DISK, &cdb::write10(0, 1, false), &[7; 512], 0)
}

fn unit_file(daemon: &Daemon) -> Result<PathBuf> {
    let listed = daemon.rpc("bdev_get_bdevs", json!({"name": "disk"}))?;
    let uuid = listed[0]["uuid"].as_str().context("a UUID")?;
    Ok(daemon.state_dir().join(format!("units/{uuid}.json")))
}

fn warnings(daemon: &Daemon) -> Result<String> {
    Ok(daemon.rpc("bdev_get_bdevs", json!({"name": "disk"}))?[0]["warnings"].to_string())
}

#[test]
fn saved_pages_survive_kill_9_until_they_are_taken_back() -> Result<()> {
    let mut daemon = daemon()?;
    {
        let [mut one, mut other] = [guest(&daemon, "vm1")?, guest(&daemon, "vm2")?];
        assert_eq!((caching(&mut one, 0)?, caching(&mut one, 3)?), (WCE, WCE));
        good(&select(&mut one, SP, 0)?)?;
        assert_eq!(write(&mut other)?.sense_key(), Some((6, 0x2A, 0x01)));
        assert_eq!((caching(&mut other, 0)?, caching(&mut other, 3)?), (0, 0));
        good(&select(&mut one, 0, WCE)?)?;
        assert_eq!((caching(&mut one, 0)?, caching(&mut one, 3)?), (WCE, 0));
        daemon.kill9();
    }
    daemon.restart()?;
    {
        let [mut one, mut other] = [guest(&daemon, "vm1")?, guest(&daemon, "vm2")?];
        assert_eq!((caching(&mut one, 0)?, caching(&mut one, 3)?), (0, 0));
        daemon.rpc("bdev_reset_mode_pages", json!({"name": "disk"}))?;
        for front in [&mut one, &mut other] {
            assert_eq!(write(front)?.sense_key(), Some((6, 0x2A, 0x01)));
            assert_eq!((caching(front, 0)?, caching(front, 3)?), (WCE, WCE));
        }
        assert!(!unit_file(&daemon)?.exists());
        daemon.kill9();
    }
    daemon.restart()?;
    assert_eq!(caching(&mut guest(&daemon, "vm1")?, 0)?, WCE);
    let missing = daemon.rpc_error("bdev_reset_mode_pages", json!({"name": "none"}))?;
    assert_eq!(missing.reason.as_deref(), Some("not_found"));
    Ok(())
}

#[test]
fn a_label_survives_kill_9() -> Result<()> {
    const REPORT: [u8; 12] = [0xA3, 0x05, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    let mut daemon = daemon()?;
    {
        let [mut one, mut other] = [guest(&daemon, "vm1")?, guest(&daemon, "vm2")?];
        good(&one.cdb(DISK, &[0xA4, 0x06, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0], b"rack 7", 0)?)?;
        assert_eq!(write(&mut other)?.sense_key(), Some((6, 0x3F, 0x05)));
        daemon.kill9();
    }
    daemon.restart()?;
    let mut other = guest(&daemon, "vm2")?;
    assert_eq!(other.good(DISK, &REPORT, &[], 64)?.data[..10], *b"\0\0\0\x06rack 7");
    Ok(())
}

#[test]
fn a_guest_that_saves_in_a_loop_is_slowed_down() -> Result<()> {
    let daemon = daemon()?;
    let [mut one, mut other] = [guest(&daemon, "vm1")?, guest(&daemon, "vm2")?];
    let mut busy = 0;
    for round in 0..200 {
        match select(&mut one, SP, if round % 2 == 0 { 0 } else { WCE })?.status {
            0 => {}
            8 => busy += 1,
            status => anyhow::bail!("status {status:#x}"),
        }
    }
    assert!(busy > 0, "200 saves at once");
    clear_attentions(&mut other, DISK)?;
    good(&select(&mut other, SP, 0)?)?;
    good(&select(&mut other, SP, WCE)?)
}

#[test]
fn damage_to_one_thing_costs_nothing_else() -> Result<()> {
    const REGISTER: [u8; 10] = [0x5F, 6, 0, 0, 0, 0, 0, 0, 24, 0];
    let mut daemon = daemon()?;
    {
        let mut one = guest(&daemon, "vm1")?;
        let mut list = [[0; 8], 0xAB_u64.to_be_bytes(), [0; 8]].concat();
        list[20] = 1;
        good(&one.cdb(DISK, &REGISTER, &list, 0)?)?;
        good(&select(&mut one, SP, 0)?)?;
        daemon.kill9();
    }
    let file = fs::read_dir(daemon.state_dir().join("units"))?.next().context("a file")??.path();
    let healthy = fs::read_to_string(&file)?;
    let aside = file.with_extension("json.unreadable");
    // Mode pages that make no sense: nobody writes until somebody who knows says so; the registration is there.
    let damaged = healthy.replace("08 00 ", "08 01 ");
    assert_ne!(damaged, healthy);
    fs::write(&file, &damaged)?;
    daemon.restart()?;
    {
        let mut one = guest(&daemon, "vm1")?;
        assert_eq!(write(&mut one)?.sense_key(), Some((7, 0x27, 0x02)));
        assert!(warnings(&daemon)?.contains("bdev_reset_mode_pages"));
        assert_eq!(fs::read_to_string(&file)?, damaged);
        daemon.rpc("bdev_reset_mode_pages", json!({"name": "disk"}))?;
        clear_attentions(&mut one, DISK)?;
        good(&write(&mut one)?)?;
        assert_eq!(warnings(&daemon)?, "[]");
        assert_eq!(fs::read_to_string(&aside)?, damaged);
        let held = daemon.rpc("bdev_get_reservations", json!({"name": "disk"}))?;
        assert_eq!(held["registrations"][0]["key"], "00000000000000ab");
        daemon.kill9();
    }
    // Reservations that make no sense: nobody comes in until they are given up; the mode pages are there.
    let damaged = healthy.replace("registration ", "registratiom ");
    assert_ne!(damaged, healthy);
    fs::write(&file, &damaged)?;
    daemon.restart()?;
    let mut one = guest(&daemon, "vm1")?;
    assert_eq!(write(&mut one)?.status, 0x18);
    daemon.rpc("bdev_clear_reservations", json!({"name": "disk"}))?;
    good(&write(&mut one)?)?;
    assert_eq!((caching(&mut one, 0)?, caching(&mut one, 3)?), (0, 0));
    assert_eq!(fs::read_to_string(&aside)?, damaged);
    // A file of which nothing can be read is given up as a whole.
    daemon.kill9();
    drop(one);
    fs::write(&file, "damaged")?;
    daemon.restart()?;
    let mut one = guest(&daemon, "vm1")?;
    let refused = daemon.rpc_error("bdev_reset_mode_pages", json!({"name": "disk"}))?;
    assert_eq!(refused.reason.as_deref(), Some("invalid"));
    daemon.rpc("bdev_clear_reservations", json!({"name": "disk"}))?;
    clear_attentions(&mut one, DISK)?;
    good(&write(&mut one)?)?;
    assert_eq!((caching(&mut one, 0)?, warnings(&daemon)?.as_str()), (WCE, "[]"));
    assert_eq!(fs::read_to_string(&aside)?, "damaged");
    Ok(())
}

#[test]
fn nothing_is_promised_that_is_not_kept() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions { args: vec!["--ephemeral".into()], ..DaemonOptions::default() })?;
    ram(&daemon, "disk", 2048)?;
    daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm1"}))?;
    common::attach(&daemon, "vm1", 0, "disk")?;
    let mut front = guest(&daemon, "vm1")?;
    assert_eq!(select(&mut front, SP, 0)?.sense_key(), Some((5, 0x24, 0x00)));
    let saved = front.cdb(DISK, &[0x1A, 0x08, 0xC8, 0, 24, 0], &[], 24)?;
    assert_eq!(saved.sense_key(), Some((5, 0x39, 0x00)));
    assert_eq!(front.good(DISK, &[0x1A, 0x08, 0x08, 0, 24, 0], &[], 24)?.data[4], 0x08, "PS");
    daemon.rpc("bdev_reset_mode_pages", json!({"name": "disk"})).map(drop)
}
