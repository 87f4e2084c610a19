//! What a copy need not move: what the source says that it has not mapped, and that reads as zeroes.
//!
//! A hole that holds whole pieces is not read. Of a piece that was read, what is not mapped *afterwards* is a hole: it was
//! one when the rest was read, or it was taken away since, and then it is zeroes, too. So nobody who changes data as a
//! whole is seen in part. Holes are told by devices that say so at once; others are read.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Medium;
use crate::copy::End;
use crate::copy::work::{Piece, Segment, Source};
use crate::plan::STEP_LEN;

/// The smallest hole: less is written as cheaply with what is beside it.
const SMALLEST: u64 = 4096;
/// Runs of a piece that are looked for; the rest counts as mapped.
const RUNS: usize = 64;

/// A part of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where in the piece.
    pub(crate) skip: u64,
    pub(crate) len: u64,
    pub(crate) zeroes: bool,
}

/// Who can say what is mapped at a segment's source, and the first byte there.
fn source_of(ends: &[End], segment: &Segment) -> Option<(Arc<dyn Medium>, u64)> {
    let Source::Blocks { end, offset, .. } = segment.source else { return None };
    let unit = &ends[end].unit;
    let reads_zero = unit.shape()?.discard?.reads_zero;
    let medium = unit.medium().filter(|medium| reads_zero && !medium.extent_waits())?;
    Some((medium, offset))
}

/// How many bytes of a segment, behind the first `done`, are whole pieces without anything.
pub(crate) fn whole_pieces(ends: &[End], segment: &Segment, done: u64) -> Option<u64> {
    if segment.lies_over_itself() {
        return None;
    }
    let (medium, offset) = source_of(ends, segment)?;
    let piece = segment.piece(done).len;
    let hole = |at: u64, len: u64| {
        let extent = medium.extent(offset + at, len);
        if extent.mapped { 0 } else { extent.len.min(len) }
    };
    if hole(done, piece) < piece {
        return None;
    }
    let to_end = STEP_LEN - (segment.offset + done) % STEP_LEN;
    let most = (segment.len - done).min(to_end.max(piece));
    let (found, mut len) = (hole(done, most), piece);
    while len < found {
        let next = segment.piece(done + len).len;
        if len + next > found {
            break;
        }
        len += next;
    }
    Some(len)
}

/// What is to be written of a piece that was read, and what of it is zeroes; that comes last, as it takes no memory.
pub(crate) fn runs(ends: &[End], segment: &Segment, piece: Piece) -> VecDeque<Run> {
    let all = || VecDeque::from([Run { skip: 0, len: piece.len, zeroes: false }]);
    let Some((medium, _)) = source_of(ends, segment).filter(|_| !segment.lies_over_itself()) else { return all() };
    let Some((_, from)) = piece.from else { return all() };
    let (to, at) = piece.to;
    // What the destination cannot give back is written.
    let Some(discard) = ends[to].unit.shape().and_then(|shape| shape.discard) else { return all() };
    let granule = u64::from(discard.granularity).max(SMALLEST);
    let mut holes: Vec<Run> = Vec::new();
    let (mut done, mut looks) = (0, 0);
    while done < piece.len && looks < RUNS {
        let extent = medium.extent(from + done, piece.len - done);
        let end = (done + extent.len).min(piece.len);
        // Whole granules of the destination.
        let (first, last) = ((at + done).next_multiple_of(granule) - at, (at + end) / granule * granule);
        if !extent.mapped && at + first < last {
            let len = last - at - first;
            match holes.last_mut() {
                Some(before) if before.skip + before.len == first => before.len += len,
                _ => holes.push(Run { skip: first, len, zeroes: true }),
            }
        }
        (done, looks) = (end, looks + 1);
    }
    let mut runs = VecDeque::new();
    let mut from = 0;
    for hole in &holes {
        if hole.skip > from {
            runs.push_back(Run { skip: from, len: hole.skip - from, zeroes: false });
        }
        from = hole.skip + hole.len;
    }
    if from < piece.len {
        runs.push_back(Run { skip: from, len: piece.len - from, zeroes: false });
    }
    runs.extend(holes);
    runs
}
