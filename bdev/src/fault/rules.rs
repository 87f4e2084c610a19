//! Which requests fail, and how.

use pollux_core::{IoError, Op};

use crate::BdevError;

/// What a rule does to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this error and does nothing.
    Fail(IoError),
    /// It stays in flight until it is resumed or cancelled.
    Stuck,
    /// It is done this many nanoseconds late.
    Delay(u64),
    /// One byte of its data (of a write before, of a read after) is changed by exclusive or. Other operations are done
    /// as they are.
    Corrupt {
        /// Which byte, counted from the start of the data; beyond the end: none.
        offset: u64,
        /// With what; not 0.
        value: u8,
    },
    /// Only the first blocks of the range are dealt with (how many, by the channel's seed; never all of them), and it
    /// fails with [`IoError::Medium`]. Reads and flushes just fail.
    Torn,
}

/// A rule for one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What happens.
    pub effect: Effect,
    /// To how many requests; [`Rule::FOR_EVER`]: to all.
    pub count: u32,
    /// Only to a request that finds at least so many others in flight on its channel.
    pub queue_depth: u64,
}

impl Rule {
    /// A count that does not go down.
    pub const FOR_EVER: u32 = u32::MAX;

    /// The effect on the next `count` requests.
    #[must_use]
    pub const fn new(effect: Effect, count: u32) -> Self {
        Rule { effect, count, queue_depth: 0 }
    }

    pub(super) fn check(&self) -> Result<(), BdevError> {
        if self.count == 0 {
            return Err(BdevError::invalid("num", "must be at least 1"));
        }
        if matches!(self.effect, Effect::Corrupt { value: 0, .. }) {
            return Err(BdevError::invalid("corrupt_value", "must not be 0, which would change nothing"));
        }
        Ok(())
    }
}

/// The rules, one for each operation.
#[derive(Debug, Default)]
pub(super) struct Rules([Option<Rule>; Op::ALL.len()]);

impl Rules {
    pub(super) fn set(&mut self, op: Op, rule: Rule) {
        self.0[op as usize] = Some(rule);
    }

    pub(super) fn get(&self, op: Op) -> Option<Rule> {
        self.0[op as usize]
    }

    /// What happens to a request that is submitted now, and counts it.
    pub(super) fn draw(&mut self, op: Op, others: u64) -> Option<Effect> {
        let slot = &mut self.0[op as usize];
        let rule = slot.as_mut().filter(|rule| others >= rule.queue_depth)?;
        let effect = rule.effect;
        if rule.count != Rule::FOR_EVER {
            rule.count -= 1;
            if rule.count == 0 {
                *slot = None;
            }
        }
        Some(effect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_counts_down_and_looks_at_the_depth() {
        let mut rules = Rules::default();
        rules.set(Op::Read, Rule { queue_depth: 2, ..Rule::new(Effect::Torn, 2) });
        assert_eq!(rules.draw(Op::Read, 1), None);
        assert_eq!(rules.draw(Op::Write, 9), None);
        assert_eq!(rules.draw(Op::Read, 2), Some(Effect::Torn));
        assert_eq!(rules.get(Op::Read).unwrap().count, 1);
        assert_eq!(rules.draw(Op::Read, 3), Some(Effect::Torn));
        assert_eq!(rules.draw(Op::Read, 3), None);
        rules.set(Op::Flush, Rule::new(Effect::Stuck, Rule::FOR_EVER));
        assert!((0..5).all(|_| rules.draw(Op::Flush, 0) == Some(Effect::Stuck)));
    }
}
