//! What one request costs on the reactor's side of the whole path, with nobody else on the machine: one worker, a real
//! ring of io_uring and a guest's queue in one thread. The control plane and the socket are the real ones, but at work
//! only before the measuring starts.
//!
//! `cargo run --release -p pollux-tests --example path_cost -- --bdev null --rw read --qd 32 --ios 2000000` prints
//! nanoseconds, warm in the cache: a lower bound, good for comparing two builds. Under
//! `valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*::measured_turn*'` it counts the instructions of the
//! same; `scripts/path-cost` does that and adds them up by room.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use pollux_bdev::thin::store::{Blocking, CreateParams};
use pollux_bdev::thin::{NewSnapshot, Pool, PoolOptions, ThinVolume};
use pollux_bdev::{Device, Measured, NullSpec, RamSpec, Registry, Spec, StatsSet};
use pollux_core::{Bdev, Cx, Post, PostError, Ring, Worker};
use pollux_reactor::{HelperPool, RingConfig, UringRing, WaitingRing};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, FIRST_REQUEST_QUEUE, GuestMemory, Lun, REQUEST_LEN, RESPONSE_LEN, cdb};
use pollux_tests::guest::{desc, request_header};
use pollux_tests::sim::{backing, unit_of};
use pollux_vhost_scsi::{Message, ScsiWorker, SocketOptions, Target, TargetOptions, WorkerConfig};
use pollux_vhost_user::Server;
use uuid::Uuid;

const SIZE: u16 = 512;
const BLOCK: u64 = 512;
const CLUSTER: u64 = 64 << 10;
const BASE: Lun = Lun::new(0, 0);
/// Each request's own part of guest memory: header, response, data.
const STRIDE: u64 = 0x2_1000;
const MEMORY: (u64, u64) = (0x10_0000, 128 << 20);

#[derive(Parser, Clone, Copy)]
struct Args {
    /// null, ram, or a thin volume of a pool on ram
    #[arg(long, default_value = "null")]
    bdev: Kind,
    /// Snapshots below a thin volume: between two of them a part of it is written
    #[arg(long, default_value_t = 0)]
    snapshots: u64,
    /// A thin volume is not written before: each request goes where nothing is, so there have to be as many places
    #[arg(long)]
    fresh: bool,
    /// With --fresh: all that is measured was written once before, in the same order
    #[arg(long, requires = "fresh")]
    again: bool,
    /// read or write
    #[arg(long, default_value = "read")]
    rw: Rw,
    /// Requests made available at once
    #[arg(long, default_value_t = 32)]
    qd: u16,
    /// Requests that are measured
    #[arg(long, default_value_t = 2_000_000)]
    ios: u64,
    /// Bytes of a request
    #[arg(long, default_value_t = 4096)]
    bs: u32,
    /// MiB of the disk
    #[arg(long, default_value_t = 64)]
    mib: u64,
    /// With indirect descriptors
    #[arg(long)]
    indirect: bool,
    /// With EVENT_IDX
    #[arg(long)]
    event_idx: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq)]
enum Kind {
    Null,
    Ram,
    Thin,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq)]
enum Rw {
    Read,
    Write,
}

/// The way to the one worker.
struct Mail(Mutex<Sender<Message>>);

impl Post<Message> for Mail {
    fn reactors(&self) -> usize {
        1
    }

    fn post(&self, _: usize, message: Message) -> Result<(), PostError> {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send(message).map_err(|_| PostError::Stopped)
    }
}

struct Machine {
    worker: ScsiWorker,
    ring: UringRing,
    mail: Receiver<Message>,
}

impl Machine {
    /// Turns until the other thread, which may wait for us, has its result.
    fn serve<T: Send>(&mut self, other: impl FnOnce() -> T + Send) -> Result<T> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let handle = scope.spawn(|| {
                let result = other();
                done.store(true, Ordering::Release);
                result
            });
            while !done.load(Ordering::Acquire) {
                let now = self.ring.now_ns();
                let mut cx = Cx { now, reactor: 0, ring: &mut self.ring };
                while let Ok(message) = self.mail.try_recv() {
                    self.worker.message(message, &mut cx);
                }
                self.worker.poll(&mut cx);
                self.ring.enter(None);
                std::thread::yield_now();
            }
            handle.join().map_err(|_| anyhow::anyhow!("the control plane panicked"))
        })
    }

    #[inline(never)]
    fn unmeasured_turn(&mut self) {
        let now = self.ring.now_ns();
        let mut cx = Cx { now, reactor: 0, ring: &mut self.ring };
        self.worker.poll(&mut cx);
    }

    /// What a reactor does in a turn, mailboxes and counters aside.
    #[inline(never)]
    fn measured_turn(&mut self) {
        let now = self.ring.now_ns();
        let mut cx = Cx { now, reactor: 0, ring: &mut self.ring };
        self.worker.poll(&mut cx);
        self.ring.enter(None);
    }
}

/// A queue whose requests lie ready: only block addresses and indices change.
struct Load {
    memory: Arc<GuestMemory>,
    avail: u64,
    used: u64,
    next: u16,
    args: Args,
    per: u16,
    random: u64,
    /// The next block, if they come one after the other.
    sequential: Option<u64>,
    /// The next place, if each is to come once.
    once: Option<u64>,
    blocks: u64,
}

impl Load {
    fn new(front: &FrontEnd, args: Args, lun: Lun, blocks: u64) -> Load {
        let ring = &front.driver.queues[FIRST_REQUEST_QUEUE].ring;
        let [table, avail, used] = ring.addresses();
        let memory = Arc::clone(&front.driver.memory);
        let per = if args.indirect { 1 } else { 3 };
        let len = args.bs / BLOCK as u32;
        for i in 0..args.qd {
            let at = Self::at(i);
            let cdb = match args.rw {
                Rw::Read => cdb::read10(0, len as u16),
                Rw::Write => cdb::write10(0, len as u16, false),
            };
            memory.write(at, &request_header(lun.bytes(), u64::from(i), 0, &cdb));
            let header = (at, REQUEST_LEN as u32, 0);
            let response = (at + 0x80, RESPONSE_LEN as u32, desc::WRITE);
            let data = (at + 0x1000, args.bs, if args.rw == Rw::Read { desc::WRITE } else { 0 });
            let chain = if args.rw == Rw::Read { [header, response, data] } else { [header, data, response] };
            let (place, first) = if args.indirect { (at + 0x200, 0) } else { (table, i * per) };
            for (n, (gpa, len, flags)) in (first..).zip(chain) {
                let (next, flags) = if n == first + 2 { (0, flags) } else { (n + 1, flags | desc::NEXT) };
                ring.write_desc(place, n, gpa, len, flags, next);
            }
            if args.indirect {
                ring.write_desc(table, i, place, 48, desc::INDIRECT, 0);
            }
        }
        let next = memory.load_u16(avail + 2);
        Load {
            memory,
            avail,
            used,
            next,
            args,
            per,
            random: 0x9e37_79b9_7f4a_7c15,
            sequential: None,
            once: None,
            blocks,
        }
    }

    fn at(i: u16) -> u64 {
        MEMORY.0 + (16 << 20) + u64::from(i) * STRIDE
    }

    /// Makes `qd` requests available.
    fn offer(&mut self) {
        let len = u64::from(self.args.bs) / BLOCK;
        for i in 0..self.args.qd {
            let lba = self.lba(len);
            // The block address of READ (10) and WRITE (10), which stand at byte 19 of the header.
            self.memory.write(Self::at(i) + 19 + 2, &(lba as u32).to_be_bytes());
            let slot = u64::from(self.next % SIZE);
            self.memory.write(self.avail + 4 + 2 * slot, &(i * self.per).to_le_bytes());
            self.next = self.next.wrapping_add(1);
        }
        self.memory.store_u16(self.avail + 2, self.next);
    }

    fn lba(&mut self, len: u64) -> u64 {
        if let Some(at) = &mut self.sequential {
            let lba = *at;
            *at = if lba + 2 * len <= self.blocks { lba + len } else { 0 };
            return lba;
        }
        if let Some(nth) = &mut self.once {
            *nth += 1;
            // Any odd factor makes a permutation of as many places as a power of two.
            return (*nth).wrapping_mul(0x9e37_79b9_7f4a_7c15) % (self.blocks / len) * len;
        }
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (((self.random >> 40) * (self.blocks / len)) >> 24) * len
    }

    /// So many rounds of requests, not measured.
    fn run(&mut self, machine: &mut Machine, rounds: u64) {
        for _ in 0..rounds {
            self.offer();
            while !self.is_answered() {
                machine.unmeasured_turn();
            }
        }
    }

    fn is_answered(&self) -> bool {
        self.memory.load_u16(self.used + 2) == self.next
    }

    fn check(&self) -> Result<()> {
        for i in 0..self.args.qd {
            let response = self.memory.bytes(Self::at(i) + 0x80, RESPONSE_LEN);
            ensure!(response[10] == 0 && response[11] == 0, "request {i} ended with {:02x?}", &response[..12]);
        }
        Ok(())
    }
}

fn device(args: Args) -> Result<Arc<dyn Device>> {
    let num_blocks = (args.mib << 20) / BLOCK;
    let (name, block_size) = ("disk".to_owned(), BLOCK as u32);
    let spec = match args.bdev {
        Kind::Null => Spec::Null(NullSpec { name, block_size, num_blocks, physical_block_size: None, uuid: None }),
        // Beside the volume: log, metadata and what each first write leaves unused of its cluster.
        Kind::Thin => {
            let clusters = if args.snapshots > 0 { 18 } else { 2 };
            let most = if args.fresh { args.ios.saturating_mul(CLUSTER) / BLOCK * 5 / 4 } else { u64::MAX };
            let num_blocks = (num_blocks * clusters).min(most) + (256 << 20) / BLOCK;
            Spec::Malloc(RamSpec { name, block_size, num_blocks, physical_block_size: None, uuid: None })
        }
        Kind::Ram => Spec::Malloc(RamSpec { name, block_size, num_blocks, physical_block_size: None, uuid: None }),
    };
    let registry = Registry::new();
    let entries = registry.create(spec)?;
    entries[0].device().context("a new device is there")
}

/// A pool with one volume on a device.
struct Thin {
    pool: Pool,
    volume: Uuid,
}

impl Thin {
    fn new(machine: &mut Machine, target: &Target, base: &Arc<dyn Bdev>, args: Args) -> Result<(Thin, ThinVolume)> {
        let mut ring = WaitingRing::new()?;
        let waits = ring.clone();
        let mut wait = move |_: &mut dyn Ring| waits.wait();
        let mut blocking = Blocking::new(&**base, &mut ring, &mut wait)?;
        let (name, uuid) = ("pool".to_owned(), Uuid::new_v4());
        let params =
            CreateParams { name, uuid, cluster_size: CLUSTER as u32, created: 0, overcommit: 0, salt: 1, force: false };
        Pool::create(&mut blocking, &params)?;
        let (pool, engine) = Pool::open(Arc::clone(base), &mut blocking, &PoolOptions::default())?;
        let volume = Uuid::new_v4();
        let thin = machine.serve(|| -> Result<ThinVolume> {
            target.host(0, engine).map_err(|refused| refused.error)?;
            pool.create_volume(volume, "volume", args.mib << 20, 0, 0)?;
            pool.volume(volume).context("a new volume is there")
        })??;
        Ok((Thin { pool, volume }, thin))
    }

    /// Puts snapshots below the volume, and writes a part of it after each; then all that the pool does about it is done.
    fn grow(&self, machine: &mut Machine, front: &FrontEnd, args: Args, lun: Lun, blocks: u64) -> Result<()> {
        for nth in 0..args.snapshots {
            self.snapshot(machine)?;
            let mut some = Load::new(front, Args { rw: Rw::Write, bs: 4096, qd: 32, ..args }, lun, blocks);
            some.random ^= nth;
            some.run(machine, blocks / 8 / args.snapshots / 32 + 1);
            some.check()?;
        }
        Ok(machine.serve(|| self.pool.checkpoint())??)
    }

    /// Puts a snapshot below the volume.
    fn snapshot(&self, machine: &mut Machine) -> Result<()> {
        let uuid = Uuid::new_v4();
        let snapshot = NewSnapshot { volume: self.volume, uuid, name: uuid.to_string() };
        Ok(machine.serve(|| self.pool.snapshot(&[snapshot], 0))??)
    }
}

/// Writes a disk full.
fn fill(machine: &mut Machine, front: &FrontEnd, args: Args, lun: Lun, blocks: u64) -> Result<()> {
    let mut fill = Load::new(front, Args { rw: Rw::Write, bs: 128 << 10, qd: 1, ..args }, lun, blocks);
    fill.sequential = Some(0);
    fill.run(machine, (blocks * BLOCK) >> 17);
    fill.check()
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.qd == 0 || u64::from(args.qd) * 3 > u64::from(SIZE) || args.bs as u64 > STRIDE - 0x1000 {
        bail!("--qd is 1 to {}, --bs at most {}", SIZE / 3, STRIDE - 0x1000);
    }
    let device = device(args)?;
    let base: Arc<dyn Bdev> = match args.bdev {
        // As the daemon does, which counts what goes to a pool's base.
        Kind::Thin => Arc::new(Measured::new(device.clone(), Arc::new(StatsSet::new()))),
        Kind::Null | Kind::Ram => device.clone(),
    };
    let (sender, mail) = channel();
    let ring = UringRing::new(&RingConfig::default())?;
    let worker = ScsiWorker::new(0, 1, WorkerConfig { spin_max_ns: None, ..WorkerConfig::default() });
    let mut machine = Machine { worker, ring, mail };
    let dir = tempfile::tempdir()?;
    let server = Server::new()?;
    let helpers = Arc::new(HelperPool::start()?);
    let options = TargetOptions { vhost_dir: dir.path().into(), socket: SocketOptions::default(), helpers };
    let target = Target::new(Arc::new(Mail(Mutex::new(sender))), Arc::clone(&server), options);
    let unit = unit_of("base", &*device);
    let front = machine.serve(|| -> Result<FrontEnd> {
        target.create_controller("c", vec![0], 1)?;
        target.add_lun("c", Some(0), 0, backing("base", &unit, &base))?;
        target.start_controller("c")?;
        let (event_idx, indirect) = (args.event_idx, args.indirect);
        let memory = vec![MEMORY];
        let options = DriverOptions { queue_size: SIZE, event_idx, indirect, memory, ..DriverOptions::default() };
        let mut front = FrontEnd::connect(&dir.path().join("c"), &options)?;
        front.good(BASE, &cdb::read10(0, 1), &[], 512)?;
        // As a driver does: an event that finds no buffer keeps its queue on the list of those that are looked at.
        front.driver.post_events(8, 16);
        // A client that polls wants no interrupts.
        front.driver.queues[FIRST_REQUEST_QUEUE].ring.want_interrupt(false);
        Ok(front)
    })??;
    let mut blocks = device.shape().num_blocks;
    if args.bdev != Kind::Null {
        // What was never written is one page of zeroes, which is nowhere near as slow as a disk's worth of memory.
        fill(&mut machine, &front, args, BASE, blocks)?;
        // What housekeeping does in the seconds after.
        (0..blocks * BLOCK / (256 << 20) + 2).for_each(|_| device.tend());
    }
    let (mut lun, mut thin) = (BASE, None);
    if args.bdev == Kind::Thin {
        let (pool, volume) = Thin::new(&mut machine, &target, &base, args)?;
        (lun, blocks) = (Lun::new(1, 0), volume.shape().num_blocks);
        let unit = unit_of("volume", &volume);
        let volume: Arc<dyn Bdev> = Arc::new(volume);
        machine.serve(|| target.add_lun("c", Some(1), 0, backing("volume", &unit, &volume)))??;
        // The first answer is a unit attention.
        Load::new(&front, Args { rw: Rw::Read, bs: 4096, qd: 1, ..args }, lun, blocks).run(&mut machine, 1);
        if !args.fresh {
            fill(&mut machine, &front, args, lun, blocks)?;
        }
        pool.grow(&mut machine, &front, args, lun, blocks)?;
        thin = Some(pool);
    }
    let mut load = Load::new(&front, args, lun, blocks);
    load.once = args.fresh.then_some(0);
    let (mut best, mut all) = (f64::MAX, Vec::new());
    let (mut done, mut turns) = (0, 0u64);
    let part = (args.ios / 20).max(u64::from(args.qd));
    if args.fresh && args.ios > blocks * BLOCK / u64::from(args.bs) {
        bail!("--fresh needs a place for each request: --mib {} or more", (args.ios * u64::from(args.bs)) >> 20);
    }
    if args.again {
        load.run(&mut machine, args.ios.div_ceil(u64::from(args.qd)));
        load.once = Some(0);
    }
    while done < args.ios {
        let (start, mut some) = (Instant::now(), 0);
        let mut outside = 0;
        while some < part {
            let offering = Instant::now();
            load.offer();
            outside += offering.elapsed().as_nanos() as u64;
            while !load.is_answered() {
                machine.measured_turn();
                turns += 1;
            }
            some += u64::from(args.qd);
        }
        let ns = (start.elapsed().as_nanos() as u64).saturating_sub(outside) as f64;
        best = best.min(ns / some as f64);
        all.push(ns / some as f64);
        done += some;
    }
    load.check()?;
    black_box(&load.random);
    all.sort_by(f64::total_cmp);
    let (median, mean) = (all[all.len() / 2], all.iter().sum::<f64>() / all.len() as f64);
    println!(
        "{done} requests in {turns} turns: {median:.1} ns a request (median of twenty parts), {best:.1} ns (best), {mean:.1} ns (mean)"
    );
    drop(thin);
    machine.serve(move || {
        drop(front);
        while target.controllers().iter().any(|controller| !controller.sessions.is_empty()) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let _ = target.delete_controller("c", true);
        server.shutdown()
    })?;
    Ok(())
}
