//! Third-party copies: data that goes from unit to unit without its initiator seeing it (SPC-5, clause 5.18).
//!
//! The unit that is sent a copy command is its *copy manager*. The command's list names *ends* (the units to read and to
//! write) and *segments* (what goes where). In order: the list is parsed ([`list`]), which gives a [`CopyOrder`]; the front
//! end looks its names up, among the units that the asking initiator can address and nowhere else, and makes a [`Copy`]
//! of it ([`order`]); that says piece by piece what to read and what to write ([`work`]), while a record of it at the
//! copy manager answers who asks how it goes ([`record`]).
//!
//! What an initiator may do by a copy is what it may do by its own READ and WRITE at that moment: reservations, write
//! protection, capacity and the stopped state of both ends are looked at before each piece.

mod list;
mod name;
mod order;
mod record;
mod rights;
mod work;

pub(crate) use list::{LONGEST as LONGEST_LIST, ListId, lid1, lid4};
pub use name::Designator;
pub use order::{CopyOrder, End};
pub(crate) use record::{Copies, Progress, State};
pub use work::{Copy, CopyTask};

/// MAXIMUM CSCD DESCRIPTOR COUNT.
pub(crate) const MOST_ENDS: u16 = 16;
/// MAXIMUM SEGMENT DESCRIPTOR COUNT.
pub(crate) const MOST_SEGMENTS: u16 = 128;
/// MAXIMUM DESCRIPTOR LIST LENGTH.
pub(crate) const MOST_DESCRIPTOR_BYTES: u32 = MOST_ENDS as u32 * 32 + MOST_SEGMENTS as u32 * 28;
/// MAXIMUM SEGMENT LENGTH in bytes: what 16 bits of the largest blocks can say.
pub(crate) const MOST_SEGMENT_BYTES: u32 = 0xFFFF * 4096;
/// Copies that one initiator may have going on at one copy manager; further ones are BUSY.
pub(crate) const MOST_COPIES: u8 = 16;
/// The CSCD descriptor ID of the copy manager's own unit.
pub(crate) const SELF: u16 = 0xFFFF;
/// The descriptors that lists may have: block to block, and identification descriptors.
pub(crate) const DESCRIPTOR_TYPES: [u8; 2] = [0x02, 0xE4];
