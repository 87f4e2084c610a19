//! [`SimRing`]: one reactor's ring in the simulated world. It holds its users to the contract of [`Ring`]: no more
//! entries in flight than announced, no token twice, nothing removed that is still in use.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use pollux_core::{ClientId, Done, Entry, FileSlot, Ring, RingError, Wake};

use super::SimWorld;

/// One reactor's ring. Its entries complete when the world's clock gets there.
pub struct SimRing {
    world: SimWorld,
    id: usize,
    wake: Arc<SimWake>,
}

/// Has the ring's reactor take one more turn before it sleeps, and no more than that: a real one may take more.
#[derive(Default)]
struct SimWake(AtomicBool);

impl Wake for SimWake {
    fn wake(&self) {
        self.0.store(true, SeqCst);
    }
}

impl SimRing {
    pub(super) fn new(world: SimWorld, id: usize) -> Self {
        SimRing { world, id, wake: Arc::default() }
    }

    /// Whether its reactor was woken since its last turn began.
    #[must_use]
    pub fn is_woken(&self) -> bool {
        self.wake.0.load(SeqCst)
    }

    /// Its reactor takes a turn: what was changed before is seen in it.
    pub(super) fn begins_turn(&self) {
        self.wake.0.store(false, SeqCst);
    }

    /// Which of the world's rings this is.
    #[must_use]
    pub const fn id(&self) -> usize {
        self.id
    }

    /// Whether completions wait to be reaped.
    #[must_use]
    pub fn has_completions(&self) -> bool {
        self.world.lock().rings[self.id].clients.iter().flatten().any(|c| !c.done.is_empty())
    }
}

/// A client of a ring.
pub(super) struct Client {
    pub(super) depth: u32,
    pub(super) in_flight: u32,
    pub(super) done: Vec<Done>,
}

/// The world's side of a ring.
#[derive(Default)]
pub(super) struct RingState {
    pub(super) clients: Vec<Option<Client>>,
    pub(super) files: Vec<Option<RawFd>>,
}

impl RingState {
    pub(super) fn client(&mut self, id: ClientId) -> &mut Client {
        self.clients[usize::from(id.0)].as_mut().expect("the client is registered")
    }

    pub(super) fn file(&self, slot: FileSlot) -> RawFd {
        self.files[slot.0 as usize].expect("the file is registered")
    }
}

fn place<T>(all: &mut Vec<Option<T>>, value: T) -> usize {
    let free = all.iter().position(Option::is_none).unwrap_or_else(|| {
        all.push(None);
        all.len() - 1
    });
    all[free] = Some(value);
    free
}

impl Ring for SimRing {
    fn now_ns(&self) -> u64 {
        self.world.now()
    }

    /// It may be called from any thread, but a run depends on nothing but its seed only if the machine's own thread calls
    /// it: what others change in memory is seen by whoever looks at it first.
    fn waker(&self) -> Arc<dyn Wake> {
        Arc::<SimWake>::clone(&self.wake)
    }

    fn add_client(&mut self, depth: u32) -> Result<ClientId, RingError> {
        let clients = &mut self.world.lock().rings[self.id].clients;
        Ok(ClientId(place(clients, Client { depth, in_flight: 0, done: Vec::new() }) as u16))
    }

    fn remove_client(&mut self, client: ClientId) {
        let mut world = self.world.lock();
        let state = &mut world.rings[self.id];
        assert_eq!(state.client(client).in_flight, 0, "a client leaves with nothing in flight");
        assert!(state.client(client).done.is_empty(), "a client leaves with everything reaped");
        state.clients[usize::from(client.0)] = None;
    }

    fn add_file(&mut self, fd: RawFd) -> Result<FileSlot, RingError> {
        let mut world = self.world.lock();
        if !world.knows(fd) {
            return Err(RingError::Os(libc::EBADF));
        }
        Ok(FileSlot(place(&mut world.rings[self.id].files, fd) as u32))
    }

    fn remove_file(&mut self, file: FileSlot) {
        let mut world = self.world.lock();
        assert!(!world.file_in_use(self.id, file), "a file leaves with nothing in flight");
        assert!(world.rings[self.id].files[file.0 as usize].take().is_some(), "the file is registered");
    }

    fn push(&mut self, entry: Entry) {
        self.world.lock().push(self.id, entry);
    }

    fn reap(&mut self, client: ClientId, done: &mut Vec<Done>) {
        done.append(&mut self.world.lock().rings[self.id].client(client).done);
    }
}
