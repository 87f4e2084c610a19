//! All devices of a daemon, by name: makes and deletes them, and knows who uses which.
//!
//! Invariants: a name, alias or UUID leads to one device; a device is owned by one layer above it, or shared by front
//! ends, never both; what has been made is listed until it is deleted, whether it can be opened or not.
//!
//! Changes are one at a time; they may wait for a disk to open, so looking things up takes another lock, which is never
//! held meanwhile. Nothing here is called from a reactor.

mod build;
mod entry;
mod placed;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use build::build;
use uuid::Uuid;

use crate::{BdevError, Kind, LatencyKind, Spec};
pub use entry::{Claim, Entry, FrontEnd, FrontEndKind, State};
pub use placed::Placing;

/// What one spec has made.
#[derive(Clone)]
struct Group {
    spec: Spec,
    entries: Vec<Arc<Entry>>,
}

impl Group {
    /// The spec as it would have to be given now: with what has changed since.
    fn spec(&self) -> Spec {
        let mut spec = self.spec.clone();
        let device = self.entries.first().and_then(|entry| entry.device());
        let Some(device) = device else { return spec };
        match &mut spec {
            Spec::Null(spec) => spec.num_blocks = device.shape().num_blocks,
            Spec::Delay(spec) => {
                if let Some(delay) = device.as_delay() {
                    spec.avg_read_latency = delay.latency(LatencyKind::AvgRead);
                    spec.p99_read_latency = delay.latency(LatencyKind::P99Read);
                    spec.avg_write_latency = delay.latency(LatencyKind::AvgWrite);
                    spec.p99_write_latency = delay.latency(LatencyKind::P99Write);
                }
            }
            _ => {}
        }
        spec
    }

    fn is_missing(&self) -> bool {
        self.entries.iter().any(|entry| entry.is_missing())
    }
}

/// All devices of a daemon.
#[derive(Default)]
pub struct Registry {
    /// Held through a change.
    changes: Mutex<()>,
    /// In order of creation.
    groups: Mutex<Vec<Group>>,
    /// What no spec has made, in order of arrival.
    placed: Mutex<Vec<Arc<Entry>>>,
}

impl Registry {
    /// A registry without devices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the devices of a spec.
    ///
    /// # Errors
    /// [`BdevError`]; nothing has been made then.
    pub fn create(&self, mut spec: Spec) -> Result<Vec<Arc<Entry>>, BdevError> {
        let _change = self.change();
        self.name(&mut spec);
        let base = self.resolve_base(&mut spec)?;
        spec.validate()?;
        self.check_free(&spec)?;
        if let Some(base) = &base {
            base.check_unused()?;
        }
        spec.fill_uuids(base.as_ref().map(|base| base.uuid()));
        self.check_uuids(&spec)?;
        let group = group(spec);
        let group = self.open(group, base.as_deref())?;
        Ok(self.keep(group, base.as_deref()))
    }

    /// Makes the devices of a spec that was made before. What cannot be opened, for whatever reason, is listed as
    /// missing. Only what cannot even be listed, because its name or UUID is taken, is left out (and logged).
    pub fn create_or_missing(&self, mut spec: Spec) -> Vec<Arc<Entry>> {
        let _change = self.change();
        let base = self.resolve_base(&mut spec);
        let listable =
            spec.validate_count().and_then(|()| self.check_free(&spec)).and_then(|()| self.check_uuids(&spec));
        if let Err(error) = listable {
            tracing::error!("a bdev of the saved state is left out: {error}");
            return Vec::new();
        }
        spec.fill_uuids(base.as_ref().ok().and_then(|base| base.as_ref().map(|base| base.uuid())));
        let group = group(spec);
        let (base, opened) = match base {
            Err(error) => (None, Err(error)),
            Ok(base) => {
                let unused = base.as_ref().map_or(Ok(()), |base| base.check_unused());
                let opened = unused.and_then(|()| self.open(group.clone(), base.as_deref()));
                (base, opened)
            }
        };
        let group = opened.unwrap_or_else(|error| {
            group.entries.iter().for_each(|entry| entry.set_missing(error.clone()));
            group
        });
        self.keep(group, base.as_deref())
    }

    /// Tries again to open what is missing. Returns what has come back, those below before those above.
    pub fn retry_missing(&self) -> Vec<Arc<Entry>> {
        let _change = self.change();
        let mut back = Vec::new();
        loop {
            let missing: Vec<Group> = self.groups().iter().filter(|group| group.is_missing()).cloned().collect();
            let before = back.len();
            for group in missing {
                back.extend(self.retry(&group));
            }
            if back.len() == before {
                return back;
            }
        }
    }

    fn retry(&self, group: &Group) -> Vec<Arc<Entry>> {
        let name = group.entries[0].name().to_owned();
        let opened = group.spec.validate().and_then(|()| {
            let base = self.resolve_base(&mut group.spec.clone())?;
            if let Some(base) = &base {
                let owned = base.claim().is_some_and(|claim| claim.by.contains(&name));
                if !owned {
                    base.check_unused()?;
                }
                claim(base, group);
            }
            self.open(group.clone(), base.as_deref())
        });
        match opened {
            Ok(opened) => {
                let mut groups = self.groups();
                if let Some(kept) = groups.iter_mut().find(|kept| kept.entries[0].name() == name) {
                    kept.spec = opened.spec;
                }
                opened.entries
            }
            Err(error) => {
                group.entries.iter().for_each(|entry| entry.set_missing(error.clone()));
                Vec::new()
            }
        }
    }

    /// Deletes a device; with a part of a split, all its parts. If `kind` is given the device must be of that kind;
    /// a split is then found by the name of its base as well.
    ///
    /// # Errors
    /// [`BdevError::NotFound`]; [`BdevError::InUse`] with who uses it.
    pub fn delete(&self, name: &str, kind: Option<Kind>) -> Result<(), BdevError> {
        let _change = self.change();
        let group = self.find_group(name, kind).ok_or_else(|| BdevError::not_found(name))?;
        group.entries.iter().try_for_each(|entry| entry.check_unused())?;
        self.groups().retain(|kept| kept.entries[0].name() != group.entries[0].name());
        if let Some(base) = group.spec.base().and_then(|base| self.get(base)) {
            let mut below = base.lock();
            if below.claim.as_ref().is_some_and(|claim| claim.by.iter().any(|by| by == group.entries[0].name())) {
                below.claim = None;
            }
        }
        // Whoever still holds the entry must not keep the file open.
        group.entries.iter().for_each(|entry| entry.set_missing(BdevError::not_found(entry.name())));
        Ok(())
    }

    /// Closes a device and opens it again, which ends a failed-flush state.
    ///
    /// # Errors
    /// [`BdevError::InUse`]; else whatever kept it from being opened: it is missing then.
    pub fn reopen(&self, name: &str) -> Result<(), BdevError> {
        let _change = self.change();
        let group = self.find_group(name, None).ok_or_else(|| BdevError::not_found(name))?;
        group.entries.iter().try_for_each(|entry| entry.check_unused())?;
        let closed = BdevError::Missing { name: name.to_owned(), why: "it is being opened again".to_owned() };
        group.entries.iter().for_each(|entry| entry.set_missing(closed.clone()));
        self.retry(&group);
        match group.entries[0].state() {
            State::Online => Ok(()),
            State::Missing(error) => Err(error),
        }
    }

    /// A device's below has gone: it is missing from now on, until it can be opened again.
    pub fn lose(&self, name: &str) {
        let _change = self.change();
        if let Some(entry) = self.get(name) {
            let why = "the device has gone".to_owned();
            entry.set_missing(BdevError::Missing { name: entry.name().to_owned(), why });
        }
    }

    /// The device with this name, alias or UUID.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Entry>> {
        let groups = self.groups();
        // A name goes before a UUID that looks like it; creation keeps the two apart anyway.
        let made = groups.iter().flat_map(|group| &group.entries).find(|entry| entry.is_called(name)).cloned();
        drop(groups);
        made.or_else(|| self.placed().iter().find(|entry| entry.is_called(name)).cloned())
    }

    /// All devices in order of creation, those that no spec has made last.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Entry>> {
        let mut all: Vec<_> = self.groups().iter().flat_map(|group| group.entries.iter().cloned()).collect();
        all.extend(self.placed().iter().cloned());
        all
    }

    /// What would make the same devices again, in order of creation.
    #[must_use]
    pub fn specs(&self) -> Vec<Spec> {
        let groups = self.groups().clone();
        groups.iter().map(Group::spec).collect()
    }

    /// A front end starts to use a device, which may be missing.
    ///
    /// # Errors
    /// [`BdevError::InUse`] if a layer owns it, if either this or another front end wants it for itself, or if it is
    /// served by another kind of front end.
    pub fn attach_frontend(&self, name: &str, user: FrontEnd) -> Result<Arc<Entry>, BdevError> {
        let _change = self.change();
        let entry = self.get(name).ok_or_else(|| BdevError::not_found(name))?;
        entry.attach(user)?;
        Ok(entry)
    }

    /// A front end no longer uses a device; once for each attach, with the same value.
    ///
    /// # Errors
    /// [`BdevError::NotFound`] if there is no such device or use.
    pub fn detach_frontend(&self, name: &str, user: &FrontEnd) -> Result<(), BdevError> {
        let _change = self.change();
        self.get(name).ok_or_else(|| BdevError::not_found(name))?.detach(user)
    }

    /// Looks at a device's size again. Returns whether it has changed; then the shapes of devices that stand on it may
    /// have changed too.
    ///
    /// # Errors
    /// [`BdevError`]; the size is then what it was.
    pub fn rescan(&self, name: &str) -> Result<bool, BdevError> {
        let _change = self.change();
        self.online(name)?.rescan()
    }

    /// Sets a device's size in bytes.
    ///
    /// # Errors
    /// [`BdevError`]; most devices cannot do that.
    pub fn resize(&self, name: &str, bytes: u64) -> Result<(), BdevError> {
        let _change = self.change();
        self.online(name)?.resize(bytes)
    }

    fn online(&self, name: &str) -> Result<Arc<dyn crate::Device>, BdevError> {
        let entry = self.get(name).ok_or_else(|| BdevError::not_found(name))?;
        entry.device().ok_or_else(|| match entry.state() {
            State::Missing(why) => BdevError::Missing { name: entry.name().to_owned(), why: why.to_string() },
            State::Online => BdevError::not_found(name),
        })
    }

    fn find_group(&self, name: &str, kind: Option<Kind>) -> Option<Group> {
        let groups = self.groups();
        let by_name = groups.iter().find(|group| group.entries.iter().any(|entry| entry.is_called(name)));
        let by_base =
            || groups.iter().find(|group| group.spec.kind() == Kind::Split && group.spec.base() == Some(name));
        let found = match kind {
            None => by_name,
            Some(Kind::Split) => by_name.filter(|group| group.spec.kind() == Kind::Split).or_else(by_base),
            Some(kind) => by_name.filter(|group| group.spec.kind() == kind),
        };
        found.cloned()
    }

    /// Gives a ram disk without a name the first free one.
    fn name(&self, spec: &mut Spec) {
        if let Spec::Malloc(ram) = spec
            && ram.name.is_empty()
        {
            let name = (0u32..).map(|n| format!("Malloc{n}")).find(|name| self.get(name).is_none());
            ram.name = name.expect("there are more numbers than devices");
        }
    }

    /// Finds the base of a stacked spec, and puts its proper name into the spec if it was called otherwise.
    fn resolve_base(&self, spec: &mut Spec) -> Result<Option<Arc<Entry>>, BdevError> {
        let Some(name) = spec.base() else { return Ok(None) };
        let base = self.get(name).ok_or_else(|| BdevError::not_found(name))?;
        if base.kind() == Kind::Sg {
            let why = format!("{name} is a whole SCSI device, not a block device: nothing can stand on it");
            return Err(BdevError::invalid("base_bdev_name", why));
        }
        spec.set_base(base.name());
        Ok(Some(base))
    }

    fn check_free(&self, spec: &Spec) -> Result<(), BdevError> {
        let placed = |name: &String| self.placed().iter().any(|entry| entry.is_called(name));
        if let Some(name) = spec.names().into_iter().find(placed) {
            return Err(BdevError::Exists { name, same: false });
        }
        let Some((name, taken)) = spec.names().into_iter().find_map(|name| {
            let taken = self.find_group(&name, None)?;
            Some((name, taken))
        }) else {
            return Ok(());
        };
        Err(BdevError::Exists { name, same: spec.asks_for(&taken.spec()) })
    }

    fn check_uuids(&self, spec: &Spec) -> Result<(), BdevError> {
        let uuids = spec.uuids();
        let taken = |uuid: &&Uuid| self.list().iter().any(|entry| entry.is_called(&uuid.to_string()));
        match uuids.iter().find(taken) {
            Some(uuid) => Err(BdevError::Exists { name: uuid.to_string(), same: false }),
            None => Ok(()),
        }
    }

    /// Opens the devices of a group.
    fn open(&self, mut group: Group, base: Option<&Entry>) -> Result<Group, BdevError> {
        group.spec.validate()?;
        let devices = build(&mut group.spec, base, group.entries[0].stats())?;
        assert_eq!(devices.len(), group.entries.len(), "a spec makes what it names");
        for (entry, device) in group.entries.iter().zip(devices) {
            entry.set_online(device);
        }
        Ok(group)
    }

    fn keep(&self, group: Group, base: Option<&Entry>) -> Vec<Arc<Entry>> {
        if let Some(base) = base
            && base.check_unused().is_ok()
        {
            claim(base, &group);
        }
        let entries = group.entries.clone();
        self.groups().push(group);
        entries
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn placed(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entries that a complete spec makes, not opened yet.
fn group(spec: Spec) -> Group {
    let (kind, product) = (spec.kind(), spec.product_name());
    let named = spec.names().into_iter().zip(spec.uuids());
    let entries: Vec<_> = named.map(|(name, uuid)| Arc::new(Entry::new(name, uuid, kind, product))).collect();
    Group { spec, entries }
}

fn claim(base: &Entry, group: &Group) {
    let by = group.entries.iter().map(|entry| entry.name().to_owned()).collect();
    base.lock().claim = Some(Claim { kind: group.spec.kind(), by });
}
