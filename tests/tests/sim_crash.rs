//! Power cuts under a guest: the world stops after each change of the disk in turn, what was not synced is kept, lost or
//! torn, and everything that was acknowledged as durable has to be there. The whole data path: front end, socket,
//! controller, LUN, and the `file` device. Also with a flush that does nothing, to see that these tests would notice.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_bdev::{File, FileSpec, StatsSet};
use pollux_core::Bdev;
use pollux_tests::guest::{ScsiMix, cdb};
use pollux_tests::sim::{DiskId, SimAppliance, SimDisk, SimGuest, SimWorld, Switches, backing, unit_of};

const BLOCKS: u64 = 64;

/// How a guest asks for durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// SYNCHRONIZE CACHE and FUA.
    Flush,
    /// WCE=0 and nothing else.
    WriteThrough,
}

/// How a run ended.
enum End {
    /// The power failed and the oracle looked at what was left.
    Crashed(Result<()>),
    /// The guest had done everything before.
    Finished,
}

fn run(seed: u64, stop: u64, asks: Asks, switches: Switches) -> Result<End> {
    let world = SimWorld::new(seed);
    let mut appliance = SimAppliance::new(&world, 1 + (seed % 2) as usize, seed)?;
    let path = tempfile::NamedTempFile::new()?;
    path.as_file().set_len(BLOCKS * 512)?;
    let disk = DiskId::of(path.as_file())?;
    world.add_disk(disk, SimDisk::new(BLOCKS * 512));
    let spec = FileSpec { block_size: Some(512), ..FileSpec::new("disk", &path.path().to_string_lossy()) };
    let bdev: Arc<dyn Bdev> = Arc::new(File::new(&spec, Arc::new(StatsSet::new()))?);
    let unit = unit_of("disk", &*bdev);
    appliance.controller("vm", &[(0, 0, backing("disk", &unit, &bdev))])?;
    let mut guest = SimGuest::connect(&mut appliance, "vm", BLOCKS, seed)?;
    guest.mix = ScsiMix { read: 4, write: 40, sync: 8, blocks_max: 8, ..ScsiMix::default() };
    if asks == Asks::WriteThrough {
        let (command, list) = cdb::set_wce(false);
        guest.command(&mut appliance, &command, &list, 0)?;
        guest.load.write_through = true;
        guest.mix.sync = 0;
    }
    world.set_switches(switches);
    world.stop_after(stop);
    for _ in 0..120 {
        guest.act();
        appliance.machine.rounds(guest.rng.below(8));
        guest.take()?;
        if !world.powered() {
            break;
        }
    }
    let crashed = !world.powered();
    world.crash(seed ^ stop);
    let load = guest.die(&mut appliance);
    appliance.shutdown()?;
    world.revive();
    if !crashed {
        return Ok(End::Finished);
    }
    let verdict = world.disk(disk, |disk| load.model().crashed(disk.visible()));
    Ok(End::Crashed(verdict.map_err(|why| anyhow!(why))))
}

/// Crashes after each change; returns how many crashes there were and how many lost something.
fn sweep(seed: u64, asks: Asks, switches: Switches) -> Result<(u64, Vec<String>)> {
    let (mut crashes, mut losses) = (0, Vec::new());
    for stop in 1.. {
        let end = run(seed, stop, asks, switches).with_context(|| format!("seed {seed}, after change {stop}"))?;
        let End::Crashed(verdict) = end else { break };
        crashes += 1;
        if let Err(why) = verdict {
            losses.push(format!("seed {seed}, after change {stop}: {why:#}"));
        }
    }
    Ok((crashes, losses))
}

fn seeds() -> u64 {
    std::env::var("POLLUX_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

#[test]
fn what_flush_and_fua_acknowledged_survives_a_crash_after_every_change() -> Result<()> {
    for seed in 0..seeds() {
        let (crashes, losses) = sweep(seed, Asks::Flush, Switches::default())?;
        ensure!(losses.is_empty(), "{}", losses.join("\n"));
        ensure!(crashes > 20, "only {crashes} crashes");
    }
    Ok(())
}

#[test]
fn without_the_write_cache_every_acknowledged_write_survives() -> Result<()> {
    for seed in 0..seeds() {
        let (crashes, losses) = sweep(seed, Asks::WriteThrough, Switches::default())?;
        ensure!(losses.is_empty(), "{}", losses.join("\n"));
        ensure!(crashes > 20, "only {crashes} crashes");
    }
    Ok(())
}

#[test]
fn the_sweep_notices_a_flush_that_does_nothing() -> Result<()> {
    let switches = Switches { sync_does_nothing: true, ..Switches::default() };
    let (_, losses) = sweep(0, Asks::Flush, switches)?;
    ensure!(!losses.is_empty(), "nothing was lost");
    Ok(())
}

#[test]
fn the_sweep_notices_a_fua_that_does_nothing() -> Result<()> {
    let switches = Switches { dsync_does_nothing: true, ..Switches::default() };
    for asks in [Asks::Flush, Asks::WriteThrough] {
        let (_, losses) = sweep(0, asks, switches)?;
        ensure!(!losses.is_empty(), "nothing was lost with {asks:?}");
    }
    Ok(())
}
