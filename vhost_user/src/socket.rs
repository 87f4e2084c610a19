//! The socket file: made so that nobody connects before it is complete, removed only if it is still ours.
//!
//! The socket is bound under a temporary name, gets its mode and group, starts to listen and is then renamed. The
//! temporary name is resolved through a descriptor of the directory: it fits into the 108 bytes of a socket address
//! even where the real one just does.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, chmodat, chownat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Permission bits of the socket file.
    pub mode: u32,
    /// Group that owns the socket file; `None`: the process's own.
    pub group: Option<u32>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions { mode: 0o660, group: None }
    }
}

/// A listening socket and its file.
pub(crate) struct SocketFile {
    pub(crate) listener: UnixListener,
    dir: OwnedFd,
    name: String,
    /// Device and inode: what tells our file from another at the same path.
    identity: (u64, u64),
    /// Once removed, another file may have the same inode.
    removed: AtomicBool,
}

const BACKLOG: i32 = 128;
/// Sockets made by this process, for their temporary names.
static MADE: AtomicU32 = AtomicU32::new(0);

impl SocketFile {
    pub(crate) fn listen(path: &Path, options: SocketOptions) -> Result<SocketFile> {
        let (parent, name) = split(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, parent, flags, Mode::empty())
            .map_err(|e| explain(path, "its directory cannot be opened", e))?;
        check_place(path, &dir, &name)?;
        let temporary = format!(".pollux-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let made = make(&dir, &temporary, &name, options);
        if made.is_err() {
            let _ = unlinkat(&dir, &temporary, AtFlags::empty());
        }
        let (listener, stat) = made.map_err(|(step, e)| explain(path, step, e))?;
        Ok(SocketFile { listener, dir, name, identity: (stat.st_dev, stat.st_ino), removed: AtomicBool::new(false) })
    }

    /// Removes the file, if it is still the one that was made here.
    pub(crate) fn remove(&self) {
        if self.removed.swap(true, Ordering::Relaxed) {
            return;
        }
        let ours = stat_of(&self.dir, &self.name)
            .is_ok_and(|stat| stat.is_some_and(|stat| (stat.st_dev, stat.st_ino) == self.identity));
        if ours {
            let _ = unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn explain(path: &Path, step: &str, error: Errno) -> Error {
    let error = Error::from(error);
    Error::new(error.kind(), format!("socket {}: {step}: {error}", path.display()))
}

fn split(path: &Path) -> Result<(&Path, String)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let parent = path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let (Some(name), Some(parent)) = (name, parent) else {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{} is no name for a socket", path.display())));
    };
    // Clients connect by the whole path.
    SocketAddrUnix::new(path).map_err(|e| explain(path, "the path is too long for a socket (107 bytes)", e))?;
    Ok((parent, name.to_owned()))
}

fn stat_of(dir: &OwnedFd, name: &str) -> std::result::Result<Option<Stat>, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An address for a short name in a directory, whatever the length of the directory's path.
fn address(dir: &OwnedFd, name: &str) -> std::result::Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

fn unix_socket() -> std::result::Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Nothing may be there, or the socket that a process left behind which is gone.
fn check_place(path: &Path, dir: &OwnedFd, name: &str) -> Result<()> {
    let os = |e| explain(path, "the place cannot be looked at", e);
    let Some(stat) = stat_of(dir, name).map_err(os)? else { return Ok(()) };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        let error = format!("{} exists and is no socket; remove it or choose another name", path.display());
        return Err(Error::new(ErrorKind::AlreadyExists, error));
    }
    let probe = unix_socket().map_err(os)?;
    match connect(&probe, &SocketAddrUnix::new(path).map_err(os)?) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN) => {
            let error = format!("another process is listening on {}", path.display());
            Err(Error::new(ErrorKind::AddrInUse, error))
        }
        Err(error) => Err(explain(path, "a socket is there and it is unclear whether it is in use", error)),
    }
}

type Step = (&'static str, Errno);

fn make(
    dir: &OwnedFd,
    temporary: &str,
    name: &str,
    options: SocketOptions,
) -> std::result::Result<(UnixListener, Stat), Step> {
    let step = |name: &'static str| move |e: Errno| (name, e);
    let socket = unix_socket().map_err(step("no socket"))?;
    // One of the same name can only be left over from a process that had our number.
    let _ = unlinkat(dir, temporary, AtFlags::empty());
    let at = address(dir, temporary).map_err(step("the name is too long"))?;
    bind(&socket, &at).map_err(step("cannot be created"))?;
    if let Some(group) = options.group {
        let group = Some(Gid::from_raw(group));
        chownat(dir, temporary, None, group, AtFlags::SYMLINK_NOFOLLOW).map_err(step("its group cannot be set"))?;
    }
    let mode = Mode::from_raw_mode(options.mode & 0o777);
    chmodat(dir, temporary, mode, AtFlags::empty()).map_err(step("its mode cannot be set"))?;
    listen(&socket, BACKLOG).map_err(step("cannot listen"))?;
    let stat = statat(dir, temporary, AtFlags::SYMLINK_NOFOLLOW).map_err(step("cannot be looked at"))?;
    renameat(dir, temporary, dir, name).map_err(step("cannot be put in place"))?;
    Ok((UnixListener::from(socket), stat))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixStream;

    fn refused(path: &Path) -> Error {
        SocketFile::listen(path, SocketOptions::default()).err().expect("refused")
    }

    #[test]
    fn the_file_has_its_mode_and_goes_with_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = SocketFile::listen(&path, SocketOptions { mode: 0o640, group: None }).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_left_over_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = SocketFile::listen(&path, SocketOptions::default()).unwrap();
        assert_eq!(refused(&path).kind(), ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        // Somebody else's file at our path stays when we go.
        std::fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(live);
        UnixStream::connect(&path).unwrap();
        drop(other);
    }

    #[test]
    fn t41_what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, sub) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("sub"));
        std::fs::write(&file, "precious").unwrap();
        std::fs::create_dir(&sub).unwrap();
        let target = dir.path().join("target");
        drop(UnixListener::bind(&target).unwrap());
        symlink(&target, &link).unwrap();
        for path in [&file, &link, &sub] {
            assert_eq!(refused(path).kind(), ErrorKind::AlreadyExists);
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        assert_eq!(refused(&dir.path().join("none/a")).kind(), ErrorKind::NotFound);
        assert_eq!(refused(Path::new("/")).kind(), ErrorKind::InvalidInput);
        assert!(refused(&dir.path().join("x".repeat(120))).to_string().contains("too long"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "nothing is left behind");
    }

    #[test]
    fn a_name_of_the_full_length_works() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(107 - dir.path().as_os_str().len() - 1));
        let _file = SocketFile::listen(&path, SocketOptions::default()).unwrap();
        UnixStream::connect(&path).unwrap();
    }
}
