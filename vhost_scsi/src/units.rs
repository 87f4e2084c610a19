//! The logical units that are open on one worker: one channel into the device for all queues of the reactor, so the
//! device's slots are shared out here. A large request takes several ([`Charge`]), so what is in flight is bounded in
//! bytes, too; bulk takes a part of them at most. A request that finds no room waits in its unit's line ([`Line`] says
//! who is next), and its queue takes nothing more from the guest until it has gone: a new request of each queue is in
//! the line at most, and what has no room stays in the virtqueue. (Behind it may be further steps of long commands.)

use std::sync::Arc;

use pollux_core::{
    Alignment, Channel, Completion, Cx, Io, IoError, IoStats, Lane, Next, ScsiAnswer, ScsiCommand, Segment, Tag,
};
use pollux_scsi::LogicalUnit;

use crate::line::{Charge, Line, Room, Source};
use crate::message::{Reply, UnitId};

/// One part in this many of a unit's slots is for bulk at most, so that a guest's reads find room beside it.
const BULK_PART: u32 = 4;

/// The answer that a channel's end is waited for with.
pub(crate) type ChannelReply = Reply<Result<Option<Box<dyn Channel>>, IoError>>;

/// What happens when the last request of a channel has ended.
pub(crate) enum Ending {
    /// The unit goes.
    Close(ChannelReply),
    /// Another channel (or none) takes its place.
    Replace(Option<Box<dyn Channel>>, ChannelReply),
}

/// A unit on this reactor.
pub(crate) struct Unit {
    pub(crate) logical: Arc<LogicalUnit>,
    channel: Option<Box<dyn Channel>>,
    depth: u32,
    alignment: Alignment,
    /// Slots that the requests in flight take, at least one each. May be a request's worth more than there are.
    used: u32,
    /// The part of that which is bulk.
    used_by_bulk: u32,
    /// Who waits for room, by the tags their requests will have.
    pub(crate) line: Line,
    pub(crate) stats: Arc<IoStats>,
    listed: bool,
    ending: Option<Ending>,
}

impl Unit {
    /// For whom there is room. A unit without a device takes everything: it is answered by `submit`.
    fn room(&self) -> Room {
        let plain = self.channel.is_none() || self.used < self.depth;
        let bulk = plain && (self.channel.is_none() || self.used_by_bulk < (self.depth / BULK_PART).max(1));
        Room { plain, bulk }
    }

    /// Whether a request that comes now can be submitted now: there is room, and nobody waits for it before this one. If
    /// so, it has been put on its source's account.
    pub(crate) fn lets_by(&mut self, source: Source, charge: Charge) -> bool {
        let room = self.room();
        (if charge.bulk { room.bulk } else { room.plain }) && self.line.goes_by(source, charge, room)
    }

    /// Whether a transfer can go to the device now without asking: it is there and has room, and nobody has waited.
    #[inline(always)]
    pub(crate) fn is_clear(&self) -> bool {
        self.used < self.depth && self.line.is_quiet() && self.is_ready()
    }

    /// Whether there are accounts, because somebody waits or has waited.
    pub(crate) const fn is_contended(&self) -> bool {
        !self.line.is_quiet()
    }

    /// Whether somebody waits for room.
    #[inline]
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.line.is_empty()
    }

    /// Takes the next one for whom there is room out of the line.
    pub(crate) fn next_waiter(&mut self) -> Option<Tag> {
        let room = self.room();
        self.line.next(room)
    }

    /// A request has ended: what it took is free.
    #[inline(always)]
    pub(crate) fn ended(&mut self, charge: Charge) {
        self.used -= charge.slots;
        if charge.bulk {
            self.used_by_bulk -= charge.slots;
        }
    }

    /// Whether the device needs a bounce buffer for these segments.
    #[inline]
    pub(crate) fn bounces(&self, segments: &[Segment]) -> bool {
        !self.alignment.fits(segments)
    }

    /// What may hold up a helper thread that does something with the device.
    pub(crate) fn lane(&self) -> Lane {
        self.logical.lane().unwrap_or_else(|| Lane(self.logical.uuid().as_u128() as u64))
    }

    /// Whether requests can reach a device.
    pub(crate) const fn is_ready(&self) -> bool {
        self.channel.is_some() && self.ending.is_none()
    }
}

/// All units of a worker.
#[derive(Default)]
pub(crate) struct Units {
    units: Vec<Option<Unit>>,
    /// Units whose channel may have something in flight: those that are listed. Each has a channel.
    busy: Vec<UnitId>,
    /// How many units have an ending.
    ending: u32,
}

impl Units {
    /// A unit that some LUN leads to.
    #[inline]
    pub(crate) fn get(&mut self, unit: UnitId) -> &mut Unit {
        self.units[unit as usize].as_mut().expect("a unit stays open while a LUN leads to it")
    }

    /// As `get`, for looking only.
    #[inline]
    pub(crate) fn look(&self, unit: UnitId) -> &Unit {
        self.units[unit as usize].as_ref().expect("a unit stays open while a LUN leads to it")
    }

    /// Whether the unit is open here.
    pub(crate) fn is_open(&self, unit: UnitId) -> bool {
        self.units.get(unit as usize).is_some_and(Option::is_some)
    }

    /// Opens a unit with the channel into its device, if that is there.
    pub(crate) fn open(
        &mut self,
        unit: UnitId,
        logical: Arc<LogicalUnit>,
        mut channel: Option<Box<dyn Channel>>,
        stats: Arc<IoStats>,
        cx: &mut Cx<'_>,
    ) -> Result<(), IoError> {
        let (depth, alignment) = attach(&mut channel, cx)?;
        let at = unit as usize;
        if self.units.len() <= at {
            self.units.resize_with(at + 1, || None);
        }
        if self.units[at].is_some() {
            // An earlier life of the unit has not ended yet: the control plane gave up waiting for it.
            if let Some(channel) = &mut channel {
                channel.detach(cx);
            }
            return Err(IoError::Busy);
        }
        self.units[at] = Some(Unit {
            logical,
            channel,
            depth,
            alignment,
            used: 0,
            used_by_bulk: 0,
            line: Line::default(),
            stats,
            listed: false,
            ending: None,
        });
        Ok(())
    }

    /// Ends a unit's channel when its requests have ended; `collect_ended` does it.
    pub(crate) fn end(&mut self, unit: UnitId, ending: Ending, cx: &mut Cx<'_>) {
        let Some(open) = self.units.get_mut(unit as usize).and_then(Option::as_mut) else {
            let (Ending::Close(reply) | Ending::Replace(_, reply)) = ending;
            reply.send(Ok(None));
            return;
        };
        if open.ending.is_some() {
            // The control plane gave up waiting for the one before.
            let (Ending::Close(reply) | Ending::Replace(_, reply)) = ending;
            reply.send(Err(IoError::Busy));
            return;
        }
        open.ending = Some(ending);
        self.ending += 1;
        self.collect_ended(cx);
    }

    /// Carries out the endings whose channels have nothing in flight. Returns whether some still drain.
    pub(crate) fn collect_ended(&mut self, cx: &mut Cx<'_>) -> bool {
        if self.ending == 0 {
            return false;
        }
        for slot in &mut self.units {
            let Some(unit) = slot.as_mut().filter(|unit| unit.ending.is_some()) else { continue };
            if unit.used > 0 || !unit.line.is_empty() {
                continue;
            }
            self.ending -= 1;
            // It may be listed still: what has ended last was past the channel (`vacate`), or was not polled for since.
            if std::mem::take(&mut unit.listed) {
                unit.line.settle();
            }
            let mut old = unit.channel.take();
            if let Some(channel) = &mut old {
                channel.detach(cx);
            }
            match unit.ending.take() {
                Some(Ending::Close(reply)) => {
                    reply.send(Ok(old));
                    *slot = None;
                }
                Some(Ending::Replace(mut channel, reply)) => {
                    let attached = attach(&mut channel, cx);
                    if let Ok(limits) = attached {
                        unit.channel = channel;
                        (unit.depth, unit.alignment) = limits;
                    }
                    reply.send(attached.map(|_| old));
                }
                None => unreachable!("only units with an ending are looked at"),
            }
        }
        self.busy.retain(|&unit| self.units[unit as usize].as_ref().is_some_and(|unit| unit.listed));
        self.ending > 0
    }

    /// Submits a request; the caller has seen that there is room. It takes what `charge` says until [`Unit::ended`].
    ///
    /// # Errors
    /// `NotReady` if there is no device.
    #[inline(always)]
    pub(crate) fn submit(&mut self, unit: UnitId, io: Io, charge: Charge, cx: &mut Cx<'_>) -> Result<(), IoError> {
        let open = self.units[unit as usize].as_mut().expect("a unit stays open while a LUN leads to it");
        if !open.is_ready() {
            return Err(IoError::NotReady);
        }
        let channel = open.channel.as_mut().expect("a ready unit has a channel");
        assert!(open.used < open.depth, "a request was submitted without a slot");
        open.used += charge.slots;
        if charge.bulk {
            open.used_by_bulk += charge.slots;
        }
        open.stats.started();
        channel.submit(io, cx);
        if !open.listed {
            open.listed = true;
            self.busy.push(unit);
        }
        Ok(())
    }

    /// As `submit`, of a whole command to a device that takes such.
    ///
    /// # Errors
    /// `NotReady` if there is no device.
    pub(crate) fn submit_scsi(
        &mut self,
        unit: UnitId,
        command: ScsiCommand,
        charge: Charge,
        cx: &mut Cx<'_>,
    ) -> Result<(), IoError> {
        let open = self.units[unit as usize].as_mut().expect("a unit stays open while a LUN leads to it");
        if !open.is_ready() {
            return Err(IoError::NotReady);
        }
        let way = open.channel.as_mut().and_then(|channel| channel.scsi()).ok_or(IoError::NotReady)?;
        way.submit_scsi(command, cx);
        open.used += charge.slots;
        open.stats.started();
        self.list(unit);
        Ok(())
    }

    /// What became of a command that the device has ended; `None` if it has not had it.
    pub(crate) fn take_answer(&mut self, unit: UnitId, tag: Tag) -> Option<ScsiAnswer> {
        self.get(unit).channel.as_mut()?.scsi()?.take_answer(tag)
    }

    /// Has a device for whole commands reset. It takes a slot until [`Units::reset_ended`], whether one is free or not.
    /// Returns false if there is no such device now.
    pub(crate) fn reset(&mut self, unit: UnitId, tag: Tag, cx: &mut Cx<'_>) -> bool {
        let open = self.get(unit);
        if !open.is_ready() {
            return false;
        }
        let Some(way) = open.channel.as_mut().and_then(|channel| channel.scsi()) else { return false };
        way.reset(tag, cx);
        open.used += 1;
        self.list(unit);
        true
    }

    /// Tells a device for whole commands, if the unit is one, that who has sent them has gone.
    pub(crate) fn nexus_lost(&mut self, unit: UnitId) {
        if let Some(way) = self.get(unit).channel.as_mut().and_then(|channel| channel.scsi()) {
            way.nexus_lost();
        }
    }

    /// A reset has been done, or could not be.
    pub(crate) fn reset_ended(&mut self, unit: UnitId) {
        self.get(unit).used -= 1;
    }

    /// Has the unit polled.
    fn list(&mut self, unit: UnitId) {
        let open = self.get(unit);
        if !std::mem::replace(&mut open.listed, true) {
            self.busy.push(unit);
        }
    }

    /// Something that the device does past its channel takes room of the unit until [`Units::vacate`].
    ///
    /// # Errors
    /// `NotReady` if there is no device.
    pub(crate) fn occupy(&mut self, unit: UnitId, charge: Charge) -> Result<(), IoError> {
        let open = self.get(unit);
        if !open.is_ready() {
            return Err(IoError::NotReady);
        }
        open.used += charge.slots;
        if charge.bulk {
            open.used_by_bulk += charge.slots;
        }
        open.stats.started();
        Ok(())
    }

    /// That has ended; returns whether somebody waits for the room.
    pub(crate) fn vacate(&mut self, unit: UnitId, charge: Charge) -> bool {
        let open = self.get(unit);
        open.ended(charge);
        if open.used == 0 && !open.listed {
            open.line.settle();
        }
        open.is_waited_for()
    }

    /// Asks the device to end a request early.
    pub(crate) fn cancel(&mut self, unit: UnitId, tag: Tag, cx: &mut Cx<'_>) {
        if let Some(channel) = &mut self.get(unit).channel {
            channel.cancel(tag, cx);
        }
    }

    /// Polls the busy unit at place `at` of the list and appends what has completed to `done`, which is empty; `None`
    /// behind the last one. [`Units::polled`] says which place is next.
    ///
    /// Every busy unit is polled in every pass, whatever its channel's `next` says: that only tells how long the reactor may
    /// sleep before the pass. So a channel that waits for something on another reactor, and says [`Next::Ring`], is polled
    /// in the pass that follows a wake ([`Ring::waker`](pollux_core::Ring::waker)).
    #[inline]
    pub(crate) fn poll(&mut self, at: usize, done: &mut Vec<Completion>, cx: &mut Cx<'_>) -> Option<UnitId> {
        let id = *self.busy.get(at)?;
        let unit = self.units[id as usize].as_mut().expect("a busy unit is open");
        let channel = unit.channel.as_mut().expect("a busy unit has a channel");
        channel.poll(cx, done);
        Some(id)
    }

    /// What the unit at place `at` had done is dealt with: takes it out of the list if nothing of it is in flight any
    /// more.
    #[inline]
    pub(crate) fn polled(&mut self, at: usize) -> usize {
        let unit = self.units[self.busy[at] as usize].as_mut().expect("a busy unit is open");
        if unit.used > 0 {
            return at + 1;
        }
        unit.listed = false;
        unit.line.settle();
        self.busy.swap_remove(at);
        at
    }

    /// When polling can find something.
    pub(crate) fn next(&self) -> Next {
        self.busy.iter().fold(Next::Idle, |next, &unit| match &self.look(unit).channel {
            Some(channel) => next.or(channel.next()),
            None => next,
        })
    }
}

/// Has the channel enter the reactor; returns its depth and alignment.
fn attach(channel: &mut Option<Box<dyn Channel>>, cx: &mut Cx<'_>) -> Result<(u32, Alignment), IoError> {
    match channel {
        Some(channel) => {
            channel.attach(cx)?;
            Ok((channel.depth(), channel.alignment()))
        }
        None => Ok((0, Alignment::ANY)),
    }
}
