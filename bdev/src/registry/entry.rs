//! One device in the registry: what it is called, whether it is there, who uses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::{BdevError, Device, Kind, StatsSet};

/// Whether a device is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is.
    Online,
    /// It could not be opened when it was tried last, for this reason.
    Missing(BdevError),
}

/// A layer that owns a device: nobody else may write to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What kind of layer.
    pub kind: Kind,
    /// The devices that stand on it.
    pub by: Vec<String>,
}

/// What serves a device to guests. One device is served by one kind only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEndKind {
    /// virtio-scsi.
    Scsi,
    /// virtio-blk.
    Blk,
}

/// A use of a device by a front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontEnd {
    /// The controller.
    pub ctrlr: String,
    /// Whether it wants the device for itself.
    pub exclusive: bool,
    /// What kind of front end.
    pub kind: FrontEndKind,
}

pub(super) struct Inner {
    pub(super) aliases: Vec<String>,
    pub(super) state: State,
    pub(super) device: Option<Arc<dyn Device>>,
    pub(super) claim: Option<Claim>,
    pub(super) frontends: Vec<FrontEnd>,
}

/// One device. Its name and its UUID never change; the rest is as of the moment it is asked for.
pub struct Entry {
    name: String,
    uuid: Uuid,
    kind: Kind,
    product_name: &'static str,
    stats: Arc<StatsSet>,
    inner: Mutex<Inner>,
}

impl Entry {
    pub(super) fn new(name: String, uuid: Uuid, kind: Kind, product_name: &'static str) -> Self {
        let uuid_name = uuid.to_string();
        let aliases = if uuid_name == name { Vec::new() } else { vec![uuid_name] };
        let why = BdevError::Missing { name: name.clone(), why: "it has not been opened yet".to_owned() };
        let inner = Inner { aliases, state: State::Missing(why), device: None, claim: None, frontends: Vec::new() };
        Entry { name, uuid, kind, product_name, stats: Arc::default(), inner: Mutex::new(inner) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Its other names.
    #[must_use]
    pub fn aliases(&self) -> Vec<String> {
        self.lock().aliases.clone()
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// SPDK's name for its kind.
    #[must_use]
    pub fn product_name(&self) -> &'static str {
        self.product_name
    }

    /// The device; `None` while it is missing.
    #[must_use]
    pub fn device(&self) -> Option<Arc<dyn Device>> {
        self.lock().device.clone()
    }

    /// Whether it is there.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// The layer that owns it.
    #[must_use]
    pub fn claim(&self) -> Option<Claim> {
        self.lock().claim.clone()
    }

    /// The names of the devices that stand on it and own it.
    #[must_use]
    pub fn claimed_by(&self) -> Option<String> {
        self.lock().claim.as_ref().map(|claim| claim.by.join(", "))
    }

    /// The front ends that serve it; one that uses it several times is there several times.
    #[must_use]
    pub fn frontends(&self) -> Vec<FrontEnd> {
        self.lock().frontends.clone()
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<StatsSet> {
        &self.stats
    }

    /// Whether this is one of its names, in any spelling of the UUID.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name
            || self.lock().aliases.iter().any(|alias| alias == name)
            || Uuid::try_parse(name).is_ok_and(|uuid| uuid == self.uuid)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_missing(&self) -> bool {
        self.lock().device.is_none()
    }

    pub(super) fn set_online(&self, device: Arc<dyn Device>) {
        let mut inner = self.lock();
        inner.device = Some(device);
        inner.state = State::Online;
    }

    pub(super) fn set_missing(&self, why: BdevError) {
        let mut inner = self.lock();
        inner.state = State::Missing(why);
        // Closed only after the lock is released.
        let closed = inner.device.take();
        drop(inner);
        drop(closed);
    }

    /// Refuses if anybody uses it.
    pub(super) fn check_unused(&self) -> Result<(), BdevError> {
        let inner = self.lock();
        let by = match (&inner.claim, inner.frontends.first()) {
            (Some(claim), _) => format!("{} ({})", claim.by.join(", "), claim.kind.name()),
            (None, Some(user)) => format!("controller {}", user.ctrlr),
            (None, None) => return Ok(()),
        };
        Err(BdevError::InUse { name: self.name.clone(), by })
    }

    /// A front end starts to use it: any number may share it, unless one of them does not want that. A whole SCSI device
    /// cannot tell them apart, so it has one at most, and that one has to speak SCSI.
    pub(super) fn attach(&self, user: FrontEnd) -> Result<(), BdevError> {
        let mut inner = self.lock();
        let refused = |by: String| Err(BdevError::InUse { name: self.name.clone(), by });
        if let Some(claim) = &inner.claim {
            return refused(format!("{} ({})", claim.by.join(", "), claim.kind.name()));
        }
        let whole = self.kind == Kind::Sg;
        if whole && user.kind != FrontEndKind::Scsi {
            let why = format!("{} is a whole SCSI device: it can only be a SCSI LUN", self.name);
            return Err(BdevError::invalid("bdev_name", why));
        }
        let stands_in_the_way =
            |other: &&FrontEnd| whole || other.exclusive || user.exclusive || other.kind != user.kind;
        if let Some(other) = inner.frontends.iter().find(stands_in_the_way) {
            let exclusively = if whole || other.exclusive { " exclusively" } else { "" };
            return refused(format!("controller {}{exclusively}", other.ctrlr));
        }
        inner.frontends.push(user);
        Ok(())
    }

    pub(super) fn detach(&self, user: &FrontEnd) -> Result<(), BdevError> {
        let mut inner = self.lock();
        let at = inner.frontends.iter().position(|other| other == user);
        let at =
            at.ok_or_else(|| BdevError::NotFound { name: format!("{} on controller {}", self.name, user.ctrlr) })?;
        inner.frontends.remove(at);
        Ok(())
    }
}
