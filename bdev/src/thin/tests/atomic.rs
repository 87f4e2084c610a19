//! Writes that count as a whole: beside plain writes and discards of the same clusters, under snapshots, over clusters and
//! leaves of the map; the power fails at any instant, and each is there as a whole or not at all.

use std::sync::mpsc::Receiver;

use pollux_core::{Bdev, IoError, IoFlags, Op};

use super::judge::{clean, counted, open};
use super::world::{CLUSTER, MIB, World, uuid};
use crate::rng::Rng;
use crate::testing::floor::{Floor, LaneId, Request, Ticket};
use crate::testing::medium::{Crash, Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::{Answer, Order, SnapshotOf};

const REACTORS: usize = 3;
const KIB: u64 = 1 << 10;
const SUB: u64 = CLUSTER / 16;
const LEAF: u64 = 504 * CLUSTER;
const NONE: IoFlags = IoFlags::empty();

/// What is written at once.
struct Cell {
    offset: u64,
    len: u64,
    atomic: bool,
    /// All that it was to hold, the first being nothing; 0 is zeroes.
    history: Vec<u64>,
    /// Up to here it has been acknowledged, and is durable.
    acked: usize,
    durable: usize,
    busy: bool,
}

impl Cell {
    fn bytes(&self, nth: usize, content: u64) -> Vec<u8> {
        let word = if content == 0 { 0 } else { content << 8 | nth as u64 };
        word.to_le_bytes().repeat(self.len as usize / 8)
    }

    /// Whether it holds something that it may hold, of which `least` is the oldest.
    fn check(&self, nth: usize, bytes: &[u8], least: usize, last: usize) -> Result<(), String> {
        let allowed = &self.history[least..=last];
        if allowed.iter().any(|content| self.bytes(nth, *content) == bytes) {
            return Ok(());
        }
        let words: std::collections::BTreeSet<u64> =
            bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes"))).collect();
        let what = if words.len() > 1 { "a part of" } else { "not" };
        Err(format!("cell {nth} at {} holds {words:x?}, {what} one of {allowed:x?}", self.offset))
    }
}

/// Cells of two kinds, side by side in the same clusters.
fn cells() -> Vec<Cell> {
    let atomic = [
        (2 * SUB, 4 * SUB),
        (14 * SUB, 4 * SUB),
        (CLUSTER + 8 * SUB, 4 * SUB),
        (2 * CLUSTER + SUB, 2 * CLUSTER),
        (LEAF - 2 * SUB, 4 * SUB),
        (LEAF + 5 * CLUSTER, CLUSTER),
    ];
    let plain = [(0, 512), (SUB + 512, 1024), (7 * SUB, 512), (9 * SUB, SUB), (CLUSTER + 3 * SUB, 2048)];
    let more = [(CLUSTER + 14 * SUB, 3 * SUB), (LEAF - 4 * SUB, 512), (LEAF + 4 * SUB, SUB)];
    let cell = |(offset, len), atomic| {
        let (history, busy) = (vec![0], false);
        Cell { offset, len, atomic, history, acked: 0, durable: 0, busy }
    };
    let plain = plain.into_iter().chain(more);
    // What is not atomic is sector by sector.
    let sectors = plain.flat_map(|(offset, len)| (offset..offset + len).step_by(512).map(|at| (at, 512)));
    atomic.into_iter().map(|at| cell(at, true)).chain(sectors.map(|at| cell(at, false))).collect()
}

/// A snapshot, and what each cell may hold in it.
struct Taken {
    number: u128,
    least: Vec<usize>,
    last: Vec<usize>,
    answer: Option<Receiver<Answer>>,
}

struct Scene {
    world: World,
    lanes: Vec<LaneId>,
    cells: Vec<Cell>,
    rng: Rng,
    /// Whether what is to be atomic is asked for as such.
    asks: bool,
    pending: Vec<(Ticket, What)>,
    snapshots: Vec<Taken>,
    content: u64,
}

enum What {
    Write {
        cells: Vec<usize>,
        fua: bool,
    },
    /// What was acknowledged when it was asked for.
    Flush(Vec<usize>),
}

impl Scene {
    fn new(seed: u64, asks: bool) -> Scene {
        let medium = Medium::new(Geometry::with_512(32 * MIB), Arrival::Seeded(seed));
        World::create(&medium);
        let mut world = World::open(&medium, Floor::seeded(seed), REACTORS, 1).expect("it was made");
        world.create_volume(10, LEAF + 8 * CLUSTER);
        let lanes = (0..REACTORS).map(|reactor| world.lane(10, reactor)).collect();
        let (pending, snapshots) = (Vec::new(), Vec::new());
        Scene { world, lanes, cells: cells(), rng: Rng::new(seed ^ 0xa70), asks, pending, snapshots, content: 0 }
    }

    fn act(&mut self) {
        let lane = self.lanes[self.rng.below(REACTORS as u64) as usize];
        match self.rng.below(24) {
            0 => {
                let acked = self.cells.iter().map(|cell| cell.acked).collect();
                self.pending.push((self.world.floor.submit(lane, Request::flush()), What::Flush(acked)));
            }
            1 if self.snapshots.len() < 6 && self.snapshots.iter().all(|taken| taken.answer.is_none()) => {
                self.snapshot();
            }
            _ => self.change(lane),
        }
    }

    fn snapshot(&mut self) {
        let number = 20 + self.snapshots.len() as u128;
        let of = vec![SnapshotOf { volume: uuid(10), uuid: uuid(number), name: format!("s{number}") }];
        let least: Vec<usize> = self.cells.iter().map(|cell| cell.acked).collect();
        let answer = Some(self.world.send(Order::Snapshot { of, created: 1 }));
        self.snapshots.push(Taken { number, last: least.clone(), least, answer });
    }

    /// Writes a cell, or takes one away; of those that are not atomic some that lie together.
    fn change(&mut self, lane: LaneId) {
        let first = self.rng.below(self.cells.len() as u64) as usize;
        let first = if self.rng.below(2) == 0 { first % 6 } else { first };
        let mut some = vec![first];
        while !self.cells[first].atomic && some.len() < 24 && self.rng.below(9) > 0 {
            let (last, next) = (&self.cells[some[some.len() - 1]], first + some.len());
            let follows = |cell: &Cell| !cell.atomic && cell.offset == last.offset + last.len;
            if !self.cells.get(next).is_some_and(follows) {
                break;
            }
            some.push(next);
        }
        if some.iter().any(|nth| self.cells[*nth].busy) {
            return;
        }
        let (fua, gone) = (self.rng.below(6) == 0, self.rng.below(7) == 0);
        let (offset, len) = (self.cells[first].offset, some.iter().map(|nth| self.cells[*nth].len).sum::<u64>());
        let mut flags = if fua { IoFlags::FUA } else { NONE };
        self.content += 1;
        let content = if gone { 0 } else { self.content };
        let bytes: Vec<u8> = some.iter().flat_map(|nth| self.cells[*nth].bytes(*nth, content)).collect();
        // A discard of several clusters is not one change.
        let is_one = offset / CLUSTER == (offset + len - 1) / CLUSTER || !self.cells[first].atomic;
        let request = if gone && is_one && (offset | len).is_multiple_of(SUB) {
            let op = if self.rng.below(2) == 0 { Op::Discard } else { Op::WriteZeroes };
            flags &= if op == Op::Discard { NONE } else { IoFlags::FUA };
            Request::plain(op, flags, offset, len)
        } else {
            let atomic = if self.cells[first].atomic && self.asks { IoFlags::ATOMIC } else { NONE };
            Request::write(offset, bytes, flags | atomic)
        };
        for nth in &some {
            let cell = &mut self.cells[*nth];
            cell.busy = true;
            cell.history.push(content);
        }
        let fua = flags.contains(IoFlags::FUA);
        self.pending.push((self.world.floor.submit(lane, request), What::Write { cells: some, fua }));
    }

    fn hear(&mut self) {
        for (ticket, what) in std::mem::take(&mut self.pending) {
            let Some(outcome) = self.world.floor.take(ticket) else {
                self.pending.push((ticket, what));
                continue;
            };
            match what {
                // One that fails because the power does is never done again.
                What::Write { cells, fua } => {
                    for nth in cells.into_iter().filter(|_| outcome.is_ok()) {
                        let cell = &mut self.cells[nth];
                        (cell.busy, cell.acked) = (false, cell.history.len() - 1);
                        cell.durable = if fua { cell.acked } else { cell.durable };
                    }
                }
                What::Flush(acked) if outcome.is_ok() => {
                    let cells = self.cells.iter_mut().zip(acked);
                    cells.for_each(|(cell, acked)| cell.durable = cell.durable.max(acked));
                }
                What::Flush(_) => {}
            }
        }
        for taken in &mut self.snapshots {
            if taken.answer.is_some() {
                taken.last = self.cells.iter().map(|cell| cell.history.len() - 1).collect();
            }
            taken.answer = taken.answer.take().filter(|answer| !matches!(answer.try_recv(), Ok(Ok(_))));
        }
    }

    fn run(&mut self, actions: u64) {
        for _ in 0..actions {
            if !self.world.medium.powered() {
                break;
            }
            self.act();
            for _ in 0..self.rng.below(20) {
                self.world.floor.step();
            }
            self.hear();
        }
        // What is answered by then counts.
        for _ in 0..200 {
            self.world.floor.step();
        }
        self.hear();
    }

    /// Cuts the power, in several ways.
    fn cut(&self, rng: &mut Rng) -> Result<u64, String> {
        let medium = &self.world.medium;
        let mut seen = 0;
        for choice in [Crash::None, Crash::All, Crash::Seeded(rng.next()), Crash::Seeded(rng.next())] {
            let crashed = medium.crash(choice, Arrival::InOrder);
            clean(&crashed, "after the crash")?;
            let mut world = open(&crashed, Floor::in_order(), REACTORS, medium.instants() + 1000)?;
            let checked = check(&self.cells, &self.snapshots, &mut world, true);
            world.forget();
            seen += checked.map_err(|what| format!("{choice:?}: {what}"))?;
        }
        Ok(seen)
    }
}

/// Whether what is there is as it may be, after a crash or before one.
fn check(cells: &[Cell], snapshots: &[Taken], world: &mut World, crashed: bool) -> Result<u64, String> {
    let lane = world.lane(10, 0);
    let mut seen = 0;
    for (nth, cell) in cells.iter().enumerate() {
        let least = if crashed { cell.durable } else { cell.acked };
        let bytes = world.read(lane, cell.offset, cell.len);
        cell.check(nth, &bytes, least, cell.history.len() - 1)?;
        seen += u64::from(bytes[0] != 0 || bytes[1] != 0);
    }
    world.close(lane);
    for taken in snapshots {
        if world.pool.volume(uuid(taken.number)).is_none() {
            if taken.answer.is_none() {
                return Err(format!("snapshot {} was acknowledged and is not there", taken.number));
            }
            continue;
        }
        let lane = world.lane(taken.number, 1);
        for (nth, cell) in cells.iter().enumerate() {
            let bytes = world.read(lane, cell.offset, cell.len);
            let checked = cell.check(nth, &bytes, taken.least[nth], taken.last[nth]);
            checked.map_err(|what| format!("snapshot {}: {what}", taken.number))?;
        }
        world.close(lane);
    }
    Ok(seen)
}

/// Runs from a seed, cut after so many instants; what was found in the end, and whether it was cut.
fn run(seed: u64, stop: u64, asks: bool) -> Result<(u64, bool), String> {
    let mut scene = Scene::new(seed, asks);
    let medium = scene.world.medium.clone();
    medium.stop_after(medium.instants() + stop);
    scene.run(160);
    let cut = !medium.powered();
    let seen = scene.cut(&mut Rng::new(seed ^ stop));
    medium.stop_after(medium.instants());
    Ok((seen?, cut))
}

fn runs() -> u64 {
    std::env::var("POLLUX_ATOMIC_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

#[test]
fn an_atomic_write_bears_a_power_cut_as_a_whole_or_not_at_all() {
    let (mut seen, mut cuts) = (0, 0);
    for nth in 0..runs() {
        let stop = 5 + (nth * 37) % 600;
        let (found, cut) = run(nth % 12, stop, true).unwrap_or_else(|what| panic!("run {nth}: {what}"));
        (seen, cuts) = (seen + found, cuts + u64::from(cut));
    }
    assert!(cuts > runs() / 2 && seen > 20 * runs(), "{cuts} cuts, {seen} cells with something");
}

#[test]
fn the_runs_see_parts_of_plain_writes() {
    let torn =
        (0..60).any(|nth| run(nth % 12, 5 + (nth * 37) % 600, false).is_err_and(|what| what.contains("a part of")));
    assert!(torn);
}

#[test]
fn what_was_written_at_once_is_read_and_counted() {
    for seed in 0..6 {
        let mut scene = Scene::new(seed, true);
        scene.run(300);
        scene.world.floor.settle(2_000_000_000);
        scene.hear();
        let floor = scene.world.floor.describe();
        assert!(scene.pending.is_empty(), "seed {seed}: {floor}");
        let written = scene.cells.iter().filter(|cell| cell.atomic).map(|cell| cell.history.len() - 1).sum::<usize>();
        assert!(written > 50 && scene.snapshots.len() > 2, "seed {seed}: {written} {}", scene.snapshots.len());
        for lane in std::mem::take(&mut scene.lanes) {
            scene.world.close(lane);
        }
        let medium = scene.world.medium.clone();
        let Scene { mut world, cells, snapshots, .. } = scene;
        check(&cells, &snapshots, &mut world, false).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        world.order(Order::Checkpoint).expect("there is room");
        world.floor.settle(2_000_000_000);
        let info = world.info();
        world.shut();
        let report = clean(&medium, "after it was closed").unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        counted(&info, &report).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

fn small() -> (World, LaneId) {
    let medium = Medium::new(Geometry::with_512(32 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).expect("it was made");
    world.create_volume(10, 256 * MIB);
    let lane = world.lane(10, 0);
    (world, lane)
}

fn atomic(world: &mut World, lane: LaneId, offset: u64, byte: u8, len: u64, flags: IoFlags) -> Result<(), IoError> {
    world.floor.write(lane, offset, &vec![byte; len as usize], flags | IoFlags::ATOMIC)
}

#[test]
fn what_is_announced_is_what_is_done() {
    let (mut world, lane) = small();
    let limits = world.pool.volume(uuid(10)).expect("it is there").shape().atomic_write.expect("there are some");
    assert_eq!((limits.max, limits.granularity, limits.alignment), (1 << 20, 4096, 4096));
    for (offset, len) in [(0, 4096), (4096, 1 << 20), (LEAF - (512 << 10), 1 << 20), (4096, 1 << 20)] {
        atomic(&mut world, lane, offset, 7, len, NONE).expect("there is room");
        assert!(world.read(lane, offset, len).iter().all(|byte| *byte == 7));
    }
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create_of(&medium, MIB);
    let mut world = World::open(&medium, Floor::in_order(), 1, 1).expect("it was made");
    world.create_volume(10, MIB);
    let large = world.pool.volume(uuid(10)).expect("it is there").shape();
    assert_eq!(large.atomic_write, None, "its sub-blocks are too large to be locked");
}

#[test]
fn in_a_full_pool_it_fails_and_nothing_has_changed() {
    let (mut world, lane) = small();
    world.pool.set_patience(50_000_000);
    let mut cluster = 0;
    while world.floor.write(lane, cluster * CLUSTER, &vec![1; CLUSTER as usize], NONE).is_ok() {
        cluster += 1;
    }
    let full = world.info();
    for (offset, len) in [(SUB, 4 * SUB), (0, 2 * CLUSTER), ((cluster - 1) * CLUSTER + 8 * SUB, CLUSTER)] {
        assert_eq!(atomic(&mut world, lane, offset, 2, len, NONE), Err(IoError::NoSpace));
        assert!(world.read(lane, offset, len.min(cluster * CLUSTER - offset)).iter().all(|byte| *byte == 1));
    }
    world.floor.settle(1_000_000_000);
    let info = world.info();
    assert!(info.full && info.volumes == full.volumes && info.free_bytes == full.free_bytes);
    world.pool.set_patience(1_000_000_000);
    // With a cluster to spare there are as many as are wanted, one after the other.
    world.discard(lane, 0, CLUSTER);
    for byte in 3..20 {
        atomic(&mut world, lane, 5 * CLUSTER + SUB, byte, 4 * SUB, IoFlags::FUA).expect("there is a cluster");
        assert!(world.read(lane, 5 * CLUSTER + SUB, 4 * SUB).iter().all(|found| *found == byte));
    }
    assert_eq!(world.read(lane, 5 * CLUSTER, SUB), vec![1; SUB as usize]);
    assert_eq!(world.read(lane, 5 * CLUSTER + 5 * SUB, 11 * SUB), vec![1; 11 * SUB as usize]);
}

#[test]
fn what_fails_has_changed_nothing() {
    let (mut world, lane) = small();
    world.write(lane, 0, 1, 3 * CLUSTER);
    world.floor.flush(lane).expect("the medium works");
    world.floor.settle(1_000_000_000);
    let before = world.info();
    let data = |len: u64| move |io: &pollux_core::Io| io.len == len;
    // The data of one cluster, of the other, and what is to be copied.
    let wrong = [(Op::Write, 2 * SUB, 0), (Op::Write, 2 * SUB, 1), (Op::Read, 14 * SUB, 0), (Op::Write, 14 * SUB, 1)];
    for (op, len, skip) in wrong {
        world.medium.clear_rules();
        let rule = Rule::new(Effect::Fail(IoError::Medium)).op(op).when(data(len)).skip(skip);
        world.medium.rule(rule);
        assert_eq!(
            atomic(&mut world, lane, CLUSTER - 2 * SUB, 2, 4 * SUB, NONE),
            Err(IoError::Medium),
            "{op:?} {skip}"
        );
        assert!(world.read(lane, 0, 3 * CLUSTER).iter().all(|byte| *byte == 1));
    }
    world.floor.settle(1_000_000_000);
    let info = world.info();
    assert_eq!((info.free_bytes, info.quarantined_bytes), (before.free_bytes, before.quarantined_bytes));
    atomic(&mut world, lane, CLUSTER - 2 * SUB, 2, 4 * SUB, NONE).expect("the medium works again");
    assert!(world.read(lane, CLUSTER - 2 * SUB, 4 * SUB).iter().all(|byte| *byte == 2));
}

/// Where nothing is here yet that is written, nothing is copied; else the rest of the clusters, and no more.
#[test]
fn no_more_is_moved_than_has_to_be() {
    let (mut world, lane) = small();
    let moved = |world: &mut World, offset: u64, len: u64| {
        let before = world.medium.events().len();
        atomic(world, lane, offset, 9, len, NONE).expect("the medium works");
        let events = world.medium.events();
        let written = events[before..].iter().filter(|event| {
            event.op == Op::Write
                && event.what == crate::testing::medium::Happened::Submitted
                && event.offset >= 2 * MIB
        });
        written.map(|event| event.len).sum::<u64>()
    };
    assert_eq!(moved(&mut world, 0, 16 * KIB), 16 * KIB);
    assert_eq!(moved(&mut world, 16 * KIB, 16 * KIB), 16 * KIB);
    assert_eq!(moved(&mut world, 0, 16 * KIB), 32 * KIB, "what lies beside it goes along");
    assert_eq!(moved(&mut world, 0, 2 * CLUSTER), 2 * CLUSTER, "all of it is written anew");
    world.snapshot(10, 11);
    assert_eq!(moved(&mut world, 0, 16 * KIB), 16 * KIB, "the head has nothing there");
}

/// Leaves that atomic writes bind together go into one batch, and a batch has to find room in the log, whatever a guest does.
#[test]
fn a_row_of_atomic_writes_over_all_borders_of_leaves_finds_room_in_the_log() {
    const LEAVES: u64 = 40;
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), REACTORS, 1).unwrap();
    world.create_volume(10, LEAVES * LEAF);
    world.snapshot(10, 11);
    let lane = world.lane(10, 0);
    // All entries of all leaves have something to say.
    world.discard(lane, 0, LEAVES * LEAF);
    for border in 1..LEAVES {
        atomic(&mut world, lane, border * LEAF - SUB, 1 + border as u8, 2 * SUB, NONE).expect("there is room");
    }
    world.floor.flush(lane).expect("it ends");
    world.forget();
    let left = medium.crash(Crash::None, Arrival::InOrder);
    clean(&left, "after the power is back").unwrap();
    let mut world = open(&left, Floor::in_order(), 2, 2).unwrap();
    let lane = world.lane(10, 0);
    for border in 1..LEAVES {
        assert_eq!(world.read(lane, border * LEAF - SUB, 2 * SUB), vec![1 + border as u8; 2 * SUB as usize]);
    }
}

/// Whoever discards many clusters at once says so when all are done: until then the medium still has what is gone.
#[test]
fn beside_a_long_discard_it_waits() {
    let mut world = World::fresh(32 * MIB);
    world.create_volume(10, 8 * CLUSTER);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, CLUSTER);
    world.floor.flush(lane).unwrap();
    let chain = world.volume(uuid(10)).volume.chain();
    let (shared, leaf) = (world.volume(uuid(10)).shared.clone(), chain.head().leaf(0).unwrap());
    let page = shared.leaves.get(leaf);
    page.begin_stroke();
    let entry = page.entry(0);
    page.change(0, entry, entry.with_zero(0xf)).unwrap();
    let ticket = world.floor.submit(lane, Request::write(0, vec![9; 4 * SUB as usize], IoFlags::ATOMIC));
    (0..1000).for_each(|_| _ = world.floor.step());
    assert_eq!(world.floor.take(ticket), None, "what is gone may be there again after a power cut");
    page.pare(0);
    shared.mark(leaf, 0);
    page.end_stroke();
    assert_eq!(world.floor.run_until(ticket), Ok(Vec::new()));
    assert_ne!(page.entry(0).cluster(), entry.cluster());
}

/// To the medium a cluster is a deleted snapshot's, with all that was in it, until the commit that says whose it is now.
#[test]
fn in_a_cluster_that_has_just_come_from_below() {
    let mut world = World::fresh(32 * MIB);
    world.create_volume(10, 2 * CLUSTER);
    let (lane, other) = (world.lane(10, 0), world.lane(10, 1));
    world.write(lane, 0, 1, CLUSTER);
    world.snapshot(10, 20);
    world.write(lane, CLUSTER, 2, CLUSTER);
    world.order(Order::Checkpoint).unwrap();
    // The fold does not begin before this one has ended.
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Read));
    let read = world.floor.submit(other, Request::read(CLUSTER, 512));
    world.floor.step();
    world.order(Order::Delete { uuid: uuid(20) }).unwrap();
    world.floor.settle(3_000_000_000);
    world.discard(lane, 0, 4 * SUB);
    let chain = world.volume(uuid(10)).volume.chain();
    let (shared, leaf) = (world.volume(uuid(10)).shared.clone(), chain.head().leaf(0).unwrap());
    let page = shared.leaves.get(leaf);
    assert!(page.entry(0).cluster().is_none() && page.is_dirty(0));
    world.medium.release();
    for _ in 0..10_000 {
        if page.entry(0).cluster().is_some() {
            break;
        }
        world.floor.step();
    }
    let (was, mut outcomes) = (page.entry(0), std::collections::BTreeSet::new());
    assert_eq!((was.here(), was.zero(), page.is_dirty(0)), (0xfff0, 0xf, true), "it has come, and is not durable");
    let ticket = world.floor.submit(lane, Request::write(0, vec![9; 4 * SUB as usize], IoFlags::ATOMIC));
    let mut answered = false;
    for _ in 0..10_000 {
        for (choice, left) in world.medium.crashes(2, Arrival::InOrder) {
            let mut after = World::open(&left, Floor::in_order(), 2, 2).unwrap();
            let lane = after.lane(10, 0);
            let found = after.read(lane, 0, 4 * SUB);
            assert!(found.iter().all(|byte| *byte == found[0]), "{choice:?}: a part of it");
            outcomes.insert(found[0]);
            after.forget();
        }
        if answered {
            break;
        }
        world.floor.step();
        answered = world.floor.take(ticket).is_some();
    }
    assert!(answered && outcomes.contains(&1), "{outcomes:?}");
    assert!(world.floor.take(read).is_some());
}
