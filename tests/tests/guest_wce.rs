//! A guest that has switched the write cache off, on a medium that loses everything unsynced at random instants: nothing
//! that was acknowledged is lost.
//!
//! A real Linux writes numbered records with direct I/O, never flushes, and says on its serial console what was
//! acknowledged. Below are two fault devices with volatile caches over files. Both lose what they have not written
//! through, by an RPC that cuts their power, or with the daemon, whose memory the caches are, by kill -9. Then each file
//! is held against what the console had said before. On one disk the guest has set WCE=0, by `sdparm` first (which no
//! restart survives) and then by `cache_type` (which Linux saves). The other one keeps WCE=1 and has to have lost
//! something every time: it is the proof that the test can fail.
//!
//! Each disk has a controller of its own with one queue, and over a kill -9 one writer: of several requests in flight QEMU
//! cannot know which were done when the daemon died, and asks for the last ones again, whatever they were.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::records::{BLOCK, Ledger, Report, Stage, held};
use pollux_tests::rng::Rng;
use pollux_tests::vm::{self, Guest, GuestOptions, JobId};
use serde_json::json;

/// Blocks of each disk.
const BLOCKS: usize = 768;
const SEED: u64 = 20;
/// How long writing may stand still after a restart.
const PATIENCE: Duration = Duration::from_secs(30);

/// Targets, and numbers in reports.
const THROUGH: usize = 0;
const BACK: usize = 1;
const NAMES: [&str; 2] = ["through", "back"];

struct World {
    daemon: Daemon,
    guest: Guest,
    ledgers: [Ledger; 2],
    /// How much of the console is read.
    read: usize,
    rng: Rng,
    start: Instant,
}

/// An image with the writer in it.
fn programs(dir: &Path) -> Result<PathBuf> {
    let (folder, image) = (dir.join("programs"), dir.join("programs.img"));
    std::fs::create_dir(&folder)?;
    std::fs::copy(env!("CARGO_BIN_EXE_record_writer"), folder.join("writer"))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/make-image.sh");
    let output = Command::new(script).args([&folder, &image]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(image)
}

impl World {
    fn new(dir: &Path, reconnect: bool) -> Result<Self> {
        let start = Instant::now();
        let reactors = if std::thread::available_parallelism()?.get() > 1 { "0,1" } else { "0" };
        let daemon = Daemon::start_with(DaemonOptions { reactors: reactors.into(), ..DaemonOptions::default() })?;
        for (target, name) in NAMES.into_iter().enumerate() {
            let file = daemon.disks_dir().join(name);
            File::create(&file)?.set_len((BLOCKS * BLOCK) as u64)?;
            let base = format!("{name}-file");
            daemon.rpc("bdev_aio_create", json!({"name": base, "filename": file, "block_size": BLOCK}))?;
            daemon.rpc("bdev_error_create", json!({"base_name": base, "name": name, "volatile_cache": true}))?;
            daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": name}))?;
            let target = json!({"ctrlr": name, "scsi_target_num": target, "bdev_name": name});
            daemon.rpc("vhost_scsi_controller_add_target", target)?;
        }
        let mut guest = Guest::boot(&GuestOptions {
            vhost: NAMES.map(|name| (daemon.socket(name), 1)).into(),
            drives: vec![programs(dir)?],
            reconnect_ms: reconnect.then_some(100),
            ..GuestOptions::default()
        })?;
        // The console is for reports alone.
        guest.sh("dmesg -n 1; mkdir -p /mnt/programs && mount -o ro /dev/vdb /mnt/programs")?;
        let ledgers = [Ledger::new(BLOCKS), Ledger::new(BLOCKS)];
        let mut world = World { daemon, guest, ledgers, read: 0, rng: Rng::new(SEED), start };
        world.listen()?;
        world.step("booted");
        Ok(world)
    }

    fn step(&self, what: &str) {
        let counts = self.ledgers.each_ref().map(|ledger| ledger.acknowledged);
        println!("{:6.1} s: {what}; {counts:?} records are acknowledged", self.start.elapsed().as_secs_f32());
    }

    /// Device and address of a disk in the guest.
    fn disk(&mut self, target: usize) -> Result<(String, String)> {
        let line = self.guest.sh(&format!("scsi-disks | grep ' [0-9]*:0:{target}:0 '"))?;
        let mut words = line.split(' ').map(str::to_owned);
        Ok((words.next().context("a device")?, words.next().context("an address")?))
    }

    /// What the console says that was not taken in, and how long it is.
    fn heard(&self) -> (Vec<Report>, usize) {
        let console = self.guest.console();
        let new = &console[self.read..];
        let whole = new.rfind('\n').map_or(0, |at| at + 1);
        (new[..whole].lines().filter_map(|line| line.parse().ok()).collect(), whole)
    }

    fn note(&mut self, report: &Report) -> Result<()> {
        self.ledgers.get_mut(usize::from(report.disk)).context("a third disk")?.note(report)
    }

    /// Takes in what the console says.
    fn listen(&mut self) -> Result<()> {
        let (reports, len) = self.heard();
        self.read += len;
        reports.iter().try_for_each(|report| self.note(report))
    }

    /// Takes in what the console still has to say, when nothing is acknowledged any more.
    fn drain(&mut self) -> Result<()> {
        let mut quiet = 0;
        while quiet < 3 {
            std::thread::sleep(Duration::from_millis(30));
            let before = self.read;
            self.listen()?;
            quiet = if self.read == before { quiet + 1 } else { 0 };
        }
        Ok(())
    }

    fn sleep(&mut self, from_ms: u64, to_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.rng.between(from_ms, to_ms)));
    }

    /// Holds the files against what was acknowledged when the console was listened to.
    fn judge(&mut self) -> Result<()> {
        let file = |name: &str| held(&std::fs::read(self.daemon.disks_dir().join(name))?);
        let disks = [file(NAMES[THROUGH])?, file(NAMES[BACK])?];
        // Zeroes that are there by now may have been on their way since then.
        let (reports, _) = self.heard();
        reports.iter().filter(|report| report.stage == Stage::Zeroing).try_for_each(|report| self.note(report))?;
        self.lost(&disks)
    }

    fn lost(&self, disks: &[Vec<u64>; 2]) -> Result<()> {
        let lost = self.ledgers[THROUGH].lost(&disks[THROUGH]);
        let some = &lost[..lost.len().min(5)];
        ensure!(lost.is_empty(), "{} acknowledged blocks are lost with WCE=0: {some:#?}", lost.len());
        let lost = self.ledgers[BACK].lost(&disks[BACK]).len();
        ensure!(lost > 0, "nothing is lost with WCE=1: the medium is not volatile");
        Ok(())
    }

    /// Waits until so many further records are acknowledged on both disks.
    fn progress(&mut self, records: u64) -> Result<()> {
        let aims = self.ledgers.each_ref().map(|ledger| ledger.acknowledged + records);
        let end = Instant::now() + PATIENCE;
        while self.ledgers.iter().zip(aims).any(|(ledger, aim)| ledger.acknowledged < aim) {
            if Instant::now() > end {
                let says = self.guest.run("dmesg | tail -n 20", Duration::from_secs(20)).map(|output| output.stdout);
                bail!("the guest does not go on writing\n{}", says.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5));
            self.listen()?;
        }
        Ok(())
    }

    /// The medium loses power at random instants; the daemon lives on.
    fn power_cuts(&mut self, rounds: u32) -> Result<()> {
        for round in 0..rounds {
            self.sleep(0, 150);
            self.listen()?;
            for name in NAMES {
                let seed = (round % 3 == 2).then_some(round);
                self.daemon.rpc("bdev_error_power_cut", json!({"name": name, "seed": seed}))?;
            }
            self.judge().with_context(|| format!("power cut {round}"))?;
            self.progress(1)?;
        }
        Ok(())
    }

    /// The daemon dies at random instants, and the caches with it.
    fn deaths(&mut self, rounds: u32) -> Result<()> {
        for round in 0..rounds {
            self.sleep(0, 500);
            self.daemon.kill9();
            self.drain()?;
            self.judge().with_context(|| format!("kill -9 {round}"))?;
            self.daemon.restart()?;
            self.progress(3)?;
        }
        Ok(())
    }

    /// What the guest itself reads.
    fn look(&mut self) -> Result<()> {
        let mut disks = [Vec::new(), Vec::new()];
        for target in [THROUGH, BACK] {
            let (device, _) = self.disk(target)?;
            let look =
                format!("/mnt/programs/writer --look --device {device} --disk {target} --blocks {BLOCKS} --seed 0");
            let numbers = self.guest.sh(&look)?;
            disks[target] = numbers.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        }
        self.lost(&disks).context("as the guest reads it")
    }
}

/// Starts a writer on each disk, with numbers from `from` on.
fn start_writers(world: &mut World, threads: u32, from: u64) -> Result<[JobId; 2]> {
    let mut start = |target| {
        let (device, _) = world.disk(target)?;
        world.guest.spawn(&format!(
            "exec /mnt/programs/writer --device {device} --disk {target} --blocks {BLOCKS} --seed {SEED} \
             --threads {threads} --from {from}"
        ))
    };
    Ok([start(THROUGH)?, start(BACK)?])
}

fn stop_writers(world: &mut World, jobs: &[JobId]) -> Result<()> {
    world.guest.sh("pkill -x writer")?;
    for job in jobs {
        world.guest.wait_job(job, Duration::from_secs(20))?;
    }
    world.drain()
}

#[test]
fn nothing_acknowledged_is_lost_without_a_write_cache() -> Result<()> {
    let Some(parts) = vm::available()? else { return Ok(()) };
    let dir = tempfile::Builder::new().prefix("pollux-wce-").tempdir()?;
    let mut world = World::new(dir.path(), parts.can_reconnect())?;
    let result = run(&mut world, parts.can_reconnect());
    result.with_context(|| format!("the daemon says:\n{}", world.daemon.log_tail()))
}

fn run(world: &mut World, reconnects: bool) -> Result<()> {
    let (through, address) = world.disk(THROUGH)?;
    world.guest.sh(&format!("sdparm --quiet --clear=WCE {through}"))?;
    let jobs = start_writers(world, 3, 1)?;
    world.progress(20)?;
    world.power_cuts(40)?;
    world.step("40 power cuts after sdparm --clear=WCE");
    world.guest.sh(&format!("echo 'write through' >/sys/class/scsi_disk/{address}/cache_type"))?;
    world.power_cuts(10)?;
    stop_writers(world, &jobs)?;
    if reconnects {
        let jobs = start_writers(world, 1, 1_000_000)?;
        world.progress(5)?;
        world.deaths(20)?;
        world.step("20 deaths of the daemon after cache_type was written");
        stop_writers(world, &jobs)?;
    }
    // The last one finds nobody writing, so that what the guest reads is what was left.
    if reconnects {
        world.daemon.kill9();
        world.judge()?;
        world.daemon.restart()?;
    } else {
        NAMES.iter().try_for_each(|name| world.daemon.rpc("bdev_error_power_cut", json!({"name": name})).map(drop))?;
    }
    world.look()?;
    let [through, back] = world.ledgers.each_ref().map(|ledger| ledger.acknowledged);
    ensure!(through > 300 && back > 300, "only {through} and {back} records were acknowledged");
    world.step("done");
    Ok(())
}
