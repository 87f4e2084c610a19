//! A pool that a test drives.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use pollux_core::{Bdev, Cx, IoFlags, Next, Op, OpenArgs, Resident};
use uuid::Uuid;

use crate::testing::floor::{Engine, Floor, LaneId};
use crate::testing::medium::{Crash, Geometry, Medium, Order as Arrival};
use crate::testing::stamp::{SECTOR, Stamp};
use crate::thin::orders::{Answer, Handed, Order, Progress, SnapshotOf};
use crate::thin::store::CreateParams;
use crate::thin::{Origin, Pool, PoolError, PoolInfo, PoolOptions, ThinVolume};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const CLUSTER: u64 = 64 << 10;
/// Bytes of a bdev outside that do not count.
const BEHIND: u64 = 128 << 10;

/// The engine on the floor.
#[derive(Clone)]
struct Hosted(Rc<RefCell<Option<Box<dyn Resident>>>>, Rc<Cell<u64>>);

impl Engine for Hosted {
    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        self.1.set(self.1.get() + 1);
        self.0.borrow_mut().as_mut().map_or(0, |engine| engine.poll(cx))
    }

    fn next(&self) -> Next {
        self.0.borrow().as_ref().map_or(Next::Idle, |engine| engine.next())
    }
}

/// See the module's description.
pub(super) struct World {
    pub(super) medium: Medium,
    pub(super) floor: Floor<'static>,
    pub(super) pool: Pool,
    engine: Hosted,
    lanes: Vec<LaneId>,
    pub(super) outside: BTreeMap<Uuid, Medium>,
}

pub(super) const fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

thread_local! {
    /// Bdevs outside as they are before anybody uses them: it takes long to make one.
    static MADE: RefCell<BTreeMap<(Uuid, u64), Medium>> = const { RefCell::new(BTreeMap::new()) };
}

fn stamped(made: &mut BTreeMap<(Uuid, u64), Medium>, origin: Origin) -> &Medium {
    if made.len() > 100 {
        made.clear();
    }
    made.entry((origin.uuid, origin.bytes)).or_insert_with(|| {
        let (number, counts) = (origin.uuid.as_u128() as u64, origin.bytes / SECTOR as u64);
        let medium = Medium::new(Geometry::with_512(origin.bytes + BEHIND), Arrival::InOrder);
        let stamps = (0..counts + BEHIND / SECTOR as u64).flat_map(|at| {
            let of = if at < counts { number } else { number + 1 };
            Stamp::of_outside(of, at).bytes()
        });
        medium.poke(0, &stamps.collect::<Vec<_>>());
        medium
    })
}

impl Drop for World {
    fn drop(&mut self) {
        // Who goes without power has something in flight there, too.
        self.outside.values().for_each(|medium| medium.stop_after(medium.instants()));
    }
}

impl World {
    /// Makes a pool on a medium.
    pub(super) fn create(medium: &Medium) {
        World::create_of(medium, CLUSTER);
    }

    /// The same, with clusters of this size.
    pub(super) fn create_of(medium: &Medium, cluster: u64) {
        World::make(medium, cluster, false).expect("a medium that works");
    }

    /// The same; `force`: whatever is there.
    pub(super) fn make(medium: &Medium, cluster: u64, force: bool) -> Result<(), PoolError> {
        let base: Arc<dyn Bdev> = Arc::new(medium.clone());
        Floor::in_order().blocking(&base, Some(Arc::new(medium.clone())), |blocking| {
            let params = CreateParams {
                name: "pool".into(),
                uuid: uuid(1 + u128::from(force)),
                cluster_size: cluster as u32,
                created: 1,
                overcommit: 0,
                salt: 77,
                force,
            };
            Pool::create(blocking, &params)
        })
    }

    /// Opens it, with this many reactors.
    pub(super) fn open(medium: &Medium, floor: Floor<'static>, reactors: usize, salt: u64) -> Result<World, PoolError> {
        World::open_with(medium, floor, reactors, salt, 64 << 20)
    }

    /// The same, with so much memory for maps.
    pub(super) fn open_with(
        medium: &Medium,
        mut floor: Floor<'static>,
        reactors: usize,
        salt: u64,
        map_bytes: u64,
    ) -> Result<World, PoolError> {
        let base: Arc<dyn Bdev> = Arc::new(medium.clone());
        let options = PoolOptions {
            reactors,
            salt,
            map_bytes,
            // Some pages: fewer than there are clusters.
            composite_bytes: 16 << 10,
            patience_ns: 1_000_000_000,
            steps: Some(Arc::new(medium.clone())),
            ..PoolOptions::default()
        };
        let steps = options.steps.clone();
        let (pool, engine) = floor.blocking(&base, steps, |blocking| Pool::open(base.clone(), blocking, &options))?;
        let mut engine = engine;
        floor.with_ring(0, |cx| engine.attach(cx)).expect("a floor has room");
        let engine = Hosted(Rc::new(RefCell::new(Some(engine))), Rc::default());
        floor.engine(0, engine.clone());
        Ok(World { medium: medium.clone(), floor, pool, engine, lanes: Vec::new(), outside: BTreeMap::new() })
    }

    /// How many passes the engine has made.
    pub(super) fn passes(&self) -> u64 {
        self.engine.1.get()
    }

    /// A new pool on a medium of so many bytes that does everything in order, on two reactors.
    pub(super) fn fresh(bytes: u64) -> World {
        let medium = Medium::new(Geometry::with_512(bytes), Arrival::InOrder);
        World::create(&medium);
        World::open(&medium, Floor::in_order(), 2, 1).expect("it was made")
    }

    /// Closed, and opened again.
    pub(super) fn reopened(self) -> World {
        World::open(&self.shut(), Floor::in_order(), 2, 2).expect("it was closed")
    }

    /// Something that waits for the pool, on a thread of its own.
    pub(super) fn meanwhile<T: Send>(&mut self, ask: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let asked = scope.spawn(ask);
            while !asked.is_finished() {
                self.floor.stir();
                self.floor.step();
            }
            asked.join().expect("it does not panic")
        })
    }

    /// A way into a volume on a reactor.
    pub(super) fn lane(&mut self, volume: u128, reactor: usize) -> LaneId {
        let volume = self.volume(uuid(volume));
        let channel = volume.open(OpenArgs { depth: 32, seed: 1 }).expect("the medium is there");
        let lane = self.floor.channel(reactor, channel).expect("a floor has room");
        self.lanes.push(lane);
        lane
    }

    /// A volume, with the bdev outside of the pool that it stands on.
    pub(super) fn volume(&mut self, uuid: Uuid) -> ThinVolume {
        let volume = self.pool.volume(uuid).expect("the volume is there");
        if let Some(origin) = volume.origin() {
            volume.stands_over(origin.uuid, Arc::new(self.outside(origin)));
        }
        volume
    }

    /// A bdev that volumes stand on, with its stamps, and behind what counts of it with others.
    pub(super) fn outside(&mut self, origin: Origin) -> Medium {
        let order = Arrival::Seeded(origin.uuid.as_u128() as u64);
        let fresh = || MADE.with_borrow_mut(|made| stamped(made, origin).crash(Crash::All, order));
        self.outside.entry(origin.uuid).or_insert_with(fresh).clone()
    }

    /// Takes a way in off the floor.
    pub(super) fn close(&mut self, lane: LaneId) {
        self.lanes.retain(|other| *other != lane);
        self.floor.close(lane);
    }

    /// Has the engine do something.
    pub(super) fn send(&mut self, order: Order) -> Receiver<Answer> {
        let answer = self.pool.send(order).expect("the pool is open");
        self.floor.stir();
        answer
    }

    /// The same, and waits for it.
    pub(super) fn order(&mut self, order: Order) -> Answer {
        let answer = self.send(order);
        for _ in 0..1_000_000 {
            if let Ok(answer) = answer.try_recv() {
                return answer;
            }
            self.floor.step();
        }
        panic!("the engine never answers");
    }

    pub(super) fn create_volume(&mut self, number: u128, bytes: u64) {
        let order = Order::Create { uuid: uuid(number), name: format!("v{number}"), bytes, reserved: 0, created: 5 };
        self.order(order).expect("there is room");
    }

    pub(super) fn snapshot(&mut self, volume: u128, number: u128) {
        let of = vec![SnapshotOf { volume: uuid(volume), uuid: uuid(number), name: format!("s{number}") }];
        self.order(Order::Snapshot { of, created: 6 }).expect("there is room");
    }

    pub(super) fn clone_of(&mut self, snapshot: u128, number: u128) {
        let (of, uuid, name) = (uuid(snapshot), uuid(number), format!("c{number}"));
        self.order(Order::Clone { of, uuid, name, created: 7 }).expect("there is room");
    }

    /// An order to inflate or decouple a volume.
    pub(super) fn inflation(&mut self, volume: Uuid, decouple: bool) -> (Order, Arc<Progress>) {
        let progress = Arc::<Progress>::default();
        let way = Handed::new(self.pool.volume(volume).and_then(|_| self.volume(volume).way(&mut || true)));
        (Order::Inflate { uuid: volume, decouple, progress: progress.clone(), way }, progress)
    }

    pub(super) fn info(&mut self) -> PoolInfo {
        *self.order(Order::Info).expect("it tells").expect("what it is")
    }

    pub(super) fn write(&mut self, lane: LaneId, offset: u64, byte: u8, len: u64) {
        self.floor.write(lane, offset, &vec![byte; len as usize], IoFlags::empty()).expect("the medium works");
    }

    pub(super) fn read(&mut self, lane: LaneId, offset: u64, len: u64) -> Vec<u8> {
        self.floor.read(lane, offset, len).expect("the medium works")
    }

    pub(super) fn discard(&mut self, lane: LaneId, offset: u64, len: u64) {
        self.floor.zero(lane, Op::Discard, offset, len).expect("the medium works");
    }

    /// The power is off, and nobody remembers anything.
    pub(super) fn forget(self) {
        self.medium.stop_after(self.medium.instants());
    }

    /// Nobody uses it any more: all is in the trees.
    pub(super) fn shut(mut self) -> Medium {
        for lane in std::mem::take(&mut self.lanes) {
            self.floor.close(lane);
        }
        let with = |f: &mut dyn FnMut(&mut Box<dyn Resident>)| f(self.engine.0.borrow_mut().as_mut().expect("hosted"));
        with(&mut |engine| engine.ask_to_leave());
        for _ in 0..1_000_000 {
            let mut left = false;
            with(&mut |engine| left = engine.has_left());
            if left {
                let mut engine = self.engine.0.borrow_mut().take().expect("hosted");
                self.floor.with_ring(0, |cx| engine.detach(cx));
                return self.medium.clone();
            }
            self.floor.stir();
            self.floor.step();
        }
        panic!("the engine never leaves");
    }
}
