//! A device without a medium: writes are dropped, reads leave the submitter's memory as it is.
//!
//! For measuring everything above it. Nothing of ours can leak through a read: no byte is touched, so what the
//! submitter finds is what it had put there. Its size can be changed while it is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pollux_core::{Bdev, Channel, Completion, Cx, Discard, Io, IoError, Next, Op, OpenArgs, OpenError, Shape, Tag};
use serde_json::{Value, json};

use crate::spec::check_blocks;
use crate::{BdevError, Device, MAX_DEPTH, NullSpec};

/// The device.
pub struct Null {
    block_size: u32,
    physical_block_size: u32,
    num_blocks: Arc<AtomicU64>,
}

impl Null {
    /// A device as `spec` says, which has been checked.
    #[must_use]
    pub fn new(spec: &NullSpec) -> Self {
        Null {
            block_size: spec.block_size,
            physical_block_size: spec.physical_block_size.unwrap_or(spec.block_size),
            num_blocks: Arc::new(AtomicU64::new(spec.num_blocks)),
        }
    }
}

impl Bdev for Null {
    fn shape(&self) -> Shape {
        Shape {
            block_size: self.block_size,
            physical_block_size: self.physical_block_size,
            num_blocks: self.num_blocks.load(Relaxed),
            read_only: false,
            volatile_cache: false,
            discard: Some(Discard { granularity: self.block_size, alignment: 0, reads_zero: false }),
            optimal_io: 0,
            rotation_rate: 1,
            atomic_write: None,
        }
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let depth = args.depth.clamp(1, MAX_DEPTH);
        Ok(Box::new(NullChannel {
            depth,
            block_size: u64::from(self.block_size),
            num_blocks: self.num_blocks.clone(),
            ended: Vec::with_capacity(depth as usize),
        }))
    }
}

impl Device for Null {
    fn product_name(&self) -> &'static str {
        "Null disk"
    }

    fn driver_specific(&self) -> Value {
        json!({})
    }

    fn resize(&self, bytes: u64) -> Result<(), BdevError> {
        let size = u64::from(self.block_size);
        let blocks = bytes / size;
        if !bytes.is_multiple_of(size) || check_blocks(self.block_size, blocks, None).is_err() {
            let why = format!("must be a multiple of the block size {size}, not 0, and less than 2^63 bytes");
            return Err(BdevError::invalid("new_size", why));
        }
        self.num_blocks.store(blocks, Relaxed);
        Ok(())
    }
}

struct NullChannel {
    depth: u32,
    block_size: u64,
    num_blocks: Arc<AtomicU64>,
    ended: Vec<Completion>,
}

impl Channel for NullChannel {
    fn depth(&self) -> u32 {
        self.depth
    }

    fn attach(&mut self, _: &mut Cx<'_>) -> Result<(), IoError> {
        Ok(())
    }

    fn detach(&mut self, _: &mut Cx<'_>) {}

    fn submit(&mut self, io: Io, _: &mut Cx<'_>) {
        assert!(self.ended.len() < self.depth as usize, "the submitter keeps to the depth");
        let size = self.num_blocks.load(Relaxed) * self.block_size;
        let inside = io.op == Op::Flush || io.end().is_some_and(|end| end <= size);
        let result = if inside { Ok(()) } else { Err(IoError::OutOfRange) };
        self.ended.push(Completion { tag: io.tag, result });
    }

    fn poll(&mut self, _: &mut Cx<'_>, done: &mut Vec<Completion>) {
        done.append(&mut self.ended);
    }

    fn next(&self) -> Next {
        if self.ended.is_empty() { Next::Idle } else { Next::Now }
    }

    fn cancel(&mut self, _: Tag, _: &mut Cx<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rig;
    use pollux_core::IoFlags;

    fn null(num_blocks: u64) -> Null {
        Null::new(&NullSpec {
            name: "n".into(),
            block_size: 512,
            num_blocks,
            physical_block_size: Some(4096),
            uuid: None,
        })
    }

    #[test]
    fn completes_at_the_next_poll_and_touches_no_memory() {
        let device = null(8);
        let mut rig = Rig::new(&device);
        assert_eq!(rig.next(), Next::Idle);
        rig.write(0, &[1; 512], IoFlags::FUA).unwrap();
        rig.fill(0x5a);
        assert_eq!(rig.read(0, 512).unwrap(), [0x5a; 512], "the submitter's own bytes are left alone");
        for op in [Op::Flush, Op::Discard, Op::WriteZeroes] {
            rig.submit(Io::without_data(1, op, IoFlags::empty(), 0, 512));
            assert_eq!(rig.next(), Next::Now);
            assert_eq!(rig.finish(), [Completion { tag: 1, result: Ok(()) }]);
        }
        assert_eq!(device.shape().physical_block_size, 4096);
    }

    #[test]
    fn a_shrunk_device_answers_out_of_range() {
        let device = null(8);
        let mut rig = Rig::new(&device);
        device.resize(4 * 512).unwrap();
        assert_eq!(rig.read(3 * 512, 512).map(|_| ()), Ok(()));
        assert_eq!(rig.read(3 * 512, 1024), Err(IoError::OutOfRange));
        rig.submit(Io::without_data(1, Op::Flush, IoFlags::empty(), u64::MAX, 0));
        assert_eq!(rig.finish()[0].result, Ok(()), "a flush has no range");
        device.resize(16 * 512).unwrap();
        assert_eq!(rig.read(15 * 512, 512).map(|_| ()), Ok(()));
    }

    #[test]
    fn a_size_that_could_not_be_created_is_refused() {
        let device = null(8);
        for bytes in [0, 513, 1 << 63, u64::MAX - 511] {
            let error = device.resize(bytes).expect_err("refused");
            assert!(matches!(error, BdevError::Invalid { field: "new_size", .. }), "{bytes}: {error}");
        }
        assert_eq!(device.shape().num_blocks, 8);
        device.resize((1 << 63) - 512).unwrap();
        let made = NullSpec {
            name: "n".into(),
            block_size: 512,
            num_blocks: device.shape().num_blocks,
            physical_block_size: None,
            uuid: None,
        };
        crate::Spec::Null(made).validate().unwrap();
    }
}
