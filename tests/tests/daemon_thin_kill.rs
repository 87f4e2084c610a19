//! A pool whose daemon is killed (SIGKILL) at any moment, again and again, under a verifying load and while snapshots and
//! clones are made and deleted.
//!
//! After each kill the checker has to find the pool clean before anybody opens it. Then the daemon starts again, and: what
//! was acknowledged as durable is there, nothing that was replaced comes back, nothing that nobody wrote is seen; each
//! snapshot holds all that was acknowledged before it was asked for, and from the first look on always the same; a clone
//! holds what its snapshot holds; what was made and acknowledged is there, what was deleted and acknowledged is not, and
//! what was not answered is either.
//!
//! `POLLUX_KILL_ROUNDS` (100) says how often, `POLLUX_KILL_SEED` (1) begins another story. What the threads of the daemon
//! do at which moment is not repeated by the same seed.

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use common::{attach, clear_attentions, connect, controller, file};
use pollux_tests::daemon::{self, Daemon, DaemonOptions, RpcError};
use pollux_tests::frontend::{FrontEnd, PATIENCE};
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, ScsiLoad, ScsiMix, cdb};
use pollux_tests::model::OpId;
use pollux_tests::rng::Rng;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 512;
/// Of a volume.
const BLOCKS: u64 = 6144;
const VOLUMES: [&str; 2] = ["a", "b"];
/// More are not kept at once.
const SNAPSHOTS: usize = 6;
const CLONES: usize = 2;
/// Commands in flight.
const DEPTH: usize = 48;
/// A moment in which nothing was answered.
const MOMENT: Duration = Duration::from_millis(2);
const MIX: ScsiMix = ScsiMix { read: 12, write: 40, sync: 3, unmap: 5, zeroes: 3, blocks_max: 96, plain: false };

/// Whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    /// That was acknowledged.
    Yes,
    /// It was being made, or being deleted, when the daemon was killed.
    Perhaps,
}

/// A snapshot or a clone.
struct Kept {
    name: String,
    there: There,
    /// The volume that a snapshot is of; clones have none.
    volume: Option<usize>,
    /// A snapshot that nobody has looked at: the read that saw the volume as the snapshot has it.
    cut: Option<OpId>,
    /// What it holds.
    held: Option<Arc<Vec<u8>>>,
}

impl Kept {
    fn alias(&self) -> String {
        format!("lvs/{}", self.name)
    }
}

/// What the story has come to.
#[derive(Debug, Default)]
struct Totals {
    good: u64,
    lost: usize,
    snapshots: u64,
    clones: u64,
    deleted: u64,
    cut_short: u64,
    looks: u64,
}

struct Story {
    daemon: Daemon,
    pool: PathBuf,
    loads: Vec<ScsiLoad>,
    kept: Vec<Kept>,
    next_name: u64,
    rng: Rng,
    totals: Totals,
}

impl Story {
    fn begin(seed: u64) -> Result<Self> {
        let daemon = Daemon::start_with(DaemonOptions { reactors: "0,1".into(), ..DaemonOptions::default() })?;
        let pool = file(&daemon, "f0", 256 * MIB)?;
        daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "f0", "lvs_name": "lvs"}))?;
        for name in VOLUMES {
            let size = BLOCKS * BLOCK as u64;
            let params = json!({"lvs_name": "lvs", "lvol_name": name, "size": size, "thin_provision": true});
            daemon.rpc("bdev_lvol_create", params)?;
        }
        controller(&daemon, "vm", &["lvs/a", "lvs/b"])?;
        controller(&daemon, "look", &[])?;
        let mut rng = Rng::new(seed);
        let loads = (0..VOLUMES.len()).map(|n| ScsiLoad::new(lun(n), BLOCK, BLOCKS, rng.next_u64())).collect();
        Ok(Story { daemon, pool, loads, kept: Vec::new(), next_name: 0, rng, totals: Totals::default() })
    }

    fn round(&mut self) -> Result<()> {
        let mut front = connect(&self.daemon, "vm", &DriverOptions { request_queues: 2, ..DriverOptions::default() })?;
        (0..VOLUMES.len()).try_for_each(|n| clear_attentions(&mut front, lun(n)))?;
        let mut look = connect(&self.daemon, "look", &DriverOptions::default())?;
        let after = Duration::from_micros(self.rng.between(1000, 600_000));
        let killer = Killer::start(self.daemon.pid(), after)?;
        self.live(&mut front, &mut look, &killer)?;
        killer.thread.join().map_err(|_| anyhow!("the killer panicked"))??;
        self.daemon.kill9();
        drop(look);
        self.last_answers(&mut front)?;
        drop(front);
        check(&self.pool)?;
        self.daemon.restart()?;
        self.judge()
    }

    /// Load and changes until the daemon is dead.
    fn live(&mut self, front: &mut FrontEnd, look: &mut FrontEnd, killer: &Killer) -> Result<()> {
        while !killer.done() {
            let queue = FIRST_REQUEST_QUEUE + self.rng.index(2);
            let load = self.rng.index(self.loads.len());
            if self.in_flight() < DEPTH && self.loads[load].submit(&mut front.driver, queue, &MIX) {
                front.driver.queues[queue].flush();
            } else if front.driver.wait(queue, MOMENT) {
                self.answers(front, queue)?;
            }
            if self.rng.chance(1, 30) {
                self.change(look, killer)?;
            }
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.loads.iter().map(ScsiLoad::in_flight).sum()
    }

    fn answers(&mut self, front: &mut FrontEnd, queue: usize) -> Result<()> {
        while let Some((ticket, response)) = front.poll(queue)? {
            let mut whose = false;
            for load in &mut self.loads {
                whose = whose || load.answered(queue, ticket, &response).map_err(|why| anyhow!(why))?;
            }
            ensure!(whose, "an answer to {ticket}, which nobody asked");
        }
        Ok(())
    }

    /// What was answered before the daemon died; everything else never will be.
    fn last_answers(&mut self, front: &mut FrontEnd) -> Result<()> {
        for queue in FIRST_REQUEST_QUEUE..front.driver.queues.len() {
            self.answers(front, queue)?;
            self.loads.iter_mut().for_each(|load| load.abandon(queue));
        }
        for load in &mut self.loads {
            ensure!(load.others.is_empty(), "commands failed: {:?}", load.others);
            self.totals.good += std::mem::take(&mut load.good);
        }
        Ok(())
    }

    fn change(&mut self, look: &mut FrontEnd, killer: &Killer) -> Result<()> {
        let snapshots: Vec<usize> = (0..self.kept.len()).filter(|&at| self.kept[at].volume.is_some()).collect();
        let clones = self.kept.len() - snapshots.len();
        match self.rng.below(8) {
            0..=2 if snapshots.len() < SNAPSHOTS => self.snapshot(look, killer),
            3 if !snapshots.is_empty() && clones < CLONES => {
                let of = snapshots[self.rng.index(snapshots.len())];
                self.clone_of(of, look, killer)
            }
            _ if snapshots.len() < 2 => Ok(()),
            _ => {
                let at = self.rng.index(self.kept.len());
                self.delete(at, killer)
            }
        }
    }

    /// A snapshot of one volume, or of all at once.
    fn snapshot(&mut self, look: &mut FrontEnd, killer: &Killer) -> Result<()> {
        let first = self.rng.index(VOLUMES.len());
        let of: Vec<usize> = if self.rng.chance(1, 3) { (0..VOLUMES.len()).collect() } else { vec![first] };
        let names: Vec<String> = of.iter().map(|_| self.new_name("s")).collect();
        let aliases: Vec<String> = of.iter().map(|&volume| format!("lvs/{}", VOLUMES[volume])).collect();
        let cuts: Vec<OpId> = of.iter().map(|&volume| self.loads[volume].model().begin_read(0, BLOCKS)).collect();
        let flushes: Vec<OpId> = of.iter().map(|&volume| self.loads[volume].model().begin_flush()).collect();
        let made = if of.len() > 1 {
            let params = json!({"lvol_names": aliases, "snapshot_names": names});
            ask(&self.daemon, killer, "bdev_lvol_snapshot_group", params)?
        } else {
            let params = json!({"lvol_name": aliases[0], "snapshot_name": names[0]});
            ask(&self.daemon, killer, "bdev_lvol_snapshot", params)?
        };
        let first_of_them = self.kept.len();
        for (at, &volume) in of.iter().enumerate() {
            // The volume stands on it: what was acknowledged before the call is as durable as the snapshot.
            self.loads[volume].model().end_flush(flushes[at], made);
            let there = if made { There::Yes } else { There::Perhaps };
            self.kept.push(Kept {
                name: names[at].clone(),
                there,
                volume: Some(volume),
                cut: Some(cuts[at]),
                held: None,
            });
        }
        self.totals.snapshots += of.len() as u64;
        self.totals.cut_short += u64::from(!made);
        for at in first_of_them..self.kept.len() {
            if made && self.rng.chance(1, 2) {
                self.look_now(at, look, killer)?;
            }
        }
        Ok(())
    }

    /// Looks at a snapshot while nothing is written that it does not know of.
    fn look_now(&mut self, at: usize, look: &mut FrontEnd, killer: &Killer) -> Result<()> {
        match read_whole(&self.daemon, look, &self.kept[at].alias(), Some(killer)) {
            Ok(data) => self.first_look(at, data),
            Err(_) if killer.done() => Ok(()),
            Err(error) => Err(error.context(format!("looking at {}", self.kept[at].name))),
        }
    }

    /// A snapshot holds what a read of the whole volume could have seen while it was made.
    fn first_look(&mut self, at: usize, data: Vec<u8>) -> Result<()> {
        let kept = &mut self.kept[at];
        let volume = kept.volume.context("a clone is known from the beginning")?;
        let cut = kept.cut.take().context("nobody has looked at it")?;
        let seen = self.loads[volume].model().end_read(cut, &data);
        seen.map_err(|why| anyhow!("snapshot {} of {}: {why}", kept.name, VOLUMES[volume]))?;
        kept.held = Some(Arc::new(data));
        self.totals.looks += 1;
        Ok(())
    }

    fn clone_of(&mut self, of: usize, look: &mut FrontEnd, killer: &Killer) -> Result<()> {
        if self.kept[of].held.is_none() {
            self.look_now(of, look, killer)?;
        }
        let Some(held) = self.kept[of].held.clone() else { return Ok(()) };
        let name = self.new_name("c");
        let params = json!({"snapshot_name": self.kept[of].alias(), "clone_name": name});
        let made = ask(&self.daemon, killer, "bdev_lvol_clone", params)?;
        let there = if made { There::Yes } else { There::Perhaps };
        self.kept.push(Kept { name, there, volume: None, cut: None, held: Some(held) });
        self.totals.clones += 1;
        self.totals.cut_short += u64::from(!made);
        Ok(())
    }

    fn delete(&mut self, at: usize, killer: &Killer) -> Result<()> {
        let params = json!({"name": self.kept[at].alias(), "force": true});
        if ask(&self.daemon, killer, "bdev_lvol_delete", params)? {
            self.forget(at);
            self.totals.deleted += 1;
        } else {
            self.kept[at].there = There::Perhaps;
            self.totals.cut_short += 1;
        }
        Ok(())
    }

    fn forget(&mut self, at: usize) {
        let gone = self.kept.remove(at);
        if let (Some(volume), Some(cut)) = (gone.volume, gone.cut) {
            self.loads[volume].model().abandon(cut);
        }
    }

    fn new_name(&mut self, kind: &str) -> String {
        self.next_name += 1;
        format!("{kind}{}", self.next_name)
    }

    /// After a start: whether all is as it has to be.
    fn judge(&mut self) -> Result<()> {
        let listed = self.daemon.rpc("bdev_lvol_get_lvols", Value::Null)?;
        let mut names: Vec<String> = Vec::new();
        for volume in listed.as_array().context("a list")? {
            names.push(volume["name"].as_str().context("a name")?.to_owned());
        }
        for at in (0..self.kept.len()).rev() {
            let Kept { name, there, .. } = &self.kept[at];
            match (names.contains(name), there) {
                (true, _) => self.kept[at].there = There::Yes,
                (false, There::Perhaps) => self.forget(at),
                (false, There::Yes) => bail!("{name} is gone: {listed}"),
            }
        }
        let known = |name: &String| VOLUMES.contains(&name.as_str()) || self.kept.iter().any(|kept| kept.name == *name);
        let back: Vec<&String> = names.iter().filter(|name| !known(name)).collect();
        ensure!(back.is_empty(), "{back:?} were deleted, and are back");
        // From before the kill something may still be there to be looked at.
        let _ = look_away(&self.daemon);
        let mut look = connect(&self.daemon, "look", &DriverOptions::default())?;
        for at in 0..self.kept.len() {
            let data = read_whole(&self.daemon, &mut look, &self.kept[at].alias(), None)?;
            match &self.kept[at].held {
                Some(held) => same(&self.kept[at].name, held, &data)?,
                None => self.first_look(at, data)?,
            }
        }
        drop(look);
        let mut front = connect(&self.daemon, "vm", &DriverOptions::default())?;
        for (volume, load) in self.loads.iter().enumerate() {
            let data = read_all(&mut front, lun(volume), None)?;
            self.totals.lost += load.model().lost(&data);
            load.model().crashed(&data).map_err(|why| anyhow!("volume {}: {why}", VOLUMES[volume]))?;
        }
        Ok(())
    }
}

fn lun(volume: usize) -> Lun {
    Lun::new(volume as u8, 0)
}

/// Calls a method that has to be done, or not to be answered: false.
fn ask(daemon: &Daemon, killer: &Killer, method: &str, params: Value) -> Result<bool> {
    match daemon.rpc(method, params) {
        Ok(_) => Ok(true),
        Err(error) if error.downcast_ref::<RpcError>().is_none() && killer.done() => Ok(false),
        Err(error) => Err(error),
    }
}

/// All of a volume or snapshot, as target 0 of the controller for looking.
fn read_whole(daemon: &Daemon, look: &mut FrontEnd, alias: &str, killer: Option<&Killer>) -> Result<Vec<u8>> {
    attach(daemon, "look", 0, alias)?;
    let data = read_all(look, lun(0), killer)?;
    look_away(daemon)?;
    Ok(data)
}

fn look_away(daemon: &Daemon) -> Result<()> {
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "look", "scsi_target_num": 0}))?;
    Ok(())
}

fn read_all(front: &mut FrontEnd, lun: Lun, killer: Option<&Killer>) -> Result<Vec<u8>> {
    let mut data = Vec::with_capacity(BLOCKS as usize * BLOCK);
    for first in (0..BLOCKS as u32).step_by(128) {
        data.extend(read(front, lun, &cdb::read10(first, 128), killer)?);
    }
    Ok(data)
}

/// As [`FrontEnd::good`], but waits for no answer of a dead daemon.
fn read(front: &mut FrontEnd, lun: Lun, cdb: &[u8], killer: Option<&Killer>) -> Result<Vec<u8>> {
    loop {
        let end = Instant::now() + PATIENCE;
        front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun, cdb, &[], 128 * BLOCK)).context("no room")?;
        while !front.driver.wait(FIRST_REQUEST_QUEUE, MOMENT) {
            ensure!(!killer.is_some_and(Killer::done), "the daemon is dead");
            ensure!(Instant::now() < end, "no answer to a read");
        }
        let (_, response) = front.poll(FIRST_REQUEST_QUEUE)?.context("an answer")?;
        match response.sense_key() {
            // What has changed since; said once each.
            Some((6, ..)) => {}
            _ if response.good() => return Ok(response.data),
            other => bail!("a read ends with response {}, sense {other:02x?}", response.response),
        }
    }
}

fn same(name: &str, held: &[u8], now: &[u8]) -> Result<()> {
    let differ = held.chunks(BLOCK).zip(now.chunks(BLOCK)).position(|(was, is)| was != is);
    match differ {
        None => Ok(()),
        Some(block) => {
            let at = block * BLOCK;
            bail!("{name} has changed at block {block}: {:02x?} became {:02x?}", &held[at..at + 16], &now[at..at + 16])
        }
    }
}

/// The checker, on the file that nobody uses.
fn check(pool: &Path) -> Result<()> {
    let output = std::process::Command::new(daemon::binary()?)
        .args(["pool", "check"])
        .arg(pool)
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.code() == Some(0),
        "pollux pool check: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Kills the daemon at its time, whatever goes on.
struct Killer {
    begun: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Killer {
    fn start(pid: u32, after: Duration) -> Result<Killer> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
        let begun = Arc::new(AtomicBool::new(false));
        let flag = begun.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(after);
            flag.store(true, Ordering::SeqCst);
            Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
        });
        Ok(Killer { begun, thread })
    }

    /// Whether the daemon is dead, or about to be.
    fn done(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }
}

fn number(name: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is a number")),
        Err(_) => Ok(otherwise),
    }
}

#[test]
fn killed_at_any_moment_a_pool_holds_what_it_acknowledged() -> Result<()> {
    let (rounds, seed) = (number("POLLUX_KILL_ROUNDS", 100)?, number("POLLUX_KILL_SEED", 1)?);
    let mut story = Story::begin(seed)?;
    for round in 0..rounds {
        story.round().with_context(|| format!("seed {seed}, round {round}"))?;
    }
    println!("{rounds} kills: {:?}", story.totals);
    let Totals { lost, snapshots, deleted, cut_short, looks, .. } = story.totals;
    if rounds >= 100 {
        ensure!(lost > 0, "nothing was ever lost that was not durable: the kills come when nothing happens");
        ensure!(
            snapshots > 50 && deleted > 20 && looks > 50 && cut_short > 0,
            "too little was done while it was killed"
        );
    }
    Ok(())
}
