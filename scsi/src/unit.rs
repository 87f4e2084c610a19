//! A logical unit: the state that belongs to a disk and not to a cable. One per disk, shared by all controllers that
//! export it and by the reactors that serve them.
//!
//! What a plain command needs is in one atomic word ([`AtomicGeometry`]); the rest is cold and behind a mutex that is
//! held for a few instructions. Whatever changes cold state republishes the word before it raises attentions, so an
//! initiator that has been told of a change sees it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use pollux_core::{IoError, Op, Shape};
use uuid::Uuid;

use crate::claims::Claims;
use crate::clock::Clock;
use crate::copy::Copies;
use crate::copy::tokens::Tokens;
use crate::geometry::{AtomicGeometry, Flags, Geometry};
use crate::identifying::Label;
use crate::keeper::{Keeper, Saved, Section, Sections};
use crate::medium::Statistics;
use crate::modes::{Modes, SavingModes};
use crate::nexus::each_alive;
use crate::reservations::unit::Held;
use crate::supply::Supply;
use crate::task_set::TaskSet;
use crate::through::Through;
use crate::wipe::{Blocked, Wiping};
use crate::{Attention, Identity, Key, Medium, Nexus, Outcome, Path, Sense, Transfers, code, io_sense};

/// A disk as initiators see it.
#[derive(Debug)]
pub struct LogicalUnit {
    /// Itself, for those who go on with a command on another thread.
    this: Weak<LogicalUnit>,
    /// Where what has to survive a restart is kept, if anything can be.
    keeper: Option<Arc<dyn Keeper>>,
    uuid: Uuid,
    identity: Mutex<Arc<Identity>>,
    geometry: AtomicGeometry,
    cold: Mutex<Cold>,
    /// When the next token expires.
    pub(crate) tokens_due_ns: AtomicU64,
    /// Set if its commands go to a device as they are. It has no shape then, so nothing goes the short way.
    pub(crate) through: OnceLock<Through>,
}

#[derive(Debug)]
pub(crate) struct Cold {
    /// What the device is like; `None` while it is missing.
    shape: Option<Shape>,
    /// What it was like when it was last there, for what can be asked while it is missing.
    last_shape: Option<Shape>,
    pub(crate) modes: Modes,
    pub(crate) saving_modes: SavingModes,
    pub(crate) label: Label,
    clock: Clock,
    /// Who knows the device, and what it does.
    statistics: Option<Statistics>,
    paths: Vec<Weak<Path>>,
    pub(crate) claims: Claims,
    pub(crate) tasks: TaskSet,
    pub(crate) held: Held,
    /// Nothing of what was kept of the unit can be read.
    pub(crate) lost: bool,
    /// Copies that were asked of the unit.
    pub(crate) copies: Copies,
    pub(crate) tokens: Tokens,
    pub(crate) wiping: Wiping,
    /// Whether initiators may SANITIZE.
    sanitizes: bool,
}

impl LogicalUnit {
    /// A unit on a device like this; without a shape the device is missing, and the unit is not ready. Nothing of it
    /// survives a restart.
    #[must_use]
    pub fn new(identity: Identity, shape: Option<Shape>) -> Arc<LogicalUnit> {
        let modes = Modes::new(has_cache(shape));
        let nothing = Label::restored(Some(&Sections::new()));
        LogicalUnit::make(identity, None, Cold::new(shape, modes, Held::default(), nothing, Wiping::default()))
    }

    /// The same with a keeper, and with what that has kept of the unit; `None`: something that cannot be read. Nobody may
    /// use the unit then before [`LogicalUnit::clear_reservations`].
    #[must_use]
    pub fn kept(
        identity: Identity,
        shape: Option<Shape>,
        keeper: Arc<dyn Keeper>,
        kept: Option<&Sections>,
    ) -> Arc<LogicalUnit> {
        let modes = Modes::restored(has_cache(shape), kept);
        let (held, label, wiping) = (Held::restored(kept), Label::restored(kept), Wiping::restored(kept));
        let cold = Cold { lost: kept.is_none(), ..Cold::new(shape, modes, held, label, wiping) };
        LogicalUnit::make(identity, Some(keeper), cold)
    }

    fn make(identity: Identity, keeper: Option<Arc<dyn Keeper>>, cold: Cold) -> Arc<LogicalUnit> {
        let cold = Cold { sanitizes: identity.allow_sanitize, ..cold };
        let geometry = AtomicGeometry::new(cold.geometry());
        let cold = Mutex::new(cold);
        let (uuid, identity) = (identity.uuid, Mutex::new(Arc::new(identity)));
        Arc::new_cyclic(|this| LogicalUnit {
            this: this.clone(),
            keeper,
            uuid,
            identity,
            geometry,
            cold,
            tokens_due_ns: AtomicU64::new(u64::MAX),
            through: OnceLock::new(),
        })
    }

    /// What of that which was kept cannot be read: `reservations`, `mode pages`, `identifying information`.
    #[must_use]
    pub fn unreadable(&self) -> Vec<&'static str> {
        let cold = self.lock();
        let parts = [
            ("reservations", cold.held.is_unreadable()),
            ("mode pages", cold.modes.is_unreadable()),
            ("identifying information", cold.label.is_unreadable()),
        ];
        parts.into_iter().filter(|(_, unreadable)| *unreadable).map(|(part, _)| part).collect()
    }

    /// A save has ended: what it was about counts now, or never.
    pub(crate) fn saved(&self, section: Section, ticket: u64, saved: bool) -> Saved {
        let counts = match section {
            Section::Reservations => self.reservations_saved(ticket, saved),
            Section::Modes => self.modes_saved(ticket, saved).then_some(None),
            Section::Identifying => self.identifying_saved(ticket, saved).then_some(None),
            Section::Wipe => return self.wipe_saved(ticket, saved),
        };
        let failed = Outcome::check(Sense::new(Key::HardwareError, code::INTERNAL_TARGET_FAILURE));
        let outcome = if counts.is_some() { Outcome::GOOD } else { failed };
        Saved { outcome, preempted: counts.flatten(), begun: None }
    }

    /// Itself; `None` while it ends.
    pub(crate) fn this(&self) -> Option<Arc<LogicalUnit>> {
        self.this.upgrade()
    }

    pub(crate) fn keeper(&self) -> Option<&Arc<dyn Keeper>> {
        self.keeper.as_ref()
    }

    /// What the unit says about itself.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        self.lock_identity().clone()
    }

    /// Has the unit say something else about itself; every initiator is told 3Fh/03h. It stays the same disk: the UUID is
    /// not changed. Returns whether anything is different now.
    pub fn set_identity(&self, identity: Identity) -> bool {
        let identity = Identity { uuid: self.uuid, ..identity };
        {
            let mut shown = self.lock_identity();
            if **shown == identity {
                return false;
            }
            *shown = Arc::new(identity);
            let mut cold = self.lock();
            cold.sanitizes = shown.allow_sanitize;
            self.publish(&cold);
        }
        self.raise(Attention::InquiryChanged, None);
        true
    }

    fn lock_identity(&self) -> MutexGuard<'_, Arc<Identity>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk's UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// What the device is like; `None` while it is missing.
    #[must_use]
    pub fn shape(&self) -> Option<Shape> {
        self.lock().shape
    }

    /// The device has changed, gone or come back. A new capacity is told as 2Ah/09h, a write protection that came or
    /// went as 2Ah/01h, a device that came back as 28h/00h: it may be another one.
    pub fn set_shape(&self, shape: Option<Shape>) {
        let mut cold = self.lock();
        let (was, last) = (cold.shape, cold.last_shape);
        cold.shape = shape;
        let same_blocks = last.is_some_and(|last| shape.is_some_and(|shape| shape.block_size == last.block_size));
        cold.tokens.revoke_from(shape.filter(|_| same_blocks).map_or(0, |shape| shape.bytes()));
        if let Some(shape) = shape {
            cold.last_shape = Some(shape);
            cold.modes.set_volatile_cache(shape.volatile_cache);
        }
        self.publish(&cold);
        let Some(shape) = shape else { return };
        if was.is_none() {
            cold.raise(Attention::MediumChanged, None);
        }
        if last.is_some_and(|last| (last.num_blocks, last.block_size) != (shape.num_blocks, shape.block_size)) {
            cold.raise(Attention::CapacityChanged, None);
        }
        if was.is_some_and(|was| was.read_only != shape.read_only) {
            cold.raise(Attention::ModeChanged, None);
        }
    }

    /// Makes the unit reachable for a nexus. The path starts with 29h/00h pending.
    #[must_use]
    pub fn attach(self: &Arc<Self>, nexus: Arc<Nexus>, lun: u16) -> Arc<Path> {
        let path = Path::new(nexus, lun);
        let mut cold = self.lock();
        cold.admit(&path);
        if cold.alive().any(|other| other.nexus().initiator() != path.nexus().initiator()) {
            // Nobody finds a unit stopped by somebody else.
            cold.start();
        }
        let multi_port = cold.is_multi_port();
        cold.paths.push(Arc::downgrade(&path));
        cold.tell_ports(multi_port);
        self.publish(&cold);
        drop(cold);
        path
    }

    /// Ends a path: it is told of nothing any more.
    pub fn detach(&self, path: &Path) {
        path.forget();
        let mut cold = self.lock();
        let multi_port = cold.is_multi_port();
        cold.paths.retain(|other| !std::ptr::eq(other.as_ptr(), path));
        if !cold.alive().any(|other| Arc::ptr_eq(other.nexus(), path.nexus())) {
            cold.tokens.forget_those_of(path.nexus());
        }
        cold.tell_ports(multi_port);
        cold.path_gone();
        self.publish(&cold);
    }

    /// LOGICAL UNIT RESET as far as it concerns the unit (SAM-5, clause 6.3.3): mode pages return to their saved
    /// values, what was reserved by RESERVE is released, and every path, the asking one too, is told 29h/03h. `by` is
    /// the asking path; `None` means that the unit was switched off and on by its operator: 29h/00h.
    ///
    /// Where nothing was saved, the saved values are the defaults, but a cache that an initiator has switched off
    /// (WCE=0) stays off: an initiator that has switched it off sends no flushes, and somebody else's reset must not
    /// cost it its data.
    pub fn reset(&self, by: Option<&Path>) {
        let mut cold = self.lock();
        cold.modes.reset();
        cold.start();
        cold.release_classic();
        cold.copies.end_all();
        cold.wiping.reset();
        self.publish(&cold);
        let attention = if by.is_some() { Attention::DeviceReset } else { Attention::PowerOn };
        cold.raise(attention, None);
    }

    /// Has every initiator told of something, except on one path.
    pub fn raise(&self, attention: Attention, except: Option<&Path>) {
        self.lock().raise(attention, except);
    }

    /// Whether acknowledged writes may sit in a volatile cache (WCE, and there is one).
    #[must_use]
    pub fn write_cache_enabled(&self) -> bool {
        self.geometry.load().has(Flags::WRITE_BACK)
    }

    /// Whether sense data is to be encoded in descriptor format (D_SENSE).
    #[must_use]
    pub fn descriptor_sense(&self) -> bool {
        self.geometry.load().has(Flags::D_SENSE)
    }

    /// The sense of a command whose operation on the device failed. See [`crate::io_outcome`] for `Busy`, which has a
    /// status of its own.
    #[must_use]
    pub fn io_error(&self, op: Op, error: IoError) -> Sense {
        io_sense(op, error)
    }

    #[inline]
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry.load()
    }

    /// The unit as a command finds it that has to know more than the word says: also what it is like while it is stopped,
    /// and whether it is.
    pub(crate) fn standing(&self) -> Standing {
        let geometry = self.geometry();
        if geometry.has(Flags::READY) {
            return Standing { geometry, stopped: false, blocked: None };
        }
        let cold = self.lock();
        // Whoever had stopped it may have been reset or gone since.
        self.publish(&cold);
        let stopped = cold.is_stopped() && cold.shape.is_some();
        Standing { geometry: cold.device_geometry(), stopped, blocked: cold.wiping.blocked() }
    }

    /// STOP by a path: not if another initiator uses the unit too.
    pub(crate) fn stop(&self, by: &Path) -> bool {
        let cold = self.lock();
        if cold.is_shared_with(by) {
            return false;
        }
        by.set_stopped(true);
        self.publish(&cold);
        true
    }

    /// START.
    pub(crate) fn start(&self) {
        let cold = self.lock();
        cold.start();
        self.publish(&cold);
    }

    /// Says who knows the device. Statistics begin now.
    pub fn set_medium(&self, medium: Arc<dyn Medium>) {
        let statistics = Statistics::new(medium);
        self.lock().statistics = Some(statistics);
    }

    pub(crate) fn medium(&self) -> Option<Arc<dyn Medium>> {
        self.lock().statistics.as_ref().map(|statistics| statistics.medium.clone())
    }

    /// What it takes to erase the device ([`Medium::erasure`]).
    pub(crate) fn erasure(&self) -> pollux_core::Erasure {
        self.medium().map_or(pollux_core::Erasure::Plain, |medium| medium.erasure())
    }

    /// What holds up a helper thread that waits for the device ([`Medium::lane`]), if somebody knows.
    #[must_use]
    pub fn lane(&self) -> Option<pollux_core::Lane> {
        self.medium()?.lane()
    }

    /// Its space, if it takes that from a pool.
    pub(crate) fn supply(&self) -> Option<Supply> {
        let block_size = self.last_shape()?.block_size;
        Some(Supply::of(self.medium()?.provisioning()?, block_size))
    }

    /// What the device has done since the last reset of the statistics, and for how long at least nothing, if somebody
    /// counts.
    pub(crate) fn statistics(&self) -> Option<(Transfers, Duration)> {
        self.lock().statistics.as_mut().map(Statistics::look)
    }

    /// Lets the statistics begin at zero again and tells the other paths.
    pub(crate) fn restart_statistics(&self, by: &Path) {
        let Some(medium) = self.medium() else { return };
        let statistics = Statistics::new(medium);
        let mut cold = self.lock();
        cold.statistics = Some(statistics);
        cold.raise(Attention::LogChanged, Some(by));
    }

    pub(crate) fn clock(&self) -> Clock {
        self.lock().clock
    }

    /// Sets the clock and tells the other paths.
    pub(crate) fn set_clock(&self, by: &Path, time_ms: u64, now: Instant) {
        let mut cold = self.lock();
        cold.clock.set(time_ms, now);
        cold.raise(Attention::TimestampChanged, Some(by));
    }

    /// Whether more than one target port leads to the unit, whoever uses them (MULTIP).
    pub(crate) fn is_multi_port(&self) -> bool {
        self.lock().is_multi_port()
    }

    /// The target ports through which a path's initiator reaches the unit: relative identifiers and names.
    pub(crate) fn ports_of(&self, path: &Path) -> BTreeMap<u16, String> {
        let mut ports = BTreeMap::new();
        each_alive(&mut self.lock().paths, |other| {
            let nexus = other.nexus();
            if nexus.initiator() == path.nexus().initiator() {
                ports.insert(nexus.relative_port(), nexus.target_port().to_owned());
            }
        });
        ports
    }

    /// What the device is like, or was when it was last there.
    pub(crate) fn last_shape(&self) -> Option<Shape> {
        self.lock().last_shape
    }

    pub(crate) fn publish(&self, cold: &Cold) {
        self.geometry.store(cold.geometry());
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Cold> {
        self.cold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`LogicalUnit::standing`] says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// What the device is like.
    pub(crate) geometry: Geometry,
    /// Whether there is a device, and an initiator has stopped the unit.
    pub(crate) stopped: bool,
    /// Whether the medium is kept from being used by FORMAT UNIT or SANITIZE.
    pub(crate) blocked: Option<Blocked>,
}

fn has_cache(shape: Option<Shape>) -> bool {
    shape.is_some_and(|shape| shape.volatile_cache)
}

impl Cold {
    fn new(shape: Option<Shape>, modes: Modes, held: Held, label: Label, wiping: Wiping) -> Cold {
        Cold {
            shape,
            last_shape: shape,
            modes,
            saving_modes: SavingModes::default(),
            label,
            clock: Clock::default(),
            statistics: None,
            paths: Vec::new(),
            claims: Claims::default(),
            tasks: TaskSet::default(),
            held,
            wiping,
            sanitizes: false,
            lost: false,
            copies: Copies::default(),
            tokens: Tokens::default(),
        }
    }

    /// Nothing of what was kept can be read, and the operator has given it up.
    pub(crate) fn give_up(&mut self) {
        if std::mem::take(&mut self.lost) {
            self.modes.forget();
            self.label.forget();
            self.raise(Attention::ModeChanged, None);
        }
    }

    /// What is published: a stopped unit is one that is not ready, and so is one whose medium must not be used.
    fn geometry(&self) -> Geometry {
        let rests = self.is_stopped() || self.wiping.blocked().is_some();
        let geometry = if rests { Geometry::missing(self.flags()) } else { self.device_geometry() };
        let watched = !self.claims.is_empty() || self.tokens.are_watching();
        let geometry = if watched { geometry.claimed() } else { geometry };
        if self.tasks.holds_up_all() { geometry.ordering() } else { geometry }
    }

    fn flags(&self) -> Flags {
        let mut flags = self.modes.flags();
        flags.set(Flags::SANITIZES, self.sanitizes);
        flags.set(Flags::WIPE_DUE, self.wiping.is_due());
        flags
    }

    pub(crate) fn last_shape(&self) -> Option<Shape> {
        self.last_shape
    }

    pub(crate) fn device_geometry(&self) -> Geometry {
        let flags = self.flags();
        self.shape.map_or(Geometry::missing(flags), |shape| Geometry::of(&shape, flags))
    }

    fn is_stopped(&self) -> bool {
        self.alive().any(|path| path.is_stopped())
    }

    /// Whether an initiator other than this path's uses the unit.
    pub(crate) fn is_shared_with(&self, path: &Path) -> bool {
        self.alive().any(|other| other.nexus().initiator() != path.nexus().initiator())
    }

    fn start(&self) {
        self.alive().for_each(|path| path.set_stopped(false));
    }

    fn is_multi_port(&self) -> bool {
        let mut ports = self.alive().map(|path| path.nexus().relative_port());
        ports.next().is_some_and(|first| ports.any(|port| port != first))
    }

    /// INQUIRY data has changed with the number of ports, unless it was so before. Who has not been told 29h/00h yet asks
    /// for it in any case.
    fn tell_ports(&mut self, was_multi_port: bool) {
        if self.is_multi_port() != was_multi_port {
            self.each_path(|path| {
                if !path.is_new() {
                    path.raise(Attention::InquiryChanged);
                }
            });
        }
    }

    fn alive(&self) -> impl Iterator<Item = Arc<Path>> {
        self.paths.iter().filter_map(Weak::upgrade)
    }

    /// Visits the paths that still exist.
    pub(crate) fn each_path(&mut self, visit: impl FnMut(&Path)) {
        each_alive(&mut self.paths, visit);
    }

    /// Has everybody told, except one path; of thresholds only if that is wanted.
    fn raise(&mut self, attention: Attention, except: Option<&Path>) {
        if attention == Attention::SoftThreshold && !self.modes.reports_thresholds() {
            return;
        }
        self.each_path(|path| {
            if !except.is_some_and(|except| std::ptr::eq(except, path)) {
                path.raise(attention);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{drained, shape, two_paths};

    #[test]
    fn a_new_capacity_is_told_to_everyone() {
        let (unit, paths) = two_paths(Some(shape()));
        unit.set_shape(Some(shape()));
        assert!(paths.iter().all(|path| drained(path).is_empty()), "nothing has changed");
        let larger = Shape { num_blocks: shape().num_blocks + 1, ..shape() };
        unit.set_shape(Some(larger));
        assert_eq!(unit.geometry().blocks(), larger.num_blocks);
        for path in &paths {
            assert_eq!(drained(path), [Attention::CapacityChanged]);
        }
    }

    #[test]
    fn a_device_that_comes_back_may_be_another() {
        let (unit, paths) = two_paths(Some(shape()));
        unit.set_shape(None);
        assert_eq!((unit.shape(), drained(&paths[0])), (None, vec![]));
        unit.set_shape(Some(Shape { num_blocks: 5, ..shape() }));
        assert_eq!(drained(&paths[0]), [Attention::MediumChanged, Attention::CapacityChanged]);
        let (unit, paths) = two_paths(None);
        unit.set_shape(Some(shape()));
        assert_eq!(drained(&paths[0]), [Attention::MediumChanged]);
    }

    #[test]
    fn write_protection_that_comes_is_told() {
        let (unit, paths) = two_paths(Some(shape()));
        unit.set_shape(Some(Shape { read_only: true, ..shape() }));
        assert_eq!(drained(&paths[1]), [Attention::ModeChanged]);
    }

    #[test]
    fn a_reset_is_told_to_all_paths() {
        let (unit, paths) = two_paths(Some(shape()));
        unit.raise(Attention::SoftThreshold, Some(&paths[0]));
        unit.reset(Some(&paths[0]));
        assert_eq!(drained(&paths[0]), [Attention::DeviceReset]);
        assert_eq!(drained(&paths[1]), [Attention::DeviceReset], "the threshold went with the reset");
        unit.reset(None);
        assert_eq!(drained(&paths[0]), [Attention::PowerOn]);
    }

    #[test]
    fn changed_modes_are_told_to_other_initiators_only() {
        let (unit, paths) = two_paths(Some(shape()));
        let second = unit.attach(Nexus::new(paths[0].nexus().initiator(), "c9".into(), 9, 0), 0);
        drained(&second);
        unit.change_modes(&paths[0], false, |modes| {
            modes.forget();
            modes.select(&[0x0A, 0x0A, 0x06, 0x10, 0, 0, 0, 0, 0, 0, 0, 0], 4, &[]).map(drop)
        })
        .unwrap();
        assert_eq!(paths.each_ref().map(|path| drained(path).len()), [0, 1]);
        assert_eq!(drained(&second), []);
    }

    #[test]
    fn a_new_identity_is_told_and_is_still_the_same_disk() {
        let (unit, paths) = two_paths(Some(shape()));
        let before = unit.identity();
        assert!(!unit.set_identity((*before).clone()), "nothing is different");
        assert_eq!(drained(&paths[0]), []);
        assert!(unit.set_identity(Identity { vendor: *b"OTHER   ", uuid: Uuid::nil(), ..(*before).clone() }));
        assert_eq!((unit.identity().vendor, unit.uuid()), (*b"OTHER   ", before.uuid));
        for path in &paths {
            assert_eq!(drained(path), [Attention::InquiryChanged]);
        }
    }

    #[test]
    fn a_detached_path_is_told_nothing() {
        let (unit, paths) = two_paths(Some(shape()));
        unit.detach(&paths[0]);
        unit.raise(Attention::InquiryChanged, None);
        paths[0].nexus().raise_luns_changed();
        assert_eq!(drained(&paths[0]), []);
        assert_eq!(drained(&paths[1]), [Attention::InquiryChanged]);
    }
}
