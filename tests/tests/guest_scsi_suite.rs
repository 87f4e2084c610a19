//! Public suites in a real guest: libiscsi's `iscsi-test-cu` over two paths to one disk, and the tools of sg3_utils with
//! what they are to print. What is expected lies in `tests/scsi_suite`; docs/testing.md says how to read and renew it.
//!
//! One boot serves all runs. `POLLUX_BLESS=1` writes what was seen into the expectations instead of comparing.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::scsi_suite::{CONDENSE, Cause, List, Outcome, Report, Transcript};
use pollux_tests::vm::{self, Guest, GuestOptions};
use serde_json::json;

const DISK_BYTES: u64 = 100 << 20;
/// Both controllers are ports to one initiator.
const INITIATOR: &str = "3001405012345678";
/// Targets, on both controllers.
const RAM: u8 = 0;
const RAM_4096: u8 = 1;
const READ_ONLY: u8 = 2;
const CACHED: u8 = 3;
const THIN: u8 = 4;
/// Of one run of the suite. It takes a quarter of a minute under emulation on an idle machine.
const PATIENCE: Duration = Duration::from_secs(400);

/// A run of `iscsi-test-cu`.
struct Run {
    what: &'static str,
    target: u8,
    args: &'static str,
    /// How many tests it has.
    tests: usize,
    /// The list that lies over `scsi.list`, if any.
    list: Option<&'static str>,
}

/// The whole suite comes first: it finds the unit as it was made, and wipes it where later runs rely on that.
const RUNS: [Run; 7] = [
    Run { what: "SCSI", target: RAM, args: "-t SCSI", tests: 215, list: None },
    Run { what: "LINUX", target: RAM, args: "-t LINUX", tests: 155, list: Some("linux.list") },
    Run { what: "SCSI, 512 on 4096", target: RAM_4096, args: "-t SCSI", tests: 215, list: Some("scsi-4096.list") },
    Run {
        what: "ReadOnly, read-only LUN",
        target: READ_ONLY,
        args: "-t SCSI.ReadOnly",
        tests: 1,
        list: Some("scsi-readonly.list"),
    },
    Run {
        // BlockErase, ExitFailureMode, InvalidServiceAction, Overwrite. OverwriteReserved crashes over SG.
        what: "Sanitize, --allow-sanitize",
        target: RAM,
        args: "-t 'SCSI.Sanitize.[BEIO]*[en]' --allow-sanitize",
        tests: 4,
        list: Some("scsi-sanitize.list"),
    },
    Run { what: "SCSI, thin", target: THIN, args: "-t SCSI", tests: 215, list: Some("scsi-thin.list") },
    Run {
        what: "Sanitize, thin",
        target: THIN,
        args: "-t 'SCSI.Sanitize.[BEIO]*[en]' --allow-sanitize",
        tests: 4,
        list: Some("scsi-sanitize.list"),
    },
];

struct World {
    daemon: Daemon,
    guest: Guest,
    start: Instant,
    /// Whether what is seen becomes what is expected.
    bless: bool,
}

fn expectations(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scsi_suite").join(name)
}

fn read(name: &str) -> Result<String> {
    std::fs::read_to_string(expectations(name)).with_context(|| format!("tests/scsi_suite/{name}"))
}

impl World {
    fn new() -> Result<Self> {
        let start = Instant::now();
        let reactors = if std::thread::available_parallelism()?.get() > 1 { "0,1" } else { "0" };
        let daemon = Daemon::start_with(DaemonOptions { reactors: reactors.into(), ..DaemonOptions::default() })?;
        // UUIDs are given, so that what is made from them can be expected.
        let uuid = |target: u8| format!("7f0c4a56-25d1-4c3f-9d5e-0000000000{target:02x}");
        let blocks = DISK_BYTES / 512;
        let ram = json!({"name": "ram", "block_size": 512, "num_blocks": blocks, "uuid": uuid(RAM)});
        daemon.rpc("bdev_malloc_create", ram)?;
        daemon.rpc("bdev_set_scsi_identity", json!({"name": "ram", "allow_sanitize": true}))?;
        let large = json!({"name": "ram4096", "block_size": 512, "physical_block_size": 4096, "num_blocks": blocks, "uuid": uuid(RAM_4096)});
        daemon.rpc("bdev_malloc_create", large)?;
        for (name, target) in [("readonly", READ_ONLY), ("cached", CACHED)] {
            let path = daemon.disks_dir().join(name);
            File::create(&path)?.set_len(DISK_BYTES)?;
            let params = json!({"name": name, "filename": path, "block_size": 512, "physical_block_size": 512,
                "readonly": target == READ_ONLY, "uuid": uuid(target)});
            daemon.rpc("bdev_aio_create", params)?;
        }
        // With room for all of the volume, which OVERWRITE fills.
        let base = json!({"name": "base", "block_size": 512, "num_blocks": 2 * blocks});
        daemon.rpc("bdev_malloc_create", base)?;
        daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "base", "lvs_name": "pool"}))?;
        let thin = json!({"lvs_name": "pool", "lvol_name": "thin", "size_in_mib": DISK_BYTES >> 20});
        daemon.rpc("bdev_lvol_create", thin)?;
        daemon.rpc("bdev_set_scsi_identity", json!({"name": "pool/thin", "allow_sanitize": true}))?;
        for ctrlr in ["a", "b"] {
            daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": ctrlr, "initiator": INITIATOR}))?;
            let disks =
                [(RAM, "ram"), (RAM_4096, "ram4096"), (READ_ONLY, "readonly"), (CACHED, "cached"), (THIN, "pool/thin")];
            for (target, bdev) in disks {
                let params = json!({"ctrlr": ctrlr, "scsi_target_num": target, "bdev_name": bdev});
                daemon.rpc("vhost_scsi_controller_add_target", params)?;
            }
        }
        let vhost = vec![(daemon.socket("a"), 2), (daemon.socket("b"), 2)];
        let mut guest = Guest::boot(&GuestOptions { vhost, ..GuestOptions::default() })?;
        for (tool, package) in [("iscsi-test-cu", "libiscsi-bin"), ("sdparm", "sdparm"), ("sg_inq", "sg3-utils")] {
            let found = guest.run(&format!("command -v {tool}"), PATIENCE)?.status == 0;
            ensure!(found, "the test VM has no {tool}: its distribution lacks the package {package}");
        }
        let bless = std::env::var("POLLUX_BLESS").is_ok_and(|value| value == "1");
        Ok(World { daemon, guest, start, bless })
    }

    /// A target's device nodes of one kind (`scsi_generic`, `block`), controller `a` first: the guest numbers its hosts in
    /// the order of the machine's slots.
    fn nodes(&mut self, kind: &str, target: u8) -> Result<[String; 2]> {
        let find = format!(
            "for d in /sys/bus/scsi/devices/*:0:{target}:0; do echo ${{d##*/}} $(ls $d/{kind}); done | sort -n"
        );
        let text = self.guest.sh(&find)?;
        let names: Vec<&str> = text.lines().filter_map(|line| line.split_once(' ')).map(|(_, name)| name).collect();
        let [first, second] = names[..] else { anyhow::bail!("target {target} has these {kind} devices: {text}") };
        Ok([format!("/dev/{first}"), format!("/dev/{second}")])
    }

    fn step(&self, what: &str) {
        println!("{:6.1} s: {what}", self.start.elapsed().as_secs_f32());
    }

    fn suite(&mut self, run: &Run) -> Result<Vec<String>> {
        let [first, second] = self.nodes("scsi_generic", run.target)?;
        let command = format!(
            "for d in {first} {second}; do sg_turs -n 4 $d >/dev/null 2>&1; done\n\
             iscsi-test-cu --dataloss -v -V {} {first} {second} >/tmp/suite 2>&1\nawk '{CONDENSE}' /tmp/suite; tail -n 3 /tmp/suite; rm /tmp/suite",
            run.args
        );
        let text = self.guest.sh_within(&command, PATIENCE)?;
        let report = Report::parse(&text).with_context(|| format!("it ends with\n{}", ending(&text)))?;
        ensure!(report.tests.len() == run.tests, "{} tests ran, not {}", report.tests.len(), run.tests);
        self.step(&format!("iscsi-test-cu {}: {}", run.what, summary(&report)));

        let base = List::parse(&read("scsi.list")?).context("tests/scsi_suite/scsi.list")?;
        if self.bless {
            let (name, under) = run.list.map_or(("scsi.list", None), |name| (name, Some(&base)));
            let old = std::fs::read_to_string(expectations(name)).unwrap_or_default();
            std::fs::write(expectations(name), List::rewrite(&old, under, &report)?)?;
            return Ok(Vec::new());
        }
        let list = match run.list {
            Some(name) => base.under(List::parse(&read(name)?).with_context(|| format!("tests/scsi_suite/{name}"))?),
            None => base,
        };
        Ok(list.differences(&report))
    }

    fn transcript(&mut self) -> Result<Vec<String>> {
        let ([disk, other], [cached, _]) = (self.nodes("block", RAM)?, self.nodes("block", CACHED)?);
        let ([generic, _], [cache_node, _]) = (self.nodes("scsi_generic", RAM)?, self.nodes("scsi_generic", CACHED)?);
        let names = [
            ("DISK", disk.as_str()),
            ("OTHER", &other),
            ("CACHED", &cached),
            ("GENERIC", &generic),
            ("CACHE_NODE", &cache_node),
        ];
        let expected = Transcript::parse(&read("sg3.transcript")?).context("tests/scsi_suite/sg3.transcript")?;
        let printed = self.guest.sh_within(&expected.script(&names), PATIENCE)?;
        let now = expected.ran(&printed, &names)?;
        self.step("sg3_utils, sdparm, blkdiscard");
        if self.bless {
            std::fs::write(expectations("sg3.transcript"), now.to_string())?;
            return Ok(Vec::new());
        }
        Ok(expected.differences(&now))
    }
}

/// The last lines.
fn ending(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Counts, with the causes of skips and the names of failures.
fn summary(report: &Report) -> String {
    let [passed, skipped, failed] = report.counts();
    let (mut causes, mut failures) = (BTreeMap::<&str, usize>::new(), Vec::new());
    for (name, outcome) in &report.tests {
        match outcome {
            Outcome::Passed => {}
            Outcome::Skipped(said) => *causes.entry(Cause::of(said).map_or("unknown", Cause::name)).or_default() += 1,
            Outcome::Failed(said) => failures.push(format!("\n           {name}: {said}")),
        }
    }
    let causes: Vec<String> = causes.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
    format!("{passed} passed, {skipped} skipped ({}), {failed} failed{}", causes.join(", "), failures.concat())
}

#[test]
fn scsi_suite() -> Result<()> {
    if vm::available()?.is_none() {
        return Ok(());
    }
    let mut world = World::new()?;
    world.step("booted");
    let mut wrong = Vec::new();
    let tools = world.transcript();
    wrong.push(("sg3_utils, sdparm, blkdiscard", tools));
    for run in &RUNS {
        let differences = world.suite(run);
        wrong.push((run.what, differences));
    }
    // All of them, not just the first: who changes a command wants to see what it does to everything.
    let mut text = String::new();
    for (what, differences) in wrong {
        match differences {
            Ok(differences) if differences.is_empty() => {}
            Ok(differences) => text += &format!("\n{what}:\n{}\n", differences.join("\n")),
            Err(error) => text += &format!("\n{what}: {error:#}\n"),
        }
    }
    ensure!(
        text.is_empty(),
        "not as tests/scsi_suite says (if the new state is right, POLLUX_BLESS=1 writes it down):\n{text}\n\
         the daemon says:\n{}",
        world.daemon.log_tail()
    );
    Ok(())
}
