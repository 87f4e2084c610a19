//! What idle VMs cost, and how long the first request after a pause takes.
//!
//! Starts the daemon (`POLLUX_BIN`, or the one of this build), connects that many front ends, each with control, event and
//! request queues, lets them rest, and counts what each thread of the daemon runs meanwhile. Then wakes one after another:
//! a pause, one read of 4 KiB from a RAM disk, the time from before the kick to the answer. In turns with that, what the
//! machine itself needs to wake a thread on the reactor's core that sleeps in read(2) on an eventfd and writes to memory.
//!
//! ```text
//! cargo build --release -p pollux && cargo run --release -p pollux-tests --bin idle_vms -- --vms 256
//! ```

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, cdb};
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::json;

const LUN: Lun = Lun::new(0, 0);

#[derive(Parser)]
struct Args {
    /// How many VMs
    #[arg(long, default_value_t = 256)]
    vms: usize,
    /// Request queues of each
    #[arg(long, default_value_t = 1)]
    queues: usize,
    /// How long to watch them rest
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many first requests to time
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// Pause before each, in microseconds
    #[arg(long, default_value_t = 10_000)]
    pause_us: u64,
    /// Scrape /metrics once a second meanwhile
    #[arg(long)]
    scrape: bool,
    /// Core of this program; the reactor's is 0
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Further arguments of the daemon
    #[arg(last = true)]
    daemon: Vec<String>,
}

/// Nanoseconds run and times switched to, by the threads' names without numbers.
type Run = BTreeMap<String, (u64, u64)>;

fn run_times(pid: u32) -> Result<Run> {
    let mut all = Run::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name));
        let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) else { continue };
        let times: Vec<u64> = times.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        ensure!(times.len() == 3, "/proc/PID/task/TID/schedstat has three numbers");
        let group = name.trim().trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-').to_owned();
        let sums = all.entry(group).or_default();
        *sums = (sums.0 + times[0], sums.1 + times[2]);
    }
    Ok(all)
}

fn rest(daemon: &Daemon, args: &Args) -> Result<()> {
    let (before, start) = (run_times(daemon.pid())?, Instant::now());
    for _ in 0..args.seconds {
        std::thread::sleep(Duration::from_secs(1));
        if args.scrape {
            ensure!(!daemon.metrics()?.is_empty(), "metrics are served");
        }
    }
    let (after, seconds) = (run_times(daemon.pid())?, start.elapsed().as_secs_f64());
    let mut total = 0.0;
    println!("{:16} {:>14} {:>12}", "thread", "% of a core", "switches/s");
    for (name, (ns, switches)) in &after {
        let (ns_before, switches_before) = before.get(name).copied().unwrap_or_default();
        let share = (ns - ns_before) as f64 / 1e7 / seconds;
        total += share;
        println!("{name:16} {share:14.4} {:12.1}", (switches - switches_before) as f64 / seconds);
    }
    println!("{:16} {total:14.4}", "all");
    println!("resident: {:.1} MiB", daemon.resident()? as f64 / (1 << 20) as f64);
    Ok(())
}

/// The time of one read whose answer is looked for without sleeping, as a guest's processor does that has other work.
fn first_request(front: &mut FrontEnd) -> Result<Duration> {
    let read = cdb::read10(0, 8);
    front
        .driver
        .submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &read, &[], 4096))
        .context("no room for the command")?;
    let start = Instant::now();
    front.driver.queues[FIRST_REQUEST_QUEUE].flush();
    loop {
        if let Some((_, response)) = front.poll(FIRST_REQUEST_QUEUE)? {
            let took = start.elapsed();
            ensure!(response.good(), "the read failed: {response:?}");
            return Ok(took);
        }
        ensure!(start.elapsed() < Duration::from_secs(5), "no answer");
        std::hint::spin_loop();
    }
}

/// A thread on the reactor's core that answers a write to its eventfd by a write to memory.
struct Sleeper {
    event: OwnedFd,
    seen: AtomicU64,
}

impl Sleeper {
    fn start() -> Result<Arc<Self>> {
        let sleeper = Arc::new(Sleeper { event: eventfd(0, EventfdFlags::CLOEXEC)?, seen: AtomicU64::new(0) });
        let of_thread = Arc::clone(&sleeper);
        std::thread::spawn(move || -> Result<()> {
            let mut core = CpuSet::new();
            core.set(0);
            sched_setaffinity(None, &core)?;
            loop {
                rustix::io::read(&of_thread.event, &mut [0; 8])?;
                of_thread.seen.fetch_add(1, Release);
            }
        });
        Ok(sleeper)
    }

    fn wake(&self) -> Result<Duration> {
        let (before, start) = (self.seen.load(Acquire), Instant::now());
        rustix::io::write(&self.event, &1u64.to_ne_bytes())?;
        while self.seen.load(Acquire) == before {
            ensure!(start.elapsed() < Duration::from_secs(5), "the sleeper does not wake");
            std::hint::spin_loop();
        }
        Ok(start.elapsed())
    }
}

fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(at);
    println!("{what}: p50 {p50:.1} µs, p90 {p90:.1} µs, p99 {p99:.1} µs, max {max:.1} µs");
}

fn wake(daemon: &Daemon, fronts: &mut [FrontEnd], args: &Args) -> Result<()> {
    let reactor = || -> Result<u64> { Ok(run_times(daemon.pid())?.get("reactor").context("a reactor runs")?.0) };
    let sleeper = Sleeper::start()?;
    let (mut requests, mut bare) = (Vec::new(), Vec::new());
    let (vms, before) = (fronts.len(), reactor()?);
    for n in 0..args.requests {
        std::thread::sleep(Duration::from_micros(args.pause_us));
        requests.push(first_request(&mut fronts[n % vms])?);
        std::thread::sleep(Duration::from_micros(args.pause_us));
        bare.push(sleeper.wake()?);
    }
    let each = (reactor()? - before) as f64 / 1e3 / args.requests as f64;
    println!("for each request the reactor ran {each:.1} µs, looking for the next one included");
    print_times(&format!("first request after {} µs", args.pause_us), requests);
    print_times("waking a thread there", bare);
    Ok(())
}

fn connect(daemon: &Daemon, name: &str, options: &DriverOptions) -> Result<FrontEnd> {
    daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": name}))?;
    let target = json!({"ctrlr": name, "scsi_target_num": 0, "bdev_name": "disk"});
    daemon.rpc("vhost_scsi_controller_add_target", target)?;
    let socket = daemon.socket(name);
    let mut front = FrontEnd::connect(Path::new(&socket), options)?;
    front.good(LUN, &cdb::TEST_UNIT_READY, &[], 0)?;
    Ok(front)
}

fn main() -> Result<()> {
    let args = Args::parse();
    let options = DaemonOptions { args: args.daemon.clone(), ..DaemonOptions::default() };
    let daemon = Daemon::start_with(options)?;
    let mut own = CpuSet::new();
    own.set(args.core);
    sched_setaffinity(None, &own).with_context(|| format!("pinning this program to core {}", args.core))?;
    daemon.rpc("bdev_malloc_create", json!({"name": "disk", "num_blocks": 2048, "block_size": 512}))?;
    let options = DriverOptions {
        request_queues: args.queues,
        memory: vec![(0x10_0000, (1 << 20) + ((args.queues as u64) << 16))],
        ..DriverOptions::default()
    };
    let fronts: Result<Vec<_>> = (0..args.vms).map(|n| connect(&daemon, &format!("vm{n}"), &options)).collect();
    let mut fronts = fronts?;
    std::thread::sleep(Duration::from_secs(1));
    println!("{} idle VMs of {} queues each", args.vms, args.queues + FIRST_REQUEST_QUEUE);
    rest(&daemon, &args)?;
    wake(&daemon, &mut fronts, &args)?;
    let wakes = daemon.metrics()?;
    wakes.lines().filter(|line| line.starts_with("pollux_reactor_wake_seconds_")).for_each(|line| println!("{line}"));
    Ok(())
}
