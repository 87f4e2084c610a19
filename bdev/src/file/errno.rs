//! What the kernel's error numbers mean for a request.

use pollux_core::IoError;

/// The meaning of an error number for the submitter.
pub(super) const fn meaning(errno: i32) -> IoError {
    match errno {
        libc::ENOSPC | libc::EDQUOT => IoError::NoSpace,
        libc::EROFS | libc::EPERM | libc::EACCES | libc::EBADF => IoError::ReadOnly,
        libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN | libc::ESTALE => IoError::NotReady,
        libc::EOPNOTSUPP | libc::ENOSYS => IoError::Unsupported,
        libc::ENOMEM | libc::ENOBUFS | libc::EBUSY | libc::EAGAIN | libc::EINTR => IoError::Busy,
        libc::ECANCELED => IoError::Aborted,
        _ => IoError::Medium,
    }
}

/// Whether the same call may work when it is made again at once.
pub(super) const fn again(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR)
}

/// Whether the kernel does not have the call for this file. `ENODEV` is what `fallocate` says of a block device that it
/// does not know how to handle.
pub(super) const fn not_supported(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY)
}

/// Whether a durable (`RWF_DSYNC`) direct write that failed so leaves everything acknowledged before as it was.
///
/// It does if the write never got to the medium: it was cancelled or refused for its form, or no space could be
/// allocated for it. `O_DIRECT` matters for the last: the error is then about this write's own blocks, while in the page
/// cache it may be about older data that found no space at write-back. Every other error may come from the cache flush
/// at the end of the call, which covers older writes too.
pub(super) const fn says_nothing_about_older_writes(errno: i32) -> bool {
    matches!(errno, libc::ENOSPC | libc::EDQUOT | libc::ECANCELED | libc::EINVAL | libc::EOPNOTSUPP) || again(errno)
}
