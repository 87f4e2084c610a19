//! The stream that a volume is exported as, byte by byte: docs/export.md is the same in words.
//!
//! A stream is frames. Each has a checksum over its header, its payload, the stream's id and its number, so a frame that is
//! damaged, lost, repeated, moved or of another stream is seen where it is met. Whoever reads one believes nothing
//! before its checksum is right, and no stream before its last frame.

mod name;
mod read;
mod write;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use name::give_name;
pub use read::{Reader, StreamError};
pub use write::Writer;

/// The version that is written and read.
pub const VERSION: u32 = 1;
/// Offsets and lengths are multiples of it.
pub const GRAIN: u64 = 4096;
/// Bytes of data of a frame at most.
pub const DATA_MAX: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"PLXV";
const HEADER: usize = 32;
/// Bytes of the text of the first and the last frame at most.
const TEXT_MAX: usize = 4096;

/// What a stream is of: its first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// Tells it from all other streams.
    pub stream: Uuid,
    /// The volume or snapshot that it was made of, as it was called: for people.
    pub name: String,
    /// Bytes of the volume.
    pub bytes: u64,
    /// Bytes of all parts that follow, data and zeroes.
    pub content: u64,
    /// Which state of it this is: the snapshot, as its first pool knew it.
    pub state: Uuid,
    /// The state that it says the difference to; none: it says everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

/// What a delta stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// As `state` of the stream that brought it.
    pub state: Uuid,
    /// As it was called: for people.
    pub name: String,
}

/// What a stream has held: its last frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Frames before this one.
    pub frames: u64,
    /// Bytes of data.
    pub data_bytes: u64,
    /// Bytes that are zero.
    pub zero_bytes: u64,
    /// CRC-32C of all data, in order.
    pub data_crc32c: u32,
}

/// A part of the volume, or the end.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// These bytes are at this offset.
    Data {
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: &'a [u8],
    },
    /// So many bytes are zero, whatever the base has there.
    Zero {
        /// Where, in bytes.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// That was all, and it was whole.
    End(End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Begin = 1,
    Data = 2,
    Zero = 3,
    End = 4,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Begin, Kind::Data, Kind::Zero, Kind::End];
}

/// The first bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: Kind,
    /// Of the first frame: the version; of the last: 0.
    offset: u64,
    /// Bytes of the payload; of zeroes: of the range.
    len: u64,
}

impl Header {
    fn to_bytes(self, checksum: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// The header, and the checksum that it has. `None`: no frame begins so.
    fn from_bytes(bytes: &[u8; HEADER]) -> Option<(Header, u32)> {
        let half = |at: usize| bytes[at..].first_chunk().map(|four| u32::from_le_bytes(*four));
        let number = |at: usize| bytes[at..].first_chunk().map(|eight| u64::from_le_bytes(*eight));
        let kind = Kind::ALL.into_iter().find(|kind| half(8) == Some(*kind as u32))?;
        let is_ours = bytes.starts_with(&MAGIC) && half(12) == Some(0);
        let header = Header { kind, offset: number(16)?, len: number(24)? };
        is_ours.then_some((header, half(4)?))
    }

    /// Bytes that follow it.
    fn payload(self) -> u64 {
        if self.kind == Kind::Zero { 0 } else { self.len }
    }

    /// Its checksum, as frame `number` of a stream.
    fn checksum(self, stream: Uuid, number: u64, payload: &[u8]) -> u32 {
        let sum = crc32c::crc32c(stream.as_bytes());
        let sum = crc32c::crc32c_append(sum, &number.to_le_bytes());
        let sum = crc32c::crc32c_append(sum, &self.to_bytes(0));
        crc32c::crc32c_append(sum, payload)
    }
}

#[cfg(test)]
mod tests;
