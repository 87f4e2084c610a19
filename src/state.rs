//! What survives a restart, on disk: `STATE_DIR/state.json`, replaced as a whole at every change, and the lock that keeps
//! a second daemon out.
//!
//! Invariants: the file always holds one complete document, the one last acknowledged or the one about to be (written
//! beside it, synced, renamed over it, the directory synced); a file that cannot be understood is never touched; nobody
//! writes without the lock. What the document says is in `node::document`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The version of the format that is written, and the greatest that is read.
pub const VERSION: u64 = 1;

/// How long to wait for a daemon that is on its way out.
pub const LOCK_TIME: Duration = Duration::from_secs(10);

/// Why the state cannot be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon runs on the directory.
    #[error("the state directory {dir} is in use by the pollux with pid {pid}; stop that one or give another --state-dir", dir = .dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Who has it, as far as is known.
        pid: String,
    },
    /// The file holds nothing: something else has gone wrong, so it is not taken for "new".
    #[error("{file} is empty, which Pollux never writes; restore it from a copy, or remove it to start with nothing", file = .0.display())]
    Empty(PathBuf),
    /// The file is not what it should be.
    #[error("{file} cannot be read as Pollux's state ({detail}); restore it from a copy, or move it away to start with nothing", file = .file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The file is of the future.
    #[error("{file} has format version {version}, this Pollux knows up to {VERSION}; run the newer Pollux that wrote it", file = .file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its version.
        version: u64,
    },
    /// The system refused.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A state directory that is ours.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// The directory itself, kept open: no save fails for want of a descriptor once the file has been replaced.
    medium: File,
    _lock: File,
}

pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::System { what, path, source }
}

impl Store {
    /// Opens the directory (making it if it is not there) and locks it, waiting up to `patience` for whoever has it.
    ///
    /// # Errors
    /// [`StateError::Locked`] with the pid of the holder, or what the system says.
    pub fn open(dir: &Path, patience: Duration) -> Result<Store, StateError> {
        make_dir(dir).map_err(failed("create the state directory", dir))?;
        let path = dir.join("lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open the lock file", &path))?;
        let deadline = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(StateError::Locked { dir: dir.into(), pid: holder(&mut lock) });
                }
                Err(error) => return Err(failed("lock", &path)(error.into())),
            }
        }
        let write_pid = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write_pid(&mut lock).map_err(failed("write", &path))?;
        let medium = File::open(dir).map_err(failed("open", dir))?;
        Ok(Store { dir: dir.into(), medium, _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that holds the document.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// Reads the document; `None` if there is none yet.
    ///
    /// # Errors
    /// [`StateError`]; the file is as it was.
    pub fn load<D: DeserializeOwned>(&self) -> Result<Option<D>, StateError> {
        let file = self.file();
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &file)(error)),
        };
        parse(&bytes, &file).map(Some)
    }

    /// Replaces the document. When this returns, it is on the medium.
    ///
    /// # Errors
    /// What the system says; the old document is then still in place, unless syncing the directory was what failed.
    pub fn save<D: Serialize>(&self, document: &D) -> Result<(), StateError> {
        let file = self.file();
        let envelope = Envelope { format: FORMAT, version: VERSION, state: document };
        let mut text = serde_json::to_vec_pretty(&envelope).map_err(|error| failed("write", &file)(error.into()))?;
        text.push(b'\n');
        replace(&self.medium, &file, &text)
    }
}

/// Replaces a file as a whole. When this returns, the new content is on the medium; until then the old one is in place,
/// unless syncing the directory was what failed. `medium` is the file's directory.
///
/// # Errors
/// What the system says.
pub(crate) fn replace(medium: &File, file: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let mut out = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(temporary)
        .map_err(failed("create", temporary))?;
    out.write_all(bytes).map_err(failed("write", temporary))?;
    out.sync_all().map_err(failed("sync", temporary))?;
    drop(out);
    fs::rename(temporary, file).map_err(failed("replace", file))?;
    medium.sync_all().map_err(failed("sync the directory of", file))
}

/// Makes a directory and those above it, each on the medium before anything is promised to be in it.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(parent)?;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

const FORMAT: &str = "pollux-state";

#[derive(Serialize)]
struct Envelope<'a, D> {
    format: &'static str,
    version: u64,
    state: &'a D,
}

fn holder(lock: &mut File) -> String {
    let mut text = String::new();
    let read = lock.rewind().and_then(|()| lock.take(32).read_to_string(&mut text));
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => pid.to_string(),
        _ => "(unknown)".into(),
    }
}

/// Reads a document from the bytes of a state file.
///
/// # Errors
/// [`StateError::Empty`], [`StateError::Corrupt`], [`StateError::Newer`].
pub fn parse<D: DeserializeOwned>(bytes: &[u8], file: &Path) -> Result<D, StateError> {
    if bytes.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0) {
        return Err(StateError::Empty(file.into()));
    }
    let corrupt = |detail: String| StateError::Corrupt { file: file.into(), detail };
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| corrupt(error.to_string()))?;
    if value.get("format").and_then(Value::as_str) != Some(FORMAT) {
        return Err(corrupt(format!("it does not say \"format\": \"{FORMAT}\"")));
    }
    match value.get("version").and_then(Value::as_u64) {
        Some(version) if version > VERSION => return Err(StateError::Newer { file: file.into(), version }),
        Some(1) => {}
        _ => return Err(corrupt("it has no good version number".into())),
    }
    let state = value.get_mut("state").map(Value::take).ok_or_else(|| corrupt("it holds no state".into()))?;
    serde_path(state).map_err(corrupt)
}

fn serde_path<D: DeserializeOwned>(state: Value) -> Result<D, String> {
    serde_json::from_value(state).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Small {
        names: Vec<String>,
    }

    fn small(names: &[&str]) -> Small {
        Small { names: names.iter().map(|name| (*name).into()).collect() }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().join("a/b");
        let store = Store::open(&place, Duration::ZERO).expect("opened");
        assert_eq!(store.load::<Small>().expect("new"), None);
        store.save(&small(&["x"])).expect("saved");
        store.save(&small(&["x", "y"])).expect("saved");
        drop(store);
        let store = Store::open(&place, Duration::ZERO).expect("opened again");
        assert_eq!(store.load::<Small>().expect("there"), Some(small(&["x", "y"])));
    }

    #[test]
    fn what_cannot_be_understood_is_named_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), Duration::ZERO).expect("opened");
        type Expected = fn(&StateError) -> bool;
        let cases: [(&str, Expected); 7] = [
            ("", |error| matches!(error, StateError::Empty(_))),
            ("\0\0\0\0", |error| matches!(error, StateError::Empty(_))),
            ("{\"format\":\"pollux-st", |error| matches!(error, StateError::Corrupt { .. })),
            ("[1]", |error| matches!(error, StateError::Corrupt { .. })),
            (r#"{"format":"pollux-state","version":1}"#, |error| matches!(error, StateError::Corrupt { .. })),
            (r#"{"format":"pollux-state","version":1,"state":{"names":[],"more":1}}"#, |error| {
                matches!(error, StateError::Corrupt { .. })
            }),
            (r#"{"format":"pollux-state","version":2,"state":{}}"#, |error| {
                matches!(error, StateError::Newer { version: 2, .. })
            }),
        ];
        for (text, expected) in cases {
            fs::write(store.file(), text).expect("written");
            let error = store.load::<Small>().expect_err("not understood");
            assert!(expected(&error), "{text:?}: {error}");
            assert!(error.to_string().contains("state.json"), "{error}");
            assert_eq!(fs::read_to_string(store.file()).expect("there"), text);
        }
    }

    #[test]
    fn a_failed_save_keeps_the_old_document() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), Duration::ZERO).expect("opened");
        store.save(&small(&["old"])).expect("saved");
        fs::create_dir(dir.path().join("state.json.new")).expect("in the way");
        assert!(matches!(store.save(&small(&["new"])), Err(StateError::System { .. })));
        assert_eq!(store.load::<Small>().expect("there"), Some(small(&["old"])));
    }

    #[test]
    fn the_second_daemon_waits_and_then_names_the_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Store::open(dir.path(), Duration::ZERO).expect("opened");
        let began = Instant::now();
        let error = Store::open(dir.path(), Duration::from_millis(200)).expect_err("locked");
        assert!(began.elapsed() >= Duration::from_millis(200));
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        let place = dir.path().to_owned();
        let waiter = std::thread::spawn(move || Store::open(&place, LOCK_TIME).map(drop));
        std::thread::sleep(Duration::from_millis(100));
        drop(first);
        waiter.join().expect("no panic").expect("had the lock in the end");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse::<Small>(&bytes, Path::new("state.json")).is_err());
        }
    }
}
