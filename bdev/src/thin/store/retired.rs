//! What a checkpoint has had in memory of each leaf, when it is done: let go a part at a time, since memory in many pieces
//! takes long to give back.

use std::collections::BTreeMap;

use super::overlay::{LeafDelta, Overlay};
use crate::thin::format::Pointer;

/// Leaves of which nothing is left after one pass, at most.
const A_PASS: usize = 256;

/// By layer and leaf.
type Leaves<T> = BTreeMap<(u64, u64), T>;

/// See the module's description.
#[derive(Default)]
pub(super) struct Retired {
    deltas: Leaves<LeafDelta>,
    pointers: Leaves<Pointer>,
}

impl Retired {
    /// What was frozen, and where its leaves are now. What is left of an earlier checkpoint is little, if anything: it has taken
    /// many passes since.
    pub(super) fn put(&mut self, frozen: Overlay, pointers: Leaves<Pointer>) {
        (self.deltas, self.pointers) = (frozen.leaves, pointers);
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.pointers.is_empty()
    }

    /// Lets go of some.
    pub(super) fn advance(&mut self) {
        for _ in 0..A_PASS {
            if self.deltas.pop_first().is_none() & self.pointers.pop_first().is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thin::format::{Entry, Record};

    #[test]
    fn no_pass_lets_go_of_all_that_was_frozen() {
        const LEAVES: usize = 3 * A_PASS + 1;
        let mut frozen = Overlay::default();
        for leaf in 0..LEAVES as u64 {
            frozen.apply(&Record::Leaf { layer: 1, leaf, entry: Entry::EMPTY }, |_| LEAVES as u64);
        }
        let pointers = (0..7).map(|leaf| ((1, leaf), Pointer::NONE)).collect();
        let mut retired = Retired::default();
        retired.put(frozen, pointers);
        let mut left = LEAVES;
        for _ in 0..3 {
            retired.advance();
            left -= A_PASS;
            assert_eq!(retired.deltas.len(), left);
        }
        retired.advance();
        assert!(retired.is_empty());
    }
}
