//! Drives a pool and tells the oracle what it asks for and what is answered.
//!
//! Volumes and snapshots are known by the numbers that the oracle gives them.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, TryRecvError};

use pollux_core::{IoError, IoFlags, Op};
use uuid::Uuid;

use super::judge::Found;
use super::world::{World, uuid};
use crate::testing::expect::{Asking, Expect, Id};
use crate::testing::floor::{LaneId, Request, Ticket};
use crate::testing::medium::Medium;
use crate::testing::stamp::SECTOR;
use crate::thin::orders::{Answer, Order, SnapshotOf};
use crate::thin::{Origin, PoolError, PoolInfo};

/// UUIDs of volumes begin here.
const FIRST: u128 = 1000;
/// Numbers of bdevs outside of the pool begin here.
const OUTSIDE: u64 = 1 << 40;
const BYTES: u64 = SECTOR as u64;

pub(super) fn uuid_of(id: Id) -> Uuid {
    uuid(FIRST + u128::from(id.0))
}

pub(super) fn id_of(uuid: Uuid) -> Option<Id> {
    u64::try_from(uuid.as_u128().checked_sub(FIRST)?).ok().map(Id)
}

pub(super) fn name_of(id: Id) -> String {
    format!("n{}", id.0)
}

/// A request that is not answered.
struct Io {
    volume: Id,
    lane: LaneId,
    asking: Asking,
    op: Op,
}

/// An answer that was an error: of a request, of an order or a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Request(Op, IoError),
    Order(PoolError),
    Copy(PoolError),
}

/// An order that is not answered.
struct Given {
    answer: Receiver<Answer>,
    asking: Option<Asking>,
    then: Then,
}

/// How an order that succeeds changes what stands on what.
#[derive(Default)]
pub(super) enum Then {
    /// Not at all.
    #[default]
    Same,
    /// The first of each stands on the second, and that on what the first stood on.
    Stands(Vec<(Id, Id)>),
    /// The first stands on the second, and on nothing else.
    StandsOn(Id, Id),
    /// It stands on a bdev outside of the pool, which whoever opens it from now on finds.
    StandsOutside(Id),
    /// Not at all, and the pool is called so.
    Called(String),
    /// Not at all, and the pool has so many bytes of its base.
    Grown(u64),
}

/// What a driver knew of a pool that it has closed.
pub(super) struct Before {
    expect: Expect,
    outside: u64,
}

/// See the module's description.
pub(super) struct Driver {
    pub(super) world: World,
    pub(super) expect: Expect,
    lanes: BTreeMap<(Id, usize), LaneId>,
    /// Those that are not used any more, and have something in flight.
    left: Vec<(Id, LaneId)>,
    requests: BTreeMap<Ticket, Io>,
    orders: Vec<Given>,
    /// Copies that are under way beside all that.
    copies: Vec<Receiver<Answer>>,
    /// The snapshots that volumes and snapshots stand on, and were made of.
    pub(super) parents: BTreeMap<Id, Id>,
    /// Answers that were errors.
    pub(super) errors: Vec<Refused>,
    /// Rises with each answer.
    pub(super) answers: u64,
    /// The pool's names: what it had, and those that were asked for since.
    names: Vec<String>,
    /// Bytes of the base that the pool has for sure.
    bytes: u64,
    /// The last bdev outside that something stands on.
    outside: u64,
    /// The base fails: what was ordered before the pool has failed may be done or not, as after a crash.
    pub(super) fails: bool,
}

impl Driver {
    pub(super) fn new(world: World, expect: Expect) -> Driver {
        let (lanes, parents) = (BTreeMap::new(), BTreeMap::new());
        let (requests, orders, copies, errors) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
        let (names, bytes) = (vec!["pool".into()], 0);
        let (outside, left) = (OUTSIDE, Vec::new());
        Driver {
            world,
            expect,
            lanes,
            left,
            requests,
            orders,
            copies,
            parents,
            errors,
            answers: 0,
            names,
            bytes,
            outside,
            fails: false,
        }
    }

    /// Goes on with a pool of another driver, as that has left it.
    pub(super) fn behind(world: World, before: &Before) -> Driver {
        Driver { outside: before.outside, ..Driver::new(world, before.expect.clone()) }
    }

    /// Closes the pool: its medium, and what is known of it.
    pub(super) fn shut(self) -> (Medium, Before) {
        (self.world.shut(), Before { expect: self.expect, outside: self.outside })
    }

    /// The lane into a volume on a reactor.
    fn lane(&mut self, volume: Id, reactor: usize) -> LaneId {
        let world = &mut self.world;
        *self.lanes.entry((volume, reactor)).or_insert_with(|| world.lane(FIRST + u128::from(volume.0), reactor))
    }

    fn submit(&mut self, volume: Id, reactor: usize, request: Request, asking: Asking) {
        let lane = self.lane(volume, reactor);
        let op = request.op;
        let ticket = self.world.floor.submit(lane, request);
        self.requests.insert(ticket, Io { volume, lane, asking, op });
    }

    pub(super) fn write(&mut self, volume: Id, reactor: usize, first: u64, count: u64, flags: IoFlags) {
        let (asking, bytes) = self.expect.write(volume, first, count, flags.contains(IoFlags::FUA));
        self.submit(volume, reactor, Request::write(first * BYTES, bytes, flags), asking);
    }

    /// A discard or zeroes.
    pub(super) fn zero(&mut self, volume: Id, reactor: usize, op: Op, first: u64, count: u64, flags: IoFlags) {
        let asking = self.expect.zero(volume, first, count, flags.contains(IoFlags::FUA));
        self.submit(volume, reactor, Request::plain(op, flags, first * BYTES, count * BYTES), asking);
    }

    pub(super) fn flush(&mut self, volume: Id, reactor: usize) {
        let asking = self.expect.flush(volume);
        self.submit(volume, reactor, Request::flush(), asking);
    }

    pub(super) fn read(&mut self, volume: Id, reactor: usize, first: u64, count: u64) {
        let asking = self.expect.read(volume, first, count);
        self.submit(volume, reactor, Request::read(first * BYTES, count * BYTES), asking);
    }

    /// Gives an order. `asking`: what the oracle was told of it, nothing of what changes no contents.
    pub(super) fn order(&mut self, order: Order, asking: Option<Asking>, then: Then) {
        let answer = self.world.send(order);
        self.orders.push(Given { answer, asking, then });
    }

    pub(super) fn create(&mut self, sectors: u64) -> Id {
        let (id, asking) = self.expect.create(sectors);
        let order =
            Order::Create { uuid: uuid_of(id), name: name_of(id), bytes: sectors * BYTES, reserved: 0, created: 5 };
        self.order(order, Some(asking), Then::Same);
        id
    }

    pub(super) fn snapshot(&mut self, volumes: &[Id]) -> Vec<Id> {
        let (made, asking) = self.expect.snapshot(volumes);
        let one = |(of, id): (&Id, &Id)| SnapshotOf { volume: uuid_of(*of), uuid: uuid_of(*id), name: name_of(*id) };
        let of = volumes.iter().zip(&made).map(one).collect();
        let pairs = volumes.iter().copied().zip(made.iter().copied()).collect();
        self.order(Order::Snapshot { of, created: 6 }, Some(asking), Then::Stands(pairs));
        made
    }

    pub(super) fn clone_of(&mut self, snapshot: Id) -> Id {
        let (id, asking) = self.expect.clone_of(snapshot);
        let order = Order::Clone { of: uuid_of(snapshot), uuid: uuid_of(id), name: name_of(id), created: 7 };
        self.order(order, Some(asking), Then::Stands(vec![(id, snapshot)]));
        id
    }

    /// A clone of a bdev outside of the pool that nobody has cloned before, of which so many sectors count.
    pub(super) fn clone_outside(&mut self, sectors: u64, counts: u64) -> Id {
        self.outside += 2;
        let (id, asking) = self.expect.clone_outside(self.outside, sectors, counts);
        let of = Origin { uuid: uuid(u128::from(self.outside)), bytes: counts * BYTES };
        let (uuid, name, bytes) = (uuid_of(id), name_of(id), sectors * BYTES);
        self.order(Order::CloneBdev { of, uuid, name, bytes, created: 8 }, Some(asking), Then::Same);
        id
    }

    pub(super) fn resize(&mut self, volume: Id, sectors: u64) {
        let asking = self.expect.resize(volume, sectors);
        let order = Order::Resize { uuid: uuid_of(volume), bytes: sectors * BYTES, allow_shrink: true };
        self.order(order, Some(asking), Then::Same);
    }

    pub(super) fn rollback(&mut self, volume: Id, snapshot: Id) {
        let asking = self.expect.rollback(volume, snapshot);
        self.order(Order::Rollback { uuid: uuid_of(volume), to: uuid_of(snapshot) }, Some(asking), Then::Same);
    }

    /// It becomes a snapshot. What is in flight goes on, or fails.
    pub(super) fn set_read_only(&mut self, volume: Id) {
        let asking = self.expect.set_read_only(volume);
        self.order(Order::SetReadOnly { uuid: uuid_of(volume) }, Some(asking), Then::Same);
    }

    /// It stands on another snapshot.
    pub(super) fn set_parent(&mut self, volume: Id, parent: Id) {
        let asking = self.expect.set_parent(volume, parent);
        let order = Order::SetParent { uuid: uuid_of(volume), parent: uuid_of(parent) };
        self.order(order, Some(asking), Then::StandsOn(volume, parent));
    }

    /// It stands on a bdev outside of the pool that nothing has stood on before, of which so many sectors count.
    pub(super) fn set_parent_bdev(&mut self, volume: Id, counts: u64) {
        self.outside += 2;
        let asking = self.expect.set_outside(volume, self.outside, counts);
        let origin = Origin { uuid: uuid(u128::from(self.outside)), bytes: counts * BYTES };
        let order = Order::SetOrigin { uuid: uuid_of(volume), origin };
        self.order(order, Some(asking), Then::StandsOutside(volume));
    }

    /// Takes the lanes of a volume off as soon as nothing of them is in flight. Who uses it next opens it anew.
    pub(super) fn close(&mut self, id: Id) {
        let mine: Vec<_> = self.lanes.range((id, 0)..(Id(id.0 + 1), 0)).map(|(key, lane)| (*key, *lane)).collect();
        for (key, lane) in mine {
            self.lanes.remove(&key);
            self.left.push((id, lane));
        }
        self.close_left();
    }

    fn close_left(&mut self) {
        let is_busy = |lane: &LaneId| self.requests.values().any(|io| io.lane == *lane);
        let (stay, go): (Vec<_>, Vec<_>) = self.left.drain(..).partition(|(_, lane)| is_busy(lane));
        self.left = stay;
        go.into_iter().for_each(|(_, lane)| self.world.close(lane));
    }

    /// Nothing of it is in flight.
    pub(super) fn delete(&mut self, id: Id) {
        self.close(id);
        let asking = self.expect.delete(id);
        self.order(Order::Delete { uuid: uuid_of(id) }, Some(asking), Then::Same);
    }

    pub(super) fn checkpoint(&mut self) {
        self.order(Order::Checkpoint, None, Then::Same);
    }

    /// The volume gets all of its own, or at least what its parent has, beside everything else.
    pub(super) fn inflate(&mut self, volume: Id, decouple: bool) {
        let (order, _) = self.world.inflation(uuid_of(volume), decouple);
        self.copies.push(self.world.send(order));
    }

    pub(super) fn rename_pool(&mut self, name: &str) {
        self.names.push(name.to_owned());
        self.order(Order::RenamePool { name: name.to_owned() }, None, Then::Called(name.to_owned()));
    }

    /// The base becomes larger, and the pool with it.
    pub(super) fn grow_pool(&mut self, bytes: u64) {
        self.world.medium.grow(bytes);
        self.order(Order::Grow { bytes }, None, Then::Grown(bytes));
    }

    /// After a crash: goes on with the pool as it is now, if it may be called so and have such a size.
    pub(super) fn goes_on(&mut self, before: &Driver, info: &PoolInfo) -> Result<(), String> {
        before.may_be(&info.name, info.base_bytes)?;
        (self.names, self.bytes) = (vec![info.name.clone()], info.base_bytes);
        self.outside = before.outside;
        Ok(())
    }

    /// Whether a crash now may leave a pool of this name and size.
    fn may_be(&self, name: &String, bytes: u64) -> Result<(), String> {
        if !self.names.contains(name) {
            return Err(format!("the pool is called {name}, and was called {:?}", self.names));
        }
        if bytes < self.bytes {
            return Err(format!("the pool takes {bytes} bytes of its base, and took {}", self.bytes));
        }
        Ok(())
    }

    /// Whether a crash now may leave this.
    pub(super) fn bears(&self, found: &Found) -> Result<(), String> {
        self.may_be(&found.name, found.bytes)?;
        self.expect.bears(&mut &*found)
    }

    /// Whether something of a volume is in flight.
    pub(super) fn is_busy(&self, id: Id) -> bool {
        self.requests.values().any(|io| io.volume == id)
    }

    /// How much is not answered: requests, orders.
    pub(super) fn in_flight(&self) -> (usize, usize) {
        (self.requests.len(), self.orders.len())
    }

    /// How many copies are under way.
    pub(super) fn copying(&self) -> usize {
        self.copies.len()
    }

    /// One step, and what was answered with it. Returns whether there was anything to do.
    pub(super) fn step(&mut self, deadline: u64) -> Result<bool, String> {
        let did = self.world.floor.step_until(deadline);
        self.hear()?;
        Ok(did)
    }

    /// Tells the oracle what was answered.
    fn hear(&mut self) -> Result<(), String> {
        for (ticket, outcome) in self.world.floor.answers() {
            let Some(Io { asking, op, .. }) = self.requests.remove(&ticket) else { continue };
            self.answers += 1;
            match outcome {
                Ok(bytes) if op == Op::Read => self.expect.has_read(asking, &bytes)?,
                Ok(_) => self.expect.done(asking),
                Err(error) => {
                    self.errors.push(Refused::Request(op, error));
                    self.expect.failed(asking);
                }
            }
        }
        if !self.left.is_empty() {
            self.close_left();
        }
        let copies = self.copies.len();
        self.copies.retain(|copy| match copy.try_recv() {
            Ok(answer) => {
                self.errors.extend(answer.err().map(Refused::Copy));
                false
            }
            Err(_) => true,
        });
        self.answers += (copies - self.copies.len()) as u64;
        let mut nth = 0;
        while let Some(given) = self.orders.get(nth) {
            match given.answer.try_recv() {
                Err(TryRecvError::Empty) => nth += 1,
                Err(TryRecvError::Disconnected) => return Err("an order was never answered".into()),
                Ok(answer) => {
                    let given = self.orders.remove(nth);
                    self.answers += 1;
                    self.order_ended(answer, given)?;
                }
            }
        }
        Ok(())
    }

    fn order_ended(&mut self, answer: Answer, Given { asking, then, .. }: Given) -> Result<(), String> {
        match answer {
            Ok(_) => {
                asking.into_iter().for_each(|asking| self.expect.done(asking));
                self.stand(then);
            }
            Err(error @ PoolError::Failed(_)) if self.fails => {
                self.errors.push(Refused::Order(error));
                if let Then::StandsOutside(volume) = then {
                    self.close(volume);
                }
            }
            // What happens in the background, and who stands on whom meanwhile, nobody knows here.
            Err(
                error @ (PoolError::Unfit { .. }
                | PoolError::NoSpace(_)
                | PoolError::Failed(_)
                | PoolError::Busy { .. }
                | PoolError::IsParent { .. }),
            ) => {
                self.errors.push(Refused::Order(error));
                asking.into_iter().for_each(|asking| self.expect.failed(asking));
            }
            // One that was inflated is thick, and stands on nothing for good.
            Err(error @ PoolError::Invalid { field: "lvol_name", .. })
                if matches!(then, Then::StandsOn(..) | Then::StandsOutside(_)) =>
            {
                self.errors.push(Refused::Order(error));
                asking.into_iter().for_each(|asking| self.expect.failed(asking));
            }
            Err(error) => return Err(format!("an order is refused that was in order: {error}")),
        }
        Ok(())
    }

    fn stand(&mut self, then: Then) {
        let pairs = match then {
            Then::Stands(pairs) => pairs,
            Then::StandsOn(volume, snapshot) => {
                self.parents.insert(volume, snapshot);
                return;
            }
            Then::StandsOutside(volume) => {
                self.parents.remove(&volume);
                self.close(volume);
                return;
            }
            Then::Called(name) => return self.names = vec![name],
            Then::Grown(bytes) => return self.bytes = bytes,
            Then::Same => return,
        };
        for (of, snapshot) in pairs {
            if let Some(below) = self.parents.insert(of, snapshot) {
                self.parents.insert(snapshot, below);
            }
        }
    }

    /// Runs until everything is answered.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        while self.in_flight() != (0, 0) || self.copying() > 0 {
            if !self.step(u64::MAX)? {
                return Err(format!("never answered: {:?}", self.in_flight()));
            }
        }
        Ok(())
    }
}
