//! A copy on its way: what to read and to write next.
//!
//! What the devices of both ends can copy together ([`pollux_core::PairCopy`]), they do, up to [`TOGETHER_LEN`] at a
//! time; two ends that once say that they cannot are not asked again. The rest it moves a piece at a time, of at most
//! [`PIECE_LEN`]: read at the source, written at the destination, and a pause, in which others may have the memory. Where
//! source and destination lie over each other in one unit, the pieces go in the order in which none is overwritten before
//! it was read, so what arrives is what was there when the segment began.
//!
//! What the source says it has not mapped (`holes.rs`) is neither read nor written: it becomes zeroes at the destination,
//! whose space may be given back.
//!
//! A copy by a token asks after each read whether the token is still good, and ends if it is not: what it has written by then
//! is what the token stood for, and the rest is not written. One that makes a token moves nothing; it waits.

use std::collections::VecDeque;
use std::sync::Arc;

use pollux_core::{CopyError, CopyWay, IoError, IoFlags, Op, PairCopy};

use crate::copy::holes::{self, Run};
use crate::copy::rights::Refusal;
use crate::copy::using::{Holding, Making, written};
use crate::copy::{End, Progress, State};
use crate::plan::Range;
use crate::sense::{CopySense, Forwarded};
use crate::{Key, Order, Outcome, PIECE_LEN, STEP_LEN, Sense, Status, code, io_outcome};

/// Most bytes that devices are asked to copy together at once.
const TOGETHER_LEN: u64 = 16 << 20;

/// What the front end is to do next for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyTask {
    /// An operation of an end's device: `Read` into the copy's memory, `Write` from there, or `WriteZeroes`.
    Do {
        /// The end, by the number that the front end gave it.
        place: u32,
        /// Which one.
        op: Op,
        /// Its flags.
        flags: IoFlags,
        /// First byte.
        offset: u64,
        /// Bytes; of reads and writes at most [`PIECE_LEN`].
        len: u64,
        /// Where in the copy's memory the bytes of a write begin.
        skip: u64,
    },
    /// A copy that the devices make together ([`Copy::pair`]); then [`Copy::done_together`] is told what became of it.
    Together {
        /// The end that is read, by the number that the front end gave it.
        source: u32,
        /// First byte there.
        from: u64,
        /// The end that is written.
        destination: u32,
        /// First byte there.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// Find out when nothing is under way any more of what came before `order` on a range of an end: ask everybody for it,
    /// and [`LogicalUnit::may_start`](crate::LogicalUnit::may_start) for claims. The range is never empty.
    Settle {
        /// The end, by the number that the front end gave it.
        place: u32,
        /// A place in the order of claims.
        order: Order,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Nothing is in its memory: others may have it before the copy goes on.
    Pause,
    /// The copy has ended, and its command with it.
    End(Outcome),
}

/// A part of a copy, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) source: Source,
    /// The destination's number among the ends.
    pub(crate) end: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// The larger of both ends' blocks: pieces are made of whole ones.
    pub(crate) block: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// An end, by its number, and a place there; `one_unit`: the destination's unit.
    Blocks { end: usize, offset: u64, one_unit: bool },
    /// As many as are wanted.
    Zeroes,
}

/// A piece of a segment: whence, where to, how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) from: Option<(usize, u64)>,
    pub(crate) to: (usize, u64),
    pub(crate) len: u64,
}

impl Segment {
    /// Whether source and destination have bytes in common.
    pub(crate) fn lies_over_itself(&self) -> bool {
        match self.source {
            Source::Blocks { offset, one_unit, .. } => {
                one_unit && offset < self.offset + self.len && self.offset < offset + self.len
            }
            Source::Zeroes => false,
        }
    }

    /// The piece that comes after `done` bytes.
    pub(crate) fn piece(&self, done: u64) -> Piece {
        const MOST: u64 = PIECE_LEN as u64;
        let left = self.len - done;
        let Source::Blocks { end, offset, .. } = self.source else {
            let to = self.offset + done;
            return Piece { from: None, to: (self.end, to), len: left.min(STEP_LEN - to % STEP_LEN) };
        };
        let backwards = self.lies_over_itself() && offset < self.offset;
        let (at, len) = if backwards {
            let len = left.min(MOST);
            (left - len, len)
        } else {
            // Pieces end at multiples of their length at the destination, so that they are aligned there, if they can.
            let aligned = MOST - (self.offset + done) % MOST;
            let whole = aligned - aligned % self.block;
            (done, left.min(if whole > 0 { whole } else { MOST }))
        };
        Piece { from: Some((end, offset + at)), to: (self.end, self.offset + at), len }
    }
}

/// Which end of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// What has been done of the present piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Read,
    Written,
    /// The devices have copied something.
    Together,
    /// What was under way on a token's ranges.
    Settling,
}

/// A copy on its way.
#[derive(Debug)]
pub struct Copy {
    progress: Arc<Progress>,
    /// The first is the copy manager.
    ends: Vec<End>,
    segments: Vec<Segment>,
    /// The present segment, and how many bytes of it are done.
    at: usize,
    done: u64,
    stage: Stage,
    /// What is still to be written of the present piece, or of a hole, and how much that is as a whole.
    runs: VecDeque<Run>,
    whole: u64,
    /// What the devices copy together at present.
    pair: Option<PairCopy>,
    /// Sources and destinations, by their numbers, of which the devices have said that they do not copy together. To ask takes a
    /// helper thread, so they are not asked again.
    apart: Vec<(usize, usize)>,
    ended: bool,
    by: By,
}

/// What it has to do with a token.
#[derive(Debug)]
enum By {
    List,
    /// It reads by one, or writes zeroes.
    Token(Option<Holding>),
    Making(Making),
}

impl Copy {
    pub(crate) fn new(progress: Arc<Progress>, ends: Vec<End>, segments: Vec<Segment>) -> Copy {
        Copy::make(progress, ends, segments, By::List)
    }

    /// One that reads by a token, or writes zeroes.
    pub(crate) fn by_token(
        progress: Arc<Progress>,
        ends: Vec<End>,
        segments: Vec<Segment>,
        token: Option<Holding>,
    ) -> Copy {
        Copy::make(progress, ends, segments, By::Token(token))
    }

    /// One that makes a token and copies nothing.
    pub(crate) fn populating(progress: Arc<Progress>, ends: Vec<End>, making: Making) -> Copy {
        Copy::make(progress, ends, Vec::new(), By::Making(making))
    }

    fn make(progress: Arc<Progress>, ends: Vec<End>, segments: Vec<Segment>, by: By) -> Copy {
        let (stage, runs, apart) = (Stage::Begin, VecDeque::new(), Vec::new());
        Copy { progress, ends, segments, at: 0, done: 0, stage, runs, whole: 0, pair: None, apart, ended: false, by }
    }

    /// Time passes, by the clock of [`LogicalUnit::pass_time`](crate::LogicalUnit::pass_time).
    pub fn pass_time(&mut self, now_ns: u64) {
        match &mut self.by {
            By::List | By::Token(None) => {}
            By::Token(Some(holding)) => holding.pass_time(now_ns),
            By::Making(making) => making.pass_time(now_ns),
        }
    }

    /// The front end's numbers of all its ends, the copy manager first; each once.
    pub fn places(&self) -> impl Iterator<Item = u32> {
        self.ends.iter().map(|end| end.place)
    }

    /// Whether its command was answered already.
    #[must_use]
    pub fn is_in_background(&self) -> bool {
        self.progress.background
    }

    /// Has it end at its next task.
    pub fn cancel(&self) {
        self.progress.cancel();
    }

    /// What to do next; what was asked for before has been done.
    pub fn next_task(&mut self) -> CopyTask {
        if self.progress.is_cancelled() {
            return CopyTask::End(TERMINATED);
        }
        match self.stage {
            Stage::Begin => self.begin(),
            Stage::Read => match self.check_token() {
                Ok(()) => {
                    let segment = &self.segments[self.at];
                    let piece = segment.piece(self.done);
                    (self.runs, self.whole) = (holes::runs(&self.ends, segment, piece), piece.len);
                    self.write()
                }
                Err(outcome) => CopyTask::End(outcome),
            },
            Stage::Written if !self.runs.is_empty() => self.write(),
            Stage::Written => self.piece_done(),
            Stage::Settling => self.settled(),
            Stage::Together => {
                self.stage = Stage::Begin;
                CopyTask::Pause
            }
        }
    }

    /// The read that was asked for last has not begun: it is asked for again, if it still may be done then.
    pub fn not_begun(&mut self) {
        if self.stage == Stage::Read {
            self.stage = Stage::Begin;
        }
    }

    /// Whether what was read is what the token stands for, if there is one.
    fn check_token(&self) -> Result<(), Outcome> {
        match &self.by {
            By::Token(Some(holding)) => holding.check().map_err(Outcome::check),
            By::Token(None) | By::List | By::Making(_) => Ok(()),
        }
    }

    fn settled(&mut self) -> CopyTask {
        if let By::Making(making) = &mut self.by {
            self.progress.has_made(making.settled());
        }
        CopyTask::End(Outcome::GOOD)
    }

    fn begin(&mut self) -> CopyTask {
        if let By::Making(making) = &self.by {
            let Range { offset, len } = making.token.hull;
            if len == 0 {
                // It stands for nothing, so nothing is under way there.
                return self.settled();
            }
            self.stage = Stage::Settling;
            return CopyTask::Settle { place: self.ends[0].place, order: making.token.order, offset, len };
        }
        while let Some(segment) = self.segments.get(self.at) {
            if self.done < segment.len {
                let piece = segment.piece(self.done);
                return self.begin_together().or_else(|| self.begin_hole()).unwrap_or_else(|| self.begin_piece(piece));
            }
            (self.at, self.done) = (self.at + 1, 0);
            self.progress.add_segment();
        }
        CopyTask::End(Outcome::GOOD)
    }

    /// As much of the present segment as the devices may copy together. What is refused, and what has to be durable at
    /// once, is left to reading and writing.
    fn begin_together(&mut self) -> Option<CopyTask> {
        let segment = self.segments[self.at];
        let Segment { source, end, offset, len, .. } = segment;
        let Source::Blocks { end: source, offset: first, .. } = source else { return None };
        if segment.lies_over_itself() || self.apart.contains(&(source, end)) {
            return None;
        }
        let (from, to, left) = (first + self.done, offset + self.done, len - self.done);
        let (reads, writes) = (&self.ends[source], &self.ends[end]);
        let range = |end: &End, at| end.unit.medium()?.copy_range(at, left);
        let pair = PairCopy::new(range(reads, from)?, range(writes, to)?);
        let CopyWay::Together(len) = pair.way(0, left, TOGETHER_LEN) else { return None };
        let flags = writes.may_write(to, len).ok()?;
        reads.may_read(from, len).ok()?;
        if !flags.is_empty() {
            return None;
        }
        let task = CopyTask::Together { source: reads.place, from, destination: writes.place, to, len };
        self.pair = Some(pair);
        Some(task)
    }

    /// What the last task asked the devices to copy together.
    #[must_use]
    pub fn pair(&self) -> Option<PairCopy> {
        self.pair.clone()
    }

    /// The devices have copied so many bytes together, all that they were asked for or not.
    ///
    /// # Errors
    /// How it ends, because one of them could not.
    pub fn done_together(&mut self, bytes: u64, result: Result<(), CopyError>) -> Result<(), Outcome> {
        (self.pair, self.stage) = (None, Stage::Together);
        // What was copied after the token had ended is not what it stands for: it does not count.
        let good = self.check_token();
        if good.is_ok() {
            self.done += bytes;
            self.progress.add_moved(bytes);
        }
        if self.progress.is_cancelled() {
            return Ok(());
        }
        good?;
        match result {
            Ok(()) => Ok(()),
            Err(CopyError::Apart) => {
                let Segment { source, end, .. } = self.segments[self.at];
                if let Source::Blocks { end: source, .. } = source {
                    self.apart.push((source, end));
                }
                Ok(())
            }
            Err(CopyError::Source(error)) => Err(self.failed(Side::Source, error)),
            Err(CopyError::Target(error)) => Err(self.failed(Side::Destination, error)),
        }
    }

    /// What the source has not mapped becomes zeroes. Who makes it something else meanwhile comes after this.
    fn begin_hole(&mut self) -> Option<CopyTask> {
        let segment = &self.segments[self.at];
        let len = holes::whole_pieces(&self.ends, segment, self.done)?;
        let (from, _) = (segment.piece(self.done).from?, self.check_token().ok()?);
        self.ends[from.0].may_read(from.1, len).ok()?;
        (self.runs, self.whole) = (VecDeque::from([Run { skip: 0, len, zeroes: true }]), len);
        Some(self.write())
    }

    /// The present piece is moved: here and in [`Copy::write`], as a read and a write.
    fn begin_piece(&mut self, piece: Piece) -> CopyTask {
        // What may not be written need not be read.
        if let Err(refusal) = self.ends[piece.to.0].may_write(piece.to.1, piece.len) {
            return self.refused(Side::Destination, refusal);
        }
        let Some((end, offset)) = piece.from else {
            (self.runs, self.whole) = (VecDeque::from([Run { skip: 0, len: piece.len, zeroes: true }]), piece.len);
            return self.write();
        };
        if let Err(refusal) = self.ends[end].may_read(offset, piece.len) {
            return self.refused(Side::Source, refusal);
        }
        self.stage = Stage::Read;
        let place = self.ends[end].place;
        CopyTask::Do { place, op: Op::Read, flags: IoFlags::empty(), offset, len: piece.len, skip: 0 }
    }

    fn write(&mut self) -> CopyTask {
        let Piece { to: (end, offset), .. } = self.segments[self.at].piece(self.done);
        let Some(Run { skip, len, zeroes }) = self.runs.pop_front() else { return self.piece_done() };
        let (end, offset) = (&self.ends[end], offset + skip);
        let flags = match end.may_write(offset, len) {
            Ok(flags) => flags,
            Err(refusal) => return self.refused(Side::Destination, refusal),
        };
        let (op, flags) = if zeroes { (Op::WriteZeroes, flags | IoFlags::MAY_DEALLOCATE) } else { (Op::Write, flags) };
        self.stage = Stage::Written;
        CopyTask::Do { place: end.place, op, flags, offset, len, skip }
    }

    fn piece_done(&mut self) -> CopyTask {
        self.done += self.whole;
        self.progress.add_moved(self.whole);
        self.stage = Stage::Begin;
        CopyTask::Pause
    }

    fn refused(&self, side: Side, refusal: Refusal) -> CopyTask {
        CopyTask::End(self.said(side, refusal))
    }

    /// An end has refused, or failed.
    fn said(&self, side: Side, refusal: Refusal) -> Outcome {
        match self.by {
            By::List => Outcome::check(Failure { side, segment: self.at, refusal }.sense()),
            By::Token(_) | By::Making(_) => written(side, refusal),
        }
    }

    /// How it ends if the device could not do the task given last.
    #[must_use]
    pub fn fail_outcome(&self, error: IoError) -> Outcome {
        if self.progress.is_cancelled() {
            return TERMINATED;
        }
        self.failed(if self.stage == Stage::Read { Side::Source } else { Side::Destination }, error)
    }

    fn failed(&self, side: Side, error: IoError) -> Outcome {
        let op = if side == Side::Source { Op::Read } else { Op::Write };
        let Outcome { status, sense, .. } = io_outcome(op, error);
        self.said(side, Refusal { status, sense: sense.unwrap_or(Sense::NONE) })
    }

    /// It has ended like this.
    pub fn end(mut self, outcome: &Outcome) {
        self.ended = true;
        if let By::Token(Some(holding)) = &mut self.by
            && *outcome == Outcome::GOOD
        {
            holding.end_well();
        }
        let how = if *outcome == TERMINATED { State::Terminated } else { State::Ended(*outcome) };
        self.ends[0].unit.end_copy(&self.progress, how);
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.ended {
            self.ends[0].unit.end_copy(&self.progress, State::Terminated);
        }
    }
}

/// How the command of a copy ends that somebody has ended.
pub(crate) const TERMINATED: Outcome = Outcome::check(Sense::new(Key::CopyAborted, code::IO_PROCESS_TERMINATED));

/// What one end of a segment said to the READ or WRITE that it was asked to do.
pub(crate) struct Failure {
    pub(crate) side: Side,
    pub(crate) segment: usize,
    pub(crate) refusal: Refusal,
}

impl Failure {
    /// SPC-5, clause 5.18.7.4: COPY ABORTED, the segment, and what the end said.
    pub(crate) fn sense(&self) -> Sense {
        let Refusal { status, sense } = self.refusal;
        // That the segment does not fit is found out without the end.
        let by_manager = sense == Sense::LBA_OUT_OF_RANGE;
        let code = if by_manager { code::NONE } else { code::THIRD_PARTY_DEVICE_FAILURE };
        let to_destination = self.side == Side::Destination;
        let sense = if status == Status::CheckCondition { Some((sense.key, sense.code())) } else { None };
        let forwarded = Some(Forwarded { to_destination, status: status as u8, sense });
        Sense::new(Key::CopyAborted, code).of_copy(CopySense {
            segment: self.segment as u16,
            in_segment: false,
            forwarded,
        })
    }
}
