//! GET LBA STATUS (SBC-4, clause 5.4): what is mapped, as far as the device knows.
//!
//! A device that can say it at once is asked on the spot; for one that has to wait for that, a [`Survey`] goes to
//! somebody who may wait.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pollux_core::Extent;

use crate::commands::Call;
use crate::data_in::DataIn;
use crate::geometry::Flags;
use crate::{Action, Inventory, Medium, Sense};

/// Descriptors in one answer; an initiator that wants more asks again from where it ends.
const DESCRIPTORS: usize = 256;
const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;
/// Bytes that are looked at for one answer on the spot, if looking is slow enough for devices to do it piece by piece.
const LOOK_LEN: u64 = 1 << 20;
/// Looks that a survey takes: as many as descriptors need, and some for runs that are found in pieces.
const LOOKS: usize = 4 * DESCRIPTORS;

/// What is to be told: about the bytes from `at` to `end`, as far as so many descriptors go.
#[derive(Clone, Copy, Debug)]
struct Range {
    at: u64,
    end: u64,
    block: u64,
    descriptors: usize,
}

/// GET LBA STATUS on a device that may wait before it answers.
pub struct Survey {
    medium: Arc<dyn Medium>,
    range: Range,
    allocation_length: usize,
}

impl Survey {
    /// Finds out; returns the data-in. Ends early, with anything, when `stop` is set. May wait: not for reactors.
    #[must_use]
    pub fn run(&self, stop: &AtomicBool) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN + DESCRIPTORS * DESCRIPTOR_LEN];
        let mut data = DataIn::new(&mut bytes);
        let mut looks = 0;
        describe(self.range, &mut data, |at, len| {
            looks += 1;
            let go_on = looks <= LOOKS && !stop.load(Ordering::Relaxed);
            go_on.then(|| self.medium.extent(at, len))
        });
        let len = data.len().min(self.allocation_length);
        bytes.truncate(len);
        bytes
    }

    /// The most bytes of data-in that it can have.
    #[must_use]
    pub fn data_len_max(&self) -> usize {
        (HEADER_LEN + self.range.descriptors * DESCRIPTOR_LEN).min(self.allocation_length)
    }
}

impl fmt::Debug for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Survey").field("range", &self.range).finish_non_exhaustive()
    }
}

/// The command. The answer begins with the block that was asked for, and has at least one descriptor.
pub(crate) fn get(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let (lba, allocation_length) = (call.cdb.be64(2), call.cdb.be32(10) as usize);
    let blocks = call.geometry.blocks();
    if lba >= blocks {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    let block = u64::from(call.geometry.block_size());
    let fit = allocation_length.saturating_sub(HEADER_LEN) / DESCRIPTOR_LEN;
    let range = Range { at: lba * block, end: blocks * block, block, descriptors: fit.clamp(1, DESCRIPTORS) };
    // Where nothing is ever deallocated, all is mapped (SBC-4, clause 4.7.1).
    let medium = call.unit.medium().filter(|_| call.geometry.has(Flags::DISCARDS));
    match medium {
        Some(medium) if medium.extent_waits() => {
            return Ok(Action::Survey(Box::new(Survey { medium, range, allocation_length })));
        }
        Some(medium) => {
            let enough = range.at.saturating_add(LOOK_LEN);
            describe(range, &mut call.data, |at, len| (at < enough).then(|| medium.extent(at, len)));
        }
        None => describe(range, &mut call.data, |_, len| Some(Extent::mapped(len))),
    }
    Ok(call.data.answer(allocation_length))
}

/// Puts the whole answer. `extent` says how far the front of a range is all of one kind, or that it was looked at enough;
/// it does not say that the first time.
fn describe(range: Range, data: &mut DataIn<'_>, mut extent: impl FnMut(u64, u64) -> Option<Extent>) {
    let Range { mut at, end, block, descriptors } = range;
    data.put(&[0; HEADER_LEN]);
    let mut count = 0;
    let mut open: Option<(u64, Extent)> = None;
    while at < end
        && count < descriptors
        && let Some(next) = extent(at, end - at)
    {
        let len = next.len.clamp(block, end - at);
        open = match open {
            Some((start, run)) if run.mapped == next.mapped => Some((start, Extent { len: run.len + len, ..run })),
            other => {
                count += put(other, block, data);
                Some((at, Extent { len, ..next }))
            }
        };
        at += len;
    }
    if count < descriptors {
        put(open, block, data);
    }
    let len = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
    data.set(0, &len.to_be_bytes());
}

/// Puts an LBA status descriptor; how many that were.
fn put(run: Option<(u64, Extent)>, block: u64, data: &mut DataIn<'_>) -> usize {
    const MAPPED: u8 = 0;
    const DEALLOCATED: u8 = 1;
    let Some((start, Extent { len, mapped })) = run else { return 0 };
    // What is longer than the field can say goes on behind the answer.
    let count = u32::try_from(len / block).unwrap_or(u32::MAX);
    data.put(&(start / block).to_be_bytes());
    data.put(&count.to_be_bytes());
    data.put(&[if mapped { MAPPED } else { DEALLOCATED }, 0, 0, 0]);
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, shape};
    use crate::{Medium, Transfers};
    use pollux_core::Shape;
    use std::sync::Arc;

    /// Blocks of 512 bytes from these numbers on are mapped and unmapped by turns; looked at in pieces of 4 KiB.
    #[derive(Debug, Default)]
    struct Turns {
        turns: Vec<u64>,
        waits: bool,
    }

    impl Turns {
        fn new(turns: Vec<u64>) -> Arc<Turns> {
            Arc::new(Turns { turns, waits: false })
        }
    }

    impl Medium for Turns {
        fn transfers(&self) -> Transfers {
            Transfers::default()
        }

        fn extent(&self, offset: u64, len: u64) -> Extent {
            let lba = offset / 512;
            let turns = self.turns.iter().filter(|turn| **turn <= lba).count();
            let until = self.turns.get(turns).map_or(u64::MAX, |turn| (turn - lba) * 512);
            Extent { len: len.min(until).min(4096), mapped: turns % 2 == 0 }
        }

        fn extent_waits(&self) -> bool {
            self.waits
        }
    }

    fn cdb(lba: u64, len: u32) -> [u8; 16] {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (0x9E, 0x12);
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&len.to_be_bytes());
        cdb
    }

    fn status(bench: &mut Bench, lba: u64) -> Vec<(u64, u32, u8)> {
        let data = bench.data(&cdb(lba, 65536));
        assert_eq!(data[..8], [&(data.len() as u32 - 4).to_be_bytes()[..], &[0; 4]].concat());
        let descriptors = data[8..].chunks(16).map(|bytes| {
            let lba = u64::from_be_bytes(bytes[..8].try_into().unwrap());
            assert_eq!(bytes[13..], [0; 3]);
            (lba, u32::from_be_bytes(bytes[8..12].try_into().unwrap()), bytes[12])
        });
        descriptors.collect()
    }

    #[test]
    fn without_knowledge_all_is_mapped() {
        let mut bench = Bench::new();
        let mut want = vec![0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0x0F, 0xFB, 0, 0, 0, 0];
        assert_eq!(bench.data(&cdb(5, 24)), want);
        want.truncate(9);
        assert_eq!(bench.data(&cdb(5, 9)), want);
    }

    #[test]
    fn runs_of_one_kind_are_one_descriptor() {
        let mut bench = Bench::new();
        bench.unit.set_medium(Turns::new(vec![3, 20, 21]));
        assert_eq!(status(&mut bench, 0)[..3], [(0, 3, 0), (3, 17, 1), (20, 1, 0)]);
        assert_eq!(status(&mut bench, 10)[0], (10, 10, 1));
        let last = *status(&mut bench, 0).last().unwrap();
        assert_eq!(last, (21, 2032, 1), "as far as was looked");
        assert_eq!(status(&mut bench, 4090), [(4090, 6, 1)]);
    }

    #[test]
    fn the_number_of_descriptors_is_bounded() {
        let mut bench = Bench::new();
        bench.unit.set_medium(Turns::new((1..4096).collect()));
        let runs = status(&mut bench, 0);
        assert_eq!((runs.len(), runs[255]), (256, (255, 1, 1)));
    }

    #[test]
    fn the_end_of_the_disk() {
        let mut bench = Bench::new();
        for lba in [4096, 4097, u64::MAX] {
            assert_eq!(bench.sense(&cdb(lba, 24)), Sense::LBA_OUT_OF_RANGE);
        }
        assert_eq!(status(&mut bench, 4095), [(4095, 1, 0)]);
        let mut large = Bench::with(Some(Shape { num_blocks: 1 << 40, ..shape() }));
        assert_eq!(status(&mut large, 7), [(7, u32::MAX, 0)]);
        let mut report_type = cdb(0, 24);
        report_type[14] = 1;
        assert_eq!(bench.sense(&report_type), Sense::invalid_field(14, Some(0)));
    }

    #[test]
    fn not_more_descriptors_than_there_is_room_for() {
        let mut bench = Bench::new();
        bench.unit.set_medium(Turns::new((1..4096).collect()));
        let lens = [0, 8, 23, 24, 39, 40, 41, 4096 + 8, u32::MAX].map(|len| bench.data(&cdb(0, len)).len());
        assert_eq!(lens, [0, 8, 23, 24, 24, 40, 40, 4104, 4104]);
    }

    #[test]
    fn a_device_that_may_wait_is_surveyed() {
        let mut bench = Bench::new();
        let turns: Vec<u64> = vec![3, 20, 21];
        bench.unit.set_medium(Turns::new(turns.clone()));
        let want = bench.data(&cdb(2, 56));
        bench.unit.set_medium(Arc::new(Turns { turns, waits: true }));
        let mut survey = |lba, len| match bench.execute(&cdb(lba, len)) {
            Action::Survey(survey) => (survey.data_len_max(), survey.run(&AtomicBool::new(false))),
            other => panic!("{other:?}"),
        };
        assert_eq!(survey(2, 56), (56, want));
        // It goes on to the end of the disk, where one that is made on the spot would not.
        let (most, all) = survey(0, 65536);
        assert_eq!((most, all.len()), (4104, 8 + 4 * 16));
        assert_eq!(all[8 + 3 * 16..8 + 3 * 16 + 12], [0, 0, 0, 0, 0, 0, 0, 21, 0, 0, 0x0F, 0xEB]);
        assert_eq!(survey(0, 9).1.len(), 9);
        assert_eq!(bench.sense(&cdb(4096, 24)), Sense::LBA_OUT_OF_RANGE);
    }

    #[test]
    fn a_survey_that_is_not_wanted_any_more_ends() {
        let mut bench = Bench::new();
        bench.unit.set_medium(Arc::new(Turns { waits: true, ..Turns::default() }));
        let Action::Survey(survey) = bench.execute(&cdb(0, 24)) else { panic!("it has to wait") };
        assert_eq!(survey.run(&AtomicBool::new(true)), [0, 0, 0, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn where_nothing_is_given_back_all_is_mapped() {
        let mut bench = Bench::with(Some(Shape { discard: None, ..shape() }));
        bench.unit.set_medium(Arc::new(Turns { turns: vec![3], waits: true }));
        assert_eq!(status(&mut bench, 0), [(0, 4096, 0)]);
    }
}
