//! Instants of a run, and the one at which the power goes off.
//!
//! An instant is the submission or the completion of a change or a flush. Reads are none: they leave the medium as it is.

/// What becomes of changes and flushes when the power is off. (Reads are answered.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Off {
    /// They stay in flight for ever.
    #[default]
    Frozen,
    /// They fail at the next poll, for code that would wait for ever: that opens a pool, say.
    Failing,
}

/// Counts instants.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Power {
    instants: u64,
    stop: Option<u64>,
    pub(super) off: Off,
}

impl Power {
    pub(super) const fn instants(&self) -> u64 {
        self.instants
    }

    pub(super) const fn stop_after(&mut self, instants: u64) {
        self.stop = Some(instants);
    }

    pub(super) fn is_on(&self) -> bool {
        self.stop.is_none_or(|stop| self.instants < stop)
    }

    /// One more instant.
    pub(super) fn tick(&mut self) {
        assert!(self.is_on(), "without power nothing happens");
        self.instants += 1;
    }
}
