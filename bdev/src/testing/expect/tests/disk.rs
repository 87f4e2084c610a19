//! Medium, floor and oracle together, on the plainest pool there is: one volume that is the medium itself.

use pollux_core::{Bdev, IoError, IoFlags, Op, OpenArgs};

use super::*;
use crate::rng::Rng;
use crate::testing::floor::{Floor, LaneId, Request, Ticket};
use crate::testing::medium::{Crash, Effect, Geometry, Medium, Order, Rule};

const SECTORS: u64 = 16;

struct Plain<'a>(Id, &'a Medium);

impl Survivors for Plain<'_> {
    fn volumes(&mut self) -> Vec<(Id, u64)> {
        vec![(self.0, SECTORS)]
    }

    fn read(&mut self, _volume: Id, sector: u64) -> [u8; SECTOR] {
        self.1.peek(sector * SECTOR as u64, SECTOR).try_into().unwrap()
    }
}

struct Load<'a> {
    expect: Expect,
    id: Id,
    floor: Floor<'a>,
    lanes: Vec<LaneId>,
    under_way: BTreeMap<Ticket, (Asking, Op)>,
    rng: Rng,
}

impl Load<'_> {
    fn new(medium: &Medium, expect: Expect, id: Id, seed: u64) -> Self {
        let mut floor = Floor::seeded(seed);
        let open = |floor: &mut Floor<'_>| floor.channel(0, medium.open(OpenArgs { depth: 4, seed }).unwrap()).unwrap();
        let lanes = vec![open(&mut floor), open(&mut floor)];
        Load { expect, id, floor, lanes, under_way: BTreeMap::new(), rng: Rng::new(seed) }
    }

    fn submit(&mut self) {
        let first = self.rng.below(SECTORS);
        let count = 1 + self.rng.below((SECTORS - first).min(6));
        let (offset, len) = (first * SECTOR as u64, count * SECTOR as u64);
        let fua = self.rng.below(4) == 0;
        let flags = if fua { IoFlags::FUA } else { IoFlags::empty() };
        let (asking, request) = match self.rng.below(8) {
            0..4 => {
                let (asking, bytes) = self.expect.write(self.id, first, count, fua);
                (asking, Request::write(offset, bytes, flags))
            }
            4 => (self.expect.zero(self.id, first, count, fua), Request::plain(Op::Discard, flags, offset, len)),
            5 => (self.expect.flush(self.id), Request::flush()),
            _ => (self.expect.read(self.id, first, count), Request::read(offset, len)),
        };
        let lane = self.lanes[self.rng.below(2) as usize];
        let op = request.op;
        self.under_way.insert(self.floor.submit(lane, request), (asking, op));
    }

    fn answers(&mut self) -> Result<(), String> {
        for (ticket, outcome) in self.floor.answers() {
            let (asking, op) = self.under_way.remove(&ticket).unwrap();
            match (op, outcome) {
                (Op::Read, Ok(bytes)) => self.expect.has_read(asking, &bytes)?,
                (_, Ok(_)) => self.expect.done(asking),
                (_, Err(_)) => self.expect.failed(asking),
            }
        }
        Ok(())
    }

    fn run(&mut self, requests: u64) -> Result<(), String> {
        for _ in 0..requests {
            self.submit();
            for _ in 0..self.rng.below(6) {
                self.floor.step();
                self.answers()?;
            }
        }
        self.floor.settle(0);
        self.answers()
    }
}

/// Runs, crashes, and goes on from what is left, again and again.
fn crashes(seed: u64, spoil: impl Fn(&Medium)) -> Result<(), String> {
    let geometry = Geometry::with_512(SECTORS * SECTOR as u64);
    let mut medium = Medium::new(geometry, Order::Seeded(seed));
    let mut expect = Expect::new();
    let id = created(&mut expect, SECTORS);
    let mut rng = Rng::new(seed);
    for round in 0..6 {
        spoil(&medium);
        medium.stop_after(rng.below(60));
        let mut load = Load::new(&medium, expect, id, rng.next());
        let outcome = load.run(40);
        // What is in flight goes with the load.
        medium.stop_after(0);
        outcome?;
        expect = load.expect;
        drop(load.floor);
        let mut survived = None;
        for (choice, crashed) in medium.crashes(20, Order::Seeded(rng.next())) {
            let mut after = expect.clone();
            after.check_after_crash(&mut Plain(id, &crashed)).map_err(|why| format!("{round}, {choice:?}: {why}"))?;
            if survived.is_none() || choice == Crash::Seeded(seed % 20) {
                survived = Some((after, crashed));
            }
        }
        (expect, medium) = survived.unwrap();
    }
    Ok(())
}

fn count_of_failures(spoil: impl Fn(&Medium)) -> usize {
    (0..30).filter(|seed| crashes(*seed, &spoil).is_err()).count()
}

#[test]
fn the_medium_keeps_its_promises_under_any_load_and_crash() {
    for seed in 0..60 {
        if let Err(why) = crashes(seed, |_| {}) {
            panic!("seed {seed}: {why}");
        }
    }
}

#[test]
fn every_way_of_breaking_a_promise_is_found() {
    let lost_flush = || Rule::new(Effect::Lose).op(Op::Flush).always();
    assert!(count_of_failures(|medium| medium.rule(lost_flush())) >= 5);
    assert!(count_of_failures(|medium| medium.rule(Rule::new(Effect::Lose).op(Op::Write).skip(4))) >= 5);
    assert!(count_of_failures(|medium| medium.rule(Rule::new(Effect::Misdirect(0)).op(Op::Write).skip(4))) >= 5);
    assert!(count_of_failures(|medium| medium.rule(Rule::new(Effect::Corrupt(3)).op(Op::Read))) >= 5);
    assert!(count_of_failures(|medium| medium.rule(Rule::new(Effect::Tear).fua().skip(2))) >= 5);
    assert_eq!(count_of_failures(|medium| medium.rule(Rule::new(Effect::Fail(IoError::Medium)).always())), 0);
    assert_eq!(count_of_failures(|medium| medium.rule(Rule::new(Effect::FailHalf(IoError::Medium)).skip(3))), 0);
}
