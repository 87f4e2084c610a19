//! Changes of block devices.

use std::sync::Arc;

use pollux_bdev::{Claim, Entry, Kind as BdevKind, LatencyKind, Spec};

use super::document::LunRecord;
use super::notify::Kind;
use super::pools::who;
use super::{Changes, Node, NodeError, Reason};

impl Node {
    /// Creates what the spec says; returns the names.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn create_bdev(&self, spec: Spec) -> Result<Vec<String>, NodeError> {
        let mut changes = self.change();
        let entries = self.bdevs.create(spec)?;
        let names: Vec<String> = entries.iter().map(|entry| entry.name().to_owned()).collect();
        let unique = self.check_names(&entries);
        drop(entries);
        if let Err(error) = unique.and_then(|()| self.save_bdevs(&mut changes)) {
            if let Some(first) = names.first() {
                // One part of a split stands for all of them.
                self.undo("the new bdev", self.bdevs.delete(first, None));
            }
            return Err(error);
        }
        for name in &names {
            self.notifications.add(Kind::BdevRegister, name);
        }
        drop(changes);
        let mended = self.mend_volumes(&[]);
        self.bring_all_back(&mended);
        let back = self.look_for_pools(&names);
        self.bring_all_back(&back);
        Ok(names)
    }

    /// Deletes a bdev (of this kind, if one is given); with `force` it is detached from its controllers first.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn delete_bdev(&self, name: &str, kind: Option<BdevKind>, force: bool) -> Result<(), NodeError> {
        if kind.is_none() && self.is_volume(name) {
            return self.delete_volume(name, force);
        }
        // Nothing is closed before it is known that nobody else keeps it.
        self.refuse_before_closing(&self.group(name, kind)?, force)?;
        for entry in self.group(name, kind)? {
            self.close_pool_on(&entry)?;
        }
        let mut changes = self.change();
        let group = self.group(name, kind)?;
        self.refuse_used_group(&changes, &group, force, |_| false)?;
        for entry in &group {
            self.detach_everywhere(&mut changes, entry.name())?;
        }
        let names: Vec<String> = group.iter().map(|entry| entry.name().to_owned()).collect();
        let uuids: Vec<_> = group.iter().map(|entry| entry.uuid()).collect();
        drop(group);
        let before = changes.document.clone();
        let mut next = before.clone();
        next.bdevs.retain(|spec| !spec.names().iter().any(|made| names.contains(made)));
        next.identities.retain(|name, _| !names.contains(name));
        changes.save(next)?;
        if let Some(first) = names.first()
            && let Err(error) = self.bdevs.delete(first, None)
        {
            return Err(self.take_back(&mut changes, before, error.into()));
        }
        self.units().retain(|uuid, _| !uuids.contains(uuid));
        self.forget_identities(&uuids);
        if let Some(saver) = &self.unit_saver {
            uuids.iter().for_each(|uuid| saver.remove(*uuid));
        }
        for name in &names {
            self.notifications.add(Kind::BdevUnregister, name);
        }
        Ok(())
    }

    fn refuse_before_closing(&self, group: &[Arc<Entry>], force: bool) -> Result<(), NodeError> {
        let changes = self.change();
        self.refuse_used_group(&changes, group, force, |claim| claim.kind == BdevKind::Pool)?;
        group.iter().try_for_each(|entry| self.refuse_used_pool_on(&changes, entry))
    }

    /// Refuses if anybody has one of these whose claim does not go with it, or, without `force`, a controller.
    fn refuse_used_group(
        &self,
        changes: &Changes,
        group: &[Arc<Entry>],
        force: bool,
        goes: impl Fn(&Claim) -> bool,
    ) -> Result<(), NodeError> {
        for entry in group {
            if let Some(claim) = entry.claim().filter(|claim| !goes(claim)) {
                return Err(in_use(entry.name(), &who(&claim)));
            }
            let at: Vec<String> =
                changes.document.attachments(entry.name()).map(|(ctrlr, lun)| place(ctrlr, lun)).collect();
            if !at.is_empty() && !force {
                return Err(in_use(entry.name(), &format!("{}; detach it, or delete with force", at.join(", "))));
            }
        }
        Ok(())
    }

    /// What goes when this bdev goes: itself, and if it is a part of a split, all parts.
    fn group(&self, name: &str, kind: Option<BdevKind>) -> Result<Vec<Arc<Entry>>, NodeError> {
        if kind == Some(BdevKind::Split) {
            let parts: Vec<_> = self.parts_of(name);
            let missing = || NodeError::new(Reason::NotFound, format!("bdev '{name}' is not split"));
            return if parts.is_empty() { Err(missing()) } else { Ok(parts) };
        }
        let entry = self.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
        match kind {
            Some(kind) if entry.kind() != kind => {
                let (is, wanted) = (entry.kind().name(), kind.name());
                Err(NodeError::new(Reason::NotFound, format!("bdev '{name}' is of kind {is}, not {wanted}")))
            }
            _ if entry.kind() == BdevKind::Split => {
                let names = self.specs_names(entry.name());
                Ok(names.iter().filter_map(|name| self.bdevs.get(name)).collect())
            }
            _ => Ok(vec![entry]),
        }
    }

    fn parts_of(&self, base: &str) -> Vec<Arc<Entry>> {
        let base = self.bdevs.get(base).map_or_else(|| base.to_owned(), |entry| entry.name().to_owned());
        let specs = self.bdevs.specs();
        let splits = specs.iter().filter(|spec| spec.kind() == BdevKind::Split && spec.base() == Some(&base));
        splits.flat_map(Spec::names).filter_map(|name| self.bdevs.get(&name)).collect()
    }

    /// The names that were made together with this one.
    fn specs_names(&self, name: &str) -> Vec<String> {
        let specs = self.bdevs.specs();
        let together = specs.iter().map(Spec::names).find(|names| names.iter().any(|made| made == name));
        together.unwrap_or_else(|| vec![name.to_owned()])
    }

    pub(super) fn detach_everywhere(&self, changes: &mut Changes, bdev: &str) -> Result<(), NodeError> {
        let at: Vec<(String, LunRecord)> =
            changes.document.attachments(bdev).map(|(ctrlr, lun)| (ctrlr.to_owned(), lun.clone())).collect();
        for (ctrlr, lun) in at {
            self.detach(changes, &ctrlr, std::slice::from_ref(&lun))?;
        }
        Ok(())
    }

    /// Looks at the size of a bdev again.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn rescan_bdev(&self, name: &str) -> Result<(), NodeError> {
        let mut changes = self.change();
        let entry = self.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
        if self.bdevs.rescan(entry.name())? {
            self.notifications.add(Kind::BdevResize, entry.name());
            self.refresh_sizes();
            self.save_bdevs(&mut changes)?;
        }
        Ok(())
    }

    /// Gives a bdev another size, in bytes.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn resize_bdev(&self, name: &str, kind: BdevKind, bytes: u64) -> Result<(), NodeError> {
        let mut changes = self.change();
        let entry = self.group(name, Some(kind))?.remove(0);
        let device = entry.device().ok_or_else(|| missing(&entry))?;
        let before = device.shape().bytes();
        self.bdevs.resize(entry.name(), bytes)?;
        if let Err(error) = self.save_bdevs(&mut changes) {
            self.undo("the new size", self.bdevs.resize(entry.name(), before));
            return Err(error);
        }
        if device.shape().bytes() != before {
            self.notifications.add(Kind::BdevResize, entry.name());
        }
        self.refresh_sizes();
        Ok(())
    }

    /// Changes one of the latencies of a `delay` bdev.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn set_latency(&self, name: &str, which: LatencyKind, us: u64) -> Result<(), NodeError> {
        let mut changes = self.change();
        let entry = self.group(name, Some(BdevKind::Delay))?.remove(0);
        let device = entry.device().ok_or_else(|| missing(&entry))?;
        let delay = device.as_delay().ok_or_else(|| missing(&entry))?;
        let before = delay.latency(which);
        delay.set_latency(which, us);
        if let Err(error) = self.save_bdevs(&mut changes) {
            delay.set_latency(which, before);
            return Err(error);
        }
        Ok(())
    }

    /// Saves what the registry would make again.
    pub(super) fn save_bdevs(&self, changes: &mut Changes) -> Result<(), NodeError> {
        let mut next = changes.document.clone();
        next.bdevs = self.bdevs.specs();
        changes.save_if_new(next)
    }
}

fn in_use(name: &str, by: &str) -> NodeError {
    NodeError::new(Reason::InUse, format!("bdev '{name}' is in use by {by}"))
}

fn place(ctrlr: &str, lun: &LunRecord) -> String {
    format!("controller '{ctrlr}' (target {} LUN {})", lun.target, lun.lun)
}

/// A bdev that is not there cannot be changed.
pub(crate) fn missing(entry: &Entry) -> NodeError {
    NodeError::new(Reason::Missing, format!("bdev '{}' is missing: its device cannot be opened now", entry.name()))
}
