//! Saved mode pages as text, to be kept over a restart: a line for each page that has anything to change, strict when it is
//! read.
//!
//! ```text
//! PAGE SUBPAGE BYTES
//! ```
//! Numbers are hexadecimal; BYTES are the page without its header. Of these only the changeable bits count, so a default
//! that another version has changes with it. An empty text: nothing was saved.

use std::fmt::Write as _;

use super::{Bytes, CACHING, CONTROL, Modes, PAGES, Page, SWP, WCE, defaults};
use crate::keeper::{Section, Sections};
use crate::text::{from_hexadecimal, to_hexadecimal};

impl Modes {
    /// The pages of a unit that can have them saved, with what was kept; `None`: something that cannot be read. Then the
    /// cache is off and the medium is write-protected, as an initiator may have saved that, until pages are saved again or
    /// given up.
    pub(crate) fn restored(volatile_cache: bool, kept: Option<&Sections>) -> Modes {
        let read = Section::Modes.of(kept).and_then(from_text);
        let (unreadable, saved) = (read.is_none(), read.unwrap_or_else(|| Some(cautious())));
        let current = saved.unwrap_or_else(defaults);
        Modes { current, saved, savable: true, unreadable, volatile_cache }
    }

    /// Whether what was saved cannot be read.
    pub(crate) fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// The text of what is saved.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        let Some(saved) = &self.saved else { return text };
        for (page, bytes) in PAGES.iter().zip(saved).filter(|(page, _)| page.is_changeable()) {
            // Writing to a string cannot fail.
            let values = to_hexadecimal(&bytes[page.header_len()..page.default.len()]);
            let _ = writeln!(text, "{:02x} {:02x} {values}", page.code(), page.subpage());
        }
        text
    }

    /// The current values are those to be saved.
    pub(crate) fn save(&mut self) {
        self.saved = Some(self.current);
        self.unreadable = false;
    }

    /// Nothing has ever been saved, and everything is as by default.
    pub(crate) fn forget(&mut self) {
        (self.current, self.saved, self.unreadable) = (defaults(), None, false);
    }
}

impl Page {
    fn is_changeable(&self) -> bool {
        self.changeable.iter().any(|&mask| mask != 0)
    }
}

fn cautious() -> Bytes {
    let mut bytes = defaults();
    bytes[CACHING][2] &= !WCE;
    bytes[CONTROL][4] |= SWP;
    bytes
}

/// What the text says; `None` if it is not one that was written here.
fn from_text(text: &str) -> Option<Option<Bytes>> {
    if text.is_empty() {
        return Some(None);
    }
    let (mut bytes, mut lines) = (defaults(), text.lines());
    for (page, values) in PAGES.iter().zip(&mut bytes).filter(|(page, _)| page.is_changeable()) {
        let words: Vec<&str> = lines.next()?.split(' ').collect();
        let [code, subpage, given] = words[..] else { return None };
        let [code, subpage, given] = [from_hexadecimal(code)?, from_hexadecimal(subpage)?, from_hexadecimal(given)?];
        let header = page.header_len();
        if code != [page.code()] || subpage != [page.subpage()] || given.len() != page.default.len() - header {
            return None;
        }
        for ((value, given), mask) in values[header..].iter_mut().zip(given).zip(&page.changeable[header..]) {
            *value = *value & !mask | given & mask;
        }
    }
    lines.next().is_none().then_some(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Flags;

    fn kept(text: &str) -> Modes {
        Modes::restored(true, Some(&Sections::from([("modes".to_owned(), text.to_owned())])))
    }

    #[test]
    fn what_is_saved_comes_back() {
        let mut modes = kept("");
        assert_eq!((modes.to_text().as_str(), modes.is_unreadable()), ("", false));
        modes.current[CACHING][2] &= !WCE;
        modes.current[CONTROL][2] |= 0x04;
        modes.save();
        let text = modes.to_text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "01 00 c0000000008000000000");
        assert_eq!(lines[1], "08 00 000000000000000000000000000000000000");
        assert_eq!(lines[2..], ["0a 00 06100000000000000000"]);
        let again = kept(&text);
        assert_eq!(again.flags(), Flags::WRITE_THROUGH | Flags::D_SENSE | Flags::KEEPS);
        assert_eq!(again.to_text(), text);
        // What is not changeable is as this version has it.
        let other = kept(&text.replace("0a 00 0610", "0a 00 0400"));
        assert_eq!(other.to_text(), text);
    }

    #[test]
    fn what_was_never_written_switches_the_cache_off_and_protects() {
        let mut modes = kept("");
        modes.save();
        let good = modes.to_text();
        let cut: Vec<&str> = good.lines().take(2).collect();
        let wrong = [
            "01 00 c000000000800000000000\n".to_owned(),
            cut.join("\n"),
            format!("{good}\n"),
            format!("{good}{good}"),
            good.replace("08 00", "07 00"),
            good.replace("0a 00", "0a 01"),
            good.replace("08 00 04", "08 00 0"),
            good.replace("08 00 04", "08 00 +4"),
            good.replace("08 00 ", "08 "),
            "nonsense".to_owned(),
        ];
        for text in wrong {
            let mut modes = kept(&text);
            assert!(modes.is_unreadable(), "{text:?}");
            let safe = Flags::WRITE_THROUGH | Flags::SOFTWARE_PROTECTED | Flags::KEEPS;
            assert_eq!(modes.flags(), safe);
            modes.reset();
            assert_eq!(modes.flags(), safe, "a reset does not know better");
            modes.forget();
            assert_eq!((modes.flags(), modes.is_unreadable()), (Flags::WRITE_BACK | Flags::KEEPS, false));
        }
        assert!(Modes::restored(true, None).is_unreadable());
    }
}
