//! A toy resident, of as many parts as a real one has: asked by memory that it shares, it does I/O on a channel of its
//! own. Whenever it is asked, it writes how often it was asked into the first block of a device.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use pollux_core::{
    Bdev, Channel, Completion, Cx, Io, IoError, IoFlags, Next, Op, OpenArgs, Resident, Segment, SegmentList, Wake,
};

use crate::guest::GuestMemory;

const BLOCK: usize = 512;
const MEMORY: u64 = 4096;

/// What a [`Scribe`] shares with those who ask it.
#[derive(Default)]
pub struct Desk {
    asked: AtomicU64,
    written: AtomicU64,
    attached: AtomicBool,
    full: AtomicBool,
    waker: Mutex<Option<Arc<dyn Wake>>>,
}

impl Desk {
    /// Asks for another line; the scribe does not know until its reactor looks.
    pub fn ask_quietly(&self) {
        self.asked.fetch_add(1, SeqCst);
    }

    /// Asks for another line.
    pub fn ask(&self) {
        self.ask_quietly();
        self.wake();
    }

    /// Wakes the reactor that the scribe was on last, if there was one.
    pub fn wake(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// How many lines were asked for.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(SeqCst)
    }

    /// What was written last.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(SeqCst)
    }

    /// Whether the scribe is attached to a reactor.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached.load(SeqCst)
    }

    /// Has the scribe say that a reactor has no room for it, or no longer.
    pub fn refuse(&self, refuse: bool) {
        self.full.store(refuse, SeqCst);
    }

    /// The block as it was written last.
    #[must_use]
    pub fn block(&self) -> Vec<u8> {
        block(self.written())
    }
}

fn block(line: u64) -> Vec<u8> {
    line.to_le_bytes().repeat(BLOCK / 8)
}

/// The resident.
pub struct Scribe {
    channel: Box<dyn Channel>,
    desk: Arc<Desk>,
    memory: GuestMemory,
    list: Box<[Segment]>,
    writing: Option<u64>,
    leaving: bool,
    done: Vec<Completion>,
}

impl Scribe {
    /// A scribe that writes to the device.
    ///
    /// # Panics
    /// If the device does not open, or there is no memory.
    #[must_use]
    pub fn on(bdev: &dyn Bdev, desk: &Arc<Desk>) -> Box<dyn Resident> {
        let memory = GuestMemory::new(&[(0, MEMORY)]).expect("memory");
        // SAFETY: the memory lives as long as the scribe, which is not dropped while a write is in flight (or after the
        // ring has ended it), and nobody holds a reference into it.
        let list = Box::new([unsafe { Segment::new(memory.user(0) as usize, BLOCK) }]);
        let channel = bdev.open(OpenArgs { depth: 1, seed: 0 }).expect("the device opens");
        let desk = Arc::clone(desk);
        Box::new(Scribe { channel, desk, memory, list, writing: None, leaving: false, done: Vec::new() })
    }

    fn write(&mut self, line: u64, cx: &mut Cx<'_>) {
        self.memory.write(0, &block(line));
        // SAFETY: the list lives as long as the memory it is of.
        let data = unsafe { SegmentList::new(&self.list) };
        let io = Io { tag: line, op: Op::Write, flags: IoFlags::FUA, offset: 0, len: BLOCK as u64, data };
        self.channel.submit(io, cx);
        self.writing = Some(line);
    }
}

impl Resident for Scribe {
    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        if self.desk.full.load(SeqCst) {
            return Err(IoError::Busy);
        }
        self.channel.attach(cx)?;
        self.leaving = false;
        *self.desk.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.ring.waker());
        assert!(!self.desk.attached.swap(true, SeqCst), "it is attached already");
        Ok(())
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut did = 0;
        self.channel.poll(cx, &mut self.done);
        for completion in self.done.drain(..) {
            assert_eq!((completion.result, Some(completion.tag)), (Ok(()), self.writing.take()));
            self.desk.written.store(completion.tag, SeqCst);
            did += 1;
        }
        let asked = self.desk.asked();
        if self.writing.is_none() && !self.leaving && asked > self.desk.written() {
            self.write(asked, cx);
            did += 1;
        }
        did
    }

    fn next(&self) -> Next {
        self.channel.next()
    }

    fn ask_to_leave(&mut self) {
        assert!(!self.leaving, "it was asked already");
        self.leaving = true;
    }

    fn has_left(&self) -> bool {
        self.leaving && self.writing.is_none()
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        assert!(self.has_left(), "it has not finished");
        self.channel.detach(cx);
        assert!(self.desk.attached.swap(false, SeqCst), "it is attached");
    }
}
