//! Ways down the maps of layers, through pages that are kept in memory as far as there is room.

use std::collections::HashMap;

use crate::thin::format::{Kind, Layer, POINTERS_PER_PAGE, Page, PageHeader, PageId, Pointer};

use super::trees::Mark;

const FAN: u64 = POINTERS_PER_PAGE as u64;
/// Pages above the leaves that are kept: 16 MiB.
const MOST_PAGES: usize = 4096;

/// Where a walk has come to.
pub(super) enum Step {
    /// At the end: this is where the page lies, if there is one.
    There(Pointer),
    /// This page has to be read first.
    Read(PageHeader),
}

/// A way from the top page of a layer's map to one of its pages.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    layer: u64,
    target: (u8, u64),
    /// The level of the page that `pointer` names.
    level: u8,
    pointer: Pointer,
}

impl Walk {
    /// To this page of the map as the last checkpoint has written it.
    pub(super) fn new(layer: Option<&Layer>, level: u8, index: u64) -> Walk {
        let (id, levels, root) = layer.map_or((0, 0, Pointer::NONE), |layer| (layer.id, layer.levels, layer.root));
        let top = levels.saturating_sub(1);
        let outside = level >= levels || index / FAN.pow(u32::from(top - level)) > 0;
        let pointer = if outside { Pointer::NONE } else { root };
        Walk { layer: id, target: (level, index), level: top, pointer }
    }

    /// Goes as far as the pages in memory lead.
    pub(super) fn step(&mut self, cache: &Cache, pool: uuid::Uuid) -> Step {
        let (target, index) = self.target;
        while self.pointer.is_some() && self.level > target {
            let at = |level: u8| index / FAN.pow(u32::from(level - target));
            let id = PageId { kind: Kind::Map, layer: self.layer, level: self.level, index: at(self.level) };
            let header = Mark { pool, generation: self.pointer.generation }.header(id, self.pointer.block);
            let Some(page) = cache.get(&header) else { return Step::Read(header) };
            self.pointer = page.pointer((at(self.level - 1) % FAN) as usize);
            self.level -= 1;
        }
        Step::There(self.pointer)
    }
}

/// Pages above the leaves, by their blocks. What is in it was what its parent says when it was read.
#[derive(Default)]
pub(super) struct Cache {
    pages: HashMap<u64, (PageHeader, Page)>,
}

impl Cache {
    pub(super) fn get(&self, header: &PageHeader) -> Option<&Page> {
        self.pages.get(&header.block).filter(|(found, _)| found == header).map(|(_, page)| page)
    }

    /// Keeps a page; if there are too many, any other goes.
    pub(super) fn put(&mut self, header: PageHeader, page: Page) {
        if self.pages.len() >= MOST_PAGES
            && let Some(any) = self.pages.keys().next().copied()
        {
            self.pages.remove(&any);
        }
        self.pages.insert(header.block, (header, page));
    }

    /// The block holds another page from now on, or none.
    pub(super) fn forget(&mut self, block: u64) {
        self.pages.remove(&block);
    }
}
