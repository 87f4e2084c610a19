//! A whole SCSI device in the simulated world: it answers late and out of order, and touches the memory of a command at the
//! last moment before it answers; it loses commands on the way, and it can vanish.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pollux_core::{
    Bdev, Channel, Completion, Cx, Delivery, Io, IoError, Next, OpenArgs, OpenError, ScsiAnswer, ScsiChannel,
    ScsiCommand, Shape, Tag, segment,
};

use crate::rng::Rng;

const BLOCK: usize = 512;
/// The longest that a command takes, in nanoseconds.
const SLOWEST: u64 = 3_000_000;
const CHECK_CONDITION: u8 = 2;

/// What all channels of a device share.
struct Disk {
    bytes: Vec<u8>,
    /// The last parameter list of a MODE SELECT.
    modes: Vec<u8>,
    rng: Rng,
    /// One command in so many is lost on the way; 0: none.
    lossy: u64,
    gone: bool,
    /// No command ends.
    busy: bool,
    /// Commands that were ended by a reset.
    reset: u64,
    /// How often a channel was told that its guest has gone.
    nexuses_lost: u64,
}

/// A device.
#[derive(Clone)]
pub struct SimSg(Arc<Mutex<Disk>>);

impl SimSg {
    /// A disk of so many blocks of zeroes.
    #[must_use]
    pub fn new(blocks: usize, seed: u64) -> Self {
        let bytes = vec![0; blocks * BLOCK];
        let modes = Vec::new();
        SimSg(Arc::new(Mutex::new(Disk {
            bytes,
            modes,
            rng: Rng::new(seed),
            lossy: 0,
            gone: false,
            busy: false,
            reset: 0,
            nexuses_lost: 0,
        })))
    }

    /// Has one command in so many lost on the way; 0: none.
    pub fn set_lossy(&self, one_in: u64) {
        self.lock().lossy = one_in;
    }

    /// It is pulled.
    pub fn vanish(&self) {
        self.lock().gone = true;
    }

    /// From now on no command ends, or all do again.
    pub fn keep_busy(&self, busy: bool) {
        self.lock().busy = busy;
    }

    /// How many commands were ended by a reset.
    #[must_use]
    pub fn ended_by_reset(&self) -> u64 {
        self.lock().reset
    }

    /// How often a channel was told that its guest has gone.
    #[must_use]
    pub fn nexuses_lost(&self) -> u64 {
        self.lock().nexuses_lost
    }

    /// The last parameter list of a MODE SELECT, as the device has got it.
    #[must_use]
    pub fn modes(&self) -> Vec<u8> {
        self.lock().modes.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// Does a command now, in its memory.
    fn execute(&mut self, command: &ScsiCommand) -> ScsiAnswer {
        if self.gone {
            return ScsiAnswer::undelivered(Delivery::Gone, command.len);
        }
        let cdb = &command.cdb;
        let first = u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]) as usize * BLOCK;
        let len = usize::from(u16::from_be_bytes([cdb[7], cdb[8]])) * BLOCK;
        let moved = len.min(command.len as usize);
        let data = command.data.as_slice();
        match cdb[0] {
            0x00 => ScsiAnswer::answered(0, &[], command.len),
            // MODE SELECT (6)
            0x15 => {
                self.modes = vec![0; usize::from(cdb[4]).min(command.len as usize)];
                segment::copy_from(data, 0, &mut self.modes);
                ScsiAnswer::answered(0, &[], command.len - self.modes.len() as u64)
            }
            0x28 | 0x2A if first + len > self.bytes.len() => {
                let sense = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0];
                ScsiAnswer::answered(CHECK_CONDITION, &sense, command.len)
            }
            0x28 => {
                segment::copy_to(data, 0, &self.bytes[first..first + moved]);
                ScsiAnswer::answered(0, &[], command.len - moved as u64)
            }
            0x2A => {
                segment::copy_from(data, 0, &mut self.bytes[first..first + moved]);
                ScsiAnswer::answered(0, &[], command.len - moved as u64)
            }
            _ => {
                let sense = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0];
                ScsiAnswer::answered(CHECK_CONDITION, &sense, command.len)
            }
        }
    }
}

impl Bdev for SimSg {
    fn shape(&self) -> Shape {
        Shape {
            block_size: 512,
            physical_block_size: 512,
            num_blocks: 0,
            read_only: false,
            volatile_cache: false,
            discard: None,
            optimal_io: 0,
            rotation_rate: 0,
            atomic_write: None,
        }
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let depth = args.depth.min(16);
        Ok(Box::new(SimSgChannel { device: self.clone(), depth, inflight: Vec::new(), answers: HashMap::new() }))
    }
}

/// What is under way, and when it ends.
enum Work {
    Command(ScsiCommand, Option<Delivery>),
    Reset(Tag),
}

struct SimSgChannel {
    device: SimSg,
    depth: u32,
    inflight: Vec<(u64, Work)>,
    answers: HashMap<Tag, ScsiAnswer>,
}

impl Channel for SimSgChannel {
    fn depth(&self) -> u32 {
        self.depth
    }

    fn attach(&mut self, _: &mut Cx<'_>) -> Result<(), IoError> {
        Ok(())
    }

    fn detach(&mut self, _: &mut Cx<'_>) {
        assert!(self.inflight.is_empty(), "a channel leaves with nothing under way");
    }

    fn submit(&mut self, io: Io, _: &mut Cx<'_>) {
        panic!("a whole device has no blocks: {io:?}");
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        let mut disk = self.device.lock();
        if disk.busy {
            return;
        }
        let (due, left) = std::mem::take(&mut self.inflight).into_iter().partition(|(at, _)| *at <= cx.now);
        self.inflight = left;
        let mut due: Vec<_> = due;
        due.sort_by_key(|(at, _)| *at);
        for (_, work) in due {
            match work {
                Work::Command(command, lost) => {
                    let answer = match lost {
                        // As host adapters' drivers do it that count everything as moved unless they know better.
                        Some(delivery) => {
                            let residual = if disk.rng.chance(1, 2) { 0 } else { command.len };
                            ScsiAnswer::undelivered(delivery, residual)
                        }
                        None => disk.execute(&command),
                    };
                    self.answers.insert(command.tag, answer);
                    done.push(Completion { tag: command.tag, result: Ok(()) });
                }
                Work::Reset(tag) => done.push(Completion { tag, result: Ok(()) }),
            }
        }
    }

    fn next(&self) -> Next {
        if self.device.lock().busy {
            return Next::Idle;
        }
        self.inflight.iter().fold(Next::Idle, |next, (at, _)| next.or(Next::At(*at)))
    }

    fn cancel(&mut self, tag: Tag, _: &mut Cx<'_>) {
        let mut disk = self.device.lock();
        for (_, work) in &mut self.inflight {
            if let Work::Command(command, lost) = work
                && command.tag == tag
                && lost.is_none()
                && disk.rng.chance(1, 3)
            {
                *lost = Some(Delivery::Aborted);
            }
        }
    }

    fn scsi(&mut self) -> Option<&mut dyn ScsiChannel> {
        Some(self)
    }
}

impl ScsiChannel for SimSgChannel {
    fn submit_scsi(&mut self, command: ScsiCommand, cx: &mut Cx<'_>) {
        assert!(self.inflight.len() < 2 * self.depth as usize, "the submitter keeps to the depth");
        let mut disk = self.device.lock();
        let lost = (disk.lossy > 0 && {
            let of = disk.lossy;
            disk.rng.chance(1, of)
        })
        .then(|| {
            let lost = &Delivery::ALL[1..];
            lost[disk.rng.index(lost.len())]
        });
        let at = cx.now + 1 + disk.rng.below(SLOWEST);
        drop(disk);
        self.inflight.push((at, Work::Command(command, lost)));
    }

    fn take_answer(&mut self, tag: Tag) -> Option<ScsiAnswer> {
        self.answers.remove(&tag)
    }

    fn nexus_lost(&mut self) {
        let commands = self.inflight.iter().any(|(_, work)| matches!(work, Work::Command(..)));
        assert!(!commands, "a session ends when its commands have");
        self.device.lock().nexuses_lost += 1;
    }

    fn reset(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        let mut disk = self.device.lock();
        for (at, work) in &mut self.inflight {
            if let Work::Command(_, lost) = work
                && lost.is_none()
            {
                (*at, *lost) = (cx.now + disk.rng.below(1000), Some(Delivery::Reset));
                disk.reset += 1;
            }
        }
        let at = cx.now + disk.rng.below(SLOWEST);
        drop(disk);
        self.inflight.push((at, Work::Reset(tag)));
    }
}
