//! Who is at the other end of an RPC connection, and whether it may speak.
//!
//! The kernel tells (`SO_PEERCRED`, `SO_PEERGROUPS`, taken at connect time); nothing the client sends is believed.
//! The one `unsafe` block of this package is here: the standard library has no safe call for the peer's groups.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

/// Most supplementary groups that Linux allows.
const GROUPS_MAX: usize = 65536;

/// The credentials of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process, for messages only.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its groups, the primary one first.
    pub gids: Vec<u32>,
}

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(stream: &UnixStream) -> io::Result<Peer> {
        let credentials = rustix::net::sockopt::socket_peercred(stream.as_fd())?;
        let mut gids = vec![credentials.gid.as_raw()];
        gids.extend(supplementary(stream)?);
        Ok(Peer { pid: credentials.pid.as_raw_nonzero().get(), uid: credentials.uid.as_raw(), gids })
    }

    /// Whether it may call: the daemon's own user, root, or a member of the group that the socket was opened to.
    #[must_use]
    pub fn allowed(&self, own_uid: u32, group: Option<u32>) -> bool {
        self.uid == 0 || self.uid == own_uid || group.is_some_and(|group| self.gids.contains(&group))
    }
}

fn supplementary(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut gids: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut len = libc::socklen_t::try_from(size_of_val(gids.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the pointer and `len` describe exactly the allocated and initialised elements of `gids`, the kernel
        // writes at most `len` bytes of plain integers there, and the descriptor is open for the whole call.
        let status = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                gids.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / size_of::<libc::gid_t>();
        if status == 0 {
            gids.truncate(count);
            return Ok(gids);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= gids.len() || count > GROUPS_MAX {
            return Err(error);
        }
        gids.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_our_own_process() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let peer = Peer::of(&one).expect("credentials");
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).expect("a pid"));
        assert_eq!(peer.gids[0], rustix::process::getegid().as_raw());
    }

    #[test]
    fn only_the_owner_root_and_the_group() {
        let peer = |uid, gids: &[u32]| Peer { pid: 1, uid, gids: gids.to_vec() };
        assert!(peer(0, &[0]).allowed(1000, None));
        assert!(peer(1000, &[1000]).allowed(1000, None));
        assert!(!peer(1001, &[1000]).allowed(1000, None));
        assert!(!peer(1001, &[7, 8]).allowed(1000, Some(9)));
        assert!(peer(1001, &[7, 9]).allowed(1000, Some(9)));
    }
}
