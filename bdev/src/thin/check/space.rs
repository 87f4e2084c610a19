//! The two bitmaps against what was found: clusters in use, and pages in use.

use super::bits::Bits;
use super::medium::Medium;
use super::report::{Findings, Flaw};
use super::trees::{Seen, Tree, Trees};
use crate::thin::format::{BITS_PER_PAGE, Kind, Page, Superblock};

const WORDS: u64 = BITS_PER_PAGE as u64 / 64;

/// The tree of clusters in use.
pub(super) fn space_tree(superblock: &Superblock) -> Tree {
    let (levels, root) = superblock.space;
    let leaves = u64::from(superblock.geometry.clusters).div_ceil(BITS_PER_PAGE as u64);
    Tree { kind: Kind::Space, layer: 0, levels, root, leaves, generation: superblock.generation }
}

/// The tree of pages in use.
pub(super) fn pages_tree(superblock: &Superblock, pages: u64) -> Tree {
    let (levels, root) = superblock.pages;
    let leaves = pages.div_ceil(BITS_PER_PAGE as u64);
    Tree { kind: Kind::Pages, layer: 0, levels, root, leaves, generation: superblock.generation }
}

/// Clusters that hold no data, as ranges: what is laid out when the pool is made, and metadata.
pub(super) fn reserved(superblock: &Superblock) -> Vec<(u64, u64)> {
    let mut ranges = vec![(0, u64::from(superblock.geometry.first_free))];
    for extent in &superblock.extents {
        ranges.push((u64::from(extent.first), u64::from(extent.first) + u64::from(extent.count)));
    }
    ranges
}

/// What a word of a bitmap has to be.
struct Expected<'a> {
    bits: &'a Bits,
    ranges: &'a [(u64, u64)],
    end: u64,
}

impl Expected<'_> {
    fn word(&self, at: u64) -> u64 {
        let first = at * 64;
        let mut word = self.bits.word(at);
        for (from, to) in self.ranges {
            word |= mask(from.saturating_sub(first), to.saturating_sub(first));
        }
        word & self.inside(at)
    }

    /// The bits of a word that mean something.
    fn inside(&self, at: u64) -> u64 {
        mask(0, self.end.saturating_sub(at * 64))
    }

    /// A number that has to be in these leaves, if there is one.
    fn any(&self, first: u64, count: u64) -> Option<u64> {
        let (from, to) =
            (first * BITS_PER_PAGE as u64, (first + count).saturating_mul(BITS_PER_PAGE as u64).min(self.end));
        let range = self.ranges.iter().find(|(a, b)| a.max(&from) < b.min(&to));
        range.map(|(a, _)| *a.max(&from)).or_else(|| self.bits.any_in(from, to))
    }
}

/// Bits from one to before another.
const fn mask(from: u64, to: u64) -> u64 {
    const fn below(bit: u64) -> u64 {
        if bit >= 64 { u64::MAX } else { (1 << bit) - 1 }
    }
    below(to) & !below(from)
}

/// Which bits of a leaf are wrong.
fn differences(page: &Page, index: u64, expected: &Expected) -> impl Iterator<Item = (u64, u64, u64)> {
    let (words, _) = page.payload().as_chunks::<8>();
    words.iter().zip(index * WORDS..).filter_map(|(word, at)| {
        let (word, should) = (u64::from_le_bytes(*word), expected.word(at));
        (word != should).then_some((at, word, should))
    })
}

/// The clusters in use. `known`: everybody's clusters are known.
pub(super) fn check_space(
    trees: &mut Trees,
    medium: &mut Medium,
    findings: &mut Findings,
    superblock: &Superblock,
    owned: &Bits,
    known: bool,
) {
    let ranges = reserved(superblock);
    let expected = Expected { bits: owned, ranges: &ranges, end: u64::from(superblock.geometry.clusters) };
    let words = ("cluster", Flaw::ClusterLeaked, Flaw::ClusterNotMarked);
    trees.walk(medium, findings, &space_tree(superblock), &mut |findings, seen| {
        compare(findings, seen, &expected, known, words)
    });
}

/// The pages in use, after everything else was walked.
pub(super) fn check_pages(trees: &mut Trees, medium: &mut Medium, findings: &mut Findings, superblock: &Superblock) {
    let tree = pages_tree(superblock, trees.pages);
    let expected = Expected { bits: &trees.used, ranges: &[], end: trees.pages };
    let known = !trees.lost;
    let words = ("page", Flaw::PageLeaked, Flaw::PageNotMarked);
    let mut again = Trees::new(superblock);
    // The tree itself was walked before: what is wrong with its pages was said.
    again
        .walk(medium, &mut Findings::default(), &tree, &mut |_, seen| compare(findings, seen, &expected, known, words));
}

type Words = (&'static str, Flaw, Flaw);

/// Compares what is seen of a bitmap; answers how many bits are clear.
fn compare(findings: &mut Findings, seen: &Seen, expected: &Expected, known: bool, words: Words) -> u64 {
    let (what, leaked, not_marked) = words;
    let layer = None;
    match *seen {
        Seen::Lost { .. } => 0,
        Seen::Hole { first, count } => {
            if let Some(number) = expected.any(first, count) {
                findings.add(not_marked, None, layer, || format!("{what} {number} is in use and not marked as such"));
            }
            let (from, to) = (first * BITS_PER_PAGE as u64, (first + count).saturating_mul(BITS_PER_PAGE as u64));
            to.min(expected.end).saturating_sub(from)
        }
        Seen::Leaf { index, block, page, .. } => {
            let block = Some(block);
            for (at, word, should) in differences(page, index, expected) {
                let number = |bits: u64| at * 64 + u64::from(bits.trailing_zeros());
                let (beyond, extra, missing) = (word & !expected.inside(at), word & !should, should & !word);
                if beyond != 0 {
                    let number = number(beyond);
                    findings.add(Flaw::TreeBeyondEnd, block, layer, || {
                        format!("{what} {number} is marked, and there is none")
                    });
                }
                let extra = extra & !beyond;
                if extra != 0 && known {
                    let number = number(extra);
                    findings
                        .add(leaked, block, layer, || format!("{what} {number} is marked as used, and nobody has it"));
                }
                if missing != 0 {
                    let number = number(missing);
                    findings
                        .add(not_marked, block, layer, || format!("{what} {number} is in use and not marked as such"));
                }
            }
            let (bytes, _) = page.payload().as_chunks::<8>();
            let clear = |(word, at): (&[u8; 8], u64)| {
                u64::from((!u64::from_le_bytes(*word) & expected.inside(at)).count_ones())
            };
            bytes.iter().zip(index * WORDS..).map(clear).sum()
        }
    }
}

/// How many pages the bitmap calls used; the walk of it marks its own pages.
pub(super) fn count_pages(
    trees: &mut Trees,
    medium: &mut Medium,
    findings: &mut Findings,
    superblock: &Superblock,
) -> u64 {
    let tree = pages_tree(superblock, trees.pages);
    let mut count = 0;
    trees.walk(medium, findings, &tree, &mut |_, seen| {
        if let Seen::Leaf { page, .. } = seen {
            count += page.payload().iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        }
        0
    });
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_masks() {
        assert_eq!(
            [mask(0, 64), mask(0, 0), mask(3, 5), mask(70, 90), mask(0, 1), mask(63, 200)],
            [u64::MAX, 0, 0b11000, 0, 1, 1 << 63]
        );
    }
}
