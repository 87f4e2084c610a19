use std::collections::BTreeSet;

use super::*;
use crate::testing::floor::{Floor, LaneId, Request, Ticket};
use crate::thin::steps::Steps;

const MIB: u64 = 1 << 20;

fn medium(order: Order) -> Medium {
    Medium::new(Geometry::with_512(64 * MIB), order)
}

fn open(floor: &mut Floor<'_>, medium: &Medium) -> LaneId {
    floor.channel(0, medium.open(OpenArgs { depth: 32, seed: 0 }).unwrap()).unwrap()
}

fn fill(byte: u8, sectors: usize) -> Vec<u8> {
    vec![byte; sectors * 512]
}

fn write(floor: &mut Floor<'_>, lane: LaneId, sector: u64, byte: u8) {
    floor.write(lane, sector * 512, &fill(byte, 1), IoFlags::empty()).unwrap();
}

fn write_fua(floor: &mut Floor<'_>, lane: LaneId, sector: u64, byte: u8) {
    floor.write(lane, sector * 512, &fill(byte, 1), IoFlags::FUA).unwrap();
}

/// The first bytes of these sectors after a crash.
fn after(medium: &Medium, choice: Crash, sectors: std::ops::Range<u64>) -> Vec<u8> {
    let crashed = medium.crash(choice, Order::InOrder);
    sectors.map(|sector| crashed.peek(sector * 512, 1)[0]).collect()
}

/// Everything that these sectors can be after a crash.
fn outcomes(medium: &Medium, sectors: std::ops::Range<u64>) -> BTreeSet<Vec<u8>> {
    let all = medium.crashes(64, Order::InOrder);
    all.map(|(_, crashed)| sectors.clone().map(|sector| crashed.peek(sector * 512, 1)[0]).collect()).collect()
}

#[test]
fn what_was_flushed_or_forced_stays_and_the_rest_is_open() {
    for order in [Order::InOrder, Order::Seeded(7)] {
        let medium = medium(order);
        let mut floor = Floor::in_order();
        let lane = open(&mut floor, &medium);
        write(&mut floor, lane, 0, 1);
        assert_eq!(outcomes(&medium, 0..1), [vec![0], vec![1]].into());
        floor.flush(lane).unwrap();
        write(&mut floor, lane, 1, 2);
        write_fua(&mut floor, lane, 2, 3);
        assert_eq!(outcomes(&medium, 0..3), [vec![1, 0, 3], vec![1, 2, 3]].into());
        assert_eq!(medium.peek(512, 1), [2], "what has completed is visible");
        floor.zero(lane, Op::Discard, 0, 512).unwrap();
        assert_eq!(outcomes(&medium, 0..1), [vec![0], vec![1]].into(), "a discard is a change");
        floor.flush(lane).unwrap();
        assert_eq!(outcomes(&medium, 0..3), [vec![0, 2, 3]].into());
        assert!(medium.unsynced().is_empty());
    }
}

#[test]
fn a_flush_covers_only_what_had_completed_when_it_was_submitted() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    medium.rule(Rule::new(Effect::Hold).op(Op::Flush));
    let flush = floor.submit(lane, Request::flush());
    write(&mut floor, lane, 0, 1);
    medium.release();
    floor.run_until(flush).unwrap();
    assert_eq!(outcomes(&medium, 0..1), [vec![0], vec![1]].into());
}

#[test]
fn nothing_durable_is_overwritten_by_something_older() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    write(&mut floor, lane, 0, 1);
    write_fua(&mut floor, lane, 0, 2);
    assert_eq!(outcomes(&medium, 0..1), [vec![2]].into());
    write(&mut floor, lane, 0, 3);
    assert_eq!(outcomes(&medium, 0..1), [vec![2], vec![3]].into());
}

#[test]
fn of_two_changes_at_once_either_may_win_and_what_is_shown_then_stays() {
    let mut shown = BTreeSet::new();
    for seed in 0..64 {
        let medium = medium(Order::Seeded(seed));
        let mut floor = Floor::seeded(seed);
        let lanes = [open(&mut floor, &medium), open(&mut floor, &medium)];
        let both: Vec<Ticket> = lanes
            .iter()
            .zip([1, 2])
            .map(|(lane, byte)| floor.submit(*lane, Request::write(0, fill(byte, 2), IoFlags::empty())))
            .collect();
        let open: BTreeSet<Vec<u8>> = outcomes(&medium, 0..1);
        assert_eq!(open, [vec![0], vec![1], vec![2]].into());
        for ticket in both {
            floor.run_until(ticket).unwrap();
        }
        let now = floor.read(lanes[0], 0, 1024).unwrap();
        floor.flush(lanes[1]).unwrap();
        assert_eq!(floor.read(lanes[0], 0, 1024).unwrap(), now);
        assert_eq!(outcomes(&medium, 0..2), [vec![now[0], now[512]]].into(), "seed {seed}");
        shown.insert((now[0], now[512]));
    }
    assert!(shown.len() > 2, "also sector by sector: {shown:?}");
}

#[test]
fn changes_in_flight_tear_at_the_unit_of_the_medium() {
    for tear in [512u32, 4096] {
        let medium = Medium::new(Geometry { tear, ..Geometry::with_512(MIB) }, Order::InOrder);
        let mut floor = Floor::in_order();
        let lane = open(&mut floor, &medium);
        floor.submit(lane, Request::write(0, fill(1, 16), IoFlags::FUA));
        assert!(medium.unsynced()[0].in_flight);
        let torn = outcomes(&medium, 0..16);
        let whole =
            torn.iter().all(|all| all.chunks(tear as usize / 512).all(|unit| unit.iter().all(|b| *b == unit[0])));
        assert!(whole && torn.len() >= 4, "{torn:?}");
        assert_eq!(torn.len() > 4, tear == 512, "more than two units tear in more than four ways");
        floor.settle(0);
        assert_eq!(outcomes(&medium, 0..16), [vec![1; 16]].into());
    }
}

#[test]
fn requests_complete_in_another_order_than_they_came_in_over_all_channels() {
    let mut orders = BTreeSet::new();
    for seed in 0..32 {
        let medium = medium(Order::Seeded(seed));
        let mut floor = Floor::in_order();
        let lanes = [open(&mut floor, &medium), open(&mut floor, &medium)];
        let tickets: Vec<Ticket> = (0..4)
            .map(|nth| floor.submit(lanes[nth % 2], Request::write(nth as u64 * 512, fill(1, 1), IoFlags::empty())))
            .collect();
        floor.settle(0);
        let order: Vec<usize> = floor
            .answers()
            .iter()
            .map(|(ticket, _)| tickets.iter().position(|other| other == ticket).unwrap())
            .collect();
        assert_eq!(order.len(), 4);
        orders.insert(order);
    }
    assert!(orders.len() > 8, "{orders:?}");
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = |seed| {
        let medium = medium(Order::Seeded(seed));
        let mut floor = Floor::seeded(seed);
        let lanes = [open(&mut floor, &medium), open(&mut floor, &medium)];
        for nth in 0..40u64 {
            let request = match nth % 5 {
                0 => Request::flush(),
                1 => Request::read(nth * 512, 2048),
                _ => Request::write(nth % 7 * 1024, fill(nth as u8, 4), IoFlags::empty()),
            };
            floor.submit(lanes[(nth % 2) as usize], request);
            floor.step();
        }
        floor.settle(0);
        (medium.events(), medium.crash(Crash::Seeded(seed), Order::InOrder).peek(0, 32 << 10))
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).0, run(4).0);
}

#[test]
fn the_power_goes_off_at_every_instant_and_reads_go_on() {
    let run = |stop: Option<u64>| {
        let medium = medium(Order::InOrder);
        let mut floor = Floor::in_order();
        let lane = open(&mut floor, &medium);
        if let Some(stop) = stop {
            medium.stop_after(stop);
        }
        let first = floor.submit(lane, Request::write(0, fill(1, 1), IoFlags::empty()));
        let first = floor.try_run_until(first).is_some();
        let second = floor.submit(lane, Request::write(512, fill(2, 1), IoFlags::FUA));
        let second = floor.try_run_until(second).is_some();
        assert!(floor.read(lane, 0, 512).is_ok());
        (medium.instants(), medium.powered(), first, second, outcomes(&medium, 0..2))
    };
    let nothing: BTreeSet<Vec<u8>> = [vec![0, 0]].into();
    let one: BTreeSet<Vec<u8>> = [vec![0, 0], vec![1, 0]].into();
    let both: BTreeSet<Vec<u8>> = [vec![0, 0], vec![1, 0], vec![0, 2], vec![1, 2]].into();
    let forced: BTreeSet<Vec<u8>> = [vec![0, 2], vec![1, 2]].into();
    assert_eq!(run(Some(0)), (0, false, false, false, nothing));
    assert_eq!(run(Some(1)), (1, false, false, false, one.clone()));
    assert_eq!(run(Some(2)), (2, false, true, false, one));
    assert_eq!(run(Some(3)), (3, false, true, false, both));
    assert_eq!(run(Some(4)), (4, false, true, true, forced.clone()));
    assert_eq!(run(None), (4, true, true, true, forced));
}

#[test]
fn without_power_requests_fail_where_nobody_can_wait() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    medium.stop_after(1);
    medium.when_off(Off::Failing);
    assert_eq!(floor.write(lane, 0, &fill(1, 1), IoFlags::FUA), Err(IoError::NotReady));
    assert_eq!(floor.flush(lane), Err(IoError::NotReady));
    assert_eq!(outcomes(&medium, 0..1), [vec![0], vec![1]].into(), "it was in flight when the power went off");
}

#[test]
fn requests_go_wrong_by_rule() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    let none = IoFlags::empty();
    medium.rule(Rule::new(Effect::Fail(IoError::Medium)).op(Op::Write));
    assert_eq!(floor.write(lane, 0, &fill(1, 2), none), Err(IoError::Medium));
    medium.rule(Rule::new(Effect::FailHalf(IoError::Medium)).op(Op::Write));
    assert_eq!(floor.write(lane, 0, &fill(2, 2), none), Err(IoError::Medium));
    medium.rule(Rule::new(Effect::Tear).op(Op::Write));
    assert_eq!(floor.write(lane, 1024, &fill(3, 2), none), Ok(()));
    medium.rule(Rule::new(Effect::Lose).op(Op::Write));
    assert_eq!(floor.write(lane, 2048, &fill(4, 2), none), Ok(()));
    medium.rule(Rule::new(Effect::Misdirect(4096)).op(Op::Write));
    assert_eq!(floor.write(lane, 3072, &fill(5, 1), none), Ok(()));
    let seen: Vec<u8> = floor.read(lane, 0, 4608).unwrap().chunks(512).map(|sector| sector[0]).collect();
    assert_eq!(seen, [2, 0, 3, 0, 0, 0, 0, 0, 5]);
    medium.rule(Rule::new(Effect::Corrupt(7)).op(Op::Read));
    let corrupt = floor.read(lane, 0, 512).unwrap();
    assert_eq!((corrupt[6], corrupt[7]), (2, !2));
    medium.rule(Rule::new(Effect::Fail(IoError::Medium)).op(Op::Read).at(4096..4608).always());
    assert_eq!(floor.read(lane, 4096, 512), Err(IoError::Medium));
    assert_eq!(floor.read(lane, 0, 512).unwrap()[0], 2);
    assert_eq!(medium.hits(), 7);
}

#[test]
fn a_flush_may_fail_and_what_it_covered_may_be_lost() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    write(&mut floor, lane, 0, 1);
    medium.rule(Rule::new(Effect::Fail(IoError::Medium)).op(Op::Flush));
    assert_eq!(floor.flush(lane), Err(IoError::Medium));
    assert_eq!(outcomes(&medium, 0..1), [vec![0], vec![1]].into());
    floor.flush(lane).unwrap();
    write(&mut floor, lane, 0, 2);
    medium.rule(Rule::new(Effect::FailAndLose(IoError::Medium)).op(Op::Flush));
    assert_eq!(floor.flush(lane), Err(IoError::Medium));
    floor.flush(lane).unwrap();
    assert_eq!(medium.peek(0, 1), [2], "the cache still shows it");
    assert_eq!(outcomes(&medium, 0..1), [vec![1]].into(), "a later flush does not bring it back");
}

#[test]
fn writes_to_fresh_space_fail_when_there_is_none() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    floor.write(lane, 0, &fill(0, 16), IoFlags::empty()).unwrap();
    assert_eq!(medium.space(), 8192);
    medium.limit_space(Some(8192));
    assert_eq!(floor.write(lane, 4096, &fill(1, 8), IoFlags::empty()), Ok(()), "it was written in full");
    assert_eq!(floor.write(lane, 8192, &fill(1, 1), IoFlags::empty()), Err(IoError::NoSpace));
    assert_eq!(floor.zero(lane, Op::WriteZeroes, 8192, 512), Err(IoError::NoSpace));
    floor.zero(lane, Op::Discard, 0, 4096).unwrap();
    assert_eq!(floor.write(lane, 8192, &fill(1, 1), IoFlags::empty()), Ok(()));
}

#[test]
fn barriers_are_dropped_by_their_step() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    medium.drop_flush("barrier");
    medium.drop_fua("log");
    let before = |label| medium.step(label);
    write(&mut floor, lane, 0, 1);
    before("barrier");
    floor.flush(lane).unwrap();
    before("log");
    write_fua(&mut floor, lane, 1, 2);
    write_fua(&mut floor, lane, 2, 3);
    assert_eq!(after(&medium, Crash::None, 0..3), [0, 0, 3]);
    assert!(medium.waits("drain"));
    medium.drop_wait("drain");
    assert!(!medium.waits("drain"));
    let seen = medium.steps();
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), ["barrier", "drain", "log"]);
    assert_eq!((seen["barrier"].flushes, seen["log"].fua, seen["drain"].waits), (1, 1, 2));
    before("other");
    floor.flush(lane).unwrap();
    assert_eq!(after(&medium, Crash::None, 0..3), [1, 2, 3]);
}

/// Data, a barrier, a log record with FUA.
fn data_then_log(medium: &Medium, floor: &mut Floor<'_>, lane: LaneId) -> Ticket {
    medium.step("data");
    write(floor, lane, 0, 1);
    medium.step("barrier");
    floor.flush(lane).unwrap();
    medium.step("log");
    floor.submit(lane, Request::write(512, fill(2, 1), IoFlags::FUA))
}

#[test]
fn a_swapped_pair_shows_in_a_crash_between_the_two_and_nowhere_else() {
    for swapped in [false, true] {
        let medium = medium(Order::InOrder);
        let mut floor = Floor::in_order();
        let lane = open(&mut floor, &medium);
        if swapped {
            medium.swap(Some("data"), Some("log"));
        }
        let log = data_then_log(&medium, &mut floor, lane);
        let between = outcomes(&medium, 0..2);
        let honest: BTreeSet<Vec<u8>> = [vec![1, 0], vec![1, 2]].into();
        let wrong = vec![0, 2];
        assert_eq!(between.contains(&wrong), swapped);
        assert_eq!(between.difference(&[wrong].into()).cloned().collect::<BTreeSet<_>>(), honest);
        floor.run_until(log).unwrap();
        assert_eq!(outcomes(&medium, 0..2), [vec![1, 2]].into(), "what is acknowledged is safe all the same");
        write(&mut floor, lane, 0, 3);
        floor.flush(lane).unwrap();
        assert_eq!(outcomes(&medium, 0..2), [vec![3, 2]].into());
    }
}

#[test]
fn what_guests_write_is_swapped_with_what_comes_behind_its_barrier_only() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    medium.swap(None, Some("log"));
    write(&mut floor, lane, 0, 1);
    floor.flush(lane).unwrap();
    write(&mut floor, lane, 1, 2);
    floor.flush(lane).unwrap();
    assert_eq!(outcomes(&medium, 0..2), [vec![1, 2]].into());
    medium.step("log");
    let log = floor.submit(lane, Request::write(1024, fill(3, 1), IoFlags::FUA));
    assert_eq!(outcomes(&medium, 0..3), [vec![1, 2, 0], vec![1, 2, 3], vec![1, 0, 3]].into());
    floor.run_until(log).unwrap();
    assert_eq!(outcomes(&medium, 0..3), [vec![1, 2, 3]].into());
}

#[test]
fn a_crash_leaves_a_medium_of_its_own() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    write(&mut floor, lane, 0, 1);
    let crashed = medium.crash(Crash::All, Order::InOrder);
    write(&mut floor, lane, 0, 2);
    let other = open(&mut floor, &crashed);
    assert_eq!(floor.read(other, 0, 512).unwrap()[0], 1);
    write(&mut floor, other, 0, 3);
    assert_eq!((medium.peek(0, 1)[0], crashed.peek(0, 1)[0]), (2, 3));
    assert!(crashed.unsynced().len() == 1 && after(&crashed, Crash::None, 0..1) == [1]);
}

#[test]
fn when_its_user_is_killed_nothing_becomes_durable_by_that() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    write(&mut floor, lane, 0, 1);
    floor.submit(lane, Request::write(512, fill(2, 1), IoFlags::FUA));
    medium.kill();
    drop(floor);
    assert_eq!(medium.peek(0, 1), [1], "what was visible is");
    let outcomes = outcomes(&medium, 0..2);
    assert!(outcomes.contains(&vec![0, 0]) && outcomes.contains(&vec![1, 0]));
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    floor.flush(lane).unwrap();
    assert_eq!(after(&medium, Crash::None, 0..1), [1]);
}

#[test]
fn a_cancelled_request_that_is_held_is_aborted() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    medium.rule(Rule::new(Effect::Hold).op(Op::Write));
    let held = floor.submit(lane, Request::write(0, fill(1, 1), IoFlags::empty()));
    assert_eq!(floor.try_run_until(held), None);
    floor.cancel(lane, held);
    assert_eq!(floor.run_until(held), Err(IoError::Aborted));
    assert_eq!(outcomes(&medium, 0..1), [vec![0]].into());
}

#[test]
#[should_panic(expected = "unaligned")]
fn it_holds_users_to_whole_blocks() {
    let medium = Medium::new(Geometry::with_4096(MIB), Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    let _ = floor.read(lane, 512, 4096);
}

#[test]
#[should_panic(expected = "dropped with the power on")]
fn it_holds_users_to_waiting_for_what_is_in_flight() {
    let medium = medium(Order::InOrder);
    let mut floor = Floor::in_order();
    let lane = open(&mut floor, &medium);
    floor.submit(lane, Request::read(0, 512));
}
