//! A Linux guest with ext4 and XFS on thin volumes of a pool whose medium is recorded: what it would hold after a power cut at
//! each acknowledged flush, at each fsync that the guest has heard of, and at random moments between with any part of what was
//! not flushed, is made from the record.
//!
//! Of each such medium `pollux pool check` finds nothing. Of some of them the pool is opened by another daemon and its volumes
//! are read: when ext4's journal is replayed `e2fsck -n` finds nothing, and each file that was fsynced and not yet removed
//! is there as it was written. XFS's log is replayed, and its files are compared, by a guest that mounts one volume after
//! the other; then `xfs_repair -n` finds nothing. And so that all that is worth something: a medium that ignores flushes, or FUA,
//! is found out.

mod common;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use common::{attach, clear_attentions, connect, controller, within};
use pollux_tests::daemon::{self, Daemon, DaemonOptions};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use pollux_tests::record::{Left, Lie, Medium, Record};
use pollux_tests::rng::Rng;
use pollux_tests::vm::{self, Guest, GuestOptions, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const POOL: u64 = 512 * MIB;
/// Volumes, which are called as their file systems and are targets in this order, and their sizes: XFS wants 300 MiB at least.
const VOLUMES: [(&str, u64); 2] = [("ext4", 96 * MIB), ("xfs", 320 * MIB)];
const STEPS: u64 = 32;
/// Afterwards so many files are written with nobody else at work: of each the last promise of the medium is the one that its
/// fsync relied on.
const ALONE: u64 = 3;
/// The pool commits by itself within a second of any change.
const QUIET: Duration = Duration::from_millis(1500);
/// Of so many power cuts, and of so many of those right behind an fsync, one is looked at through a daemon; and of so many
/// of these one by a guest.
const OPENED: usize = 16;
const OPENED_FSYNCED: usize = 3;
const MOUNTED: usize = 3;
/// What a guest has places for.
const MOST_MOUNTED: usize = 14;
const SOON: Duration = Duration::from_secs(30);

/// What is to be there after a power cut.
struct Kept {
    volume: usize,
    /// As `md5sum` says it: checksum and name.
    line: String,
    /// Durable when so many entries had been recorded.
    from: usize,
    /// Not touched before so many had been.
    until: Option<usize>,
}

/// The daemon and the guest that write.
struct World {
    daemon: Daemon,
    guest: Guest,
    kept: Vec<Kept>,
    rng: Rng,
    start: Instant,
}

impl World {
    fn begin() -> Result<World> {
        let start = Instant::now();
        let reactors = if std::thread::available_parallelism()?.get() > 1 { "0,1" } else { "0" };
        let daemon = Daemon::start_with(DaemonOptions { reactors: reactors.into(), ..DaemonOptions::default() })?;
        common::file(&daemon, "disk", POOL)?;
        let record = daemon.disks_dir().join("record");
        daemon.rpc("bdev_error_create", json!({"base_name": "disk", "name": "medium", "record": record}))?;
        daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "medium", "lvs_name": "lvs"}))?;
        for (name, size) in VOLUMES {
            let params = json!({"lvs_name": "lvs", "lvol_name": name, "size": size, "thin_provision": true});
            daemon.rpc("bdev_lvol_create", params)?;
        }
        controller(&daemon, "vm", &["lvs/ext4", "lvs/xfs"])?;
        let vhost = vec![(daemon.socket("vm"), 2)];
        let guest = Guest::boot(&GuestOptions { vhost, ..GuestOptions::default() })?;
        Ok(World { daemon, guest, kept: Vec::new(), rng: Rng::new(5), start })
    }

    fn say(&self, what: &str) {
        println!("{:6.1} s: {what}", self.start.elapsed().as_secs_f32());
    }

    /// Entries of the record so far, and how many of them are in its file.
    fn events(&self) -> Result<(usize, usize)> {
        let shown = self.daemon.rpc("bdev_get_bdevs", json!({"name": "medium"}))?;
        let record = &shown[0]["driver_specific"]["error_disk"]["record"];
        ensure!(record["error"].is_null(), "the record has ended: {record}");
        let number = |name: &str| record[name].as_u64().with_context(|| format!("{name} in {record}"));
        Ok((number("events")? as usize, number("written")? as usize))
    }

    fn makes_file_systems(&mut self) -> Result<()> {
        let device = "device() { scsi-disks | while read -r d address rest; do case $address in *:0:$1:0) echo $d;; esac; done; }";
        let make = "mkfs.ext4 -q $(device 0); mkfs.xfs -q $(device 1)";
        let mount = "mkdir -p /mnt/ext4 /mnt/xfs; mount $(device 0) /mnt/ext4; mount $(device 1) /mnt/xfs; sync";
        self.guest.sh(&format!("set -e; {device}; {make}; {mount}"))?;
        Ok(())
    }

    /// A new file on each volume and one that is overwritten, both fsynced; sometimes one that is not, one that is removed,
    /// a trim, snapshots that come and go.
    fn writes(&mut self, step: u64) -> Result<()> {
        let (old, before) = (self.events()?.0, format!("file{}", step.wrapping_sub(3)));
        let overwrites = step.is_multiple_of(3);
        let removes = step > 3 && step % 4 == 1;
        for kept in &mut self.kept {
            let touched = (removes && kept.line.ends_with(&before)) || (overwrites && kept.line.ends_with("slot"));
            if touched && kept.until.is_none() {
                kept.until = Some(old);
            }
        }
        let mut jobs = Vec::new();
        for (name, _) in VOLUMES {
            let mut script = format!("set -e; cd /mnt/{name}\n");
            if step % 5 == 2 {
                script += "dd if=/dev/urandom of=loose bs=12k count=9 conv=notrunc status=none\n";
            }
            if removes {
                script += &format!("rm {before}\n");
            }
            let count = 1 + self.rng.below(11);
            script += &format!("dd if=/dev/urandom of=file{step} bs=10k count={count} conv=fsync status=none\n");
            script += &format!("md5sum file{step}\n");
            if overwrites {
                script += "dd if=/dev/urandom of=slot bs=16k count=6 conv=notrunc,fsync status=none; md5sum slot\n";
            }
            if step % 8 == 7 {
                script += &format!("fstrim /mnt/{name}\n");
            }
            jobs.push(self.guest.spawn(&script)?);
        }
        if step % 6 == 4 {
            self.snapshots(step)?;
        }
        let mut lines = Vec::new();
        for (volume, job) in jobs.iter().enumerate() {
            let output = self.guest.wait_job(job, Duration::from_secs(60))?;
            ensure!(output.status == 0, "step {step}: {output:?}");
            lines.extend(output.stdout.lines().map(|line| (volume, line.to_owned())));
        }
        let from = self.events()?.0;
        self.kept.extend(lines.into_iter().map(|(volume, line)| Kept { volume, line, from, until: None }));
        Ok(())
    }

    /// Waits until nobody changes anything.
    fn is_quiet(&self) -> Result<()> {
        let ends = Instant::now() + SOON;
        let (mut events, mut since) = (self.events()?.0, Instant::now());
        while since.elapsed() < QUIET {
            ensure!(Instant::now() < ends, "somebody writes all the time");
            std::thread::sleep(Duration::from_millis(50));
            let now = self.events()?.0;
            if now != events {
                (events, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// New files on the first volume, each fsynced, with the other one not mounted any more. Returns how many entries had been
    /// recorded before.
    fn writes_alone(&mut self) -> Result<usize> {
        self.guest.sh("sync; umount /mnt/xfs")?;
        self.is_quiet()?;
        let before = self.events()?.0;
        for nth in 1..=ALONE {
            let write = format!("dd if=/dev/urandom of=alone{nth} bs=10k count=5 conv=fsync status=none");
            let line = self.guest.sh(&format!("set -e; cd /mnt/ext4; {write}; md5sum alone{nth}"))?;
            let from = self.events()?.0;
            self.kept.push(Kept { volume: 0, line, from, until: None });
        }
        Ok(before)
    }

    /// Both at one instant; those before the last ones go.
    fn snapshots(&self, step: u64) -> Result<()> {
        let names = VOLUMES.map(|(name, _)| format!("{name}-{step}"));
        let volumes = VOLUMES.map(|(name, _)| format!("lvs/{name}"));
        self.daemon.rpc("bdev_lvol_snapshot_group", json!({"lvol_names": volumes, "snapshot_names": names}))?;
        if let Some(gone) = step.checked_sub(12).filter(|gone| gone % 6 == 4) {
            for (name, _) in VOLUMES {
                self.daemon.rpc("bdev_lvol_delete", json!({"name": format!("lvs/{name}-{gone}")}))?;
            }
        }
        Ok(())
    }

    /// The guest and the daemon end; the record stays.
    fn ends(self) -> Result<Written> {
        let World { mut daemon, guest, kept, start, .. } = self;
        drop(guest);
        ensure!(daemon.terminate()?.success(), "the daemon ends badly:\n{}", daemon.log_tail());
        let record = Record::open(&daemon.disks_dir().join("record"))?;
        Ok(Written { daemon, record, kept, start })
    }
}

/// What is left to judge.
struct Written {
    /// Keeps its folder.
    daemon: Daemon,
    record: Record,
    kept: Vec<Kept>,
    start: Instant,
}

impl Written {
    /// The numbers of entries that were there when the guest had heard of an fsync.
    fn fsyncs(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.kept.iter().map(|kept| kept.from).collect();
        all.dedup();
        all
    }

    /// Power cuts behind an entry, in their order.
    fn cuts(&self, first: usize, rng: &mut Rng) -> Vec<Cut> {
        let mut cuts = Vec::new();
        let mut cut = |at, fsynced, any: bool, rng: &mut Rng| {
            let left = if any { Left::Seeded(rng.next_u64()) } else { Left::Nothing };
            cuts.push(Cut { at, left, fsynced });
        };
        let mut last = first;
        for at in self.record.acknowledged().into_iter().filter(|at| *at >= first) {
            // Right behind it, or between it and the one before.
            match rng.below(3) {
                0 if at > last + 1 => cut(rng.between(last as u64, at as u64 - 1) as usize, false, true, rng),
                drawn => cut(at, false, drawn == 1, rng),
            }
            last = at;
        }
        for at in self.fsyncs() {
            let any = rng.chance(1, 2);
            cut(at, true, any, rng);
        }
        cuts.sort_by_key(|cut| cut.at);
        cuts
    }

    /// What has to be on a volume after so many entries, as `md5sum -c` wants it.
    fn sums(&self, volume: usize, at: usize) -> String {
        let is_there =
            |kept: &&Kept| kept.volume == volume && kept.from <= at && kept.until.is_none_or(|until| at <= until);
        self.kept.iter().filter(is_there).map(|kept| format!("{}\n", kept.line)).collect()
    }
}

/// A power cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// So many entries had been recorded.
    at: usize,
    /// Of what was not durable.
    left: Left,
    /// The guest has just heard of an fsync.
    fsynced: bool,
}

/// A daemon that opens what power cuts have left.
struct Judge {
    daemon: Daemon,
    front: FrontEnd,
    dir: tempfile::TempDir,
}

impl Judge {
    fn new() -> Result<Judge> {
        let daemon = Daemon::start()?;
        controller(&daemon, "judge", &[])?;
        let front = connect(&daemon, "judge", &DriverOptions::default())?;
        Ok(Judge { daemon, front, dir: tempfile::Builder::new().prefix("pollux-cuts-").tempdir()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Opens the pool on a medium and reads its volumes into files.
    fn volumes(&mut self, image: &Path, to: &[PathBuf; 2]) -> Result<()> {
        self.daemon.rpc("bdev_uring_create", json!({"name": "image", "filename": image, "block_size": 512}))?;
        let daemon = &self.daemon;
        let listed = || Ok(!daemon.rpc("bdev_lvol_get_lvols", Value::Null)?.as_array().is_none_or(Vec::is_empty));
        within(SOON, listed, "the pool is not opened")?;
        for (((target, (name, size)), to), lun) in (0..).zip(VOLUMES).zip(to).zip([0, 1].map(|t| Lun::new(t, 0))) {
            attach(&self.daemon, "judge", target, &format!("lvs/{name}"))?;
            clear_attentions(&mut self.front, lun)?;
            let file = File::create(to)?;
            file.set_len(size)?;
            self.read(&format!("lvs/{name}"), lun, &file)?;
            let params = json!({"ctrlr": "judge", "scsi_target_num": target});
            self.daemon.rpc("vhost_scsi_controller_remove_target", params)?;
        }
        self.daemon.rpc("bdev_delete", json!({"name": "image"}))?;
        Ok(())
    }

    /// Reads what the map says is there.
    fn read(&mut self, volume: &str, lun: Lun, file: &File) -> Result<()> {
        const PIECE: u64 = 128 << 10;
        let mut next = Some(0);
        while let Some(offset) = next {
            let map = self.daemon.rpc("bdev_lvol_get_allocated", json!({"name": volume, "offset": offset}))?;
            for extent in map["extents"].as_array().context("extents")? {
                let number = |name: &str| extent[name].as_u64().context("a number");
                let (mut at, end) = (number("offset")?, number("offset")? + number("length")?);
                while at < end {
                    let len = PIECE.min(end - at);
                    let read = cdb::read16(at / 512, (len / 512) as u32);
                    file.write_all_at(&self.front.good(lun, &read, &[], len as usize)?.data, at)?;
                    at += len;
                }
            }
            next = map["next_offset"].as_u64();
        }
        Ok(())
    }

    /// Replays ext4's journal, checks it and compares the files.
    fn judge_ext4(&self, image: &Path, sums: &str) -> Result<()> {
        let disk = image.to_str().context("a path that is text")?;
        tool("e2fsck", &["-f", "-y", "-E", "journal_only", disk], &[0, 1])?;
        tool("e2fsck", &["-f", "-n", disk], &[0])?;
        let files = self.path("files");
        std::fs::create_dir(&files)?;
        tool("debugfs", &["-R", &format!("rdump / {}", files.display()), disk], &[0])?;
        let mut check = Command::new("md5sum")
            .args(["-c", "--quiet"])
            .current_dir(&files)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        check.stdin.take().context("a pipe")?.write_all(sums.as_bytes())?;
        let compared = check.wait()?;
        std::fs::remove_dir_all(&files)?;
        ensure!(sums.is_empty() || compared.success(), "files that were fsynced are not there as they were");
        Ok(())
    }
}

fn pool_is_clean(image: &Path) -> Result<()> {
    let output = Command::new(daemon::binary()?).args(["pool", "check"]).arg(image).output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "pollux pool check: {}\n{}", output.status, String::from_utf8_lossy(&said));
    Ok(())
}

/// An XFS that a guest is to look at.
struct ForGuest {
    image: PathBuf,
    sums: String,
    name: String,
}

/// Everything about one power cut but XFS.
fn judge(judge: &mut Judge, written: &Written, medium: &Medium<'_>, cut: Cut, opens: bool) -> Result<()> {
    let image = judge.path("image");
    medium.crash(cut.left, &image)?;
    pool_is_clean(&image)?;
    if opens {
        let to = VOLUMES.map(|(name, _)| judge.path(name));
        judge.volumes(&image, &to)?;
        judge.judge_ext4(&to[0], &written.sums(0, cut.at)).context("ext4")?;
    }
    Ok(())
}

/// Looks at power cuts behind an entry; returns the XFS volumes that a guest is to look at.
fn judge_cuts(written: &Written, first: usize) -> Result<Vec<ForGuest>> {
    let mut by = Judge::new()?;
    let mut medium = Medium::new(&written.record, &by.path("durable"), Lie::None)?;
    let cuts = written.cuts(first, &mut Rng::new(17));
    let (mut fsynced, mut opened, mut undecided, mut for_guest) = (0, 0, 0, Vec::new());
    for (nth, cut) in cuts.iter().enumerate() {
        medium.go_to(cut.at)?;
        undecided += usize::from(medium.undecided() > 0);
        fsynced += usize::from(cut.fsynced);
        let opens = if cut.fsynced { fsynced % OPENED_FSYNCED == 0 } else { nth % OPENED == 0 };
        judge(&mut by, written, &medium, *cut, opens).with_context(|| format!("{cut:?}"))?;
        opened += usize::from(opens);
        if opens && opened % MOUNTED == 0 && for_guest.len() < MOST_MOUNTED {
            let image = written.daemon.disks_dir().join(format!("xfs-{nth}"));
            std::fs::rename(by.path("xfs"), &image)?;
            for_guest.push(ForGuest { image, sums: written.sums(1, cut.at), name: format!("{cut:?}") });
        }
    }
    let (seconds, all) = (written.start.elapsed().as_secs_f32(), cuts.len());
    println!("{seconds:6.1} s: {all} power cuts, {undecided} of them with something undecided; {opened} pools opened");
    ensure!(all >= 60 && undecided > 0 && opened >= 8 && for_guest.len() >= 2, "too few are looked at");
    Ok(for_guest)
}

/// Mounts each, so that its log is replayed, compares, unmounts, checks.
fn judge_xfs(volumes: &[ForGuest]) -> Result<()> {
    let drives = volumes.iter().map(|volume| volume.image.clone()).collect();
    let mut guest = Guest::boot(&GuestOptions { drives, ..GuestOptions::default() })?;
    guest.sh("modprobe xfs; mkdir -p /mnt/look")?;
    for (nth, volume) in volumes.iter().enumerate() {
        let script = format!(
            "set -e; d=$(grep -lx drive{nth} /sys/block/vd*/serial); d=/dev/$(basename $(dirname $d)); mount $d /mnt/look
             cd /mnt/look; cat >/tmp/sums <<'END'\n{}END\n [ ! -s /tmp/sums ] || md5sum -c --quiet /tmp/sums; cd /
             umount /mnt/look; xfs_repair -n $d 2>&1",
            volume.sums
        );
        guest.sh(&script).with_context(|| format!("xfs, {}", volume.name))?;
    }
    guest.power_off()
}

/// A medium that breaks a promise is found out by one of the files that were written with nobody else at work. Where others
/// are, a promise to one of them, which comes later and is not broken, keeps what was broken before.
fn is_found_out(written: &Written, alone: usize, lie: Lie) -> Result<()> {
    let mut by = Judge::new()?;
    let mut medium = Medium::new(&written.record, &by.path("durable"), lie)?;
    for at in written.fsyncs().into_iter().filter(|at| *at > alone) {
        medium.go_to(at)?;
        let cut = Cut { at, left: Left::Nothing, fsynced: true };
        if let Err(found) = judge(&mut by, written, &medium, cut, true) {
            let found = format!("{found:#}");
            println!("{lie:?} is found out: {}", found.lines().take(3).collect::<Vec<_>>().join(" / "));
            return Ok(());
        }
    }
    bail!("nobody misses {lie:?}")
}

#[test]
fn what_was_fsynced_outlives_a_power_cut_at_any_flush() -> Result<()> {
    let Some(_) = vm::available()? else { return Ok(()) };
    let mut world = World::begin()?;
    world.say("booted");
    world.makes_file_systems()?;
    world.say("file systems made");
    let first = world.events()?.0;
    for step in 1..=STEPS {
        world.writes(step)?;
    }
    let alone = world.writes_alone()?;
    let ends = Instant::now() + SOON;
    while world.events()?.0 > world.events()?.1 {
        ensure!(Instant::now() < ends, "the record is not written");
    }
    world.say(&format!("{} files written, {} entries recorded", world.kept.len(), world.events()?.0));
    let written = world.ends()?;
    let for_guest = judge_cuts(&written, first)?;
    judge_xfs(&for_guest)?;
    println!("{:6.1} s: {} XFS are whole", written.start.elapsed().as_secs_f32(), for_guest.len());
    [Lie::Flushes, Lie::Fua].into_iter().try_for_each(|lie| is_found_out(&written, alone, lie))
}
