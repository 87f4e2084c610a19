//! What is done to a pool.

use crate::testing::expect::Id;

/// One thing that is done. Volumes and snapshots are named by their place among those that are there (counted on from the
/// first again behind the last); ranges are in blocks, and cut to the volume. Where there is nothing to do it to, it is not
/// done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Writes.
    Write {
        /// To which volume.
        volume: usize,
        /// From which block on.
        first: u64,
        /// How many blocks.
        count: u64,
        /// Whether it is to be durable.
        fua: bool,
    },
    /// Discards.
    Discard {
        /// On which volume.
        volume: usize,
        /// From which block on.
        first: u64,
        /// How many blocks.
        count: u64,
    },
    /// Writes zeroes.
    Zero {
        /// To which volume.
        volume: usize,
        /// From which block on.
        first: u64,
        /// How many blocks.
        count: u64,
    },
    /// Reads.
    Read {
        /// From which volume.
        volume: usize,
        /// From which block on.
        first: u64,
        /// How many blocks.
        count: u64,
    },
    /// Flushes a volume.
    Flush {
        /// Which.
        volume: usize,
    },
    /// Creates a volume.
    Create {
        /// Of so many blocks.
        blocks: u64,
    },
    /// Snapshots of volumes, at one moment.
    Snapshot {
        /// Of which.
        volumes: Vec<usize>,
    },
    /// A clone.
    Clone {
        /// Of which snapshot.
        snapshot: usize,
    },
    /// Deletes a volume.
    Delete {
        /// Which.
        volume: usize,
    },
    /// Deletes a snapshot.
    DeleteSnapshot {
        /// Which.
        snapshot: usize,
    },
    /// Rolls a volume back to a snapshot of its own.
    Rollback {
        /// Which volume.
        volume: usize,
    },
    /// Gives a volume another size.
    Resize {
        /// Which.
        volume: usize,
        /// So many blocks.
        blocks: u64,
    },
    /// Everything goes to where it stays.
    Checkpoint,
}

/// What a pool is told to do. New things get their names from who tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// A volume of so many sectors.
    Create {
        /// Its name.
        volume: Id,
        /// Its size.
        sectors: u64,
    },
    /// Snapshots, at one moment: of which volume, and its name.
    Snapshot(Vec<(Id, Id)>),
    /// A clone of a snapshot.
    Clone {
        /// Of which.
        snapshot: Id,
        /// Its name.
        volume: Id,
    },
    /// A volume or snapshot goes.
    Delete(Id),
    /// A volume becomes what the snapshot is.
    Rollback {
        /// Which.
        volume: Id,
        /// What.
        snapshot: Id,
    },
    /// A volume gets this size; it may shrink.
    Resize {
        /// Which.
        volume: Id,
        /// So many sectors.
        sectors: u64,
    },
    /// A pool with a log empties it.
    Checkpoint,
}

/// All workloads of one act up to `longest`, made of these.
pub fn workloads(acts: &[Act], longest: u32) -> impl Iterator<Item = Vec<Act>> + '_ {
    let count = acts.len();
    (1..=longest).flat_map(move |length| {
        (0..count.pow(length)).map(move |mut number| {
            let mut next = || {
                let act = acts[number % count].clone();
                number /= count;
                act
            };
            (0..length).map(|_| next()).collect()
        })
    })
}
