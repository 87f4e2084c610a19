//! Hostile front ends, RPC and HTTP clients against the real daemon. The numbers are those of the list of threats in
//! `docs/testing.md`.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use common::attack::{LUN, QUEUE, Scene, closed};
use common::clear_attentions;
use pollux_tests::frontend::{NEED_REPLY, RawSession, VERSION_1};
use pollux_tests::guest::{Command, DriverOptions, GuestMemory, cdb};
use pollux_tests::rng::Rng;
use serde_json::json;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ENABLE: u32 = 18;

/// Connects without manners, does `f`, and checks that nobody else is hurt.
fn rude(scene: &mut Scene, what: &str, f: impl FnOnce(&RawSession) -> Result<()>) -> Result<()> {
    let session = RawSession::connect(&scene.daemon.socket("evil"))?;
    f(&session).with_context(|| what.to_owned())?;
    drop(session);
    scene.bystander_works().with_context(|| what.to_owned())?;
    scene.evil_works().with_context(|| what.to_owned())
}

#[test]
fn threat_31_wrong_sizes_versions_flags_and_unknown_messages() -> Result<()> {
    let mut scene = Scene::new()?;
    for request in 0..50u32 {
        for size in [0u32, 1, 7, 9, 4096, u32::MAX] {
            let session = RawSession::connect(&scene.daemon.socket("evil"))?;
            let payload = vec![0; size.min(64) as usize];
            let _ = session.send(request, VERSION_1 | NEED_REPLY, size, &payload, &[]);
        }
    }
    scene.bystander_works()?;
    scene.evil_works()?;
    for flags in [0u32, 2, 3, 0x7, 0xffff_fff1] {
        rude(&mut scene, &format!("flags {flags:#x}"), |session| {
            let _ = session.send(GET_FEATURES, flags, 0, &[], &[]);
            let _ = session.receive();
            Ok(())
        })?;
    }
    rude(&mut scene, "an unknown message with NEED_REPLY", |session| {
        session.message(SET_OWNER, &[], &[])?;
        let _ = session.send(4000, VERSION_1 | NEED_REPLY, 0, &[], &[]);
        let _ = session.receive();
        Ok(())
    })?;
    rude(&mut scene, "byte by byte", |session| {
        let mut bytes = Vec::new();
        for word in [GET_FEATURES, VERSION_1, 0] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for byte in bytes {
            session.send_bytes(&[byte], &[])?;
            std::thread::sleep(Duration::from_millis(2));
        }
        let (request, ..) = session.receive().context("a message may come in pieces")?;
        ensure!(request == GET_FEATURES, "an answer to {request}");
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_32_descriptors_of_any_kind_on_any_message() -> Result<()> {
    let mut scene = Scene::new()?;
    let dir = File::open(scene.daemon.disks_dir())?;
    let null = File::open("/dev/null")?;
    let (socket, _other) = UnixStream::pair()?;
    let memory = GuestMemory::new(&[(0, 4096)])?;
    let (reader, _writer) = rustix::pipe::pipe()?;
    let kinds: [BorrowedFd<'_>; 5] = [dir.as_fd(), null.as_fd(), socket.as_fd(), memory.as_fd(), reader.as_fd()];
    let mut rng = Rng::new(32);
    for request in 0..45u32 {
        for count in [1usize, 2, 8, 9, 32, 253] {
            let session = RawSession::connect(&scene.daemon.socket("evil"))?;
            let fds: Vec<BorrowedFd<'_>> = (0..count).map(|_| kinds[rng.index(kinds.len())]).collect();
            let mut payload = vec![0; [0usize, 4, 8, 40][rng.index(4)]];
            rng.fill(&mut payload);
            let _ = session.message(SET_OWNER, &[], &[]);
            let _ = session.message(request, &payload, &fds);
        }
    }
    for request in [SET_VRING_KICK, SET_VRING_CALL] {
        for (n, kind) in kinds.iter().enumerate() {
            rude(&mut scene, &format!("message {request} with descriptor kind {n}"), |session| {
                session.message(SET_OWNER, &[], &[])?;
                let _ = session.message(request, &2u64.to_ne_bytes(), &[*kind]);
                ensure!(session.is_closed_by_peer(), "a descriptor that is no eventfd was taken");
                Ok(())
            })?;
        }
    }
    scene.no_files_left()
}

#[test]
fn threat_33_memory_tables() -> Result<()> {
    let mut scene = Scene::new()?;
    type Change = fn(&mut VhostUserMemoryRegionInfo);
    let changes: [(&str, Change); 7] = [
        ("larger than the file", |r| r.memory_size *= 2),
        ("beyond 64 bits", |r| r.guest_phys_addr = u64::MAX - 4096),
        ("user address beyond 64 bits", |r| r.userspace_addr = u64::MAX - 4096),
        ("offset behind the end", |r| r.mmap_offset = 1 << 40),
        ("offset beyond 64 bits", |r| r.mmap_offset = u64::MAX - 4095),
        ("huge", |r| r.memory_size = u64::MAX),
        ("an unaligned offset with the length of all", |r| r.mmap_offset = 1),
    ];
    for (what, change) in changes {
        let front =
            pollux_tests::frontend::FrontEnd::negotiate(&scene.daemon.socket("evil"), &DriverOptions::default())?;
        let mut regions = front.regions();
        change(&mut regions[0]);
        ensure!(front.session.set_mem_table(&regions).is_err(), "{what}: taken");
        drop(front);
        scene.bystander_works()?;
        scene.evil_works().context(what)?;
    }
    // Overlapping.
    let front = pollux_tests::frontend::FrontEnd::negotiate(&scene.daemon.socket("evil"), &DriverOptions::default())?;
    let mut regions = front.regions();
    regions.push(regions[0]);
    ensure!(front.session.set_mem_table(&regions).is_err(), "overlapping regions were taken");
    drop(front);
    // Not memory: a file on a disk, a device.
    for path in [scene.daemon.state_dir().join("not-memory"), "/dev/zero".into()] {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        let _ = file.set_len(64 << 20);
        let front =
            pollux_tests::frontend::FrontEnd::negotiate(&scene.daemon.socket("evil"), &DriverOptions::default())?;
        let mut regions = front.regions();
        regions[0].mmap_handle = std::os::fd::AsRawFd::as_raw_fd(&file);
        let taken = front.session.set_mem_table(&regions).is_ok();
        let on_tmpfs = path.starts_with("/tmp") && is_tmpfs(&path);
        ensure!(!taken || on_tmpfs, "{} was taken as guest memory", path.display());
        drop(front);
        scene.evil_works()?;
    }
    scene.no_files_left()
}

fn is_tmpfs(path: &std::path::Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == libc::TMPFS_MAGIC)
}

#[test]
fn threat_33_memory_that_shrinks_costs_its_own_session_only() -> Result<()> {
    let mut scene = Scene::new()?;
    for with_requests in [false, true] {
        scene.attack("truncated", |front| {
            clear_attentions(front, LUN)?;
            if with_requests {
                for at in 0..32 {
                    let read = cdb::read10(at * 64, 64);
                    front.submit(QUEUE, &Command::new(LUN, &read, &[], 32768));
                }
            }
            front.driver.memory.truncate(0)?;
            // We must not touch our own mapping any more: a kick is all.
            for queue in &mut front.driver.queues {
                let _ = rustix::io::write(&*queue.kick, &1u64.to_ne_bytes());
            }
            ensure!(closed(front), "the session goes on without its memory");
            Ok(())
        })?;
    }
    scene.no_files_left()
}

#[test]
fn threat_33_regions_come_and_go_with_requests_in_flight() -> Result<()> {
    let mut scene = Scene::new()?;
    let options =
        DriverOptions { memory: vec![(0x10_0000, 16 << 20), (0x4000_0000, 4 << 20)], ..DriverOptions::default() };
    scene.attack_with("memory slots", &options, |front| {
        clear_attentions(front, LUN)?;
        let regions = front.regions();
        for round in 0..30u32 {
            for at in 0..16 {
                let read = cdb::read10(at * 8, 8);
                front.submit(QUEUE, &Command::new(LUN, &read, &[], 4096));
            }
            if round % 2 == 0 {
                front.session.remove_mem_region(&regions[1]).context("REM_MEM_REG")?;
            } else {
                front.session.add_mem_region(&regions[1]).context("ADD_MEM_REG")?;
            }
            while front.driver.in_flight(QUEUE) > 0 {
                front.wait(QUEUE, pollux_tests::frontend::PATIENCE)?;
            }
        }
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_34_35_indexes_beyond_the_queues_and_features_never_offered() -> Result<()> {
    let mut scene = Scene::new()?;
    for request in [SET_VRING_NUM, SET_VRING_ENABLE] {
        for index in [130u32, 255, 256, 0x7fff_ffff, u32::MAX] {
            rude(&mut scene, &format!("message {request} for queue {index}"), |session| {
                session.message(SET_OWNER, &[], &[])?;
                let mut payload = index.to_ne_bytes().to_vec();
                payload.extend_from_slice(&1u32.to_ne_bytes());
                let _ = session.send(request, VERSION_1, 8, &payload, &[]);
                ensure!(session.is_closed_by_peer(), "the session goes on");
                Ok(())
            })?;
        }
    }
    // Packed rings and an IOMMU change what everything means.
    for bit in [34u64, 33] {
        rude(&mut scene, &format!("feature bit {bit}"), |session| {
            session.message(SET_OWNER, &[], &[])?;
            session.message(GET_FEATURES, &[], &[])?;
            let (.., payload) = session.receive()?;
            let offered = u64::from_ne_bytes(payload[..8].try_into()?);
            ensure!(offered >> bit & 1 == 0, "bit {bit} is offered");
            let _ = session.message(SET_FEATURES, &(offered | 1 << bit).to_ne_bytes(), &[]);
            ensure!(session.is_closed_by_peer(), "the session goes on");
            Ok(())
        })?;
    }
    scene.no_files_left()
}

#[test]
fn threat_38_39_storms_of_connections_and_ends_at_every_step() -> Result<()> {
    let mut scene = Scene::new()?;
    let path = scene.daemon.socket("evil");
    for _ in 0..1000 {
        drop(UnixStream::connect(&path));
    }
    scene.bystander_works()?;
    // Half-open ones that say nothing.
    let silent: Vec<_> = (0..200).filter_map(|_| UnixStream::connect(&path).ok()).collect();
    scene.bystander_works()?;
    drop(silent);
    scene.evil_works()?;
    // An end after each message of a proper handshake.
    for steps in 0..12 {
        let front = pollux_tests::frontend::FrontEnd::negotiate(&path, &DriverOptions::default());
        let Ok(mut front) = front else { bail!("no handshake at step {steps}") };
        if steps > 0 {
            front.set_memory()?;
        }
        for queue in 0..steps.min(3) {
            front.start_queue(queue, 0)?;
        }
        if steps > 3 {
            for at in 0..steps as u32 {
                let read = cdb::read10(at, 8);
                front.submit(QUEUE, &Command::new(LUN, &read, &[], 4096));
            }
        }
        drop(front);
    }
    scene.bystander_works()?;
    scene.evil_works()?;
    // One that never reads its answers.
    rude(&mut scene, "a front end that never reads", |session| {
        session.stream().set_write_timeout(Some(Duration::from_millis(300)))?;
        for _ in 0..50_000 {
            if session.message(GET_FEATURES, &[], &[]).is_err() {
                break;
            }
        }
        Ok(())
    })?;
    // Two VMMs on one socket: the first is not disturbed.
    let mut first = scene.evil()?;
    first.good(LUN, &cdb::read10(0, 1), &[], 512)?;
    let second = RawSession::connect(&path)?;
    let _ = second.message(GET_FEATURES, &[], &[]);
    first.good(LUN, &cdb::read10(0, 1), &[], 512)?;
    drop((first, second));
    scene.evil_works()?;
    scene.no_files_left()
}

#[test]
fn threat_31_random_messages() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut rng = Rng::new(31);
    let memory = GuestMemory::new(&[(0, 1 << 20)])?;
    for _ in 0..400 {
        let session = RawSession::connect(&scene.daemon.socket("evil"))?;
        let _ = session.message(SET_OWNER, &[], &[]);
        for _ in 0..rng.between(1, 12) {
            let mut payload = vec![0; [0usize, 8, 16, 24, 32, 40, 72][rng.index(7)]];
            rng.fill(&mut payload);
            let request = if rng.chance(1, 4) { SET_MEM_TABLE } else { rng.below(45) as u32 };
            let fds: &[BorrowedFd<'_>] = if rng.chance(1, 3) { &[memory.as_fd()] } else { &[] };
            if session.message(request, &payload, fds).is_err() {
                break;
            }
        }
    }
    scene.bystander_works()?;
    scene.evil_works()?;
    scene.no_files_left()
}

#[test]
fn threat_41_rpc_clients() -> Result<()> {
    let mut scene = Scene::new()?;
    let path = scene.daemon.rpc_path();
    let send = |bytes: &[u8]| -> Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Ok(answer)
    };
    send(&b"[".repeat(1 << 20))?;
    send(&b"{\"a\":".repeat(1 << 18))?;
    send(format!("{{\"method\":\"{}\"}}", "x".repeat(64 << 20)).as_bytes())?;
    send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"bdev_get")?;
    send(&[0xff; 4096])?;
    let twice = send(
        br#"{"jsonrpc":"2.0","id":1,"method":"spdk_get_version"}{"jsonrpc":"2.0","id":1,"method":"spdk_get_version"}"#,
    )?;
    ensure!(String::from_utf8_lossy(&twice).matches("\"result\"").count() == 2, "two requests of one id");
    // Names and paths that climb.
    for name in ["../escape", "a/b", "", ".", "..", "x\u{0}y", &"n".repeat(5000)] {
        let _ = scene.daemon.rpc_error("vhost_create_scsi_controller", json!({"ctrlr": name}))?;
    }
    ensure!(!scene.daemon.vhost_dir().join("../escape").exists(), "a socket outside the folder");
    // A place that is taken, by a file or a link.
    std::fs::write(scene.daemon.vhost_dir().join("taken"), b"precious")?;
    std::os::unix::fs::symlink("/dev/null", scene.daemon.vhost_dir().join("link"))?;
    for name in ["taken", "link"] {
        let _ = scene.daemon.rpc_error("vhost_create_scsi_controller", json!({"ctrlr": name}))?;
    }
    ensure!(std::fs::read(scene.daemon.vhost_dir().join("taken"))? == b"precious", "a file was replaced");
    // Wrong types everywhere.
    for params in
        [json!([]), json!({"name": 5}), json!({"name": {"a": []}}), json!({"num_blocks": -1, "block_size": 1e300})]
    {
        let _ = scene.daemon.rpc_error("bdev_malloc_create", params)?;
    }
    // Clients that connect and say nothing, and one that never reads.
    let silent: Vec<_> = (0..100).filter_map(|_| UnixStream::connect(&path).ok()).collect();
    let deaf = UnixStream::connect(&path)?;
    deaf.set_write_timeout(Some(Duration::from_millis(500)))?;
    let request = br#"{"jsonrpc":"2.0","id":1,"method":"rpc_get_methods"}"#;
    for _ in 0..20_000 {
        if (&deaf).write_all(request).is_err() {
            break;
        }
    }
    scene.bystander_works()?;
    drop((silent, deaf));
    scene.daemon.rpc("spdk_get_version", json!({}))?;
    scene.no_files_left()
}

#[test]
fn threat_42_http_clients() -> Result<()> {
    let mut scene = Scene::new()?;
    let addr = scene.daemon.metrics_addr();
    let slow: Vec<_> = (0..50)
        .filter_map(|_| {
            let mut stream = TcpStream::connect(addr).ok()?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ").ok()?;
            Some(stream)
        })
        .collect();
    scene.daemon.metrics().context("with 50 slow clients")?;
    let mut huge = TcpStream::connect(addr)?;
    let _ = huge.write_all(format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(8 << 20)).as_bytes());
    scene.daemon.metrics().context("after a huge header")?;
    for path in ["/", "/../state.json", "/metrics/../../etc/passwd", "//", "/%00"] {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        ensure!(!answer.contains("root:"), "{path} gave a file away");
    }
    // A label cannot break out of its quotes.
    let name = "x\"} 1\npollux_fake 1\\";
    let made = scene.daemon.rpc("bdev_malloc_create", json!({"name": name, "num_blocks": 64, "block_size": 512}));
    ensure!(!scene.daemon.metrics()?.lines().any(|l| l.starts_with("pollux_fake")), "a label became a line");
    drop((made, slow));
    scene.bystander_works()
}

#[test]
fn threat_40_a_vmm_that_stands_still_holds_nobody_up() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut front = scene.evil()?;
    clear_attentions(&mut front, LUN)?;
    // Stopped VMMs do not take their answers: fill the queue and look away.
    for at in 0..42 {
        let read = cdb::read10(at * 8, 8);
        front.submit(QUEUE, &Command::new(LUN, &read, &[], 4096));
    }
    for _ in 0..20 {
        scene.bystander_works()?;
    }
    scene.daemon.rpc("vhost_get_controllers", json!({}))?;
    scene.daemon.metrics()?;
    drop(front);
    scene.evil_works()
}
