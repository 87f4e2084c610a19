//! A disk in memory: sparse, shared by all reactors, gone when the process ends.
//!
//! The medium is one anonymous mapping. A page takes memory once it is written and gives it back when it is discarded
//! or zeroed as a whole; what was never written, or was discarded, reads as zeroes. Reactors copy in and out of it without locks: two
//! that write the same byte at once get what two writers of a real disk get. There is no volatile cache, so flush and
//! FUA cost nothing.
//!
//! The bytes move in `poll`, a bounded amount in each, so that one huge request does not hold up a turn.

use std::collections::VecDeque;
use std::sync::Arc;

use pollux_core::segment::for_range;
use pollux_core::{Bdev, Channel, Completion, Cx, Discard, Io, IoError, Next, Op, OpenArgs, OpenError, Shape, Tag};
use serde_json::{Value, json};

use crate::memory::{Mapping, PAGE, gather, scatter};
use crate::{BdevError, Device, MAX_DEPTH, RamSpec};

/// Bytes copied in one poll before others get their turn.
const COPY_BUDGET: u64 = 1 << 20;
/// Bytes zeroed in one poll: dropping pages is cheaper than copying them.
const ZERO_BUDGET: u64 = 32 << 20;

/// The device.
pub struct Ram {
    shape: Shape,
    medium: Arc<Mapping>,
}

impl Ram {
    /// A device as `spec` says, which has been checked.
    ///
    /// # Errors
    /// [`BdevError::Os`] if so much address space cannot be had.
    pub fn new(spec: &RamSpec) -> Result<Self, BdevError> {
        let shape = Shape {
            block_size: spec.block_size,
            physical_block_size: spec.physical_block_size.unwrap_or(spec.block_size),
            num_blocks: spec.num_blocks,
            read_only: false,
            volatile_cache: false,
            discard: Some(Discard { granularity: spec.block_size.max(PAGE as u32), alignment: 0, reads_zero: true }),
            optimal_io: 0,
            rotation_rate: 1,
        };
        let medium = Mapping::new(shape.bytes() as usize).map_err(|errno| {
            BdevError::os("map memory for", &format!("{} ({} bytes)", spec.name, shape.bytes()), errno)
        })?;
        Ok(Ram { shape, medium: Arc::new(medium) })
    }
}

impl Bdev for Ram {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let depth = args.depth.clamp(1, MAX_DEPTH);
        Ok(Box::new(RamChannel {
            depth,
            medium: self.medium.clone(),
            queue: VecDeque::with_capacity(depth as usize),
            aborted: Vec::with_capacity(depth as usize),
        }))
    }
}

impl Device for Ram {
    fn product_name(&self) -> &'static str {
        "Malloc disk"
    }

    fn driver_specific(&self) -> Value {
        json!({})
    }
}

/// A request and how far it is.
struct Pending {
    io: Io,
    done: u64,
}

impl Pending {
    /// Moves up to `budget` bytes; returns how many budget bytes that took.
    fn advance(&mut self, medium: &Mapping, budget: u64) -> u64 {
        let Io { op, offset, len, data, .. } = self.io;
        let left = len - self.done;
        let (at, skip) = ((offset + self.done) as usize, self.done as usize);
        match op {
            Op::Flush => {
                self.done = len;
                0
            }
            Op::Discard | Op::WriteZeroes => {
                let ratio = ZERO_BUDGET / COPY_BUDGET;
                let part = left.min(budget * ratio);
                medium.zero(at, part as usize);
                self.done += part;
                part.div_ceil(ratio)
            }
            Op::Read | Op::Write => {
                let part = left.min(budget);
                let on_medium = medium.segment(at, part as usize);
                let mut moved = 0;
                let memory = data.as_slice();
                for_range(memory, skip, part as usize, |piece| {
                    let here = on_medium.slice(moved, piece.len());
                    moved += match op {
                        Op::Read => scatter(here, &[piece], 0),
                        _ => gather(&[piece], 0, here),
                    };
                });
                assert_eq!(moved as u64, part, "the segments hold what the request says");
                self.done += part;
                part
            }
        }
    }
}

struct RamChannel {
    depth: u32,
    medium: Arc<Mapping>,
    queue: VecDeque<Pending>,
    aborted: Vec<Completion>,
}

impl Channel for RamChannel {
    fn depth(&self) -> u32 {
        self.depth
    }

    fn attach(&mut self, _: &mut Cx<'_>) -> Result<(), IoError> {
        Ok(())
    }

    fn detach(&mut self, _: &mut Cx<'_>) {}

    fn submit(&mut self, io: Io, _: &mut Cx<'_>) {
        assert!(self.queue.len() + self.aborted.len() < self.depth as usize, "the submitter keeps to the depth");
        self.queue.push_back(Pending { io, done: 0 });
    }

    fn poll(&mut self, _: &mut Cx<'_>, done: &mut Vec<Completion>) {
        done.append(&mut self.aborted);
        let mut budget = COPY_BUDGET;
        while let Some(first) = self.queue.front_mut() {
            if budget == 0 {
                return;
            }
            budget -= first.advance(&self.medium, budget);
            if first.io.op == Op::Flush || first.done == first.io.len {
                done.push(Completion { tag: first.io.tag, result: Ok(()) });
                self.queue.pop_front();
            }
        }
    }

    fn next(&self) -> Next {
        if self.queue.is_empty() && self.aborted.is_empty() { Next::Idle } else { Next::Now }
    }

    fn cancel(&mut self, tag: Tag, _: &mut Cx<'_>) {
        if let Some(at) = self.queue.iter().position(|pending| pending.io.tag == tag) {
            self.queue.remove(at);
            self.aborted.push(Completion { tag, result: Err(IoError::Aborted) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, model, ram};
    use pollux_core::IoFlags;

    #[test]
    fn behaves_as_a_plain_array_of_bytes() {
        model::check(|| (ram(512, 512), ()));
    }

    #[test]
    fn a_terabyte_costs_nothing_until_it_is_written() {
        let device = ram(4096, 1 << 28);
        let mut rig = Rig::new(&*device);
        let end = device.shape().bytes();
        rig.write(end - 4096, &[3; 4096], IoFlags::empty()).unwrap();
        assert_eq!(rig.read(end - 8192, 8192).unwrap(), [vec![0; 4096], vec![3; 4096]].concat());
        rig.run(Io::without_data(0, Op::Discard, IoFlags::empty(), end - 4096, 4096)).unwrap();
        assert_eq!(rig.read(end - 4096, 4096).unwrap(), [0; 4096]);
    }

    #[test]
    fn a_big_request_takes_several_turns_and_lets_cancel_in() {
        let device = ram(512, 1 << 20);
        let mut rig = Rig::new(&*device);
        let len = 3 * ZERO_BUDGET;
        rig.submit(Io::without_data(1, Op::WriteZeroes, IoFlags::empty(), 0, len));
        rig.submit(Io::without_data(2, Op::Flush, IoFlags::empty(), 0, 0));
        assert_eq!(rig.poll(), [], "the first turn does a part");
        assert_eq!(rig.next(), Next::Now);
        rig.cancel(1);
        let ended = rig.finish();
        assert_eq!(
            ended,
            [Completion { tag: 1, result: Err(IoError::Aborted) }, Completion { tag: 2, result: Ok(()) }]
        );
        assert_eq!(rig.next(), Next::Idle);
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let spec =
            RamSpec { name: "m".into(), block_size: 4096, num_blocks: 1 << 50, physical_block_size: None, uuid: None };
        let error = Ram::new(&spec).err().expect("2^62 bytes do not fit into any address space of today");
        assert_eq!(error.reason(), "no_memory");
        assert!(error.to_string().contains("m (4611686018427387904 bytes)"), "{error}");
    }

    #[test]
    fn reactors_see_one_medium() {
        let device = ram(512, 64);
        let (mut one, mut two) = (Rig::new(&*device), Rig::new(&*device));
        one.write(512, &[9; 512], IoFlags::empty()).unwrap();
        assert_eq!(two.read(0, 1024).unwrap(), [[0; 512], [9; 512]].concat());
    }
}
