//! Changes of controllers and their LUNs.

use std::sync::Arc;

use pollux_bdev::{Entry, FrontEnd, FrontEndKind};
use pollux_core::Bdev;
use pollux_vhost_scsi::Backing;

use super::document::{ControllerRecord, Document, LunRecord};
use super::notify::Kind;
use super::{Changes, Node, NodeError, Reason};

/// A controller to be made.
#[derive(Clone, Debug)]
pub struct NewController {
    /// Its name.
    pub name: String,
    /// Its cores; none: all reactors.
    pub cores: Option<Vec<usize>>,
    /// Its initiator port; none: drawn.
    pub initiator: Option<u64>,
    /// Whether it listens at once.
    pub started: bool,
}

/// A LUN to be made.
#[derive(Clone, Debug)]
pub struct NewLun {
    /// Its controller.
    pub ctrlr: String,
    /// Its target; none: the first that is free.
    pub target: Option<u8>,
    /// Its number.
    pub lun: u16,
    /// What it leads to: a bdev's name, alias or UUID.
    pub bdev: String,
    /// Whether the bdev may not be attached elsewhere.
    pub exclusive: bool,
}

/// A LUN of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LunAddress {
    /// Its target.
    pub target: u8,
    /// Its number.
    pub lun: u16,
}

impl Node {
    /// Creates a controller.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn create_controller(&self, new: NewController) -> Result<(), NodeError> {
        let mut changes = self.change();
        if let Some(kept) = changes.document.controller(&new.name) {
            let same = kept.cores == new.cores && new.initiator.is_none_or(|initiator| initiator == kept.initiator);
            let reason = if same { Reason::ExistsSame } else { Reason::ExistsDifferent };
            return Err(NodeError::new(reason, format!("controller '{}' exists already", new.name)));
        }
        let mut record = ControllerRecord {
            name: new.name,
            cores: new.cores,
            initiator: new.initiator.unwrap_or_else(draw_initiator),
            relative_port: None,
            started: new.started,
            luns: Vec::new(),
        };
        record.relative_port = Some(self.make_controller(&record, self.reactors_of(&record)?)?);
        let name = record.name.clone();
        let started =
            if record.started { self.target.start_controller(&name).map_err(NodeError::from) } else { Ok(()) };
        let saved = started.and_then(|()| {
            let mut next = changes.document.clone();
            next.controllers.push(record);
            changes.save(next)
        });
        if let Err(error) = saved {
            self.undo("the new controller", self.target.delete_controller(&name, true));
            return Err(error);
        }
        self.notifications.add(Kind::VhostCreate, &name);
        Ok(())
    }

    /// Makes a controller as its record says; returns its relative target port identifier.
    pub(super) fn make_controller(&self, record: &ControllerRecord, reactors: Vec<usize>) -> Result<u16, NodeError> {
        Ok(self.target.create_controller_as(&record.name, reactors, record.initiator, record.relative_port)?)
    }

    /// Has a controller listen that was created to do so later.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn start_controller(&self, name: &str) -> Result<(), NodeError> {
        let mut changes = self.change();
        let mut next = changes.document.clone();
        let record = next.controller_mut(name).ok_or_else(|| no_controller(name))?;
        self.refuse_missing(name)?;
        if record.started {
            // It may be one that could not listen at the start.
            return Ok(self.target.start_controller(name)?);
        }
        record.started = true;
        // Saved first: a listening socket cannot be taken back from a VM that has already connected.
        let before = changes.document.clone();
        changes.save(next)?;
        self.target.start_controller(name).map_err(|error| self.take_back(&mut changes, before, error.into()))
    }

    /// Deletes a controller; with `force` even if a VM is connected.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn delete_controller(&self, name: &str, force: bool) -> Result<(), NodeError> {
        let mut changes = self.change();
        let before = changes.document.clone();
        let record = before.controller(name).cloned().ok_or_else(|| no_controller(name))?;
        let connected = self.target.controllers().iter().any(|live| live.name == name && !live.sessions.is_empty());
        if connected && !force {
            let detail = format!("a VM is connected to controller '{name}'; disconnect it, or delete with force");
            return Err(NodeError::new(Reason::InUse, detail));
        }
        let mut next = before.clone();
        next.controllers.retain(|kept| kept.name != name);
        changes.save(next)?;
        if self.why_missing(name).is_none() {
            if let Err(error) = self.target.delete_controller(name, force) {
                return Err(self.take_back(&mut changes, before, error.into()));
            }
            record.luns.iter().for_each(|lun| self.release(name, lun));
        }
        self.forget_unrestored(name);
        self.notifications.add(Kind::VhostDelete, name);
        Ok(())
    }

    /// Adds a LUN; returns its target.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn add_lun(&self, new: &NewLun) -> Result<u8, NodeError> {
        let mut changes = self.change();
        let record = changes.document.controller(&new.ctrlr).ok_or_else(|| no_controller(&new.ctrlr))?;
        self.refuse_missing(&new.ctrlr)?;
        let entry = self.bdevs.get(&new.bdev).ok_or_else(|| NodeError::no_bdev(&new.bdev))?;
        refuse_repetition(record, new, entry.name())?;
        let mut kept = LunRecord { target: 0, lun: new.lun, bdev: entry.name().to_owned(), exclusive: new.exclusive };
        kept.target = self.attach(&new.ctrlr, new.target, &kept, &entry)?;
        let mut next = changes.document.clone();
        if let Some(record) = next.controller_mut(&new.ctrlr) {
            record.luns.push(kept.clone());
        }
        if let Err(error) = changes.save(next) {
            self.undo("the new LUN", self.target.remove_lun(&new.ctrlr, kept.target, Some(kept.lun)));
            self.release(&new.ctrlr, &kept);
            return Err(error);
        }
        Ok(kept.target)
    }

    /// Takes one LUN of a target away, or all of them.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn remove_lun(&self, ctrlr: &str, target: u8, lun: Option<u16>) -> Result<(), NodeError> {
        let mut changes = self.change();
        let record = changes.document.controller(ctrlr).ok_or_else(|| no_controller(ctrlr))?;
        let wanted = |kept: &LunRecord| kept.target == target && lun.is_none_or(|lun| kept.lun == lun);
        let gone: Vec<LunRecord> = record.luns.iter().filter(|kept| wanted(kept)).cloned().collect();
        if gone.is_empty() {
            let detail = match lun {
                Some(lun) => format!("target {target} of controller '{ctrlr}' has no LUN {lun}"),
                None => format!("controller '{ctrlr}' has no target {target}"),
            };
            return Err(NodeError::new(Reason::NotFound, detail));
        }
        self.detach(&mut changes, ctrlr, &gone)
    }

    /// Takes LUNs away: saved first, then taken from the guest.
    pub(super) fn detach(&self, changes: &mut Changes, ctrlr: &str, gone: &[LunRecord]) -> Result<(), NodeError> {
        let before = changes.document.clone();
        let mut next = before.clone();
        if let Some(record) = next.controller_mut(ctrlr) {
            record.luns.retain(|kept| !gone.contains(kept));
        }
        changes.save(next)?;
        for lun in gone.iter().filter(|_| self.why_missing(ctrlr).is_none()) {
            match self.target.remove_lun(ctrlr, lun.target, Some(lun.lun)) {
                Ok(_) | Err(pollux_vhost_scsi::TargetError::NoLun { .. }) => self.release(ctrlr, lun),
                Err(error) => {
                    // What is gone is gone; what is left stays in the state.
                    let mut left = before.clone();
                    let live = self.target.controllers().into_iter().find(|live| live.name == ctrlr);
                    let is_live = |kept: &LunRecord| {
                        let luns = live.iter().flat_map(|live| &live.luns);
                        luns.into_iter().any(|lun| (lun.target, lun.lun) == (kept.target, kept.lun))
                    };
                    if let Some(record) = left.controller_mut(ctrlr) {
                        record.luns.retain(|kept| !gone.contains(kept) || is_live(kept));
                    }
                    return Err(self.take_back(changes, left, error.into()));
                }
            }
        }
        Ok(())
    }

    /// Keeps latency histograms of a LUN from now on, until the daemon ends.
    ///
    /// # Errors
    /// If there is no such LUN.
    pub fn keep_latencies(&self, ctrlr: &str, at: LunAddress) -> Result<(), NodeError> {
        let controllers = self.target.controllers();
        let controller =
            controllers.iter().find(|controller| controller.name == ctrlr).ok_or_else(|| no_controller(ctrlr))?;
        let lun = controller.luns.iter().find(|lun| (lun.target, lun.lun) == (at.target, at.lun)).ok_or_else(|| {
            let detail = format!("target {} of controller '{ctrlr}' has no LUN {}", at.target, at.lun);
            NodeError::new(Reason::NotFound, detail)
        })?;
        for stats in &lun.stats {
            stats.keep_latencies();
        }
        Ok(())
    }

    /// Puts a LUN before the guest: claims its bdev, then tells the reactors.
    pub(super) fn attach(
        &self,
        ctrlr: &str,
        target: Option<u8>,
        lun: &LunRecord,
        entry: &Arc<Entry>,
    ) -> Result<u8, NodeError> {
        let user = FrontEnd { ctrlr: ctrlr.to_owned(), exclusive: lun.exclusive, kind: FrontEndKind::Scsi };
        self.bdevs.attach_frontend(entry.name(), user.clone())?;
        let added = self.target.add_lun(ctrlr, target, lun.lun, self.backing(entry));
        added.map_err(|error| {
            self.undo("the claim of the new LUN", self.bdevs.detach_frontend(entry.name(), &user));
            error.into()
        })
    }

    /// Ends a controller's claim on a LUN's bdev.
    fn release(&self, ctrlr: &str, lun: &LunRecord) {
        if self.forget_unrestored_lun(ctrlr, lun) {
            return;
        }
        let user = FrontEnd { ctrlr: ctrlr.to_owned(), exclusive: lun.exclusive, kind: FrontEndKind::Scsi };
        self.undo("a claim", self.bdevs.detach_frontend(&lun.bdev, &user));
    }

    fn backing(&self, entry: &Arc<Entry>) -> Backing {
        let stats = Arc::clone(entry);
        Backing {
            bdev_name: entry.name().to_owned(),
            unit: self.unit(entry),
            device: entry.device().map(|device| -> Arc<dyn Bdev> { device }),
            new_stats: Arc::new(move || stats.stats().new_stats()),
        }
    }

    /// The reactors of a controller's cores. Cores that no reactor runs on (any more) are left out; if none is left, all
    /// reactors serve it.
    pub(super) fn reactors_of(&self, record: &ControllerRecord) -> Result<Vec<usize>, NodeError> {
        let Some(cores) = &record.cores else { return Ok(Vec::new()) };
        let ours: Vec<usize> = self.reactors.iter().map(|stats| stats.core).collect();
        let chosen = choose(&ours, cores);
        if chosen.is_empty() {
            let detail = format!("no reactor runs on cores {cores:?}; those of this daemon run on {ours:?}");
            return Err(NodeError::new(Reason::Invalid, detail));
        }
        Ok(chosen)
    }

    /// Puts the state back to what it was after a change that was saved could not be carried out.
    pub(super) fn take_back(&self, changes: &mut Changes, document: Document, error: NodeError) -> NodeError {
        if let Err(saving) = changes.save(document) {
            tracing::error!("the state file is ahead of what runs: {saving}");
        }
        error
    }

    /// Carries out the undoing of something; that can fail only together with much else, so it is logged.
    #[expect(clippy::unused_self, reason = "reads as a step of the change it belongs to")]
    pub(super) fn undo<T, E: std::fmt::Display>(&self, what: &str, outcome: Result<T, E>) {
        if let Err(error) = outcome {
            tracing::error!("cannot take back {what}: {error}");
        }
    }
}

fn no_controller(name: &str) -> NodeError {
    NodeError::new(Reason::NotFound, format!("there is no controller '{name}'"))
}

/// A LUN that is there already is refused, saying whether it is the one asked for.
fn refuse_repetition(record: &ControllerRecord, new: &NewLun, bdev: &str) -> Result<(), NodeError> {
    let Some(target) = new.target else { return Ok(()) };
    let Some(kept) = record.luns.iter().find(|kept| (kept.target, kept.lun) == (target, new.lun)) else {
        return Ok(());
    };
    let same = kept.bdev == bdev && kept.exclusive == new.exclusive;
    let reason = if same { Reason::ExistsSame } else { Reason::ExistsDifferent };
    let (ctrlr, lun, bdev) = (&record.name, kept.lun, &kept.bdev);
    Err(NodeError::new(reason, format!("target {target} of controller '{ctrlr}' has LUN {lun} already: bdev '{bdev}'")))
}

/// Which of our reactors (by number) run on these cores.
fn choose(ours: &[usize], cores: &[usize]) -> Vec<usize> {
    ours.iter().enumerate().filter(|(_, core)| cores.contains(core)).map(|(reactor, _)| reactor).collect()
}

/// An initiator port's name: NAA 3 (locally assigned), the rest drawn.
fn draw_initiator() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    (high ^ low) >> 4 | 3 << 60
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ControllerRecord {
        ControllerRecord {
            name: "vm1".into(),
            cores: None,
            initiator: 1,
            relative_port: None,
            started: true,
            luns: vec![LunRecord { target: 0, lun: 0, bdev: "a".into(), exclusive: false }],
        }
    }

    #[test]
    fn a_repeated_lun_is_told_from_another_one() {
        let new =
            |target, bdev: &str| NewLun { ctrlr: "vm1".into(), target, lun: 0, bdev: bdev.into(), exclusive: false };
        let reason = |new: &NewLun| refuse_repetition(&record(), new, &new.bdev).map_err(|error| error.reason);
        assert_eq!(reason(&new(Some(0), "a")), Err("exists_same"));
        assert_eq!(reason(&new(Some(0), "b")), Err("exists_different"));
        assert_eq!(reason(&new(Some(1), "a")), Ok(()));
        assert_eq!(reason(&new(None, "a")), Ok(()));
    }

    #[test]
    fn cores_become_reactors() {
        assert_eq!(choose(&[4, 7, 2], &[2, 4]), [0, 2]);
        assert!(choose(&[0], &[3]).is_empty());
    }

    #[test]
    fn drawn_initiators_are_locally_assigned() {
        let (one, other) = (draw_initiator(), draw_initiator());
        assert_eq!((one >> 60, other >> 60), (3, 3));
        assert_ne!(one, other);
    }
}
