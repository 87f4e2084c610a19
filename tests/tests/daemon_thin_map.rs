//! The map of volumes as the real daemon tells it: what is allocated and what has changed, page by page, also of volumes
//! that are larger than any disk.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::{connect, controller, file};
use pollux_tests::daemon::Daemon;
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Offset, length, whether it is data.
type Extent = (u64, u64, bool);

/// All pages of an answer, and how many calls that took.
fn all(daemon: &Daemon, method: &str, mut params: Value, most: u64) -> Result<(Vec<Extent>, u64)> {
    let (mut extents, mut calls, mut at) = (Vec::new(), 0, Some(0));
    while let Some(offset) = at {
        (params["offset"], params["max_extents"]) = (offset.into(), most.into());
        let page = daemon.rpc(method, params.clone())?;
        let listed = page["extents"].as_array().context("extents")?;
        ensure!(listed.len() as u64 <= most, "{page}");
        for extent in listed {
            let number = |name: &str| extent[name].as_u64().with_context(|| format!("{name} of {extent}"));
            extents.push((number("offset")?, number("length")?, extent["kind"] == "data"));
        }
        at = page["next_offset"].as_u64();
        ensure!(at.is_none_or(|next| next > offset), "it goes on: {page}");
        calls += 1;
    }
    Ok((extents, calls))
}

#[test]
fn what_is_there_and_what_has_changed_is_told_page_by_page() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "f0", 256 * MIB)?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "f0", "lvs_name": "lvs"}))?;
    daemon.rpc(
        "bdev_lvol_create",
        json!({"lvs_name": "lvs", "lvol_name": "v", "size": 64 * MIB, "thin_provision": true}),
    )?;
    daemon.rpc(
        "bdev_lvol_create",
        json!({"lvs_name": "lvs", "lvol_name": "w", "size": 64 * MIB, "thin_provision": true}),
    )?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let lun = Lun::new(0, 0);
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    let mut write = |lba: u32| front.good(lun, &cdb::write10(lba, 8, false), &[7; 4096], 0).map(drop);
    // Blocks of 512 bytes; what is given out and listed is 4 KiB.
    for lba in [0, 8, 1024, 100_000] {
        write(lba)?;
    }
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": "s1"}))?;
    write(8)?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": "s2"}))?;
    write(2048)?;
    front.good(lun, &cdb::write_same16(1024, 8, true, true), &[], 0)?;
    front.good(lun, &cdb::sync10(), &[], 0)?;
    let at = |lba: u64, blocks: u64, data: bool| (lba * 512, blocks * 512, data);
    for restart in [false, true] {
        if restart {
            drop(front);
            daemon.restart()?;
            front = connect(&daemon, "vm", &DriverOptions::default())?;
        }
        for most in [1, 2, 1000] {
            let (there, _) = all(&daemon, "bdev_lvol_get_allocated", json!({"name": "lvs/v"}), most)?;
            ensure!(there == [at(0, 16, true), at(2048, 8, true), at(100_000, 8, true)], "{there:?}");
            let delta = |name: &str, from: &str| {
                let params = json!({"name": name, "from_snapshot_name": from});
                Ok::<_, anyhow::Error>(all(&daemon, "bdev_lvol_get_delta", params, most)?.0)
            };
            let since = delta("lvs/v", "lvs/s1")?;
            ensure!(since == [at(8, 8, true), at(1024, 8, false), at(2048, 8, true)], "{since:?}");
            ensure!(delta("lvs/v", "lvs/s2")? == since[1..], "{since:?}");
            ensure!(delta("lvs/s2", "lvs/s1")? == since[..1], "{since:?}");
            ensure!(delta("lvs/s1", "lvs/s1")?.is_empty());
        }
    }
    let refused = |method: &str, params: Value, code: i64, reason: &str| -> Result<()> {
        let error = daemon.rpc_error(method, params)?;
        ensure!((error.code, error.reason.as_deref()) == (code, Some(reason)), "{error}: {:?}", error.detail);
        Ok(())
    };
    let allocated = "bdev_lvol_get_allocated";
    refused(allocated, json!({"name": "lvs/none"}), -19, "not_found")?;
    refused(allocated, json!({"name": "f0"}), -19, "not_found")?;
    refused(allocated, json!({"name": "lvs/v", "offset": 64 * MIB + 1}), -22, "invalid")?;
    refused(allocated, json!({"name": "lvs/v", "offset": -1}), -32603, "invalid_parameters")?;
    for most in [0, 16385] {
        refused(allocated, json!({"name": "lvs/v", "max_extents": most}), -22, "invalid")?;
    }
    ensure!(
        daemon.rpc(allocated, json!({"name": "lvs/v", "offset": 64 * MIB}))?
            == json!({"extents": [], "next_offset": null})
    );
    let part = daemon.rpc(allocated, json!({"name": "lvs/v", "offset": 100}))?;
    ensure!(part["extents"][0] == json!({"offset": 100, "length": 16 * 512 - 100, "kind": "data"}), "{part}");
    let delta = "bdev_lvol_get_delta";
    refused(delta, json!({"name": "lvs/v", "from_snapshot_name": "lvs/none"}), -19, "not_found")?;
    refused(delta, json!({"name": "lvs/s1", "from_snapshot_name": "lvs/s2"}), -32602, "unfit")?;
    refused(delta, json!({"name": "lvs/v", "from_snapshot_name": "lvs/w"}), -32602, "unfit")?;
    file(&daemon, "f1", 64 * MIB)?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "f1", "lvs_name": "other"}))?;
    daemon
        .rpc("bdev_lvol_create", json!({"lvs_name": "other", "lvol_name": "v", "size": MIB, "thin_provision": true}))?;
    refused(delta, json!({"name": "lvs/v", "from_snapshot_name": "other/v"}), -22, "invalid")
}

#[test]
fn a_volume_larger_than_any_disk_is_told_in_few_calls() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "f0", 256 * MIB)?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "f0", "lvs_name": "lvs"}))?;
    let huge = 16 << 40;
    daemon
        .rpc("bdev_lvol_create", json!({"lvs_name": "lvs", "lvol_name": "v", "size": huge, "thin_provision": true}))?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    let last = (huge - 4096) / 512;
    front.good(Lun::new(0, 0), &cdb::write16(last, 8, false), &[7; 4096], 0)?;
    let (there, calls) = all(&daemon, "bdev_lvol_get_allocated", json!({"name": "lvs/v"}), 1000)?;
    ensure!(there == [(huge - 4096, 4096, true)], "{there:?}");
    ensure!(calls < 1000, "each call looks at a good part of it: {calls}");
    Ok(())
}
