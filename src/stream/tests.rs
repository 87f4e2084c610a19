use super::*;
use proptest::prelude::*;

fn begin(bytes: u64, base: bool) -> Begin {
    Begin {
        stream: Uuid::from_u128(0x1111),
        name: "p/v".into(),
        bytes,
        content: if base { 16384 } else { 0 },
        state: Uuid::from_u128(0x2222),
        base: base.then(|| Base { state: Uuid::from_u128(0x3333), name: "p/s".into() }),
        created: 7,
    }
}

/// A small one of all kinds of frames.
fn small() -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::begin(&mut out, &begin(1 << 20, true)).unwrap();
    writer.data(4096, &[7; 4096]).unwrap();
    writer.zero(16384, 8192).unwrap();
    writer.data((1 << 20) - 4096, &[9; 4096]).unwrap();
    let (end, written) = writer.end().unwrap();
    assert_eq!((end.frames, end.data_bytes, end.zero_bytes), (4, 8192, 8192));
    assert_eq!(written, out.len() as u64);
    out
}

/// Offset, length, first byte of data.
type Part = (u64, u64, Option<u8>);

/// What a whole stream says.
fn read(bytes: &[u8]) -> Result<(Begin, Vec<Part>), StreamError> {
    let mut reader = Reader::begin(bytes)?;
    let (begin, mut parts) = (reader.what().clone(), Vec::new());
    loop {
        match reader.next_frame()? {
            Frame::Data { offset, bytes } => parts.push((offset, bytes.len() as u64, Some(bytes[0]))),
            Frame::Zero { offset, len } => parts.push((offset, len, None)),
            Frame::End(_) => return Ok((begin, parts)),
        }
    }
}

#[test]
fn what_is_written_is_read() {
    let (what, parts) = read(&small()).unwrap();
    assert_eq!(what, begin(1 << 20, true));
    assert_eq!(parts, [(4096, 4096, Some(7)), (16384, 8192, None), ((1 << 20) - 4096, 4096, Some(9))]);
    let mut empty = Vec::new();
    Writer::begin(&mut empty, &begin(4096, false)).unwrap().end().unwrap();
    assert_eq!(read(&empty).unwrap().1, []);
}

#[test]
fn every_byte_that_is_another_is_seen() {
    let good = small();
    for at in 0..good.len() {
        for bits in [1, 0x80, 0xFF] {
            let mut bad = good.clone();
            bad[at] ^= bits;
            let error = read(&bad).expect_err("accepted");
            assert!(!matches!(error, StreamError::Io(_)), "byte {at}: {error}");
        }
    }
}

#[test]
fn a_stream_that_is_cut_off_anywhere_is_torn() {
    let good = small();
    for len in 0..good.len() {
        match read(&good[..len]) {
            Err(StreamError::Torn { at, .. }) => assert_eq!(at, len as u64),
            Err(StreamError::NotAStream) if len < HEADER => {}
            other => panic!("{len}: {other:?}"),
        }
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(read(&longer), Err(StreamError::Behind(at)) if at == good.len() as u64));
}

/// Where frames begin.
fn frames(stream: &[u8]) -> Vec<usize> {
    let (mut starts, mut at) = (Vec::new(), 0);
    while at < stream.len() {
        starts.push(at);
        let header = Header::from_bytes(stream[at..].first_chunk().unwrap()).unwrap().0;
        at += HEADER + header.payload() as usize;
    }
    starts.push(at);
    starts
}

#[test]
fn frames_that_are_lost_repeated_swapped_or_of_another_stream_are_seen() {
    let good = small();
    let starts = frames(&good);
    let frame = |stream: &[u8], number: usize| stream[starts[number]..starts[number + 1]].to_vec();
    let all: Vec<Vec<u8>> = (0..starts.len() - 1).map(|number| frame(&good, number)).collect();
    for number in 0..all.len() {
        let mut lost = all.clone();
        lost.remove(number);
        assert!(read(&lost.concat()).is_err(), "without frame {number}");
        let mut twice = all.clone();
        twice.insert(number, all[number].clone());
        assert!(read(&twice.concat()).is_err(), "frame {number} twice");
        if number + 1 < all.len() {
            let mut swapped = all.clone();
            swapped.swap(number, number + 1);
            assert!(read(&swapped.concat()).is_err(), "frame {number} and the next");
        }
    }
    let mut other = Vec::new();
    let what = Begin { stream: Uuid::from_u128(0x4444), ..begin(1 << 20, true) };
    let mut writer = Writer::begin(&mut other, &what).unwrap();
    writer.data(4096, &[7; 4096]).unwrap();
    writer.zero(16384, 8192).unwrap();
    writer.data((1 << 20) - 4096, &[9; 4096]).unwrap();
    writer.end().unwrap();
    for number in 1..all.len() {
        let mut mixed = all.clone();
        mixed[number] = frame(&other, number);
        assert!(read(&mixed.concat()).is_err(), "frame {number} of another stream");
    }
}

#[test]
fn what_is_no_stream_or_of_a_later_version_is_told() {
    for none in [&b""[..], b"PK", &[0; 100], &[b'x'; 5000]] {
        assert!(matches!(read(none), Err(StreamError::NotAStream)));
    }
    let mut later = small();
    let payload = later[HEADER..frames(&later)[1]].to_vec();
    let header = Header { kind: Kind::Begin, offset: 2, len: payload.len() as u64 };
    later[..HEADER].copy_from_slice(&header.to_bytes(header.checksum(Uuid::nil(), 0, &payload)));
    assert!(matches!(read(&later), Err(StreamError::Version(2))));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..300, good in 0usize..600) {
        let _ = read(&bytes);
        let stream = small();
        bytes.truncate(at);
        let _ = read(&[&stream[..good.min(stream.len())], &bytes[..]].concat());
    }
}
