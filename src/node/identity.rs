//! What the SCSI units of bdevs show of themselves, and what they may ask of their bdev.
//!
//! An identity belongs to a bdev and not to a LUN: all paths show the same. It is kept by the bdev's name in the state,
//! and by its UUID while the daemon runs, as units are.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use pollux_bdev::Entry;
use pollux_core::{CopyRange, Erasure, Extent, Lane, Op, Provisioning};
use pollux_scsi::{Attention, Chosen, Identity, Medium, Share, Transfers};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Node, NodeError, Reason, through};

/// The product identification of units that were given none.
const PRODUCT: &str = "Pollux disk";

/// What was chosen for a bdev's unit; what is `None` is as it is by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityRecord {
    /// T10 vendor identification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Product identification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Product revision level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Unit serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The name in VPD page 83h, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub naa: Option<String>,
    /// Medium rotation rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation_rate: Option<u16>,
    /// Optimal unmap granularity in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmap_granularity: Option<u32>,
    /// Whether guests may SANITIZE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_sanitize: Option<bool>,
}

impl IdentityRecord {
    fn chosen(&self) -> Chosen {
        let IdentityRecord { vendor, product, revision, serial, naa, .. } = self.clone();
        let IdentityRecord { rotation_rate, unmap_granularity, allow_sanitize, .. } = *self;
        Chosen { vendor, product, revision, serial, naa, rotation_rate, unmap_granularity, allow_sanitize }
    }
}

impl Node {
    /// Says what a bdev's unit shows of itself; an empty record takes everything back.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn set_identity(&self, name: &str, record: IdentityRecord) -> Result<(), NodeError> {
        let mut changes = self.change();
        let entry = self.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
        through::refuse(&entry, "it says itself what it is")?;
        let identity = self.checked(&entry, &record)?;
        let mut next = changes.document.clone();
        if record == IdentityRecord::default() {
            next.identities.remove(entry.name());
        } else {
            next.identities.insert(entry.name().to_owned(), record);
        }
        changes.save_if_new(next)?;
        self.identities().insert(entry.uuid(), identity.clone());
        let unit = self.units().get(&entry.uuid()).cloned();
        if let Some(unit) = unit.filter(|unit| unit.set_identity(identity)) {
            let sense = Attention::InquiryChanged.sense();
            self.target.unit_changed(&unit, sense.asc, sense.ascq);
        }
        Ok(())
    }

    /// Brings back what was chosen for bdevs, before their units are made.
    pub(super) fn restore_identities(&self, records: &BTreeMap<String, IdentityRecord>) -> Result<(), NodeError> {
        for (name, record) in records {
            let entry = self.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
            self.identities().insert(entry.uuid(), shown(&entry, record)?);
        }
        // Of all together: while they come, one may have the name that another one gives up. If two have the same
        // after all, the disks are worth more than their names.
        for entry in self.bdevs.list() {
            if let Some(other) = self.namesake(&entry, &self.identity(&entry)) {
                tracing::warn!(
                    "bdevs '{}' and '{}' have the same naa; guests may take them for one",
                    entry.name(),
                    other.name()
                );
            }
        }
        Ok(())
    }

    /// What was chosen, if it can be shown.
    fn checked(&self, entry: &Entry, record: &IdentityRecord) -> Result<Identity, NodeError> {
        let identity = shown(entry, record)?;
        self.check_name(entry, &identity)?;
        Ok(identity)
    }

    /// Whether no other disk has its name: two of one name would be taken for two paths to one disk.
    fn check_name(&self, entry: &Entry, identity: &Identity) -> Result<(), NodeError> {
        let Some(other) = self.namesake(entry, identity) else { return Ok(()) };
        let detail = format!("bdev '{}' has this naa; give each disk one of its own", other.name());
        Err(NodeError::new(Reason::Invalid, detail))
    }

    /// Whether bdevs that were just made may have the names that they have by default.
    pub(super) fn check_names(&self, made: &[Arc<Entry>]) -> Result<(), NodeError> {
        made.iter().try_for_each(|entry| {
            let hint = |error: NodeError| NodeError {
                detail: format!("bdev '{}', by its UUID: {}, or this one another UUID", entry.name(), error.detail),
                ..error
            };
            self.check_name(entry, &self.identity(entry)).map_err(hint)
        })
    }

    fn namesake(&self, entry: &Entry, identity: &Identity) -> Option<Arc<Entry>> {
        let same = |other: &Arc<Entry>| other.uuid() != entry.uuid() && self.identity(other).naa == identity.naa;
        self.bdevs.list().into_iter().find(same)
    }

    /// What a bdev's unit shows of itself.
    pub(super) fn identity(&self, entry: &Entry) -> Identity {
        self.identities().get(&entry.uuid()).cloned().unwrap_or_else(|| default_of(entry))
    }

    /// Forgets what was chosen for bdevs that are gone.
    pub(super) fn forget_identities(&self, gone: &[Uuid]) {
        self.identities().retain(|uuid, _| !gone.contains(uuid));
    }

    fn identities(&self) -> MutexGuard<'_, HashMap<Uuid, Identity>> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown(entry: &Entry, record: &IdentityRecord) -> Result<Identity, NodeError> {
    let invalid = |error: pollux_scsi::IdentityError| NodeError::new(Reason::Invalid, error.to_string());
    default_of(entry).with(&record.chosen()).map_err(invalid)
}

fn default_of(entry: &Entry) -> Identity {
    Identity::from_uuid(entry.uuid(), PRODUCT)
}

/// A bdev as its unit knows it beside I/O. The unit may outlive it.
pub(super) struct Known(pub(super) Weak<Entry>);

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Known").field(&self.0.upgrade().map(|entry| entry.uuid())).finish()
    }
}

impl Medium for Known {
    fn transfers(&self) -> Transfers {
        let Some(entry) = self.0.upgrade() else { return Transfers::default() };
        let sums = entry.stats().snapshot();
        let share = |op| {
            let of = sums.op(op);
            Share { requests: of.ops, bytes: of.bytes, time_ns: of.latency.sum_ns }
        };
        Transfers { read: share(Op::Read), written: share(Op::Write) }
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        let device = self.0.upgrade().and_then(|entry| entry.device());
        device.map_or(Extent::mapped(len), |device| device.extent(offset, len))
    }

    fn extent_waits(&self) -> bool {
        let device = self.0.upgrade().and_then(|entry| entry.device());
        device.is_some_and(|device| device.extent_waits())
    }

    fn provisioning(&self) -> Option<Provisioning> {
        self.0.upgrade().and_then(|entry| entry.device())?.provisioning()
    }

    fn lane(&self) -> Option<Lane> {
        self.0.upgrade().and_then(|entry| entry.device())?.lane()
    }

    fn erasure(&self) -> Erasure {
        let device = self.0.upgrade().and_then(|entry| entry.device());
        device.map_or(Erasure::Plain, |device| device.erasure())
    }

    fn copy_range(&self, offset: u64, len: u64) -> Option<CopyRange> {
        let device = self.0.upgrade().and_then(|entry| entry.device())?;
        device.copy_range(offset, len)
    }
}
