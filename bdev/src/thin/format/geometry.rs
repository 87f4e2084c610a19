//! Where what lies on the base: worked out once, when the pool is made, and kept in the superblock.
//!
//! ```text
//! block 0            four superblocks, one every 256 KiB
//! block 256          the log
//! then               the first extent of metadata pages
//! then               data, and further extents of metadata
//! ```
//! Clusters are counted from the start of the base, so no data lies in cluster 0, which means "none".

use super::{BLOCK, Entry};

/// The smallest cluster in bytes.
pub const MIN_CLUSTER: u32 = 64 << 10;
/// The largest cluster in bytes.
pub const MAX_CLUSTER: u32 = 4 << 20;

const LOG_START: u64 = (1 << 20) / BLOCK as u64;
const SMALL_LOG: u64 = (16 << 20) / BLOCK as u64;
const LARGE_LOG: u64 = (64 << 20) / BLOCK as u64;
/// From this many bytes on a pool gets a large log.
const LARGE: u64 = 1 << 40;
/// The part of the base that the first metadata extent takes, at least [`LEAST_PAGES`].
const METADATA_PART: u64 = 1024;
const LEAST_PAGES: u64 = (4 << 20) / BLOCK as u64;
/// A log of a small pool, where a large part of it would be too much.
const TINY_LOG: u64 = (1 << 20) / BLOCK as u64;
/// Below this many bytes the log and the metadata are tiny.
const TINY: u64 = 256 << 20;
const TINY_PAGES: u64 = (1 << 20) / BLOCK as u64;

/// Why there can be no pool of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The size of a cluster.
    #[error("a cluster of {0} bytes is not a power of two from 64 KiB to 4 MiB")]
    Cluster(u32),
    /// No room for anything but metadata.
    #[error("the base has {has} bytes, and a pool of this cluster size takes {least} at least")]
    TooSmall {
        /// What it has.
        has: u64,
        /// What is needed.
        least: u64,
    },
    /// Of one that was read: something lies over something else.
    #[error("the log, the metadata and the data of the pool lie over each other")]
    Overlap,
    /// More clusters than can be numbered.
    #[error("the base has {has} bytes: with this cluster size at most {most} can be used, so choose a larger one")]
    TooLarge {
        /// What it has.
        has: u64,
        /// What can be used.
        most: u64,
    },
}

/// See the module's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a cluster.
    pub cluster_size: u32,
    /// Clusters of the base, those before the data counted.
    pub clusters: u32,
    /// The first block of the log.
    pub log_start: u64,
    /// Blocks of the log.
    pub log_blocks: u64,
    /// The first cluster after what is laid out when the pool is made.
    pub first_free: u32,
    /// The first metadata extent, in clusters: its first one and how many.
    pub metadata: (u32, u32),
}

impl Geometry {
    /// For a new pool on a base of so many bytes.
    ///
    /// # Errors
    /// [`GeometryError`] says why not.
    pub fn new(base_bytes: u64, cluster_size: u32) -> Result<Geometry, GeometryError> {
        if !cluster_size.is_power_of_two() || !(MIN_CLUSTER..=MAX_CLUSTER).contains(&cluster_size) {
            return Err(GeometryError::Cluster(cluster_size));
        }
        let log_blocks = match base_bytes {
            0..TINY => TINY_LOG,
            TINY..LARGE => SMALL_LOG,
            LARGE.. => LARGE_LOG,
        };
        let pages = match base_bytes {
            0..TINY => TINY_PAGES,
            TINY.. => (base_bytes / METADATA_PART / BLOCK as u64).max(LEAST_PAGES),
        };
        let blocks_per_cluster = u64::from(cluster_size) / BLOCK as u64;
        let first_metadata = (LOG_START + log_blocks).div_ceil(blocks_per_cluster);
        let metadata = pages.div_ceil(blocks_per_cluster);
        let first_free = first_metadata + metadata;
        // At least one cluster of data for each of metadata.
        let least = (first_free + metadata) * u64::from(cluster_size);
        if base_bytes < least {
            return Err(GeometryError::TooSmall { has: base_bytes, least });
        }
        let clusters = Self::clusters_of(base_bytes, cluster_size)?;
        let number = |cluster: u64| u32::try_from(cluster).expect("it is below the number of clusters");
        Ok(Geometry {
            cluster_size,
            clusters,
            log_start: LOG_START,
            log_blocks,
            first_free: number(first_free),
            metadata: (number(first_metadata), number(metadata)),
        })
    }

    /// Bytes that are written in full when the pool is made.
    #[must_use]
    pub const fn written_at_creation(&self) -> u64 {
        self.log_blocks * BLOCK as u64 + self.metadata.1 as u64 * self.cluster_size as u64
    }

    /// How many clusters a base of so many bytes has.
    ///
    /// # Errors
    /// [`GeometryError::TooLarge`].
    pub fn clusters_of(base_bytes: u64, cluster_size: u32) -> Result<u32, GeometryError> {
        let clusters = base_bytes / u64::from(cluster_size);
        match u32::try_from(clusters) {
            Ok(clusters) if clusters <= Entry::MAX_CLUSTER => Ok(clusters),
            _ => {
                let most = (u64::from(Entry::MAX_CLUSTER) + 1) * u64::from(cluster_size) - 1;
                Err(GeometryError::TooLarge { has: base_bytes, most })
            }
        }
    }

    /// Whether it is one that a pool can have.
    ///
    /// # Errors
    /// [`GeometryError`] if a cluster of it cannot be or something lies over something else.
    pub fn check(&self) -> Result<(), GeometryError> {
        let size = u64::from(self.cluster_size);
        if !self.cluster_size.is_power_of_two() || !(MIN_CLUSTER..=MAX_CLUSTER).contains(&self.cluster_size) {
            return Err(GeometryError::Cluster(self.cluster_size));
        }
        let has = u64::from(self.clusters) * size;
        Self::clusters_of(has, self.cluster_size)?;
        let (first, count) = self.metadata;
        let log_end = self.log_start.checked_add(self.log_blocks).and_then(|end| end.checked_mul(BLOCK as u64));
        let sane = self.log_start >= LOG_START
            && (TINY_LOG..=LARGE_LOG).contains(&self.log_blocks)
            && log_end.is_some_and(|end| end <= u64::from(first) * size)
            && first.checked_add(count).is_some_and(|end| end <= self.first_free)
            && self.first_free < self.clusters;
        if sane { Ok(()) } else { Err(GeometryError::Overlap) }
    }

    /// The byte at which a cluster begins.
    #[must_use]
    pub const fn cluster_offset(&self, cluster: u32) -> u64 {
        cluster as u64 * self.cluster_size as u64
    }

    /// Bytes of a sub-block.
    #[must_use]
    pub const fn sub_block(&self) -> u32 {
        self.cluster_size / super::SUB_BLOCKS
    }

    /// Where a block of the log lies, by its number since the pool was made.
    #[must_use]
    pub const fn log_block(&self, seq: u64) -> u64 {
        self.log_start + seq % self.log_blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_lies_over_another(bytes in 0..1u64 << 48, shift in 16..=22u32) {
            let cluster = 1 << shift;
            match Geometry::new(bytes, cluster) {
                Ok(geometry) => {
                    let size = u64::from(cluster);
                    let block = BLOCK as u64;
                    prop_assert!((geometry.log_start + geometry.log_blocks) * block <= u64::from(geometry.metadata.0) * size);
                    prop_assert_eq!(geometry.metadata.0 + geometry.metadata.1, geometry.first_free);
                    prop_assert!(geometry.first_free < geometry.clusters);
                    prop_assert!(u64::from(geometry.clusters) * size <= bytes);
                    prop_assert!(geometry.log_start >= u64::from(super::super::SLOTS) * 64);
                }
                Err(GeometryError::TooSmall { has, least }) => {
                    prop_assert!(has == bytes && least > bytes);
                    prop_assert!(Geometry::new(least, cluster).is_ok());
                }
                Err(GeometryError::TooLarge { has, most }) => {
                    prop_assert!(has == bytes && most < bytes);
                    prop_assert!(Geometry::new(most, cluster).is_ok());
                }
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }

    #[test]
    fn a_log_is_as_long_as_one_that_is_made() {
        let geometry = Geometry::new(1 << 40, 4 << 20).unwrap();
        assert_eq!((geometry.log_blocks, geometry.check()), (LARGE_LOG, Ok(())));
        // Whoever opens the pool reads all of it into memory.
        let (first, first_free) = (geometry.metadata.0 + (1 << 17), geometry.first_free + (1 << 17));
        let room = Geometry { clusters: 1 << 19, metadata: (first, geometry.metadata.1), first_free, ..geometry };
        assert_eq!(room.check(), Ok(()));
        assert_eq!(Geometry { log_blocks: LARGE_LOG + 1, ..room }.check(), Err(GeometryError::Overlap));
    }

    #[test]
    fn clusters_have_their_sizes() {
        for size in [0, 1, 4096, 32 << 10, 65537, 8 << 20, 1 << 31] {
            assert_eq!(Geometry::new(1 << 40, size), Err(GeometryError::Cluster(size)));
        }
        let geometry = Geometry::new(128 << 40, 64 << 10);
        assert!(matches!(geometry, Err(GeometryError::TooLarge { .. })), "one cluster too many");
        let geometry = Geometry::new((128 << 40) - 1, 64 << 10).unwrap();
        assert_eq!((geometry.clusters, geometry.sub_block()), (Entry::MAX_CLUSTER, 4096));
        assert_eq!(geometry.log_block(geometry.log_blocks + 3), geometry.log_start + 3);
    }
}
