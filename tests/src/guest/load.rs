//! Random commands to one logical unit, in random framings, held against the oracle. Works on any [`Driver`], simulated
//! or connected to a real daemon.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::{Command, Driver, Ticket};
use super::scsi::{Framing, Lun, RESPONSE_LEN, Response, cdb};
use crate::model::{Model, OpId};
use crate::rng::Rng;

/// How often each kind of command comes, in parts.
#[derive(Clone, Copy, Debug)]
pub struct ScsiMix {
    /// READ.
    pub read: u64,
    /// WRITE; every fourth with FUA.
    pub write: u64,
    /// SYNCHRONIZE CACHE.
    pub sync: u64,
    /// UNMAP and WRITE SAME with UNMAP; only where the unit promises zeroes.
    pub unmap: u64,
    /// WRITE SAME of zeroes.
    pub zeroes: u64,
    /// The greatest length in blocks.
    pub blocks_max: u64,
    /// Plain framing only.
    pub plain: bool,
}

impl Default for ScsiMix {
    fn default() -> Self {
        ScsiMix { read: 30, write: 40, sync: 6, unmap: 4, zeroes: 4, blocks_max: 64, plain: false }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Change { fua: bool },
    Sync,
}

/// Why a command did not end GOOD: virtio-scsi response, SCSI status, sense key with codes.
pub type NotGood = (u8, u8, Option<(u8, u8, u8)>);

struct InFlight {
    kind: Kind,
    op: OpId,
    /// Incoming bytes the command fills, and those offered beyond.
    in_len: usize,
    extra: usize,
    what: String,
}

/// What a unit may hold, for all who write to it.
pub type SharedModel = Arc<Mutex<Model>>;

/// A load on one logical unit.
pub struct ScsiLoad {
    lun: Lun,
    model: SharedModel,
    /// Whether every write is durable when it is answered (WCE=0).
    pub write_through: bool,
    in_flight: HashMap<(usize, Ticket), InFlight>,
    rng: Rng,
    /// Commands that ended GOOD.
    pub good: u64,
    /// Commands that did not.
    pub others: Vec<NotGood>,
}

impl ScsiLoad {
    /// A load on a unit of `blocks` blocks that holds zeroes.
    #[must_use]
    pub fn new(lun: Lun, block_size: usize, blocks: u64, seed: u64) -> Self {
        Self::sharing(lun, &Arc::new(Mutex::new(Model::new(block_size, blocks))), seed)
    }

    /// A load on a unit to which others write, too.
    #[must_use]
    pub fn sharing(lun: Lun, model: &SharedModel, seed: u64) -> Self {
        ScsiLoad {
            lun,
            model: Arc::clone(model),
            write_through: false,
            in_flight: HashMap::new(),
            rng: Rng::new(seed),
            good: 0,
            others: Vec::new(),
        }
    }

    /// What the unit may hold.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of its commands are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Tickets of its commands in flight on a queue.
    #[must_use]
    pub fn tickets(&self, queue: usize) -> Vec<Ticket> {
        let mut tickets: Vec<_> = self.in_flight.keys().filter(|k| k.0 == queue).map(|k| k.1).collect();
        tickets.sort_unstable();
        tickets
    }

    /// Puts a random command into a queue (not yet visible to the device); false if there is no room.
    pub fn submit(&mut self, driver: &mut Driver, queue: usize, mix: &ScsiMix) -> bool {
        let block = self.model().block_size();
        let blocks = self.model().blocks();
        let count = self.rng.between(1, mix.blocks_max.min(blocks));
        let first = self.rng.below(blocks - count + 1);
        let framing = if mix.plain { Framing::PLAIN } else { Framing::random(&mut self.rng) };
        let extra = if self.rng.chance(1, 8) { self.rng.between(1, 600) as usize } else { 0 };
        let pick = self.rng.below(mix.read + mix.write + mix.sync + mix.unmap + mix.zeroes);
        let wide = self.rng.chance(1, 2);
        let ten = first <= u64::from(u32::MAX) && !wide;
        let (mut out, mut in_len) = (Vec::new(), 0);
        let (kind, op, bytes): (Kind, OpId, Vec<u8>) = if pick < mix.read {
            in_len = count as usize * block;
            let cdb = if ten {
                cdb::read10(first as u32, count as u16).to_vec()
            } else {
                cdb::read16(first, count as u32).to_vec()
            };
            (Kind::Read, self.model().begin_read(first, count), cdb)
        } else if pick < mix.read + mix.write {
            let fua = self.rng.chance(1, 4);
            let (op, data) = self.model().begin_write(first, count);
            out = data;
            let cdb = if ten {
                cdb::write10(first as u32, count as u16, fua).to_vec()
            } else {
                cdb::write16(first, count as u32, fua).to_vec()
            };
            (Kind::Change { fua }, op, cdb)
        } else if pick < mix.read + mix.write + mix.sync {
            let cdb = if ten { cdb::sync10().to_vec() } else { cdb::sync16(0, 0).to_vec() };
            (Kind::Sync, self.model().begin_flush(), cdb)
        } else if pick < mix.read + mix.write + mix.sync + mix.unmap {
            let op = self.model().begin_zero(first, count);
            if wide {
                (Kind::Change { fua: false }, op, cdb::write_same16(first, count as u32, true, true).to_vec())
            } else {
                let (cdb, list) = cdb::unmap(&[(first, count as u32)]);
                out = list;
                (Kind::Change { fua: false }, op, cdb.to_vec())
            }
        } else {
            let op = self.model().begin_zero(first, count);
            out = vec![0; block];
            (Kind::Change { fua: false }, op, cdb::write_same16(first, count as u32, false, false).to_vec())
        };
        let extra = if in_len > 0 { extra } else { 0 };
        let command =
            Command { lun: self.lun.bytes(), cdb: &bytes, out: &out, in_len: in_len + extra, framing, task_attr: 0 };
        let what = format!("{kind:?} of {count} blocks at {first}, {framing:?}, cdb {bytes:02x?}");
        match driver.submit(queue, &command) {
            Some(ticket) => {
                self.in_flight.insert((queue, ticket), InFlight { kind, op, in_len, extra, what });
                true
            }
            None => {
                self.undo(kind, op);
                false
            }
        }
    }

    /// The command was never sent.
    fn undo(&mut self, kind: Kind, op: OpId) {
        match kind {
            Kind::Read => self.model().end_failed_read(op),
            Kind::Sync => self.model().end_flush(op, false),
            Kind::Change { .. } => self.model().end_write(op, false, false),
        }
    }

    /// Takes an answer; false if the ticket is not of this load.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn answered(&mut self, queue: usize, ticket: Ticket, response: &Response) -> Result<bool, String> {
        let Some(entry) = self.in_flight.remove(&(queue, ticket)) else { return Ok(false) };
        let good = response.good();
        if good {
            self.good += 1;
        } else {
            self.others.push((response.response, response.status, response.sense_key()));
        }
        match entry.kind {
            Kind::Read if good => {
                let (data, rest) = response.data.split_at(entry.in_len);
                if response.residual as usize != entry.extra {
                    return Err(format!("{}: residual {} instead of {}", entry.what, response.residual, entry.extra));
                }
                if rest.iter().any(|b| *b != 0xa5) {
                    return Err(format!("{}: wrote beyond the data", entry.what));
                }
                if (response.written as usize) < RESPONSE_LEN + entry.in_len {
                    return Err(format!("{}: the used element says {} bytes", entry.what, response.written));
                }
                self.model().end_read(entry.op, data).map_err(|why| format!("{}: {why}", entry.what))?;
            }
            Kind::Read => self.model().end_failed_read(entry.op),
            Kind::Sync => self.model().end_flush(entry.op, good),
            Kind::Change { fua } => self.model().end_write(entry.op, good, fua || self.write_through),
        }
        Ok(true)
    }

    /// The answers of a queue will never come.
    pub fn abandon(&mut self, queue: usize) {
        for ticket in self.tickets(queue) {
            if let Some(entry) = self.in_flight.remove(&(queue, ticket)) {
                self.model().abandon(entry.op);
            }
        }
    }
}
