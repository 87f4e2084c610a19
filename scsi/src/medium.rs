//! What a unit may ask its device beside I/O: the numbers of LOG SENSE, and what GET LBA STATUS reports.

use std::fmt::Debug;

use pollux_core::Extent;

/// Who knows a unit's device. Asked on a reactor: must not wait for anything but a short lock.
pub trait Medium: Debug + Send + Sync {
    /// What the device has done so far.
    fn transfers(&self) -> Transfers;

    /// As [`Bdev::extent`](pollux_core::Bdev::extent) of the device.
    fn extent(&self, offset: u64, len: u64) -> Extent;
}

/// Totals of a device. They only grow, and may wrap around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Reads.
    pub read: Share,
    /// Writes.
    pub written: Share,
}

/// The totals of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Requests that ended well.
    pub requests: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// How long they took, added up, in nanoseconds.
    pub time_ns: u64,
}

impl Transfers {
    /// What has come on top since `before`.
    pub(crate) fn since(&self, before: &Transfers) -> Transfers {
        Transfers { read: self.read.since(before.read), written: self.written.since(before.written) }
    }
}

impl Share {
    fn since(self, before: Share) -> Share {
        Share {
            requests: self.requests.wrapping_sub(before.requests),
            bytes: self.bytes.wrapping_sub(before.bytes),
            time_ns: self.time_ns.wrapping_sub(before.time_ns),
        }
    }
}
