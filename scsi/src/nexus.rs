//! Who talks to a unit: a [`Nexus`] is an initiator at a target, a [`Path`] is a nexus at one logical unit (I_T_L).
//!
//! Each path has one word of pending unit attentions, which is all that a command looks at. What concerns the whole
//! nexus (the list of units has changed) is put into the words of all its paths and taken out of all of them at once,
//! under the nexus' lock, by whichever path reports it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{Attention, Preempted};

/// An initiator port at a target port's target.
#[derive(Debug)]
pub struct Nexus {
    initiator: u64,
    target_port: String,
    relative_port: u16,
    target: u8,
    /// How often it was lost.
    losses: AtomicU32,
    state: Mutex<NexusState>,
}

#[derive(Debug, Default)]
struct NexusState {
    paths: Vec<Weak<Path>>,
    luns_changed: bool,
}

impl Nexus {
    /// `initiator` is the initiator port's name (an NAA), `target_port` the controller's, `relative_port` the number that
    /// VPD page 83h gives for the controller (from 1), `target` the target's number on it.
    #[must_use]
    pub fn new(initiator: u64, target_port: String, relative_port: u16, target: u8) -> Arc<Nexus> {
        Arc::new(Nexus {
            initiator,
            target_port,
            relative_port,
            target,
            losses: AtomicU32::new(0),
            state: Mutex::default(),
        })
    }

    /// The initiator port's name.
    #[must_use]
    pub fn initiator(&self) -> u64 {
        self.initiator
    }

    /// The target port's name: the controller.
    #[must_use]
    pub fn target_port(&self) -> &str {
        &self.target_port
    }

    /// The relative target port identifier of the controller.
    #[must_use]
    pub fn relative_port(&self) -> u16 {
        self.relative_port
    }

    /// The target's number on the controller.
    #[must_use]
    pub fn target(&self) -> u8 {
        self.target
    }

    /// The target's list of units has changed: the first unit asked reports 3Fh/0Eh, unless REPORT LUNS comes first.
    pub fn raise_luns_changed(&self) {
        let mut state = self.lock();
        state.luns_changed = true;
        state.each_path(|path| path.add(Attention::LunsChanged));
    }

    /// The connection was lost and is back: 29h/07h on every path.
    pub fn lost(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
        self.lock().each_path(|path| path.add(Attention::NexusLoss));
    }

    /// The initiator has stopped all queues to the target, as a reset of its controller does. A unit that it has stopped
    /// is no longer stopped; nothing is told.
    pub fn restarted(&self) {
        self.lock().each_path(|path| path.set_stopped(false));
    }

    /// How often it was lost: what was reserved by RESERVE before that is released.
    pub(crate) fn losses(&self) -> u32 {
        self.losses.load(Ordering::Acquire)
    }

    /// Takes 3Fh/0Eh back from all paths; whether it was pending. Of several that ask at once, one gets `true`.
    pub(crate) fn take_luns_changed(&self) -> bool {
        self.take_luns_changed_from(None)
    }

    /// `asking` loses its bit in any case, also when it has left the nexus meanwhile.
    fn take_luns_changed_from(&self, asking: Option<&Path>) -> bool {
        let mut state = self.lock();
        if let Some(path) = asking {
            path.pending.fetch_and(!Attention::LunsChanged.bit(), Ordering::AcqRel);
        }
        if !state.luns_changed {
            return false;
        }
        state.luns_changed = false;
        state.each_path(|path| {
            path.pending.fetch_and(!Attention::LunsChanged.bit(), Ordering::AcqRel);
        });
        true
    }

    fn lock(&self) -> MutexGuard<'_, NexusState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NexusState {
    /// Visits the paths that still exist and forgets the others.
    fn each_path(&mut self, visit: impl FnMut(&Path)) {
        each_alive(&mut self.paths, visit);
    }
}

/// Visits what still exists of a list and drops the rest.
pub(crate) fn each_alive(paths: &mut Vec<Weak<Path>>, mut visit: impl FnMut(&Path)) {
    paths.retain(|path| path.upgrade().inspect(|path| visit(path)).is_some());
}

/// A nexus at one logical unit.
#[derive(Debug)]
pub struct Path {
    nexus: Arc<Nexus>,
    lun: u16,
    /// Pending unit attentions of the path and of its nexus, one bit each, and [`FENCED`].
    pending: AtomicU32,
    /// Whether this path has stopped the unit (START STOP UNIT).
    stopped: AtomicBool,
    /// What WRITE BUFFER has put into the path's echo buffer.
    echo: Mutex<Option<Box<[u8]>>>,
    /// The last [`Preempted`] that it belongs to.
    preempted: AtomicU64,
}

/// A reservation may keep the path from something. Beside the attentions, so that a plain command looks at one word.
const FENCED: u32 = 1 << 31;

impl Path {
    /// A path with 29h/00h pending, and 3Fh/0Eh if the nexus has it.
    pub(crate) fn new(nexus: Arc<Nexus>, lun: u16) -> Arc<Path> {
        let path = Arc::new(Path {
            nexus,
            lun,
            pending: AtomicU32::new(Attention::PowerOn.bit()),
            stopped: AtomicBool::new(false),
            echo: Mutex::default(),
            preempted: AtomicU64::new(0),
        });
        let mut state = path.nexus.lock();
        if state.luns_changed {
            path.add(Attention::LunsChanged);
        }
        state.paths.push(Arc::downgrade(&path));
        drop(state);
        path
    }

    /// The nexus.
    #[must_use]
    pub fn nexus(&self) -> &Arc<Nexus> {
        &self.nexus
    }

    /// The unit's number at the target.
    #[must_use]
    pub fn lun(&self) -> u16 {
        self.lun
    }

    /// Has the initiator told of something.
    pub fn raise(&self, attention: Attention) {
        match attention {
            Attention::LunsChanged => self.nexus.raise_luns_changed(),
            attention => self.add(attention),
        }
    }

    /// Whether anything is pending.
    #[inline]
    #[must_use]
    pub fn has_attention(&self) -> bool {
        self.pending.load(Ordering::Acquire) & !FENCED != 0
    }

    /// Whether the initiator has not been told yet that the unit is new to it.
    pub(crate) fn is_new(&self) -> bool {
        self.pending.load(Ordering::Acquire) & Attention::PowerOn.bit() != 0
    }

    /// Whether a command of the path has nothing to mind but the unit's geometry: nothing is pending, no reservation keeps
    /// it from anything.
    #[inline]
    pub(crate) fn is_clear(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.pending.load(Ordering::Acquire) & FENCED != 0
    }

    pub(crate) fn set_fenced(&self, fenced: bool) {
        if fenced {
            self.pending.fetch_or(FENCED, Ordering::AcqRel);
        } else {
            self.pending.fetch_and(!FENCED, Ordering::AcqRel);
        }
    }

    /// Whether its nexus was preempted by this PREEMPT AND ABORT, or by a later one.
    #[must_use]
    pub fn is_preempted(&self, by: Preempted) -> bool {
        self.preempted.load(Ordering::Acquire) >= by.0
    }

    pub(crate) fn preempt(&self, by: Preempted) {
        self.preempted.fetch_max(by.0, Ordering::AcqRel);
    }

    /// Takes the attention that is to be reported next.
    pub(crate) fn take(&self) -> Option<Attention> {
        loop {
            let attention = Attention::first(self.pending.load(Ordering::Acquire) & !FENCED)?;
            let taken = match attention {
                Attention::LunsChanged => self.nexus.take_luns_changed_from(Some(self)),
                other => self.pending.fetch_and(!other.bit(), Ordering::AcqRel) & other.bit() != 0,
            };
            if taken {
                return Some(attention);
            }
        }
    }

    /// Leaves the nexus: what concerns all its paths is not put into this one any more.
    pub(crate) fn forget(&self) {
        let mut state = self.nexus.lock();
        state.paths.retain(|path| !std::ptr::eq(path.as_ptr(), self));
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn set_stopped(&self, stopped: bool) {
        self.stopped.store(stopped, Ordering::Release);
    }

    /// Shows what is in the echo buffer, if anything is.
    pub(crate) fn echo<T>(&self, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.lock_echo().as_deref().map(look)
    }

    /// Puts something into the echo buffer.
    pub(crate) fn set_echo(&self, data: &[u8]) {
        *self.lock_echo() = Some(data.into());
    }

    fn lock_echo(&self) -> MutexGuard<'_, Option<Box<[u8]>>> {
        self.echo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, attention: Attention) {
        if attention.is_reset() {
            self.set_stopped(false);
            *self.lock_echo() = None;
        }
        let add = |pending: u32| Some(attention.added_to(pending & !FENCED) | pending & FENCED);
        // The closure always answers, so the update cannot fail.
        let _ = self.pending.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nexus() -> Arc<Nexus> {
        Nexus::new(0x5000_0000_0000_0001, "c".into(), 1, 0)
    }

    fn drained(path: &Path) -> Vec<Attention> {
        std::iter::from_fn(|| path.take()).collect()
    }

    #[test]
    fn a_new_path_reports_power_on_once() {
        let path = Path::new(nexus(), 0);
        assert!(path.has_attention());
        assert_eq!(drained(&path), [Attention::PowerOn]);
        assert!(!path.has_attention());
    }

    #[test]
    fn attentions_come_by_precedence_not_by_time() {
        let path = Path::new(nexus(), 0);
        drained(&path);
        path.raise(Attention::InquiryChanged);
        path.raise(Attention::CapacityChanged);
        path.raise(Attention::CapacityChanged);
        path.raise(Attention::LunsChanged);
        let want = [Attention::LunsChanged, Attention::CapacityChanged, Attention::InquiryChanged];
        assert_eq!(drained(&path), want);
    }

    #[test]
    fn changed_luns_are_told_once_per_nexus() {
        let (nexus, other) = (nexus(), nexus());
        let paths = [Path::new(nexus.clone(), 0), Path::new(nexus.clone(), 1), Path::new(other, 0)];
        paths.iter().for_each(|path| drop(drained(path)));
        nexus.raise_luns_changed();
        let late = Path::new(nexus.clone(), 2);
        assert_eq!(drained(&late), [Attention::PowerOn, Attention::LunsChanged]);
        assert!(paths.iter().all(|path| !path.has_attention()));
        nexus.lost();
        assert_eq!(drained(&paths[1]), [Attention::NexusLoss]);
        assert_eq!(drained(&paths[2]), []);
    }

    #[test]
    fn of_two_paths_that_saw_the_change_one_reports_it() {
        let nexus = nexus();
        let paths = [Path::new(nexus.clone(), 0), Path::new(nexus.clone(), 1)];
        nexus.raise_luns_changed();
        assert!(nexus.take_luns_changed_from(Some(&paths[0])));
        assert!(!nexus.take_luns_changed_from(Some(&paths[1])));
    }

    #[test]
    fn a_path_that_left_with_the_change_pending_is_done_with_it() {
        let nexus = nexus();
        let path = Path::new(nexus.clone(), 0);
        nexus.raise_luns_changed();
        path.forget();
        assert!(nexus.take_luns_changed());
        assert_eq!(drained(&path), [Attention::PowerOn]);
    }

    #[test]
    fn a_forgotten_path_is_not_told() {
        let nexus = nexus();
        let path = Path::new(nexus.clone(), 0);
        drained(&path);
        path.forget();
        nexus.raise_luns_changed();
        assert!(!path.has_attention());
    }
}
