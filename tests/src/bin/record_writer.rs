//! Runs in a guest: writes numbered records past the page cache, never flushes, and says on the console what was
//! acknowledged. What that is for is in [`pollux_tests::records`]. Ends when it is killed. With `--look` it prints which
//! records are there, block by block, and ends.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use pollux_tests::records::{BLOCK, Report, Stage, content, held};
use pollux_tests::rng::Rng;
use rustix::fs::FallocateFlags;

/// Longest record in blocks.
const LONGEST: u64 = 32;
/// What direct I/O wants of a buffer, at most.
const PAGE: usize = 4096;

#[derive(Clone, Parser)]
struct Args {
    /// The disk
    #[arg(long)]
    device: PathBuf,
    /// Its number in reports
    #[arg(long)]
    disk: u8,
    /// How many blocks to use, from the first
    #[arg(long)]
    blocks: u64,
    /// How many write at once
    #[arg(long, default_value_t = 3)]
    threads: u64,
    /// Number of the first record
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Where randomness starts
    #[arg(long)]
    seed: u64,
    /// Write nothing, print what is there
    #[arg(long)]
    look: bool,
    /// Where reports go
    #[arg(long, default_value = "/dev/ttyS0")]
    console: PathBuf,
}

struct Writer {
    device: Arc<File>,
    console: File,
    disk: u8,
    first: u64,
    blocks: u64,
    rng: Rng,
    buffer: Vec<u8>,
}

impl Writer {
    fn say(&mut self, stage: Stage, seq: u64, first: u64, blocks: u64) -> Result<()> {
        // One call for one line, which those of others do not get into.
        let line = format!("{}\n", Report { disk: self.disk, stage, seq, first, blocks });
        self.console.write_all(line.as_bytes()).context("the console")
    }

    fn write(&mut self, seq: u64, first: u64, blocks: u64) -> std::io::Result<()> {
        let data: Vec<u8> = (first..first + blocks).flat_map(|block| content(seq, block)).collect();
        let aligned = aligned(&mut self.buffer, data.len());
        aligned.copy_from_slice(&data);
        self.device.write_all_at(aligned, first * BLOCK as u64)
    }

    /// By WRITE SAME, which unmaps or not.
    fn zero(&mut self, first: u64, blocks: u64) -> std::io::Result<()> {
        let how = if self.rng.chance(1, 2) {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        };
        Ok(rustix::fs::fallocate(&*self.device, how, first * BLOCK as u64, blocks * BLOCK as u64)?)
    }

    fn record(&mut self, seq: u64) -> Result<()> {
        let blocks = self.rng.between(1, LONGEST);
        let first = self.first + self.rng.below(self.blocks - blocks + 1);
        let zeroes = self.rng.chance(1, 6);
        let done = if zeroes {
            self.say(Stage::Zeroing, seq, first, blocks)?;
            // It has to be out before there are zeroes.
            rustix::termios::tcdrain(&self.console).context("the console")?;
            self.zero(first, blocks)
        } else {
            self.write(seq, first, blocks)
        };
        match done {
            Ok(()) => self.say(if zeroes { Stage::Zeroed } else { Stage::Wrote }, seq, first, blocks),
            // A medium that fails in the middle has acknowledged nothing.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            }
        }
    }
}

/// An aligned part of a buffer, which is a page longer.
fn aligned(buffer: &mut [u8], len: usize) -> &mut [u8] {
    let at = buffer.as_ptr().align_offset(PAGE);
    &mut buffer[at..at + len]
}

fn look(device: &File, blocks: u64) -> Result<()> {
    let len = blocks as usize * BLOCK;
    let mut buffer = vec![0; len + PAGE];
    let disk = aligned(&mut buffer, len);
    device.read_exact_at(disk, 0).context("reading the disk")?;
    let words: Vec<String> = held(disk)?.iter().map(u64::to_string).collect();
    println!("{}", words.join(" "));
    Ok(())
}

fn main() -> Result<()> {
    let args = Args::parse();
    let options = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).clone();
    let device = Arc::new(options.open(&args.device).with_context(|| args.device.display().to_string())?);
    if args.look {
        return look(&device, args.blocks);
    }
    let blocks = args.blocks / args.threads;
    let writers = (0..args.threads).map(|thread| {
        let console = File::options().write(true).open(&args.console).context("the console")?;
        let (device, rng, buffer) =
            (device.clone(), Rng::new(args.seed ^ thread << 32), vec![0; LONGEST as usize * BLOCK + PAGE]);
        let (disk, first, from) = (args.disk, thread * blocks, args.from);
        let mut writer = Writer { device, console, disk, first, blocks, rng, buffer };
        Ok(std::thread::spawn(move || (from..).try_for_each(|seq| writer.record(seq))))
    });
    for writer in writers.collect::<Result<Vec<_>>>()? {
        writer.join().ok().context("a thread")??;
    }
    Ok(())
}
