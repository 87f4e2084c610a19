//! What a worker may be told, by the control plane and by other workers. Everything that ends later is answered through
//! a [`Reply`]: a channel with room for the answer, so that answering never blocks a reactor.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use crossbeam::channel::Sender;
use pollux_core::{Channel, CopyError, IoError, IoStats, Resident, Tag};
use pollux_scsi::{Class, LogicalUnit, Outcome, Path, Preempted, Saved};
use pollux_vhost_user::{Queue, SessionHandle};

use crate::copies::CopyId;
use crate::errands::{ErrandId, HelpersHandle};
use crate::fence::Mark;
use crate::parked::Home;
use crate::port::Slot;
use crate::request::{Event, Response};
use crate::residents::{EvictReply, HostReply, HostedId};
use crate::{LunStats, QueueStats};

/// Names a controller on all workers: a place that is used again, and a count that makes the name unique, so that a
/// queue that is late in ending can never reach the LUNs of a controller that came after its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ControllerId {
    pub(crate) place: u32,
    pub(crate) count: u32,
}

impl ControllerId {
    pub(crate) const fn place(self) -> usize {
        self.place as usize
    }
}
/// Names a logical unit on all workers.
pub(crate) type UnitId = u32;

/// Names one virtqueue of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueueKey {
    /// The session.
    pub(crate) session: u64,
    /// The queue's index: 0 control, 1 events, 2 and up requests.
    pub(crate) index: u16,
}

/// Where an answer goes. Has room for it, so that sending does not block.
pub(crate) struct Reply<T>(Sender<T>);

impl<T> Reply<T> {
    /// A reply into a channel that has room for every answer it will get.
    pub(crate) const fn new(sender: Sender<T>) -> Self {
        Reply(sender)
    }

    /// Answers. If nobody waits any more, the answer is dropped.
    pub(crate) fn send(self, value: T) {
        let _ = self.0.try_send(value);
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// A queue that has stopped: nothing of it is in flight and nothing touches guest memory for it any more.
pub(crate) struct Stopped {
    /// The next entry of the available ring that was not taken.
    pub(crate) next_avail: u16,
    /// The ring; dropping it may unmap guest memory, which is the receiver's business and not a reactor's.
    #[allow(dead_code)] // held for its drop
    pub(crate) queue: Queue,
    #[allow(dead_code)] // held for its drop
    pub(crate) slots: Box<[Slot]>,
}

/// A queue to be served.
pub(crate) struct NewQueue {
    pub(crate) key: QueueKey,
    pub(crate) controller: ControllerId,
    pub(crate) features: u64,
    pub(crate) queue: Queue,
    /// Made by the session, so that the reactor does not wait for memory: one for each descriptor head.
    pub(crate) slots: Box<[Slot]>,
    pub(crate) kick: Arc<OwnedFd>,
    pub(crate) call: Option<Arc<OwnedFd>>,
    pub(crate) session: SessionHandle,
    /// Why the worker gave the session up, for the log.
    pub(crate) failure: Arc<OnceLock<String>>,
    pub(crate) stats: Arc<QueueStats>,
}

/// Which commands a task management function, PREEMPT AND ABORT, or the control plane is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The command of this tag.
    Task { session: u64, target: u8, lun: u16, tag: u64 },
    /// All commands of the session on one unit.
    TaskSet { session: u64, target: u8, lun: u16 },
    /// All commands of the session on all units of one target.
    Nexus { session: u64, target: u8 },
    /// All commands of everybody on one unit; those that the session has made available before it asked, too.
    Unit { session: u64, unit: UnitId },
    /// All commands of one queue, those that wait to be served too.
    Queue { key: QueueKey },
    /// All commands on a LUN that is to go.
    Leaving { controller: ControllerId, target: u8, lun: u16 },
    /// All commands on a unit whose device is to go.
    Device { unit: UnitId },
    /// All commands of initiators that were preempted on one unit. What they have made available and nobody has taken yet
    /// is left alone: it meets the reservation.
    Preempted { unit: UnitId, preempted: Preempted },
}

impl Scope {
    /// What it is to the commands in it.
    pub(crate) const fn class(self) -> Class {
        if matches!(self, Scope::Preempted { .. }) { Class::Preemption } else { Class::Management }
    }

    /// The session that asks and whose commands are taken out of its rings first, if any are.
    pub(crate) const fn session(self) -> Option<u64> {
        match self {
            Scope::Task { session, .. }
            | Scope::TaskSet { session, .. }
            | Scope::Nexus { session, .. }
            | Scope::Unit { session, .. } => Some(session),
            Scope::Queue { .. } | Scope::Leaving { .. } | Scope::Device { .. } | Scope::Preempted { .. } => None,
        }
    }
}

/// Names a task management function in progress: the worker that runs it and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AbortId {
    pub(crate) worker: usize,
    pub(crate) number: u64,
}

/// A message to a worker.
#[derive(Debug)]
pub struct Message(pub(crate) Body);

pub(crate) enum Body {
    OpenUnit {
        unit: UnitId,
        logical: Arc<LogicalUnit>,
        channel: Option<Box<dyn Channel>>,
        stats: Arc<IoStats>,
        /// How other threads send messages.
        home: Home,
        /// Who does what may wait.
        helpers: HelpersHandle,
        reply: Reply<Result<(), IoError>>,
    },
    /// The device below has appeared or gone. Answers with the old channel when nothing of it is in flight.
    ReplaceChannel {
        unit: UnitId,
        channel: Option<Box<dyn Channel>>,
        reply: Reply<Result<Option<Box<dyn Channel>>, IoError>>,
    },
    /// No LUN leads to the unit any more.
    CloseUnit {
        unit: UnitId,
        reply: Reply<Result<Option<Box<dyn Channel>>, IoError>>,
    },
    AddLun {
        controller: ControllerId,
        target: u8,
        lun: u16,
        unit: UnitId,
        path: Arc<Path>,
        stats: Arc<LunStats>,
        reply: Reply<bool>,
    },
    /// Answers when nothing of the LUN is in flight.
    RemoveLun {
        controller: ControllerId,
        target: u8,
        lun: u16,
        reply: Reply<()>,
    },
    /// Ends what is in flight on the LUN as soon as the device can.
    CancelLun {
        controller: ControllerId,
        target: u8,
        lun: u16,
    },
    /// Ends what is in flight on the unit as soon as the device can.
    CancelUnit {
        unit: UnitId,
    },
    /// The session has ended: nothing waits for it any more, and no device keeps anything for it.
    ForgetSession {
        controller: ControllerId,
        session: u64,
    },
    /// Answered when the queue is there, so that whoever asks this worker for anything from then on finds it.
    StartQueue {
        queue: Box<NewQueue>,
        reply: Reply<()>,
    },
    /// Asks for room for a queue that is about to come from elsewhere. It is kept until the queue comes or does not.
    KeepRoom {
        key: QueueKey,
        reply: Reply<bool>,
    },
    /// The queue does not come.
    FreeRoom {
        key: QueueKey,
    },
    /// Answers when later signals go to the new descriptor.
    SetCall {
        key: QueueKey,
        call: Option<Arc<OwnedFd>>,
        reply: Reply<()>,
    },
    /// Answers when nothing of the queue is in flight; `None` if there is no such queue.
    StopQueue {
        key: QueueKey,
        reply: Reply<Option<Stopped>>,
    },
    /// Asks for a queue that is to be served by another reactor. Nothing is taken from it any more; answers with it when
    /// nothing of it is in flight, with `None` if it is not there or the offer was withdrawn.
    OfferQueue {
        key: QueueKey,
        reply: Reply<Option<Box<NewQueue>>>,
    },
    /// The queue stays after all, unless it has been given away already. The offer is answered either way.
    WithdrawOffer {
        key: QueueKey,
    },
    /// Takes no task management from a control queue until it is released: the session's queues are about to move, and a
    /// function has to find them. Answers false, and holds nothing, if one is at work.
    HoldControl {
        key: QueueKey,
        reply: Reply<bool>,
    },
    ReleaseControl {
        key: QueueKey,
    },
    /// Ends what is in flight on the queue as soon as the devices can.
    CancelQueue {
        key: QueueKey,
    },
    Event {
        controller: ControllerId,
        event: Event,
    },
    /// From a worker: end (or, with `how` = `None`, count) the commands in scope, and say so.
    Abort {
        id: AbortId,
        scope: Scope,
        how: Option<Response>,
    },
    /// The answer to that, when the last of them has ended.
    AbortDone {
        id: AbortId,
        count: u32,
    },
    /// From the worker itself: have the unit's device reset for this function.
    ResetDevice {
        unit: UnitId,
        id: AbortId,
    },
    /// From a worker: say when what was under way before the mark has ended. New commands wait by themselves.
    Fence {
        unit: UnitId,
        mark: Mark,
        from: usize,
    },
    /// The answer to that.
    Fenced {
        unit: UnitId,
        mark: Mark,
    },
    /// The answer is not needed any more.
    Unfence {
        unit: UnitId,
        mark: Mark,
    },
    /// What commands wait for may be there: claims or turns of a unit, or memory.
    Look {
        unit: Option<UnitId>,
    },
    /// A unit's device is back, and a format or a sanitize is to be done.
    AdoptWipe {
        unit: UnitId,
    },
    /// A format or a sanitize of a unit has ended: which one.
    WipeEnded {
        unit: UnitId,
        number: u64,
        outcome: Outcome,
    },
    /// What a parked command has changed is saved, or could not be.
    Saved {
        tag: Tag,
        saved: Saved,
    },
    /// From a helper thread: devices have copied so many bytes together, or why not.
    CopiedTogether {
        copy: CopyId,
        bytes: u64,
        result: Result<(), CopyError>,
    },
    /// Answers when the resident is attached, or gives it back.
    Host {
        id: HostedId,
        resident: Box<dyn Resident>,
        reply: HostReply,
    },
    /// Answers with the resident when it has left and is detached.
    Evict {
        id: HostedId,
        reply: EvictReply,
    },
    /// From a helper thread: what a command of this session was away for has been found out, or could not be.
    ErrandDone {
        id: ErrandId,
        tag: Tag,
        session: u64,
        data: Option<Vec<u8>>,
    },
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::OpenUnit { unit, .. } => write!(f, "OpenUnit({unit})"),
            Body::ReplaceChannel { unit, channel, .. } => write!(f, "ReplaceChannel({unit}, {})", channel.is_some()),
            Body::CloseUnit { unit, .. } => write!(f, "CloseUnit({unit})"),
            Body::AddLun { controller, target, lun, unit, .. } => {
                write!(f, "AddLun({}:{target}:{lun} -> {unit})", controller.place)
            }
            Body::RemoveLun { controller, target, lun, .. } => {
                write!(f, "RemoveLun({}:{target}:{lun})", controller.place)
            }
            Body::CancelLun { controller, target, lun } => write!(f, "CancelLun({}:{target}:{lun})", controller.place),
            Body::CancelUnit { unit } => write!(f, "CancelUnit({unit})"),
            Body::ForgetSession { session, .. } => write!(f, "ForgetSession({session})"),
            Body::StartQueue { queue, .. } => write!(f, "StartQueue({:?})", queue.key),
            Body::KeepRoom { key, .. } => write!(f, "KeepRoom({key:?})"),
            Body::FreeRoom { key } => write!(f, "FreeRoom({key:?})"),
            Body::SetCall { key, call, .. } => write!(f, "SetCall({key:?}, {})", call.is_some()),
            Body::StopQueue { key, .. } => write!(f, "StopQueue({key:?})"),
            Body::OfferQueue { key, .. } => write!(f, "OfferQueue({key:?})"),
            Body::WithdrawOffer { key } => write!(f, "WithdrawOffer({key:?})"),
            Body::HoldControl { key, .. } => write!(f, "HoldControl({key:?})"),
            Body::ReleaseControl { key } => write!(f, "ReleaseControl({key:?})"),
            Body::CancelQueue { key } => write!(f, "CancelQueue({key:?})"),
            Body::Event { controller, event } => write!(f, "Event({}, {event:?})", controller.place),
            Body::Abort { id, scope, how } => write!(f, "Abort({id:?}, {scope:?}, {how:?})"),
            Body::ResetDevice { unit, id } => write!(f, "ResetDevice({unit}, {id:?})"),
            Body::Fence { unit, mark, from } => write!(f, "Fence({unit}, {mark:?}, {from})"),
            Body::Fenced { unit, mark } => write!(f, "Fenced({unit}, {mark:?})"),
            Body::Unfence { unit, mark } => write!(f, "Unfence({unit}, {mark:?})"),
            Body::Look { unit } => write!(f, "Look({unit:?})"),
            Body::AdoptWipe { unit } => write!(f, "AdoptWipe({unit})"),
            Body::WipeEnded { unit, number, outcome } => write!(f, "WipeEnded({unit}, {number}, {outcome:?})"),
            Body::AbortDone { id, count } => write!(f, "AbortDone({id:?}, {count})"),
            Body::CopiedTogether { copy, bytes, result } => write!(f, "CopiedTogether({copy:?}, {bytes}, {result:?})"),
            Body::ErrandDone { id, data, .. } => write!(f, "ErrandDone({id}, {})", data.is_some()),
            Body::Host { id, .. } => write!(f, "Host({id:?})"),
            Body::Evict { id, .. } => write!(f, "Evict({id:?})"),
            Body::Saved { tag, saved } => write!(f, "Saved({tag:x}, {saved:?})"),
        }
    }
}
