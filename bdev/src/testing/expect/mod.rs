//! What volumes, snapshots and clones may hold: an oracle for any mix of writes, discards, flushes, cuts and crashes.
//!
//! Whoever drives a pool tells it what he asks for, and what was answered. Every write has a stamp of its own
//! ([`stamp`](super::stamp)), so a sector tells whose it is. The rules:
//!
//! - A sector holds a write that was submitted to it, unless another one that was submitted after that had completed has
//!   itself completed (before the read began), or is durable (after a crash): FUA, or a flush submitted after it had
//!   completed, or an acknowledged snapshot asked for after it had completed.
//! - A snapshot holds what its volume held at one moment between its being asked for and its being acknowledged; a write in
//!   flight at that moment may be in it or not, sector by sector. The snapshots of a group have one moment. So if a write
//!   is in one of them, everything that was acknowledged before that write was submitted is, too.
//! - After a crash: what was acknowledged is there, what was deleted is not; what was not acknowledged is there as a whole or
//!   not at all; of a group all or none. A volume holds nothing older than its snapshots do.
//! - A clone, and a volume that was rolled back, holds what the snapshot holds, under what was written since.
//! - What becomes of a volume that is made read-only, or gets another parent, is in `turn`.
//! - What was never written reads as zeroes, and nothing has the stamp of a volume that it does not descend from.

mod check;
mod cut;
mod survey;
#[cfg(test)]
mod tests;
mod turn;
mod volume;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::stamp::{SECTOR, Stamp, Value};
use cut::{Cut, Moments, Time};
use volume::{Asked, Content, Entry, Volume};

/// Names a volume or a snapshot. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// Names something that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asking(Time);

/// The pool after a crash, as far as the oracle looks at it.
pub trait Survivors {
    /// All volumes and snapshots, with their sizes in sectors.
    fn volumes(&mut self) -> Vec<(Id, u64)>;

    /// A sector of one of them.
    fn read(&mut self, volume: Id, sector: u64) -> [u8; SECTOR];

    /// Whether it is a snapshot, if that is known.
    fn is_snapshot(&mut self, _volume: Id) -> Option<bool> {
        None
    }

    /// What it holds; `None`: nothing that anybody has written as a whole.
    fn value(&mut self, volume: Id, sector: u64) -> Option<Value> {
        Value::of(&self.read(volume, sector))
    }
}

#[derive(Clone, Debug)]
enum Ask {
    Make(Id),
    Change {
        volume: Id,
        sectors: Range<u64>,
        fua: bool,
    },
    Flush(Id),
    Cut(usize),
    Delete(Id),
    Rollback(Id),
    Resize(Id),
    /// It becomes a snapshot.
    Freeze(Id),
    /// It gets another parent.
    Adopt(Id),
    Read {
        volume: Id,
        sectors: Range<u64>,
    },
}

/// The oracle of one pool.
#[derive(Clone, Debug)]
pub struct Expect {
    /// Shared with copies until one of them changes it.
    volumes: BTreeMap<Id, Arc<Volume>>,
    cuts: Vec<Cut>,
    open: BTreeMap<Asking, Ask>,
    time: Time,
    next_id: u64,
    next_write: u64,
    /// Volumes of at most so many sectors are read in full after a crash; of larger ones what was ever touched, and the
    /// rest of each piece of so many sectors that holds some of that.
    in_full: u64,
    near: u64,
}

impl Default for Expect {
    fn default() -> Self {
        Expect::new()
    }
}

impl Expect {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Expect {
            volumes: BTreeMap::new(),
            cuts: Vec::new(),
            open: BTreeMap::new(),
            time: 0,
            next_id: 1,
            next_write: 1,
            in_full: 1024,
            near: 128,
        }
    }

    /// Has volumes of at most `in_full` sectors read in full after a crash, and of larger ones the pieces of `near` sectors
    /// in which something was ever touched.
    pub const fn look_at(&mut self, in_full: u64, near: u64) {
        (self.in_full, self.near) = (in_full, near);
    }

    fn tick(&mut self) -> Time {
        self.time += 1;
        self.time
    }

    fn ask(&mut self, ask: Ask) -> Asking {
        let asking = Asking(self.tick());
        self.open.insert(asking, ask);
        asking
    }

    fn volume(&mut self, id: Id) -> &mut Volume {
        Arc::make_mut(self.volumes.get_mut(&id).expect("the volume was asked for"))
    }

    fn add(&mut self, volume: Volume) -> Id {
        let id = Id(self.next_id);
        self.next_id += 1;
        self.volumes.insert(id, Arc::new(volume));
        id
    }

    /// The size of a volume, in sectors.
    #[must_use]
    pub fn sectors(&self, id: Id) -> u64 {
        self.volumes[&id].sectors
    }

    /// What is there for sure: made, and not asked to be deleted. Snapshots, too.
    #[must_use]
    pub fn present(&self) -> Vec<Id> {
        let present = |volume: &Volume| volume.made == Asked::Done && volume.deleted == Asked::No;
        self.volumes.iter().filter(|(_, volume)| present(volume)).map(|(id, _)| *id).collect()
    }

    /// Whether it is a snapshot.
    #[must_use]
    pub fn is_snapshot(&self, id: Id) -> bool {
        self.volumes[&id].is_snapshot
    }

    /// The snapshots of a volume that are there for sure, the oldest first.
    #[must_use]
    pub fn snapshots_of(&self, volume: Id) -> Vec<Id> {
        let of = |id: &Id| self.volumes[id].parent == Some(volume);
        self.present().into_iter().filter(of).collect()
    }

    /// A volume is to be created.
    pub fn create(&mut self, sectors: u64) -> (Id, Asking) {
        let id = self.add(Volume::new(sectors, Content::Is(Value::Zero)));
        (id, self.ask(Ask::Make(id)))
    }

    /// A clone of a snapshot is to be created.
    pub fn clone_of(&mut self, snapshot: Id) -> (Id, Asking) {
        assert!(self.is_snapshot(snapshot), "{snapshot:?} is no snapshot");
        let id = self.add(Volume::new(self.sectors(snapshot), Content::OfSnapshot(snapshot)));
        (id, self.ask(Ask::Make(id)))
    }

    /// A clone of the bdev of this number outside of the pool is to be created, of which so many sectors count.
    pub fn clone_outside(&mut self, outside: u64, sectors: u64, counts: u64) -> (Id, Asking) {
        let id = self.add(Volume::on_outside(sectors, outside, counts));
        (id, self.ask(Ask::Make(id)))
    }

    /// Snapshots of all these volumes are to be made at one moment. Gives theirs in the same order.
    pub fn snapshot(&mut self, volumes: &[Id]) -> (Vec<Id>, Asking) {
        let cut = self.cuts.len();
        let asking = self.ask(Ask::Cut(cut));
        self.cuts.push(Cut { begun: asking.0, ended: None, moments: Moments::between(asking.0, Time::MAX) });
        let make = |this: &mut Self, of: Id| this.add(Volume::snapshot(this.sectors(of), cut, of));
        (volumes.iter().map(|of| make(self, *of)).collect(), asking)
    }

    /// A volume or snapshot is to be deleted.
    pub fn delete(&mut self, id: Id) -> Asking {
        self.volume(id).deleted = Asked::Begun;
        self.ask(Ask::Delete(id))
    }

    /// A volume is to hold what the snapshot holds.
    pub fn rollback(&mut self, volume: Id, snapshot: Id) -> Asking {
        assert!(self.is_snapshot(snapshot), "{snapshot:?} is no snapshot");
        assert!(self.volume(volume).rollback.is_none(), "one rollback at a time");
        let asking = self.ask(Ask::Rollback(volume));
        let content = Content::OfSnapshot(snapshot);
        let entry = Entry { content, begun: asking.0, ended: None, good: false, durable: false };
        self.volume(volume).rollback = Some(entry);
        asking
    }

    /// A volume is to get this size.
    pub fn resize(&mut self, volume: Id, sectors: u64) -> Asking {
        assert!(self.volume(volume).resize.replace(sectors).is_none(), "one resize at a time");
        self.ask(Ask::Resize(volume))
    }

    /// A write of `count` sectors is submitted; gives the bytes to be written.
    pub fn write(&mut self, volume: Id, first: u64, count: u64, fua: bool) -> (Asking, Vec<u8>) {
        let write = self.next_write;
        self.next_write += 1;
        let value = move |sector| Value::Stamp(Stamp { volume: volume.0, write, sector });
        let bytes = (first..first + count).flat_map(|sector| value(sector).bytes()).collect();
        (self.change(volume, first..first + count, fua, value), bytes)
    }

    /// A discard or zeroes are submitted.
    pub fn zero(&mut self, volume: Id, first: u64, count: u64, fua: bool) -> Asking {
        self.change(volume, first..first + count, fua, |_| Value::Zero)
    }

    fn change(&mut self, id: Id, sectors: Range<u64>, fua: bool, value: impl Fn(u64) -> Value) -> Asking {
        let asking = self.ask(Ask::Change { volume: id, sectors: sectors.clone(), fua });
        let volume = self.volume(id);
        assert!(!volume.is_snapshot && sectors.end <= volume.sectors, "{sectors:?} of {id:?} cannot be written");
        for sector in sectors {
            let content = Content::Is(value(sector));
            let entry = Entry { content, begun: asking.0, ended: None, good: false, durable: false };
            volume.history.entry(sector).or_default().push(entry);
        }
        asking
    }

    /// A flush of a volume is submitted.
    pub fn flush(&mut self, volume: Id) -> Asking {
        self.ask(Ask::Flush(volume))
    }

    /// A read is submitted.
    pub fn read(&mut self, volume: Id, first: u64, count: u64) -> Asking {
        self.ask(Ask::Read { volume, sectors: first..first + count })
    }

    fn end(&mut self, asking: Asking) -> (Ask, Time) {
        let ask = self.open.remove(&asking).expect("what was asked for ends once");
        (ask, self.tick())
    }

    /// It was answered, and all is well. (A read: [`Expect::has_read`].)
    pub fn done(&mut self, asking: Asking) {
        match self.end(asking) {
            (Ask::Make(id), _) => self.volume(id).made = Asked::Done,
            (Ask::Change { volume, sectors, fua }, now) => {
                for entry in self.volume(volume).begun_at(sectors, asking.0) {
                    (entry.ended, entry.good, entry.durable) = (Some(now), true, fua);
                }
            }
            (Ask::Flush(id), _) => self.volume(id).durable_before(asking.0),
            (Ask::Cut(cut), now) => self.cut_done(cut, now),
            (Ask::Delete(id), _) => self.volume(id).deleted = Asked::Done,
            (Ask::Rollback(id), now) => self.rolled_back(id, now),
            (Ask::Resize(id), now) => self.resized(id, asking.0, now),
            (Ask::Freeze(id), now) => self.frozen(id, now),
            (Ask::Adopt(id), now) => self.adopted(id, asking.0, now, true),
            (Ask::Read { .. }, _) => panic!("a read ends with what was read"),
        }
    }

    fn cut_done(&mut self, cut: usize, now: Time) {
        let Cut { begun, ended, moments } = &mut self.cuts[cut];
        *ended = Some(now);
        *moments = moments.and(&Moments::between(*begun, now));
        let begun = *begun;
        let made: Vec<Id> = self.of_cut(cut).collect();
        for id in made {
            self.volume(id).made = Asked::Done;
            let (_, of) = self.volume(id).cut.expect("it is of a cut");
            let of = self.volume(of);
            of.durable_before(begun);
            of.head_since = now;
        }
    }

    /// The snapshots of one cut.
    fn of_cut(&self, cut: usize) -> impl Iterator<Item = Id> + '_ {
        self.volumes.iter().filter(move |(_, v)| v.cut.is_some_and(|(of, _)| of == cut)).map(|(id, _)| *id)
    }

    /// It has the size of the snapshot, too.
    fn rolled_back(&mut self, id: Id, now: Time) {
        let entry = self.volume(id).rollback.take().expect("it was asked for");
        let done = Entry { ended: Some(now), good: true, durable: true, ..entry };
        let sectors = self.size_after(&entry).unwrap_or(self.volumes[&id].sectors);
        let volume = self.volume(id);
        volume.whole.push((0..sectors, done));
        volume.whole.push((sectors..u64::MAX, Entry { content: Content::Is(Value::Zero), ..done }));
        (volume.sectors, volume.head_since) = (sectors, now);
    }

    /// The size that a rollback gives.
    fn size_after(&self, rollback: &Entry) -> Option<u64> {
        match rollback.content {
            Content::OfSnapshot(snapshot) => self.volumes.get(&snapshot).map(|snapshot| snapshot.sectors),
            Content::Is(_) | Content::Outside(_) => None,
        }
    }

    fn resized(&mut self, id: Id, begun: Time, now: Time) {
        let volume = self.volume(id);
        let sectors = volume.resize.take().expect("it was asked for");
        if sectors < volume.sectors {
            let content = Content::Is(Value::Zero);
            let cut_off = Entry { content, begun, ended: Some(now), good: true, durable: true };
            volume.whole.push((sectors..u64::MAX, cut_off));
            volume.head_since = now;
        }
        volume.sectors = sectors;
    }

    /// It was answered with an error: a change may have happened or not, at any time; the rest has done nothing, as the
    /// answer says.
    pub fn failed(&mut self, asking: Asking) {
        match self.end(asking) {
            (Ask::Change { volume, sectors, .. }, now) => {
                for entry in self.volume(volume).begun_at(sectors, asking.0) {
                    entry.ended = Some(now);
                }
            }
            (Ask::Make(id), _) => self.forget(id),
            (Ask::Cut(cut), _) => {
                let made: Vec<Id> = self.of_cut(cut).collect();
                made.into_iter().for_each(|id| self.forget(id));
            }
            (Ask::Delete(id), _) => self.volume(id).deleted = Asked::No,
            (Ask::Rollback(id), _) => self.volume(id).rollback = None,
            (Ask::Resize(id), _) => self.volume(id).resize = None,
            (Ask::Freeze(id), _) => self.volume(id).freezing = None,
            (Ask::Adopt(id), now) => self.adopted(id, asking.0, now, false),
            (Ask::Flush(_) | Ask::Read { .. }, _) => {}
        }
    }

    fn forget(&mut self, id: Id) {
        self.volumes.remove(&id);
    }

    /// A read was answered with these bytes.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn has_read(&mut self, asking: Asking, bytes: &[u8]) -> Result<(), String> {
        let (Ask::Read { volume, sectors }, _) = self.end(asking) else { panic!("{asking:?} is no read") };
        for (sector, bytes) in sectors.zip(bytes.chunks(SECTOR)) {
            self.look(volume, sector, bytes, asking.0)?;
        }
        Ok(())
    }
}
