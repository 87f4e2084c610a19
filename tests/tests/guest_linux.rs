//! A real Linux guest on a real daemon, end to end: it finds its disks, uses both queues, makes file systems, verifies what
//! it wrote, trims, sees LUNs come and go, switches the write cache, is reset, and survives a kill -9 of the daemon.
//!
//! One boot serves all checks, in an order in which each leaves what the next needs. `POLLUX_LONG=1` writes and verifies
//! 512 MiB; without it the size suits an emulated CPU.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::vm::{self, Guest, GuestOptions, Parts};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const RAM_BYTES: u64 = 64 * MIB;
const FILE_BYTES: u64 = 2048 * MIB;
/// Targets of the disks that are there from the start, and of the one that comes later.
const RAM: u8 = 0;
const FILE: u8 = 1;
const LATE: u8 = 2;
/// For what the guest notices by itself, without being told to look.
const NOTICE: Duration = Duration::from_secs(20);

/// A SCSI disk as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Disk {
    device: String,
    address: String,
    vendor: String,
    model: String,
    bytes: u64,
    wwid: String,
}

struct World {
    daemon: Daemon,
    guest: Guest,
    options: GuestOptions,
    parts: Parts,
    start: Instant,
}

fn step(world: &World, what: &str) {
    println!("{:6.1} s: {what}", world.start.elapsed().as_secs_f32());
}

impl World {
    fn new(parts: Parts) -> Result<Self> {
        let start = Instant::now();
        let reactors = if std::thread::available_parallelism()?.get() > 1 { "0,1" } else { "0" };
        let daemon = Daemon::start_with(DaemonOptions { reactors: reactors.into(), ..DaemonOptions::default() })?;
        File::create(daemon.disks_dir().join("disk.img"))?.set_len(FILE_BYTES)?;
        let file = daemon.disks_dir().join("disk.img");
        daemon.rpc("bdev_malloc_create", json!({"name": "ram", "block_size": 512, "num_blocks": RAM_BYTES / 512}))?;
        daemon.rpc("bdev_uring_create", json!({"name": "file", "filename": file, "block_size": 512}))?;
        daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm"}))?;
        let add = |target: u8, bdev: &str| json!({"ctrlr": "vm", "scsi_target_num": target, "bdev_name": bdev});
        daemon.rpc("vhost_scsi_controller_add_target", add(RAM, "ram"))?;
        daemon.rpc("vhost_scsi_controller_add_target", add(FILE, "file"))?;
        let options = GuestOptions {
            vhost: vec![(daemon.socket("vm"), 2)],
            reconnect_ms: parts.can_reconnect().then_some(200),
            ..GuestOptions::default()
        };
        let guest = Guest::boot(&options)?;
        Ok(World { daemon, guest, options, parts, start })
    }

    fn file(&self) -> PathBuf {
        self.daemon.disks_dir().join("disk.img")
    }

    /// What the file takes on the host, in MiB.
    fn du(&self) -> Result<u64> {
        Ok(std::fs::metadata(self.file())?.blocks() * 512 / MIB)
    }

    fn disks(&mut self) -> Result<Vec<Disk>> {
        let text = self.guest.sh("scsi-disks")?;
        let parse = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let [device, address, vendor, model, sectors, wwid] = words[..] else { bail!("scsi-disks says: {line}") };
            Ok(Disk {
                device: device.into(),
                address: address.into(),
                vendor: vendor.into(),
                model: model.into(),
                bytes: sectors.parse::<u64>()? * 512,
                wwid: wwid.into(),
            })
        };
        let mut disks: Vec<Disk> = text.lines().map(parse).collect::<Result<_>>()?;
        // Disks are probed side by side: which of them is /dev/sda is chance.
        disks.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(disks)
    }

    fn disk(&mut self, target: u8, lun: u16) -> Result<Option<Disk>> {
        let end = format!(":0:{target}:{lun}");
        Ok(self.disks()?.into_iter().find(|disk| disk.address.ends_with(&end)))
    }

    fn device(&mut self, target: u8) -> Result<String> {
        let disk = self.disk(target, 0)?;
        Ok(disk.with_context(|| format!("the guest has no disk at target {target}"))?.device)
    }

    /// Waits until a LUN is there, or not, without any rescan.
    fn wait_lun(&mut self, target: u8, lun: u16, there: bool) -> Result<()> {
        let end = Instant::now() + NOTICE;
        while self.disk(target, lun)?.is_some() != there {
            if Instant::now() > end {
                let kernel = self.guest.sh("dmesg | tail -n 20")?;
                bail!(
                    "target {target} LUN {lun}: not {} after {NOTICE:?}\n{kernel}",
                    if there { "there" } else { "gone" }
                );
            }
        }
        Ok(())
    }
}

fn finds_its_disks(world: &mut World) -> Result<()> {
    let disks = world.disks()?;
    let mut names: Vec<_> = disks.iter().map(|disk| disk.device.as_str()).collect();
    names.sort_unstable();
    ensure!(names == ["/dev/sda", "/dev/sdb"], "{disks:#?}");
    let sizes: Vec<_> = disks.iter().map(|disk| disk.bytes).collect();
    ensure!(sizes == [RAM_BYTES, FILE_BYTES], "{disks:#?}");
    ensure!(disks.iter().all(|disk| disk.vendor == "POLLUX" && disk.model != "-"), "{disks:#?}");
    // Linux names a disk by the last NAA of page 83h.
    ensure!(disks.iter().all(|disk| disk.wwid.starts_with("naa.6") && disk.wwid.len() == 36), "{disks:#?}");
    ensure!(disks[0].wwid != disks[1].wwid, "{disks:#?}");
    Ok(())
}

fn uses_both_queues(world: &mut World) -> Result<()> {
    let requests =
        |world: &World, queue| world.daemon.metric("pollux_queue_requests_total", &[("ctrlr", "vm"), ("queue", queue)]);
    let ram = world.device(RAM)?;
    let before = (requests(world, "2")?, requests(world, "3")?);
    for cpu in 0..2 {
        world
            .guest
            .sh(&format!("taskset -c {cpu} dd if={ram} of=/dev/null bs=4k count=200 iflag=direct status=none"))?;
    }
    let grown = (requests(world, "2")? - before.0, requests(world, "3")? - before.1);
    ensure!(grown.0 >= 150.0 && grown.1 >= 150.0, "requests on the two queues: {grown:?}");
    Ok(())
}

/// Tools that no one here wrote, each around one command, on the disk in memory.
fn answers_the_scsi_tools(world: &mut World) -> Result<()> {
    let ram = world.device(RAM)?;
    let mut tool = |command: &str, wants: &[&str]| -> Result<()> {
        let text = world.guest.sh(&command.replace("DISK", &ram))?;
        for want in wants {
            ensure!(text.contains(want), "{command}: `{want}` is missing in\n{text}");
        }
        Ok(())
    };
    tool("sg_turs -v DISK 2>&1", &[])?;
    tool("sg_inq DISK", &["PQual=0", "PDT=0", "Vendor identification: POLLUX", "CmdQue=1"])?;
    tool("sg_vpd -p sv DISK", &["Device identification", "Block limits", "Logical block provisioning"])?;
    tool("sg_vpd -p di DISK", &["NAA", "0x602504f", "Relative target port"])?;
    tool("sg_vpd -p bl DISK", &["Maximum unmap LBA count"])?;
    tool("sg_vpd -p lbpv DISK", &["Unmap command supported (LBPU): 1", "(LBPWS): 1"])?;
    tool("sg_readcap --long DISK", &["Logical block length=512 bytes", "lbpme=1, lbprz=1"])?;
    tool("sg_readcap DISK", &[&format!("Number of logical blocks={}", RAM_BYTES / 512)])?;
    tool("sg_luns DISK", &["Lun list length = 8"])?;
    tool("sg_modes -p 8 DISK", &["Caching"])?;
    tool("sg_sync DISK && sg_sync --16 DISK", &[])?;
    tool("sg_raw DISK ff 00 00 00 00 00 2>&1 || true", &["Invalid command operation code"])?;

    let fill = "head -c 1048576 /dev/zero | tr '\\0' 'p' | dd of=DISK bs=1M oflag=direct status=none iflag=fullblock";
    let count = "dd if=DISK bs=64k count=16 iflag=direct status=none | tr -cd";
    tool(fill, &[])?;
    // A block of 'q' to 64 blocks, then zeroes to 64, then 128 unmapped by each of two commands.
    tool("head -c 512 /dev/zero | tr '\\0' 'q' >/tmp/q && sg_write_same --16 --in=/tmp/q --lba=0 --num=64 DISK", &[])?;
    tool("sg_write_same --10 --in=/tmp/q --lba=64 --num=64 DISK", &[])?;
    tool(&format!("{count} q | wc -c"), &["65536"])?;
    tool("sg_write_same --16 --ndob --lba=128 --num=64 DISK", &[])?;
    tool("sg_unmap --force --lba=256 --num=128 DISK", &[])?;
    tool("sg_write_same --16 --unmap --lba=512 --num=128 DISK", &[])?;
    tool(&format!("{count} p | wc -c"), &[&(MIB - 512 * (64 + 64 + 64 + 128 + 128)).to_string()])?;
    tool("sg_reset --device DISK && sg_turs DISK; sg_turs DISK", &[])?;
    tool(&format!("{count} q | wc -c"), &["65536"])?;
    Ok(())
}

fn discards_give_space_back(world: &mut World) -> Result<()> {
    let disk = world.device(FILE)?;
    ensure!(world.du()? <= 1, "{} MiB before anything was written", world.du()?);
    world.guest.sh(&format!("dd if=/dev/urandom of={disk} bs=1M count=32 oflag=direct status=none"))?;
    let full = world.du()?;
    ensure!(full >= 32, "{full} MiB after 32 were written");
    world.guest.sh(&format!("blkdiscard -o 8M -l 8M {disk}"))?;
    let less = world.du()?;
    ensure!(less + 8 <= full, "{less} of {full} MiB are left after 8 were discarded");
    world.guest.sh(&format!("blkdiscard {disk}"))?;
    ensure!(world.du()? <= 1, "{} MiB after everything was discarded", world.du()?);
    let zeroes =
        world.guest.sh(&format!("dd if={disk} bs=1M count=32 iflag=direct status=none | tr -d '\\0' | wc -c"))?;
    ensure!(zeroes == "0", "{zeroes} bytes are not zero after the discard");
    Ok(())
}

fn verifies_a_file_system(world: &mut World) -> Result<()> {
    let disk = world.device(FILE)?;
    let long = std::env::var("POLLUX_LONG").is_ok_and(|value| value == "1");
    let mib = if long || world.parts.fast() { 512 } else { 96 };
    world.guest.sh(&format!("mkfs.ext4 -q {disk} && mkdir -p /mnt/a && mount {disk} /mnt/a"))?;
    let empty = world.du()?;
    let report = world.guest.sh_within(
        &format!(
            "fio --name=verify --directory=/mnt/a --size={mib}M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=32 \
             --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --end_fsync=1 --randseed=7 --minimal >/tmp/fio && \
             cut -d';' -f 5 /tmp/fio"
        ),
        Duration::from_secs(if long { 1500 } else { 240 }),
    )?;
    ensure!(report == "0", "fio reports error {report}");
    let written = world.du()?;
    ensure!(written >= empty + mib, "{written} MiB, {empty} before {mib} were written");
    world.guest.sh("dd if=/dev/urandom of=/mnt/a/keep bs=1M count=8 status=none && sync")?;
    world.guest.sh("md5sum /mnt/a/keep >/mnt/a/sum && rm /mnt/a/verify* && sync && fstrim -v /mnt/a")?;
    let trimmed = world.du()?;
    ensure!(trimmed + mib * 9 / 10 <= written, "{trimmed} of {written} MiB are left after {mib} were trimmed");
    ensure!(world.daemon.metric("pollux_bdev_ops_total", &[("bdev", "file"), ("op", "discard")])? > 0.0);
    ensure!(world.daemon.metric("pollux_bdev_ops_total", &[("bdev", "file"), ("op", "flush")])? > 0.0);
    ensure!(world.daemon.metric("pollux_bdev_errors_total", &[("bdev", "file")])? == 0.0);
    Ok(())
}

const CHECK: &str = "echo 3 >/proc/sys/vm/drop_caches && md5sum -c --quiet /mnt/a/sum";

fn sees_luns_come_and_go(world: &mut World) -> Result<()> {
    let add = |lun: u16, bdev: &str| json!({"ctrlr": "vm", "scsi_target_num": LATE, "lun": lun, "bdev_name": bdev});
    world.daemon.rpc("bdev_malloc_create", json!({"name": "base", "block_size": 512, "num_blocks": 16 * MIB / 512}))?;
    world.daemon.rpc("bdev_malloc_create", json!({"name": "other", "block_size": 512, "num_blocks": 8 * MIB / 512}))?;
    let fault = json!({"base_name": "base", "name": "volatile", "volatile_cache": true});
    world.daemon.rpc("bdev_error_create", fault)?;
    world.daemon.rpc("vhost_scsi_controller_add_target", add(0, "volatile"))?;
    world.wait_lun(LATE, 0, true)?;
    world.daemon.rpc("vhost_scsi_controller_add_target", add(1, "other"))?;
    world.wait_lun(LATE, 1, true)?;
    let other = world.disk(LATE, 1)?.context("just seen")?;
    ensure!(other.bytes == 8 * MIB, "{other:?}");
    world.guest.sh(&format!("dd if=/dev/urandom of={} bs=1M count=8 oflag=direct status=none", other.device))?;

    let remove = |lun: Option<u16>| json!({"ctrlr": "vm", "scsi_target_num": LATE, "lun": lun});
    world.daemon.rpc("vhost_scsi_controller_remove_target", remove(Some(1)))?;
    world.wait_lun(LATE, 1, false)?;
    // Beyond 255 Linux counts the bits that say so.
    world.daemon.rpc("vhost_scsi_controller_add_target", add(300, "other"))?;
    world.wait_lun(LATE, 0x4000 + 300, true)?;
    world.daemon.rpc("vhost_scsi_controller_remove_target", remove(Some(300)))?;
    world.wait_lun(LATE, 0x4000 + 300, false)?;
    ensure!(world.disk(LATE, 0)?.is_some(), "only LUN 1 was removed");
    world.daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": LATE}))?;
    world.wait_lun(LATE, 0, false)?;
    // The same place again, for what comes next.
    world.daemon.rpc("vhost_scsi_controller_add_target", add(0, "volatile"))?;
    world.wait_lun(LATE, 0, true)?;
    world.guest.sh(CHECK)?;
    Ok(())
}

/// Writes letters past the page cache without a flush, cuts the power below the disk, tells whether they are still there.
fn survives_power_cut(world: &mut World, device: &str, letter: char, then: &str) -> Result<bool> {
    world.guest.sh(&format!(
        "head -c 65536 /dev/zero | tr '\\0' '{letter}' | dd of={device} bs=64k oflag=direct iflag=fullblock status=none {then}"
    ))?;
    world.daemon.rpc("bdev_error_power_cut", json!({"name": "volatile"}))?;
    let left =
        world.guest.sh(&format!("dd if={device} bs=64k count=1 iflag=direct status=none | tr -cd {letter} | wc -c"))?;
    match left.as_str() {
        "0" => Ok(false),
        "65536" => Ok(true),
        _ => bail!("{left} of 65536 bytes are left"),
    }
}

fn switches_the_write_cache(world: &mut World) -> Result<()> {
    let disk = world.disk(LATE, 0)?.context("the disk with a volatile cache")?;
    let (device, file) = (disk.device, format!("/sys/class/scsi_disk/{}/cache_type", disk.address));
    let rescan = format!("/sys/class/scsi_disk/{}/device/rescan", disk.address);
    let kind = world.guest.sh(&format!("cat {file}"))?;
    ensure!(kind == "write back", "at first: {kind}");
    ensure!(!survives_power_cut(world, &device, 'a', "")?, "with its cache on, the disk loses what was not flushed");
    ensure!(survives_power_cut(world, &device, 'b', "conv=fsync")?, "what was flushed is lost");
    // Linux' own switch, which saves where pages can be saved.
    world.guest.sh(&format!("echo 'write through' >{file}"))?;
    let wce = world.guest.sh(&format!("sdparm --get=WCE --quiet {device}"))?;
    ensure!(wce.contains("WCE           0  [cha: y, def:  1, sav:  0]"), "the disk shows {wce}");
    ensure!(survives_power_cut(world, &device, 'c', "")?, "with its cache off, the disk lost an acknowledged write");
    // An administrator's, of which Linux hears when it looks.
    world.guest.sh(&format!("sdparm --quiet --set=WCE {device} && echo 1 >{rescan}"))?;
    let kind = world.guest.sh(&format!("cat {file}"))?;
    ensure!(kind == "write back", "after sdparm --set=WCE: {kind}");
    ensure!(!survives_power_cut(world, &device, 'd', "")?, "the cache was not switched on again");
    world.guest.sh(&format!("sdparm --quiet --clear=WCE {device} && echo 1 >{rescan}"))?;
    let kind = world.guest.sh(&format!("cat {file}"))?;
    ensure!(kind == "write through", "after sdparm --clear=WCE: {kind}");
    ensure!(survives_power_cut(world, &device, 'e', "")?, "with its cache off, the disk lost an acknowledged write");
    world.guest.sh(&format!("echo 'write back' >{file}"))?;
    Ok(())
}

fn survives_a_reset(world: &mut World) -> Result<()> {
    let session = |world: &World| world.daemon.metric("pollux_sessions", &[("ctrlr", "vm")]);
    world.guest.sh("sync")?;
    ensure!(session(world)? == 1.0);
    world.guest.reset()?;
    ensure!(session(world)? == 1.0, "QEMU keeps its connection over a reset");
    ensure!(world.disks()?.len() == 3, "{:#?}", world.disks()?);
    let disk = world.device(FILE)?;
    world.guest.sh(&format!("mkdir -p /mnt/a && mount {disk} /mnt/a && {CHECK}"))?;
    uses_both_queues(world)
}

/// What has to be the same after a restart.
fn configuration(daemon: &Daemon) -> Result<Value> {
    let bdevs = daemon.rpc("bdev_get_bdevs", Value::Null)?;
    let keys = ["name", "aliases", "uuid", "product_name", "block_size", "num_blocks", "driver_specific"];
    let bdevs: Vec<Value> = bdevs
        .as_array()
        .into_iter()
        .flatten()
        .map(|bdev| keys.iter().map(|&key| bdev[key].clone()).collect())
        .collect();
    let controllers = daemon.rpc("vhost_get_controllers", Value::Null)?;
    let targets: Vec<&Value> = controllers
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|c| [&c["ctrlr"], &c["cpumask"], &c["backend_specific"]["scsi"]])
        .collect();
    Ok(json!({"bdevs": bdevs, "controllers": targets}))
}

fn survives_kill_9_of_the_daemon(world: &mut World) -> Result<()> {
    world
        .guest
        .sh("dd if=/dev/urandom of=/mnt/a/more bs=1M count=4 status=none && md5sum /mnt/a/more >>/mnt/a/sum && sync")?;
    let (before, disks) = (configuration(&world.daemon)?, world.disks()?);
    ensure!(before["bdevs"].as_array().is_some_and(|bdevs| bdevs.len() == 5), "{before:#}");
    world.daemon.kill9();
    if world.parts.can_reconnect() {
        // With I/O under way while nobody is there: it waits.
        let job = world.guest.spawn("dd if=/dev/urandom of=/mnt/a/late bs=1M count=4 oflag=direct status=none")?;
        std::thread::sleep(Duration::from_secs(1));
        world.daemon.restart()?;
        let output = world.guest.wait_job(&job, Duration::from_secs(90))?;
        ensure!(output.status == 0, "{output:?}");
    } else {
        world.daemon.restart()?;
        world.guest = Guest::boot(&world.options)?;
        let disk = world.device(FILE)?;
        world.guest.sh(&format!("mkdir -p /mnt/a && mount {disk} /mnt/a"))?;
    }
    let after = configuration(&world.daemon)?;
    ensure!(after == before, "before: {before:#}\nafter: {after:#}");
    let identities = |disks: &[Disk]| disks.iter().map(|disk| (disk.bytes, disk.wwid.clone())).collect::<Vec<_>>();
    ensure!(identities(&world.disks()?) == identities(&disks), "{disks:#?} became {:#?}", world.disks()?);
    world.guest.sh(CHECK)?;
    world.guest.sh("umount /mnt/a")?;
    let disk = world.device(FILE)?;
    world.guest.sh(&format!("e2fsck -f -n {disk}"))?;
    Ok(())
}

#[test]
fn linux() -> Result<()> {
    let Some(parts) = vm::available()? else { return Ok(()) };
    let mut world = World::new(parts)?;
    type Check = fn(&mut World) -> Result<()>;
    let checks: [(&str, Check); 9] = [
        ("finds its disks", finds_its_disks),
        ("uses both queues", uses_both_queues),
        ("answers the SCSI tools", answers_the_scsi_tools),
        ("discards give space back", discards_give_space_back),
        ("verifies a file system", verifies_a_file_system),
        ("sees LUNs come and go", sees_luns_come_and_go),
        ("switches the write cache", switches_the_write_cache),
        ("survives a reset", survives_a_reset),
        ("survives kill -9 of the daemon", survives_kill_9_of_the_daemon),
    ];
    step(&world, "booted");
    for (name, check) in checks {
        if let Err(error) = check(&mut world) {
            let mut context = format!("{name}\nthe daemon says:\n{}", world.daemon.log_tail());
            if !world.daemon.is_alive() {
                write!(context, "\nand runs no longer")?;
            }
            return Err(error.context(context));
        }
        step(&world, name);
    }
    Ok(())
}
