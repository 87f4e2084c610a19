//! What a driver has asked for and was not answered yet: commands, with what they were to do, and task management functions, with
//! the commands that have to have ended when they are answered.
//!
//! Everything is answered once, nothing is answered that was not asked for, and no command outlives the function that ends it:
//! [`Asked::take`] fails otherwise.

use std::collections::HashMap;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::frontend::FrontEnd;
use crate::guest::{CONTROL_QUEUE, FIRST_REQUEST_QUEUE, Lun, Response, Ticket, Tmf};

/// A command's queue and its ticket there.
pub type Name = (usize, Ticket);

/// See the module's description.
pub struct Asked<T> {
    commands: HashMap<Name, T>,
    functions: HashMap<Ticket, Vec<Name>>,
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Asked { commands: HashMap::new(), functions: HashMap::new() }
    }
}

impl<T> Asked<T> {
    /// How many commands there are.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.commands.len()
    }

    /// Whether some function is not answered.
    #[must_use]
    pub fn has_functions(&self) -> bool {
        !self.functions.is_empty()
    }

    /// The commands, in an order that does not depend on the run.
    #[must_use]
    pub fn sorted(&self) -> Vec<(Name, &T)> {
        let mut all: Vec<_> = self.commands.iter().map(|(name, what)| (*name, what)).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all
    }

    /// A command was submitted.
    pub fn put(&mut self, name: Name, what: T) {
        self.commands.insert(name, what);
    }

    /// A command was answered.
    ///
    /// # Errors
    /// If nobody had asked.
    pub fn answered(&mut self, name: Name) -> Result<T> {
        self.commands.remove(&name).context("an answer that nobody asked for")
    }

    /// Asks for a function, if there is room; when it is answered, all commands of `scope` have been.
    pub fn function(&mut self, front: &mut FrontEnd, function: Tmf, lun: Lun, tag: u64, scope: Vec<Name>) {
        if let Some(ticket) = front.driver.submit_tmf(function, lun.bytes(), tag) {
            self.functions.insert(ticket, scope);
            front.driver.queues[CONTROL_QUEUE].flush();
        }
    }

    /// Takes all answers that have come.
    ///
    /// # Errors
    /// If one of them should not be.
    pub fn take(&mut self, front: &mut FrontEnd) -> Result<Vec<(T, Response)>> {
        // Functions first: what they have ended is there then.
        let mut ended = Vec::new();
        let control = |why| anyhow!("control queue: {why:?}");
        while let Some((ticket, response, ..)) = front.driver.poll_raw(CONTROL_QUEUE).map_err(control)? {
            ensure!(response[0] == 0, "a function was answered with {}", response[0]);
            ended.extend(self.functions.remove(&ticket).context("a function that nobody asked for")?);
        }
        let mut answers = Vec::new();
        for queue in FIRST_REQUEST_QUEUE..front.driver.queues.len() {
            while let Some((ticket, response)) = front.poll(queue)? {
                answers.push((self.answered((queue, ticket))?, response));
            }
        }
        ensure!(ended.iter().all(|name| !self.commands.contains_key(name)), "a command outlives its abort");
        Ok(answers)
    }

    /// # Errors
    /// If something is not answered.
    pub fn ensure_none(&self) -> Result<()> {
        let (commands, functions) = (self.commands.len(), self.functions.len());
        ensure!(commands + functions == 0, "idle with {commands} commands and {functions} functions unanswered");
        Ok(())
    }
}
