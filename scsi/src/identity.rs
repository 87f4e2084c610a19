//! What a unit says about itself that does not depend on the device below.

use uuid::Uuid;

/// Names and numbers by which initiators know a unit. The same on every path, and over restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// T10 vendor identification, ASCII, padded with spaces.
    pub vendor: [u8; 8],
    /// Product identification, ASCII, padded with spaces.
    pub product: [u8; 16],
    /// Product revision level, ASCII, padded with spaces.
    pub revision: [u8; 4],
    /// Unit serial number (VPD page 80h), ASCII; at most 252 bytes of it are shown.
    pub serial: String,
    /// The NAA designator, format 6 (VPD page 83h).
    pub naa: [u8; 16],
    /// The UUID designator (VPD page 83h).
    pub uuid: Uuid,
}

/// Company identifier of the NAA: from the locally administered ones, so it is nobody else's.
const COMPANY: u128 = 0x02_504F;

impl Identity {
    /// The default identity of a disk with this UUID.
    #[must_use]
    pub fn from_uuid(uuid: Uuid, product: &str) -> Identity {
        Identity {
            vendor: padded("POLLUX"),
            product: padded(product),
            revision: padded(concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"))),
            serial: uuid.hyphenated().to_string(),
            naa: naa_of(uuid),
            uuid,
        }
    }

    /// The serial number as it fits in a VPD page.
    pub(crate) fn serial(&self) -> &[u8] {
        let bytes = self.serial.as_bytes();
        &bytes[..bytes.len().min(252)]
    }
}

/// NAA 6 (IEEE registered extended): 4 bits of format, 24 of company, 100 of our own. The UUID has 28 more than that;
/// they are folded in, so that UUIDs which differ in one half only stay different.
fn naa_of(uuid: Uuid) -> [u8; 16] {
    let bits = uuid.as_u128();
    let own = (bits ^ (bits >> 100) << 72) & ((1 << 100) - 1);
    (6 << 124 | COMPANY << 100 | own).to_be_bytes()
}

/// ASCII, left-aligned, padded with spaces; what is not printable becomes a space (SPC-5, clause 4.3.1).
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        if (0x20..0x7F).contains(&from) {
            *to = from;
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_follows_from_the_uuid_alone() {
        let uuid = Uuid::from_u128(0x12345678_9abc_4def_8123_456789abcdef);
        let identity = Identity::from_uuid(uuid, "ram\ndisk, a long name");
        assert_eq!(&identity.vendor, b"POLLUX  ");
        assert_eq!(&identity.product, b"ram disk, a long");
        assert_eq!(identity.serial, "12345678-9abc-4def-8123-456789abcdef");
        let naa = u128::from_be_bytes(identity.naa);
        assert_eq!(naa >> 100, 0x602_504F);
        assert_eq!(naa & ((1 << 72) - 1), uuid.as_u128() & ((1 << 72) - 1));
    }

    #[test]
    fn naas_differ_where_uuids_differ_in_one_half() {
        let naa = |bits| naa_of(Uuid::from_u128(bits));
        assert_ne!(naa(1), naa(2));
        assert_ne!(naa(1 << 127), naa(1 << 126));
        assert_ne!(naa(1 << 100), naa(0));
    }

    #[test]
    fn a_long_serial_is_cut() {
        let mut identity = Identity::from_uuid(Uuid::nil(), "");
        identity.serial = "x".repeat(1000);
        assert_eq!(identity.serial().len(), 252);
    }
}
