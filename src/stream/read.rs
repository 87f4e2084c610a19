//! Reads a stream, and believes none of it before it has proved itself.

use std::io::{self, Read};

use uuid::Uuid;

use super::{Begin, DATA_MAX, End, Frame, GRAIN, HEADER, Header, Kind, TEXT_MAX, VERSION};

/// Why a stream is refused.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Something else.
    #[error("it is no export of a volume: it does not begin like one")]
    NotAStream,
    /// A later Pollux made it.
    #[error("it is an export of version {0}, and this Pollux reads version {VERSION}: use the one that made it")]
    Version(u64),
    /// It is cut off.
    #[error(
        "it is torn: it ends at byte {at}, in or before frame {frame}, without the frame that says that it is whole"
    )]
    Torn {
        /// The frame.
        frame: u64,
        /// Where.
        at: u64,
    },
    /// A frame is not what it was.
    #[error("it is damaged: frame {frame}, at byte {at}, {what}")]
    Damaged {
        /// The frame.
        frame: u64,
        /// Where.
        at: u64,
        /// How that shows.
        what: &'static str,
    },
    /// More comes than there should be.
    #[error("it is damaged: something follows its last frame, at byte {0}")]
    Behind(u64),
    /// It does not come.
    #[error("it cannot be read: {0}")]
    Io(io::Error),
}

/// See the module's description.
pub struct Reader<R> {
    input: R,
    begin: Begin,
    sums: End,
    /// Where the last part ended.
    end: u64,
    /// How far it was read.
    at: u64,
    payload: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads the beginning of a stream.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn begin(input: R) -> Result<Self, StreamError> {
        let nobody = Begin {
            stream: Uuid::nil(),
            name: String::new(),
            bytes: 0,
            content: 0,
            state: Uuid::nil(),
            base: None,
            created: 0,
        };
        let mut reader = Reader { input, begin: nobody, sums: End::default(), end: 0, at: 0, payload: Vec::new() };
        let header = match reader.header() {
            Err(StreamError::Damaged { .. }) => return Err(StreamError::NotAStream),
            Err(StreamError::Torn { at, .. }) if at < HEADER as u64 => return Err(StreamError::NotAStream),
            other => other?,
        };
        if header.0.kind != Kind::Begin || header.0.len > TEXT_MAX as u64 {
            return Err(StreamError::NotAStream);
        }
        reader.take(header)?;
        if header.0.offset != u64::from(VERSION) {
            return Err(StreamError::Version(header.0.offset));
        }
        let begin: Begin = serde_json::from_slice(&reader.payload)
            .map_err(|_| reader.damaged(0, HEADER as u64, "does not say what it is of"))?;
        if begin.stream.is_nil() || begin.state.is_nil() || begin.bytes == 0 || !begin.bytes.is_multiple_of(GRAIN) {
            return Err(reader.damaged(0, HEADER as u64, "says what cannot be"));
        }
        reader.begin = begin;
        Ok(reader)
    }

    /// What it is of.
    pub const fn what(&self) -> &Begin {
        &self.begin
    }

    /// Bytes that were read of it.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// The next part; parts come in order and lie in the volume. After [`Frame::End`] nothing more may be asked.
    ///
    /// # Errors
    /// [`StreamError`]: then nothing of the stream may be used.
    pub fn next_frame(&mut self) -> Result<Frame<'_>, StreamError> {
        let (number, start) = (self.sums.frames, self.at);
        let header = self.header()?;
        let Header { kind, offset, len } = header.0;
        let most = if kind == Kind::Data { DATA_MAX } else { TEXT_MAX };
        if header.0.payload() > most as u64 {
            return Err(self.damaged(number, start, "is longer than a frame can be"));
        }
        self.take(header)?;
        if kind == Kind::Begin {
            return Err(self.damaged(number, start, "begins another stream"));
        }
        if kind == Kind::End {
            return self.last(number, start);
        }
        let end = offset.checked_add(len).filter(|end| *end <= self.begin.bytes);
        let fits = offset >= self.end && len > 0 && (offset | len).is_multiple_of(GRAIN);
        let Some(end) = end.filter(|_| fits) else {
            return Err(self.damaged(number, start, "lies where it cannot in the volume"));
        };
        self.end = end;
        if kind == Kind::Zero {
            self.sums.zero_bytes += len;
            return Ok(Frame::Zero { offset, len });
        }
        self.sums.data_bytes += len;
        self.sums.data_crc32c = crc32c::crc32c_append(self.sums.data_crc32c, &self.payload);
        Ok(Frame::Data { offset, bytes: &self.payload })
    }

    fn last(&mut self, number: u64, start: u64) -> Result<Frame<'_>, StreamError> {
        let end: End = serde_json::from_slice(&self.payload)
            .map_err(|_| self.damaged(number, start, "does not say what the stream has held"))?;
        let seen = End { frames: number, ..self.sums.clone() };
        if end != seen || seen.data_bytes + seen.zero_bytes != self.begin.content {
            return Err(self.damaged(number, start, "says that the stream has held something else than it did"));
        }
        let mut more = [0];
        match read_some(&mut self.input, &mut more) {
            Ok(0) => Ok(Frame::End(end)),
            Ok(_) => Err(StreamError::Behind(self.at)),
            Err(error) => Err(StreamError::Io(error)),
        }
    }

    /// The header of the next frame, and the checksum that it has.
    fn header(&mut self) -> Result<(Header, u32), StreamError> {
        let (number, start) = (self.sums.frames, self.at);
        let mut bytes = [0; HEADER];
        self.fill(&mut bytes)?;
        Header::from_bytes(&bytes).ok_or_else(|| self.damaged(number, start, "does not begin like a frame"))
    }

    /// The payload of a frame, whose checksum is right.
    fn take(&mut self, (header, checksum): (Header, u32)) -> Result<(), StreamError> {
        let (number, start) = (self.sums.frames, self.at - HEADER as u64);
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(usize::try_from(header.payload()).unwrap_or(DATA_MAX).min(DATA_MAX), 0);
        let filled = self.fill(&mut payload);
        self.payload = payload;
        filled?;
        if header.checksum(self.begin.stream, number, &self.payload) != checksum {
            return Err(self.damaged(number, start, "has a wrong checksum, or belongs elsewhere"));
        }
        self.sums.frames += 1;
        Ok(())
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            match read_some(&mut self.input, bytes) {
                Ok(0) => return Err(StreamError::Torn { frame: self.sums.frames, at: self.at }),
                Ok(count) => {
                    self.at += count as u64;
                    bytes = &mut bytes[count..];
                }
                Err(error) => return Err(StreamError::Io(error)),
            }
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "what is damaged is this one")]
    const fn damaged(&self, frame: u64, at: u64, what: &'static str) -> StreamError {
        StreamError::Damaged { frame, at, what }
    }
}

fn read_some(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
