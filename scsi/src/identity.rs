//! What a unit says about itself that does not depend on the device below: by default what follows from the disk's UUID,
//! else what its operator has [`Chosen`].

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
    /// The NAA designator (VPD page 83h).
    pub naa: Naa,
    /// The UUID designator (VPD page 83h).
    pub uuid: Uuid,
    /// MEDIUM ROTATION RATE (VPD page B1h), if not the device's.
    pub rotation_rate: Option<u16>,
    /// OPTIMAL UNMAP GRANULARITY (VPD page B0h) in bytes, if not the default; what is shown is made of whole granules of
    /// the device.
    pub unmap_granularity: Option<u32>,
    /// Whether initiators may SANITIZE.
    pub allow_sanitize: bool,
}

/// A name as an NAA designator (SPC-5, clause 7.7.6.6): 8 bytes in formats 2, 3 and 5, 16 in format 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naa {
    /// Formats 2, 3 and 5.
    Short([u8; 8]),
    /// Format 6.
    Long([u8; 16]),
}

impl Naa {
    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Naa::Short(bytes) => bytes,
            Naa::Long(bytes) => bytes,
        }
    }

    /// Reads hexadecimal digits: 16 that begin with 2, 3 or 5, or 32 that begin with 6.
    #[must_use]
    pub fn parse(text: &str) -> Option<Naa> {
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        match (text.len(), text.as_bytes().first()?) {
            (16, b'2' | b'3' | b'5') => u64::from_str_radix(text, 16).ok().map(|naa| Naa::Short(naa.to_be_bytes())),
            (32, b'6') => u128::from_str_radix(text, 16).ok().map(|naa| Naa::Long(naa.to_be_bytes())),
            _ => None,
        }
    }
}

/// What an operator wants a unit to show. What is `None` is as it is by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// At most 8 characters.
    pub vendor: Option<String>,
    /// At most 16 characters.
    pub product: Option<String>,
    /// At most 4 characters.
    pub revision: Option<String>,
    /// At most [`SERIAL_MAX`] characters.
    pub serial: Option<String>,
    /// See [`Naa::parse`].
    pub naa: Option<String>,
    /// 0 (unknown), 1 (does not rotate), or rounds a minute from 1025 to 65534.
    pub rotation_rate: Option<u16>,
    /// Bytes: a multiple of 4096, at most 1 GiB.
    pub unmap_granularity: Option<u32>,
    /// Whether initiators may SANITIZE; by default not.
    pub allow_sanitize: Option<bool>,
}

/// The longest serial number that fits into both VPD pages that show it.
pub const SERIAL_MAX: usize = 231;

/// Why a unit cannot show what was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A text is not one that the field can hold.
    #[error("{field} has to be 1 to {most} printable ASCII characters, without spaces at either end")]
    Text {
        /// Which field.
        field: &'static str,
        /// How many characters it has.
        most: usize,
    },
    /// Not an NAA.
    #[error("naa has to be 16 hexadecimal digits that begin with 2, 3 or 5, or 32 that begin with 6")]
    Naa,
    /// A reserved rotation rate.
    #[error("rotation_rate has to be 0 (unknown), 1 (does not rotate), or 1025 to 65534 rounds a minute")]
    RotationRate,
    /// A granularity that is no number of whole blocks, or too large.
    #[error("unmap_granularity has to be a multiple of 4096 bytes, at most 1 GiB")]
    UnmapGranularity,
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
            naa: Naa::Long(naa_of(uuid)),
            uuid,
            rotation_rate: None,
            unmap_granularity: None,
            allow_sanitize: false,
        }
    }

    /// This identity with what was chosen in place of the defaults.
    ///
    /// # Errors
    /// [`IdentityError`] names the first value that cannot be shown.
    pub fn with(mut self, chosen: &Chosen) -> Result<Identity, IdentityError> {
        if let Some(vendor) = &chosen.vendor {
            self.vendor = padded(checked("vendor", vendor, 8)?);
        }
        if let Some(product) = &chosen.product {
            self.product = padded(checked("product", product, 16)?);
        }
        if let Some(revision) = &chosen.revision {
            self.revision = padded(checked("revision", revision, 4)?);
        }
        if let Some(serial) = &chosen.serial {
            checked("serial", serial, SERIAL_MAX)?.clone_into(&mut self.serial);
        }
        if let Some(naa) = &chosen.naa {
            self.naa = Naa::parse(naa).ok_or(IdentityError::Naa)?;
        }
        if chosen.rotation_rate.is_some_and(|rate| !matches!(rate, 0 | 1 | 0x0401..=0xFFFE)) {
            return Err(IdentityError::RotationRate);
        }
        let fits = |bytes: u32| bytes > 0 && bytes <= 1 << 30 && bytes.is_multiple_of(4096);
        if chosen.unmap_granularity.is_some_and(|bytes| !fits(bytes)) {
            return Err(IdentityError::UnmapGranularity);
        }
        (self.rotation_rate, self.unmap_granularity) = (chosen.rotation_rate, chosen.unmap_granularity);
        self.allow_sanitize = chosen.allow_sanitize.unwrap_or(false);
        Ok(self)
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

/// A text that a field of at most `most` characters can hold as it is.
fn checked<'a>(field: &'static str, text: &'a str, most: usize) -> Result<&'a str, IdentityError> {
    let printable = text.bytes().all(|byte| (0x20..0x7F).contains(&byte));
    let good = printable && (1..=most).contains(&text.len()) && text.trim_matches(' ') == text;
    if good { Ok(text) } else { Err(IdentityError::Text { field, most }) }
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
        let naa = u128::from_be_bytes(identity.naa.as_bytes().try_into().unwrap());
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

    fn chosen(change: impl FnOnce(&mut Chosen)) -> Result<Identity, IdentityError> {
        let mut chosen = Chosen::default();
        change(&mut chosen);
        Identity::from_uuid(Uuid::from_u128(7), "disk").with(&chosen)
    }

    #[test]
    fn what_is_chosen_takes_the_place_of_the_default() {
        let plain = chosen(|_| ()).unwrap();
        assert_eq!(plain, Identity::from_uuid(Uuid::from_u128(7), "disk"));
        let identity = chosen(|chosen| {
            chosen.vendor = Some("ACME".into());
            chosen.product = Some("SIXTEEN LETTERS.".into());
            chosen.revision = Some("9".into());
            chosen.serial = Some("S 1".into());
            chosen.naa = Some("5000C500A1B2C3D4".into());
            chosen.rotation_rate = Some(7200);
            chosen.unmap_granularity = Some(1 << 20);
        });
        let identity = identity.unwrap();
        assert_eq!((&identity.vendor, &identity.product), (b"ACME    ", b"SIXTEEN LETTERS."));
        assert_eq!((&identity.revision, identity.serial.as_str()), (b"9   ", "S 1"));
        assert_eq!(identity.naa.as_bytes(), [0x50, 0, 0xC5, 0, 0xA1, 0xB2, 0xC3, 0xD4]);
        assert_eq!((identity.rotation_rate, identity.unmap_granularity), (Some(7200), Some(1 << 20)));
        assert_eq!(identity.uuid, plain.uuid);
    }

    #[test]
    fn texts_have_a_length_and_an_alphabet() {
        for bad in ["", "NINECHARS", "tab\t", "ä", " A", "A "] {
            let error = chosen(|chosen| chosen.vendor = Some(bad.into())).unwrap_err();
            assert_eq!(error, IdentityError::Text { field: "vendor", most: 8 }, "{bad:?}");
        }
        assert!(chosen(|chosen| chosen.product = Some("x".repeat(17))).is_err());
        assert!(chosen(|chosen| chosen.revision = Some("12345".into())).is_err());
        assert!(chosen(|chosen| chosen.serial = Some("x".repeat(232))).is_err());
        assert!(chosen(|chosen| chosen.serial = Some("x".repeat(231))).is_ok());
    }

    #[test]
    fn naas_have_four_forms() {
        for good in ["2000000000000001", "3000000000000001", "5000000000000001", "6000000000000000000000000000000f"] {
            assert!(Naa::parse(good).is_some(), "{good}");
        }
        let bad =
            ["", "1000000000000001", "6000000000000001", "500000000000001", "+000000000000001", "5 00000000000001"];
        for bad in bad.into_iter().chain(["50000000000000010000000000000000", "0x50000000000001"]) {
            assert_eq!(Naa::parse(bad), None, "{bad}");
            assert_eq!(chosen(|chosen| chosen.naa = Some(bad.into())), Err(IdentityError::Naa));
        }
    }

    #[test]
    fn rates_and_granularities_that_are_reserved() {
        for bad in [2, 0x400, 0xFFFF] {
            assert_eq!(chosen(|chosen| chosen.rotation_rate = Some(bad)), Err(IdentityError::RotationRate));
        }
        for bad in [0, 512, 4097, (1 << 30) + 4096] {
            assert_eq!(chosen(|chosen| chosen.unmap_granularity = Some(bad)), Err(IdentityError::UnmapGranularity));
        }
        assert!(chosen(|chosen| (chosen.rotation_rate, chosen.unmap_granularity) = (Some(0), Some(4096))).is_ok());
    }

    #[test]
    fn a_long_serial_is_cut() {
        let mut identity = Identity::from_uuid(Uuid::nil(), "");
        identity.serial = "x".repeat(1000);
        assert_eq!(identity.serial().len(), 252);
    }
}
