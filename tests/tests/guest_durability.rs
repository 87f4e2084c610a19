//! What is acknowledged as durable is on the medium: proved for the `file` device on a medium that records order.
//!
//! In a guest, Pollux serves disks that lie on dm-log-writes, and a client there sets a mark in the log after each
//! acknowledgement of a FLUSH, of a write with FUA, and of a write with the write cache off. Here the log is replayed to
//! each mark, and the disk as it would be after a power cut at that moment is judged. Three media: a block device; a file
//! on ext4, judged after its journal was recovered; and, to prove that this test can fail, a block device whose flushes
//! are swallowed by the guest's kernel on their way down, which is what a Pollux without a working flush looks like.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon;
use pollux_tests::durability::{Promise, Trace, Verdict};
use pollux_tests::logwrites::Log;
use pollux_tests::vm::{self, Guest, GuestOptions, tool};

const DATA_BYTES: usize = 64 << 20;
const BLOCKS: u64 = 2048;
const PROMISES: [Promise; 3] = [Promise::Flush, Promise::Fua, Promise::WriteThrough];

/// A disk, its log, and what is served from it.
struct Medium {
    /// Also the number of the target.
    index: usize,
    name: &'static str,
    data: PathBuf,
    log: PathBuf,
    trace: Option<Trace>,
}

fn sparse(path: &Path, bytes: u64) -> Result<()> {
    Ok(std::fs::File::create(path)?.set_len(bytes)?)
}

/// An image with the programs that the guest runs. It has the same release of the same distribution as this machine.
fn programs(dir: &Path) -> Result<PathBuf> {
    let (folder, image) = (dir.join("programs"), dir.join("programs.img"));
    std::fs::create_dir(&folder)?;
    std::fs::copy(daemon::binary()?, folder.join("pollux"))?;
    std::fs::copy(env!("CARGO_BIN_EXE_durability_client"), folder.join("client"))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/make-image.sh");
    tool(
        script.to_str().context("UTF-8")?,
        &[folder.to_str().context("UTF-8")?, image.to_str().context("UTF-8")?],
        &[0],
    )?;
    Ok(image)
}

/// Shell functions for the guest.
const FUNCTIONS: &str = "
disk() { d=$(grep -lx \"drive$1\" /sys/block/vd*/serial); d=${d%/serial}; echo /dev/${d##*/}; }
rpc() { /mnt/programs/pollux --rpc-socket /run/pollux/rpc.sock rpc \"$@\"; }
set -e
";

struct Bench {
    guest: Guest,
}

impl Bench {
    fn sh(&mut self, script: &str) -> Result<String> {
        self.guest.sh(&format!("{FUNCTIONS}{script}"))
    }

    fn prepare(&mut self, media: &[Medium]) -> Result<()> {
        self.sh("mkdir -p /mnt/programs /mnt/fs /run/pollux/vhost; mount -o ro $(disk 0) /mnt/programs; modprobe dm-log-writes")?;
        for Medium { index, name, .. } in media {
            let (data, log) = (1 + 2 * index, 2 + 2 * index);
            self.sh(&format!(
                "d=$(disk {data}); dmsetup create {name} --table \"0 $(blockdev --getsz $d) log-writes $d $(disk {log})\""
            ))?;
        }
        // Lazily initialised tables would be written at any later time; nodiscard because nothing says what a discarded
        // range holds.
        self.sh("mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/fs && mount /dev/mapper/fs /mnt/fs")?;
        self.sh("truncate -s 16M /mnt/fs/disk && sync -f /mnt/fs/disk")?;
        Ok(())
    }

    fn serve(&mut self) -> Result<()> {
        self.sh("/mnt/programs/pollux serve --reactors 0 --ephemeral --rpc-socket /run/pollux/rpc.sock \
             --vhost-dir /run/pollux/vhost >/run/pollux/log 2>&1 & echo $! >/run/pollux/pid")?;
        let ready = format!("{FUNCTIONS} rpc spdk_get_version || {{ cat /run/pollux/log; false; }}");
        self.guest.until(&ready, Duration::from_secs(30))?;
        self.sh("rpc vhost_create_scsi_controller '{\"ctrlr\":\"vm\"}'")?;
        Ok(())
    }

    fn attach(&mut self, medium: &Medium) -> Result<()> {
        let (name, index) = (medium.name, medium.index);
        let file = if name == "fs" { "/mnt/fs/disk".into() } else { format!("/dev/mapper/{name}") };
        let create = format!(r#"{{"name":"{name}","filename":"{file}","block_size":512}}"#);
        let add = format!(r#"{{"ctrlr":"vm","scsi_target_num":{index},"bdev_name":"{name}"}}"#);
        self.sh(&format!("rpc bdev_aio_create '{create}' && rpc vhost_scsi_controller_add_target '{add}'"))?;
        Ok(())
    }

    fn run_client(&mut self, medium: &Medium, rounds: u32, seed: u64) -> Result<Trace> {
        let text = self.guest.sh_within(
            &format!(
                "/mnt/programs/client --socket /run/pollux/vhost/vm --target {} --device {} --rounds {rounds} \
                 --blocks {BLOCKS} --seed {seed}",
                medium.index, medium.name
            ),
            Duration::from_secs(400),
        );
        let log = self.sh("tail -n 20 /run/pollux/log")?;
        text.with_context(|| format!("Pollux says:\n{log}"))?.parse()
    }
}

/// The content of the only file of a file system, after its journal was recovered.
fn file_on_ext4(image: &[u8], dir: &Path) -> Result<Vec<u8>> {
    let (disk, file) = (dir.join("fs.img"), dir.join("fs.out"));
    std::fs::write(&disk, image)?;
    let disk = disk.to_str().context("UTF-8")?;
    // It says 1 when it has corrected something: recovering the journal is that.
    tool("e2fsck", &["-f", "-y", disk], &[0, 1])?;
    tool("debugfs", &["-R", &format!("dump /disk {}", file.display()), disk], &[0])?;
    Ok(std::fs::read(file)?)
}

/// Judges the medium at every mark whose number `step` divides.
fn judge(medium: &Medium, step: u64, dir: &Path) -> Result<Verdict> {
    let log = Log::open(&medium.log)?;
    let mut replay = log.replay(DATA_BYTES);
    let trace = medium.trace.as_ref().context("a trace")?;
    trace.check(|mark| {
        replay.to_mark(&format!("m{mark}"))?;
        if !mark.is_multiple_of(step) {
            return Ok(None);
        }
        let disk = if medium.name == "fs" {
            file_on_ext4(replay.image(), dir)?
        } else {
            replay.image()[..BLOCKS as usize * 512].to_vec()
        };
        Ok(Some(disk))
    })
}

#[test]
fn what_is_acknowledged_as_durable_is_on_the_medium() -> Result<()> {
    let Some(parts) = vm::available()? else { return Ok(()) };
    let start = Instant::now();
    let dir = tempfile::Builder::new().prefix("pollux-durability-").tempdir()?;
    let mut media = Vec::new();
    for (index, name) in ["disk", "fs", "swallowed"].into_iter().enumerate() {
        let (data, log) = (dir.path().join(format!("{name}.data")), dir.path().join(format!("{name}.log")));
        sparse(&data, DATA_BYTES as u64)?;
        sparse(&log, 4 << 30)?;
        media.push(Medium { index, name, data, log, trace: None });
    }
    let mut drives = vec![programs(dir.path())?];
    media.iter().for_each(|medium| drives.extend([medium.data.clone(), medium.log.clone()]));
    let mut bench = Bench { guest: Guest::boot(&GuestOptions { drives, ..GuestOptions::default() })? };
    bench.prepare(&media)?;
    bench.serve()?;
    media.iter().try_for_each(|medium| bench.attach(medium))?;
    // Pollux has seen a device with a volatile cache. From here on the kernel believes that there is none and lets no
    // flush and no FUA through.
    bench.sh("f=/sys/block/dm-$(dmsetup info -c --noheadings -o minor swallowed)/queue/write_cache; [ \"$(cat $f)\" = 'write back' ]; echo 'write through' >$f")?;
    println!("{:5.1} s: everything is set up", start.elapsed().as_secs_f32());

    let rounds = if parts.fast() { 200 } else { 80 };
    for medium in &mut media {
        let rounds = if medium.name == "swallowed" { rounds / 4 } else { rounds };
        medium.trace = Some(bench.run_client(medium, rounds, 1 + medium.index as u64)?);
        println!("{:5.1} s: {} is written", start.elapsed().as_secs_f32(), medium.name);
    }
    bench.sh("kill $(cat /run/pollux/pid)")?;
    bench.guest.power_off()?;

    for medium in &media {
        let verdict = judge(medium, if medium.name == "fs" { 3 } else { 1 }, dir.path())?;
        println!("{:5.1} s: {} is judged", start.elapsed().as_secs_f32(), medium.name);
        for promise in PROMISES {
            let (checked, broken) = (verdict.checked(promise), verdict.broken(promise));
            println!("    {promise:?}: {checked} acknowledgements, {broken} of them false");
            ensure!(checked > 0, "{}: nothing was acknowledged by {promise:?}", medium.name);
            if medium.name == "swallowed" {
                ensure!(broken > 0, "flushes were swallowed, and nothing was found missing after {promise:?}");
            }
        }
        if medium.name != "swallowed" {
            ensure!(
                verdict.broken.is_empty(),
                "{}: {:#?}",
                medium.name,
                &verdict.broken[..verdict.broken.len().min(5)]
            );
        }
    }
    Ok(())
}
