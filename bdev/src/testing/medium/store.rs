//! The bytes of a medium, sparse and cheap to copy: a copy shares everything, and each side pays for what it changes.
//!
//! What was garbled reads as [`GARBAGE`] in each byte and takes no space, as a hole does not.
//!
//! Invariants: a chunk that is in the map has a page that is not a hole; a page of data is not all zeroes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use pollux_core::Extent;

use crate::rng::mix;

const PAGE: usize = 4096;
/// Pages of a chunk.
const PAGES: usize = 256;
const CHUNK: u64 = (PAGE * PAGES) as u64;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Page {
    /// Takes no space; reads as zeroes.
    Hole,
    Zeroes,
    /// Takes no space; reads as garbage.
    Garbage,
    Data(Arc<[u8; PAGE]>),
}

/// What a device may have where something was discarded.
const GARBAGE: u8 = 0xDB;

impl Page {
    const fn takes_space(&self) -> bool {
        matches!(self, Page::Zeroes | Page::Data(_))
    }
}

type Chunk = Vec<Page>;

#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    chunks: BTreeMap<u64, Arc<Chunk>>,
}

/// The part of a range that lies in one page: where in the range it begins, and which bytes of the page it is.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, Range<usize>)> {
    let (page, end) = (PAGE as u64, offset + len);
    (offset / page..end.div_ceil(page)).map(move |nth| {
        let (from, to) = (offset.max(nth * page), end.min((nth + 1) * page));
        (from - offset, nth, (from - nth * page) as usize..(to - nth * page) as usize)
    })
}

impl Store {
    fn page(&self, nth: u64) -> &Page {
        let chunk = self.chunks.get(&(nth / PAGES as u64));
        chunk.map_or(&Page::Hole, |chunk| &chunk[(nth % PAGES as u64) as usize])
    }

    fn page_mut(&mut self, nth: u64) -> &mut Page {
        let chunk = self.chunks.entry(nth / PAGES as u64).or_insert_with(|| Arc::new(vec![Page::Hole; PAGES]));
        &mut Arc::make_mut(chunk)[(nth % PAGES as u64) as usize]
    }

    /// The bytes of a range, piece by piece.
    pub(super) fn each(&self, offset: u64, len: u64, mut take: impl FnMut(&[u8])) {
        for (_, nth, range) in parts(offset, len) {
            match self.page(nth) {
                Page::Hole | Page::Zeroes => take(&[0; PAGE][range]),
                Page::Garbage => take(&[GARBAGE; PAGE][range]),
                Page::Data(bytes) => take(&bytes[range]),
            }
        }
    }

    pub(super) fn read(&self, offset: u64, to: &mut [u8]) {
        let mut at = 0;
        self.each(offset, to.len() as u64, |bytes| {
            to[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        });
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, nth, range) in parts(offset, bytes.len() as u64) {
            let from = &bytes[at as usize..][..range.len()];
            let page = self.page_mut(nth);
            let mut whole = match page {
                Page::Data(old) => old.clone(),
                Page::Hole | Page::Zeroes => Arc::new([0; PAGE]),
                Page::Garbage => Arc::new([GARBAGE; PAGE]),
            };
            Arc::make_mut(&mut whole)[range].copy_from_slice(from);
            *page = if whole.iter().all(|byte| *byte == 0) { Page::Zeroes } else { Page::Data(whole) };
        }
    }

    /// Nobody knows what is in a range from now on.
    pub(super) fn garble(&mut self, offset: u64, len: u64) {
        for (_, nth, range) in parts(offset, len) {
            if range.len() < PAGE {
                self.write(nth * PAGE as u64 + range.start as u64, &vec![GARBAGE; range.len()]);
            } else {
                *self.page_mut(nth) = Page::Garbage;
            }
        }
    }

    /// Zeroes a range. With `deallocate` whole pages of it take no space any more.
    pub(super) fn zero(&mut self, offset: u64, len: u64, deallocate: bool) {
        let end = offset + len;
        let first = offset.next_multiple_of(CHUNK).min(end);
        let last = (end / CHUNK * CHUNK).max(first);
        self.zero_in_chunk(offset, first - offset, deallocate);
        let whole = first / CHUNK..last / CHUNK;
        if deallocate {
            let there: Vec<u64> = self.chunks.range(whole).map(|(chunk, _)| *chunk).collect();
            for chunk in there {
                self.chunks.remove(&chunk);
            }
        } else {
            let zeroes = Arc::new(vec![Page::Zeroes; PAGES]);
            self.chunks.extend(whole.map(|chunk| (chunk, zeroes.clone())));
        }
        self.zero_in_chunk(last, end - last, deallocate);
    }

    fn zero_in_chunk(&mut self, offset: u64, len: u64, deallocate: bool) {
        let chunk = offset / CHUNK;
        if len == 0 || (deallocate && !self.chunks.contains_key(&chunk)) {
            return;
        }
        for (_, nth, range) in parts(offset, len) {
            if range.len() < PAGE {
                if !(deallocate && *self.page(nth) == Page::Hole) {
                    self.write(nth * PAGE as u64 + range.start as u64, &vec![0; range.len()]);
                }
            } else {
                *self.page_mut(nth) = if deallocate { Page::Hole } else { Page::Zeroes };
            }
        }
        if self.chunks[&chunk].iter().all(|page| *page == Page::Hole) {
            self.chunks.remove(&chunk);
        }
    }

    /// How far the range is all of one kind. Looks at one chunk at most.
    pub(super) fn extent(&self, offset: u64, len: u64) -> Extent {
        let len = len.min(CHUNK - offset % CHUNK);
        let mapped = |nth| self.page(nth).takes_space();
        let first = mapped(offset / PAGE as u64);
        let other = parts(offset, len).find(|(_, nth, _)| mapped(*nth) != first);
        Extent { len: other.map_or(len, |(at, _, _)| at), mapped: first }
    }

    /// A number that two contents share only by a chance of 2^-128, as good as never.
    pub(super) fn digest(&self) -> u128 {
        let mut sums = [0u64; 2];
        for (chunk, pages) in &self.chunks {
            for (at, page) in pages.iter().enumerate() {
                let bytes = match page {
                    Page::Data(bytes) => bytes,
                    Page::Garbage => &[GARBAGE; PAGE],
                    Page::Hole | Page::Zeroes => continue,
                };
                let mut state = [mix(*chunk * PAGES as u64 + at as u64 + 1), 0x9e37_79b9_7f4a_7c15];
                for word in bytes.chunks_exact(16) {
                    let half = |at: usize| u64::from_le_bytes(*word[at..].first_chunk().expect("inside"));
                    state[0] = (state[0] ^ half(0)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29);
                    state[1] = (state[1] ^ half(8)).wrapping_mul(0xc4ce_b9fe_1a85_ec53).rotate_left(31);
                    state[1] ^= state[0] >> 7;
                    state[0] = state[0].wrapping_add(state[1]);
                }
                sums[0] = sums[0].wrapping_add(mix(state[0]));
                sums[1] = sums[1].wrapping_add(mix(state[1] ^ state[0].rotate_left(17)));
            }
        }
        u128::from(sums[0]) << 64 | u128::from(sums[1])
    }

    /// How much space it takes, in bytes.
    pub(super) fn space(&self) -> u64 {
        let pages = self.chunks.values().flat_map(|chunk| chunk.iter()).filter(|page| page.takes_space()).count();
        (pages * PAGE) as u64
    }

    /// How much more space it would take if the whole range took some.
    pub(super) fn missing(&self, offset: u64, len: u64) -> u64 {
        let holes = parts(offset, len).filter(|(_, nth, _)| !self.page(*nth).takes_space()).count();
        (holes * PAGE) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn read(store: &Store, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        store.read(offset, &mut bytes);
        bytes
    }

    #[test]
    fn holds_what_an_array_of_bytes_holds() {
        const BYTES: u64 = 3 << 20;
        let mut rng = Rng::new(1);
        let (mut store, mut model) = (Store::default(), vec![0u8; BYTES as usize]);
        for round in 1..400u64 {
            let offset = rng.below(BYTES / 512) * 512;
            let longest = if round % 8 == 0 { BYTES } else { 64 << 10 };
            let len = (1 + rng.below(longest / 512)).min((BYTES - offset) / 512) * 512;
            let range = offset as usize..(offset + len) as usize;
            match rng.below(4) {
                1 if (offset | len).is_multiple_of(4096) => {
                    store.garble(offset, len);
                    model[range].fill(GARBAGE);
                }
                0 => {
                    store.zero(offset, len, rng.below(2) == 0);
                    model[range].fill(0);
                }
                _ => {
                    let bytes = vec![round as u8; len as usize];
                    store.write(offset, &bytes);
                    model[range].copy_from_slice(&bytes);
                }
            }
        }
        assert!(read(&store, 0, BYTES as usize) == model);
    }

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut store = Store::default();
        store.write(4000, &[1; 200]);
        let copy = store.clone();
        store.write(4100, &[2; 8]);
        store.zero(0, 4096, true);
        assert_eq!(read(&copy, 4000, 200), [1; 200]);
        assert_eq!(read(&store, 4000, 200), [vec![0; 96], vec![1; 4], vec![2; 8], vec![1; 92]].concat());
    }

    #[test]
    fn equal_contents_have_equal_digests() {
        let (mut one, mut other) = (Store::default(), Store::default());
        one.write(5 << 20, &[7; 100]);
        other.write(5 << 20, &[7; 200]);
        assert_ne!(one.digest(), other.digest());
        other.zero((5 << 20) + 100, 100, false);
        other.write(0, &[0; 8192]);
        assert_eq!(one.digest(), other.digest(), "zeroes are zeroes");
        let mut moved = Store::default();
        moved.write((5 << 20) + 4096, &[7; 100]);
        assert_ne!(one.digest(), moved.digest());
    }

    #[test]
    fn space_is_what_was_written_and_not_given_back() {
        let mut store = Store::default();
        assert_eq!(store.missing(0, 8192), 8192);
        store.write(0, &[0; 4096]);
        assert_eq!(store.extent(512, 8192), Extent { len: 3584, mapped: true });
        assert_eq!(store.extent(4096, 1 << 40), Extent { len: CHUNK - 4096, mapped: false });
        assert_eq!((store.space(), store.missing(0, 8192)), (4096, 4096), "zeroes that are written take space");
        store.zero(0, 2 << 20, false);
        assert_eq!(store.space(), 2 << 20);
        store.zero(512, 2 << 20, true);
        assert_eq!(store.space(), 4096, "the edge stays");
        store.zero(0, 1 << 50, true);
        assert_eq!((store.space(), store.chunks.len()), (0, 0));
        store.zero(100, 100, true);
        assert_eq!(store.chunks.len(), 0);
    }
}
