//! WRITE USING TOKEN as a copy: what the token stands for, piece by piece, goes to the ranges of the list; and POPULATE
//! TOKEN as one that moves nothing.

use std::sync::Arc;

use crate::copy::ranges::UseToken;
use crate::copy::rod::{self, Presented};
use crate::copy::tokens::Token;
use crate::copy::work::{Failure, Segment, Side, Source};
use crate::copy::{Designator, End};
use crate::plan::Range;
use crate::{Key, LogicalUnit, Outcome, Sense, Status, code};

/// A token that a copy reads by.
#[derive(Debug)]
pub(crate) struct Holding {
    unit: Arc<LogicalUnit>,
    token: Arc<Token>,
    /// Whether nobody is to use it when the copy has ended well.
    delete: bool,
    ended_well: bool,
    now_ns: u64,
}

impl Holding {
    /// Whether what was read so far is what the token stands for.
    pub(crate) fn check(&self) -> Result<(), Sense> {
        self.unit.check_token(&self.token)
    }

    pub(crate) fn pass_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    pub(crate) fn end_well(&mut self) {
        self.ended_well = true;
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.unit.leave_token(&self.token, self.delete && self.ended_well, self.now_ns);
    }
}

/// A token that is being made.
#[derive(Debug)]
pub(crate) struct Making {
    unit: Arc<LogicalUnit>,
    pub(crate) token: Arc<Token>,
    told: bool,
    now_ns: u64,
}

impl Making {
    pub(crate) fn new(unit: Arc<LogicalUnit>, token: Arc<Token>) -> Making {
        Making { unit, token, told: false, now_ns: 0 }
    }

    pub(crate) fn pass_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Nothing of before is under way any more; its initiator is told of it.
    pub(crate) fn settled(&mut self) -> Arc<Token> {
        self.unit.settled(&self.token, self.now_ns);
        self.told = true;
        self.token.clone()
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.told {
            self.unit.drop_token(&self.token);
        }
    }
}

/// What WRITE USING TOKEN has to do: its segments, and the token if it is one of a unit. The first of `ends` is the unit
/// that was asked, which is written; that of the token comes to them.
pub(crate) fn segments(
    using: &UseToken,
    ends: &mut Vec<End>,
    find: &mut dyn FnMut(&Designator) -> Option<End>,
    now_ns: u64,
) -> Result<(Vec<Segment>, Option<Holding>), Outcome> {
    for range in &using.ranges {
        ends[0].may_write(range.offset, range.len).map_err(|refusal| written(Side::Destination, refusal))?;
    }
    let Presented::Of(name) = rod::present(&using.token).map_err(Outcome::check)? else {
        return Ok((zeroes(&using.ranges), None));
    };
    // Whether there is such a unit, and whether it has such a token, is told alike.
    let source = if ends[0].unit.is_called(&name) {
        0
    } else {
        ends.push(find(&name).ok_or(Outcome::check(rod::UNKNOWN))?);
        ends.len() - 1
    };
    let unit = ends[source].unit.clone();
    let token = unit.use_token(&using.token, now_ns).map_err(Outcome::check)?;
    let holding = Holding { unit, token, delete: using.delete, ended_well: false, now_ns };
    let segments = pair_up(using, &holding.token, ends, source).map_err(Outcome::check)?;
    for Range { offset, len } in &holding.token.ranges {
        ends[source].may_read(*offset, *len).map_err(|refusal| written(Side::Source, refusal))?;
    }
    if source == 0 {
        // What it would write over its own source it could not read any more: found out before anything is moved.
        using.ranges.iter().for_each(|range| holding.unit.about_to_change(*range));
        holding.check().map_err(Outcome::check)?;
    }
    Ok((segments, Some(holding)))
}

/// What an end says to a command whose segments nobody has numbered: its own unit as to a WRITE, the other as to a copy.
pub(crate) fn written(side: Side, refusal: crate::copy::rights::Refusal) -> Outcome {
    if side == Side::Source {
        return Outcome::check(Failure { side, segment: 0, refusal }.sense());
    }
    match refusal.status {
        Status::CheckCondition => Outcome::check(refusal.sense),
        status => Outcome { status, sense: None, data_len: 0 },
    }
}

fn zeroes(ranges: &[Range]) -> Vec<Segment> {
    let segment =
        |range: &Range| Segment { source: Source::Zeroes, end: 0, offset: range.offset, len: range.len, block: 1 };
    ranges.iter().map(segment).collect()
}

/// The token's bytes from the offset on, and the ranges that they go to, cut where either has an end.
fn pair_up(using: &UseToken, token: &Token, ends: &[End], source: usize) -> Result<Vec<Segment>, Sense> {
    const OFFSET_INTO_ROD: u16 = 8;
    const FIRST_DESCRIPTOR: u16 = 536;
    let block_of = |end: &End| u64::from(end.geometry().block_size());
    let (block, read_block) = (ends.iter().map(block_of).max().unwrap_or(1), block_of(&ends[source]));
    let wanted: u64 = using.ranges.iter().map(|range| range.len).sum();
    let left = token.len().checked_sub(using.offset).ok_or(Sense::invalid_parameter(OFFSET_INTO_ROD, None))?;
    if wanted > left {
        return Err(Sense::invalid_parameter(FIRST_DESCRIPTOR, None));
    }
    let mut parts = token.ranges.iter().copied();
    let (mut skip, mut part) = (using.offset, Range { offset: 0, len: 0 });
    let mut segments = Vec::new();
    for mut to in using.ranges.iter().copied() {
        while to.len > 0 {
            if part.len == 0 {
                let Some(next) = parts.next() else { return Err(Sense::invalid_parameter(FIRST_DESCRIPTOR, None)) };
                let skipped = skip.min(next.len);
                skip -= skipped;
                part = Range { offset: next.offset + skipped, len: next.len - skipped };
                continue;
            }
            let len = to.len.min(part.len);
            if !len.is_multiple_of(block) || !part.offset.is_multiple_of(read_block) {
                // Blocks of one end that no whole blocks of the other make up.
                return Err(Sense::new(Key::CopyAborted, code::UNEXPECTED_INEXACT_SEGMENT));
            }
            let blocks = Source::Blocks { end: source, offset: part.offset, one_unit: source == 0 };
            segments.push(Segment { source: blocks, end: 0, offset: to.offset, len, block });
            for range in [&mut part, &mut to] {
                (range.offset, range.len) = (range.offset + len, range.len - len);
            }
        }
    }
    Ok(segments)
}
