//! The way to a bdev outside of the pool that volumes stand on, beside the way to the pool's base.
//!
//! To who looks up where something lies both are one range of addresses: the base's from 0 on, the origin's from [`ORIGIN`] on,
//! each byte of the origin at its place in the volume. So what is read from the origin goes the same ways as what is read from the
//! base. Nothing is ever written to it. What lies behind the bytes that count of it reads as zeroes.
//!
//! - Tags are those of whoever submits, each in flight once on one of the two channels.
//! - A request to an origin that is not there fails as not ready.
//! - When a volume stands on its origin no more the way is given up, with nothing in flight on it, and dropped elsewhere: that
//!   may take long, and takes a file or a device from its last user.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam::queue::SegQueue;
use pollux_core::segment::{for_range, zero};
use pollux_core::{
    Alignment, Bdev, Channel, Completion, Cx, Io, IoError, Next, Op, OpenArgs, OpenError, SegmentList, Tag,
};

use uuid::Uuid;

use super::format::{Origin, SUB_BLOCKS};
use super::shared::Shared;
use crate::memory::Pieces;

/// The first address of the origin. No base is as large.
pub(crate) const ORIGIN: u64 = 1 << 62;

/// Segments that the list of a request has room for at first that goes beyond the end.
const SEGMENTS: usize = 16;
/// Holes that are remembered of an origin, at most. What is more counts as data.
const HOLES: usize = 1 << 18;
/// Extents that are asked for before it is asked whether to go on.
const EXTENTS: usize = 1 << 10;

/// A bdev that volumes stand on, and by which it is known.
#[derive(Clone)]
pub(crate) struct OriginDevice {
    pub(crate) uuid: Uuid,
    pub(crate) device: Arc<dyn Bdev>,
}

/// What reads as zeroes of an origin and takes no space there, in whole sub-blocks.
pub(crate) struct Holes {
    of: Origin,
    /// In bytes, ascending, none touching the next.
    runs: Vec<Range<u64>>,
}

impl Holes {
    /// Asks `device`, which is this origin and which nobody writes, on a thread that may wait; for as long as `goes_on` says.
    pub(crate) fn find(device: &dyn Bdev, of: Origin, sub_block: u64, goes_on: &mut dyn FnMut() -> bool) -> Holes {
        let mut holes = Holes { of, runs: Vec::new() };
        let shape = device.shape();
        let end = of.bytes.min(shape.bytes());
        let (mut at, mut count) = (0, 0);
        while shape.discard.is_some_and(|discard| discard.reads_zero)
            && at < end
            && holes.runs.len() < HOLES
            && (count % EXTENTS != 0 || goes_on())
        {
            let extent = device.extent(at, end - at);
            let next = at.saturating_add(extent.len.max(1)).min(end);
            if !extent.mapped {
                holes.put(at..next, sub_block);
            }
            (at, count) = (next, count + 1);
        }
        holes.runs.iter_mut().for_each(|run| {
            (run.start, run.end) = (run.start.next_multiple_of(sub_block), run.end / sub_block * sub_block);
        });
        holes.runs.retain(|run| !run.is_empty());
        holes
    }

    /// One that lies behind all others.
    fn put(&mut self, run: Range<u64>, sub_block: u64) {
        // The last sub-block may end with what counts.
        let end = if run.end == self.of.bytes { run.end.next_multiple_of(sub_block) } else { run.end };
        match self.runs.last_mut() {
            Some(last) if last.end == run.start => last.end = end,
            _ => self.runs.push(run.start..end),
        }
    }

    /// Whether they are this origin's.
    pub(crate) fn are_of(&self, origin: Origin) -> bool {
        self.of == origin
    }

    /// The sub-blocks of a cluster that are holes.
    pub(crate) fn of_cluster(&self, shared: &Shared, cluster: u64) -> u16 {
        let (from, sub) = (cluster << shared.cluster_shift, shared.sub_shift());
        let to = from + (1 << shared.cluster_shift);
        let first = self.runs.partition_point(|run| run.end <= from);
        let inside = self.runs[first..].iter().take_while(|run| run.start < to);
        let mask = |run: &Range<u64>| {
            let (start, end) = ((run.start.max(from) - from) >> sub, (run.end.min(to) - from) >> sub);
            ((1u32 << end) - (1u32 << start)) as u16
        };
        inside.fold(0, |all, run| all | mask(run))
    }
}

/// A way into an origin.
pub(crate) struct Way {
    /// Into which bdev.
    uuid: Uuid,
    channel: Box<dyn Channel>,
    /// Bytes that count.
    end: u64,
    /// What is known of its holes.
    pub(crate) holes: Option<Arc<Holes>>,
    /// Requests in flight.
    flying: u32,
    /// Lists of requests that go beyond the end, whose part before it is below. Only the last sub-block has such.
    cut: Vec<(Option<Tag>, Pieces)>,
}

impl Way {
    /// Into `device`, which is this origin.
    ///
    /// # Errors
    /// As it is opened.
    pub(crate) fn open(device: &dyn Bdev, origin: Origin, args: OpenArgs) -> Result<Way, OpenError> {
        let channel = device.open(args)?;
        Ok(Way { uuid: origin.uuid, channel, end: origin.bytes, holes: None, flying: 0, cut: Vec::new() })
    }

    /// Whether it is the way into this one.
    pub(crate) fn leads_to(&self, origin: Origin) -> bool {
        (self.uuid, self.end) == (origin.uuid, origin.bytes)
    }

    fn submit(&mut self, mut io: Io, cx: &mut Cx<'_>) {
        let before_end = self.end.saturating_sub(io.offset);
        assert!(io.op == Op::Read, "nobody writes an origin");
        if before_end < io.len {
            zero(io.data.as_slice(), before_end as usize, (io.len - before_end) as usize);
            (io.data, io.len) = (self.front(&io, before_end), before_end);
        }
        self.flying += 1;
        self.channel.submit(io, cx);
    }

    /// The first bytes of a request's data, until it has completed.
    fn front(&mut self, io: &Io, len: u64) -> SegmentList {
        let at = self.cut.iter().position(|(tag, _)| tag.is_none()).unwrap_or_else(|| {
            self.cut.push((None, Pieces::new(SEGMENTS)));
            self.cut.len() - 1
        });
        let (tag, pieces) = &mut self.cut[at];
        *tag = Some(io.tag);
        pieces.clear();
        for_range(io.data.as_slice(), 0, len as usize, |part| pieces.push(part));
        pieces.list()
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        let before = done.len();
        self.channel.poll(cx, done);
        self.flying -= (done.len() - before) as u32;
        for (tag, _) in &mut self.cut {
            tag.take_if(|tag| done[before..].iter().any(|completion| completion.tag == *tag));
        }
    }
}

/// The sub-blocks of a cluster of which something lies before this byte of the volume.
pub(crate) fn covered(shared: &Shared, cluster: u64, end: u64) -> u16 {
    let bytes = end.saturating_sub(cluster << shared.cluster_shift);
    let count = bytes.div_ceil(1 << shared.sub_shift()).min(u64::from(SUB_BLOCKS));
    ((1u32 << count) - 1) as u16
}

/// Where ways go that are not needed any more, to be dropped by a thread that may wait.
pub(crate) type Left = SegQueue<Way>;

/// See the module's description.
pub(crate) struct Joined {
    base: Box<dyn Channel>,
    origin: Option<Way>,
    /// The origin is to be given up when nothing is in flight on it, and to go there.
    unused: Arc<AtomicBool>,
    left: Arc<Left>,
    /// Requests to an origin that is not there, or behind what counts of it.
    ended: Vec<Completion>,
}

impl Joined {
    /// The way to the base, and to an origin if there is one. Not attached yet.
    pub(crate) fn new(base: Box<dyn Channel>, origin: Option<Way>) -> Joined {
        Joined { base, origin, unused: Arc::default(), left: Arc::default(), ended: Vec::new() }
    }

    /// The same, with an origin that is given up when `unused` says so.
    pub(crate) fn until(base: Box<dyn Channel>, origin: Way, unused: Arc<AtomicBool>, left: Arc<Left>) -> Joined {
        Joined { unused, left, ..Joined::new(base, Some(origin)) }
    }

    fn give_up_unused(&mut self, cx: &mut Cx<'_>) {
        let is_idle = |way: &mut Way| way.flying == 0;
        if self.unused.load(Relaxed)
            && let Some(mut way) = self.origin.take_if(is_idle)
        {
            way.channel.detach(cx);
            self.left.push(way);
        }
    }

    /// There is another origin, or none, from now on. Nothing is in flight. Returns the one before, which is to be dropped
    /// elsewhere.
    ///
    /// # Errors
    /// If the ring has no room; there is none then, and the new one is to be dropped elsewhere.
    pub(crate) fn set_origin(&mut self, origin: Option<Way>, cx: &mut Cx<'_>) -> Result<Option<Way>, (IoError, Way)> {
        let mut old = self.origin.take();
        if let Some(old) = &mut old {
            old.channel.detach(cx);
        }
        if let Some(mut way) = origin {
            if let Err(error) = way.channel.attach(cx) {
                return Err((error, way));
            }
            self.origin = Some(way);
        }
        Ok(old)
    }

    /// Whether there is an origin.
    pub(crate) const fn has_origin(&self) -> bool {
        self.origin.is_some()
    }
}

impl Channel for Joined {
    fn depth(&self) -> u32 {
        let origin = self.origin.as_ref().map(|way| way.channel.depth());
        self.base.depth().min(origin.unwrap_or(u32::MAX))
    }

    fn alignment(&self) -> Alignment {
        let (base, origin) = (self.base.alignment(), self.origin.as_ref().map(|way| way.channel.alignment()));
        let Alignment { addr, len } = origin.unwrap_or(Alignment::ANY);
        Alignment { addr: addr.max(base.addr), len: len.max(base.len) }
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.base.attach(cx)?;
        if let Some(way) = &mut self.origin
            && let Err(error) = way.channel.attach(cx)
        {
            self.base.detach(cx);
            return Err(error);
        }
        Ok(())
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        if let Some(way) = &mut self.origin {
            way.channel.detach(cx);
        }
        self.base.detach(cx);
    }

    #[inline]
    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        match &mut self.origin {
            _ if io.offset < ORIGIN => self.base.submit(io, cx),
            Some(way) if io.offset - ORIGIN < way.end => way.submit(Io { offset: io.offset - ORIGIN, ..io }, cx),
            Some(_) => {
                zero(io.data.as_slice(), 0, io.len as usize);
                self.ended.push(Completion { tag: io.tag, result: Ok(()) });
            }
            None => self.ended.push(Completion { tag: io.tag, result: Err(IoError::NotReady) }),
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        self.base.poll(cx, done);
        if let Some(way) = &mut self.origin {
            way.poll(cx, done);
            self.give_up_unused(cx);
        }
        done.append(&mut self.ended);
    }

    fn next(&self) -> Next {
        let origin = self.origin.as_ref().map_or(Next::Idle, |way| way.channel.next());
        let ended = if self.ended.is_empty() { Next::Idle } else { Next::Now };
        self.base.next().or(origin).or(ended)
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        // Of what it has not the one or the other knows nothing.
        self.base.cancel(tag, cx);
        if let Some(way) = &mut self.origin {
            way.channel.cancel(tag, cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use pollux_core::IoFlags;

    use super::*;
    use crate::testing::{Rig, ram};

    /// A device whose channels are joined ones.
    struct Both {
        base: Arc<dyn Bdev>,
        origin: Option<(Arc<dyn Bdev>, u64)>,
    }

    impl Bdev for Both {
        fn shape(&self) -> pollux_core::Shape {
            self.base.shape()
        }

        fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
            let open = |(device, bytes): &(Arc<dyn Bdev>, u64)| {
                Way::open(&**device, Origin { uuid: Uuid::from_u128(1), bytes: *bytes }, args)
            };
            let origin = self.origin.as_ref().map(open).transpose()?;
            Ok(Box::new(Joined::new(self.base.open(args)?, origin)))
        }
    }

    fn filled(byte: u8) -> Arc<dyn Bdev> {
        let device = ram(512, 64);
        Rig::new(&*device).write(0, &[byte; 64 * 512], IoFlags::empty()).unwrap();
        device
    }

    #[test]
    fn an_address_leads_to_the_base_or_to_the_origin_and_behind_its_end_are_zeroes() {
        let both = Both { base: filled(1), origin: Some((filled(2), 9 * 512)) };
        let mut rig = Rig::new(&both);
        assert_eq!(rig.read(1024, 512).unwrap(), [1; 512]);
        assert_eq!(rig.read(ORIGIN + 1024, 512).unwrap(), [2; 512]);
        rig.fill(7);
        // In pieces, one of which has the end in it, several at once.
        for _ in 0..3 {
            let tail = rig.read_in(ORIGIN + 7 * 512, 4096, 0, &[700, 512]).unwrap();
            assert!(tail[..1024].iter().all(|byte| *byte == 2) && tail[1024..].iter().all(|byte| *byte == 0));
        }
        let data = rig.segments(0, &[100], 2048);
        let io = |tag| Io { tag, op: Op::Read, flags: IoFlags::empty(), offset: ORIGIN + 8 * 512, len: 2048, data };
        rig.submit(io(1));
        rig.submit(io(2));
        rig.cancel(2);
        let mut done = rig.finish();
        done.sort_by_key(|completion| completion.tag);
        assert_eq!(done[0], Completion { tag: 1, result: Ok(()) });
        assert_eq!((done.len(), done[1].tag), (2, 2));
    }

    #[test]
    fn an_origin_that_is_not_used_any_more_is_given_up_when_it_is_idle() {
        let (unused, left) = (Arc::new(AtomicBool::new(false)), Arc::new(Left::new()));
        struct Until(Arc<dyn Bdev>, Arc<AtomicBool>, Arc<Left>);
        impl Bdev for Until {
            fn shape(&self) -> pollux_core::Shape {
                self.0.shape()
            }
            fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
                let way = Way::open(&*self.0, Origin { uuid: Uuid::from_u128(1), bytes: 4096 }, args)?;
                Ok(Box::new(Joined::until(self.0.open(args)?, way, self.1.clone(), self.2.clone())))
            }
        }
        let mut rig = Rig::new(&Until(filled(1), unused.clone(), left.clone()));
        let data = rig.segments(0, &[], 512);
        rig.submit(Io { tag: 1, op: Op::Read, flags: IoFlags::empty(), offset: ORIGIN, len: 512, data });
        unused.store(true, Relaxed);
        assert!(left.is_empty());
        assert_eq!(rig.finish(), [Completion { tag: 1, result: Ok(()) }]);
        rig.read(0, 512).unwrap();
        assert_eq!((left.len(), rig.read(ORIGIN, 512)), (1, Err(IoError::NotReady)));
    }

    #[test]
    fn without_an_origin_its_addresses_are_not_ready() {
        let mut rig = Rig::new(&Both { base: filled(1), origin: None });
        assert_eq!(rig.read(ORIGIN, 512), Err(IoError::NotReady));
        assert_eq!(rig.read(0, 512).unwrap(), [1; 512]);
    }
}
