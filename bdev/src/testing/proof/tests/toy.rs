//! The simplest pool that keeps its promises: everything is in memory, and a commit writes all of it to the other one of two
//! places: data, a barrier, a header with FUA.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{Bdev, Channel, Completion, Cx, Io, IoError, IoFlags, Next, Op, OpenArgs, Tag, Wake};

use crate::memory::Buffer;
use crate::testing::expect::Id;
use crate::testing::floor::{Engine, Floor, LaneId};
use crate::testing::medium::Medium;
use crate::testing::proof::{Order, Subject};
use crate::thin::steps::Steps;

const HEADERS: [u64; 2] = [0, 4096];
const PLACES: [u64; 2] = [1 << 20, 2 << 20];

#[derive(Clone)]
struct Volume {
    snapshot: bool,
    bytes: Vec<u8>,
}

enum Work {
    Io { lane: u32, volume: u64, io: Io },
    Order(u64, Order),
}

#[derive(Default)]
struct Shared {
    volumes: BTreeMap<u64, Volume>,
    queue: VecDeque<Work>,
    done: BTreeMap<u32, Vec<Completion>>,
    answers: BTreeMap<u64, Result<(), String>>,
    wakers: BTreeMap<u32, Arc<dyn Wake>>,
    /// The engine's.
    waker: Option<Arc<dyn Wake>>,
    numbers: u64,
}

type Handle = Arc<Mutex<Shared>>;

fn lock(shared: &Handle) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Shared {
    fn push(&mut self, work: Work) {
        self.queue.push_back(work);
        self.waker.as_ref().unwrap().wake();
    }

    fn image(&self) -> Vec<u8> {
        let mut bytes = (self.volumes.len() as u64).to_le_bytes().to_vec();
        for (id, volume) in &self.volumes {
            for word in [*id, u64::from(volume.snapshot), volume.bytes.len() as u64] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(&volume.bytes);
        }
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn load(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        let word = |bytes: &mut &[u8]| {
            let (word, rest) = bytes.split_first_chunk().ok_or("it ends too early")?;
            *bytes = rest;
            Ok::<u64, String>(u64::from_le_bytes(*word))
        };
        for _ in 0..word(&mut bytes)? {
            let (id, snapshot, len) = (word(&mut bytes)?, word(&mut bytes)?, word(&mut bytes)? as usize);
            let held = bytes.get(..len).ok_or("it ends too early")?;
            self.volumes.insert(id, Volume { snapshot: snapshot != 0, bytes: held.to_vec() });
            bytes = &bytes[len..];
        }
        Ok(())
    }

    fn change(&mut self, order: &Order) -> Result<(), String> {
        let get = |volumes: &BTreeMap<u64, Volume>, id: &Id| volumes.get(&id.0).cloned().ok_or("not there".to_owned());
        match order {
            Order::Create { volume, sectors } => {
                self.volumes.insert(volume.0, Volume { snapshot: false, bytes: vec![0; *sectors as usize * 512] });
            }
            Order::Snapshot(of) => {
                for (volume, made) in of {
                    let copy = Volume { snapshot: true, ..get(&self.volumes, volume)? };
                    self.volumes.insert(made.0, copy);
                }
            }
            Order::Clone { snapshot, volume } => {
                let copy = Volume { snapshot: false, ..get(&self.volumes, snapshot)? };
                self.volumes.insert(volume.0, copy);
            }
            Order::Checkpoint => {}
            Order::Delete(id) => drop(self.volumes.remove(&id.0)),
            Order::Rollback { volume, snapshot } => {
                let copy = get(&self.volumes, snapshot)?;
                self.volumes.insert(volume.0, Volume { snapshot: false, ..copy });
            }
            Order::Resize { volume, sectors } => {
                let mut resized = get(&self.volumes, volume)?;
                resized.bytes.resize(*sectors as usize * 512, 0);
                self.volumes.insert(volume.0, resized);
            }
        }
        Ok(())
    }

    /// Does it; whether it has to be durable before it is answered.
    fn perform(&mut self, volume: u64, io: &Io) -> bool {
        let range = io.offset as usize..(io.offset + io.len) as usize;
        let bytes = &mut self.volumes.get_mut(&volume).unwrap().bytes;
        match io.op {
            Op::Read => drop(copy_to(io.data.as_slice(), 0, &bytes[range])),
            Op::Write => drop(copy_from(io.data.as_slice(), 0, &mut bytes[range])),
            Op::Discard | Op::WriteZeroes => bytes[range].fill(0),
            Op::Flush => return true,
        }
        io.flags.contains(IoFlags::FUA)
    }

    fn answer(&mut self, work: &Work, result: Result<(), IoError>) {
        match work {
            Work::Io { lane, io, .. } => {
                self.done.entry(*lane).or_default().push(Completion { tag: io.tag, result });
                self.wakers[lane].wake();
            }
            Work::Order(number, _) => drop(self.answers.insert(*number, result.map_err(|error| error.to_string()))),
        }
    }
}

struct ToyChannel {
    shared: Handle,
    lane: u32,
    volume: u64,
    in_flight: usize,
}

impl Channel for ToyChannel {
    fn depth(&self) -> u32 {
        8
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        lock(&self.shared).wakers.insert(self.lane, cx.ring.waker());
        Ok(())
    }

    fn detach(&mut self, _cx: &mut Cx<'_>) {}

    fn submit(&mut self, io: Io, _cx: &mut Cx<'_>) {
        self.in_flight += 1;
        lock(&self.shared).push(Work::Io { lane: self.lane, volume: self.volume, io });
    }

    fn poll(&mut self, _cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        let mine = lock(&self.shared).done.remove(&self.lane).unwrap_or_default();
        self.in_flight -= mine.len();
        done.extend(mine);
    }

    fn next(&self) -> Next {
        if self.in_flight == 0 { Next::Idle } else { Next::Ring }
    }

    fn cancel(&mut self, _tag: Tag, _cx: &mut Cx<'_>) {}
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Data,
    Barrier,
    Header,
}

struct ToyEngine {
    base: Box<dyn Channel>,
    medium: Medium,
    shared: Handle,
    generation: u64,
    current: Option<(Work, Stage)>,
    image: usize,
    buffer: Option<Buffer>,
}

impl ToyEngine {
    fn write(&mut self, offset: u64, bytes: &[u8], flags: IoFlags, cx: &mut Cx<'_>) {
        let buffer = Buffer::new(bytes.len());
        copy_to(buffer.list().as_slice(), 0, bytes);
        let io = Io { tag: 0, op: Op::Write, flags, offset, len: bytes.len() as u64, data: buffer.list() };
        self.buffer = Some(buffer);
        self.base.submit(io, cx);
    }

    fn begin(&mut self, stage: Stage, cx: &mut Cx<'_>) {
        let place = (self.generation + 1) as usize % 2;
        match stage {
            Stage::Data => {
                let image = lock(&self.shared).image();
                self.image = image.len();
                self.medium.step("data");
                self.write(PLACES[place], &image, IoFlags::empty(), cx);
            }
            Stage::Barrier => {
                self.medium.step("barrier");
                self.base.submit(Io::without_data(0, Op::Flush, IoFlags::empty(), 0, 0), cx);
            }
            Stage::Header => {
                let mut header = (self.generation + 1).to_le_bytes().to_vec();
                header.extend((self.image as u64).to_le_bytes());
                header.resize(512, 0);
                self.medium.step("header");
                self.write(HEADERS[place], &header, IoFlags::FUA, cx);
            }
        }
    }

    /// One piece of work begins; whether there was one.
    fn take(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(work) = lock(&self.shared).queue.pop_front() else { return false };
        let commits = match &work {
            Work::Io { volume, io, .. } => lock(&self.shared).perform(*volume, io),
            Work::Order(_, order) => lock(&self.shared).change(order).is_ok(),
        };
        if commits {
            self.current = Some((work, Stage::Data));
            self.begin(Stage::Data, cx);
        } else {
            let refused = matches!(work, Work::Order(..));
            lock(&self.shared).answer(&work, if refused { Err(IoError::Unsupported) } else { Ok(()) });
        }
        true
    }
}

impl Engine for ToyEngine {
    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut done = Vec::new();
        self.base.poll(cx, &mut done);
        for completion in &done {
            let (work, stage) = self.current.take().unwrap();
            let next = match stage {
                Stage::Data => Stage::Barrier,
                Stage::Barrier => Stage::Header,
                Stage::Header => {
                    self.generation += 1;
                    lock(&self.shared).answer(&work, completion.result);
                    continue;
                }
            };
            self.current = Some((work, next));
            self.begin(next, cx);
        }
        let began = self.current.is_none() && self.take(cx);
        done.len() as u32 + u32::from(began)
    }

    fn next(&self) -> Next {
        self.base.next()
    }
}

pub(super) struct Toy {
    floor: Floor<'static>,
    shared: Handle,
}

impl Subject for Toy {
    const REACTORS: usize = 2;
    const BLOCK: u64 = 1;

    fn create(_medium: &Medium) {}

    fn open(medium: &Medium, mut floor: Floor<'static>) -> Result<Self, String> {
        let word = |at| u64::from_le_bytes(medium.peek(at, 8).try_into().unwrap());
        let newest = if word(HEADERS[0]) > word(HEADERS[1]) { 0 } else { 1 };
        let generation = word(HEADERS[newest]);
        let mut shared = Shared::default();
        if generation > 0 {
            shared.load(&medium.peek(PLACES[newest], word(HEADERS[newest] + 8) as usize))?;
        }
        let shared = Arc::new(Mutex::new(shared));
        let mut base = medium.open(OpenArgs { depth: 1, seed: 0 }).map_err(|error| error.to_string())?;
        floor.with_ring(0, |cx| {
            lock(&shared).waker = Some(cx.ring.waker());
            base.attach(cx).unwrap();
        });
        let (medium, handle) = (medium.clone(), shared.clone());
        floor.engine(0, ToyEngine { base, medium, shared: handle, generation, current: None, image: 0, buffer: None });
        Ok(Toy { floor, shared })
    }

    fn floor(&mut self) -> &mut Floor<'static> {
        &mut self.floor
    }

    fn lane(&mut self, volume: Id, reactor: usize) -> LaneId {
        let mut shared = lock(&self.shared);
        shared.numbers += 1;
        let lane = shared.numbers as u32;
        drop(shared);
        let channel = ToyChannel { shared: self.shared.clone(), lane, volume: volume.0, in_flight: 0 };
        self.floor.channel(reactor, Box::new(channel)).unwrap()
    }

    fn order(&mut self, order: &Order) -> u64 {
        let mut shared = lock(&self.shared);
        shared.numbers += 1;
        let number = shared.numbers;
        shared.push(Work::Order(number, order.clone()));
        number
    }

    fn answer(&mut self, order: u64) -> Option<Result<(), String>> {
        lock(&self.shared).answers.remove(&order)
    }

    fn volumes(&mut self) -> Vec<(Id, u64)> {
        let shared = lock(&self.shared);
        shared.volumes.iter().map(|(id, volume)| (Id(*id), volume.bytes.len() as u64 / 512)).collect()
    }

    fn check(&mut self) -> Result<(), String> {
        Ok(())
    }
}
