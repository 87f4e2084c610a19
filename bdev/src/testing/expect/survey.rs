//! The whole pool after a crash: what is there, and whether all of it is as it may be.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Final, foreign, possible};
use super::volume::{Asked, Content, Entry, Volume};
use super::{Expect, Id, Survivors};
use crate::testing::stamp::Value;

type Found = BTreeMap<Id, (u64, Vec<(u64, Value)>)>;

impl Expect {
    /// The power failed and came back, and this is the pool now. The oracle goes on from there: what was under way is
    /// forgotten.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_after_crash(&mut self, pool: &mut impl Survivors) -> Result<(), String> {
        self.open.clear();
        let found = self.look_at_all(pool)?;
        self.settle(&found);
        Ok(())
    }

    /// Whether a crash now may leave this pool. The oracle stays as it is.
    ///
    /// # Errors
    /// What is wrong.
    pub fn bears(&self, pool: &mut impl Survivors) -> Result<(), String> {
        self.clone().look_at_all(pool).map(drop)
    }

    fn look_at_all(&mut self, pool: &mut impl Survivors) -> Result<Found, String> {
        let there: BTreeMap<Id, u64> = pool.volumes().into_iter().collect();
        self.check_presence(&there)?;
        self.see_roles(pool)?;
        let mut found = Found::new();
        for (id, sectors) in &there {
            found.insert(*id, (*sectors, self.read_all(*id, *sectors, pool)?));
        }
        self.check_snapshots(&found)?;
        for (id, (sectors, values)) in &found {
            if !self.volumes[id].is_snapshot {
                self.check_volume(*id, *sectors, values)?;
                self.check_against_snapshots(*id, &found)?;
            }
        }
        Ok(found)
    }

    fn check_presence(&self, there: &BTreeMap<Id, u64>) -> Result<(), String> {
        for (id, sectors) in there {
            let Some(volume) = self.volumes.get(id) else { return Err(format!("{id:?} was never asked for")) };
            if volume.deleted == Asked::Done {
                return Err(format!("{id:?} is there, and its deletion was acknowledged"));
            }
            let (is, may) =
                (volume.sectors, [volume.resize, volume.rollback.and_then(|entry| self.size_after(&entry))]);
            if *sectors != is && !may.contains(&Some(*sectors)) {
                return Err(format!("{id:?} has {sectors} sectors; it had {is}, and was to have {may:?}"));
            }
        }
        for (id, volume) in &self.volumes {
            if volume.made == Asked::Done && volume.deleted == Asked::No && !there.contains_key(id) {
                return Err(format!("{id:?} is not there, and was acknowledged"));
            }
        }
        for cut in 0..self.cuts.len() {
            let kept = self.of_cut(cut).filter(|id| self.volumes[id].deleted == Asked::No);
            let (here, gone): (Vec<Id>, Vec<Id>) = kept.partition(|id| there.contains_key(id));
            if !here.is_empty() && !gone.is_empty() {
                return Err(format!("of one group {here:?} are there and {gone:?} are not"));
            }
        }
        Ok(())
    }

    /// The pieces that were ever touched in a volume or in what it descends from, or that it has from outside.
    fn touched(&self, id: Id, pieces: &mut BTreeSet<u64>, seen: &mut BTreeSet<Id>) {
        if !seen.insert(id) {
            return;
        }
        let volume = &self.volumes[&id];
        let mut last = None;
        for piece in volume.history.keys().chain(volume.known.keys()).map(|sector| sector / self.near) {
            if last.replace(piece) != Some(piece) {
                pieces.insert(piece);
            }
        }
        for (range, entry) in &volume.whole {
            if let Content::Outside(_) = entry.content {
                pieces.extend(range.start / self.near..=(range.end - 1) / self.near);
            }
        }
        if let Some((_, of)) = volume.cut {
            self.touched(of, pieces, seen);
        }
        for entry in volume.whole.iter().map(|(_, entry)| entry).chain(&volume.rollback) {
            if let Content::OfSnapshot(snapshot) = entry.content {
                self.touched(snapshot, pieces, seen);
            }
        }
    }

    fn read_all(&self, id: Id, sectors: u64, pool: &mut impl Survivors) -> Result<Vec<(u64, Value)>, String> {
        let mut read = |sector| match pool.value(id, sector) {
            Some(value) => Ok((sector, value)),
            None => Err(foreign(id, sector, &pool.read(id, sector))),
        };
        if sectors <= self.in_full {
            return (0..sectors).map(read).collect();
        }
        let mut pieces = BTreeSet::from([0, (sectors - 1) / self.near]);
        self.touched(id, &mut pieces, &mut BTreeSet::new());
        let near = |piece: u64| piece * self.near..((piece + 1) * self.near).min(sectors);
        pieces.into_iter().flat_map(near).map(&mut read).collect()
    }

    /// Snapshots in the order in which they were made: what they hold says when they were cut.
    fn check_snapshots(&mut self, found: &Found) -> Result<(), String> {
        for (id, (_, values)) in found {
            if self.volumes[id].is_snapshot {
                for (sector, value) in values {
                    self.see_snapshot(*id, *sector, *value)?;
                }
            }
        }
        Ok(())
    }

    /// A rollback that was not acknowledged has happened as a whole, or not at all.
    fn check_volume(&mut self, id: Id, sectors: u64, values: &[(u64, Value)]) -> Result<(), String> {
        let Some(rollback) = self.volumes[&id].rollback else {
            return self.check_volume_with(id, sectors, values, None);
        };
        // What is learnt of snapshots stays only if all is well.
        let before = self.clone();
        let Err(without) = self.check_volume_with(id, sectors, values, None) else { return Ok(()) };
        *self = before;
        if self.size_after(&rollback).is_some_and(|size| size != sectors) {
            return Err(without);
        }
        let done = Entry { ended: Some(self.tick()), good: true, durable: true, ..rollback };
        self.check_volume_with(id, sectors, values, Some(&done))
            .map_err(|with| format!("a rollback of {id:?} has neither happened: {with}; nor not: {without}"))
    }

    fn check_volume_with(
        &mut self,
        id: Id,
        sectors: u64,
        values: &[(u64, Value)],
        also: Option<&Entry>,
    ) -> Result<(), String> {
        // A rollback gives the snapshot's size, and what the snapshot has there.
        let old = if also.is_some() { sectors } else { self.volumes[&id].sectors };
        for (sector, value) in values {
            if *sector < old {
                self.see_volume(id, *sector, *value, also, Final::Durable)?;
            } else if *value != Value::Zero {
                return Err(format!(
                    "sector {sector} of {id:?} is new since it has {sectors} of them, and holds {value:?}"
                ));
            }
        }
        Ok(())
    }

    /// A volume reads through its snapshots, so it holds nothing older than they do.
    fn check_against_snapshots(&self, id: Id, found: &Found) -> Result<(), String> {
        let volume = &self.volumes[&id];
        let rolled_back = volume.whole.iter().skip(1).map(|(_, entry)| entry).chain(&volume.rollback);
        let last = rolled_back.filter(|entry| matches!(entry.content, Content::OfSnapshot(_))).map(|entry| entry.begun);
        let since = last.max().unwrap_or(0);
        let mine: BTreeMap<u64, Value> = found[&id].1.iter().copied().collect();
        for (other, (_, values)) in found {
            let cut = self.volumes[other].cut.filter(|(_, of)| *of == id);
            if cut.is_none_or(|(cut, _)| self.cuts[cut].begun <= since) {
                continue;
            }
            for (sector, value) in values {
                if let Some(held) = mine.get(sector).filter(|held| self.is_older(volume, *sector, **held, *value)) {
                    let why = format!("which is older than {value:?} in its snapshot {other:?}");
                    return Err(format!("sector {sector} of {id:?} holds {held:?}, {why}"));
                }
            }
        }
        Ok(())
    }

    /// Whether whatever put `held` into the sector had ended before anything began that can have put `value` there.
    fn is_older(&self, volume: &Volume, sector: u64, held: Value, value: Value) -> bool {
        let put = |entry: &&Entry, value| self.fits(entry.content, sector, value);
        let newer: Vec<&Entry> = volume.entries(sector).filter(|entry| put(entry, value)).collect();
        let mut held_by = possible(volume, sector, None, Final::Durable).filter(|entry| put(entry, held)).peekable();
        let known = held_by.peek().is_some() && !newer.is_empty();
        known && held != value && held_by.all(|entry| newer.iter().all(|other| entry.is_before(other)))
    }

    fn settle(&mut self, found: &Found) {
        self.volumes.retain(|id, _| found.contains_key(id));
        let now = self.tick();
        for (id, (sectors, values)) in found {
            self.volume(*id).settle(*sectors, values, now);
        }
        self.cuts.clear();
    }
}
