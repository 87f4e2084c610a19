//! What a disk promised, and whether it was kept: the trace of a client that marks each acknowledgement in the log of its
//! medium, and the check of the medium's content at each of these marks.
//!
//! The client (`durability_client`) runs where the disk is; its trace and the log are judged elsewhere. Both sides make
//! data with the same [`Model`], so the trace carries only places and order. One thread submits, takes answers and sets
//! marks, so the trace is in real order.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

use crate::model::{Model, OpId};

/// What was acknowledged just before a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// SYNCHRONIZE CACHE: everything acknowledged before it was submitted is durable.
    Flush,
    /// A write with FUA is durable.
    Fua,
    /// A write on a disk whose write cache is off is durable.
    WriteThrough,
}

/// One line of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A write was submitted.
    Write {
        /// Names the operation.
        id: u64,
        /// First block.
        first: u64,
        /// How many blocks.
        count: u64,
    },
    /// A write of zeroes was submitted.
    Zero {
        /// Names the operation.
        id: u64,
        /// First block.
        first: u64,
        /// How many blocks.
        count: u64,
    },
    /// A flush was submitted.
    Flush {
        /// Names the operation.
        id: u64,
    },
    /// An operation was answered with GOOD.
    Done {
        /// Which.
        id: u64,
        /// It was a write that has to be durable by itself.
        durable: bool,
    },
    /// A mark was set in the log.
    Mark {
        /// Names the mark.
        number: u64,
        /// Why it was set.
        promise: Promise,
    },
}

/// A client's whole run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Bytes of a block.
    pub block_size: usize,
    /// Blocks of the disk that the client used, from the first.
    pub blocks: u64,
    /// What happened, in order.
    pub events: Vec<Event>,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Event::Write { id, first, count } => write!(f, "write {id} {first} {count}"),
            Event::Zero { id, first, count } => write!(f, "zero {id} {first} {count}"),
            Event::Flush { id } => write!(f, "flush {id}"),
            Event::Done { id, durable } => write!(f, "done {id} {}", u8::from(durable)),
            Event::Mark { number, promise } => write!(f, "mark {number} {}", promise as u8),
        }
    }
}

impl FromStr for Event {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default();
        let numbers = words.map(str::parse).collect::<Result<Vec<u64>, _>>().with_context(|| line.to_owned())?;
        Ok(match (verb, &numbers[..]) {
            ("write", &[id, first, count]) => Event::Write { id, first, count },
            ("zero", &[id, first, count]) => Event::Zero { id, first, count },
            ("flush", &[id]) => Event::Flush { id },
            ("done", &[id, durable @ 0..=1]) => Event::Done { id, durable: durable == 1 },
            ("mark", &[number, 0]) => Event::Mark { number, promise: Promise::Flush },
            ("mark", &[number, 1]) => Event::Mark { number, promise: Promise::Fua },
            ("mark", &[number, 2]) => Event::Mark { number, promise: Promise::WriteThrough },
            _ => bail!("no event: {line}"),
        })
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "disk {} {}", self.block_size, self.blocks)?;
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

impl FromStr for Trace {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let head = lines.next().and_then(|line| line.strip_prefix("disk ")).and_then(|rest| rest.split_once(' '));
        let (block_size, blocks) = head.context("a trace begins with its disk")?;
        let events = lines.map(str::parse).collect::<Result<_>>()?;
        Ok(Trace { block_size: block_size.parse()?, blocks: blocks.parse()?, events })
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// At which mark.
    pub mark: u64,
    /// What had been acknowledged there.
    pub promise: Promise,
    /// What is wrong.
    pub what: String,
}

/// What one check of a trace found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Marks at which the disk was looked at.
    pub checked: Vec<Promise>,
    /// What was wrong there.
    pub broken: Vec<Broken>,
}

impl Verdict {
    /// How many marks of a kind were looked at.
    #[must_use]
    pub fn checked(&self, promise: Promise) -> usize {
        self.checked.iter().filter(|&&p| p == promise).count()
    }

    /// How many marks of a kind were wrong.
    #[must_use]
    pub fn broken(&self, promise: Promise) -> usize {
        self.broken.iter().filter(|b| b.promise == promise).count()
    }
}

impl Trace {
    /// Looks at the disk as it was at each mark: `disk_at` gives its content there, or `None` to leave this mark out.
    ///
    /// # Errors
    /// If the trace contradicts itself, or `disk_at` fails.
    pub fn check(&self, mut disk_at: impl FnMut(u64) -> Result<Option<Vec<u8>>>) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        for (at, event) in self.events.iter().enumerate() {
            let Event::Mark { number, promise } = *event else { continue };
            let Some(disk) = disk_at(number)? else { continue };
            let len = self.block_size * usize::try_from(self.blocks)?;
            let disk = disk.get(..len).with_context(|| format!("a disk of {} bytes, not {len}", disk.len()))?;
            // A crash ends a model's history, so each mark gets a model of its own.
            let outcome = self.model(at)?.crashed(disk);
            verdict.checked.push(promise);
            if let Err(what) = outcome {
                verdict.broken.push(Broken { mark: number, promise, what });
            }
        }
        Ok(verdict)
    }

    /// The model after the first `count` events.
    fn model(&self, count: usize) -> Result<Model> {
        let mut model = Model::new(self.block_size, self.blocks);
        let mut open: Vec<(u64, OpId, bool)> = Vec::new();
        for event in &self.events[..count] {
            match *event {
                Event::Write { id, first, count } => {
                    let (op, _) = model.begin_write(first, count);
                    open.push((id, op, false));
                }
                Event::Zero { id, first, count } => open.push((id, model.begin_zero(first, count), false)),
                Event::Flush { id } => open.push((id, model.begin_flush(), true)),
                Event::Done { id, durable } => {
                    let at = open.iter().position(|&(other, ..)| other == id).context("done twice, or never begun")?;
                    let (_, op, flush) = open.swap_remove(at);
                    if flush { model.end_flush(op, true) } else { model.end_write(op, true, durable) }
                }
                Event::Mark { .. } => {}
            }
        }
        Ok(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let write = |id, first| Event::Write { id, first, count: 1 };
        let done = |id, durable| Event::Done { id, durable };
        let events = vec![
            write(1, 0),
            done(1, false),
            Event::Flush { id: 2 },
            write(3, 1),
            done(3, false),
            done(2, false),
            Event::Mark { number: 1, promise: Promise::Flush },
            write(4, 2),
            done(4, true),
            Event::Mark { number: 2, promise: Promise::Fua },
            Event::Zero { id: 5, first: 0, count: 1 },
            done(5, true),
            Event::Mark { number: 3, promise: Promise::WriteThrough },
        ];
        Trace { block_size: 512, blocks: 3, events }
    }

    /// A disk whose blocks hold these stamps.
    fn disk(stamps: [u64; 3]) -> Option<Vec<u8>> {
        let model = Model::new(512, 3);
        Some((0u64..).zip(stamps).flat_map(|(block, stamp)| model.content(stamp, block)).collect())
    }

    #[test]
    fn a_trace_survives_its_text() {
        assert_eq!(trace().to_string().parse::<Trace>().unwrap(), trace());
        for bad in
            ["", "disk 512", "disk 512 3\nwrite 1 2", "disk 512 3\nmark 1 3", "disk 512 3\ndone 1 2", "disk 512 3\n\n"]
        {
            assert!(bad.parse::<Trace>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_promise_is_looked_at_and_a_broken_one_is_found() {
        // The write to block 1 was never covered by a flush, so it may be there or not.
        let kept = trace().check(|mark| Ok(disk([[1, 0, 0], [1, 2, 3], [0, 0, 3]][mark as usize - 1]))).unwrap();
        assert_eq!(kept.checked, [Promise::Flush, Promise::Fua, Promise::WriteThrough]);
        assert_eq!(kept.broken, []);
        let lost = trace().check(|mark| Ok(disk([[0, 2, 0], [1, 2, 0], [1, 0, 3]][mark as usize - 1]))).unwrap();
        assert_eq!(lost.broken.iter().map(|b| b.mark).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((lost.broken(Promise::Fua), lost.checked(Promise::Fua)), (1, 1));
        let half = trace().check(|mark| Ok(if mark == 2 { disk([1, 0, 3]) } else { None })).unwrap();
        assert_eq!(half.checked, [Promise::Fua]);
        assert!(trace().check(|_| Ok(Some(vec![0; 512]))).is_err(), "too small a disk");
    }
}
