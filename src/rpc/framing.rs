//! Cutting the byte stream of an RPC connection into JSON values.
//!
//! SPDK's framing has no length and no delimiter: a request ends where its JSON value ends, so requests may be pretty
//! printed, sent byte by byte, or sent back to back. [`Framer`] looks at every byte once (a value that trickles in costs
//! no more than one that comes at once) and only decides where a value ends; whether it is good JSON is the parser's
//! business. Invariants: never more than [`REQUEST_MAX`] bytes are kept for a value, and `scanned <= buffer.len()`.

/// The largest request in bytes, as in SPDK. A larger one is answered with an error and the connection is closed.
pub const REQUEST_MAX: usize = 256 * 1024;

/// Brackets inside each other that a request may have.
pub const DEPTH_MAX: usize = 64;

/// Why the stream cannot be followed any further. The connection ends after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A value is longer than [`REQUEST_MAX`].
    #[error("the request is larger than {REQUEST_MAX} bytes")]
    TooLarge,
    /// Brackets are nested deeper than [`DEPTH_MAX`].
    #[error("the request is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// This byte cannot start or close a value here.
    #[error("this is not JSON: unexpected byte 0x{0:02x}")]
    Unexpected(u8),
}

/// What the bytes of the value so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    /// Between values: only white space so far.
    Nothing,
    /// An object or an array.
    Brackets,
    /// A string, number or word at the top level: never a request, but it has to be skipped to be refused.
    Scalar,
}

/// Collects bytes and hands out whole values.
#[derive(Debug)]
pub struct Framer {
    buffer: Vec<u8>,
    scanned: usize,
    inside: Inside,
    open: Vec<u8>,
    in_string: bool,
    escaped: bool,
}

impl Default for Framer {
    fn default() -> Self {
        Self::new()
    }
}

impl Framer {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Framer {
            buffer: Vec::new(),
            scanned: 0,
            inside: Inside::Nothing,
            open: Vec::new(),
            in_string: false,
            escaped: false,
        }
    }

    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether a value has begun and not ended.
    #[must_use]
    pub fn partial(&self) -> bool {
        self.inside != Inside::Nothing || self.buffer.iter().any(|byte| !is_space(*byte))
    }

    /// The next whole value, if it is there.
    ///
    /// # Errors
    /// [`FrameError`]; nothing more can be had from this stream then.
    pub fn next_value(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        self.skip_space();
        while self.scanned < self.buffer.len() {
            if self.scanned >= REQUEST_MAX {
                return Err(FrameError::TooLarge);
            }
            let byte = self.buffer[self.scanned];
            if self.inside == Inside::Scalar && !self.in_string && ends_word(byte) {
                return Ok(Some(self.take(self.scanned)));
            }
            self.scanned += 1;
            if self.step(byte)? {
                return Ok(Some(self.take(self.scanned)));
            }
        }
        Ok(None)
    }

    /// At the end of the stream: the rest, if it is a value that only the end could finish or a torn one.
    #[must_use]
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        self.skip_space();
        (!self.buffer.is_empty()).then(|| self.take(self.buffer.len()))
    }

    fn skip_space(&mut self) {
        if self.inside == Inside::Nothing && self.scanned == 0 {
            let spaces = self.buffer.iter().take_while(|byte| is_space(**byte)).count();
            self.buffer.drain(..spaces);
        }
    }

    /// Looks at one byte; `true` if the value ends with it.
    fn step(&mut self, byte: u8) -> Result<bool, FrameError> {
        if self.in_string {
            return Ok(self.step_string(byte));
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.inside == Inside::Nothing {
                    self.inside = Inside::Scalar;
                }
                Ok(false)
            }
            b'{' | b'[' => {
                self.inside = Inside::Brackets;
                if self.open.len() == DEPTH_MAX {
                    return Err(FrameError::TooDeep);
                }
                self.open.push(byte);
                Ok(false)
            }
            b'}' | b']' => {
                let expected = if byte == b'}' { b'{' } else { b'[' };
                if self.open.pop() != Some(expected) {
                    return Err(FrameError::Unexpected(byte));
                }
                Ok(self.open.is_empty())
            }
            _ if self.inside != Inside::Nothing => Ok(false),
            b'-' | b'0'..=b'9' | b'a'..=b'z' => {
                self.inside = Inside::Scalar;
                Ok(false)
            }
            other => Err(FrameError::Unexpected(other)),
        }
    }

    /// The same inside a string; `true` if a string at the top level ends.
    fn step_string(&mut self, byte: u8) -> bool {
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.in_string = false;
            return self.inside == Inside::Scalar;
        }
        false
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(len);
        let value = std::mem::replace(&mut self.buffer, rest);
        self.scanned = 0;
        self.inside = Inside::Nothing;
        self.open.clear();
        self.in_string = false;
        self.escaped = false;
        value
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn ends_word(byte: u8) -> bool {
    is_space(byte) || matches!(byte, b'{' | b'[' | b'}' | b']' | b'"' | b',')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(framer: &mut Framer) -> Vec<String> {
        let mut values = Vec::new();
        while let Some(value) = framer.next_value().expect("good stream") {
            values.push(String::from_utf8(value).expect("text"));
        }
        values
    }

    #[test]
    fn values_back_to_back_and_pretty_printed() {
        let mut framer = Framer::new();
        framer.push(b" {\"a\":\n [1, {\"b\":\"}\\\"]\"}]}{\"c\":1}\n[]  {");
        assert_eq!(all(&mut framer), ["{\"a\":\n [1, {\"b\":\"}\\\"]\"}]}", "{\"c\":1}", "[]"]);
        assert!(framer.partial());
        framer.push(b"}  ");
        assert_eq!(all(&mut framer), ["{}"]);
        assert!(!framer.partial());
        assert_eq!(framer.rest(), None);
    }

    #[test]
    fn scalars_are_cut_out_too() {
        let mut framer = Framer::new();
        framer.push(b"12 null\"x y\"{}7");
        assert_eq!(all(&mut framer), ["12", "null", "\"x y\"", "{}"]);
        assert_eq!(framer.rest().as_deref(), Some(&b"7"[..]));
    }

    #[test]
    fn what_is_no_json_is_refused_at_once() {
        for (bytes, error) in [
            (&b"]"[..], FrameError::Unexpected(b']')),
            (b"{]", FrameError::Unexpected(b']')),
            (b"GET / HTTP/1.1", FrameError::Unexpected(b'G')),
            (b"\x00", FrameError::Unexpected(0)),
        ] {
            let mut framer = Framer::new();
            framer.push(bytes);
            assert_eq!(framer.next_value(), Err(error));
        }
        let mut framer = Framer::new();
        framer.push(&[b'['; DEPTH_MAX + 1]);
        assert_eq!(framer.next_value(), Err(FrameError::TooDeep));
    }

    #[test]
    fn a_request_may_have_the_limit_and_not_a_byte_more() {
        let fits = format!("[\"{}\"]", "x".repeat(REQUEST_MAX - 4));
        let mut framer = Framer::new();
        framer.push(fits.as_bytes());
        assert_eq!(framer.next_value().map(|value| value.map(|value| value.len())), Ok(Some(REQUEST_MAX)));
        let over = format!("[\"{}\"]", "x".repeat(REQUEST_MAX - 3));
        framer.push(over.as_bytes());
        assert_eq!(framer.next_value(), Err(FrameError::TooLarge));
    }

    proptest! {
        #[test]
        fn cuts_do_not_depend_on_how_the_bytes_arrive(
            values in proptest::collection::vec("(\\{\"[a-z{}\\[\\]]{0,6}\":[0-9]{1,3}\\})|(\\[\"\\\\\\\\\"\\])", 0..8),
            step in 1usize..9,
        ) {
            let stream = values.concat();
            let mut framer = Framer::new();
            let mut got = Vec::new();
            for chunk in stream.as_bytes().chunks(step) {
                framer.push(chunk);
                got.extend(all(&mut framer));
            }
            prop_assert_eq!(got, values);
            prop_assert!(!framer.partial());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut framer = Framer::new();
            framer.push(&bytes);
            while let Ok(Some(value)) = framer.next_value() {
                prop_assert!(!value.is_empty());
            }
            let _ = framer.rest();
        }
    }
}
