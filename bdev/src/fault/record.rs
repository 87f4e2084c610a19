//! Records what reaches the base, and in which order: so that it can be told later what the base might hold if the power
//! had failed at any instant.
//!
//! Every change and flush is an entry when it is submitted to the base, with its data, and another one when it has
//! completed. What a change's completion has that a flush comes behind is durable when that flush has completed; so is a
//! change with FUA by itself. Of what is not, a power cut may leave anything.
//!
//! ```text
//! entry, 32 bytes, numbers little endian:
//!   0  "PLXR"
//!   4  kind: 0 begin, 1 write, 2 write zeroes, 3 discard, 4 flush, 5 done, 6 failed
//!   5  1: FUA; 2: all or nothing (atomic)
//!   6  zeroes
//!   8  number of the request, rising, from 1 after each begin; 5 and 6 name one; 0 in a begin
//!  16  offset in bytes; 0 of a flush and an end
//!  24  length in bytes; of a begin the size of the base
//! a write's data, `length` bytes, follows
//! ```
//!
//! Each time that the device is made a begin is appended; what was in flight before it never ended.
//!
//! Invariants: entries are in the order of the events, over all reactors; a submission is recorded before the base is
//! asked, a completion before anybody is told. What is recorded of a write is what the base is given: guests may change
//! their memory meanwhile, so data is copied once and goes down from the copy. No reactor waits for the file: a thread
//! writes it, and a record that it is too slow for ends, and says so.

mod writer;

use std::sync::Arc;

use pollux_core::{
    Alignment, Bdev, Channel, Completion, Cx, Erasure, Extent, Io, IoError, IoFlags, Lane, Next, Op, OpenArgs,
    OpenError, Shape, Slab, Tag,
};
use serde_json::Value;

use crate::BdevError;
use crate::measured::{tag_of, token_of};
use crate::memory::Buffer;
use writer::{Entry, Kind, Writer};

/// A base whose changes are recorded.
pub(super) struct Recorded {
    base: Arc<dyn Bdev>,
    writer: Arc<Writer>,
}

impl Recorded {
    /// Goes on with the record in a file, or begins it.
    pub(super) fn new(base: Arc<dyn Bdev>, path: &str) -> Result<Self, BdevError> {
        let writer = Writer::open(path)?;
        writer.event(&Entry {
            kind: Kind::Begin,
            flags: IoFlags::empty(),
            id: 0,
            offset: 0,
            len: base.shape().bytes(),
        });
        Ok(Recorded { base, writer })
    }

    /// For listings.
    pub(super) fn shown(&self) -> Value {
        self.writer.shown()
    }
}

impl Bdev for Recorded {
    fn shape(&self) -> Shape {
        self.base.shape()
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        self.base.extent(offset, len)
    }

    fn extent_waits(&self) -> bool {
        self.base.extent_waits()
    }

    fn lane(&self) -> Option<Lane> {
        self.base.lane()
    }

    fn erasure(&self) -> Erasure {
        self.base.erasure()
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let base = self.base.open(args)?;
        let requests = Slab::new(base.depth());
        Ok(Box::new(RecordChannel { base, writer: self.writer.clone(), requests, below: Vec::new() }))
    }
}

/// A request below.
struct Request {
    tag: Tag,
    /// Its number in the record, if it is there.
    id: Option<u64>,
    /// A write's data.
    buffer: Option<Buffer>,
}

struct RecordChannel {
    base: Box<dyn Channel>,
    writer: Arc<Writer>,
    requests: Slab<Request>,
    below: Vec<Completion>,
}

impl Channel for RecordChannel {
    fn depth(&self) -> u32 {
        self.requests.capacity()
    }

    fn alignment(&self) -> Alignment {
        self.base.alignment()
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.base.attach(cx)
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        self.base.detach(cx);
    }

    fn submit(&mut self, mut io: Io, cx: &mut Cx<'_>) {
        let buffer = (io.op == Op::Write).then(|| Buffer::copy_of(io.data.as_slice(), io.len as usize));
        if let Some(buffer) = &buffer {
            io.data = buffer.list();
        }
        let id = self.writer.submitted(&io);
        let request = Request { tag: io.tag, id, buffer };
        let token = self.requests.insert(request).ok().expect("the submitter keeps to the depth");
        self.base.submit(Io { tag: tag_of(token), ..io }, cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        let mut below = std::mem::take(&mut self.below);
        self.base.poll(cx, &mut below);
        for Completion { tag, result } in below.drain(..) {
            let request = self.requests.remove(token_of(tag)).expect("each tag completes once");
            if let Some(id) = request.id {
                self.writer.ended(id, result.is_ok());
            }
            done.push(Completion { tag: request.tag, result });
        }
        self.below = below;
    }

    fn next(&self) -> Next {
        self.base.next()
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        if let Some((token, _)) = self.requests.iter_mut().find(|(_, request)| request.tag == tag) {
            self.base.cancel(tag_of(token), cx);
        }
    }
}

impl Drop for RecordChannel {
    fn drop(&mut self) {
        // Dropped in the middle: the base may still use them.
        self.requests.iter_mut().filter_map(|(_, request)| request.buffer.take()).for_each(Buffer::leak);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::rules::{Effect, Rule};
    use crate::testing::{Rig, model, pattern, ram};
    use crate::{Device, Fault, FaultSpec};

    fn recorded(base: Arc<dyn Device>, path: &std::path::Path) -> Fault {
        let record = Some(path.to_str().unwrap().to_owned());
        Fault::new(&FaultSpec { record, ..FaultSpec::new("ram") }, base).unwrap()
    }

    /// Kind, flags, number, offset, length and data of each entry.
    fn entries(path: &std::path::Path) -> Vec<(u8, u8, u64, u64, u64, Vec<u8>)> {
        let bytes = std::fs::read(path).unwrap();
        let (mut at, mut all) = (0, Vec::new());
        while at < bytes.len() {
            let head = &bytes[at..at + 32];
            assert_eq!((&head[..4], &head[6..8]), (&b"PLXR"[..], &[0, 0][..]));
            let number = |from: usize| u64::from_le_bytes(head[from..from + 8].try_into().unwrap());
            let data = if head[4] == 1 { number(24) as usize } else { 0 };
            let data = bytes[at + 32..at + 32 + data].to_vec();
            at += 32 + data.len();
            all.push((head[4], head[5], number(8), number(16), number(24), data));
        }
        all
    }

    #[test]
    fn it_is_its_base() {
        model::check_cases(8, || {
            let dir = tempfile::tempdir().unwrap();
            (Arc::new(recorded(ram(512, 512), &dir.path().join("record"))) as Arc<dyn Device>, dir)
        });
    }

    #[test]
    fn changes_are_recorded_with_their_data_when_they_begin_and_when_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let base = Arc::new(Fault::new(&FaultSpec::new("ram"), ram(512, 64)).unwrap());
        let device = recorded(base.clone(), &path);
        let mut rig = Rig::new(&device);
        let data = pattern(1, 1024);
        rig.write(512, &data, IoFlags::FUA).unwrap();
        assert_eq!(rig.read(512, 1024).unwrap(), data);
        rig.without_data(Op::WriteZeroes, IoFlags::empty(), 0, 512).unwrap();
        rig.without_data(Op::Discard, IoFlags::empty(), 1024, 512).unwrap();
        rig.flush().unwrap();
        base.inject(Some(Op::Write), Rule::new(Effect::Fail(IoError::Medium), 1)).unwrap();
        assert_eq!(rig.write(4096, &[7; 512], IoFlags::empty()), Err(IoError::Medium));
        drop(rig);
        let shown = device.driver_specific()["error_disk"]["record"].clone();
        assert_eq!((&shown["events"], &shown["error"]), (&11.into(), &Value::Null), "{shown}");
        drop(device);
        let none = Vec::new;
        let size = 64 * 512;
        let first = vec![
            (0, 0, 0, 0, size, none()),
            (1, 1, 1, 512, 1024, data),
            (5, 0, 1, 0, 0, none()),
            (2, 0, 2, 0, 512, none()),
            (5, 0, 2, 0, 0, none()),
            (3, 0, 3, 1024, 512, none()),
            (5, 0, 3, 0, 0, none()),
            (4, 0, 4, 0, 0, none()),
            (5, 0, 4, 0, 0, none()),
            (1, 0, 5, 4096, 512, vec![7; 512]),
            (6, 0, 5, 0, 0, none()),
        ];
        assert_eq!(entries(&path), first);

        // A device that is made again goes on.
        drop(recorded(base, &path));
        assert_eq!(entries(&path), [first, vec![(0, 0, 0, 0, size, none())]].concat());
    }

    #[test]
    fn a_file_that_holds_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        std::fs::write(&path, "precious").unwrap();
        let record = |path: &std::path::Path| FaultSpec {
            record: Some(path.to_str().unwrap().to_owned()),
            ..FaultSpec::new("ram")
        };
        assert_eq!(Fault::new(&record(&path), ram(512, 64)).err().unwrap().reason(), "invalid");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let nowhere = dir.path().join("nowhere/record");
        assert_eq!(Fault::new(&record(&nowhere), ram(512, 64)).err().unwrap().reason(), "no_such_file");
    }

    #[test]
    fn what_is_cancelled_ends_in_the_record_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let device = recorded(ram(512, 16), &path);
        let mut rig = Rig::new(&device);
        rig.submit(Io::without_data(3, Op::Discard, IoFlags::empty(), 0, 512));
        rig.cancel(3);
        assert_eq!(rig.finish(), [Completion { tag: 3, result: Err(IoError::Aborted) }]);
        drop(rig);
        drop(device);
        assert_eq!(entries(&path).iter().map(|entry| entry.0).collect::<Vec<_>>(), [0, 3, 6]);
    }
}
