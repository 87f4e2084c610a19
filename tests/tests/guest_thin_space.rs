//! A Linux guest on a thin volume whose pool runs out of space: it is told at the thresholds (38h/07h), sees how much is
//! left (log page 0Ch, mode page 1Ch/02h), and what it gives back while writes wait lets them go on.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::vm::{self, Guest, GuestOptions};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const POOL: u64 = 256 * MIB;
const SOON: Duration = Duration::from_secs(60);

struct World {
    daemon: Daemon,
    guest: Guest,
}

impl World {
    fn begin() -> Result<World> {
        let reactors = if std::thread::available_parallelism()?.get() > 1 { "0,1" } else { "0" };
        let daemon = Daemon::start_with(DaemonOptions { reactors: reactors.into(), ..DaemonOptions::default() })?;
        let path = daemon.disks_dir().join("pool");
        File::create(&path)?.set_len(POOL)?;
        daemon.rpc("bdev_uring_create", json!({"name": "base", "filename": path, "block_size": 512}))?;
        daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "base", "lvs_name": "lvs"}))?;
        let volume = json!({"lvs_name": "lvs", "lvol_name": "v", "size": 4 * POOL, "thin_provision": true});
        daemon.rpc("bdev_lvol_create", volume)?;
        daemon.rpc("bdev_lvol_set_thresholds", json!({"lvs_name": "lvs", "used_percent": [50, 80]}))?;
        daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm"}))?;
        let target = json!({"ctrlr": "vm", "scsi_target_num": 0, "bdev_name": "lvs/v"});
        daemon.rpc("vhost_scsi_controller_add_target", target)?;
        let vhost = vec![(daemon.socket("vm"), 2)];
        let guest = Guest::boot(&GuestOptions { vhost, ..GuestOptions::default() })?;
        Ok(World { daemon, guest })
    }

    fn sh(&mut self, script: &str) -> Result<String> {
        let script = script.replace("DISK", "$(scsi-disks | head -1 | cut -d' ' -f1)");
        self.guest.sh_within(&script, Duration::from_secs(120)).with_context(|| script.clone())
    }

    /// Writes MiB of the disk, from one on.
    fn write(&mut self, from: u64, mib: u64) -> Result<()> {
        self.sh(&format!("dd if=/dev/zero of=DISK bs=1M seek={from} count={mib} oflag=direct status=none"))?;
        Ok(())
    }

    fn pool(&self) -> Result<Value> {
        Ok(self.daemon.rpc("bdev_lvol_get_lvstores", json!({"lvs_name": "lvs"}))?[0].take())
    }

    /// Waits until the guest's kernel has been told so many times that a threshold was reached.
    fn told_of(&mut self, times: usize) -> Result<()> {
        let end = Instant::now() + SOON;
        loop {
            // Whoever asks takes the attention: only the kernel asks here.
            let told = self.sh("dd if=DISK of=/dev/null bs=4k count=1 iflag=direct status=none
                dmesg | grep -c 'thin provisioning soft threshold' || true")?;
            let told: usize = told.trim().parse()?;
            if told == times {
                return Ok(());
            }
            ensure!(
                told < times && Instant::now() < end,
                "the kernel has heard of thresholds {told} times, not {times}"
            );
        }
    }
}

fn shows_what_is_left(world: &mut World) -> Result<()> {
    let pages = world.sh("sg_vpd -p lbpv DISK; sg_logs -p 0xc DISK; sg_modes -6 -H -p 0x1c,2 DISK")?;
    for line in ["Threshold exponent: 7", "Available LBA mapping", "Used LBA mapping", "Not dedicated to lu"] {
        ensure!(pages.to_lowercase().contains(&line.to_lowercase()), "no '{line}' in\n{pages}");
    }
    Ok(())
}

fn tells_the_guest_once_a_crossing(world: &mut World) -> Result<()> {
    world.told_of(0)?;
    world.write(0, 140)?;
    world.told_of(1)?;
    world.write(140, 40)?;
    world.told_of(1)?;
    world.write(180, 30)?;
    world.told_of(2)?;
    let pool = world.pool()?;
    for threshold in pool["thresholds"].as_array().context("thresholds")? {
        ensure!(threshold["reached"] == true && threshold["crossings"] == 1, "{pool}");
    }
    let events = world.daemon.rpc("notify_get_notifications", json!({"id": 0, "max": 1000}))?;
    let told = events.as_array().context("events")?.iter().filter(|event| event["type"] == "lvstore_threshold").count();
    ensure!(told == 2, "{told} events in {events}");
    // Well below both, and over one again.
    world.sh("blkdiscard -o $((100 << 20)) -l $((110 << 20)) DISK")?;
    let end = Instant::now() + SOON;
    while world.pool()?["thresholds"].as_array().context("thresholds")?.iter().any(|one| one["reached"] == true) {
        ensure!(Instant::now() < end, "they stay reached: {}", world.pool()?);
    }
    world.write(100, 60)?;
    world.told_of(3)
}

/// Forty writes wait, each by a process of its own: most of what Linux has in flight for a disk. What is given back
/// meanwhile gets through.
fn gives_back_while_writes_wait(world: &mut World) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(240);
    let mut at = 160;
    while world.pool()?["state"] != "full" {
        let full = world.sh(&format!("dd if=/dev/zero of=DISK bs=1M seek={at} count=8 oflag=direct 2>&1 || true"))?;
        at += 8;
        ensure!(Instant::now() < end, "it is never full: {full}");
    }
    let told = world.sh(
        "cd /tmp; d=DISK; one() { dd if=/dev/zero of=$d bs=64k seek=$((8000 + $1)) count=1 oflag=direct status=none 2>/dev/null; }
         for n in $(seq 40); do (if one $n; then touch ok.$n; else touch bad.$n; fi) & done
         for n in $(seq 30); do [ $(ls bad.* 2>/dev/null | wc -l) -ge 8 ] && break; sleep 0.1; done
         ls ok.* 2>/dev/null | wc -l >before; blkdiscard -o 0 -l $((64 << 20)) $d; wait
         echo $(cat before) $(ls ok.* | wc -l)",
    )?;
    let numbers: Vec<u64> = told.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [before, written] = numbers[..] else { anyhow::bail!("{told}") };
    // 32 of a volume wait, and one more where two reactors count at once; who comes late finds space. Had the discard
    // waited for them they would have failed.
    ensure!(before == 0 && written >= 32, "{before} before, {written} of 40 written");
    Ok(())
}

#[test]
fn a_pool_that_runs_out_of_space() -> Result<()> {
    let Some(_) = vm::available()? else { return Ok(()) };
    let mut world = World::begin()?;
    shows_what_is_left(&mut world)?;
    tells_the_guest_once_a_crossing(&mut world)?;
    gives_back_while_writes_wait(&mut world)?;
    ensure!(world.daemon.log_tail().contains("has reached a threshold"), "{}", world.daemon.log_tail());
    world.guest.power_off()?;
    ensure!(world.daemon.terminate()?.success(), "the daemon ends badly:\n{}", world.daemon.log_tail());
    Ok(())
}
