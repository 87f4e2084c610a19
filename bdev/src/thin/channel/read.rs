//! Reads: where each sub-block comes from.

use pollux_core::segment::zero;
use pollux_core::{Cx, Extent, Io, IoFlags, Op, Token};

use super::composite::{NOBODY, ZERO, run};
use super::parts::{Kind, Part};
use super::{Progress, ThinChannel, Wait};
use crate::thin::format::SUB_BLOCKS;
use crate::thin::origin::ORIGIN;
use crate::thin::shared::{Chain, Miss, Shared};

/// Clusters that are looked at when somebody asks what is mapped.
const LOOKED_AT: u64 = 4096;

/// Where a sub-block is: its first byte on the base, or, from [`ORIGIN`] on, of the origin; `None`: it is zero.
type Source = Option<u64>;

/// A run of a request that lies together.
struct Run {
    at: u64,
    len: u64,
    base: Source,
}

impl ThinChannel {
    pub(super) fn read(&mut self, token: Token, io: &Io, cx: &mut Cx<'_>) -> Progress {
        let mut run: Option<Run> = None;
        let mut at = io.offset + self.request(token).at;
        let end = io.offset + io.len;
        while at < end {
            let (base, len) = match self.look(at, end - at) {
                Ok(front) => front,
                Err(miss) if self.finish_run(token, io, run.as_ref(), cx) => return Progress::Waits(miss.into()),
                Err(_) => return Progress::Waits(Wait::Place),
            };
            match &mut run {
                Some(run) if joins(run, base) => run.len += len,
                _ => {
                    let next = Run { at, len, base };
                    if !self.finish_run(token, io, run.replace(next).as_ref(), cx) {
                        return Progress::Waits(Wait::Place);
                    }
                }
            }
            at += len;
        }
        if self.finish_run(token, io, run.as_ref(), cx) { Progress::Started } else { Progress::Waits(Wait::Place) }
    }

    /// The front of a range, inside of one cluster: where it is and how far it lies together.
    pub(super) fn look(&mut self, at: u64, len: u64) -> Result<(Source, u64), Miss> {
        let shared = &*self.shared;
        let cluster = at >> shared.cluster_shift;
        let inside = at & ((1 << shared.cluster_shift) - 1);
        let len = len.min((1 << shared.cluster_shift) - inside);
        let (from, to) = (inside >> shared.sub_shift(), (inside + len - 1) >> shared.sub_shift());
        let head = shared.entry(&self.head, cluster)?;
        if head.parent() >> from & 1 == 1
            && let Some(places) = self.composite.places(shared, &self.chain, cluster)
        {
            let places = places?;
            let end = (from + run(places, from, to, head.parent())) << shared.sub_shift();
            let len = end.min(inside + len) - inside;
            let base = match places[from as usize] {
                NOBODY => return self.within_reach(beneath(shared, &self.chain, at, len)),
                ZERO => None,
                cluster => Some((u64::from(cluster) << shared.cluster_shift) + inside),
            };
            return Ok((base, len));
        }
        self.within_reach(front(shared, &self.chain, 0, at, len)?)
    }

    /// What lies on an origin can be read as long as the volume stands on the one that the channel was opened with.
    pub(super) fn within_reach(&self, front: (Source, u64)) -> Result<(Source, u64), Miss> {
        let is_on_origin = front.0.is_some_and(|at| at >= ORIGIN);
        if is_on_origin && self.chain.origin != self.origin { Err(Miss::Apart) } else { Ok(front) }
    }

    /// Starts a run, if there is one; whether there was a place for it.
    fn finish_run(&mut self, token: Token, io: &Io, run: Option<&Run>, cx: &mut Cx<'_>) -> bool {
        let Some(&Run { at, len, base }) = run else { return true };
        match base {
            None => {
                zero(io.data.as_slice(), (at - io.offset) as usize, len as usize);
            }
            Some(_) if !self.has_place() => return false,
            Some(base) => {
                let part = Part { owner: token, kind: Kind::Plain, at, len, base };
                self.send(part, Op::Read, IoFlags::empty(), cx);
            }
        }
        self.request(token).at += len;
        true
    }
}

fn joins(run: &Run, base: Source) -> bool {
    match (run.base, base) {
        (None, None) => true,
        (Some(first), Some(next)) => first + run.len == next,
        _ => false,
    }
}

/// The front of a range, inside of one cluster: where it is and how far it lies together, as the layers from `first` on
/// have it.
pub(super) fn front(shared: &Shared, chain: &Chain, first: usize, at: u64, len: u64) -> Result<(Source, u64), Miss> {
    let cluster = at >> shared.cluster_shift;
    let inside = at & ((1 << shared.cluster_shift) - 1);
    let len = len.min((1 << shared.cluster_shift) - inside);
    let (from, to) = (inside >> shared.sub_shift(), (inside + len - 1) >> shared.sub_shift());
    // Those of the sub-blocks that no layer so far has said anything of, from the first on.
    let mut open = mask(from, to);
    let lowest = 1u16 << from;
    for layer in chain.seen(cluster, first) {
        let entry = shared.entry(layer, cluster)?;
        let (here, zero) = (entry.here(), entry.zero());
        let (says, base) = if here & lowest != 0 {
            (here, entry.cluster().map(|cluster| (u64::from(cluster) << shared.cluster_shift) + inside))
        } else if zero & lowest != 0 {
            (zero, None)
        } else {
            open &= !(here | zero);
            // A layer further down has the first; how far, as long as no layer above has anything.
            continue;
        };
        return Ok((base, part_of(shared, open & says, from, inside, len)));
    }
    Ok(beneath(shared, chain, at, part_of(shared, open, from, inside, len)))
}

/// The front of a range, inside of one cluster, that no layer says anything of: the origin has it, or it is zero.
fn beneath(shared: &Shared, chain: &Chain, at: u64, len: u64) -> (Source, u64) {
    // Sub-blocks of which it has a part are its.
    let end = chain.origin_end(at >> shared.cluster_shift).next_multiple_of(1 << shared.sub_shift());
    if at < end { (Some(ORIGIN + at), len.min(end - at)) } else { (None, len) }
}

/// What is mapped from `at` on. What is not known is called mapped.
pub(crate) fn extent(shared: &Shared, chain: &Chain, at: u64, len: u64) -> Extent {
    let mut run: Option<Extent> = None;
    let end = at + len.min(LOOKED_AT << shared.cluster_shift);
    let mut from = at;
    while from < end {
        let (mapped, len) = match front(shared, chain, 0, from, end - from) {
            Ok((source, len)) => (source.is_some(), len),
            Err(_) => (true, end - from),
        };
        run = match run {
            None => Some(Extent { len, mapped }),
            Some(run) if run.mapped == mapped => Some(Extent { len: run.len + len, mapped }),
            Some(run) => return run,
        };
        from += len;
    }
    run.unwrap_or(Extent::mapped(len))
}

/// How many bytes of a range that begins in sub-block `from` the sub-blocks of `mask` cover without a gap.
fn part_of(shared: &Shared, mask: u16, from: u64, inside: u64, len: u64) -> u64 {
    let run = u64::from((mask >> from).trailing_ones());
    let end = ((from + run) << shared.sub_shift()).min(inside + len);
    end - inside
}

/// The sub-blocks from `from` to `to`.
pub(super) const fn mask(from: u64, to: u64) -> u16 {
    ((2u32 << to) - (1u32 << from)) as u16
}

const _: () = assert!(SUB_BLOCKS == 16 && mask(0, 15) == 0xffff && mask(3, 4) == 0x18);
