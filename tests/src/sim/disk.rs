//! A simulated medium with a volatile write cache.
//!
//! Two images: what reads see (`visible`) and what survives (`durable`). Between them stands the list of changes that
//! are not synced yet. Every change has a sequence number; each durable sector remembers the number of the change it
//! holds, so that a change which was made durable on its own (dsync) is never overwritten by an older one later.
//! [`SimDisk::crash`] keeps, drops or tears (sector by sector) each change that was not synced; an atomic one it never
//! tears.

use pollux_core::Extent;

use crate::rng::Rng;

/// What a medium writes at once.
pub const SECTOR: usize = 512;

/// A point in the order of changes: everything before it had completed at that moment.
pub type Mark = u64;

#[derive(Clone, Debug)]
enum What {
    Data(Vec<u8>),
    Zero(u64),
}

#[derive(Clone, Debug)]
struct Change {
    seq: u64,
    offset: u64,
    what: What,
    /// Survives as a whole or not at all.
    atomic: bool,
    /// A failed sync has reported it lost: no later sync makes it durable (as Linux marks such pages clean).
    lost: bool,
}

impl Change {
    fn len(&self) -> u64 {
        match &self.what {
            What::Data(bytes) => bytes.len() as u64,
            What::Zero(len) => *len,
        }
    }

    /// Puts sector `index` of the change (counted from its start) to where it belongs.
    fn put(&self, index: usize, image: &mut [u8]) {
        let at = self.offset as usize + index * SECTOR;
        let len = SECTOR.min(self.len() as usize - index * SECTOR);
        match &self.what {
            What::Data(bytes) => image[at..at + len].copy_from_slice(&bytes[index * SECTOR..index * SECTOR + len]),
            What::Zero(_) => image[at..at + len].fill(0),
        }
    }

    fn sectors(&self) -> usize {
        (self.len() as usize).div_ceil(SECTOR)
    }
}

/// A file or disk of the simulated world.
#[derive(Clone, Debug)]
pub struct SimDisk {
    visible: Vec<u8>,
    durable: Vec<u8>,
    holds: Vec<u64>,
    mapped: Vec<bool>,
    cache: Vec<Change>,
    next_seq: u64,
}

impl SimDisk {
    /// A disk of `bytes` zeroes without space behind them.
    ///
    /// # Panics
    /// If `bytes` is no multiple of the sector size.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        assert_eq!(bytes % SECTOR as u64, 0, "a disk has whole sectors");
        let sectors = bytes as usize / SECTOR;
        SimDisk {
            visible: vec![0; bytes as usize],
            durable: vec![0; bytes as usize],
            holds: vec![0; sectors],
            mapped: vec![false; sectors],
            cache: Vec::new(),
            next_seq: 1,
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.visible.len() as u64
    }

    /// What reads see now.
    #[must_use]
    pub fn visible(&self) -> &[u8] {
        &self.visible
    }

    /// What would survive if every change that is not synced were lost.
    #[must_use]
    pub fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// Bytes with space behind them.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.mapped.iter().filter(|m| **m).count() as u64 * SECTOR as u64
    }

    /// How far from `offset` on, for at most `len` bytes, there is space behind each sector, or behind none.
    ///
    /// # Panics
    /// If the range is empty or not made of sectors of the disk.
    #[must_use]
    pub fn extent(&self, offset: u64, len: u64) -> Extent {
        let (from, to) = (offset as usize / SECTOR, (offset + len) as usize / SECTOR);
        let mapped = self.mapped[from];
        let count = self.mapped[from..to].iter().take_while(|of| **of == mapped).count();
        Extent { len: (count * SECTOR) as u64, mapped }
    }

    /// How many changes are not durable.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.cache.len()
    }

    /// The point in the order of changes that a sync submitted now has to cover.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.next_seq
    }

    /// Bytes at `offset`, fewer at the end of the disk.
    #[must_use]
    pub fn read(&self, offset: u64, len: usize) -> &[u8] {
        let from = (offset as usize).min(self.visible.len());
        let to = from.saturating_add(len).min(self.visible.len());
        &self.visible[from..to]
    }

    /// Writes; durable at once if `dsync`. Returns how many bytes fitted.
    pub fn write(&mut self, offset: u64, bytes: &[u8], dsync: bool) -> usize {
        let len = bytes.len().min((self.bytes().saturating_sub(offset)) as usize);
        self.change(offset, What::Data(bytes[..len].to_vec()), false, dsync);
        len
    }

    /// Writes as a whole or not at all, whatever happens.
    pub fn write_atomic(&mut self, offset: u64, bytes: &[u8], dsync: bool) {
        self.change(offset, What::Data(bytes.to_vec()), true, dsync);
    }

    /// Zeroes a range (cut at the end of the disk); `unmap`: gives its space back.
    pub fn zero(&mut self, offset: u64, len: u64, unmap: bool) {
        let len = len.min(self.bytes().saturating_sub(offset));
        self.change(offset, What::Zero(len), false, false);
        if unmap {
            let (from, to) = ((offset as usize).div_ceil(SECTOR), (offset + len) as usize / SECTOR);
            if from < to {
                self.mapped[from..to].fill(false);
            }
        }
    }

    fn change(&mut self, offset: u64, what: What, atomic: bool, dsync: bool) {
        let change = Change { seq: self.next_seq, offset, what, atomic, lost: false };
        if change.len() == 0 {
            return;
        }
        self.next_seq += 1;
        let first = offset as usize / SECTOR;
        for index in 0..change.sectors() {
            change.put(index, &mut self.visible);
            self.mapped[first + index] = true;
        }
        if dsync {
            self.settle(&change);
        } else {
            self.cache.push(change);
        }
    }

    /// Makes one change durable where nothing newer is.
    fn settle(&mut self, change: &Change) {
        let first = change.offset as usize / SECTOR;
        for index in 0..change.sectors() {
            if self.holds[first + index] < change.seq {
                self.holds[first + index] = change.seq;
                change.put(index, &mut self.durable);
            }
        }
    }

    /// Makes every change before `mark` durable, and by chance some after it.
    pub fn sync(&mut self, mark: Mark, rng: &mut Rng) {
        let mut keep = Vec::new();
        for change in std::mem::take(&mut self.cache) {
            if !change.lost && (change.seq < mark || rng.chance(1, 4)) {
                self.settle(&change);
            } else {
                keep.push(change);
            }
        }
        self.cache = keep;
    }

    /// What a failed sync leaves: the changes before `mark` are still seen by reads, but no later sync saves them.
    pub fn fail_sync(&mut self, mark: Mark) {
        self.cache.iter_mut().filter(|c| c.seq < mark).for_each(|c| c.lost = true);
    }

    /// Power off and on: each change that was not synced is kept, lost or torn. `in_flight` are writes that were under
    /// way, and whether they are atomic. Afterwards nothing is volatile.
    pub fn crash(&mut self, in_flight: &[(u64, Vec<u8>, bool)], rng: &mut Rng) {
        for (offset, bytes, atomic) in in_flight {
            if *atomic {
                self.write_atomic(*offset, bytes, false);
            } else {
                self.write(*offset, bytes, false);
            }
        }
        for change in std::mem::take(&mut self.cache) {
            let first = change.offset as usize / SECTOR;
            let fate = rng.below(if change.atomic { 2 } else { 3 });
            for index in 0..change.sectors() {
                let survives = match fate {
                    0 => false,
                    1 => true,
                    _ => rng.chance(1, 2),
                };
                if survives && self.holds[first + index] < change.seq {
                    self.holds[first + index] = change.seq;
                    change.put(index, &mut self.durable);
                }
            }
        }
        self.visible.copy_from_slice(&self.durable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    #[test]
    fn a_synced_write_survives_every_crash_and_an_unsynced_one_only_some() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = SimDisk::new(1 << 16);
            disk.write(0, &[1; 4096], false);
            let mark = disk.mark();
            disk.sync(mark, &mut rng);
            disk.write(4096, &[2; 4096], false);
            disk.crash(&[], &mut rng);
            assert_eq!(disk.visible()[..4096], [1; 4096]);
            match disk.visible()[4096..8192].iter().filter(|b| **b == 2).count() {
                0 => lost += 1,
                4096 => kept += 1,
                part => {
                    assert_eq!(part % SECTOR, 0, "a sector is never torn");
                    torn += 1;
                }
            }
        }
        assert!(kept > 0 && lost > 0 && torn > 0, "kept {kept} lost {lost} torn {torn}");
    }

    #[test]
    fn a_dsync_write_is_not_undone_by_an_older_one_that_lands_later() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut disk = SimDisk::new(4096);
            disk.write(0, &[1; 1024], false);
            disk.write(0, &[2; 512], true);
            assert_eq!(disk.durable()[..512], [2; 512]);
            disk.crash(&[], &mut rng);
            assert_eq!(disk.visible()[..512], [2; 512]);
        }
    }

    #[test]
    fn a_sync_covers_what_completed_before_it_was_submitted() {
        let mut early = 0;
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut disk = SimDisk::new(4096);
            disk.write(0, &[1; 512], false);
            let mark = disk.mark();
            disk.write(512, &[2; 512], false);
            disk.sync(mark, &mut rng);
            assert_eq!(disk.durable()[0], 1);
            early += usize::from(disk.durable()[512] == 2);
        }
        assert!(early > 0 && early < 50, "what came after it may or may not be covered: {early}");
    }

    #[test]
    fn what_a_failed_sync_lost_no_later_sync_saves() {
        let mut rng = Rng::new(3);
        let mut disk = SimDisk::new(4096);
        disk.write(0, &[1; 512], false);
        disk.fail_sync(disk.mark());
        disk.sync(ALL, &mut rng);
        assert_eq!((disk.visible()[0], disk.durable()[0], disk.unsynced()), (1, 0, 1));
    }

    #[test]
    fn punching_gives_space_back_and_reads_zero() {
        let mut disk = SimDisk::new(8192);
        disk.write(0, &[1; 4096], false);
        assert_eq!(disk.allocated(), 4096);
        disk.zero(1024, 1024, true);
        assert_eq!(disk.allocated(), 3072);
        assert_eq!(disk.read(1000, 48)[24..], [0; 24]);
        assert_eq!(disk.read(8000, 500).len(), 192);
    }
}
