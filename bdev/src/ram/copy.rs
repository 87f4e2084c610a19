//! Copies from one `ram` disk to another, or inside one, without a channel.
//!
//! What is zeroes in the source becomes pages without memory in the target, so a copy takes no more memory than its source.
//! Reactors may read and write the same bytes meanwhile: two that write one byte at once get what two writers of a real
//! disk get.

use std::any::Any;
use std::sync::atomic::Ordering;

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{CopyEnd, CopyError, IoError};

use super::Medium;
use crate::memory::PAGE;

/// Bytes copied in one step: about a millisecond.
const STEP: u64 = 4 << 20;

impl CopyEnd for Medium {
    fn step(&self) -> u64 {
        STEP
    }

    fn grain(&self) -> u64 {
        1
    }

    fn copy_from(&self, to: u64, source: &dyn CopyEnd, from: u64, len: u64) -> Result<(), CopyError> {
        let Some(source) = (source as &dyn Any).downcast_ref::<Medium>() else { return Err(CopyError::Apart) };
        if std::ptr::eq(self, source) && from < to.saturating_add(len) && to < from.saturating_add(len) {
            return Err(CopyError::Apart);
        }
        let inside =
            |medium: &Medium, at: u64| at.checked_add(len).is_some_and(|end| end <= medium.memory.len() as u64);
        if !inside(source, from) {
            return Err(CopyError::Source(IoError::OutOfRange));
        }
        if !inside(self, to) {
            return Err(CopyError::Target(IoError::OutOfRange));
        }
        self.take(source, from as usize, to as usize, len as usize);
        self.untended.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Medium {
    /// Page by page of the target. Both ranges lie inside.
    fn take(&self, source: &Medium, from: usize, to: usize, len: usize) {
        let mut page = [0; PAGE];
        // How many bytes before the present one are zeroes that are not in the target yet.
        let (mut done, mut zeroes) = (0, 0);
        while done < len {
            let part = (PAGE - (to + done) % PAGE).min(len - done);
            let bytes = &mut page[..part];
            copy_from(&[source.memory.segment(from + done, part)], 0, bytes);
            if bytes.iter().all(|&byte| byte == 0) {
                zeroes += part;
            } else {
                self.zero(to + done - zeroes, zeroes);
                zeroes = 0;
                copy_to(&[self.memory.segment(to + done, part)], 0, bytes);
                self.written.stored(to + done, part);
            }
            done += part;
        }
        self.zero(to + done - zeroes, zeroes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::testing::{Rig, pattern, ram};
    use pollux_core::{Bdev, IoFlags, PairCopy};

    fn copy(source: &dyn Bdev, from: u64, target: &dyn Bdev, to: u64, len: u64) -> (u64, Result<(), CopyError>) {
        let range = |device: &dyn Bdev, at| device.copy_range(at, len).expect("a ram disk copies");
        PairCopy::new(range(source, from), range(target, to)).run(0, len, &AtomicBool::new(false), &mut || 0)
    }

    #[test]
    fn all_bytes_arrive_wherever_they_begin() {
        let (one, other) = (ram(512, 4096), ram(512, 4096));
        let data = pattern(1, 300 * 512);
        Rig::new(&*one).write(7 * 512, &data, IoFlags::empty()).unwrap();
        let mut rig = Rig::new(&*other);
        rig.write(0, &[9; 1 << 20], IoFlags::empty()).unwrap();
        assert_eq!(copy(&*one, 512, &*other, 11 * 512, 400 * 512), (400 * 512, Ok(())));
        let want = [&[9; 11 * 512][..], &[0; 6 * 512], &data, &[0; 94 * 512], &[9; 512]].concat();
        assert!(rig.read(0, want.len()).unwrap() == want);
        // Inside one disk, as long as the ranges are apart.
        assert_eq!(copy(&*other, 17 * 512, &*other, 1024 * 512, 300 * 512), (300 * 512, Ok(())));
        assert!(rig.read(1024 * 512, data.len()).unwrap() == data);
        assert_eq!(copy(&*other, 0, &*other, 512, 1024), (0, Err(CopyError::Apart)));
        assert_eq!(copy(&*other, 512, &*other, 0, 1024), (0, Err(CopyError::Apart)));
        assert_eq!(copy(&*other, 1024, &*other, 0, 1024), (1024, Ok(())));
    }

    #[test]
    fn zeroes_take_no_memory() {
        let (one, other) = (ram(4096, 4096), ram(4096, 4096));
        Rig::new(&*one).write(1 << 20, &[1; 4096], IoFlags::empty()).unwrap();
        Rig::new(&*other).write(0, &[2; 1 << 16], IoFlags::empty()).unwrap();
        assert_eq!(copy(&*one, 0, &*other, 0, 16 << 20), (16 << 20, Ok(())));
        let mapped = other.extent(0, 1 << 17);
        assert!(!mapped.mapped && mapped.len == 1 << 17, "{mapped:?}");
        assert_eq!(
            Rig::new(&*other).read((1 << 20) - 4096, 12288).unwrap(),
            [[0; 4096], [1; 4096], [0; 4096]].concat()
        );
    }

    #[test]
    fn ends_that_are_too_short_are_told_apart() {
        let (small, large) = (ram(512, 8), ram(512, 64));
        assert_eq!(copy(&*small, 0, &*large, 0, 8192), (0, Err(CopyError::Source(IoError::OutOfRange))));
        assert_eq!(copy(&*large, 0, &*small, 0, 8192), (0, Err(CopyError::Target(IoError::OutOfRange))));
    }
}
