//! A SCSI target that knows nothing of virtio: a CDB goes in, an [`Action`] comes out.
//!
//! A [`LogicalUnit`] is a disk's state, shared by everything that serves it. A front end attaches a [`Path`] for each
//! initiator that reaches the unit, and hands every command to [`LogicalUnit::execute`], which answers at once: move
//! data between guest and device ([`Action::Io`]), work on the device without guest data ([`Action::Plan`]), compare or
//! combine what both hold ([`Action::Job`]), copy from unit to unit ([`Action::Copy`]), fetch parameter data and ask
//! again ([`Action::DataOut`]), have something saved ([`Action::Save`]), find out something that may take its time
//! ([`Action::Survey`]), end others' commands ([`Action::Abort`]), give the whole medium new content
//! ([`Action::Wipe`]), hand the command to a device ([`Action::Pass`]), or done ([`Action::Done`]). Nothing in here
//! blocks, does I/O or sees guest memory.
//!
//! The way of a command: `execute` (fast path, else unit attention, readiness) → `commands` (the table of opcodes: CDB
//! check, handler) → `commands::*` (handlers by family). `docs/scsi.md` says what is answered, with the clauses.

#![forbid(unsafe_code)]

mod action;
mod attention;
mod cdb;
mod claims;
mod clock;
mod commands;
mod copy;
mod data_in;
mod execute;
mod geometry;
mod identifying;
mod identity;
mod job;
mod keeper;
mod medium;
mod modes;
mod nexus;
mod plan;
mod reservations;
mod rules;
mod sense;
mod supply;
mod task_set;
#[cfg(test)]
mod testing;
mod text;
mod through;
mod unit;
mod wipe;

pub use action::{Action, Outcome, SCRATCH_LEN, SCRATCH_MIN, Status, io_outcome, io_sense};
pub use attention::Attention;
pub use cdb::Cdb;
pub use claims::Order;
pub use commands::lba_status::Survey;
pub use copy::{Copy, CopyOrder, CopyTask, Designator, End};
pub use execute::{Inventory, PlainIo, execute_absent, execute_well_known};
pub use identity::{Chosen, Identity, IdentityError, Naa, SERIAL_MAX};
pub use job::{Job, PIECE_LEN, Task};
pub use keeper::{Keeper, Save, Saved, Sections, Tell};
pub use medium::{Medium, Share, Transfers};
pub use nexus::{Nexus, Path};
pub use plan::{PATTERN_STEP_LEN, Plan, STEP_LEN, Step};
pub use reservations::unit::Preempted;
pub use reservations::{RegistrationInfo, ReservationsInfo};
pub use rules::{Attribute, Class, Rank, Rule, rule};
pub use sense::{CopySense, FieldPointer, Forwarded, Key, SENSE_LEN, Sense, code};
pub use task_set::{Entered, Place};
pub use through::{Allow, Pass, direction};
pub use unit::LogicalUnit;
pub use wipe::{Begun, Wipe, WipeEnd};
