//! What is expected of each test of `iscsi-test-cu`: a file of lines `Suite.Test pass`, `Suite.Test skip CAUSE` and
//! `Suite.Test fail WHY`. Blanks align, `#` begins a comment line. A second file may lie over a first and then holds only
//! what differs.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Outcome, Report};

/// Why a test is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It needs iSCSI itself: several sessions, tasks under way at once.
    Iscsi,
    /// It needs a removable medium.
    Removable,
    /// It needs a write-protected unit.
    WriteProtected,
    /// It needs `--allow-sanitize`.
    SanitizeFlag,
    /// It needs physical blocks larger than logical ones.
    BlockSize,
    /// It returns without asking the target anything, and without a word.
    Silent,
    /// The target does not have the command.
    NotYet,
}

impl Cause {
    /// All of them, with their names in the list.
    pub const ALL: [(Cause, &'static str); 7] = [
        (Cause::Iscsi, "iscsi"),
        (Cause::Removable, "removable"),
        (Cause::WriteProtected, "write-protected"),
        (Cause::SanitizeFlag, "sanitize-flag"),
        (Cause::BlockSize, "block-size"),
        (Cause::Silent, "silent"),
        (Cause::NotYet, "not-yet"),
    ];

    /// The cause behind what the suite says; `None` if it is not known.
    #[must_use]
    pub fn of(said: &str) -> Option<Cause> {
        let signs = [
            ("iSCSI", Cause::Iscsi),
            ("removable", Cause::Removable),
            ("write-protected", Cause::WriteProtected),
            ("--allow-sanitize", Cause::SanitizeFlag),
            ("LBPPB", Cause::BlockSize),
            ("not implemented", Cause::NotYet),
            ("Not Supported", Cause::NotYet),
        ];
        match said {
            "" => Some(Cause::Silent),
            said => signs.iter().find(|(sign, _)| said.contains(sign)).map(|(_, cause)| *cause),
        }
    }

    /// Its name in the list.
    #[must_use]
    pub fn name(self) -> &'static str {
        Cause::ALL.iter().find(|(cause, _)| *cause == self).map_or("", |(_, name)| name)
    }

    fn named(name: &str) -> Option<Cause> {
        Cause::ALL.iter().find(|(_, known)| *known == name).map(|(cause, _)| *cause)
    }
}

/// What is expected of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It passes.
    Pass,
    /// It is skipped.
    Skip(Cause),
    /// It fails, and this is why.
    Fail(String),
}

impl Expected {
    fn parse(words: &str) -> Result<Self> {
        let (result, rest) = words.split_once(' ').unwrap_or((words, ""));
        match (result, rest.trim()) {
            ("pass", "") => Ok(Expected::Pass),
            ("skip", name) => {
                Cause::named(name).map(Expected::Skip).with_context(|| format!("no such cause: '{name}'"))
            }
            ("fail", "") => bail!("a failure needs its reason"),
            ("fail", why) => Ok(Expected::Fail(why.to_owned())),
            _ => bail!("not understood: {words}"),
        }
    }

    /// What an outcome would be in a list; `None` if it was skipped for a cause that is not known.
    fn of(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Passed => Some(Expected::Pass),
            Outcome::Skipped(said) => Cause::of(said).map(Expected::Skip),
            Outcome::Failed(said) => Some(Expected::Fail(said.clone())),
        }
    }

    /// Whether both are the same result; why a test fails is for people.
    fn agrees(&self, other: &Expected) -> bool {
        matches!((self, other), (Expected::Fail(_), Expected::Fail(_))) || self == other
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Expected::Pass => f.write_str("pass"),
            Expected::Skip(cause) => write!(f, "skip {}", cause.name()),
            Expected::Fail(why) => write!(f, "fail {why}"),
        }
    }
}

/// The expectations of one kind of run.
#[derive(Clone, Debug, Default)]
pub struct List {
    tests: HashMap<String, Expected>,
}

impl List {
    /// Reads a list.
    ///
    /// # Errors
    /// If a line is not understood or a test is named twice.
    pub fn parse(text: &str) -> Result<Self> {
        let mut list = List::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, words) = line.split_once(' ').with_context(|| format!("not understood: {line}"))?;
            let expected = Expected::parse(words.trim()).with_context(|| line.to_owned())?;
            ensure!(list.tests.insert(name.to_owned(), expected).is_none(), "{name} is named twice");
        }
        Ok(list)
    }

    /// This list where `over` says nothing else.
    #[must_use]
    pub fn under(mut self, over: List) -> List {
        self.tests.extend(over.tests);
        self
    }

    /// What is not as expected, a line each; empty if all is.
    #[must_use]
    pub fn differences(&self, report: &Report) -> Vec<String> {
        let differs = |(name, outcome): &(String, Outcome)| {
            let said = match outcome {
                Outcome::Skipped(said) => format!("skipped ({said})"),
                Outcome::Failed(said) => format!("failed ({said})"),
                Outcome::Passed => "passed".to_owned(),
            };
            match (self.tests.get(name), Expected::of(outcome)) {
                (Some(expected), Some(now)) if expected.agrees(&now) => None,
                (Some(expected), _) => Some(format!("{name}: expected {expected}, but {said}")),
                (None, _) => Some(format!("{name}: not in the list, {said}")),
            }
        };
        report.tests.iter().filter_map(differs).collect()
    }

    /// The list in which this report is as expected: the comments at the head of `old`, then the tests in the order of the
    /// run, without those of which `base` expects the same. Reasons that still apply are kept.
    ///
    /// # Errors
    /// If a test was skipped for a cause that is not known.
    pub fn rewrite(old: &str, base: Option<&List>, report: &Report) -> Result<String> {
        let mut text: String =
            old.lines().take_while(|line| line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
        let known = List::parse(old)?;
        for (name, outcome) in &report.tests {
            let now =
                Expected::of(outcome).with_context(|| format!("{name}: skipped, and why is unknown: {outcome:?}"))?;
            if base.and_then(|base| base.tests.get(name)).is_some_and(|expected| expected.agrees(&now)) {
                continue;
            }
            let entry = known.tests.get(name).filter(|expected| expected.agrees(&now)).unwrap_or(&now);
            writeln!(text, "{name:<44} {entry}")?;
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# head\n\nA.One pass\nA.Two   skip iscsi\nB.One fail the suite writes\n";

    fn report(outcomes: &[(&str, Outcome)]) -> Report {
        Report { tests: outcomes.iter().map(|(name, outcome)| ((*name).to_owned(), outcome.clone())).collect() }
    }

    fn as_listed() -> [(&'static str, Outcome); 3] {
        [
            ("A.One", Outcome::Passed),
            ("A.Two", Outcome::Skipped("Non-iSCSI multipath. Skipping test".into())),
            ("B.One", Outcome::Failed("Blocks did not read back".into())),
        ]
    }

    #[test]
    fn what_the_list_says_is_no_difference() {
        let list = List::parse(LIST).unwrap();
        assert_eq!(list.differences(&report(&as_listed())), Vec::<String>::new());
    }

    #[test]
    fn better_worse_and_unknown_are_differences() {
        let list = List::parse(LIST).unwrap();
        for (at, outcome) in [
            (0, Outcome::Failed("no".into())),
            (0, Outcome::Skipped(String::new())),
            (1, Outcome::Passed),
            (1, Outcome::Skipped("Media is not removable.".into())),
            (1, Outcome::Skipped("for a reason of its own".into())),
            (2, Outcome::Passed),
        ] {
            let mut tests = as_listed();
            tests[at].1 = outcome;
            let differences = list.differences(&report(&tests));
            assert!(matches!(&differences[..], [one] if one.starts_with(tests[at].0)), "{differences:?}");
        }
        assert_eq!(list.differences(&report(&[("C.New", Outcome::Passed)])).len(), 1);
    }

    #[test]
    fn a_list_over_another_holds_only_what_differs() {
        let base = List::parse(LIST).unwrap();
        let mut tests = as_listed();
        tests[0].1 = Outcome::Failed("no".into());
        let report = report(&tests);
        let over = List::rewrite("# over\n# it\nA.One fail because\nB.One pass\n", Some(&base), &report).unwrap();
        assert_eq!(over.split_whitespace().collect::<Vec<_>>().join(" "), "# over # it A.One fail because");
        assert_eq!(base.under(List::parse(&over).unwrap()).differences(&report), Vec::<String>::new());
    }

    #[test]
    fn a_rewritten_list_agrees_and_keeps_its_reasons() {
        let text = List::rewrite(LIST, None, &report(&as_listed())).unwrap();
        assert!(text.starts_with("# head\nA.One") && text.contains("fail the suite writes"), "{text}");
        assert_eq!(List::parse(&text).unwrap().differences(&report(&as_listed())), Vec::<String>::new());
        let unknown = report(&[("A.One", Outcome::Skipped("for a reason of its own".into()))]);
        assert!(List::rewrite(LIST, None, &unknown).is_err());
    }

    #[test]
    fn nonsense_in_a_list_is_refused() {
        for bad in [
            "A.One",
            "A.One maybe",
            "A.One fail",
            "A.One skip",
            "A.One skip weather",
            "A.One pass x",
            "A.One pass\nA.One pass",
        ] {
            assert!(List::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_cause_has_a_name() {
        for (cause, name) in Cause::ALL {
            assert_eq!((Cause::named(name), cause.name()), (Some(cause), name));
        }
    }
}
