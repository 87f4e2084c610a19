//! Opens a pool that may be anything, as the daemon would, and uses it: whatever is in it, it is refused or served.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use pollux_core::{Bdev, Cx, IoFlags, Op, OpenArgs, Resident};
use uuid::Uuid;

use super::Memory;
use crate::testing::floor::{Floor, LaneId, Request};
use crate::testing::medium::{Geometry, Medium, Order as Arrival};
use crate::thin::format::BLOCK;
use crate::thin::info::{PoolInfo, Role};
use crate::thin::orders::{Answer, Order, SnapshotOf};
use crate::thin::{Pool, PoolError, PoolOptions};

/// Steps of the floor in which all has to be answered.
const STEPS: u32 = 200_000;

/// A medium with what is in memory. Blocks that cannot be read hold zeroes.
#[must_use]
pub fn medium_of(memory: &Memory) -> Medium {
    let medium = Medium::new(Geometry::with_4096(memory.len * BLOCK as u64), Arrival::InOrder);
    for (block, bytes) in memory.blocks.iter().filter(|(block, _)| **block < memory.len) {
        if !memory.bad.contains(block) {
            medium.poke(block * BLOCK as u64, &bytes[..]);
        }
    }
    medium
}

struct Served {
    floor: Floor<'static>,
    pool: Pool,
    engine: Box<dyn Resident>,
    left: u32,
}

/// Opens the pool and does what there is to do with one. What it answers may be any error.
///
/// # Errors
/// Why it was not opened.
///
/// # Panics
/// If it does not answer.
pub fn serve(memory: &Memory) -> Result<(), PoolError> {
    let medium = medium_of(memory);
    let base: Arc<dyn Bdev> = Arc::new(medium);
    let mut floor = Floor::in_order();
    let options = PoolOptions { salt: 3, patience_ns: 1_000_000, map_bytes: 1 << 20, ..PoolOptions::default() };
    let (pool, mut engine) = floor.blocking(&base, None, |blocking| Pool::open(base.clone(), blocking, &options))?;
    floor.with_ring(0, |cx| engine.attach(cx)).expect("a floor has room");
    let mut served = Served { floor, pool, engine, left: STEPS };
    served.use_it();
    served.leave();
    Ok(())
}

impl Served {
    fn step(&mut self) {
        self.left = self.left.checked_sub(1).expect("the pool answers in time");
        let engine = &mut self.engine;
        self.floor.with_ring(0, |cx: &mut Cx<'_>| engine.poll(cx));
        self.floor.stir();
        self.floor.step_until(0);
        self.floor.advance(10_000);
    }

    fn order(&mut self, order: Order) -> Answer {
        let answer: Receiver<Answer> = self.pool.send(order)?;
        loop {
            match answer.try_recv() {
                Ok(answer) => return answer,
                Err(TryRecvError::Disconnected) => panic!("an order was never answered"),
                Err(TryRecvError::Empty) => self.step(),
            }
        }
    }

    fn run(&mut self, lane: LaneId, request: Request) {
        let ticket = self.floor.submit(lane, request);
        while self.floor.take(ticket).is_none() {
            self.step();
        }
    }

    fn use_it(&mut self) {
        let Ok(Some(info)) = self.order(Order::Info) else { return };
        let uuid = Uuid::from_u128(0xFEED);
        let new = Order::Create { uuid, name: "new".into(), bytes: 1 << 20, reserved: 0, created: 1 };
        let _any = self.order(new);
        for volume in &info.volumes {
            self.touch(volume.uuid, volume.bytes, volume.role == Role::Volume);
        }
        let _any = self.order(Order::Checkpoint);
        self.restructure(&info);
        let _any = self.order(Order::Checkpoint);
        let _any = self.order(Order::Info);
    }

    /// Reads and writes at both ends, and in the middle.
    fn touch(&mut self, uuid: Uuid, bytes: u64, writes: bool) {
        let Some(volume) = self.pool.volume(uuid) else { return };
        let Ok(channel) = volume.open(OpenArgs { depth: 8, seed: 1 }) else { return };
        let Ok(lane) = self.floor.channel(0, channel) else { return };
        let whole = bytes & !4095;
        for at in [0, (whole / 2) & !4095, whole.saturating_sub(8192)] {
            self.run(lane, Request::read(at, 8192));
            if writes {
                self.run(lane, Request::write(at, vec![7; 4096], IoFlags::FUA));
                self.run(lane, Request::plain(Op::Discard, IoFlags::empty(), at, 4096));
            }
        }
        self.floor.close(lane);
    }

    /// Snapshots, and what of volumes goes.
    fn restructure(&mut self, info: &PoolInfo) {
        let of_role = |role| info.volumes.iter().filter(move |volume| volume.role == role).map(|volume| volume.uuid);
        for (nth, volume) in of_role(Role::Volume).enumerate() {
            let uuid = Uuid::from_u128(0xFEE0_0000 + nth as u128);
            let of = vec![SnapshotOf { volume, uuid, name: format!("of-{nth}") }];
            let _any = self.order(Order::Snapshot { of, created: 2 });
        }
        let gone: Vec<Uuid> = of_role(Role::Snapshot).chain(of_role(Role::Volume).take(2)).collect();
        for uuid in gone {
            let _any = self.order(Order::Delete { uuid });
        }
        for _ in 0..2000 {
            self.step();
        }
    }

    fn leave(&mut self) {
        self.engine.ask_to_leave();
        while !self.engine.has_left() {
            self.step();
        }
        let engine = &mut self.engine;
        self.floor.with_ring(0, |cx| engine.detach(cx));
    }
}
