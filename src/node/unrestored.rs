//! What of controllers did not come back at the start.
//!
//! A controller that cannot be made, one that cannot listen, and a LUN whose bdev somebody else has: none of them keeps the
//! others from coming back. They stay in the state, are listed with what is wrong, and are tried again each second. A LUN
//! that cannot have its bdev is there all the same and is not ready, so a guest finds it where it was.

use std::sync::Arc;

use pollux_bdev::{Entry, FrontEnd, FrontEndKind};
use pollux_vhost_scsi::Backing;

use super::document::{ControllerRecord, LunRecord};
use super::{Changes, Node, NodeError, Reason};

/// Something of a controller that is not as the state says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unrestored {
    ctrlr: String,
    what: What,
    why: NodeError,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// There is no such controller.
    Controller,
    /// It does not listen.
    Socket,
    /// This LUN has no device.
    Lun(LunRecord),
}

impl What {
    fn shown(&self, ctrlr: &str) -> String {
        match self {
            What::Controller => format!("controller '{ctrlr}' is missing"),
            What::Socket => format!("controller '{ctrlr}' does not listen"),
            What::Lun(lun) => format!("target {} LUN {} of controller '{ctrlr}' is not ready", lun.target, lun.lun),
        }
    }
}

impl Node {
    /// Makes a controller with its LUNs as its record says, as far as that can be. Returns its relative target port identifier,
    /// if it is there.
    pub(super) fn restore_controller(&self, record: &ControllerRecord) -> Option<u16> {
        let reactors = self.reactors_of(record).unwrap_or_else(|error| {
            tracing::warn!("controller '{}' runs on all reactors: {error}", record.name);
            Vec::new()
        });
        let made = self.make_controller(record, reactors);
        let port = made.map_err(|why| self.not_restored(&record.name, What::Controller, why)).ok()?;
        for lun in &record.luns {
            if let Err(why) = self.restore_lun(&record.name, lun) {
                self.not_restored(&record.name, What::Lun(lun.clone()), why);
            }
        }
        Some(port)
    }

    /// Has it listen, after all others are there.
    pub(super) fn restore_socket(&self, record: &ControllerRecord) {
        let is_there = self.why_missing(&record.name).is_none();
        if record.started
            && is_there
            && let Err(error) = self.target.start_controller(&record.name)
        {
            self.not_restored(&record.name, What::Socket, error.into());
        }
    }

    fn restore_lun(&self, ctrlr: &str, lun: &LunRecord) -> Result<(), NodeError> {
        let entry = self.bdevs.get(&lun.bdev).ok_or_else(|| NodeError::no_bdev(&lun.bdev))?;
        let attached = self.attach(ctrlr, Some(lun.target), lun, &entry).map(drop);
        attached.inspect_err(|_| {
            let unit = self.unit(&entry);
            unit.set_shape(None);
            let stats = Arc::clone(&entry);
            let backing = Backing {
                bdev_name: entry.name().to_owned(),
                unit,
                device: None,
                new_stats: Arc::new(move || stats.stats().new_stats()),
            };
            self.undo("a LUN", self.target.add_lun(ctrlr, Some(lun.target), lun.lun, backing));
        })
    }

    fn not_restored(&self, ctrlr: &str, what: What, why: NodeError) {
        tracing::error!("{}: {why}; that is tried again", what.shown(ctrlr));
        self.unrestored().push(Unrestored { ctrlr: ctrlr.to_owned(), what, why });
    }

    /// Tries again what did not come back at the start.
    pub(super) fn retry_unrestored(&self) {
        if self.unrestored().is_empty() {
            return;
        }
        let mut changes = self.change();
        let left = std::mem::take(&mut *self.unrestored());
        for absent in left {
            let Some(record) = changes.document.controller(&absent.ctrlr).cloned() else { continue };
            let outcome = match &absent.what {
                What::Controller => self.retry_controller(&mut changes, &record),
                What::Socket => self.target.start_controller(&record.name).map_err(NodeError::from),
                What::Lun(lun) if record.luns.contains(lun) => self.retry_lun(&record.name, lun),
                What::Lun(_) => continue,
            };
            match outcome {
                Ok(()) => tracing::info!("no longer so: {}", absent.what.shown(&absent.ctrlr)),
                Err(why) => self.unrestored().push(Unrestored { why, ..absent }),
            }
        }
    }

    fn retry_controller(&self, changes: &mut Changes, record: &ControllerRecord) -> Result<(), NodeError> {
        let reactors = self.reactors_of(record).unwrap_or_default();
        let port = self.make_controller(record, reactors)?;
        let mut next = changes.document.clone();
        if let Some(record) = next.controller_mut(&record.name) {
            record.relative_port = Some(port);
        }
        changes.show(next);
        for lun in &record.luns {
            if let Err(why) = self.restore_lun(&record.name, lun) {
                self.not_restored(&record.name, What::Lun(lun.clone()), why);
            }
        }
        self.restore_socket(record);
        Ok(())
    }

    fn retry_lun(&self, ctrlr: &str, lun: &LunRecord) -> Result<(), NodeError> {
        let controllers = self.target.controllers();
        let live = controllers.iter().filter(|live| live.name == ctrlr).flat_map(|live| &live.luns);
        if !live.into_iter().any(|live| (live.target, live.lun) == (lun.target, lun.lun)) {
            return self.restore_lun(ctrlr, lun);
        }
        let user = FrontEnd { ctrlr: ctrlr.to_owned(), exclusive: lun.exclusive, kind: FrontEndKind::Scsi };
        let entry: Arc<Entry> = self.bdevs.attach_frontend(&lun.bdev, user)?;
        self.bring_back(&entry);
        Ok(())
    }

    /// A controller is not wanted any more.
    pub(super) fn forget_unrestored(&self, ctrlr: &str) {
        self.unrestored().retain(|absent| absent.ctrlr != ctrlr);
    }

    /// A LUN is not wanted any more; whether it had no device.
    pub(super) fn forget_unrestored_lun(&self, ctrlr: &str, lun: &LunRecord) -> bool {
        let mut all = self.unrestored();
        let before = all.len();
        all.retain(|absent| absent.ctrlr != ctrlr || absent.what != What::Lun(lun.clone()));
        all.len() < before
    }

    /// Why a controller of the state is not there.
    #[must_use]
    pub fn why_missing(&self, ctrlr: &str) -> Option<NodeError> {
        let all = self.unrestored();
        let found = all.iter().find(|absent| absent.ctrlr == ctrlr && absent.what == What::Controller);
        found.map(|absent| absent.why.clone())
    }

    /// Refuses what needs a controller that is not there.
    pub(super) fn refuse_missing(&self, ctrlr: &str) -> Result<(), NodeError> {
        match self.why_missing(ctrlr) {
            None => Ok(()),
            Some(why) => Err(NodeError::new(Reason::Missing, format!("controller '{ctrlr}' is missing: {why}"))),
        }
    }

    /// Why a LUN has no device though its bdev may have one.
    #[must_use]
    pub fn why_not_ready(&self, ctrlr: &str, target: u8, lun: u16) -> Option<String> {
        let is_it = |absent: &&Unrestored| {
            absent.ctrlr == ctrlr && matches!(&absent.what, What::Lun(of) if (of.target, of.lun) == (target, lun))
        };
        self.unrestored().iter().find(is_it).map(|absent| absent.why.to_string())
    }

    /// What an operator should know of it.
    #[must_use]
    pub fn restore_warnings(&self) -> Vec<String> {
        let shown = |absent: &Unrestored| format!("{}: {}", absent.what.shown(&absent.ctrlr), absent.why);
        self.unrestored().iter().map(shown).collect()
    }
}
