//! Which memory is near: nodes of cores, and where threads take memory from.
//!
//! By itself Linux gives a thread memory of the node that it runs on when it first touches it. For a reactor, which is
//! pinned, that is right. What control threads make for reactors (slots, channels, tables) would lie where they run, which
//! is off the reactors' cores and perhaps on another node; so they prefer the reactors' node, where there is one.

#![allow(unsafe_code)]

use std::io;

use crate::cores::parse_cores;

/// `MPOL_PREFERRED`: from there while there is any, from elsewhere then.
const PREFERRED: i32 = 1;
/// Bits of a mask of nodes, as many as the kernel is ever built for.
const NODES: usize = 1024;

/// The memory node of a core; `None` if the kernel does not say.
#[must_use]
pub fn node_of(core: usize) -> Option<usize> {
    let entries = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")).ok()?.flatten();
    let node = |name: std::ffi::OsString| name.to_str()?.strip_prefix("node")?.parse().ok();
    entries.filter_map(|entry| node(entry.file_name())).next()
}

/// Has the calling thread, and those that it starts from now on, take memory from the reactors' node while there is any.
/// Returns the node; `None`, and nothing is changed, if there is only one, or reactors are on several.
///
/// # Errors
/// If the kernel refuses; memory comes from where it came from before.
pub fn keep_memory_near(reactors: &[usize]) -> io::Result<Option<usize>> {
    let online = std::fs::read_to_string("/sys/devices/system/node/online").ok();
    let nodes = online.and_then(|text| parse_cores(&text).ok()).map_or(1, |nodes| nodes.len());
    let Some(node) = common_node(reactors, node_of).filter(|_| nodes > 1) else { return Ok(None) };
    prefer(node).map(|()| Some(node))
}

fn common_node(reactors: &[usize], node_of: impl Fn(usize) -> Option<usize>) -> Option<usize> {
    let first = node_of(*reactors.first()?)?;
    reactors.iter().all(|core| node_of(*core) == Some(first)).then_some(first)
}

fn prefer(node: usize) -> io::Result<()> {
    let mut mask = [0u64; NODES / 64];
    let word = mask.get_mut(node / 64).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (node % 64);
    // SAFETY: the kernel reads a mask of so many bits (it takes one off the number) and keeps no pointer to it.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, PREFERRED, mask.as_ptr(), NODES + 1) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reactors_have_a_node_in_common_or_none() {
        let two_nodes = |core| (core < 8).then_some(core / 4);
        assert_eq!(common_node(&[4, 7, 5], two_nodes), Some(1));
        assert_eq!(common_node(&[3, 4], two_nodes), None);
        assert_eq!(common_node(&[8], two_nodes), None);
        assert_eq!(common_node(&[], two_nodes), None);
    }

    /// The calling thread's policy and the nodes it names; `None` where the kernel has no such thing.
    fn policy() -> Option<(i32, u64)> {
        let (mut mode, mut mask) = (-1i32, [0u64; NODES / 64]);
        // SAFETY: the kernel writes one number and a mask of so many bits.
        let result = unsafe {
            libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, mask.as_mut_ptr(), NODES + 1, 0usize, 0usize)
        };
        (result == 0).then_some((mode, mask[0]))
    }

    #[test]
    fn threads_started_afterwards_prefer_the_node_too() {
        let Some(node) = node_of(crate::cores::allowed()[0]) else { return };
        let thread = std::thread::spawn(move || {
            let before = policy()?;
            prefer(node).unwrap();
            Some((before, policy()?, std::thread::spawn(policy).join().unwrap()?))
        });
        let Some((before, after, child)) = thread.join().unwrap() else { return };
        assert_eq!((before, after, child), ((0, 0), (PREFERRED, 1 << node), (PREFERRED, 1 << node)));
        assert!(prefer(NODES).is_err());
    }

    #[test]
    fn one_node_needs_no_preference() {
        let nodes = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
        if nodes.trim() == "0" {
            assert_eq!(keep_memory_near(&crate::cores::allowed()).unwrap(), None);
        }
    }
}
