//! Blocks that all hold one value, so that a reader that sees a part of a write shows.

use anyhow::{Result, ensure};

/// `len` bytes of the value.
#[must_use]
pub fn filled(value: u64, len: usize) -> Vec<u8> {
    value.to_le_bytes().repeat(len / 8)
}

/// The value that all of it holds.
///
/// # Errors
/// If it holds more than one.
pub fn value_of(data: &[u8]) -> Result<u64> {
    let value = u64::from_le_bytes(data[..8].try_into()?);
    ensure!(data == filled(value, data.len()), "a reader saw a part of a write");
    Ok(value)
}
