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
    /// If not empty: hidden from new requests, and who waits until `inflight` is 0.
    pub(crate) removing: Vec<Reply<()>>,
}

/// The LUNs of one target, in order.
#[derive(Default)]
pub(crate) struct TargetLuns(Vec<(u16, u32)>);

impl TargetLuns {
    /// The number of the first LUN. A target that `Luns::target` gave has one.
    pub(crate) fn first(&self) -> u32 {
        self.0[0].1
    }

    /// The number of a LUN.
    pub(crate) fn get(&self, lun: u16) -> Option<u32> {
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
    /// A controller's id is never used again; its place in the list of tables is.
    controller: ControllerId,
    targets: Box<[TargetLuns]>,
}

/// All LUNs that a worker knows.
#[derive(Default)]
pub(crate) struct Luns {
    tables: Vec<Option<Table>>,
    luns: Vec<Option<Lun>>,
    /// How many LUNs are hidden but still here.
    removing: u32,
    /// How many changes there were.
    changes: u64,
}

impl Luns {
    /// The LUNs of a target; `None` if it has none (then there is no such target).
    pub(crate) fn target(&self, controller: ControllerId, target: u8) -> Option<&TargetLuns> {
        let table = self.tables.get(controller.place())?.as_ref().filter(|table| table.controller == controller)?;
        let luns = &table.targets[usize::from(target)];
        if luns.0.is_empty() { None } else { Some(luns) }
    }

    /// Changes whenever a LUN field may lead elsewhere; never 0 once there is a LUN.
    #[inline]
    pub(crate) const fn epoch(&self) -> u64 {
        self.changes
    }

    /// The numbers of a controller's LUNs, those that are hidden excepted.
    pub(crate) fn of(&self, controller: ControllerId) -> impl Iterator<Item = u32> {
        let table = self.tables.get(controller.place()).and_then(Option::as_ref);
        let targets = table.filter(|table| table.controller == controller).map(|table| table.targets.iter());
        targets.into_iter().flatten().flat_map(|target| target.0.iter().map(|&(_, index)| index))
    }

    /// The numbers of the LUNs that an initiator has, through whatever controller, those that are hidden excepted.
    pub(crate) fn of_initiator(&self, initiator: u64) -> impl Iterator<Item = u32> {
        let own = move |lun: &Lun| lun.removing.is_empty() && lun.path.nexus().initiator() == initiator;
        (0..).zip(&self.luns).filter(move |(_, lun)| lun.as_ref().is_some_and(own)).map(|(index, _)| index)
    }

    /// The number of a LUN.
    pub(crate) fn find(&self, controller: ControllerId, target: u8, lun: u16) -> Option<u32> {
        self.target(controller, target)?.get(lun)
    }

    /// The LUN of a number that `find` gave and whose requests are in flight or that has just been found.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> &Lun {
        self.luns[index as usize].as_ref().expect("a LUN stays while its requests are in flight")
    }

    /// The LUNs that the target of this one has, for REPORT LUNS; none once that has no LUNs any more.
    pub(crate) fn inventory(&self, index: u32) -> &TargetLuns {
        const NONE: &TargetLuns = &TargetLuns(Vec::new());
        let lun = self.get(index);
        self.target(lun.controller, lun.target).unwrap_or(NONE)
    }

    /// As `get`.
    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> &mut Lun {
        self.luns[index as usize].as_mut().expect("a LUN stays while its requests are in flight")
    }

    /// Puts a LUN in. False if there is one already, or LUNs of an earlier controller are still in its place.
    pub(crate) fn add(&mut self, lun: Lun) -> bool {
        let at = lun.controller.place();
        if self.tables.len() <= at {
            self.tables.resize_with(at + 1, || None);
        }
        let table = self.tables[at].get_or_insert_with(|| Table {
            controller: lun.controller,
            targets: std::iter::repeat_with(TargetLuns::default).take(256).collect(),
        });
        if table.controller != lun.controller {
            return false;
        }
        let free = self.luns.iter().position(Option::is_none).unwrap_or(self.luns.len());
        self.changes += 1;
        let luns = &mut table.targets[usize::from(lun.target)].0;
        let place = luns.binary_search_by_key(&lun.lun, |&(lun, _)| lun);
        let Err(place) = place else { return false };
        luns.insert(place, (lun.lun, free as u32));
        if free == self.luns.len() {
            self.luns.push(Some(lun));
        } else {
            self.luns[free] = Some(lun);
        }
        true
    }

    /// Hides a LUN from new requests; `collect_removed` takes it out when nothing of it is in flight.
    pub(crate) fn remove(&mut self, controller: ControllerId, target: u8, lun: u16, reply: Reply<()>) {
        let Some(index) = self.find(controller, target, lun) else {
            let key = (controller, target, lun);
            let hidden = self.luns.iter_mut().flatten().find(|l| (l.controller, l.target, l.lun) == key);
            match hidden {
                Some(hidden) => hidden.removing.push(reply),
                None => reply.send(()),
            }
            return;
        };
        self.changes += 1;
        let table = self.tables[controller.place()].as_mut().expect("the LUN was found in it");
        table.targets[usize::from(target)].0.retain(|&(at, _)| at != lun);
        if table.targets.iter().all(|target| target.0.is_empty()) {
            self.tables[controller.place()] = None;
        }
        self.get_mut(index).removing.push(reply);
        self.removing += 1;
    }

    /// The controllers of which something of the unit is in flight.
    pub(crate) fn busy_with(&self, unit: UnitId) -> Vec<ControllerId> {
        let busy = self.luns.iter().flatten().filter(|lun| lun.unit == unit && lun.inflight > 0);
        busy.map(|lun| lun.controller).collect()
    }

    /// Whether any LUN, hidden or not, leads to the unit.
    pub(crate) fn lead_to(&self, unit: UnitId) -> bool {
        self.luns.iter().flatten().any(|lun| lun.unit == unit)
    }

    /// Takes out what is hidden and has nothing in flight. Returns whether something is still draining.
    pub(crate) fn collect_removed(&mut self) -> bool {
        if self.removing == 0 {
            return false;
        }
        for slot in &mut self.luns {
            let Some(lun) = slot.as_mut().filter(|lun| !lun.removing.is_empty()) else { continue };
            if lun.inflight > 0 {
                continue;
            }
            self.removing -= 1;
            for reply in slot.take().into_iter().flat_map(|lun| lun.removing) {
                reply.send(());
            }
        }
        self.removing > 0
    }
}
