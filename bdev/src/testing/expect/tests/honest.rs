//! A pool that is nothing but a picture of one: it does what a pool may do, drawn by a seed, and the oracle has to agree. And
//! pools that do what none may: the oracle has to object.

use super::*;
use crate::rng::Rng;

const SECTORS: u64 = 6;

/// What is wrong with a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// A crash forgets what a flush covered.
    Forgets,
    /// The volumes of a group are cut one after the other.
    Straggles,
    /// A write that was acknowledged before the cut goes past it, into the new layer only.
    Misses,
    /// A snapshot goes on seeing what is written to its volume.
    Leaks,
    /// A crash leaves half of a group.
    Halves,
    /// An acknowledged snapshot is not durable.
    Loses,
    /// A clone shows its snapshot's parent instead.
    Strays,
    /// A rollback leaves the sectors with odd numbers alone.
    Skips,
}

/// Each sector's values since the one that a crash cannot undo.
type Sectors = Vec<Vec<Value>>;

#[derive(Clone, Debug)]
struct Layer {
    sectors: Sectors,
    snapshot: bool,
}

struct Write {
    asking: Asking,
    id: Id,
    /// Sectors that have not changed yet.
    left: Vec<(u64, Value)>,
}

struct PendingCut {
    asking: Asking,
    of: Vec<Id>,
    made: Vec<Id>,
    /// Volumes that were cut; and what the snapshots hold.
    cut: usize,
}

struct Pool {
    expect: Expect,
    layers: BTreeMap<Id, Layer>,
    writes: Vec<Write>,
    cut: Option<PendingCut>,
    rng: Rng,
    wrong: Wrong,
    /// Acknowledged last: what a cut may miss.
    last: Option<(Id, u64, Value)>,
}

impl Pool {
    fn new(seed: u64, wrong: Wrong) -> Self {
        let (expect, rng) = (Expect::new(), Rng::new(seed));
        let mut pool = Pool { expect, layers: BTreeMap::new(), writes: Vec::new(), cut: None, rng, wrong, last: None };
        for _ in 0..3 {
            let id = created(&mut pool.expect, SECTORS);
            pool.add(id, vec![vec![Value::Zero]; SECTORS as usize], false);
        }
        pool
    }

    fn add(&mut self, id: Id, sectors: Sectors, snapshot: bool) {
        self.layers.insert(id, Layer { sectors, snapshot });
    }

    fn pick(&mut self, snapshot: bool) -> Option<Id> {
        let all: Vec<Id> = self.layers.iter().filter(|(_, l)| l.snapshot == snapshot).map(|(id, _)| *id).collect();
        (!all.is_empty()).then(|| all[self.rng.below(all.len() as u64) as usize])
    }

    fn now(&self, id: Id) -> Sectors {
        self.layers[&id].sectors.iter().map(|all| vec![*all.last().unwrap()]).collect()
    }

    fn write(&mut self) {
        let Some(id) = self.pick(false) else { return };
        let first = self.rng.below(SECTORS);
        let count = 1 + self.rng.below(SECTORS - first);
        let (asking, values) = if self.rng.below(4) == 0 {
            (self.expect.zero(id, first, count, false), vec![Value::Zero; count as usize])
        } else {
            let (asking, bytes) = self.expect.write(id, first, count, false);
            (asking, bytes.chunks(SECTOR).map(|sector| Value::of(sector).unwrap()).collect())
        };
        self.writes.push(Write { asking, id, left: (first..).zip(values).collect() });
    }

    /// One sector of one write changes, or the write is acknowledged.
    fn go_on(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let at = self.rng.below(self.writes.len() as u64) as usize;
        let write = &mut self.writes[at];
        if write.left.is_empty() {
            let write = self.writes.remove(at);
            return self.expect.done(write.asking);
        }
        let (sector, value) = write.left.remove(self.rng.below(write.left.len() as u64) as usize);
        let id = write.id;
        self.layers.get_mut(&id).unwrap().sectors[sector as usize].push(value);
        self.last = Some((id, sector, value));
        let leaks = self.cut.as_ref().filter(|cut| self.wrong == Wrong::Leaks && cut.of[0] == id && cut.cut > 0);
        if let Some(made) = leaks.map(|cut| cut.made[0]) {
            self.layers.get_mut(&made).unwrap().sectors[sector as usize] = vec![value];
        }
    }

    fn flush(&mut self) {
        let Some(id) = self.pick(false) else { return };
        let asking = self.expect.flush(id);
        if self.wrong != Wrong::Forgets {
            let now = self.now(id);
            self.layers.get_mut(&id).unwrap().sectors = now;
        }
        self.expect.done(asking);
    }

    /// A group is asked for, or cut, or acknowledged.
    fn cut(&mut self) {
        let Some(mut cut) = self.cut.take() else {
            let mut of: Vec<Id> = (0..2).filter_map(|_| self.pick(false)).collect();
            of.dedup();
            let (made, asking) = self.expect.snapshot(&of);
            self.cut = Some(PendingCut { asking, of, made, cut: 0 });
            return;
        };
        if cut.cut < cut.of.len() {
            let at_once = if self.wrong == Wrong::Straggles { 1 } else { cut.of.len() };
            for nth in cut.cut..cut.cut + at_once {
                let mut sectors = self.now(cut.of[nth]);
                if let Some((_, sector, _)) =
                    self.last.filter(|last| self.wrong == Wrong::Misses && last.0 == cut.of[nth])
                {
                    let all = &self.layers[&cut.of[nth]].sectors[sector as usize];
                    sectors[sector as usize] = vec![all[all.len().saturating_sub(2)]];
                }
                self.add(cut.made[nth], sectors, true);
            }
            cut.cut += at_once;
            self.cut = Some(cut);
            return;
        }
        for of in &cut.of {
            if self.wrong != Wrong::Loses {
                let now = self.now(*of);
                self.layers.get_mut(of).unwrap().sectors = now;
            }
        }
        self.expect.done(cut.asking);
    }

    fn manage(&mut self) {
        let snapshot = self.pick(true).filter(|_| self.cut.is_none());
        match (self.rng.below(4), snapshot) {
            (0, Some(snapshot)) => {
                let (id, asking) = self.expect.clone_of(snapshot);
                self.expect.done(asking);
                let from = if self.wrong == Wrong::Strays { self.pick(true).unwrap() } else { snapshot };
                self.add(id, self.now(from), false);
            }
            (1, Some(snapshot)) => {
                let Some(id) = self.pick(false).filter(|id| self.writes.iter().all(|write| write.id != *id)) else {
                    return;
                };
                let asking = self.expect.rollback(id, snapshot);
                let mut sectors = self.now(snapshot);
                if self.wrong == Wrong::Skips {
                    let old = self.now(id);
                    (1..SECTORS as usize).step_by(2).for_each(|at| sectors[at].clone_from(&old[at]));
                }
                self.layers.get_mut(&id).unwrap().sectors = sectors;
                self.expect.done(asking);
            }
            (2, Some(snapshot)) if self.layers.len() > 8 => {
                let asking = self.expect.delete(snapshot);
                self.expect.done(asking);
                self.layers.remove(&snapshot);
            }
            _ => {}
        }
    }

    fn read(&mut self) -> Result<(), String> {
        let Some(id) = self.pick(self.cut.is_none()) else { return Ok(()) };
        let asking = self.expect.read(id, 0, SECTORS);
        let bytes: Vec<u8> = self.now(id).iter().flat_map(|all| all[0].bytes()).collect();
        self.expect.has_read(asking, &bytes)
    }

    /// Each sector is left with one of the values that it may have.
    fn crash(&mut self) -> Result<(), String> {
        self.writes.clear();
        let pending = self.cut.take();
        if let Some(cut) = &pending {
            let all = cut.cut == cut.of.len() && self.rng.below(2) == 0;
            for (nth, made) in cut.made.iter().enumerate() {
                let half = self.wrong == Wrong::Halves && nth == 0 && cut.cut > 0;
                if !(all || half) {
                    self.layers.remove(made);
                } else if self.layers.contains_key(made) {
                    // It reads through the snapshot: what is in there is there.
                    let now = self.now(cut.of[nth]);
                    self.layers.get_mut(&cut.of[nth]).unwrap().sectors = now;
                }
            }
        }
        let rng = &mut self.rng;
        for layer in self.layers.values_mut() {
            for all in &mut layer.sectors {
                *all = vec![all[rng.below(all.len() as u64) as usize]];
            }
        }
        let flat = |layer: &Layer| layer.sectors.iter().map(|all| all[0]).collect();
        let mut found = Found(self.layers.iter().map(|(id, layer)| (*id, flat(layer))).collect());
        self.expect.check_after_crash(&mut found)
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..4 {
            for _ in 0..40 + self.rng.below(100) {
                match self.rng.below(20) {
                    0..4 => self.write(),
                    4..14 => self.go_on(),
                    14 => self.flush(),
                    15..17 => self.cut(),
                    17 => self.manage(),
                    _ => self.read()?,
                }
            }
            self.crash()?;
        }
        Ok(())
    }
}

#[test]
fn what_a_pool_may_do_is_accepted() {
    for seed in 0..500 {
        if let Err(why) = Pool::new(seed, Wrong::Nothing).run() {
            panic!("seed {seed}: {why}");
        }
    }
}

#[test]
fn what_no_pool_may_do_is_found() {
    use Wrong::*;
    for wrong in [Forgets, Straggles, Misses, Leaks, Halves, Loses, Strays, Skips] {
        let found = (0..200).filter(|seed| Pool::new(*seed, wrong).run().is_err()).count();
        assert!(found >= 5, "{wrong:?} was found by {found} seeds of 200");
    }
}
