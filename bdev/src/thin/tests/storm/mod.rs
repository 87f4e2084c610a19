//! Long runs from seeds: volumes, snapshots and clones on three reactors, many requests in flight, structural orders in
//! between, a pool that is nearly full, a medium that reorders and tears; the power fails at any instant, also while the pool
//! is being opened, and everything goes on from what is left.
//!
//! A new kind of order is one line of [`orders::ORDERS`], and a method of the driver.

mod orders;
mod runs;
mod weather;

use pollux_core::{IoFlags, Op};

use super::driver::Driver;
use super::judge::{Live, adds_up, clean, counted, open};
use super::world::World;
use crate::rng::{Rng, mix};
use crate::testing::expect::{Expect, Id};
use crate::testing::floor::Floor;
use crate::testing::medium::{Crash, Medium, Off, Order};
use weather::Weather;

pub(super) use runs::spoiled;

const REACTORS: usize = 3;
/// Requests in flight.
const WIDTH: usize = 24;
/// Steps after which something hangs that waits for nothing.
const HANGS: u32 = 200_000;

/// Makes a medium do something wrong.
pub(super) type Spoil<'a> = &'a dyn Fn(&Medium);

/// See the module's description.
pub(super) struct Storm<'a> {
    rng: Rng,
    weather: Weather,
    driver: Driver,
    /// To be deleted, when nothing of it is in flight.
    closing: Option<Id>,
    /// The process is killed next, and the power stays on.
    killed: bool,
    salt: u64,
    spoil: Spoil<'a>,
    /// Other outcomes of each power cut that are looked at.
    pub(super) others: u64,
    pub(super) looks: u64,
    pub(super) crashes: u64,
    pub(super) requests: u64,
    pub(super) orders: u64,
    pub(super) refused: u64,
}

impl<'a> Storm<'a> {
    /// A fresh pool.
    pub(super) fn new(seed: u64, spoil: Spoil<'a>) -> Result<Storm<'a>, String> {
        let mut rng = Rng::new(seed);
        let weather = Weather::draw(seed, &mut rng);
        let medium = Medium::new(weather.geometry, Order::Seeded(rng.next()));
        spoil(&medium);
        World::create_of(&medium, weather.cluster);
        let world = open(&medium, Floor::seeded(rng.next()), REACTORS, 1)?;
        let driver = Driver::new(world, Expect::new());
        Ok(Storm {
            rng,
            weather,
            driver,
            closing: None,
            killed: false,
            salt: 1,
            spoil,
            others: 0,
            looks: 0,
            crashes: 0,
            requests: 0,
            orders: 0,
            refused: 0,
        })
    }

    /// Goes on until the power has failed so many times.
    pub(super) fn run(&mut self, crashes: u64) -> Result<(), String> {
        while self.crashes < crashes {
            self.until_the_power_fails().map_err(|what| format!("before crash {}: {what}", self.crashes))?;
            self.after_a_crash().map_err(|what| format!("after crash {}: {what}", self.crashes))?;
        }
        let medium = &self.driver.world.medium;
        medium.stop_after(medium.instants());
        Ok(())
    }

    fn until_the_power_fails(&mut self) -> Result<(), String> {
        let medium = self.driver.world.medium.clone();
        let stop = medium.instants() + 1 + self.rng.below(self.weather.calm);
        self.killed = self.rng.below(4) == 0;
        if !self.killed {
            medium.stop_after(stop);
        }
        while medium.powered() && medium.instants() < stop {
            self.act();
            for _ in 0..self.rng.below(30) {
                self.driver.step(u64::MAX)?;
            }
            if self.rng.below(40) == 0 {
                self.finish(&medium)?;
                self.settle(&medium)?;
            }
        }
        // Who has been told something by then is told.
        for _ in 0..if self.killed { 0 } else { 150 } {
            if !self.driver.step(u64::MAX)? {
                break;
            }
        }
        Ok(())
    }

    /// Runs until everything is answered, or the power fails.
    fn finish(&mut self, medium: &Medium) -> Result<(), String> {
        let mut steps = 0;
        while (self.driver.in_flight() != (0, 0) || self.driver.copying() > 0) && medium.powered() {
            steps += 1;
            let did = self.driver.step(u64::MAX)?;
            if (!did && medium.powered()) || steps > HANGS {
                let (left, floor) = (self.driver.in_flight(), self.driver.world.floor.describe());
                return Err(format!("(requests, orders) are never answered: {left:?}; {floor}"));
            }
        }
        Ok(())
    }

    /// Leaves the pool to itself, until it is at rest or the power fails.
    fn settle(&mut self, medium: &Medium) -> Result<(), String> {
        let (deadline, mut steps) = (self.driver.world.floor.now() + 600_000_000, 0);
        self.driver.world.floor.stir();
        while medium.powered() && self.driver.step(deadline)? {
            steps += 1;
            if steps > HANGS {
                return Err(format!("it is never at rest: {}", self.driver.world.floor.describe()));
            }
        }
        Ok(())
    }

    fn pick(&mut self, all: &[Id]) -> Option<Id> {
        (!all.is_empty()).then(|| all[self.rng.below(all.len() as u64) as usize])
    }

    /// Asks for something.
    fn act(&mut self) {
        if let Some(id) = self.closing.filter(|id| !self.driver.is_busy(*id)) {
            if self.driver.in_flight().1 == 0 {
                self.closing = None;
                self.driver.delete(id);
                self.orders += 1;
            }
            return;
        }
        let (requests, orders) = self.driver.in_flight();
        if orders == 0 && (self.rng.below(8) == 0 || self.driver.expect.present().is_empty()) {
            self.order();
        } else if requests < WIDTH {
            self.request();
        }
    }

    fn request(&mut self) {
        let present: Vec<Id> =
            self.driver.expect.present().into_iter().filter(|id| Some(*id) != self.closing).collect();
        let Some(id) = self.pick(&present) else { return };
        let reactor = self.rng.below(REACTORS as u64) as usize;
        let (first, count) = self.range(id);
        let fua = if self.rng.below(6) == 0 { IoFlags::FUA } else { IoFlags::empty() };
        self.requests += 1;
        if self.driver.expect.is_snapshot(id) {
            return self.driver.read(id, reactor, first, count);
        }
        match self.rng.below(100) {
            0..58 => {
                let sub = self.weather.cluster / 512 / 16;
                let may = (first | count).is_multiple_of(sub);
                let atomic = if may && self.rng.below(2) == 0 { IoFlags::ATOMIC } else { IoFlags::empty() };
                self.driver.write(id, reactor, first, count, fua | atomic);
            }
            58..66 => self.driver.zero(id, reactor, Op::Discard, first, count, IoFlags::empty()),
            66..72 => self.driver.zero(id, reactor, Op::WriteZeroes, first, count, fua),
            72..76 => self.driver.zero(id, reactor, Op::WriteZeroes, first, count, fua | IoFlags::MAY_DEALLOCATE),
            76..90 => self.driver.read(id, reactor, first, count),
            _ => self.driver.flush(id, reactor),
        }
    }

    /// Sectors of a volume: mostly few, often at the same places.
    fn range(&mut self, id: Id) -> (u64, u64) {
        let Weather { cluster, .. } = self.weather;
        let block = u64::from(self.weather.geometry.block_size);
        let (unit, sub) = (block / 512, cluster / 512 / 16);
        let sectors = self.driver.expect.sectors(id);
        let places = [0, cluster / 512, sectors / 2, sectors - cluster / 512];
        let leaf = self.rng.below(sectors.div_ceil(504 * cluster / 512)) * 504 * cluster / 512;
        let near = if self.weather.wide && self.rng.below(4) > 0 { leaf } else { places[self.rng.below(4) as usize] };
        let first = (near + self.rng.below(3 * sub)).min(sectors - unit) / unit * unit;
        let longest = [sub, sub, 4 * sub, 24 * sub][self.rng.below(4) as usize];
        let count = (1 + self.rng.below(longest)).next_multiple_of(unit).min(sectors - first);
        if self.rng.below(4) == 0 && first + 3 * sub < sectors {
            return (first / sub * sub, sub * (1 + self.rng.below(3)));
        }
        (first, count)
    }

    /// What is left, and what may be.
    fn after_a_crash(&mut self) -> Result<(), String> {
        self.crashes += 1;
        self.refused += self.driver.errors.len() as u64;
        let medium = self.driver.world.medium.clone();
        if !self.killed {
            self.look_at_others(&medium)?;
        }
        let mut crashed = if self.killed { Self::kill(&medium) } else { self.crash(&medium) };
        clean(&crashed, "after the crash")?;
        while self.rng.below(5) == 0 {
            crashed = self.cut_while_opening(&crashed)?;
            clean(&crashed, "after a crash while it was opened")?;
        }
        adds_up(&crashed, REACTORS, self.salt + 1)?;
        let mut world = self.open(&crashed)?;
        let info = world.info();
        let parents = {
            let mut live = Live::new(&mut world, REACTORS)?;
            let agrees = self.driver.expect.check_after_crash(&mut live);
            live.end()?;
            agrees?;
            live.parents
        };
        if self.rng.below(8) == 0 {
            world = self.tidy(world)?;
        }
        let expect = std::mem::take(&mut self.driver.expect);
        // The old one goes without power.
        let mut driver = Driver::new(world, expect);
        driver.goes_on(&self.driver, &info)?;
        self.driver = driver;
        self.driver.parents = parents;
        self.closing = None;
        Ok(())
    }

    /// What else could be left of this power cut.
    fn look_at_others(&mut self, medium: &Medium) -> Result<(), String> {
        for nth in 0..self.others {
            let choice = Crash::Seeded(mix(self.crashes ^ mix(nth)));
            let left = medium.crash(choice, Order::InOrder);
            clean(&left, "after another crash")?;
            let mut world = open(&left, Floor::in_order(), REACTORS, self.salt + 1)?;
            let mut live = Live::new(&mut world, REACTORS)?;
            let agrees = self.driver.expect.bears(&mut live);
            live.end().and(agrees).map_err(|what| format!("{choice:?}: {what}"))?;
            world.forget();
            self.looks += 1;
        }
        Ok(())
    }

    fn crash(&mut self, medium: &Medium) -> Medium {
        let unsynced = medium.unsynced().len();
        let choice = match self.rng.below(8) {
            0 => Crash::None,
            1 => Crash::All,
            2 if unsynced > 0 => Crash::AllBut(self.rng.below(unsynced as u64) as usize),
            3 if unsynced > 0 => Crash::Only(self.rng.below(unsynced as u64) as usize),
            4 => Crash::Subset(self.rng.next()),
            _ => Crash::Seeded(self.rng.next()),
        };
        let crashed = medium.crash(choice, Order::Seeded(self.rng.next()));
        (self.spoil)(&crashed);
        crashed
    }

    /// The medium stays as it is; what nobody has flushed yet the next start has to flush.
    fn kill(medium: &Medium) -> Medium {
        medium.kill();
        medium.clone()
    }

    fn cut_while_opening(&mut self, medium: &Medium) -> Result<Medium, String> {
        medium.stop_after(medium.instants() + self.rng.below(5));
        medium.when_off(Off::Failing);
        self.salt += 1;
        let floor = Floor::seeded(self.rng.next());
        match World::open(medium, floor, REACTORS, self.salt) {
            Err(_) if !medium.powered() => {}
            Err(error) => return Err(format!("it cannot be opened: {error}")),
            Ok(world) => world.forget(),
        }
        Ok(self.crash(medium))
    }

    fn open(&mut self, medium: &Medium) -> Result<World, String> {
        self.salt += 1;
        open(medium, Floor::seeded(self.rng.next()), REACTORS, self.salt)
    }

    /// Comes to rest, and everything adds up; then it is opened again.
    fn tidy(&mut self, mut world: World) -> Result<World, String> {
        world.order(crate::thin::orders::Order::Checkpoint).map_err(|error| format!("no checkpoint: {error}"))?;
        world.floor.settle(2_000_000_000);
        let info = world.info();
        let medium = world.shut();
        let report = clean(&medium, "after it was closed")?;
        counted(&info, &report)?;
        self.open(&medium)
    }
}
