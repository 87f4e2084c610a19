//! How a copy's list names a unit: a designator of its VPD page 83h.

use crate::{Identity, LogicalUnit};

/// The longest designator that an identification descriptor has room for.
pub(crate) const LEN: usize = 20;

/// A designator (SPC-5, clause 7.7.6), as it is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Designator {
    code_set: u8,
    /// ASSOCIATION and DESIGNATOR TYPE.
    kind: u8,
    len: usize,
    bytes: [u8; LEN],
}

const BINARY: u8 = 1;
const NAA: u8 = 0x3;
const UUID: u8 = 0xA;

impl Designator {
    /// Reads bytes 4 to 27 of an identification descriptor CSCD descriptor; `None` if its length is none.
    pub(crate) fn parse(descriptor: &[u8; 24]) -> Option<Designator> {
        let len = usize::from(descriptor[3]);
        let mut bytes = [0; LEN];
        bytes.get_mut(..len)?.copy_from_slice(&descriptor[4..4 + len]);
        Some(Designator { code_set: descriptor[0] & 0x0F, kind: descriptor[1] & 0x3F, len, bytes })
    }

    /// The NAA of a unit.
    pub(crate) fn naa(naa: &crate::Naa) -> Designator {
        let mut bytes = [0; LEN];
        let len = naa.as_bytes().len();
        bytes[..len].copy_from_slice(naa.as_bytes());
        Designator { code_set: BINARY, kind: NAA, len, bytes }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Bytes 4 to 27 of an identification descriptor CSCD descriptor.
    pub(crate) fn encode(&self) -> [u8; 24] {
        let mut descriptor = [0; 24];
        (descriptor[0], descriptor[1], descriptor[3]) = (self.code_set, self.kind, self.len as u8);
        descriptor[4..4 + LEN].copy_from_slice(&self.bytes);
        descriptor
    }

    /// Whether it names a unit of this identity: by its NAA or its UUID, the designators of page 83h that have room here.
    fn names(&self, identity: &Identity) -> bool {
        match (self.code_set, self.kind) {
            (BINARY, NAA) => self.bytes() == identity.naa.as_bytes(),
            (BINARY, UUID) => self.bytes().strip_prefix(&[0x10, 0]) == Some(identity.uuid.as_bytes()),
            _ => false,
        }
    }
}

impl LogicalUnit {
    /// Whether the unit has this name.
    #[must_use]
    pub fn is_called(&self, name: &Designator) -> bool {
        name.names(&self.identity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn a_unit_is_known_by_its_naa_and_its_uuid() {
        let unit = Bench::new().unit;
        let naa = Designator::naa(&unit.identity().naa);
        assert!(unit.is_called(&naa));
        assert_eq!(Designator::parse(&naa.encode()), Some(naa));
        let mut uuid = [0; 24];
        uuid[..6].copy_from_slice(&[1, 0x0A, 0, 18, 0x10, 0]);
        uuid[6..22].copy_from_slice(unit.uuid().as_bytes());
        assert!(unit.is_called(&Designator::parse(&uuid).unwrap()));
        // Another byte, length, code set, association.
        for (at, byte) in [(9, 0xFF), (3, 17), (0, 2), (1, 0x1A)] {
            let mut other = uuid;
            other[at] = byte;
            assert!(!unit.is_called(&Designator::parse(&other).unwrap()), "byte {at}");
        }
        uuid[3] = 21;
        assert_eq!(Designator::parse(&uuid), None, "longer than its place");
    }
}
