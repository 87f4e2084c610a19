//! `pollux pool`: checks a pool on a file or block device. It needs no daemon, and the pool must not be in use.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use pollux_bdev::thin::check::{FileBlocks, OpenError, Report, Verdict, check};
use serde_json::Value;

use super::CliError;
use super::output::{Output, cell, table, text};
use super::units::size;

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Check a pool that is not in use; only reads
    ///
    /// Every checksum, every page, the owner of every cluster, the log. Exit code 0: clean (also after a crash), 4:
    /// damaged, 8: cannot be checked, or is in use.
    Check {
        /// The file or block device that the pool lies on
        path: PathBuf,
    },
}

pub(crate) fn run(command: &PoolCommand, output: &Output) -> Result<(), CliError> {
    match command {
        PoolCommand::Check { path } => run_check(path, output),
    }
}

fn run_check(path: &Path, output: &Output) -> Result<(), CliError> {
    let mut source = FileBlocks::open(path).map_err(not_opened)?;
    let mut bar = Bar::new("checking");
    let report = check(&mut source, &mut |done, total| bar.show(done, total));
    bar.end();
    output.show(&serde_json::to_value(&report).unwrap_or_default(), people)?;
    verdict(path, &report)
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err wants it")]
fn not_opened(error: OpenError) -> CliError {
    CliError::NotCheckable(error.to_string())
}

/// What the exit code says.
fn verdict(path: &Path, report: &Report) -> Result<(), CliError> {
    let path = path.display();
    match (report.verdict, &report.reason) {
        (Verdict::Clean, _) => Ok(()),
        (Verdict::Damaged, _) => {
            let many = report.findings_total;
            Err(CliError::Damaged(format!("{path} is damaged: {many} invariants do not hold (docs/format.md)")))
        }
        (Verdict::NotCheckable, reason) => {
            let reason = reason.as_deref().unwrap_or("it is no pool");
            Err(CliError::NotCheckable(format!("{path} cannot be checked: {reason}")))
        }
    }
}

fn people(report: &Value) -> String {
    if report["pool"].is_null() {
        return String::new();
    }
    let pool = &report["pool"];
    let cluster = pool["cluster_size"].as_u64().unwrap_or_default();
    let bytes = |clusters: &Value| size(clusters.as_u64().unwrap_or_default().saturating_mul(cluster));
    let mut out = format!(
        "pool {} ({}), generation {}, {} batches of the log replayed\n",
        cell(&pool["name"]),
        cell(&pool["uuid"]),
        cell(&pool["generation"]),
        cell(&report["batches"]),
    );
    out += &format!(
        "  size {}, used {}, free {}, ",
        bytes(&pool["clusters"]),
        bytes(&pool["owned"]),
        bytes(&pool["free"])
    );
    out += &format!("pages {} of {}\n", cell(&pool["pages"][1]), cell(&pool["pages"][0]));
    let layers = report["layers"].as_array().map_or(&[][..], Vec::as_slice);
    if !layers.is_empty() {
        let mut rows = table(&["LAYER", "NAME", "KIND", "PARENT", "SIZE", "OWNS", "HOLDS"]);
        for layer in layers {
            let sub_blocks = layer["here"].as_u64().unwrap_or_default();
            rows.add_row([
                cell(&layer["id"]),
                cell(&layer["name"]),
                cell(&layer["kind"]),
                cell(&layer["parent"]),
                size(layer["size"].as_u64().unwrap_or_default()),
                bytes(&layer["owned"]),
                size(sub_blocks.saturating_mul(cluster / 16)),
            ]);
        }
        out += &text(&rows);
    }
    for finding in report["findings"].as_array().into_iter().flatten() {
        let block = finding["block"].as_u64().map(|block| format!(" at block {block}")).unwrap_or_default();
        out += &format!("{}{block}: {}\n", cell(&finding["finding"]), cell(&finding["message"]));
    }
    let all = report["findings_total"].as_u64().unwrap_or_default();
    let shown = report["findings"].as_array().map_or(0, Vec::len) as u64;
    if all > shown {
        out += &format!("and {} more\n", all - shown);
    }
    if all == 0 {
        out += "clean\n";
    }
    out
}

/// How far it is, on a terminal only.
struct Bar {
    what: &'static str,
    shown: Option<u64>,
    terminal: bool,
}

impl Bar {
    fn new(what: &'static str) -> Self {
        Bar { what, shown: None, terminal: io::stderr().is_terminal() }
    }

    fn show(&mut self, done: u64, total: u64) {
        let percent = (u128::from(done) * 100 / u128::from(total.max(1))) as u64;
        if self.terminal && self.shown != Some(percent) {
            self.shown = Some(percent);
            let _ = write!(io::stderr(), "\r{}", bar(self.what, percent));
        }
    }

    /// Takes it away again.
    fn end(&self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn bar(what: &str, percent: u64) -> String {
    let full = (percent / 4).min(25) as usize;
    format!("{what} [{}{}] {percent:3} %", "#".repeat(full), " ".repeat(25 - full))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_bdev::thin::testing::{Memory, damage, story};
    use std::os::unix::fs::FileExt;

    /// A pool in a file.
    fn file(memory: &Memory) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(memory.len * 4096).unwrap();
        for (block, bytes) in &memory.blocks {
            file.as_file().write_all_at(&bytes[..], block * 4096).unwrap();
        }
        file
    }

    fn check_it(path: &Path) -> Option<u8> {
        run_check(path, &Output::new(false)).err().map(|error| error.code())
    }

    #[test]
    fn exit_codes_say_what_it_is() {
        let clean = file(&story::story().build().memory);
        assert_eq!(check_it(clean.path()), None);
        let broken = file(&damage::damages()[0].build().memory);
        assert_eq!(check_it(broken.path()), Some(4));
        let none = file(&Memory { len: 1000, ..Memory::default() });
        assert_eq!(check_it(none.path()), Some(8));
        assert_eq!(check_it(Path::new("/nowhere/at/all")), Some(8));
        let writer = FileBlocks::open_to_repair(clean.path()).unwrap();
        assert_eq!(check_it(clean.path()), Some(8), "in use");
        drop(writer);
        assert_eq!(check_it(clean.path()), None);
    }

    #[test]
    fn a_report_can_be_read() {
        let mut built = story::story().build();
        let report = check(&mut built.memory, &mut |_, _| {});
        let text = people(&serde_json::to_value(&report).unwrap());
        for part in ["pool pool (", "layer-17", "snapshot", "8 batches", "clean\n"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let mut built = damage::damages()[0].build();
        let text = people(&serde_json::to_value(check(&mut built.memory, &mut |_, _| {})).unwrap());
        assert!(text.contains("superblock_unreadable at block") && !text.contains("clean"), "{text}");
        assert_eq!(people(&Value::Null), "");
    }

    #[test]
    fn the_bar_has_its_length() {
        assert!((0..=120).all(|percent| bar("x", percent).len() == bar("x", 0).len()));
    }
}
