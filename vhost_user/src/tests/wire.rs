use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::wire::{Arrival, Wire, WireError};

const SHORT: Duration = Duration::from_millis(60);

fn pair() -> (UnixStream, Wire) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    (theirs, Wire::with_message_time(Arc::new(OwnedFd::from(ours)), SHORT))
}

fn message(size: u32, body: usize) -> Vec<u8> {
    let mut bytes = [1u32, 1, size].map(u32::to_ne_bytes).concat();
    bytes.resize(12 + body, 7);
    bytes
}

fn send(socket: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); 2048];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)));
    let sent = sendmsg(socket, &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

#[test]
fn whole_messages_arrive_at_once() {
    let (mut theirs, wire) = pair();
    for size in [0, 8, 4096] {
        theirs.write_all(&message(size, size as usize)).unwrap();
        assert_eq!(wire.wait(), Ok(Arrival::Message));
        let mut taken = vec![0; 12 + size as usize];
        assert_eq!(take(&wire, &mut taken), taken.len());
    }
}

fn take(wire: &Wire, to: &mut [u8]) -> usize {
    rustix::net::recv(wire.socket(), to, rustix::net::RecvFlags::empty()).unwrap().0
}

#[test]
fn t31_a_message_byte_by_byte() {
    // With the real limit of time: the machine may be busy.
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    let wire = Wire::new(Arc::new(OwnedFd::from(ours)));
    let sender = thread::spawn(move || {
        for byte in message(8, 8) {
            theirs.write_all(&[byte]).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        theirs
    });
    assert_eq!(wire.wait(), Ok(Arrival::Message));
    sender.join().unwrap();
}

#[test]
fn t31_half_a_message_ends_after_its_time() {
    for half in [&message(8, 0)[..5], &message(8, 0)[..], &message(8, 7)[..]] {
        let (mut theirs, wire) = pair();
        theirs.write_all(half).unwrap();
        let start = Instant::now();
        assert_eq!(wire.wait(), Err(WireError::HalfMessage));
        assert!(start.elapsed() >= SHORT && start.elapsed() < SHORT * 20);
    }
}

#[test]
fn t39_the_end_is_seen_also_in_the_middle() {
    for half in [&[][..], &message(8, 0)[..5], &message(8, 7)[..]] {
        let (mut theirs, wire) = pair();
        theirs.write_all(half).unwrap();
        drop(theirs);
        assert_eq!(wire.wait(), Ok(Arrival::Closed));
    }
    let (mut theirs, wire) = pair();
    theirs.write_all(&message(0, 0)).unwrap();
    drop(theirs);
    assert_eq!(wire.wait(), Ok(Arrival::Message), "what was said before the end counts");
}

#[test]
fn t31_lengths_beyond_reason() {
    let (mut theirs, wire) = pair();
    theirs.write_all(&message(4097, 0)).unwrap();
    assert_eq!(wire.wait(), Err(WireError::TooLong(4097)));
}

#[test]
fn t32_descriptors_up_to_the_limit() {
    let file = std::fs::File::open("/dev/null").unwrap();
    for (count, expected) in [
        (1, Ok(Arrival::Message)),
        (32, Ok(Arrival::Message)),
        (33, Err(WireError::TooManyDescriptors(33))),
        (253, Err(WireError::TooManyDescriptors(253))),
    ] {
        let (theirs, wire) = pair();
        send(&theirs, &message(0, 0), &vec![file.as_fd(); count]);
        assert_eq!(wire.wait(), expected);
    }
    let (theirs, wire) = pair();
    send(&theirs, &message(0, 0)[..5], &[file.as_fd()]);
    assert_eq!(wire.wait(), Err(WireError::DescriptorsOnHalfHeader));
}

#[test]
fn t38_a_front_end_that_never_reads() {
    let (mut theirs, wire) = pair();
    let reply = [0u8; 4096];
    // Our replies fill the socket until there might be no room for another one.
    let mut sent = 0;
    let refused = loop {
        theirs.write_all(&message(0, 0)).unwrap();
        match wire.wait() {
            Ok(_) => {
                take(&wire, &mut [0; 12]);
                let flags = SendFlags::DONTWAIT;
                sent += rustix::net::send(wire.socket(), &reply, flags).expect("there is room, as was promised");
            }
            Err(error) => break error,
        }
    };
    assert_eq!(refused, WireError::RepliesUnread);
    assert!(sent >= reply.len());
}
