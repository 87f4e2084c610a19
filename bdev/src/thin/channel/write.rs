//! Writes.
//!
//! A cluster's part of a write is cut where sub-blocks of it are *edges*: covered in part, and not here. What lies between
//! is one piece: in place if all of it is here, else fresh, which is locked and published. Pieces that follow each other
//! on the base, and are of one kind, go down as one part.
//!
//! What is in place takes no lock, unless the volume wants care (`atomic`): then it is held like what is fresh. But it waits
//! while somebody else has one: an entry may say that something is here before the next commit knows of it, and whoever
//! writes there and flushes would be told that it is durable.

use std::sync::Arc;

use pollux_core::{Cx, Io, IoError, IoFlags, Op, Token};

use super::parts::{Kind, Part};
use super::read::mask;
use super::{Progress, ThinChannel, Wait};
use crate::thin::shared::{Lack, LayerMap, Shared};

/// The longest part of fresh sub-blocks.
const LONGEST: u64 = 1 << 20;

/// How a piece is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// What is here, without a lock.
    Plain,
    /// What is here, locked.
    Held,
    /// What is not here, locked.
    Fresh,
}

/// Pieces that have been gathered and not been sent.
struct Gathered {
    at: u64,
    len: u64,
    base: u64,
    way: Way,
    leaf: u32,
}

/// The front of what is left of a write, in one cluster.
pub(super) struct Piece {
    pub(super) cluster: u64,
    pub(super) leaf: u32,
    pub(super) slot: usize,
    /// First byte of the volume, and how many.
    pub(super) at: u64,
    pub(super) len: u64,
    /// The sub-blocks that it touches.
    pub(super) touched: u16,
    /// It is a part of one sub-block that is not here.
    pub(super) edge: bool,
    /// All that it touches is here, on this cluster of the base.
    pub(super) here: Option<u32>,
}

impl ThinChannel {
    pub(super) fn write(&mut self, token: Token, io: &Io, cx: &mut Cx<'_>) -> Progress {
        let head = self.chain.head().clone();
        let mut gathered: Option<Gathered> = None;
        let mut at = io.offset + self.request(token).at;
        let end = io.offset + io.len;
        let progress = loop {
            if at == end {
                break Progress::Started;
            }
            let piece = match self.piece(&head, at, end - at) {
                Ok(piece) => piece,
                Err(wait) => break Progress::Waits(wait),
            };
            let len = piece.len;
            let base = if piece.edge {
                self.send_gathered(token, io, gathered.take().as_ref(), &head, cx);
                match self.start_edge(token, &head, &piece, cx) {
                    Ok(()) => None,
                    Err(wait) => break Progress::Waits(wait),
                }
            } else {
                let place = self.reserve(token, io, &piece, &mut gathered, &head, cx);
                match place.map_err(Progress::Waits) {
                    Ok(base) => Some(base),
                    Err(progress) => break progress,
                }
            };
            if let Some((base, way)) = base {
                gathered = Some(match gathered.take() {
                    Some(before)
                        if before.way == way && before.base + before.len == base && before.leaf == piece.leaf =>
                    {
                        Gathered { len: before.len + len, ..before }
                    }
                    before => {
                        self.send_gathered(token, io, before.as_ref(), &head, cx);
                        Gathered { at, len, base, way, leaf: piece.leaf }
                    }
                });
            }
            at += len;
            self.request(token).at += len;
        };
        self.send_gathered(token, io, gathered.as_ref(), &head, cx);
        progress
    }

    /// Where a piece goes, with its sub-blocks locked and its entry on a cluster if it is fresh.
    fn reserve(
        &mut self,
        token: Token,
        io: &Io,
        piece: &Piece,
        gathered: &mut Option<Gathered>,
        head: &Arc<LayerMap>,
        cx: &mut Cx<'_>,
    ) -> Result<(u64, Way), Wait> {
        let inside = piece.at & ((1 << self.shared.cluster_shift) - 1);
        let shift = self.shared.cluster_shift;
        let base = |cluster: u32| (u64::from(cluster) << shift) + inside;
        if gathered.is_none() && !self.has_place() {
            return Err(Wait::Place);
        }
        let follows = |gathered: &Option<Gathered>, base: u64, way: Way| {
            let joins =
                |g: &Gathered| g.way == way && g.base + g.len == base && g.len < LONGEST && g.leaf == piece.leaf;
            gathered.as_ref().is_none_or(joins)
        };
        if let Some(cluster) = piece.here.filter(|_| !self.volume.wants_care()) {
            if self.shared.locks.is_locked(head.id, piece.cluster, piece.touched) {
                return Err(Wait::Lock);
            }
            let base = base(cluster);
            if self.is_undurable(piece) {
                self.request(token).unmapped = true;
            }
            if !follows(gathered, base, Way::Plain) {
                self.send_gathered(token, io, gathered.take().as_ref(), head, cx);
                if !self.has_place() {
                    return Err(Wait::Place);
                }
            }
            return Ok((base, Way::Plain));
        }
        let cluster = self.lock_and_claim(head, piece)?;
        let base = base(cluster);
        let entry = self.shared.leaves.get(piece.leaf).entry(piece.slot);
        let is_here = piece.touched & !entry.here() == 0;
        let way = if is_here && !self.is_undurable(piece) { Way::Held } else { Way::Fresh };
        if !follows(gathered, base, way) {
            self.send_gathered(token, io, gathered.take().as_ref(), head, cx);
            if !self.has_place() {
                self.let_go(head, piece);
                return Err(Wait::Place);
            }
        }
        self.request(token).unmapped |= way == Way::Fresh;
        Ok((base, way))
    }

    /// Locks what a piece touches and puts its entry on a cluster, which is returned.
    pub(super) fn lock_and_claim(&mut self, head: &Arc<LayerMap>, piece: &Piece) -> Result<u32, Wait> {
        let shared = &self.shared;
        if !shared.locks.try_lock(head.id, piece.cluster, piece.touched) {
            return Err(Wait::Lock);
        }
        // What was here may have been discarded before the lock was taken, and the other way round.
        let entry = shared.leaves.get(piece.leaf).entry(piece.slot);
        let partly = piece.touched & !whole(shared, piece.at, piece.len);
        let as_before = if piece.edge { entry.here() & partly == 0 } else { entry.here() & partly == partly };
        let claimed = if as_before { self.claim(head, piece.leaf, piece.slot) } else { Err(Wait::Lock) };
        if claimed.is_err() {
            self.shared.locks.unlock(head.id, piece.cluster, piece.touched);
        }
        claimed
    }

    /// Nothing is written of a piece that was locked and has a cluster. The cluster may be of no use now, if nobody comes back
    /// to it (another head may be in the place of this one): the engine looks at it.
    pub(super) fn let_go(&self, head: &Arc<LayerMap>, piece: &Piece) {
        self.shared.locks.unlock(head.id, piece.cluster, piece.touched);
        self.shared.mark(piece.leaf, piece.slot);
    }

    /// Puts an entry on a cluster, which is returned; what is to be written there is locked.
    pub(super) fn claim(&self, head: &LayerMap, leaf: u32, slot: usize) -> Result<u32, Wait> {
        let claimed = self.shared.claim(&self.volume, head, leaf, slot, self.reactor);
        claimed.map_err(|lack| match lack {
            Lack::Space => Wait::Space,
            Lack::Quota => Wait::Quota,
            Lack::Count => Wait::Engine,
        })
    }

    /// What the front of a range in one cluster is.
    pub(super) fn piece(&self, head: &Arc<LayerMap>, at: u64, len: u64) -> Result<Piece, Wait> {
        let shared = &self.shared;
        let cluster = at >> shared.cluster_shift;
        let (leaf, slot) = Shared::slot(cluster);
        let leaf = shared.leaf_to_change(head, leaf)?;
        let entry = shared.leaves.get(leaf).entry(slot);
        let (here, size) = (entry.here(), 1u64 << shared.cluster_shift);
        let inside = at & (size - 1);
        let len = len.min(size - inside);
        let touched = touched(shared, at, len);
        let on = |at, len, touched, edge, here| Piece { cluster, leaf, slot, at, len, touched, edge, here };
        if touched & !here == 0 {
            return Ok(on(at, len, touched, false, entry.cluster()));
        }
        let edges = touched & !here & !whole(shared, at, len);
        let from = inside >> shared.sub_shift();
        // Up to the end of an edge that comes first, or to the beginning of one that comes last.
        let until = |sub: u64| ((sub << shared.sub_shift()) - inside).min(len);
        if edges >> from & 1 == 1 {
            let len = until(from + 1);
            return Ok(on(at, len, mask(from, from), true, None));
        }
        let len = if edges == 0 { len } else { until(u64::from(edges.trailing_zeros())) };
        let touched = self::touched(shared, at, len);
        let here = if touched & !here == 0 { entry.cluster() } else { None };
        Ok(on(at, len, touched, false, here))
    }

    /// Whether what an entry says now would be lost with the power.
    fn is_undurable(&self, piece: &Piece) -> bool {
        let leaf = self.shared.leaves.get(piece.leaf);
        leaf.is_dirty(piece.slot) || !self.shared.commits.is_done(leaf.taken_by())
    }

    fn send_gathered(
        &mut self,
        token: Token,
        io: &Io,
        gathered: Option<&Gathered>,
        head: &Arc<LayerMap>,
        cx: &mut Cx<'_>,
    ) {
        let Some(&Gathered { at, len, base, way, leaf }) = gathered else { return };
        // What is fresh is made durable by the commit that its entry waits for.
        let flags = if way == Way::Fresh { IoFlags::empty() } else { io.flags & IoFlags::FUA };
        let kind = if way != Way::Plain { Kind::Fresh(head.clone(), leaf) } else { Kind::Plain };
        self.send(Part { owner: token, kind, at, len, base }, Op::Write, flags, cx);
    }

    /// The data of fresh sub-blocks is on the base, or is not: says so in the entries and unlocks them.
    pub(super) fn arrived(
        &self,
        map: &Arc<LayerMap>,
        leaf: u32,
        part: &Part,
        result: Result<(), IoError>,
    ) -> Result<(), IoError> {
        let (shared, size) = (&self.shared, 1u64 << self.shared.cluster_shift);
        let (mut at, end) = (part.at, part.at + part.len);
        let mut on = (part.base >> shared.cluster_shift) as u32;
        let mut kept = true;
        while at < end {
            let len = (end - at).min(size - (at & (size - 1)));
            let (_, slot) = Shared::slot(at >> shared.cluster_shift);
            kept &= self.arrived_in(map, (leaf, slot), (at, len), on, result);
            (at, on) = (at + len, on + 1);
        }
        if kept { result } else { Err(IoError::Medium) }
    }

    /// The same of one cluster; whether the entry is still on it.
    fn arrived_in(
        &self,
        map: &LayerMap,
        (leaf, slot): (u32, usize),
        (at, len): (u64, u64),
        on: u32,
        result: Result<(), IoError>,
    ) -> bool {
        let shared = &*self.shared;
        let locked = touched(shared, at, len);
        let kept = match result {
            // The entry stays on its cluster as long as something of it is locked.
            Ok(()) => shared.publish(map, leaf, slot, on, locked),
            // The cluster may be of no use now: the engine looks at it.
            Err(_) => {
                shared.mark(leaf, slot);
                true
            }
        };
        shared.locks.unlock(map.id, at >> shared.cluster_shift, locked);
        kept
    }
}

/// The sub-blocks that a range inside of a cluster touches.
pub(crate) fn touched(shared: &Shared, at: u64, len: u64) -> u16 {
    let inside = at & ((1 << shared.cluster_shift) - 1);
    mask(inside >> shared.sub_shift(), (inside + len - 1) >> shared.sub_shift())
}

/// Those that it covers as a whole.
pub(crate) fn whole(shared: &Shared, at: u64, len: u64) -> u16 {
    let inside = at & ((1 << shared.cluster_shift) - 1);
    let size = 1u64 << shared.sub_shift();
    let (from, to) = (inside.div_ceil(size), (inside + len) / size);
    if from < to { mask(from, to - 1) } else { 0 }
}
