//! A wrapper that counts: how a stacked device opens its base, so that the base's counters hold its I/O too.
//!
//! Front ends count for themselves (they know when a request came in); between layers nobody would, so this does.

use std::sync::{Arc, Mutex, PoisonError};

use pollux_core::{
    Alignment, Bdev, Channel, Completion, CopyRange, CopySide, CopyWatch, Cx, Extent, Io, IoError, IoStats, Lane, Next,
    Op, OpenArgs, OpenError, Shape, Slab, Tag, Token,
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

    fn copy_range(&self, offset: u64, len: u64) -> Option<CopyRange> {
        self.base.copy_range(offset, len).map(|range| range.watched_by(self.copies.clone()))
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let base = self.base.open(args)?;
        let depth = base.depth();
        Ok(Box::new(MeasuredChannel {
            base,
            stats: self.stats.new_stats(),
            pending: Slab::new(depth),
            ended: Vec::with_capacity(depth as usize),
        }))
    }
}

/// What is remembered of a request while it is below.
struct Pending {
    tag: Tag,
    op: Op,
    len: u64,
    started: u64,
}

struct MeasuredChannel {
    base: Box<dyn Channel>,
    stats: Arc<IoStats>,
    /// Requests below go by a name of ours: the index here and its generation.
    pending: Slab<Pending>,
    ended: Vec<Completion>,
}

impl Channel for MeasuredChannel {
    fn depth(&self) -> u32 {
        self.pending.capacity()
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

    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        let pending = Pending { tag: io.tag, op: io.op, len: io.len, started: cx.now };
        let token = self.pending.insert(pending).ok().expect("the submitter keeps to the depth");
        self.stats.started();
        self.base.submit(Io { tag: tag_of(token), ..io }, cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        self.base.poll(cx, &mut self.ended);
        for Completion { tag, result } in self.ended.drain(..) {
            let pending = self.pending.remove(token_of(tag)).expect("each tag completes once");
            self.stats.ended(pending.op, pending.len, cx.now.saturating_sub(pending.started), result);
            done.push(Completion { tag: pending.tag, result });
        }
    }

    fn next(&self) -> Next {
        self.base.next()
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        let found = self.pending.iter_mut().find(|(_, pending)| pending.tag == tag).map(|(token, _)| token);
        if let Some(token) = found {
            self.base.cancel(tag_of(token), cx);
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
