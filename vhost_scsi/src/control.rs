//! Task management: the control queue's requests.
//!
//! The commands of one unit or one session are spread over the workers, so a function is a question to all of them: each
//! ends the commands in scope (`abort.rs`) and says so when the last of them has ended. The worker that took the function
//! answers the guest when all have said so: no aborted command can touch guest memory after that.

use pollux_core::{Tag, segment};
use pollux_scsi::Attention;
use pollux_vhost_user::Chain;

use crate::lun::Address;
use crate::luns::TargetLuns;
use crate::message::{AbortId, Body, Message, Scope, UnitId};
use crate::port::{Phase, Port};
use crate::request::{Control, Function, Response, TMF_LEN};
use crate::worker::ScsiWorker;

/// Functions of one control queue that wait for the workers at once; the others stay in its ring. A guest has so many
/// before the functions of others, and as many PREEMPT AND ABORT from each worker that has queues of its (`parked.rs`).
pub(crate) const MOST_FUNCTIONS: u32 = 4;

/// Who waits for the workers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker {
    /// A function of a control queue.
    Function(Function),
    /// A parked command.
    Command { tag: Tag, session: u64 },
}

/// What waits for the workers.
pub(crate) struct Pending {
    id: AbortId,
    /// The port and the chain that is to be answered.
    port: usize,
    head: u16,
    asker: Asker,
    lun: Option<u32>,
    /// How many have not ended their share: workers, and the device if it is to be reset.
    workers: usize,
    count: u32,
    /// The device could not be reset.
    failed: bool,
}

impl ScsiWorker {
    /// Takes one request of a control queue.
    pub(crate) fn control(&mut self, port: &mut Port, number: usize, chain: &Chain) {
        port.stats.requests.add(1);
        let mut bytes = [0; TMF_LEN];
        let (readable, writable) = self.segments.as_slice().split_at(chain.readable);
        let got = segment::copy_from(readable, 0, &mut bytes);
        if chain.writable_bytes == 0 {
            port.fail(&"a control request without room for its response");
            return;
        }
        let Some(control) = Control::parse(&bytes[..got]) else {
            port.stats.invalid.add(1);
            segment::copy_to(writable, 0, &[Response::Failure as u8]);
            port.complete(chain.head, 1);
            return;
        };
        match control {
            Control::Tmf { function: Some(function), lun, tag } => {
                let slot = port.claim(chain.head);
                slot.phase = Phase::Running;
                slot.pieces.clear();
                segment::for_range(writable, 0, 1, |part| slot.pieces.push(part));
                slot.pieces.response_ends();
                self.manage(port, number, chain.head, function, lun, tag);
            }
            Control::Tmf { function: None, .. } => {
                segment::copy_to(writable, 0, &[Response::FunctionRejected as u8]);
                port.complete(chain.head, 1);
            }
            Control::Notification => {
                // event_actual = 0: none of the notifications is offered; response = OK.
                let written = segment::copy_to(writable, 0, &[0, 0, 0, 0, Response::Ok as u8]);
                port.complete(chain.head, written as u64);
            }
            Control::Unknown => {
                port.stats.invalid.add(1);
                segment::copy_to(writable, 0, &[Response::Failure as u8]);
                port.complete(chain.head, 1);
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // the fields of one request, and where to answer it
    fn manage(&mut self, port: &mut Port, number: usize, head: u16, function: Function, field: [u8; 8], tag: u64) {
        let session = port.key.session;
        let target = Address::decode(field).target();
        let Some(target) = target.filter(|&target| self.luns.target(port.controller, target).is_some()) else {
            answer(port, head, Response::BadTarget);
            return;
        };
        let found = match Address::decode(field) {
            Address::Unit { lun, .. } => self.luns.find(port.controller, target, lun).map(|index| (lun, index)),
            _ => None,
        };
        let scope = match (function, found) {
            (Function::NexusReset, _) => Scope::Nexus { session, target },
            (_, None) => {
                answer(port, head, Response::IncorrectLun);
                return;
            }
            (Function::ClearAca, _) => {
                answer(port, head, Response::FunctionRejected);
                return;
            }
            (Function::AbortTask | Function::QueryTask, Some((lun, _))) => Scope::Task { session, target, lun, tag },
            (Function::AbortTaskSet | Function::QueryTaskSet, Some((lun, _))) => {
                Scope::TaskSet { session, target, lun }
            }
            (Function::ClearTaskSet | Function::LogicalUnitReset, Some((_, index))) => {
                Scope::Unit { session, unit: self.luns.get(index).unit }
            }
        };
        let how = match function {
            Function::QueryTask | Function::QueryTaskSet => None,
            Function::LogicalUnitReset | Function::NexusReset => Some(Response::Reset),
            _ => Some(Response::Aborted),
        };
        let any = self.luns.target(port.controller, target).map(TargetLuns::first);
        let lun = found.map(|(_, index)| index).or(any);
        if let Some(lun) = lun {
            // The LUN stays in the table until the function has ended.
            self.luns.get_mut(lun).inflight += 1;
        }
        self.ask_all(Asker::Function(function), (number, head), lun, scope, how);
        if let (Function::LogicalUnitReset, Some((_, index))) = (function, found) {
            self.ask_device(self.luns.get(index).unit);
        }
    }

    /// Has the function that was asked for last wait for the reset of a device that gets whole commands.
    fn ask_device(&mut self, unit: UnitId) {
        if !self.units.look(unit).logical.passes_through() {
            return;
        }
        if let Some(pending) = self.pending.last_mut() {
            pending.workers += 1;
            let id = pending.id;
            self.outbox.push_back((self.worker, Message(Body::ResetDevice { unit, id })));
        }
    }

    /// The device that a function waits for has been reset, or could not be.
    pub(crate) fn reset_ended(&mut self, id: AbortId, good: bool) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.id == id) {
            pending.failed |= !good;
        }
        self.abort_done(id, 0);
    }

    /// How many parked commands of a session wait for the workers.
    pub(crate) fn asking_commands(&self, of: u64) -> usize {
        let is_its = |pending: &&Pending| matches!(pending.asker, Asker::Command { session, .. } if session == of);
        self.pending.iter().filter(is_its).count()
    }

    /// Whether a parked command waits for the workers.
    pub(crate) fn is_asking(&self, of: Tag) -> bool {
        self.pending.iter().any(|pending| matches!(pending.asker, Asker::Command { tag, .. } if tag == of))
    }

    /// Has all workers end (or count) what is in scope; the chain is answered when all have.
    pub(crate) fn ask_all(
        &mut self,
        asker: Asker,
        (port, head): (usize, u16),
        lun: Option<u32>,
        scope: Scope,
        how: Option<Response>,
    ) {
        self.next_abort += 1;
        let id = AbortId { worker: self.worker, number: self.next_abort };
        self.pending.push(Pending { id, port, head, asker, lun, workers: self.workers, count: 0, failed: false });
        for worker in 0..self.workers {
            // This worker, too, takes it as a message: its port is in use here.
            self.outbox.push_back((worker, Message(Body::Abort { id, scope, how })));
        }
    }

    /// A worker has ended its share of a function.
    pub(crate) fn abort_done(&mut self, id: AbortId, count: u32) {
        let Some(at) = self.pending.iter().position(|pending| pending.id == id) else { return };
        let pending = &mut self.pending[at];
        pending.workers -= 1;
        pending.count += count;
        if pending.workers > 0 {
            return;
        }
        let pending = self.pending.swap_remove(at);
        let function = match pending.asker {
            Asker::Function(function) => function,
            Asker::Command { tag, session } => return self.preempted_ended(tag, session),
        };
        let mut port = self.take_port(pending.port).expect("a control port stays while its functions run");
        if let Some(lun) = pending.lun {
            let lun = self.luns.get_mut(lun);
            lun.inflight -= 1;
            let logical = &self.units.look(lun.unit).logical;
            match function {
                Function::LogicalUnitReset if pending.failed => {}
                Function::LogicalUnitReset => logical.reset(Some(&lun.path)),
                Function::NexusReset => lun.path.nexus().lost(),
                Function::ClearTaskSet => logical.raise(Attention::CommandsCleared, Some(&lun.path)),
                _ => {}
            }
        }
        let response = match function {
            _ if pending.failed => Response::FunctionRejected,
            Function::QueryTask | Function::QueryTaskSet if pending.count > 0 => Response::FunctionSucceeded,
            _ => Response::Ok,
        };
        answer(&mut port, pending.head, response);
        self.put_port(pending.port, port);
        self.activate(pending.port);
    }
}

fn answer(port: &mut Port, head: u16, response: Response) {
    segment::copy_to(port.slots[usize::from(head)].pieces.response(), 0, &[response as u8]);
    port.release(head);
    port.complete(head, 1);
}
