//! What a pool is read from: blocks of 4 KiB, one at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::thin::format::BLOCK;

/// A block in memory.
pub type Block = Box<[u8; BLOCK]>;

/// A medium with a pool on it.
pub trait Blocks {
    /// How many whole blocks it has.
    fn len(&self) -> u64;

    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads one; those behind the end are an error.
    ///
    /// # Errors
    /// What the medium says.
    fn read(&mut self, block: u64) -> io::Result<Block>;
}

/// A medium that can be repaired.
pub trait BlocksMut: Blocks {
    /// Writes one.
    ///
    /// # Errors
    /// What the medium says.
    fn write(&mut self, block: u64, bytes: &[u8; BLOCK]) -> io::Result<()>;

    /// All that was written before is on the medium when this returns.
    ///
    /// # Errors
    /// What the medium says: then nobody knows what is on it.
    fn barrier(&mut self) -> io::Result<()>;
}

/// Why a file or device cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A daemon serves it, or somebody else checks or repairs it.
    #[error("{0} is in use: it is locked by another process; stop the daemon that serves it, or delete the bdev")]
    InUse(String),
    /// Neither a file nor a block device.
    #[error("{0} is neither a regular file nor a block device")]
    Kind(String),
    /// The system says no.
    #[error("cannot open {0}: {1}")]
    Os(String, Errno),
}

/// A regular file or block device.
#[derive(Debug)]
pub struct FileBlocks {
    file: OwnedFd,
    len: u64,
}

impl FileBlocks {
    /// Opens it to be read. Nobody can write it meanwhile who takes a lock first, as Pollux does.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<FileBlocks, OpenError> {
        Self::with(path, OFlags::RDONLY, FlockOperation::NonBlockingLockShared)
    }

    /// Opens it to be repaired: nobody else can use it meanwhile.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_to_repair(path: &Path) -> Result<FileBlocks, OpenError> {
        Self::with(path, OFlags::RDWR, FlockOperation::NonBlockingLockExclusive)
    }

    fn with(path: &Path, access: OFlags, lock: FlockOperation) -> Result<FileBlocks, OpenError> {
        let name = || path.display().to_string();
        let os = |errno| OpenError::Os(name(), errno);
        // Looks before opening: opening a pipe would wait.
        let kind = FileType::from_raw_mode(rustix::fs::stat(path).map_err(os)?.st_mode);
        let device = kind == FileType::BlockDevice;
        if !device && kind != FileType::RegularFile {
            return Err(OpenError::Kind(name()));
        }
        // On a block device exclusive means: not while this host has it mounted or in a RAID or volume group.
        let exclusive = if device && access.contains(OFlags::RDWR) { OFlags::EXCL } else { OFlags::empty() };
        let file = match rustix::fs::open(path, access | exclusive | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::BUSY) => return Err(OpenError::InUse(name())),
            other => other.map_err(os)?,
        };
        match rustix::fs::flock(&file, lock) {
            Err(Errno::WOULDBLOCK) => return Err(OpenError::InUse(name())),
            other => other.map_err(os)?,
        }
        // Of a block device, too; and positioned reads do not mind the position.
        let bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(os)?;
        Ok(FileBlocks { file, len: bytes / BLOCK as u64 })
    }
}

impl Blocks for FileBlocks {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&mut self, block: u64) -> io::Result<Block> {
        let (mut bytes, mut done) = (Box::new([0; BLOCK]), 0);
        let offset = block.checked_mul(BLOCK as u64).ok_or(Errno::INVAL)?;
        while done < BLOCK {
            match rustix::io::pread(&self.file, &mut bytes[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(bytes)
    }
}

impl BlocksMut for FileBlocks {
    fn write(&mut self, block: u64, bytes: &[u8; BLOCK]) -> io::Result<()> {
        let mut done = 0;
        let offset = block.checked_mul(BLOCK as u64).ok_or(Errno::INVAL)?;
        while done < BLOCK {
            match rustix::io::pwrite(&self.file, &bytes[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn barrier(&mut self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_file_is_read_and_written_in_blocks() {
        let file = file(&[7; 2 * BLOCK + 100]);
        let mut blocks = FileBlocks::open_to_repair(file.path()).unwrap();
        assert_eq!((blocks.len(), blocks.is_empty()), (2, false));
        blocks.write(1, &[9; BLOCK]).unwrap();
        blocks.barrier().unwrap();
        assert_eq!((*blocks.read(0).unwrap(), *blocks.read(1).unwrap()), ([7; BLOCK], [9; BLOCK]));
        for block in [2, 3, u64::MAX] {
            assert!(blocks.read(block).is_err(), "{block}");
        }
    }

    #[test]
    fn nobody_looks_while_somebody_writes() {
        let file = file(&[0; BLOCK]);
        let one = FileBlocks::open(file.path()).unwrap();
        let two = FileBlocks::open(file.path()).unwrap();
        assert!(matches!(FileBlocks::open_to_repair(file.path()), Err(OpenError::InUse(_))));
        drop((one, two));
        let _writer = FileBlocks::open_to_repair(file.path()).unwrap();
        assert!(matches!(FileBlocks::open(file.path()), Err(OpenError::InUse(_))));
    }

    #[test]
    fn what_holds_no_pool_is_told() {
        assert!(matches!(FileBlocks::open(Path::new("/dev/null")), Err(OpenError::Kind(_))));
        assert!(matches!(FileBlocks::open(Path::new("/nowhere/at/all")), Err(OpenError::Os(_, Errno::NOENT))));
    }
}
