//! The other end of an export or an import: a file of this machine, or a socket at which somebody listens.
//!
//! Reads and writes of a socket may take as long as its other end likes; they notice when the job is cancelled. A file
//! gets its name when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::node::jobs::Job;
use crate::node::{NodeError, Reason};
use crate::stream::give_name;

/// How often who waits for a socket looks whether it is still to wait.
const LOOK: Duration = Duration::from_millis(200);

/// Where a stream goes, or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file; it must not be there before an export.
    File(PathBuf),
    /// A unix socket that somebody listens at; with `@` before it an abstract one.
    Socket(PathBuf),
}

/// Where an export goes.
pub(super) enum Sink {
    File { file: File, partial: PathBuf, path: PathBuf },
    Socket(Patient),
}

/// Where an import comes from.
pub(super) enum Source {
    File(File),
    Socket(Patient),
}

/// A socket.
pub(super) struct Patient {
    stream: UnixStream,
    job: Arc<Job>,
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Place::File(path) | Place::Socket(path) => path,
        }
    }

    /// Refuses what cannot be, before anything is begun.
    ///
    /// # Errors
    /// [`Reason::Invalid`].
    pub(super) fn check(&self) -> Result<(), NodeError> {
        let path = self.path();
        let why = format!("'{}': give an absolute path", path.display());
        if path.is_absolute() || self.abstract_name().is_some() {
            Ok(())
        } else {
            Err(NodeError::new(Reason::Invalid, why))
        }
    }

    /// The same of what is to be written.
    ///
    /// # Errors
    /// [`Reason::Invalid`]; [`Reason::ExistsDifferent`].
    pub(super) fn check_free(&self) -> Result<(), NodeError> {
        self.check()?;
        match self {
            Place::File(path) if fs::symlink_metadata(path).is_ok() => {
                let why = format!("there is a file {} already: give another name, or remove it", path.display());
                Err(NodeError::new(Reason::ExistsDifferent, why))
            }
            _ => Ok(()),
        }
    }

    /// Opens it to be written.
    pub(super) fn sink(&self, job: &Arc<Job>) -> Result<Sink, NodeError> {
        let Place::File(path) = self else { return self.connect(job).map(Sink::Socket) };
        self.check_free()?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}.partial", job.id().simple()));
        let partial = PathBuf::from(partial);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        let file = opened.map_err(|error| self.failed("create", &error))?;
        Ok(Sink::File { file, partial, path: path.clone() })
    }

    /// Opens it to be read.
    pub(super) fn source(&self, job: &Arc<Job>) -> Result<Source, NodeError> {
        let Place::File(path) = self else { return self.connect(job).map(Source::Socket) };
        // Looks before opening: opening a pipe would wait.
        let is_file = fs::metadata(path).map(|metadata| metadata.is_file());
        match is_file {
            Ok(true) => File::open(path).map(Source::File).map_err(|error| self.failed("open", &error)),
            Ok(false) => Err(NodeError::new(Reason::Invalid, format!("{} is no file", path.display()))),
            Err(error) => Err(self.failed("open", &error)),
        }
    }

    fn abstract_name(&self) -> Option<&[u8]> {
        let Place::Socket(path) = self else { return None };
        path.as_os_str().as_bytes().strip_prefix(b"@").filter(|name| !name.is_empty())
    }

    fn connect(&self, job: &Arc<Job>) -> Result<Patient, NodeError> {
        let connected = self.address().and_then(|address| connected(&address, job));
        let stream =
            connected.map_err(|error| job.check().err().unwrap_or_else(|| self.failed("connect to", &error)))?;
        Ok(Patient { stream, job: job.clone() })
    }

    fn address(&self) -> io::Result<SocketAddrUnix> {
        Ok(match self.abstract_name() {
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            None => SocketAddrUnix::new(self.path())?,
        })
    }

    fn failed(&self, what: &str, error: &io::Error) -> NodeError {
        NodeError::new(Reason::Os, format!("cannot {what} {}: {error}", self.path().display()))
    }
}

/// A connection. Whoever listens may have more of them than it takes, then there is none until it takes one.
fn connected(address: &SocketAddrUnix, job: &Job) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match rustix::net::connect(&socket, address) {
            Err(Errno::AGAIN) if !job.is_cancelled() => std::thread::sleep(LOOK),
            Err(error) => return Err(error.into()),
            Ok(()) => break,
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(LOOK))?;
    Ok(stream)
}

impl Sink {
    /// All was written, and is what it is to be. It is on the medium when this returns.
    pub(super) fn finish(mut self) -> io::Result<()> {
        match &mut self {
            Sink::Socket(patient) => patient.stream.shutdown(std::net::Shutdown::Write),
            Sink::File { file, partial, path } => {
                file.sync_all()?;
                give_name(partial, path, false)
            }
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Sink::File { partial, .. } = self {
            // Gone already, if the file is whole.
            let _ = fs::remove_file(partial);
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::File { file, .. } => file.write(bytes),
            Sink::Socket(patient) => patient.again(|mut stream| stream.write(bytes)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Source {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::File(file) => file.read(bytes),
            Source::Socket(patient) => patient.again(|mut stream| stream.read(bytes)),
        }
    }
}

impl Patient {
    /// Does it again until it is done or the job is to end.
    fn again(&self, mut work: impl FnMut(&UnixStream) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            match work(&self.stream) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.job.is_cancelled() {
                        return Err(io::Error::other("the job was cancelled"));
                    }
                }
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::jobs::{JobState, Jobs, NewJob};
    use serde_json::Value;

    #[test]
    fn who_listens_and_takes_nobody_can_be_waited_for_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let first = UnixStream::connect(&path).unwrap();
        let jobs = Arc::<Jobs>::default();
        let place = Place::Socket(path);
        let new = NewJob { kind: "test", object: String::new() };
        let job = jobs.start(new, move |job| place.sink(job).map(|_| Value::Null)).unwrap();
        assert!(!jobs.wait(LOOK), "there is no room");
        jobs.cancel(&job.id().to_string()).unwrap();
        assert!(jobs.wait(Duration::from_secs(60)), "it has ended");
        assert_eq!(job.state(), JobState::Cancelled);
        drop(first);
    }
}
