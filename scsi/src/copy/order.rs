//! From what a copy command asks for to a copy that can begin: names become ends, blocks become bytes, and what can be
//! seen to be wrong before anything has moved is refused.

use std::sync::Arc;

use crate::copy::list::Name;
use crate::copy::ranges::{Populate, UseToken};
use crate::copy::using::{self, Making};
use crate::copy::work::{Failure, Segment, Side, Source};
use crate::copy::{Copy, Designator, ListId, SELF, State};
use crate::sense::CopySense;
use crate::{Key, LogicalUnit, Outcome, Path, Sense, code};

/// A unit that a copy reads or writes, by the path on which the asking initiator could do that itself.
#[derive(Clone, Debug)]
pub struct End {
    /// The unit.
    pub unit: Arc<LogicalUnit>,
    /// The asking initiator's path to it.
    pub path: Arc<Path>,
    /// The front end's own number for it.
    pub place: u32,
}

/// Which command asked, by its service action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Lid1 = 0x00,
    Lid4 = 0x01,
    Populate = 0x10,
    UseToken = 0x11,
}

/// The units that a list names.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) names: Vec<Name>,
    /// Where the first descriptor is in the list.
    pub(crate) at: usize,
}

/// A segment as it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentDraft {
    /// CSCD descriptor IDs.
    pub(crate) source: u16,
    pub(crate) destination: u16,
    /// Whether `blocks` are those of the destination.
    pub(crate) in_blocks_of_destination: bool,
    pub(crate) blocks: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// A copy that a unit was asked for. The front end starts it.
#[derive(Debug)]
pub struct CopyOrder {
    kind: Kind,
    id: ListId,
    immediate: bool,
    what: What,
}

/// What it is to do.
#[derive(Debug)]
enum What {
    Segments(Ends, Vec<SegmentDraft>),
    Populate(Populate),
    UseToken(Box<UseToken>),
}

/// How ends are found by their names.
type Find<'a> = &'a mut dyn FnMut(&Designator) -> Option<End>;

impl CopyOrder {
    pub(crate) fn new(kind: Kind, id: ListId, immediate: bool, ends: Ends, segments: Vec<SegmentDraft>) -> CopyOrder {
        CopyOrder { kind, id, immediate, what: What::Segments(ends, segments) }
    }

    pub(crate) fn populate(id: ListId, populate: Populate) -> CopyOrder {
        CopyOrder { kind: Kind::Populate, id, immediate: populate.immediate, what: What::Populate(populate) }
    }

    pub(crate) fn use_token(id: ListId, using: UseToken) -> CopyOrder {
        CopyOrder { kind: Kind::UseToken, id, immediate: using.immediate, what: What::UseToken(Box::new(using)) }
    }

    /// Whether the command is to be answered before the copy has ended.
    #[must_use]
    pub fn is_immediate(&self) -> bool {
        self.immediate
    }

    /// Makes the copy. `manager` is the unit that was asked. `find` gives the unit of a name, if the asking initiator can
    /// address it; any other name has to end like one that nobody has. `now_ns`: as in [`LogicalUnit::pass_time`].
    ///
    /// # Errors
    /// How the command ends if there is nothing to begin with.
    pub fn start(self, manager: End, find: Find<'_>, now_ns: u64) -> Result<Copy, Outcome> {
        manager.unit.forget_copy(&manager.path, self.id);
        let CopyOrder { kind, id, immediate, what } = self;
        let begin = |manager: &End| manager.unit.begin_copy(&manager.path, id, kind as u8, immediate);
        let mut ends = vec![manager];
        match what {
            What::Segments(list, drafts) => {
                let segments = list.resolve(&drafts, &mut ends, find).map_err(Outcome::check)?;
                Ok(Copy::new(begin(&ends[0])?, ends, segments))
            }
            What::UseToken(using) => {
                let (segments, holding) = using::segments(&using, &mut ends, find, now_ns)?;
                Ok(Copy::by_token(begin(&ends[0])?, ends, segments, holding))
            }
            What::Populate(populate) => {
                let progress = begin(&ends[0])?;
                let End { unit, path, .. } = &ends[0];
                match unit.make_token(path, populate.ranges, populate.timeout_s) {
                    Ok(token) => {
                        let making = Making::new(unit.clone(), token);
                        Ok(Copy::populating(progress, ends, making))
                    }
                    Err(sense) => {
                        unit.end_copy(&progress, State::Ended(Outcome::check(sense)));
                        Err(Outcome::check(sense))
                    }
                }
            }
        }
    }
}

impl Ends {
    fn resolve(&self, drafts: &[SegmentDraft], ends: &mut Vec<End>, find: Find<'_>) -> Result<Vec<Segment>, Sense> {
        let mut found = vec![None; self.names.len()];
        let mut segments = Vec::with_capacity(drafts.len());
        for (number, draft) in drafts.iter().enumerate() {
            let mut end = |id, field| self.end(id, ends, &mut found, find).map_err(|error| error.sense(number, field));
            let (source, destination) = (end(draft.source, 4)?, end(draft.destination, 6)?);
            segments.push(bytes_of(draft, ends, (source, destination), number)?);
        }
        Ok(segments)
    }

    /// The end that a CSCD descriptor ID stands for.
    fn end(&self, id: u16, ends: &mut Vec<End>, found: &mut [Option<usize>], find: Find<'_>) -> Result<usize, NoEnd> {
        if id == SELF {
            return Ok(0);
        }
        let number = usize::from(id);
        let Name { designator, device_type, block_length } = *self.names.get(number).ok_or(NoEnd::BadId)?;
        if let Some(end) = found[number] {
            return Ok(end);
        }
        let at = self.at + number * 32;
        // Looked at before the name is: whether there is such a unit must not show.
        if device_type != 0 {
            return Err(NoEnd::WrongType(at + 1));
        }
        let end = if ends[0].unit.is_called(&designator) {
            0
        } else {
            let end = find(&designator).ok_or(NoEnd::Unreachable(at))?;
            let known = ends.iter().position(|known| known.place == end.place);
            known.unwrap_or_else(|| {
                ends.push(end);
                ends.len() - 1
            })
        };
        if block_length != 0 && block_length != ends[end].geometry().block_size() {
            return Err(NoEnd::WrongBlockLength(at + 29));
        }
        found[number] = Some(end);
        Ok(end)
    }
}

/// Why an ID stands for no end; with the place in the list where it says so.
enum NoEnd {
    /// There is no such descriptor.
    BadId,
    /// The initiator can address no unit of that name.
    Unreachable(usize),
    WrongType(usize),
    WrongBlockLength(usize),
}

impl NoEnd {
    /// `field` is where the segment descriptor has the ID.
    fn sense(&self, segment: usize, field: u16) -> Sense {
        let (code, at, in_segment) = match *self {
            NoEnd::BadId => (code::COPY_TARGET_NOT_REACHABLE, usize::from(field), true),
            NoEnd::Unreachable(at) => (code::COPY_TARGET_NOT_REACHABLE, at, false),
            NoEnd::WrongType(at) => (code::INCORRECT_COPY_TARGET_TYPE, at, false),
            NoEnd::WrongBlockLength(at) => (code::INVALID_FIELD_IN_PARAMETERS, at, false),
        };
        let sense = Sense::new(Key::CopyAborted, code).at_parameter((u16::try_from(at).unwrap_or(u16::MAX), None));
        sense.of_copy(CopySense { segment: segment as u16, in_segment, forwarded: None })
    }
}

/// A segment in bytes, if both ends allow it now.
fn bytes_of(
    draft: &SegmentDraft,
    ends: &[End],
    (source, destination): (usize, usize),
    number: usize,
) -> Result<Segment, Sense> {
    let (from, to) = (ends[source].geometry(), ends[destination].geometry());
    let (from_block, to_block) = (u64::from(from.block_size()), u64::from(to.block_size()));
    let len = draft.blocks * if draft.in_blocks_of_destination { to_block } else { from_block };
    if !len.is_multiple_of(from_block) || !len.is_multiple_of(to_block) {
        let sense = Sense::new(Key::CopyAborted, code::UNEXPECTED_INEXACT_SEGMENT);
        return Err(sense.of_copy(CopySense { segment: number as u16, in_segment: false, forwarded: None }));
    }
    let failed = |side, refusal| Failure { side, segment: number, refusal }.sense();
    // A block number beyond what bytes can count is beyond every end, too.
    let from = draft.from.saturating_mul(from_block);
    let to = draft.to.saturating_mul(to_block);
    ends[source].may_read(from, len).map_err(|refusal| failed(Side::Source, refusal))?;
    ends[destination].may_write(to, len).map_err(|refusal| failed(Side::Destination, refusal))?;
    let one_unit = Arc::ptr_eq(&ends[source].unit, &ends[destination].unit);
    Ok(Segment {
        source: Source::Blocks { end: source, offset: from, one_unit },
        end: destination,
        offset: to,
        len,
        block: from_block.max(to_block),
    })
}
