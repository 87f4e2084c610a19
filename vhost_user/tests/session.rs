//! Sessions over real sockets: front ends as there are, and front ends as there should not be.

mod common;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::*;
use pollux_vhost_user::testing::{Buffer, RingDriver, TestMemory, USER_BASE};
use pollux_vhost_user::{RegionInfo, SocketOptions};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{VhostUserFrontend, VhostUserProtocolFeatures};

const WAIT: Duration = Duration::from_secs(10);

fn log(host: &Host) -> Vec<String> {
    host.device.lock().log.clone()
}

/// A request through a running queue, there and back.
fn round(host: &Host, vm: &mut Vm, queue: usize) {
    vm.request(queue);
    assert_eq!(host.device.pop_all(queue as u16), 1);
    host.device.complete_all(queue as u16);
    assert!(vm.drivers[queue].take_used().is_some());
}

#[test]
fn in_qemus_order() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.negotiate();
    let features = vm.front.get_features().unwrap();
    assert_eq!(features, DEVICE_FEATURES | VERSION_1 | EVENT_IDX | PROTOCOL_FEATURES | 1 << 28 | 1 << 27);
    let offered = protocol_bits(&mut vm.front);
    assert!(offered.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS));
    assert!(!offered.contains(VhostUserProtocolFeatures::CONFIG));
    // The guest's bits as they are: some were never offered, and do no harm.
    vm.front.set_features(features & !(1 << 27) | 1 << 40).unwrap();
    assert_eq!(host.device.lock().features, DEVICE_FEATURES | VERSION_1 | EVENT_IDX | 1 << 28);
    for region in vm.regions() {
        vm.front.add_mem_region(&region).unwrap();
    }
    for queue in 0..QUEUES {
        vm.set_up_queue(queue, 0);
        vm.front.set_vring_call(queue, &vm.calls[queue]).unwrap();
    }
    assert!(log(&host).is_empty(), "a ring runs only when it is enabled");
    for queue in 0..QUEUES {
        vm.front.set_vring_enable(queue, true).unwrap();
    }
    assert_eq!(log(&host), ["start 0 at 0", "start 1 at 0", "start 2 at 0"]);
    round(&host, &mut vm, 2);
    assert_eq!(vm.calls[2].read().unwrap(), 1);

    // The guest reboots: stop, then again from the beginning with other rings.
    for queue in 0..QUEUES {
        vm.front.set_vring_enable(queue, false).unwrap();
        assert_eq!(vm.front.get_vring_base(queue).unwrap(), u32::from(queue == 2));
    }
    for region in vm.regions() {
        vm.front.remove_mem_region(&region).unwrap();
    }
    vm.front.reset_device().unwrap();
    assert!(log(&host).contains(&"reset".to_owned()));
    host.device.change(|s| s.log.clear());
    vm.front.set_features(DEVICE_FEATURES | VERSION_1 | PROTOCOL_FEATURES).unwrap();
    for region in vm.regions() {
        vm.front.add_mem_region(&region).unwrap();
    }
    vm.drivers[0] = RingDriver::new(vm.guest.clone(), 0x8000, SIZE);
    vm.set_up_queue(0, 0);
    vm.front.set_vring_enable(0, true).unwrap();
    round(&host, &mut vm, 0);
    drop(vm);
    host.device.wait_closed(1);
    assert_eq!(log(&host), ["start 0 at 0", "stop 0 at 1", "closed"]);
}

#[test]
fn in_spdks_order() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.front.set_owner().unwrap();
    vm.front.get_features().unwrap();
    let offered = vm.front.get_protocol_features().unwrap();
    vm.front.set_protocol_features(offered & VhostUserProtocolFeatures::MQ).unwrap();
    vm.front.set_features(0b11 | VERSION_1 | PROTOCOL_FEATURES).unwrap();
    assert_eq!(vm.front.get_queue_num().unwrap(), QUEUES as u64);
    for queue in 0..QUEUES {
        vm.front.set_vring_enable(queue, true).unwrap();
    }
    for queue in 0..QUEUES {
        vm.front.set_vring_call(queue, &vm.calls[queue]).unwrap();
    }
    vm.front.set_mem_table(&vm.regions()).unwrap();
    vm.front.get_features().unwrap();
    for queue in 0..QUEUES {
        vm.set_up_queue(queue, 0);
    }
    for queue in 0..QUEUES {
        host.device.wait_started(queue as u16);
        round(&host, &mut vm, queue);
    }
    for queue in 0..QUEUES {
        assert_eq!(vm.front.get_vring_base(queue).unwrap(), 1);
    }
    vm.front.set_mem_table(&vm.regions()).unwrap();
    vm.front.get_features().unwrap();
    assert!(host.device.lock().queues.is_empty());
    assert_eq!(host.device.lock().closed, 0);
}

#[test]
fn an_old_front_end_without_protocol_features() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.front.set_owner().unwrap();
    vm.front.get_features().unwrap();
    vm.front.set_features(VERSION_1).unwrap();
    vm.front.set_mem_table(&vm.regions()).unwrap();
    vm.set_up_queue(0, 0);
    host.device.wait_started(0);
    round(&host, &mut vm, 0);
}

#[test]
fn the_configuration_is_optional() {
    let host = Host::new();
    host.device.change(|s| s.with_config = true);
    let mut vm = host.vm();
    vm.negotiate();
    let flags = VhostUserConfigFlags::empty();
    let (_, bytes) = vm.front.get_config(4, 8, flags, &[0; 8]).unwrap();
    assert_eq!(bytes, [4, 5, 6, 7, 8, 9, 10, 11]);
    // Beyond the end: an answer without bytes, which the front end above would wait for; the session goes on.
    let beyond = [[30u32, 8, 0].map(u32::to_ne_bytes).concat(), vec![0; 8]].concat();
    vm.send(24, 0, &beyond, &[]);
    let mut answer = [0; 24];
    vm.socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[16..20], [0; 4]);
    assert!(vm.front.get_config(0, 36, flags, &[0; 36]).is_ok());
}

#[test]
fn t18_another_driver_takes_over() {
    // Firmware, then the kernel: the same connection, the queue's base and addresses anew.
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    for _ in 0..3 {
        round(&host, &mut vm, 1);
    }
    vm.request(1);
    assert_eq!(host.device.pop_all(1), 1);
    assert_eq!(vm.front.get_vring_base(1).unwrap(), 4, "answered after what was in flight");
    assert!(vm.drivers[1].take_used().is_some());
    vm.drivers[1] = RingDriver::new(vm.guest.clone(), 0x9000, SIZE);
    vm.set_up_queue(1, 0);
    round(&host, &mut vm, 1);
    assert_eq!(vm.drivers[1].used_idx(), 1);
}

#[test]
fn t19_addresses_changed_while_running() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    round(&host, &mut vm, 0);
    host.device.change(|s| s.log.clear());
    vm.set_addresses(0);
    assert!(log(&host).is_empty(), "the same ones change nothing");
    vm.drivers[0] = RingDriver::new(vm.guest.clone(), 0x9000, SIZE).starting_at(1);
    vm.set_addresses(0);
    assert_eq!(log(&host), ["stop 0 at 1", "start 0 at 1"]);
    round(&host, &mut vm, 0);
}

#[test]
fn t34_events_replaced_while_running() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    round(&host, &mut vm, 0);
    assert_eq!(vm.calls[0].read().unwrap(), 1);
    host.device.change(|s| s.log.clear());
    vm.calls[0] = eventfd();
    vm.front.set_vring_call(0, &vm.calls[0]).unwrap();
    assert_eq!(vm.calls[0].read().unwrap(), 1, "signalled once, in case something was missed");
    vm.kicks[0] = eventfd();
    vm.front.set_vring_kick(0, &vm.kicks[0]).unwrap();
    assert_eq!(log(&host), ["call 0 true", "stop 0 at 1", "start 0 at 1"]);
    vm.kicks[0].write(5).unwrap();
    let kick = host.device.lock().queues[&0].1.kick.clone();
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&*kick, &mut count), Ok(8));
    assert_eq!(u64::from_ne_bytes(count), 5, "it is the new one");
    round(&host, &mut vm, 0);
}

#[test]
fn t34_polling_instead_of_events() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    // SET_VRING_CALL and SET_VRING_KICK of queue 0 without a descriptor (bit 8), acknowledged by a barrier.
    vm.send(13, 0, &0x100u64.to_ne_bytes(), &[]);
    vm.send(12, 0, &0x100u64.to_ne_bytes(), &[]);
    vm.front.get_features().unwrap();
    let events = host.device.lock().queues[&0].1.clone();
    assert!(events.call.is_none());
    for _ in 0..3 {
        assert_eq!(rustix::io::read(&*events.kick, &mut [0; 8]), Ok(8), "always ready");
    }
    round(&host, &mut vm, 0);
}

#[test]
fn a_ring_is_disabled_and_enabled() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    round(&host, &mut vm, 0);
    host.device.change(|s| s.log.clear());
    vm.front.set_vring_enable(0, true).unwrap();
    vm.front.set_vring_enable(0, false).unwrap();
    vm.front.set_vring_enable(0, false).unwrap();
    vm.request(0);
    vm.front.set_vring_enable(0, true).unwrap();
    assert_eq!(log(&host), ["stop 0 at 1", "start 0 at 1"]);
    assert_eq!(host.device.pop_all(0), 1);
    assert_eq!(vm.front.get_vring_base(0).unwrap(), 2);
    vm.front.set_vring_enable(0, false).unwrap();
    vm.front.set_vring_enable(0, true).unwrap();
    assert!(!host.device.lock().queues.contains_key(&0), "only a new kick starts it after GET_VRING_BASE");
}

#[test]
fn memory_is_plugged_and_unplugged_while_queues_run() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    round(&host, &mut vm, 0);
    let more = TestMemory::new(&[(MEMORY, 0x1000)]);
    let (info, file) = more.regions().next().unwrap();
    vm.front.add_mem_region(&region(info, file)).unwrap();
    more.write(MEMORY, b"new");
    vm.drivers[0].add(&[Buffer::readable(MEMORY, 3)]).unwrap();
    vm.drivers[0].expose(true);
    assert_eq!(host.device.pop_all(0), 1);
    vm.front.remove_mem_region(&region(info, file)).unwrap();
    assert_eq!(vm.drivers[0].take_used().map(|u| u.1), Some(0), "drained before the memory went");
    round(&host, &mut vm, 0);

    // QEMU takes a region out before it puts its replacement in: the rings in it wait.
    let own = vm.regions();
    vm.front.remove_mem_region(&own[0]).unwrap();
    assert!(host.device.lock().queues.is_empty());
    vm.front.add_mem_region(&own[0]).unwrap();
    assert_eq!(host.device.lock().queues.len(), QUEUES);
    round(&host, &mut vm, 0);
    assert_eq!(host.device.lock().closed, 0);
}

#[test]
fn memory_slots_and_the_table_are_one() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    let unknown = RegionInfo { guest_addr: 0x100_0000, len: 0x1000, user_addr: USER_BASE + 0x100_0000, offset: 0 };
    let region = region(unknown, &std::fs::File::open("/dev/null").unwrap());
    assert!(vm.front.remove_mem_region(&region).is_err());
    vm.wait_hang_up();
    host.device.wait_closed(1);
}

#[test]
fn t21_t39_disconnect_with_requests_in_flight() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    vm.request(0);
    vm.request(0);
    assert_eq!(host.device.pop_all(0), 2);
    host.device.change(|s| s.hold = true);
    let guest = vm.guest.clone();
    drop(vm);
    // The device holds on to its I/O: nothing is let go, and a new front end has to wait.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(host.device.lock().closed, 0);
    assert_eq!(host.server.sessions(host.id).len(), 1);
    let mut next = host.vm();
    next.front.set_owner().unwrap();
    host.device.change(|s| s.hold = false);
    host.device.wait_closed(1);
    next.start();
    round(&host, &mut next, 0);
    assert_eq!(host.device.lock().sessions.len(), 2);
    drop(guest);
}

#[test]
fn t39_disconnect_at_each_step() {
    type Step = fn(&mut Vm);
    let steps: [Step; 9] = [
        |vm| vm.front.set_owner().unwrap(),
        |vm| assert_ne!(vm.front.get_features().unwrap(), 0),
        |vm| assert!(!protocol_bits(&mut vm.front).is_empty()),
        |vm| vm.front.set_protocol_features(VhostUserProtocolFeatures::MQ).unwrap(),
        |vm| vm.front.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap(),
        |vm| drop(vm.front.set_mem_table(&vm.regions()).unwrap()),
        |vm| vm.front.set_vring_num(0, SIZE).unwrap(),
        |vm| vm.set_up_queue(0, 0),
        |vm| vm.front.set_vring_enable(0, true).unwrap(),
    ];
    let host = Host::new();
    for count in 0..=steps.len() {
        let mut vm = host.vm();
        steps[..count].iter().for_each(|step| step(&mut vm));
        drop(vm);
        host.device.wait_closed(count + 1);
    }
    let mut vm = host.vm();
    vm.start();
    round(&host, &mut vm, 0);
}

#[test]
fn reconnecting_works_again_and_again() {
    let host = Host::new();
    for i in 1..=20 {
        let mut vm = host.vm();
        vm.start();
        round(&host, &mut vm, i % QUEUES);
        drop(vm);
    }
    host.device.wait_closed(20);
}

/// Messages that must cost their session and nothing else.
fn thrown_out(name: &str, bad: impl FnOnce(&mut Vm)) {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    bad(&mut vm);
    vm.wait_hang_up();
    host.device.wait_closed(1);
    drop(vm);
    let mut vm = host.vm();
    vm.start();
    round(&host, &mut vm, 0);
    assert_eq!(host.device.lock().closed, 1, "{name}");
}

fn state(index: u32, num: u32) -> Vec<u8> {
    [index, num].map(u32::to_ne_bytes).concat()
}

#[test]
fn t31_bad_messages() {
    thrown_out("unknown code", |vm| vm.send(99, 0, &[], &[]));
    thrown_out("unknown code that wants a reply", |vm| vm.send(99, 8, &[], &[]));
    thrown_out("code 0", |vm| vm.send(0, 0, &[], &[]));
    thrown_out("wrong version", |vm| vm.send(1, 2, &[], &[]));
    thrown_out("reserved flags", |vm| vm.send(1, 0x100, &[], &[]));
    thrown_out("a reply", |vm| vm.send(1, 4, &[], &[]));
    thrown_out("a body where there is none", |vm| vm.send(1, 0, &[0; 8], &[]));
    thrown_out("no body where there is one", |vm| vm.send(8, 0, &[], &[]));
    thrown_out("a long body", |vm| vm.send(2, 0, &[0; 16], &[]));
    thrown_out("5000 bytes", |vm| vm.send(5, 0, &[0; 5000], &[]));
    for not_offered in [6, 7, 11 + 8, 20, 22, 23, 26, 28, 33, 35, 39, 40, 44] {
        thrown_out("what was not offered", |vm| vm.send(not_offered, 0, &[], &[]));
    }
}

#[test]
fn t34_bad_rings() {
    for bad in [0, 3, 65536, 32769, u32::MAX] {
        thrown_out("size", |vm| vm.send(8, 0, &state(0, bad), &[]));
    }
    for code in [8, 10, 11, 18] {
        thrown_out("index", |vm| vm.send(code, 0, &state(QUEUES as u32, 1), &[]));
        thrown_out("index", |vm| vm.send(code, 0, &state(u32::MAX, 1), &[]));
    }
    for code in [12, 13, 14] {
        thrown_out("index of an event", |vm| {
            let event = eventfd();
            vm.send(code, 0, &200u64.to_ne_bytes(), &[fd_of(&event)]);
        });
        thrown_out("an event without its descriptor", |vm| vm.send(code, 0, &0u64.to_ne_bytes(), &[]));
    }
    thrown_out("base", |vm| vm.send(10, 0, &state(0, 65536), &[]));
    thrown_out("enable", |vm| vm.send(18, 0, &state(0, 2), &[]));
    let addresses = |words: [u64; 4]| [vec![0; 8], words.map(u64::to_ne_bytes).concat()].concat();
    thrown_out("rings that are not in memory", |vm| vm.send(9, 0, &addresses([0, 0, 0, 0]), &[]));
    thrown_out("unaligned rings", |vm| vm.send(9, 0, &addresses([USER_BASE + 1, USER_BASE, USER_BASE, 0]), &[]));
    thrown_out("a dirty log", |vm| {
        let mut body = addresses([USER_BASE, USER_BASE + 0x800, USER_BASE + 0x400, 0]);
        body[4] = 1;
        vm.send(9, 0, &body, &[]);
    });
}

#[test]
fn t35_features_that_were_never_offered() {
    for bit in [3, 26, 33, 34, 35] {
        thrown_out("feature", |vm| vm.send(2, 0, &(VERSION_1 | 1u64 << bit).to_ne_bytes(), &[]));
    }
    thrown_out("protocol feature", |vm| vm.send(16, 0, &(1u64 << 12).to_ne_bytes(), &[]));
}

fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut body = [regions.len() as u32, 0].map(u32::to_ne_bytes).concat();
    body.extend(regions.iter().flatten().flat_map(|word| word.to_ne_bytes()));
    body
}

#[test]
fn t33_bad_memory() {
    let guest = TestMemory::new(&[(0, 0x4000)]);
    let (_, file) = guest.regions().next().unwrap();
    let file = fd_of_file(file);
    let bad: [(&str, Vec<u8>, usize); 9] = [
        ("none", table(&[]), 0),
        ("more than descriptors", table(&[[0, 0x1000, 0, 0], [0x1000, 0x1000, 0x1000, 0]]), 1),
        ("fewer than descriptors", table(&[[0, 0x1000, 0, 0]]), 2),
        ("size 0", table(&[[0, 0, 0, 0]]), 1),
        ("overflow", table(&[[u64::MAX, 0x1000, 0, 0]]), 1),
        ("overflow in the file", table(&[[0, 0x1000, 0, u64::MAX]]), 1),
        ("overlap", table(&[[0, 0x1000, 0, 0], [0xfff, 0x1000, 0x1000, 0]]), 2),
        ("larger than the file", table(&[[0, 0x4001, 0, 0]]), 1),
        ("cut off", table(&[[0, 0x1000, 0, 0]])[..20].to_vec(), 1),
    ];
    for (name, body, files) in bad {
        thrown_out(name, |vm| vm.send(5, 0, &body, &vec![file; files]));
    }
    let [null, dir] = ["/dev/null", "/"].map(|path| std::fs::File::open(path).unwrap());
    for wrong in [&null, &dir] {
        thrown_out("wrong kind", |vm| vm.send(5, 0, &table(&[[0, 0x1000, 0, 0]]), &[fd_of_file(wrong)]));
        let slot = [vec![0; 8], table(&[[0x10_0000, 0x1000, 0, 0]])[8..].to_vec()].concat();
        thrown_out("wrong kind of slot", |vm| vm.send(37, 0, &slot, &[fd_of_file(wrong)]));
    }
}

#[test]
fn t33_memory_truncated_under_a_running_queue() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    round(&host, &mut vm, 0);
    let (_, file) = vm.guest.regions().next().unwrap();
    rustix::fs::ftruncate(file, 0).unwrap();
    // The device looks at the ring: it reads as zeroes, and the session ends.
    let waiting = host.device.lock().queues[&0].0.available();
    assert_eq!(waiting, u16::MAX);
    vm.wait_hang_up();
    host.device.wait_closed(1);
    let mut next = host.vm();
    next.start();
    round(&host, &mut next, 0);
}

#[test]
fn t48_events_that_are_no_eventfds() {
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let pipe = std::fs::File::from(pipe);
    for code in [12, 13, 14] {
        thrown_out("pipe", |vm| vm.send(code, 0, &0u64.to_ne_bytes(), &[fd_of_file(&pipe)]));
    }
}

#[test]
fn t31_half_a_message_costs_its_session_after_a_while() {
    let host = Host::new();
    let stream = host.connect();
    let start = Instant::now();
    (&stream).write_all(&message(2, 0, &[0; 8])[..15]).unwrap();
    hang_up(&stream);
    assert!(start.elapsed() > Duration::from_secs(4) && start.elapsed() < WAIT);
    host.device.wait_closed(1);
}

#[test]
fn t38_a_second_front_end_waits_and_a_third_is_turned_away() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    let second = host.connect();
    std::thread::sleep(Duration::from_millis(50));
    let third = host.connect();
    hang_up(&third);
    assert_eq!(host.server.sessions(host.id).len(), 1);
    round(&host, &mut vm, 0);
    let start = Instant::now();
    hang_up(&second);
    assert!(start.elapsed() > Duration::from_secs(3), "it waited for its turn");
    round(&host, &mut vm, 0);
    assert_eq!(host.device.lock().closed, 0);
}

#[test]
fn t38_a_storm_of_connections() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    for _ in 0..2000 {
        drop(UnixStream::connect(host.path()));
    }
    round(&host, &mut vm, 0);
    assert_eq!(host.device.lock().closed, 0);
}

#[test]
fn t38_half_open_connections_cost_only_their_own_socket() {
    let host = Host::new();
    let other_path = host.dir.path().join("other");
    let other = std::sync::Arc::new(Device::default());
    listen(&host.server, &other_path, &other);
    let silent: Vec<_> = (0..50).map(|_| host.connect()).collect();
    let mut vm = Vm::new(UnixStream::connect(&other_path).unwrap());
    vm.start();
    vm.request(0);
    assert_eq!(other.pop_all(0), 1);
    drop(silent);
}

#[test]
fn a_session_is_shut_down_from_elsewhere() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    let session = host.server.sessions(host.id).remove(0);
    assert_eq!(session.peer_pid(), Some(std::process::id() as i32));
    session.shutdown();
    session.shutdown();
    vm.wait_hang_up();
    host.device.wait_closed(1);
    session.shutdown();
}

#[test]
fn a_device_refuses_a_front_end() {
    let host = Host::new();
    host.device.change(|s| s.refuse = true);
    hang_up(&host.connect());
    host.device.change(|s| s.refuse = false);
    let mut vm = host.vm();
    vm.start();
}

#[test]
fn a_socket_goes_and_its_session_stays() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    host.server.unlisten(host.id);
    assert!(!host.path().exists());
    assert_eq!(host.server.path(host.id), None);
    round(&host, &mut vm, 0);
    // The same path again, at once, is another socket.
    let again = listen(&host.server, &host.path(), &std::sync::Arc::new(Device::default()));
    assert_ne!(again, host.id);
    std::thread::sleep(Duration::from_millis(50));
    assert!(host.path().exists());
    host.device.change(|s| s.hold = true);
    assert!(!host.server.disconnect(host.id, Duration::from_millis(100)), "stuck in the device");
    host.device.change(|s| s.hold = false);
    assert!(host.server.disconnect(host.id, WAIT));
    assert!(host.server.sessions(host.id).is_empty());
    vm.wait_hang_up();
    assert_eq!(host.device.lock().closed, 1);
}

#[test]
fn shutting_down_leaves_nothing() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    vm.request(0);
    host.device.pop_all(0);
    assert!(host.server.shutdown());
    assert_eq!(host.device.lock().closed, 1);
    vm.wait_hang_up();
    assert_eq!(std::fs::read_dir(host.dir.path()).unwrap().count(), 0);
    let factory_refused = host.server.listen(&host.path(), SocketOptions::default(), factory(&host));
    assert!(factory_refused.is_err());
}

fn factory(host: &Host) -> std::sync::Arc<dyn pollux_vhost_user::BackendFactory> {
    struct Never;
    impl pollux_vhost_user::BackendFactory for Never {
        fn connect(&self, _: pollux_vhost_user::SessionHandle) -> Option<Box<dyn pollux_vhost_user::Backend>> {
            None
        }
    }
    assert!(!host.path().exists());
    std::sync::Arc::new(Never)
}

#[test]
fn a_nack_comes_before_the_hang_up() {
    let host = Host::new();
    let mut vm = host.vm();
    vm.start();
    vm.front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert!(vm.front.set_vring_num(0, 3).is_err());
    vm.wait_hang_up();
    assert!(vm.socket.as_raw_fd() >= 0);
}
