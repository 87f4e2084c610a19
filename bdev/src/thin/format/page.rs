//! Pages of metadata: the trees of a pool. Each page says what it is, whose, and where it lies; its parent says which
//! generation of it is meant. So a page that was written elsewhere, or an old one that was never overwritten, is seen.
//!
//! ```text
//! bytes  0..4   "PLXP"        8  kind   9  level, 0: a leaf     16..24  generation, the checkpoint that wrote it
//!        4..8   CRC-32C      24..32  its own block              32..40  layer, 0: the pool's
//!       40..48  which one of its level it is                    48..64  the pool's UUID
//!       64..    504 entries of 8 bytes, 252 pointers of 16, 32256 bits or 14 layers, by kind and level
//! ```

use uuid::Uuid;

use super::{BLOCK, Entry, HEADER, LAYERS_PER_PAGE, is_sealed, seal};

const MAGIC: [u8; 4] = *b"PLXP";
const PAYLOAD: usize = BLOCK - HEADER;

/// Entries of a leaf of a layer's map.
pub const ENTRIES_PER_PAGE: usize = PAYLOAD / 8;
/// Pointers of a page above the leaves.
pub const POINTERS_PER_PAGE: usize = PAYLOAD / 16;
/// Bits of a leaf of a bitmap.
pub const BITS_PER_PAGE: usize = PAYLOAD * 8;

/// What a tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The entries of one layer.
    Map,
    /// The layers.
    Catalog,
    /// Which clusters are in use.
    Space,
    /// Which pages of the metadata extents are in use.
    Pages,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Map, Kind::Catalog, Kind::Space, Kind::Pages];

    const fn byte(self) -> u8 {
        match self {
            Kind::Map => 1,
            Kind::Catalog => 2,
            Kind::Space => 3,
            Kind::Pages => 4,
        }
    }

    /// What a leaf has places for.
    #[must_use]
    pub const fn per_leaf(self) -> u64 {
        match self {
            Kind::Map => ENTRIES_PER_PAGE as u64,
            Kind::Catalog => LAYERS_PER_PAGE as u64,
            Kind::Space | Kind::Pages => BITS_PER_PAGE as u64,
        }
    }
}

/// How many levels a tree has whose leaves are so many: 0 without any, 1 with one.
#[must_use]
pub const fn levels_for(leaves: u64) -> u8 {
    let (mut levels, mut pages) = (0, leaves);
    while pages > 0 {
        levels += 1;
        pages = if pages == 1 { 0 } else { pages.div_ceil(POINTERS_PER_PAGE as u64) };
    }
    levels
}

/// Which page of which tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageId {
    /// Of which kind of tree.
    pub kind: Kind,
    /// Whose map it is; 0: the pool's.
    pub layer: u64,
    /// 0: a leaf.
    pub level: u8,
    /// Which one of its level, from 0.
    pub index: u64,
}

/// Where a page lies, as its parent knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pointer {
    /// Its block; 0: there is none, and all below it is empty.
    pub block: u64,
    /// The checkpoint that wrote it.
    pub generation: u64,
    /// In the tree of clusters: how many of those below are free, 65535: so many or more. Else 0.
    pub free: u16,
}

impl Pointer {
    /// To nothing.
    pub const NONE: Pointer = Pointer { block: 0, generation: 0, free: 0 };

    /// Whether there is a page.
    #[must_use]
    pub const fn is_some(self) -> bool {
        self.block != 0
    }

    pub(super) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(self.block | u64::from(self.free) << 48).to_le_bytes());
        bytes[8..].copy_from_slice(&self.generation.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; 16]) -> Pointer {
        let place = u64_at(bytes, 0);
        Pointer { block: place & ((1 << 48) - 1), generation: u64_at(bytes, 8), free: (place >> 48) as u16 }
    }
}

/// What a page says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// Which page it is.
    pub id: PageId,
    /// The checkpoint that wrote it.
    pub generation: u64,
    /// Its own block.
    pub block: u64,
    /// The pool.
    pub pool: Uuid,
}

impl PageHeader {
    /// What a block says that it is; `None`: no page of metadata, or a damaged one.
    #[must_use]
    pub fn of(bytes: &[u8; BLOCK]) -> Option<PageHeader> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.byte() == bytes[8])?;
        let id = PageId { kind, layer: u64_at(bytes, 32), level: bytes[9], index: u64_at(bytes, 40) };
        let pool = Uuid::from_bytes(*bytes[48..].first_chunk()?);
        let header = PageHeader { id, generation: u64_at(bytes, 16), block: u64_at(bytes, 24), pool };
        (bytes[..4] == MAGIC && is_sealed(bytes)).then_some(header)
    }
}

/// A page in memory.
#[derive(Clone)]
pub struct Page(Box<[u8; BLOCK]>);

impl Default for Page {
    fn default() -> Self {
        Page(Box::new([0; BLOCK]))
    }
}

impl Page {
    /// What was read, unless it is not the page that this header describes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(bytes: Box<[u8; BLOCK]>, expected: &PageHeader) -> Result<Page, &'static str> {
        if bytes[..4] != MAGIC {
            return Err("it is no page of metadata");
        }
        if !is_sealed(&bytes) {
            return Err("its checksum is wrong");
        }
        let PageHeader { id, generation, block, pool } = *expected;
        if bytes[48..64] != *pool.as_bytes() {
            return Err("it is a page of another pool");
        }
        if u64_at(&*bytes, 24) != block {
            return Err("it was meant for another place");
        }
        let found = (bytes[8], bytes[9], u64_at(&*bytes, 32), u64_at(&*bytes, 40));
        if found != (id.kind.byte(), id.level, id.layer, id.index) {
            return Err("it is another page of the pool");
        }
        if u64_at(&*bytes, 16) != generation {
            return Err("it is of another generation");
        }
        Ok(Page(bytes))
    }

    /// The bytes to be written.
    #[must_use]
    pub fn close(&mut self, header: &PageHeader) -> &[u8; BLOCK] {
        let PageHeader { id, generation, block, pool } = header;
        let bytes = &mut *self.0;
        bytes[..HEADER].fill(0);
        bytes[..4].copy_from_slice(&MAGIC);
        (bytes[8], bytes[9]) = (id.kind.byte(), id.level);
        bytes[16..24].copy_from_slice(&generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&block.to_le_bytes());
        bytes[32..40].copy_from_slice(&id.layer.to_le_bytes());
        bytes[40..48].copy_from_slice(&id.index.to_le_bytes());
        bytes[48..64].copy_from_slice(pool.as_bytes());
        seal(bytes);
        bytes
    }

    /// An entry of a leaf of a map; `None`: its bits make no sense.
    #[must_use]
    pub fn entry(&self, at: usize) -> Option<Entry> {
        Entry::from_bits(u64_at(self.payload(), at * 8))
    }

    /// Sets one.
    pub fn set_entry(&mut self, at: usize, entry: Entry) {
        self.payload_mut()[at * 8..][..8].copy_from_slice(&entry.bits().to_le_bytes());
    }

    /// A pointer of a page above the leaves.
    #[must_use]
    pub fn pointer(&self, at: usize) -> Pointer {
        let bytes = self.payload()[at * 16..].first_chunk().expect("the page has as many");
        Pointer::from_bytes(bytes)
    }

    /// Sets one.
    pub fn set_pointer(&mut self, at: usize, pointer: Pointer) {
        self.payload_mut()[at * 16..][..16].copy_from_slice(&pointer.to_bytes());
    }

    /// A bit of a leaf of a bitmap.
    #[must_use]
    pub fn bit(&self, at: usize) -> bool {
        self.payload()[at / 8] >> (at % 8) & 1 == 1
    }

    /// Sets one.
    pub fn set_bit(&mut self, at: usize, on: bool) {
        let byte = &mut self.payload_mut()[at / 8];
        *byte = *byte & !(1 << (at % 8)) | u8::from(on) << (at % 8);
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.payload().iter().all(|byte| *byte == 0)
    }

    /// What follows the header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.0[HEADER..]
    }

    /// The same, to be changed.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.0[HEADER..]
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside the page"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Uuid = Uuid::from_u128(0x0123_4567);
    const ID: PageId = PageId { kind: Kind::Map, layer: 9, level: 0, index: 3 };
    const THIS: PageHeader = PageHeader { id: ID, generation: 5, block: 77, pool: POOL };

    fn bytes_of(page: &mut Page, header: &PageHeader) -> Box<[u8; BLOCK]> {
        Box::new(*page.close(header))
    }

    #[test]
    fn a_page_is_only_what_it_says_where_it_says() {
        let mut page = Page::default();
        page.set_entry(503, Entry::on(1).with_here(2));
        let bytes = bytes_of(&mut page, &THIS);
        assert_eq!(Page::open(bytes.clone(), &THIS).unwrap().entry(503), Some(Entry::on(1).with_here(2)));
        assert_eq!(PageHeader::of(&bytes), Some(THIS));
        let others = [
            PageHeader { generation: 4, ..THIS },
            PageHeader { block: 78, ..THIS },
            PageHeader { pool: Uuid::from_u128(1), ..THIS },
            PageHeader { id: PageId { kind: Kind::Space, ..ID }, ..THIS },
            PageHeader { id: PageId { layer: 8, ..ID }, ..THIS },
            PageHeader { id: PageId { level: 1, ..ID }, ..THIS },
            PageHeader { id: PageId { index: 0, ..ID }, ..THIS },
        ];
        for other in others {
            assert!(Page::open(bytes.clone(), &other).is_err(), "{other:?}");
        }
        for at in [0, 5, 10, HEADER, BLOCK - 1] {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            assert_eq!(PageHeader::of(&torn), None);
            assert!(Page::open(torn, &THIS).is_err(), "byte {at}");
        }
        assert!(Page::open(Box::new([0; BLOCK]), &THIS).is_err());
    }

    #[test]
    fn places_of_a_page() {
        let mut page = Page::default();
        assert!(page.is_empty());
        let pointer = Pointer { block: (1 << 48) - 1, generation: u64::MAX, free: 0xFFFF };
        page.set_pointer(251, pointer);
        assert_eq!((page.pointer(251), page.pointer(250)), (pointer, Pointer::NONE));
        let mut page = Page::default();
        page.set_bit(BITS_PER_PAGE - 1, true);
        page.set_bit(0, true);
        page.set_bit(0, false);
        assert!(page.bit(BITS_PER_PAGE - 1) && !page.bit(0) && !page.is_empty());
        page.payload_mut()[7] = 0x80;
        assert!(page.bit(63));
        page.payload_mut()[3] = 0x80;
        assert_eq!(page.entry(0), None, "the spare bit");
    }

    #[test]
    fn trees_are_as_high_as_they_have_to_be() {
        let levels = [0, 1, 2, 252, 253, 252 * 252, 252 * 252 + 1].map(levels_for);
        assert_eq!(levels, [0, 1, 2, 2, 3, 3, 4]);
        assert_eq!(Kind::ALL.map(Kind::per_leaf), [504, 14, 32256, 32256]);
    }
}
