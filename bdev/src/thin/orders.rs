//! What the control plane may ask of a pool's engine, and the way there: a list under a lock that the engine looks at
//! only when it was called.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::PoolError;
use super::info::PoolInfo;
use super::shared::Shared;

/// What is asked for. New things get their UUID, and the time at which they were made, from who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// A new volume.
    Create { uuid: Uuid, name: String, bytes: u64, reserved: u64, created: u64 },
    /// Snapshots of volumes, all at one instant.
    Snapshot { of: Vec<SnapshotOf>, created: u64 },
    /// A writable child of a snapshot.
    Clone { of: Uuid, uuid: Uuid, name: String, created: u64 },
    /// It is not needed any more.
    Delete { uuid: Uuid },
    /// Another size.
    Resize { uuid: Uuid, bytes: u64, allow_shrink: bool },
    /// Another name.
    Rename { uuid: Uuid, name: String },
    /// The volume is as this snapshot of it again.
    Rollback { uuid: Uuid, to: Uuid },
    /// Most bytes that it may own, 0: no limit, and bytes that are kept for it; what is not said stays.
    Limit { uuid: Uuid, quota: Option<u64>, reserved: Option<u64> },
    /// Everything is durable.
    Commit,
    /// Everything is in the trees.
    Checkpoint,
    /// Tell.
    Info,
}

/// One of the volumes of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotOf {
    pub(crate) volume: Uuid,
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
}

/// What came of it.
pub(crate) type Answer = Result<Option<Box<PoolInfo>>, PoolError>;

/// An order on its way.
pub(crate) struct Asked {
    pub(crate) order: Order,
    /// Has room for the answer.
    pub(crate) reply: SyncSender<Answer>,
}

impl Asked {
    pub(crate) fn answer(&self, answer: Answer) {
        // Who does not wait any more does not want to know.
        let _ = self.reply.try_send(answer);
    }
}

#[derive(Default)]
struct Inner {
    asked: VecDeque<Asked>,
    closed: bool,
}

/// See the module's description.
#[derive(Default)]
pub(crate) struct Orders(Mutex<Inner>);

impl Orders {
    /// Has the engine do something, and waits for it. For threads that may wait.
    pub(crate) fn ask(&self, shared: &Shared, order: Order) -> Answer {
        self.send(shared, order)?.recv().unwrap_or(Err(PoolError::Closed))
    }

    /// The same without waiting.
    pub(crate) fn send(&self, shared: &Shared, order: Order) -> Result<std::sync::mpsc::Receiver<Answer>, PoolError> {
        let (reply, answer) = sync_channel(1);
        {
            let mut inner = self.lock();
            if inner.closed {
                return Err(PoolError::Closed);
            }
            inner.asked.push_back(Asked { order, reply });
        }
        shared.call_engine();
        Ok(answer)
    }

    /// For the engine: the next one.
    pub(crate) fn next(&self) -> Option<Asked> {
        self.lock().asked.pop_front()
    }

    /// For the engine: it takes no more.
    pub(crate) fn close(&self) {
        let left = {
            let mut inner = self.lock();
            inner.closed = true;
            std::mem::take(&mut inner.asked)
        };
        left.iter().for_each(|asked| asked.answer(Err(PoolError::Closed)));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
