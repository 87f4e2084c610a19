//! Third-party copies: data that goes from unit to unit without its initiator seeing it (SPC-5, clause 5.18).
//!
//! The unit that is sent a copy command is its *copy manager*. The command's list names *ends* (the units to read and to
//! write) and *segments* (what goes where). In order: the list is parsed ([`list`]), which gives a [`CopyOrder`]; the front
//! end looks its names up, among the units that the asking initiator can address and nowhere else, and makes a [`Copy`]
//! of it ([`order`]); that says piece by piece what to read and what to write ([`work`]), while a record of it at the
//! copy manager answers who asks how it goes ([`record`]).
//!
//! A *token* stands for data of a unit as it was at one moment ([`tokens`], [`rod`]). POPULATE TOKEN makes one, WRITE USING
//! TOKEN is a copy whose source is what a token stands for ([`using`]; their lists: [`ranges`]).
//!
//! What an initiator may do by a copy is what it may do by its own READ and WRITE at that moment: reservations, write
//! protection, capacity and the stopped state of both ends are looked at before each piece.

mod holes;
mod list;
mod name;
mod order;
mod ranges;
mod record;
mod rights;
pub(crate) mod rod;
pub(crate) mod tokens;
mod using;
mod work;

pub(crate) use list::{LONGEST as LONGEST_LIST, ListId, lid1, lid4};
pub use name::Designator;
pub use order::{CopyOrder, End};
pub(crate) use ranges::{LONGEST_RANGES, populate, use_token};
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
/// MAXIMUM RANGE DESCRIPTORS of a token, and of what is written by one. All of those of all good tokens of a unit are looked
/// through by each command that writes there.
pub(crate) const MOST_RANGES: u16 = 32;
/// MAXIMUM TOKEN TRANSFER SIZE in bytes.
pub(crate) const MOST_TOKEN_BYTES: u64 = 1 << 30;
/// OPTIMAL TRANSFER COUNT in bytes: what takes a slow device a second or two.
pub(crate) const OPTIMAL_TOKEN_BYTES: u64 = 64 << 20;
/// MAXIMUM INACTIVITY TIMEOUT, and what 0 stands for.
pub(crate) const MOST_TIMEOUT_S: u32 = 600;
pub(crate) const DEFAULT_TIMEOUT_S: u32 = 60;
/// The CSCD descriptor ID of the copy manager's own unit.
pub(crate) const SELF: u16 = 0xFFFF;
/// The descriptors that lists may have: block to block, and identification descriptors.
pub(crate) const DESCRIPTOR_TYPES: [u8; 2] = [0x02, 0xE4];
