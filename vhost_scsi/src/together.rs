//! The part of a copy that the devices of both ends make together: a helper thread has them do it, step by step.
//!
//! Both units know of it as of requests in flight: the range at each end is in the way of claims, a channel is not taken
//! away, and the target's line lets it in as bulk. A copy that is to end is answered when the helper's present step has
//! ended: before that the target may still change. What no helper has begun is taken back, and the copy ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pollux_core::{ChoreId, CopyError, Cx, IoError, Op, PairCopy};

use crate::copies::{CopyId, Stage};
use crate::line::Charge;
use crate::message::{Body, Message};
use crate::parked::{Home, deliver};
use crate::worker::ScsiWorker;

/// What it takes of the unit that is read: that it is there.
const READ: Charge = Charge { slots: 1, bulk: false };

/// What a helper thread owes a worker. It answers when it is dropped: undone means that the copy is read and written.
struct Debt {
    home: Home,
    worker: usize,
    copy: CopyId,
    done: (u64, Result<(), CopyError>),
    recalled: Arc<AtomicBool>,
}

/// What has been given to a helper thread.
pub(crate) struct Given {
    id: ChoreId,
    /// Set before the chore is dropped: it owes nothing.
    recalled: Arc<AtomicBool>,
}

impl Debt {
    fn pay(mut self, done: (u64, Result<(), CopyError>)) {
        self.done = done;
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        let Debt { copy, done: (bytes, result), .. } = *self;
        if self.recalled.load(Ordering::Relaxed) {
            return;
        }
        deliver(&*self.home, self.worker, || Message(Body::CopiedTogether { copy, bytes, result }));
    }
}

impl ScsiWorker {
    /// There is room for what the devices copy together.
    pub(crate) fn submit_together(&mut self, index: usize) {
        let copying = self.copying(index);
        let (request, charge, copy) = (copying.request, copying.charge(), (index, copying.number));
        let (pair, stop) = (copying.copy.pair(), copying.stop.clone());
        copying.stage = Stage::Helper;
        let (Some(pair), Some(source)) = (pair, request.source) else { unreachable!("two ends copy together") };
        if let Err(error) = self.occupy_both(request.unit, source.unit, charge) {
            self.copy_failed(index, error);
            return;
        }
        let (Some(home), Some(helpers)) = (self.home.clone(), &self.helpers) else {
            unreachable!("both are known when a unit is open");
        };
        let lanes = [request.unit, source.unit].map(|unit| self.units.look(unit).lane());
        let recalled = Arc::new(AtomicBool::new(false));
        let done = (0, Err(CopyError::Apart));
        let debt = Debt { home, worker: self.worker, copy, done, recalled: recalled.clone() };
        let id = helpers.submit(lanes, Box::new(move || debt.pay(run(&pair, request.len, &stop))));
        self.copying(index).given = Some(Given { id, recalled });
    }

    /// Ends what a copy has with a helper thread: at once if that has not begun, else at its next step.
    pub(crate) fn end_together(&mut self, index: usize, cx: &mut Cx<'_>) {
        let (copying, helpers) = (self.copies[index].as_mut(), self.helpers.as_ref());
        let Some((copying, helpers)) = copying.zip(helpers) else { return };
        copying.stop.store(true, Ordering::Relaxed);
        let Some(chore) = copying.given.as_ref().and_then(|given| helpers.recall(given.id)) else { return };
        if let Some(given) = copying.given.take() {
            given.recalled.store(true, Ordering::Relaxed);
        }
        drop(chore);
        let (request, charge) = (copying.request, copying.charge());
        let Some(source) = request.source else { unreachable!("two ends copy together") };
        for (unit, op, charge) in [(request.unit, Op::Write, charge), (source.unit, Op::Read, READ)] {
            self.units.get(unit).stats.ended(op, 0, 0, Err(IoError::Aborted));
            if self.units.vacate(unit, charge) {
                self.grant(unit, cx);
            }
        }
        self.copy_failed(index, IoError::Aborted);
    }

    fn occupy_both(&mut self, target: u32, source: u32, charge: Charge) -> Result<(), IoError> {
        self.units.occupy(target, charge)?;
        self.units.occupy(source, READ).inspect_err(|&error| {
            self.units.get(target).stats.ended(Op::Write, 0, 0, Err(error));
            self.units.vacate(target, charge);
        })
    }

    /// The devices have copied so many bytes, or why not all.
    pub(crate) fn copied_together(&mut self, copy: CopyId, done: (u64, Result<(), CopyError>), cx: &mut Cx<'_>) {
        if !self.is_copying(copy) {
            return;
        }
        let (index, (bytes, result)) = (copy.0, done);
        let copying = self.copying(index);
        let (request, charge) = (copying.request, copying.charge());
        let latency = cx.now.saturating_sub(copying.started);
        let ended = copying.copy.done_together(bytes, result);
        let Some(source) = request.source else { unreachable!("two ends copy together") };
        let of = |side: fn(IoError) -> CopyError| match result {
            Err(CopyError::Source(error)) if side(error) == CopyError::Source(error) => Err(error),
            Err(CopyError::Target(error)) if side(error) == CopyError::Target(error) => Err(error),
            _ => Ok(()),
        };
        let ends = [
            (request.unit, request.lun, Op::Write, charge, of(CopyError::Target)),
            (source.unit, source.lun, Op::Read, READ, of(CopyError::Source)),
        ];
        for (unit, lun, op, charge, result) in ends {
            self.units.get(unit).stats.ended(op, bytes, latency, result);
            self.luns.get(lun).stats.ended(op, bytes, latency, result.is_ok());
            if self.units.vacate(unit, charge) {
                self.grant(unit, cx);
            }
        }
        match ended {
            Ok(()) => self.copy_on(index, cx),
            Err(outcome) => self.copy_ended(index, &outcome),
        }
    }
}

/// On a helper thread.
fn run(pair: &PairCopy, len: u64, stop: &AtomicBool) -> (u64, Result<(), CopyError>) {
    let begin = Instant::now();
    pair.run(0, len, stop, &mut || u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX))
}
