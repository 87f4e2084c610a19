//! The number of open files stays what it was, whatever comes with a message. A process of its own: it counts.

mod common;

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::*;
use pollux_vhost_user::testing::TestMemory;
use vhost::VhostBackend;

/// Bodies of the size that each message should have.
fn body_of(code: u32) -> Vec<u8> {
    match code {
        1 | 3 | 4 | 15 | 17 | 34 | 36 | 43 | 44 => Vec::new(),
        8 | 10 | 11 | 18 => vec![0; 8],
        9 => vec![0; 40],
        5 => {
            let mut body = vec![0; 8 + 32];
            body[0] = 1;
            body[8 + 9] = 0x10;
            body
        }
        37 | 38 => {
            let mut body = vec![0; 40];
            body[8 + 9] = 0x10;
            body
        }
        _ => vec![0; 8],
    }
}

fn settled(what: &str, expected: usize) {
    let until = Instant::now() + Duration::from_secs(10);
    while open_files() != expected {
        assert!(Instant::now() < until, "{what}: {} files open, there were {expected}", open_files());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One test, because it counts what is open in the process.
#[test]
fn t32_the_number_of_open_files_stays_constant() {
    every_message_with_any_descriptors();
    one_session_and_many_messages();
}

fn every_message_with_any_descriptors() {
    let host = Host::new();
    let guest = TestMemory::new(&[(0, 0x4000)]);
    let (_, memory) = guest.regions().next().unwrap();
    let event = eventfd();
    let (pipe, _pipe) = rustix::pipe::pipe().unwrap();
    let (socket, _socket) = UnixStream::pair().unwrap();
    let others: [OwnedFd; 3] = [pipe, File::open("/").unwrap().into(), socket.into()];
    let kinds: Vec<BorrowedFd<'_>> =
        [memory.as_fd(), fd_of(&event)].into_iter().chain(others.iter().map(AsFd::as_fd)).collect();
    let before = open_files();
    let mut connections = 0;
    for code in 0..46 {
        for count in [0, 1, 2, 8, 32, 33, 253] {
            for kind in &kinds {
                let stream = host.connect();
                // Negotiated, so that the message gets as far as it can.
                let all = 1u64 | 1 << 3 | 1 << 13 | 1 << 15;
                send(&stream, &message(1, 0, &[]), &[]);
                send(&stream, &message(16, 0, &all.to_ne_bytes()), &[]);
                send(&stream, &message(2, 0, &(VERSION_1 | PROTOCOL_FEATURES).to_ne_bytes()), &[]);
                send(&stream, &message(code, 8, &body_of(code)), &vec![*kind; count]);
                // And once more in the middle of a message.
                send(&stream, &message(code, 8, &body_of(code))[..6], &[]);
                send(&stream, &message(code, 8, &body_of(code))[6..], &vec![*kind; count]);
                stream.shutdown(Shutdown::Write).unwrap();
                hang_up(&stream);
                connections += 1;
            }
        }
        host.server.disconnect(host.id, Duration::from_secs(10));
        host.device.change(|s| s.sessions.clear());
        settled(&format!("message {code}"), before);
    }
    host.device.wait_closed(connections);
}

fn one_session_and_many_messages() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    host.device.change(|s| s.sessions.clear());
    let before = open_files();
    for i in 0..20_000u64 {
        let event = fd_of(&vm.kicks[0]);
        vm.send(12 + (i % 3) as u32, 0, &(i % 2).to_ne_bytes(), &[event]);
    }
    vm.front.get_features().unwrap();
    settled("20 000 events", before);
    assert_eq!(host.device.lock().closed, 0);
}
