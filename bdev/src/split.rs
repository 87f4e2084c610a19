//! One part of a device: a range of its base, with offsets shifted.
//!
//! The parts of one split lie behind each other in the order of their numbers; a rest at the end of the base belongs to
//! none. A part never touches a byte outside its range, whatever it is asked. Its size is fixed when the split is made
//! and kept with it, so a base that grows later does not move the parts.

use std::sync::Arc;

use pollux_core::{
    Alignment, Bdev, Channel, Completion, CopyRange, Cx, Erasure, Extent, Io, IoError, Lane, Next, Op, OpenArgs,
    OpenError, Shape, Tag,
};
use serde_json::{Value, json};

use crate::Device;

/// One part.
pub struct Part {
    base_name: String,
    base: Arc<dyn Bdev>,
    offset_blocks: u64,
    num_blocks: u64,
}

impl Part {
    /// The range of `num_blocks` from `offset_blocks` on.
    pub fn new(base_name: &str, base: Arc<dyn Bdev>, offset_blocks: u64, num_blocks: u64) -> Self {
        Part { base_name: base_name.to_owned(), base, offset_blocks, num_blocks }
    }
}

impl Bdev for Part {
    fn shape(&self) -> Shape {
        let base = self.base.shape();
        let discard = base.discard.map(|mut discard| {
            // The first granule inside the part: the base's granules, seen from where the part begins.
            let granularity = u64::from(discard.granularity.max(1));
            let start = self.offset_blocks * u64::from(base.block_size) % granularity;
            discard.alignment = ((u64::from(discard.alignment) + granularity - start) % granularity) as u32;
            discard
        });
        // What begins aligned in the part has to do so in the base.
        let start = self.offset_blocks * u64::from(base.block_size);
        let atomic_write = base.atomic_write.filter(|atomic| start.is_multiple_of(u64::from(atomic.alignment)));
        Shape { num_blocks: self.num_blocks, discard, atomic_write, ..base }
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        let start = self.offset_blocks * u64::from(self.base.shape().block_size);
        self.base.extent(start + offset, len)
    }

    fn extent_waits(&self) -> bool {
        self.base.extent_waits()
    }

    fn lane(&self) -> Option<Lane> {
        self.base.lane()
    }

    fn erasure(&self) -> Erasure {
        self.base.erasure()
    }

    fn copy_range(&self, offset: u64, len: u64) -> Option<CopyRange> {
        let block_size = u64::from(self.base.shape().block_size);
        let end = offset.checked_add(len)?;
        // The neighbour's bytes begin where ours end.
        if end > self.num_blocks * block_size {
            return None;
        }
        self.base.copy_range(self.offset_blocks * block_size + offset, len)
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let block_size = u64::from(self.base.shape().block_size);
        let base = self.base.open(args)?;
        let refused = Vec::with_capacity(base.depth() as usize);
        Ok(Box::new(PartChannel {
            base,
            offset: self.offset_blocks * block_size,
            len: self.num_blocks * block_size,
            refused,
        }))
    }
}

impl Device for Part {
    fn product_name(&self) -> &'static str {
        "Split Disk"
    }

    fn driver_specific(&self) -> Value {
        json!({ "split": { "base_bdev": self.base_name, "offset_blocks": self.offset_blocks } })
    }
}

struct PartChannel {
    base: Box<dyn Channel>,
    offset: u64,
    len: u64,
    refused: Vec<Completion>,
}

impl Channel for PartChannel {
    fn depth(&self) -> u32 {
        self.base.depth()
    }

    fn alignment(&self) -> Alignment {
        self.base.alignment()
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.base.attach(cx)
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        self.base.detach(cx);
    }

    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        if io.op == Op::Flush {
            return self.base.submit(io, cx);
        }
        // The neighbour's bytes begin where ours end, so this is checked here although the submitter has to.
        if io.end().is_none_or(|end| end > self.len) {
            self.refused.push(Completion { tag: io.tag, result: Err(IoError::OutOfRange) });
            return;
        }
        self.base.submit(Io { offset: self.offset + io.offset, ..io }, cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        done.append(&mut self.refused);
        self.base.poll(cx, done);
    }

    fn next(&self) -> Next {
        if self.refused.is_empty() { self.base.next() } else { Next::Now }
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        self.base.cancel(tag, cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, model, ram};
    use pollux_core::IoFlags;

    #[test]
    fn behaves_as_a_disk_of_its_own() {
        model::check_cases(8, || (Arc::new(Part::new("ram", ram(512, 2048), 513, 512)) as Arc<dyn Device>, ()));
    }

    #[test]
    fn parts_do_not_touch_each_other() {
        let base = ram(512, 32);
        let (a, b) = (Part::new("ram", base.clone(), 0, 16), Part::new("ram", base.clone(), 16, 16));
        let (mut on_a, mut on_b, mut below) = (Rig::new(&a), Rig::new(&b), Rig::new(&*base));
        on_a.write(15 * 512, &[1; 512], IoFlags::empty()).unwrap();
        on_b.write(0, &[2; 512], IoFlags::empty()).unwrap();
        assert_eq!(below.read(15 * 512, 1024).unwrap(), [[1; 512], [2; 512]].concat());
        assert_eq!(on_a.write(15 * 512, &[3; 1024], IoFlags::empty()), Err(IoError::OutOfRange));
        assert_eq!(on_a.read(u64::MAX - 511, 512), Err(IoError::OutOfRange));
        assert_eq!(on_b.read(0, 512).unwrap(), [2; 512]);
        on_b.flush().unwrap();
    }

    #[test]
    fn a_part_that_begins_askew_writes_nothing_atomically() {
        let base = ram(512, 64);
        let atomic = |offset| Part::new("ram", base.clone(), offset, 16).shape().atomic_write;
        assert_eq!([atomic(0), atomic(8), atomic(16)], [base.shape().atomic_write; 3]);
        assert_eq!([atomic(1), atomic(9)], [None; 2]);
    }

    #[test]
    fn copies_keep_to_the_part() {
        use pollux_core::PairCopy;
        let base = ram(512, 32);
        let (a, b) = (Part::new("ram", base.clone(), 0, 16), Part::new("ram", base.clone(), 16, 16));
        Rig::new(&a).write(512, &[1; 1024], IoFlags::empty()).unwrap();
        let range = |part: &Part, at, len| part.copy_range(at, len);
        let copy = PairCopy::new(range(&a, 0, 2048).unwrap(), range(&b, 14 * 512, 1024).unwrap());
        assert_eq!(copy.run(512, 512, &false.into(), &mut || 0), (512, Ok(())));
        assert_eq!(Rig::new(&*base).read(30 * 512, 1024).unwrap(), [[0; 512], [1; 512]].concat());
        assert!(range(&a, 15 * 512, 1024).is_none() && range(&b, u64::MAX - 511, 512).is_none());
    }

    #[test]
    fn granules_are_those_of_the_base() {
        let part = Part::new("ram", ram(512, 64), 3, 16);
        let discard = part.shape().discard.unwrap();
        assert_eq!((discard.granularity, discard.alignment), (4096, 5 * 512));
        assert_eq!(part.shape().num_blocks, 16);
    }
}
