//! Hostile rings against the real daemon. The numbers are those of the list of threats in `docs/testing.md`.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::attack::{Desc, LUN, Page, QUEUE, RESPONSE, Scene, answered, closed, offer};
use common::clear_attentions;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, Response, cdb, desc};
use vhost::VhostBackend;

/// The status and response bytes at a response's place.
fn response(front: &FrontEnd, page: &Page) -> (u8, u8) {
    let bytes = front.driver.memory.bytes(page.gpa + RESPONSE, 108);
    (bytes[10], bytes[11])
}

/// What is made available cannot be: the session ends, or the chain is given back with nothing done.
fn refused(scene: &mut Scene, what: &str, make: impl FnOnce(&mut FrontEnd, &Page) -> Vec<Desc>) -> Result<()> {
    scene.attack(what, |front| {
        clear_attentions(front, LUN)?;
        let page = Page::new(front)?;
        front.driver.memory.fill(page.gpa + RESPONSE, 108, 0xa5);
        let descs = make(front, &page);
        offer(front, &descs, &[0]);
        let (status, code) = if answered(front) { response(front, &page) } else { (0xa5, 0xa5) };
        ensure!(closed_or(front, status, code), "served as if nothing were wrong: status {status} response {code}");
        Ok(())
    })
}

fn closed_or(front: &FrontEnd, status: u8, code: u8) -> bool {
    (status, code) != (0, 0) || closed(front)
}

/// It is unusual and has to work.
fn served(scene: &mut Scene, what: &str, make: impl FnOnce(&mut FrontEnd, &Page) -> Vec<Desc>) -> Result<()> {
    scene.attack(what, |front| {
        clear_attentions(front, LUN)?;
        let page = Page::new(front)?;
        front.driver.memory.fill(page.gpa + RESPONSE, 108, 0xa5);
        let descs = make(front, &page);
        offer(front, &descs, &[0]);
        ensure!(answered(front), "no answer");
        let got = response(front, &page);
        ensure!(got == (0, 0), "status and response {got:?}");
        Ok(())
    })
}

#[test]
fn threat_01_02_available_index_jumps_and_runs_backwards() -> Result<()> {
    let mut scene = Scene::new()?;
    for step in [129u16, 1000, 0x8000, 0xffff] {
        scene.attack(&format!("index + {step}"), |front| {
            clear_attentions(front, LUN)?;
            let ring = &front.driver.queues[QUEUE].ring;
            let index = ring.next_avail().wrapping_add(step);
            front.driver.memory.store_u16(ring.addresses()[1] + 2, index);
            front.driver.queues[QUEUE].kick();
            ensure!(closed(front), "the session goes on");
            Ok(())
        })?;
    }
    scene.no_files_left()
}

#[test]
fn threat_03_04_heads_and_next_beyond_the_table() -> Result<()> {
    let mut scene = Scene::new()?;
    for head in [128u16, 129, 0x7fff, 0xffff] {
        scene.attack(&format!("head {head}"), |front| {
            offer(front, &[], &[head]);
            ensure!(closed(front), "the session goes on");
            Ok(())
        })?;
    }
    for next in [128u16, 0x7fff, 0xffff] {
        refused(&mut scene, &format!("next {next}"), |_, page| vec![(page.gpa, 51, desc::NEXT, next)])?;
    }
    scene.no_files_left()
}

#[test]
fn threat_05_06_loops_and_chains_too_long() -> Result<()> {
    let mut scene = Scene::new()?;
    refused(&mut scene, "itself", |_, page| vec![(page.gpa, 51, desc::NEXT, 0)])?;
    refused(&mut scene, "two", |_, page| {
        vec![(page.gpa, 51, desc::NEXT, 1), (page.gpa + RESPONSE, 108, desc::NEXT | desc::WRITE, 0)]
    })?;
    refused(&mut scene, "all", |_, page| (0..128).map(|n| (page.gpa, 8, desc::NEXT, (n + 1) % 128)).collect())?;
    refused(&mut scene, "an indirect table of 1025", |front, page| {
        let table = front.driver.arena.alloc(16 * 1025, 16, 0).unwrap_or(page.gpa);
        vec![(table, 16 * 1025, desc::INDIRECT, 0)]
    })?;
    scene.no_files_left()
}

#[test]
fn threat_07_08_lengths_of_zero_and_lengths_that_overflow() -> Result<()> {
    let mut scene = Scene::new()?;
    served(&mut scene, "zero-length descriptors between", |_, page| {
        vec![
            (page.gpa, 51, desc::NEXT, 1),
            (page.gpa, 0, desc::NEXT, 2),
            (page.gpa + RESPONSE, 108, desc::NEXT | desc::WRITE, 3),
            (page.gpa, 0, desc::NEXT | desc::WRITE, 4),
            (page.gpa + 0x1000, 512, desc::WRITE, 0),
        ]
    })?;
    for (what, gpa, len) in [
        ("beyond 64 bits", u64::MAX - 100, 512),
        ("the last byte", u64::MAX, 1),
        ("all of 32 bits", 0x10_0000, u32::MAX),
        ("nowhere", 0x5000_0000_0000, 512),
    ] {
        refused(&mut scene, what, |_, page| {
            let mut descs = page.proper();
            (descs[2].0, descs[2].1) = (gpa, len);
            descs.to_vec()
        })?;
    }
    refused(&mut scene, "more than 32 bits in all", |_, page| {
        let mut descs = vec![(page.gpa, 51, desc::NEXT, 1)];
        descs.extend((1..100).map(|n| (0x10_0000, 60 << 20, desc::NEXT | desc::WRITE, n + 1)));
        descs.push((0x10_0000, 60 << 20, desc::WRITE, 0));
        descs
    })?;
    scene.no_files_left()
}

#[test]
fn threat_09_indirect_tables() -> Result<()> {
    let mut scene = Scene::new()?;
    let table = |front: &mut FrontEnd, page: &Page, nested: bool| {
        let table = page.gpa + 0x2000;
        let ring = &front.driver.queues[QUEUE].ring;
        for (at, (gpa, len, flags, next)) in page.proper().into_iter().enumerate() {
            let flags = if nested && at == 2 { desc::INDIRECT } else { flags };
            ring.write_desc(table, at as u16, gpa, len, flags, next);
        }
        table
    };
    for len in [0u32, 1, 15, 17, 16 * 1025, u32::MAX] {
        refused(&mut scene, &format!("a table of {len} bytes"), |front, page| {
            vec![(table(front, page, false), len, desc::INDIRECT, 0)]
        })?;
    }
    refused(&mut scene, "nested", |front, page| vec![(table(front, page, true), 48, desc::INDIRECT, 0)])?;
    refused(&mut scene, "INDIRECT with NEXT", |front, page| {
        let table = table(front, page, false);
        vec![(table, 48, desc::INDIRECT | desc::NEXT, 1), (page.gpa + 0x3000, 8, desc::WRITE, 0)]
    })?;
    refused(&mut scene, "across the end of memory", |_, _| vec![(0x10_0000 + (64 << 20) - 32, 64, desc::INDIRECT, 0)])?;
    served(&mut scene, "WRITE on an indirect descriptor is ignored", |front, page| {
        vec![(table(front, page, false), 48, desc::INDIRECT | desc::WRITE, 0)]
    })?;
    scene.attack("rewritten by the data read into it", |front| {
        clear_attentions(front, LUN)?;
        let page = Page::new(front)?;
        let at = table(front, &page, false);
        // The third descriptor's buffer is the table itself.
        front.driver.queues[QUEUE].ring.write_desc(at, 2, at, 512, desc::WRITE, 0);
        offer(front, &[(at, 48, desc::INDIRECT, 0)], &[0]);
        ensure!(answered(front), "no answer");
        Ok(())
    })?;
    let plain = DriverOptions { indirect: false, ..DriverOptions::default() };
    scene.attack_with("never negotiated", &plain, |front| {
        let page = Page::new(front)?;
        front.driver.memory.fill(page.gpa + RESPONSE, 108, 0xa5);
        let at = table(front, &page, false);
        offer(front, &[(at, 48, desc::INDIRECT, 0)], &[0]);
        let (status, code) = if answered(front) { response(front, &page) } else { (0xa5, 0xa5) };
        ensure!(closed_or(front, status, code), "an indirect table was taken that was not negotiated");
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_10_buffers_across_regions_and_into_holes() -> Result<()> {
    let mut scene = Scene::new()?;
    // Two regions that follow each other, then a hole.
    let (first, second) = (0x10_0000u64, 0x10_0000 + (16 << 20));
    let memory = vec![(first, 16 << 20), (second, 1 << 20), (second + (2 << 20), 1 << 20)];
    let options = DriverOptions { memory, ..DriverOptions::default() };
    scene.attack_with("across adjacent regions", &options, |front| {
        front.good(LUN, &cdb::write10(0, 1, false), &[0x77; 512], 0)?;
        let page = Page::new(front)?;
        let mut descs = page.proper();
        descs[2].0 = second - 100;
        offer(front, &descs, &[0]);
        ensure!(answered(front) && response(front, &page) == (0, 0), "not served");
        ensure!(front.driver.memory.bytes(second - 100, 512) == [0x77; 512], "the data is not there");
        Ok(())
    })?;
    scene.attack_with("into a hole", &options, |front| {
        clear_attentions(front, LUN)?;
        let page = Page::new(front)?;
        front.driver.memory.fill(page.gpa + RESPONSE, 108, 0xa5);
        let mut descs = page.proper();
        descs[2].0 = second + (1 << 20) - 100;
        offer(front, &descs, &[0]);
        let (status, code) = if answered(front) { response(front, &page) } else { (0xa5, 0xa5) };
        ensure!(closed_or(front, status, code), "a buffer in a hole was taken");
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_11_12_readable_after_writable_and_one_head_twice() -> Result<()> {
    let mut scene = Scene::new()?;
    refused(&mut scene, "readable after writable", |_, page| {
        vec![
            (page.gpa, 51, desc::NEXT, 1),
            (page.gpa + RESPONSE, 108, desc::NEXT | desc::WRITE, 2),
            (page.gpa + 0x1000, 512, 0, 0),
        ]
    })?;
    scene.attack("one head many times", |front| {
        clear_attentions(front, LUN)?;
        let page = Page::new(front)?;
        let descs = page.proper();
        offer(front, &descs, &[0; 64]);
        // Served one after the other, or the session ends: both are fine.
        let _ = answered(front);
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_13_a_second_cpu_changes_requests_while_they_are_processed() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("races", |front| {
        clear_attentions(front, LUN)?;
        let page = Page::new(front)?;
        let stop = AtomicBool::new(false);
        let memory = front.driver.memory.clone();
        let table = front.driver.queues[QUEUE].ring.addresses()[0];
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(|| {
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Length and address of the data descriptor, the CDB, the LUN.
                    memory.write(
                        table + 32,
                        &(if n >> 33 & 1 == 0 { page.gpa + 0x1000 } else { u64::MAX - n }).to_le_bytes(),
                    );
                    memory.write(table + 40, &((n >> 40) as u32 & 0x3ff).to_le_bytes());
                    memory.write(page.gpa + 19, &[(n >> 50) as u8]);
                    memory.write(page.gpa + 1, &[(n >> 62) as u8]);
                }
            });
            let end = Instant::now() + Duration::from_secs(1);
            while Instant::now() < end {
                offer(front, &page.proper(), &[0]);
                std::thread::sleep(Duration::from_micros(50));
            }
            stop.store(true, Ordering::Relaxed);
            Ok(())
        })
    })?;
    scene.no_files_left()
}

#[test]
fn threat_14_data_laid_over_the_rings_and_the_response() -> Result<()> {
    let mut scene = Scene::new()?;
    for which in 0..3 {
        scene.attack(&format!("over ring part {which}"), |front| {
            clear_attentions(front, LUN)?;
            let page = Page::new(front)?;
            let mut descs = page.proper();
            descs[2].0 = front.driver.queues[QUEUE].ring.addresses()[which];
            offer(front, &descs, &[0]);
            let _ = answered(front);
            front.driver.queues[QUEUE].kick();
            Ok(())
        })?;
    }
    scene.attack("over the response", |front| {
        clear_attentions(front, LUN)?;
        let page = Page::new(front)?;
        let mut descs = page.proper();
        descs[2].0 = descs[1].0;
        offer(front, &descs, &[0]);
        ensure!(answered(front), "no answer");
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_15_20_34_rings_outside_memory_unaligned_and_of_odd_sizes() -> Result<()> {
    let mut scene = Scene::new()?;
    let config = |front: &FrontEnd, change: &dyn Fn(&mut vhost::VringConfigData)| {
        let ring = &front.driver.queues[QUEUE].ring;
        let [desc, avail, used] = ring.addresses().map(|gpa| front.driver.memory.user(gpa));
        let mut config = vhost::VringConfigData {
            queue_max_size: 128,
            queue_size: 128,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        change(&mut config);
        config
    };
    let end = |front: &FrontEnd| {
        let last = front.driver.memory.regions().last().copied();
        last.map_or(0, |region| region.user + region.len)
    };
    type Change = fn(&mut vhost::VringConfigData, u64);
    let changes: [(&str, Change); 7] = [
        ("the table is nowhere", |c, _| c.desc_table_addr = 0x1000),
        ("the table crosses the end", |c, end| c.desc_table_addr = end - 64),
        ("the used ring crosses the end", |c, end| c.used_ring_addr = end - 8),
        ("the available ring wraps", |c, _| c.avail_ring_addr = u64::MAX - 1),
        ("an unaligned table", |c, _| c.desc_table_addr += 8),
        ("an unaligned available ring", |c, _| c.avail_ring_addr += 1),
        ("an unaligned used ring", |c, _| c.used_ring_addr += 2),
    ];
    for (what, change) in changes {
        scene.attack(what, |front| {
            front.stop_queue(QUEUE)?;
            let end = end(front);
            let config = config(front, &|c| change(c, end));
            // Refused at once or when the queue starts: never served.
            let refused = front.session.set_vring_addr(QUEUE, &config).is_err()
                || front.session.set_vring_base(QUEUE, 0).is_err()
                || kick_fd(front).is_err();
            if !refused {
                front.submit(QUEUE, &Command::new(LUN, &cdb::TEST_UNIT_READY, &[], 0));
                ensure!(!answered(front), "served");
            }
            Ok(())
        })?;
    }
    for size in [0u16, 3, 127, 0x8001, 0xffff] {
        scene.attack(&format!("a queue of {size}"), |front| {
            front.stop_queue(QUEUE)?;
            let refused = front.session.set_vring_num(QUEUE, size).is_err() || front.start_queue_as_is(QUEUE).is_err();
            ensure!(refused || closed(front), "a queue of {size} was taken");
            Ok(())
        })?;
    }
    scene.no_files_left()
}

fn kick_fd(front: &mut FrontEnd) -> Result<()> {
    front.start_queue_as_is(QUEUE)
}

#[test]
fn threat_16_17_nonsense_in_used_event_and_storms_of_kicks() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("used_event and NO_INTERRUPT", |front| {
        clear_attentions(front, LUN)?;
        let avail = front.driver.queues[QUEUE].ring.addresses()[1];
        for n in 0..500u16 {
            front.driver.memory.store_u16(avail + 4 + 2 * 128, n.wrapping_mul(40503));
            front.driver.memory.store_u16(avail, n & 1);
            let ticket = front.submit(QUEUE, &Command::new(LUN, &cdb::TEST_UNIT_READY, &[], 0));
            ensure!(ticket.is_some() && answered(front), "request {n} was not answered");
            let _: Option<(u64, Response)> = front.poll(QUEUE)?;
        }
        Ok(())
    })?;
    scene.attack("a storm of kicks", |front| {
        clear_attentions(front, LUN)?;
        for _ in 0..200_000 {
            front.driver.queues[QUEUE].kick();
        }
        front.good(LUN, &cdb::read10(0, 1), &[], 512)?;
        Ok(())
    })?;
    scene.attack("a call descriptor that is full", |front| {
        clear_attentions(front, LUN)?;
        let _ = front.driver.queues[QUEUE].interrupts();
        let full = (u64::MAX - 1).to_ne_bytes();
        rustix::io::write(&*front.driver.queues[QUEUE].call, &full)?;
        for _ in 0..50 {
            front.submit(QUEUE, &Command::new(LUN, &cdb::TEST_UNIT_READY, &[], 0));
        }
        ensure!(answered(front), "not served");
        Ok(())
    })?;
    scene.no_files_left()
}

#[test]
fn threat_18_19_21_reset_and_stop_with_requests_in_flight() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("stop with requests in flight, many times", |front| {
        clear_attentions(front, LUN)?;
        for _ in 0..50 {
            for at in 0..20 {
                let read = cdb::read10(at * 8, 8);
                front.submit(QUEUE, &Command::new(LUN, &read, &[], 4096));
            }
            front.stop_queue(QUEUE)?;
            // The firmware's driver goes, the kernel's begins anew: other rings, index 0, and old memory is left alone.
            let used = front.driver.queues[QUEUE].ring.addresses()[2];
            front.driver.reset_queue(QUEUE, 0);
            std::thread::sleep(Duration::from_millis(1));
            ensure!(front.driver.memory.load_u16(used + 2) == 0, "the ring was written to after the stop");
            front.start_queue(QUEUE, 0)?;
            front.good(LUN, &cdb::read10(0, 1), &[], 512)?;
        }
        Ok(())
    })?;
    scene.attack("ring addresses changed while running", |front| {
        clear_attentions(front, LUN)?;
        for at in 0..20 {
            let read = cdb::read10(at * 8, 8);
            front.submit(QUEUE, &Command::new(LUN, &read, &[], 4096));
        }
        // Refused, or the queue is moved in good order: either way nobody is hurt.
        let _ = front.start_queue(QUEUE, 0);
        Ok(())
    })?;
    scene.no_files_left()
}
