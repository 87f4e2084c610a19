//! A logical unit: the state that belongs to a disk and not to a cable. One per disk, shared by all controllers that
//! export it and by the reactors that serve them.
//!
//! What a plain command needs is in one atomic word ([`AtomicGeometry`]); the rest is cold and behind a mutex that is
//! held for a few instructions. Whatever changes cold state republishes the word before it raises attentions, so an
//! initiator that has been told of a change sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pollux_core::{IoError, Op, Shape};
use uuid::Uuid;

use crate::geometry::{AtomicGeometry, Flags, Geometry};
use crate::modes::Modes;
use crate::nexus::each_alive;
use crate::{Attention, Identity, Nexus, Path, Sense, io_sense};

/// A disk as initiators see it.
#[derive(Debug)]
pub struct LogicalUnit {
    identity: Identity,
    geometry: AtomicGeometry,
    cold: Mutex<Cold>,
}

#[derive(Debug)]
struct Cold {
    /// What the device is like; `None` while it is missing.
    shape: Option<Shape>,
    /// What it was like when it was last there, for what can be asked while it is missing.
    last_shape: Option<Shape>,
    modes: Modes,
    paths: Vec<Weak<Path>>,
}

impl LogicalUnit {
    /// A unit on a device like this; without a shape the device is missing, and the unit is not ready.
    #[must_use]
    pub fn new(identity: Identity, shape: Option<Shape>) -> Arc<LogicalUnit> {
        let modes = Modes::new(shape.is_some_and(|shape| shape.volatile_cache));
        let cold = Cold { shape, last_shape: shape, modes, paths: Vec::new() };
        let geometry = AtomicGeometry::new(cold.geometry());
        Arc::new(LogicalUnit { identity, geometry, cold: Mutex::new(cold) })
    }

    /// What the unit says about itself.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The disk's UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.identity.uuid
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
        self.lock().paths.push(Arc::downgrade(&path));
        path
    }

    /// Ends a path: it is told of nothing any more.
    pub fn detach(&self, path: &Path) {
        path.forget();
        self.lock().paths.retain(|other| !std::ptr::eq(other.as_ptr(), path));
    }

    /// LOGICAL UNIT RESET as far as it concerns the unit (SAM-5, clause 6.3.3): mode pages return to their defaults, and
    /// every path, the asking one too, is told 29h/03h. `by` is the asking path; `None` means that the unit was switched
    /// off and on by its operator: 29h/00h.
    ///
    /// A cache that an initiator has switched off (WCE=0) stays off. The standard lets it return to the saved value, but
    /// an initiator that has switched it off sends no flushes, and somebody else's reset must not cost it its data.
    pub fn reset(&self, by: Option<&Path>) {
        let mut cold = self.lock();
        cold.modes.reset();
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

    /// The relative identifiers of the target ports through which a path's initiator reaches the unit, in ascending order.
    pub(crate) fn ports_of(&self, path: &Path) -> Vec<u16> {
        let mut ports = Vec::new();
        each_alive(&mut self.lock().paths, |other| {
            if other.nexus().initiator() == path.nexus().initiator() {
                ports.push(other.nexus().relative_port());
            }
        });
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// What the device is like, or was when it was last there.
    pub(crate) fn last_shape(&self) -> Option<Shape> {
        self.lock().last_shape
    }

    pub(crate) fn with_modes<T>(&self, look: impl FnOnce(&Modes) -> T) -> T {
        look(&self.lock().modes)
    }

    /// Changes mode pages, all of it or nothing, and tells the other initiators if anything is different now. One
    /// initiator on several paths knows what it has changed: its other paths are not told.
    pub(crate) fn change_modes(
        &self,
        by: &Path,
        change: impl FnOnce(&mut Modes) -> Result<(), Sense>,
    ) -> Result<(), Sense> {
        let mut cold = self.lock();
        let mut modes = cold.modes.clone();
        change(&mut modes)?;
        if modes != cold.modes {
            cold.modes = modes;
            self.publish(&cold);
            let initiator = by.nexus().initiator();
            each_alive(&mut cold.paths, |path| {
                if path.nexus().initiator() != initiator {
                    path.raise(Attention::ModeChanged);
                }
            });
        }
        Ok(())
    }

    fn publish(&self, cold: &Cold) {
        self.geometry.store(cold.geometry());
    }

    fn lock(&self) -> MutexGuard<'_, Cold> {
        self.cold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cold {
    fn geometry(&self) -> Geometry {
        let flags = self.modes.flags();
        self.shape.map_or(Geometry::missing(flags), |shape| Geometry::of(&shape, flags))
    }

    fn raise(&mut self, attention: Attention, except: Option<&Path>) {
        each_alive(&mut self.paths, |path| {
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
        unit.change_modes(&paths[0], |modes| {
            modes.set_volatile_cache(false);
            Ok(())
        })
        .unwrap();
        assert_eq!(paths.each_ref().map(|path| drained(path).len()), [0, 1]);
        assert_eq!(drained(&second), []);
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
