//! Writes a tree from its leaves up.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Memory;
use super::image::Pages;
use crate::thin::format::{Kind, POINTERS_PER_PAGE, Page, PageHeader, PageId, Pointer, levels_for};

/// A tree to be written.
pub(super) struct Plan<'a> {
    pub(super) kind: Kind,
    pub(super) layer: u64,
    /// Leaves that it has room for.
    pub(super) room: u64,
    pub(super) pool: Uuid,
    pub(super) generation: u64,
    /// Free clusters below some leaves: the first one and how many; for other trees 0.
    pub(super) free: &'a dyn Fn(u64, u64) -> u64,
}

impl Plan<'_> {
    /// The pages that a tree with these leaves needs, in the order in which they are written.
    pub(super) fn pages(&self, leaves: impl Iterator<Item = u64>) -> Vec<PageId> {
        let (mut ids, mut level, mut numbers) = (Vec::new(), 0, leaves.collect::<Vec<_>>());
        if numbers.is_empty() {
            return ids;
        }
        loop {
            let id = |index: &u64| PageId { kind: self.kind, layer: self.layer, level, index: *index };
            ids.extend(numbers.iter().map(id));
            level += 1;
            if level == levels_for(self.room) {
                return ids;
            }
            numbers.iter_mut().for_each(|number| *number /= POINTERS_PER_PAGE as u64);
            numbers.dedup();
        }
    }

    /// Writes it to the places that `pages` has for its pages. Its levels and its top page.
    pub(super) fn write(&self, mut leaves: BTreeMap<u64, Page>, pages: &Pages, memory: &mut Memory) -> (u8, Pointer) {
        let levels = levels_for(self.room);
        if leaves.is_empty() {
            return (0, Pointer::NONE);
        }
        let mut level = 0;
        loop {
            let mut above: BTreeMap<u64, Page> = BTreeMap::new();
            for (index, page) in &mut leaves {
                let id = PageId { kind: self.kind, layer: self.layer, level, index: *index };
                let block = pages[&id].0;
                let header = PageHeader { id, generation: self.generation, block, pool: self.pool };
                memory.blocks.insert(block, Box::new(*page.close(&header)));
                let span = (POINTERS_PER_PAGE as u64).pow(u32::from(level));
                let free = (self.free)(index * span, span).min(u64::from(u16::MAX)) as u16;
                let pointer = Pointer { block, generation: self.generation, free };
                if level + 1 == levels {
                    return (levels, pointer);
                }
                let per_page = POINTERS_PER_PAGE as u64;
                above.entry(index / per_page).or_default().set_pointer((index % per_page) as usize, pointer);
            }
            (leaves, level) = (above, level + 1);
        }
    }
}
