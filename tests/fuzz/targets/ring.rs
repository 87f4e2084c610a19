//! The ring walker over memory that the fuzzer wrote, all of it: descriptor table, both rings, indirect tables, data.
//!
//! Whatever it holds: no panic, every segment that comes out lies inside the mapping, a head is not handed out twice,
//! and the walk ends.
#![no_main]

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::{Corpus, fuzz_target};
use pollux_vhost_user::{Memory, Queue, QueueError, QueueSetup, RegionInfo, SegmentBuf};
use rustix::fs::MemfdFlags;

/// Two regions that follow each other, a hole, one more.
const REGIONS: [(u64, u64); 3] = [(0, 0x2000), (0x2000, 0x1000), (0x8000, 0x1000)];
const BYTES: u64 = 0x4000;
const USER: u64 = 0x7000_0000;

#[derive(Arbitrary, Debug)]
struct Setup {
    size_log: u8,
    desc: u16,
    avail: u16,
    used: u16,
    base: u16,
    event_idx: bool,
    indirect: bool,
    /// What the guest makes available, step by step.
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Moves the available index and takes what is there.
    Take(u16),
    /// Completes the oldest chain that was taken.
    Complete(u32),
    /// Ends a turn.
    Publish,
    /// Idles and wakes up.
    Sleep,
    /// Changes two bytes anywhere.
    Scribble(u16, u16),
}

struct World {
    file: File,
    memory: Arc<Memory>,
    first: usize,
}

fn world() -> World {
    let file = File::from(rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(BYTES).expect("its size");
    let mut offset = 0;
    let regions: Vec<(RegionInfo, File)> = REGIONS
        .iter()
        .map(|&(guest_addr, len)| {
            let info = RegionInfo { guest_addr, len, user_addr: USER + guest_addr, offset };
            offset += len;
            (info, file.try_clone().expect("a descriptor"))
        })
        .collect();
    let memory = Arc::new(Memory::map(&regions).expect("a mapping"));
    let mut segments = SegmentBuf::new();
    memory.translate(0, 1, &mut segments).expect("the first byte is mapped");
    let first = segments.as_slice()[0].addr();
    World { file, memory, first }
}

thread_local! {
    static WORLD: World = world();
}

fuzz_target!(|data: &[u8]| -> Corpus { WORLD.with(|world| run(world, data)) });

fn run(world: &World, data: &[u8]) -> Corpus {
    let (image, rest) = data.split_at(data.len().min(BYTES as usize) / 2);
    let Ok(setup) = Setup::arbitrary(&mut Unstructured::new(rest)) else { return Corpus::Reject };
    world.file.write_all_at(&vec![0; BYTES as usize], 0).expect("memory");
    world.file.write_all_at(image, 0).expect("memory");
    let place = |at: u16, align: u64| USER + u64::from(at) % 0x3000 / align * align;
    let size = 1u16 << (setup.size_log % 9);
    let avail = place(setup.avail, 2);
    let queue = QueueSetup {
        size,
        desc: place(setup.desc, 16),
        avail,
        used: place(setup.used, 4),
        base: setup.base,
        event_idx: setup.event_idx,
        indirect: setup.indirect,
    };
    let Ok(mut queue) = Queue::new(Arc::clone(&world.memory), &queue) else { return Corpus::Keep };
    let mut segments = SegmentBuf::new();
    let mut taken = Vec::new();
    let mut heads = HashSet::new();
    for step in setup.steps.iter().take(64) {
        match step {
            Step::Take(index) => {
                world.file.write_all_at(&index.to_le_bytes(), avail - USER + 2).expect("memory");
                for _ in 0..=size {
                    segments.clear();
                    match queue.pop(&mut segments) {
                        Ok(Some(chain)) => {
                            check(world, &segments, &chain);
                            assert!(heads.insert(chain.head), "head {} handed out twice", chain.head);
                            taken.push(chain.head);
                        }
                        Ok(None) => break,
                        Err(QueueError::Chain { head, .. }) => {
                            if heads.insert(head) {
                                taken.push(head);
                            }
                        }
                        Err(_) => return Corpus::Keep,
                    }
                }
            }
            Step::Complete(written) => {
                if !taken.is_empty() {
                    let head = taken.remove(0);
                    heads.remove(&head);
                    queue.complete(head, *written);
                }
            }
            Step::Publish => {
                let _ = queue.publish();
            }
            Step::Sleep => {
                let _ = queue.request_kicks();
                queue.suppress_kicks();
            }
            Step::Scribble(at, value) => {
                let at = u64::from(*at) % (BYTES - 1);
                world.file.write_all_at(&value.to_le_bytes(), at).expect("memory");
            }
        }
    }
    Corpus::Keep
}

fn check(world: &World, segments: &SegmentBuf, chain: &pollux_vhost_user::Chain) {
    let all = segments.as_slice();
    let sum = |part: &[pollux_core::Segment]| part.iter().map(|s| s.len() as u64).sum::<u64>();
    assert!(chain.readable <= all.len());
    assert_eq!(sum(&all[..chain.readable]), chain.readable_bytes);
    assert_eq!(sum(&all[chain.readable..]), chain.writable_bytes);
    // The first region's mapping is where the first byte is; the others are elsewhere, and are checked by touching them.
    for segment in all.iter().filter(|s| !s.is_empty()) {
        assert!(segment.addr() >= 0x1000 && segment.addr().checked_add(segment.len()).is_some());
        let mut byte = [0];
        pollux_core::segment::copy_from(&[segment.slice(segment.len() - 1, 1)], 0, &mut byte);
        pollux_core::segment::copy_from(&[segment.slice(0, 1)], 0, &mut byte);
    }
    assert_ne!(world.first, 0);
}
