//! A ROD token as it goes over the wire: 512 bytes that stand for data of a unit (SPC-5, clause 5.18.8; SBC-4, clause 4.28).
//!
//! What is in it that others can know (the unit, the length) only says where to look; the token is known by all of its
//! bytes, of which the last 32 come from the system's random numbers.

use pollux_core::Shape;
use uuid::Uuid;

use crate::copy::Designator;
use crate::{Identity, Key, Sense, code};

pub(crate) const TOKEN_LEN: usize = 512;
pub(crate) type TokenBytes = [u8; TOKEN_LEN];

/// The part of a token that is shown by REPORT ALL ROD TOKENS, which nobody can use it by.
pub(crate) const MANAGEMENT_LEN: usize = 96;

/// ROD TYPE: point in time copy, change vulnerable.
pub(crate) const CHANGE_VULNERABLE: u32 = 0x0080_0001;
/// ROD TYPE: block device zero.
pub(crate) const ZERO: u32 = 0xFFFF_0001;

/// ROD TOKEN LENGTH: of what comes behind it.
const LENGTH: u16 = (TOKEN_LEN - 8) as u16;
/// CREATOR LOGICAL UNIT DESCRIPTOR.
const CREATOR: usize = 16;

/// A new token for so many bytes of a unit.
pub(crate) fn create(identity: &Identity, shape: &Shape, len: u64) -> Box<TokenBytes> {
    const TARGET_DEVICE: u8 = 0x20;
    const T10_VENDOR: u8 = 0x01;
    const ASCII: u8 = 0x02;
    let secret: [Uuid; 3] = std::array::from_fn(|_| Uuid::new_v4());
    let mut token = Box::new([0; TOKEN_LEN]);
    token[..4].copy_from_slice(&CHANGE_VULNERABLE.to_be_bytes());
    token[6..8].copy_from_slice(&LENGTH.to_be_bytes());
    token[8..16].copy_from_slice(&secret[0].as_bytes()[8..]);
    token[CREATOR] = 0xE4;
    token[CREATOR + 4..CREATOR + 28].copy_from_slice(&Designator::naa(&identity.naa).encode());
    token[CREATOR + 28..CREATOR + 32].copy_from_slice(&shape.block_size.to_be_bytes());
    token[48..64].copy_from_slice(&u128::from(len).to_be_bytes());
    token[96..128].copy_from_slice(&device_data(shape));
    token[128..132].copy_from_slice(&[ASCII, TARGET_DEVICE | T10_VENDOR, 0, 8]);
    token[132..140].copy_from_slice(&identity.vendor);
    token[480..496].copy_from_slice(secret[1].as_bytes());
    token[496..].copy_from_slice(secret[2].as_bytes());
    token
}

/// The data for block devices: READ CAPACITY(16) behind the last address.
fn device_data(shape: &Shape) -> [u8; 32] {
    const LBPME: u8 = 0x80;
    const LBPRZ: u8 = 0x40;
    let mut data = [0; 32];
    data[..4].copy_from_slice(&shape.block_size.to_be_bytes());
    data[5] = (shape.physical_block_size / shape.block_size).max(1).ilog2().min(15) as u8;
    data[6] = shape.discard.map_or(0, |discard| LBPME | if discard.reads_zero { LBPRZ } else { 0 });
    data
}

/// What a token that somebody presents says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presented {
    /// As many zeroes as are wanted.
    Zero,
    /// Data of the unit of this name.
    Of(Designator),
}

/// The end of a command with a token that nobody knows.
pub(crate) const UNKNOWN: Sense = Sense::new(Key::IllegalRequest, code::TOKEN_UNKNOWN);

/// Reads a token as far as it says where to look.
pub(crate) fn present(token: &TokenBytes) -> Result<Presented, Sense> {
    let refused = |code| Err(Sense::new(Key::IllegalRequest, code));
    let kind = u32::from_be_bytes([token[0], token[1], token[2], token[3]]);
    if kind != CHANGE_VULNERABLE && kind != ZERO {
        return refused(code::UNSUPPORTED_TOKEN_TYPE);
    }
    if token[6..8] != LENGTH.to_be_bytes() {
        return refused(code::INVALID_TOKEN_LENGTH);
    }
    if kind == ZERO {
        return Ok(Presented::Zero);
    }
    let name = token[CREATOR + 4..].first_chunk().and_then(Designator::parse);
    name.filter(|_| token[CREATOR] == 0xE4).map(Presented::Of).ok_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, shape};

    #[test]
    fn a_token_says_what_the_standards_want_and_nothing_twice() {
        let identity = Bench::new().unit.identity();
        let token = create(&identity, &shape(), 0x12_3400);
        let mut want = vec![0, 0x80, 0, 1, 0, 0, 0x01, 0xF8];
        want.extend_from_slice(&token[8..16]);
        want.extend_from_slice(&[0xE4, 0, 0, 0, 1, 3, 0, 16]);
        want.extend_from_slice(identity.naa.as_bytes());
        want.extend_from_slice(&[0; 4]);
        want.extend_from_slice(&[0, 0, 2, 0]);
        want.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0]);
        want.extend_from_slice(&[0; 32]);
        want.extend_from_slice(&[0, 0, 2, 0, 0, 3, 0xC0, 0]);
        want.extend_from_slice(&[0; 24]);
        want.extend_from_slice(&[2, 0x21, 0, 8]);
        want.extend_from_slice(&identity.vendor);
        want.resize(480, 0);
        assert_eq!(token[..480], want);
        let another = create(&identity, &shape(), 0x12_3400);
        for part in [8..16, 480..496, 496..512] {
            assert_ne!(token[part.clone()], another[part]);
        }
        let name = Designator::naa(&identity.naa);
        assert_eq!(present(&token), Ok(Presented::Of(name)));
    }

    #[test]
    fn what_is_no_token_is_told_by_what_is_wrong_with_it() {
        let token = create(&Bench::new().unit.identity(), &shape(), 512);
        let code = |at: usize, byte| {
            let mut token = token.clone();
            token[at] = byte;
            present(&token).map_err(|sense| (sense.key, sense.code()))
        };
        let refused = |code| Err((Key::IllegalRequest, code));
        assert_eq!(code(3, 2), refused(0x2301), "persistent");
        assert_eq!(code(1, 1), refused(0x2301));
        assert_eq!(code(7, 0xF0), refused(0x230A));
        assert_eq!(code(16, 0xE0), refused(0x2304));
        assert_eq!(code(23, 21), refused(0x2304), "a name that has no room");
        let mut zero = [0; TOKEN_LEN];
        zero[..8].copy_from_slice(&[0xFF, 0xFF, 0, 1, 0, 0, 0x01, 0xF8]);
        assert_eq!(present(&zero), Ok(Presented::Zero));
        zero[7] = 0;
        assert_eq!(present(&zero).unwrap_err().code(), 0x230A);
    }
}
