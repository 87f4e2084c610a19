//! The checker on a pool that is in use: it sees the pool as it was at one moment.
//!
//! Pages are never changed in place, and what a superblock leads to is not written again before a later one is durable. So
//! while the store *holds* pages, which means that those that checkpoints give up are not used again, all trees of a
//! superblock that was read meanwhile stay as they are. The superblocks and the log are read into memory at the start;
//! of the log no more counts than was durable when the holding began. That is an image as a crash at that moment would
//! have left it, and the checker finds in it whatever it would find then.
//!
//! A pool that gets short of pages stops holding them: then what was found means nothing ([`Holding::end`]).

use std::collections::HashMap;
use std::io;

use super::PoolError;
use super::check::{Block, Blocks, Report, check};
use super::format::{BLOCK, SLOTS, slot_block};
use super::pool::Pool;
use super::store::{Blocking, StoreError, probe};

/// How often the start is read: a checkpoint may come in between.
const TRIES: u32 = 100;

/// Pages of a pool that are held as long as this is there.
pub struct Holding<'a> {
    pool: &'a Pool,
    batch: u64,
    is_over: bool,
}

impl<'a> Holding<'a> {
    /// Begins to hold.
    ///
    /// # Errors
    /// If somebody holds pages of the pool already.
    pub fn begin(pool: &'a Pool) -> Result<Self, PoolError> {
        let batch = pool.hold_pages()?;
        Ok(Holding { pool, batch, is_over: false })
    }

    /// The pool as it was when this began, by another way into its base.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn image(&self, blocking: &mut Blocking<'_>) -> Result<Image, PoolError> {
        Ok(Image::capture(blocking, self.batch)?)
    }

    /// Ends it. Returns whether pages were held until now: if not, only a report without findings means anything.
    ///
    /// # Errors
    /// If the pool does not answer.
    pub fn end(mut self) -> Result<bool, PoolError> {
        self.is_over = true;
        self.pool.let_go_pages()
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        if !self.is_over
            && let Err(error) = self.pool.let_go_pages()
        {
            tracing::warn!("a pool goes on holding pages that nobody needs: {error}");
        }
    }
}

/// What of a pool is read at once: all that is written in place.
pub struct Image {
    superblocks: HashMap<u64, Block>,
    log_start: u64,
    log: Vec<u8>,
}

impl Image {
    /// Reads it; of the log what is behind this batch does not count.
    pub(crate) fn capture(blocking: &mut Blocking<'_>, batch: u64) -> Result<Image, StoreError> {
        for _ in 0..TRIES {
            let before = probe(blocking)?;
            let places: Vec<u64> = (0..SLOTS).map(slot_block).collect();
            let read = blocking.read_blocks(&places).map_err(|error| StoreError::Io { what: "superblock", error })?;
            let geometry = &before.geometry;
            let log = blocking.read(geometry.log_start, geometry.log_blocks as usize);
            let mut log = log.map_err(|error| StoreError::Io { what: "log", error })?;
            // Where it counts from is where it did before, so nothing that counts was written over meanwhile.
            if probe(blocking)?.generation != before.generation {
                continue;
            }
            log.chunks_exact_mut(BLOCK).filter(|block| is_behind(block, batch)).for_each(|block| block.fill(0));
            let superblocks = places.into_iter().zip(read).collect();
            return Ok(Image { superblocks, log_start: geometry.log_start, log });
        }
        Err(StoreError::Invalid("the pool changes too fast to be looked at: try again when it is less busy"))
    }

    /// Checks it. `go_on` is asked before each block that is read, and may take its time; once it says no all else counts
    /// as unreadable. `progress` hears how many blocks were read, of how many.
    pub fn check(
        &self,
        blocking: &mut Blocking<'_>,
        go_on: &mut dyn FnMut() -> bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Report {
        check(&mut Live { image: self, blocking, go_on }, progress)
    }
}

/// Whether it is a block of the log of a later batch.
fn is_behind(block: &[u8], batch: u64) -> bool {
    let number = block[32..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    block.starts_with(b"PLXL") && number > batch
}

struct Live<'a, 'b> {
    image: &'a Image,
    blocking: &'a mut Blocking<'b>,
    go_on: &'a mut dyn FnMut() -> bool,
}

impl Blocks for Live<'_, '_> {
    fn len(&self) -> u64 {
        self.blocking.bytes() / BLOCK as u64
    }

    fn read(&mut self, block: u64) -> io::Result<Block> {
        if let Some(superblock) = self.image.superblocks.get(&block) {
            return Ok(superblock.clone());
        }
        let at = block.checked_sub(self.image.log_start).map(|at| at as usize * BLOCK);
        if let Some(found) = at.and_then(|at| self.image.log.get(at..)?.first_chunk()) {
            return Ok(Box::new(*found));
        }
        if !(self.go_on)() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = self.blocking.read_blocks(&[block]).map_err(io::Error::other)?;
        read.into_iter().next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
