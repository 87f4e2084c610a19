//! What a copy manager knows of the copies that were asked of it: how they go, and how they ended, for those who ask by
//! list identifier (SPC-5, clause 5.18.6).
//!
//! The record of a copy that has ended is kept until another copy of the nexus takes its identifier, until it is asked for
//! by RECEIVE COPY STATUS(LID1), a reset, the loss of the nexus, or [`MOST_KEPT`] later ones.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::copy::tokens::Token;
use crate::copy::{ListId, MOST_COPIES};
use crate::{Key, LogicalUnit, Nexus, Outcome, Path, Sense, code};

/// Records of copies that have ended which are kept for one nexus.
const MOST_KEPT: usize = 32;

/// The records of a unit.
#[derive(Debug, Default)]
pub(crate) struct Copies(Vec<Arc<Progress>>);

/// A copy as others see it.
#[derive(Debug)]
pub(crate) struct Progress {
    nexus: Arc<Nexus>,
    /// How often the nexus had been lost when it began.
    losses: u32,
    id: ListId,
    /// The service action that it was asked for with.
    pub(crate) action: u8,
    /// Whether its command was answered before it ended.
    pub(crate) background: bool,
    cancelled: AtomicBool,
    moved: AtomicU64,
    segments: AtomicU32,
    /// What POPULATE TOKEN has made.
    token: OnceLock<Arc<Token>>,
    end: Mutex<State>,
}

/// Whether a copy has ended, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It goes on.
    Running,
    /// By itself.
    Ended(Outcome),
    /// Somebody has ended it.
    Terminated,
}

impl Progress {
    fn is_of(&self, nexus: &Arc<Nexus>, number: u32) -> bool {
        Arc::ptr_eq(&self.nexus, nexus) && self.id.number == Some(number)
    }

    fn is_running(&self) -> bool {
        *self.lock() == State::Running
    }

    /// Whether it still means something: its nexus has not been lost since.
    fn is_valid(&self) -> bool {
        self.nexus.losses() == self.losses
    }

    /// Has it end as soon as it can.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether it is to end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire) || !self.is_valid()
    }

    pub(crate) fn add_moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_segment(&self) {
        self.segments.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes written so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Segments done so far.
    pub(crate) fn segments(&self) -> u16 {
        u16::try_from(self.segments.load(Ordering::Relaxed)).unwrap_or(u16::MAX)
    }

    /// This token was made.
    pub(crate) fn has_made(&self, token: Arc<Token>) {
        self.add_moved(token.len());
        let _ = self.token.set(token);
    }

    pub(crate) fn token(&self) -> Option<&Arc<Token>> {
        self.token.get()
    }

    /// Whether it was asked for by POPULATE TOKEN or WRITE USING TOKEN.
    pub(crate) fn is_about_tokens(&self) -> bool {
        matches!(self.action, 0x10 | 0x11)
    }

    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copies {
    /// Ends all copies and forgets them.
    pub(crate) fn end_all(&mut self) {
        self.0.drain(..).for_each(|copy| copy.cancel());
    }

    /// Forgets what nobody can ask for any more.
    fn tidy(&mut self) {
        self.0.retain(|copy| copy.is_running() || copy.is_valid());
    }

    /// Forgets the oldest of a nexus that have ended, beyond those that are kept.
    fn make_room(&mut self, nexus: &Arc<Nexus>) {
        let ended = |copy: &Arc<Progress>| Arc::ptr_eq(&copy.nexus, nexus) && !copy.is_running();
        let mut surplus = self.0.iter().filter(|copy| ended(copy)).count().saturating_sub(MOST_KEPT - 1);
        self.0.retain(|copy| {
            let goes = surplus > 0 && ended(copy);
            surplus -= usize::from(goes);
            !goes
        });
    }
}

impl LogicalUnit {
    /// Makes the record of a copy that is about to begin. An earlier one of this identifier is forgotten.
    pub(crate) fn begin_copy(
        &self,
        path: &Path,
        id: ListId,
        action: u8,
        background: bool,
    ) -> Result<Arc<Progress>, Outcome> {
        let nexus = path.nexus();
        let mut cold = self.lock();
        let copies = &mut cold.copies;
        copies.tidy();
        forget_ended(copies, nexus, id);
        if id.number.is_some_and(|number| copies.0.iter().any(|copy| copy.is_of(nexus, number))) {
            return Err(Outcome::check(Sense::new(Key::IllegalRequest, code::OPERATION_IN_PROGRESS)));
        }
        let running =
            copies.0.iter().filter(|copy| copy.nexus.initiator() == nexus.initiator() && copy.is_running()).count();
        if running >= usize::from(MOST_COPIES) {
            return Err(Outcome::BUSY);
        }
        copies.make_room(nexus);
        let progress = Arc::new(Progress {
            nexus: nexus.clone(),
            losses: nexus.losses(),
            id,
            action,
            background,
            cancelled: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            segments: AtomicU32::new(0),
            token: OnceLock::new(),
            end: Mutex::new(State::Running),
        });
        copies.0.push(progress.clone());
        Ok(progress)
    }

    /// A copy of this identifier comes: what was kept of an earlier one is forgotten, whatever becomes of it.
    pub(crate) fn forget_copy(&self, path: &Path, id: ListId) {
        forget_ended(&mut self.lock().copies, path.nexus(), id);
    }

    /// A copy has ended. What does not say how is terminated.
    pub(crate) fn end_copy(&self, progress: &Arc<Progress>, how: State) {
        let mut cold = self.lock();
        *progress.lock() = how;
        if !progress.id.hold {
            cold.copies.0.retain(|copy| !Arc::ptr_eq(copy, progress));
        }
    }

    /// The copy that the nexus of this path calls so.
    pub(crate) fn find_copy(&self, path: &Path, number: u32) -> Option<Arc<Progress>> {
        let cold = self.lock();
        let found = cold.copies.0.iter().find(|copy| copy.is_of(path.nexus(), number) && copy.is_valid());
        found.cloned()
    }

    /// Copies of the initiator's that go on here.
    #[cfg(test)]
    pub(crate) fn copies_kept(&self) -> usize {
        self.lock().copies.0.len()
    }
}

fn forget_ended(copies: &mut Copies, nexus: &Arc<Nexus>, id: ListId) {
    if let Some(number) = id.number {
        copies.0.retain(|copy| copy.is_running() || !copy.is_of(nexus, number));
    }
}

impl Progress {
    /// Which of the asking nexus' copies it is.
    pub(crate) fn id(&self) -> ListId {
        self.id
    }
}
