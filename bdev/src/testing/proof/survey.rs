//! Reads a pool for the oracle.

use std::collections::BTreeMap;

use super::Subject;
use crate::testing::expect::{Id, Survivors};
use crate::testing::floor::LaneId;
use crate::testing::stamp::SECTOR;

/// Sectors that are read at once.
const PIECE: u64 = 128;

pub(super) struct Survey<'a, S> {
    pub(super) subject: &'a mut S,
    sizes: BTreeMap<Id, u64>,
    lanes: BTreeMap<Id, LaneId>,
    /// What was read last.
    piece: Option<(Id, u64, Vec<u8>)>,
    /// A read has failed.
    pub(super) failed: Option<String>,
}

impl<'a, S: Subject> Survey<'a, S> {
    pub(super) fn new(subject: &'a mut S) -> Self {
        Survey { subject, sizes: BTreeMap::new(), lanes: BTreeMap::new(), piece: None, failed: None }
    }

    /// Closes what was opened.
    pub(super) fn close(self) -> Option<String> {
        for lane in self.lanes.values() {
            self.subject.floor().close(*lane);
        }
        self.failed
    }

    fn read_piece(&mut self, id: Id, nth: u64) -> Vec<u8> {
        let lane = *self.lanes.entry(id).or_insert_with(|| self.subject.lane(id, 0));
        let sectors = PIECE.min(self.sizes[&id] - nth * PIECE);
        let bytes = SECTOR as u64;
        match self.subject.floor().read(lane, nth * PIECE * bytes, sectors * bytes) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.failed.get_or_insert(format!("{id:?} cannot be read at piece {nth}: {error}"));
                vec![0; sectors as usize * SECTOR]
            }
        }
    }
}

impl<S: Subject> Survivors for Survey<'_, S> {
    fn volumes(&mut self) -> Vec<(Id, u64)> {
        let volumes = self.subject.volumes();
        self.sizes = volumes.iter().copied().collect();
        volumes
    }

    fn read(&mut self, volume: Id, sector: u64) -> [u8; SECTOR] {
        let nth = sector / PIECE;
        if self.piece.as_ref().is_none_or(|piece| (piece.0, piece.1) != (volume, nth)) {
            let bytes = self.read_piece(volume, nth);
            self.piece = Some((volume, nth, bytes));
        }
        let mut held = [0; SECTOR];
        if let Some((_, _, bytes)) = &self.piece {
            held.copy_from_slice(&bytes[(sector % PIECE) as usize * SECTOR..][..SECTOR]);
        }
        held
    }
}
