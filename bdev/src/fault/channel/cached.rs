//! The part of a fault device's channel that deals with the volatile cache: reads over it, writes into it, and writing
//! back. Whoever changes the base holds the cache's medium from then on until its request ends.

use std::collections::VecDeque;
use std::sync::Arc;

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{Cx, Io, IoError, IoFlags, Op, Token};

use super::super::cache::{Content, Dirty};
use super::{Errand, FaultChannel, Request, Stage, WriteBack};
use crate::memory::Buffer;

/// Most blocks of one errand of a write-back, in bytes.
const RUN: usize = 1 << 20;
/// Longest write-zeroes that goes into the cache; longer ones change the base directly.
pub(super) const LONGEST_ZEROES: u64 = 1 << 20;

impl FaultChannel {
    /// What the cache holds now counts, even if it is written back and overwritten while the base reads.
    pub(super) fn read(&mut self, token: Token, cx: &mut Cx<'_>) {
        let Io { offset, len, .. } = self.request(token).io;
        let size = self.block_size;
        let cache = self.shared.cache().expect("only called with a cache");
        let blocks = cache.blocks_of(offset, len);
        let first = blocks.start;
        let over = cache.read(blocks);
        drop(cache);
        let all = over.len() as u64 * size as u64 == len;
        let request = self.request(token);
        request.over = over.into_iter().map(|(block, content)| ((block - first) as usize * size, content)).collect();
        if all { self.end(token, Ok(())) } else { self.pass_on(token, cx) }
    }

    pub(super) fn write(&mut self, token: Token, cx: &mut Cx<'_>) {
        let size = self.block_size;
        let io = self.request(token).io;
        // The base would say so only when the write is written back, which is too late.
        let shape = self.device.shape();
        if shape.read_only {
            return self.end(token, Err(IoError::ReadOnly));
        }
        if io.end().is_none_or(|end| end > shape.bytes()) {
            return self.end(token, Err(IoError::OutOfRange));
        }
        let zeroes: Content = Arc::from(vec![0; size]);
        let contents = (0..io.len as usize / size).map(|nth| {
            if io.op == Op::WriteZeroes {
                return zeroes.clone();
            }
            let mut bytes = vec![0; size];
            assert_eq!(copy_from(io.data.as_slice(), nth * size, &mut bytes), size, "the segments hold the data");
            Content::from(bytes)
        });
        let mut cache = self.shared.cache().expect("only called with a cache");
        let first = cache.blocks_of(io.offset, io.len).start;
        cache.write(first, contents);
        let full = cache.is_over_limit();
        drop(cache);
        if full || io.flags.contains(IoFlags::FUA) {
            self.want_medium(token, cx);
        } else {
            self.end(token, Ok(()));
        }
    }

    pub(super) fn want_medium(&mut self, token: Token, cx: &mut Cx<'_>) {
        self.request(token).stage = Stage::Medium;
        self.want_medium.push_back(token);
        self.serve_medium(cx);
    }

    /// Lets the first of those who wait have the medium, if it is free.
    pub(super) fn serve_medium(&mut self, cx: &mut Cx<'_>) {
        let Some(token) = self.want_medium.front().copied() else { return };
        let mut cache = self.shared.cache().expect("only called with a cache");
        if !cache.take_medium() {
            return;
        }
        let now = cache.now();
        drop(cache);
        self.want_medium.pop_front();
        let request = self.request(token);
        request.holds_medium = true;
        request.after = now;
        match request.io.op {
            Op::Discard => self.pass_on(token, cx),
            Op::WriteZeroes if request.io.len > LONGEST_ZEROES => self.pass_on(token, cx),
            _ => self.start_write_back(token, cx),
        }
    }

    fn start_write_back(&mut self, token: Token, cx: &mut Cx<'_>) {
        let Request { io, cuts, .. } = *self.request(token);
        let mut cache = self.shared.cache().expect("only called with a cache");
        if cache.cuts() != cuts {
            // What it was to make durable may be lost.
            drop(cache);
            return self.end(token, Err(IoError::Medium));
        }
        let only_own = io.op != Op::Flush && !cache.is_over_limit();
        let blocks = if only_own { cache.blocks_of(io.offset, io.len) } else { 0..u64::MAX };
        let left = cache.leave(blocks).into();
        drop(cache);
        self.request(token).stage = Stage::WriteBack(WriteBack { left, errands: 0, failed: None });
        self.write_back(token, cx);
    }

    /// Sends errands as long as there is something to write and room for them; at the end, goes on.
    pub(super) fn write_back(&mut self, token: Token, cx: &mut Cx<'_>) {
        let (size, window) = (self.block_size, self.window);
        let request = self.requests.get_mut(token).expect("the request is in flight");
        let (op, fua) = (request.io.op, request.io.flags & IoFlags::FUA);
        let Stage::WriteBack(work) = &mut request.stage else { unreachable!("it writes back") };
        let mut errands = Vec::new();
        while work.failed.is_none() && work.errands < window && !work.left.is_empty() {
            work.errands += 1;
            errands.push(next_run(&mut work.left, RUN / size));
        }
        let (errands_left, failed) = (work.errands, work.failed);
        let given_up: Vec<_> = if failed.is_some() { work.left.drain(..).collect() } else { Vec::new() };
        if !given_up.is_empty() {
            let mut cache = self.shared.cache().expect("only called with a cache");
            given_up.iter().for_each(|dirty| cache.stay(dirty.block, dirty.seq));
        }
        for run in errands {
            let buffer = Buffer::new(run.len() * size);
            for (nth, dirty) in run.iter().enumerate() {
                copy_to(&[buffer.segment()], nth * size, &dirty.content);
            }
            let (offset, len) = (run[0].block * size as u64, buffer.segment().len() as u64);
            let io = Io { tag: 0, op: Op::Write, flags: fua, offset, len, data: buffer.list() };
            let writes = run.iter().map(|dirty| (dirty.block, dirty.seq)).collect();
            self.errand(Errand { owner: token, writes, buffer: Some(buffer) }, io, cx);
        }
        match (errands_left, failed) {
            (0, Some(error)) => self.end(token, Err(error)),
            (0, None) if op == Op::Flush => {
                self.request(token).stage = Stage::Flush;
                let flush = Io::without_data(0, Op::Flush, IoFlags::empty(), 0, 0);
                self.errand(Errand { owner: token, writes: Vec::new(), buffer: None }, flush, cx);
            }
            (0, None) => self.end(token, Ok(())),
            _ => {}
        }
    }
}

/// Takes blocks that lie behind each other off the front, at most so many.
fn next_run(left: &mut VecDeque<Dirty>, most: usize) -> Vec<Dirty> {
    let mut run: Vec<Dirty> = Vec::new();
    while let Some(dirty) = left.front()
        && run.len() < most.max(1)
        && run.last().is_none_or(|last| last.block + 1 == dirty.block)
    {
        run.extend(left.pop_front());
    }
    run
}
