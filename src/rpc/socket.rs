//! The RPC socket in the file system: claimed with a lock beside it, never opened wider than asked for, removed at the
//! end if it is still ours.
//!
//! Two steps, so that a daemon can claim its place first and answer only when its restore has finished: a socket that is
//! bound and does not listen yet refuses connections.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest path of a unix socket in bytes (sun_path without its closing zero).
pub const SOCKET_PATH_MAX: usize = 107;

/// Why the socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon has it.
    #[error("{0} belongs to another running daemon (its lock is held); give this one another --rpc-socket")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{0} exists and is not a socket; move it away or give another --rpc-socket")]
    NotASocket(PathBuf),
    /// Unix sockets have short names.
    #[error("{path} is longer than {SOCKET_PATH_MAX} bytes, which unix sockets do not allow", path = .0.display())]
    TooLong(PathBuf),
    /// The system refused.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A claimed path with a socket on it that does not listen yet.
#[derive(Debug)]
pub struct Bound {
    socket: OwnedFd,
    /// What has to be undone at the end.
    pub claim: Claim,
}

/// The right to a path; dropping it removes the socket and the lock file.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: fs::File,
    inode: Option<(u64, u64)>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).ok().map(|meta| (meta.dev(), meta.ino()));
        if now.is_some() && now == self.inode {
            let _ = fs::remove_file(&self.path);
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Claims `path` and binds a socket of this mode and group to it. What a daemon that died left there is removed.
///
/// # Errors
/// [`SocketError`]: somebody has it, something else is there, or the system refuses.
pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Bound, SocketError> {
    use std::os::unix::ffi::OsStrExt;
    if path.as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
        return Err(SocketError::TooLong(path.into()));
    }
    let failed = |what| move |source: io::Error| SocketError::System { what, path: path.into(), source };
    let mut claim = claim(path)?;
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path).map_err(failed("remove the stale"))?,
        Ok(_) => return Err(SocketError::NotASocket(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
    }
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| failed("open a socket for")(error.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|error| failed("use")(error.into()))?;
    rustix::net::bind(&socket, &address).map_err(|error| failed("bind")(error.into()))?;
    claim.inode = fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(failed("change the group of"))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("change the mode of"))?;
    Ok(Bound { socket, claim })
}

impl Bound {
    /// Starts to listen.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen(self) -> Result<(UnixListener, Claim), SocketError> {
        rustix::net::listen(&self.socket, 128).map_err(|error| SocketError::System {
            what: "listen on",
            path: self.claim.path.clone(),
            source: error.into(),
        })?;
        Ok((UnixListener::from(self.socket), self.claim))
    }
}

fn claim(path: &Path) -> Result<Claim, SocketError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let failed = |what| {
        let path = lock_path.clone();
        move |source: io::Error| SocketError::System { what, path, source }
    };
    loop {
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed("open the lock file"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SocketError::InUse(path.into())),
            Err(error) => return Err(failed("lock")(error.into())),
        }
        // Whoever held it may have removed the name between our open and our lock: then this lock guards nothing.
        let held = lock.metadata().map_err(failed("look at"))?;
        let named = fs::symlink_metadata(&lock_path);
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            return Ok(Claim { path: path.into(), lock_path, _lock: lock, inode: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("rpc.sock");
        (dir, path)
    }

    #[test]
    fn a_socket_refuses_until_it_listens_and_goes_away_at_the_end() {
        let (dir, path) = place();
        let bound = bind(&path, 0o600, None).expect("bound");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_err());
        let (_listener, claim) = bound.listen().expect("listening");
        assert!(UnixStream::connect(&path).is_ok());
        drop(claim);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn only_one_daemon_has_it() {
        let (_dir, path) = place();
        let first = bind(&path, 0o600, None).expect("bound");
        assert!(matches!(bind(&path, 0o600, None), Err(SocketError::InUse(_))));
        drop(first);
        assert!(bind(&path, 0o600, None).is_ok());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        let (dir, path) = place();
        drop(UnixListener::bind(&path).expect("stale"));
        drop(bind(&path, 0o660, None).expect("replaced"));
        fs::write(&path, "precious").expect("written");
        assert!(matches!(bind(&path, 0o600, None), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).expect("kept"), "precious");
        fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).expect("linked");
        assert!(matches!(bind(&path, 0o600, None), Err(SocketError::NotASocket(_))));
        let long = dir.path().join("x".repeat(SOCKET_PATH_MAX));
        assert!(matches!(bind(&long, 0o600, None), Err(SocketError::TooLong(_))));
    }
}
