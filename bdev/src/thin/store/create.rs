//! Makes a pool: lays out log, metadata and an empty set of trees, and last the superblocks.
//!
//! What was there before is wiped first, so that at no time a superblock leads to what another pool has left; and all that
//! a pool writes without asking (superblocks, log, metadata) is written in full, so that a full host cannot refuse it
//! later. The first superblock goes to all four places: a new pool bears damage at one of them like an old one. A crash may
//! leave none of them, then there is no pool, or the first few, then there is a clean one.

use uuid::Uuid;

use super::blocking::Blocking;
use super::error::{StoreError, io};
use super::index::Index;
use super::labels;
use super::open::{Slots, read_slots};
use super::pages::Pages;
use super::trees::{Mark, TreeError, Written, first_clusters, rewrite_pages, rewrite_space};
use crate::thin::format::{
    BLOCK, Extent, Geometry, Kind, LogSpan, NAME_LEN, Pointer, SLOTS, Superblock, THRESHOLDS, slot_block,
};

/// What a pool is to be.
#[derive(Clone, Debug)]
pub struct CreateParams {
    /// Its name, 1 to 64 bytes.
    pub name: String,
    /// What tells it from all others; not nil.
    pub uuid: Uuid,
    /// Bytes of a cluster: a power of two from 64 KiB to 4 MiB.
    pub cluster_size: u32,
    /// Now, in seconds since 1970.
    pub created: u64,
    /// How much may be promised of what there is, in percent; 0: anything.
    pub overcommit: u32,
    /// Any random number.
    pub salt: u64,
    /// Whether a pool that is there may be lost.
    pub force: bool,
}

/// The first generation.
const FIRST: u64 = 1;

/// Makes a pool. To be opened by [`open`](super::open()).
///
/// # Errors
/// If it cannot be or a pool is there; if the base fails, nothing that was there is there any more, and no pool is.
pub fn create(blocking: &mut Blocking<'_>, params: &CreateParams) -> Result<(), StoreError> {
    if params.name.is_empty() || params.name.len() > NAME_LEN {
        return Err(StoreError::Invalid("the name of a pool has 1 to 64 bytes"));
    }
    if params.uuid.is_nil() {
        return Err(StoreError::Invalid("a pool has a UUID"));
    }
    let geometry = Geometry::new(blocking.bytes(), params.cluster_size)?;
    if !params.force {
        refuse_a_pool(&read_slots(blocking)?)?;
    }
    wipe(blocking)?;
    blocking.zero(geometry.log_start..geometry.log_start + geometry.log_blocks).map_err(io("log"))?;
    let per_cluster = u64::from(geometry.cluster_size) / BLOCK as u64;
    let (first, count) = geometry.metadata;
    let metadata = u64::from(first) * per_cluster..u64::from(first + count) * per_cluster;
    blocking.zero(metadata).map_err(io("metadata"))?;
    let (superblock, pages) = first_state(&geometry, params)?;
    for (header, mut page) in pages {
        blocking.write(header.block, page.close(&header), false).map_err(io("metadata"))?;
    }
    blocking.step(labels::CREATE_BARRIER);
    blocking.flush().map_err(io("metadata"))?;
    // Its own place first: the others have had no turn yet, so a crash that leaves only this one leaves a whole pool.
    for slot in (0..SLOTS).map(|nth| (FIRST as u32 + nth) % SLOTS) {
        blocking.step(labels::CREATE_SUPERBLOCK);
        blocking.write(slot_block(slot), &*superblock.close(slot), true).map_err(io("superblock"))?;
    }
    Ok(())
}

fn refuse_a_pool(slots: &Slots) -> Result<(), StoreError> {
    match slots.newest() {
        Ok(superblock) => Err(StoreError::PoolThere { name: superblock.name }),
        Err(StoreError::NotAPool) => Ok(()),
        Err(StoreError::Version(_) | StoreError::Features(_)) => {
            Err(StoreError::PoolThere { name: "(of a later version)".into() })
        }
        Err(_) => Err(StoreError::PoolThere { name: "(damaged)".into() }),
    }
}

/// Takes a pool, or what is left of one, away: nothing on the base looks like a pool any more.
///
/// # Errors
/// If the base fails; the pool may then be there, damaged or not.
pub fn wipe(blocking: &mut Blocking<'_>) -> Result<(), StoreError> {
    for slot in 0..SLOTS {
        let block = slot_block(slot);
        blocking.zero(block..block + 1).map_err(io("superblock"))?;
    }
    blocking.step(labels::CREATE_WIPE);
    blocking.flush().map_err(io("superblock"))
}

/// Trees of an empty pool, and the superblock that knows them.
fn first_state(geometry: &Geometry, params: &CreateParams) -> Result<(Superblock, Written), StoreError> {
    let full = |error| match error {
        TreeError::Full => StoreError::Invalid("the first metadata extent is too small for the trees of an empty pool"),
        TreeError::Damaged(what) => StoreError::Damaged(what),
    };
    let (first, count) = geometry.metadata;
    let extents = vec![Extent { first, count }];
    let mark = Mark { pool: params.uuid, generation: FIRST };
    let mut pages = Pages::new(&extents, geometry.cluster_size);
    let mut space = first_clusters(geometry.clusters, geometry.first_free).map_err(StoreError::Damaged)?;
    let (mut space_index, mut pages_index) = (Index::new(Kind::Space), Index::new(Kind::Pages));
    let end = pages.leaves();
    let mut written =
        rewrite_space(&mut space_index, &mut pages, mark, &space.freeze(), geometry.clusters).map_err(full)?;
    written.extend(rewrite_pages(&mut pages_index, &mut pages, mark, end).map_err(full)?);
    let superblock = Superblock {
        pool: params.uuid,
        name: params.name.clone(),
        created: params.created,
        generation: FIRST,
        geometry: *geometry,
        next_layer: 1,
        log_from: 0,
        batch_from: 1,
        spans: vec![LogSpan { salt: params.salt, from: 0 }],
        overcommit: params.overcommit,
        catalog: (0, Pointer::NONE),
        space: space_index.root(),
        pages: pages_index.root(),
        extents,
        thresholds: [0; THRESHOLDS],
        discard_rate: 0,
        unknown: (0, Vec::new()),
    };
    Ok((superblock, written))
}
