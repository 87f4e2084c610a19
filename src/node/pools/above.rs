//! Who stands on a bdev, and on what it stands, over any storey: what is asked before it is changed, and who is told afterwards.
//!
//! On a bdev stand others that specs have made, volumes whose origin it is, a pool, and on these others again. What reads it
//! through one of them reads it as much as what stands on it at once. So nobody asks one bdev alone who has it.

use std::sync::Arc;

use pollux_bdev::{Claim, Entry, Kind as BdevKind};
use pollux_scsi::Attention;

use super::OpenPool;
use super::volumes::volume_info;
use crate::node::{Changes, Node, NodeError, Reason};

/// The claim of a pool that is on a bdev, or of a copy onto it: they have it open by themselves.
pub(super) fn counts_on(entry: &Entry) -> Option<Claim> {
    entry.claim().filter(|claim| matches!(claim.kind, BdevKind::Pool | BdevKind::Lvol))
}

/// Who has a claim, and what to do about it.
pub(in crate::node) fn who(claim: &Claim) -> String {
    let by = claim.by.join(", ");
    match claim.kind {
        BdevKind::Clone => format!("'{by}', which stands on it; inflate or delete that first"),
        BdevKind::Pool => format!("pool '{by}', which is on it; delete that first"),
        BdevKind::Lvol => format!("{by}; wait for that, or cancel it (job_get_jobs)"),
        _ => format!("'{by}', which stands on it; delete that first"),
    }
}

impl Node {
    /// A bdev and all that stands on it, but for pools; each once.
    pub(super) fn above(&self, entry: &Arc<Entry>) -> Vec<Arc<Entry>> {
        let mut all = vec![entry.clone()];
        let mut at = 0;
        while let Some(entry) = all.get(at) {
            at += 1;
            let claim = entry.claim().filter(|claim| claim.kind != BdevKind::Pool);
            let by = claim.map_or_else(Vec::new, |claim| claim.by);
            for next in by.iter().filter_map(|name| self.bdevs.get(name)) {
                if !all.iter().any(|known| known.uuid() == next.uuid()) {
                    all.push(next);
                }
            }
        }
        all
    }

    /// A bdev and all that it stands on; each once.
    pub(super) fn below(&self, entry: &Arc<Entry>) -> Vec<Arc<Entry>> {
        let mut all: Vec<Arc<Entry>> = Vec::new();
        let mut left = vec![entry.clone()];
        while let Some(entry) = left.pop() {
            if all.iter().any(|known| known.uuid() == entry.uuid()) {
                continue;
            }
            left.extend(self.base_name(&entry).and_then(|base| self.bdevs.get(&base)));
            if let Some(open) = self.pool_of(&entry).filter(|_| entry.kind() == BdevKind::Lvol) {
                left.push(open.base().clone());
                let origin = volume_info(&open.last_info(), entry.uuid()).ok().and_then(|volume| volume.origin);
                left.extend(origin.and_then(|origin| self.bdevs.get(&origin.uuid.to_string())));
            }
            all.push(entry);
        }
        all
    }

    /// Refuses to change what a volume holds if that is what others count on: volumes whose origin it is, or a pool, or a copy
    /// that is being made onto it.
    pub(super) fn refuse_counted_on(&self, entry: &Arc<Entry>) -> Result<(), NodeError> {
        let counts = |claim: &Claim| matches!(claim.kind, BdevKind::Clone | BdevKind::Pool | BdevKind::Lvol);
        let claims = self.above(entry).into_iter().filter_map(|above| Some((above.claim().filter(counts)?, above)));
        let Some((claim, on)) = claims.into_iter().next() else { return Ok(()) };
        let name = shown(entry);
        let through = if on.uuid() == entry.uuid() { String::new() } else { format!(" through bdev '{}'", on.name()) };
        let why = format!("what '{name}' holds does not change while it is in use{through} by {}", who(&claim));
        Err(NodeError::new(Reason::InUse, why))
    }

    /// Refuses if a VM is connected to a controller that exports one of these.
    pub(super) fn refuse_connected(
        &self,
        changes: &Changes,
        above: &[Arc<Entry>],
        name: &str,
    ) -> Result<(), NodeError> {
        let controllers = self.target.controllers();
        let exports = |ctrlr: &str| {
            above.iter().any(|entry| changes.document.attachments(entry.name()).any(|(at, _)| at == ctrlr))
        };
        let Some(live) = controllers.iter().find(|live| !live.sessions.is_empty() && exports(&live.name)) else {
            return Ok(());
        };
        let why = format!(
            "a VM is connected to controller '{}', which exports '{name}': stop it first, or say force",
            live.name
        );
        Err(NodeError::new(Reason::InUse, why))
    }

    /// A volume stands on another bdev than before: whoever uses it, over any storey, gets there.
    pub(super) fn stands_on_another(&self, open: &OpenPool, entry: &Arc<Entry>) {
        self.stands_on_less(open, entry.uuid());
        self.above(entry).iter().for_each(|above| self.bring_back(above));
    }

    /// Every initiator of a bdev, and of what stands on it, learns that nothing that it knows of the data is true.
    pub(super) fn tell_other_medium(&self, entry: &Arc<Entry>) {
        for above in self.above(entry) {
            let Some(unit) = self.units().get(&above.uuid()).cloned() else { continue };
            for attention in [Attention::MediumChanged, Attention::CapacityChanged] {
                unit.raise(attention, None);
                let sense = attention.sense();
                self.target.unit_changed(&unit, sense.asc, sense.ascq);
            }
        }
    }
}

/// What people call a bdev.
pub(super) fn shown(entry: &Entry) -> String {
    entry
        .aliases()
        .into_iter()
        .next()
        .filter(|_| entry.kind() == BdevKind::Lvol)
        .unwrap_or_else(|| entry.name().to_owned())
}
