//! The medium as the check reads it: blocks, and how far it has come.

use std::io;

use super::source::{Block, Blocks};

/// Blocks between two words about the progress.
const STEP: u64 = 256;

/// See the module's description.
pub(super) struct Medium<'a> {
    source: &'a mut dyn Blocks,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    total: u64,
}

impl<'a> Medium<'a> {
    pub(super) fn new(source: &'a mut dyn Blocks, progress: &'a mut dyn FnMut(u64, u64)) -> Self {
        Medium { source, progress, done: 0, total: 0 }
    }

    /// How many blocks there are.
    pub(super) fn len(&self) -> u64 {
        self.source.len()
    }

    /// So many blocks are still to be read, as far as one can tell.
    pub(super) fn expect(&mut self, blocks: u64) {
        self.total = self.done.saturating_add(blocks);
        (self.progress)(self.done, self.total);
    }

    pub(super) fn read(&mut self, block: u64) -> io::Result<Block> {
        self.done += 1;
        if self.total > 0 && self.done.is_multiple_of(STEP) {
            (self.progress)(self.done.min(self.total), self.total);
        }
        self.source.read(block)
    }

    /// Nothing more is read.
    pub(super) fn finish(self) {
        let all = self.done.max(1);
        (self.progress)(all, all);
    }
}
