//! The `file` device on a simulated disk: random requests while the kernel errs, falls short and dawdles, and power cuts
//! after every change.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_bdev::{Device as _, File, FileSpec, StatsSet};
use pollux_core::{Bdev, IoError};
use pollux_tests::model::Model;
use pollux_tests::sim::{BdevLoad, DiskId, Effect, Fault, Kind, Mix, SimDisk, SimWorld, Switches};

const BYTES: u64 = 128 << 10;

/// A file (for the device to look at) whose content is the world's.
struct Medium {
    world: SimWorld,
    path: tempfile::NamedTempFile,
    id: DiskId,
}

impl Medium {
    fn new(seed: u64) -> Result<Self> {
        let path = tempfile::NamedTempFile::new()?;
        path.as_file().set_len(BYTES)?;
        let id = DiskId::of(path.as_file())?;
        let world = SimWorld::new(seed);
        world.add_disk(id, SimDisk::new(BYTES));
        Ok(Medium { world, path, id })
    }

    fn device(&self) -> Result<File> {
        self.device_with(&Arc::new(StatsSet::new()))
    }

    /// A device that counts there.
    fn device_with(&self, stats: &Arc<StatsSet>) -> Result<File> {
        let spec = FileSpec { block_size: Some(512), ..FileSpec::new("disk", &self.path.path().to_string_lossy()) };
        Ok(File::new(&spec, stats.clone())?)
    }

    fn model(&self) -> Model {
        Model::new(512, BYTES / 512)
    }
}

fn seeds(few: u64) -> std::ops::Range<u64> {
    let first = std::env::var("POLLUX_SIM_SEED").ok().and_then(|n| n.parse().ok());
    let count = std::env::var("POLLUX_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(few);
    first.map_or(0..count, |first| first..first + 1)
}

fn for_seeds(few: u64, test: impl Fn(u64) -> Result<()>) -> Result<()> {
    seeds(few)
        .try_for_each(|seed| test(seed).with_context(|| format!("seed {seed} (POLLUX_SIM_SEED={seed} repeats it)")))
}

#[test]
fn random_requests_read_what_was_written() -> Result<()> {
    for_seeds(20, |seed| {
        let medium = Medium::new(seed)?;
        let (mut model, mix) = (medium.model(), Mix::default());
        let mut load = BdevLoad::new(&medium.world, &medium.device()?, &mix, seed);
        load.run(&mut model, &mix, 400).map_err(|why| anyhow!(why))?;
        ensure!(load.errors.is_empty(), "{:?}", load.errors);
        ensure!(load.ended.0 > 300, "{:?}", load.ended);
        load.close();
        Ok(())
    })
}

#[test]
fn transfers_that_fall_short_are_finished() -> Result<()> {
    for_seeds(20, |seed| {
        let medium = Medium::new(seed)?;
        for kind in [Kind::Read, Kind::Write] {
            medium.world.fault(Fault { percent: 40, ..Fault::always(kind, Effect::Short) });
        }
        let (mut model, mix) = (medium.model(), Mix::default());
        let mut load = BdevLoad::new(&medium.world, &medium.device()?, &mix, seed);
        load.run(&mut model, &mix, 300).map_err(|why| anyhow!(why))?;
        ensure!(load.errors.is_empty(), "{:?}", load.errors);
        load.close();
        Ok(())
    })
}

#[test]
fn errors_delays_and_cancels_cost_the_requests_they_meet() -> Result<()> {
    let aborted = std::cell::Cell::new(0);
    for_seeds(20, |seed| {
        let medium = Medium::new(seed)?;
        for (kind, errno) in [(Kind::Read, libc::EIO), (Kind::Write, libc::ENOSPC), (Kind::Fallocate, libc::EIO)] {
            medium.world.fault(Fault { percent: 8, ..Fault::always(kind, Effect::Error(errno)) });
            medium.world.fault(Fault { percent: 8, ..Fault::always(kind, Effect::Delay(3_000_000)) });
        }
        let (mut model, mix) = (medium.model(), Mix { cancel: 10, ..Mix::default() });
        let mut load = BdevLoad::new(&medium.world, &medium.device()?, &mix, seed);
        load.run(&mut model, &mix, 300).map_err(|why| anyhow!(why))?;
        let expected = [IoError::Medium, IoError::NoSpace, IoError::Aborted];
        ensure!(load.errors.iter().all(|e| expected.contains(e)), "{:?}", load.errors);
        ensure!(load.errors.contains(&IoError::Medium), "no error got through");
        aborted.set(aborted.get() + load.errors.iter().filter(|e| **e == IoError::Aborted).count());
        medium.world.heal();
        load.drain(&mut model).map_err(|why| anyhow!(why))?;
        load.close();
        Ok(())
    })?;
    ensure!(aborted.get() > 0, "no cancel ever worked");
    Ok(())
}

#[test]
fn misaligned_requests_of_all_lengths_share_the_bounce_buffers() -> Result<()> {
    let aborted = std::cell::Cell::new(0);
    for_seeds(20, |seed| {
        let medium = Medium::new(seed)?;
        for kind in [Kind::Read, Kind::Write] {
            medium.world.fault(Fault { percent: 20, ..Fault::always(kind, Effect::Short) });
            medium.world.fault(Fault { percent: 20, ..Fault::always(kind, Effect::Delay(1_000_000)) });
        }
        // Most are longer than a small buffer, and of the 32 in flight more than there are large ones.
        let mix = Mix { cancel: 4, blocks_max: 80, misaligned: 4, zeroes: 1, discard: 1, flush: 2, ..Mix::default() };
        let stats = Arc::new(StatsSet::new());
        let device = medium.device_with(&stats)?;
        let mut model = medium.model();
        let mut load = BdevLoad::new(&medium.world, &device, &mix, seed);
        load.run(&mut model, &mix, 400).map_err(|why| anyhow!(why))?;
        ensure!(load.errors.iter().all(|error| *error == IoError::Aborted), "{:?}", load.errors);
        aborted.set(aborted.get() + load.errors.len());
        let direct = device.warnings().is_empty();
        ensure!(!direct || stats.snapshot().bounces > 200, "{} bounced", stats.snapshot().bounces);
        load.close();
        Ok(())
    })?;
    ensure!(aborted.get() > 0, "no cancel ever worked");
    Ok(())
}

#[test]
fn a_kernel_that_cannot_punch_or_zero_gets_zeroes_written() -> Result<()> {
    for_seeds(10, |seed| {
        let medium = Medium::new(seed)?;
        medium.world.fault(Fault::always(Kind::Fallocate, Effect::Error(libc::EOPNOTSUPP)));
        let (mut model, mix) = (medium.model(), Mix { discard: 0, zeroes: 20, ..Mix::default() });
        let mut load = BdevLoad::new(&medium.world, &medium.device()?, &mix, seed);
        load.run(&mut model, &mix, 200).map_err(|why| anyhow!(why))?;
        ensure!(load.errors.is_empty(), "{:?}", load.errors);
        load.close();
        Ok(())
    })
}

#[test]
fn a_failed_flush_stays_one_until_the_file_is_opened_again() -> Result<()> {
    let medium = Medium::new(9)?;
    let device = medium.device()?;
    let (mut model, mix) = (medium.model(), Mix { flush: 40, ..Mix::default() });
    let mut load = BdevLoad::new(&medium.world, &device, &mix, 9);
    medium.world.fault(Fault::once(Kind::Sync, Effect::Error(libc::EIO)));
    load.run(&mut model, &mix, 100).map_err(|why| anyhow!(why))?;
    ensure!(device.flush_failed(), "the device forgot");
    let before = load.errors.len();
    let only_flushes = Mix { read: 0, write: 0, flush: 1, zeroes: 0, discard: 0, ..mix };
    load.run(&mut model, &only_flushes, 20).map_err(|why| anyhow!(why))?;
    ensure!(load.errors.len() == before + 20, "{} of 20 flushes failed", load.errors.len() - before);
    load.close();
    drop(device);
    let mut load = BdevLoad::new(&medium.world, &medium.device()?, &mix, 10);
    load.run(&mut model, &only_flushes, 20).map_err(|why| anyhow!(why))?;
    ensure!(load.errors.is_empty(), "{:?}", load.errors);
    Ok(())
}

/// Cuts the power after `stop` changes; the oracle's opinion of what is left, `None` if the load ended before.
fn crash(seed: u64, stop: u64, switches: Switches) -> Result<Option<Result<(), String>>> {
    let medium = Medium::new(seed)?;
    medium.world.set_switches(switches);
    medium.world.stop_after(stop);
    let (mut model, mix) = (medium.model(), Mix { blocks_max: 16, ..Mix::default() });
    let mut load = BdevLoad::new(&medium.world, &medium.device()?, &mix, seed);
    let run = load.run(&mut model, &mix, 70);
    if medium.world.powered() {
        return Ok(None);
    }
    medium.world.crash(seed ^ stop);
    Ok(Some(run.and_then(|()| medium.world.disk(medium.id, |disk| model.crashed(disk.visible())))))
}

#[test]
fn what_was_acknowledged_as_durable_survives_a_crash_after_every_change() -> Result<()> {
    let mut crashes = 0;
    for seed in seeds(4) {
        for stop in 1.. {
            let Some(verdict) = crash(seed, stop, Switches::default())? else { break };
            verdict.map_err(|why| anyhow!("seed {seed}, after change {stop}: {why}"))?;
            crashes += 1;
        }
    }
    ensure!(crashes > 50, "{crashes} crashes");
    Ok(())
}

#[test]
fn the_sweep_notices_a_flush_and_a_fua_that_do_nothing() -> Result<()> {
    for switches in [
        Switches { sync_does_nothing: true, ..Switches::default() },
        Switches { dsync_does_nothing: true, ..Switches::default() },
    ] {
        let mut losses = 0;
        for stop in 1.. {
            let Some(verdict) = crash(1, stop, switches)? else { break };
            losses += usize::from(verdict.is_err());
        }
        ensure!(losses > 0, "{switches:?} was not noticed");
    }
    Ok(())
}

#[test]
fn the_shape_is_that_of_the_file() -> Result<()> {
    let medium = Medium::new(0)?;
    let shape = medium.device()?.shape();
    ensure!(shape.bytes() == BYTES && shape.block_size == 512 && shape.volatile_cache, "{shape:?}");
    Ok(())
}
