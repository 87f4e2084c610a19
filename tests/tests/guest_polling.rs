//! The data ring that asks devices for completions, on devices that can be asked: in a guest whose kernel has null_blk with
//! poll queues and memory behind it. The disk itself and a file on ext4 on it are served and loaded there, and what was
//! written is verified.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon;
use pollux_tests::vm::{self, Guest, GuestOptions};

/// The target of a disk that splits what crosses a boundary of 1 MiB: what is polled for and split never ends on this
/// kernel.
const CHUNKED: u32 = 2;

/// Shell functions for the guest.
const FUNCTIONS: &str = "
rpc() { /mnt/programs/pollux --rpc-socket /run/pollux/rpc.sock rpc \"$@\"; }
bench() { /mnt/programs/pollux bench --socket /run/pollux/vhost/vm --core none --json \"$@\"; }
set -e
";

/// The daemon, packed for the guest to mount.
fn programs(dir: &Path) -> Result<PathBuf> {
    let (folder, image) = (dir.join("programs"), dir.join("programs.img"));
    std::fs::create_dir(&folder)?;
    std::fs::copy(daemon::binary()?, folder.join("pollux"))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/make-image.sh");
    let output = Command::new(script).args([&folder, &image]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(image)
}

fn serve(guest: &mut Guest, data_ring: &str) -> Result<()> {
    guest.sh(&format!(
        "/mnt/programs/pollux serve --reactors 0 --ephemeral --rpc-socket /run/pollux/rpc.sock --data-ring {data_ring} \
         --vhost-dir /run/pollux/vhost >/run/pollux/log 2>&1 & echo $! >/run/pollux/pid"
    ))?;
    let ready = format!("{FUNCTIONS} rpc spdk_get_version || {{ cat /run/pollux/log; false; }}");
    guest.until(&ready, Duration::from_secs(30))?;
    guest.sh(&format!("{FUNCTIONS} rpc vhost_create_scsi_controller '{{\"ctrlr\":\"vm\"}}'"))?;
    let disks = [(0, "whole", "/dev/nullb0"), (1, "fs", "/mnt/fs/disk"), (CHUNKED, "chunked", "/dev/chunked")];
    for (target, name, path) in disks {
        let create = format!(r#"{{"name":"{name}","filename":"{path}","block_size":512}}"#);
        let add = format!(r#"{{"ctrlr":"vm","scsi_target_num":{target},"bdev_name":"{name}"}}"#);
        let attach = format!("rpc bdev_uring_create '{create}' && rpc vhost_scsi_controller_add_target '{add}'");
        guest.sh(&format!("{FUNCTIONS}{attach}"))?;
    }
    Ok(())
}

#[test]
fn polled_devices_serve_what_was_written() -> Result<()> {
    if vm::available()?.is_none() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let drives = vec![programs(dir.path())?];
    let mut guest = Guest::boot(&GuestOptions { drives, ..GuestOptions::default() })?;
    guest.sh(&format!(
        "{FUNCTIONS} mkdir -p /mnt/programs /mnt/fs /run/pollux/vhost
         d=$(grep -lx drive0 /sys/block/vd*/serial); d=${{d%/serial}}; mount -o ro /dev/${{d##*/}} /mnt/programs
         modprobe null_blk nr_devices=2 poll_queues=1 submit_queues=1 memory_backed=1 gb=1 bs=512
         [ $(cat /sys/block/nullb0/queue/io_poll) = 1 ]
         mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/nullb1 64M && mount /dev/nullb1 /mnt/fs
         truncate -s 16M /mnt/fs/disk
         mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
         cd /sys/kernel/config/nullb && mkdir chunked && cd chunked
         echo 64 >size; echo 512 >blocksize; echo 1 >memory_backed; echo 1 >poll_queues; echo 1 >submit_queues
         echo 1 >zoned; echo 1 >zone_size; echo 63 >zone_nr_conv; echo 1 >power
         d=nullb$(cat index); [ -e /dev/$d ] && ln -s $d /dev/chunked || d=chunked
         [ $(cat /sys/block/$d/queue/io_poll) = 1 ] && [ $(cat /sys/block/$d/queue/chunk_sectors) = 2048 ]"
    ))?;
    for data_ring in ["iopoll", "sqpoll"] {
        serve(&mut guest, data_ring)?;
        let listing = guest.sh(&format!("{FUNCTIONS} rpc bdev_get_bdevs; rpc framework_get_reactors"))?;
        ensure!(listing.matches("\"io_poll\": true").count() == 2, "all but `chunked`: {listing}");
        ensure!(listing.contains(&format!("\"data_ring\": \"{data_ring}\"")), "{listing}");
        for (target, load) in [
            (0, "--rw randrw --bs 4k --qd 32 --size 16m"),
            (1, "--rw randrw --bs 4k --qd 32"),
            (1, "--rw write --bs 128k --qd 4"),
            (0, "--rw randread --bs 512 --qd 1 --size 4m"),
            (CHUNKED, "--rw randrw --bs 20k --qd 4 --size 16m"),
        ] {
            let run = format!("{FUNCTIONS} bench --target {target} --fill --verify --time 1 {load}");
            let report = guest.sh_within(&run, Duration::from_secs(120)).with_context(|| load.to_owned())?;
            let report: serde_json::Value = serde_json::from_str(&report)?;
            let clean = report["errors"] == 0 && report["verify_errors"] == 0;
            ensure!(clean && report["ios"].as_u64() > Some(0), "{data_ring}, {load}: {report:#}");
        }
        let log = guest.sh(
            "cat /run/pollux/log; kill $(cat /run/pollux/pid); while [ -e /run/pollux/rpc.sock ]; do sleep 0.1; done",
        )?;
        ensure!(!log.contains("not taken by the data ring"), "{data_ring}: polling was refused:\n{log}");
    }
    guest.power_off()
}
