//! A whole run: sessions, what their disks are like, filling, the load, the report.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::BenchError;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::engine::{Engine, Until, Window};
use crate::histogram::Histogram;
use crate::layout::Shape;
use crate::options::{Core, Options};
use crate::queue::Pass;
use crate::report::{Client, Figures, Report, What};
use crate::run::Run;
use crate::scsi::{Op, Wire, lun_bytes};
use crate::session::Session;
use crate::work::{Once, Plain, Stream};

/// The part of a disk that is used, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    /// A multiple of the blocks of one request.
    blocks: u64,
    block_size: u32,
}

impl Range {
    fn new(options: &Options, disk: &Disk, name: &str) -> Result<Self, BenchError> {
        let refuse = |text: String| Err(BenchError::Usage(text));
        let block = u64::from(disk.block_size);
        if !options.block_bytes.is_multiple_of(block) {
            return refuse(format!(
                "--bs {}: {name} has blocks of {block} bytes; give a multiple",
                options.block_bytes
            ));
        }
        if !options.offset.is_multiple_of(block) {
            return refuse(format!("--offset {}: {name} has blocks of {block} bytes; give a multiple", options.offset));
        }
        let rest = disk.bytes().saturating_sub(options.offset);
        let size = options.size.unwrap_or(rest);
        if size > rest {
            return refuse(format!(
                "{name} has {} bytes: --offset {} and --size {size} go beyond its end",
                disk.bytes(),
                options.offset
            ));
        }
        let chunks = size / options.block_bytes;
        if chunks == 0 {
            return refuse(format!("{name}: {size} bytes are too few for --bs {}", options.block_bytes));
        }
        let blocks = chunks * (options.block_bytes / block);
        Ok(Range { first: options.offset / block, blocks, block_size: disk.block_size })
    }

    /// The requests of this shape that cover the range, or its part from block `from` of it on.
    fn pass(self, options: &Options, shape: Shape, from: u64) -> Pass {
        let blocks = (shape.bytes / u64::from(self.block_size)) as u32;
        let wire = Wire::new(lun_bytes(options.target, options.lun), blocks, self.first + self.blocks);
        Pass { wire, shape, blocks, first: self.first + from }
    }
}

/// Runs the load. Setting `stop` ends it early with the result so far.
///
/// # Errors
/// If the options cannot work, the target cannot be used, or it fails (not: if single requests fail; the report counts
/// those).
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Report, BenchError> {
    options.check()?;
    let core = pin(options.core)?;
    let clock = Clock::new();
    let mut sessions = Vec::new();
    let mut queues = Vec::new();
    for path in &options.sockets {
        let (session, mut its) = Session::start(path, options, queues.len())?;
        sessions.push(session);
        queues.append(&mut its);
    }
    let mut what = What::new(options);
    what.core = core;
    what.event_idx = sessions.iter().all(|session| session.event_idx);
    what.pages = sessions.iter().map(|session| session.pages).min().map_or("", crate::memory::Pages::name);
    let mut disks = Vec::new();
    for (n, session) in sessions.iter().enumerate() {
        let name = format!("LUN {} of target {} at {}", options.lun, options.target, session.path().display());
        let disk = Disk::probe(&mut queues[n * usize::from(options.queues)], &clock, &name)?;
        let range = check(options, &disk, &name)?;
        if options.verbose {
            eprintln!("{name}: {disk:?}, using {range:?}");
        }
        disks.push((disk, range));
    }
    if let Some((disk, _)) = disks.first() {
        (what.disk, what.disk_bytes, what.block_size) = (disk.name.clone(), disk.bytes(), disk.block_size);
    }
    let engine = Engine { options, clock: &clock, stop, sessions, queues };
    Bench { engine, disks }.run(what)
}

/// Whether the disk can do what is asked for.
fn check(options: &Options, disk: &Disk, name: &str) -> Result<Range, BenchError> {
    let range = Range::new(options, disk, name)?;
    let blocks = options.block_bytes / u64::from(disk.block_size);
    let refuse = |text: String| Err(BenchError::Usage(text));
    match disk.transfer_max {
        Some(most) if blocks > u64::from(most) && !options.mode.trims() => {
            return refuse(format!(
                "--bs {}: {name} takes at most {} bytes at once",
                options.block_bytes,
                u64::from(most) * u64::from(disk.block_size)
            ));
        }
        _ => {}
    }
    if options.mode.trims() {
        match disk.unmap_max {
            None => return refuse(format!("--rw {}: {name} has no UNMAP", options.mode.name())),
            Some(most) if blocks > u64::from(most) => {
                return refuse(format!("--bs {}: {name} discards at most {most} blocks at once", options.block_bytes));
            }
            Some(_) => {}
        }
    }
    if disk.write_protected && (options.mode.writes() || options.mode.trims() || options.fill) {
        return refuse(format!("{name} is write-protected: only --rw read and randread work"));
    }
    Ok(range)
}

struct Bench<'a> {
    engine: Engine<'a>,
    disks: Vec<(Disk, Range)>,
}

impl Bench<'_> {
    fn run(mut self, what: What) -> Result<Report, BenchError> {
        let (options, clock) = (self.engine.options, self.engine.clock);
        let gap = clock.ticks(options.gap).max(u64::from(!options.gap.is_zero()));
        let mut run = Run::new(clock, 0);
        if options.fill {
            self.fill(&mut run)?;
        }
        run.gap = gap;
        let window = if self.stopped() { 0 } else { self.load(&mut run)? };
        Ok(self.report(what, &run, window))
    }

    fn stopped(&self) -> bool {
        self.engine.stop.load(Ordering::Relaxed)
    }

    fn load(&mut self, run: &mut Run<'_>) -> Result<Window, BenchError> {
        let options = self.engine.options;
        let shape = Shape::measured(options);
        let passes: Vec<Pass> = self.disks.iter().map(|(_, range)| range.pass(options, shape, 0)).collect();
        let mut streams = Vec::new();
        for (pass, (_, range)) in passes.iter().zip(&self.disks) {
            let chunks = range.blocks / u64::from(pass.blocks);
            for n in 0..u64::from(options.queues) {
                let seed = crate::rng::mix(options.seed ^ (streams.len() as u64) << 32);
                streams.push(Stream::new(options, chunks, n, options.queues.into(), seed));
            }
        }
        let op = streams.first().map_or(Op::Read, Stream::op);
        let until = Until::Time { ramp: options.ramp, time: options.time };
        self.engine.pass(&passes, op, &mut Plain(streams), run, until, options.mode.name())
    }

    /// Writes the whole range once: big blocks first, then what is left.
    fn fill(&mut self, run: &mut Run<'_>) -> Result<(), BenchError> {
        let options = self.engine.options;
        let big = self.big_shape();
        let small = Shape { bytes: options.block_bytes, depth: options.depth };
        let mut from = vec![0; self.disks.len()];
        for shape in [big, small] {
            let mut passes = Vec::new();
            let mut left = Vec::new();
            for ((_, range), from) in self.disks.iter().zip(&mut from) {
                let pass = range.pass(options, shape, *from);
                let chunks = (range.blocks - *from) / u64::from(pass.blocks);
                let queues = u64::from(options.queues);
                left.extend((0..queues).map(|n| chunks * n / queues..chunks * (n + 1) / queues));
                *from += chunks * u64::from(pass.blocks);
                passes.push(pass);
            }
            if !self.stopped() && left.iter().any(|range| !range.is_empty()) {
                self.engine.pass(&passes, Op::Write, &mut Once::new(Op::Write, left), run, Until::Done, "fill")?;
            }
        }
        Ok(())
    }

    fn big_shape(&self) -> Shape {
        let most = |(disk, range): &(Disk, Range)| {
            disk.transfer_max.map_or(u64::MAX, |blocks| u64::from(blocks) * u64::from(range.block_size))
        };
        Shape::big(self.engine.options, self.disks.iter().map(most).min().unwrap_or(u64::MAX))
    }

    fn report(&self, what: What, run: &Run<'_>, window: Window) -> Report {
        let ns = self.engine.clock.ns_per_tick();
        let seconds = window as f64 * ns / 1e9;
        let figures = |histogram: &Histogram| Figures::new(histogram, ns, seconds, what.bs);
        let mut all = Histogram::default();
        run.tallies.iter().for_each(|tally| all.add(tally));
        let [read, write, trim] = &run.tallies;
        let total = figures(&all);
        let ns_per_io = run.busy_ticks as f64 * ns / run.busy_ios.max(1) as f64;
        let client = Client {
            ns_per_io,
            busy_share: if seconds > 0.0 { ns_per_io * total.ios as f64 / (seconds * 1e9) } else { 0.0 },
            polls: run.polls,
            empty_polls: run.empty_polls,
            batch: total.ios as f64 / run.batches.max(1) as f64,
            kicks: run.kicks,
            interrupts: run.interrupts,
        };
        Report {
            seconds,
            read: figures(read),
            write: figures(write),
            trim: figures(trim),
            total,
            errors: run.errors,
            verify: None,
            retries: run.retries,
            client,
            messages: run.messages.clone(),
            what,
        }
    }
}

/// Pins this thread; the core it is on then.
fn pin(core: Core) -> Result<Option<usize>, BenchError> {
    let mine = sched_getaffinity(None)
        .map_err(|error| BenchError::Setup(format!("cannot see this process's cores: {error}")))?;
    let core = match core {
        Core::Unpinned => return Ok(None),
        Core::Number(core) => core,
        Core::Last => match (0..CpuSet::MAX_CPU).rev().find(|core| mine.is_set(*core)) {
            Some(core) => core,
            None => return Ok(None),
        },
    };
    if core >= CpuSet::MAX_CPU || !mine.is_set(core) {
        return Err(BenchError::Usage(format!("--core {core}: this process may not run there")));
    }
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).map_err(|error| BenchError::Setup(format!("cannot run on core {core}: {error}")))?;
    Ok(Some(core))
}
