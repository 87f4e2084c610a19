//! `pollux pool check` and `repair`, on a file or block device. They need no daemon, and the pool must not be in use.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use pollux_bdev::thin::check::{FileBlocks, OpenError, Repair, Report, Verdict, check, repair};
use serde_json::Value;

use super::CliError;
use super::output::{Output, cell, table, text};
use super::progress::Bar;
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
    /// Repair a pool that is not in use; says what would be done, and does it with --yes
    ///
    /// What can be worked out from the rest is made anew; what cannot be read is left out, and listed: whose it was, and
    /// where. Exit code 0: clean, before or afterwards; 4: damaged, and nothing was written; 8: cannot be repaired, or is
    /// in use.
    Repair {
        /// The file or block device that the pool lies on
        path: PathBuf,
        /// Write it. What is listed as lost is lost for good then: keep a copy of the medium if it matters
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) fn run(command: &PoolCommand, output: &Output) -> Result<(), CliError> {
    match command {
        PoolCommand::Check { path } => run_check(path, output),
        PoolCommand::Repair { path, yes } => run_repair(path, *yes, output),
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

fn run_repair(path: &Path, yes: bool, output: &Output) -> Result<(), CliError> {
    // Without --yes nothing is written; but who serves the pool meanwhile would make the answer worthless.
    let mut source = FileBlocks::open_to_repair(path).map_err(not_opened)?;
    let mut bar = Bar::new("reading");
    let result = repair(&mut source, yes, &mut |done, total| bar.show(done, total));
    bar.end();
    let result =
        result.map_err(|why| CliError::NotCheckable(format!("{} cannot be repaired: {why}", path.display())))?;
    output.show(&serde_json::to_value(&result).unwrap_or_default(), repair_people)?;
    repair_verdict(path, &result)
}

/// What the exit code says.
fn repair_verdict(path: &Path, result: &Repair) -> Result<(), CliError> {
    match &result.after {
        Some(after) => verdict(path, after),
        None if result.before.is_clean() => Ok(()),
        None => {
            let path = path.display();
            Err(CliError::Damaged(format!("{path} is damaged, and nothing was written: --yes repairs it as listed")))
        }
    }
}

fn repair_people(result: &Value) -> String {
    let mut out = people(&result["before"]);
    if result["before"]["verdict"] == "clean" {
        return out + "nothing to repair\n";
    }
    for note in result["notes"].as_array().into_iter().flatten() {
        out += &format!("changed: {}\n", cell(note));
    }
    let losses = result["losses"].as_array().map_or(&[][..], Vec::as_slice);
    for loss in losses {
        let (layer, from, to) = (cell(&loss["layer"]), cell(&loss["from"]), cell(&loss["to"]));
        out +=
            &format!("lost: layer {layer} ({}), bytes {from} to {to}: {}\n", cell(&loss["name"]), cell(&loss["why"]));
    }
    let all = result["losses_total"].as_u64().unwrap_or_default();
    if all > losses.len() as u64 {
        out += &format!("lost: {} more parts\n", all - losses.len() as u64);
    }
    if all == 0 {
        out += "nothing that volumes or snapshots hold is lost\n";
    }
    let (pages, verb) = (cell(&result["pages"]), if result["after"].is_null() { "to be" } else { "were" });
    out += &format!("{pages} pages of metadata {verb} written\n");
    if !result["after"].is_null() {
        out += &format!("\nafter the repair: {}", people(&result["after"]));
    }
    out
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

pub(super) fn people(report: &Value) -> String {
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
    fn a_repair_is_done_when_it_is_asked_for() {
        let repair_it = |path: &Path, yes| run_repair(path, yes, &Output::new(false)).err().map(|error| error.code());
        let broken = file(&damage::damages()[0].build().memory);
        assert_eq!(repair_it(broken.path(), false), Some(4));
        assert_eq!(check_it(broken.path()), Some(4), "nothing was written");
        assert_eq!(repair_it(broken.path(), true), None);
        assert_eq!(check_it(broken.path()), None);
        assert_eq!(repair_it(broken.path(), true), None, "nothing to do");
        let none = file(&Memory { len: 1000, ..Memory::default() });
        assert_eq!(repair_it(none.path(), true), Some(8));
        let reader = FileBlocks::open(broken.path()).unwrap();
        assert_eq!(repair_it(broken.path(), false), Some(8), "in use");
        drop(reader);
    }

    #[test]
    fn what_is_lost_is_listed() {
        let damage = damage::damages().into_iter().find(|damage| damage.name == "another number").unwrap();
        let mut memory = damage.build().memory;
        let dry = repair_people(&serde_json::to_value(repair(&mut memory, false, &mut |_, _| {}).unwrap()).unwrap());
        assert!(dry.contains("lost: layer 1 (layer-1), bytes 33030144 to 66060288"), "{dry}");
        assert!(dry.contains("to be written") && !dry.contains("after the repair"), "{dry}");
        let done = repair_people(&serde_json::to_value(repair(&mut memory, true, &mut |_, _| {}).unwrap()).unwrap());
        assert!(done.contains("after the repair") && done.ends_with("clean\n"), "{done}");
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
}
