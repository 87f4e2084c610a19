//! A storm over the real daemon: what is there, and the weather.

mod guest;
mod ledger;
mod parts;
mod tally;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::guest::{DriverOptions, Lun, SCRIBBLE, cdb};
use pollux_tests::rng::Rng;
use serde_json::json;

use crate::common;
use guest::Guest;
use ledger::Ledgers;
use parts::{BLOCK, BLOCKS, DISKS, Part};
pub(crate) use tally::Tally;

/// Controllers of the guests, and of who looks at the disks in the end.
const NAMES: [&str; 4] = ["one", "two", "three", "four"];
const JUDGE: &str = "judge";
/// Devices below the LUNs: two that get slow and stuck as the weather is (a cache over a file, and memory), and a file as it
/// is.
const DEVICES: [&str; DISKS] = ["slow", "stuck", "file"];

/// How long a storm goes on, at most, when not enough has happened yet: a busy machine takes its time.
const LONGEST: Duration = Duration::from_secs(120);

/// What happens beside the commands.
#[derive(Clone, Copy, Default)]
pub(crate) struct Beside {
    /// Task management.
    pub(crate) functions: bool,
    /// Sockets that are closed with commands in flight.
    pub(crate) deaths: bool,
    /// Queues that stop and start.
    pub(crate) stops: bool,
}

/// What all threads share.
struct World {
    daemon: Daemon,
    ledgers: Ledgers,
    beside: Beside,
    tally: Mutex<Tally>,
    over: AtomicBool,
}

fn lun(disk: usize) -> Lun {
    Lun::new(0, disk as u16)
}

impl World {
    fn new(beside: Beside) -> Result<World> {
        let reactors = if std::thread::available_parallelism()?.get() > 1 { "0,1" } else { "0" };
        let daemon = Daemon::start_with(DaemonOptions { reactors: reactors.into(), ..DaemonOptions::default() })?;
        common::ram(&daemon, "memory", BLOCKS)?;
        for name in ["below", "file"] {
            common::file(&daemon, name, BLOCKS * BLOCK as u64)?;
        }
        for (name, base, cache) in [("slow", "below", true), ("stuck", "memory", false)] {
            daemon.rpc("bdev_error_create", json!({"base_name": base, "name": name, "volatile_cache": cache}))?;
        }
        for name in NAMES.into_iter().chain([JUDGE]) {
            daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": name}))?;
            for (lun, bdev) in DEVICES.into_iter().enumerate() {
                let place = json!({"ctrlr": name, "scsi_target_num": 0, "lun": lun, "bdev_name": bdev});
                daemon.rpc("vhost_scsi_controller_add_target", place)?;
            }
        }
        let (ledgers, tally, over) = (Ledgers::default(), Mutex::default(), AtomicBool::new(false));
        Ok(World { daemon, ledgers, beside, tally, over })
    }

    /// Something has happened.
    fn count(&self, add: impl FnOnce(&mut Tally)) {
        add(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What has happened so far.
    fn tally(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests get late or stuck, in ever new ways, until the storm is over: it has lasted so long, and more than `enough`
    /// of everything has happened.
    fn weather(&self, seed: u64, lasts: Duration, enough: &Tally) -> Result<()> {
        let mut rng = Rng::new(seed);
        let began = Instant::now();
        while !self.over.load(Relaxed) {
            let lacks = self.tally().lacks(enough);
            if began.elapsed() >= lasts && lacks.is_empty() {
                break;
            }
            if began.elapsed() >= LONGEST {
                self.clear()?;
                bail!("in {LONGEST:?} there was too little of {lacks:?}; more than this is enough: {enough:?}");
            }
            let name = ["slow", "stuck"][rng.index(2)];
            let io_type = ["read", "write", "write_zeroes", "flush", "all"][rng.index(5)];
            let mut rule = json!({"name": name, "io_type": io_type, "num": rng.between(1, 60)});
            if rng.chance(1, 4) {
                rule["error_type"] = json!("pending");
                rule["num"] = json!(rng.between(1, 4));
            } else {
                rule["error_type"] = json!("delay");
                rule["delay_us"] = json!(rng.between(50, 6000));
            }
            self.daemon.rpc("bdev_error_inject_error", rule)?;
            std::thread::sleep(Duration::from_micros(rng.between(500, 12_000)));
            if rng.chance(1, 2) {
                self.daemon.rpc("bdev_error_resume_pending", json!({"name": name}))?;
            }
        }
        self.clear()
    }

    fn clear(&self) -> Result<()> {
        for name in ["slow", "stuck"] {
            self.daemon
                .rpc("bdev_error_inject_error", json!({"name": name, "io_type": "clear", "error_type": "failure"}))?;
            self.daemon.rpc("bdev_error_resume_pending", json!({"name": name}))?;
        }
        Ok(())
    }

    /// What is on the disks in the end.
    fn judge(&self) -> Result<()> {
        let mut front = common::connect(&self.daemon, JUDGE, &DriverOptions::default())?;
        for (disk, name) in DEVICES.into_iter().enumerate() {
            let content = front.good(lun(disk), &cdb::read10(0, BLOCKS as u16), &[], BLOCKS as usize * BLOCK)?.data;
            let late = content.chunks(BLOCK).position(|block| block.iter().all(|byte| *byte == SCRIBBLE));
            ensure!(
                late.is_none(),
                "{name}: block {late:?} was written from memory of a command that had been answered"
            );
            let mut ledger = self.ledgers.of(disk);
            for part in [Part::Simple, Part::Ordered, Part::Head] {
                let blocks = part.blocks();
                let read = ledger.model.begin_read(blocks.start, blocks.end - blocks.start);
                let bytes = blocks.start as usize * BLOCK..blocks.end as usize * BLOCK;
                ledger.model.end_read(read, &content[bytes]).map_err(|why| anyhow!("{name} in the end: {why}"))?;
            }
            for part in [Part::Ordered, Part::Head, Part::Atomic] {
                ledger.judge_counter(part, &content).with_context(|| format!("{name} in the end"))?;
            }
        }
        Ok(())
    }
}

/// Runs a storm and judges it. It lasts at least so long, and until more has happened than `enough` says.
pub(crate) fn storm(seed: u64, lasts: Duration, beside: Beside, enough: &Tally) -> Result<Tally> {
    let mut world = World::new(beside)?;
    let files = world.daemon.open_files()?;
    let result = std::thread::scope(|scope| {
        let world = &world;
        let guests = NAMES.into_iter().enumerate().map(|(at, name)| {
            scope.spawn(move || {
                let result = Guest::new(name, at as u64 + 1, seed * 16 + at as u64).live(world);
                // One that fails ends it for all.
                world.over.store(result.is_err() || world.over.load(Relaxed), Relaxed);
                result.with_context(|| format!("guest {name}"))
            })
        });
        let guests: Vec<_> = guests.collect();
        let weather = world.weather(seed, lasts, enough);
        world.over.store(true, Relaxed);
        for guest in guests {
            guest.join().map_err(|_| anyhow!("a guest panicked"))??;
        }
        weather.map(|()| world.tally())
    });
    ensure!(world.daemon.is_alive(), "the daemon is gone:\n{}", world.daemon.log_tail());
    let tally = result.with_context(|| format!("seed {seed}; the daemon says:\n{}", world.daemon.log_tail()))?;
    world.judge().with_context(|| format!("seed {seed}"))?;
    common::within(Duration::from_secs(5), || Ok(world.daemon.open_files()? <= files), "descriptors are left behind")?;
    Ok(tally)
}
