//! Operations as text, to be kept over a restart: one line, strict when it is read.
//!
//! ```text
//! format
//! sanitize EXIT zeroes
//! sanitize EXIT pattern PASSES INVERT BYTES
//! failed EXIT
//! ```
//! EXIT is `restricted` or `unrestricted`, BYTES are hexadecimal. A format that is found so was interrupted.

use super::{Content, Operation, Purpose, Running, State};

impl Operation {
    /// As it is kept: strict when it is read.
    fn to_text(&self) -> String {
        let (Purpose::Sanitize { unrestricted }, content) = (self.purpose, &self.content) else {
            return "format\n".into();
        };
        let exit = exit_word(unrestricted);
        match content {
            Content::Zeroes => format!("sanitize {exit} zeroes\n"),
            Content::Pattern { bytes, passes, invert } => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("sanitize {exit} pattern {passes} {invert} {hex}\n")
            }
        }
    }
}

const fn exit_word(unrestricted: bool) -> &'static str {
    if unrestricted { "unrestricted" } else { "restricted" }
}

impl State {
    pub(super) fn to_text(&self) -> String {
        match self {
            State::None => String::new(),
            State::Due(operation) | State::Running(Running { operation, .. }) => operation.to_text(),
            State::Failed(Purpose::Format) => "format\n".into(),
            State::Failed(Purpose::Sanitize { unrestricted }) => format!("failed {}\n", exit_word(*unrestricted)),
        }
    }

    /// What the text says; what nobody can understand may have been a sanitize that nobody may leave.
    pub(super) fn from_text(text: &str) -> State {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let unrestricted = |word: &str| word == exit_word(true);
        let sanitize = |exit: &str, content| {
            let purpose = Purpose::Sanitize { unrestricted: unrestricted(exit) };
            State::Due(Operation { purpose, content, number: 0 })
        };
        match words[..] {
            [] => State::None,
            ["format"] => State::Failed(Purpose::Format),
            ["failed", exit] => State::Failed(Purpose::Sanitize { unrestricted: unrestricted(exit) }),
            ["sanitize", exit, "zeroes"] => sanitize(exit, Content::Zeroes),
            ["sanitize", exit, "pattern", passes, invert, hex] => match pattern(passes, invert, hex) {
                Some(content) => sanitize(exit, content),
                None => State::Failed(Purpose::Sanitize { unrestricted: false }),
            },
            _ => State::Failed(Purpose::Sanitize { unrestricted: false }),
        }
    }
}

fn pattern(passes: &str, invert: &str, hex: &str) -> Option<Content> {
    let digits = hex.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    let bytes = digits.collect::<Option<Box<[u8]>>>().filter(|bytes| !bytes.is_empty())?;
    let passes = passes.parse().ok().filter(|passes| *passes > 0)?;
    Some(Content::Pattern { bytes, passes, invert: invert.parse().ok()? })
}
