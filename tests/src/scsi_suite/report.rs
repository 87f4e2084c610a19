//! What `iscsi-test-cu -v -V` prints, as outcomes. Its own summary is not to be trusted: it counts as passed what it has
//! skipped, and what returned without having asked the target anything.

use anyhow::{Context as _, Result, bail, ensure};

/// An awk program that leaves of the suite's output (megabytes) what [`Report::parse`] looks at. `[SENT]` stands for the
/// first command that a test has sent.
pub const CONDENSE: &str = r#"
/^  Test: / { sent = 0 }
/^Suite: |^  Test: |\[SKIPPED\]|\[FAILED\]|^passed|^FAILED|^ +[0-9]+\. |^ +tests / { print }
!sent && / Send [A-Z]/ { print "    [SENT]"; sent = 1 }
"#;

/// These return at once where there is no iSCSI or no removable medium, and say nothing of it at the level of `-v`.
const SILENT: [&str; 5] =
    ["Read10.Async", "Write10.Async", "NoMedia.NoMediaSBC", "StartStopUnit.PwrCnd", "StartStopUnit.NoLoej"];

/// These look at what the suite has asked before its first test, and need to send nothing.
const LOOK_BACK: [&str; 2] = ["Inquiry.VersionDescriptors", "ReadCapacity16.PI"];

/// What became of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has asked the target, and liked all answers.
    Passed,
    /// It has not done what it is for, and says this of it; empty: it says nothing.
    Skipped(String),
    /// The first thing that was wrong.
    Failed(String),
}

/// A run of the suite: `Suite.Test` and what became of it, in the order of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The tests.
    pub tests: Vec<(String, Outcome)>,
}

/// A test that has begun.
struct Begun {
    name: String,
    sent: bool,
    skipped: Option<String>,
    failed: Option<String>,
    detail: Option<String>,
}

impl Begun {
    fn line(&mut self, line: &str) {
        let text = line.trim();
        self.sent |= text == "[SENT]";
        for (mark, place) in [("[SKIPPED]", &mut self.skipped), ("[FAILED]", &mut self.failed)] {
            if let Some((_, said)) = text.split_once(mark) {
                place.get_or_insert_with(|| said.trim().to_owned());
            }
        }
    }

    /// The outcome, given whether the suite itself calls it a failure.
    fn outcome(self, failed: bool) -> Outcome {
        if failed {
            let said = self.failed.or(self.detail);
            return Outcome::Failed(said.unwrap_or_else(|| "without a message".into()));
        }
        if SILENT.contains(&self.name.as_str()) {
            return Outcome::Skipped(String::new());
        }
        match self.skipped {
            Some(said) => Outcome::Skipped(said),
            None if self.sent || LOOK_BACK.contains(&self.name.as_str()) => Outcome::Passed,
            None => Outcome::Skipped(String::new()),
        }
    }
}

impl Report {
    /// Reads the suite's output, whole or condensed.
    ///
    /// # Errors
    /// If the suite did not come to its end, or its count of tests or failures is another than ours.
    pub fn parse(text: &str) -> Result<Self> {
        let mut report = Report { tests: Vec::new() };
        let (mut suite, mut begun, mut summary) = (String::new(), None::<(Begun, bool)>, None);
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("Suite: ") {
                report.end(begun.take())?;
                name.trim().clone_into(&mut suite);
                continue;
            }
            let mut said = line;
            if let Some(test) = line.strip_prefix("  Test: ") {
                report.end(begun.take())?;
                let (name, rest) = test.split_once(" ...").with_context(|| format!("not understood: {line}"))?;
                let name = format!("{suite}.{name}");
                let new = Begun { name, sent: false, skipped: None, failed: None, detail: None };
                begun = Some((new, false));
                said = rest;
            }
            if let Some(counts) = line.trim().strip_prefix("tests ") {
                report.end(begun.take())?;
                summary = Some(counts.split_whitespace().map(str::parse).collect::<Result<Vec<usize>, _>>());
            } else if let Some((test, failed)) = &mut begun {
                match said.trim() {
                    "passed" => report.tests.push(end_of(begun.take(), false)?),
                    "FAILED" => *failed = true,
                    // What CUnit says of a failed assertion comes after the verdict.
                    other if *failed && other.contains(". ") => {
                        test.detail.get_or_insert_with(|| other.to_owned());
                    }
                    other => {
                        if other.contains("Send ") {
                            test.sent = true;
                        }
                        test.line(other);
                    }
                }
            }
        }
        let counts = summary.context("the suite did not come to its end")??;
        let [total, _ran, _passed, failed, ..] = counts[..] else { bail!("the suite's summary says {counts:?}") };
        ensure!(total == report.tests.len(), "the suite counts {total} tests, its output names {}", report.tests.len());
        let found = report.tests.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_))).count();
        ensure!(failed == found, "the suite counts {failed} failures, its output names {found}");
        Ok(report)
    }

    /// A test without a verdict is an error; one that failed ends where the next begins.
    fn end(&mut self, begun: Option<(Begun, bool)>) -> Result<()> {
        match begun {
            None => {}
            Some((test, false)) => bail!("{} has no verdict", test.name),
            failed => self.tests.push(end_of(failed, true)?),
        }
        Ok(())
    }

    /// How many passed, were skipped, failed.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for (_, outcome) in &self.tests {
            counts[match outcome {
                Outcome::Passed => 0,
                Outcome::Skipped(_) => 1,
                Outcome::Failed(_) => 2,
            }] += 1;
        }
        counts
    }
}

fn end_of(begun: Option<(Begun, bool)>, failed: bool) -> Result<(String, Outcome)> {
    let (test, _) = begun.context("a verdict without a test")?;
    Ok((test.name.clone(), test.outcome(failed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
found matching LU device identifier for all (2) paths
Suite: Inquiry
  Test: Standard ...    [SENT]
passed
  Test: VersionDescriptors ...passed
Suite: Read10
  Test: Simple ...
    [SENT]
passed
  Test: Async ...
    [SENT]
passed
  Test: Quiet ...passed
  Test: Protect ...    [SKIPPED] READ10 is not implemented.
    [SENT]
    [SKIPPED] and again
passed
Suite: WriteSame10
  Test: UnmapUntilEnd ...
    [SENT]
    [FAILED] Blocks did not read back as zero
FAILED
    1. test_writesame10_unmap_until_end.c:71  - CU_FAIL(\"[FAILED] Blocks\")
  Test: Bare ...
    [SENT]
FAILED
    1. test_bare.c:7  - CU_ASSERT_EQUAL(1,2)

               tests      8      8      6      2        0
";

    fn outcomes(text: &str) -> Vec<(String, Outcome)> {
        Report::parse(text).unwrap().tests
    }

    #[test]
    fn what_was_skipped_or_asked_nothing_has_not_passed() {
        let skipped = |said: &str| Outcome::Skipped(said.into());
        let want = [
            ("Inquiry.Standard", Outcome::Passed),
            ("Inquiry.VersionDescriptors", Outcome::Passed),
            ("Read10.Simple", Outcome::Passed),
            ("Read10.Async", skipped("")),
            ("Read10.Quiet", skipped("")),
            ("Read10.Protect", skipped("READ10 is not implemented.")),
            ("WriteSame10.UnmapUntilEnd", Outcome::Failed("Blocks did not read back as zero".into())),
            ("WriteSame10.Bare", Outcome::Failed("1. test_bare.c:7  - CU_ASSERT_EQUAL(1,2)".into())),
        ];
        assert_eq!(outcomes(OUTPUT), want.map(|(name, outcome)| (name.to_owned(), outcome)));
        assert_eq!(Report::parse(OUTPUT).unwrap().counts(), [3, 3, 2]);
    }

    #[test]
    fn a_run_that_does_not_add_up_is_refused() {
        for (from, to) in [
            ("tests      8      8      6      2", "tests      9      9      7      2"),
            ("tests      8      8      6      2", "tests      8      8      7      1"),
            ("               tests      8", "               suites     8"),
            ("passed\n  Test: Async", "  Test: Async"),
        ] {
            assert!(OUTPUT.contains(from));
            assert!(Report::parse(&OUTPUT.replace(from, to)).is_err(), "{from} -> {to}");
        }
        assert!(Report::parse("").is_err());
    }
}
