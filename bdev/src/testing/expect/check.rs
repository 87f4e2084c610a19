//! Whether a sector may hold what it does, while the pool runs and after a crash.

use super::cut::{Moments, Time};
use super::volume::{Content, Entry, Volume};
use super::{Expect, Id};
use crate::testing::stamp::{Stamp, Value};

/// When a later entry has replaced an earlier one for good.
#[derive(Clone, Copy)]
pub(super) enum Final {
    /// When it had succeeded before this moment.
    EndedBefore(Time),
    /// When it is durable: the power has failed.
    Durable,
}

impl Final {
    fn is(self, entry: &Entry) -> bool {
        match self {
            Final::EndedBefore(time) => entry.good && entry.ended.is_some_and(|ended| ended < time),
            Final::Durable => entry.durable,
        }
    }
}

/// The entries of a sector that may be what it holds. `also` is one that may or may not have happened, and has here.
pub(super) fn possible<'a>(
    volume: &'a Volume,
    sector: u64,
    also: Option<&'a Entry>,
    rule: Final,
) -> impl Iterator<Item = &'a Entry> {
    let all = volume.entries(sector).chain(also);
    let replaced = all.clone();
    all.filter(move |entry| !replaced.clone().any(|later| rule.is(later) && entry.is_before(later)))
}

impl Expect {
    /// Checks one sector of a read that began at this time.
    pub(super) fn look(&mut self, id: Id, sector: u64, bytes: &[u8], begun: Time) -> Result<(), String> {
        let value = value_of(id, sector, bytes)?;
        if self.volumes[&id].is_snapshot {
            return self.see_snapshot(id, sector, value);
        }
        // What is asked for now may happen to the volume at any time.
        let pending = self.volumes[&id].rollback;
        self.see_volume(id, sector, value, pending.as_ref(), Final::EndedBefore(begun))
    }

    /// A sector of a volume holds this.
    pub(super) fn see_volume(
        &mut self,
        id: Id,
        sector: u64,
        value: Value,
        also: Option<&Entry>,
        rule: Final,
    ) -> Result<(), String> {
        if also.is_none() && self.volumes[&id].only(sector) == Some(Content::Is(value)) {
            return Ok(());
        }
        let contents: Vec<Content> =
            possible(&self.volumes[&id], sector, also, rule).map(|entry| entry.content).collect();
        let fits: Vec<Content> =
            contents.iter().copied().filter(|content| self.fits(*content, sector, value)).collect();
        match fits[..] {
            [] => Err(self.misfit(id, sector, value, &contents)),
            // Where nothing else explains it, it tells something about the snapshot.
            [Content::OfSnapshot(snapshot)] => self.see_snapshot(snapshot, sector, value),
            _ => Ok(()),
        }
    }

    /// A sector of a snapshot holds this, and always will.
    pub(super) fn see_snapshot(&mut self, id: Id, sector: u64, value: Value) -> Result<(), String> {
        let moments = self.moments(id, sector, value);
        if moments.is_empty() {
            return Err(self.misfit_of_snapshot(id, sector, value));
        }
        let snapshot = self.volume(id);
        snapshot.known.insert(sector, value);
        if let Some((cut, _)) = snapshot.cut {
            self.cuts[cut].moments = moments;
        }
        Ok(())
    }

    /// Whether this can be the value there.
    pub(super) fn fits(&self, content: Content, sector: u64, value: Value) -> bool {
        match content {
            Content::Is(is) => is == value,
            Content::Outside(outside) => value == Stamp::of_outside(outside, sector),
            Content::OfSnapshot(snapshot) => !self.moments(snapshot, sector, value).is_empty(),
        }
    }

    /// At which moments the snapshot can have been cut if it holds this value there.
    fn moments(&self, id: Id, sector: u64, value: Value) -> Moments {
        let snapshot = &self.volumes[&id];
        let held = snapshot.known.get(&sector);
        let Some((cut, of)) = snapshot.cut else {
            let same = *held.unwrap_or(&Value::Zero) == value;
            return if same { Moments::between(0, Time::MAX) } else { Moments::none() };
        };
        if let Some(held) = held {
            return if *held == value { self.cuts[cut].moments.clone() } else { Moments::none() };
        }
        let of = &self.volumes[&of];
        let shown = |entry: &Entry| {
            let replaced = of.entries(sector).filter(|later| later.good && entry.is_before(later));
            let last = replaced.filter_map(|later| later.ended).min().unwrap_or(Time::MAX);
            Moments::between(entry.begun, last)
        };
        // A rollback to this snapshot comes after it, and tells nothing of it.
        let last = self.cuts[cut].moments.last();
        let early = of.entries(sector).filter(|entry| Some(entry.begun) < last);
        let fits = early.filter(|entry| self.fits(entry.content, sector, value));
        let all = fits.fold(Moments::none(), |all, entry| all.or(&shown(entry)));
        all.and(&self.cuts[cut].moments)
    }

    fn misfit(&self, id: Id, sector: u64, value: Value, may: &[Content]) -> String {
        let entries: Vec<&Entry> = self.volumes[&id].entries(sector).collect();
        format!("sector {sector} of {id:?} holds {value:?}, and may hold {may:?} only; all of it: {entries:?}")
    }

    fn misfit_of_snapshot(&self, id: Id, sector: u64, value: Value) -> String {
        let snapshot = &self.volumes[&id];
        let known = snapshot.known.get(&sector);
        let Some((cut, of)) = snapshot.cut else {
            return format!("sector {sector} of {id:?} holds {value:?}, and held {known:?} since the last crash");
        };
        let cut = &self.cuts[cut];
        let entries: Vec<&Entry> = self.volumes[&of].entries(sector).collect();
        format!(
            "sector {sector} of {id:?}, a snapshot of {of:?}, holds {value:?}; found there before: {known:?}; the cut can have \
             been at {cut:?}; all of the volume's: {entries:?}"
        )
    }
}

/// What these bytes are.
fn value_of(id: Id, sector: u64, bytes: &[u8]) -> Result<Value, String> {
    Value::of(bytes).ok_or_else(|| foreign(id, sector, bytes))
}

/// What to say of bytes that are nobody's.
pub(super) fn foreign(id: Id, sector: u64, bytes: &[u8]) -> String {
    format!("sector {sector} of {id:?} is torn or foreign: it begins with {:02x?}", &bytes[..32])
}
