//! Whole SCSI devices passed through, for real: in a guest whose kernel has scsi_debug and sg, Pollux serves disks and a
//! tape of scsi_debug, and a client there says the same to the LUN and to the device itself: every byte of every answer is
//! equal, what is written one way is read the other way, and a device that is slow, broken or gone is told as what it is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use pollux_tests::daemon;
use pollux_tests::vm::{self, Guest, GuestOptions};

/// Shell functions for the guest.
const FUNCTIONS: &str = "
rpc() { /mnt/programs/pollux --rpc-socket /run/pollux/rpc.sock rpc \"$@\"; }
client() { t=$1; shift; /mnt/programs/client --socket /run/pollux/vhost/vm --target $t --device $(cat /run/pollux/dev$t) \"$@\"; }
debug() { echo $2 >/sys/bus/pseudo/drivers/scsi_debug/$1; }
# The newest SCSI generic device of a type
newest() { for d in /sys/class/scsi_generic/sg*; do [ $(cat $d/device/type) = $1 ] && echo ${d##*/sg}; done | sort -n | tail -n 1; }
set -e
";

struct Bench {
    guest: Guest,
}

impl Bench {
    fn sh(&mut self, script: &str) -> Result<String> {
        let said = self.guest.sh_within(&format!("{FUNCTIONS}{script}"), Duration::from_secs(300));
        said.map_err(|error| {
            let log = self.guest.sh("tail -n 30 /run/pollux/log").unwrap_or_default();
            error.context(format!("Pollux says:\n{log}"))
        })
    }

    fn serve(&mut self) -> Result<()> {
        self.guest.sh(
            "/mnt/programs/pollux serve --reactors 0 --state-dir /run/pollux/state --rpc-socket /run/pollux/rpc.sock \
             --vhost-dir /run/pollux/vhost >>/run/pollux/log 2>&1 & echo $! >/run/pollux/pid",
        )?;
        let ready = format!("{FUNCTIONS} rpc spdk_get_version || {{ cat /run/pollux/log; false; }}");
        self.guest.until(&ready, Duration::from_secs(60))?;
        Ok(())
    }
}

/// The daemon and the client, packed for the guest to mount.
fn programs(dir: &Path) -> Result<PathBuf> {
    let (folder, image) = (dir.join("programs"), dir.join("programs.img"));
    std::fs::create_dir(&folder)?;
    std::fs::copy(daemon::binary()?, folder.join("pollux"))?;
    std::fs::copy(env!("CARGO_BIN_EXE_sg_client"), folder.join("client"))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/make-image.sh");
    let output = Command::new(script).args([&folder, &image]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(image)
}

#[test]
fn devices_are_the_same_through_pollux() -> Result<()> {
    if vm::available()?.is_none() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let drives = vec![programs(dir.path())?];
    let mut bench = Bench { guest: Guest::boot(&GuestOptions { drives, ..GuestOptions::default() })? };
    bench.sh(
        "mkdir -p /mnt/programs /run/pollux/vhost /run/pollux/state
         d=$(grep -lx drive0 /sys/block/vd*/serial); d=${d%/serial}; mount -o ro /dev/${d##*/} /mnt/programs
         modprobe sg; modprobe scsi_debug dev_size_mb=16 num_tgts=2 lbpu=1 max_queue=64 delay=0; udevadm settle 2>/dev/null || sleep 1
         n=$(newest 0); echo /dev/sg$((n - 1)) >/run/pollux/dev0; echo /dev/sg$n >/run/pollux/dev1",
    )?;
    bench.serve()?;
    bench.sh(r#"rpc vhost_create_scsi_controller '{"ctrlr":"vm"}'
         for t in 0 1; do
           rpc bdev_sg_create "{\"name\":\"sg$t\",\"path\":\"$(cat /run/pollux/dev$t)\"}"
           rpc vhost_scsi_controller_add_target "{\"ctrlr\":\"vm\",\"scsi_target_num\":$t,\"bdev_name\":\"sg$t\"}"
         done"#)?;
    listed(&mut bench)?;
    for target in [0, 1] {
        println!("{}", bench.sh(&format!("client {target} compare"))?);
    }
    bench.sh("client 0 refused; client 1 refused")?;
    println!("{}", bench.sh("client 0 load --rounds 60 --seed 7")?);
    verified(&mut bench)?;
    broken(&mut bench)?;
    slow(&mut bench)?;
    restarted(&mut bench)?;
    gone(&mut bench)?;
    tape(&mut bench)?;
    bench.guest.power_off()
}

/// What operators see, and what is refused.
fn listed(bench: &mut Bench) -> Result<()> {
    let listing = bench.sh("rpc bdev_get_bdevs")?;
    for part in ["SCSI generic device", "\"device_type_name\": \"disk\"", "scsi_debug"] {
        ensure!(listing.contains(part), "{part}: {listing}");
    }
    let refused = |bench: &mut Bench, call: &str, why: &str| -> Result<()> {
        let said = bench.sh(&format!("! {{ {call}; }} 2>&1"))?;
        ensure!(said.contains(why), "{call}: {said}");
        Ok(())
    };
    bench.sh(r#"rpc vhost_create_scsi_controller '{"ctrlr":"other"}'"#)?;
    let add = r#"rpc vhost_scsi_controller_add_target '{"ctrlr":"other","scsi_target_num":0,"bdev_name":"sg0"}'"#;
    refused(bench, add, "in use by controller vm exclusively")?;
    refused(bench, r#"rpc bdev_passthru_create '{"name":"p","base_bdev_name":"sg0"}'"#, "nothing can stand on it")?;
    refused(bench, r#"rpc bdev_set_scsi_identity '{"name":"sg0","vendor":"X"}'"#, "whole SCSI device")?;
    refused(bench, r#"rpc bdev_sg_create "{\"name\":\"twice\",\"path\":\"$(cat /run/pollux/dev0)\"}""#, "locked")?;
    refused(bench, r#"rpc bdev_sg_create '{"name":"n","path":"/dev/null"}'"#, "not a SCSI generic device")?;
    // Kept from the host while a guest has it.
    refused(bench, "mkfs.ext4 -q $(ls -d /dev/sd[a-z] | head -n 1)", "in use")
}

/// The load generator's own client, with its own verification.
fn verified(bench: &mut Bench) -> Result<()> {
    for load in ["--rw randrw --bs 4k --qd 32", "--rw write --bs 128k --qd 4", "--rw randread --bs 512 --qd 1"] {
        let run = format!(
            "/mnt/programs/pollux bench --socket /run/pollux/vhost/vm --core none --json --target 0 --fill --verify --time 1 {load}"
        );
        let report: serde_json::Value = serde_json::from_str(&bench.sh(&run)?)?;
        let clean = report["errors"] == 0 && report["verify_errors"] == 0;
        ensure!(clean && report["ios"].as_u64() > Some(0), "{load}: {report:#}");
    }
    Ok(())
}

/// scsi_debug's block 1234h fails to read; the sense data is the same either way.
fn broken(bench: &mut Bench) -> Result<()> {
    bench.sh("debug opts 2; client 0 compare | grep 'bad block: status 0x02'; debug opts 0")?;
    Ok(())
}

/// Commands of a second each: aborted, reset, and left behind by a client that dies.
fn slow(bench: &mut Bench) -> Result<()> {
    bench
        .sh("debug delay 250; client 0 manage; client 0 die; sleep 5; debug delay 0 || { sleep 5; debug delay 0; }")?;
    bench.sh("client 0 compare >/dev/null; rpc pollux_get_status >/dev/null")?;
    Ok(())
}

/// What was attached is attached after a restart; another device at the same path is not taken for it.
fn restarted(bench: &mut Bench) -> Result<()> {
    bench.sh("kill $(cat /run/pollux/pid); while [ -e /run/pollux/rpc.sock ]; do sleep 0.1; done")?;
    bench.serve()?;
    bench.sh("client 0 compare >/dev/null; client 1 compare >/dev/null")?;
    bench.sh("kill $(cat /run/pollux/pid); while [ -e /run/pollux/rpc.sock ]; do sleep 0.1; done")?;
    bench.sh(r#"cd /run/pollux/state; sed -i "s|$(cat ../dev0)\"|/dev/swap\"|; s|$(cat ../dev1)\"|$(cat ../dev0)\"|; s|/dev/swap\"|$(cat ../dev1)\"|" state.json"#)?;
    bench.serve()?;
    let listing = bench.sh("rpc bdev_get_bdevs")?;
    ensure!(listing.matches("is another device now").count() == 2, "{listing}");
    bench.sh("kill $(cat /run/pollux/pid); while [ -e /run/pollux/rpc.sock ]; do sleep 0.1; done")?;
    bench.sh(r#"cd /run/pollux/state; sed -i "s|$(cat ../dev0)\"|/dev/swap\"|; s|$(cat ../dev1)\"|$(cat ../dev0)\"|; s|/dev/swap\"|$(cat ../dev1)\"|" state.json"#)?;
    bench.serve()?;
    bench.sh("client 0 compare >/dev/null")?;
    Ok(())
}

/// The disk is pulled and comes back.
fn gone(bench: &mut Bench) -> Result<()> {
    bench.sh(
        "sg=$(cat /run/pollux/dev0); host=$(basename $(readlink -f /sys/class/scsi_generic/${sg#/dev/}/device) | cut -d: -f1)
         echo $host >/run/pollux/host
         echo 1 >/sys/class/scsi_generic/${sg#/dev/}/device/delete; client 0 gone",
    )?;
    let missing = format!("{FUNCTIONS} rpc bdev_get_bdevs '{{\"name\":\"sg0\"}}' | grep '\"state\": \"missing\"'");
    bench.guest.until(&missing, Duration::from_secs(30))?;
    bench.sh("debug ptype 0; echo '- - -' >/sys/class/scsi_host/host$(cat /run/pollux/host)/scan; sleep 1; [ -e $(cat /run/pollux/dev0) ]")?;
    let online = format!("{FUNCTIONS} rpc bdev_get_bdevs '{{\"name\":\"sg0\"}}' | grep '\"state\": \"online\"'");
    bench.guest.until(&online, Duration::from_secs(30))?;
    bench.sh("client 0 compare >/dev/null; rpc vhost_delete_controller '{\"ctrlr\":\"vm\"}'; rpc bdev_sg_delete '{\"name\":\"sg0\"}'")?;
    Ok(())
}

/// A tape: scsi_debug knows little of tapes, but that little is the same, and what it does not know, too.
fn tape(bench: &mut Bench) -> Result<()> {
    bench.sh(r#"debug ptype 1; debug add_host 1; sleep 1; echo /dev/sg$(newest 1) >/run/pollux/dev2
         rpc vhost_create_scsi_controller '{"ctrlr":"vm"}'
         rpc bdev_sg_create "{\"name\":\"tape\",\"path\":\"$(cat /run/pollux/dev2)\"}"
         rpc vhost_scsi_controller_add_target '{"ctrlr":"vm","scsi_target_num":2,"bdev_name":"tape"}'"#)?;
    let listing = bench.sh(r#"rpc bdev_get_bdevs '{"name":"tape"}'"#)?;
    ensure!(listing.contains("\"device_type_name\": \"tape\""), "{listing}");
    println!("{}", bench.sh("client 2 compare")?);
    bench.sh("client 2 refused")?;
    Ok(())
}
