//! One reactor's way to the medium.

use std::sync::Arc;
use std::thread;

use pollux_core::{Channel, Completion, Cx, Io, IoError, Next, Tag};

use super::Medium;
use super::flight::ChannelId;

pub(super) struct MediumChannel {
    pub(super) medium: Medium,
    pub(super) id: ChannelId,
    pub(super) depth: u32,
    pub(super) in_flight: u32,
    pub(super) polls: u64,
    pub(super) attached: bool,
}

impl Channel for MediumChannel {
    fn depth(&self) -> u32 {
        self.depth
    }

    fn attach(&mut self, _cx: &mut Cx<'_>) -> Result<(), IoError> {
        assert!(!std::mem::replace(&mut self.attached, true), "a channel is attached once");
        Ok(())
    }

    fn detach(&mut self, _cx: &mut Cx<'_>) {
        assert!(std::mem::take(&mut self.attached), "a channel is detached once, after it was attached");
        assert_eq!(self.in_flight, 0, "a channel is detached with nothing in flight");
    }

    fn submit(&mut self, io: Io, _cx: &mut Cx<'_>) {
        assert!(self.attached, "a channel is attached before it is used");
        assert!(self.in_flight < self.depth, "more than {} requests in flight", self.depth);
        self.in_flight += 1;
        self.medium.state().submit(self.id, io, self.polls);
    }

    fn poll(&mut self, _cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        assert!(self.attached, "a channel is attached before it is used");
        let before = done.len();
        self.medium.state().poll(self.id, self.polls, done);
        self.polls += 1;
        self.in_flight -= (done.len() - before) as u32;
    }

    fn next(&self) -> Next {
        self.medium.state().next(self.id)
    }

    fn cancel(&mut self, tag: Tag, _cx: &mut Cx<'_>) {
        self.medium.state().cancel(self.id, tag);
    }
}

impl Drop for MediumChannel {
    fn drop(&mut self) {
        let state = &mut self.medium.state();
        // The data of what is in flight goes with its owner: only when all is over is that nobody's loss.
        let killed = state.flights.iter().all(|flight| flight.channel != self.id);
        let allowed = self.in_flight == 0 || killed || !state.power.is_on() || thread::panicking();
        state.close(self.id);
        assert!(allowed, "a channel is dropped with the power on and {} in flight", self.in_flight);
    }
}

impl MediumChannel {
    pub(super) fn new(medium: &Medium, depth: u32) -> Self {
        let medium = Medium { state: Arc::clone(&medium.state) };
        let id = medium.state().open();
        MediumChannel { medium, id, depth, in_flight: 0, polls: 0, attached: false }
    }
}
