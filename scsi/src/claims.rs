//! Ranges that commands have to themselves: COMPARE AND WRITE and ORWRITE read, decide and write, and nobody may come in
//! between, from whatever initiator, queue or reactor; of a WRITE ATOMIC nobody may see a part.
//!
//! The unit keeps a table of claims in the order in which they were made. While there is one, the geometry word sends
//! every command the long way, where it asks the table. Who waits for whom follows one order, so nobody waits in a
//! circle: a claim waits for overlapping claims made before it, and for commands that came before it; a command waits for
//! overlapping claims that were there when it came ([`Order`] is its place in that order).
//!
//! What is under way when a claim is made is not in the table. Whoever makes one has to ask everybody who serves the unit
//! to say when that has ended: who is asked after the claim is made sees the word ([`LogicalUnit::is_claimed`]).

use crate::LogicalUnit;
use crate::plan::Range;

/// A place in the order of claims: that of a claim, or of a command between two claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(u64);

/// The table of a unit. As many claims as commands that have one, which front ends bound.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    next: u64,
    entries: Vec<Claim>,
}

#[derive(Debug)]
struct Claim {
    order: Order,
    range: Range,
    /// Who is to be told when it is gone; each once.
    waiters: Vec<usize>,
}

impl Claims {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A place in the order that nothing else has.
    pub(crate) fn next_order(&mut self) -> Order {
        let order = Order(self.next);
        self.next += 1;
        order
    }

    /// Whether nothing that was claimed before `order` overlaps; else `waiter` is told of each such claim's end.
    fn is_free(&mut self, order: Order, range: Range, waiter: usize) -> bool {
        let mut free = true;
        for claim in self.entries.iter_mut().filter(|claim| claim.order < order && claim.range.overlaps(range)) {
            free = false;
            if !claim.waiters.contains(&waiter) {
                claim.waiters.push(waiter);
            }
        }
        free
    }
}

impl LogicalUnit {
    /// Whether some command has claimed a range, or tokens want to know of changes: then commands ask [`LogicalUnit::admit`] before they start.
    #[inline]
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        self.geometry().is_claimed()
    }

    /// Claims `len` bytes from `offset` on, to change them: tokens for them end. The claim is good when all that was under way on the range has ended and
    /// [`LogicalUnit::may_start`] says so.
    pub fn claim(&self, offset: u64, len: u64) -> Order {
        let mut cold = self.lock();
        let (order, range) = (cold.claims.next_order(), Range { offset, len });
        cold.claims.entries.push(Claim { order, range, waiters: Vec::new() });
        cold.changes(range);
        self.publish(&cold);
        order
    }

    /// A command on this range comes. If it `changes` it, tokens for it end here and now, also if it has to wait. Its place in
    /// the order: what is claimed or asked for from now on comes behind it.
    ///
    /// # Errors
    /// Its order, if it has to wait for a claim; `waiter` is told when to ask [`LogicalUnit::may_start`].
    pub fn admit(&self, offset: u64, len: u64, changes: bool, waiter: usize) -> Result<Order, Order> {
        let (mut cold, range) = (self.lock(), Range { offset, len });
        if changes && cold.changes(range) {
            self.publish(&cold);
        }
        let order = Order(cold.claims.next);
        if cold.claims.is_free(order, range, waiter) { Ok(order) } else { Err(order) }
    }

    /// Whether nothing on this range that was claimed before this place in the order is left; if there is, `waiter` is told
    /// when to ask again.
    #[must_use]
    pub fn may_start(&self, order: Order, offset: u64, len: u64, waiter: usize) -> bool {
        self.lock().claims.is_free(order, Range { offset, len }, waiter)
    }

    /// Gives a claim up, whether it became good or not, and returns who is to be told.
    #[must_use]
    pub fn release(&self, order: Order) -> Vec<usize> {
        let mut cold = self.lock();
        let Some(at) = cold.claims.entries.iter().position(|claim| claim.order == order) else { return Vec::new() };
        // In order, since claims are pushed in order.
        let claim = cold.claims.entries.remove(at);
        if cold.claims.is_empty() {
            self.publish(&cold);
        }
        claim.waiters
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Bench, shape};
    use pollux_core::Shape;

    const NOBODY: [usize; 0] = [];

    #[test]
    fn a_command_waits_for_what_was_claimed_before_it_and_overlaps() {
        let unit = Bench::new().unit;
        assert!(!unit.is_claimed());
        let first = unit.claim(1024, 1024);
        assert!(unit.is_claimed());
        assert!(unit.admit(0, 1024, true, 5).is_ok_and(|order| order > first));
        assert!(unit.admit(2048, 512, true, 5).is_ok());
        let command = unit.admit(1536, 512, true, 5).unwrap_err();
        let later = unit.claim(1024, 512);
        let last = unit.claim(1536, 512);
        assert!(!unit.may_start(command, 1536, 512, 5));
        assert_eq!(unit.release(first), [5], "told once");
        assert!(unit.may_start(command, 1536, 512, 5), "what was claimed after it came is not waited for");
        assert!(unit.may_start(later, 1024, 512, 6) && unit.may_start(last, 1536, 512, 7), "they do not overlap");
        assert_eq!((unit.release(later), unit.release(last)), (vec![], vec![]));
        assert!(!unit.is_claimed());
        assert_eq!(unit.release(first), NOBODY, "a claim is given up once");
    }

    #[test]
    fn claims_that_overlap_go_one_after_the_other() {
        let unit = Bench::new().unit;
        let claims = [unit.claim(0, 512), unit.claim(0, 1024), unit.claim(512, 512)];
        let good = |at: usize| unit.may_start(claims[at], [0, 0, 512][at], [512, 1024, 512][at], at);
        assert_eq!([0, 1, 2].map(good), [true, false, false]);
        assert_eq!(unit.release(claims[0]), [1]);
        assert_eq!([1, 2].map(good), [true, false]);
        assert_eq!(unit.release(claims[1]), [2]);
        assert!(good(2));
    }

    #[test]
    fn a_claim_that_was_not_good_yet_can_be_given_up() {
        let unit = Bench::new().unit;
        let (first, second) = (unit.claim(0, 512), unit.claim(0, 512));
        assert!(!unit.may_start(second, 0, 512, 1));
        assert_eq!(unit.release(second), NOBODY);
        assert_eq!(unit.release(first), [1], "told of nothing that it still waits for");
    }

    #[test]
    fn while_there_is_a_claim_everything_goes_the_long_way() {
        let mut bench = Bench::new();
        let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        let plain = |bench: &Bench| {
            let cdb = crate::Cdb::from_slice(&read);
            bench.unit.plain_io(&bench.path, cdb.as_bytes(), 0).is_some()
        };
        assert!(plain(&bench));
        let claim = bench.unit.claim(1 << 20, 512);
        assert!(!plain(&bench));
        assert!(matches!(bench.execute(&read), crate::Action::Io { .. }), "the unit is as ready as before");
        bench.unit.set_shape(Some(Shape { num_blocks: 5000, ..shape() }));
        assert!(bench.unit.is_claimed(), "another capacity changes nothing about it");
        crate::testing::drained(&bench.path);
        let _ = bench.unit.release(claim);
        assert!(plain(&bench));
    }
}
