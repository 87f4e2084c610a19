//! Who may still use what was taken out of a map: epochs, and the gate of a volume.
//!
//! Each channel of a volume has a [`Reader`], two words that only it writes. `oldest` is the epoch in which the oldest
//! of what it has in flight began; [`IDLE`] if nothing is. `seen` is the last word of its volume that it goes by.
//!
//! **Quiet points.** The engine takes something out of the maps, raises the pool's epoch from E to E+1, and waits until
//! `oldest` of every reader is above E. A request takes the epoch before it looks at a map: what began in E+1 does not
//! find what was taken out, and what began earlier keeps `oldest` where it is until it has ended. So what counts is I/O in
//! flight, however many turns it takes.
//!
//! **The gate.** The engine closes it (bit 0 of the volume's word) and waits until every reader is idle or has `seen` the
//! closed word; from then on nobody starts anything, whatever is in flight goes on. Then it changes what the volume is,
//! and opens the gate with a new number.
//!
//! Neither costs a request more than two loads of words that seldom change, unless nothing was in flight: then, and only
//! then, the reader puts `oldest` and looks again, and the engine fences for both between its store and its look
//! (`fences.rs`): either the engine sees that the reader is not idle, or the reader sees the new word.
//!
//! Whoever moves its words forward has the engine woken if that is what it waits for (`attention.rs`).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use crossbeam::utils::CachePadded;

use super::attention::{Attention, EVERYBODY};
use super::fences::{self, fence_readers};

/// `oldest` of a reader with nothing in flight.
pub(crate) const IDLE: u64 = u64::MAX;
/// Epochs in which one reader may have something in flight at once.
pub(crate) const EPOCHS: u64 = 16;
/// Bit of a volume's word: its gate is closed.
pub(crate) const CLOSED: u64 = 1;

/// See the module's description.
pub(crate) struct Reader {
    words: CachePadded<[AtomicU64; 2]>,
    attention: Arc<Attention>,
}

impl Reader {
    /// Of a pool whose engine is called so.
    pub(super) fn new(attention: Arc<Attention>) -> Reader {
        Reader { words: CachePadded::new([AtomicU64::new(IDLE), AtomicU64::new(0)]), attention }
    }

    /// It has been in an epoch that it is not in any more: the oldest is another one now.
    #[inline]
    fn leaves(&self, from: u64, oldest: u64, kernels: bool) {
        fences::put(&self.words[0], oldest, kernels);
        self.attention.got_on(from);
    }

    /// For the engine, after [`fence_readers`]: the epoch of the oldest request in flight.
    pub(crate) fn oldest(&self) -> u64 {
        self.words[0].load(Acquire)
    }

    /// For the engine, after [`fence_readers`]: whether it starts nothing under an older word than this.
    pub(crate) fn goes_by(&self, word: u64) -> bool {
        self.oldest() == IDLE || self.words[1].load(Acquire) == word
    }
}

/// The pool's epoch. Raised by the engine only.
pub(crate) struct Epoch(CachePadded<AtomicU64>);

impl Epoch {
    pub(crate) fn new() -> Epoch {
        Epoch(CachePadded::new(AtomicU64::new(1)))
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(SeqCst)
    }

    /// Raises it. Returns the epoch that has ended: it is over when `oldest` of every reader is above it. Not more than
    /// `EPOCHS - 1` may be not over: see [`Epoch::is_near`].
    pub(crate) fn raise(&self) -> u64 {
        let ended = self.0.load(Relaxed);
        self.0.store(ended + 1, SeqCst);
        fence_readers();
        ended
    }

    /// Whether it may be raised so many times, as far as this reader goes: one that has something in flight tells `EPOCHS`
    /// of them apart. One that has begun just now may seem to be idle: that was in this epoch.
    pub(crate) fn is_near(&self, reader: &Reader, raises: u64) -> bool {
        let oldest = reader.oldest();
        oldest == IDLE || self.now() + raises - oldest < EPOCHS
    }
}

/// A channel's own side of its reader.
pub(crate) struct Stay {
    /// The oldest epoch with something in flight, if there is any.
    oldest: u64,
    /// The epoch in which the last one began.
    newest: u64,
    /// How many are in flight, by epoch.
    counts: [u32; EPOCHS as usize],
    in_flight: u32,
    /// The kernel fences for its reader.
    kernels: bool,
}

impl Stay {
    pub(crate) fn new() -> Stay {
        Stay { oldest: IDLE, newest: 0, counts: [0; EPOCHS as usize], in_flight: 0, kernels: fences::is_kernels() }
    }

    /// A request begins. Returns its epoch and the volume's word, which the caller goes by: with a closed gate it ends the
    /// request's stay at once and holds it.
    #[inline]
    pub(crate) fn begin(&mut self, reader: &Reader, epoch: &Epoch, word: &AtomicU64) -> (u64, u64) {
        let now = if self.in_flight == 0 { self.begin_alone(reader, epoch) } else { epoch.now() };
        let word = word.load(SeqCst);
        debug_assert!(now - self.oldest < EPOCHS);
        self.newest = now;
        self.counts[(now % EPOCHS) as usize] += 1;
        self.in_flight += 1;
        (now, word)
    }

    /// Nothing was in flight: this is put before anything else is looked at. Returns the epoch.
    #[inline]
    fn begin_alone(&mut self, reader: &Reader, epoch: &Epoch) -> u64 {
        self.oldest = epoch.now();
        fences::put(&reader.words[0], self.oldest, self.kernels);
        let now = epoch.now();
        if now != self.oldest {
            self.begins_later(reader, now);
        }
        now
    }

    /// The epoch was raised, maybe often, before anybody could see that something begins: it begins in the one that was found
    /// afterwards, and has looked at nothing before.
    #[cold]
    fn begins_later(&mut self, reader: &Reader, now: u64) {
        let from = std::mem::replace(&mut self.oldest, now);
        reader.leaves(from, now, self.kernels);
    }

    /// A request of this epoch has ended, and uses nothing of any map any more.
    #[inline]
    pub(crate) fn end(&mut self, reader: &Reader, epoch: u64) {
        self.counts[(epoch % EPOCHS) as usize] -= 1;
        self.in_flight -= 1;
        let from = self.oldest;
        if self.in_flight == 0 {
            self.oldest = IDLE;
            reader.leaves(from, IDLE, self.kernels);
        } else if self.counts[(from % EPOCHS) as usize] == 0 {
            while self.oldest < self.newest && self.counts[(self.oldest % EPOCHS) as usize] == 0 {
                self.oldest += 1;
            }
            reader.leaves(from, self.oldest, self.kernels);
        }
    }

    /// From now on it goes by this word.
    #[inline]
    pub(crate) fn go_by(&self, reader: &Reader, word: u64) {
        if reader.words[1].load(Relaxed) != word {
            reader.words[1].swap(word, SeqCst);
            reader.attention.got_on(EVERYBODY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_over_when_what_began_in_it_has_ended() {
        let (reader, epoch, word) = (Reader::new(Arc::default()), Epoch::new(), AtomicU64::new(6));
        let mut stay = Stay::new();
        assert_eq!(reader.oldest(), IDLE);
        let a = stay.begin(&reader, &epoch, &word);
        assert_eq!(a, (1, 6));
        assert_eq!(epoch.raise(), 1);
        let b = stay.begin(&reader, &epoch, &word);
        assert_eq!((b.0, reader.oldest()), (2, 1));
        assert_eq!(epoch.raise(), 2);
        let c = stay.begin(&reader, &epoch, &word);
        stay.end(&reader, b.0);
        assert_eq!(reader.oldest(), 1);
        stay.end(&reader, a.0);
        assert_eq!(reader.oldest(), 3, "past the one that ended before");
        stay.end(&reader, c.0);
        assert_eq!(reader.oldest(), IDLE);
    }

    #[test]
    fn an_epoch_is_raised_no_further_than_readers_can_tell_apart() {
        let (reader, epoch, word) = (Reader::new(Arc::default()), Epoch::new(), AtomicU64::new(6));
        (0..100).for_each(|_| {
            assert!(epoch.is_near(&reader, EPOCHS), "nothing is in flight");
            epoch.raise();
        });
        let mut stay = Stay::new();
        let slow = stay.begin(&reader, &epoch, &word).0;
        let mut raised = 0;
        while epoch.is_near(&reader, 1) {
            assert_eq!(epoch.is_near(&reader, 2), raised < EPOCHS - 2);
            epoch.raise();
            raised += 1;
            let quick = stay.begin(&reader, &epoch, &word).0;
            stay.end(&reader, quick);
        }
        assert_eq!(raised, EPOCHS - 1);
        let last = stay.begin(&reader, &epoch, &word).0;
        stay.end(&reader, slow);
        assert_eq!((reader.oldest(), last), (epoch.now(), epoch.now()));
        stay.end(&reader, last);
    }

    /// Ends a thread, also when its other one panics.
    struct End<'a>(&'a std::sync::atomic::AtomicBool);

    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }

    /// The epoch rises as fast as it can, without the engine's fences: many that begin find a later one at their second look.
    #[test]
    fn what_begins_alone_keeps_no_epoch_before_its_own() {
        const MEETINGS: u32 = 200;
        let (reader, epoch, word) = (Reader::new(Arc::default()), Epoch::new(), AtomicU64::new(6));
        let (mut stay, done) = (Stay::new(), std::sync::atomic::AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    epoch.0.fetch_add(1, SeqCst);
                }
            });
            let (_end, mut met) = (End(&done), 0);
            while met < MEETINGS {
                let before = epoch.now();
                let at = stay.begin(&reader, &epoch, &word).0;
                assert_eq!(reader.oldest(), at, "it would seem to be in flight since long ago");
                stay.end(&reader, at);
                met += u32::from(at != before);
            }
        });
    }

    /// The engine takes something out of a map, and gives it to somebody else when the epoch is over.
    #[test]
    fn what_was_taken_out_is_used_by_nobody_when_the_epoch_is_over() {
        const TIMES: u64 = 400_000;
        for kernels in [fences::is_kernels(), false] {
            let (reader, epoch, word) = (Reader::new(Arc::default()), Epoch::new(), AtomicU64::new(6));
            let (map, given_away) = (AtomicU64::new(1), AtomicU64::new(0));
            let mut stay = Stay { kernels, ..Stay::new() };
            std::thread::scope(|scope| {
                let user = scope.spawn(|| {
                    let mut used = 0;
                    while used + 1 < TIMES {
                        let at = stay.begin(&reader, &epoch, &word).0;
                        used = map.load(Acquire);
                        // Long enough for the engine to look.
                        (0..used % 64).for_each(|nth| _ = std::hint::black_box(nth));
                        if given_away.load(Acquire) >= used {
                            return Some(used);
                        }
                        stay.end(&reader, at);
                    }
                    None
                });
                for next in 2..=TIMES {
                    map.store(next, std::sync::atomic::Ordering::Release);
                    let ended = epoch.raise();
                    while reader.oldest() <= ended && !user.is_finished() {
                        std::hint::spin_loop();
                    }
                    given_away.store(next - 1, std::sync::atomic::Ordering::Release);
                }
                assert_eq!(user.join().unwrap(), None, "it was somebody else's by then");
            });
        }
    }

    #[test]
    fn a_closed_gate_is_seen_or_nothing_begins() {
        let (reader, epoch, word) = (Reader::new(Arc::default()), Epoch::new(), AtomicU64::new(4));
        let mut stay = Stay::new();
        word.store(4 | CLOSED, SeqCst);
        assert!(reader.goes_by(5), "idle");
        let (at, seen) = stay.begin(&reader, &epoch, &word);
        assert!(seen == 5 && !reader.goes_by(5), "it has not said so yet");
        stay.go_by(&reader, seen);
        assert!(reader.goes_by(5) && !reader.goes_by(6));
        stay.end(&reader, at);
    }
}
