//! Command descriptor blocks: where the fields are. Everything that knows a byte's number is in here and in the
//! opcode table; handlers ask for fields by name.

/// A CDB in a buffer of 32 bytes, which is what front ends carry; bytes behind the command's own length are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb([u8; 32]);

/// The block range that a command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) lba: u64,
    pub(crate) count: u64,
}

/// What READ and WRITE (10) and (16) say, when they say nothing that needs a second thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Everyday {
    pub(crate) write: bool,
    pub(crate) fua: bool,
    pub(crate) blocks: Blocks,
}

/// Reads an everyday READ or WRITE: no protection, no group, no control byte; DPO changes nothing. Looks only at the
/// bytes of these commands, which is why it takes them as they lie in a request. `odd` is 0 unless something beside the
/// CDB needs a second thought.
#[inline(always)]
pub(crate) fn everyday(bytes: &[u8; 32], odd: u8) -> Option<Everyday> {
    const DPO: u8 = 0x10;
    const FUA: u8 = 0x08;
    const WRITE: u8 = 0x02;
    let be32 = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (blocks, rest) = match bytes[0] {
        0x28 | 0x2A => {
            let count = u16::from_be_bytes([bytes[7], bytes[8]]);
            (Blocks { lba: u64::from(be32(2)), count: u64::from(count) }, bytes[6] | bytes[9])
        }
        0x88 | 0x8A => {
            let lba = u64::from(be32(2)) << 32 | u64::from(be32(6));
            (Blocks { lba, count: u64::from(be32(10)) }, bytes[14] | bytes[15])
        }
        _ => return None,
    };
    if odd | rest | bytes[1] & !(DPO | FUA) != 0 {
        return None;
    }
    Some(Everyday { write: bytes[0] & WRITE != 0, fua: bytes[1] & FUA != 0, blocks })
}

impl Cdb {
    /// The CDB in these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Cdb {
        Cdb(bytes)
    }

    /// The CDB in the first 32 of these bytes, zeroes behind them.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Cdb {
        let mut cdb = [0; 32];
        let len = bytes.len().min(cdb.len());
        cdb[..len].copy_from_slice(&bytes[..len]);
        Cdb(cdb)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// OPERATION CODE.
    #[inline]
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.0[0]
    }

    #[inline]
    pub(crate) const fn byte(&self, at: usize) -> u8 {
        self.0[at]
    }

    /// Whether any of the bits of `mask` is set in byte `at`.
    #[inline]
    pub(crate) const fn bit(&self, at: usize, mask: u8) -> bool {
        self.0[at] & mask != 0
    }

    #[inline]
    pub(crate) const fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    #[inline]
    pub(crate) const fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    #[inline]
    pub(crate) const fn be64(&self, at: usize) -> u64 {
        (self.be32(at) as u64) << 32 | self.be32(at + 4) as u64
    }

    /// SERVICE ACTION, where opcodes of this kind have it.
    pub(crate) const fn service_action(&self) -> u16 {
        if self.opcode() == 0x7F { self.be16(8) } else { (self.0[1] & 0x1F) as u16 }
    }

    /// How long CDBs with this opcode are by its group code (SPC-5, clause 4.2.5.1); for those outside the groups 32,
    /// which is all there can be.
    pub(crate) const fn group_len(opcode: u8) -> usize {
        match opcode >> 5 {
            0 => 6,
            1 | 2 => 10,
            4 => 16,
            5 => 12,
            _ => 32,
        }
    }

    /// LOGICAL BLOCK ADDRESS and TRANSFER LENGTH (or NUMBER OF BLOCKS) by the command's length. In the 6-byte form a
    /// length of 0 means 256 (SBC-4, clause 5.15).
    #[inline]
    pub(crate) const fn blocks(&self) -> Blocks {
        match Cdb::group_len(self.opcode()) {
            6 => {
                let count = if self.0[4] == 0 { 256 } else { self.0[4] as u64 };
                Blocks { lba: (self.be32(0) & 0x1F_FFFF) as u64, count }
            }
            10 => Blocks { lba: self.be32(2) as u64, count: self.be16(7) as u64 },
            12 => Blocks { lba: self.be32(2) as u64, count: self.be32(6) as u64 },
            32 => Blocks { lba: self.be64(12), count: self.be32(28) as u64 },
            _ => Blocks { lba: self.be64(2), count: self.be32(10) as u64 },
        }
    }

    /// The byte with DPO, FUA, UNMAP, NDOB and the like. (The 6-byte forms have none.)
    #[inline]
    pub(crate) const fn flags(&self) -> u8 {
        self.0[self.flags_at() as usize]
    }

    /// Where it is.
    #[inline]
    pub(crate) const fn flags_at(&self) -> u16 {
        if self.opcode() == 0x7F { 10 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(cdb: &[u8]) -> (u64, u64) {
        let Blocks { lba, count } = Cdb::from_slice(cdb).blocks();
        (lba, count)
    }

    #[test]
    fn ranges_of_every_length() {
        assert_eq!(blocks(&[0x08, 0xFF, 2, 3, 4, 0]), (0x1F_0203, 4));
        assert_eq!(blocks(&[0x0A, 0, 0, 1, 0, 0]), (1, 256));
        assert_eq!(blocks(&[0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0]), (0x0102_0304, 0x0506));
        assert_eq!(blocks(&[0xA8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]), (0x0102_0304, 0x0506_0708));
        let cdb = [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0];
        assert_eq!(blocks(&cdb), (0x0102_0304_0506_0708, 0x090A_0B0C));
        let mut cdb = [0; 32];
        cdb[0] = 0x7F;
        cdb[12..20].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        cdb[28..].copy_from_slice(&[9, 10, 11, 12]);
        assert_eq!(blocks(&cdb), (0x0102_0304_0506_0708, 0x090A_0B0C));
    }

    #[test]
    fn service_actions() {
        assert_eq!(Cdb::from_slice(&[0x9E, 0xF0]).service_action(), 0x10);
        assert_eq!(Cdb::from_slice(&[0x7F, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0B]).service_action(), 0x0B);
    }

    #[test]
    fn lengths_by_group() {
        assert_eq!([0x12, 0x28, 0x55, 0x88, 0xA8, 0x7F, 0xC0].map(Cdb::group_len), [6, 10, 10, 16, 12, 32, 32]);
    }
}
