//! CRC-32C of a whole block, kept in its bytes 4 to 7.

use super::BLOCK;

const AT: std::ops::Range<usize> = 4..8;

fn checksum(block: &[u8; BLOCK]) -> u32 {
    let sum = crc32c::crc32c(&block[..AT.start]);
    let sum = crc32c::crc32c_append(sum, &[0; 4]);
    crc32c::crc32c_append(sum, &block[AT.end..])
}

/// Puts the checksum in its place.
pub fn seal(block: &mut [u8; BLOCK]) {
    let sum = checksum(block);
    block[AT].copy_from_slice(&sum.to_le_bytes());
}

/// Whether the checksum is right.
#[must_use]
pub fn is_sealed(block: &[u8; BLOCK]) -> bool {
    block[AT] == checksum(block).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_counts() {
        let mut block = [0; BLOCK];
        seal(&mut block);
        assert!(is_sealed(&block) && block[AT] != [0; 4], "a block of zeroes is not sealed by itself");
        for bit in (0..BLOCK * 8).step_by(37) {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_sealed(&block), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(is_sealed(&block));
    }
}
