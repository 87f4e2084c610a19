//! Devices that no spec makes, and owners of devices that are none themselves: volumes of pools, and pools.
//!
//! Whoever places a device brings it, takes it away for a while, and withdraws it. Nothing of it is in
//! [`Registry::specs`]: it is found again where it is kept.

use std::sync::Arc;

use uuid::Uuid;

use super::{Claim, Entry, Registry};
use crate::{BdevError, Device, Kind};

/// A device to be listed. Its name is its UUID.
pub struct Placing {
    /// By which it is known.
    pub uuid: Uuid,
    /// Its other name, if it has one.
    pub alias: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// SPDK's name for that.
    pub product_name: &'static str,
    /// The device, or why it is not there.
    pub device: Result<Arc<dyn Device>, BdevError>,
}

impl Registry {
    /// Lists a device that somebody else has made. One that was placed before and is missing is there again then, for
    /// those who use it, too.
    ///
    /// # Errors
    /// [`BdevError::Exists`] if its name or its alias is another device's.
    pub fn place(&self, placing: Placing) -> Result<Arc<Entry>, BdevError> {
        let _change = self.change();
        let name = placing.uuid.to_string();
        let known = self.placed().iter().find(|entry| entry.uuid() == placing.uuid).cloned();
        if known.is_none() && self.get(&name).is_some() {
            return Err(BdevError::Exists { name, same: false });
        }
        self.check_alias(placing.uuid, placing.alias.as_deref())?;
        let entry = known
            .clone()
            .unwrap_or_else(|| Arc::new(Entry::new(name, placing.uuid, placing.kind, placing.product_name)));
        if placing.alias.is_some() || known.is_none() {
            entry.lock().aliases = placing.alias.into_iter().collect();
        }
        match placing.device {
            Ok(device) => entry.set_online(device),
            Err(why) => entry.set_missing(why),
        }
        if known.is_none() {
            self.placed().push(entry.clone());
        }
        Ok(entry)
    }

    /// Gives a placed device another alias.
    ///
    /// # Errors
    /// [`BdevError::NotFound`]; [`BdevError::Exists`].
    pub fn set_alias(&self, uuid: Uuid, alias: &str) -> Result<(), BdevError> {
        let _change = self.change();
        let entry = self.placed_one(uuid)?;
        self.check_alias(uuid, Some(alias))?;
        entry.lock().aliases = vec![alias.to_owned()];
        Ok(())
    }

    /// A placed device is not there until it is placed again. Who uses it goes on using it.
    pub fn displace(&self, uuid: Uuid, why: &str) {
        let _change = self.change();
        if let Ok(entry) = self.placed_one(uuid) {
            entry.set_missing(BdevError::Missing { name: entry.name().to_owned(), why: why.to_owned() });
        }
    }

    /// A placed device is gone for good.
    ///
    /// # Errors
    /// [`BdevError::NotFound`]; [`BdevError::InUse`] with who uses it.
    pub fn withdraw(&self, uuid: Uuid) -> Result<(), BdevError> {
        let _change = self.change();
        let entry = self.placed_one(uuid)?;
        entry.check_unused()?;
        self.placed().retain(|kept| kept.uuid() != uuid);
        entry.set_missing(BdevError::not_found(entry.name()));
        Ok(())
    }

    /// Makes a device somebody's own who lists no device for that.
    ///
    /// # Errors
    /// [`BdevError::InUse`] if anybody uses it; [`BdevError::Invalid`] if nothing can be on it.
    pub fn claim(&self, name: &str, claim: Claim) -> Result<Arc<Entry>, BdevError> {
        let _change = self.change();
        let entry = self.get(name).ok_or_else(|| BdevError::not_found(name))?;
        if entry.kind() == Kind::Sg {
            let why = format!("{name} is a whole SCSI device, not a block device: nothing can be on it");
            return Err(BdevError::invalid("bdev_name", why));
        }
        entry.check_unused()?;
        entry.lock().claim = Some(claim);
        Ok(entry)
    }

    /// Makes a device that of all these, who read it and keep others from writing it; of nobody: it is free again.
    ///
    /// # Errors
    /// [`BdevError::InUse`] if anybody else uses it.
    pub fn share(&self, name: &str, kind: Kind, by: Vec<String>) -> Result<(), BdevError> {
        let _change = self.change();
        let entry = self.get(name).ok_or_else(|| BdevError::not_found(name))?;
        if entry.claim().is_none_or(|claim| claim.kind != kind) {
            entry.check_unused()?;
        }
        entry.lock().claim = (!by.is_empty()).then_some(Claim { kind, by });
        Ok(())
    }

    /// Who has such a claim is called otherwise.
    pub fn reclaim(&self, name: &str, kind: Kind, by: Vec<String>) {
        let _change = self.change();
        if let Some(entry) = self.get(name)
            && let Some(claim) = &mut entry.lock().claim
            && claim.kind == kind
        {
            claim.by = by;
        }
    }

    /// Ends such a claim.
    pub fn unclaim(&self, name: &str, kind: Kind) {
        let _change = self.change();
        if let Some(entry) = self.get(name) {
            entry.lock().claim.take_if(|claim| claim.kind == kind);
        }
    }

    fn placed_one(&self, uuid: Uuid) -> Result<Arc<Entry>, BdevError> {
        let found = self.placed().iter().find(|entry| entry.uuid() == uuid).cloned();
        found.ok_or_else(|| BdevError::not_found(&uuid.to_string()))
    }

    fn check_alias(&self, uuid: Uuid, alias: Option<&str>) -> Result<(), BdevError> {
        match alias.and_then(|alias| self.get(alias)) {
            Some(other) if other.uuid() != uuid => {
                Err(BdevError::Exists { name: alias.unwrap_or_default().to_owned(), same: false })
            }
            _ => Ok(()),
        }
    }
}
