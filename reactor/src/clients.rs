//! The clients of a ring: whose entry is in the kernel, and where its completion waits.
//!
//! An entry's `user_data` is made up of four fields, all checked on the way back:
//!
//! ```text
//! 63            50 49              40 39              16 15               0
//! [ client index  | client generation | token index      | token generation ]
//! ```
//!
//! The client's fields are checked here: a completion whose client has been taken out since is dropped and counted. The
//! token's are checked by the client's slab.
//!
//! Invariant: for each client, entries in the kernel plus completions not yet reaped never exceed its depth, so its list
//! (taken when it is added) never grows.

use pollux_core::{ClientId, Done, RingError, Token};

const CLIENT_BITS: u32 = 14;
const GENERATION_BITS: u32 = 10;
const INDEX_BITS: u32 = 24;
const TOKEN_BITS: u32 = INDEX_BITS + 16;

/// How many clients a ring can have; the last index is the ring's own.
pub(crate) const MAX_CLIENTS: usize = (1 << CLIENT_BITS) - 1;

/// The `user_data` of the ring's own entries: no client's.
pub(crate) const OWN: u64 = u64::MAX;

#[derive(Default)]
struct Client {
    live: bool,
    generation: u16,
    depth: u32,
    /// Entries that the kernel has, or that wait in the submission queue.
    in_kernel: u32,
    done: Vec<Done>,
}

#[derive(Default)]
pub(crate) struct Clients {
    clients: Vec<Client>,
    free: Vec<u16>,
    in_kernel: u32,
    stale: u64,
}

impl Clients {
    pub(crate) fn add(&mut self, depth: u32) -> Result<ClientId, RingError> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.clients.len() < MAX_CLIENTS => {
                self.clients.push(Client::default());
                (self.clients.len() - 1) as u16
            }
            None => return Err(RingError::Full),
        };
        let client = &mut self.clients[usize::from(index)];
        assert!(!client.live, "a free place holds no client");
        client.live = true;
        client.depth = depth;
        client.done = Vec::with_capacity(depth as usize);
        Ok(ClientId(index))
    }

    pub(crate) fn remove(&mut self, id: ClientId) {
        let client = self.live(id);
        assert_eq!(client.in_kernel, 0, "client {} taken out with entries in flight", id.0);
        client.live = false;
        client.generation = (client.generation + 1) % (1 << GENERATION_BITS);
        client.done = Vec::new();
        self.free.push(id.0);
    }

    /// Counts an entry in; returns its `user_data`.
    #[inline]
    pub(crate) fn pushed(&mut self, id: ClientId, token: Token) -> u64 {
        self.in_kernel += 1;
        let client = self.live(id);
        let outstanding = client.in_kernel + client.done.len() as u32;
        assert!(outstanding < client.depth, "client {} has more than {} entries in flight", id.0, client.depth);
        client.in_kernel += 1;
        user_data(id, client.generation, token)
    }

    /// The `user_data` of an entry that is (or was) in flight.
    pub(crate) fn user_data_of(&mut self, id: ClientId, token: Token) -> u64 {
        user_data(id, self.live(id).generation, token)
    }

    /// Puts a completion into its client's list; returns whether it had one.
    #[inline]
    pub(crate) fn completed(&mut self, user_data: u64, result: i32) -> bool {
        let token = Token { index: (user_data >> 16) as u32 & ((1 << INDEX_BITS) - 1), generation: user_data as u16 };
        let generation = (user_data >> TOKEN_BITS) as u16 & ((1 << GENERATION_BITS) - 1);
        let index = (user_data >> (TOKEN_BITS + GENERATION_BITS)) as usize;
        let known = self.clients.get_mut(index).filter(|client| client.live && client.generation == generation);
        let Some(client) = known.filter(|client| client.in_kernel > 0) else {
            self.stale += 1;
            return false;
        };
        client.in_kernel -= 1;
        client.done.push(Done { token, result });
        self.in_kernel -= 1;
        true
    }

    #[inline]
    pub(crate) fn reap(&mut self, id: ClientId, done: &mut Vec<Done>) {
        done.append(&mut self.live(id).done);
    }

    /// How many entries the kernel owes us a completion for.
    pub(crate) const fn in_kernel(&self) -> u32 {
        self.in_kernel
    }

    /// How many completions belonged to nobody.
    pub(crate) const fn stale(&self) -> u64 {
        self.stale
    }

    #[inline]
    fn live(&mut self, id: ClientId) -> &mut Client {
        let client = self.clients.get_mut(usize::from(id.0)).filter(|client| client.live);
        client.unwrap_or_else(|| panic!("client {} is not in this ring", id.0))
    }
}

#[inline]
fn user_data(id: ClientId, generation: u16, token: Token) -> u64 {
    assert!(token.index < 1 << INDEX_BITS, "a token's index has {INDEX_BITS} bits");
    let client = u64::from(id.0) << GENERATION_BITS | u64::from(generation);
    client << TOKEN_BITS | u64::from(token.index) << 16 | u64::from(token.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token { index: (1 << INDEX_BITS) - 1, generation: u16::MAX };

    #[test]
    fn completions_find_their_client_and_token() {
        let mut clients = Clients::default();
        let (a, b) = (clients.add(2).unwrap(), clients.add(2).unwrap());
        let small = Token { index: 0, generation: 1 };
        let from_a = clients.pushed(a, TOKEN);
        let from_b = clients.pushed(b, small);
        assert_eq!(clients.in_kernel(), 2);
        assert!(clients.completed(from_b, 7) && clients.completed(from_a, -5));
        let mut done = Vec::new();
        clients.reap(a, &mut done);
        clients.reap(b, &mut done);
        assert_eq!(done, [Done { token: TOKEN, result: -5 }, Done { token: small, result: 7 }]);
        assert_eq!((clients.in_kernel(), clients.stale()), (0, 0));
    }

    #[test]
    fn a_completion_of_a_client_that_left_reaches_nobody() {
        let mut clients = Clients::default();
        let old = clients.add(1).unwrap();
        let stale = clients.pushed(old, TOKEN);
        assert!(clients.completed(stale, 0));
        assert!(!clients.completed(stale, 0), "an entry completes once");
        clients.remove(old);
        assert!(!clients.completed(stale, 0), "nobody is there");
        let new = clients.add(1).unwrap();
        assert_eq!(new, old, "the place is used again");
        clients.pushed(new, TOKEN);
        assert!(!clients.completed(stale, 0), "another generation is there");
        assert!(!clients.completed(OWN, 0), "no client's");
        assert_eq!((clients.stale(), clients.in_kernel()), (4, 1));
        let mut done = Vec::new();
        clients.reap(new, &mut done);
        assert!(done.is_empty());
    }

    #[test]
    fn all_places_can_be_taken_and_lists_keep_their_memory() {
        let mut clients = Clients::default();
        for _ in 0..MAX_CLIENTS {
            clients.add(0).unwrap();
        }
        assert_eq!(clients.add(0), Err(RingError::Full));
        clients.remove(ClientId(5));
        let last = clients.add(3).unwrap();
        let before = clients.live(last).done.as_ptr();
        let mut done = Vec::new();
        for round in 0..3u16 {
            for index in 0..3 {
                let data = clients.pushed(last, Token { index, generation: round });
                clients.completed(data, 0);
            }
            clients.reap(last, &mut done);
        }
        assert_eq!((done.len(), clients.live(last).done.as_ptr()), (9, before));
    }

    #[test]
    #[should_panic(expected = "more than 1 entries in flight")]
    fn nobody_exceeds_its_depth_not_even_by_completions_not_reaped() {
        let mut clients = Clients::default();
        let id = clients.add(1).unwrap();
        let data = clients.pushed(id, TOKEN);
        clients.completed(data, 0);
        clients.pushed(id, TOKEN);
    }

    #[test]
    #[should_panic(expected = "taken out with entries in flight")]
    fn nobody_leaves_with_entries_in_flight() {
        let mut clients = Clients::default();
        let id = clients.add(1).unwrap();
        clients.pushed(id, TOKEN);
        clients.remove(id);
    }
}
