//! Descriptors of files that a front end sends to wake and be woken.
//!
//! Only eventfds are taken: writing to anything else could block, or do something. They are made non-blocking, so that
//! a full one costs nobody anything.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};

/// Why a descriptor was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorError {
    #[error("the {0} descriptor is no eventfd but {1}")]
    Kind(&'static str, String),
    #[error("the {0} descriptor cannot be used: {1}")]
    Os(&'static str, std::io::Error),
}

/// Checks and prepares a kick, call or error descriptor.
pub(crate) fn event(role: &'static str, file: File) -> Result<Arc<OwnedFd>, DescriptorError> {
    let fd = OwnedFd::from(file);
    let os = |e: rustix::io::Errno| DescriptorError::Os(role, e.into());
    fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(os)?;
    let kind =
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|e| DescriptorError::Os(role, e))?;
    if kind.as_os_str() != "anon_inode:[eventfd]" {
        return Err(DescriptorError::Kind(role, kind.display().to_string()));
    }
    let flags = fcntl_getfl(&fd).map_err(os)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(os)?;
    Ok(Arc::new(fd))
}

/// A kick descriptor for a front end that sends none and wants its queue polled: readable for ever, because each read
/// takes off one of 2^64 - 2.
pub(crate) fn endless_kick() -> Result<Arc<OwnedFd>, DescriptorError> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
    let os = |e: rustix::io::Errno| DescriptorError::Os("kick", e.into());
    let fd = eventfd(0, flags).map_err(os)?;
    rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).map_err(os)?;
    Ok(Arc::new(fd))
}

/// Adds one. A full eventfd is readable already, which is all that a signal is for.
pub(crate) fn signal(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t48_only_eventfds() {
        let good = eventfd(0, EventfdFlags::empty()).unwrap();
        let good = event("call", good.into()).unwrap();
        assert!(fcntl_getfl(&good).unwrap().contains(OFlags::NONBLOCK));
        let (read, write) = rustix::pipe::pipe().unwrap();
        for bad in [File::from(read), File::from(write), File::open("/").unwrap(), File::open("/dev/null").unwrap()] {
            assert!(matches!(event("kick", bad), Err(DescriptorError::Kind("kick", _))));
        }
    }

    #[test]
    fn t17_a_full_call_descriptor_blocks_nobody() {
        let fd = event("call", eventfd(0, EventfdFlags::empty()).unwrap().into()).unwrap();
        rustix::io::write(&*fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        signal(&fd);
        signal(&fd);
    }

    #[test]
    fn an_endless_kick_stays_readable() {
        let fd = endless_kick().unwrap();
        for _ in 0..1000 {
            assert_eq!(rustix::io::read(&*fd, &mut [0; 8]), Ok(8));
        }
    }
}
