//! What a medium holds after a crash, found out like an operator would: the checker looks at it as it is, then the pool is
//! opened and read in full through channels, checkpointed, compared with the checker's walk, closed, and opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::driver::id_of;
use super::world::World;
use crate::testing::expect::{Id, Survivors};
use crate::testing::floor::{Floor, LaneId};
use crate::testing::medium::{Crash, Medium, Order};
use crate::testing::stamp::{SECTOR, Value};
use crate::thin::check::{Block, Blocks, Report, check};
use crate::thin::format::BLOCK;
use crate::thin::{PoolInfo, Role};

/// Reads of an open that are neither of the log nor of a place where something is for each layer.
const OPEN_READS: u64 = 24;

/// A medium as the checker reads it.
struct Shown<'a>(&'a Medium);

impl Blocks for Shown<'_> {
    fn len(&self) -> u64 {
        self.0.geometry().bytes / BLOCK as u64
    }

    fn read(&mut self, block: u64) -> io::Result<Block> {
        if block >= self.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes: Box<[u8]> = self.0.peek(block * BLOCK as u64, BLOCK).into();
        Ok(bytes.try_into().expect("a block"))
    }
}

/// What the checker says of what a medium shows.
pub(super) fn checked(medium: &Medium) -> Report {
    check(&mut Shown(medium), &mut |_, _| {})
}

/// The same, if nothing is wrong.
pub(super) fn clean(medium: &Medium, when: &str) -> Result<Report, String> {
    let report = checked(medium);
    if report.is_clean() {
        return Ok(report);
    }
    Err(format!("the checker, {when}: {:?} {:?} {:?}", report.verdict, report.reason, report.findings))
}

/// A sector, small.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Is(Value),
    Torn(Box<[u8; SECTOR]>),
}

/// What a pool holds. Sectors of zeroes are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    volumes: BTreeMap<Id, (u64, BTreeMap<u64, Held>)>,
    snapshots: BTreeSet<Id>,
    /// What each stands on.
    pub(super) parents: BTreeMap<Id, Id>,
    /// The pool's name, and how much of its base it takes.
    pub(super) name: String,
    pub(super) bytes: u64,
}

impl Survivors for &Found {
    fn volumes(&mut self) -> Vec<(Id, u64)> {
        self.volumes.iter().map(|(id, (sectors, _))| (*id, *sectors)).collect()
    }

    fn read(&mut self, volume: Id, sector: u64) -> [u8; SECTOR] {
        match self.volumes[&volume].1.get(&sector) {
            None => [0; SECTOR],
            Some(Held::Is(value)) => value.bytes(),
            Some(Held::Torn(bytes)) => **bytes,
        }
    }

    fn is_snapshot(&mut self, volume: Id) -> Option<bool> {
        Some(self.snapshots.contains(&volume))
    }

    fn value(&mut self, volume: Id, sector: u64) -> Option<Value> {
        match self.volumes[&volume].1.get(&sector) {
            None => Some(Value::Zero),
            Some(Held::Is(value)) => Some(*value),
            Some(Held::Torn(_)) => None,
        }
    }
}

/// Opens the pool on a medium; fails if that reads more than it may.
pub(super) fn open(medium: &Medium, floor: Floor<'static>, reactors: usize, salt: u64) -> Result<World, String> {
    let before = medium.reads();
    let world = World::open(medium, floor, reactors, salt).map_err(|error| format!("it cannot be opened: {error}"))?;
    let reads = medium.reads() - before;
    if reads > OPEN_READS {
        return Err(format!("{reads} reads to open it"));
    }
    Ok(world)
}

/// Reads all that a pool has.
pub(super) fn survey(world: &mut World, reactors: usize) -> Result<Found, String> {
    let info = world.info();
    let mut found = Found { name: info.name.clone(), bytes: info.base_bytes, ..Found::default() };
    for (nth, volume) in info.volumes.iter().enumerate().filter(|(_, volume)| !volume.uuid.is_nil()) {
        let id = id_of(volume.uuid).ok_or_else(|| format!("there is a {} that nobody made", volume.name))?;
        let lane = world.lane(volume.uuid.as_u128(), nth % reactors);
        let bytes =
            world.floor.read(lane, 0, volume.bytes).map_err(|error| format!("{id:?} cannot be read: {error}"))?;
        world.close(lane);
        let mut held = BTreeMap::new();
        for (sector, bytes) in (0..).zip(bytes.as_chunks::<SECTOR>().0) {
            match Value::of(bytes) {
                Some(Value::Zero) => {}
                Some(value) => drop(held.insert(sector, Held::Is(value))),
                None => drop(held.insert(sector, Held::Torn(Box::new(*bytes)))),
            }
        }
        found.volumes.insert(id, (volume.bytes / SECTOR as u64, held));
        found.snapshots.extend((volume.role == Role::Snapshot).then_some(id));
        if let Some(parent) = volume.parent.and_then(id_of) {
            found.parents.insert(id, parent);
        }
    }
    Ok(found)
}

/// Bytes that are read at once.
const CHUNK: u64 = 64 << 10;

/// A pool that is read as somebody asks, by the lanes of one volume after the other.
pub(super) struct Live<'a> {
    world: &'a mut World,
    reactors: usize,
    volumes: BTreeMap<Id, (u128, u64)>,
    snapshots: BTreeSet<Id>,
    /// What each stands on.
    pub(super) parents: BTreeMap<Id, Id>,
    lane: Option<(Id, LaneId)>,
    chunk: Option<(Id, u64, Vec<u8>)>,
    failed: Option<String>,
}

impl<'a> Live<'a> {
    pub(super) fn new(world: &'a mut World, reactors: usize) -> Result<Live<'a>, String> {
        let (mut volumes, mut snapshots, mut parents) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        for volume in world.info().volumes.iter().filter(|volume| !volume.uuid.is_nil()) {
            let id = id_of(volume.uuid).ok_or_else(|| format!("there is a {} that nobody made", volume.name))?;
            volumes.insert(id, (volume.uuid.as_u128(), volume.bytes));
            snapshots.extend((volume.role == Role::Snapshot).then_some(id));
            parents.extend(volume.parent.and_then(id_of).map(|parent| (id, parent)));
        }
        Ok(Live { world, reactors, volumes, snapshots, parents, lane: None, chunk: None, failed: None })
    }

    fn load(&mut self, id: Id, at: u64) -> Result<Vec<u8>, String> {
        let (uuid, bytes) = self.volumes[&id];
        let lane = match self.lane {
            Some((open, lane)) if open == id => lane,
            other => {
                other.into_iter().for_each(|(_, lane)| self.world.close(lane));
                let lane = self.world.lane(uuid, id.0 as usize % self.reactors);
                self.lane = Some((id, lane));
                lane
            }
        };
        let read = self.world.floor.read(lane, at, CHUNK.min(bytes - at));
        read.map_err(|error| format!("byte {at} of {id:?} cannot be read: {error}"))
    }

    /// Whether all could be read.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.lane.take().into_iter().for_each(|(_, lane)| self.world.close(lane));
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl Survivors for Live<'_> {
    fn volumes(&mut self) -> Vec<(Id, u64)> {
        self.volumes.iter().map(|(id, (_, bytes))| (*id, bytes / SECTOR as u64)).collect()
    }

    fn is_snapshot(&mut self, volume: Id) -> Option<bool> {
        Some(self.snapshots.contains(&volume))
    }

    fn read(&mut self, volume: Id, sector: u64) -> [u8; SECTOR] {
        let (at, inside) = (sector * SECTOR as u64 / CHUNK * CHUNK, sector * SECTOR as u64 % CHUNK);
        if self.chunk.as_ref().is_none_or(|(id, start, _)| (*id, *start) != (volume, at)) {
            let bytes = self.load(volume, at).unwrap_or_else(|what| {
                self.failed.get_or_insert(what);
                vec![0; CHUNK as usize]
            });
            self.chunk = Some((volume, at, bytes));
        }
        let bytes = self.chunk.as_ref().map_or(&[][..], |(_, _, bytes)| bytes);
        bytes[inside as usize..].first_chunk().copied().unwrap_or([0xee; SECTOR])
    }
}

/// Whether the pool counts what the checker counts. Nothing is under way, and all is in the trees.
pub(super) fn counted(info: &PoolInfo, report: &Report) -> Result<(), String> {
    let size = u64::from(info.cluster_size);
    let told: Vec<_> =
        info.volumes.iter().map(|v| (v.uuid, v.owned_bytes / size, v.written_bytes * 16 / size)).collect();
    let walked: Vec<_> = report.layers.iter().map(|layer| (layer.uuid, layer.owned, layer.here)).collect();
    if told != walked {
        return Err(format!("the pool counts (uuid, clusters, sub-blocks) {told:?}, the checker {walked:?}"));
    }
    let free = report.pool.as_ref().map_or(0, |pool| pool.free * size);
    if info.free_bytes + info.quarantined_bytes != free {
        let (told, waiting) = (info.free_bytes, info.quarantined_bytes);
        return Err(format!("the pool has {told} bytes free and {waiting} in quarantine, the checker finds {free}"));
    }
    Ok(())
}

/// See the module's description. The medium is used up.
pub(super) fn judge(medium: &Medium, reactors: usize) -> Result<Found, String> {
    clean(medium, "before anything")?;
    let mut world = open(medium, Floor::in_order(), reactors, medium.instants() + 1000)?;
    let found = survey(&mut world, reactors)?;
    let medium = tidy(world)?;
    let mut world = open(&medium, Floor::in_order(), reactors, medium.instants() + 2000)?;
    let again = survey(&mut world, reactors)?;
    if again != found {
        return Err(format!("opened once more it holds {again:?}, before {found:?}"));
    }
    world.forget();
    Ok(found)
}

/// The same without the medium as it was before: everything comes to its end and adds up, and the pool is opened again.
pub(super) fn again(world: World) -> World {
    let medium = tidy(world).unwrap_or_else(|what| panic!("{what}"));
    World::open(&medium, Floor::in_order(), 2, 2).expect("it was closed")
}

/// The same of a copy of what a crash has left: the medium stays as it is.
pub(super) fn adds_up(left: &Medium, reactors: usize, salt: u64) -> Result<(), String> {
    let copy = left.crash(Crash::All, Order::InOrder);
    tidy(open(&copy, Floor::in_order(), reactors, salt)?).map(drop)
}

/// Brings everything to its end, compares what is counted, and closes.
pub(super) fn tidy(mut world: World) -> Result<Medium, String> {
    world.order(crate::thin::orders::Order::Checkpoint).map_err(|error| format!("no checkpoint: {error}"))?;
    world.floor.settle(2_000_000_000);
    let info = world.info();
    let medium = world.shut();
    let report = clean(&medium, "after it was closed")?;
    counted(&info, &report)?;
    Ok(medium)
}
