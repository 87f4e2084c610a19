//! A whole run, second part: filling, the load, the check of everything, the report.

use std::sync::atomic::Ordering;

use crate::BenchError;
use crate::bounded::Bounded;
use crate::disk::Disk;
use crate::engine::{Engine, Until, Window};
use crate::layout::Shape;
use crate::ledger::Ledger;
use crate::options::Options;
use crate::queue::Pass;
use crate::range::Range;
use crate::report::{Report, What};
use crate::rng::mix;
use crate::run::{Counts, Run};
use crate::scsi::Op;
use crate::verify::{Checked, Findings, Span, Sweep};
use crate::work::{Once, Plain, Stream};

/// What a run needs from phase to phase.
pub(crate) struct Phases<'a> {
    engine: Engine<'a>,
    disks: Vec<(Disk, Range)>,
    /// With `--verify`: what each disk holds.
    ledgers: Vec<Ledger>,
    findings: Findings,
}

/// One pass over everything in requests of one size.
struct Cover {
    /// For each disk.
    passes: Vec<Pass>,
    /// For each queue.
    spans: Vec<Span>,
}

impl<'a> Phases<'a> {
    pub(crate) const fn new(engine: Engine<'a>, disks: Vec<(Disk, Range)>) -> Self {
        Phases { engine, disks, ledgers: Vec::new(), findings: Findings { bytes: 0, errors: 0, messages: Vec::new() } }
    }

    pub(crate) fn run(mut self, what: What) -> Result<Report, BenchError> {
        let (options, clock) = (self.engine.options, self.engine.clock);
        if options.verify {
            self.open_ledgers()?;
        }
        let mut run = Run::new(clock);
        if options.fill {
            self.sweep(&mut run, Op::Write)?;
        }
        let (mut window, mut counts) = (0, Counts::default());
        if !self.stopped() {
            run.gap = clock.ticks(options.gap).max(u64::from(!options.gap.is_zero()));
            window = self.load(&mut run)?;
            counts = std::mem::take(&mut run.counts);
            run.gap = 0;
        }
        if options.verify && !self.stopped() {
            self.sweep(&mut run, Op::Read)?;
        }
        let verified = options.verify.then_some(&self.findings);
        Ok(Report::new(what, clock.ns_per_tick(), window, &counts, &run, verified))
    }

    fn stopped(&self) -> bool {
        self.engine.stop.load(Ordering::Relaxed)
    }

    /// Every run has a mark of its own, so that what an earlier one left is not taken for what this one wrote.
    fn open_ledgers(&mut self) -> Result<(), BenchError> {
        let options = self.engine.options;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let run = mix(options.seed ^ mix(now.as_nanos() as u64 ^ u64::from(std::process::id()) << 40));
        for (n, (disk, range)) in self.disks.iter().enumerate() {
            let ledger = Ledger::new(range.extent(options), mix(run ^ n as u64), disk.unmapped_is_zero)?;
            self.ledgers.push(ledger);
        }
        Ok(())
    }

    fn load(&mut self, run: &mut Run<'_>) -> Result<Window, BenchError> {
        let options = self.engine.options;
        let shape = Shape::measured(options);
        let passes: Vec<Pass> = self.disks.iter().map(|(_, range)| range.pass(options, shape, 0)).collect();
        let queues = u64::from(options.queues);
        let mut streams = Vec::new();
        for (pass, (_, range)) in passes.iter().zip(&self.disks) {
            let pieces = range.blocks / u64::from(pass.blocks);
            for n in 0..queues {
                let seed = mix(options.seed ^ (streams.len() as u64) << 32);
                streams.push(Stream::new(options, pieces, n, queues, seed));
            }
        }
        let op = streams[0].op();
        let until = Until::Time { ramp: options.ramp, time: options.time };
        let name = options.mode.name();
        if options.verify {
            let share = usize::from(options.queues);
            let (ledgers, findings) = (&mut self.ledgers[..], &mut self.findings);
            self.engine.pass(&passes, op, &mut Checked { streams, share, ledgers, findings }, run, until, name)
        } else if options.bounded() {
            self.engine.pass(&passes, op, &mut Bounded::new(options, streams), run, until, name)
        } else {
            self.engine.pass(&passes, op, &mut Plain(streams), run, until, name)
        }
    }

    /// Goes over the whole range once: writes it, or reads it and compares. Big requests first, then the rest.
    fn sweep(&mut self, run: &mut Run<'_>, op: Op) -> Result<(), BenchError> {
        let name = if op == Op::Write { "fill" } else { "final check" };
        for Cover { passes, spans } in self.covers() {
            if self.stopped() || spans.iter().all(|span| span.left.is_empty()) {
                continue;
            }
            let share = usize::from(self.engine.options.queues);
            if self.ledgers.is_empty() {
                let left = spans.into_iter().map(|span| span.left).collect();
                self.engine.pass(&passes, op, &mut Once::new(op, left), run, Until::Done, name)?;
            } else {
                let (ledgers, findings) = (&mut self.ledgers[..], &mut self.findings);
                let mut work = Sweep { op, spans, share, ledgers, findings };
                self.engine.pass(&passes, op, &mut work, run, Until::Done, name)?;
            }
        }
        Ok(())
    }

    /// The passes that together cover all disks.
    fn covers(&self) -> [Cover; 2] {
        let options = self.engine.options;
        let small = Shape::new(options.block_bytes, Shape::big(options, 0).depth);
        let mut covered = vec![0; self.disks.len()];
        [self.big_shape(), small].map(|shape| {
            let mut cover = Cover { passes: Vec::new(), spans: Vec::new() };
            for ((_, range), covered) in self.disks.iter().zip(&mut covered) {
                let pass = range.pass(options, shape, *covered);
                cover.spans.extend(spans(options, *range, &pass, *covered));
                *covered = range.blocks - (range.blocks - *covered) % u64::from(pass.blocks);
                cover.passes.push(pass);
            }
            cover
        })
    }

    fn big_shape(&self) -> Shape {
        let most = |(disk, _): &(Disk, Range)| {
            disk.transfer_max.map_or(u64::MAX, |blocks| u64::from(blocks) * u64::from(disk.block_size))
        };
        Shape::big(self.engine.options, self.disks.iter().map(most).min().unwrap_or(u64::MAX))
    }
}

/// The queues' shares of the requests of a pass over what comes from block `from` of a range on.
fn spans(options: &Options, range: Range, pass: &Pass, from: u64) -> Vec<Span> {
    let requests = (range.blocks - from) / u64::from(pass.blocks);
    let queues = u64::from(options.queues);
    let pieces = pass.shape.bytes / options.block_bytes;
    let from = from * u64::from(range.block_size) / options.block_bytes;
    (0..queues).map(|n| Span { from, pieces, left: requests * n / queues..requests * (n + 1) / queues }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_share_a_pass_without_gap_or_overlap() {
        let mut options = Options::new(Vec::new());
        options.queues = 3;
        let range = Range { first: 5, blocks: 8 * 1000, block_size: 512 };
        let pass = range.pass(&options, Shape::new(65536, 8), 800);
        assert_eq!((pass.first, pass.blocks), (805, 128));
        let spans = spans(&options, range, &pass, 800);
        assert!(spans.iter().all(|span| (span.from, span.pieces) == (100, 16)));
        let left: Vec<u64> = spans.into_iter().flat_map(|span| span.left).collect();
        assert_eq!(left, (0..56).collect::<Vec<u64>>());
    }
}
