//! Shell commands and what they are to print, in one file. A line `$ COMMAND` begins an entry, the lines below it,
//! indented by two blanks, are its output and its errors in order, and a last line `= STATUS` ends it. `#` begins a
//! comment line.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};

/// Ends the output of a command, before its status.
const END: char = '\u{1e}';

/// A command with what it is to print.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    comments: Vec<String>,
    command: String,
    output: Vec<String>,
    status: i32,
}

/// Commands in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript {
    entries: Vec<Entry>,
}

impl Transcript {
    /// Reads a transcript.
    ///
    /// # Errors
    /// If a line is not understood.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut entries, mut comments, mut open) = (Vec::new(), Vec::new(), None::<Entry>);
        for line in text.lines() {
            match (line.get(..2).unwrap_or(line), &mut open) {
                ("$ ", None) => {
                    let comments = std::mem::take(&mut comments);
                    open = Some(Entry { comments, command: line[2..].into(), output: Vec::new(), status: 0 });
                }
                ("  ", Some(entry)) => entry.output.push(line[2..].into()),
                ("", Some(entry)) => entry.output.push(String::new()),
                ("= ", Some(entry)) => {
                    entry.status = line[2..].trim().parse().with_context(|| line.to_owned())?;
                    entries.extend(open.take());
                }
                // Between two comments a blank line stays.
                ("", None) => comments.extend((!comments.is_empty()).then(String::new)),
                (_, None) if line.starts_with('#') => comments.push(line.to_owned()),
                _ => bail!("not understood: {line}"),
            }
        }
        ensure!(open.is_none(), "the last command has no status");
        Ok(Transcript { entries })
    }

    /// A shell script that runs all commands. In them, and in what they print, names stand for devices: `names` says which.
    #[must_use]
    pub fn script(&self, names: &[(&str, &str)]) -> String {
        let mut script = String::new();
        for entry in &self.entries {
            let command = names.iter().fold(entry.command.clone(), |text, (name, device)| text.replace(name, device));
            // A subshell: what a command sets is not there for the next.
            let _ = writeln!(script, "( {command}\n) 2>&1; printf '\\036%d\\n' $?");
        }
        script
    }

    /// The same commands with what they have printed.
    ///
    /// # Errors
    /// If the script did not come to its end.
    pub fn ran(&self, printed: &str, names: &[(&str, &str)]) -> Result<Self> {
        let mut rest = names.iter().fold(printed.to_owned(), |text, (name, device)| text.replace(device, name));
        let mut entries = Vec::new();
        for entry in &self.entries {
            let (output, after) = rest.split_once(END).with_context(|| format!("did not end: {}", entry.command))?;
            let (status, after) = after.split_once('\n').unwrap_or((after, ""));
            let mut output: Vec<String> = output.lines().map(|line| line.trim_end().to_owned()).collect();
            while output.last().is_some_and(String::is_empty) {
                output.pop();
            }
            let status = status.trim().parse().with_context(|| format!("status {status}"))?;
            entries.push(Entry { output, status, ..entry.clone() });
            rest = after.to_owned();
        }
        Ok(Transcript { entries })
    }

    /// Where `now` differs, for people; empty if it does not.
    #[must_use]
    pub fn differences(&self, now: &Transcript) -> Vec<String> {
        let mut all = Vec::new();
        for (want, got) in self.entries.iter().zip(&now.entries).filter(|(want, got)| want != got) {
            let mut text = format!("$ {}", want.command);
            let same_start = want.output.iter().zip(&got.output).take_while(|(a, b)| a == b).count();
            let most = want.output.len().min(got.output.len()) - same_start;
            let same_end =
                want.output.iter().rev().zip(got.output.iter().rev()).take_while(|(a, b)| a == b).count().min(most);
            for (mark, lines) in [("-", &want.output), ("+", &got.output)] {
                for line in &lines[same_start..lines.len() - same_end] {
                    let _ = write!(text, "\n{mark} {line}");
                }
            }
            if want.status != got.status {
                let _ = write!(text, "\n- status {}\n+ status {}", want.status, got.status);
            }
            all.push(text);
        }
        all
    }
}

impl std::fmt::Display for Transcript {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for entry in &self.entries {
            for comment in &entry.comments {
                writeln!(f, "{comment}")?;
            }
            writeln!(f, "$ {}", entry.command)?;
            for line in &entry.output {
                writeln!(f, "{}", format!("  {line}").trim_end())?;
            }
            writeln!(f, "= {}\n", entry.status)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# head\n\n# first\n$ sg_inq DISK\n  one\n\n  DISK two\n= 0\n\n# more\n$ false\n= 1\n\n";
    const NAMES: [(&str, &str); 1] = [("DISK", "/dev/sda")];

    #[test]
    fn it_reads_what_it_writes() {
        let transcript = Transcript::parse(TEXT).unwrap();
        assert_eq!(transcript.to_string(), TEXT);
        assert_eq!(transcript.entries[0].output, ["one", "", "DISK two"]);
    }

    #[test]
    fn the_script_names_devices_and_its_answer_is_read_back() {
        let transcript = Transcript::parse(TEXT).unwrap();
        let script = transcript.script(&NAMES);
        assert!(script.contains("( sg_inq /dev/sda\n)"), "{script}");
        let now = transcript.ran("one  \n\n/dev/sda two\n\u{1e}0\n\u{1e}1\n", &NAMES).unwrap();
        assert_eq!(now, transcript);
        assert_eq!(transcript.differences(&now), Vec::<String>::new());
        assert!(transcript.ran("one\n\u{1e}0\n", &NAMES).is_err());
    }

    #[test]
    fn another_output_or_status_is_a_difference() {
        let transcript = Transcript::parse(TEXT).unwrap();
        let now = transcript.ran("one\n\nthree\n/dev/sda two\n\u{1e}0\n\u{1e}2\n", &NAMES).unwrap();
        assert_eq!(transcript.differences(&now), ["$ sg_inq DISK\n+ three", "$ false\n- status 1\n+ status 2"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["x\n", "$ a\n$ b\n", "$ a\n  b\n", "$ a\n= many\n", "  stray\n"] {
            assert!(Transcript::parse(bad).is_err(), "{bad}");
        }
    }
}
