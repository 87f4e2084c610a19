//! The words of the kernel's SCSI generic driver (sg, version 3): its header, and the calls that take it.
//!
//! A header names memory by address: the CDB, the sense buffer, the data. The kernel reads the CDB when the header is
//! written. Data goes through pages of the kernel's own (direct I/O is not asked for): it is copied from the named memory
//! when the header is written, and to it when the finished header is read, and at no other time. So once a finished header
//! has been read, or the descriptor is closed, the kernel knows the memory no more.
//!
//! What the kernel copies to the named memory is always the whole length, whatever the device has sent: behind that comes
//! what an earlier command has left in its pages. So incoming data goes to memory of ours ([`Memory`]), and to the guest
//! only so much of it as the device has sent.

#![allow(unsafe_code)]

use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd};

use pollux_core::{Direction, SENSE_MAX, Segment, SegmentList};
use rustix::io::Errno;

/// Commands in flight on one descriptor (`SG_MAX_QUEUE`).
pub(super) const QUEUE: usize = 16;
/// Segments of one command (`UIO_MAXIOV`).
pub(super) const SEGMENTS: usize = 1024;
/// Data of one command: the driver takes less than this.
pub(super) const DATA: u64 = 256 << 20;

const DIRECTION_NONE: i32 = -1;
const DIRECTION_OUT: i32 = -2;
const DIRECTION_IN: i32 = -3;
/// Behind those that came before: without it the driver puts each command before them.
const AT_TAIL: u32 = 0x10;

const SG_IO: libc::Ioctl = 0x2285;
const SG_GET_VERSION_NUM: libc::Ioctl = 0x2282;
const SG_SCSI_RESET: libc::Ioctl = 0x2284;
const SG_GET_SG_TABLESIZE: libc::Ioctl = 0x227F;
const BLKSECTGET: libc::Ioctl = 0x1267;
/// The logical unit alone, and nothing wider if that fails.
const RESET_DEVICE: libc::c_int = 0x1 | 0x100;

/// How much memory for data a place keeps from one command to the next.
const KEPT: usize = 64 << 10;

/// `struct sg_io_hdr`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Header {
    interface_id: i32,
    dxfer_direction: i32,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: usize,
    cmdp: usize,
    sbp: usize,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    gap: u32,
    /// Ours, handed back as it is.
    pub(super) usr_ptr: usize,
    /// The device's status byte.
    pub(super) status: u8,
    masked_status: u8,
    msg_status: u8,
    /// Bytes of sense that were written.
    pub(super) sb_len_wr: u8,
    /// What the host adapter says.
    pub(super) host_status: u16,
    /// What the middle layer says.
    pub(super) driver_status: u16,
    /// Bytes of data that were not moved.
    pub(super) resid: i32,
    duration: u32,
    info: u32,
    gap2: u32,
}

#[cfg(target_pointer_width = "64")]
const _: () =
    assert!(size_of::<Header>() == 88 && offset_of!(Header, usr_ptr) == 56 && offset_of!(Header, resid) == 72);

impl Header {
    /// One to be filled by [`receive`].
    pub(super) const EMPTY: Header = Header {
        interface_id: b'S' as i32,
        dxfer_direction: DIRECTION_NONE,
        cmd_len: 0,
        mx_sb_len: 0,
        iovec_count: 0,
        dxfer_len: 0,
        dxferp: 0,
        cmdp: 0,
        sbp: 0,
        timeout: 0,
        flags: AT_TAIL,
        pack_id: 0,
        gap: 0,
        usr_ptr: usize::MAX,
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
        gap2: 0,
    };

    fn as_bytes(&self) -> &[u8] {
        // SAFETY: plain integers without padding between them (the gaps are fields), so every byte is initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Header>()) }
    }

    fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_bytes`, and every pattern of bytes is a valid header.
        unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(self).cast(), size_of::<Header>()) }
    }
}

/// A command's own memory, which stays in place from when it is sent to when it has been received.
#[derive(Debug)]
pub(super) struct Memory(Box<Parts>);

#[derive(Debug)]
struct Parts {
    cdb: [u8; 32],
    sense: [u8; SENSE_MAX],
    /// Incoming data, and outgoing data that cannot be named in one list.
    bounce: Vec<u8>,
    whole: Segment,
}

impl Memory {
    pub(super) fn new() -> Self {
        Memory(Box::new(Parts { cdb: [0; 32], sense: [0; SENSE_MAX], bounce: Vec::new(), whole: Segment::EMPTY }))
    }

    /// What the device has said, when its command has been received.
    pub(super) fn sense(&self, len: u8) -> &[u8] {
        &self.0.sense[..usize::from(len).min(SENSE_MAX)]
    }

    /// `len` bytes of own memory for the data, in one piece. What is in them is left from before.
    pub(super) fn bounce(&mut self, len: usize) -> SegmentList {
        let parts = &mut *self.0;
        if parts.bounce.capacity() < len {
            // New, so that what is large comes from the system as it is, and is not cleared here first.
            parts.bounce = vec![0; len];
        }
        parts.bounce.resize(len, 0);
        // SAFETY: the bytes lie behind a vector that is not touched before `bounced` or `end`.
        parts.whole = unsafe { Segment::new(parts.bounce.as_mut_ptr() as usize, len) };
        // SAFETY: the list is one field of a box that stays in place.
        unsafe { SegmentList::new(std::slice::from_ref(&parts.whole)) }
    }

    /// That memory, while no command uses it.
    pub(super) fn bounced(&mut self) -> &mut [u8] {
        &mut self.0.bounce
    }

    /// The command has been received: gives back a large piece.
    pub(super) fn end(&mut self) {
        if self.0.bounce.capacity() > KEPT {
            self.0.bounce = Vec::new();
        }
    }
}

/// A command as the driver is told of it.
pub(super) struct Order<'a> {
    pub(super) cdb: &'a [u8],
    pub(super) direction: Direction,
    pub(super) len: u32,
    /// At most [`SEGMENTS`].
    pub(super) data: SegmentList,
    pub(super) timeout_ms: u32,
    pub(super) usr_ptr: usize,
}

fn header(order: &Order<'_>, memory: &mut Memory) -> Header {
    let Memory(parts) = memory;
    parts.cdb[..order.cdb.len()].copy_from_slice(order.cdb);
    let list = order.data.as_slice();
    Header {
        dxfer_direction: match order.direction {
            Direction::None => DIRECTION_NONE,
            Direction::In => DIRECTION_IN,
            Direction::Out => DIRECTION_OUT,
        },
        cmd_len: order.cdb.len() as u8,
        mx_sb_len: SENSE_MAX as u8,
        iovec_count: u16::try_from(list.len()).expect("at most SEGMENTS"),
        dxfer_len: order.len,
        dxferp: if list.is_empty() { 0 } else { list.as_ptr() as usize },
        cmdp: parts.cdb.as_ptr() as usize,
        sbp: parts.sense.as_mut_ptr() as usize,
        timeout: order.timeout_ms,
        usr_ptr: order.usr_ptr,
        ..Header::EMPTY
    }
}

/// Sends a command. May wait for a place in the host adapter.
///
/// # Safety
/// `memory`, and what `order.data` names, stay where they are until the command has been received from the same descriptor,
/// or that is closed.
pub(super) unsafe fn send(fd: impl AsFd, order: &Order<'_>, memory: &mut Memory) -> Result<(), Errno> {
    rustix::io::write(fd, header(order, memory).as_bytes()).map(drop)
}

/// Receives a command that has ended; its data has been copied then. On an error `usr_ptr` says whose it is, if it is not
/// `usize::MAX`: that command has ended, too.
pub(super) fn receive(fd: impl AsFd) -> (Header, Result<(), Errno>) {
    let mut header = Header::EMPTY;
    let read = rustix::io::read(fd, header.as_bytes_mut());
    // A driver never says that there will be nothing more; what stands in for one in tests does.
    let result = read.and_then(|len| if len == size_of::<Header>() { Ok(()) } else { Err(Errno::NODEV) });
    (header, result)
}

/// Does a command and waits for it. `data` is filled from the device; returns how many bytes of it, with the status.
pub(super) fn ask(fd: impl AsFd, cdb: &[u8], data: &mut [u8], timeout_ms: u32) -> Result<(Header, usize), Errno> {
    let mut memory = Memory::new();
    // SAFETY: `data` is borrowed for the whole call, which ends when the command has.
    let segment = unsafe { Segment::new(data.as_mut_ptr() as usize, data.len()) };
    // SAFETY: the list lives as long as the call.
    let list = unsafe { SegmentList::new(std::slice::from_ref(&segment)) };
    let len = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
    let direction = if data.is_empty() { Direction::None } else { Direction::In };
    let list = if data.is_empty() { SegmentList::EMPTY } else { list };
    let order = Order { cdb, direction, len, data: list, timeout_ms, usr_ptr: 0 };
    let mut header = header(&order, &mut memory);
    // SAFETY: the header is what the call takes, and all it names outlives the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SG_IO, &raw mut header) };
    if result < 0 {
        return Err(last_error());
    }
    let moved = data.len().saturating_sub(usize::try_from(header.resid).unwrap_or(0));
    Ok((header, moved))
}

/// The driver's version; an error if it is another driver.
pub(super) fn version(fd: impl AsFd) -> Result<i32, Errno> {
    number(fd, SG_GET_VERSION_NUM)
}

/// How much data the host adapter is given at once, in bytes.
pub(super) fn max_transfer(fd: impl AsFd) -> Result<i32, Errno> {
    number(fd, BLKSECTGET)
}

/// How many pieces the driver's memory for one command may have.
pub(super) fn table_size(fd: impl AsFd) -> Result<i32, Errno> {
    number(fd, SG_GET_SG_TABLESIZE)
}

fn number(fd: impl AsFd, request: libc::Ioctl) -> Result<i32, Errno> {
    let mut value: libc::c_int = 0;
    // SAFETY: these calls write one int.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut value) };
    if result < 0 { Err(last_error()) } else { Ok(value) }
}

/// Resets the logical unit, and waits for that.
pub(super) fn reset(fd: impl AsFd) -> Result<(), Errno> {
    let what = RESET_DEVICE;
    // SAFETY: the call reads one int.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SG_SCSI_RESET, &raw const what) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
pub(super) mod testing {
    //! The other side of the interface: a device that takes headers from a socket and works on the memory that they name.

    use super::*;
    use pollux_core::segment;

    /// A header that was sent to a device.
    pub(in crate::sg) struct Taken(Header);

    impl Taken {
        pub(in crate::sg) fn from_bytes(bytes: &[u8]) -> Taken {
            let mut header = Header::EMPTY;
            header.as_bytes_mut().copy_from_slice(bytes);
            assert_eq!((header.interface_id, header.flags & AT_TAIL), (i32::from(b'S'), AT_TAIL));
            Taken(header)
        }

        pub(in crate::sg) fn cdb(&self) -> Vec<u8> {
            // SAFETY: the sender keeps the CDB in place until it has the answer.
            unsafe { std::slice::from_raw_parts(self.0.cmdp as *const u8, usize::from(self.0.cmd_len)) }.to_vec()
        }

        pub(in crate::sg) fn is_in(&self) -> bool {
            self.0.dxfer_direction == DIRECTION_IN
        }

        pub(in crate::sg) fn len(&self) -> usize {
            self.0.dxfer_len as usize
        }

        pub(in crate::sg) fn segments(&self) -> usize {
            usize::from(self.0.iovec_count)
        }

        pub(in crate::sg) fn timeout_ms(&self) -> u32 {
            self.0.timeout
        }

        fn data(&self) -> &[Segment] {
            if self.0.iovec_count == 0 {
                return &[];
            }
            // SAFETY: as for the CDB.
            unsafe { std::slice::from_raw_parts(self.0.dxferp as *const Segment, usize::from(self.0.iovec_count)) }
        }

        pub(in crate::sg) fn fetch(&self) -> Vec<u8> {
            let mut bytes = vec![0; self.len()];
            assert_eq!(segment::copy_from(self.data(), 0, &mut bytes), self.len());
            bytes
        }

        pub(in crate::sg) fn fill(&mut self, bytes: &[u8]) {
            let put = segment::copy_to(self.data(), 0, bytes);
            self.0.resid = (self.len() - put) as i32;
        }

        pub(in crate::sg) fn end(&mut self, status: u8, sense: &[u8], host_status: u16, driver_status: u16) {
            let len = sense.len().min(usize::from(self.0.mx_sb_len));
            // SAFETY: as for the CDB; the buffer has the room that the header says.
            unsafe { std::ptr::copy_nonoverlapping(sense.as_ptr(), self.0.sbp as *mut u8, len) };
            self.0.sb_len_wr = len as u8;
            (self.0.status, self.0.host_status, self.0.driver_status) = (status, host_status, driver_status);
        }

        pub(in crate::sg) fn set_resid(&mut self, resid: i32) {
            self.0.resid = resid;
        }

        pub(in crate::sg) fn bytes(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
}
