//! Volumes as streams, through the real daemon: brought back elsewhere byte by byte, whole or as differences; damaged, torn
//! and misplaced streams refused; and nothing half made, whatever ends an import.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::{attach, clear_attentions, connect, controller, file};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use pollux_tests::rng::Rng;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

struct World {
    daemon: Daemon,
    front: FrontEnd,
    /// What is in `p/v`, which is target 0.
    bytes: Vec<u8>,
    rng: Rng,
}

impl World {
    /// Pools `p` (clusters of 64 KiB) and `q` (256 KiB), and a volume in `p`.
    fn new(seed: u64) -> Result<World> {
        let daemon = Daemon::start()?;
        for (base, pool, cluster) in [("f0", "p", 1 << 16), ("f1", "q", 1 << 18)] {
            file(&daemon, base, 256 * MIB)?;
            let params = json!({"bdev_name": base, "lvs_name": pool, "cluster_sz": cluster});
            daemon.rpc("bdev_lvol_create_lvstore", params)?;
        }
        let params = json!({"lvs_name": "p", "lvol_name": "v", "size": SIZE, "thin_provision": true});
        daemon.rpc("bdev_lvol_create", params)?;
        controller(&daemon, "vm", &["p/v"])?;
        let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
        clear_attentions(&mut front, Lun::new(0, 0))?;
        Ok(World { daemon, front, bytes: vec![0; SIZE as usize], rng: Rng::new(seed) })
    }

    /// Writes here and there, and discards some of it.
    fn scribble(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let blocks = 1 + self.rng.below(64) as usize;
            let lba = self.rng.below(SIZE / 512 - 64) as usize;
            let range = lba * 512..(lba + blocks) * 512;
            if self.rng.chance(1, 4) {
                self.bytes[range].fill(0);
                let same = cdb::write_same16(lba as u64, blocks as u32, true, true);
                self.front.good(Lun::new(0, 0), &same, &[], 0)?;
                continue;
            }
            let data: Vec<u8> = (0..blocks * 512).map(|_| self.rng.below(256) as u8).collect();
            self.front.good(Lun::new(0, 0), &cdb::write16(lba as u64, blocks as u32, false), &data, 0)?;
            self.bytes[range].copy_from_slice(&data);
        }
        Ok(())
    }

    fn snapshot(&self, name: &str) -> Result<()> {
        self.daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "p/v", "snapshot_name": name}))?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.disks_dir().join(name)
    }

    /// Exports to a file of this name.
    fn export(&self, volume: &str, since: Option<&str>, to: &str) -> Result<Value> {
        let mut params = json!({"name": volume, "file": self.path(to)});
        if let Some(since) = since {
            params["from_snapshot_name"] = since.into();
        }
        self.daemon.rpc("bdev_lvol_export", params)
    }

    fn import_params(from: &Path, to: &str, read_only: bool) -> Value {
        let (pool, name) = to.split_once('/').unwrap_or_default();
        json!({"lvs_name": pool, "lvol_name": name, "file": from, "read_only": read_only})
    }

    fn import(&self, from: &str, to: &str, read_only: bool) -> Result<Value> {
        self.daemon.rpc("bdev_lvol_import", Self::import_params(&self.path(from), to, read_only))
    }

    /// Why an import is refused.
    fn refused(&self, from: &Path, to: &str, read_only: bool) -> Result<(String, String)> {
        let error = self.daemon.rpc_error("bdev_lvol_import", Self::import_params(from, to, read_only))?;
        Ok((error.reason.unwrap_or_default(), error.detail.unwrap_or_default()))
    }

    /// Everything that a volume holds, as a guest reads it.
    fn read(&mut self, volume: &str) -> Result<Vec<u8>> {
        attach(&self.daemon, "vm", 9, volume)?;
        let (lun, mut bytes) = (Lun::new(9, 0), Vec::new());
        clear_attentions(&mut self.front, lun)?;
        let piece = 128 * 1024;
        for at in (0..SIZE).step_by(piece) {
            let read = cdb::read16(at / 512, (piece / 512) as u32);
            bytes.extend(self.front.good(lun, &read, &[], piece)?.data);
        }
        self.daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 9}))?;
        Ok(bytes)
    }

    /// Names of all volumes and snapshots.
    fn names(&self) -> Result<Vec<String>> {
        let all = self.daemon.rpc("bdev_lvol_get_lvols", Value::Null)?;
        let names = all.as_array().context("a list")?.iter().map(|volume| volume["alias"].as_str().map(str::to_owned));
        names.collect::<Option<_>>().context("names")
    }
}

fn same(one: &[u8], other: &[u8]) -> Result<()> {
    let differs = one.iter().zip(other).position(|(a, b)| a != b);
    ensure!(one.len() == other.len() && differs.is_none(), "they differ from byte {differs:?} on");
    Ok(())
}

#[test]
fn everything_and_differences_come_back_in_another_pool_byte_by_byte() -> Result<()> {
    let mut world = World::new(1)?;
    world.scribble(60)?;
    world.snapshot("s1")?;
    let first = world.bytes.clone();
    let full = world.export("p/s1", None, "full")?;
    ensure!(fs::metadata(world.path("full"))?.len() == full["bytes"].as_u64().unwrap_or(0), "{full}");
    ensure!(full["data_bytes"].as_u64() < Some(SIZE) && full["zero_bytes"] == 0, "holes are left out: {full}");
    world.scribble(20)?;
    world.snapshot("s2")?;
    let second = world.bytes.clone();
    let delta = world.export("p/s2", Some("p/s1"), "delta")?;
    ensure!(delta["data_bytes"].as_u64() < full["data_bytes"].as_u64() && delta["zero_bytes"] != 0, "{delta}");
    world.scribble(20)?;
    world.export("p/v", Some("p/s2"), "last")?;
    let third = world.bytes.clone();
    world.scribble(20)?;

    // A difference needs what it stands on, and that is known by what it is, not by its name.
    let (reason, detail) = world.refused(&world.path("delta"), "q/b", false)?;
    ensure!(reason == "wrong_base" && detail.contains("p/s1"), "{reason}: {detail}");
    world.import("full", "q/writable", false)?;
    ensure!(world.refused(&world.path("delta"), "q/b", false)?.0 == "wrong_base", "what can be written is no state");
    world.import("full", "q/a", true)?;
    world.daemon.rpc("bdev_lvol_rename", json!({"old_name": "q/a", "new_name": "monday"}))?;
    ensure!(world.refused(&world.path("full"), "q/twice", true)?.0 == "exists_same");
    world.import("delta", "q/tuesday", true)?;
    world.import("last", "q/v", false)?;
    same(&world.read("q/writable")?, &first)?;
    same(&world.read("q/monday")?, &first)?;
    same(&world.read("q/tuesday")?, &second)?;
    same(&world.read("q/v")?, &third)?;
    let mut names = world.names()?;
    names.sort();
    ensure!(names == ["p/s1", "p/s2", "p/v", "q/monday", "q/tuesday", "q/v", "q/writable"], "{names:?}");
    let listed = world.daemon.rpc("bdev_lvol_get_lvols", json!({"lvs_name": "q"}))?;
    let tuesday = listed.as_array().into_iter().flatten().find(|volume| volume["name"] == "tuesday");
    ensure!(tuesday.is_some_and(|tuesday| tuesday["parent"]["name"] == "monday"), "{listed}");

    // A state is the same wherever it is: what was made in one pool of an imported one goes back to the first.
    world.daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "q/v", "snapshot_name": "wednesday"}))?;
    world.export("q/wednesday", Some("q/tuesday"), "back")?;
    world.import("back", "p/back", false)?;
    same(&world.read("p/back")?, &third)?;
    Ok(())
}

#[test]
fn damaged_torn_and_foreign_streams_are_refused_and_leave_nothing() -> Result<()> {
    let mut world = World::new(2)?;
    world.front.good(Lun::new(0, 0), &cdb::write16(0, 8, false), &[7; 4096], 0)?;
    world.front.good(Lun::new(0, 0), &cdb::write16(4096, 8, false), &[8; 4096], 0)?;
    world.export("p/v", None, "small")?;
    let good = fs::read(world.path("small"))?;
    let (names, bad) = (world.names()?, world.path("bad"));
    for at in (0..good.len()).step_by(61).chain([good.len() - 1]) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&bad, &bytes)?;
        let (reason, detail) = world.refused(&bad, "q/x", false)?;
        ensure!(reason == "bad_stream", "byte {at}: {reason}: {detail}");
    }
    for len in (0..good.len()).step_by(509).chain([good.len() - 1]) {
        fs::write(&bad, &good[..len])?;
        let (reason, detail) = world.refused(&bad, "q/x", false)?;
        ensure!(reason == "bad_stream" && (len < 32 || detail.contains("torn")), "{len} bytes: {reason}: {detail}");
    }
    fs::write(&bad, [&good[..], b"x"].concat())?;
    ensure!(world.refused(&bad, "q/x", false)?.1.contains("follows"));
    ensure!(world.refused(&world.path("none"), "q/x", false)?.0 == "os_error");
    ensure!(world.names()? == names, "nothing is left");
    world.import("small", "q/x", false)?;
    ensure!(world.refused(&world.path("small"), "q/x", false)?.0 == "exists_different", "the name is taken");
    ensure!(world.refused(&world.path("small"), "q/.job-x", false)?.0 == "invalid", "such names are jobs'");
    let long = format!("q/{}", "x".repeat(65));
    let told = world.refused(&world.path("none"), &long, false)?;
    ensure!(told.0 == "invalid" && told.1.contains("64 bytes"), "before anything is read: {told:?}");
    let there = world.daemon.rpc_error("bdev_lvol_export", json!({"name": "p/v", "file": world.path("small")}))?;
    ensure!(there.reason.as_deref() == Some("exists_different") && fs::read(world.path("small"))? == good);
    let relative = world.daemon.rpc_error("bdev_lvol_export", json!({"name": "p/v", "file": "x"}))?;
    ensure!(relative.reason.as_deref() == Some("invalid"), "{relative}");
    same(&world.read("q/x")?, &world.bytes_of_small())
}

impl World {
    fn bytes_of_small(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        bytes[..4096].fill(7);
        bytes[4096 * 512..][..4096].fill(8);
        bytes
    }
}

/// Waits until something is so.
fn until(mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so()? {
        ensure!(Instant::now() < end, "it takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn an_import_that_is_cancelled_or_crashes_leaves_nothing_and_its_pool_is_not_closed_under_it() -> Result<()> {
    let mut world = World::new(3)?;
    world.scribble(60)?;
    world.export("p/v", None, "full")?;
    file(&world.daemon, "f2", 256 * MIB)?;
    let slow = |us: u64| {
        json!({"name": "d2", "base_bdev_name": "f2", "avg_read_latency": 0, "p99_read_latency": 0,
               "avg_write_latency": us, "p99_write_latency": us})
    };
    world.daemon.rpc("bdev_delay_create", slow(0))?;
    world.daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "d2", "lvs_name": "r"}))?;
    let free = world.daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "r"}))?[0]["free_clusters"].clone();
    let mut params = World::import_params(&world.path("full"), "r/x", false);
    params["job"] = true.into();
    for crash in [false, true] {
        for kind in ["avg_write", "p99_write"] {
            let params = json!({"delay_bdev_name": "d2", "latency_type": kind, "latency_us": 200_000});
            world.daemon.rpc("bdev_delay_update_latency", params)?;
        }
        let id = world.daemon.rpc("bdev_lvol_import", params.clone())?["job_id"].clone();
        let job =
            |daemon: &Daemon| Ok::<_, anyhow::Error>(daemon.rpc("job_get_jobs", json!({"job_id": id}))?[0].take());
        until(|| Ok(job(&world.daemon)?["done_bytes"] != 0))?;
        ensure!(!world.names()?.iter().any(|name| name.starts_with("r/")), "nobody sees it");
        let busy = world.daemon.rpc_error("bdev_lvol_delete_lvstore", json!({"lvs_name": "r"}))?;
        ensure!(busy.reason.as_deref() == Some("in_use"), "{busy}");
        if crash {
            world.daemon.restart()?;
        } else {
            world.daemon.rpc("job_cancel", json!({"job_id": id}))?;
            until(|| Ok(job(&world.daemon)?["state"] == "cancelled"))?;
        }
        ensure!(!world.names()?.iter().any(|name| name.starts_with("r/")), "nothing is left: {:?}", world.names()?);
        for kind in ["avg_write", "p99_write"] {
            let params = json!({"delay_bdev_name": "d2", "latency_type": kind, "latency_us": 0});
            world.daemon.rpc("bdev_delay_update_latency", params)?;
        }
        let pool = || world.daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "r"}));
        until(|| Ok(pool()?[0]["free_clusters"] == free))?;
    }
    world.front = connect(&world.daemon, "vm", &DriverOptions::default())?;
    world.import("full", "r/x", false)?;
    let bytes = world.bytes.clone();
    same(&world.read("r/x")?, &bytes)
}

#[test]
fn a_shallow_copy_of_what_stands_on_a_bdev_is_without_that() -> Result<()> {
    let mut world = World::new(7)?;
    let daemon = &world.daemon;
    for (at, name, value) in [(8, "image", 5u8), (9, "m", 9)] {
        file(daemon, name, SIZE)?;
        attach(daemon, "vm", at, name)?;
        clear_attentions(&mut world.front, Lun::new(at as u8, 0))?;
        let same = cdb::write_same16(0, 4096, false, false);
        world.front.good(Lun::new(at as u8, 0), &same, &[value; 512], 0)?;
        daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": at}))?;
    }
    daemon.rpc("bdev_lvol_clone_bdev", json!({"bdev": "image", "lvs_name": "p", "clone_name": "c"}))?;
    attach(daemon, "vm", 8, "p/c")?;
    clear_attentions(&mut world.front, Lun::new(8, 0))?;
    world.front.good(Lun::new(8, 0), &cdb::write16(0, 8, false), &[1; 4096], 0)?;
    world.front.good(Lun::new(8, 0), &cdb::write_same16(128, 128, true, true), &[], 0)?;
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "p/c", "snapshot_name": "cs"}))?;
    let copy = json!({"src_lvol_name": "p/cs", "dst_bdev_name": "m"});
    let job = daemon.rpc("bdev_lvol_start_shallow_copy", copy)?["job_id"].clone();
    let job = || Ok::<_, anyhow::Error>(daemon.rpc("job_get_jobs", json!({ "job_id": job }))?[0].take());
    until(|| Ok(job()?["state"] != "running"))?;
    ensure!(job()?["state"] == "complete", "{}", job()?);
    let mut expected = vec![0; SIZE as usize];
    expected[..4096 * 512].fill(9);
    expected[..4096].fill(1);
    expected[128 * 512..256 * 512].fill(0);
    same(&world.read("m")?, &expected)
}

#[test]
fn an_import_for_which_there_is_no_room_leaves_nothing() -> Result<()> {
    let mut world = World::new(6)?;
    for at in (0..SIZE / 512).step_by(256) {
        world.front.good(Lun::new(0, 0), &cdb::write16(at, 256, false), &[7; 128 << 10], 0)?;
    }
    world.export("p/v", None, "full")?;
    file(&world.daemon, "f2", 16 * MIB)?;
    world.daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "f2", "lvs_name": "r"}))?;
    let pool =
        || Ok::<_, anyhow::Error>(world.daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "r"}))?[0].take());
    let free = pool()?["free_clusters"].clone();
    ensure!(free.as_u64().is_some_and(|free| free > 0 && free < SIZE >> 16), "{free} clusters are less than it takes");
    let (reason, detail) = world.refused(&world.path("full"), "r/x", false)?;
    ensure!(reason == "no_space", "{reason}: {detail}");
    ensure!(!world.names()?.iter().any(|name| name.starts_with("r/")), "{:?}", world.names()?);
    until(|| Ok(pool()?["free_clusters"] == free && pool()?["state"] == "online"))
}

fn pollux(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new(pollux_tests::daemon::binary().expect("the binary under test"));
    command.arg("--rpc-socket").arg(world.daemon.rpc_path()).args(args).stdin(Stdio::null());
    command
}

/// What a command says on standard error, and its exit code.
fn said(command: &mut Command) -> Result<(String, Option<i32>)> {
    let output = command.output()?;
    Ok((String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code()))
}

#[test]
fn the_command_line_moves_volumes_through_files_and_pipes() -> Result<()> {
    let mut world = World::new(4)?;
    world.scribble(40)?;
    world.snapshot("s1")?;
    let full = world.path("full");
    let full = full.to_str().context("a path")?;
    let exported = pollux(&world, &["--json", "volume", "export", "p/s1", full]).output()?;
    ensure!(exported.status.success(), "{exported:?}");
    let told: Value = serde_json::from_slice(&exported.stdout)?;
    ensure!(told["bytes"] == fs::metadata(full)?.len(), "{told}");
    let (again, code) = said(&mut pollux(&world, &["volume", "export", "p/s1", full]))?;
    ensure!(code == Some(1) && again.contains("--force"), "{again}");
    let (none, code) = said(&mut pollux(&world, &["volume", "export", "p/none", "-"]))?;
    ensure!(code == Some(1) && none.contains("no volume or snapshot 'p/none'"), "{none}");
    let (imported, code) = said(&mut pollux(&world, &["volume", "import", full, "q/s1", "--read-only"]))?;
    ensure!(code == Some(0), "{imported}");

    world.scribble(20)?;
    let mut from = pollux(&world, &["volume", "export", "p/v", "--from-snapshot", "s1", "-"]);
    let mut from = from.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pipe = from.stdout.take().context("a pipe")?;
    let (imported, code) = said(pollux(&world, &["volume", "import", "-", "q/v"]).stdin(pipe))?;
    let exported = from.wait_with_output()?;
    ensure!(code == Some(0) && exported.status.success(), "{imported} {exported:?}");
    let bytes = world.bytes.clone();
    same(&world.read("q/v")?, &bytes)?;

    // A pipe that breaks.
    let (half, torn) = (fs::read(full)?.len() / 2, world.path("torn"));
    fs::write(&torn, &fs::read(full)?[..half])?;
    let (told, code) = said(&mut pollux(&world, &["volume", "import", torn.to_str().context("a path")?, "q/w"]))?;
    ensure!(code == Some(1) && told.contains("torn"), "{told}");
    // Also where there is so little of it that the daemon has sent it all.
    let empty = json!({"lvs_name": "p", "lvol_name": "empty", "size": MIB, "thin_provision": true});
    world.daemon.rpc("bdev_lvol_create", empty)?;
    for volume in ["p/v", "p/empty"] {
        let mut from = pollux(&world, &["volume", "export", volume, "-"]).stdout(Stdio::piped()).spawn()?;
        drop(from.stdout.take());
        ensure!(from.wait()?.code() == Some(1), "{volume} has not arrived");
    }
    world.daemon.rpc("bdev_lvol_delete", json!({"name": "p/empty"}))?;
    let idle = |world: &World| {
        let jobs = world.daemon.rpc("job_get_jobs", Value::Null)?;
        Ok(jobs.as_array().into_iter().flatten().all(|job| job["state"] != "running"))
    };
    until(|| idle(&world))?;
    let mut names = world.names()?;
    names.sort();
    ensure!(names == ["p/s1", "p/v", "q/s1", "q/v"], "{names:?}");
    Ok(())
}

#[test]
fn a_shallow_copy_has_what_is_the_snapshots_own() -> Result<()> {
    let mut world = World::new(5)?;
    world.front.good(Lun::new(0, 0), &cdb::write16(0, 8, false), &[1; 4096], 0)?;
    world.front.good(Lun::new(0, 0), &cdb::write16(800, 8, false), &[1; 4096], 0)?;
    world.snapshot("s1")?;
    world.front.good(Lun::new(0, 0), &cdb::write16(1600, 8, false), &[2; 4096], 0)?;
    world.front.good(Lun::new(0, 0), &cdb::write_same16(800, 8, true, true), &[], 0)?;
    world.snapshot("s2")?;
    let daemon = &world.daemon;
    daemon.rpc("bdev_malloc_create", json!({"name": "m", "num_blocks": SIZE / 512, "block_size": 512}))?;
    daemon.rpc("bdev_malloc_create", json!({"name": "small", "num_blocks": 2048, "block_size": 512}))?;
    attach(daemon, "vm", 9, "m")?;
    clear_attentions(&mut world.front, Lun::new(9, 0))?;
    world.front.good(Lun::new(9, 0), &cdb::write_same16(0, 2048, false, false), &[9; 512], 0)?;
    let start = |from: &str, to: &str| {
        let error =
            daemon.rpc_error("bdev_lvol_start_shallow_copy", json!({"src_lvol_name": from, "dst_bdev_name": to}))?;
        Ok::<_, anyhow::Error>((error.code, error.reason.unwrap_or_default()))
    };
    ensure!(start("p/s2", "m")? == (-32602, "in_use".into()));
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 9}))?;
    ensure!(start("p/v", "m")? == (-32602, "unfit".into()), "it can be written");
    ensure!(start("p/none", "m")? == (-19, "not_found".into()) && start("p/s2", "none")?.0 == -19);
    ensure!(start("p/s2", "small")? == (-22, "invalid".into()) && start("p/s2", "p/s1")?.0 == -22);
    let params = json!({"src_lvol_name": "p/s2", "dst_bdev_name": "m"});
    let operation = daemon.rpc("bdev_lvol_start_shallow_copy", params)?["operation_id"].clone();
    let check = || daemon.rpc("bdev_lvol_check_shallow_copy", json!({ "operation_id": operation }));
    until(|| Ok(check()?["state"] != "in progress"))?;
    ensure!(check()? == json!({"copied_clusters": 1, "total_clusters": 1, "state": "complete"}), "{}", check()?);
    let none = daemon.rpc_error("bdev_lvol_check_shallow_copy", json!({"operation_id": 4711}))?;
    ensure!((none.code, none.reason.as_deref()) == (-19, Some("not_found")), "{none}");
    let copied = world.read("m")?;
    let mut expected = vec![0; SIZE as usize];
    expected[..2048 * 512].fill(9);
    expected[800 * 512..][..4096].fill(0);
    expected[1600 * 512..][..4096].fill(2);
    same(&copied, &expected)?;
    world.daemon.rpc("bdev_delete", json!({"name": "m"}))?;
    Ok(())
}
