//! What a storm is like: all of it drawn from its seed.

use crate::rng::Rng;
use crate::testing::medium::Geometry;

use super::super::world::MIB;

/// See the module's description.
pub(super) struct Weather {
    pub(super) geometry: Geometry,
    pub(super) cluster: u64,
    /// Of a volume, in clusters: most are small, and some have more than one leaf.
    pub(super) sizes: [u64; 4],
    /// Instants between two crashes, at most.
    pub(super) calm: u64,
    /// Much is done in many leaves, so that pages get scarce.
    pub(super) wide: bool,
    /// Bytes that the base grows to, at most.
    pub(super) most: u64,
}

impl Weather {
    pub(super) fn draw(seed: u64, rng: &mut Rng) -> Weather {
        let wide = seed / 2 % 4 == 1;
        let small = rng.below(3) == 0;
        let bytes = (5 + rng.below(4)) * MIB + if wide { 12 * MIB } else { 0 };
        let (geometry, cluster) = match small {
            true => (Geometry::with_4096(bytes), 128 << 10),
            false => (Geometry::with_512(bytes), 64 << 10),
        };
        let depth = [4, 16, 64][rng.below(3) as usize];
        let large = if wide { 504 * (60 + rng.below(40)) } else { 500 + rng.below(600) };
        let sizes = if wide { [2, large, large, large] } else { [2, 3, 6, large] };
        let calm = 20 + rng.below(200);
        // Most media have anything where something was discarded.
        let geometry = Geometry { depth, garbles: !seed.is_multiple_of(4), ..geometry };
        Weather { geometry, cluster, sizes, calm, wide, most: bytes + 3 * MIB }
    }
}
