//! A volatile write cache: what was acknowledged and is not on the base yet.
//!
//! By block, the versions that were written since the block was last written back, oldest first; each has the sequence
//! number of its write. Reads see the newest. Invariants: versions of a block have rising numbers; a block without
//! versions is not in the map; only what has reached the base is forgotten.
//!
//! Writing back, and operations that change the base directly, are one at a time over all reactors (`medium`): else an
//! older version could reach the base after a newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::rng::mix;

/// Versions kept of one block. Older ones are forgotten, which is as if they had never reached the medium.
const VERSIONS: usize = 4;

/// The content of one block.
pub(super) type Content = Arc<[u8]>;

/// What a power cut did to the writes that were not flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PowerCut {
    /// Writes that are on the medium.
    pub kept: u64,
    /// Writes of which some blocks are on the medium.
    pub torn: u64,
    /// Writes that are gone.
    pub lost: u64,
}

/// What becomes of one unflushed write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Torn,
    Lost,
}

#[derive(Clone, Debug)]
struct Version {
    seq: u64,
    content: Content,
    /// It has survived a power cut: it is on the medium as far as anybody can tell.
    durable: bool,
    /// It is being written to the base: a power cut comes too late.
    leaving: bool,
}

/// One block to write back.
#[derive(Clone, Debug)]
pub(super) struct Dirty {
    pub(super) block: u64,
    pub(super) seq: u64,
    pub(super) content: Content,
}

pub(super) struct Cache {
    block_size: usize,
    limit: u64,
    blocks: BTreeMap<u64, Vec<Version>>,
    next_seq: u64,
    versions: u64,
    medium_taken: bool,
    /// Power cuts so far.
    cuts: u64,
}

impl Cache {
    pub(super) fn new(block_size: u32, limit: u64) -> Self {
        let block_size = block_size as usize;
        Cache { block_size, limit, blocks: BTreeMap::new(), next_seq: 1, versions: 0, medium_taken: false, cuts: 0 }
    }

    /// Bytes in it.
    pub(super) const fn bytes(&self) -> u64 {
        self.versions * self.block_size as u64
    }

    pub(super) const fn is_over_limit(&self) -> bool {
        self.bytes() > self.limit
    }

    #[cfg(test)]
    pub(super) const fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// The blocks of a range of bytes.
    pub(super) const fn blocks_of(&self, offset: u64, len: u64) -> Range<u64> {
        let size = self.block_size as u64;
        offset / size..(offset + len) / size
    }

    /// Takes in one write: the contents of its blocks in order.
    pub(super) fn write(&mut self, first: u64, contents: impl Iterator<Item = Content>) {
        let seq = self.next_seq;
        self.next_seq += 1;
        for (block, content) in (first..).zip(contents) {
            assert_eq!(content.len(), self.block_size, "a version is a whole block");
            let versions = self.blocks.entry(block).or_default();
            versions.push(Version { seq, content, durable: false, leaving: false });
            self.versions += 1;
            // A version that is on the medium, or will be, cannot be forgotten: it is what is left after a cut.
            let lossy = versions.iter().position(|version| !version.durable && !version.leaving);
            if let Some(oldest) = lossy.filter(|at| versions.len() > VERSIONS && at + 1 < versions.len()) {
                versions.remove(oldest);
                self.versions -= 1;
            }
        }
    }

    /// The newest contents of those blocks of a range that it holds.
    pub(super) fn read(&self, blocks: Range<u64>) -> Vec<(u64, Content)> {
        let newest = |(block, versions): (&u64, &Vec<Version>)| {
            (*block, versions.last().expect("a block in the map has a version").content.clone())
        };
        self.blocks.range(blocks).map(newest).collect()
    }

    /// The newest versions of the blocks of a range (all: `0..u64::MAX`), to be written back by the caller.
    pub(super) fn leave(&mut self, blocks: Range<u64>) -> Vec<Dirty> {
        let newest = |(block, versions): (&u64, &mut Vec<Version>)| {
            let version = versions.last_mut().expect("a block in the map has a version");
            version.leaving = true;
            Dirty { block: *block, seq: version.seq, content: version.content.clone() }
        };
        self.blocks.range_mut(blocks).map(newest).collect()
    }

    /// A version, and so every older one of its block, is on the base.
    pub(super) fn forget(&mut self, block: u64, seq: u64) {
        let Some(versions) = self.blocks.get_mut(&block) else { return };
        let before = versions.len();
        versions.retain(|version| version.seq > seq);
        self.versions -= (before - versions.len()) as u64;
        if versions.is_empty() {
            self.blocks.remove(&block);
        }
    }

    /// A version that was to leave stays, because it could not be written.
    pub(super) fn stay(&mut self, block: u64, seq: u64) {
        let version = self.blocks.get_mut(&block).and_then(|all| all.iter_mut().find(|version| version.seq == seq));
        if let Some(version) = version {
            version.leaving = false;
        }
    }

    /// The number of the last write so far.
    pub(super) const fn now(&self) -> u64 {
        self.next_seq - 1
    }

    /// How often the power was cut. Who has waited through a cut cannot promise that anything is durable.
    pub(super) const fn cuts(&self) -> u64 {
        self.cuts
    }

    /// Everything in a range that was written up to `seq` is overtaken by something on the base.
    pub(super) fn overtaken(&mut self, blocks: Range<u64>, seq: u64) {
        let touched: Vec<u64> = self.blocks.range(blocks).map(|(block, _)| *block).collect();
        for block in touched {
            self.forget(block, seq);
        }
    }

    /// Takes the right to change the base; false: another one has it.
    pub(super) const fn take_medium(&mut self) -> bool {
        !std::mem::replace(&mut self.medium_taken, true)
    }

    pub(super) fn give_medium(&mut self) {
        assert!(std::mem::replace(&mut self.medium_taken, false), "who gives the medium back has taken it");
    }

    pub(super) fn power_cut(&mut self, seed: u64) -> PowerCut {
        let fate = |seq| match mix(seed ^ mix(seq)) % 3 {
            0 => Fate::Kept,
            1 => Fate::Torn,
            _ => Fate::Lost,
        };
        self.cut(fate, |seq, block| mix(seed ^ mix(seq ^ mix(block))) & 1 == 0)
    }

    pub(super) fn lose_all(&mut self) -> PowerCut {
        self.cut(|_| Fate::Lost, |_, _| false)
    }

    /// Leaves of each block the newest version that survives, which is durable from now on.
    fn cut(&mut self, fate: impl Fn(u64) -> Fate, survives_tear: impl Fn(u64, u64) -> bool) -> PowerCut {
        self.cuts += 1;
        let mut writes = BTreeSet::new();
        self.blocks.retain(|block, versions| {
            let survives = |version: &Version| {
                version.durable
                    || version.leaving
                    || match fate(version.seq) {
                        Fate::Kept => true,
                        Fate::Torn => survives_tear(version.seq, *block),
                        Fate::Lost => false,
                    }
            };
            writes.extend(versions.iter().filter(|v| !v.durable && !v.leaving).map(|version| version.seq));
            let newest = versions.iter().rposition(survives);
            *versions = newest.map(|at| Version { durable: true, ..versions[at].clone() }).into_iter().collect();
            !versions.is_empty()
        });
        self.versions = self.blocks.len() as u64;
        let count = |wanted| writes.iter().filter(|seq| fate(**seq) == wanted).count() as u64;
        PowerCut { kept: count(Fate::Kept), torn: count(Fate::Torn), lost: count(Fate::Lost) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(byte: u8) -> Content {
        Arc::from([byte; 512])
    }

    fn cache() -> Cache {
        Cache::new(512, 4096)
    }

    fn put(cache: &mut Cache, block: u64, byte: u8) {
        cache.write(block, std::iter::once(content(byte)));
    }

    fn seen(cache: &Cache, block: u64) -> Option<u8> {
        cache.read(block..block + 1).first().map(|(_, content)| content[0])
    }

    #[test]
    fn a_cut_chooses_among_the_versions_of_each_block() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..64 {
            let mut cache = cache();
            put(&mut cache, 0, 1);
            put(&mut cache, 0, 2);
            put(&mut cache, 1, 3);
            let cut = cache.power_cut(seed);
            assert_eq!(cut.kept + cut.torn + cut.lost, 3);
            outcomes.insert((seen(&cache, 0), seen(&cache, 1)));
            let again = (seen(&cache, 0), seen(&cache, 1));
            assert_eq!(cache.lose_all(), PowerCut::default(), "what survived a cut survives all later ones");
            assert_eq!((seen(&cache, 0), seen(&cache, 1)), again);
        }
        let all = [None, Some(1), Some(2)].into_iter().flat_map(|a| [(a, None), (a, Some(3))]).collect();
        assert_eq!(outcomes, all);
    }

    #[test]
    fn a_write_tears_block_by_block() {
        let torn = (0..64).find_map(|seed| {
            let mut cache = cache();
            cache.write(0, (0..8).map(|_| content(1)));
            let cut = cache.power_cut(seed);
            (cut.torn == 1).then(|| (0..8).filter(|block| seen(&cache, *block).is_some()).count())
        });
        assert!((1..8).contains(&torn.expect("one of 64 seeds tears it")));
    }

    #[test]
    fn what_is_leaving_is_not_lost_and_newer_versions_stay() {
        let mut cache = cache();
        put(&mut cache, 0, 1);
        let dirty = cache.leave(0..u64::MAX);
        put(&mut cache, 0, 2);
        put(&mut cache, 1, 3);
        assert_eq!(cache.lose_all(), PowerCut { lost: 2, ..PowerCut::default() });
        assert_eq!((seen(&cache, 0), seen(&cache, 1)), (Some(1), None));
        put(&mut cache, 0, 4);
        cache.forget(dirty[0].block, dirty[0].seq);
        assert_eq!((seen(&cache, 0), cache.bytes()), (Some(4), 512));
    }

    #[test]
    fn old_versions_are_forgotten_but_not_durable_ones() {
        let mut cache = cache();
        put(&mut cache, 0, 1);
        let survived = (0..).find(|seed| {
            let mut copy = Cache { blocks: cache.blocks.clone(), ..self::cache() };
            copy.power_cut(*seed);
            seen(&copy, 0).is_some()
        });
        let _ = cache.power_cut(survived.unwrap());
        (2..20).for_each(|byte| put(&mut cache, 0, byte));
        assert_eq!(cache.bytes(), VERSIONS as u64 * 512);
        let _ = cache.lose_all();
        assert_eq!(seen(&cache, 0), Some(1));
    }
}
