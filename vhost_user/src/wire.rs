//! Waiting for whole messages.
//!
//! The message layer reads a header, then a body, and waits for either as long as it takes; it goes round in circles
//! when a reply does not fit into the socket, and it loses count of the stream when a message carries more descriptors
//! than it has room for. So it is called only when none of that can happen: [`Wire::wait`] returns when a complete
//! message lies in the socket's buffer, with a bearable number of descriptors, and there is room for its reply. All of
//! that is found out by looking, not taking; a front end that takes longer than [`MESSAGE_TIME`] is disconnected.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use vhost::vhost_user::message::{MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

/// From a message's first byte to its last, and for the front end to read replies.
pub(crate) const MESSAGE_TIME: Duration = Duration::from_secs(5);
const HEADER_BYTES: usize = 12;
/// What the kernel lets one message carry (`SCM_MAX_FD`).
const DESCRIPTORS_MAX: usize = 253;
/// How often to look for the rest of a message. Most never need a second look.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Why the connection cannot go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("half a message, and no more of it within {} seconds", MESSAGE_TIME.as_secs())]
    HalfMessage,
    #[error("replies are not being read")]
    RepliesUnread,
    #[error("a message of {0} bytes")]
    TooLong(u32),
    #[error("a message with {0} descriptors")]
    TooManyDescriptors(usize),
    #[error("descriptors on half a header")]
    DescriptorsOnHalfHeader,
    #[error("no room for the descriptors of a message: raise the limit of open files")]
    NoDescriptorsLeft,
    #[error("socket error: {0}")]
    Os(#[from] Errno),
}

/// What waiting came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// A whole message can be taken without waiting, and answered.
    Message,
    /// The front end has closed the connection, perhaps in the middle of a message.
    Closed,
}

/// What a look at the beginning of the buffer shows.
enum Header {
    Nothing,
    Closed,
    Part,
    Size(u32),
}

/// The receiving side of a connection.
pub(crate) struct Wire {
    socket: Arc<OwnedFd>,
    message_time: Duration,
}

impl Wire {
    pub(crate) fn new(socket: Arc<OwnedFd>) -> Self {
        Wire { socket, message_time: MESSAGE_TIME }
    }

    #[cfg(test)]
    pub(crate) fn with_message_time(socket: Arc<OwnedFd>, message_time: Duration) -> Self {
        Wire { socket, message_time }
    }

    #[cfg(test)]
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Waits, without limit for the first byte of a message, and with one for the rest.
    pub(crate) fn wait(&self) -> Result<Arrival, WireError> {
        loop {
            self.poll(PollFlags::IN, None)?;
            let deadline = Instant::now() + self.message_time;
            match self.whole(deadline)? {
                None => {}
                Some(Arrival::Closed) => return Ok(Arrival::Closed),
                Some(Arrival::Message) => return self.room_for_reply(deadline),
            }
        }
    }

    /// Waits until all of the message is there; `None` if there is nothing at all.
    fn whole(&self, deadline: Instant) -> Result<Option<Arrival>, WireError> {
        loop {
            match self.header()? {
                Header::Nothing => return Ok(None),
                Header::Closed => return Ok(Some(Arrival::Closed)),
                Header::Size(size) if size as usize > MAX_MSG_SIZE => return Err(WireError::TooLong(size)),
                Header::Size(size) if self.waiting()? >= HEADER_BYTES as u64 + u64::from(size) => {
                    return Ok(Some(Arrival::Message));
                }
                Header::Size(_) | Header::Part => {}
            }
            // More cannot come after a hang-up, and what is there was looked at before it was noticed: look once more.
            let gone = self.poll(PollFlags::RDHUP, Some(LOOK_AGAIN))?;
            if gone && !self.complete()? {
                return Ok(Some(Arrival::Closed));
            }
            if Instant::now() >= deadline {
                return Err(WireError::HalfMessage);
            }
        }
    }

    fn complete(&self) -> Result<bool, WireError> {
        Ok(match self.header()? {
            Header::Size(size) => self.waiting()? >= HEADER_BYTES as u64 + u64::from(size),
            Header::Nothing | Header::Closed | Header::Part => false,
        })
    }

    fn waiting(&self) -> Result<u64, WireError> {
        Ok(rustix::io::ioctl_fionread(&self.socket)?)
    }

    /// Looks at the header and counts its descriptors (which are closed again: the look makes copies).
    fn header(&self) -> Result<Header, WireError> {
        let mut bytes = [0u8; HEADER_BYTES];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let seen = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(seen) => seen,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Header::Nothing),
            Err(Errno::CONNRESET) => return Ok(Header::Closed),
            Err(error) => return Err(error.into()),
        };
        let count: usize = control
            .drain()
            .map(|message| match message {
                RecvAncillaryMessage::ScmRights(files) => files.count(),
                _ => 0,
            })
            .sum();
        if seen.flags.contains(ReturnFlags::CTRUNC) {
            return Err(WireError::NoDescriptorsLeft);
        }
        if count > MAX_ATTACHED_FD_ENTRIES {
            return Err(WireError::TooManyDescriptors(count));
        }
        match seen.bytes {
            0 => Ok(Header::Closed),
            HEADER_BYTES => Ok(Header::Size(u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]))),
            _ if count > 0 => Err(WireError::DescriptorsOnHalfHeader),
            _ => Ok(Header::Part),
        }
    }

    /// A reply never waits after this: the socket is writable only while three quarters of its buffer are free.
    fn room_for_reply(&self, deadline: Instant) -> Result<Arrival, WireError> {
        if self.poll(PollFlags::OUT, Some(deadline.saturating_duration_since(Instant::now())))? {
            Ok(Arrival::Message)
        } else {
            Err(WireError::RepliesUnread)
        }
    }

    /// Waits for an event, or a hang-up; `false` if the time is over.
    fn poll(&self, events: PollFlags, time: Option<Duration>) -> Result<bool, WireError> {
        let until = time.map(|time| Instant::now() + time);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            match poll(&mut [PollFd::new(&self.socket, events)], left.as_ref()) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
