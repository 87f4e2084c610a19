use super::*;
use crate::Attention;

const WRITE_16: [u8; 16] = [0x8A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The list, with these ranges behind a header.
fn ranges(mut header: Vec<u8>, ranges: &[(u64, u32)]) -> Vec<u8> {
    let at = header.len() - 2;
    for (lba, count) in ranges {
        header.extend_from_slice(&lba.to_be_bytes());
        header.extend_from_slice(&count.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
    }
    let (said, len) = (header.len() as u16 - 2, ranges.len() as u16 * 16);
    header[..2].copy_from_slice(&said.to_be_bytes());
    header[at..at + 2].copy_from_slice(&len.to_be_bytes());
    header
}

fn populating(of: &[(u64, u32)]) -> Vec<u8> {
    ranges(vec![0; 16], of)
}

fn using(token: &[u8], offset: u64, to: &[(u64, u32)]) -> Vec<u8> {
    let mut header = vec![0; 536];
    header[8..16].copy_from_slice(&offset.to_be_bytes());
    header[16..528].copy_from_slice(token);
    ranges(header, to)
}

fn third_party_out(action: u8, list_id: u32, len: usize) -> [u8; 16] {
    let mut cdb = out(action, len);
    cdb[6..10].copy_from_slice(&list_id.to_be_bytes());
    cdb
}

fn information_cdb(list_id: u32) -> [u8; 16] {
    let [a, b, c, d] = list_id.to_be_bytes();
    [0x84, 0x07, a, b, c, d, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]
}

fn zero_token() -> Vec<u8> {
    let mut token = vec![0xFF, 0xFF, 0, 1, 0, 0, 0x01, 0xF8];
    token.resize(512, 0);
    token
}

impl Disks {
    /// A command to a disk by a path of initiator 1, or the other one.
    fn ask(&mut self, (disk, other): (usize, bool), cdb: &[u8], list: &[u8]) -> Action {
        let path = if other { &self.others[disk] } else { &self.paths[disk] };
        match self.units[disk].execute(path, &Cdb::from_slice(cdb), &Luns, &mut self.scratch) {
            Action::DataOut { len } => assert_eq!(len, list.len()),
            action => return action,
        }
        self.units[disk].execute_out(path, &Cdb::from_slice(cdb), list, &mut self.scratch)
    }

    fn begin(&mut self, (disk, other): (usize, bool), action: Action, now: u64) -> Result<Copy, Outcome> {
        let order = match action {
            Action::Copy(order) => order,
            Action::Done(outcome) => return Err(outcome),
            other => panic!("{other:?}"),
        };
        let paths = if other { &self.others } else { &self.paths };
        let end = |at: usize| End { unit: self.units[at].clone(), path: paths[at].clone(), place: at as u32 };
        let find = &mut |name: &Designator| (0..self.units.len()).find(|&at| self.units[at].is_called(name)).map(end);
        order.start(end(disk), find, now)
    }

    fn command(&mut self, at: (usize, bool), action: u8, list_id: u32, list: &[u8]) -> Result<Copy, Outcome> {
        let action = self.ask(at, &third_party_out(action, list_id, list.len()), list);
        self.begin(at, action, 0)
    }

    fn done(&mut self, at: (usize, bool), action: u8, list_id: u32, list: &[u8]) -> Outcome {
        match self.command(at, action, list_id, list) {
            Ok(copy) => self.run(copy, |_| None),
            Err(outcome) => outcome,
        }
    }

    fn information(&mut self, at: (usize, bool), list_id: u32) -> Vec<u8> {
        match self.ask(at, &information_cdb(list_id), &[]) {
            Action::Done(Outcome { sense: None, data_len, .. }) => self.scratch[..data_len].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn token(&mut self, of: &[(u64, u32)]) -> Vec<u8> {
        assert_eq!(self.done((0, false), 0x10, 77, &populating(of)), Outcome::GOOD);
        self.information((0, false), 77)[38..].to_vec()
    }

    fn filled() -> Disks {
        let mut disks = Disks::new();
        for (at, bytes) in disks.bytes.iter_mut().enumerate() {
            *bytes = pattern(bytes.len());
            bytes.iter_mut().for_each(|byte| *byte ^= at as u8);
        }
        disks
    }

    fn blocks(&self, disk: usize, lba: usize, count: usize) -> &[u8] {
        &self.bytes[disk][lba * BLOCK..(lba + count) * BLOCK]
    }
}

fn code(outcome: &Outcome) -> (Key, u16) {
    outcome.sense.map_or((Key::NoSense, 0), |sense| (sense.key, sense.code()))
}

const MINE: (usize, bool) = (0, false);
const SECOND: (usize, bool) = (1, false);
const OTHERS: (usize, bool) = (0, true);

#[test]
fn data_goes_by_a_token_from_disk_to_disk() {
    let mut disks = Disks::filled();
    let before = disks.bytes[0].clone();
    let token = disks.token(&[(1000, 600), (0, 0), (8, 2)]);
    assert_eq!((token.len(), &token[..8]), (512, &[0, 0x80, 0, 1, 0, 0, 1, 0xF8][..]));
    assert_eq!(token[48..64], (602u128 * 512).to_be_bytes());
    let list = using(&token, 0, &[(3, 1), (2000, 601)]);
    assert_eq!(disks.done(SECOND, 0x11, 5, &list), Outcome::GOOD);
    assert_eq!(disks.blocks(1, 3, 1), &before[1000 * BLOCK..1001 * BLOCK]);
    assert_eq!(disks.blocks(1, 2000, 599), &before[1001 * BLOCK..1600 * BLOCK]);
    assert_eq!(disks.blocks(1, 2599, 2), &before[8 * BLOCK..10 * BLOCK]);
    assert_eq!(
        disks.blocks(1, 2601, 1),
        &pattern(2 << 20).iter().map(|byte| byte ^ 1).collect::<Vec<_>>()[2601 * BLOCK..2602 * BLOCK]
    );
    assert_eq!(disks.bytes[0], before);
    // From the middle, and within the disk.
    let list = using(&token, 599, &[(100, 3)]);
    assert_eq!(disks.done(MINE, 0x11, 6, &list), Outcome::GOOD);
    assert_eq!(disks.blocks(0, 100, 1), &before[1599 * BLOCK..1600 * BLOCK]);
    assert_eq!(disks.blocks(0, 101, 2), &before[8 * BLOCK..10 * BLOCK]);
}

#[test]
fn what_is_told_of_both_commands() {
    let mut disks = Disks::filled();
    let token = disks.token(&[(8, 16)]);
    let told = disks.information(MINE, 77);
    let mut want = vec![0, 0, 2, 0x22, 0x10, 0x01, 0, 0, 0xFF, 0xFF, 0xFF, 0xFE, 0, 0, 0, 0xF1];
    want.extend_from_slice(&16u64.to_be_bytes());
    want.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0]);
    want.extend_from_slice(&[0, 0, 2, 2, 0, 0]);
    want.extend_from_slice(&token);
    assert_eq!(told, want);
    let mut status = information_cdb(77);
    status[1] = 0x05;
    assert_eq!(disks.data(&status)[4..32], want[4..32], "RECEIVE COPY STATUS says as much");
    let copy = disks.command(SECOND, 0x11, 5, &using(&token, 0, &[(0, 10), (20, 6)])).unwrap();
    let told = disks.information(SECOND, 5);
    assert_eq!((told[..6].to_vec(), told.len()), (vec![0, 0, 0, 32, 0x11, 0x11], 36), "in the foreground");
    assert_eq!(disks.run(copy, |_| None), Outcome::GOOD);
    let told = disks.information(SECOND, 5);
    assert_eq!((&told[..6], told[15], &told[16..24]), (&[0, 0, 0, 32, 0x11, 1][..], 0xF1, &16u64.to_be_bytes()[..]));
    assert_eq!(told[32..], [0; 4], "no token");
    // Of what is not theirs there is no such information.
    assert_eq!(sense_of(&disks.ask(MINE, &information_cdb(5), &[])), Sense::invalid_field(2, None), "another disk's");
    assert_eq!(sense_of(&disks.ask(OTHERS, &information_cdb(77), &[])), Sense::invalid_field(2, None));
    let names = [disks.name(0)];
    assert_eq!(disks.copied(1, &lid4(9, 0, &names, &[segment((0, 0), 1, 0, 9)])), Outcome::GOOD);
    assert_eq!(sense_of(&disks.ask(MINE, &information_cdb(9), &[])), Sense::invalid_field(2, None), "no token command");
    // In the background.
    let mut list = populating(&[(0, 1)]);
    list[2] = 1;
    let copy = disks.command(MINE, 0x10, 78, &list).unwrap();
    assert!(copy.is_in_background());
    assert_eq!(disks.information(MINE, 78)[4..6], [0x10, 0x12]);
    assert_eq!(disks.run(copy, |_| None), Outcome::GOOD);
    assert_eq!(disks.information(MINE, 78).len(), 550);
}

#[test]
fn zeroes_come_without_anybodys_token() {
    let mut disks = Disks::filled();
    let list = using(&zero_token(), u64::MAX, &[(7, 1), (100, 3000)]);
    let mut places = Vec::new();
    let copy = disks.command(MINE, 0x11, 1, &list).unwrap();
    let outcome = disks.run(copy, |task| {
        if let CopyTask::Do { op, offset, len, .. } = task {
            places.push((*op, *offset, *len));
        }
        None
    });
    assert_eq!(outcome, Outcome::GOOD);
    assert_eq!(places, [(Op::WriteZeroes, 7 * 512, 512), (Op::WriteZeroes, 100 * 512, 3000 * 512)]);
    assert!(disks.blocks(0, 7, 1).iter().chain(disks.blocks(0, 100, 3000)).all(|byte| *byte == 0));
    assert_eq!(disks.information(MINE, 1)[16..24], 3001u64.to_be_bytes());
}

#[test]
fn a_write_ends_a_token_before_a_copy_and_in_the_middle_of_one() {
    let mut disks = Disks::filled();
    let revoked = (Key::IllegalRequest, 0x2306);
    let token = disks.token(&[(0, 1000)]);
    disks.units[0].about_to_change(crate::plan::Range { offset: 999 * 512, len: 512 });
    assert_eq!(code(&disks.done(SECOND, 0x11, 1, &using(&token, 0, &[(0, 1)]))), revoked);
    assert!(disks.writes.is_empty());
    let token = disks.token(&[(0, 1000)]);
    let unit = disks.units[0].clone();
    let copy = disks.command(SECOND, 0x11, 1, &using(&token, 0, &[(0, 1000)])).unwrap();
    let mut reads = 0;
    let outcome = disks.run(copy, |task| {
        let reading = matches!(task, CopyTask::Do { op: Op::Read, .. });
        reads += usize::from(reading);
        if reading && reads == 2 {
            // While it is read.
            unit.about_to_change(crate::plan::Range { offset: 0, len: 512 });
        }
        None
    });
    assert_eq!((code(&outcome), reads, disks.writes.len()), (revoked, 2, 1));
    let told = disks.information(SECOND, 1);
    assert_eq!((told[5], told[12], &told[16..24]), (0x02, 0x02, &256u64.to_be_bytes()[..]), "one piece was written");
    let sense_len = usize::from(told[13]);
    assert_eq!((told[32 + 2], told[32 + 12], told[32 + 13]), (5, 0x23, 0x06));
    assert_eq!(told[32 + sense_len..], [0; 4]);
    // What would be written over its own source.
    let token = disks.token(&[(0, 10), (20, 10)]);
    disks.writes.clear();
    assert_eq!(code(&disks.done(MINE, 0x11, 1, &using(&token, 0, &[(29, 2)]))), revoked);
    assert!(disks.writes.is_empty(), "nothing is moved");
}

#[test]
fn a_token_is_used_at_once_as_long_as_it_lives() {
    let mut disks = Disks::filled();
    let token = disks.token(&[(0, 10)]);
    let list = using(&token, 0, &[(0, 1)]);
    for _ in 0..3 {
        assert_eq!(disks.done(SECOND, 0x11, 1, &list), Outcome::GOOD);
    }
    assert_eq!(disks.done((1, true), 0x11, 1, &list), Outcome::GOOD, "whoever can read the disk itself");
    let mut deleting = list.clone();
    deleting[2] = 2;
    let copy = disks.command(SECOND, 0x11, 1, &deleting).unwrap();
    assert_eq!(disks.run(copy, |_| Some(IoError::Medium)).sense.unwrap().key, Key::CopyAborted);
    assert_eq!(disks.done(SECOND, 0x11, 1, &deleting), Outcome::GOOD, "it was not deleted, as nothing came of it");
    assert_eq!(code(&disks.done(SECOND, 0x11, 1, &list)), (Key::IllegalRequest, 0x2309));
    let token = disks.token(&[(0, 10)]);
    disks.units[0].pass_time(60_000_000_000);
    assert_eq!(code(&disks.done(SECOND, 0x11, 1, &using(&token, 0, &[(0, 1)]))), (Key::IllegalRequest, 0x2307));
}

#[test]
fn tokens_that_nobody_knows_end_alike() {
    let mut disks = Disks::filled();
    let token = disks.token(&[(0, 10)]);
    let mut forged = token.clone();
    forged[511] ^= 1;
    let mut of_another = token.clone();
    of_another[24..40].copy_from_slice(disks.foreign[0].identity().naa.as_bytes());
    let mut of_nobody = token.clone();
    of_nobody[30] ^= 1;
    let mut told = Vec::new();
    for token in [forged, of_another, of_nobody] {
        let outcome = disks.done(SECOND, 0x11, 1, &using(&token, 0, &[(0, 1)]));
        told.push(fixed(&outcome.sense.unwrap()));
    }
    assert_eq!((told[0][2], &told[0][12..14]), (5, &[0x23, 0x04][..]));
    assert!(told.iter().all(|sense| *sense == told[0]));
    let ended = |disks: &mut Disks, at: usize, byte: u8| {
        let mut token = token.clone();
        token[at] = byte;
        code(&disks.done(SECOND, 0x11, 1, &using(&token, 0, &[(0, 1)])))
    };
    assert_eq!(ended(&mut disks, 3, 0), (Key::IllegalRequest, 0x2301));
    assert_eq!(ended(&mut disks, 6, 0), (Key::IllegalRequest, 0x230A));
    assert!(disks.writes.is_empty());
}

#[test]
fn more_than_a_token_stands_for_is_refused() {
    let mut disks = Disks::filled();
    let token = disks.token(&[(0, 10)]);
    let pointed = |disks: &mut Disks, offset, to: &[(u64, u32)]| {
        disks.done(SECOND, 0x11, 1, &using(&token, offset, to)).sense.unwrap()
    };
    assert_eq!(pointed(&mut disks, 0, &[(0, 10), (20, 1)]), Sense::invalid_parameter(536, None));
    assert_eq!(pointed(&mut disks, 10, &[(0, 1)]), Sense::invalid_parameter(536, None));
    assert_eq!(pointed(&mut disks, 11, &[(0, 1)]), Sense::invalid_parameter(8, None));
    assert_eq!(pointed(&mut disks, u64::MAX, &[(0, 1)]), Sense::invalid_parameter(8, None));
    assert_eq!(pointed(&mut disks, 0, &[(4096, 1)]), Sense::LBA_OUT_OF_RANGE);
    assert!(disks.writes.is_empty());
    assert_eq!(disks.done(SECOND, 0x11, 1, &using(&token, 10, &[(0, 0)])), Outcome::GOOD, "nothing of nothing");
}

#[test]
fn blocks_of_two_sizes_have_to_fit() {
    let small = shape();
    let mut disks = Disks::with(&[small, Shape { block_size: 4096, num_blocks: 512, ..small }]);
    disks.bytes[0] = pattern(2 << 20);
    let token = disks.token(&[(16, 8), (80, 8), (3, 4)]);
    assert_eq!(disks.done(SECOND, 0x11, 1, &using(&token, 1, &[(5, 1)])), Outcome::GOOD);
    assert_eq!(disks.bytes[1][5 * 4096..6 * 4096], pattern(2 << 20)[80 * 512..88 * 512]);
    let wrong = code(&disks.done(SECOND, 0x11, 1, &using(&token, 2, &[(5, 1)])));
    assert_eq!(wrong, (Key::IllegalRequest, 0x2600), "half a block is left");
    let token = disks.token(&[(16, 4), (80, 4)]);
    let wrong = code(&disks.done(SECOND, 0x11, 1, &using(&token, 0, &[(5, 1)])));
    assert_eq!(wrong, (Key::CopyAborted, 0x260A));
    // The other way round: the offset is in blocks of the disk that is written, and begins within one of what is read.
    let mut disks = Disks::with(&[Shape { block_size: 4096, num_blocks: 512, ..small }, small]);
    disks.bytes[0] = pattern(2 << 20);
    let token = disks.token(&[(2, 2)]);
    let wrong = code(&disks.done(SECOND, 0x11, 1, &using(&token, 1, &[(0, 8)])));
    assert_eq!(wrong, (Key::CopyAborted, 0x260A));
    assert_eq!(disks.done(SECOND, 0x11, 1, &using(&token, 8, &[(0, 8)])), Outcome::GOOD);
    assert_eq!(disks.bytes[1][..4096], pattern(2 << 20)[3 * 4096..4 * 4096]);
}

#[test]
fn what_devices_have_copied_after_the_token_had_ended_does_not_count() {
    for cancelled in [false, true] {
        let mut disks = Disks::filled();
        let token = disks.token(&[(0, 1000)]);
        let mut copy = disks.command(SECOND, 0x11, 1, &using(&token, 0, &[(0, 1000)])).unwrap();
        assert_eq!(copy.done_together(4 * 512, Ok(())), Ok(()));
        disks.units[0].about_to_change(crate::plan::Range { offset: 0, len: 512 });
        if cancelled {
            copy.cancel();
        }
        let ended = copy.done_together(8 * 512, Ok(()));
        assert_eq!(ended.is_ok(), cancelled);
        let outcome = disks.run(copy, |_| None);
        assert_eq!(code(&outcome), if cancelled { (Key::CopyAborted, 0x0006) } else { (Key::IllegalRequest, 0x2306) });
        assert_eq!(disks.information(SECOND, 1)[16..24], 4u64.to_be_bytes(), "{cancelled}");
    }
}

#[test]
fn rights_are_those_of_reading_and_writing() {
    let mut disks = Disks::filled();
    let token = disks.token(&[(0, 10)]);
    let list = using(&token, 0, &[(0, 1)]);
    // The other initiator reserves the source for itself, for writing, then for all access.
    let key = 7u64.to_be_bytes();
    let reserve = |disks: &mut Disks, disk: usize, action: u8, kind: u8, key: &[u8]| {
        let cdb = [0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0];
        let mut list = vec![0; 24];
        list[if action == 0 { 8 } else { 0 }..][..8].copy_from_slice(key);
        match disks.ask((disk, true), &cdb, &list) {
            Action::Done(Outcome::GOOD) => {}
            other => panic!("{other:?}"),
        }
    };
    for disk in 0..2 {
        reserve(&mut disks, disk, 0, 0, &key);
    }
    reserve(&mut disks, 0, 1, 1, &key);
    assert_eq!(disks.done(MINE, 0x10, 1, &populating(&[(0, 1)])), Outcome::GOOD);
    assert_eq!(disks.done(SECOND, 0x11, 1, &list), Outcome::GOOD, "it may be read");
    reserve(&mut disks, 0, 2, 1, &key);
    reserve(&mut disks, 0, 1, 3, &key);
    drained(&disks.paths[0]);
    assert_eq!(disks.done(MINE, 0x10, 1, &populating(&[(0, 1)])), Outcome::CONFLICT);
    let refused = disks.done(SECOND, 0x11, 1, &list).sense.unwrap();
    assert_eq!((refused.key, refused.code()), (Key::CopyAborted, 0x0D01));
    assert_eq!(refused.copy.unwrap().forwarded.unwrap().status, 0x18);
    reserve(&mut disks, 0, 2, 3, &key);
    reserve(&mut disks, 1, 1, 1, &key);
    drained(&disks.paths[1]);
    assert_eq!(disks.done(SECOND, 0x11, 1, &list), Outcome::CONFLICT);
    // One that comes while the copy is under way.
    reserve(&mut disks, 1, 2, 1, &key);
    let copy = disks.command(SECOND, 0x11, 1, &list).unwrap();
    reserve(&mut disks, 1, 1, 1, &key);
    drained(&disks.paths[1]);
    assert_eq!(disks.run(copy, |_| None), Outcome::CONFLICT);
    reserve(&mut disks, 1, 2, 1, &key);
    disks.writes.clear();
    disks.units[1].set_shape(Some(Shape { read_only: true, ..shape() }));
    drained(&disks.paths[1]);
    assert_eq!(code(&disks.done(SECOND, 0x11, 1, &list)), (Key::DataProtect, 0x2700));
    assert_eq!(disks.done(SECOND, 0x10, 1, &populating(&[(0, 1)])), Outcome::GOOD, "read from");
    disks.units[0].set_shape(None);
    assert_eq!(code(&disks.done(MINE, 0x10, 1, &populating(&[(0, 1)]))), (Key::NotReady, 0x0400));
    assert!(disks.writes.is_empty());
}

#[test]
fn a_populate_that_is_ended_leaves_no_token() {
    let mut disks = Disks::filled();
    let copy = disks.command(MINE, 0x10, 4, &populating(&[(0, 1)])).unwrap();
    assert!(disks.units[0].is_claimed());
    let mut abort = information_cdb(4);
    (abort[0], abort[1], abort[12]) = (0x83, 0x1C, 0);
    assert!(matches!(disks.ask(MINE, &abort, &[]), Action::Done(Outcome::GOOD)));
    assert_eq!(code(&disks.run(copy, |_| None)), (Key::CopyAborted, 0x0006));
    assert!(!disks.units[0].is_claimed());
    let told = disks.information(MINE, 4);
    assert_eq!((told[5], &told[32..]), (0x60, &[0; 4][..]));
    drop(disks.command(MINE, 0x10, 4, &populating(&[(0, 1)])).unwrap());
    assert!(!disks.units[0].is_claimed(), "its front end is gone");
    let mut early = disks.command(MINE, 0x10, 4, &populating(&[(0, 1)])).unwrap();
    assert!(matches!(early.next_task(), CopyTask::Settle { place: 0, offset: 0, len: 512, .. }));
    assert_eq!(code(&early.fail_outcome(IoError::NotReady)), (Key::NotReady, 0x0400));
    drop(early);
    // A write that comes before the token is told of ends it, which is found out when it is used.
    let copy = disks.command(MINE, 0x10, 5, &populating(&[(0, 1)])).unwrap();
    disks.units[0].about_to_change(crate::plan::Range { offset: 0, len: 512 });
    assert_eq!(disks.run(copy, |_| None), Outcome::GOOD);
    let token = disks.information(MINE, 5)[38..].to_vec();
    assert_eq!(code(&disks.done(SECOND, 0x11, 1, &using(&token, 0, &[(0, 1)]))), (Key::IllegalRequest, 0x2306));
}

#[test]
fn a_token_of_no_blocks_is_good_at_once() {
    let mut disks = Disks::filled();
    let mut copy = disks.command(MINE, 0x10, 4, &populating(&[(8, 0), (3, 0)])).unwrap();
    assert!(matches!(copy.next_task(), CopyTask::End(Outcome::GOOD)), "there is nothing to wait for");
    copy.end(&Outcome::GOOD);
    let token = disks.information(MINE, 4)[38..].to_vec();
    assert_eq!(token.len(), 512);
    assert_eq!(disks.done(SECOND, 0x11, 1, &using(&token, 0, &[(5, 0)])), Outcome::GOOD);
    assert_eq!(code(&disks.done(SECOND, 0x11, 1, &using(&token, 0, &[(5, 1)]))), (Key::IllegalRequest, 0x2600));
    assert!(disks.writes.is_empty());
}

#[test]
fn all_tokens_are_reported_to_who_has_made_them() {
    let mut disks = Disks::filled();
    let report = [0x84, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
    assert_eq!(disks.data(&report), [0, 0, 0, 4, 0, 0, 0, 0]);
    let tokens = [disks.token(&[(0, 10)]), disks.token(&[(5, 1)])];
    let want = [&[0, 0, 0, 196, 0, 0, 0, 0], &tokens[0][..96], &tokens[1][..96]].concat();
    assert_eq!(disks.data(&report), want);
    match disks.ask(OTHERS, &report, &[]) {
        Action::Done(outcome) => assert_eq!(outcome, Outcome::data(8), "none of its own"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_comes_without_a_list_is_good_and_too_long_a_list_is_not_asked_for() {
    let mut disks = Disks::new();
    for action in [0x10, 0x11] {
        assert!(matches!(disks.ask(MINE, &third_party_out(action, 1, 0), &[]), Action::Done(Outcome::GOOD)));
        assert_eq!(sense_of(&disks.ask(MINE, &third_party_out(action, 1, 0x1_0000), &[])).code(), 0x1A00);
        let mut grouped = third_party_out(action, 1, 0);
        grouped[14] = 0x3F;
        assert!(matches!(disks.ask(MINE, &grouped, &[]), Action::Done(Outcome::GOOD)));
    }
    disks.paths[0].raise(Attention::CapacityChanged);
    let first = disks.ask(MINE, &third_party_out(0x10, 1, 0), &[]);
    assert_eq!(sense_of(&first).code(), 0x2A09);
    assert!(matches!(disks.ask(MINE, &WRITE_16, &[]), Action::Done(Outcome::GOOD)));
}

#[test]
fn the_page_tells_what_tokens_there_are() {
    let mut disks = Disks::new();
    let page = disks.data(&[0x12, 1, 0x8F, 4, 0, 0]);
    let mut limits = vec![0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0x02, 0x58, 0, 0, 0, 60];
    limits.extend_from_slice(&0x20_0000u64.to_be_bytes());
    limits.extend_from_slice(&0x2_0000u64.to_be_bytes());
    assert_eq!(page[4..40], limits);
    let commands = [0, 1, 0, 0x10, 15, 0x83, 5, 0, 1, 0x10, 0x11, 0x1C, 0x84, 6, 0, 3, 4, 5, 7, 8];
    assert_eq!(page[40..60], commands);
    let at = |kind: [u8; 2]| {
        let mut at = 4;
        while page[at..at + 2] != kind {
            at += 4 + usize::from(page[at + 3]);
        }
        page[at..at + 4 + usize::from(page[at + 3])].to_vec()
    };
    let mut features = vec![1, 6, 0, 92, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF];
    features.extend_from_slice(&[0, 0, 0x02, 0x58]);
    features.extend_from_slice(&[0; 18]);
    features.extend_from_slice(&[0, 48, 0, 0, 0, 44, 0, 0, 0, 0]);
    for bytes in [1u64 << 30, 64 << 20, 1 << 30, 64 << 20, 0] {
        features.extend_from_slice(&bytes.to_be_bytes());
    }
    assert_eq!(at([1, 6]), features);
    let mut types = vec![1, 8, 0, 132, 0, 0, 0, 128, 0, 0x80, 0, 1, 0x03];
    types.resize(72, 0);
    types.extend_from_slice(&[0xFF, 0xFF, 0, 1, 0x02]);
    types.resize(136, 0);
    assert_eq!(at([1, 8]), types);
}
