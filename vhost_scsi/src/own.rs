//! The worker's own memory between guest and device, for commands that look at data on its way ([`pollux_scsi::Job`]).
//! There is little of it, whatever guests ask for; who finds none waits, and a session has a part of it at most.
//!
//! A piece goes to another session only when what was in it is cleared: not every device fills what it was asked to read
//! (the null disk leaves the buffer as it is), and what then is written, or compared with, is nobody else's.

#![allow(unsafe_code)]

use pollux_core::{Op, Segment, SegmentList};
use pollux_scsi::PIECE_LEN;

/// Jobs of a worker that have memory at once: 4 MiB.
const MOST: usize = 16;
/// Those of one session.
const MOST_OF_SESSION: usize = 4;
/// What devices want buffers to be aligned to, at most.
const ALIGNMENT: usize = 4096;

/// Memory of one job: what the guest sent, and what the device held.
pub(crate) struct Own {
    /// With room before the two pieces to align them.
    bytes: Box<[u8]>,
    /// Where the device's part of the present request is.
    segment: Box<Segment>,
    /// How much of the front of *sent* and of *held* may be other than zero.
    used: [usize; 2],
}

impl Own {
    fn new() -> Own {
        let bytes = vec![0; 2 * PIECE_LEN + ALIGNMENT].into_boxed_slice();
        Own { bytes, segment: Box::new(Segment::EMPTY), used: [0; 2] }
    }

    /// So much of *sent* is about to be filled by the guest.
    pub(crate) fn fetches(&mut self, len: usize) {
        self.used[0] = self.used[0].max(len);
    }

    /// Forgets what its last session had in it.
    fn clear(&mut self) {
        let [of_sent, of_held] = std::mem::take(&mut self.used);
        let (sent, held) = self.pieces();
        sent[..of_sent].fill(0);
        held[..of_held].fill(0);
        debug_assert!(sent.iter().chain(&*held).all(|&byte| byte == 0), "more was used than is known of");
    }

    /// *sent* and *held*. Nothing of them is in flight.
    pub(crate) fn pieces(&mut self) -> (&mut [u8], &mut [u8]) {
        let skip = self.bytes.as_ptr().addr().wrapping_neg() % ALIGNMENT;
        self.bytes[skip..skip + 2 * PIECE_LEN].split_at_mut(PIECE_LEN)
    }

    /// A part of *held*, to be read into and then written from.
    pub(crate) fn copied(&mut self, skip: u64, len: u64) -> SegmentList {
        self.part(Op::Read, usize::try_from(skip).unwrap_or(usize::MAX), len)
    }

    /// The front of *held* for a read, of *sent* for a write, to go with a request.
    pub(crate) fn data(&mut self, op: Op, len: u64) -> SegmentList {
        self.part(op, 0, len)
    }

    fn part(&mut self, op: Op, skip: usize, len: u64) -> SegmentList {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let used = &mut self.used[usize::from(op == Op::Read)];
        *used = (*used).max(skip.saturating_add(len));
        let (sent, held) = self.pieces();
        let piece = if op == Op::Read { &mut held[skip..][..len] } else { &mut sent[skip..][..len] };
        // SAFETY: the bytes are those of this struct, which the job keeps until the request has completed, and nothing else
        // looks at them meanwhile (`pieces` is called between requests).
        *self.segment = unsafe { Segment::new(piece.as_mut_ptr() as usize, len) };
        // SAFETY: the list is in the same struct and is not changed before the next request.
        unsafe { SegmentList::new(std::slice::from_ref(&*self.segment)) }
    }
}

/// The memory of a worker.
#[derive(Default)]
pub(crate) struct Pool {
    /// What nobody has now, with the sessions that had it last. It is kept: to get some anew costs the reactor the clearing
    /// of all of it.
    free: Vec<(u64, Own)>,
    /// The sessions of those who have some.
    holders: Vec<u64>,
}

impl Pool {
    /// Memory for a job of this session; `None` if it has to wait.
    pub(crate) fn take(&mut self, session: u64) -> Option<Own> {
        if !self.has_some_for(session) {
            return None;
        }
        self.holders.push(session);
        if let Some(at) = self.free.iter().rposition(|(of, _)| *of == session) {
            return Some(self.free.swap_remove(at).1);
        }
        let cleared = |(_, mut own): (u64, Own)| {
            own.clear();
            own
        };
        Some(self.free.pop().map_or_else(Own::new, cleared))
    }

    /// Whether a job of this session would get memory.
    pub(crate) fn has_some_for(&self, session: u64) -> bool {
        let of_session = self.holders.iter().filter(|holder| **holder == session).count();
        self.holders.len() < MOST && of_session < MOST_OF_SESSION
    }

    /// A session's job has no use for its memory any more.
    pub(crate) fn give(&mut self, own: Own, session: u64) {
        let at = self.holders.iter().position(|holder| *holder == session).expect("a job that has memory is counted");
        self.holders.swap_remove(at);
        self.free.push((session, own));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_so_much_and_a_session_has_a_part_of_it() {
        let mut pool = Pool::default();
        let mut taken = Vec::new();
        for session in 0..10 {
            while let Some(own) = pool.take(session) {
                taken.push((session, own));
            }
        }
        let sessions: Vec<u64> = taken.iter().map(|(session, _)| *session).collect();
        assert_eq!(sessions, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
        let (session, own) = taken.remove(5);
        pool.give(own, session);
        assert!(pool.take(0).is_none() && pool.take(7).is_some() && pool.take(1).is_none());
        taken.into_iter().for_each(|(session, own)| pool.give(own, session));
        assert_eq!(pool.free.len(), MOST - 1, "all that were given back are kept");
    }

    #[test]
    fn a_piece_of_another_session_is_cleared_and_an_own_one_preferred() {
        let mut pool = Pool::default();
        let fill = |own: &mut Own| {
            own.fetches(700);
            own.pieces().0[..700].fill(1);
            pollux_core::segment::copy_to(own.copied(0, PIECE_LEN as u64).as_slice(), 0, &[2; PIECE_LEN]);
        };
        let [mut one, mut other] = [1, 2].map(|session| pool.take(session).expect("there is some"));
        fill(&mut one);
        fill(&mut other);
        pool.give(one, 1);
        pool.give(other, 2);
        let mut again = pool.take(1).expect("there is some");
        let (sent, held) = again.pieces();
        assert!(sent[..700].iter().all(|&byte| byte == 1) && held.iter().all(|&byte| byte == 2));
        let mut foreign = pool.take(1).expect("there is some");
        let (sent, held) = foreign.pieces();
        assert!(sent.iter().chain(&*held).all(|&byte| byte == 0));
        assert!(pool.free.is_empty());
    }

    #[test]
    fn requests_reach_the_pieces_and_are_aligned() {
        let mut own = Own::new();
        let read = own.data(Op::Read, PIECE_LEN as u64);
        assert!(read.as_slice()[0].addr().is_multiple_of(ALIGNMENT) && read.bytes() == PIECE_LEN as u64);
        pollux_core::segment::copy_to(read.as_slice(), 0, &[7; PIECE_LEN]);
        let write_at = own.data(Op::Write, 512).as_slice()[0].addr();
        assert_eq!(write_at + PIECE_LEN, own.data(Op::Read, 512).as_slice()[0].addr());
        let (sent, held) = own.pieces();
        assert!(sent.iter().all(|&byte| byte == 0) && held.iter().all(|&byte| byte == 7));
    }
}
