//! Bytes from an RPC client, in pieces of any size: the framing finds the same values however they are cut, and the
//! parser takes or refuses each.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The daemon's own files: it is a program, not a library.
#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../../../src/rpc"]
mod rpc {
    pub mod error;
    pub mod framing;
    pub mod message;
}

use rpc::framing::Framer;

/// All values, and whether the stream broke.
fn values(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, bool) {
    let (mut framer, mut all) = (Framer::new(), Vec::new());
    for piece in pieces {
        framer.push(piece);
        loop {
            match framer.next_value() {
                Ok(Some(value)) => all.push(value),
                Ok(None) => break,
                Err(_) => return (all, true),
            }
        }
    }
    (all, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, stream)) = data.split_first() else { return };
    let whole = values(&[stream]);
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*cut % 7) + 1).collect();
    assert_eq!(values(&pieces), whole, "the values depend on how the stream is cut");
    for value in whole.0 {
        if let Ok(message) = rpc::message::parse(&value) {
            let _ = format!("{message:?}");
        }
    }
});
