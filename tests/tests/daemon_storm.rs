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
//! `POLLUX_LONG=1` has each storm last ten times as long.

mod common;
mod storm;

use std::time::Duration;

use anyhow::{Result, ensure};
use storm::{Beside, Tally, storm};

fn lasts(seconds: u64) -> Duration {
    let long = std::env::var("POLLUX_LONG").is_ok_and(|value| value == "1");
    Duration::from_secs(seconds * if long { 10 } else { 1 })
}

#[test]
fn a_storm_of_functions_loses_doubles_and_delays_nothing() -> Result<()> {
    let tally = storm(1, lasts(8), Beside { functions: true, ..Beside::default() })?;
    println!("{tally:?}");
    let Tally { good, early, told, conflicts, increments, functions, found, .. } = tally;
    // Far less than on an idle machine.
    ensure!(good > 300 && early > 100 && functions > 50 && found > 2, "{tally:?}");
    ensure!(told > 30 && conflicts > 2 && increments > 2, "{tally:?}");
    Ok(())
}

#[test]
fn a_storm_while_sessions_die_and_queues_stop() -> Result<()> {
    let tally = storm(2, lasts(8), Beside { functions: true, deaths: true, stops: true })?;
    println!("{tally:?}");
    let Tally { good, early, deaths, stops, left, .. } = tally;
    ensure!(good > 200 && early > 100 && deaths > 3 && stops > 15 && left > 3, "{tally:?}");
    Ok(())
}
