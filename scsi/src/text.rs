//! Bytes as hexadecimal digits, for what is kept as text.

use std::fmt::Write as _;

pub(crate) fn to_hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of a word; `None` if it has anything but pairs of digits.
pub(crate) fn from_hexadecimal(word: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let pairs = word.as_bytes().chunks(2);
    pairs.map(|pair| if let [high, low] = pair { Some(digit(high)? << 4 | digit(low)?) } else { None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        assert_eq!(to_hexadecimal(&[0x00, 0xA5, 0xFF]), "00a5ff");
        assert_eq!(from_hexadecimal("00A5ff"), Some(vec![0x00, 0xA5, 0xFF]));
        assert_eq!(from_hexadecimal(""), Some(vec![]));
        for wrong in ["0", "+1", "0g", " 1", "\u{e9}"] {
            assert_eq!(from_hexadecimal(wrong), None, "{wrong:?}");
        }
    }
}
