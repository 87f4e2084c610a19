//! Volumes that turn into snapshots, and those that get another parent.
//!
//! - A volume that was made read-only holds for ever what it held when that was acknowledged: what had been answered by then is in it.
//!   After a crash it may be so already if that was not acknowledged, as a whole; then what it holds is of one moment.
//! - What a volume with another parent has itself stays, and the rest is what the parent holds. The oracle does not know all that
//!   a volume has itself (parts of sub-blocks, copies). It knows what it was given: what was written to it, and has been
//!   answered, since it got its head. That stays; anything else may be of the one or of the other.

use std::ops::Range;

use super::cut::{Cut, Moments, Time};
use super::volume::{Content, Entry};
use super::{Ask, Asking, Expect, Id, Survivors};
use crate::testing::stamp::Value;

impl Expect {
    /// A volume is to become a snapshot, as it is.
    pub fn set_read_only(&mut self, volume: Id) -> Asking {
        assert!(!self.is_snapshot(volume), "{volume:?} is a snapshot");
        let asking = self.ask(Ask::Freeze(volume));
        self.volume(volume).freezing = Some(self.cuts.len());
        self.cuts.push(Cut { begun: asking.0, ended: None, moments: Moments::between(asking.0, Time::MAX) });
        asking
    }

    /// It is one. It is a snapshot of itself, of a moment at which nothing changes any more.
    pub(super) fn frozen(&mut self, id: Id, now: Time) {
        self.freeze(id);
        if let Some((cut, _)) = self.volumes[&id].cut {
            self.cuts[cut].ended = Some(now);
            self.cuts[cut].moments = Moments::between(now, now);
        }
    }

    fn freeze(&mut self, id: Id) {
        let volume = self.volume(id);
        volume.cut = volume.freezing.take().map(|cut| (cut, id));
        volume.is_snapshot = true;
    }

    /// After a crash: what was to become a snapshot is one, or not; nothing else has changed so.
    pub(super) fn see_roles(&mut self, pool: &mut impl Survivors) -> Result<(), String> {
        for (id, _) in pool.volumes() {
            let Some(volume) = self.volumes.get(&id) else { continue };
            match (pool.is_snapshot(id), volume.is_snapshot) {
                (Some(true), false) if volume.freezing.is_some() => self.freeze(id),
                (Some(is), was) if is != was => {
                    return Err(format!("{id:?} is a snapshot: {is}; it was: {was}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What a volume has not itself is to be what this snapshot has.
    pub fn set_parent(&mut self, volume: Id, snapshot: Id) -> Asking {
        assert!(self.is_snapshot(snapshot), "{snapshot:?} is no snapshot");
        let sectors = self.sectors(volume);
        self.adopt(volume, &[(0..sectors, Content::OfSnapshot(snapshot))])
    }

    /// The same with the bdev of this number outside of the pool, of which so many sectors count.
    pub fn set_outside(&mut self, volume: Id, outside: u64, counts: u64) -> Asking {
        let sectors = self.sectors(volume);
        assert!(counts <= sectors, "{counts} sectors of {sectors} count");
        self.adopt(volume, &[(0..counts, Content::Outside(outside)), (counts..sectors, Content::Is(Value::Zero))])
    }

    /// What a volume has not itself is to be this.
    fn adopt(&mut self, volume: Id, below: &[(Range<u64>, Content)]) -> Asking {
        let asking = self.ask(Ask::Adopt(volume));
        let own: Vec<u64> = self.own(volume, asking.0);
        let whole = &mut self.volume(volume).whole;
        for (range, content) in below {
            let maybe = Entry { content: *content, begun: asking.0, ended: None, good: false, durable: false };
            let mut from = range.start;
            for sector in own.iter().copied().filter(|sector| range.contains(sector)).chain([range.end]) {
                if from < sector {
                    whole.push((from..sector, maybe));
                }
                from = sector + 1;
            }
        }
        asking
    }

    /// Sectors that hold what was written to the volume itself, for sure, at this moment.
    fn own(&self, id: Id, now: Time) -> Vec<u64> {
        let volume = &self.volumes[&id];
        let is_own = |sector: &u64| {
            super::check::possible(volume, *sector, None, super::check::Final::EndedBefore(now)).all(|entry| {
                let is_written = matches!(entry.content, Content::Is(Value::Stamp(_)));
                is_written && entry.good && entry.begun > volume.head_since
            })
        };
        volume.history.keys().copied().filter(is_own).collect()
    }

    /// It has another parent, if it was `well`.
    pub(super) fn adopted(&mut self, id: Id, begun: Time, now: Time, well: bool) {
        let whole = &mut self.volume(id).whole;
        whole.retain(|(_, entry)| well || entry.begun != begun);
        whole.iter_mut().filter(|(_, entry)| entry.begun == begun).for_each(|(_, entry)| entry.ended = Some(now));
    }
}
