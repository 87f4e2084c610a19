//! Volumes that stand on a bdev outside of their pool, in the real daemon: what is read, who may use the bdev meanwhile, and
//! what happens when it is not there.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use common::thin::{
    SOON, flush, goes_on, hang, impatient, listed, lun, pool, reads, refused, restart_without, text, volume, write,
};
use common::{attach, clear_attentions, connect, controller, within};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, cdb};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const UUID: &str = "6b1d7a52-7a0e-4a55-9b39-53f2b1a7c001";
/// Whole blocks of 4 KiB of the bdev, which ends with a sector more.
const BLOCKS: u32 = 771;

/// What block `nth` of the bdev is full of.
const fn value(nth: u32) -> u8 {
    (nth % 251) as u8 + 1
}

/// A file with something in it, as bdev `golden`.
fn golden(daemon: &Daemon) -> Result<PathBuf> {
    let path = daemon.disks_dir().join("golden");
    let blocks = (0..BLOCKS).flat_map(|nth| [value(nth); 4096]);
    fs::write(&path, blocks.chain([9; 512]).collect::<Vec<u8>>())?;
    create(daemon, &path)?;
    Ok(path)
}

fn create(daemon: &Daemon, path: &Path) -> Result<()> {
    let params = json!({"name": "golden", "filename": path, "block_size": 512, "uuid": UUID});
    daemon.rpc("bdev_aio_create", params)?;
    Ok(())
}

fn clone_bdev(daemon: &Daemon, name: &str) -> Result<String> {
    text(&daemon.rpc("bdev_lvol_clone_bdev", json!({"bdev": "golden", "lvs_name": "lvs", "clone_name": name}))?)
}

fn bdev(daemon: &Daemon, name: &str) -> Result<Value> {
    Ok(daemon.rpc("bdev_get_bdevs", json!({"name": name}))?[0].clone())
}

/// Some blocks are the bdev's, but for those that were written.
fn reads_golden(front: &mut FrontEnd, target: u8, but: &[u32]) -> Result<()> {
    for nth in [0, 1, 15, 16, 17, 400, BLOCKS - 1].into_iter().filter(|nth| !but.contains(nth)) {
        reads(front, target, nth * 8, value(nth))?;
    }
    let end = front.good(lun(target), &cdb::read10(BLOCKS * 8, 8), &[], 4096)?.data;
    ensure!(end[..512] == [9; 512] && end[512..] == [0; 3584], "the end of the bdev, and zeroes");
    reads(front, target, (BLOCKS + 1) * 8, 0)
}

/// Whether the daemon has a file open.
fn has_open(daemon: &Daemon, path: &Path) -> Result<bool> {
    let links = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?;
    Ok(links.filter_map(|link| fs::read_link(link.ok()?.path()).ok()).any(|target| target == path))
}

#[test]
fn a_clone_of_a_file_is_used_like_any_volume_and_needs_the_file_until_it_is_inflated() -> Result<()> {
    let mut daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 128 * MIB)?;
    let path = golden(&daemon)?;
    let uuid = clone_bdev(&daemon, "c")?;
    let c = listed(&daemon, "lvs/c")?;
    ensure!(c["uuid"] == uuid.as_str() && c["size_bytes"] == 49 * 65536 && c["owned_bytes"] == 0, "{c}");
    let kind = ["is_clone", "is_esnap_clone", "is_degraded", "is_thin_provisioned"].map(|member| c[member] == true);
    ensure!(kind == [false, true, false, true], "{c}");
    ensure!(c["origin"] == json!({"uuid": UUID, "name": "golden", "bytes": u64::from(BLOCKS) * 4096 + 512}), "{c}");
    let lvol = bdev(&daemon, "lvs/c")?["driver_specific"]["lvol"].clone();
    ensure!(lvol["esnap_clone"] == true && lvol["clone"] == false && lvol["external_snapshot_name"] == UUID, "{lvol}");
    controller(&daemon, "vm", &["lvs/c"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    reads_golden(&mut front, 0, &[])?;
    write(&mut front, 0, 8, 200)?;
    // A part of a sub-block.
    front.good(lun(0), &cdb::write10(17 * 8 + 3, 1, false), &[201; 512], 0)?;
    flush(&mut front, 0)?;
    let own = |front: &mut FrontEnd, target: u8| -> Result<()> {
        reads(front, target, 8, 200)?;
        let part = front.good(lun(target), &cdb::read10(17 * 8, 8), &[], 4096)?.data;
        let expected = [&[value(17); 1536][..], &[201; 512], &[value(17); 2048]].concat();
        ensure!(part == expected, "the rest of a sub-block is the bdev's");
        reads_golden(front, target, &[1, 17])
    };
    own(&mut front, 0)?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/c", "snapshot_name": "s"}))?;
    daemon.rpc("bdev_lvol_clone", json!({"snapshot_name": "lvs/s", "clone_name": "d"}))?;
    let (c, s) = (listed(&daemon, "lvs/c")?, listed(&daemon, "lvs/s")?);
    ensure!(c["is_esnap_clone"] == false && c["is_clone"] == true && s["is_esnap_clone"] == true, "{c} {s}");
    attach(&daemon, "vm", 1, "lvs/d")?;
    drop(front);
    for kill in [false, true] {
        if kill {
            daemon.kill9();
        }
        daemon.restart()?;
        let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
        own(&mut front, 0)?;
        own(&mut front, 1)?;
        ensure!(listed(&daemon, "lvs/d")?["origin"]["name"] == "golden");
        ensure!(bdev(&daemon, "golden")?["claim_type"] == "read_many_write_none");
    }
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    own(&mut front, 1)?;
    // One of them has all of its own; then the other one, which is deleted with its snapshot.
    ensure!(daemon.rpc("bdev_lvol_inflate", json!({"name": "lvs/c"}))? == json!(true));
    own(&mut front, 0)?;
    let c = listed(&daemon, "lvs/c")?;
    ensure!(c["origin"].is_null() && c["parent"].is_null() && c["owned_bytes"] == 49 * 65536, "{c}");
    let held = daemon.rpc_error("bdev_aio_delete", json!({"name": "golden"}))?;
    ensure!(held.code == -16 && held.reason.as_deref() == Some("in_use"), "{held}");
    ensure!(daemon.rpc("bdev_lvol_decouple_parent", json!({"name": "lvs/d"}))? == json!(true));
    ensure!(listed(&daemon, "lvs/d")?["origin"]["name"] == "golden", "its snapshot's");
    ensure!(daemon.rpc("bdev_lvol_decouple_parent", json!({"name": "lvs/d"}))? == json!(true));
    own(&mut front, 1)?;
    daemon.rpc("bdev_lvol_delete", json!({"name": "lvs/s"}))?;
    ensure!(bdev(&daemon, "golden")?["claimed"] == false);
    daemon.rpc("bdev_aio_delete", json!({"name": "golden"}))?;
    own(&mut front, 0)?;
    own(&mut front, 1)?;
    within(SOON, || Ok(!has_open(&daemon, &path)?), "the daemon still has the file open")?;
    fs::remove_file(&path)?;
    drop(front);
    daemon.restart()?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    own(&mut front, 0)?;
    own(&mut front, 1)
}

#[test]
fn a_bdev_on_which_volumes_stand_is_theirs() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    pool(&daemon, "f1", "other", 64 * MIB)?;
    golden(&daemon)?;
    let method = "bdev_lvol_clone_bdev";
    let clone = |bdev: &str, pool: &str, name: &str| json!({"bdev": bdev, "lvs_name": pool, "clone_name": name});
    refused(&daemon, method, clone("golden", "none", "c"), -32602, "lvs does not exist", "not_found")?;
    refused(&daemon, method, clone("none", "lvs", "c"), -32602, "bdev does not exist", "not_found")?;
    volume(&daemon, "lvs", "v", 8)?;
    let same = "bdev is an lvol in same lvs as clone; use bdev_lvol_clone instead";
    refused(&daemon, method, clone("lvs/v", "lvs", "c"), -32602, same, "same_pool")?;
    refused(&daemon, method, clone("f0", "other", "c"), -32602, "Device or resource busy", "in_use")?;
    controller(&daemon, "vm", &["golden"])?;
    refused(&daemon, method, clone("golden", "lvs", "c"), -32602, "Device or resource busy", "in_use")?;
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 0}))?;
    // By UUID, and again in another pool.
    daemon.rpc(method, clone(UUID, "lvs", "c"))?;
    daemon.rpc(method, clone("golden", "other", "c"))?;
    refused(&daemon, method, clone("golden", "lvs", "c"), -32602, "File exists", "exists_same")?;
    refused(&daemon, method, clone("golden", "lvs", "v"), -32602, "File exists", "exists_different")?;
    let golden = bdev(&daemon, "golden")?;
    ensure!(golden["claimed_by"] == "lvs/c, other/c", "{golden}");
    for (method, params) in [
        ("bdev_aio_delete", json!({"name": "golden"})),
        ("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "golden"})),
        ("vhost_scsi_controller_add_target", json!({"ctrlr": "vm", "scsi_target_num": 1, "bdev_name": "golden"})),
        ("bdev_lvol_create_lvstore", json!({"bdev_name": "golden", "lvs_name": "third"})),
    ] {
        let error = daemon.rpc_error(method, params)?;
        ensure!(error.reason.as_deref() == Some("in_use"), "{method}: {error}");
    }
    daemon.rpc("bdev_lvol_rename", json!({"old_name": "lvs/c", "new_name": "x"}))?;
    ensure!(bdev(&daemon, "golden")?["claimed_by"] == "lvs/x, other/c");
    // A snapshot of another pool is such a bdev, too.
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "other/c", "snapshot_name": "s"}))?;
    daemon.rpc(method, clone("other/s", "lvs", "of-s"))?;
    refused(&daemon, method, clone("lvs/of-s", "other", "back"), -32602, same, "same_pool")?;
    for (method, params) in [
        ("bdev_lvol_delete", json!({"name": "other/s"})),
        ("bdev_lvol_delete_lvstore", json!({"lvs_name": "other"})),
        ("bdev_aio_delete", json!({"name": "f1"})),
    ] {
        let error = daemon.rpc_error(method, params)?;
        ensure!(error.reason.as_deref() == Some("in_use"), "{method}: {error}");
    }
    attach(&daemon, "vm", 0, "lvs/of-s")?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    reads_golden(&mut front, 0, &[])?;
    drop(front);
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 0}))?;
    for name in ["lvs/of-s", "lvs/x", "other/c", "other/s"] {
        daemon.rpc("bdev_lvol_delete", json!({"name": name}))?;
    }
    daemon.rpc("bdev_aio_delete", json!({"name": "golden"}))?;
    Ok(())
}

#[test]
fn a_volume_waits_for_the_bdev_on_which_it_stands() -> Result<()> {
    let mut daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    let path = golden(&daemon)?;
    clone_bdev(&daemon, "c")?;
    clone_bdev(&daemon, "gone")?;
    volume(&daemon, "lvs", "v", 8)?;
    controller(&daemon, "vm", &["lvs/c", "lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 0, 8, 200)?;
    write(&mut front, 1, 8, 100)?;
    flush(&mut front, 0)?;
    drop(front);
    let away = restart_without(&mut daemon, &path)?;
    let c = listed(&daemon, "lvs/c")?;
    ensure!(c["is_degraded"] == true && c["origin"]["uuid"] == UUID, "{c}");
    let missing = bdev(&daemon, "lvs/c")?;
    let why = text(&missing["missing_reason"])?;
    ensure!(missing["state"] == "missing" && why.contains("golden"), "{missing}");
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(1))?;
    reads(&mut front, 1, 8, 100)?;
    let not_ready = loop {
        let read = front.cdb(lun(0), &cdb::read10(8, 8), &[], 4096)?;
        // What a new nexus is told first.
        if read.sense_key().is_none_or(|key| key.0 != 6) {
            break read;
        }
    };
    ensure!(not_ready.sense_key() == Some((2, 4, 0)), "{not_ready:?}");
    refused(&daemon, "bdev_lvol_inflate", json!({"name": "lvs/c"}), -19, "No such device", "missing")?;
    // What nobody waits for can go.
    daemon.rpc("bdev_lvol_delete", json!({"name": "lvs/gone"}))?;
    fs::rename(&away, &path)?;
    let is_there = || Ok(bdev(&daemon, "lvs/c")?["state"] == "online");
    within(SOON, is_there, "the volume does not come back with its bdev")?;
    within(
        SOON,
        || Ok(front.cdb(lun(0), &cdb::TEST_UNIT_READY, &[], 0)?.sense_key().is_none_or(|key| key.0 == 6)),
        "the LUN does not come back with its bdev",
    )?;
    clear_attentions(&mut front, lun(0))?;
    reads(&mut front, 0, 8, 200)?;
    reads_golden(&mut front, 0, &[1])?;
    ensure!(listed(&daemon, "lvs/c")?["is_degraded"] == false);
    // Not what it was: it has become smaller.
    drop(front);
    daemon.kill9();
    fs::File::options().write(true).open(&path)?.set_len(MIB)?;
    daemon.restart()?;
    let why = text(&bdev(&daemon, "lvs/c")?["missing_reason"])?;
    ensure!(why.contains("1048576 bytes"), "{why}");
    Ok(())
}

/// While the pool of the clones is away, its origin is given to another pool. Whichever is there first when both come back, the
/// other one says why it is not used.
#[test]
fn who_took_an_origin_while_its_clones_were_away_is_told() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let base = pool(&daemon, "f0", "lvs", 64 * MIB)?;
    let path = daemon.disks_dir().join("golden");
    fs::write(&path, vec![7; 64 * MIB as usize])?;
    create(&daemon, &path)?;
    clone_bdev(&daemon, "c")?;
    let away = restart_without(&mut daemon, &base)?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "golden", "lvs_name": "other"}))?;
    fs::rename(&away, &base)?;
    let is_back = || Ok(daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "lvs"})).is_ok());
    within(SOON, is_back, "the pool does not come back with its bdev")?;
    let missing = bdev(&daemon, "lvs/c")?;
    let why = text(&missing["missing_reason"])?;
    ensure!(missing["state"] == "missing" && why.contains("other"), "{missing}");
    daemon.kill9();
    daemon.restart()?;
    ensure!(bdev(&daemon, "lvs/c")?["state"] == "online");
    let pools = daemon.rpc("bdev_lvol_get_lvstores", Value::Null)?;
    let other =
        pools.as_array().context("pools")?.iter().find(|pool| pool["base_bdev"] == "golden").context("it is listed")?;
    ensure!(other["name"] == "other" && other["state"] == "in_use", "{other}");
    let why = text(&other["why"])?;
    ensure!(why.contains("'lvs/c'") && why.contains("overwritten") && why.contains("bdev_examine"), "{why}");
    // It can be had when nobody needs the origin.
    daemon.rpc("bdev_lvol_delete", json!({"name": "lvs/c"}))?;
    daemon.rpc("bdev_examine", json!({"name": "golden"}))?;
    let other = daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "other"}))?;
    ensure!(other[0]["state"] == "online", "{other}");
    Ok(())
}

#[test]
fn a_volume_is_given_a_bdev_to_stand_on() -> Result<()> {
    let mut daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    let path = golden(&daemon)?;
    volume(&daemon, "lvs", "v", 8)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    write(&mut front, 0, 8, 200)?;
    let method = "bdev_lvol_set_parent_bdev";
    let on = |parent: &str| json!({"lvol_name": "lvs/v", "parent_name": parent});
    refused(&daemon, method, on("golden"), -32602, "Device or resource busy", "in_use")?;
    ensure!(bdev(&daemon, "golden")?["claimed"] == false);
    drop(front);
    refused(&daemon, method, on("none"), -32602, "No such device", "not_found")?;
    let unknown = json!({"lvol_name": "lvs/none", "parent_name": "golden"});
    refused(&daemon, method, unknown, -19, "No such device", "not_found")?;
    within(SOON, || Ok(daemon.rpc(method, on("golden")).is_ok()), "the VM stays connected")?;
    refused(&daemon, method, on("golden"), -32602, "File exists", "exists_same")?;
    ensure!(listed(&daemon, "lvs/v")?["origin"]["name"] == "golden");
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    reads(&mut front, 0, 8, 200)?;
    reads_golden(&mut front, 0, &[1])?;
    drop(front);
    daemon.restart()?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    reads_golden(&mut front, 0, &[1])?;
    // And a snapshot instead: the file is nobody's then.
    volume(&daemon, "lvs", "w", 8)?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/w", "snapshot_name": "t"}))?;
    let set = json!({"lvol_name": "lvs/v", "parent_name": "lvs/t", "force": true});
    ensure!(daemon.rpc("bdev_lvol_set_parent", set)? == json!(true));
    clear_attentions(&mut front, lun(0))?;
    reads(&mut front, 0, 8, 200)?;
    reads(&mut front, 0, 16 * 8, 0)?;
    ensure!(bdev(&daemon, "golden")?["claimed"] == false);
    daemon.rpc("bdev_aio_delete", json!({"name": "golden"}))?;
    within(SOON, || Ok(!has_open(&daemon, &path)?), "the daemon still has the file open")?;
    let listed = daemon.rpc("bdev_lvol_get_lvols", Value::Null)?;
    let all = listed.as_array().context("a list")?;
    ensure!(all.iter().all(|volume| volume["origin"].is_null()), "{listed}");
    Ok(())
}

#[test]
fn what_a_volume_holds_is_counted_on_through_whatever_lies_between() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    pool(&daemon, "f1", "other", 128 * MIB)?;
    volume(&daemon, "other", "x", 16)?;
    volume(&daemon, "other", "y", 16)?;
    for (of, name) in [("other/x", "s"), ("other/y", "t")] {
        daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": of, "snapshot_name": name}))?;
    }
    daemon.rpc("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "other/x"}))?;
    daemon.rpc("bdev_passthru_create", json!({"name": "q", "base_bdev_name": "p"}))?;
    let stays = |by: &str| -> Result<()> {
        for (method, params) in [
            ("bdev_lvol_rollback", json!({"name": "other/x", "snapshot_name": "other/s", "force": true})),
            ("bdev_lvol_set_parent", json!({"lvol_name": "other/x", "parent_name": "other/t", "force": true})),
            ("bdev_lvol_resize", json!({"name": "other/x", "size_in_mib": 8, "allow_shrink": true})),
        ] {
            let error = daemon.rpc_error(method, params)?;
            let said = error.detail.as_deref().is_some_and(|detail| detail.contains(by) && detail.contains("'q'"));
            ensure!(error.reason.as_deref() == Some("in_use") && said, "{method}: {error} {:?}", error.detail);
        }
        Ok(())
    };
    daemon.rpc("bdev_lvol_clone_bdev", json!({"bdev": "q", "lvs_name": "lvs", "clone_name": "c"}))?;
    stays("lvs/c")?;
    daemon.rpc("bdev_lvol_delete", json!({"name": "lvs/c"}))?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "q", "lvs_name": "inner"}))?;
    stays("inner")?;
    daemon.rpc("bdev_lvol_delete_lvstore", json!({"lvs_name": "inner"}))?;
    daemon.rpc("bdev_lvol_rollback", json!({"name": "other/x", "snapshot_name": "other/s"}))?;
    Ok(())
}

#[test]
fn what_stands_on_a_volume_goes_with_it_to_another_bdev() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    golden(&daemon)?;
    clone_bdev(&daemon, "c")?;
    daemon.rpc("bdev_lvol_resize", json!({"name": "lvs/c", "size_in_mib": 8}))?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/c", "snapshot_name": "s"}))?;
    volume(&daemon, "lvs", "v", 8)?;
    daemon.rpc("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "lvs/v"}))?;
    controller(&daemon, "vm", &["p"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    write(&mut front, 0, 8, 200)?;
    reads(&mut front, 0, 16, 0)?;
    let set = json!({"lvol_name": "lvs/v", "parent_name": "lvs/s", "force": true});
    ensure!(daemon.rpc("bdev_lvol_set_parent", set)? == json!(true));
    told_of_another_medium(&mut front, 0)?;
    reads(&mut front, 0, 8, 200)?;
    reads_golden(&mut front, 0, &[1])
}

/// Both of what initiators are told when a medium may be another one, and nothing else.
fn told_of_another_medium(front: &mut FrontEnd, target: u8) -> Result<()> {
    let mut told = Vec::new();
    loop {
        match front.cdb(lun(target), &cdb::TEST_UNIT_READY, &[], 0)?.sense_key() {
            Some(sense @ (6, ..)) => told.push(sense),
            None => break,
            Some(other) => anyhow::bail!("{other:?} after {told:?}"),
        }
    }
    told.sort_unstable();
    ensure!(told == [(6, 0x28, 0), (6, 0x2A, 9)], "{told:?}");
    Ok(())
}

#[test]
fn a_volume_gets_there_when_its_base_answers_late() -> Result<()> {
    let daemon = impatient()?;
    golden(&daemon)?;
    clone_bdev(&daemon, "c")?;
    daemon.rpc("bdev_lvol_resize", json!({"name": "lvs/c", "size_in_mib": 8}))?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/c", "snapshot_name": "s"}))?;
    volume(&daemon, "lvs", "t", 8)?;
    daemon.rpc("bdev_lvol_set_read_only", json!({"name": "lvs/t"}))?;
    volume(&daemon, "lvs", "v", 8)?;
    daemon.rpc("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "lvs/v"}))?;
    volume(&daemon, "lvs", "w", 8)?;
    controller(&daemon, "vm", &["p", "lvs/w"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    for target in [0, 1] {
        clear_attentions(&mut front, lun(target))?;
        write(&mut front, target, 8, 200)?;
        flush(&mut front, target)?;
    }
    let on = |volume: &str, parent: &str| json!({"lvol_name": volume, "parent_name": parent, "force": true});
    for (target, method, params) in [
        (0, "bdev_lvol_set_parent", on("lvs/v", "lvs/s")),
        (1, "bdev_lvol_set_parent_bdev", on("lvs/w", "golden")),
        // And to a snapshot again, which stands on nothing.
        (0, "bdev_lvol_set_parent", on("lvs/v", "lvs/t")),
    ] {
        hang(&daemon, "EE_f0", "write")?;
        refused(&daemon, method, params.clone(), -32602, "Connection timed out", "timed_out")?;
        ensure!(bdev(&daemon, "golden")?["claimed"] == true, "it may come to stand on it");
        goes_on(&daemon, "EE_f0")?;
        let settled = || {
            let first = front.cdb(lun(target), &cdb::TEST_UNIT_READY, &[], 0)?.sense_key();
            Ok(first.is_some_and(|sense| sense == (6, 0x28, 0)))
        };
        within(SOON, settled, "nobody is told of another medium")?;
        let then = front.cdb(lun(target), &cdb::TEST_UNIT_READY, &[], 0)?;
        ensure!(then.sense_key() == Some((6, 0x2A, 9)), "{then:?}");
        reads(&mut front, target, 8, 200)?;
        if params["parent_name"] == "lvs/t" {
            reads(&mut front, target, 16, 0)?;
        } else {
            reads_golden(&mut front, target, &[1])?;
        }
    }
    Ok(())
}

#[test]
fn what_a_change_may_still_come_to_need_is_not_given_away() -> Result<()> {
    let daemon = impatient()?;
    for name in ["g0", "g1"] {
        common::file(&daemon, name, MIB)?;
    }
    volume(&daemon, "lvs", "v", 8)?;
    volume(&daemon, "lvs", "w", 8)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    write(&mut front, 0, 0, 5)?;
    flush(&mut front, 0)?;
    // A read that hangs bounds how many changes can be made, and the next one waits before it has begun.
    hang(&daemon, "EE_f0", "read")?;
    let read = cdb::read10(0, 8);
    let command = Command::new(lun(0), &read, &[], 4096);
    front.submit(FIRST_REQUEST_QUEUE, &command).context("there is room")?;
    front.driver.queues[FIRST_REQUEST_QUEUE].flush();
    let late = (0..64).map(|nth| format!("g{}", nth % 2)).find_map(|golden| {
        let params = json!({"lvol_name": "lvs/w", "parent_name": golden});
        daemon.rpc("bdev_lvol_set_parent_bdev", params).is_err().then_some(golden)
    });
    let late = late.context("as many changes as one likes")?;
    let origin = || Ok::<_, anyhow::Error>(listed(&daemon, "lvs/w")?["origin"]["name"].clone());
    ensure!(origin()? != late.as_str(), "it waits");
    let add = json!({"ctrlr": "vm", "scsi_target_num": 1, "bdev_name": late});
    let error = daemon.rpc_error("vhost_scsi_controller_add_target", add)?;
    ensure!(error.reason.as_deref() == Some("in_use"), "{error}");
    goes_on(&daemon, "EE_f0")?;
    within(SOON, || Ok(origin()? == late.as_str()), "the change does not come to be")?;
    let other = if late == "g0" { "g1" } else { "g0" };
    within(SOON, || Ok(bdev(&daemon, other)?["claimed"] == false), "it keeps what nobody needs")?;
    ensure!(bdev(&daemon, &late)?["claimed"] == true);
    Ok(())
}

#[test]
fn a_bdev_that_is_exported_is_not_an_origin_after_a_restart_either() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let base = pool(&daemon, "f0", "lvs", 64 * MIB)?;
    golden(&daemon)?;
    clone_bdev(&daemon, "c")?;
    controller(&daemon, "vm", &[])?;
    let away = restart_without(&mut daemon, &base)?;
    // Nobody knows now whose it is.
    attach(&daemon, "vm", 0, "golden")?;
    fs::rename(&away, &base)?;
    let is_open = || Ok(listed(&daemon, "lvs/c").is_ok());
    within(SOON, is_open, "the pool is not opened")?;
    for restart in [false, true] {
        if restart {
            daemon.restart()?;
        }
        let c = bdev(&daemon, "lvs/c")?;
        ensure!(c["state"] == "missing" && text(&c["missing_reason"])?.contains("golden"), "{c}");
        let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
        clear_attentions(&mut front, lun(0))?;
        reads(&mut front, 0, 8, value(1))?;
    }
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 0}))?;
    within(SOON, || Ok(bdev(&daemon, "lvs/c")?["state"] == "online"), "the volume does not come back")
}

#[test]
fn what_a_restart_empties_is_no_origin_of_what_outlives_it() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    for name in ["m", "base"] {
        common::ram(&daemon, name, 64 * MIB / 512)?;
    }
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "base", "lvs_name": "gone"}))?;
    volume(&daemon, "gone", "x", 8)?;
    volume(&daemon, "lvs", "v", 8)?;
    daemon.rpc("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "m"}))?;
    let clone = |bdev: &str, pool: &str| json!({"bdev": bdev, "lvs_name": pool, "clone_name": "c"});
    let invalid = "Invalid argument";
    for bdev in ["p", "gone/x"] {
        refused(&daemon, "bdev_lvol_clone_bdev", clone(bdev, "lvs"), -32602, invalid, "not_persistent")?;
        let set = json!({"lvol_name": "lvs/v", "parent_name": bdev});
        refused(&daemon, "bdev_lvol_set_parent_bdev", set, -32602, invalid, "not_persistent")?;
    }
    // What stands on it goes with it.
    daemon.rpc("bdev_lvol_clone_bdev", clone("p", "gone"))?;
    Ok(())
}

#[test]
fn what_stands_on_a_pool_that_is_opened_again_waits_for_it() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, "f0", "lvs", 64 * MIB)?;
    common::file(&daemon, "f1", 64 * MIB)?;
    daemon.rpc("bdev_error_create", json!({"base_name": "f1"}))?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "EE_f1", "lvs_name": "gold"}))?;
    volume(&daemon, "gold", "x", 8)?;
    volume(&daemon, "gold", "y", 8)?;
    controller(&daemon, "vm", &["gold/x", "gold/y"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    write(&mut front, 0, 8, 5)?;
    flush(&mut front, 0)?;
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 0}))?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "gold/x", "snapshot_name": "s"}))?;
    daemon.rpc("bdev_passthru_create", json!({"name": "p", "base_bdev_name": "gold/x"}))?;
    for (target, of, name) in [(2, "gold/s", "c"), (3, "p", "d")] {
        daemon.rpc("bdev_lvol_clone_bdev", json!({"bdev": of, "lvs_name": "lvs", "clone_name": name}))?;
        attach(&daemon, "vm", target, &format!("lvs/{name}"))?;
        clear_attentions(&mut front, lun(target as u8))?;
        reads(&mut front, target as u8, 8, 5)?;
        write(&mut front, target as u8, 16, 6)?;
    }
    let inject = |kind: &str| json!({"name": "EE_f1", "io_type": kind, "error_type": "failure", "num": 4294967295u32});
    daemon.rpc("bdev_error_inject_error", inject("flush"))?;
    clear_attentions(&mut front, lun(1))?;
    write(&mut front, 1, 8, 2)?;
    front.cdb(lun(1), &cdb::sync10(), &[], 0)?;
    let state = || {
        Ok::<_, anyhow::Error>(daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "gold"}))?[0]["state"].clone())
    };
    within(SOON, || Ok(state()? == "failed"), "the pool has not failed")?;
    daemon.rpc("bdev_error_inject_error", inject("clear"))?;
    daemon.rpc("bdev_examine", json!({"name": "EE_f1"}))?;
    ensure!(state()? == "online");
    for target in [2, 3] {
        let is_there = || {
            let read = front.cdb(lun(target), &cdb::read10(8, 8), &[], 4096)?;
            Ok(read.sense_key().is_none() && read.data == [5; 4096])
        };
        within(SOON, is_there, "what stands on it does not come back")?;
        reads(&mut front, target, 16, 6)?;
    }
    ensure!(listed(&daemon, "lvs/c")?["is_degraded"] == false && listed(&daemon, "lvs/d")?["is_degraded"] == false);
    Ok(())
}
