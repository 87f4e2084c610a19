//! Commands that go on without their guest: answered before they are done (IMMED), they run step by step beside the queues.
//!
//! They hold their LUN, so that its device stays, and wait in the unit's line like everybody.

use pollux_core::{Cx, Io, IoError, IoFlags, Op, Tag};
use pollux_scsi::{PATTERN_STEP_LEN, Plan, Step};

use crate::copies::{COPY, index_of};
use crate::fence::Span;
use crate::line::{Charge, Source};
use crate::message::UnitId;
use crate::pieces::Pattern;
use crate::through::RESET;
use crate::wipes::is_wipe;
use crate::worker::ScsiWorker;

/// Tags with this bit belong to commands that were answered before they were done (IMMED).
pub(crate) const BACKGROUND: Tag = 1 << 63;

/// A command that goes on without its guest.
pub(crate) struct Background {
    unit: UnitId,
    lun: u32,
    plan: Plan,
    pattern: Option<Pattern>,
    step: Io,
    started: u64,
}

impl Background {
    const fn charge(&self) -> Charge {
        Charge::step(self.step.op, self.step.len, true)
    }

    /// Whether it works on this range.
    pub(crate) fn touches(&self, unit: UnitId, span: Span) -> bool {
        self.unit == unit && span.overlaps(self.plan.span())
    }
}

impl ScsiWorker {
    pub(crate) fn start_background(&mut self, lun: u32, plan: Plan, step: Step, cx: &mut Cx<'_>) {
        let free = self.background_free.pop().unwrap_or(self.background.len());
        if free == self.background.len() {
            self.background.push(None);
        }
        let entry = self.luns.get_mut(lun);
        entry.inflight += 1;
        let (op, flags, offset, len) = parts(step);
        let step = Io::without_data(BACKGROUND | free as u64, op, flags, offset, len);
        self.background[free] =
            Some(Background { unit: entry.unit, lun, pattern: pattern_of(&plan), plan, step, started: cx.now });
        self.submit_background(BACKGROUND | free as u64, cx);
    }

    pub(crate) fn background_go(&mut self, index: usize, cx: &mut Cx<'_>) {
        let task = self.background[index].as_ref().expect("a background command stays until it has ended");
        let (unit, tag, charge) = (task.unit, task.step.tag, task.charge());
        let open = self.units.get(unit);
        if open.lets_by(Source::BACKGROUND, charge) {
            self.submit_background(tag, cx);
        } else {
            open.line.join(Source::BACKGROUND, charge, tag);
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn submit_background(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        if tag & COPY != 0 {
            self.submit_copy(index_of(tag), cx);
            return;
        }
        if is_wipe(tag) {
            return self.submit_wipe(tag, cx);
        }
        let index = (tag & !BACKGROUND) as usize;
        let task = self.background[index].as_mut().expect("a background command stays until it has ended");
        let mut io = task.step;
        if let Some(pattern) = &mut task.pattern {
            io.data = pattern.data(io.len);
        }
        if self.units.submit(task.unit, io, task.charge(), cx).is_err() {
            self.background_ended(index);
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn background_done(&mut self, unit: UnitId, tag: Tag, result: Result<(), IoError>, cx: &mut Cx<'_>) {
        if tag & COPY != 0 {
            self.copy_done(unit, tag, result, cx);
            return;
        }
        if tag & RESET != 0 {
            return self.reset_done(unit, tag, result);
        }
        if is_wipe(tag) {
            return self.wipe_done(unit, result, cx);
        }
        let index = (tag & !BACKGROUND) as usize;
        let task = self.background[index].as_mut().expect("a background command stays until it has ended");
        let Io { op, len, .. } = task.step;
        let open = self.units.get(unit);
        open.ended(task.charge());
        open.stats.ended(op, len, cx.now.saturating_sub(task.started), result);
        match task.plan.next().filter(|_| result.is_ok()) {
            Some(step) => {
                let (op, flags, offset, len) = parts(step);
                task.step = Io::without_data(tag, op, flags, offset, len);
                self.background_go(index, cx);
            }
            None => self.background_ended(index),
        }
    }

    fn background_ended(&mut self, index: usize) {
        if let Some(task) = self.background[index].take() {
            self.luns.get_mut(task.lun).inflight -= 1;
            self.background_free.push(index);
        }
    }

    /// Asks the devices to end the background commands of some LUNs early; those that wait for a slot just go.
    pub(crate) fn cancel_background(&mut self, of: impl Fn(&Self, u32) -> bool, cx: &mut Cx<'_>) {
        for index in 0..self.background.len() {
            let Some(task) = &self.background[index] else { continue };
            let (unit, tag) = (task.unit, task.step.tag);
            if !of(self, task.lun) {
                continue;
            }
            if self.units.get(unit).line.leave(tag) {
                self.background_ended(index);
            } else {
                self.units.cancel(unit, tag, cx);
            }
        }
    }
}

pub(crate) const fn parts(step: Step) -> (Op, IoFlags, u64, u64) {
    match step {
        Step::Flush => (Op::Flush, IoFlags::empty(), 0, 0),
        Step::Erase => (Op::Flush, IoFlags::ERASE, 0, 0),
        Step::Discard { offset, len, flags } => (Op::Discard, flags, offset, len),
        Step::WriteZeroes { offset, len, flags } => (Op::WriteZeroes, flags, offset, len),
        Step::WritePattern { offset, len, flags } => (Op::Write, flags, offset, len),
    }
}

pub(crate) fn pattern_of(plan: &Plan) -> Option<Pattern> {
    let block = plan.pattern();
    if block.is_empty() { None } else { Some(Pattern::new(block, PATTERN_STEP_LEN)) }
}
