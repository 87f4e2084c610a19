//! The superblock: what kind of pool it is, where its trees are, and from where on the log counts.
//!
//! There are four places, 256 KiB apart, written in turn; the readable one with the highest generation counts. So the
//! last but one is whole whatever happens to the writing of the last, and damage in one place costs one of four.
//!
//! ```text
//! bytes   0..8    "PLXT" CRC-32C           8..24   UUID of the pool        24..28  version      28..32  place, 0 to 3
//!        32..56   features: compatible, to be read only, incompatible      56..64  generation
//!        64..68   bytes of a cluster      68..72   clusters               72..88   first block and blocks of the log
//!        88..96   first cluster that was free when the pool was made      96..104  number of the next layer
//!       104..112  from which block of the log on it counts               112..120  and from which batch on
//!       120..128  when the pool was made, seconds since 1970              128..132  overcommit in percent, 0: no limit
//!       132       length of the name      133..136  levels of the three trees      136..200  name
//!       200..248  top pages of the catalog, of space, of pages
//!       248..250  metadata extents        250..252  salts                256..384  up to 8 salts, each with its first block
//!       384..2400 up to 252 metadata extents: first cluster and count
//!      2400..2432 up to 4 soft thresholds of used space, 1 to 100: percent, else bytes; 0: none
//!      2432..2440 bytes a second that are discarded on the base; 0: as many as the program thinks fit
//! ```

use uuid::Uuid;

use super::geometry::GeometryError;
use super::{BLOCK, Geometry, NAME_LEN, Pointer, is_sealed, seal};

const MAGIC: [u8; 4] = *b"PLXT";
const VERSION: u32 = 1;

/// Places of the superblock.
pub const SLOTS: u32 = 4;
/// Metadata extents at most.
pub const MAX_EXTENTS: usize = 252;
/// Starts of a pool that its log can tell apart.
pub const MAX_SPANS: usize = 8;

/// Soft thresholds of a pool.
pub const THRESHOLDS: usize = 4;
const THRESHOLDS_AT: usize = 2400;
const DISCARD_RATE_AT: usize = THRESHOLDS_AT + THRESHOLDS * 8;
/// From here on there is what a compatible feature may have put there.
const BEYOND: usize = DISCARD_RATE_AT + 8;

/// The block of a place.
#[must_use]
pub const fn slot_block(slot: u32) -> u64 {
    slot as u64 * 64
}

/// Clusters with metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// A part of the log that was written after one start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpan {
    /// What all of its blocks carry.
    pub salt: u64,
    /// The number of its first block.
    pub from: u64,
}

/// Why a block is no superblock that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Not one at all, or damaged.
    #[error("{0}")]
    Damaged(&'static str),
    /// A later Pollux has made it.
    #[error("the pool has format {0}, which needs a newer version")]
    Version(u32),
    /// It has something that this version cannot leave alone.
    #[error("the pool has features {0:#x}, which need a newer version")]
    Features(u64),
}

impl From<GeometryError> for SuperblockError {
    fn from(_: GeometryError) -> Self {
        SuperblockError::Damaged("its geometry cannot be")
    }
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool.
    pub pool: Uuid,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Rises with each one that is written.
    pub generation: u64,
    /// Where what lies.
    pub geometry: Geometry,
    /// The number of the next layer.
    pub next_layer: u64,
    /// The first block of the log that counts.
    pub log_from: u64,
    /// The first batch that counts.
    pub batch_from: u64,
    /// Which starts wrote what of the log, the oldest first.
    pub spans: Vec<LogSpan>,
    /// How much may be promised of what there is, in percent; 0: anything.
    pub overcommit: u32,
    /// The tree of layers: levels and top page.
    pub catalog: (u8, Pointer),
    /// The tree of clusters in use.
    pub space: (u8, Pointer),
    /// The tree of pages in use.
    pub pages: (u8, Pointer),
    /// Where metadata lies; the first one is the geometry's.
    pub extents: Vec<Extent>,
    /// How much may be used before somebody is told: 1 to 100 percent, else bytes; 0: none.
    pub thresholds: [u64; THRESHOLDS],
    /// Bytes a second that the base may be told of that nobody needs; 0: as many as the program thinks fit.
    pub discard_rate: u64,
    /// Compatible features, none of which this version knows, and what lies in the bytes that this version has no use for:
    /// it stays as it is. Empty: zeroes.
    pub unknown: (u64, Vec<u8>),
}

impl Superblock {
    /// The bytes to be written to a place.
    ///
    /// # Panics
    /// If there is more in it than fits.
    #[must_use]
    pub fn close(&self, slot: u32) -> Box<[u8; BLOCK]> {
        assert!(self.extents.len() <= MAX_EXTENTS && self.spans.len() <= MAX_SPANS && slot < SLOTS);
        let mut bytes = Box::new([0; BLOCK]);
        let geometry = &self.geometry;
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[8..24].copy_from_slice(self.pool.as_bytes());
        let shorts = [
            (24, VERSION),
            (28, slot),
            (64, geometry.cluster_size),
            (68, geometry.clusters),
            (88, geometry.first_free),
            (128, self.overcommit),
        ];
        for (at, number) in shorts {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let longs = [
            (32, self.unknown.0),
            (56, self.generation),
            (72, geometry.log_start),
            (80, geometry.log_blocks),
            (96, self.next_layer),
            (104, self.log_from),
            (112, self.batch_from),
            (120, self.created),
        ];
        for (at, number) in longs {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[132] = self.name.len() as u8;
        bytes[136..136 + NAME_LEN][..self.name.len()].copy_from_slice(self.name.as_bytes());
        for ((levels, pointer), at) in [self.catalog, self.space, self.pages].into_iter().zip(0..) {
            bytes[133 + at] = levels;
            bytes[200 + at * 16..][..16].copy_from_slice(&pointer.to_bytes());
        }
        bytes[248..250].copy_from_slice(&(self.extents.len() as u16).to_le_bytes());
        bytes[250..252].copy_from_slice(&(self.spans.len() as u16).to_le_bytes());
        for (span, at) in self.spans.iter().zip((256..).step_by(16)) {
            bytes[at..at + 8].copy_from_slice(&span.salt.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&span.from.to_le_bytes());
        }
        for (extent, at) in self.extents.iter().zip((384..).step_by(8)) {
            bytes[at..at + 4].copy_from_slice(&extent.first.to_le_bytes());
            bytes[at + 4..at + 8].copy_from_slice(&extent.count.to_le_bytes());
        }
        for (threshold, at) in self.thresholds.iter().zip((THRESHOLDS_AT..).step_by(8)) {
            bytes[at..at + 8].copy_from_slice(&threshold.to_le_bytes());
        }
        bytes[DISCARD_RATE_AT..BEYOND].copy_from_slice(&self.discard_rate.to_le_bytes());
        bytes[BEYOND..][..self.unknown.1.len()].copy_from_slice(&self.unknown.1);
        seal(&mut bytes);
        bytes
    }

    /// What was read from a place.
    ///
    /// # Errors
    /// [`SuperblockError`] says why it cannot be used.
    pub fn open(bytes: &[u8; BLOCK], slot: u32) -> Result<Superblock, SuperblockError> {
        use SuperblockError::Damaged;
        if bytes[..4] != MAGIC {
            return Err(Damaged("it is no superblock"));
        }
        if !is_sealed(bytes) {
            return Err(Damaged("its checksum is wrong"));
        }
        let short = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside"));
        let long = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside"));
        let count = |at: usize| usize::from(u16::from_le_bytes(*bytes[at..].first_chunk().expect("inside")));
        if short(24) != VERSION {
            return Err(SuperblockError::Version(short(24)));
        }
        if short(28) != slot {
            return Err(Damaged("it was meant for another place"));
        }
        // There are none yet, so all of them are later ones; those that are compatible are kept as they are.
        if let Some(features) = [long(48), long(40)].into_iter().find(|features| *features != 0) {
            return Err(SuperblockError::Features(features));
        }
        let (extents, spans) = (count(248), count(250));
        if extents == 0 || extents > MAX_EXTENTS || spans == 0 || spans > MAX_SPANS {
            return Err(Damaged("it lists more than it has room for, or nothing"));
        }
        let name = bytes[136..136 + NAME_LEN].get(..usize::from(bytes[132])).and_then(|name| str::from_utf8(name).ok());
        let extent = |at: usize| Extent { first: short(384 + at * 8), count: short(388 + at * 8) };
        let span = |at: usize| LogSpan { salt: long(256 + at * 16), from: long(264 + at * 16) };
        let extents: Vec<Extent> = (0..extents).map(extent).collect();
        let tree = |at: usize| {
            let pointer = bytes[200 + at * 16..].first_chunk().expect("inside");
            (bytes[133 + at], Pointer::from_bytes(pointer))
        };
        let beyond = &bytes[BEYOND..];
        let superblock = Superblock {
            pool: Uuid::from_bytes(*bytes[8..].first_chunk().expect("inside")),
            name: name.ok_or(Damaged("its name is none"))?.into(),
            created: long(120),
            generation: long(56),
            geometry: Geometry {
                cluster_size: short(64),
                clusters: short(68),
                log_start: long(72),
                log_blocks: long(80),
                first_free: short(88),
                metadata: (extents[0].first, extents[0].count),
            },
            next_layer: long(96),
            log_from: long(104),
            batch_from: long(112),
            spans: (0..spans).map(span).collect(),
            overcommit: short(128),
            catalog: tree(0),
            space: tree(1),
            pages: tree(2),
            extents,
            thresholds: std::array::from_fn(|at| long(THRESHOLDS_AT + at * 8)),
            discard_rate: long(DISCARD_RATE_AT),
            unknown: (long(32), if beyond.iter().all(|byte| *byte == 0) { Vec::new() } else { beyond.to_vec() }),
        };
        superblock.geometry.check()?;
        superblock.check()?;
        Ok(superblock)
    }

    /// Whether what it lists can be.
    fn check(&self) -> Result<(), SuperblockError> {
        use SuperblockError::Damaged;
        let clusters = u64::from(self.geometry.clusters);
        let outside = |extent: &Extent| {
            extent.first == 0 || extent.count == 0 || u64::from(extent.first) + u64::from(extent.count) > clusters
        };
        if self.extents.iter().any(outside) {
            return Err(Damaged("metadata lies outside of the pool"));
        }
        let mut sorted = self.extents.clone();
        sorted.sort_unstable_by_key(|extent| extent.first);
        if sorted.windows(2).any(|pair| pair[0].first + pair[0].count > pair[1].first) {
            return Err(Damaged("metadata lies over metadata"));
        }
        if !self.spans.is_sorted_by(|a, b| a.from <= b.from) || self.next_layer == 0 {
            return Err(Damaged("its numbers cannot be"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        let geometry = Geometry::new(1 << 40, 64 << 10).unwrap();
        let extent = |first| Extent { first, count: 100 };
        let mut extents = vec![Extent { first: geometry.metadata.0, count: geometry.metadata.1 }];
        extents.extend((1..MAX_EXTENTS as u32).map(|at| extent(geometry.first_free + at * 1000)));
        Superblock {
            pool: Uuid::from_u128(5),
            name: "a pool".into(),
            created: 1,
            generation: 2,
            geometry,
            next_layer: 3,
            log_from: 4,
            batch_from: 5,
            spans: (0..MAX_SPANS as u64).map(|at| LogSpan { salt: at, from: at * 9 }).collect(),
            overcommit: 6,
            catalog: (1, Pointer { block: 7, generation: 8, free: 0 }),
            space: (2, Pointer { block: 9, generation: 10, free: 11 }),
            pages: (3, Pointer { block: 12, generation: 13, free: 0 }),
            extents,
            thresholds: [80, 95, 1 << 30, 0],
            discard_rate: 7 << 20,
            unknown: (0, Vec::new()),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for slot in 0..SLOTS {
            let bytes = superblock().close(slot);
            assert_eq!(Superblock::open(&bytes, slot), Ok(superblock()));
            let elsewhere = Superblock::open(&bytes, (slot + 1) % SLOTS);
            assert_eq!(elsewhere, Err(SuperblockError::Damaged("it was meant for another place")));
            assert_eq!(slot_block(slot) * BLOCK as u64, u64::from(slot) * (256 << 10));
        }
    }

    #[test]
    fn what_a_compatible_feature_has_put_there_stays() {
        let mut bytes = superblock().close(1);
        (bytes[32], bytes[BEYOND + 7], bytes[BLOCK - 1]) = (4, 9, 8);
        seal(&mut bytes);
        let opened = Superblock::open(&bytes, 1).unwrap();
        assert_eq!(opened.unknown.0, 4);
        let next = Superblock { generation: opened.generation + 1, ..opened };
        let written = next.close(2);
        assert_eq!((written[32], written[BEYOND + 7], written[BLOCK - 1]), (4, 9, 8));
        assert_eq!(Superblock::open(&written, 2), Ok(next));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let sealed = |change: &dyn Fn(&mut [u8; BLOCK])| {
            let mut bytes = superblock().close(0);
            change(&mut bytes);
            seal(&mut bytes);
            Superblock::open(&bytes, 0)
        };
        assert!(sealed(&|_| {}).is_ok());
        assert_eq!(sealed(&|bytes| bytes[24] = 2), Err(SuperblockError::Version(2)));
        assert_eq!(sealed(&|bytes| bytes[48] = 4), Err(SuperblockError::Features(4)));
        assert_eq!(sealed(&|bytes| bytes[40] = 4), Err(SuperblockError::Features(4)));
        assert!(sealed(&|bytes| bytes[32] = 4).is_ok(), "compatible");
        for (at, byte) in [(0, 0), (66, 3), (132, 65), (136, 0xFF), (248, 0xFF), (250, 9), (96, 0), (384, 0), (73, 9)] {
            assert!(matches!(sealed(&|bytes| bytes[at] = byte), Err(SuperblockError::Damaged(_))), "{at}: {byte}");
        }
        let mut bytes = superblock().close(0);
        bytes[100] ^= 1;
        assert!(Superblock::open(&bytes, 0).is_err(), "not sealed");
    }
}
