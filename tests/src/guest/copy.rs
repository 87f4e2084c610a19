//! Copy commands as an initiator makes them: CDBs and parameter lists (SPC-5, clauses 6.3 ff.; SBC-4, clauses 5.11 and
//! 5.53).

/// A block to block segment: CSCD descriptor IDs, blocks of the source, and the addresses.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where it comes from.
    pub source: u16,
    /// Where it goes.
    pub destination: u16,
    /// How many blocks.
    pub blocks: u16,
    /// First block at the source.
    pub from: u64,
    /// First block at the destination.
    pub to: u64,
}

impl Segment {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x02, 0, 0, 0x18];
        for field in [self.source, self.destination, 0, self.blocks] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        bytes.extend_from_slice(&self.from.to_be_bytes());
        bytes.extend_from_slice(&self.to.to_be_bytes());
        bytes
    }
}

/// An identification descriptor with an NAA of 16 bytes, and no block length.
fn cscd(naa: &[u8; 16]) -> Vec<u8> {
    let mut bytes = vec![0xE4, 0, 0, 0, 1, 3, 0, 16];
    bytes.extend_from_slice(naa);
    bytes.resize(32, 0);
    bytes
}

fn third_party_out(action: u8, list: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x83, action);
    cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
    cdb
}

fn third_party_in(action: u8, list_id: u32, len: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x84, action);
    cdb[2..6].copy_from_slice(&list_id.to_be_bytes());
    cdb[10..14].copy_from_slice(&len.to_be_bytes());
    cdb
}

/// EXTENDED COPY(LID1) and its list; `usage` is LIST ID USAGE.
#[must_use]
pub fn lid1(list_id: u8, usage: u8, names: &[[u8; 16]], segments: &[Segment]) -> ([u8; 16], Vec<u8>) {
    let ends = names.iter().map(cscd).collect::<Vec<_>>().concat();
    let segments = segments.iter().map(Segment::bytes).collect::<Vec<_>>().concat();
    let mut list = vec![0; 16];
    (list[0], list[1]) = (list_id, usage << 3);
    list[2..4].copy_from_slice(&(ends.len() as u16).to_be_bytes());
    list[8..12].copy_from_slice(&(segments.len() as u32).to_be_bytes());
    list.extend(ends);
    list.extend(segments);
    (third_party_out(0x00, &list), list)
}

/// EXTENDED COPY(LID4) and its list.
#[must_use]
pub fn lid4(list_id: u32, immediate: bool, names: &[[u8; 16]], segments: &[Segment]) -> ([u8; 16], Vec<u8>) {
    let ends = names.iter().map(cscd).collect::<Vec<_>>().concat();
    let segments = segments.iter().map(Segment::bytes).collect::<Vec<_>>().concat();
    let mut list = vec![0; 48];
    (list[0], list[3], list[15], list[16]) = (1, 0x20, u8::from(immediate), 0xFF);
    list[20..24].copy_from_slice(&list_id.to_be_bytes());
    list[42..44].copy_from_slice(&(ends.len() as u16).to_be_bytes());
    list[44..46].copy_from_slice(&(segments.len() as u16).to_be_bytes());
    list.extend(ends);
    list.extend(segments);
    (third_party_out(0x01, &list), list)
}

/// COPY OPERATION ABORT.
#[must_use]
pub fn abort(list_id: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x83, 0x1C);
    cdb[2..6].copy_from_slice(&list_id.to_be_bytes());
    cdb
}

/// RECEIVE COPY STATUS(LID4): byte 5 says how the copy goes.
#[must_use]
pub fn status(list_id: u32, len: u32) -> [u8; 16] {
    third_party_in(0x05, list_id, len)
}

/// A range of blocks: the first one, and how many.
pub type Blocks = (u64, u32);

/// A header with block device range descriptors behind it.
fn with_ranges(mut list: Vec<u8>, ranges: &[Blocks]) -> Vec<u8> {
    let at = list.len() - 2;
    for (lba, count) in ranges {
        list.extend_from_slice(&lba.to_be_bytes());
        list.extend_from_slice(&count.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
    }
    let (said, len) = (list.len() as u16 - 2, ranges.len() as u16 * 16);
    list[..2].copy_from_slice(&said.to_be_bytes());
    list[at..at + 2].copy_from_slice(&len.to_be_bytes());
    list
}

fn token_out(action: u8, list_id: u32, list: &[u8]) -> [u8; 16] {
    let mut cdb = third_party_out(action, list);
    cdb[6..10].copy_from_slice(&list_id.to_be_bytes());
    cdb
}

/// POPULATE TOKEN and its list; `timeout_s`: INACTIVITY TIMEOUT.
#[must_use]
pub fn populate(list_id: u32, immediate: bool, timeout_s: u32, ranges: &[Blocks]) -> ([u8; 16], Vec<u8>) {
    let mut header = vec![0; 16];
    header[2] = u8::from(immediate);
    header[4..8].copy_from_slice(&timeout_s.to_be_bytes());
    let list = with_ranges(header, ranges);
    (token_out(0x10, list_id, &list), list)
}

/// WRITE USING TOKEN and its list; `offset`: OFFSET INTO ROD.
///
/// # Panics
/// If the token is not 512 bytes long.
#[must_use]
pub fn use_token(
    list_id: u32,
    (immediate, delete): (bool, bool),
    token: &[u8],
    offset: u64,
    ranges: &[Blocks],
) -> ([u8; 16], Vec<u8>) {
    let mut header = vec![0; 536];
    header[2] = u8::from(immediate) | u8::from(delete) << 1;
    header[8..16].copy_from_slice(&offset.to_be_bytes());
    header[16..528].copy_from_slice(token);
    let list = with_ranges(header, ranges);
    (token_out(0x11, list_id, &list), list)
}

/// RECEIVE ROD TOKEN INFORMATION: byte 5 says how it goes; without sense data the token comes from byte 38 on.
#[must_use]
pub fn token_information(list_id: u32, len: u32) -> [u8; 16] {
    third_party_in(0x07, list_id, len)
}
