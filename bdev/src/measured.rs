//! A wrapper that counts: how a stacked device opens its base, so that the base's counters hold its I/O too.
//!
//! Front ends count for themselves (they know when a request came in); between layers nobody would, so this does.

use std::sync::{Arc, Mutex, PoisonError};

use pollux_core::{
    Alignment, Bdev, Channel, Completion, CopyRange, CopySide, CopyWatch, CountedChannel, Cx, Erasure, Extent,
    FIRST_MARK, Io, IoError, IoStats, Lane, Next, Op, OpenArgs, OpenError, Shape, Slab, Tag, Token,
};

use crate::StatsSet;

/// A device that counts what is done through it.
pub struct Measured {
    base: Arc<dyn Bdev>,
    stats: Arc<StatsSet>,
    copies: Arc<Copies>,
}

/// Counts what is copied past the channels: as reads of the source and writes of the target. Helper threads do that,
/// several at once, and counters have one writer at a time.
struct Copies {
    stats: Arc<StatsSet>,
    counters: Mutex<Option<Arc<IoStats>>>,
}

impl CopyWatch for Copies {
    fn copied(&self, side: CopySide, bytes: u64, ns: u64, result: Result<(), IoError>) {
        let op = if side == CopySide::Source { Op::Read } else { Op::Write };
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = counters.get_or_insert_with(|| self.stats.new_stats());
        counters.started();
        counters.ended(op, bytes, ns, result);
    }
}

impl Measured {
    /// `base`, counted into `stats`.
    pub fn new(base: Arc<dyn Bdev>, stats: Arc<StatsSet>) -> Self {
        let copies = Arc::new(Copies { stats: stats.clone(), counters: Mutex::new(None) });
        Measured { base, stats, copies }
    }
}

impl Bdev for Measured {
    fn shape(&self) -> Shape {
        self.base.shape()
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        self.base.extent(offset, len)
    }

    fn extent_waits(&self) -> bool {
        self.base.extent_waits()
    }

    fn lane(&self) -> Option<Lane> {
        self.base.lane()
    }

    fn erasure(&self) -> Erasure {
        self.base.erasure()
    }

    fn copy_range(&self, offset: u64, len: u64) -> Option<CopyRange> {
        self.base.copy_range(offset, len).map(|range| range.watched_by(self.copies.clone()))
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let base = self.base.open(args)?;
        let depth = base.depth();
        Ok(Box::new(MeasuredChannel {
            base,
            stats: self.stats.new_stats(),
            bursts: [Burst::default(); BURSTS],
            newest: [0; Op::ALL.len()],
            others: Slab::new(depth),
        }))
    }

    fn open_counted(&self, args: OpenArgs) -> Result<CountedChannel, OpenError> {
        Ok(CountedChannel { channel: self.base.open(args)?, stats: Some(self.stats.new_stats()) })
    }
}

/// Requests that are alike: begun in the same pass, of one kind and length. Nothing is kept of each of them; the burst's
/// number is in its tag below, in bits that submitters leave free.
#[derive(Clone, Copy)]
struct Burst {
    op: Op,
    len: u64,
    started: u64,
    /// How many of them have not ended.
    left: u32,
}

impl Default for Burst {
    fn default() -> Self {
        Burst { op: Op::Flush, len: 0, started: 0, left: 0 }
    }
}

/// How many there can be at once.
const BURSTS: usize = 16;
/// In a tag below: it is of the burst whose number is above. The marks below it are those of thin volumes.
const MARK: Tag = 1 << (FIRST_MARK + 11);
const NUMBER: u32 = FIRST_MARK + 12;
/// All bits that are used so.
const MARKS: Tag = MARK | (BURSTS as Tag - 1) << NUMBER;

const fn marked(tag: Tag, burst: usize) -> Tag {
    tag | MARK | (burst as Tag) << NUMBER
}

struct MeasuredChannel {
    base: Box<dyn Channel>,
    stats: Arc<IoStats>,
    bursts: [Burst; BURSTS],
    /// The newest of each operation.
    newest: [usize; Op::ALL.len()],
    /// Requests that found no burst, and whose tags are marked already. They go by a name of ours below.
    others: Slab<(Tag, Burst)>,
}

impl MeasuredChannel {
    /// The tag below of a request that begins.
    #[inline]
    fn begin(&mut self, io: &Io, now: u64) -> Tag {
        let number = self.newest[io.op as usize];
        let burst = &mut self.bursts[number];
        if burst.left > 0 && burst.started == now && burst.len == io.len && burst.op == io.op && io.tag & MARKS == 0 {
            burst.left += 1;
            return marked(io.tag, number);
        }
        self.begin_burst(io, now)
    }

    fn begin_burst(&mut self, io: &Io, now: u64) -> Tag {
        let burst = Burst { op: io.op, len: io.len, started: now, left: 1 };
        let free = self.bursts.iter().position(|burst| burst.left == 0);
        if let (Some(number), 0) = (free, io.tag & MARKS) {
            self.newest[io.op as usize] = number;
            self.bursts[number] = burst;
            return marked(io.tag, number);
        }
        let token = self.others.insert((io.tag, burst)).ok().expect("the submitter keeps to the depth");
        tag_of(token)
    }

    /// Counts so many of a burst that have ended well.
    #[inline]
    fn count(&self, burst: &Burst, ended: u64, now: u64) {
        self.stats.ended_well(burst.op, ended, burst.len, now.saturating_sub(burst.started));
    }

    fn other_ended(&mut self, completion: &mut Completion, now: u64) {
        let (tag, burst) = self.others.remove(token_of(completion.tag)).expect("each tag completes once");
        completion.tag = tag;
        self.stats.ended(burst.op, burst.len, now.saturating_sub(burst.started), completion.result);
    }
}

impl Channel for MeasuredChannel {
    fn depth(&self) -> u32 {
        self.others.capacity()
    }

    fn alignment(&self) -> Alignment {
        self.base.alignment()
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.base.attach(cx)
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        self.base.detach(cx);
    }

    fn submit(&mut self, mut io: Io, cx: &mut Cx<'_>) {
        io.tag = self.begin(&io, cx.now);
        self.stats.started();
        self.base.submit(io, cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        let before = done.len();
        self.base.poll(cx, done);
        // Those of one burst that follow each other are counted at once.
        let (mut current, mut ended) = (0, 0);
        for completion in &mut done[before..] {
            if completion.tag & MARK == 0 {
                self.other_ended(completion, cx.now);
                continue;
            }
            let number = (completion.tag >> NUMBER) as usize % BURSTS;
            completion.tag &= !MARKS;
            self.bursts[number].left -= 1;
            if number != current {
                self.count(&self.bursts[current], ended, cx.now);
                (current, ended) = (number, 0);
            }
            match completion.result {
                Ok(()) => ended += 1,
                Err(_) => self.stats.ended(self.bursts[number].op, 0, 0, completion.result),
            }
        }
        self.count(&self.bursts[current], ended, cx.now);
    }

    fn next(&self) -> Next {
        self.base.next()
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        // Of those that are not below the base knows nothing.
        let others = &mut self.others;
        let other = others.iter_mut().find(|(_, (its, _))| *its == tag).map(|(token, _)| tag_of(token));
        let alike = (0..BURSTS).filter(|number| tag & MARKS == 0 && self.bursts[*number].left > 0);
        for below in other.into_iter().chain(alike.map(|number| marked(tag, number))) {
            self.base.cancel(below, cx);
        }
    }
}

/// A slab token as the tag of a request to the layer below.
pub(crate) const fn tag_of(token: Token) -> Tag {
    (token.generation as u64) << 32 | token.index as u64
}

/// The token in such a tag.
pub(crate) const fn token_of(tag: Tag) -> Token {
    Token { index: tag as u32, generation: (tag >> 32) as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, ram};
    use pollux_core::IoFlags;

    #[test]
    fn counts_what_goes_through_under_the_submitters_tags() {
        let stats = Arc::new(StatsSet::new());
        let mut rig = Rig::new(&Measured::new(ram(512, 64), stats.clone()));
        rig.write(0, &[1; 1024], IoFlags::empty()).unwrap();
        assert_eq!(rig.read(512, 512).unwrap(), [1; 512]);
        let (sum, bytes) = (stats.snapshot(), |op| stats.snapshot().op(op).bytes);
        assert_eq!((sum.op(Op::Write).ops, bytes(Op::Write), sum.op(Op::Read).ops, bytes(Op::Read)), (1, 1024, 1, 512));
        assert_eq!(sum.inflight, 0);
        drop(rig);
        assert_eq!(stats.snapshot().op(Op::Write).ops, 1);
    }

    /// Requests of many kinds at once, more than there are bursts, through two layers that both count.
    #[test]
    fn every_tag_comes_back_and_everything_is_counted_once() {
        let stats = [(); 2].map(|()| Arc::new(StatsSet::new()));
        let inner = Arc::new(Measured::new(ram(512, 256), stats[0].clone()));
        let outer = Measured::new(inner, stats[1].clone());
        let mut rig = Rig::with(&outer, OpenArgs { depth: 100, seed: 1 });
        let mut tags: Vec<Tag> = (0..100).map(|nth| if nth % 3 == 0 { MARK | nth } else { nth | 1 << 60 }).collect();
        let bytes = |nth: usize| 512 * (1 + nth as u64 % 50);
        for (nth, tag) in tags.iter().enumerate() {
            let op = [Op::Discard, Op::WriteZeroes][nth % 2];
            rig.submit(Io::without_data(*tag, op, IoFlags::empty(), 0, bytes(nth)));
        }
        let mut ended: Vec<Tag> = rig.finish().into_iter().map(|completion| completion.tag).collect();
        tags.sort_unstable();
        ended.sort_unstable();
        assert_eq!(ended, tags);
        for stats in stats {
            for (op, first) in [(Op::Discard, 0), (Op::WriteZeroes, 1)] {
                let sum = stats.snapshot();
                let of = sum.op(op);
                assert_eq!((of.ops, of.bytes), (50, (first..100).step_by(2).map(bytes).sum()));
            }
            assert_eq!(stats.snapshot().inflight, 0);
        }
    }

    #[test]
    fn counts_what_is_copied_past_it() {
        use pollux_core::PairCopy;
        use std::sync::atomic::AtomicBool;
        let stats = [(); 2].map(|()| Arc::new(StatsSet::new()));
        let [source, target] = stats.clone().map(|stats| Measured::new(ram(512, 64), stats));
        let copy = |len| {
            let range = |device: &Measured| device.copy_range(512, len).expect("a ram disk copies");
            PairCopy::new(range(&source), range(&target)).run(0, len, &AtomicBool::new(false), &mut || 0)
        };
        assert_eq!(copy(4096), (4096, Ok(())));
        assert!(copy(1 << 20).1.is_err());
        let [read, written] = stats.map(|stats| stats.snapshot());
        assert_eq!((read.op(Op::Read).bytes, read.op(Op::Read).errors, read.op(Op::Write).ops), (4096, 1, 0));
        assert_eq!((written.op(Op::Write).bytes, written.op(Op::Write).errors, written.op(Op::Read).ops), (4096, 0, 0));
        assert_eq!(read.inflight + written.inflight, 0);
    }

    #[test]
    fn cancels_by_the_submitters_tag() {
        let stats = Arc::new(StatsSet::new());
        let mut rig = Rig::new(&Measured::new(ram(512, 64), stats.clone()));
        rig.submit(Io::without_data(7, Op::WriteZeroes, IoFlags::empty(), 0, 512));
        rig.cancel(8);
        rig.cancel(7);
        assert_eq!(rig.finish(), [Completion { tag: 7, result: Err(IoError::Aborted) }]);
        assert_eq!(stats.snapshot().errors(IoError::Aborted), 1);
    }
}
