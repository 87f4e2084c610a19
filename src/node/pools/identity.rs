//! Which state of which volume a snapshot is, in whatever pool it lies: what a delta is checked against.
//!
//! A snapshot never changes, so its UUID names its state. One that was imported is the same state in another pool, and
//! cannot have the same UUID: both pools may be open at once. It gets the UUID that its pool's and the state's make
//! together (bit by bit, exclusive or, marked by version 8), so each pool has at most one snapshot of a state, and
//! which state it is can be told from its UUID, after any restart and renaming. Only a read-only volume may have such a
//! UUID: a state is what cannot change.

use uuid::Uuid;

/// The version of UUIDs that are made so.
const OWN: usize = 8;
/// Of those that are drawn.
const DRAWN: u8 = 4;

/// The state that a snapshot of a pool is.
pub(super) fn state_of(pool: Uuid, snapshot: Uuid) -> Uuid {
    if snapshot.get_version_num() == OWN { mixed(pool, snapshot, DRAWN) } else { snapshot }
}

/// The UUID of a state that is imported into a pool.
pub(super) fn imported(pool: Uuid, state: Uuid) -> Uuid {
    mixed(pool, state, OWN as u8)
}

fn mixed(pool: Uuid, other: Uuid, version: u8) -> Uuid {
    let mut bytes = (pool.as_u128() ^ other.as_u128()).to_be_bytes();
    bytes[6] = bytes[6] & 0x0F | version << 4;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    Uuid::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_known_wherever_it_is() {
        for _ in 0..100 {
            let [one, two, state] = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
            let (there, elsewhere) = (imported(one, state), imported(two, state));
            assert!(there != state && there != elsewhere);
            assert_eq!((state_of(one, state), state_of(one, there), state_of(two, elsewhere)), (state, state, state));
            assert_ne!(imported(one, Uuid::new_v4()), there);
        }
    }
}
