//! Copies between two disks of one initiator: lists byte by byte, what comes of them, and what is told of them.

use std::sync::Arc;

use pollux_core::{CopyEnd, CopyError, CopyRange, Extent, IoError, IoFlags, Op, Shape};
use uuid::Uuid;

use crate::testing::{Luns, drained, sense_of, shape};
use crate::{
    Action, Cdb, Copy, CopyOrder, CopyTask, Designator, End, Identity, Key, LogicalUnit, Medium, Nexus, Outcome,
    PIECE_LEN, Path, SCRATCH_LEN, SENSE_LEN, Sense, Transfers,
};

/// Ends, status and limits.
#[path = "copy_end_tests.rs"]
mod ends;
/// Copies by tokens.
#[path = "token_tests.rs"]
mod token;

const BLOCK: usize = 512;

/// Some disks, the paths to them of initiator 1, and those of another one.
struct Disks {
    units: Vec<Arc<LogicalUnit>>,
    paths: Vec<Arc<Path>>,
    others: Vec<Arc<Path>>,
    /// Disks that initiator 1 cannot address.
    foreign: Vec<Arc<LogicalUnit>>,
    bytes: Vec<Vec<u8>>,
    /// Place, length and FUA of each write.
    writes: Vec<(u32, u64, bool)>,
    /// Sources and destinations that were asked to copy together, and those that cannot.
    asked: Vec<(u32, u32)>,
    apart: Vec<(u32, u32)>,
    scratch: Vec<u8>,
}

fn unit(id: u128, shape: Shape) -> Arc<LogicalUnit> {
    LogicalUnit::new(Identity::from_uuid(Uuid::from_u128(id), "disk"), Some(shape))
}

impl Disks {
    fn new() -> Disks {
        Disks::with(&[shape(), shape()])
    }

    fn with(shapes: &[Shape]) -> Disks {
        let units: Vec<_> = shapes.iter().zip(1..).map(|(shape, id)| unit(id, *shape)).collect();
        let attach = |nexus: &Arc<Nexus>| -> Vec<Arc<Path>> {
            let paths: Vec<_> = units.iter().zip(0..).map(|(unit, lun)| unit.attach(nexus.clone(), lun)).collect();
            paths.iter().for_each(|path| drop(drained(path)));
            paths
        };
        let (nexus, other) = (Nexus::new(1, "c".into(), 1, 0), Nexus::new(2, "d".into(), 2, 0));
        let (paths, others) = (attach(&nexus), attach(&other));
        units.iter().for_each(|_| paths.iter().for_each(|path| drop(drained(path))));
        let bytes = shapes.iter().map(|shape| vec![0; shape.bytes() as usize]).collect();
        let (foreign, scratch) = (vec![unit(99, shape())], vec![0xEE; SCRATCH_LEN]);
        let (writes, asked, apart) = (Vec::new(), Vec::new(), Vec::new());
        Disks { units, paths, others, foreign, bytes, writes, asked, apart, scratch }
    }

    /// All of them copy by themselves, but for these pairs.
    fn that_copy(count: usize, apart: &[(u32, u32)]) -> Disks {
        let disks = Disks { apart: apart.to_vec(), ..Disks::with(&vec![shape(); count]) };
        disks.units.iter().for_each(|unit| unit.set_medium(Arc::new(Copies)));
        disks
    }

    fn name(&self, at: usize) -> Designator {
        Designator::naa(&self.units[at].identity().naa)
    }

    fn end(&self, at: usize) -> End {
        End { unit: self.units[at].clone(), path: self.paths[at].clone(), place: at as u32 }
    }

    fn execute(&mut self, cdb: &[u8]) -> Action {
        self.units[0].execute(&self.paths[0], &Cdb::from_slice(cdb), &Luns, &mut self.scratch)
    }

    fn data(&mut self, cdb: &[u8]) -> Vec<u8> {
        match self.execute(cdb) {
            Action::Done(Outcome { sense: None, data_len, .. }) => self.scratch[..data_len].to_vec(),
            other => panic!("{cdb:02X?}: {other:?}"),
        }
    }

    fn sense(&mut self, cdb: &[u8]) -> Sense {
        sense_of(&self.execute(cdb))
    }

    fn send(&mut self, action: u8, list: &[u8]) -> Action {
        let cdb = out(action, list.len());
        match self.execute(&cdb) {
            Action::DataOut { len } => assert_eq!(len, list.len()),
            other => return other,
        }
        self.units[0].execute_out(&self.paths[0], &Cdb::from_slice(&cdb), list, &mut self.scratch)
    }

    fn start(&self, order: CopyOrder) -> Result<Copy, Outcome> {
        let find = &mut |name: &Designator| {
            (0..self.units.len()).find(|&at| self.units[at].is_called(name)).map(|at| self.end(at))
        };
        order.start(self.end(0), find, 0)
    }

    fn ordered(&mut self, action: u8, list: &[u8]) -> Result<Copy, Outcome> {
        match self.send(action, list) {
            Action::Copy(order) => self.start(*order),
            Action::Done(outcome) => Err(outcome),
            other => panic!("{other:?}"),
        }
    }

    /// Does the tasks of a copy; `look` sees each before it is done, and may say that the device fails.
    fn run(&mut self, mut copy: Copy, mut look: impl FnMut(&CopyTask) -> Option<IoError>) -> Outcome {
        let mut memory = vec![0xEE; PIECE_LEN];
        loop {
            let task = copy.next_task();
            if let Some(error) = look(&task) {
                let outcome = copy.fail_outcome(error);
                copy.end(&outcome);
                return outcome;
            }
            match task {
                CopyTask::Do { place, op, flags, offset, len, skip } => {
                    let range = offset as usize..(offset + len) as usize;
                    let disk = &mut self.bytes[place as usize][range];
                    match op {
                        Op::Read => memory[..disk.len()].copy_from_slice(disk),
                        Op::Write => disk.copy_from_slice(&memory[skip as usize..(skip + len) as usize]),
                        Op::WriteZeroes => disk.fill(0),
                        op => panic!("{op:?}"),
                    }
                    if op != Op::Read {
                        self.writes.push((place, len, flags.contains(IoFlags::FUA)));
                    }
                }
                CopyTask::Together { source, from, destination, to, len } => {
                    self.asked.push((source, destination));
                    let result = if self.apart.contains(&(source, destination)) {
                        copy.done_together(0, Err(CopyError::Apart))
                    } else {
                        let data = self.bytes[source as usize][from as usize..][..len as usize].to_vec();
                        self.bytes[destination as usize][to as usize..][..len as usize].copy_from_slice(&data);
                        copy.done_together(len, Ok(()))
                    };
                    if let Err(outcome) = result {
                        copy.end(&outcome);
                        return outcome;
                    }
                }
                CopyTask::Pause => memory.fill(0xEE),
                // Nothing else is under way here.
                CopyTask::Settle { .. } => {}
                CopyTask::End(outcome) => {
                    copy.end(&outcome);
                    return outcome;
                }
            }
        }
    }

    fn copied(&mut self, action: u8, list: &[u8]) -> Outcome {
        match self.ordered(action, list) {
            Ok(copy) => self.run(copy, |_| None),
            Err(outcome) => outcome,
        }
    }

    fn status(&mut self, list_id: u8) -> Vec<u8> {
        self.data(&[0x84, 0x00, list_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0])
    }
}

/// A medium that may copy by itself; whether it does is the test's matter.
#[derive(Debug)]
struct Copies;

impl Medium for Copies {
    fn transfers(&self) -> Transfers {
        Transfers::default()
    }

    fn extent(&self, _: u64, len: u64) -> Extent {
        Extent::mapped(len)
    }

    fn copy_range(&self, offset: u64, _: u64) -> Option<CopyRange> {
        Some(CopyRange::new(Arc::new(Copies), offset))
    }
}

impl CopyEnd for Copies {
    fn step(&self) -> u64 {
        1 << 20
    }

    fn grain(&self) -> u64 {
        512
    }

    fn copy_from(&self, _: u64, _: &dyn CopyEnd, _: u64, _: u64) -> Result<(), CopyError> {
        unreachable!("the test does what helper threads would")
    }
}

fn out(action: u8, len: usize) -> [u8; 16] {
    let [a, b, c, d] = (len as u32).to_be_bytes();
    [0x83, action, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]
}

/// An identification descriptor CSCD descriptor of a disk with 512-byte blocks.
fn cscd(name: &Designator) -> Vec<u8> {
    [&[0xE4, 0, 0, 0], &name.encode()[..], &[0, 0, 2, 0]].concat()
}

/// A block to block segment descriptor.
fn segment((from, to): (u16, u16), blocks: u16, from_lba: u64, to_lba: u64) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0x18];
    bytes.extend_from_slice(&from.to_be_bytes());
    bytes.extend_from_slice(&to.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&blocks.to_be_bytes());
    bytes.extend_from_slice(&from_lba.to_be_bytes());
    bytes.extend_from_slice(&to_lba.to_be_bytes());
    bytes
}

fn lid1(list_id: u8, usage: u8, names: &[Designator], segments: &[Vec<u8>]) -> Vec<u8> {
    let (ends, segments) = (names.iter().map(cscd).collect::<Vec<_>>().concat(), segments.concat());
    let mut list = vec![list_id, usage << 3];
    list.extend_from_slice(&(ends.len() as u16).to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    list.extend_from_slice(&(segments.len() as u32).to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    [list, ends, segments].concat()
}

fn lid4(list_id: u32, flags: u8, names: &[Designator], segments: &[Vec<u8>]) -> Vec<u8> {
    let (ends, segments) = (names.iter().map(cscd).collect::<Vec<_>>().concat(), segments.concat());
    let mut list = vec![0; 48];
    (list[0], list[3], list[15], list[16]) = (1, 0x20, flags, 0xFF);
    list[20..24].copy_from_slice(&list_id.to_be_bytes());
    list[42..44].copy_from_slice(&(ends.len() as u16).to_be_bytes());
    list[44..46].copy_from_slice(&(segments.len() as u16).to_be_bytes());
    [list, ends, segments].concat()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / BLOCK * 7 + at % 251) as u8).collect()
}

fn fixed(sense: &Sense) -> Vec<u8> {
    let mut bytes = [0; SENSE_LEN];
    let len = sense.encode(false, &mut bytes);
    bytes[..len].to_vec()
}

#[test]
fn blocks_go_from_disk_to_disk_and_within_one() {
    for action in [0, 1] {
        let mut disks = Disks::new();
        disks.bytes[0] = pattern(4096 * BLOCK);
        let names = [disks.name(0), disks.name(1)];
        let segments = [
            segment((0, 1), 700, 5, 9),
            segment((1, 1), 3, 9, 2000),
            segment((0xFFFF, 0), 2, 0, 4094),
            segment((0, 1), 0, 0, 0),
        ];
        let list = if action == 0 { lid1(7, 0, &names, &segments) } else { lid4(7, 0, &names, &segments) };
        assert_eq!(disks.copied(action, &list), Outcome::GOOD);
        let source = pattern(4096 * BLOCK);
        assert!(disks.bytes[1][9 * BLOCK..709 * BLOCK] == source[5 * BLOCK..705 * BLOCK]);
        assert_eq!(disks.bytes[1][2000 * BLOCK..2003 * BLOCK], source[5 * BLOCK..8 * BLOCK]);
        assert_eq!(disks.bytes[0][4094 * BLOCK..], source[..2 * BLOCK]);
        // Aligned at the destination, a piece at most at once.
        assert_eq!(disks.writes[0], (1, 131_072 - 9 * 512, false));
        assert!(disks.writes[..3].iter().all(|write| (write.0, write.2) == (1, false)));
    }
}

/// To ask takes a helper thread: once is enough.
#[test]
fn two_devices_that_cannot_copy_together_are_asked_once_in_a_command() {
    let mut disks = Disks::that_copy(3, &[(0, 1)]);
    disks.bytes[0] = pattern(4096 * BLOCK);
    let names = [0, 1, 2].map(|at| disks.name(at));
    let ends = [(0, 1), (0, 1), (0, 2), (0, 1), (1, 0), (0, 2)];
    let segments: Vec<_> = (0..).zip(ends).map(|(n, ends)| segment(ends, 300, n * 300, n * 300)).collect();
    assert_eq!(disks.copied(0, &lid1(7, 0, &names, &segments)), Outcome::GOOD);
    assert_eq!(disks.asked, [(0, 1), (0, 2), (1, 0), (0, 2)]);
    let source = pattern(4096 * BLOCK);
    for (to, segment) in [(1, 0), (1, 1), (2, 2), (1, 3), (2, 5)] {
        let range = segment * 300 * BLOCK..(segment + 1) * 300 * BLOCK;
        assert!(disks.bytes[to][range.clone()] == source[range], "segment {segment} did not arrive");
    }
    // Another command asks again.
    assert_eq!(disks.copied(0, &lid1(8, 0, &names, &segments[..1])), Outcome::GOOD);
    assert_eq!(disks.asked.len(), 5);
}

#[test]
fn a_segment_over_itself_moves_what_was_there() {
    for (from, to) in [(10u64, 600u64), (600, 10), (10, 11), (11, 10), (5, 5)] {
        let mut disks = Disks::new();
        disks.bytes[0] = pattern(4096 * BLOCK);
        let name = [disks.name(0)];
        assert_eq!(disks.copied(0, &lid1(1, 2, &name, &[segment((0, 0), 1500, from, to)])), Outcome::GOOD);
        let mut want = pattern(4096 * BLOCK);
        want.copy_within(from as usize * BLOCK..(from as usize + 1500) * BLOCK, to as usize * BLOCK);
        assert!(disks.bytes[0] == want, "{from} to {to}");
    }
}

#[test]
fn blocks_of_two_lengths() {
    let large = Shape { block_size: 4096, num_blocks: 512, ..shape() };
    let mut disks = Disks::with(&[shape(), large]);
    disks.bytes[0] = pattern(4096 * BLOCK);
    let names = [disks.name(0), disks.name(1)];
    let mut list = lid1(1, 2, &names, &[segment((0, 1), 16, 3, 5)]);
    list[16 + 32 + 30] = 0x10;
    assert_eq!(disks.copied(0, &list), Outcome::GOOD);
    assert_eq!(disks.bytes[1][5 * 4096..7 * 4096], pattern(4096 * BLOCK)[3 * 512..19 * 512]);
    // Larger blocks to a place that is none of their multiples.
    let mut back = lid1(1, 2, &[names[1], names[0]], &[segment((0, 1), 100, 0, 3)]);
    back[16 + 30] = 0x10;
    let before = disks.bytes[1][..100 * 4096].to_vec();
    assert_eq!(disks.copied(0, &back), Outcome::GOOD);
    assert!(disks.bytes[0][3 * 512..][..100 * 4096] == before);
    disks.bytes[0] = pattern(4096 * BLOCK);
    // DC: in blocks of the destination.
    list[16 + 64 + 1] = 0x02;
    list[16 + 64 + 11] = 3;
    assert_eq!(disks.copied(0, &list), Outcome::GOOD);
    assert_eq!(disks.bytes[1][5 * 4096..8 * 4096], pattern(4096 * BLOCK)[3 * 512..27 * 512]);
    // Half a block of the destination.
    list[16 + 64 + 1] = 0;
    list[16 + 64 + 11] = 20;
    assert_eq!(sense_of(&Action::Done(disks.copied(0, &list))).code(), 0x260A);
    list[16 + 32 + 30] = 0x02;
    let sense = sense_of(&Action::Done(disks.copied(0, &list)));
    assert_eq!((sense.key, sense.code()), (Key::CopyAborted, 0x2600));
    assert_eq!(fixed(&sense)[15..18], [0x80, 0, 16 + 32 + 29], "a block length that the unit does not have");
}

#[test]
fn lists_that_make_no_sense() {
    let mut disks = Disks::new();
    let names = [disks.name(0), disks.name(1)];
    let one = segment((0, 1), 1, 0, 0);
    let good = lid1(1, 2, &names, std::slice::from_ref(&one));
    let mut refused = |action, list: &[u8]| {
        let sense = sense_of(&Action::Done(disks.copied(action, list)));
        (sense.key as u8, sense.code(), sense.field.map(|field| field.byte))
    };
    for len in [15, 16 + 63, good.len() - 1] {
        assert_eq!(refused(0, &good[..len]), (5, 0x1A00, None));
    }
    let changed = |changes: &[(usize, u8)]| {
        let mut list = good.clone();
        changes.iter().for_each(|&(at, byte)| list[at] = byte);
        list
    };
    assert_eq!(refused(0, &changed(&[(1, 0x08)])), (5, 0x2600, Some(1)), "reserved list ID usage");
    assert_eq!(refused(0, &changed(&[(1, 0x18)])), (5, 0x2600, Some(0)), "no identifier, but one");
    assert_eq!(refused(0, &changed(&[(15, 4)])), (5, 0x260B, None));
    assert_eq!(refused(0, &changed(&[(16, 0xE0)])), (5, 0x2607, Some(16)));
    assert_eq!(refused(0, &changed(&[(16 + 7, 21)])), (5, 0x2600, Some(16 + 7)));
    assert_eq!(refused(0, &changed(&[(16 + 64, 0x03)])), (5, 0x2609, Some(16 + 64)));
    assert_eq!(refused(0, &changed(&[(16 + 64 + 3, 0x17)])), (5, 0x2600, Some(16 + 64 + 2)));
    assert_eq!(refused(0, &changed(&[(3, 63)])), (5, 0x1A00, None), "a descriptor is cut off");
    let many = |ends: usize, segments: usize| lid1(1, 2, &vec![names[0]; ends], &vec![one.clone(); segments]);
    assert_eq!(refused(0, &many(17, 1)), (5, 0x2606, None));
    assert_eq!(refused(0, &many(1, 129)), (5, 0x2608, None));
    assert_eq!(refused(0, &many(16, 129)), (5, 0x1A00, None), "longer than any list");
    let good = lid4(1, 0, &names, &[one]);
    for (at, byte, field) in [(0, 2, 0), (3, 0x21, 2), (15, 2, 15), (16, 0xE4, 16)] {
        let mut list = good.clone();
        list[at] = byte;
        assert_eq!(refused(1, &list), (5, 0x2600, Some(field)));
    }
    let mut nobody = good.clone();
    (nobody[1], nobody[15], nobody[23]) = (0x18, 1, 0);
    assert_eq!(refused(1, &nobody), (5, 0x2600, Some(1)), "a copy that nobody could ask for");
    assert_eq!(refused(1, &good[..47]), (5, 0x1A00, None));
    assert_eq!(disks.sense(&out(0, 65536)).code(), 0x1A00);
    assert!(matches!(disks.execute(&out(1, 0)), Action::Done(Outcome::GOOD)));
    assert_eq!(disks.units[0].copies_kept(), 0);
    assert!(disks.writes.is_empty());
}

#[test]
fn a_disk_of_others_is_like_none() {
    let mut disks = Disks::new();
    let foreign = Designator::naa(&disks.foreign[0].identity().naa);
    let nobody = Designator::naa(&crate::Naa::Long([6; 16]));
    let mut senses = Vec::new();
    for name in [foreign, nobody] {
        for ends in [(0, 1), (1, 0)] {
            let names = [disks.name(0), name];
            let sense = sense_of(&Action::Done(disks.copied(0, &lid1(1, 0, &names, &[segment(ends, 1, 0, 0)]))));
            senses.push(fixed(&sense));
        }
    }
    // COPY ABORTED, COPY TARGET DEVICE NOT REACHABLE, with the place of the CSCD descriptor.
    let want = [0x70, 0, 0x0A, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x0D, 0x02, 0, 0x80, 0, 48];
    assert!(senses.iter().all(|sense| sense[..] == want), "{senses:02X?}");
    // Of another type: before anybody looks whether there is one.
    for name in [foreign, nobody, disks.name(1)] {
        let names = [disks.name(0), name];
        let mut list = lid1(1, 0, &names, &[segment((0, 1), 1, 0, 0)]);
        list[16 + 32 + 1] = 0x01;
        let sense = sense_of(&Action::Done(disks.copied(0, &list)));
        assert_eq!((sense.key, sense.code()), (Key::CopyAborted, 0x0D03));
    }
    // No such descriptor, in the second segment.
    let names = [disks.name(0)];
    let list = lid1(1, 0, &names, &[segment((0, 0), 1, 0, 9), segment((0, 3), 1, 0, 0)]);
    let sense = sense_of(&Action::Done(disks.copied(0, &list)));
    let want = [0x70, 0, 0x0A, 0, 0, 0, 0, 10, 0, 0, 0, 1, 0x0D, 0x02, 0, 0xA0, 0, 6];
    assert_eq!(fixed(&sense), want);
    assert!(disks.writes.is_empty(), "nothing begins before all is looked at");
    assert_eq!(disks.sense(&[0x84, 0x00, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99, 0, 0]), Sense::invalid_field(2, None));
}

#[test]
fn both_ends_are_asked_as_for_a_read_and_a_write() {
    let code_of = |disks: &mut Disks, ends| {
        let names = [disks.name(0), disks.name(1)];
        let list = lid1(1, 2, &names, &[segment(ends, 10, 0, 0)]);
        fixed(&sense_of(&Action::Done(disks.copied(0, &list))))
    };
    let read_only = Shape { read_only: true, ..shape() };
    let mut disks = Disks::with(&[shape(), read_only]);
    let sense = code_of(&mut disks, (0, 1));
    let mut want = vec![0x70, 0, 0x0A, 0, 0, 0, 0, 29, 0, 18, 0, 0, 0x0D, 0x01, 0, 0, 0, 0];
    want.extend_from_slice(&[2, 0x70, 0, 7, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x27, 0, 0, 0, 0, 0]);
    assert_eq!(sense, want);
    let names = [disks.name(0), disks.name(1)];
    assert_eq!(disks.copied(0, &lid1(1, 2, &names, &[segment((1, 0), 10, 0, 0)])), Outcome::GOOD);
    // Reserved for another one: exclusive access keeps both away, write exclusive the writer.
    for (kind, ends, refused) in [(3, (1, 0), true), (3, (0, 1), true), (1, (0, 1), true), (1, (1, 0), false)] {
        let mut disks = Disks::new();
        reserve(&mut disks, 1, kind);
        let names = [disks.name(0), disks.name(1)];
        let outcome = disks.copied(0, &lid1(1, 2, &names, &[segment(ends, 10, 0, 0)]));
        assert_eq!(outcome != Outcome::GOOD, refused);
        if refused {
            let sense = fixed(&sense_of(&Action::Done(outcome)));
            let place = if ends == (1, 0) { 8 } else { 9 };
            assert_eq!((sense[2], &sense[12..14], sense[place], sense[18]), (0x0A, &[0x0D, 0x01][..], 18, 0x18));
        }
    }
    // Stopped, gone, too small.
    let mut disks = Disks::new();
    disks.units[1].set_shape(None);
    assert_eq!(code_of(&mut disks, (1, 0))[18..33], [2, 0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 4, 0]);
    disks.units[1].set_shape(Some(Shape { num_blocks: 9, ..shape() }));
    let sense = code_of(&mut disks, (0, 1));
    assert_eq!((&sense[12..14], &sense[31..33]), (&[0, 0][..], &[0x21, 0][..]));
    let names = [disks.name(0), disks.name(1)];
    let list = lid1(1, 2, &names, &[segment((0, 1), 1, 0, u64::MAX)]);
    assert_eq!(sense_of(&Action::Done(disks.copied(0, &list))).key, Key::CopyAborted);
    assert!(disks.writes.is_empty());
}

fn reserve(disks: &mut Disks, at: usize, kind: u8) {
    let mut scratch = vec![0; SCRATCH_LEN];
    let mut list = [0; 24];
    list[15] = 7;
    for (action, kind) in [(6, 0), (1, kind)] {
        let cdb = Cdb::from_slice(&[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]);
        let done = disks.units[at].execute_out(&disks.others[at], &cdb, &list, &mut scratch);
        assert!(matches!(done, Action::Done(Outcome::GOOD)), "{done:?}");
        list = [0; 24];
        list[7] = 7;
    }
}

#[test]
fn what_changes_on_the_way_counts_from_the_next_piece_on() {
    let mut disks = Disks::new();
    let names = [disks.name(0), disks.name(1)];
    let copy = disks.ordered(0, &lid1(1, 0, &names, &[segment((0, 1), 1024, 0, 0)])).unwrap();
    let destination = disks.units[1].clone();
    let mut tasks = 0;
    let outcome = disks.run(copy, |_| {
        tasks += 1;
        if tasks == 4 {
            destination.set_shape(Some(Shape { read_only: true, ..shape() }));
        }
        None
    });
    assert_eq!(sense_of(&Action::Done(outcome)).code(), 0x0D01);
    assert_eq!(disks.writes, [(1, 131_072, false)]);
    let mut failed = disks.data(&[0x84, 0x04, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0]);
    assert_eq!(failed[..4], [0, 0, 0, 56 + 37]);
    assert_eq!(failed[56..60], [2, 0, 0, 37]);
    assert_eq!(failed.split_off(60), fixed(&sense_of(&Action::Done(outcome))));
    assert_eq!(disks.status(1), [0, 0, 0, 8, 0x02, 0, 0, 0, 0, 2, 0, 0]);
}

#[test]
fn operating_parameters_and_the_page_say_the_same() {
    let mut disks = Disks::new();
    let mut want = vec![0; 46];
    (want[3], want[4], want[9], want[11]) = (42, 1, 16, 128);
    want[12..20].copy_from_slice(&[0, 0, 0x10, 0, 0x0F, 0xFF, 0xF0, 0]);
    (want[35], want[36], want[37]) = (16, 16, 9);
    want[43..46].copy_from_slice(&[2, 0x02, 0xE4]);
    assert_eq!(disks.data(&[0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]), want);
    let page = disks.data(&[0x12, 1, 0x8F, 4, 0, 0]);
    let mut descriptors = std::collections::BTreeMap::new();
    let mut at = 4;
    while at < page.len() {
        let len = usize::from(page[at + 3]);
        assert!(len.is_multiple_of(4) && page[at + 2] == 0);
        descriptors.insert([page[at], page[at + 1]], page[at + 4..at + 4 + len].to_vec());
        at += 4 + len;
    }
    assert_eq!(descriptors[&[0, 4]][4..12], want[8..16]);
    assert_eq!(descriptors[&[0, 8]], [2, 0x02, 0xE4, 0]);
    assert_eq!(descriptors[&[0, 0x0C]], [0, 2, 0xFF, 0xFF]);
    let general = &descriptors[&[0x80, 1]];
    assert_eq!((&general[..4], &general[4..8]), (&[0, 0, 0, 16][..], &[0, 0, 0, 16][..]));
    assert_eq!((&general[8..12], general[12], general.len()), (&want[16..20], 9, 32));
    let commands = &descriptors[&[0, 1]];
    assert!(commands.starts_with(&[commands[0], 0x83]));
    let mut bench = crate::testing::Bench::new();
    assert_eq!(bench.data(&[0x12, 0, 0, 0, 96, 0])[5] & 0x08, 0x08, "3PC");
}

/// A medium of which some ranges are mapped.
#[derive(Debug)]
struct Sparse(Vec<std::ops::Range<u64>>, bool);

impl Medium for Sparse {
    fn transfers(&self) -> Transfers {
        Transfers::default()
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        let inside = self.0.iter().find(|range| range.contains(&offset));
        let next = self.0.iter().map(|range| range.start).filter(|start| *start > offset).min();
        let end = inside.map_or(next.unwrap_or(u64::MAX), |range| range.end);
        Extent { len: len.min(end - offset), mapped: inside.is_some() }
    }

    fn extent_waits(&self) -> bool {
        self.1
    }
}

/// What the source has not mapped is neither read nor written.
#[test]
fn holes_become_holes() {
    const KIB: u64 = 1 << 10;
    let discard = Some(pollux_core::Discard { granularity: 4096, alignment: 0, reads_zero: true });
    let large = Shape { num_blocks: 4 << 11, discard, ..shape() };
    // Two pieces in a row, some of a piece, something small beside something smaller, and a hole behind all.
    let mapped = vec![0..256 * KIB, 640 * KIB..656 * KIB, 700 * KIB + 512..701 * KIB, 2048 * KIB..2052 * KIB];
    let copied = |waits: bool, reads_zero: bool, skew: u64| {
        let source = Shape { discard: discard.map(|discard| pollux_core::Discard { reads_zero, ..discard }), ..large };
        let mut disks = Disks::with(&[source, large]);
        disks.units[0].set_medium(Arc::new(Sparse(mapped.clone(), waits)));
        for range in &mapped {
            disks.bytes[0][range.start as usize..range.end as usize].fill(7);
        }
        disks.bytes[1].fill(0xAA);
        let blocks = (4 << 11) - skew as u16;
        let list = lid1(1, 0, &[disks.name(0), disks.name(1)], &[segment((0, 1), blocks, 0, skew)]);
        let copy = disks.ordered(0x00, &list).expect("it is in order");
        let (mut read, mut written, mut zeroed) = (0, 0, 0);
        let outcome = disks.run(copy, |task| {
            if let CopyTask::Do { op, len, .. } = task {
                match op {
                    Op::Read => read += len,
                    Op::Write => written += len,
                    _ => zeroed += len,
                }
            }
            None
        });
        assert_eq!(outcome, Outcome::GOOD);
        let (from, to) = (&disks.bytes[0], &disks.bytes[1]);
        let skip = skew as usize * BLOCK;
        assert!(to[skip..] == from[..from.len() - skip] && to[..skip].iter().all(|byte| *byte == 0xAA));
        (read / KIB, written / KIB, zeroed / KIB)
    };
    // Pieces are 128 KiB: those with something are read.
    assert_eq!(copied(false, true, 0), (4 * 128, 256 + 16 + 4 + 4, 4096 - 280));
    assert_eq!(copied(true, true, 0), (4096, 4096, 0), "one that would have to wait is not asked");
    assert_eq!(copied(false, false, 0), (4096, 4096, 0), "what is not mapped may be anything");
    let (_, written, zeroed) = copied(false, true, 1);
    assert!(written < 300 && zeroed > 3700, "{written} {zeroed}");
}
