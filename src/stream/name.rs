//! The file of a stream gets its name when it is whole.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

/// Gives a file its name, for good; over something that has come meanwhile only with `force`.
///
/// # Errors
/// The system's.
pub fn give_name(partial: &Path, path: &Path, force: bool) -> io::Result<()> {
    if force {
        fs::rename(partial, path)?;
    } else {
        match rustix::fs::renameat_with(CWD, partial, CWD, path, RenameFlags::NOREPLACE) {
            // Network file systems do not know that.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => by_links(partial, path)?,
            other => other?,
        }
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    match File::open(dir.unwrap_or_else(|| Path::new("."))) {
        Ok(dir) => dir.sync_all(),
        // A folder into which one may write and not look, as boxes for others are: the name is there, when it is durable is the
        // system's business.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// The same where all that there is are links, or not even these.
fn by_links(partial: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(partial, path) {
        Ok(()) => fs::remove_file(partial),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists || fs::symlink_metadata(path).is_ok() => Err(error),
        Err(_) => fs::rename(partial, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let [partial, path] = ["partial", "path"].map(|name| dir.path().join(name));
        for give in [|from: &Path, to: &Path| give_name(from, to, false), by_links] {
            fs::write(&partial, b"new").unwrap();
            give(&partial, &path).unwrap();
            assert!(!partial.exists() && fs::read(&path).unwrap() == b"new");
            fs::write(&partial, b"other").unwrap();
            assert_eq!(give(&partial, &path).map_err(|error| error.kind()), Err(io::ErrorKind::AlreadyExists));
            assert_eq!(fs::read(&path).unwrap(), b"new");
            give_name(&partial, &path, true).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"other");
            fs::remove_file(&path).unwrap();
        }
    }
}
