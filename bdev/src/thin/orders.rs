//! What the control plane may ask of a pool's engine, and the way there: a list under a lock.
//!
//! Orders are carried out one after the other, and one that has begun cannot be taken back: what it changed is in memory,
//! and waits for the base. So who has waited for long enough is told which of the two it is: the order was still in the
//! list, then it is taken out and nothing comes of it; or it has begun, then it is *late*, and what comes of it comes
//! when the base answers. While one is late no others are taken, but for those that only ask. When it has ended,
//! [`Orders::take_settled`] says so once, for whoever keeps books of what the pool holds.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::PoolError;
use super::format::{Origin, THRESHOLDS};
use super::info::PoolInfo;
use super::origin::{Holes, Way};
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
    /// A writable child of a bdev outside of the pool, which counts up to so many bytes.
    CloneBdev { of: Origin, uuid: Uuid, name: String, bytes: u64, created: u64 },
    /// It is not needed any more.
    Delete { uuid: Uuid },
    /// Another size.
    Resize { uuid: Uuid, bytes: u64, allow_shrink: bool },
    /// Another name.
    Rename { uuid: Uuid, name: String },
    /// Nobody writes it any more: it is a snapshot from now on.
    SetReadOnly { uuid: Uuid },
    /// The volume is as this snapshot of it again.
    Rollback { uuid: Uuid, to: Uuid },
    /// Most bytes that it may own, 0: no limit, and bytes that are kept for it; what is not said stays.
    Limit { uuid: Uuid, quota: Option<u64>, reserved: Option<u64> },
    /// Pages of the trees stay as they are.
    HoldPages,
    /// They need not any more.
    LetGoPages,
    /// The pool has another name.
    RenamePool { name: String },
    /// The base has so many bytes now.
    Grow { bytes: u64 },
    /// The volume has all of its own, and as much is kept for it as it has; or it does not stand on its parent any more but
    /// on what that stands on. Answered when all has been copied. `way`: to the bdev outside of the pool that it stands on.
    Inflate { uuid: Uuid, decouple: bool, progress: Arc<Progress>, way: Handed },
    /// What the volume has not itself it has from this snapshot from now on.
    SetParent { uuid: Uuid, parent: Uuid },
    /// The same with a bdev outside of the pool.
    SetOrigin { uuid: Uuid, origin: Origin },
    /// How much may be used before somebody is told: of the pool, or of the quota of a volume in percent. 1 to 100: percent,
    /// else bytes; 0: none.
    Thresholds { thresholds: [u64; THRESHOLDS] },
    /// See `Thresholds`.
    WarnAt { uuid: Uuid, percent: u8 },
    /// The base may be told of so many bytes a second that nobody needs; 0: of as many as the program thinks fit.
    DiscardRate { rate: u64 },
    /// Everything is durable.
    Commit,
    /// Everything is in the trees.
    Checkpoint,
    /// Tell.
    Info,
}

/// How far something long has come, and whether it is to end before it is done.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// So many bytes are done, of so many.
    pub(crate) fn is(&self, done: u64, total: u64) {
        self.total.store(total, Relaxed);
        self.done.store(done, Relaxed);
    }

    /// Bytes that are done, and all.
    pub(crate) fn get(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }
}

/// A way into an origin that goes with an order: whoever carries it out takes it.
#[derive(Clone, Default)]
pub(crate) struct Handed(Arc<Mutex<Option<Way>>>);

impl Handed {
    pub(crate) fn new(way: Option<Way>) -> Handed {
        Handed(Arc::new(Mutex::new(way)))
    }

    /// What is known of the holes of what it leads to.
    pub(crate) fn holes(&self) -> Option<Arc<Holes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.holes.clone()
    }

    pub(crate) fn take(&self) -> Option<Way> {
        self.take_if(|_| true)
    }

    /// Unless it is another one than is wanted.
    pub(crate) fn take_if(&self, is_wanted: impl FnOnce(&Way) -> bool) -> Option<Way> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take_if(|way| is_wanted(way))
    }
}

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handed")
    }
}

impl PartialEq for Handed {
    fn eq(&self, other: &Handed) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Handed {}

impl PartialEq for Progress {
    fn eq(&self, other: &Progress) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Progress {}

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
    reply: SyncSender<Answer>,
    /// Which one it is, for who takes it back.
    number: u64,
}

impl Asked {
    pub(crate) fn answer(&self, answer: Answer) {
        // Who does not wait any more does not want to know.
        let _ = self.reply.try_send(answer);
    }
}

/// An order that took longer than was waited for, and has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The volume that holds something else if it was carried out: it was to be rolled back, or to stand on something else.
    pub another_medium: Option<Uuid>,
}

#[derive(Default)]
struct Inner {
    asked: VecDeque<Asked>,
    last_number: u64,
    /// What the order at hand would have to be told of when it ends late, and whether it is.
    at_hand: Option<(u64, Settled)>,
    is_late: bool,
    settled: Vec<Settled>,
    closed: bool,
}

/// See the module's description.
pub(crate) struct Orders {
    inner: Mutex<Inner>,
    /// How long an answer is waited for, in nanoseconds.
    patience: AtomicU64,
}

impl Orders {
    /// Nothing is asked yet; answers are waited for as long.
    pub(crate) fn new(patience: Duration) -> Orders {
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        Orders { inner: Mutex::default(), patience: AtomicU64::new(patience) }
    }

    /// Has the engine do something, and waits for it, but not for ever. For threads that may wait.
    pub(crate) fn ask(&self, shared: &Shared, order: Order) -> Answer {
        let (number, answer) = self.put(shared, order)?;
        match answer.recv_timeout(self.patience()) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(PoolError::Closed),
            Err(RecvTimeoutError::Timeout) => self.give_up(number, &answer),
        }
    }

    /// The same without waiting: for what takes long, and says how far it is.
    pub(crate) fn send(&self, shared: &Shared, order: Order) -> Result<Receiver<Answer>, PoolError> {
        Ok(self.put(shared, order)?.1)
    }

    /// How long an answer is waited for.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_nanos(self.patience.load(Relaxed))
    }

    fn put(&self, shared: &Shared, order: Order) -> Result<(u64, Receiver<Answer>), PoolError> {
        let (reply, answer) = sync_channel(1);
        let number = {
            let mut inner = self.lock();
            if inner.closed {
                return Err(PoolError::Closed);
            }
            if inner.is_late && order != Order::Info {
                return Err(PoolError::TimedOut { seconds: self.patience().as_secs(), begun: false });
            }
            inner.last_number += 1;
            let number = inner.last_number;
            inner.asked.push_back(Asked { order, reply, number });
            number
        };
        shared.call_engine();
        Ok((number, answer))
    }

    /// It was waited for long enough.
    fn give_up(&self, number: u64, answer: &Receiver<Answer>) -> Answer {
        let mut inner = self.lock();
        // It may have come since.
        if let Ok(answer) = answer.try_recv() {
            return answer;
        }
        let waiting = inner.asked.len();
        inner.asked.retain(|asked| asked.number != number);
        let begun = inner.asked.len() == waiting;
        if begun && inner.at_hand.is_some_and(|(at_hand, _)| at_hand == number) {
            inner.is_late = true;
        }
        Err(PoolError::TimedOut { seconds: self.patience().as_secs(), begun })
    }

    /// For the engine: the next one. The one before has ended.
    pub(crate) fn next(&self) -> Option<Asked> {
        let mut inner = self.lock();
        let ended = inner.at_hand.take();
        if std::mem::take(&mut inner.is_late) {
            inner.settled.extend(ended.map(|(_, settled)| settled));
        }
        let next = inner.asked.pop_front()?;
        let another_medium = match next.order {
            Order::Rollback { uuid, .. } | Order::SetParent { uuid, .. } | Order::SetOrigin { uuid, .. } => Some(uuid),
            _ => None,
        };
        inner.at_hand = Some((next.number, Settled { another_medium }));
        Some(next)
    }

    /// For the engine: the next one of those that only ask, which need not wait for the order at hand.
    pub(crate) fn next_question(&self) -> Option<Asked> {
        let mut inner = self.lock();
        let at = inner.asked.iter().position(|asked| asked.order == Order::Info)?;
        inner.asked.remove(at)
    }

    /// Whether the order at hand takes longer than it was waited for.
    pub(crate) fn is_late(&self) -> bool {
        self.lock().is_late
    }

    /// Late orders that have ended since this was asked last.
    pub(crate) fn take_settled(&self) -> Vec<Settled> {
        std::mem::take(&mut self.lock().settled)
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
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(patience: Duration) -> (Orders, Shared) {
        (Orders::new(patience), Shared::new(65536, 1, 64))
    }

    #[test]
    fn an_order_that_was_not_begun_is_taken_back() {
        let (orders, shared) = world(Duration::from_millis(1));
        let given_up = orders.ask(&shared, Order::Commit);
        assert_eq!(given_up, Err(PoolError::TimedOut { seconds: 0, begun: false }));
        assert!(orders.next().is_none() && !orders.is_late() && orders.take_settled().is_empty());
    }

    #[test]
    fn one_that_was_begun_is_late_until_it_ends_and_meanwhile_no_others_are_taken() {
        let (orders, shared) = world(Duration::from_millis(200));
        let uuid = Uuid::from_u128(7);
        let order = Order::Rollback { uuid, to: Uuid::from_u128(8) };
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| orders.ask(&shared, order));
            let begun = loop {
                if let Some(begun) = orders.next() {
                    break begun;
                }
                std::thread::yield_now();
            };
            assert_eq!(asking.join().expect("no panic"), Err(PoolError::TimedOut { seconds: 0, begun: true }));
            assert!(orders.is_late());
            assert_eq!(orders.ask(&shared, Order::Commit), Err(PoolError::TimedOut { seconds: 0, begun: false }));
            let question = orders.send(&shared, Order::Info).expect("it may be asked");
            orders.next_question().expect("it overtakes").answer(Ok(None));
            assert_eq!(question.recv(), Ok(Ok(None)));
            assert!(orders.next_question().is_none() && orders.is_late());
            begun.answer(Ok(None));
        });
        assert!(orders.take_settled().is_empty(), "it has not ended yet");
        assert!(orders.next().is_none());
        assert_eq!(orders.take_settled(), [Settled { another_medium: Some(uuid) }]);
        assert!(orders.take_settled().is_empty() && !orders.is_late());
        assert!(orders.send(&shared, Order::Commit).is_ok());
    }

    #[test]
    fn what_is_answered_in_time_is_not_late() {
        let (orders, shared) = world(Duration::from_secs(60));
        let answer = orders.send(&shared, Order::Commit).expect("it may be asked");
        orders.next().expect("asked").answer(Ok(None));
        assert_eq!(answer.recv(), Ok(Ok(None)));
        assert!(orders.next().is_none() && orders.take_settled().is_empty());
        orders.close();
        assert_eq!(orders.ask(&shared, Order::Commit), Err(PoolError::Closed));
    }
}
