//! Thin pools: volumes, snapshots and clones.
//!
//! ```text
//! format    the pool on its base, byte by byte        store    log, trees, checkpoint; create and open
//! shared    what reactors and the engine share        channel  one reactor's way into a volume
//! engine    the home of a pool, on one reactor        check    looks at a pool from outside
//! origin    a bdev outside that volumes stand on
//! copy      copies that move no data                  survey   what is there, for backups
//! ```

mod channel;
pub mod check;
mod copy;
mod engine;
mod error;
pub mod format;
mod info;
mod orders;
mod origin;
mod pool;
mod scrub;
mod shared;
pub mod steps;
pub mod store;
mod survey;

pub use error::PoolError;
pub use format::Origin;
pub use info::{PoolInfo, Role, ThresholdInfo, VolumeInfo};
pub use orders::Settled;
pub use pool::{Hold, NewSnapshot, Pool, PoolOptions, ThinVolume};
pub use scrub::{Holding, Image};
pub use survey::{ExtentKind, MapExtent, Survey};
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
