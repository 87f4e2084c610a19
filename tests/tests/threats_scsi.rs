//! Hostile virtio-scsi requests against the real daemon. The numbers are those of the list of threats in
//! `docs/testing.md`.

mod common;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::attack::{LUN, QUEUE, Scene, answered, closed};
use common::clear_attentions;
use pollux_tests::frontend::{FrontEnd, PATIENCE};
use pollux_tests::guest::{
    CONTROL_QUEUE, Command, DriverOptions, EVENT_QUEUE, Framing, Lun, REQUEST_LEN, RESPONSE_LEN, Tmf, cdb,
    request_header,
};
use pollux_tests::rng::Rng;

/// Response bytes, incoming data, bytes written.
type Raw = (Vec<u8>, Vec<u8>, u32);

/// Sends any header and waits for an answer: response bytes, data and length; `None` if the session ends instead.
fn raw(front: &mut FrontEnd, header: &[u8], out: &[u8], response_len: usize, in_len: usize) -> Result<Option<Raw>> {
    front.driver.submit_raw(QUEUE, header, out, response_len, in_len, Framing::PLAIN).context("no room")?;
    front.driver.queues[QUEUE].flush();
    if !answered(front) {
        ensure!(closed(front), "neither answered nor closed");
        return Ok(None);
    }
    let answer = front.driver.poll_raw(QUEUE).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let (_, response, data, written) = answer.context("the used index has moved")?;
    Ok(Some((response, data, written)))
}

#[test]
fn threat_22_short_requests_and_responses() -> Result<()> {
    let mut scene = Scene::new()?;
    let header = request_header(LUN.bytes(), 1, 0, &cdb::TEST_UNIT_READY);
    for len in [0, 1, 8, 16, REQUEST_LEN - 1] {
        scene.attack(&format!("a header of {len} bytes"), |front| {
            if let Some((response, ..)) = raw(front, &header[..len], &[], RESPONSE_LEN, 0)? {
                ensure!((response[10], response[11]) != (0, 0), "served");
            }
            Ok(())
        })?;
    }
    for len in [0, 1, 11, 12, RESPONSE_LEN - 1] {
        scene.attack(&format!("a response of {len} bytes"), |front| {
            if let Some((_, _, written)) = raw(front, &header, &[], len, 0)? {
                ensure!(written as usize <= len, "{written} bytes were written into {len}");
            }
            Ok(())
        })?;
    }
    scene.attack("everything byte by byte", |front| {
        clear_attentions(front, LUN)?;
        let pieces = |gpa: u64, len: u64, writable| {
            (0..len).map(move |at| pollux_tests::guest::Buffer { gpa: gpa + at, len: 1, writable })
        };
        let gpa = front.driver.arena.alloc(8192, 4096, 0).context("memory")?;
        let table = front.driver.arena.alloc(16 * 1024, 16, 0).context("memory")?;
        front.driver.memory.write(gpa, &request_header(LUN.bytes(), 1, 0, &cdb::read10(0, 1)));
        front.driver.memory.fill(gpa + 1024, 108, 0xa5);
        let mut buffers: Vec<_> = pieces(gpa, 51, false).collect();
        buffers.extend(pieces(gpa + 1024, 108, true));
        buffers.extend(pieces(gpa + 4096, 512, true));
        let queue = &mut front.driver.queues[QUEUE];
        let indirect = pollux_tests::guest::Indirect { table, direct: 0 };
        queue.ring.add(&buffers, Some(indirect)).context("room")?;
        queue.flush();
        ensure!(answered(front), "no answer");
        let response = front.driver.memory.bytes(gpa + 1024, 12);
        ensure!((response[10], response[11]) == (0, 0), "{response:?}");
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_24_30_lengths_that_disagree_and_nothing_but_data_in_the_rest() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("lengths", |front| {
        front.good(LUN, &cdb::write10(0, 8, false), &[0x11; 4096], 0)?;
        // Less room than the CDB wants: OVERRUN or an error, and nothing beyond the buffer.
        let short = front.cdb(LUN, &cdb::read10(0, 8), &[], 512)?;
        ensure!(!short.good(), "a read of 4096 bytes into 512 was good");
        // More room: the rest keeps what it held.
        let long = front.cdb(LUN, &cdb::read10(0, 1), &[], 4096)?;
        ensure!(long.good() && long.residual == 4096 - 512, "residual {}", long.residual);
        ensure!(long.data[512..].iter().all(|b| *b == 0xa5), "written beyond the data");
        // Less data than the CDB wants to write.
        let short = front.cdb(LUN, &cdb::write10(0, 8, false), &[0x22; 512], 0)?;
        ensure!(!short.good(), "a write of 4096 bytes from 512 was good");
        // No buffer at all.
        ensure!(!front.cdb(LUN, &cdb::read10(0, 1), &[], 0)?.good(), "a read into nothing");
        ensure!(!front.cdb(LUN, &cdb::write10(0, 1, false), &[], 0)?.good(), "a write from nothing");
        // The wrong direction, and both.
        ensure!(!front.cdb(LUN, &cdb::read10(0, 1), &[0; 512], 0)?.good(), "a read with data out only");
        ensure!(!front.cdb(LUN, &cdb::write10(0, 1, false), &[], 512)?.good(), "a write with data in only");
        let _ = front.cdb(LUN, &cdb::read10(0, 1), &[0; 512], 512)?;
        // Short answers: what is not answered keeps what it held.
        let inquiry = front.cdb(LUN, &cdb::inquiry(None, 36), &[], 4096)?;
        ensure!(inquiry.data[36..].iter().all(|b| *b == 0xa5), "INQUIRY wrote beyond its allocation length");
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_26_lun_fields() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("addresses", |front| {
        for (field, bad_target) in [
            ([0, 0, 0x40, 0, 0, 0, 0, 0], true),
            ([2, 0, 0x40, 0, 0, 0, 0, 0], true),
            ([0xff; 8], true),
            ([1, 200, 0x40, 0, 0, 0, 0, 0], true),
            ([1, 0, 0x7f, 0xff, 0, 0, 0, 0], false),
            ([1, 0, 0x80, 0, 0, 0, 0, 0], false),
            ([1, 0, 0xff, 0xff, 0, 0, 0, 0], false),
            ([1, 0, 0x40, 0, 1, 2, 3, 4], false),
            ([1, 0, 0, 1, 0, 0, 0, 0], false),
        ] {
            let command = Command { lun: field, ..Command::new(LUN, &cdb::TEST_UNIT_READY, &[], 0) };
            let response = front.command(QUEUE, &command)?;
            if bad_target {
                ensure!(response.response == 3, "{field:02x?}: response {}", response.response);
            } else {
                ensure!(!response.good(), "{field:02x?} is a unit");
            }
        }
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_27_nonsense_on_the_control_queue_and_storms_of_aborts() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("nonsense", |front| {
        let mut rng = Rng::new(27);
        for _ in 0..500 {
            let mut header = vec![0; rng.below(64) as usize];
            rng.fill(&mut header);
            let response = rng.between(1, 16) as usize;
            front.driver.submit_raw(CONTROL_QUEUE, &header, &[], response, 0, Framing::PLAIN).context("room")?;
            front.driver.queues[CONTROL_QUEUE].flush();
            ensure!(front.driver.wait(CONTROL_QUEUE, PATIENCE), "no answer to {header:02x?}");
            front.driver.poll_raw(CONTROL_QUEUE).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        }
        Ok(())
    })?;
    scene.attack("a storm", |front| {
        clear_attentions(front, LUN)?;
        for round in 0..200u64 {
            for at in 0..16 {
                let read = cdb::read10(at * 8, 8);
                front.submit(QUEUE, &Command::new(LUN, &read, &[], 4096));
            }
            for tag in 0..16 {
                // Known tags, unknown ones, and every function.
                let function = [Tmf::AbortTask, Tmf::LunReset, Tmf::AbortTaskSet, Tmf::ClearAca, Tmf::QueryTask];
                let function = function[(round + tag) as usize % function.len()];
                front.driver.submit_tmf(function, LUN.bytes(), round * 16 + tag);
            }
            front.driver.queues[CONTROL_QUEUE].flush();
            while front.driver.in_flight(CONTROL_QUEUE) > 0 {
                ensure!(front.driver.wait(CONTROL_QUEUE, PATIENCE), "task management is not answered");
                front.driver.poll_raw(CONTROL_QUEUE).map_err(|error| anyhow::anyhow!("{error:?}"))?;
            }
            while front.driver.in_flight(QUEUE) > 0 {
                ensure!(front.driver.wait(QUEUE, PATIENCE), "commands are not answered");
                front.poll(QUEUE)?;
            }
        }
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_28_event_buffers_none_and_tiny() -> Result<()> {
    let mut scene = Scene::new()?;
    for len in [1usize, 8, 15] {
        let mut front = scene.evil()?;
        front.driver.post_events(4, len);
        for _ in 0..4 {
            common::ram(&scene.daemon, "more", 64)?;
            common::attach(&scene.daemon, "evil", 9, "more")?;
            let remove = serde_json::json!({"ctrlr": "evil", "scsi_target_num": 9});
            scene.daemon.rpc("vhost_scsi_controller_remove_target", remove)?;
            scene.daemon.rpc("bdev_malloc_delete", serde_json::json!({"name": "more"}))?;
        }
        std::thread::sleep(Duration::from_millis(50));
        while let Ok(Some((.., written))) = front.driver.poll_raw(EVENT_QUEUE) {
            ensure!(written as usize <= len, "{written} bytes in a buffer of {len}");
        }
        scene.bystander_works()?;
        drop(front);
        scene.evil_works()?;
    }
    scene.no_files_left()
}

#[test]
fn threat_29_ranges_and_lists() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("ranges", |front| {
        clear_attentions(front, LUN)?;
        let beyond: Vec<(Vec<u8>, usize, usize)> = vec![
            (cdb::read10(4096, 1).into(), 0, 512),
            (cdb::read10(4095, 2).into(), 0, 1024),
            (cdb::read10(u32::MAX, 8).into(), 0, 4096),
            (cdb::read16(u64::MAX, 1).into(), 0, 512),
            (cdb::read16(u64::MAX - 7, 16).into(), 0, 8192),
            (cdb::read16(1 << 55, 1).into(), 0, 512),
            (cdb::write10(4096, 1, false).into(), 512, 0),
            (cdb::write16(u64::MAX, 1, true).into(), 512, 0),
            (cdb::write_same16(u64::MAX, 1, true, true).into(), 0, 0),
            (cdb::write_same16(4000, 97, true, true).into(), 0, 0),
            (cdb::sync16(u64::MAX, 2).into(), 0, 0),
        ];
        for (cdb, out, in_len) in beyond {
            let response = front.cdb(LUN, &cdb, &vec![0; out], in_len)?;
            ensure!(response.sense_key() == Some((5, 0x21, 0)), "{cdb:02x?}: {:?}", response.sense_key());
        }
        // The whole disk in one command is fine.
        front.good(LUN, &cdb::write_same16(0, 0, true, true), &[], 0)?;
        Ok(())
    })?;
    scene.attack("UNMAP lists", |front| {
        clear_attentions(front, LUN)?;
        let (cdb, list) = cdb::unmap(&[(0, 8), (4, 8), (4090, 100)]);
        ensure!(!front.cdb(LUN, &cdb, &list, 0)?.good(), "a range beyond the end");
        let mut rng = Rng::new(29);
        for _ in 0..300 {
            let mut list = vec![0; rng.below(200) as usize];
            rng.fill(&mut list);
            if list.len() >= 8 && rng.chance(1, 2) {
                // Lengths that agree with each other or nearly.
                let n = list.len() as u16;
                list[..2].copy_from_slice(&(n - 2 + rng.below(3) as u16).to_be_bytes());
                list[2..4].copy_from_slice(&(n - 8 + rng.below(3) as u16).to_be_bytes());
            }
            let mut cdb = cdb::unmap(&[]).0;
            cdb[7..9].copy_from_slice(&(list.len() as u16 + rng.below(20) as u16).to_be_bytes());
            let _ = front.cdb(LUN, &cdb, &list, 0)?;
        }
        Ok(())
    })?;
    scene.attack("INQUIRY, REPORT LUNS, MODE SENSE with any allocation length", |front| {
        clear_attentions(front, LUN)?;
        for len in [0u16, 1, 4, 35, 255, 4096, 65535] {
            for page in [None, Some(0), Some(0x83), Some(0xb0), Some(0xb2), Some(0xff)] {
                let response = front.cdb(LUN, &cdb::inquiry(page, len), &[], usize::from(len))?;
                ensure!(response.response == 0, "INQUIRY {page:?} {len}: response {}", response.response);
            }
            let _ = front.cdb(LUN, &cdb::report_luns(u32::from(len)), &[], usize::from(len))?;
            let mut sense = cdb::mode_sense10(0x3f);
            sense[7..9].copy_from_slice(&len.to_be_bytes());
            for sub in [0, 1, 0xff] {
                sense[3] = sub;
                let _ = front.cdb(LUN, &sense, &[], usize::from(len))?;
            }
        }
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_29_any_command_at_all() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("random CDBs", |front| {
        let mut rng = Rng::new(1);
        for _ in 0..5000 {
            let mut cdb = [0; 32];
            rng.fill(&mut cdb);
            if rng.chance(1, 2) {
                // Opcodes that exist.
                let known = [0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x25, 0x28, 0x2a, 0x35, 0x41, 0x42, 0x55];
                let more = [0x5a, 0x88, 0x8a, 0x91, 0x93, 0x9e, 0xa0, 0xa8, 0xaa, 0xa3, 0x2f, 0x8f, 0x7f, 0x89];
                cdb[0] = if rng.chance(1, 2) { known[rng.index(known.len())] } else { more[rng.index(more.len())] };
            }
            let mut out = vec![0; if rng.chance(1, 2) { rng.below(2048) as usize } else { 0 }];
            rng.fill(&mut out);
            let in_len = if rng.chance(1, 2) { rng.below(2048) as usize } else { 0 };
            let command = Command { framing: Framing::random(&mut rng), ..Command::new(LUN, &cdb, &out, in_len) };
            let response = front.command(QUEUE, &command).with_context(|| format!("{cdb:02x?}"))?;
            ensure!(response.written as usize <= RESPONSE_LEN + in_len, "{} bytes written", response.written);
        }
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_44_invalid_requests_at_full_speed_starve_nobody() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut front = scene.evil()?;
    let invalid = [0xffu8; 16];
    let mut answered = 0u64;
    for _ in 0..200 {
        for _ in 0..100 {
            if front.submit(QUEUE, &Command::new(Lun::new(0, 0), &invalid, &[], 0)).is_none() {
                break;
            }
        }
        scene.bystander_works()?;
        while front.poll(QUEUE)?.is_some() {
            answered += 1;
        }
    }
    ensure!(answered > 100, "{answered} were answered");
    drop(front);
    scene.evil_works()
}

#[test]
fn one_queue_alone_of_many_may_be_used() -> Result<()> {
    let mut scene = Scene::new()?;
    let options = DriverOptions { request_queues: 8, queue_size: 2, ..DriverOptions::default() };
    scene.attack_with("tiny queues", &options, |front| {
        let read = cdb::read10(0, 1);
        let command = Command::new(LUN, &read, &[], 512);
        clear_attentions(front, LUN)?;
        ensure!(front.command(QUEUE + 7, &command)?.good(), "the last queue");
        Ok(())
    })
}
