//! Rules by which requests go wrong.

use std::ops::Range;

use pollux_core::{Io, IoError, IoFlags, Op};

/// How a request goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails, and nothing of it happens.
    Fail(IoError),
    /// It fails, and the first half of it has happened (of a change; of anything else nothing).
    FailHalf(IoError),
    /// It fails, and all of it has happened.
    FailDone(IoError),
    /// A flush fails, and what it covered will never be durable, although it stays visible. Anything else just fails.
    FailAndLose(IoError),
    /// A change is acknowledged and never happens; a flush is acknowledged and does nothing.
    Lose,
    /// A change is acknowledged, and happens at this byte instead.
    Misdirect(u64),
    /// A change is acknowledged, and only its first half happens.
    Tear,
    /// A read succeeds, with this byte of it (modulo its length) inverted.
    Corrupt(u64),
    /// It stays in flight, without any effect, until [`Medium::release`](super::Medium::release).
    Hold,
}

impl Effect {
    /// What whoever asked is told.
    pub(super) const fn error(self) -> Option<IoError> {
        match self {
            Effect::Fail(error) | Effect::FailHalf(error) | Effect::FailDone(error) | Effect::FailAndLose(error) => {
                Some(error)
            }
            Effect::Lose | Effect::Misdirect(_) | Effect::Tear | Effect::Corrupt(_) | Effect::Hold => None,
        }
    }
}

type Predicate = Box<dyn Fn(&Io) -> bool + Send>;

/// Which requests go wrong, and how.
pub struct Rule {
    effect: Effect,
    op: Option<Op>,
    fua: bool,
    range: Range<u64>,
    label: Option<&'static str>,
    when: Option<Predicate>,
    skip: u64,
    times: u64,
}

impl Rule {
    /// The next request goes wrong, whatever it is.
    #[must_use]
    pub const fn new(effect: Effect) -> Self {
        Rule { effect, op: None, fua: false, range: 0..u64::MAX, label: None, when: None, skip: 0, times: 1 }
    }

    /// Only of this kind.
    #[must_use]
    pub const fn op(mut self, op: Op) -> Self {
        self.op = Some(op);
        self
    }

    /// Only with FUA.
    #[must_use]
    pub const fn fua(mut self) -> Self {
        self.fua = true;
        self
    }

    /// Only those that touch a byte of this range. (A flush touches none.)
    #[must_use]
    pub const fn at(mut self, range: Range<u64>) -> Self {
        self.range = range;
        self
    }

    /// Only those that are this step.
    #[must_use]
    pub const fn step(mut self, label: &'static str) -> Self {
        self.label = Some(label);
        self
    }

    /// Only those for which `when` says so.
    #[must_use]
    pub fn when(mut self, when: impl Fn(&Io) -> bool + Send + 'static) -> Self {
        self.when = Some(Box::new(when));
        self
    }

    /// Not the first `skip` that fit.
    #[must_use]
    pub const fn skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// So many of them instead of one.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// All of them instead of one.
    #[must_use]
    pub const fn always(self) -> Self {
        self.times(u64::MAX)
    }

    fn fits(&self, io: &Io, label: Option<&'static str>) -> bool {
        let anywhere = self.range == (0..u64::MAX);
        let touches = io.offset < self.range.end && self.range.start < io.offset.saturating_add(io.len);
        self.op.is_none_or(|op| op == io.op)
            && (!self.fua || io.flags.contains(IoFlags::FUA))
            && (anywhere || (touches && io.op != Op::Flush))
            && self.label.is_none_or(|wanted| label == Some(wanted))
            && self.when.as_ref().is_none_or(|when| when(io))
    }
}

/// All rules, and how often each kind of thing has happened.
#[derive(Default)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    hits: u64,
}

impl Rules {
    pub(super) fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(super) const fn hits(&self) -> u64 {
        self.hits
    }

    /// What happens to this request: the first rule that fits has it.
    pub(super) fn judge(&mut self, io: &Io, label: Option<&'static str>) -> Option<Effect> {
        let rule = self.rules.iter_mut().find(|rule| rule.times > 0 && rule.fits(io, label))?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        self.hits += 1;
        Some(rule.effect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(op: Op, offset: u64) -> Io {
        Io::without_data(1, op, IoFlags::empty(), offset, 512)
    }

    #[test]
    fn a_rule_picks_by_kind_place_step_and_number() {
        let mut rules = Rules::default();
        rules.add(Rule::new(Effect::Lose).op(Op::Write).at(1024..2048).step("log").skip(1).times(2));
        assert_eq!(rules.judge(&io(Op::Read, 1024), Some("log")), None);
        assert_eq!(rules.judge(&io(Op::Write, 512), Some("log")), None);
        assert_eq!(rules.judge(&io(Op::Write, 2048), Some("log")), None);
        assert_eq!(rules.judge(&io(Op::Write, 1024), None), None);
        let fits = |rules: &mut Rules| rules.judge(&io(Op::Write, 1536), Some("log"));
        assert_eq!(std::array::from_fn(|_| fits(&mut rules).is_some()), [false, true, true, false]);
        assert_eq!(rules.hits(), 2);
    }

    #[test]
    fn a_rule_may_ask_for_fua_or_anything_else() {
        let mut rules = Rules::default();
        rules.add(Rule::new(Effect::Hold).fua().always());
        rules.add(Rule::new(Effect::Tear).when(|io| io.offset == 512).always());
        assert_eq!(rules.judge(&Io { flags: IoFlags::FUA, ..io(Op::Write, 0) }, None), Some(Effect::Hold));
        assert_eq!(rules.judge(&io(Op::Write, 0), None), None);
        assert_eq!(rules.judge(&io(Op::Write, 512), None), Some(Effect::Tear));
        rules.clear();
        assert_eq!(rules.judge(&io(Op::Write, 512), None), None);
    }
}
