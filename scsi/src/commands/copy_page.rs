//! VPD page 8Fh (SPC-5, clause 7.7.17): what a unit does as a copy manager.

use crate::commands::ROWS;
use crate::commands::copy::granularity;
use crate::copy;
use crate::data_in::DataIn;

/// Puts the descriptors of the page of a unit with blocks like this.
pub(crate) fn put(block_size: u32, data: &mut DataIn<'_>) {
    put_commands(data);
    descriptor(data, 0x0004, &parameter_data());
    let types = copy::DESCRIPTOR_TYPES;
    descriptor(data, 0x0008, &[&[types.len() as u8], &types[..]].concat());
    let [high, low] = copy::SELF.to_be_bytes();
    descriptor(data, 0x000C, &[0, 2, high, low]);
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
