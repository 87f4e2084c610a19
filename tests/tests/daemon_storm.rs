//! Storms of aborts and resets over the real daemon: two reactors, four guests in threads of their own on disks that they
//! share, slow ones and stuck ones, with every task attribute, COMPARE AND WRITE, reservations that are preempted, sockets
//! that are closed and queues that stop with commands in flight. (`sim_storm` has the same in a simulated world, where
//! each moment is known; this has real threads, a real ring, and a real kernel that writes into guest memory.)
//!
//! - Every command and function is answered once, and a function not before the commands in its scope.
//! - Memory of an answered command is the guest's: it is overwritten at once, and what the device still does with it
//!   shows there or on the disk. So is the memory of a session that ended, when the next one has begun, and whatever a
//!   stopped queue had taken.
//! - What is read has to be possible given what was written; no increment by COMPARE AND WRITE is lost.
//! - Within a queue an ORDERED command is answered behind what came before it and before what comes after.
//!
//! A storm lasts some seconds, and until enough of everything has happened, however busy the machine is.
//! `POLLUX_LONG=1` has each storm last ten times as long.

mod common;
mod storm;

use std::time::Duration;

use anyhow::Result;
use storm::{Beside, Tally, storm};

fn lasts(seconds: u64) -> Duration {
    let long = std::env::var("POLLUX_LONG").is_ok_and(|value| value == "1");
    Duration::from_secs(seconds * if long { 10 } else { 1 })
}

#[test]
fn a_storm_of_functions_loses_doubles_and_delays_nothing() -> Result<()> {
    // Of what is not named, nothing has to happen.
    let enough = Tally {
        good: 1000,
        early: 500,
        functions: 300,
        found: 20,
        told: 300,
        conflicts: 10,
        increments: 10,
        ..Tally::default()
    };
    let tally = storm(1, lasts(8), Beside { functions: true, ..Beside::default() }, &enough)?;
    println!("{tally:?}");
    Ok(())
}

#[test]
fn a_storm_while_sessions_die_and_queues_stop() -> Result<()> {
    let enough = Tally { good: 500, early: 200, deaths: 15, stops: 100, left: 50, ..Tally::default() };
    let tally = storm(2, lasts(8), Beside { functions: true, deaths: true, stops: true }, &enough)?;
    println!("{tally:?}");
    Ok(())
}
