//! Steps that the engine has named, and those that are to be left out.

use std::collections::{BTreeMap, BTreeSet};

use pollux_core::{Io, IoFlags, Op};

/// What was submitted under one label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Flushes.
    pub flushes: u64,
    /// Writes, discards and zeroes with FUA.
    pub fua: u64,
    /// Those without.
    pub changes: u64,
    /// Reads.
    pub reads: u64,
    /// Times that the engine has asked whether to wait there.
    pub waits: u64,
}

impl Seen {
    /// Both together.
    pub fn add(&mut self, other: Seen) {
        self.flushes += other.flushes;
        self.fua += other.fua;
        self.changes += other.changes;
        self.reads += other.reads;
        self.waits += other.waits;
    }
}

/// A promise that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A flush does nothing.
    DropFlush(&'static str),
    /// A write with FUA is like one without.
    DropFua(&'static str),
    /// Something is not waited for.
    DropWait(&'static str),
    /// The second may become durable before the first. `None`: what has no label, what guests write.
    Swap(Option<&'static str>, Option<&'static str>),
}

impl Mutation {
    /// All that can be left out of these steps, and these pairs.
    #[must_use]
    pub fn all(
        steps: &BTreeMap<&'static str, Seen>,
        pairs: &[(Option<&'static str>, Option<&'static str>)],
    ) -> Vec<Mutation> {
        let of = |(label, seen): (&&'static str, &Seen)| {
            let kinds = [
                (seen.flushes, Mutation::DropFlush(label)),
                (seen.fua, Mutation::DropFua(label)),
                (seen.waits, Mutation::DropWait(label)),
            ];
            kinds.into_iter().filter(|(count, _)| *count > 0).map(|(_, mutation)| mutation)
        };
        let swaps = pairs.iter().map(|(before, after)| Mutation::Swap(*before, *after));
        steps.iter().flat_map(of).chain(swaps).collect()
    }
}

/// Labels heard, and what becomes of the requests and waits that have them.
#[derive(Default)]
pub(super) struct Mutations {
    current: Option<&'static str>,
    seen: BTreeMap<&'static str, Seen>,
    pub(super) drop_flush: BTreeSet<&'static str>,
    pub(super) drop_fua: BTreeSet<&'static str>,
    pub(super) drop_wait: BTreeSet<&'static str>,
}

impl Mutations {
    pub(super) fn step(&mut self, label: &'static str) {
        assert!(self.current.is_none(), "step {:?} is named and not submitted, and now {label:?}", self.current);
        self.seen.entry(label).or_default();
        self.current = Some(label);
    }

    pub(super) fn waits(&mut self, label: &'static str) -> bool {
        self.seen.entry(label).or_default().waits += 1;
        !self.drop_wait.contains(label)
    }

    /// The label of a request that is submitted now.
    pub(super) fn label(&mut self, io: &Io) -> Option<&'static str> {
        let label = self.current.take()?;
        let seen = self.seen.entry(label).or_default();
        match io.op {
            Op::Flush => seen.flushes += 1,
            Op::Read => seen.reads += 1,
            _ if io.flags.contains(IoFlags::FUA) => seen.fua += 1,
            _ => seen.changes += 1,
        }
        Some(label)
    }

    pub(super) const fn seen(&self) -> &BTreeMap<&'static str, Seen> {
        &self.seen
    }

    /// Whether a request is acknowledged without being made durable.
    pub(super) fn drops(&self, op: Op, label: Option<&'static str>) -> bool {
        let set = if op == Op::Flush { &self.drop_flush } else { &self.drop_fua };
        label.is_some_and(|label| set.contains(label))
    }
}
