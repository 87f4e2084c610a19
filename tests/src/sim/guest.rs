//! A guest in the simulated world: it does random things and checks what it gets.

use std::collections::HashMap;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::SimAppliance;
use crate::frontend::FrontEnd;
use crate::guest::{
    CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, ScsiLoad, ScsiMix, Ticket, Tmf, cdb,
};
use crate::rng::Rng;

/// The unit that a [`SimGuest`] works on.
pub const LUN: Lun = Lun::new(0, 0);

/// A guest with a load on LUN 0 of target 0.
pub struct SimGuest {
    /// Its driver and session.
    pub front: FrontEnd,
    /// Its load, with the oracle.
    pub load: ScsiLoad,
    /// What the load is made of.
    pub mix: ScsiMix,
    /// Its chances.
    pub rng: Rng,
    /// The queues that run.
    running: Vec<bool>,
    /// Task management functions that were not answered, and the commands in their scope: those have to be answered first.
    functions: HashMap<Ticket, Vec<(usize, Ticket)>>,
}

impl SimGuest {
    /// A guest that finds `blocks` blocks of zeroes.
    ///
    /// # Errors
    /// If it cannot connect.
    pub fn connect(appliance: &mut SimAppliance, ctrlr: &str, blocks: u64, seed: u64) -> Result<Self> {
        let load = ScsiLoad::new(LUN, 512, blocks, seed);
        Self::connect_with(appliance, ctrlr, seed, load)
    }

    /// A guest that goes on with a load that an earlier one left.
    ///
    /// # Errors
    /// If it cannot connect.
    pub fn connect_with(appliance: &mut SimAppliance, ctrlr: &str, seed: u64, load: ScsiLoad) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let options = DriverOptions {
            request_queues: rng.between(1, 4) as usize,
            queue_size: 1 << rng.between(5, 7),
            event_idx: rng.chance(1, 2),
            indirect: rng.chance(1, 2),
            events: true,
            memory: vec![(0x10_0000, 8 << 20)],
            seed,
        };
        let mut front = appliance.connect(ctrlr, &options)?;
        front.driver.post_events(4, 16);
        let running = vec![true; front.driver.queues.len()];
        Ok(SimGuest { front, load, mix: ScsiMix::default(), rng, running, functions: HashMap::new() })
    }

    /// A random request queue.
    pub fn request_queue(&mut self) -> usize {
        FIRST_REQUEST_QUEUE + self.rng.index(self.front.driver.queues.len() - FIRST_REQUEST_QUEUE)
    }

    /// Something random a guest does.
    pub fn act(&mut self) {
        let queue = self.request_queue();
        if self.load.in_flight() < 48 {
            self.load.submit(&mut self.front.driver, queue, &self.mix);
        }
        if self.rng.chance(2, 3) && self.running[queue] {
            self.front.driver.queues[queue].flush();
        }
    }

    /// Takes all answers.
    ///
    /// # Errors
    /// If one is wrong.
    pub fn take(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        while let Some((function, response, ..)) =
            self.front.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("control queue: {why:?}"))?
        {
            ensure!(matches!(response[0], 0 | 10), "a task management function was answered with {}", response[0]);
            ended.extend(self.functions.remove(&function).context("a function that nobody asked for")?);
        }
        for queue in FIRST_REQUEST_QUEUE..self.front.driver.queues.len() {
            while let Some((ticket, response)) = self.front.poll(queue)? {
                let known = self.load.answered(queue, ticket, &response).map_err(|why| anyhow!(why))?;
                ensure!(known, "queue {queue}: an answer to {ticket}, which nobody asked");
            }
        }
        let survivor = ended.into_iter().find(|(queue, ticket)| self.load.tickets(*queue).contains(ticket));
        ensure!(survivor.is_none(), "a function is done and a command in its scope is in flight: {survivor:?}");
        Ok(())
    }

    /// Task management functions that have not been answered.
    #[must_use]
    pub fn functions(&self) -> usize {
        self.functions.len()
    }

    /// Sends a random task management function.
    pub fn tmf(&mut self) {
        let queue = self.request_queue();
        let tickets = self.load.tickets(queue);
        if tickets.is_empty() || self.rng.chance(1, 4) {
            self.reset();
        } else {
            let ticket = tickets[self.rng.index(tickets.len())];
            self.function(Tmf::AbortTask, ticket, vec![(queue, ticket)]);
        }
    }

    /// Resets the unit.
    pub fn reset(&mut self) {
        let queues = FIRST_REQUEST_QUEUE..self.running.len();
        let scope = queues.flat_map(|queue| self.load.tickets(queue).into_iter().map(move |ticket| (queue, ticket)));
        self.function(Tmf::LunReset, 0, scope.collect());
    }

    fn function(&mut self, function: Tmf, tag: Ticket, mut scope: Vec<(usize, Ticket)>) {
        // All that the device can see when it is asked is in scope; what lies in a queue that does not run is not.
        scope.retain(|(queue, _)| self.running[*queue]);
        for queue in (FIRST_REQUEST_QUEUE..self.running.len()).filter(|queue| self.running[*queue]) {
            self.front.driver.queues[queue].flush();
        }
        if let Some(ticket) = self.front.driver.submit_tmf(function, LUN.bytes(), tag) {
            self.functions.insert(ticket, scope);
        }
        self.front.driver.queues[CONTROL_QUEUE].flush();
    }

    /// Stops a queue and, sooner or later, starts it where it stopped.
    ///
    /// # Errors
    /// If the device does not do that, or not rightly.
    pub fn stop_or_start(&mut self, appliance: &mut SimAppliance) -> Result<()> {
        let queue = self.request_queue();
        let front = &mut self.front;
        if self.running[queue] {
            let base = appliance.machine.call(|| front.stop_queue(queue))?;
            self.stopped(queue, base)?;
        } else {
            self.start(appliance, queue)?;
        }
        Ok(())
    }

    /// Whether a queue runs.
    #[must_use]
    pub fn runs(&self, queue: usize) -> bool {
        self.running[queue]
    }

    /// A queue was stopped, and the device says that `base` is the next request it would have taken.
    ///
    /// # Errors
    /// If it has taken more than it has answered.
    pub fn stopped(&mut self, queue: usize, base: u16) -> Result<()> {
        self.running[queue] = false;
        for scope in self.functions.values_mut() {
            scope.retain(|(of, _)| *of != queue);
        }
        let taken = base.wrapping_sub(self.front.driver.queues[queue].ring.last_used());
        self.take()?;
        let left = base.wrapping_sub(self.front.driver.queues[queue].ring.last_used());
        ensure!(left == 0, "queue {queue} stopped with {left} of {taken} requests taken and not answered");
        Ok(())
    }

    /// Starts a queue where it stopped.
    ///
    /// # Errors
    /// If the device refuses a step.
    pub fn start(&mut self, appliance: &mut SimAppliance, queue: usize) -> Result<()> {
        let base = self.front.driver.queues[queue].ring.last_used();
        let front = &mut self.front;
        appliance.machine.call(|| front.start_queue(queue, base))?;
        self.running[queue] = true;
        self.front.driver.queues[queue].flush();
        self.front.driver.queues[queue].kick();
        Ok(())
    }

    /// Lets everything that was asked be answered.
    ///
    /// # Errors
    /// If something is not.
    pub fn finish(&mut self, appliance: &mut SimAppliance) -> Result<()> {
        for queue in FIRST_REQUEST_QUEUE..self.running.len() {
            if !self.running[queue] {
                self.start(appliance, queue)?;
            }
        }
        for queue in &mut self.front.driver.queues {
            queue.flush();
        }
        appliance.machine.run();
        self.take()?;
        ensure!(
            self.load.in_flight() == 0 && self.functions.is_empty(),
            "the machine is idle with {} commands and {} task management functions unanswered",
            self.load.in_flight(),
            self.functions.len()
        );
        Ok(())
    }

    /// One command, answered when the machine is idle.
    ///
    /// # Errors
    /// If it does not end GOOD (unit attentions aside).
    pub fn command(&mut self, appliance: &mut SimAppliance, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Vec<u8>> {
        for _ in 0..8 {
            let ticket = self.front.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, cdb, out, in_len));
            appliance.machine.run();
            let (answered, response) = self.front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
            ensure!(Some(answered) == ticket, "an answer to another command");
            match response.sense_key() {
                Some((6, ..)) => {}
                _ if response.good() => return Ok(response.data),
                sense => bail!("{cdb:02x?}: status {} sense {sense:?}", response.status),
            }
        }
        bail!("unit attentions without end")
    }

    /// Reads the whole disk and asks the oracle.
    ///
    /// # Errors
    /// What the oracle objects to.
    pub fn verify(&mut self, appliance: &mut SimAppliance) -> Result<()> {
        self.finish(appliance)?;
        let blocks = self.load.model().blocks();
        let read = self.load.model().begin_read(0, blocks);
        let mut data = Vec::new();
        for at in (0..blocks).step_by(64) {
            data.extend(self.command(appliance, &cdb::read10(at as u32, 64), &[], 64 * 512)?);
        }
        self.load.model().end_read(read, &data).map_err(|why| anyhow!(why))
    }

    /// What was in flight is never answered: the load is what is left, and the session is to be ended.
    #[must_use]
    pub fn leave(self) -> (FrontEnd, ScsiLoad) {
        let SimGuest { front, mut load, .. } = self;
        for queue in FIRST_REQUEST_QUEUE..front.driver.queues.len() {
            load.abandon(queue);
        }
        (front, load)
    }

    /// The VMM dies. The load is what is left.
    #[must_use]
    pub fn die(self, appliance: &mut SimAppliance) -> ScsiLoad {
        let (front, load) = self.leave();
        appliance.disconnect(front);
        load
    }
}
