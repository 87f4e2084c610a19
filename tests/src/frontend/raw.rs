//! A vhost-user socket without manners: any message, any descriptors, byte by byte if need be.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// A connection on which messages are written by hand.
pub struct RawSession {
    stream: UnixStream,
}

/// Flags of a message header: protocol version 1.
pub const VERSION_1: u32 = 1;
/// The sender wants an acknowledgement.
pub const NEED_REPLY: u32 = 1 << 3;

impl RawSession {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(RawSession { stream })
    }

    /// The socket.
    #[must_use]
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message whose header says `size`, whatever the payload's length is.
    ///
    /// # Errors
    /// If the other side has closed.
    pub fn send(&self, request: u32, flags: u32, size: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(12 + payload.len());
        for word in [request, flags, size] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(payload);
        self.send_bytes(&bytes, fds)
    }

    /// Sends a well-formed message.
    ///
    /// # Errors
    /// If the other side has closed.
    pub fn message(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(request, VERSION_1, payload.len() as u32, payload, fds)
    }

    /// Sends bytes with descriptors.
    ///
    /// # Errors
    /// If the other side has closed.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if fds.is_empty() {
            return (&self.stream).write_all(bytes);
        }
        let mut space = vec![MaybeUninit::uninit(); 64 + 8 * fds.len()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rustix::net::sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives one message: request, flags, payload. An error also when the other side has closed.
    ///
    /// # Errors
    /// If nothing comes in five seconds or the connection is closed.
    pub fn receive(&self) -> io::Result<(u32, u32, Vec<u8>)> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header)?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let mut payload = vec![0; word(8).min(1 << 16) as usize];
        (&self.stream).read_exact(&mut payload)?;
        Ok((word(0), word(4), payload))
    }

    /// Whether the other side closes within five seconds (what it sends before is thrown away).
    #[must_use]
    pub fn is_closed_by_peer(&self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}
