//! A pool on its base device, byte by byte: docs/format.md in code.
//!
//! Definitions alone: nothing here reads or writes a device, and nothing here believes a byte before its checksum and its
//! place are right. The pool and its checker share this module and nothing else, so that the one can judge the other.
//!
//! All numbers are little endian. The unit is the *block* of 4 KiB; a *cluster* is what is allocated, a *sub-block* a
//! sixteenth of it.

mod checksum;
mod entry;
mod geometry;
mod layer;
mod log;
mod page;
mod record;
mod superblock;

pub use checksum::{is_sealed, seal};
pub use entry::{Entry, SUB_BLOCKS};
pub use geometry::{Geometry, GeometryError, MAX_CLUSTER, MIN_CLUSTER};
pub use layer::{LAYER_LEN, LAYERS_PER_PAGE, Layer, LayerKind, NAME_LEN, Origin};
pub use log::{LogHeader, PAYLOAD_LEN, batch_blocks};
pub use page::{
    BITS_PER_PAGE, ENTRIES_PER_PAGE, Kind, POINTERS_PER_PAGE, Page, PageHeader, PageId, Pointer, levels_for,
};
pub use record::{Record, RecordError, Records};
pub use superblock::{
    Extent, LogSpan, MAX_EXTENTS, MAX_SPANS, SLOTS, Superblock, SuperblockError, THRESHOLDS, slot_block,
};

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Bytes of the header of a page or a block of the log; the rest is its payload.
pub(crate) const HEADER: usize = 64;
