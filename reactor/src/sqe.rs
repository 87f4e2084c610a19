//! A ring operation in the kernel's format.
//!
//! An [`Sqe`] can be made from a [`RingOp`] only (or be one of the two that touch no memory), and every pointer in it is
//! either to a [`SegmentList`], whose maker has promised that list and memory stay until the completion, or to a static.
//! `kernel.rs` relies on that.

use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};
use pollux_core::{RingOp, Segment, SegmentList};

/// `IOV_MAX`: more segments than this the kernel refuses.
const MAX_SEGMENTS: usize = 1024;
/// `MAX_RW_COUNT`: the kernel moves no more than this at once.
const MAX_BYTES: usize = 0x7fff_f000;
/// `BLOCK_URING_CMD_DISCARD`.
const BLOCK_DISCARD: u32 = 0x1200;
/// What a signal adds to an eventfd.
static ONE: u64 = 1;

const _: () = assert!(size_of::<Segment>() == size_of::<libc::iovec>());
const _: () = assert!(align_of::<Segment>() == align_of::<libc::iovec>());

/// A file as the kernel is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A place in the registered table.
    Registered(u32),
    /// A descriptor.
    Descriptor(RawFd),
}

impl Target {
    fn fd(self) -> types::Fd {
        match self {
            Target::Registered(slot) => types::Fd(slot as i32),
            Target::Descriptor(fd) => types::Fd(fd),
        }
    }

    fn flags(self) -> squeue::Flags {
        match self {
            Target::Registered(_) => squeue::Flags::FIXED_FILE,
            Target::Descriptor(_) => squeue::Flags::empty(),
        }
    }
}

/// An entry in the kernel's format that is sound to push.
pub(crate) struct Sqe(squeue::Entry);

impl Sqe {
    /// `file` finds a slot's target, `user_data_of` the name of the entry to cancel.
    #[inline]
    pub(crate) fn new(
        op: &RingOp,
        user_data: u64,
        file: impl FnOnce(pollux_core::FileSlot) -> Target,
        user_data_of: impl FnOnce(pollux_core::Token) -> u64,
    ) -> Sqe {
        let entry = match *op {
            RingOp::Read { file: slot, data, offset } => read(file(slot), data, offset),
            RingOp::Write { file: slot, data, offset, dsync } => {
                write(file(slot), data, offset, if dsync { libc::RWF_DSYNC } else { 0 })
            }
            RingOp::WriteAtomic { file: slot, data, offset, dsync } => {
                write(file(slot), data, offset, libc::RWF_ATOMIC | if dsync { libc::RWF_DSYNC } else { 0 })
            }
            RingOp::Sync { file: slot } => {
                let target = file(slot);
                opcode::Fsync::new(target.fd()).flags(types::FsyncFlags::DATASYNC).build().flags(target.flags())
            }
            RingOp::Fallocate { file: slot, mode, offset, len } => {
                let target = file(slot);
                opcode::Fallocate::new(target.fd(), len).mode(mode).offset(offset).build().flags(target.flags())
            }
            RingOp::BlockDiscard { file: slot, offset, len } => discard(file(slot), offset, len),
            RingOp::PollReadable { fd } => opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build(),
            RingOp::Signal { fd } => {
                // Without NOWAIT a full eventfd would hold the entry until somebody reads it, and a blocking one a worker.
                let write = opcode::Write::new(types::Fd(fd), (&raw const ONE).cast(), size_of_val(&ONE) as u32);
                write.rw_flags(libc::RWF_NOWAIT).build()
            }
            RingOp::Cancel { target } => opcode::AsyncCancel::new(user_data_of(target)).build(),
        };
        Sqe(entry.user_data(user_data))
    }

    /// Cancels everything that is in the ring; needs Linux 5.19.
    pub(crate) fn cancel_all(user_data: u64) -> Sqe {
        Sqe(opcode::AsyncCancel2::new(types::CancelBuilder::any()).build().user_data(user_data))
    }

    pub(crate) const fn entry(&self) -> &squeue::Entry {
        &self.0
    }
}

fn read(target: Target, data: SegmentList, offset: u64) -> squeue::Entry {
    let entry = match data.as_slice() {
        [one] => opcode::Read::new(target.fd(), one.addr() as *mut u8, short(one)).offset(offset).build(),
        many => opcode::Readv::new(target.fd(), many.as_ptr().cast(), count(many)).offset(offset).build(),
    };
    entry.flags(target.flags())
}

fn write(target: Target, data: SegmentList, offset: u64, how: i32) -> squeue::Entry {
    let entry = match data.as_slice() {
        [one] => {
            let write = opcode::Write::new(target.fd(), one.addr() as *const u8, short(one));
            write.offset(offset).rw_flags(how).build()
        }
        many => {
            let write = opcode::Writev::new(target.fd(), many.as_ptr().cast(), count(many));
            write.offset(offset).rw_flags(how).build()
        }
    };
    entry.flags(target.flags())
}

/// Start in `addr`, length in the first eight bytes of the command.
fn discard(target: Target, offset: u64, len: u64) -> squeue::Entry {
    let mut command = [0; 16];
    command[..8].copy_from_slice(&len.to_ne_bytes());
    let entry = opcode::UringCmd16::new(target.fd(), BLOCK_DISCARD).addr(Some(offset)).cmd(command).build();
    entry.flags(target.flags())
}

/// The length of a segment, cut to what the kernel does at once; the client sees a short result.
fn short(segment: &Segment) -> u32 {
    segment.len().min(MAX_BYTES) as u32
}

fn count(segments: &[Segment]) -> u32 {
    assert!(segments.len() <= MAX_SEGMENTS, "{} segments in one entry; {MAX_SEGMENTS} at most", segments.len());
    segments.len() as u32
}
