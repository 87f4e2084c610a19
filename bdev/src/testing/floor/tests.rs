use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use pollux_core::{Bdev, OpenArgs};

use super::*;
use crate::testing::medium::{Geometry, Medium, Order};

fn medium() -> Medium {
    Medium::new(Geometry::with_512(1 << 20), Order::Seeded(1))
}

#[test]
fn a_full_channel_takes_the_rest_later() {
    let medium = medium();
    let mut floor = Floor::seeded(1);
    let lane = floor.channel(0, medium.open(OpenArgs { depth: 2, seed: 0 }).unwrap()).unwrap();
    let tickets: Vec<Ticket> = (0..20)
        .map(|nth| floor.submit(lane, Request::write(nth * 512, vec![nth as u8; 512], IoFlags::empty())))
        .collect();
    for ticket in tickets {
        assert_eq!(floor.run_until(ticket), Ok(Vec::new()));
    }
    let all = floor.read(lane, 0, 20 * 512).unwrap();
    assert!(all.chunks(512).enumerate().all(|(nth, sector)| sector.iter().all(|byte| *byte == nth as u8)));
    floor.close(lane);
}

#[test]
fn engines_are_polled_on_their_reactors_until_nobody_does_anything() {
    let work = Cell::new(5);
    let (polls, reactors) = (Cell::new(0), RefCell::new(BTreeSet::new()));
    let mut floor = Floor::seeded(2);
    for reactor in [3, 4] {
        floor.engine(reactor, |cx: &mut Cx<'_>| {
            polls.set(polls.get() + 1);
            reactors.borrow_mut().insert(cx.reactor);
            let left: u32 = work.get();
            work.set(left.saturating_sub(1));
            left > 0
        });
    }
    floor.settle(0);
    assert_eq!(work.get(), 0);
    assert_eq!(*reactors.borrow(), [3, 4].into());
    let before = polls.get();
    assert!(before >= 7, "each has looked in vain: {before}");
    work.set(1);
    floor.stir();
    floor.settle(0);
    assert_eq!(work.get(), 0);
}

struct Timer<'a> {
    at: Option<u64>,
    rang: &'a Cell<u64>,
}

impl Engine for Timer<'_> {
    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        if self.at.is_some_and(|at| at <= cx.now) {
            self.at = None;
            self.rang.set(cx.now);
            return 1;
        }
        0
    }

    fn next(&self) -> Next {
        self.at.map_or(Next::Idle, Next::At)
    }
}

#[test]
fn time_moves_to_when_somebody_waits_for_it_and_not_beyond_the_deadline() {
    let rang = Cell::new(0);
    let mut floor = Floor::in_order();
    let at = floor.now() + 5_000_000_000;
    floor.engine(0, Timer { at: Some(at), rang: &rang });
    floor.settle(1_000_000_000);
    assert_eq!(rang.get(), 0);
    floor.settle(5_000_000_000);
    assert!(rang.get() >= at && rang.get() < at + 1_000_000, "{}", rang.get());
}

/// Hands what one reactor has put into a cell on to another, with or without waking it.
fn handed_on(wakes: bool) -> bool {
    let (box_, waker, got) = (Cell::new(false), RefCell::new(None), Cell::new(false));
    let mut floor = Floor::in_order();
    floor.engine(1, |cx: &mut Cx<'_>| {
        waker.borrow_mut().get_or_insert(cx.ring.waker());
        got.set(got.get() || box_.get());
        box_.take()
    });
    floor.settle(0);
    floor.engine(0, |_: &mut Cx<'_>| {
        box_.set(!got.get());
        if let Some(waker) = waker.borrow().as_ref().filter(|_| wakes) {
            waker.wake();
        }
        false
    });
    floor.settle(0);
    got.get()
}

#[test]
fn who_is_not_woken_sleeps_on() {
    assert!(handed_on(true));
    assert!(!handed_on(false));
}

#[test]
#[should_panic(expected = "is never answered")]
fn a_request_that_is_never_answered_is_found() {
    let medium = medium();
    medium.stop_after(0);
    let mut floor = Floor::seeded(1);
    let lane = floor.channel(0, medium.open(OpenArgs { depth: 2, seed: 0 }).unwrap()).unwrap();
    let _ = floor.flush(lane);
}
