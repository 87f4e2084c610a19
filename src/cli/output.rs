//! Printing: tables for people, JSON for scripts. Writing may fail (a pipe that closed), so nothing here uses `println!`.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use super::CliError;
use super::client::CallError;

/// Where a command's result goes.
pub(crate) struct Output {
    as_json: bool,
}

impl Output {
    pub(crate) const fn new(as_json: bool) -> Self {
        Output { as_json }
    }

    /// Prints `value` as JSON if that was asked for, else what `people` makes of it.
    pub(crate) fn show(&self, value: &Value, people: impl FnOnce(&Value) -> String) -> Result<(), CliError> {
        if self.as_json { self.json(value) } else { self.raw(people(value).as_bytes()) }
    }

    /// Prints a value as JSON.
    pub(crate) fn json(&self, value: &Value) -> Result<(), CliError> {
        self.raw(format!("{value:#}\n").as_bytes())
    }

    /// Prints bytes.
    #[expect(clippy::unused_self, reason = "one way out for everything that is printed")]
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(())
    }
}

/// Says on standard error why a command failed.
pub(crate) fn complain(error: &CliError, as_json: bool) {
    let text = match error {
        CliError::Call(CallError::Refused { error, .. }) if as_json => format!("{error:#}"),
        other if as_json => format!("{:#}", json!({"message": other.to_string()})),
        other => format!("pollux: {other}"),
    };
    let _ = writeln!(io::stderr(), "{text}");
}

/// A table with these columns.
pub(crate) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns);
    table
}

/// A table as text; lines without trailing spaces.
pub(crate) fn text(table: &Table) -> String {
    let lines = table.trim_fmt();
    format!("{lines}\n")
}

/// A member as text: strings without quotes, `-` for what is not there.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_text() {
        let mut rows = table(&["NAME", "SIZE"]);
        rows.add_row(["disk0", "64 MiB"]);
        assert_eq!(text(&rows), " NAME   SIZE\n disk0  64 MiB\n");
    }

    #[test]
    fn cells_hide_nothing_and_control_nothing() {
        assert_eq!(cell(&json!("a\u{1b}[2Jb")), "a?[2Jb");
        assert_eq!((cell(&Value::Null), cell(&json!("")), cell(&json!(7))), ("-".into(), "-".into(), "7".into()));
    }
}
