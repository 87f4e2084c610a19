//! Writes to a disk of a running Pollux and, after each acknowledgement that promises durability, sets a mark in the log of
//! the dm-log-writes device below. Prints its trace; what it means is in [`pollux_tests::durability`].
//!
//! Three kinds of rounds in random order: a burst of writes with a flush in or after it, writes with FUA among writes
//! without, and writes with the write cache off. Writes overlap, and some are in flight while a mark is set.
//!
//! One thing is left out because the log cannot tell it: a durable write over blocks with an earlier write that no flush
//! has covered. dm-log-writes logs the durable one at once and the earlier one with the next flush, as if it were later.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::process::Command as Process;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use pollux_tests::durability::{Event, Promise, Trace};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Ticket, cdb};
use pollux_tests::model::{Model, OpId};
use pollux_tests::rng::Rng;

/// How long an answer may take: the medium may be slow, and the machine emulated.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Args {
    /// Socket of the controller
    #[arg(long)]
    socket: PathBuf,
    /// Target on it
    #[arg(long)]
    target: u8,
    /// The dm-log-writes device
    #[arg(long)]
    device: String,
    /// How many rounds
    #[arg(long)]
    rounds: u32,
    /// How many blocks to use, from the first
    #[arg(long)]
    blocks: u64,
    /// Where randomness starts
    #[arg(long)]
    seed: u64,
}

/// An operation that was submitted.
struct Open {
    id: u64,
    op: OpId,
    kind: Kind,
}

enum Kind {
    /// Covers these writes.
    Flush(HashSet<u64>),
    Write(Option<Promise>),
}

struct Client {
    args: Args,
    front: FrontEnd,
    lun: Lun,
    model: Model,
    rng: Rng,
    trace: Trace,
    open: HashMap<(usize, Ticket), Open>,
    /// Plain writes that no acknowledged flush has covered: those of each block, and those of them that are acknowledged.
    unflushed: Vec<Vec<u64>>,
    acknowledged: HashSet<u64>,
    next_id: u64,
    marks: u64,
}

const QUEUES: usize = 2;

impl Client {
    fn new(args: Args) -> Result<Self> {
        let options = DriverOptions { request_queues: QUEUES, ..DriverOptions::default() };
        let mut front = FrontEnd::connect(&args.socket, &options)?;
        let lun = Lun::new(args.target, 0);
        let capacity = front.good(lun, &cdb::read_capacity16(), &[], 32)?;
        let last = u64::from_be_bytes(capacity.data[..8].try_into()?);
        let block_size = u32::from_be_bytes(capacity.data[8..12].try_into()?) as usize;
        ensure!(args.blocks <= last + 1, "the disk has {} blocks, not {}", last + 1, args.blocks);
        let model = Model::new(block_size, args.blocks);
        let trace = Trace { block_size, blocks: args.blocks, events: Vec::new() };
        let rng = Rng::new(args.seed);
        Ok(Client {
            unflushed: vec![Vec::new(); usize::try_from(args.blocks)?],
            args,
            front,
            lun,
            model,
            rng,
            trace,
            open: HashMap::new(),
            acknowledged: HashSet::new(),
            next_id: 1,
            marks: 0,
        })
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn submit(&mut self, cdb: &[u8], data: &[u8], open: Open) -> Result<()> {
        let queue = FIRST_REQUEST_QUEUE + self.rng.index(QUEUES);
        let ticket = self.front.submit(queue, &Command::new(self.lun, cdb, data, 0)).context("no room in the queue")?;
        self.open.insert((queue, ticket), open);
        Ok(())
    }

    /// Where to write: anywhere, or where everything is durable.
    fn place(&mut self, durable: bool) -> Result<(u64, u64)> {
        for _ in 0..10_000 {
            let count = self.rng.between(1, 16);
            let first = self.rng.below(self.args.blocks - count);
            let blocks = &self.unflushed[first as usize..(first + count) as usize];
            if !durable || blocks.iter().all(Vec::is_empty) {
                return Ok((first, count));
            }
        }
        bail!("no block is durable; use more of them")
    }

    /// A write of a few blocks, now and then of zeroes by WRITE SAME.
    fn write(&mut self, fua: bool, promise: Option<Promise>) -> Result<()> {
        let (first, count) = self.place(promise.is_some())?;
        let (id, kind) = (self.id(), Kind::Write(promise));
        if promise.is_none() {
            self.unflushed[first as usize..(first + count) as usize].iter_mut().for_each(|block| block.push(id));
        }
        if !fua && self.rng.chance(1, 8) {
            let op = self.model.begin_zero(first, count);
            self.trace.events.push(Event::Zero { id, first, count });
            let block = vec![0; self.trace.block_size];
            return self.submit(&cdb::write_same16(first, count as u32, false, false), &block, Open { id, op, kind });
        }
        let (op, data) = self.model.begin_write(first, count);
        self.trace.events.push(Event::Write { id, first, count });
        self.submit(&cdb::write16(first, count as u32, fua), &data, Open { id, op, kind })
    }

    fn flush(&mut self) -> Result<()> {
        let (id, op) = (self.id(), self.model.begin_flush());
        self.trace.events.push(Event::Flush { id });
        let kind = Kind::Flush(self.acknowledged.clone());
        self.submit(&cdb::sync10(), &[], Open { id, op, kind })
    }

    /// Takes answers until at most `left` operations are open.
    fn settle(&mut self, left: usize) -> Result<()> {
        while self.open.len() > left {
            for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
                if self.front.driver.in_flight(queue) == 0 {
                    continue;
                }
                let (ticket, response) = self.front.wait(queue, PATIENCE)?;
                let open = self.open.remove(&(queue, ticket)).context("an answer to what was not asked")?;
                ensure!(response.good(), "operation {}: {response:?}", open.id);
                self.finish(&open)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, open: &Open) -> Result<()> {
        let promise = match &open.kind {
            Kind::Flush(covered) => {
                self.model.end_flush(open.op, true);
                self.unflushed.iter_mut().for_each(|block| block.retain(|id| !covered.contains(id)));
                self.acknowledged.retain(|id| !covered.contains(id));
                Some(Promise::Flush)
            }
            Kind::Write(promise) => {
                self.model.end_write(open.op, true, promise.is_some());
                if promise.is_none() {
                    self.acknowledged.insert(open.id);
                }
                *promise
            }
        };
        let durable = promise.is_some() && !matches!(open.kind, Kind::Flush(_));
        self.trace.events.push(Event::Done { id: open.id, durable });
        promise.map_or(Ok(()), |promise| self.mark(promise))
    }

    /// The mark is in the log when dmsetup has ended.
    fn mark(&mut self, promise: Promise) -> Result<()> {
        self.marks += 1;
        let name = format!("m{}", self.marks);
        let status = Process::new("dmsetup").args(["message", &self.args.device, "0", "mark", &name]).status();
        let status = status.context("running dmsetup")?;
        ensure!(status.success(), "dmsetup message ended with {status}");
        self.trace.events.push(Event::Mark { number: self.marks, promise });
        Ok(())
    }

    fn set_write_cache(&mut self, on: bool) -> Result<()> {
        ensure!(self.open.is_empty(), "nobody writes while the cache is switched");
        let (cdb, list) = cdb::set_wce(on);
        self.front.good(self.lun, &cdb, &list, 0)?;
        let sense = self.front.good(self.lun, &cdb::mode_sense10(8), &[], 252)?;
        ensure!(sense.data[10] & 4 == u8::from(on) << 2, "MODE SENSE shows another WCE: {:02x?}", &sense.data[..28]);
        Ok(())
    }

    fn round(&mut self) -> Result<()> {
        match self.rng.below(3) {
            0 => {
                for _ in 0..self.rng.between(1, 12) {
                    self.write(false, None)?;
                    if self.rng.chance(1, 6) {
                        self.flush()?;
                    }
                }
                let left = self.rng.index(4);
                self.settle(left)?;
                self.flush()?;
            }
            1 => {
                for _ in 0..self.rng.between(1, 3) {
                    self.write(false, None)?;
                    self.write(true, Some(Promise::Fua))?;
                }
            }
            _ => {
                self.settle(0)?;
                self.set_write_cache(false)?;
                for _ in 0..self.rng.between(1, 3) {
                    self.write(false, Some(Promise::WriteThrough))?;
                }
                self.settle(0)?;
                self.set_write_cache(true)?;
            }
        }
        let left = self.rng.index(3);
        self.settle(left)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.blocks < 64 {
        bail!("--blocks has to be 64 at least");
    }
    let rounds = args.rounds;
    let mut client = Client::new(args)?;
    client.set_write_cache(true)?;
    for _ in 0..rounds {
        client.round()?;
    }
    client.settle(0)?;
    print!("{}", client.trace);
    Ok(())
}
