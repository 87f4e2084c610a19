//! Residents on real reactors: a wake from another thread reaches one whose reactor sleeps, and what it then does is on
//! the disk.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pollux_bdev::{File, FileSpec, StatsSet};
use pollux_core::Helpers;
use pollux_reactor::{Config, HelperPool, Reactors, allowed_cores, start};
use pollux_tests::scribe::{Desk, Scribe};
use pollux_vhost_scsi::{Message, ScsiWorker, SocketOptions, Target, TargetOptions, WorkerConfig};
use pollux_vhost_user::Server;

const SOON: Duration = Duration::from_secs(20);

/// Reactors whose sleep nothing but a wake ends.
fn reactors() -> Result<Reactors<Message>> {
    let mut cores = allowed_cores();
    cores.truncate(2);
    let workers = (0..cores.len()).map(|n| ScsiWorker::new(n, cores.len(), WorkerConfig::default())).collect();
    let config = Config { cores, spin_max: Duration::ZERO, max_sleep: Duration::from_secs(3600), ..Config::default() };
    Ok(start(config, workers)?)
}

fn wait_until(what: &str, mut happens: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !happens() {
        ensure!(start.elapsed() < SOON, "{what}");
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

#[test]
fn a_wake_reaches_the_resident_of_a_sleeping_reactor() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("book");
    std::fs::write(&path, vec![0; 64 << 10])?;
    let spec = FileSpec { block_size: Some(512), ..FileSpec::new("book", &path.to_string_lossy()) };
    let device = File::new(&spec, Arc::new(StatsSet::new()))?;
    let reactors = reactors()?;
    let helpers: Arc<dyn Helpers> = Arc::new(HelperPool::start()?);
    let options = TargetOptions { vhost_dir: dir.path().into(), socket: SocketOptions::default(), helpers };
    let server = Server::new()?;
    let target = Target::new(reactors.poster(), Arc::clone(&server), options);
    let desk = Arc::<Desk>::default();
    let mut scribe = Scribe::on(&device, &desk);
    for stats in reactors.stats() {
        let id = target.host(stats.reactor, scribe).map_err(|refused| refused.error)?;
        ensure!(desk.is_attached());
        for _ in 0..200 {
            wait_until("its reactor sleeps", || stats.in_sleep())?;
            desk.ask();
            let asked = desk.asked();
            wait_until("it writes what it was asked for", || desk.written() == asked)?;
        }
        ensure!(std::fs::read(&path)?.get(..512).context("a block")? == desk.block());
        ensure!(stats.sleeps.get() >= 200 && stats.wakeups.get() >= 200, "{stats:?}");
        scribe = target.evict(id)?;
        ensure!(!desk.is_attached());
    }
    // One that is still there goes with its reactor, also while it writes.
    target.host(0, scribe).map_err(|refused| refused.error)?;
    desk.ask();
    reactors.stop();
    server.shutdown();
    ensure!(Arc::strong_count(&desk) == 1, "it is dropped");
    Ok(())
}
