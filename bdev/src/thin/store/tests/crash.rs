//! Power cuts at every instant of random work: what was told to be durable is there afterwards, and the batch that was
//! under way is there as a whole or not at all; clusters hold what their owners have written; the checker finds nothing.
//!
//! And each barrier is needed: leave one out, and the same test sees it.

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::model::{Batch, Model};
use super::*;
use crate::rng::{Rng, mix};
use crate::testing::medium::{Crash, Geometry as Disk, Happened, Medium, Order, Unsynced};
use crate::thin::check::{Block, Blocks, check};
use crate::thin::store::labels;

/// Places in maps of three levels, in several leaves below several pages.
const PLACES: &[u64] = &[0, 1, 7, 503, 504, 505, 3000, 252 * 504 - 1, 252 * 504, 252 * 504 + 9, 1_000_000];

/// What is known when the power goes.
#[derive(Clone)]
struct Journal {
    durable: Model,
    /// With the batch that was appended last.
    pending: Model,
}

struct Image(Medium);

impl Blocks for Image {
    fn len(&self) -> u64 {
        self.0.geometry().bytes / BLOCK as u64
    }

    fn read(&mut self, block: u64) -> io::Result<Block> {
        let bytes = self.0.peek(block * BLOCK as u64, BLOCK);
        Ok(bytes.into_boxed_slice().try_into().expect("a whole block"))
    }
}

/// Runs until it is done or the power goes off.
fn until_off<R>(f: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(done) => Some(done),
        Err(payload) if payload.is::<Off>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

fn stamp(cluster: u32, layer: u64, at: u64) -> Vec<u8> {
    [u64::from(cluster), layer, at].iter().flat_map(|word| word.to_le_bytes()).cycle().take(BLOCK).collect()
}

fn data_block(cluster: u32) -> u64 {
    u64::from(cluster) * u64::from(CLUSTER) / BLOCK as u64
}

/// A settled medium with a pool.
fn fresh(tear: u32) -> Medium {
    let medium = Medium::new(Disk { tear, ..Disk::with_512(16 << 20) }, Order::InOrder);
    on_medium(&medium, |blocking| create(blocking, &params(false))).unwrap();
    medium.crash(Crash::All, Order::InOrder)
}

/// What an engine does: data first, then the batch, then what it frees can be used again.
fn commit(medium: &Medium, rig: &mut Rig, model: &mut Model, journal: &RefCell<Journal>) {
    // What a batch of these needs is known better here than by its bytes.
    if rig.store.room() == 0 || rig.store.log.room() < 9000 || rig.store.spare_pages() < 60 {
        rig.checkpoint();
    }
    let Batch { records, freed, given } = model.draw(rig, 8);
    for (cluster, layer, at) in given {
        let mut ring = FileRing::default();
        let mut wait = |_: &mut dyn Ring| leave_if(!medium.powered());
        let mut blocking = Blocking::new(medium, &mut ring, &mut wait).unwrap();
        blocking.write(data_block(cluster), &stamp(cluster, layer, at), false).unwrap();
    }
    journal.borrow_mut().pending = model.clone();
    rig.append(&records);
    journal.borrow_mut().durable = model.clone();
    freed.iter().for_each(|cluster| rig.store.release(*cluster, 1));
}

/// Goes round the ring: names a layer again and again.
fn fill_log(rig: &mut Rig) {
    let Some(layer) = rig.store.layers().values().next().cloned() else { return };
    let count = rig.store.log.room() / 300;
    rig.append(&vec![Record::Layer(Box::new(layer)); count]);
}

/// Does so many steps, each of them one of these.
fn work(medium: &Medium, mut model: Model, steps: u64, kinds: &[u64], journal: &RefCell<Journal>) {
    let mut rig = Rig::on(medium, 100).unwrap();
    for step in 0..steps {
        commit(medium, &mut rig, &mut model, journal);
        match kinds[model.rng().below(kinds.len() as u64) as usize] {
            0 | 1 => rig.checkpoint(),
            2 => {
                // A checkpoint with a batch in its midst, and another one behind it without a barrier between.
                rig.store.checkpoint();
                rig.turn();
                commit(medium, &mut rig, &mut model, journal);
                rig.checkpoint();
            }
            3 => {
                drop(rig);
                rig = Rig::on(medium, 101 + step).unwrap();
            }
            4 | 5 => fill_log(&mut rig),
            _ => {}
        }
    }
}

/// What is wrong after a crash.
fn verify(crashed: &Medium, journal: &Journal) -> Result<(), String> {
    let report = check(&mut Image(crashed.clone()), &mut |_, _| {});
    if !report.is_clean() {
        return Err(format!("the checker says {:?} {:?}", report.reason, report.findings));
    }
    let mut rig = Rig::on(crashed, 999).map_err(|error| error.to_string())?;
    let different = journal.durable.difference(&mut rig);
    let model = match different {
        None => &journal.durable,
        Some(why) => match journal.pending.difference(&mut rig) {
            None => &journal.pending,
            Some(other) => return Err(format!("neither as it was ({why}) nor as it was to be ({other})")),
        },
    };
    for (id, map) in &model.layers {
        for (at, entry) in map {
            let Some(cluster) = entry.cluster() else { continue };
            if crashed.peek(data_block(cluster) * BLOCK as u64, BLOCK) != stamp(cluster, *id, *at) {
                return Err(format!("cluster {cluster} does not hold what cluster {at} of layer {id} has written"));
            }
        }
    }
    Ok(())
}

/// After a crash everything goes on: batches, a checkpoint, another start.
fn goes_on(crashed: &Medium, journal: &Journal) -> Result<(), String> {
    let mut rig = Rig::on(crashed, 1000).map_err(|error| error.to_string())?;
    let durable = journal.durable.difference(&mut rig).is_none();
    let mut model = if durable { journal.durable.clone() } else { journal.pending.clone() };
    let journal = RefCell::new(Journal { durable: model.clone(), pending: model.clone() });
    for _ in 0..3 {
        commit(crashed, &mut rig, &mut model, &journal);
        rig.checkpoint();
        model.check_owned(&rig);
    }
    rig.close();
    verify(crashed, &journal.into_inner())
}

/// What does not hold any more, and how that is brought about.
type Mutation<'a> = (&'a str, &'a dyn Fn(&Medium));

/// A run that can be repeated, up to any instant.
struct Runs<'a> {
    seed: u64,
    steps: u64,
    kinds: &'a [u64],
    places: Vec<u64>,
    start: Medium,
    mutate: &'a dyn Fn(&Medium),
}

impl<'a> Runs<'a> {
    fn new(seed: u64, steps: u64, kinds: &'a [u64], mutate: &'a dyn Fn(&Medium)) -> Self {
        let tear = if seed.is_multiple_of(2) { 512 } else { 4096 };
        Runs { seed, steps, kinds, places: PLACES.to_vec(), start: fresh(tear), mutate }
    }

    fn run(&self, stop: u64) -> (Medium, Journal) {
        let order = if self.seed % 4 < 2 { Order::InOrder } else { Order::Seeded(self.seed) };
        let medium = self.start.crash(Crash::All, order);
        (self.mutate)(&medium);
        medium.stop_after(stop);
        let empty = Model::at(self.seed, &self.places);
        let journal = RefCell::new(Journal { durable: empty.clone(), pending: empty.clone() });
        let done = until_off(|| work(&medium, empty, self.steps, self.kinds, &journal));
        assert!(done.is_some() || stop < u64::MAX, "nothing stops it");
        (medium, journal.into_inner())
    }

    fn crash(&self, stop: u64, medium: &Medium, choice: Crash, journal: &Journal) -> Result<Medium, String> {
        let crashed = medium.crash(choice, Order::InOrder);
        let at = |what: String| format!("seed {}, instant {stop}, {choice:?}: {what}", self.seed);
        verify(&crashed, journal).map_err(at)?;
        Ok(crashed)
    }
}

/// Cuts the power at every `stride`th instant, and looks at a few of the media that there may be then.
fn sweep(seed: u64, steps: u64, stride: usize, choices: usize, mutate: &dyn Fn(&Medium)) -> Result<u64, String> {
    let runs = Runs::new(seed, steps, &[0, 1, 2, 3, 4, 5, 6, 7], mutate);
    let instants = runs.run(u64::MAX).0.instants();
    let mut rng = Rng::new(mix(seed));
    let mut crashes = 0;
    for stop in (0..instants).step_by(stride) {
        let (medium, journal) = runs.run(stop);
        let all: Vec<Crash> = Crash::sweep(medium.unsynced().len(), 4).collect();
        for nth in 0..choices.min(all.len()) {
            let choice = if all.len() <= choices { all[nth] } else { all[rng.below(all.len() as u64) as usize] };
            let crashed = runs.crash(stop, &medium, choice, &journal)?;
            if rng.below(8) == 0 {
                goes_on(&crashed, &journal)
                    .map_err(|what| format!("seed {seed}, instant {stop}, {choice:?}: {what}"))?;
            }
            crashes += 1;
        }
    }
    Ok(crashes)
}

/// Wherever the power goes while a pool is made: there is none, and one can be made; or there is one, and it is clean.
#[test]
fn a_pool_that_was_being_made_is_there_or_not() {
    for tear in [512, 4096] {
        let make = |stop| {
            let medium = Medium::new(Disk { tear, ..Disk::with_512(16 << 20) }, Order::InOrder);
            medium.stop_after(stop);
            let made = until_off(|| on_medium(&medium, |blocking| create(blocking, &params(false)))).is_some();
            (medium, made)
        };
        let (instants, mut seen) = (make(u64::MAX).0.instants(), [0, 0]);
        for stop in 0..=instants {
            let (medium, made) = make(stop);
            for choice in Crash::sweep(medium.unsynced().len(), 4) {
                let crashed = medium.crash(choice, Order::InOrder);
                let report = check(&mut Image(crashed.clone()), &mut |_, _| {});
                let is_clean = report.is_clean();
                seen[usize::from(is_clean)] += 1;
                let at = || format!("instant {stop}, {choice:?}: {:?} {:?}", report.reason, report.findings);
                assert!(is_clean || report.reason.is_some() && !made, "{}", at());
                if !is_clean {
                    on_medium(&crashed, |blocking| create(blocking, &params(true))).unwrap();
                }
                assert!(Rig::on(&crashed, 5).is_ok(), "{}", at());
            }
        }
        assert!(seen.iter().all(|count| *count > 10), "both come about: {seen:?}");
    }
}

#[test]
fn nothing_durable_is_lost_and_nothing_is_torn() {
    let crashes: u64 = (0..8).map(|seed| sweep(seed, 12, 5, 5, &|_| {}).unwrap()).sum();
    assert!(crashes > 1000, "only {crashes} crashes");
}

#[test]
fn each_barrier_is_needed() {
    let needed: [Mutation<'_>; 3] = [
        ("data before the map", &|medium| medium.drop_flush(labels::COMMIT_BARRIER)),
        ("the log is durable", &|medium| medium.drop_fua(labels::COMMIT_LOG)),
        ("pages before the superblock", &|medium| medium.drop_flush(labels::CHECKPOINT_BARRIER)),
    ];
    for (what, mutate) in needed {
        let seen = (0..8).any(|seed| sweep(seed, 12, 5, 5, mutate).is_err());
        assert!(seen, "nobody sees that this does not hold: {what}");
    }
}

/// Loses the superblock, and nothing else, when the pages of the checkpoint after it are all written and no barrier has
/// come between.
fn lose_superblocks(seed: u64, mutate: &dyn Fn(&Medium)) -> Result<u64, String> {
    let mut runs = Runs::new(seed, 60, &[2], mutate);
    // So many leaves that pages are used again soon.
    runs.places = (0..35).map(|leaf| leaf * 504 + seed).collect();
    let (whole, _) = runs.run(u64::MAX);
    let barriers = whole
        .events()
        .into_iter()
        .filter(|event| event.label == Some(labels::CHECKPOINT_BARRIER) && event.what == Happened::Submitted);
    let mut lost = 0;
    for stop in barriers.map(|event| event.instant) {
        let (medium, journal) = runs.run(stop);
        let superblock = |change: &Unsynced| change.label == Some(labels::CHECKPOINT_SUPERBLOCK);
        if let Some(nth) = medium.unsynced().iter().position(superblock) {
            runs.crash(stop, &medium, Crash::AllBut(nth), &journal)?;
            lost += 1;
        }
    }
    Ok(lost)
}

#[test]
fn a_superblock_is_durable_before_what_it_frees_is_written() {
    assert_eq!((0..4).map(|seed| lose_superblocks(seed, &|_| {}).unwrap()).sum::<u64>(), 0);
    let mutate = |medium: &Medium| medium.drop_fua(labels::CHECKPOINT_SUPERBLOCK);
    assert!((0..8).any(|seed| lose_superblocks(seed, &mutate).is_err()));
}
