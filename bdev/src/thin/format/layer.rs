//! A layer as the catalog keeps it: 288 bytes.
//!
//! ```text
//! bytes  0..8    number, 0: no layer here     8..16   parent, 0: none          16..32   UUID
//!       32       kind                        33       length of the name       34       levels of the map
//!       35       percent of `most` from which on its users are told, 0: they are not
//!       40..104  name, UTF-8                104..112  size in bytes           112..128  root of the map
//!      128..136  clusters that it owns      136..144  sub-blocks that are here
//!      144..152  most clusters that it may own, 0: no limit
//!      152..160  clusters that are kept for it
//!      160..168  when it was made, seconds since 1970
//!      168..184  UUID of the bdev that it stands on, if it has no parent; 0: none
//!      184..192  bytes that it sees of what it stands on, 0: all; what lies behind is zero
//!      192..200  bytes that count of that bdev, 0: as many as the layer has; what lies behind is zero
//!      200..288  0
//! ```

use uuid::Uuid;

use super::Pointer;

/// Bytes of a layer in the catalog.
pub const LAYER_LEN: usize = 288;
/// Layers of a leaf of the catalog.
pub const LAYERS_PER_PAGE: usize = 14;
/// Bytes of a name at most.
pub const NAME_LEN: usize = 64;

/// What a layer is to its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// The head of a volume: it can be written.
    Head,
    /// Nobody writes it any more; it has a name.
    Snapshot,
    /// As a snapshot that was deleted: it stays until it has one child at most.
    Unnamed,
    /// It goes into its only child, or away.
    Going,
}

impl LayerKind {
    const ALL: [LayerKind; 4] = [LayerKind::Head, LayerKind::Snapshot, LayerKind::Unnamed, LayerKind::Going];

    const fn byte(self) -> u8 {
        self as u8 + 1
    }
}

/// A bdev outside of the pool that a layer stands on. Nobody writes it as long as that is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// By which the bdev is known.
    pub uuid: Uuid,
    /// How many of its bytes count, from the first on; what lies behind is zero, whatever the bdev has there.
    pub bytes: u64,
}

/// More than any origin has.
const ORIGIN_MAX: u64 = 1 << 60;

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its number, never used again; not 0.
    pub id: u64,
    /// What it stands on, in the pool.
    pub parent: Option<u64>,
    /// As the bdev that shows it is known.
    pub uuid: Uuid,
    /// What it is.
    pub kind: LayerKind,
    /// At most [`NAME_LEN`] bytes.
    pub name: String,
    /// Bytes that can be addressed.
    pub size: u64,
    /// Levels of its map, and its top page.
    pub levels: u8,
    /// See `levels`.
    pub root: Pointer,
    /// Clusters that it owns.
    pub owned: u64,
    /// Sub-blocks that are here.
    pub here: u64,
    /// Most clusters that it may own; 0: as many as there are.
    pub quota: u64,
    /// Clusters that are kept for it.
    pub reserved: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The bdev that it stands on outside of the pool.
    pub origin: Option<Uuid>,
    /// Bytes that count of that; 0: as many as the layer has.
    pub origin_bytes: u64,
    /// How many bytes it sees of what it stands on, whole clusters; `None`: all. What lies behind is zero.
    pub sees: Option<u64>,
    /// The percentage of its quota from which on its users are told; 0: they are not.
    pub warn_percent: u8,
}

impl Layer {
    /// What it stands on outside of the pool.
    #[must_use]
    pub fn stands_on(&self) -> Option<Origin> {
        let bytes = if self.origin_bytes == 0 { self.size } else { self.origin_bytes };
        self.origin.map(|uuid| Origin { uuid, bytes: bytes.min(ORIGIN_MAX) })
    }

    /// It stands on this outside of the pool, or on nothing there.
    pub fn stand_on(&mut self, origin: Option<Origin>) {
        self.origin = origin.map(|origin| origin.uuid);
        self.origin_bytes = origin.map_or(0, |origin| origin.bytes);
    }

    /// As it is stored.
    ///
    /// # Panics
    /// If its name is too long.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; LAYER_LEN] {
        let mut bytes = [0; LAYER_LEN];
        let numbers = [
            (0, self.id),
            (8, self.parent.unwrap_or(0)),
            (104, self.size),
            (128, self.owned),
            (136, self.here),
            (144, self.quota),
            (152, self.reserved),
            (160, self.created),
            (184, self.sees.unwrap_or(0)),
            (192, self.origin_bytes),
        ];
        for (at, number) in numbers {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[16..32].copy_from_slice(self.uuid.as_bytes());
        (bytes[32], bytes[33], bytes[34]) = (self.kind.byte(), self.name.len() as u8, self.levels);
        bytes[35] = self.warn_percent;
        bytes[40..40 + NAME_LEN][..self.name.len()].copy_from_slice(self.name.as_bytes());
        bytes[112..128].copy_from_slice(&self.root.to_bytes());
        bytes[168..184].copy_from_slice(self.origin.unwrap_or_default().as_bytes());
        bytes
    }

    /// What is stored; `None`: no layer.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_bytes(bytes: &[u8; LAYER_LEN]) -> Result<Option<Layer>, &'static str> {
        let number = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside"));
        let id = number(0);
        if id == 0 {
            return if bytes.iter().all(|byte| *byte == 0) { Ok(None) } else { Err("a layer without a number") };
        }
        let kind = LayerKind::ALL.into_iter().find(|kind| kind.byte() == bytes[32]).ok_or("a layer of no kind")?;
        let name = bytes[40..104].get(..usize::from(bytes[33])).ok_or("a name that is too long")?;
        let name = str::from_utf8(name).map_err(|_| "a name that is not UTF-8")?;
        let uuid = |at: usize| Uuid::from_bytes(*bytes[at..].first_chunk().expect("inside"));
        Ok(Some(Layer {
            id,
            parent: Some(number(8)).filter(|parent| *parent != 0),
            uuid: uuid(16),
            kind,
            name: name.into(),
            size: number(104),
            levels: bytes[34],
            root: Pointer::from_bytes(bytes[112..].first_chunk().expect("inside")),
            owned: number(128),
            here: number(136),
            quota: number(144),
            reserved: number(152),
            created: number(160),
            origin: Some(uuid(168)).filter(|origin| !origin.is_nil()),
            origin_bytes: number(192),
            sees: Some(number(184)).filter(|bytes| *bytes != 0),
            warn_percent: bytes[35],
        }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn layer() -> Layer {
        Layer {
            id: 0x0102_0304_0506_0708,
            parent: Some(7),
            uuid: Uuid::from_u128(1),
            kind: LayerKind::Snapshot,
            name: "é".repeat(NAME_LEN / 2),
            size: 1 << 44,
            levels: 4,
            root: Pointer { block: 9, generation: 8, free: 0 },
            owned: 3,
            here: 4,
            quota: 5,
            reserved: 6,
            created: 7,
            origin: Some(Uuid::from_u128(2)),
            origin_bytes: 7 << 20,
            sees: Some(8 << 20),
            warn_percent: 90,
        }
    }

    #[test]
    fn what_is_stored_is_what_comes_back() {
        for kind in LayerKind::ALL {
            let layer = Layer { kind, ..layer() };
            assert_eq!(Layer::from_bytes(&layer.to_bytes()), Ok(Some(layer)));
        }
        let plain = Layer { parent: None, origin: None, origin_bytes: 0, sees: None, name: String::new(), ..layer() };
        assert_eq!(Layer::from_bytes(&plain.to_bytes()), Ok(Some(plain)));
        assert_eq!(Layer::from_bytes(&[0; LAYER_LEN]), Ok(None));
        assert_eq!(LAYER_LEN * LAYERS_PER_PAGE, super::super::BLOCK - super::super::HEADER);
    }

    #[test]
    fn what_makes_no_sense() {
        for (at, byte) in [(32, 0), (32, 5), (33, 65), (33, 63), (40, 0xFF)] {
            let mut bytes = layer().to_bytes();
            bytes[at] = byte;
            assert!(Layer::from_bytes(&bytes).is_err(), "{at}: {byte}");
        }
        let mut bytes = [0; LAYER_LEN];
        bytes[200] = 1;
        assert!(Layer::from_bytes(&bytes).is_err());
    }
}
