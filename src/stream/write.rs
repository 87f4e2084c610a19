//! Writes a stream.

use std::io::{self, Write};

use uuid::Uuid;

use super::{Begin, DATA_MAX, End, GRAIN, Header, Kind, TEXT_MAX, VERSION};

/// See the module's description.
pub struct Writer<W> {
    out: W,
    stream: Uuid,
    sums: End,
    written: u64,
    /// Where the last part ended.
    at: u64,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a stream.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn begin(out: W, begin: &Begin) -> io::Result<Self> {
        let mut writer =
            Writer { out, stream: Uuid::nil(), sums: End::default(), written: 0, at: 0, bytes: begin.bytes };
        // The first frame says which stream it is, so its own checksum cannot know.
        writer.text(Kind::Begin, u64::from(VERSION), begin)?;
        writer.stream = begin.stream;
        Ok(writer)
    }

    /// A part of the volume, behind the last one.
    ///
    /// # Errors
    /// Those of `out`.
    ///
    /// # Panics
    /// If it lies where it cannot.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(bytes.len() <= DATA_MAX, "at most so much");
        self.advance(offset, bytes.len() as u64);
        self.sums.data_bytes += bytes.len() as u64;
        self.sums.data_crc32c = crc32c::crc32c_append(self.sums.data_crc32c, bytes);
        self.frame(Header { kind: Kind::Data, offset, len: bytes.len() as u64 }, bytes)
    }

    /// A part of the volume that is zero, behind the last one.
    ///
    /// # Errors
    /// Those of `out`.
    ///
    /// # Panics
    /// If it lies where it cannot.
    pub fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.advance(offset, len);
        self.sums.zero_bytes += len;
        self.frame(Header { kind: Kind::Zero, offset, len }, &[])
    }

    /// That was all. Returns what it came to, and its bytes.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn end(mut self) -> io::Result<(End, u64)> {
        let end = self.sums.clone();
        self.text(Kind::End, 0, &end)?;
        self.out.flush()?;
        Ok((end, self.written))
    }

    fn advance(&mut self, offset: u64, len: u64) {
        let end = offset.checked_add(len).filter(|end| *end <= self.bytes);
        assert!(offset >= self.at && len > 0 && (offset | len).is_multiple_of(GRAIN), "parts come in order");
        self.at = end.expect("it lies in the volume");
    }

    fn text(&mut self, kind: Kind, offset: u64, what: &impl serde::Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(what)?;
        if text.len() > TEXT_MAX {
            return Err(io::Error::other("the names in it are too long"));
        }
        self.frame(Header { kind, offset, len: text.len() as u64 }, &text)
    }

    fn frame(&mut self, header: Header, payload: &[u8]) -> io::Result<()> {
        let checksum = header.checksum(self.stream, self.sums.frames, payload);
        self.out.write_all(&header.to_bytes(checksum))?;
        self.out.write_all(payload)?;
        self.sums.frames += 1;
        self.written += (super::HEADER + payload.len()) as u64;
        Ok(())
    }
}
