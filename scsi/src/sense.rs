//! Sense data: what went wrong, and its two wire formats (SPC-5, clause 4.5).
//!
//! A [`Sense`] is a value; it becomes bytes only when a command is answered, because D_SENSE of the control mode page
//! decides the format at that moment.

/// How many bytes of sense data a front end keeps room for; nothing here encodes to more.
pub const SENSE_LEN: usize = 96;

/// Sense keys (SPC-5, table 49).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// Nothing to say.
    NoSense = 0x0,
    /// The unit cannot be accessed now.
    NotReady = 0x2,
    /// The medium could not be read or written.
    MediumError = 0x3,
    /// A fault in the target that trying again does not heal.
    HardwareError = 0x4,
    /// The CDB or the parameter data is wrong.
    IllegalRequest = 0x5,
    /// Something happened to the unit that this initiator has to know.
    UnitAttention = 0x6,
    /// The medium is protected against this access.
    DataProtect = 0x7,
    /// A copy did not come to its end.
    CopyAborted = 0xA,
    /// The target ended the command; trying again may help.
    AbortedCommand = 0xB,
    /// What was sent is not what the medium holds.
    Miscompare = 0xE,
}

/// Additional sense code (high byte) and qualifier (low byte); SPC-5, annex F.
pub mod code {
    #![allow(missing_docs)] // The names are those of the standard's table.
    pub const NONE: u16 = 0x0000;
    pub const IO_PROCESS_TERMINATED: u16 = 0x0006;
    pub const OPERATION_IN_PROGRESS: u16 = 0x0016;
    pub const NOT_READY: u16 = 0x0400;
    pub const INITIALIZING_COMMAND_REQUIRED: u16 = 0x0402;
    pub const FORMAT_IN_PROGRESS: u16 = 0x0404;
    pub const SANITIZE_IN_PROGRESS: u16 = 0x041B;
    pub const WRITE_ERROR: u16 = 0x0C00;
    pub const THIRD_PARTY_DEVICE_FAILURE: u16 = 0x0D01;
    pub const COPY_TARGET_NOT_REACHABLE: u16 = 0x0D02;
    pub const INCORRECT_COPY_TARGET_TYPE: u16 = 0x0D03;
    pub const UNRECOVERED_READ_ERROR: u16 = 0x1100;
    pub const MISCOMPARE_DURING_VERIFY: u16 = 0x1D00;
    pub const PARAMETER_LIST_LENGTH_ERROR: u16 = 0x1A00;
    pub const INVALID_OPCODE: u16 = 0x2000;
    pub const LBA_OUT_OF_RANGE: u16 = 0x2100;
    pub const UNSUPPORTED_TOKEN_TYPE: u16 = 0x2301;
    pub const TOKEN_UNKNOWN: u16 = 0x2304;
    pub const TOKEN_REVOKED: u16 = 0x2306;
    pub const TOKEN_EXPIRED: u16 = 0x2307;
    pub const TOKEN_DELETED: u16 = 0x2309;
    pub const INVALID_TOKEN_LENGTH: u16 = 0x230A;
    pub const INVALID_FIELD_IN_CDB: u16 = 0x2400;
    pub const LUN_NOT_SUPPORTED: u16 = 0x2500;
    pub const INVALID_FIELD_IN_PARAMETERS: u16 = 0x2600;
    pub const INVALID_RELEASE: u16 = 0x2604;
    pub const TOO_MANY_TARGET_DESCRIPTORS: u16 = 0x2606;
    pub const UNSUPPORTED_TARGET_DESCRIPTOR: u16 = 0x2607;
    pub const TOO_MANY_SEGMENT_DESCRIPTORS: u16 = 0x2608;
    pub const UNSUPPORTED_SEGMENT_DESCRIPTOR: u16 = 0x2609;
    pub const UNEXPECTED_INEXACT_SEGMENT: u16 = 0x260A;
    pub const INLINE_DATA_LENGTH_EXCEEDED: u16 = 0x260B;
    pub const WRITE_PROTECTED: u16 = 0x2700;
    pub const SOFTWARE_WRITE_PROTECTED: u16 = 0x2702;
    pub const SPACE_ALLOCATION_FAILED: u16 = 0x2707;
    pub const COMMAND_SEQUENCE_ERROR: u16 = 0x2C00;
    pub const MEDIUM_FORMAT_CORRUPTED: u16 = 0x3100;
    pub const FORMAT_COMMAND_FAILED: u16 = 0x3101;
    pub const SANITIZE_COMMAND_FAILED: u16 = 0x3103;
    pub const SAVING_NOT_SUPPORTED: u16 = 0x3900;
    pub const INTERNAL_TARGET_FAILURE: u16 = 0x4400;
    pub const INVALID_MESSAGE_ERROR: u16 = 0x4900;
    pub const INSUFFICIENT_RESOURCES: u16 = 0x5503;
    pub const INSUFFICIENT_REGISTRATIONS: u16 = 0x5504;
    pub const INSUFFICIENT_RESOURCES_FOR_TOKEN: u16 = 0x550D;
}

/// Where the illegal field is (SPC-5, clause 4.5.2.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldPointer {
    /// Whether it lies in the CDB, else in the parameter data.
    pub in_cdb: bool,
    /// The field's first byte.
    pub byte: u16,
    /// The field's leftmost bit (7 is the most significant), if the field is not whole bytes.
    pub bit: Option<u8>,
}

/// Why a command did not end with GOOD, or what REQUEST SENSE reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// The sense key.
    pub key: Key,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// The INFORMATION field, where the command defines one.
    pub info: Option<u64>,
    /// The field at fault, for ILLEGAL REQUEST and COPY ABORTED.
    pub field: Option<FieldPointer>,
    /// How much of an operation is done, in 65536ths, for NOT READY.
    pub progress: Option<u16>,
    /// For COPY ABORTED: where, and why.
    pub copy: Option<CopySense>,
}

/// Where a copy has failed (SPC-5, clause 5.18.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopySense {
    /// The number of the segment.
    pub segment: u16,
    /// Whether the field pointer counts from the beginning of the segment descriptor, not of the list.
    pub in_segment: bool,
    /// What one of its ends said.
    pub forwarded: Option<Forwarded>,
}

/// The answer of a copy's source or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Of which.
    pub to_destination: bool,
    /// The status byte.
    pub status: u8,
    /// Sense key and additional sense code, if there is sense data.
    pub sense: Option<(Key, u16)>,
}

impl Sense {
    /// No sense: the answer to REQUEST SENSE when there is nothing to report.
    pub const NONE: Sense = Sense::new(Key::NoSense, code::NONE);
    /// NOT READY, LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE: what is behind the unit is missing.
    pub const NOT_READY: Sense = Sense::new(Key::NotReady, code::NOT_READY);
    /// NOT READY, INITIALIZING COMMAND REQUIRED: the unit is stopped and can be started.
    pub const STOPPED: Sense = Sense::new(Key::NotReady, code::INITIALIZING_COMMAND_REQUIRED);
    /// There is no logical unit at this number.
    pub const LUN_NOT_SUPPORTED: Sense = Sense::new(Key::IllegalRequest, code::LUN_NOT_SUPPORTED);
    /// The target does not know this command.
    pub const INVALID_OPCODE: Sense = Sense::new(Key::IllegalRequest, code::INVALID_OPCODE).at_cdb(0, None);
    /// The range reaches beyond the last block.
    pub const LBA_OUT_OF_RANGE: Sense = Sense::new(Key::IllegalRequest, code::LBA_OUT_OF_RANGE);
    /// A task attribute that the target does not know (SAM-5, clause 8.6.1).
    pub const INVALID_MESSAGE: Sense = Sense::new(Key::IllegalRequest, code::INVALID_MESSAGE_ERROR);
    /// The parameter list is shorter than it says, or cut off inside a field.
    pub const LIST_LENGTH: Sense = Sense::new(Key::IllegalRequest, code::PARAMETER_LIST_LENGTH_ERROR);

    /// A sense key with one of [`code`]'s additional sense codes.
    #[must_use]
    pub const fn new(key: Key, code: u16) -> Sense {
        Sense { key, asc: (code >> 8) as u8, ascq: code as u8, info: None, field: None, copy: None, progress: None }
    }

    /// ILLEGAL REQUEST, INVALID FIELD IN CDB. `bit` is the field's leftmost bit.
    #[must_use]
    pub const fn invalid_field(byte: u16, bit: Option<u8>) -> Sense {
        Sense::new(Key::IllegalRequest, code::INVALID_FIELD_IN_CDB).at_cdb(byte, bit)
    }

    /// ILLEGAL REQUEST, INVALID FIELD IN PARAMETER LIST.
    #[must_use]
    pub const fn invalid_parameter(byte: u16, bit: Option<u8>) -> Sense {
        let mut sense = Sense::new(Key::IllegalRequest, code::INVALID_FIELD_IN_PARAMETERS);
        sense.field = Some(FieldPointer { in_cdb: false, byte, bit });
        sense
    }

    /// INVALID FIELD IN PARAMETER LIST, without a place.
    pub(crate) const ILLEGAL_PARAMETER: Sense = Sense::new(Key::IllegalRequest, code::INVALID_FIELD_IN_PARAMETERS);

    /// The same with the place in the parameter list that is at fault.
    pub(crate) const fn at_parameter(mut self, (byte, bit): (u16, Option<u8>)) -> Sense {
        self.field = Some(FieldPointer { in_cdb: false, byte, bit });
        self
    }

    /// The same with what is known of the copy.
    pub(crate) const fn of_copy(mut self, copy: CopySense) -> Sense {
        self.copy = Some(copy);
        self
    }

    const fn at_cdb(mut self, byte: u16, bit: Option<u8>) -> Sense {
        self.field = Some(FieldPointer { in_cdb: true, byte, bit });
        self
    }

    /// Additional sense code and qualifier as one number, comparable with [`code`].
    #[must_use]
    pub const fn code(&self) -> u16 {
        (self.asc as u16) << 8 | self.ascq as u16
    }

    /// Writes the sense data in descriptor or fixed format (the unit's D_SENSE says which) and returns its length;
    /// the bytes of `out` behind it are left alone.
    pub fn encode(&self, descriptor_format: bool, out: &mut [u8; SENSE_LEN]) -> usize {
        if descriptor_format { self.encode_descriptors(out) } else { self.encode_fixed(out) }
    }

    /// The sense-key specific field: SKSV, and a field pointer or a progress indication.
    fn specific(&self) -> Option<[u8; 3]> {
        let progress = self.progress.map(u16::to_be_bytes);
        self.field.map(|field| field.encode(self.copy)).or(progress.map(|[high, low]| [0x80, high, low]))
    }

    /// SPC-5, clause 4.5.3. INFORMATION has 32 bits here: a greater value is left out, and VALID is 0.
    fn encode_fixed(&self, out: &mut [u8; SENSE_LEN]) -> usize {
        const LEN: usize = 18;
        out[..LEN].fill(0);
        out[0] = 0x70;
        out[2] = self.key as u8;
        if let Some(info) = self.info.and_then(|info| u32::try_from(info).ok()) {
            out[0] |= 0x80;
            out[3..7].copy_from_slice(&info.to_be_bytes());
        }
        out[12] = self.asc;
        out[13] = self.ascq;
        if let Some(specific) = self.specific() {
            out[15..18].copy_from_slice(&specific);
        }
        let len = LEN + self.copy.map_or(0, |copy| copy.encode_fixed(LEN, out));
        out[7] = (len - 8) as u8;
        len
    }

    /// SPC-5, clause 4.5.2: a header of 8 bytes, an information descriptor (00h), for a copy a command-specific one
    /// (01h) with the segment's number, a sense-key-specific one (02h), and one with what an end of the copy said
    /// (0Ch).
    fn encode_descriptors(&self, out: &mut [u8; SENSE_LEN]) -> usize {
        let mut len = 8;
        out[..len].copy_from_slice(&[0x72, self.key as u8, self.asc, self.ascq, 0, 0, 0, 0]);
        if let Some(info) = self.info {
            out[len..len + 4].copy_from_slice(&[0x00, 0x0A, 0x80, 0]);
            out[len + 4..len + 12].copy_from_slice(&info.to_be_bytes());
            len += 12;
        }
        if let Some(copy) = self.copy {
            let [high, low] = copy.segment.to_be_bytes();
            out[len..len + 12].copy_from_slice(&[0x01, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, high, low]);
            len += 12;
        }
        if let Some([a, b, c]) = self.specific() {
            out[len..len + 8].copy_from_slice(&[0x02, 0x06, 0, 0, a, b, c, 0]);
            len += 8;
        }
        if let Some(forwarded) = self.copy.and_then(|copy| copy.forwarded) {
            let sense = forwarded.encode();
            let source = if forwarded.to_destination { 2 } else { 1 };
            out[len..len + 4].copy_from_slice(&[0x0C, 2 + sense.len() as u8, source, forwarded.status]);
            out[len + 4..len + 4 + sense.len()].copy_from_slice(&sense);
            len += 4 + sense.len();
        }
        out[7] = (len - 8) as u8;
        len
    }
}

impl CopySense {
    /// The COMMAND-SPECIFIC INFORMATION field: where the source's and the destination's answers begin, and the segment's
    /// number; and behind `at` bytes such an answer: status and sense data. Returns how long that is.
    fn encode_fixed(&self, at: usize, out: &mut [u8; SENSE_LEN]) -> usize {
        out[10..12].copy_from_slice(&self.segment.to_be_bytes());
        let Some(forwarded) = self.forwarded else { return 0 };
        out[8 + usize::from(forwarded.to_destination)] = at as u8;
        let sense = forwarded.encode();
        out[at] = forwarded.status;
        out[at + 1..at + 1 + sense.len()].copy_from_slice(&sense);
        1 + sense.len()
    }
}

impl Forwarded {
    /// The sense data, in fixed format; zeroes if there is none.
    fn encode(&self) -> [u8; 18] {
        let mut bytes = [0; 18];
        if let Some((key, code)) = self.sense {
            (bytes[0], bytes[2], bytes[7]) = (0x70, key as u8, 10);
            bytes[12..14].copy_from_slice(&code.to_be_bytes());
        }
        bytes
    }
}

impl FieldPointer {
    /// SKSV, C/D or SD, BPV, BIT POINTER, FIELD POINTER.
    fn encode(self, copy: Option<CopySense>) -> [u8; 3] {
        let in_segment = if copy.is_some_and(|copy| copy.in_segment) { 0x20 } else { 0 };
        let place = if self.in_cdb { 0x40 } else { in_segment };
        let bit = self.bit.map_or(0, |bit| 0x08 | bit & 7);
        let [high, low] = self.byte.to_be_bytes();
        [0x80 | place | bit, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(sense: &Sense, descriptor: bool) -> Vec<u8> {
        let mut out = [0xEE; SENSE_LEN];
        let len = sense.encode(descriptor, &mut out);
        assert!(out[len..].iter().all(|&b| b == 0xEE), "nothing is written behind the length");
        out[..len].to_vec()
    }

    #[test]
    fn fixed_format_with_a_field_pointer() {
        let sense = Sense::invalid_field(0x0102, Some(4));
        let want = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xCC, 1, 2];
        assert_eq!(encoded(&sense, false), want);
        let sense = Sense::invalid_parameter(7, None);
        let want = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, 0x80, 0, 7];
        assert_eq!(encoded(&sense, false), want);
    }

    #[test]
    fn descriptor_format_with_a_field_pointer() {
        let want = [0x72, 5, 0x24, 0, 0, 0, 0, 8, 0x02, 6, 0, 0, 0xC8, 0, 2, 0];
        assert_eq!(encoded(&Sense::invalid_field(2, Some(0)), true), want);
        assert_eq!(encoded(&Sense::NOT_READY, true), [0x72, 2, 4, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn information_in_both_formats() {
        let mut sense = Sense::new(Key::MediumError, code::UNRECOVERED_READ_ERROR);
        sense.info = Some(0x1234_5678);
        let want = [0xF0, 0, 3, 0x12, 0x34, 0x56, 0x78, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0];
        assert_eq!(encoded(&sense, false), want);
        sense.info = Some(0x01_2345_6789);
        let want = [0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0];
        assert_eq!(encoded(&sense, false), want, "what does not fit is not valid");
        let want = [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0x23, 0x45, 0x67, 0x89];
        assert_eq!(encoded(&sense, true), want);
    }
}
