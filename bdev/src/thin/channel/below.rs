//! What a channel has in flight on its base, in bursts: requests that are alike, begun in the same pass, of one kind and
//! length. Nothing is kept of each of them but what its tag says: its own name and the number of its burst.
//!
//! A burst of requests that go the short way has one stay: they use the map in the epoch in which the first of them began, and
//! by the volume's word as it was then. So as long as one of them is in flight, neither is over, and those that join it in the
//! same pass need not look at either again. A channel that goes by another word begins other bursts.
//!
//! What is done on the base is counted here, for the base: by bursts, not by requests. There are as many bursts as there can
//! be requests, so there always is a free one.

use std::sync::Arc;

use pollux_core::{Channel, Completion, CountedChannel, Cx, FIRST_MARK, Io, IoStats, Op, Tag};

/// Requests that can be below at once.
pub(super) const MOST: u32 = 1 << BITS;
/// Bits of a burst's number.
const BITS: u32 = 10;
/// In a tag below: this request went the short way.
const DIRECT: Tag = 1 << FIRST_MARK;
/// Above it is the number of its burst.
const NUMBER: u32 = FIRST_MARK + 1;
/// All bits that are used so.
pub(super) const MARKS: Tag = DIRECT | (MOST as Tag - 1) << NUMBER;

/// When no burst has begun.
const NEVER: u64 = u64::MAX;

/// Which bursts a request may join.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Reads that go the short way.
    Read,
    /// Overwrites that do.
    Write,
    /// Parts.
    Part,
}

#[derive(Clone, Copy)]
struct Burst {
    started: u64,
    len: u64,
    op: Op,
    class: Class,
    /// How many of them have not ended.
    left: u32,
    /// The epoch of their stay, if they have one.
    epoch: Option<u64>,
}

/// The newest burst of a class, until something may have ended.
#[derive(Clone, Copy)]
struct Newest {
    started: u64,
    len: u64,
    number: usize,
    /// Requests of it that it does not know of yet.
    joined: u32,
}

const FREE: Burst = Burst { started: 0, len: 0, op: Op::Flush, class: Class::Part, left: 0, epoch: None };

/// Whether what this is the tag of below went the short way.
#[inline]
pub(super) const fn is_direct(tag: Tag) -> bool {
    tag & DIRECT != 0
}

/// See the module's description.
pub(super) struct Below {
    channel: Box<dyn Channel>,
    /// What is done is counted into these; `None`: the base counts by itself.
    stats: Option<Arc<IoStats>>,
    bursts: Box<[Burst]>,
    free: Vec<u16>,
    /// Those that may be joined.
    newest: [Newest; 3],
    in_flight: u32,
}

impl Below {
    pub(super) fn new(counted: CountedChannel) -> Below {
        let CountedChannel { channel, stats } = counted;
        let depth = channel.depth().min(MOST);
        Below {
            bursts: vec![FREE; depth as usize].into(),
            free: (0..depth as u16).rev().collect(),
            newest: [Newest { started: NEVER, len: 0, number: 0, joined: 0 }; 3],
            in_flight: 0,
            channel,
            stats,
        }
    }

    /// How many requests may be below at once.
    pub(super) fn depth(&self) -> u32 {
        self.bursts.len() as u32
    }

    /// How many are.
    #[inline]
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The channel itself, for what is no request.
    pub(super) fn channel(&mut self) -> &mut dyn Channel {
        &mut *self.channel
    }

    pub(super) fn as_channel(&self) -> &dyn Channel {
        &*self.channel
    }

    /// Whether there is a burst that a request may join which is like this, and begins now. Something of it is in flight.
    #[inline(always)]
    pub(super) fn is_joinable(&self, class: Class, len: u64, now: u64) -> bool {
        let newest = &self.newest[class as usize];
        newest.started == now && newest.len == len
    }

    /// Begins one, with a request that is submitted next: in this epoch, if it has a stay.
    #[inline]
    pub(super) fn begin(&mut self, class: Class, op: Op, len: u64, now: u64, epoch: Option<u64>) {
        self.settle(class as usize);
        let number = usize::from(self.free.pop().expect("there are as many as requests"));
        self.bursts[number] = Burst { started: now, len, op, class, left: 0, epoch };
        self.newest[class as usize] = Newest { started: now, len, number, joined: 0 };
    }

    /// Its newest burst knows of those that have joined it.
    #[inline]
    fn settle(&mut self, class: usize) {
        let newest = &mut self.newest[class];
        if newest.joined > 0 {
            self.bursts[newest.number].left += std::mem::take(&mut newest.joined);
        }
    }

    /// Nothing is to join a burst of now: something of it may end, or the volume is another one.
    #[inline]
    pub(super) fn break_off(&mut self) {
        for class in 0..self.newest.len() {
            self.settle(class);
            self.newest[class].started = NEVER;
        }
    }

    /// The short way of a request, in the newest burst of its class.
    #[inline(always)]
    pub(super) fn submit_direct(&mut self, class: Class, io: &Io, offset: u64, cx: &mut Cx<'_>) {
        let tag = io.tag | DIRECT | self.join(class);
        self.channel.submit(Io { tag, offset, ..*io }, cx);
    }

    /// Submits a part, whose tag leaves the marks free.
    #[inline]
    pub(super) fn submit(&mut self, mut io: Io, cx: &mut Cx<'_>) {
        let newest = self.newest[Class::Part as usize].number;
        if !self.is_joinable(Class::Part, io.len, cx.now) || self.bursts[newest].op != io.op {
            self.begin(Class::Part, io.op, io.len, cx.now, None);
        }
        io.tag |= self.join(Class::Part);
        self.channel.submit(io, cx);
    }

    /// One more in the newest burst of a class. Returns what marks it.
    #[inline(always)]
    fn join(&mut self, class: Class) -> Tag {
        self.in_flight += 1;
        let newest = &mut self.newest[class as usize];
        newest.joined += 1;
        (newest.number as Tag) << NUMBER
    }

    /// Asks the base for what has ended. All of it is to be given to [`Below::end_alike`].
    #[inline]
    pub(super) fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        self.break_off();
        if let Some(stats) = &self.stats {
            stats.inflight.set(self.in_flight.into());
        }
        self.channel.poll(cx, done);
    }

    /// Of what has ended, the front that is of one burst gets its own tags again. Returns how many they are, and the epoch of
    /// their stay if that ends with them and they have one.
    #[inline(always)]
    pub(super) fn end_alike(&mut self, completions: &mut [Completion], now: u64) -> (usize, Option<u64>) {
        let marks = completions[0].tag & MARKS;
        let mut count = 0;
        for completion in completions.iter_mut() {
            if completion.tag & MARKS != marks || completion.result.is_err() {
                break;
            }
            completion.tag &= !MARKS;
            count += 1;
        }
        let number = (marks >> NUMBER) as usize;
        let burst = &self.bursts[number];
        match (&self.stats, count) {
            (stats, 0) => {
                let first = &mut completions[0];
                first.tag &= !MARKS;
                count = 1;
                if let Some(stats) = stats {
                    stats.ended(burst.op, 0, 0, first.result);
                }
            }
            (Some(stats), _) => {
                stats.ended_well(burst.op, count as u64, burst.len, now.saturating_sub(burst.started));
            }
            (None, _) => {}
        }
        let burst = &mut self.bursts[number];
        burst.left -= count as u32;
        self.in_flight -= count as u32;
        let is_over = burst.left == 0;
        if is_over {
            self.free.push(number as u16);
        }
        (count, burst.epoch.filter(|_| is_over))
    }

    /// Cancels a request: one that went the short way, or a part. Of those that are not below the base knows nothing.
    pub(super) fn cancel(&mut self, tag: Tag, is_direct: bool, cx: &mut Cx<'_>) {
        self.break_off();
        for (number, burst) in self.bursts.iter().enumerate() {
            if burst.left > 0 && (burst.class != Class::Part) == is_direct {
                let mark = if is_direct { DIRECT } else { 0 };
                self.channel.cancel(tag | mark | (number as Tag) << NUMBER, cx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pollux_core::{Alignment, Bdev, IoError, IoFlags, Next, OpenArgs, OpenError, Shape};

    use super::*;
    use crate::testing::{Rig, ram};
    use crate::{Measured, StatsSet};

    /// A device that does everything by bursts: each third request as a part.
    struct Over(Measured);

    impl Bdev for Over {
        fn shape(&self) -> Shape {
            self.0.shape()
        }

        fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
            Ok(Box::new(OverChannel { below: Below::new(self.0.open_counted(args)?), stays: Vec::new() }))
        }
    }

    struct OverChannel {
        below: Below,
        /// Those that have begun and not ended.
        stays: Vec<u64>,
    }

    impl Channel for OverChannel {
        fn depth(&self) -> u32 {
            self.below.depth()
        }

        fn alignment(&self) -> Alignment {
            self.below.as_channel().alignment()
        }

        fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
            self.below.channel().attach(cx)
        }

        fn detach(&mut self, cx: &mut Cx<'_>) {
            assert!(self.stays.is_empty());
            self.below.channel().detach(cx);
        }

        fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
            assert!(self.below.in_flight() < self.below.depth());
            if io.tag.is_multiple_of(3) {
                return self.below.submit(io, cx);
            }
            let class = if io.op == Op::Discard { Class::Read } else { Class::Write };
            if !self.below.is_joinable(class, io.len, cx.now) {
                self.stays.push(io.tag);
                self.below.begin(class, io.op, io.len, cx.now, Some(io.tag));
            }
            self.below.submit_direct(class, &io, io.offset, cx);
        }

        fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
            let mut at = done.len();
            self.below.poll(cx, done);
            while at < done.len() {
                let (count, ended) = self.below.end_alike(&mut done[at..], cx.now);
                at += count;
                if let Some(ended) = ended {
                    let stay = self.stays.iter().position(|stay| *stay == ended);
                    self.stays.remove(stay.expect("each ends once"));
                }
            }
            assert_eq!(self.stays.is_empty(), self.below.in_flight() == 0 || !self.any_direct());
        }

        fn next(&self) -> Next {
            self.below.as_channel().next()
        }

        fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
            self.below.cancel(tag, !tag.is_multiple_of(3), cx);
        }
    }

    impl OverChannel {
        fn any_direct(&self) -> bool {
            self.below.bursts.iter().any(|burst| burst.left > 0 && burst.class != Class::Part)
        }
    }

    /// Requests of many kinds, as many at once as there can be and more in all than bursts.
    #[test]
    fn every_tag_comes_back_and_everything_is_counted_once() {
        let stats = Arc::new(StatsSet::new());
        let mut rig = Rig::with(&Over(Measured::new(ram(512, 4096), stats.clone())), OpenArgs { depth: 64, seed: 1 });
        let bytes = |nth: u64| 512 * (1 + nth % 7 / 3);
        let (mut ended, mut aborted, all) = (Vec::new(), 0, 500);
        for nth in 0..all {
            while ended.len() as u64 + 64 == nth {
                let done = rig.poll();
                aborted += done.iter().filter(|completion| completion.result == Err(IoError::Aborted)).count() as u64;
                ended.extend(done.into_iter().map(|completion| completion.tag));
            }
            let op = [Op::Discard, Op::WriteZeroes][nth as usize % 2];
            rig.submit(Io::without_data(nth, op, IoFlags::empty(), 512 * nth, bytes(nth)));
            if nth % 50 == 49 {
                rig.cancel(nth);
            }
        }
        let rest = rig.finish();
        aborted += rest.iter().filter(|completion| completion.result == Err(IoError::Aborted)).count() as u64;
        ended.extend(rest.into_iter().map(|completion| completion.tag));
        ended.sort_unstable();
        assert_eq!(ended, (0..all).collect::<Vec<_>>());
        let sum = stats.snapshot();
        assert!(aborted > 0 && sum.errors(IoError::Aborted) == aborted);
        assert_eq!(sum.inflight, 0);
        let (discards, zeroes) = (sum.op(Op::Discard), sum.op(Op::WriteZeroes));
        assert_eq!((discards.ops, zeroes.ops + aborted), (all / 2, all / 2), "those were cancelled");
        assert_eq!(discards.bytes, (0..all).step_by(2).map(bytes).sum::<u64>());
        assert_eq!(discards.latency.counts.iter().sum::<u64>(), all / 2);
    }
}
