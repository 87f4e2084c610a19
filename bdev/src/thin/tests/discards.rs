//! What the base is told of that nobody needs: neighbours together, not too much at a time, and nothing that anybody needs.

use pollux_core::{Io, IoError, IoFlags, Op};

use super::judge::{clean, counted};
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, LaneId, Request};
use crate::testing::medium::{Effect, Event, Geometry, Happened, Medium, Mutation, Order as Arrival, Rule};
use crate::thin::orders::Order;
use crate::thin::shared::Place;

/// Whether something is wrong when this wait is left out.
type Look<'a> = &'a dyn Fn(Option<&'static str>) -> bool;
const SUB: u64 = CLUSTER / 16;
const SECOND: u64 = 1_000_000_000;
const NONE: IoFlags = IoFlags::empty();

fn world(bytes: u64, clusters: u64) -> (World, LaneId) {
    let medium = Medium::new(Geometry { garbles: true, ..Geometry::with_512(bytes) }, Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, clusters * CLUSTER);
    let lane = world.lane(10, 1);
    world.write(lane, 0, 1, clusters * CLUSTER);
    world.floor.flush(lane).unwrap();
    (world, lane)
}

/// Lengths of the discards that the base was asked for since this instant, and the instant that it is now.
fn told(world: &World, since: u64) -> (Vec<u64>, u64) {
    let discards = |event: &&Event| event.op == Op::Discard && event.what == Happened::Submitted;
    let events = world.medium.events();
    let since = events.iter().filter(|event| event.instant > since).filter(discards).map(|event| event.len);
    (since.collect(), world.medium.instants())
}

fn settle(world: &mut World, lane: LaneId) {
    world.floor.flush(lane).unwrap();
    world.floor.settle(SECOND);
}

#[test]
fn neighbours_are_told_of_together() {
    let (mut world, lane) = world(64 * MIB, 128);
    let (_, since) = told(&world, 0);
    for nth in (0..128).rev() {
        world.discard(lane, nth * CLUSTER, CLUSTER);
    }
    settle(&mut world, lane);
    let (lengths, _) = told(&world, since);
    assert_eq!(lengths.iter().sum::<u64>(), 128 * CLUSTER);
    assert!(lengths.len() <= 4, "{lengths:?}");
    let info = world.info();
    assert_eq!((info.quarantined_bytes, info.discards.waiting_bytes), (0, 0));
}

#[test]
fn sub_blocks_that_are_discarded_one_by_one_free_their_cluster() {
    let (mut world, lane) = world(64 * MIB, 4);
    let (free, space) = (world.info().free_bytes, world.medium.space());
    for sub in 0..16 {
        world.discard(lane, CLUSTER + (sub * 5 % 16) * SUB, SUB);
        if sub % 3 == 0 {
            settle(&mut world, lane);
        }
    }
    settle(&mut world, lane);
    let info = world.info();
    assert_eq!((info.free_bytes - free, info.volumes[0].owned_bytes), (CLUSTER, 3 * CLUSTER));
    assert!(world.medium.space() <= space - CLUSTER + 32 * 4096, "all of it was given back below");
    let zeroes = vec![0; CLUSTER as usize];
    assert!(world.read(lane, CLUSTER, CLUSTER) == zeroes && world.read(lane, 0, CLUSTER) == vec![1; CLUSTER as usize]);
    counted(&world.info(), &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
}

/// Half of each cluster stays: the other half is given back below all the same, and can be written again.
#[test]
fn what_is_discarded_of_clusters_in_use_is_given_back_below() {
    let (mut world, lane) = world(64 * MIB, 32);
    let space = world.medium.space();
    let (_, since) = told(&world, 0);
    for cluster in 0..32 {
        world.discard(lane, cluster * CLUSTER + CLUSTER / 2, CLUSTER / 2);
    }
    settle(&mut world, lane);
    assert_eq!(told(&world, since).0, vec![CLUSTER / 2; 32]);
    assert!(world.medium.space() <= space - 16 * CLUSTER + 64 * 4096);
    let info = world.info();
    assert_eq!((info.volumes[0].owned_bytes, info.volumes[0].written_bytes), (32 * CLUSTER, 16 * CLUSTER));
    for cluster in 0..32 {
        let at = cluster * CLUSTER;
        assert!(world.read(lane, at, CLUSTER / 2) == vec![1; (CLUSTER / 2) as usize]);
        assert!(world.read(lane, at + CLUSTER / 2, CLUSTER / 2) == vec![0; (CLUSTER / 2) as usize]);
        world.write(lane, at + CLUSTER / 2 + SUB, 7, 512);
        let again = world.read(lane, at + CLUSTER / 2 + SUB, SUB);
        assert!(again[..512] == [7; 512] && again[512..].iter().all(|byte| *byte == 0));
    }
    counted(&world.info(), &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
}

/// While the base discards sub-blocks, who writes there again waits; who reads or writes beside them does not.
#[test]
fn a_write_to_what_is_being_discarded_below_comes_after_it() {
    let (mut world, lane) = world(64 * MIB, 4);
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Discard));
    world.discard(lane, 0, 4 * SUB);
    world.floor.flush(lane).unwrap();
    world.floor.settle(1_000_000);
    world.write(lane, 4 * SUB, 3, SUB);
    let written = world.floor.submit(lane, Request::write(SUB, vec![9; SUB as usize], NONE));
    for _ in 0..10_000 {
        world.floor.step();
    }
    assert!(world.floor.take(written).is_none(), "it would be gone");
    world.medium.release();
    world.floor.run_until(written).unwrap();
    settle(&mut world, lane);
    assert!(world.read(lane, SUB, SUB) == vec![9; SUB as usize]);
    assert!(world.read(lane, 0, SUB) == vec![0; SUB as usize]);
    assert!(world.read(lane, 4 * SUB, SUB) == vec![3; SUB as usize]);
    clean(&world.shut(), "after it was closed").unwrap();
}

/// Not more than so many bytes a second; what waits can be given out, and then nobody is told of it.
#[test]
fn the_base_is_told_of_so_much_a_second() {
    let (mut world, lane) = world(128 * MIB, 1024);
    world.order(Order::DiscardRate { rate: 16 * MIB }).unwrap();
    world.floor.settle(SECOND);
    let (_, since) = told(&world, 0);
    world.discard(lane, 0, 1024 * CLUSTER);
    world.floor.flush(lane).unwrap();
    let begun = world.floor.now();
    world.floor.settle(SECOND);
    world.floor.advance(begun + SECOND - world.floor.now().min(begun + SECOND));
    world.floor.settle(0);
    let (lengths, _) = told(&world, since);
    let sum: u64 = lengths.iter().sum();
    assert!((8 * MIB..=34 * MIB).contains(&sum), "{sum} in a second");
    let info = world.info();
    assert!(info.discards.waiting_bytes >= 30 * MIB && info.discards.rate == 16 * MIB, "{:?}", info.discards);
    assert_eq!(info.free_bytes + info.quarantined_bytes, info.total_bytes);
    // All of it can be used.
    world.write(lane, 0, 2, 1024 * CLUSTER);
    world.floor.flush(lane).unwrap();
    let (again, _) = told(&world, since);
    world.floor.settle(60 * SECOND);
    assert!(again.iter().sum::<u64>() < 40 * MIB, "what is in use again is not discarded: {again:?}");
    assert!(world.read(lane, 0, 1024 * CLUSTER).iter().all(|byte| *byte == 2));
    // It is remembered.
    let medium = world.shut();
    let mut world = World::open(&medium, Floor::in_order(), 2, 9).unwrap();
    assert_eq!(world.info().discards.rate, 16 * MIB);
    world.order(Order::DiscardRate { rate: 0 }).unwrap();
    assert!(world.info().discards.rate > 1 << 30);
    clean(&world.shut(), "after it was closed").unwrap();
}

/// What was told of at a low rate is not paid for when there is a higher one, or none.
#[test]
fn a_limit_that_is_lifted_is_lifted_at_once() {
    let (mut world, lane) = world(128 * MIB, 1024);
    world.order(Order::DiscardRate { rate: 1 << 10 }).unwrap();
    world.discard(lane, 0, 1024 * CLUSTER);
    settle(&mut world, lane);
    let waits = world.info().discards.waiting_bytes;
    assert!(waits > 32 * MIB, "{waits}");
    world.order(Order::DiscardRate { rate: 0 }).unwrap();
    world.floor.settle(SECOND);
    assert_eq!(world.info().discards.waiting_bytes, 0);
    // The same when the pool is closed.
    world.order(Order::DiscardRate { rate: 1 << 10 }).unwrap();
    world.write(lane, 0, 1, 1024 * CLUSTER);
    world.discard(lane, 0, 1024 * CLUSTER);
    settle(&mut world, lane);
    assert!(world.info().discards.waiting_bytes > 32 * MIB);
    let left = world.shut().space();
    assert!(left < 8 * MIB, "{left} bytes are still taken below");
}

/// What a cluster loses while what it had lost before is on its way is given back, too.
#[test]
fn sub_blocks_that_are_lost_one_after_the_other_are_given_back() {
    let (mut world, lane) = world(64 * MIB, 4);
    let space = world.medium.space();
    let other = world.lane(10, 0);
    // Nobody is told of anything as long as this one reads.
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Read));
    let read = world.floor.submit(other, Request::read(3 * CLUSTER, SUB));
    world.floor.settle(1_000_000);
    for sub in 0..8 {
        world.discard(lane, sub * SUB, SUB);
        settle(&mut world, lane);
    }
    assert_eq!(world.info().discards.waiting_parts, 1);
    world.medium.release();
    world.floor.run_until(read).unwrap();
    settle(&mut world, lane);
    assert_eq!(world.info().discards.waiting_parts, 0);
    assert!(world.medium.space() <= space - 8 * SUB + 32 * 4096, "{} of {space}", world.medium.space());
    assert!(world.read(lane, 0, 8 * SUB).iter().all(|byte| *byte == 0));
    assert!(world.read(lane, 8 * SUB, 8 * SUB).iter().all(|byte| *byte == 1));
    clean(&world.shut(), "after it was closed").unwrap();
}

/// Of a snapshot's clusters nobody is told as long as it is there, nor while it is being folded into what stands on it.
#[test]
fn what_a_snapshot_needs_is_not_discarded() {
    let (mut world, lane) = world(64 * MIB, 16);
    world.snapshot(10, 20);
    for cluster in 0..16 {
        world.write(lane, cluster * CLUSTER, 2, 8 * SUB);
    }
    world.floor.flush(lane).unwrap();
    world.discard(lane, 0, 16 * CLUSTER - SUB);
    for cluster in 0..8 {
        world.write(lane, cluster * CLUSTER, 3, SUB);
    }
    world.floor.flush(lane).unwrap();
    world.order(Order::Delete { uuid: uuid(20) }).unwrap();
    for cluster in 0..8 {
        world.discard(lane, cluster * CLUSTER + SUB, 2 * SUB);
        world.write(lane, cluster * CLUSTER + 2 * SUB, 4, SUB);
    }
    settle(&mut world, lane);
    for cluster in 0..16 {
        let bytes = world.read(lane, cluster * CLUSTER, CLUSTER);
        let expected = |sub: u64| match (cluster, sub) {
            (0..8, 0) => 3,
            (0..8, 2) => 4,
            (15, 15) => 1,
            _ => 0,
        };
        for sub in 0..16 {
            let part = &bytes[(sub * SUB) as usize..][..SUB as usize];
            assert!(part.iter().all(|byte| *byte == expected(sub)), "cluster {cluster}, sub-block {sub}: {}", part[0]);
        }
    }
    counted(&world.info(), &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
}

/// A write that was in flight when a large discard came may be before it or after it, as a whole; the discard waits for it.
#[test]
fn a_large_discard_waits_for_a_write_in_its_range() {
    for edge in [false, true] {
        let (mut world, lane) = world(64 * MIB, 600);
        world.discard(lane, 9 * CLUSTER, SUB);
        settle(&mut world, lane);
        world.medium.rule(Rule::new(Effect::Hold).op(Op::Write));
        let (at, len) = if edge { (9 * CLUSTER + 512, 512) } else { (9 * CLUSTER, SUB) };
        let written = world.floor.submit(lane, Request::write(at, vec![5; len as usize], NONE));
        for _ in 0..100 {
            world.floor.step();
        }
        let discarded = world.floor.submit(lane, Request::discard(0, 600 * CLUSTER));
        for _ in 0..1000 {
            world.floor.step();
        }
        assert!(world.floor.take(discarded).is_none(), "a part of it has to come after the write");
        world.medium.release();
        world.floor.run_until(written).unwrap();
        world.floor.run_until(discarded).unwrap();
        settle(&mut world, lane);
        let bytes = world.read(lane, 9 * CLUSTER, SUB);
        let (from, to) = ((at - 9 * CLUSTER) as usize, (at + len - 9 * CLUSTER) as usize);
        let one = |bytes: &[u8], what: u8| bytes.iter().all(|byte| *byte == what);
        assert!(one(&bytes[..from], 0) && one(&bytes[to..], 0), "what is beside the write is gone");
        assert!(one(&bytes[from..to], 0) || one(&bytes[from..to], 5));
        assert!(world.read(lane, 0, 9 * CLUSTER).iter().all(|byte| *byte == 0));
        counted(&world.info(), &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
    }
}

/// A discard of much is done a part at a time: who comes meanwhile on the same reactor does not wait for the whole.
#[test]
fn a_large_discard_leaves_turns_to_others() {
    const LEAVES: u64 = 12;
    let medium = Medium::new(Geometry { garbles: true, ..Geometry::with_512(64 * MIB) }, Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, LEAVES * 504 * CLUSTER);
    world.create_volume(11, MIB);
    let (lane, other) = (world.lane(10, 1), world.lane(11, 1));
    world.write(other, 0, 4, 4096);
    for leaf in 0..LEAVES {
        world.write(lane, (leaf * 504 + leaf) * CLUSTER, 1, 4 * CLUSTER);
    }
    world.snapshot(10, 20);
    let discarded = world.floor.submit(lane, Request::discard(0, LEAVES * 504 * CLUSTER));
    let mut reads = 0;
    while world.floor.take(discarded).is_none() {
        let steps = world.floor.steps();
        assert_eq!(world.read(other, 0, 4096), vec![4; 4096]);
        assert!(world.floor.steps() - steps < 40, "{} steps", world.floor.steps() - steps);
        reads += 1;
    }
    assert!(reads >= 2, "{reads} reads meanwhile");
    settle(&mut world, lane);
    assert!(world.read(lane, 0, 8 * CLUSTER).iter().all(|byte| *byte == 0));
    assert_eq!(world.info().volumes.iter().filter(|volume| volume.owned_bytes > 0).count(), 2);
    counted(&world.info(), &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
}

/// A volume of many leaves (10), none of which is in memory, and another one (11).
fn leaves_below(leaves: u64) -> World {
    let medium = Medium::new(Geometry { garbles: true, ..Geometry::with_512(64 * MIB) }, Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, leaves * 504 * CLUSTER);
    world.create_volume(11, 2 * 504 * CLUSTER);
    let (lane, other) = (world.lane(10, 1), world.lane(11, 1));
    for leaf in 0..leaves {
        world.write(lane, (leaf * 504 + leaf) * CLUSTER, 1, 4096);
    }
    (0..2).for_each(|leaf| world.write(other, leaf * 504 * CLUSTER, 2, 4096));
    world.reopened()
}

/// Discards all of volume 10, with four requests at once, and holds each read of the base for a while. Returns how many of its
/// leaves were asked for at once, at most.
fn discard_slowly(world: &mut World, leaves: u64, mut meanwhile: impl FnMut(&mut World)) -> usize {
    let lane = world.lane(10, 1);
    let part = leaves / 4 * 504 * CLUSTER;
    let mut discards: Vec<_> = (0..4).map(|nth| world.floor.submit(lane, Request::discard(nth * part, part))).collect();
    let head = world.volume(uuid(10)).volume.chain().head().clone();
    let asked = || (0..leaves).filter(|leaf| head.place(*leaf) == Place::Loading).count();
    let mut most = 0;
    while !discards.is_empty() {
        for _ in 0..100 {
            world.floor.step();
            most = asked().max(most);
        }
        world.medium.release();
        meanwhile(world);
        discards.retain(|ticket| world.floor.take(*ticket).is_none());
    }
    world.medium.clear_rules();
    world.medium.release();
    settle(world, lane);
    assert!(world.read(lane, 0, 8 * CLUSTER).iter().all(|byte| *byte == 0));
    assert_eq!(world.info().volumes[0].owned_bytes, 0);
    most
}

/// Leaves that are not in memory are read a few at a time while others use the pool, however many discards are in flight: what
/// others read stands behind them in the base's queue.
#[test]
fn discards_ask_for_few_leaves_at_once_where_others_are_at_work() {
    let mut world = leaves_below(40);
    let other = world.lane(11, 1);
    world.read(other, 0, 4096);
    world.floor.advance(1_000_000);
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Read).times(u64::MAX));
    // What lies on a leaf that is not in memory has the engine look who else is there.
    let mut reads: Vec<_> = [0, 504 * CLUSTER].map(|at| world.floor.submit(other, Request::read(at, 4096))).into();
    (0..100).for_each(|_| _ = world.floor.step());
    let most = discard_slowly(&mut world, 40, |world| {
        reads.retain(|ticket| world.floor.take(*ticket).is_none());
        reads.push(world.floor.submit(other, Request::read(0, 4096)));
    });
    assert!((2..=4).contains(&most), "{most} at once");
    counted(&world.info(), &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
}

/// With nobody else at work they go on at full speed: many leaves are asked for, and what lies together is one read. If that
/// fails each is read alone.
#[test]
fn discards_alone_ask_for_many_leaves_and_neighbours_are_read_together() {
    for fails in [false, true] {
        let mut world = leaves_below(40);
        if fails {
            let is_of_many = |io: &Io| io.op == Op::Read && io.len > 4096;
            world.medium.rule(Rule::new(Effect::Fail(IoError::Medium)).when(is_of_many).times(u64::MAX));
        }
        world.medium.rule(Rule::new(Effect::Hold).op(Op::Read).times(u64::MAX));
        let before = world.medium.reads();
        let most = discard_slowly(&mut world, 40, |_| {});
        let reads = world.medium.reads() - before;
        assert!(most > 8, "{most} at once");
        assert!(if fails { reads > 40 } else { reads < 30 }, "{reads} reads of 40 leaves");
        counted(&world.info(), &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
    }
}

/// What the log had freed when the power went is discarded below after the start, but for what reactors have in their leases.
#[test]
fn what_was_freed_before_a_crash_is_given_back_after_it() {
    let (mut world, lane) = world(128 * MIB, 1024);
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Discard).times(u64::MAX));
    world.discard(lane, 0, 1024 * CLUSTER);
    world.floor.flush(lane).unwrap();
    world.floor.settle(1_000_000);
    let medium = world.medium.clone();
    world.forget();
    let left = medium.crash(crate::testing::medium::Crash::None, Arrival::InOrder);
    let before = left.space();
    let mut world = World::open(&left, Floor::in_order(), 2, 9).unwrap();
    world.floor.settle(SECOND);
    assert!(world.medium.space() + 400 * CLUSTER <= before, "{} of {before}", world.medium.space());
    clean(&world.shut(), "after it was closed").unwrap();
}

/// What a base has where something was discarded.
fn is_garbage(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| *byte != 0 && *byte != 1)
}

/// Whether a power cut before the log says that something is gone leaves garbage where it was.
fn is_cut_too_early(spoil: Option<&'static str>, len: u64) -> bool {
    let (mut world, lane) = world(64 * MIB, 4);
    spoil.into_iter().for_each(|label| world.medium.spoil(Mutation::DropWait(label)));
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Write).step("commit.log").times(u64::MAX));
    world.discard(lane, 0, len);
    let _flush = world.floor.submit(lane, Request::flush());
    world.floor.settle(SECOND);
    let medium = world.medium.clone();
    let left: Vec<_> = medium.crashes(4, Arrival::InOrder).collect();
    world.forget();
    left.into_iter().any(|(_, left)| {
        let mut world = World::open(&left, Floor::in_order(), 2, 9).unwrap();
        let lane = world.lane(10, 1);
        let found = is_garbage(&world.read(lane, 0, len));
        world.forget();
        found
    })
}

/// Whether a read that began before something was discarded finds garbage.
fn is_read_too_late(spoil: Option<&'static str>, len: u64) -> bool {
    let (mut world, lane) = world(64 * MIB, 4);
    spoil.into_iter().for_each(|label| world.medium.spoil(Mutation::DropWait(label)));
    let other = world.lane(10, 0);
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Read));
    let read = world.floor.submit(other, Request::read(0, len));
    world.floor.settle(1_000_000);
    world.discard(lane, 0, len);
    settle(&mut world, lane);
    world.medium.release();
    let bytes = world.floor.run_until(read).unwrap();
    clean(&world.shut(), "after it was closed").unwrap();
    is_garbage(&bytes)
}

/// Whether what is written while something is being discarded is garbage afterwards.
fn is_written_too_early(spoil: Option<&'static str>) -> bool {
    let (mut world, lane) = world(64 * MIB, 4);
    spoil.into_iter().for_each(|label| world.medium.spoil(Mutation::DropWait(label)));
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Discard));
    world.discard(lane, 0, SUB);
    world.floor.flush(lane).unwrap();
    world.floor.settle(1_000_000);
    let written = world.floor.submit(lane, Request::write(0, vec![1; SUB as usize], NONE));
    for _ in 0..10_000 {
        world.floor.step();
    }
    world.medium.release();
    world.floor.run_until(written).unwrap();
    settle(&mut world, lane);
    is_garbage(&world.read(lane, 0, SUB))
}

/// Each of the waits before the base is told is needed; storms seldom come to the moment that shows it.
#[test]
fn each_wait_is_missed_when_it_is_left_out() {
    let waits: [(&str, Look<'_>); 5] = [
        ("quarantine.commit", &|spoil| is_cut_too_early(spoil, CLUSTER)),
        ("pare.commit", &|spoil| is_cut_too_early(spoil, SUB)),
        ("quarantine.epoch", &|spoil| is_read_too_late(spoil, CLUSTER)),
        ("pare.epoch", &|spoil| is_read_too_late(spoil, SUB)),
        ("pare.lock", &is_written_too_early),
    ];
    for (label, goes_wrong) in waits {
        assert!(!goes_wrong(None), "{label}: all is waited for");
        assert!(goes_wrong(Some(label)), "nobody misses {label}");
    }
}
