//! Pools as earlier versions left them. They are never made again: every later version has to open them.
//!
//! A packed image is the number of blocks of the medium, then each block that is not all zeroes: its number (8 bytes), how
//! many of its bytes come before the zeroes at its end (2 bytes), and these.

use super::Memory;
use crate::thin::format::BLOCK;

/// A pool of format version 1 after a crash: [`super::story`] of the version that was the first to have it.
///
/// # Panics
/// If the file is damaged.
#[must_use]
pub fn v1() -> Memory {
    unpack(include_bytes!("images/v1.pool")).expect("the image in the repository")
}

/// What the checker of the first version said of it, as JSON.
pub const V1_REPORT: &str = include_str!("images/v1.json");

/// A medium as a packed image.
#[must_use]
pub fn pack(memory: &Memory) -> Vec<u8> {
    let mut bytes = memory.len.to_le_bytes().to_vec();
    let mut blocks: Vec<_> = memory.blocks.iter().collect();
    blocks.sort_unstable_by_key(|(number, _)| **number);
    for (number, block) in blocks {
        let len = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&(len as u16).to_le_bytes());
        bytes.extend_from_slice(&block[..len]);
    }
    bytes
}

/// A packed image as a medium; `None`: it is none.
#[must_use]
pub fn unpack(bytes: &[u8]) -> Option<Memory> {
    let (len, mut rest) = bytes.split_first_chunk()?;
    let mut memory = Memory { len: u64::from_le_bytes(*len), ..Memory::default() };
    while !rest.is_empty() {
        let (number, more) = rest.split_first_chunk()?;
        let (len, more) = more.split_first_chunk()?;
        let (payload, more) = more.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
        let mut block = Box::new([0; BLOCK]);
        block.get_mut(..payload.len())?.copy_from_slice(payload);
        memory.blocks.insert(u64::from_le_bytes(*number), block);
        rest = more;
    }
    Some(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thin::testing::story::story;

    #[test]
    fn what_is_packed_is_unpacked() {
        let memory = story().build().memory;
        let packed = pack(&memory);
        let again = unpack(&packed).unwrap();
        assert_eq!((again.len, again.blocks), (memory.len, memory.blocks));
        assert!(unpack(&packed[..packed.len() - 1]).is_none() && unpack(&[]).is_none());
    }
}
