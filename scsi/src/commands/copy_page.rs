//! VPD page 8Fh (SPC-5, clause 7.7.17; SBC-4, clause 6.6.10): what a unit does as a copy manager.

use crate::commands::ROWS;
use crate::commands::copy::granularity;
use crate::copy::{self, rod};
use crate::data_in::DataIn;

/// Puts the descriptors of the page of a unit with blocks like this.
pub(crate) fn put(block_size: u32, data: &mut DataIn<'_>) {
    descriptor(data, 0x0000, &token_limits(block_size));
    put_commands(data);
    descriptor(data, 0x0004, &parameter_data());
    let types = copy::DESCRIPTOR_TYPES;
    descriptor(data, 0x0008, &[&[types.len() as u8], &types[..]].concat());
    let [high, low] = copy::SELF.to_be_bytes();
    descriptor(data, 0x000C, &[0, 2, high, low]);
    descriptor(data, 0x0106, &token_features());
    descriptor(data, 0x0108, &token_types());
    descriptor(data, 0x8001, &general(granularity(block_size)));
}

/// A third-party copy descriptor, filled up to four bytes.
fn descriptor(data: &mut DataIn<'_>, kind: u16, body: &[u8]) {
    let len = body.len().next_multiple_of(4);
    data.put(&kind.to_be_bytes());
    data.put(&(len as u16).to_be_bytes());
    data.put(body);
    data.put(&[0; 3][..len - body.len()]);
}

/// Block device ROD token limits; lengths in blocks.
fn token_limits(block_size: u32) -> [u8; 32] {
    let blocks = |bytes: u64| (bytes / u64::from(block_size)).to_be_bytes();
    let mut data = [0; 32];
    data[6..8].copy_from_slice(&copy::MOST_RANGES.to_be_bytes());
    data[8..12].copy_from_slice(&copy::MOST_TIMEOUT_S.to_be_bytes());
    data[12..16].copy_from_slice(&copy::DEFAULT_TIMEOUT_S.to_be_bytes());
    data[16..24].copy_from_slice(&blocks(copy::MOST_TOKEN_BYTES));
    data[24..].copy_from_slice(&blocks(copy::OPTIMAL_TOKEN_BYTES));
    data
}

/// ROD token features: no tokens of other copy managers; no lifetime is promised, as any write may end one; of block devices
/// the sizes, in bytes.
fn token_features() -> [u8; 92] {
    const BLOCK_FEATURES: usize = 44;
    let mut data = [0; 92];
    data[16..20].fill(0xFF);
    data[20..24].copy_from_slice(&copy::MOST_TIMEOUT_S.to_be_bytes());
    data[42..44].copy_from_slice(&48u16.to_be_bytes());
    let features = &mut data[BLOCK_FEATURES..];
    features[2..4].copy_from_slice(&44u16.to_be_bytes());
    features[8..16].copy_from_slice(&copy::MOST_TOKEN_BYTES.to_be_bytes());
    features[16..24].copy_from_slice(&copy::OPTIMAL_TOKEN_BYTES.to_be_bytes());
    // Nothing moves into a token, so whatever a token may have is best made at once.
    features[24..32].copy_from_slice(&copy::MOST_TOKEN_BYTES.to_be_bytes());
    features[32..40].copy_from_slice(&copy::OPTIMAL_TOKEN_BYTES.to_be_bytes());
    data
}

/// Supported ROD token and ROD types: which tokens are made and taken.
fn token_types() -> [u8; 132] {
    const TOKEN_IN: u8 = 0x02;
    const TOKEN_OUT: u8 = 0x01;
    let mut data = [0; 132];
    data[2..4].copy_from_slice(&128u16.to_be_bytes());
    data[4..8].copy_from_slice(&rod::CHANGE_VULNERABLE.to_be_bytes());
    data[8] = TOKEN_IN | TOKEN_OUT;
    data[68..72].copy_from_slice(&rod::ZERO.to_be_bytes());
    data[72] = TOKEN_IN;
    data
}

/// Supported commands: those of the opcode table, by opcode.
fn put_commands(data: &mut DataIn<'_>) {
    let mut list = Vec::new();
    for opcode in [0x83, 0x84] {
        let rows = ROWS.iter().filter(|row| row.opcode == opcode);
        let actions: Vec<u8> = rows.map(|row| row.service_action.unwrap_or_default() as u8).collect();
        list.extend_from_slice(&[opcode, actions.len() as u8]);
        list.extend_from_slice(&actions);
    }
    list.insert(0, list.len() as u8);
    descriptor(data, 0x0001, &list);
}

fn parameter_data() -> [u8; 28] {
    let mut data = [0; 28];
    data[4..6].copy_from_slice(&copy::MOST_ENDS.to_be_bytes());
    data[6..8].copy_from_slice(&copy::MOST_SEGMENTS.to_be_bytes());
    data[8..12].copy_from_slice(&copy::MOST_DESCRIPTOR_BYTES.to_be_bytes());
    data
}

/// General copy operations.
fn general(granularity: u8) -> [u8; 32] {
    let mut data = [0; 32];
    data[..4].copy_from_slice(&u32::from(copy::MOST_COPIES).to_be_bytes());
    data[4..8].copy_from_slice(&u32::from(copy::MOST_COPIES).to_be_bytes());
    data[8..12].copy_from_slice(&copy::MOST_SEGMENT_BYTES.to_be_bytes());
    data[12] = granularity;
    data
}
