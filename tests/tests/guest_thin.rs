//! A Linux guest with ext4 and XFS on thin volumes: space comes back by fstrim, with three snapshots below too, and on the host
//! also what is a part of clusters in use; what was
//! fsynced is complete in a snapshot that was made of both volumes while the guest wrote, and on the volumes after QEMU and
//! the daemon were killed; and every file system is one that its checker finds nothing in.
//!
//! A snapshot of a mounted file system is what a power cut would leave: its journal is replayed (by mounting it, on a
//! clone) before it is checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon::{self, Daemon, DaemonOptions};
use pollux_tests::vm::{self, Guest, GuestOptions};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// XFS wants 300 MiB at least.
const VOLUME: u64 = 640 * MIB;
const POOL: u64 = 4096 * MIB;
/// What is written and trimmed.
const FILES_MIB: u64 = 48;
/// Volumes and their file systems, in the order of their targets.
const VOLUMES: [&str; 2] = ["ext4", "xfs"];
/// For what the pool does in the background.
const SOON: Duration = Duration::from_secs(30);

/// Shell functions for the guest. `writer` makes files, syncs each, and only then says that it did.
const FUNCTIONS: &str = r#"
set -e
device() { scsi-disks | while read -r device address rest; do case $address in *:0:$1:0) echo "$device";; esac; done; }
writer() {
    n=0
    while [ ! -e /tmp/stop ]; do
        n=$((n + 1))
        dd if=/dev/urandom of=/mnt/$1/file$n bs=32k count=$((1 + n % 7)) conv=fsync status=none
        (cd /mnt/$1 && md5sum file$n) >/tmp/sum.$1 && cat /tmp/sum.$1 >>/tmp/done.$1
        cp /mnt/$1/file$n /mnt/$1/overwritten
    done
}
"#;

struct World {
    daemon: Daemon,
    guest: Option<Guest>,
    start: Instant,
}

impl World {
    fn begin() -> Result<Self> {
        let start = Instant::now();
        let reactors = if std::thread::available_parallelism()?.get() > 1 { "0,1" } else { "0" };
        let daemon = Daemon::start_with(DaemonOptions { reactors: reactors.into(), ..DaemonOptions::default() })?;
        let path = daemon.disks_dir().join("pool");
        File::create(&path)?.set_len(POOL)?;
        daemon.rpc("bdev_uring_create", json!({"name": "base", "filename": path, "block_size": 512}))?;
        daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "base", "lvs_name": "lvs"}))?;
        daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm"}))?;
        for name in VOLUMES {
            let params = json!({"lvs_name": "lvs", "lvol_name": name, "size": VOLUME, "thin_provision": true});
            daemon.rpc("bdev_lvol_create", params)?;
        }
        let mut world = World { daemon, guest: None, start };
        (0..).zip(VOLUMES).try_for_each(|(target, name)| world.attach(target, name))?;
        world.boot()?;
        Ok(world)
    }

    fn attach(&self, target: u8, volume: &str) -> Result<()> {
        let params = json!({"ctrlr": "vm", "scsi_target_num": target, "bdev_name": format!("lvs/{volume}")});
        self.daemon.rpc("vhost_scsi_controller_add_target", params)?;
        Ok(())
    }

    fn boot(&mut self) -> Result<()> {
        let vhost = vec![(self.daemon.socket("vm"), 2)];
        self.guest = Some(Guest::boot(&GuestOptions { vhost, ..GuestOptions::default() })?);
        Ok(())
    }

    fn sh(&mut self, script: &str) -> Result<String> {
        let guest = self.guest.as_mut().context("a guest runs")?;
        guest.sh_within(&format!("{FUNCTIONS}{script}"), Duration::from_secs(300)).with_context(|| script.to_owned())
    }

    fn step(&self, what: &str) {
        println!("{:6.1} s: {what}", self.start.elapsed().as_secs_f32());
    }

    fn snapshot(&self, names: &[(&str, &str)]) -> Result<()> {
        let volumes: Vec<String> = names.iter().map(|(volume, _)| format!("lvs/{volume}")).collect();
        let snapshots: Vec<&str> = names.iter().map(|(_, snapshot)| *snapshot).collect();
        self.daemon.rpc("bdev_lvol_snapshot_group", json!({"lvol_names": volumes, "snapshot_names": snapshots}))?;
        Ok(())
    }

    /// What the pool says that a volume or snapshot owns, in MiB.
    fn owned(&self, name: &str) -> Result<u64> {
        let all = self.daemon.rpc("bdev_lvol_get_lvols", Value::Null)?;
        let found = all.as_array().context("a list")?.iter().find(|volume| volume["name"] == name);
        Ok(found.and_then(|volume| volume["owned_bytes"].as_u64()).with_context(|| format!("{name} in {all}"))? / MIB)
    }

    /// What can be allocated, in MiB.
    fn free(&self) -> Result<u64> {
        let pools = self.daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "lvs"}))?;
        Ok(pools[0]["free_bytes"].as_u64().context("free_bytes")? / MIB)
    }

    /// Waits until a volume owns this much at most.
    fn owns_at_most(&self, name: &str, mib: u64) -> Result<()> {
        let end = Instant::now() + SOON;
        while self.owned(name)? > mib {
            ensure!(Instant::now() < end, "{name} owns {} MiB, and not {mib} at most", self.owned(name)?);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

fn write_files(world: &mut World, volume: &str, name: &str) -> Result<()> {
    world.sh(&format!("dd if=/dev/urandom of=/mnt/{volume}/{name} bs=1M count={FILES_MIB} conv=fsync status=none"))?;
    Ok(())
}

fn trim(world: &mut World, volume: &str, name: &str) -> Result<()> {
    world.sh(&format!("rm /mnt/{volume}/{name}; sync; fstrim /mnt/{volume}"))?;
    Ok(())
}

fn makes_file_systems(world: &mut World) -> Result<()> {
    world.sh("mkdir -p /mnt/ext4 /mnt/xfs; mkfs.ext4 -q $(device 0); mkfs.xfs -q $(device 1)
         mount $(device 0) /mnt/ext4; mount $(device 1) /mnt/xfs")?;
    ensure!(world.owned("ext4")? < 200 && world.owned("xfs")? < 200, "empty file systems take {}", world.owned("xfs")?);
    Ok(())
}

fn trimmed_space_comes_back(world: &mut World) -> Result<()> {
    for volume in VOLUMES {
        world.sh(&format!("sync; fstrim /mnt/{volume}"))?;
        let (before, free) = (world.owned(volume)?, world.free()?);
        write_files(world, volume, "big")?;
        let written = world.owned(volume)?;
        ensure!(written >= before + FILES_MIB, "{volume}: {before} MiB became {written}, {FILES_MIB} were written");
        ensure!(world.free()? + FILES_MIB <= free + 2, "{volume}: {free} MiB were free, now {}", world.free()?);
        trim(world, volume, "big")?;
        world.owns_at_most(volume, before + 4)?;
    }
    Ok(())
}

/// Bytes that the base takes on the host's file system.
fn base_bytes(world: &World) -> Result<u64> {
    Ok(std::fs::metadata(world.daemon.disks_dir().join("pool"))?.blocks() * 512)
}

/// Files of half a cluster, every other of which is deleted: the clusters stay in use, and the host gets back what they do not.
fn halves_of_clusters_come_back(world: &mut World) -> Result<()> {
    world.sh("mkdir /mnt/ext4/halves; cd /mnt/ext4/halves; i=0
         while [ $i -lt 512 ]; do
             for half in a b; do dd if=/dev/urandom of=$half$i bs=32k count=1 conv=fsync status=none; done
             i=$((i + 1))
         done; cd /; sync; fstrim /mnt/ext4")?;
    std::thread::sleep(Duration::from_secs(1));
    let (before, owned) = (base_bytes(world)?, world.owned("ext4")?);
    world.sh("rm /mnt/ext4/halves/b*; sync; fstrim /mnt/ext4")?;
    let end = Instant::now() + SOON;
    while base_bytes(world)? + 12 * MIB > before {
        ensure!(Instant::now() < end, "of {before} bytes the base keeps {}", base_bytes(world)?);
        std::thread::sleep(Duration::from_millis(100));
    }
    let left = world.owned("ext4")?;
    ensure!(left + 8 > owned, "the volume owned {owned} MiB and {left} now: these were whole clusters");
    world.sh("cd /mnt/ext4/halves && cat a* | md5sum >/tmp/halves; echo 3 >/proc/sys/vm/drop_caches
         cat a* | md5sum | cmp - /tmp/halves; cd /; rm -r /mnt/ext4/halves")?;
    Ok(())
}

fn trimmed_space_comes_back_under_three_snapshots(world: &mut World) -> Result<()> {
    for volume in VOLUMES {
        write_files(world, volume, "kept")?;
        let names = [1, 2, 3].map(|n| format!("{volume}-{n}"));
        for (n, name) in (0..).zip(&names) {
            world.snapshot(&[(volume, name)])?;
            // Each snapshot has something of its own.
            world
                .sh(&format!("dd if=/dev/urandom of=/mnt/{volume}/extra{n} bs=64k count=16 conv=fsync status=none"))?;
        }
        let below = names.iter().map(|name| world.owned(name)).collect::<Result<Vec<_>>>()?;
        ensure!(below[0] >= FILES_MIB, "the first snapshot has what was written before it: {below:?}");
        let before = world.owned(volume)?;
        write_files(world, volume, "mine")?;
        ensure!(world.owned(volume)? >= before + FILES_MIB, "{volume}: {before} MiB became {}", world.owned(volume)?);
        trim(world, volume, "mine")?;
        world.owns_at_most(volume, before + 4)?;
        // What the snapshots hold stays theirs, and letting go of it costs the volume next to nothing.
        trim(world, volume, "kept")?;
        world.owns_at_most(volume, before + 8)?;
        let now = names.iter().map(|name| world.owned(name)).collect::<Result<Vec<_>>>()?;
        ensure!(now == below, "the snapshots of {volume} had {below:?} MiB and have {now:?}");
        // And it comes back with them.
        let free = world.free()?;
        for name in names {
            world.daemon.rpc("bdev_lvol_delete", json!({"name": format!("lvs/{name}")}))?;
        }
        let end = Instant::now() + SOON;
        while world.free()? + 4 < free + FILES_MIB {
            ensure!(Instant::now() < end, "{free} MiB were free with the snapshots, {} are without", world.free()?);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// The files that a writer has said to be safe, with their checksums.
type Files = BTreeMap<String, String>;

fn safe_files(world: &mut World, volume: &str) -> Result<Files> {
    let text = world.sh(&format!("cat /tmp/done.{volume} 2>/dev/null || true"))?;
    let parse = |line: &str| Some((line.split_once("  ")?.1.to_owned(), line.to_owned()));
    Ok(text.lines().filter_map(parse).collect())
}

/// Both volumes' safe files.
fn all_safe_files(world: &mut World) -> Result<Vec<Files>> {
    VOLUMES.iter().map(|volume| safe_files(world, volume)).collect()
}

/// Writes, makes a snapshot of both volumes meanwhile, writes on, kills QEMU and the daemon; returns what was safe before
/// the snapshot and what was before the kill.
fn is_killed_while_it_writes(world: &mut World) -> Result<(Vec<Files>, Vec<Files>)> {
    for volume in VOLUMES {
        let script = format!("{FUNCTIONS}writer {volume}");
        world.guest.as_mut().context("a guest runs")?.spawn(&script)?;
    }
    let enough = |files: &[Files], least: usize| files.iter().all(|files| files.len() >= least);
    let until = |world: &mut World, least: usize| -> Result<Vec<Files>> {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let files = all_safe_files(world)?;
            if enough(&files, least) {
                return Ok(files);
            }
            ensure!(Instant::now() < end, "the writers do not come forward");
        }
    };
    let first = until(world, 12)?;
    world.snapshot(&[("ext4", "during-ext4"), ("xfs", "during-xfs")])?;
    let most = first.iter().map(Files::len).max().unwrap_or_default();
    let then = until(world, most + 12)?;
    world.daemon.kill9();
    world.guest = None;
    Ok((first, then))
}

/// Mounts it, compares the files, unmounts and checks it.
fn holds(world: &mut World, target: u8, volume: &str, files: &Files) -> Result<()> {
    let sums: Vec<&str> = files.values().map(String::as_str).collect();
    let options = if volume == "xfs" { "-o nouuid" } else { "" };
    let check = if volume == "xfs" { "xfs_repair -n" } else { "e2fsck -f -n" };
    world
        .sh(&format!(
            "cat >/tmp/sums <<'END'\n{}\nEND\n d=$(device {target}); mkdir -p /mnt/look; mount {options} $d /mnt/look
         cd /mnt/look; md5sum -c --quiet /tmp/sums; cd /; umount /mnt/look; {check} $d 2>&1",
            sums.join("\n")
        ))
        .with_context(|| format!("target {target}, {volume}"))?;
    Ok(())
}

fn pool_is_clean(world: &World) -> Result<()> {
    let path = world.daemon.disks_dir().join("pool");
    let output = std::process::Command::new(daemon::binary()?).args(["pool", "check"]).arg(path).output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "pollux pool check: {}\n{}", output.status, String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn file_systems_on_thin_volumes() -> Result<()> {
    let Some(_) = vm::available()? else { return Ok(()) };
    let mut world = World::begin()?;
    world.step("booted");
    makes_file_systems(&mut world)?;
    world.step("file systems made");
    trimmed_space_comes_back(&mut world)?;
    world.step("trimmed");
    halves_of_clusters_come_back(&mut world)?;
    world.step("halves of clusters trimmed");
    trimmed_space_comes_back_under_three_snapshots(&mut world)?;
    world.step("trimmed under three snapshots");
    let (first, then) = is_killed_while_it_writes(&mut world)?;
    world.step("written, snapshotted, killed");
    pool_is_clean(&world)?;
    world.daemon.restart()?;
    for (target, volume) in (2..).zip(VOLUMES) {
        let params = json!({"snapshot_name": format!("lvs/during-{volume}"), "clone_name": format!("clone-{volume}")});
        world.daemon.rpc("bdev_lvol_clone", params)?;
        world.attach(target, &format!("clone-{volume}"))?;
    }
    world.boot()?;
    world.step("booted again");
    for (index, volume) in VOLUMES.into_iter().enumerate() {
        let target = index as u8;
        holds(&mut world, target + 2, volume, &first[index]).context("a clone of the snapshot")?;
        holds(&mut world, target, volume, &then[index]).context("the volume after the kill")?;
    }
    world.step("all is there, and every file system is clean");
    world.guest.take().context("a guest runs")?.power_off()?;
    ensure!(world.daemon.terminate()?.success(), "the daemon ends badly:\n{}", world.daemon.log_tail());
    pool_is_clean(&world)
}
