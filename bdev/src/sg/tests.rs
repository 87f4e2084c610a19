//! A channel with its helper's thread, on a device of the tests' own: the driver's headers go over a socket, and who
//! sits at the other end works on the memory that they name, as the kernel does.

use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{
    Channel, Completion, Cx, Delivery, Direction, IoError, Next, ScsiAnswer, ScsiCommand, Segment, SegmentList, Tag,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::Kernel;
use super::channel::SgChannel;
use super::common::{Common, Driver};
use super::helper::{Ended, Helper, Order, Shared, ring};
use super::raw::testing::Taken;
use super::raw::{QUEUE, SEGMENTS};
use crate::memory::Mapping;
use crate::testing::FileRing;

/// The most data of one command.
const MOST: u64 = 1 << 20;

/// Counts what it is asked for, and does nothing.
#[derive(Clone, Default)]
pub(super) struct Recorder(Arc<(AtomicU32, AtomicU32)>);

impl Recorder {
    pub(super) fn resets(&self) -> u32 {
        self.0.0.load(Ordering::Relaxed)
    }

    fn removals_allowed(&self) -> u32 {
        self.0.1.load(Ordering::Relaxed)
    }
}

impl Driver for Recorder {
    fn reset(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn allow_removal(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        self.0.1.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

pub(super) fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair")
}

/// A channel on one or more sockets, and the device at their other ends.
struct Bench {
    ring: FileRing,
    channel: SgChannel,
    device: Vec<OwnedFd>,
    common: Arc<Common>,
}

impl Bench {
    fn new(lines: usize) -> Bench {
        Bench::on(lines, Common::new(MOST, Box::new(Recorder::default())))
    }

    fn on(lines: usize, common: Arc<Common>) -> Bench {
        let (ours, device): (Vec<_>, Vec<_>) = (0..lines).map(|_| pair()).unzip();
        let channel = SgChannel::new(ours, 256, common.clone()).expect("a channel");
        let mut bench = Bench { ring: FileRing::default(), channel, device, common };
        bench.with(|channel, cx| channel.attach(cx).expect("room in the ring"));
        bench
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut SgChannel, &mut Cx<'_>) -> T) -> T {
        act(&mut self.channel, &mut Cx { now: 1, reactor: 0, ring: &mut self.ring })
    }

    fn submit(&mut self, command: ScsiCommand) {
        self.with(|channel, cx| channel.scsi().expect("it takes commands").submit_scsi(command, cx));
    }

    /// Waits until something has ended.
    fn ended(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        for _ in 0..20_000 {
            self.with(|channel, cx| channel.poll(cx, &mut done));
            if !done.is_empty() {
                return done;
            }
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
        panic!("nothing ends");
    }

    /// Waits until one command has ended.
    fn answer(&mut self) -> (Tag, ScsiAnswer) {
        let done = self.ended();
        assert_eq!(done.len(), 1);
        let tag = done[0].tag;
        (tag, self.with(|channel, _| channel.scsi().and_then(|way| way.take_answer(tag)).expect("an answer")))
    }

    /// Takes the next command from a line.
    fn take(&self, line: usize) -> Taken {
        let mut bytes = [0; 88];
        for _ in 0..20_000 {
            match rustix::io::read(&self.device[line], &mut bytes) {
                Ok(len) => {
                    assert_eq!(len, bytes.len());
                    return Taken::from_bytes(&bytes);
                }
                Err(Errno::AGAIN) => std::thread::sleep(std::time::Duration::from_micros(500)),
                Err(errno) => panic!("{errno}"),
            }
        }
        panic!("no command comes");
    }

    fn give(&self, line: usize, taken: &Taken) {
        rustix::io::write(&self.device[line], taken.bytes()).expect("room");
    }
}

fn command(tag: Tag, direction: Direction, data: SegmentList) -> ScsiCommand {
    let mut cdb = [0; 32];
    cdb[..2].copy_from_slice(&[0x12, tag as u8]);
    ScsiCommand { tag, cdb, cdb_len: 6, direction, len: data.bytes(), data, timeout_ms: 7000 }
}

#[allow(unsafe_code)]
fn list(segments: &[Segment]) -> SegmentList {
    // SAFETY: each test keeps its segments until it has the answer.
    unsafe { SegmentList::new(segments) }
}

fn memory() -> Mapping {
    Mapping::new(4096).expect("memory")
}

fn bare(tag: Tag) -> ScsiCommand {
    command(tag, Direction::None, SegmentList::EMPTY)
}

#[test]
fn a_command_goes_down_as_it_is_and_its_answer_comes_up_as_it_is() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.channel.next(), Next::Idle);
    let memory = memory();
    let segments = [memory.segment(0, 10), memory.segment(100, 30)];
    copy_to(&segments, 0, &[0xEE; 40]);
    bench.submit(command(5, Direction::In, list(&segments)));
    assert_eq!(bench.channel.next(), Next::Ring);
    let mut taken = bench.take(0);
    assert_eq!(taken.cdb(), [0x12, 5, 0, 0, 0, 0]);
    assert_eq!((taken.is_in(), taken.len(), taken.segments(), taken.timeout_ms()), (true, 40, 1, 7000));
    // The kernel copies the whole length, with whatever is behind what the device has sent.
    taken.fill(&[7; 40]);
    taken.set_resid(4);
    taken.end(2, &[0x70, 0, 5], 0, 8);
    bench.give(0, &taken);
    let (tag, answer) = bench.answer();
    assert_eq!((tag, answer.delivery, answer.status, answer.residual), (5, Delivery::Answered, 2, 4));
    assert_eq!(answer.sense(), [0x70, 0, 5]);
    let mut bytes = [0; 40];
    copy_from(&segments, 0, &mut bytes);
    assert_eq!((&bytes[..36], &bytes[36..]), (&[7; 36][..], &[0xEE; 4][..]), "what was not sent stays the guest's");
    assert_eq!(
        (bench.channel.next(), bench.common.counters.delivered(Delivery::Answered), bench.common.counters.good()),
        (Next::Idle, 1, 0)
    );
    bench.with(Channel::detach);
}

#[test]
fn data_goes_to_the_device_and_answers_come_in_any_order() {
    let mut bench = Bench::new(2);
    let memory = memory();
    copy_to(&[memory.segment(0, memory.len())], 0, &[9; 512]);
    let segments = [memory.segment(0, 512)];
    for tag in 0..2 * QUEUE as u64 {
        bench.submit(command(tag, Direction::Out, list(&segments)));
    }
    let mut taken: Vec<_> =
        (0..2).flat_map(|line| (0..QUEUE).map(move |_| line)).map(|line| (line, bench.take(line))).collect();
    assert!(taken.iter().all(|(_, taken)| taken.fetch() == [9; 512]));
    let mut seen = Vec::new();
    while let Some((line, mut last)) = taken.pop() {
        last.end(0, &[], 0, 0);
        bench.give(line, &last);
        let (tag, answer) = bench.answer();
        assert_eq!((u64::from(last.cdb()[1]), answer.delivery, answer.residual), (tag, Delivery::Answered, 0));
        seen.push(tag);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..2 * QUEUE as u64).collect::<Vec<_>>());
    assert_eq!(bench.common.counters.good(), 2 * QUEUE as u64);
}

#[test]
fn more_pieces_than_a_list_can_name_go_through_one() {
    let mut bench = Bench::new(1);
    let memory = memory();
    let segments: Vec<Segment> = (0..SEGMENTS + 1).map(|at| memory.segment(at, 1)).collect();
    copy_to(&[memory.segment(0, memory.len())], 0, &[3; SEGMENTS + 1]);
    bench.submit(command(1, Direction::Out, list(&segments)));
    let mut out = bench.take(0);
    assert_eq!((out.segments(), out.fetch()), (1, vec![3; SEGMENTS + 1]));
    out.end(0, &[], 0, 0);
    bench.give(0, &out);
    bench.answer();
    bench.submit(command(2, Direction::In, list(&segments)));
    let mut taken = bench.take(0);
    taken.fill(&[8; 1000]);
    taken.end(0, &[], 0, 0);
    bench.give(0, &taken);
    assert_eq!(bench.answer().1.residual, 25);
    let mut bytes = [0; SEGMENTS + 1];
    copy_from(&segments, 0, &mut bytes);
    assert!(bytes[..1000].iter().all(|&byte| byte == 8) && bytes[1000..].iter().all(|&byte| byte == 3));
}

#[test]
fn what_the_host_says_without_a_status_is_handed_on() {
    let mut bench = Bench::new(1);
    for (host, driver, delivery, error) in [
        (0x08, 0, Delivery::Reset, IoError::Aborted),
        (0x01, 0, Delivery::Gone, IoError::NotReady),
        (0x0E, 0, Delivery::Transport, IoError::Medium),
        (0, 0x06, Delivery::Aborted, IoError::Aborted),
    ] {
        bench.submit(bare(1));
        let mut taken = bench.take(0);
        taken.end(0, &[], host, driver);
        bench.give(0, &taken);
        assert_eq!(bench.ended(), [Completion { tag: 1, result: Err(error) }]);
        let answer = bench.with(|channel, _| channel.scsi().and_then(|way| way.take_answer(1)));
        assert_eq!(answer.map(|answer| answer.delivery), Some(delivery));
        assert!(bench.with(|channel, _| channel.scsi().and_then(|way| way.take_answer(1))).is_none(), "once");
    }
}

#[test]
fn what_a_lost_command_leaves_in_the_drivers_memory_never_reaches_the_guest() {
    let mut bench = Bench::new(1);
    let memory = memory();
    let segments = [memory.segment(0, 64)];
    copy_to(&segments, 0, &[0xEE; 64]);
    // TIME_OUT, RESET, TRANSPORT_DISRUPTED, NO_CONNECT: the host adapter's driver counts everything as moved.
    for host in [0x03, 0x08, 0x0E, 0x01] {
        bench.submit(command(1, Direction::In, list(&segments)));
        let mut taken = bench.take(0);
        taken.fill(&[7; 64]);
        taken.end(0, &[], host, 0);
        bench.give(0, &taken);
        let (_, answer) = bench.answer();
        assert_eq!(answer.residual, 64, "{host:x}");
        let mut bytes = [0; 64];
        copy_from(&segments, 0, &mut bytes);
        assert_eq!(bytes, [0xEE; 64], "{host:x}");
    }
}

#[test]
fn a_residual_of_nonsense_stays_inside_the_data() {
    let mut bench = Bench::new(1);
    let memory = memory();
    let segments = [memory.segment(0, 16)];
    for (resid, want) in [(-5, 0), (17, 16), (i32::MAX, 16)] {
        bench.submit(command(1, Direction::In, list(&segments)));
        let mut taken = bench.take(0);
        taken.end(0, &[], 0, 0);
        taken.set_resid(resid);
        bench.give(0, &taken);
        assert_eq!(bench.answer().1.residual, want);
    }
}

#[test]
fn a_device_that_vanishes_ends_what_it_has_and_takes_nothing_more() {
    let mut bench = Bench::new(1);
    bench.submit(bare(1));
    let mut taken = bench.take(0);
    taken.end(0, &[], 1, 0);
    bench.give(0, &taken);
    bench.device.clear();
    assert_eq!(bench.answer().1.delivery, Delivery::Gone);
    bench.submit(bare(2));
    // A socket without another end says so by another number than a driver without a device.
    assert_ne!(bench.answer().1.delivery, Delivery::Answered);
    bench.with(Channel::detach);
}

#[test]
fn too_much_at_once_never_reaches_the_device() {
    let mut bench = Bench::new(1);
    let memory = memory();
    let segments: Vec<Segment> = (0..MOST / 4096).map(|_| memory.segment(0, 4096)).collect();
    let more = [&segments[..], &[memory.segment(0, 1)]].concat();
    for direction in [Direction::In, Direction::Out] {
        bench.submit(command(1, direction, list(&more)));
        let (_, answer) = bench.answer();
        assert_eq!((answer.delivery, answer.residual), (Delivery::TooLong, MOST + 1));
        bench.submit(command(2, direction, list(&segments)));
        let mut taken = bench.take(0);
        assert_eq!((taken.cdb()[1], taken.len() as u64), (2, MOST), "the first that comes there");
        taken.end(0, &[], 0, 0);
        bench.give(0, &taken);
        assert_eq!(bench.answer().1.delivery, Delivery::Answered);
    }
}

#[test]
fn what_is_cancelled_before_it_was_sent_is_not_sent() {
    let (ended, device) = run(&Recorder::default(), [true, false], vec![Order::Command(0, bare(0))]);
    let [Ended::Command(0, answer)] = &ended[..] else { panic!("an answer") };
    assert_eq!(answer.delivery, Delivery::Aborted);
    let mut bytes = [0; 88];
    assert_eq!(rustix::io::read(&device, &mut bytes), Ok(0), "nothing was sent, and the helper has gone");
}

/// What a helper makes of orders that are all there when it begins, and the device's end.
fn run(recorder: &Recorder, cancelled: [bool; 2], given: Vec<Order>) -> (Vec<Ended>, OwnedFd) {
    let (ours, device) = pair();
    let cancelled = cancelled.into_iter().map(AtomicBool::new).collect();
    let common = Common::new(MOST, Box::new(recorder.clone()));
    let shared = Arc::new(Shared::new(cancelled, common).expect("eventfds"));
    let (orders, taken) = sync_channel(given.len());
    let (told, results) = sync_channel(given.len());
    let helper = Helper::new(shared.clone(), vec![ours], taken, told);
    given.into_iter().for_each(|order| orders.send(order).expect("room"));
    drop(orders);
    ring(&shared.wake);
    helper.run();
    (results.try_iter().collect(), device)
}

#[test]
fn resets_that_wait_are_done_by_one_and_commands_stay_behind_it() {
    let recorder = Recorder::default();
    let orders =
        vec![Order::Reset(2), Order::Command(0, bare(0)), Order::Reset(3), Order::Command(1, bare(1)), Order::Reset(4)];
    let (ended, _device) = run(&recorder, [true, true], orders);
    let places: Vec<usize> = ended
        .iter()
        .map(|ended| match ended {
            Ended::Reset(place, Ok(())) | Ended::Command(place, _) => *place,
            Ended::Reset(_, Err(errno)) => panic!("{errno}"),
        })
        .collect();
    assert_eq!((places, recorder.resets()), (vec![2, 3, 4, 0, 1], 1));
}

/// PREVENT ALLOW MEDIUM REMOVAL, and waits for its answer.
fn prevent(bench: &mut Bench, prevent: u8) {
    let mut order = bare(1);
    (order.cdb[0], order.cdb[1], order.cdb[4]) = (0x1E, 0, prevent);
    bench.submit(order);
    let mut taken = bench.take(0);
    taken.end(0, &[], 0, 0);
    bench.give(0, &taken);
    bench.answer();
}

#[test]
fn a_guest_that_has_gone_keeps_no_medium_in_a_device() {
    let recorder = Recorder::default();
    let mut bench = Bench::on(1, Common::new(MOST, Box::new(recorder.clone())));
    let lose = |bench: &mut Bench| bench.with(|channel, _| channel.scsi().expect("it takes commands").nexus_lost());
    // A command behind it shows that the helper has seen it.
    lose(&mut bench);
    prevent(&mut bench, 0);
    assert_eq!(recorder.removals_allowed(), 0, "nobody has asked for it");
    prevent(&mut bench, 1);
    lose(&mut bench);
    prevent(&mut bench, 0);
    assert_eq!(recorder.removals_allowed(), 1);
    lose(&mut bench);
    prevent(&mut bench, 1);
    assert_eq!(recorder.removals_allowed(), 1, "once");
    bench.with(Channel::detach);
    let Bench { channel, device, .. } = bench;
    drop(channel);
    let mut fds = [PollFd::new(&device[0], PollFlags::empty())];
    poll(&mut fds, None).expect("it hangs up");
    assert_eq!(recorder.removals_allowed(), 2, "a channel that ends");
}

#[test]
fn a_reset_that_the_driver_does_not_know_is_an_error_and_takes_no_place() {
    let mut bench = Bench::on(1, Common::new(MOST, Box::new(Kernel)));
    bench.with(|channel, cx| channel.scsi().expect("it takes commands").reset(99, cx));
    assert_eq!(bench.ended(), [Completion { tag: 99, result: Err(IoError::Unsupported) }]);
    bench.with(Channel::detach);
}

#[test]
fn the_helper_ends_with_its_channel_and_closes_its_descriptors() {
    let mut bench = Bench::new(2);
    bench.with(Channel::detach);
    let Bench { channel, device, .. } = bench;
    drop(channel);
    for line in &device {
        let mut fds = [PollFd::new(line, PollFlags::IN)];
        poll(&mut fds, None).expect("it hangs up");
        assert_eq!(rustix::io::read(line, &mut [0; 88]), Ok(0));
    }
}

#[test]
fn blocks_are_not_served() {
    let mut bench = Bench::new(1);
    let io = pollux_core::Io::without_data(4, pollux_core::Op::Flush, pollux_core::IoFlags::empty(), 0, 0);
    bench.with(|channel, cx| channel.submit(io, cx));
    assert_eq!(bench.channel.next(), Next::Now);
    assert_eq!(bench.ended(), [Completion { tag: 4, result: Err(IoError::Unsupported) }]);
}
