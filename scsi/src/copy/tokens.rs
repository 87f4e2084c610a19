//! The tokens of a unit: which data they stand for, and until when (SPC-5, clause 5.18.8).
//!
//! A token is *change vulnerable*: it stands for what its ranges held when it was made, and it is *revoked* by the first
//! command that is about to change any of that, whoever sends it. So nothing is kept of the data, and no write ever waits
//! for a token. While there is one that is good the geometry word sends every command the long way, as for claims; what
//! changes data says so there before it touches the device ([`LogicalUnit::admit`], [`LogicalUnit::claim`]). Without
//! a good token nobody looks.
//!
//! A token is made like a claim: it takes its place in the order of claims, everybody is asked for what was under way
//! on its ranges, and when that has ended, and with it the claims made before, what the ranges hold is what it stands for
//! ([`CopyTask::Settle`](crate::CopyTask::Settle)). What comes after it was put into the table revokes it, settled or not.
//!
//! Who reads by a token asks after each read whether it is still good: who changes data revokes first and writes then, so
//! data that was changed never passes for the token's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::copy::rod::{self, TokenBytes};
use crate::plan::Range;
use crate::unit::Cold;
use crate::{Key, LogicalUnit, Nexus, Order, Path, Sense, code};

/// Tokens that are known of one initiator at one unit, good or not; a further one takes the place of the oldest.
const MOST_OF_INITIATOR: usize = 32;
/// Tokens that are known at one unit.
const MOST_OF_UNIT: usize = 256;

/// What never changes of a token.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) bytes: Box<TokenBytes>,
    /// In bytes, one behind the other; none is empty.
    pub(crate) ranges: Vec<Range>,
    /// The least range that holds all of them.
    pub(crate) hull: Range,
    /// Its place among the claims of the unit.
    pub(crate) order: Order,
    maker: Arc<Nexus>,
    timeout_ns: u64,
}

impl Token {
    /// How many bytes it stands for.
    pub(crate) fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.len).sum()
    }

    fn holds_any_of(&self, range: Range) -> bool {
        self.hull.overlaps(range) && self.ranges.iter().any(|own| own.overlaps(range))
    }
}

/// What has become of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// What was under way on its ranges has not ended yet.
    Settling,
    Good,
    Revoked,
    Expired,
    Deleted,
}

impl State {
    /// Whether something may still revoke it.
    const fn is_watching(self) -> bool {
        matches!(self, State::Settling | State::Good)
    }

    /// How a command with it ends, if not well.
    const fn check(self) -> Result<(), Sense> {
        let code = match self {
            State::Good => return Ok(()),
            State::Settling => return Err(rod::UNKNOWN),
            State::Revoked => code::TOKEN_REVOKED,
            State::Expired => code::TOKEN_EXPIRED,
            State::Deleted => code::TOKEN_DELETED,
        };
        Err(Sense::new(Key::IllegalRequest, code))
    }
}

#[derive(Debug)]
struct Entry {
    token: Arc<Token>,
    state: State,
    /// When it was used last, by the front end's clock.
    used_ns: u64,
    /// Copies that read by it.
    users: u32,
}

impl Entry {
    /// When it expires, if it can.
    fn expires_ns(&self) -> u64 {
        let counts = self.state == State::Good && self.users == 0;
        if counts { self.used_ns.saturating_add(self.token.timeout_ns) } else { u64::MAX }
    }
}

/// The table of a unit, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Vec<Entry>);

impl Tokens {
    /// Whether somebody has to be told before data is changed.
    pub(crate) fn are_watching(&self) -> bool {
        self.0.iter().any(|entry| entry.state.is_watching())
    }

    /// A range is about to be changed; whether a token has ended by that.
    fn revoke(&mut self, range: Range) -> bool {
        let mut any = false;
        for entry in self.0.iter_mut().filter(|entry| entry.state.is_watching()) {
            if entry.token.holds_any_of(range) {
                (entry.state, any) = (State::Revoked, true);
            }
        }
        any
    }

    /// All that is from `end` on is gone or another.
    pub(crate) fn revoke_from(&mut self, end: u64) {
        for entry in self.0.iter_mut().filter(|entry| entry.state.is_watching()) {
            if entry.token.hull.offset + entry.token.hull.len > end {
                entry.state = State::Revoked;
            }
        }
    }

    /// Forgets what the nexus of a path has made.
    pub(crate) fn forget_those_of(&mut self, nexus: &Arc<Nexus>) {
        self.0.retain(|entry| !Arc::ptr_eq(&entry.token.maker, nexus));
    }

    fn entry(&mut self, token: &Arc<Token>) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| Arc::ptr_eq(&entry.token, token))
    }

    /// Makes room for one of an initiator's, if there can be.
    fn make_room(&mut self, initiator: u64) -> Result<(), Sense> {
        let of_initiator = |entry: &Entry| entry.token.maker.initiator() == initiator;
        if self.0.len() >= MOST_OF_UNIT
            && let Some(at) = self.0.iter().position(|entry| !entry.state.is_watching() && entry.users == 0)
        {
            self.0.remove(at);
        }
        if self.0.iter().filter(|entry| of_initiator(entry)).count() >= MOST_OF_INITIATOR {
            let idle = |entry: &Entry| of_initiator(entry) && entry.users == 0 && entry.state != State::Settling;
            let dead = self.0.iter().position(|entry| idle(entry) && !entry.state.is_watching());
            let oldest = dead.or_else(|| self.0.iter().position(idle));
            self.0.remove(oldest.ok_or(NO_ROOM)?);
        }
        if self.0.len() < MOST_OF_UNIT { Ok(()) } else { Err(NO_ROOM) }
    }

    /// When [`LogicalUnit::pass_time`] has something to do.
    fn due_ns(&self) -> u64 {
        self.0.iter().map(Entry::expires_ns).min().unwrap_or(u64::MAX)
    }
}

const NO_ROOM: Sense = Sense::new(Key::IllegalRequest, code::INSUFFICIENT_RESOURCES_FOR_TOKEN);

impl Cold {
    /// A range is about to be changed; whether that makes a difference to what is published.
    pub(crate) fn changes(&mut self, range: Range) -> bool {
        self.tokens.revoke(range) && !self.tokens.are_watching()
    }
}

impl LogicalUnit {
    /// Time passes for the unit's tokens: those that nobody has used for long enough expire. The front end says so
    /// before each command that goes the long way ([`LogicalUnit::is_claimed`]), by a clock in nanoseconds that all its
    /// threads share.
    pub fn pass_time(&self, now_ns: u64) {
        if now_ns >= self.tokens_due_ns.load(Ordering::Relaxed) {
            self.expire_tokens(now_ns);
        }
    }

    #[cold]
    fn expire_tokens(&self, now_ns: u64) {
        let mut cold = self.lock();
        for entry in &mut cold.tokens.0 {
            if entry.expires_ns() <= now_ns {
                entry.state = State::Expired;
            }
        }
        self.publish_tokens(&cold);
    }

    fn publish_tokens(&self, cold: &Cold) {
        self.tokens_due_ns.store(cold.tokens.due_ns(), Ordering::Relaxed);
        self.publish(cold);
    }

    /// Makes a token for some ranges, which watches them from now on. It is good when what was under way has ended
    /// ([`LogicalUnit::settled`]).
    pub(crate) fn make_token(&self, path: &Path, ranges: Vec<Range>, timeout_s: u32) -> Result<Arc<Token>, Sense> {
        let identity = self.identity();
        let mut cold = self.lock();
        let shape = cold.last_shape().ok_or(Sense::NOT_READY)?;
        let nexus = path.nexus();
        cold.tokens.make_room(nexus.initiator())?;
        let len = ranges.iter().map(|range| range.len).sum();
        let hull = ranges.iter().fold(Range { offset: 0, len: 0 }, |hull, range| hull.hull(*range));
        let token = Arc::new(Token {
            bytes: rod::create(&identity, &shape, len),
            ranges,
            hull,
            order: cold.claims.next_order(),
            maker: nexus.clone(),
            timeout_ns: u64::from(timeout_s) * 1_000_000_000,
        });
        let state = State::Settling;
        cold.tokens.0.push(Entry { token: token.clone(), state, used_ns: 0, users: 0 });
        self.publish_tokens(&cold);
        Ok(token)
    }

    /// Nothing of before is under way on a token's ranges any more: it can be used, unless it was revoked already.
    pub(crate) fn settled(&self, token: &Arc<Token>, now_ns: u64) {
        let mut cold = self.lock();
        if let Some(entry) = cold.tokens.entry(token) {
            entry.used_ns = now_ns;
            if entry.state == State::Settling {
                entry.state = State::Good;
            }
        }
        self.publish_tokens(&cold);
    }

    /// A token that nobody was told of is not wanted any more.
    pub(crate) fn drop_token(&self, token: &Arc<Token>) {
        let mut cold = self.lock();
        cold.tokens.0.retain(|entry| !Arc::ptr_eq(&entry.token, token));
        self.publish_tokens(&cold);
    }

    /// The token with these bytes, if it is good; it does not expire before [`LogicalUnit::leave_token`].
    pub(crate) fn use_token(&self, bytes: &TokenBytes, now_ns: u64) -> Result<Arc<Token>, Sense> {
        self.pass_time(now_ns);
        let mut cold = self.lock();
        let entry = cold.tokens.0.iter_mut().find(|entry| *entry.token.bytes == *bytes).ok_or(rod::UNKNOWN)?;
        entry.state.check()?;
        entry.users += 1;
        let token = entry.token.clone();
        self.publish_tokens(&cold);
        Ok(token)
    }

    /// A copy reads no more by a token, and was the last to do so if `delete`.
    pub(crate) fn leave_token(&self, token: &Arc<Token>, delete: bool, now_ns: u64) {
        let mut cold = self.lock();
        if let Some(entry) = cold.tokens.entry(token) {
            entry.users -= 1;
            entry.used_ns = entry.used_ns.max(now_ns);
            if delete && entry.state == State::Good {
                entry.state = State::Deleted;
            }
        }
        self.publish_tokens(&cold);
    }

    /// Whether a token is still good; how a command with it ends if not.
    pub(crate) fn check_token(&self, token: &Arc<Token>) -> Result<(), Sense> {
        self.lock().tokens.entry(token).map_or(Err(rod::UNKNOWN), |entry| entry.state.check())
    }

    /// A range is about to be changed.
    pub(crate) fn about_to_change(&self, range: Range) {
        let mut cold = self.lock();
        if cold.changes(range) {
            self.publish_tokens(&cold);
        }
    }

    /// The good tokens that a path's initiator has made, as far as they are shown.
    pub(crate) fn tokens_of(&self, path: &Path) -> Vec<[u8; rod::MANAGEMENT_LEN]> {
        let cold = self.lock();
        let own =
            |entry: &&Entry| entry.state == State::Good && entry.token.maker.initiator() == path.nexus().initiator();
        let shown = |entry: &Entry| entry.token.bytes.first_chunk().copied();
        cold.tokens.0.iter().filter(own).filter_map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, shape};
    use pollux_core::Shape;

    const SECOND: u64 = 1_000_000_000;

    fn range(lba: u64, blocks: u64) -> Range {
        Range { offset: lba * 512, len: blocks * 512 }
    }

    fn make(bench: &Bench, path: &Path, ranges: &[Range], now_ns: u64) -> Arc<Token> {
        let token = bench.unit.make_token(path, ranges.to_vec(), 10).unwrap();
        bench.unit.settled(&token, now_ns);
        token
    }

    fn code(result: Result<(), Sense>) -> Result<(), u16> {
        result.map_err(|sense| sense.code())
    }

    #[test]
    fn what_changes_a_byte_of_it_ends_a_token_and_nothing_else_does() {
        let bench = Bench::new();
        let unit = &bench.unit;
        assert!(!unit.is_claimed());
        let token = make(&bench, &bench.path, &[range(8, 8), range(100, 10)], 0);
        assert!(unit.is_claimed(), "everybody comes the long way");
        for (lba, blocks) in [(0, 8), (16, 84), (110, 1000)] {
            assert!(unit.admit(lba * 512, blocks * 512, true, 0).is_ok());
        }
        assert!(unit.admit(0, 1 << 20, false, 0).is_ok(), "a read");
        assert_eq!(code(unit.check_token(&token)), Ok(()));
        assert!(unit.admit(109 * 512, 512, true, 0).is_ok());
        assert_eq!(code(unit.check_token(&token)), Err(0x2306));
        assert_eq!(code(unit.use_token(&token.bytes, 0).map(drop)), Err(0x2306));
        assert!(!unit.is_claimed(), "nobody watches any more");
    }

    #[test]
    fn a_claim_and_a_command_that_waits_for_one_end_it_as_well() {
        let bench = Bench::new();
        let unit = &bench.unit;
        let token = make(&bench, &bench.path, &[range(8, 8)], 0);
        let claim = unit.claim(0, 8 * 512);
        assert_eq!(code(unit.check_token(&token)), Ok(()), "beside it");
        assert!(unit.admit(7 * 512, 1024, true, 0).is_err());
        assert_eq!(code(unit.check_token(&token)), Err(0x2306));
        let token = make(&bench, &bench.path, &[range(0, 1)], 0);
        let _ = unit.release(claim);
        let second = unit.claim(0, 512);
        assert_eq!(code(unit.check_token(&token)), Err(0x2306));
        let _ = unit.release(second);
        assert!(!unit.is_claimed());
    }

    #[test]
    fn one_that_has_not_settled_waits_for_claims_made_before_it_and_is_nobodys() {
        let bench = Bench::new();
        let unit = &bench.unit;
        let claim = unit.claim(0, 512);
        let token = unit.make_token(&bench.path, vec![range(0, 8)], 10).unwrap();
        assert!(!unit.may_start(token.order, 0, 4096, 3));
        assert_eq!(code(unit.use_token(&token.bytes, 0).map(drop)), Err(0x2304));
        assert_eq!(unit.tokens_of(&bench.path), [[0; 96]; 0]);
        assert_eq!(unit.release(claim), [3]);
        assert!(unit.may_start(token.order, 0, 4096, 3));
        unit.settled(&token, 0);
        assert_eq!(unit.tokens_of(&bench.path), [*token.bytes.first_chunk::<96>().unwrap()]);
        assert_eq!(unit.tokens_of(&bench.other), [[0; 96]; 0], "another initiator's");
        let early = unit.make_token(&bench.path, vec![range(20, 1)], 10).unwrap();
        assert!(unit.admit(20 * 512, 512, true, 0).is_ok());
        unit.settled(&early, 0);
        assert_eq!(code(unit.check_token(&early)), Err(0x2306), "changed before it had settled");
        let unwanted = unit.make_token(&bench.path, vec![range(30, 1)], 10).unwrap();
        unit.drop_token(&unwanted);
        assert_eq!(code(unit.check_token(&unwanted)), Err(0x2304));
    }

    #[test]
    fn a_token_expires_when_nobody_has_used_it_for_long_enough() {
        let bench = Bench::new();
        let unit = &bench.unit;
        let token = make(&bench, &bench.path, &[range(0, 1)], SECOND);
        unit.pass_time(11 * SECOND - 1);
        assert_eq!(code(unit.check_token(&token)), Ok(()));
        assert!(unit.use_token(&token.bytes, 10 * SECOND).is_ok());
        unit.pass_time(100 * SECOND);
        assert_eq!(code(unit.check_token(&token)), Ok(()), "somebody reads by it");
        unit.leave_token(&token, false, 100 * SECOND);
        unit.pass_time(110 * SECOND - 1);
        assert!(unit.is_claimed());
        unit.pass_time(110 * SECOND);
        assert!(!unit.is_claimed());
        assert_eq!(code(unit.use_token(&token.bytes, 110 * SECOND).map(drop)), Err(0x2307));
        let token = make(&bench, &bench.path, &[range(0, 1)], 200 * SECOND);
        assert_eq!(code(unit.use_token(&token.bytes, 300 * SECOND).map(drop)), Err(0x2307), "nobody said so before");
        let token = make(&bench, &bench.path, &[range(0, 1)], 300 * SECOND);
        assert!(unit.use_token(&token.bytes, 300 * SECOND).is_ok());
        unit.leave_token(&token, true, 300 * SECOND);
        assert_eq!(code(unit.use_token(&token.bytes, 300 * SECOND).map(drop)), Err(0x2309));
    }

    #[test]
    fn what_happens_to_the_device_ends_tokens() {
        let bench = Bench::new();
        let unit = &bench.unit;
        let both = || [make(&bench, &bench.path, &[range(0, 1)], 0), make(&bench, &bench.path, &[range(4095, 1)], 0)];
        let check = |tokens: &[Arc<Token>; 2]| [0, 1].map(|at| code(unit.check_token(&tokens[at])));
        let tokens = both();
        unit.set_shape(Some(Shape { num_blocks: 5000, ..shape() }));
        unit.set_shape(Some(shape()));
        assert_eq!(check(&tokens), [Ok(()), Ok(())], "larger, and as large as before");
        unit.set_shape(Some(Shape { num_blocks: 4095, ..shape() }));
        assert_eq!(check(&tokens), [Ok(()), Err(0x2306)], "smaller");
        unit.set_shape(Some(shape()));
        let tokens = both();
        unit.set_shape(None);
        assert_eq!(check(&tokens), [Err(0x2306); 2], "gone");
        assert!(!unit.is_claimed());
        unit.set_shape(Some(shape()));
        let tokens = both();
        unit.set_shape(Some(Shape { block_size: 4096, num_blocks: 4096, ..shape() }));
        assert_eq!(check(&tokens), [Err(0x2306); 2], "other blocks");
        unit.set_shape(Some(shape()));
        let tokens = both();
        unit.reset(Some(&bench.other));
        assert_eq!(check(&tokens), [Ok(()), Ok(())], "a reset changes no data");
        unit.detach(&bench.path);
        assert_eq!(check(&tokens), [Err(0x2304); 2], "its maker has gone");
        assert!(!unit.is_claimed());
    }

    #[test]
    fn a_further_token_takes_the_place_of_the_oldest_of_its_initiator() {
        let bench = Bench::new();
        let unit = &bench.unit;
        let others = make(&bench, &bench.other, &[range(0, 1)], 0);
        let tokens: Vec<_> = (0..MOST_OF_INITIATOR).map(|_| make(&bench, &bench.path, &[range(1, 1)], 0)).collect();
        let _ = unit.use_token(&tokens[0].bytes, 0).unwrap();
        make(&bench, &bench.path, &[range(2, 1)], 0);
        assert_eq!(code(unit.check_token(&tokens[0])), Ok(()), "in use");
        assert_eq!(code(unit.check_token(&tokens[1])), Err(0x2304));
        assert!(unit.admit(512, 512, true, 0).is_ok());
        make(&bench, &bench.path, &[range(2, 1)], 0);
        assert_eq!(code(unit.check_token(&tokens[2])), Err(0x2304), "the dead go first");
        assert_eq!(unit.tokens_of(&bench.path).len(), 2);
        assert_eq!(code(unit.check_token(&others)), Ok(()));
        let unsettled: Vec<_> =
            (0..MOST_OF_INITIATOR).filter_map(|_| unit.make_token(&bench.path, vec![range(3, 1)], 1).ok()).collect();
        assert_eq!(unsettled.len(), MOST_OF_INITIATOR - 1, "all but the one in use");
        assert_eq!(code(unit.make_token(&bench.path, vec![range(3, 1)], 1).map(drop)), Err(0x550D));
    }
}
