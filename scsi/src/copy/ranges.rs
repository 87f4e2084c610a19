//! Parameter lists of POPULATE TOKEN and WRITE USING TOKEN (SBC-4, clauses 5.11 and 5.53): a header, and block device range
//! descriptors of 16 bytes.

use crate::copy::rod::{CHANGE_VULNERABLE, TOKEN_LEN, TokenBytes};
use crate::copy::{DEFAULT_TIMEOUT_S, MOST_RANGES, MOST_TIMEOUT_S, MOST_TOKEN_BYTES};
use crate::geometry::Geometry;
use crate::plan::Range;
use crate::{Key, Sense, code};

const DESCRIPTOR_LEN: usize = 16;
/// Where the descriptors of each begin; the two bytes before that are their length.
const POPULATE_HEADER: usize = 16;
const USE_HEADER: usize = 536;

/// The most bytes that a list may have: with more descriptors than are served, so that those are told apart.
pub(crate) const LONGEST_RANGES: usize = USE_HEADER + 256 * DESCRIPTOR_LEN;

const IMMED: u8 = 0x01;

/// What POPULATE TOKEN asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Populate {
    pub(crate) immediate: bool,
    pub(crate) timeout_s: u32,
    /// In bytes, in the order of the list; none is empty, and no two overlap.
    pub(crate) ranges: Vec<Range>,
}

/// What WRITE USING TOKEN asks for.
#[derive(Debug)]
pub(crate) struct UseToken {
    pub(crate) immediate: bool,
    /// DEL_TKN.
    pub(crate) delete: bool,
    /// OFFSET INTO ROD in bytes.
    pub(crate) offset: u64,
    pub(crate) token: TokenBytes,
    /// As those of [`Populate`].
    pub(crate) ranges: Vec<Range>,
}

/// The list of POPULATE TOKEN.
pub(crate) fn populate(list: &[u8], unit: Geometry) -> Result<Populate, Sense> {
    const RTV: u8 = 0x02;
    let header: &[u8; POPULATE_HEADER] = list.first_chunk().ok_or(Sense::LIST_LENGTH)?;
    let ranges = Descriptors::find(list, POPULATE_HEADER)?;
    let timeout_s = be32(header, 4);
    if timeout_s > MOST_TIMEOUT_S {
        return Err(Sense::invalid_parameter(4, None));
    }
    if header[2] & RTV != 0 && be32(header, 8) != CHANGE_VULNERABLE {
        return Err(Sense::invalid_parameter(8, None));
    }
    let ranges = ranges.in_bytes(unit)?;
    let timeout_s = if timeout_s == 0 { DEFAULT_TIMEOUT_S } else { timeout_s };
    Ok(Populate { immediate: header[2] & IMMED != 0, timeout_s, ranges })
}

/// The list of WRITE USING TOKEN.
pub(crate) fn use_token(list: &[u8], unit: Geometry) -> Result<UseToken, Sense> {
    const DEL_TKN: u8 = 0x02;
    const TOKEN: usize = 16;
    const OFFSET: usize = 8;
    let header: &[u8; USE_HEADER] = list.first_chunk().ok_or(Sense::LIST_LENGTH)?;
    let ranges = Descriptors::find(list, USE_HEADER)?.in_bytes(unit)?;
    let token: &[u8; TOKEN_LEN] = header[TOKEN..].first_chunk().ok_or(Sense::LIST_LENGTH)?;
    let blocks = u64::from(be32(header, OFFSET)) << 32 | u64::from(be32(header, OFFSET + 4));
    Ok(UseToken {
        immediate: header[2] & IMMED != 0,
        delete: header[2] & DEL_TKN != 0,
        // A number of blocks beyond what bytes can count is beyond every token, too.
        offset: blocks.saturating_mul(u64::from(unit.block_size())),
        token: *token,
        ranges,
    })
}

/// The descriptors of a list, and where they begin.
struct Descriptors<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Descriptors<'_> {
    /// Those of a list with a header of this length. Bytes behind the last whole one are not looked at.
    fn find(list: &[u8], header: usize) -> Result<Descriptors<'_>, Sense> {
        let said = be16(list, 0) + 2;
        if said < header + DESCRIPTOR_LEN {
            return Err(Sense::invalid_parameter(0, None));
        }
        let len = be16(list, header - 2);
        if len < DESCRIPTOR_LEN || header + len > said {
            return Err(Sense::invalid_parameter(header as u16 - 2, None));
        }
        let bytes = list.get(header..header + len).ok_or(Sense::LIST_LENGTH)?;
        if len / DESCRIPTOR_LEN > usize::from(MOST_RANGES) {
            return Err(Sense::new(Key::IllegalRequest, code::TOO_MANY_SEGMENT_DESCRIPTORS));
        }
        Ok(Descriptors { bytes, at: header })
    }

    /// The ranges that are not empty.
    fn in_bytes(&self, unit: Geometry) -> Result<Vec<Range>, Sense> {
        let mut ranges: Vec<Range> = Vec::new();
        let mut left = MOST_TOKEN_BYTES;
        for (number, descriptor) in self.bytes.chunks_exact(DESCRIPTOR_LEN).enumerate() {
            let at = |byte| Sense::invalid_parameter((self.at + number * DESCRIPTOR_LEN + byte) as u16, None);
            let lba = u64::from(be32(descriptor, 0)) << 32 | u64::from(be32(descriptor, 4));
            let (offset, len) = unit.range(lba, u64::from(be32(descriptor, 8))).ok_or(Sense::LBA_OUT_OF_RANGE)?;
            let range = Range { offset, len };
            if ranges.iter().any(|other| other.overlaps(range)) {
                return Err(at(0));
            }
            left = left.checked_sub(len).ok_or(at(8))?;
            if len > 0 {
                ranges.push(range);
            }
        }
        Ok(ranges)
    }
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Flags;
    use crate::testing::shape;
    use proptest::prelude::*;

    fn unit() -> Geometry {
        Geometry::of(&shape(), Flags::empty())
    }

    /// The list with these ranges, of which `header` bytes come before them.
    fn list(header: usize, ranges: &[(u64, u32)]) -> Vec<u8> {
        let mut list = vec![0; header];
        for (lba, count) in ranges {
            list.extend_from_slice(&lba.to_be_bytes());
            list.extend_from_slice(&count.to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        let (said, len) = (list.len() as u16 - 2, ranges.len() as u16 * 16);
        list[..2].copy_from_slice(&said.to_be_bytes());
        list[header - 2..header].copy_from_slice(&len.to_be_bytes());
        list
    }

    fn edited(header: usize, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut list = list(header, &[(8, 8), (24, 8)]);
        list[at..at + bytes.len()].copy_from_slice(bytes);
        list
    }

    #[test]
    fn what_populate_asks_for() {
        let ranges = vec![Range { offset: 4096, len: 4096 }, Range { offset: 0, len: 512 }];
        let asked = list(16, &[(8, 8), (100, 0), (0, 1)]);
        let want = Populate { immediate: false, timeout_s: DEFAULT_TIMEOUT_S, ranges };
        assert_eq!(populate(&asked, unit()), Ok(want));
        let parse = |at, bytes: &[u8]| populate(&edited(16, at, bytes), unit());
        assert!(parse(2, &[1]).unwrap().immediate);
        assert_eq!(parse(4, &[0, 0, 0, 5]).unwrap().timeout_s, 5);
        let pointed = |at, bytes: &[u8]| parse(at, bytes).unwrap_err().field.map(|field| field.byte);
        assert_eq!(pointed(4, &(MOST_TIMEOUT_S + 1).to_be_bytes()), Some(4));
        assert!(parse(8, &[0, 0x80, 0, 0]).is_ok(), "no type is asked for");
        let typed = |kind: u32| {
            let mut list = edited(16, 2, &[2]);
            list[8..12].copy_from_slice(&kind.to_be_bytes());
            populate(&list, unit()).map(drop).map_err(|sense| (sense.code(), sense.field.unwrap().byte))
        };
        assert_eq!(typed(0x0080_0001), Ok(()));
        for kind in [0, 0x0001_0000, 0x0080_0000, 0x0080_0002, 0x0080_FFFF, 0xFFFF_0001] {
            assert_eq!(typed(kind), Err((0x2600, 8)), "{kind:08X}");
        }
    }

    #[test]
    fn what_writing_asks_for() {
        let mut asked = list(536, &[(8, 8)]);
        (asked[2], asked[15], asked[16], asked[527]) = (3, 9, 0xAA, 0xBB);
        let UseToken { immediate, delete, offset, token, ranges } = use_token(&asked, unit()).unwrap();
        assert_eq!((immediate, delete, offset), (true, true, 9 * 512));
        assert_eq!((token[0], token[511], ranges), (0xAA, 0xBB, vec![Range { offset: 4096, len: 4096 }]));
        asked[8] = 0xFF;
        assert_eq!(use_token(&asked, unit()).unwrap().offset, u64::MAX);
    }

    #[test]
    fn lists_that_are_wrong_are_told_where() {
        type Parse = fn(&[u8]) -> Result<(), Sense>;
        let both: [(usize, Parse); 2] =
            [(16, |list| populate(list, unit()).map(drop)), (536, |list| use_token(list, unit()).map(drop))];
        for (header, parse) in both {
            let code = |list: &[u8]| parse(list).map_err(|sense| (sense.code(), sense.field.map(|field| field.byte)));
            let good = list(header, &[(8, 8), (24, 8)]);
            assert_eq!(code(&good), Ok(()));
            for len in [0, 2, header - 1] {
                assert_eq!(code(&good[..len]), Err((0x1A00, None)), "{len} bytes");
            }
            assert_eq!(code(&good[..good.len() - 1]), Err((0x1A00, None)), "cut off");
            let (said, len) = ((header + 14) as u16, header - 2);
            assert_eq!(code(&edited(header, 0, &(said - 1).to_be_bytes())), Err((0x2600, Some(0))));
            assert_eq!(code(&edited(header, len, &[0, 15])), Err((0x2600, Some(len as u16))));
            assert_eq!(code(&edited(header, 0, &said.to_be_bytes())), Err((0x2600, Some(len as u16))));
            assert_eq!(code(&edited(header, len, &[0, 31])), Ok(()), "half a descriptor is none");
            let overlap = list(header, &[(8, 8), (24, 8), (15, 1)]);
            assert_eq!(code(&overlap), Err((0x2600, Some(header as u16 + 32))));
            for range in [(4096, 1), (4095, 2), (u64::MAX, u32::MAX)] {
                assert_eq!(code(&list(header, &[range])), Err((0x2100, None)));
            }
            let many = |count: u64| (0..count).map(|lba| (lba, 1)).collect::<Vec<_>>();
            assert_eq!(code(&list(header, &many(u64::from(MOST_RANGES)))), Ok(()));
            assert_eq!(code(&list(header, &many(u64::from(MOST_RANGES) + 1))), Err((0x2608, None)));
        }
        let large = Geometry::of(&pollux_core::Shape { num_blocks: 1 << 40, ..shape() }, Flags::empty());
        let most = (MOST_TOKEN_BYTES / 512) as u32;
        assert!(populate(&list(16, &[(0, 1), (1, most - 1)]), large).is_ok());
        let sense = populate(&list(16, &[(0, 1), (1, most)]), large).unwrap_err();
        assert_eq!(sense, Sense::invalid_parameter(40, None));
    }

    proptest! {
        #[test]
        fn no_list_leads_outside(
            bytes in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..900),
            said in any::<u16>(), len in 0u16..600, blocks in 1u64..1 << 36,
        ) {
            let unit = Geometry::of(&pollux_core::Shape { num_blocks: blocks, ..shape() }, Flags::empty());
            for header in [16, 536] {
                let mut list = bytes.clone();
                if list.len() >= header {
                    list[..2].copy_from_slice(&said.to_be_bytes());
                    list[header - 2..header].copy_from_slice(&len.to_be_bytes());
                }
                let ranges = match header {
                    16 => populate(&list, unit).map(|populate| populate.ranges),
                    _ => use_token(&list, unit).map(|using| using.ranges),
                };
                let Ok(ranges) = ranges else { continue };
                prop_assert!(ranges.len() <= usize::from(MOST_RANGES));
                prop_assert!(ranges.iter().map(|range| range.len).sum::<u64>() <= MOST_TOKEN_BYTES);
                for (at, range) in ranges.iter().enumerate() {
                    prop_assert!(range.len > 0 && range.offset + range.len <= blocks * 512);
                    prop_assert!(!ranges[..at].iter().any(|other| other.overlaps(*range)));
                }
            }
        }
    }
}
