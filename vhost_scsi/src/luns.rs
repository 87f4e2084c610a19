//! The LUN tables of one worker: which unit a controller's target and LUN lead to. A LUN is taken out only when none of
//! its requests is in flight, so a request holds its place in the table by its number.

use std::sync::Arc;

use pollux_scsi::{Inventory, Path};

use crate::LunStats;
use crate::message::{ControllerId, Reply, UnitId};

/// One way to a unit.
pub(crate) struct Lun {
    pub(crate) controller: ControllerId,
    pub(crate) target: u8,
    pub(crate) lun: u16,
    pub(crate) unit: UnitId,
    pub(crate) path: Arc<Path>,
    pub(crate) stats: Arc<LunStats>,
    pub(crate) inflight: u32,
    /// Hidden from new requests; answered when `inflight` is 0.
    pub(crate) removing: Option<Reply<()>>,
}

/// The LUNs of one target, in order.
#[derive(Default)]
pub(crate) struct TargetLuns(Vec<(u16, u32)>);

impl TargetLuns {
    /// The number of the first LUN. A target that `Luns::target` gave has one.
    pub(crate) fn first(&self) -> u32 {
        self.0[0].1
    }

    fn get(&self, lun: u16) -> Option<u32> {
        // Nearly every target has one LUN.
        match self.0.first() {
            Some(&(first, index)) if first == lun => Some(index),
            _ => self.0.binary_search_by_key(&lun, |&(lun, _)| lun).ok().map(|at| self.0[at].1),
        }
    }
}

impl Inventory for TargetLuns {
    fn luns(&self, visit: &mut dyn FnMut(u16)) {
        for &(lun, _) in &self.0 {
            visit(lun);
        }
    }

    fn well_known(&self) -> bool {
        true
    }
}

struct Table {
    targets: Box<[TargetLuns]>,
}

/// All LUNs that a worker knows.
#[derive(Default)]
pub(crate) struct Luns {
    tables: Vec<Option<Table>>,
    luns: Vec<Option<Lun>>,
}

impl Luns {
    /// The LUNs of a target; `None` if it has none (then there is no such target).
    pub(crate) fn target(&self, controller: ControllerId, target: u8) -> Option<&TargetLuns> {
        let table = self.tables.get(controller as usize)?.as_ref()?;
        let luns = &table.targets[usize::from(target)];
        if luns.0.is_empty() { None } else { Some(luns) }
    }

    /// The number of a LUN.
    pub(crate) fn find(&self, controller: ControllerId, target: u8, lun: u16) -> Option<u32> {
        self.target(controller, target)?.get(lun)
    }

    /// The LUN of a number that `find` gave and whose requests are in flight or that has just been found.
    pub(crate) fn get(&self, index: u32) -> &Lun {
        self.luns[index as usize].as_ref().expect("a LUN stays while its requests are in flight")
    }

    /// As `get`.
    pub(crate) fn get_mut(&mut self, index: u32) -> &mut Lun {
        self.luns[index as usize].as_mut().expect("a LUN stays while its requests are in flight")
    }

    /// Puts a LUN in.
    pub(crate) fn add(&mut self, lun: Lun) {
        let at = lun.controller as usize;
        if self.tables.len() <= at {
            self.tables.resize_with(at + 1, || None);
        }
        let table = self.tables[at]
            .get_or_insert_with(|| Table { targets: std::iter::repeat_with(TargetLuns::default).take(256).collect() });
        let free = self.luns.iter().position(Option::is_none).unwrap_or(self.luns.len());
        let luns = &mut table.targets[usize::from(lun.target)].0;
        let place = luns.binary_search_by_key(&lun.lun, |&(lun, _)| lun);
        let place = place.expect_err("the control plane adds a LUN only where there is none");
        luns.insert(place, (lun.lun, free as u32));
        if free == self.luns.len() {
            self.luns.push(Some(lun));
        } else {
            self.luns[free] = Some(lun);
        }
    }

    /// Hides a LUN from new requests; `collect_removed` takes it out when nothing of it is in flight.
    pub(crate) fn remove(&mut self, controller: ControllerId, target: u8, lun: u16, reply: Reply<()>) {
        let Some(index) = self.find(controller, target, lun) else {
            reply.send(());
            return;
        };
        let table = self.tables[controller as usize].as_mut().expect("the LUN was found in it");
        table.targets[usize::from(target)].0.retain(|&(at, _)| at != lun);
        if table.targets.iter().all(|target| target.0.is_empty()) {
            self.tables[controller as usize] = None;
        }
        self.get_mut(index).removing = Some(reply);
    }

    /// Takes out what is hidden and has nothing in flight. Returns whether something is still draining.
    pub(crate) fn collect_removed(&mut self) -> bool {
        let mut draining = false;
        for slot in &mut self.luns {
            let Some(lun) = slot.as_mut().filter(|lun| lun.removing.is_some()) else { continue };
            if lun.inflight > 0 {
                draining = true;
                continue;
            }
            if let Some(reply) = slot.take().and_then(|lun| lun.removing) {
                reply.send(());
            }
        }
        draining
    }
}
