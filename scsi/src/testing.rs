//! What tests of this crate share.

use std::sync::{Arc, Mutex};

use pollux_core::{AtomicWrite, Discard, IoFlags, Shape};
use uuid::Uuid;

use crate::{
    Action, Attention, Cdb, Chosen, Identity, Inventory, Job, Keeper, Key, LogicalUnit, Nexus, Outcome, PIECE_LEN,
    Path, SCRATCH_LEN, Save, Sections, Sense, Status, Task,
};

/// A disk of 2 MiB with everything.
pub(crate) fn shape() -> Shape {
    Shape {
        block_size: 512,
        physical_block_size: 4096,
        num_blocks: 4096,
        read_only: false,
        volatile_cache: true,
        discard: Some(Discard { granularity: 4096, alignment: 0, reads_zero: true }),
        optimal_io: 65536,
        rotation_rate: 1,
        atomic_write: Some(AtomicWrite { max: 65536, granularity: 4096, alignment: 4096 }),
    }
}

pub(crate) fn uuid() -> Uuid {
    Uuid::from_u128(0x0123_4567_89ab_4cde_8f01_2345_6789_abcd)
}

/// A unit with two paths by two nexuses, their first attentions taken.
pub(crate) fn two_paths(shape: Option<Shape>) -> (Arc<LogicalUnit>, [Arc<Path>; 2]) {
    let unit = LogicalUnit::new(Identity::from_uuid(uuid(), "test disk"), shape);
    let paths = [1, 2].map(|port| unit.attach(Nexus::new(port, format!("c{port}"), port as u16, 0), 0));
    paths.iter().for_each(|path| drop(drained(path)));
    (unit, paths)
}

pub(crate) fn drained(path: &Path) -> Vec<Attention> {
    std::iter::from_fn(|| path.take()).collect()
}

/// Keeps saves until the test ends them.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    pub(crate) saves: Mutex<Vec<Save>>,
    /// Admits nobody.
    pub(crate) full: Mutex<bool>,
}

impl Keeper for Shelf {
    fn admits(&self, _: u64) -> bool {
        !*self.full.lock().unwrap()
    }

    fn submit(&self, save: Save) {
        self.saves.lock().unwrap().push(save);
    }
}

/// Units 0, 3 and 300, and no well-known one.
pub(crate) struct Luns;

impl Inventory for Luns {
    fn luns(&self, visit: &mut dyn FnMut(u16)) {
        [0, 3, 300].into_iter().for_each(visit);
    }
}

/// A unit, a path to it, and memory for answers.
pub(crate) struct Bench {
    pub(crate) unit: Arc<LogicalUnit>,
    pub(crate) path: Arc<Path>,
    pub(crate) other: Arc<Path>,
    scratch: Vec<u8>,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with(Some(shape()))
    }

    pub(crate) fn with(shape: Option<Shape>) -> Bench {
        let (unit, [path, other]) = two_paths(shape);
        Bench { unit, path, other, scratch: vec![0xEE; SCRATCH_LEN] }
    }

    /// A unit of which something is kept; `None`: something that cannot be read.
    pub(crate) fn kept(shelf: &Arc<Shelf>, kept: Option<&Sections>) -> Bench {
        let identity = Identity::from_uuid(uuid(), "test disk");
        let unit = LogicalUnit::kept(identity, Some(shape()), shelf.clone(), kept);
        let [path, other] = [1, 2].map(|port| unit.attach(Nexus::new(port, format!("c{port}"), port as u16, 0), 0));
        drained(&path);
        drained(&other);
        Bench { unit, path, other, scratch: vec![0xEE; SCRATCH_LEN] }
    }

    /// Its operator allows SANITIZE, or does not.
    pub(crate) fn allow_sanitize(&self, allowed: bool) {
        let chosen = Chosen { allow_sanitize: Some(allowed), ..Chosen::default() };
        let identity = Identity::from_uuid(uuid(), "test disk").with(&chosen).expect("nothing else is chosen");
        self.unit.set_identity(identity);
        for path in [&self.path, &self.other] {
            drained(path);
        }
    }

    pub(crate) fn execute(&mut self, cdb: &[u8]) -> Action {
        self.unit.execute(&self.path, &Cdb::from_slice(cdb), &Luns, &mut self.scratch)
    }

    /// The data-in of a command that ends with GOOD.
    pub(crate) fn data(&mut self, cdb: &[u8]) -> Vec<u8> {
        match self.execute(cdb) {
            Action::Done(Outcome { status: Status::Good, sense: None, data_len }) => self.scratch[..data_len].to_vec(),
            other => panic!("{cdb:02X?}: {other:?}"),
        }
    }

    pub(crate) fn good(&mut self, cdb: &[u8]) {
        assert_eq!(self.data(cdb), [], "{cdb:02X?}");
    }

    /// The sense of a command that ends with CHECK CONDITION.
    pub(crate) fn sense(&mut self, cdb: &[u8]) -> Sense {
        sense_of(&self.execute(cdb))
    }

    /// A command with parameter data.
    pub(crate) fn send(&mut self, cdb: &[u8], parameters: &[u8]) -> Action {
        match self.execute(cdb) {
            Action::DataOut { len } => assert_eq!(len, parameters.len(), "{cdb:02X?}"),
            other => panic!("{cdb:02X?}: {other:?}"),
        }
        self.unit.execute_out(&self.path, &Cdb::from_slice(cdb), parameters, &mut self.scratch)
    }
}

impl Action {
    /// The outcome of an action that is one.
    pub(crate) fn done(self) -> Option<Outcome> {
        match self {
            Action::Done(outcome) => Some(outcome),
            _ => None,
        }
    }
}

/// The sense of an action that is a CHECK CONDITION.
pub(crate) fn sense_of(action: &Action) -> Sense {
    match action {
        Action::Done(Outcome { status: Status::CheckCondition, sense: Some(sense), data_len: 0 }) => *sense,
        other => panic!("{other:?}"),
    }
}

/// A medium that jobs run on, as a front end runs them.
pub(crate) struct Platter {
    pub(crate) bytes: Vec<u8>,
    /// Offset, length and FUA of each write.
    pub(crate) writes: Vec<(u64, usize, bool)>,
    /// Writes do nothing.
    pub(crate) forgets: bool,
}

impl Platter {
    pub(crate) fn new(len: usize) -> Platter {
        Platter { bytes: vec![0; len], writes: Vec::new(), forgets: false }
    }

    /// Runs a job; `look` sees each task that it gives.
    pub(crate) fn each(&mut self, job: &mut Job, out: &[u8], mut look: impl FnMut(&Job, &Task)) -> Outcome {
        assert_eq!(job.data_out(), out.len() as u64);
        let (mut sent, mut held) = (vec![0xEE; PIECE_LEN], vec![0xEE; PIECE_LEN]);
        loop {
            let task = job.next(&mut sent, &held);
            look(job, &task);
            match task {
                Task::Fetch { at, len } => sent[..len].copy_from_slice(&out[at as usize..][..len]),
                Task::Load { offset, len } => held[..len].copy_from_slice(&self.bytes[offset as usize..][..len]),
                Task::Store { offset, len, flags } => {
                    self.writes.push((offset, len, flags.contains(IoFlags::FUA)));
                    if !self.forgets {
                        self.bytes[offset as usize..][..len].copy_from_slice(&sent[..len]);
                    }
                }
                Task::Pause => {
                    sent.fill(0xEE);
                    held.fill(0xEE);
                }
                Task::End(outcome) => return outcome,
            }
        }
    }

    pub(crate) fn run(&mut self, mut job: Job, out: &[u8]) -> Outcome {
        self.each(&mut job, out, |_, _| {})
    }

    fn run_action(&mut self, action: Action, out: &[u8]) -> Outcome {
        match action {
            Action::Job(job) => self.run(job, out),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn good(&mut self, action: Action, out: &[u8]) {
        assert_eq!(self.run_action(action, out), Outcome::GOOD);
    }

    /// Where the job found the first byte that differs.
    pub(crate) fn miscompare(&mut self, action: Action, out: &[u8]) -> u64 {
        let sense = sense_of(&Action::Done(self.run_action(action, out)));
        assert_eq!((sense.key, sense.code()), (Key::Miscompare, 0x1D00));
        sense.info.expect("the offset")
    }
}
