//! Waiting for any of many descriptors, at a cost that does not grow with their number.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;

use crate::BenchError;

/// Shorter waits than this are not left to epoll, which counts milliseconds.
const COARSE: Duration = Duration::from_millis(10);

/// A set of descriptors.
pub(crate) struct Watch {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Watch {
    pub(crate) fn new() -> Result<Self, BenchError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(error)?;
        Ok(Watch { epoll, events: Vec::with_capacity(64) })
    }

    /// Each signal of this eventfd ends a wait, whether it is read or not.
    pub(crate) fn add_signal(&self, fd: impl AsFd) -> Result<(), BenchError> {
        self.add(fd, epoll::EventFlags::IN | epoll::EventFlags::ET, 0)
    }

    /// The end of this connection ends a wait.
    pub(crate) fn add_connection(&self, fd: impl AsFd, name: usize) -> Result<(), BenchError> {
        self.add(fd, epoll::EventFlags::RDHUP, name)
    }

    fn add(&self, fd: impl AsFd, flags: epoll::EventFlags, name: usize) -> Result<(), BenchError> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(name as u64), flags).map_err(error)
    }

    /// Waits, at most so long. How many had something, and the name of one of them.
    pub(crate) fn wait(&mut self, most: Duration) -> Result<(usize, Option<usize>), BenchError> {
        if most < COARSE && !most.is_zero() {
            let limit = timespec(most);
            if uninterrupted(poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&limit)))? == 0 {
                return Ok((0, None));
            }
        }
        let limit = if most < COARSE { Duration::ZERO } else { most };
        self.events.clear();
        let found = epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timespec(limit)));
        let found = uninterrupted(found)?;
        Ok((found, self.events.first().map(|event| event.data.u64() as usize)))
    }
}

/// A signal counts as nothing found.
fn uninterrupted(found: Result<usize, Errno>) -> Result<usize, BenchError> {
    match found {
        Err(Errno::INTR) => Ok(0),
        found => found.map_err(error),
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

fn error(error: Errno) -> BenchError {
    BenchError::Setup(format!("cannot wait for the target: {error}; raise the limit of open files with ulimit -n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use std::os::unix::net::UnixStream;

    #[test]
    fn each_signal_ends_one_wait() {
        let (mut watch, event) = (Watch::new().expect("a set"), Event::new().expect("an eventfd"));
        watch.add_signal(&event).expect("added");
        for limit in [Duration::ZERO, Duration::from_micros(100), COARSE] {
            assert_eq!(watch.wait(limit).expect("a wait").0, 0);
            event.signal().expect("signalled");
            assert_eq!(watch.wait(limit).expect("a wait").0, 1, "{limit:?}");
            // It is not read, and yet it is told once.
            assert_eq!(watch.wait(limit).expect("a wait").0, 0);
        }
    }

    #[test]
    fn an_end_of_a_connection_is_told_by_name() {
        let mut watch = Watch::new().expect("a set");
        let (mine, other) = UnixStream::pair().expect("a connection");
        watch.add_connection(&mine, 7).expect("added");
        assert_eq!(watch.wait(Duration::ZERO).expect("a wait"), (0, None));
        drop(other);
        assert_eq!(watch.wait(Duration::ZERO).expect("a wait"), (1, Some(7)));
        assert_eq!(watch.wait(Duration::ZERO).expect("a wait"), (1, Some(7)), "again and again");
    }
}
