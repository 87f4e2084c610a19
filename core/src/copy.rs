//! Copies that two devices do together, without the data passing through whoever wants the copy.
//!
//! [`Bdev::copy_range`](crate::Bdev::copy_range) says where a range really lies: every layer hands the question down
//! and shifts the offset, and one that must see all data that goes by says nothing. What comes out is an end
//! ([`CopyEnd`]): the medium that holds the bytes, or a volume that knows its clusters. The target's end is asked to copy
//! from the source's, which it recognizes by its type. What two ends cannot do together, whoever wants the copy
//! reads and writes through its channels.
//!
//! A copy is a write to the target and a read of the source: nothing keeps others from the ranges meanwhile but whoever
//! asks for it, and it is durable after the target's next flush. When it fails, the target holds anything in the range.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::IoError;

/// Why a copy was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// These two ends, or these ranges of theirs, cannot: read and write instead.
    #[error("the devices do not copy this by themselves")]
    Apart,
    /// The source could not be read.
    #[error("the source of a copy: {0}")]
    Source(IoError),
    /// The target could not be written.
    #[error("the target of a copy: {0}")]
    Target(IoError),
}

/// Which end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopySide {
    /// It is read.
    Source,
    /// It is written.
    Target,
}

/// What holds the bytes of a range, as an end of copies.
pub trait CopyEnd: Any + Send + Sync {
    /// Most bytes that are copied in one step, so that somebody who wants to end a copy does not wait for long.
    fn step(&self) -> u64;

    /// The unit of copies that this end has a part in, in bytes, a power of two: ranges begin and end at its multiples at
    /// both ends.
    fn grain(&self) -> u64;

    /// Copies `len` bytes from `from` of `source` to `to` here: a step at most, in whole grains of both. May wait: for
    /// helper threads only.
    ///
    /// # Errors
    /// [`CopyError`]; after [`CopyError::Apart`] the same range is read and written, whatever has been done of it already.
    fn copy_from(&self, to: u64, source: &dyn CopyEnd, from: u64, len: u64) -> Result<(), CopyError>;
}

/// Who wants to know what is copied past it.
pub trait CopyWatch: Send + Sync {
    /// So many bytes were copied in so many nanoseconds, or could not be.
    fn copied(&self, side: CopySide, bytes: u64, ns: u64, result: Result<(), IoError>);
}

/// Where a range of a device lies for copies.
#[derive(Clone)]
pub struct CopyRange {
    end: Arc<dyn CopyEnd>,
    offset: u64,
    watches: Vec<Arc<dyn CopyWatch>>,
}

impl CopyRange {
    /// The range that begins at `offset` of `end`.
    pub fn new(end: Arc<dyn CopyEnd>, offset: u64) -> CopyRange {
        CopyRange { end, offset, watches: Vec::new() }
    }

    /// As it is for a layer that wants to know of what is copied.
    #[must_use]
    pub fn watched_by(mut self, watch: Arc<dyn CopyWatch>) -> CopyRange {
        self.watches.push(watch);
        self
    }

    fn tell(&self, side: CopySide, bytes: u64, ns: u64, result: Result<(), IoError>) {
        self.watches.iter().for_each(|watch| watch.copied(side, bytes, ns, result));
    }
}

/// How the front of a copy is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyWay {
    /// So many bytes by the ends themselves, if they can.
    Together(u64),
    /// So many by reading and writing.
    Apart(u64),
}

/// A copy of `len` bytes from one range to another. Neither waits nor takes long.
#[derive(Clone)]
pub struct PairCopy {
    source: CopyRange,
    target: CopyRange,
}

impl fmt::Debug for PairCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PairCopy({} -> {})", self.source.offset, self.target.offset)
    }
}

impl PairCopy {
    /// From `source` to `target`.
    #[must_use]
    pub const fn new(source: CopyRange, target: CopyRange) -> PairCopy {
        PairCopy { source, target }
    }

    /// How the front of the next `len` bytes is to be copied, when `done` bytes have been: together up to where ends are
    /// aligned, `most` bytes at a time.
    #[must_use]
    pub fn way(&self, done: u64, len: u64, most: u64) -> CopyWay {
        let grain = self.source.end.grain().max(self.target.end.grain()).max(1);
        let (from, to) = (self.source.offset + done, self.target.offset + done);
        if from % grain != to % grain {
            return CopyWay::Apart(len);
        }
        let whole = |bytes: u64| bytes - bytes % grain;
        match (to.next_multiple_of(grain) - to).min(len) {
            0 if len < grain => CopyWay::Apart(len),
            0 => CopyWay::Together(whole(len.min(most.max(grain)))),
            edge => CopyWay::Apart(edge),
        }
    }

    /// Copies `len` bytes behind the first `done`, in steps; ends between two of them when `stop` is set. Returns how many
    /// bytes are copied, and why not all: an end without an error was stopped. `now` is a clock in nanoseconds. For helper
    /// threads.
    pub fn run(
        &self,
        done: u64,
        len: u64,
        stop: &AtomicBool,
        now: &mut dyn FnMut() -> u64,
    ) -> (u64, Result<(), CopyError>) {
        let CopyRange { end: source, offset: from, .. } = &self.source;
        let CopyRange { end: target, offset: to, .. } = &self.target;
        let grain = source.grain().max(target.grain()).max(1);
        let step = source.step().min(target.step()).max(grain);
        let mut copied = 0;
        while copied < len && !stop.load(Ordering::Relaxed) {
            let bytes = (len - copied).min(step - step % grain);
            let (at, before) = (done + copied, now());
            let result = target.copy_from(to + at, &**source, from + at, bytes);
            let ns = now().saturating_sub(before);
            let (read, written) = match result {
                Ok(()) => (Some(Ok(())), Some(Ok(()))),
                Err(CopyError::Apart) => (None, None),
                Err(CopyError::Source(error)) => (Some(Err(error)), None),
                Err(CopyError::Target(error)) => (None, Some(Err(error))),
            };
            read.into_iter().for_each(|result| self.source.tell(CopySide::Source, bytes, ns, result));
            written.into_iter().for_each(|result| self.target.tell(CopySide::Target, bytes, ns, result));
            if let Err(error) = result {
                return (copied, Err(error));
            }
            copied += bytes;
        }
        (copied, Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    type Steps = Vec<(u64, u64, u64)>;

    struct End {
        grain: u64,
        steps: Mutex<Steps>,
        fails_at: Option<(u64, CopyError)>,
    }

    fn end(grain: u64, fails_at: Option<(u64, CopyError)>) -> Arc<End> {
        Arc::new(End { grain, steps: Mutex::default(), fails_at })
    }

    impl CopyEnd for End {
        fn step(&self) -> u64 {
            10_000
        }

        fn grain(&self) -> u64 {
            self.grain
        }

        fn copy_from(&self, to: u64, source: &dyn CopyEnd, from: u64, len: u64) -> Result<(), CopyError> {
            assert!((source as &dyn Any).is::<End>(), "the ends know each other");
            if let Some((at, error)) = self.fails_at
                && to >= at
            {
                return Err(error);
            }
            self.steps.lock().expect("one thread").push((to, from, len));
            Ok(())
        }
    }

    type Told = (CopySide, u64, Result<(), IoError>);

    #[derive(Default)]
    struct Watch(Mutex<Vec<Told>>);

    impl CopyWatch for Watch {
        fn copied(&self, side: CopySide, bytes: u64, ns: u64, result: Result<(), IoError>) {
            assert_eq!(ns, 1);
            self.0.lock().expect("one thread").push((side, bytes, result));
        }
    }

    fn run(copy: &PairCopy, done: u64, len: u64) -> (u64, Result<(), CopyError>) {
        let mut now = 0;
        copy.run(done, len, &AtomicBool::new(false), &mut || {
            now += 1;
            now
        })
    }

    #[test]
    fn together_where_both_are_aligned() {
        let way = |from, to, done, len| {
            PairCopy::new(CopyRange::new(end(512, None), from), CopyRange::new(end(4096, None), to))
                .way(done, len, 65536)
        };
        assert_eq!(way(0, 4096, 0, 8192), CopyWay::Together(8192));
        assert_eq!(way(0, 4096, 0, 1 << 20), CopyWay::Together(65536));
        assert_eq!(way(512, 4608, 0, 8192), CopyWay::Apart(3584));
        assert_eq!(way(512, 4608, 3584, 4608), CopyWay::Together(4096));
        assert_eq!(way(512, 4608, 7680, 512), CopyWay::Apart(512));
        assert_eq!(way(512, 0, 0, 1 << 20), CopyWay::Apart(1 << 20), "never aligned");
        assert_eq!(way(512, 4608, 0, 1024), CopyWay::Apart(1024));
    }

    #[test]
    fn a_copy_goes_in_steps_which_are_told() {
        let (source, target, watch) = (end(512, None), end(4096, None), Arc::new(Watch::default()));
        let copy = PairCopy::new(
            CopyRange::new(source, 1 << 20).watched_by(watch.clone()),
            CopyRange::new(target.clone(), 0).watched_by(watch.clone()),
        );
        assert_eq!(run(&copy, 4096, 20480), (20480, Ok(())));
        let at = |n: u64, len| (4096 + n * 8192, (1 << 20) + 4096 + n * 8192, len);
        assert_eq!(*target.steps.lock().unwrap(), [at(0, 8192), at(1, 8192), at(2, 4096)]);
        let told = watch.0.lock().unwrap();
        assert_eq!(told[..2], [(CopySide::Source, 8192, Ok(())), (CopySide::Target, 8192, Ok(()))]);
        assert_eq!(told.len(), 6);
    }

    #[test]
    fn it_ends_where_it_is_stopped_or_fails_and_says_at_which_end() {
        let stopped = PairCopy::new(CopyRange::new(end(512, None), 0), CopyRange::new(end(512, None), 0));
        assert_eq!(stopped.run(0, 4096, &AtomicBool::new(true), &mut || 0), (0, Ok(())));
        for error in [CopyError::Apart, CopyError::Source(IoError::Medium), CopyError::Target(IoError::NoSpace)] {
            let watch = Arc::new(Watch::default());
            let target = end(512, Some((9728, error)));
            let copy = PairCopy::new(
                CopyRange::new(end(512, None), 0).watched_by(watch.clone()),
                CopyRange::new(target, 0).watched_by(watch.clone()),
            );
            assert_eq!(run(&copy, 0, 20480), (9728, Err(error)));
            let told: Vec<_> = watch.0.lock().unwrap()[2..].to_vec();
            match error {
                CopyError::Apart => assert_eq!(told, []),
                CopyError::Source(why) => assert_eq!(told, [(CopySide::Source, 9728, Err(why))]),
                CopyError::Target(why) => assert_eq!(told, [(CopySide::Target, 9728, Err(why))]),
            }
        }
    }
}
