//! Who is at the other end of a socket.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};

/// The peer's process; `None` if it has no number in our pid namespace.
pub(crate) fn pid(socket: &OwnedFd) -> Option<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the option fills in a `ucred` of the length given; both live on this stack.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len)
    };
    (result == 0 && peer.pid > 0).then_some(peer.pid)
}
