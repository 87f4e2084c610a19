//! Parameter lists of EXTENDED COPY, in their two forms (SPC-5, clauses 6.5 and 6.6): a header, CSCD descriptors of 32
//! bytes, which name the ends, and segment descriptors.

use crate::copy::order::{Ends, Kind, SegmentDraft};
use crate::copy::{CopyOrder, Designator, MOST_DESCRIPTOR_BYTES, MOST_ENDS, MOST_SEGMENTS};
use crate::{Key, Sense, code};

/// How a copy is told from the others of its nexus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListId {
    /// LIST IDENTIFIER; `None` if the initiator does not want to ask for it.
    pub(crate) number: Option<u32>,
    /// Whether what became of it is kept when it has ended.
    pub(crate) hold: bool,
}

const CSCD_LEN: usize = 32;
const SEGMENT_LEN: usize = 28;
const LID1_HEADER: usize = 16;
const LID4_HEADER: usize = 48;

/// The most bytes that a list can have.
pub(crate) const LONGEST: usize = LID4_HEADER + MOST_DESCRIPTOR_BYTES as usize;

/// Where the parts of a list are.
struct Layout {
    header: usize,
    ends: usize,
    segments: usize,
    inline: usize,
}

/// The list of EXTENDED COPY(LID1).
pub(crate) fn lid1(list: &[u8]) -> Result<CopyOrder, Sense> {
    let header: &[u8; LID1_HEADER] = list.first_chunk().ok_or(Sense::LIST_LENGTH)?;
    let id = list_id(header[1], u32::from(header[0]), 0)?;
    let layout = Layout {
        header: LID1_HEADER,
        ends: be16(header, 2),
        segments: be32(header, 8) as usize,
        inline: be32(header, 12) as usize,
    };
    order(list, Kind::Lid1, id, false, &layout)
}

/// The list of EXTENDED COPY(LID4).
pub(crate) fn lid4(list: &[u8]) -> Result<CopyOrder, Sense> {
    const FORMAT: u8 = 0x01;
    const HEADER_DESCRIPTOR_LEN: usize = 0x20;
    const HEADER_DESCRIPTOR_TYPE: u8 = 0xFF;
    const G_SENSE: u8 = 0x02;
    const IMMED: u8 = 0x01;
    let header: &[u8; LID4_HEADER] = list.first_chunk().ok_or(Sense::LIST_LENGTH)?;
    if header[0] != FORMAT {
        return Err(Sense::invalid_parameter(0, None));
    }
    if be16(header, 2) != HEADER_DESCRIPTOR_LEN {
        return Err(Sense::invalid_parameter(2, None));
    }
    if header[15] & G_SENSE != 0 {
        return Err(Sense::invalid_parameter(15, Some(1)));
    }
    if header[16] != HEADER_DESCRIPTOR_TYPE {
        return Err(Sense::invalid_parameter(16, None));
    }
    let immediate = header[15] & IMMED != 0;
    let id = list_id(header[1], be32(header, 20), 20)?;
    if immediate && id.number.is_none() {
        // Nobody could ever find out what became of it.
        return Err(Sense::invalid_parameter(1, Some(4)));
    }
    let layout =
        Layout { header: LID4_HEADER, ends: be16(header, 42), segments: be16(header, 44), inline: be16(header, 46) };
    order(list, Kind::Lid4, id, immediate, &layout)
}

/// LIST ID USAGE: 00b and 10b have an identifier, 11b has none.
fn list_id(flags: u8, number: u32, at: u16) -> Result<ListId, Sense> {
    match flags >> 3 & 3 {
        0 => Ok(ListId { number: Some(number), hold: true }),
        2 => Ok(ListId { number: Some(number), hold: false }),
        3 if number == 0 => Ok(ListId { number: None, hold: false }),
        3 => Err(Sense::invalid_parameter(at, None)),
        _ => Err(Sense::invalid_parameter(1, Some(4))),
    }
}

fn order(list: &[u8], kind: Kind, id: ListId, immediate: bool, layout: &Layout) -> Result<CopyOrder, Sense> {
    let &Layout { header, ends, segments, inline } = layout;
    if inline > 0 {
        return Err(Sense::new(Key::IllegalRequest, code::INLINE_DATA_LENGTH_EXCEEDED));
    }
    let descriptors = ends.saturating_add(segments);
    if descriptors > MOST_DESCRIPTOR_BYTES as usize || list.len() - header < descriptors {
        return Err(Sense::LIST_LENGTH);
    }
    let (ends, segments) = list[header..header + descriptors].split_at(ends);
    if ends.len() > usize::from(MOST_ENDS) * CSCD_LEN {
        return Err(Sense::new(Key::IllegalRequest, code::TOO_MANY_TARGET_DESCRIPTORS));
    }
    let names = parse_ends(ends, header)?;
    let segments = parse_segments(segments, header + ends.len())?;
    Ok(CopyOrder::new(kind, id, immediate, Ends { names, at: header }, segments))
}

fn parse_ends(descriptors: &[u8], at: usize) -> Result<Vec<Name>, Sense> {
    let mut names = Vec::new();
    for (number, descriptor) in descriptors.chunks(CSCD_LEN).enumerate() {
        let pointer = |byte: usize, bit| place(at + number * CSCD_LEN + byte, bit);
        let unsupported = Sense::new(Key::IllegalRequest, code::UNSUPPORTED_TARGET_DESCRIPTOR);
        if descriptor[0] != 0xE4 {
            return Err(unsupported.at_parameter(pointer(0, None)));
        }
        let descriptor: &[u8; CSCD_LEN] = descriptor.try_into().map_err(|_| Sense::LIST_LENGTH)?;
        let designator = descriptor[4..].first_chunk().and_then(Designator::parse);
        let designator = designator.ok_or_else(|| Sense::ILLEGAL_PARAMETER.at_parameter(pointer(7, None)))?;
        let block_length = be32(descriptor, 28) & 0xFF_FFFF;
        names.push(Name { designator, device_type: descriptor[1] & 0x1F, block_length });
    }
    Ok(names)
}

/// What a CSCD descriptor says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub(crate) designator: Designator,
    pub(crate) device_type: u8,
    /// DISK BLOCK LENGTH.
    pub(crate) block_length: u32,
}

fn parse_segments(mut left: &[u8], mut at: usize) -> Result<Vec<SegmentDraft>, Sense> {
    let mut segments = Vec::new();
    while !left.is_empty() {
        if left[0] != 0x02 {
            let unsupported = Sense::new(Key::IllegalRequest, code::UNSUPPORTED_SEGMENT_DESCRIPTOR);
            return Err(unsupported.at_parameter(place(at, None)));
        }
        if segments.len() == usize::from(MOST_SEGMENTS) {
            return Err(Sense::new(Key::IllegalRequest, code::TOO_MANY_SEGMENT_DESCRIPTORS));
        }
        let descriptor: &[u8; SEGMENT_LEN] = left.first_chunk().ok_or(Sense::LIST_LENGTH)?;
        if be16(descriptor, 2) != SEGMENT_LEN - 4 {
            return Err(Sense::ILLEGAL_PARAMETER.at_parameter(place(at + 2, None)));
        }
        segments.push(block_to_block(descriptor));
        (left, at) = (&left[SEGMENT_LEN..], at + SEGMENT_LEN);
    }
    Ok(segments)
}

fn block_to_block(descriptor: &[u8; SEGMENT_LEN]) -> SegmentDraft {
    const DC: u8 = 0x02;
    SegmentDraft {
        source: be16(descriptor, 4) as u16,
        destination: be16(descriptor, 6) as u16,
        in_blocks_of_destination: descriptor[1] & DC != 0,
        blocks: be16(descriptor, 10) as u64,
        from: be64(descriptor, 12),
        to: be64(descriptor, 20),
    }
}

/// A place in a parameter list, which is shorter than 64 KiB.
fn place(byte: usize, bit: Option<u8>) -> (u16, Option<u8>) {
    (u16::try_from(byte).unwrap_or(u16::MAX), bit)
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
