//! Hostile use of the commands that do much for one request, against the real daemon: copies, formats, what has to be
//! saved, ORWRITE, task attributes. The numbers are those of the list of threats in `docs/testing.md`. Each flood goes on
//! while the bystander reads its own disk, or one that both share: it is served, and the daemon's memory stays as it is.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use common::attack::{LUN, QUEUE, Scene};
use common::clear_attentions;
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::{FrontEnd, PATIENCE};
use pollux_tests::guest::copy::{self, Segment};
use pollux_tests::guest::{
    Buffer, Command, DriverOptions, Indirect, Lun, REQUEST_LEN, RESPONSE_LEN, cdb, request_header,
};
use pollux_tests::rng::Rng;
use serde_json::json;

const CONFLICT: u8 = 0x18;
const BUSY: u8 = 0x08;
/// A disk of 64 MiB that is the attacker's alone, and one that both have.
const BIG: Lun = Lun::new(1, 0);
const BIG_BLOCKS: u64 = 64 << 11;
const SHARED: Lun = Lun::new(2, 0);
/// What a flood may cost the daemon for good.
const MOST_MEMORY: u64 = 64 << 20;
/// What the bystander may have to wait for an answer: far more than it does, and far less than a flood takes.
const LATEST: Duration = Duration::from_secs(2);

fn scene() -> Result<Scene> {
    let scene = Scene::new()?;
    common::ram(&scene.daemon, "big", BIG_BLOCKS)?;
    common::ram(&scene.daemon, "shared-ram", 4096)?;
    // Slow enough for commands to meet.
    let slow = json!({"base_bdev_name": "shared-ram", "name": "shared", "avg_read_latency": 200, "p99_read_latency": 200,
        "avg_write_latency": 1000, "p99_write_latency": 1000});
    scene.daemon.rpc("bdev_delay_create", slow)?;
    common::attach(&scene.daemon, "evil", 1, "big")?;
    for ctrlr in ["evil", "good"] {
        common::attach(&scene.daemon, ctrlr, 2, "shared")?;
    }
    Ok(scene)
}

/// How commands ended: response, status, sense; and how many so.
type Ends = BTreeMap<(u8, u8, Option<(u8, u8, u8)>), u64>;

/// Good ones among them.
fn good(ends: &Ends) -> u64 {
    ends.get(&(0, 0, None)).copied().unwrap_or(0)
}

/// The attacker's session while it floods.
struct Flood<'a> {
    scene: &'a mut Scene,
    front: FrontEnd,
    resident: u64,
    ends: Ends,
}

impl<'a> Flood<'a> {
    fn begin(scene: &'a mut Scene) -> Result<Flood<'a>> {
        let options = DriverOptions { request_queues: 2, queue_size: 256, ..DriverOptions::default() };
        let mut front = scene.evil_with(&options)?;
        for lun in [LUN, BIG, SHARED] {
            clear_attentions(&mut front, lun)?;
            clear_attentions(&mut scene.bystander, if lun == BIG { LUN } else { lun })?;
        }
        let resident = scene.daemon.resident()?;
        Ok(Flood { scene, front, resident, ends: Ends::new() })
    }

    /// Fills the queues, as far as there is room, with what `next` makes.
    fn pour(&mut self, most: usize, mut next: impl FnMut() -> (Lun, Vec<u8>, Vec<u8>, u8)) {
        for at in 0..most {
            let (lun, cdb, out, task_attr) = next();
            let command = Command { task_attr, ..Command::new(lun, &cdb, &out, 0) };
            if self.front.submit(QUEUE + at % 2, &command).is_none() {
                break;
            }
        }
    }

    /// Takes the answers that are there; returns how many.
    fn take(&mut self) -> Result<u64> {
        let mut taken = 0;
        for queue in [QUEUE, QUEUE + 1] {
            while let Some((_, response)) = self.front.poll(queue)? {
                let sense = (response.status == 2).then(|| response.sense_key()).flatten();
                *self.ends.entry((response.response, response.status, sense)).or_default() += 1;
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// The bystander reads its own disk, and the one that both have.
    fn neighbour(&mut self, luns: &[Lun]) -> Result<()> {
        for &lun in luns {
            let begun = Instant::now();
            self.scene.bystander.good(lun, &cdb::read10(0, 1), &[], 512).context("the bystander's disk")?;
            ensure!(begun.elapsed() < LATEST, "the bystander waited {:?} for {lun:?}", begun.elapsed());
        }
        Ok(())
    }

    /// Waits until everything is answered; how it ended.
    fn drain(&mut self) -> Result<Ends> {
        let end = Instant::now() + PATIENCE;
        while self.front.driver.in_flight(QUEUE) + self.front.driver.in_flight(QUEUE + 1) > 0 {
            self.take()?;
            ensure!(Instant::now() < end, "the flood is not answered");
            self.neighbour(&[LUN])?;
        }
        Ok(std::mem::take(&mut self.ends))
    }

    /// Everything is answered, and nothing is left of it.
    fn end(mut self) -> Result<Ends> {
        let ends = self.drain()?;
        drop(self.front);
        self.scene.evil_works()?;
        self.scene.bystander_works()?;
        let resident = self.scene.daemon.resident()?;
        let more = resident.saturating_sub(self.resident);
        ensure!(more < MOST_MEMORY, "the daemon has {more} bytes more than before");
        println!("{more} bytes more, {ends:x?}");
        Ok(ends)
    }
}

/// PERSISTENT RESERVE OUT and its list.
fn reserve_out(action: u8, kind: u8, keys: (u64, u64), flags: u8) -> ([u8; 10], Vec<u8>) {
    let mut list = [keys.0.to_be_bytes(), keys.1.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    ([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], list)
}

/// Bytes of all that guests had saved.
fn saved_bytes(daemon: &Daemon) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(daemon.state_dir().join("units"))? {
        // One that is being replaced may be gone.
        sum += entry?.metadata().map_or(0, |data| data.len());
    }
    Ok(sum)
}

#[test]
fn threat_47_copy_lists_that_lie() -> Result<()> {
    let mut scene = scene()?;
    let theirs = common::naa(&mut scene.bystander, LUN)?;
    scene.attack("names and lists", |front| {
        for lun in [LUN, BIG] {
            clear_attentions(front, lun)?;
        }
        let own = [common::naa(front, LUN)?, common::naa(front, BIG)?];
        // Another VM's disk is like one that nobody has, on either side.
        let segment = |source, destination, blocks, from, to| Segment { source, destination, blocks, from, to };
        let mut nobodys = theirs;
        nobodys[8..].iter_mut().for_each(|byte| *byte ^= 0x5A);
        for ends in [(0, 1), (1, 0)] {
            let mut ask = |name| -> Result<Vec<u8>> {
                let (cdb, list) = copy::lid1(1, 0, &[own[0], name], &[segment(ends.0, ends.1, 1, 0, 0)]);
                Ok(front.cdb(LUN, &cdb, &list, 0)?.sense)
            };
            let sense = ask(theirs)?;
            ensure!(!sense.is_empty(), "another VM's disk was copied");
            let other = ask(nobodys)?;
            ensure!(other == sense, "another VM's disk is told from none: {sense:02x?} and {other:02x?}");
            for name in [[0xFF; 16], [0; 16]] {
                ensure!(!ask(name)?.is_empty(), "no disk was copied");
            }
        }
        // A good list, with anything in it changed, and cut or lengthened.
        let segments = [segment(0, 1, 8, 0, 64), segment(1, 0, 8, 64, 4), segment(0, 0, 16, 0, 8)];
        let mut rng = Rng::new(47);
        for at in 0..3000 {
            let id = at as u32;
            let (mut cdb, mut list) = match at % 2 {
                0 => copy::lid1(id as u8, 0, &own, &segments),
                _ => copy::lid4(id, rng.chance(1, 2), &own, &segments),
            };
            for _ in 0..rng.between(1, 4) {
                let byte = rng.index(list.len().min(120));
                list[byte] = [0, 1, 0x7F, 0xFF, rng.below(256) as u8][rng.index(5)];
            }
            if rng.chance(1, 8) {
                list.truncate(rng.index(list.len()));
            }
            if rng.chance(1, 4) {
                let len = [0, 1, list.len() as u32 + 1, 0x7FFF_FFFF, u32::MAX, list.len() as u32 - 1][rng.index(6)];
                cdb[10..14].copy_from_slice(&len.to_be_bytes());
            }
            let response = front.cdb(LUN, &cdb, &list, 0)?;
            ensure!(response.response <= 1, "{cdb:02x?} {list:02x?}: response {}", response.response);
        }
        // What is told of copies, for any identifier and any length.
        for _ in 0..500 {
            let mut cdb = [0u8; 16];
            rng.fill(&mut cdb);
            cdb[0] = 0x84;
            cdb[1] = [0, 1, 3, 4, 5, 7][rng.index(6)];
            cdb[10..14].copy_from_slice(&([0, 1, 8, 252, 4096, u32::MAX][rng.index(6)]).to_be_bytes());
            let room = [0, 8, 4096][rng.index(3)];
            let response = front.cdb(LUN, &cdb, &[], room)?;
            ensure!(response.written as usize <= RESPONSE_LEN + room, "{} bytes written", response.written);
        }
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_47_copies_as_a_flood() -> Result<()> {
    let mut scene = scene()?;
    let begun = |scene: &Scene| -> Result<f64> { scene.daemon.metric("pollux_bdev_ops_total", &[("bdev", "big")]) };
    let mut flood = Flood::begin(&mut scene)?;
    let own = [common::naa(&mut flood.front, BIG)?];
    // Round and round over themselves, as much as a list can hold: 128 times 32 MiB.
    let segments: Vec<Segment> = (0..128)
        .map(|at| {
            let (from, to) = if at % 2 == 0 { (0, 1) } else { (1, 0) };
            Segment { source: 0, destination: 0, blocks: 0xFFFF, from, to }
        })
        .collect();
    let mut id = 0;
    for _ in 0..100 {
        flood.pour(16, || {
            id += 1;
            let (cdb, list) = copy::lid4(id, id % 3 > 0, &own, &segments);
            (BIG, cdb.to_vec(), list, 0)
        });
        flood.neighbour(&[LUN, SHARED])?;
        flood.take()?;
    }
    ensure!(flood.ends.get(&(0, BUSY, None)).is_some_and(|busy| *busy > 100), "{:x?}", flood.ends);
    // With the session they end.
    let resident = flood.resident;
    drop(flood);
    scene.evil_works()?;
    let before = begun(&scene)?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(begun(&scene)? == before, "a copy goes on without its session");
    ensure!(scene.daemon.resident()?.saturating_sub(resident) < MOST_MEMORY, "copies have left memory behind");
    scene.no_files_left()
}

#[test]
fn threat_49_formats_without_permission() -> Result<()> {
    let mut scene = scene()?;
    let Scene { daemon, bystander, .. } = &mut scene;
    let disk = daemon.disks_dir().join("read-only");
    std::fs::write(&disk, vec![0x33; 1 << 20])?;
    daemon.rpc("bdev_aio_create", json!({"name": "ro", "filename": disk, "block_size": 512, "readonly": true}))?;
    common::attach(daemon, "evil", 3, "ro")?;
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "shared", "allow_sanitize": true}))?;
    clear_attentions(bystander, SHARED)?;
    bystander.good(SHARED, &cdb::write10(0, 8, false), &[0x44; 4096], 0)?;
    let mut front = scene.evil()?;
    for lun in [LUN, SHARED, Lun::new(3, 0)] {
        clear_attentions(&mut front, lun)?;
    }
    front.good(LUN, &cdb::write10(0, 8, false), &[0x44; 4096], 0)?;
    let own = [common::naa(&mut front, LUN)?, common::naa(&mut front, SHARED)?];
    let sanitizes: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (vec![0x48, 0x01, 0, 0, 0, 0, 0, 0, 5, 0], vec![1, 0, 0, 1, 0x99]),
        (vec![0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0], vec![]),
        (vec![0x48, 0x03, 0, 0, 0, 0, 0, 0, 0, 0], vec![]),
        (vec![0x48, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0], vec![]),
    ];
    for (cdb, list) in &sanitizes {
        let response = front.cdb(LUN, cdb, list, 0)?;
        ensure!(matches!(response.sense_key(), Some((5, 0x20 | 0x24, 0))), "{cdb:02x?}: {:x?}", response.sense_key());
    }
    let format = (vec![0x04, 0, 0, 0, 0, 0], vec![]);
    let response = front.cdb(Lun::new(3, 0), &format.0, &format.1, 0)?;
    ensure!(response.sense_key() == Some((7, 0x27, 0)), "read-only: {:x?}", response.sense_key());
    // A disk that another VM uses, then one that it has reserved.
    let response = front.cdb(SHARED, &format.0, &format.1, 0)?;
    ensure!(response.sense_key() == Some((5, 0x24, 0)), "in use: {:x?}", response.sense_key());
    for kind in [1, 3] {
        for (action, keys) in [(6, (0, 7)), (1, (7, 0))] {
            let (cdb, list) = reserve_out(action, kind, keys, 0);
            scene.bystander.good(SHARED, &cdb, &list, 0)?;
        }
        let mut hostile = sanitizes[..2].to_vec();
        hostile.push(format.clone());
        hostile.push((cdb::write_same16(0, 0, true, true).to_vec(), vec![]));
        hostile.push((cdb::or_write16(0, 1).to_vec(), vec![0xFF; 512]));
        hostile.push((cdb::unmap(&[(0, 8)]).0.to_vec(), cdb::unmap(&[(0, 8)]).1));
        hostile.push((vec![0x55, 0x11, 0, 0, 0, 0, 0, 0, 0, 0], vec![]));
        hostile.push((vec![0xA4, 0x06, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0], vec![1, 1]));
        for (cdb, list) in &hostile {
            let response = front.cdb(SHARED, cdb, list, 0)?;
            let told = matches!(response.sense_key(), Some((6, ..)));
            let response = if told { front.cdb(SHARED, cdb, list, 0)? } else { response };
            ensure!((response.response, response.status) == (0, CONFLICT), "{cdb:02x?} while reserved: {response:?}");
        }
        // Nor by a copy that another of its disks does.
        let segment = [Segment { source: 0, destination: 1, blocks: 8, from: 0, to: 0 }];
        let (cdb, list) = copy::lid1(9, 0, &own, &segment);
        ensure!(!front.cdb(LUN, &cdb, &list, 0)?.good(), "a copy onto a disk that is reserved");
        let (cdb, list) = reserve_out(3, 0, (7, 0), 0);
        scene.bystander.good(SHARED, &cdb, &list, 0)?;
    }
    let data = scene.bystander.good(SHARED, &cdb::read10(0, 8), &[], 4096)?.data;
    ensure!(data == [0x44; 4096], "the disk of both was changed: {:02x?}", &data[..8]);
    ensure!(front.good(LUN, &cdb::read10(0, 8), &[], 4096)?.data == [0x44; 4096], "its own disk was changed");
    ensure!(std::fs::read(&disk)?.iter().all(|byte| *byte == 0x33), "the read-only file was changed");
    drop(front);
    scene.evil_works()?;
    scene.no_files_left()
}

#[test]
fn threat_50_what_has_to_be_saved_as_a_flood() -> Result<()> {
    let mut scene = scene()?;
    let set_label = |len: u16, kind: u8| {
        let n = len.to_be_bytes();
        vec![0xA4, 0x06, 0, 0, 0, 0, 0, 0, n[0], n[1], kind << 1, 0]
    };
    let begun = Instant::now();
    let mut flood = Flood::begin(&mut scene)?;
    let (mut number, mut label) = (0u64, 0u64);
    let page = flood.front.good(LUN, &cdb::mode_sense10(0x0A), &[], 252)?.data;
    let control = |number: u64| {
        // D_SENSE on and off.
        let mut list = vec![0; 8];
        list.extend(&page[8..20]);
        (list[8], list[10]) = (0x0A, list[10] & !4 | (number as u8 & 1) << 2);
        (LUN, vec![0x55, 0x11, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], list, 0)
    };
    for round in 0..150 {
        flood.pour(60, || {
            number += 1;
            match number % 2 {
                0 => (LUN, set_label(64, 0), [number.to_be_bytes(); 8].concat(), 0),
                _ => {
                    let (cdb, list) = reserve_out(6, 0, (0, number), 1);
                    (LUN, cdb.to_vec(), list, 0)
                }
            }
        });
        flood.neighbour(&[LUN, SHARED])?;
        // The other VM's own saves have their own measure: one goes through now and then.
        if round % 10 == 0 {
            label += 1;
            let text = [label.to_be_bytes(); 8].concat();
            flood.scene.bystander.good(LUN, &set_label(64, 0), &text, 0).context("the bystander's own label")?;
        }
        flood.take()?;
    }
    let counted = flood.drain()?;
    for _ in 0..50 {
        flood.pour(60, || {
            number += 1;
            control(number)
        });
        flood.neighbour(&[LUN, SHARED])?;
        flood.take()?;
    }
    let mut ends = flood.end()?;
    // MODE SELECT is good, too, where it changes nothing.
    let most = 64 + begun.elapsed().as_secs() + 1;
    ensure!((64..=most).contains(&good(&counted)), "{} of at most {most} changes were saved", good(&counted));
    ends.extend(counted);
    ensure!(ends.keys().all(|end| matches!(end, (0, 0 | BUSY, None))), "{ends:x?}");
    let bytes = saved_bytes(&scene.daemon)?;
    ensure!(bytes < 64 << 10, "{bytes} bytes are saved");
    scene.attack("labels and registrations of any size", |front| {
        clear_attentions(front, BIG)?;
        for kind in 0..=0x7F {
            for len in [0, 1, 64, 65, 256, 257, 4096, u16::MAX] {
                let response = front.cdb(BIG, &set_label(len, kind), &vec![b'a'; usize::from(len)], 0)?;
                let too_long = match kind {
                    0 => len > 64,
                    2 => len > 256,
                    _ => true,
                };
                ensure!(!too_long || !response.good(), "{len} bytes of type {kind}");
            }
        }
        // SPEC_I_PT: more than there may be, then as many as there may be, again and again.
        for (round, count) in [(0u64, 257u64), (1, 256), (2, 256), (3, 256)] {
            let (mut cdb, mut list) = reserve_out(0, 0, (0, round + 1), 8);
            list.extend((24 * count as u32).to_be_bytes());
            for id in 0..count {
                let mut transport = [0; 24];
                transport[0] = 6;
                transport[4..12].copy_from_slice(&(0x3000_0000_0000_0000 + round * 1000 + id).to_be_bytes());
                list.extend(transport);
            }
            cdb[5..9].copy_from_slice(&(list.len() as u32).to_be_bytes());
            let response = front.cdb(BIG, &cdb, &list, 0)?;
            ensure!(count <= 256 || response.sense_key() == Some((5, 0x55, 4)), "{count}: {:x?}", response.sense_key());
            let (cdb, list) = reserve_out(6, 0, (0, 0), 0);
            front.good(BIG, &cdb, &list, 0)?;
        }
        let keys = front.good(BIG, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[], 8)?.data;
        let bytes = u32::from_be_bytes(keys[4..].try_into()?);
        ensure!(bytes <= 512 * 8, "{bytes} bytes of keys");
        Ok(())
    })?;
    ensure!(saved_bytes(&scene.daemon)? < 64 << 10, "more is saved");
    scene.no_files_left()
}

#[test]
fn threat_51_atomic_commands_as_long_as_they_may_be_as_a_flood() -> Result<()> {
    const LEN: u32 = 8 << 20;
    let mut scene = scene()?;
    let mut flood = Flood::begin(&mut scene)?;
    // All of them send the same memory.
    let front = &mut flood.front;
    let data = front.driver.arena.alloc(u64::from(LEN), 4096, 0).context("memory")?;
    front.driver.memory.fill(data, LEN as usize, 0x0F);
    let page = front.driver.arena.alloc(256 << 10, 4096, 0).context("memory")?;
    for number in 0..200 {
        let at = page + number * 1024;
        let (response, table) = (at + 256, at + 512);
        // Over each other, so that each waits for the one before.
        let header = request_header(BIG.bytes(), number, 0, &cdb::or_write16(number % 8, LEN / 512));
        front.driver.memory.write(at, &header);
        let buffers = [
            Buffer { gpa: at, len: REQUEST_LEN as u32, writable: false },
            Buffer { gpa: data, len: LEN, writable: false },
            Buffer { gpa: response, len: RESPONSE_LEN as u32, writable: true },
        ];
        let ring = &mut front.driver.queues[QUEUE + number as usize % 2].ring;
        ring.add(&buffers, Some(Indirect { table, direct: 0 })).context("room")?;
    }
    front.driver.queues[QUEUE..].iter_mut().for_each(pollux_tests::guest::Queue::flush);
    let (mut left, end, mut reads) = (200, Instant::now() + 2 * PATIENCE, 0);
    while left > 0 {
        flood.neighbour(&[LUN, SHARED])?;
        reads += 1;
        for queue in [QUEUE, QUEUE + 1] {
            let ring = &mut flood.front.driver.queues[queue].ring;
            while ring.pop_used().map_err(|error| anyhow!("{error:?}"))?.is_some() {
                left -= 1;
            }
        }
        ensure!(Instant::now() < end, "{left} are not answered");
    }
    ensure!(reads > 20, "the bystander was served {reads} times");
    for number in 0..200 {
        let response = flood.front.driver.memory.bytes(page + number * 1024 + 256, 12);
        ensure!((response[10], response[11]) == (0, 0), "{response:?}");
    }
    flood.end()?;
    scene.no_files_left()
}

#[test]
fn threat_52_task_attributes_starve_nobody() -> Result<()> {
    const ORDERED: u8 = 1;
    const HEAD_OF_QUEUE: u8 = 2;
    let mut scene = scene()?;
    for attribute in [ORDERED, HEAD_OF_QUEUE] {
        let mut flood = Flood::begin(&mut scene)?;
        let write = || (SHARED, cdb::write10(64, 1, false).to_vec(), vec![0x66; 512], attribute);
        let (mut answered, mut most) = (0, 0);
        for _ in 0..60 {
            flood.pour(400, write);
            let read = cdb::read10(0, 1);
            let begun = Instant::now();
            flood.scene.bystander.submit(QUEUE, &Command::new(SHARED, &read, &[], 512)).context("room")?;
            let mut meanwhile = 0;
            // The flood does not abate before it is answered.
            while !flood.scene.bystander.driver.queues[QUEUE].ring.has_used() {
                meanwhile += flood.take()?;
                flood.pour(400, write);
                ensure!(begun.elapsed() < LATEST, "the bystander waits, and {meanwhile} of the flood were served");
            }
            let (_, response) = flood.scene.bystander.poll(QUEUE)?.context("the answer")?;
            ensure!(response.good(), "{response:?}");
            (answered, most) = (answered + meanwhile, most.max(meanwhile));
        }
        println!("attribute {attribute}: at most {most} of {answered} before one of the bystander's");
        // What was in the rings when it came and before it was seen, and what may overtake it: some rings full.
        ensure!(most <= 4 * 512, "{most} of attribute {attribute} went before one command of another VM");
        let ends = flood.end()?;
        ensure!(ends.len() == 1 && good(&ends) >= answered, "{ends:x?}");
    }
    scene.no_files_left()
}
