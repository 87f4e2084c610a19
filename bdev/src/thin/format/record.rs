//! What the log says: records one after the other, none larger than it has to be.
//!
//! Each begins with a byte for its kind. Numbers are LEB128 (seven bits a byte, the lowest first), but for entries and
//! layers, which are as they are elsewhere. A record says how something *is* from now on, never what has changed, so
//! that it can be read twice.
//!
//! ```text
//! 0  the payload ends here
//! 1  LAYER           the entries that follow are this layer's
//! 2  CLUSTER ENTRY   the entry of this logical cluster; the cluster that it names is in use
//! 3  FIRST COUNT     clusters that are free from now on
//! 4  288 bytes       a layer; its map, and what it owns, are as the catalog says, and 0 here
//! 5  LAYER           there is no such layer any more, and none of its entries
//! 6  LEAF ENTRY      all entries of this leaf of the layer's map; the entry names no cluster
//! ```

use super::{ENTRIES_PER_PAGE, Entry, LAYER_LEN, Layer};

/// One of them. [`Record::Entry`] says its layer; in the log that is said once for many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// How a layer's cluster is.
    Entry {
        /// Whose.
        layer: u64,
        /// Which of its clusters.
        cluster: u64,
        /// How it is.
        entry: Entry,
    },
    /// Nobody has these clusters any more.
    Free {
        /// The first one.
        first: u32,
        /// How many.
        count: u32,
    },
    /// How a layer is.
    Layer(Box<Layer>),
    /// There is no such layer.
    Gone(u64),
    /// How all clusters of a leaf of a layer's map are: none of them has a cluster of the base.
    Leaf {
        /// Whose.
        layer: u64,
        /// Which of its leaves.
        leaf: u64,
        /// How they all are.
        entry: Entry,
    },
}

impl Record {
    /// Whether both are entries of the same leaf.
    #[must_use]
    pub fn is_of_leaf_of(&self, other: &Record) -> bool {
        let leaf = |record: &Record| match record {
            Record::Entry { layer, cluster, .. } => Some((*layer, cluster / ENTRIES_PER_PAGE as u64)),
            _ => None,
        };
        leaf(self).is_some_and(|mine| leaf(other) == Some(mine))
    }
}

/// What is wrong with a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record at byte {at} of its batch {what}")]
pub struct RecordError {
    /// Where it begins.
    pub at: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// Records as bytes.
#[derive(Clone, Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    layer: Option<u64>,
}

impl Records {
    /// Adds one.
    pub fn push(&mut self, record: &Record) {
        match record {
            Record::Entry { layer, cluster, entry } => {
                self.of(*layer);
                self.kind(2, &[*cluster]);
                self.bytes.extend_from_slice(&entry.bits().to_le_bytes());
            }
            Record::Free { first, count } => self.kind(3, &[u64::from(*first), u64::from(*count)]),
            Record::Layer(layer) => {
                self.kind(4, &[]);
                self.bytes.extend_from_slice(&layer.to_bytes());
            }
            Record::Gone(layer) => self.kind(5, &[*layer]),
            Record::Leaf { layer, leaf, entry } => {
                self.of(*layer);
                self.kind(6, &[*leaf]);
                self.bytes.extend_from_slice(&entry.bits().to_le_bytes());
            }
        }
    }

    /// What follows is this layer's.
    fn of(&mut self, layer: u64) {
        if self.layer != Some(layer) {
            self.layer = Some(layer);
            self.kind(1, &[layer]);
        }
    }

    fn kind(&mut self, kind: u8, numbers: &[u64]) {
        self.bytes.push(kind);
        for number in numbers {
            let mut left = *number;
            while left >= 0x80 {
                self.bytes.push(left as u8 | 0x80);
                left >>= 7;
            }
            self.bytes.push(left as u8);
        }
    }

    /// As bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes all of them out.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.layer = None;
    }

    /// The records of a batch.
    ///
    /// # Errors
    /// [`RecordError`]; nothing before it is to be believed either.
    pub fn parse(bytes: &[u8]) -> Result<Vec<Record>, RecordError> {
        let mut reader = Reader { bytes, at: 0 };
        let (mut records, mut layer) = (Vec::new(), None);
        loop {
            let at = reader.at;
            match reader.record(&mut layer) {
                Ok(Some(Some(record))) => records.push(record),
                Ok(Some(None)) => {}
                Ok(None) => return Ok(records),
                Err(what) => return Err(RecordError { at, what }),
            }
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// The next one; `Some(None)`: it names a layer; `None`: there is none any more.
    fn record(&mut self, layer: &mut Option<u64>) -> Result<Option<Option<Record>>, &'static str> {
        let Some(&kind) = self.bytes.get(self.at) else { return Ok(None) };
        self.at += 1;
        let record = match kind {
            0 => {
                self.at = self.bytes.len();
                return Ok(None);
            }
            1 => {
                *layer = Some(self.layer()?);
                return Ok(Some(None));
            }
            2 => {
                let layer = layer.ok_or("has an entry of no layer")?;
                let cluster = self.number()?;
                let entry = self.entry()?;
                Record::Entry { layer, cluster, entry }
            }
            3 => self.clusters().map(|(first, count)| Record::Free { first, count })?,
            4 => {
                let layer = Layer::from_bytes(self.take::<LAYER_LEN>()?)?;
                Record::Layer(Box::new(layer.ok_or("is a layer without a number")?))
            }
            5 => Record::Gone(self.layer()?),
            6 => {
                let layer = layer.ok_or("has a leaf of no layer")?;
                let leaf = self.number()?;
                let entry = self.entry()?;
                if entry.cluster().is_some() {
                    return Err("has the same cluster many times");
                }
                Record::Leaf { layer, leaf, entry }
            }
            _ => return Err("is of no kind"),
        };
        Ok(Some(Some(record)))
    }

    fn take<const N: usize>(&mut self) -> Result<&[u8; N], &'static str> {
        let taken = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk).ok_or("is cut off")?;
        self.at += N;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, &'static str> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take::<1>()?;
            let part = u64::from(byte & 0x7F);
            if shift == 63 && part > 1 {
                break;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("has a number that is too large")
    }

    fn entry(&mut self) -> Result<Entry, &'static str> {
        let bits = u64::from_le_bytes(*self.take::<8>()?);
        Entry::from_bits(bits).ok_or("has an entry that makes no sense")
    }

    fn layer(&mut self) -> Result<u64, &'static str> {
        self.number().and_then(|layer| if layer == 0 { Err("names layer 0") } else { Ok(layer) })
    }

    fn clusters(&mut self) -> Result<(u32, u32), &'static str> {
        let (first, count) = (self.number()?, self.number()?);
        let end = first.checked_add(count).filter(|end| *end <= u64::from(Entry::MAX_CLUSTER) + 1);
        match (end, u32::try_from(first), u32::try_from(count)) {
            (Some(_), Ok(first), Ok(count)) if first > 0 && count > 0 => Ok((first, count)),
            _ => Err("names clusters that cannot be"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thin::format::layer::tests::layer;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Entry> {
        (1..=Entry::MAX_CLUSTER, any::<u16>(), any::<u16>(), any::<bool>()).prop_map(|(cluster, here, zero, on)| {
            if on { Entry::on(cluster).with_here(here).with_zero(zero) } else { Entry::EMPTY.with_zero(zero) }
        })
    }

    fn records() -> impl Strategy<Value = Record> {
        let clusters = || (1..1u32 << 30, 1..1u32 << 30);
        prop_oneof![
            4 => (1..5u64, any::<u64>(), entries()).prop_map(|(layer, cluster, entry)| Record::Entry { layer, cluster, entry }),
            1 => clusters().prop_map(|(first, count)| Record::Free { first, count }),
            1 => (1..5u64, any::<u64>(), any::<u16>())
                .prop_map(|(layer, leaf, zero)| Record::Leaf { layer, leaf, entry: Entry::EMPTY.with_zero(zero) }),
            1 => (1..=u64::MAX).prop_map(Record::Gone),
            1 => (1..=u64::MAX).prop_map(|id| Record::Layer(Box::new(Layer { id, ..layer() }))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_pushed_is_parsed(all in prop::collection::vec(records(), 0..40), padding in 0..9usize) {
            let mut pushed = Records::default();
            all.iter().for_each(|record| pushed.push(record));
            let mut bytes = pushed.bytes().to_vec();
            bytes.resize(bytes.len() + padding, 0);
            prop_assert_eq!(Records::parse(&bytes), Ok(all));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Records::parse(&bytes);
        }
    }

    #[test]
    fn what_makes_no_sense() {
        let mut cut = Records::default();
        cut.push(&Record::Entry { layer: 1, cluster: 2, entry: Entry::on(3) });
        let whole = cut.bytes().len();
        for len in 1..whole {
            let parsed = Records::parse(&cut.bytes()[..len]);
            assert!(parsed.is_err() || parsed == Ok(Vec::new()) && len == 2, "{len}");
        }
        let bad: [&[u8]; 11] = [
            &[6, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[1, 1, 6, 2, 9, 0, 0, 0, 0, 0, 0, 0],
            &[7],
            &[1, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[1, 1, 2, 0, 0, 0, 0, 0x80, 0, 0, 0, 0],
            &[3, 0, 1],
            &[3, 1, 0],
            &[3, 0xFF, 0xFF, 0xFF, 0xFF, 0x07, 2],
            &[5, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02],
            &[5, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1],
        ];
        for bytes in bad {
            assert!(Records::parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
