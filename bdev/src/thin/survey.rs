//! What of a volume is there, and what has changed since a snapshot of it: the map as a service, for backups.
//!
//! For threads that may wait: a part of a map that is not in memory is loaded, and those behind it meanwhile. A call ends
//! after a while with what it has, and says where to go on; parts of a map where nothing is are passed over as a whole.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::PoolError;
use super::format::{ENTRIES_PER_PAGE, Entry};
use super::origin::covered;
use super::pool::ThinVolume;
use super::shared::{CLOSED, Chain, LayerMap, Miss, Place, Reader, Shared, Stay};

/// Clusters that are looked at before the engine may take something out of the maps again.
const AT_ONCE: u64 = 4096;
/// How long a thread sleeps that waits for a part of a map.
const NAP: Duration = Duration::from_micros(200);
/// Leaves of a layer that are asked for beyond one that is waited for.
const AHEAD: u64 = 32;
/// How long a call goes on when it has got anywhere.
const TURN: Duration = Duration::from_millis(200);
/// How long it waits when it does not.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// It was written.
    Data,
    /// It is zero, whatever was there before.
    Zero,
}

/// A range of a volume that is all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapExtent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// What it is.
    pub kind: ExtentKind,
}

/// A part of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// In order; what lies between them is not listed because there is nothing to say of it.
    pub extents: Vec<MapExtent>,
    /// Where to go on; `None`: that was all.
    pub next_offset: Option<u64>,
}

impl ThinVolume {
    /// What was written, from `offset` on, at most so many extents, and what the bdev has that the volume stands on, all of
    /// which counts as data. All else reads as zeroes.
    ///
    /// # Errors
    /// If a part of the map is damaged, or does not come.
    pub fn allocated(&self, offset: u64, most: usize) -> Result<Survey, PoolError> {
        self.survey(Layers::All, offset, most)
    }

    /// What has changed since a snapshot that the volume stands on: what is not listed is as it was.
    ///
    /// # Errors
    /// If it does not stand on it, or a part of the map is damaged, or does not come.
    pub fn delta(&self, since: &ThinVolume, offset: u64, most: usize) -> Result<Survey, PoolError> {
        self.survey(Layers::Since(since), offset, most)
    }

    /// What was written in the pool, and what is zero there: without the bdev that the volume may stand on.
    ///
    /// # Errors
    /// If a part of the map is damaged, or does not come.
    pub fn written(&self, offset: u64, most: usize) -> Result<Survey, PoolError> {
        self.survey(Layers::Written, offset, most)
    }

    /// What was written to it itself, and not to what it stands on.
    ///
    /// # Errors
    /// If a part of the map is damaged, or does not come.
    pub fn own(&self, offset: u64, most: usize) -> Result<Survey, PoolError> {
        self.survey(Layers::Own, offset, most)
    }

    fn survey(&self, layers: Layers<'_>, offset: u64, most: usize) -> Result<Survey, PoolError> {
        let reader = self.shared.reader();
        if !self.shared.enter(&self.volume, &reader) {
            return Err(PoolError::Closed);
        }
        let mut surveyor = Surveyor { volume: self, reader, extents: Vec::new(), most: most.max(1) };
        let result = surveyor.run(layers, offset);
        self.shared.leave(&self.volume, &surveyor.reader);
        result.map(|next_offset| Survey { extents: surveyor.extents, next_offset })
    }
}

/// Which layers of a volume are looked at.
#[derive(Clone, Copy)]
enum Layers<'a> {
    All,
    /// All that there are, without the bdev below them.
    Written,
    /// The first one.
    Own,
    /// Those above a snapshot.
    Since(&'a ThinVolume),
}

struct Surveyor<'a> {
    volume: &'a ThinVolume,
    reader: Arc<Reader>,
    extents: Vec<MapExtent>,
    most: usize,
}

impl Surveyor<'_> {
    /// Returns where to go on.
    fn run(&mut self, of: Layers<'_>, offset: u64) -> Result<Option<u64>, PoolError> {
        let shared = &self.volume.shared;
        let shift = shared.cluster_shift;
        let mut stay = Stay::new();
        let first = offset >> shift;
        let (mut at, began) = (first, Instant::now());
        loop {
            let (epoch, word) = stay.begin(&self.reader, &shared.epoch, self.volume.volume.word());
            stay.go_by(&self.reader, word);
            let looked = if word & CLOSED == 0 { self.look(of, offset, &mut at) } else { Err(Stop::Wait) };
            stay.end(&self.reader, epoch);
            match looked {
                Ok(More::Some) => {}
                Ok(More::None) => return Ok(None),
                Ok(More::From(offset)) => return Ok(Some(offset)),
                Err(Stop::Wait) => thread::sleep(NAP),
                Err(Stop::Error(error)) => return Err(error),
            }
            let here = at << shift;
            if at > first && began.elapsed() > TURN && here < self.volume.volume.chain().bytes {
                return Ok(Some(here));
            }
            if began.elapsed() > PATIENCE {
                return Err(PoolError::TimedOut { seconds: PATIENCE.as_secs(), begun: false });
            }
        }
    }

    /// The next clusters.
    fn look(&mut self, of: Layers<'_>, offset: u64, at: &mut u64) -> Result<More, Stop> {
        let shared = &self.volume.shared;
        let chain = self.volume.volume.chain();
        let layers = match of {
            Layers::All => &chain.layers[..],
            Layers::Written => &chain.layers[..],
            Layers::Own => &chain.layers[..1],
            Layers::Since(since) => {
                let below = since.volume.chain().head().id;
                let depth = chain.layers.iter().position(|layer| layer.id == below);
                let what = "does not stand on that snapshot";
                let unfit = || PoolError::Unfit { name: self.volume.volume.uuid.to_string(), what };
                &chain.layers[..depth.ok_or_else(|| Stop::Error(unfit()))?]
            }
        };
        let clusters = chain.bytes.div_ceil(1 << shared.cluster_shift);
        for _ in 0..AT_ONCE {
            if *at >= clusters {
                return Ok(More::None);
            }
            let leaf = Shared::slot(*at).0;
            let end = (leaf + 1) * ENTRIES_PER_PAGE as u64;
            let is_empty = |layer: &Arc<LayerMap>| *at >= layer.clusters() || layer.place(leaf) == Place::Empty;
            // Where a layer sees no more of the snapshot there is something to say although nothing is there.
            let is_cut_off = matches!(of, Layers::Since(_)) && chain.seen(end - 1, 0).len() <= layers.len();
            let is_origins = matches!(of, Layers::All) && chain.origin_end(*at) > *at << shared.cluster_shift;
            if !is_cut_off && !is_origins && layers.iter().all(is_empty) {
                *at = end;
                continue;
            }
            let (mut data, mut zero) =
                self.masks(&chain, layers, *at).inspect_err(|stop| self.ask_ahead(stop, layers, leaf))?;
            match of {
                Layers::All => {
                    data |= !zero & covered(shared, *at, chain.origin_end(*at));
                    zero = 0;
                }
                Layers::Written | Layers::Own => {}
                // Whatever the snapshot has there is not seen.
                Layers::Since(_) if chain.seen(*at, 0).len() <= layers.len() => zero = !data,
                Layers::Since(_) => {}
            }
            if let Some(end) = self.list(*at, data, zero, offset, chain.bytes) {
                return Ok(More::From(end));
            }
            *at += 1;
        }
        Ok(More::Some)
    }

    /// Who waits for one leaf will want those behind it.
    fn ask_ahead(&self, stop: &Stop, layers: &[Arc<LayerMap>], leaf: u64) {
        if !matches!(stop, Stop::Wait) {
            return;
        }
        for layer in layers {
            let end = layer.clusters().div_ceil(ENTRIES_PER_PAGE as u64).min(leaf + AHEAD);
            if (leaf..end).any(|leaf| !self.volume.shared.want(layer, leaf)) {
                // There is no room to ask for more.
                return;
            }
        }
    }

    /// The sub-blocks of a cluster that the first layers have, and those that they call zero.
    fn masks(&self, chain: &Chain, layers: &[Arc<LayerMap>], cluster: u64) -> Result<(u16, u16), Stop> {
        let (mut data, mut zero) = (0, 0);
        let seen = chain.seen(cluster, 0).len();
        for layer in &layers[..seen.min(layers.len())] {
            let entry: Entry = self.volume.shared.entry(layer, cluster).map_err(|miss| match miss {
                Miss::Wait | Miss::Space => Stop::Wait,
                Miss::Lost | Miss::Apart => Stop::Error(PoolError::Unfit {
                    name: self.volume.volume.uuid.to_string(),
                    what: "has a map that is damaged: see pollux pool check",
                }),
            })?;
            data |= entry.here() & !zero;
            zero |= entry.zero() & !data;
        }
        Ok((data, zero))
    }

    /// Lists what a cluster has; where it ends if there was no room.
    fn list(&mut self, cluster: u64, data: u16, zero: u16, from: u64, bytes: u64) -> Option<u64> {
        let shared = &self.volume.shared;
        for sub in 0..16u64 {
            let kind = match (data >> sub & 1, zero >> sub & 1) {
                (1, _) => ExtentKind::Data,
                (_, 1) => ExtentKind::Zero,
                _ => continue,
            };
            let start = (cluster << shared.cluster_shift) + (sub << shared.sub_shift());
            let end = (start + (1 << shared.sub_shift())).min(bytes);
            let start = start.max(from);
            if start >= end {
                continue;
            }
            let is_full = self.extents.len() == self.most;
            match self.extents.last_mut() {
                Some(last) if last.kind == kind && last.offset + last.len == start => last.len = end - last.offset,
                _ if is_full => return Some(start),
                _ => self.extents.push(MapExtent { offset: start, len: end - start, kind }),
            }
        }
        None
    }
}

enum More {
    Some,
    None,
    /// There is no room for what begins here.
    From(u64),
}

enum Stop {
    Wait,
    Error(PoolError),
}
