//! What happens to a queue while nothing is in flight: making it, laying its slots, single commands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Doorbell, NONE, Pass, Queue, Slot, tag};
use crate::BenchError;
use crate::clock::Clock;
use crate::layout::{QueuePlace, Shape, TABLE_LEN, gpa};
use crate::memory::Memory;
use crate::options::Kick;
use crate::ring::{Buffer, Ring};
use crate::rng::Rng;
use crate::scsi::{Answer, HEADER_LEN, Op, PLACE_LEN, RESPONSE_AT, RESPONSE_LEN, Wire};

/// What a queue is made of.
pub(crate) struct QueueParts {
    pub(crate) index: usize,
    pub(crate) memory: Arc<Memory>,
    pub(crate) ring: Ring,
    pub(crate) place: QueuePlace,
    pub(crate) indirect: bool,
    pub(crate) kick: Kick,
    pub(crate) doorbell: Doorbell,
    pub(crate) lun: [u8; 8],
    pub(crate) seed: u64,
}

impl Queue {
    pub(crate) fn new(parts: QueueParts) -> Self {
        let QueueParts { index, memory, ring, place, indirect, kick, doorbell, lun, seed } = parts;
        let mut rng = Rng::new(seed ^ index as u64);
        (place.data..place.data + place.data_len).step_by(8).for_each(|at| memory.store_u64(at, rng.next_u64()));
        let pass = Pass { wire: Wire::new(lun, 1, 1), shape: Shape::new(0, 0), blocks: 0, first: 0 };
        let size = usize::from(ring.size());
        Queue {
            index,
            memory,
            ring,
            place,
            indirect,
            kick_always: kick == Kick::Always,
            doorbell,
            pass,
            slots: Vec::new(),
            slot_of_head: vec![NONE; size],
            fresh: Vec::with_capacity(size),
            due: 0,
        }
    }

    /// Lays all slots for a pass. Nothing is in flight.
    pub(crate) fn lay(&mut self, pass: &Pass, op: Op) {
        self.pass = pass.clone();
        self.slots.clear();
        self.slot_of_head.fill(NONE);
        self.due = 0;
        let step = if self.indirect { 1 } else { 3 };
        for n in 0..pass.shape.depth {
            let at = usize::from(n);
            let slot = Slot {
                start: 0,
                chunk: 0,
                place: self.place.slots + PLACE_LEN * at,
                data: self.place.data + pass.shape.stride() * at,
                head: n * step,
                op,
            };
            self.slot_of_head[usize::from(slot.head)] = n;
            self.slots.push(slot);
            self.lay_slot(n, op);
        }
    }

    /// Lays the chain of a slot: header, then data to the device and response, or response and data from the device.
    pub(super) fn lay_chain(&self, n: u16, reads: bool, len: u32) {
        let slot = &self.slots[usize::from(n)];
        let header = Buffer { gpa: gpa(slot.place), len: HEADER_LEN, writable: false };
        let response = Buffer { gpa: gpa(slot.place + RESPONSE_AT), len: RESPONSE_LEN, writable: true };
        let data = Buffer { gpa: gpa(slot.data), len, writable: reads };
        let mut chain = if reads { vec![header, response, data] } else { vec![header, data, response] };
        chain.retain(|buffer| buffer.len > 0);
        if self.indirect {
            let table = self.place.tables + TABLE_LEN * usize::from(n);
            self.ring.lay_indirect(&self.memory, slot.head, table, gpa(table), &chain);
        } else {
            self.ring.lay(&self.memory, slot.head, &chain);
        }
    }

    /// One command of the set-up, with nothing else in flight: its answer and what it returned.
    pub(crate) fn command(
        &mut self,
        clock: &Clock,
        cdb: &[u8],
        len: u32,
        timeout: Duration,
    ) -> Result<(Answer, Vec<u8>), BenchError> {
        let pass = Pass { shape: Shape::new(len.into(), 1), ..self.pass.clone() };
        self.lay(&pass, Op::Read);
        let slot = &mut self.slots[0];
        slot.start = clock.now();
        self.pass.wire.lay_cdb(&self.memory, slot.place, tag(self.index, 0), cdb);
        self.ring.offer(&self.memory, slot.head);
        self.ring.publish(&self.memory);
        self.doorbell.kick.signal()?;
        let end = Instant::now() + timeout;
        while self.ring.waiting(&self.memory) == 0 {
            if Instant::now() > end {
                return Err(BenchError::Target(format!("command {:#04x} is not answered", cdb[0])));
            }
            std::thread::yield_now();
        }
        self.slot_of(0)?;
        self.ring.advance(&self.memory, 1);
        let slot = &mut self.slots[0];
        slot.start = 0;
        Ok((Wire::answer(&self.memory, slot.place), self.memory.bytes(slot.data, len as usize)))
    }
}
