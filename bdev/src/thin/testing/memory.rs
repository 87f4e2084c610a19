//! A medium in memory: blocks that were never written are zeroes, and some cannot be read.

use std::collections::{HashMap, HashSet};
use std::io;

use crate::thin::check::{Block, Blocks, BlocksMut};
use crate::thin::format::BLOCK;

/// See the module's description.
#[derive(Clone, Default)]
pub struct Memory {
    /// Blocks that were written.
    pub blocks: HashMap<u64, Block>,
    /// How many there are.
    pub len: u64,
    /// Those that cannot be read until they are written.
    pub bad: HashSet<u64>,
    /// How often a block was read.
    pub reads: u64,
}

impl Memory {
    /// The bytes of a block.
    #[must_use]
    pub fn block(&self, block: u64) -> Block {
        self.blocks.get(&block).cloned().unwrap_or_else(|| Box::new([0; BLOCK]))
    }
}

impl Blocks for Memory {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&mut self, block: u64) -> io::Result<Block> {
        self.reads += 1;
        if block >= self.len || self.bad.contains(&block) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        Ok(self.block(block))
    }
}

impl BlocksMut for Memory {
    fn write(&mut self, block: u64, bytes: &[u8; BLOCK]) -> io::Result<()> {
        if block >= self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.bad.remove(&block);
        self.blocks.insert(block, Box::new(*bytes));
        Ok(())
    }

    fn barrier(&mut self) -> io::Result<()> {
        Ok(())
    }
}
