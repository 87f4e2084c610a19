//! The file of a record, and the thread that writes it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use pollux_core::segment::copy_from;
use pollux_core::{Io, IoFlags, Op};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::BdevError;

const MAGIC: &[u8; 4] = b"PLXR";
/// Most that waits to be written, in bytes. A record that has more waiting ends.
const WAITING: usize = 256 << 20;

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Begin = 0,
    Write = 1,
    Zeroes = 2,
    Discard = 3,
    Flush = 4,
    Done = 5,
    Failed = 6,
}

/// An entry but for a write's data.
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) flags: IoFlags,
    pub(super) id: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Entry {
    fn put(&self, to: &mut Vec<u8>) {
        let flag = |flag, bit| if self.flags.contains(flag) { bit } else { 0 };
        to.extend_from_slice(MAGIC);
        to.extend_from_slice(&[self.kind as u8, flag(IoFlags::FUA, 1) | flag(IoFlags::ATOMIC, 2), 0, 0]);
        [self.id, self.offset, self.len].iter().for_each(|number| to.extend_from_slice(&number.to_le_bytes()));
    }
}

#[derive(Default)]
struct State {
    /// What is to be written next, and how many entries that is.
    waiting: Vec<u8>,
    entries: u64,
    /// Entries so far, and those of them that are in the file.
    events: u64,
    written: u64,
    /// The last request's number.
    last: u64,
    /// Why the record has ended.
    error: Option<String>,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes entries from any thread. When it is dropped all of them are in the file.
pub(super) struct Writer {
    path: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Opens a file that is empty, not there, or a record.
    pub(super) fn open(path: &str) -> Result<Arc<Writer>, BdevError> {
        let failed = |error: io::Error| BdevError::os("open", path, Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let file = File::options().read(true).append(true).create(true).open(path).map_err(failed)?;
        let mut magic = Vec::new();
        (&file).take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(failed)?;
        if !magic.is_empty() && magic != MAGIC {
            return Err(BdevError::invalid("record", format!("{path} holds something else; name a new file")));
        }
        let shared = Arc::<Shared>::default();
        let mine = shared.clone();
        let thread = std::thread::Builder::new().name("record".into()).spawn(move || write(&mine, &file));
        Ok(Arc::new(Writer { path: path.to_owned(), shared, thread: Some(thread.map_err(failed)?) }))
    }

    fn add(&self, state: &mut State, put: impl FnOnce(&mut Vec<u8>)) -> bool {
        if state.error.is_some() {
            return false;
        }
        if state.waiting.len() > WAITING {
            state.error = Some("the file is written too slowly: entries are missing".into());
            return false;
        }
        put(&mut state.waiting);
        state.entries += 1;
        state.events += 1;
        self.shared.wake.notify_one();
        true
    }

    /// Adds an entry without data.
    pub(super) fn event(&self, entry: &Entry) {
        self.add(&mut self.shared.state(), |to| entry.put(to));
    }

    /// Adds a request that is submitted; its number, if it is one that changes something, or a flush.
    pub(super) fn submitted(&self, io: &Io) -> Option<u64> {
        let kind = match io.op {
            Op::Read => return None,
            Op::Write => Kind::Write,
            Op::WriteZeroes => Kind::Zeroes,
            Op::Discard => Kind::Discard,
            Op::Flush => Kind::Flush,
        };
        let mut state = self.shared.state();
        state.last += 1;
        let id = state.last;
        let (offset, len) = if io.op == Op::Flush { (0, 0) } else { (io.offset, io.len) };
        let added = self.add(&mut state, |to| {
            Entry { kind, flags: io.flags, id, offset, len }.put(to);
            let at = to.len();
            if io.op == Op::Write {
                to.resize(at + io.len as usize, 0);
                copy_from(io.data.as_slice(), 0, &mut to[at..]);
            }
        });
        added.then_some(id)
    }

    /// Adds the end of a request.
    pub(super) fn ended(&self, id: u64, well: bool) {
        let kind = if well { Kind::Done } else { Kind::Failed };
        self.event(&Entry { kind, flags: IoFlags::empty(), id, offset: 0, len: 0 });
    }

    /// For listings.
    pub(super) fn shown(&self) -> Value {
        let state = self.shared.state();
        json!({ "file": self.path, "events": state.events, "written": state.written, "error": state.error })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.wake.notify_one();
        // It has nothing to say that the state does not.
        self.thread.take().map(JoinHandle::join);
    }
}

/// Writes what waits, as long as there may be more.
fn write(shared: &Shared, mut file: &File) {
    let mut bytes = Vec::new();
    loop {
        let mut state = shared.state();
        while state.waiting.is_empty() && !state.closing {
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.waiting.is_empty() {
            return;
        }
        std::mem::swap(&mut bytes, &mut state.waiting);
        let entries = std::mem::take(&mut state.entries);
        drop(state);
        let result = file.write_all(&bytes);
        bytes.clear();
        let mut state = shared.state();
        match result {
            Ok(()) => state.written += entries,
            Err(error) => {
                state.error = Some(format!("writing the file failed: {error}"));
                state.waiting.clear();
            }
        }
    }
}
