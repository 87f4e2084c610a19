//! A whole run, first part: the thread's core, the sessions, what their disks are like.

use std::sync::atomic::AtomicBool;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::BenchError;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::engine::Engine;
use crate::options::{Core, Options};
use crate::phases::Phases;
use crate::range::Range;
use crate::report::{Report, What};
use crate::session::Session;

/// Runs the load. Setting `stop` ends it early with the result so far.
///
/// # Errors
/// If the options cannot work, the target cannot be used, or it fails (not: if single requests fail; the report counts
/// those).
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Report, BenchError> {
    options.check()?;
    raise_file_limit();
    let core = pin(options.core)?;
    let clock = Clock::new();
    let mut sessions = Vec::new();
    let mut queues = Vec::new();
    for path in &options.sockets {
        let (session, mut its) = Session::start(path, options, queues.len())?;
        sessions.push(session);
        queues.append(&mut its);
    }
    let mut disks = Vec::new();
    for (n, session) in sessions.iter().enumerate() {
        let name = format!("LUN {} of target {} at {}", options.lun, options.target, session.path().display());
        let disk = Disk::probe(&mut queues[n * usize::from(options.queues)], &clock, &name)?;
        let range = Range::new(options, &disk, &name)?;
        if options.verbose {
            eprintln!("{name}: {disk}; using {} blocks from LBA {} on", range.blocks, range.first);
        }
        disks.push((disk, range));
    }
    if options.verify {
        no_disk_twice(options, &disks)?;
    }
    let what = What::new(options, core, &sessions, &disks[0].0);
    let engine = Engine::new(options, &clock, stop, sessions, queues)?;
    Phases::new(engine, disks).run(what)
}

/// Many VMs need many descriptors: as many as this process may have. If that is not enough, opening one says so.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// The same disk on two sockets would be written by two loads that know nothing of each other.
fn no_disk_twice(options: &Options, disks: &[(Disk, Range)]) -> Result<(), BenchError> {
    for (n, (disk, _)) in disks.iter().enumerate() {
        let same = |(other, _): &(Disk, Range)| !disk.identity.is_empty() && other.identity == disk.identity;
        if let Some(first) = disks[..n].iter().position(same) {
            return Err(BenchError::Usage(format!(
                "--verify: {} and {} lead to the same disk; give sockets of different ones",
                options.sockets[first].display(),
                options.sockets[n].display()
            )));
        }
    }
    Ok(())
}

/// Pins this thread; the core it is on then.
fn pin(core: Core) -> Result<Option<usize>, BenchError> {
    let setup = |what: &str, error| BenchError::Setup(format!("cannot {what}: {error}"));
    let mine = sched_getaffinity(None).map_err(|error| setup("see which cores this process may use", error))?;
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
    sched_setaffinity(None, &one).map_err(|error| setup(&format!("run on core {core}"), error))?;
    Ok(Some(core))
}
