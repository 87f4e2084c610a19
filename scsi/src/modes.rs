//! Mode pages (SPC-5, clause 7.5; SBC-4, clause 6.5): their bytes, what of them an initiator may change, and what
//! follows from the values.
//!
//! A page is a row of [`PAGES`]; sensing and selecting do not know what is in one. Changing a page changes the unit:
//! [`Modes::flags`] turns the values into the flags that commands look at. What is saved is `kept.rs`, when a change counts
//! is `unit.rs`.

mod kept;
mod unit;

pub(crate) use unit::SavingModes;

use crate::Sense;
use crate::geometry::Flags;
use crate::supply::{DESCRIPTOR_LEN, Descriptor};

/// PC: which values of a page are meant (SPC-5, table 154).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    Current,
    Changeable,
    Default,
    Saved,
}

/// A page: its header and values as they are by default, and a mask of the bits that MODE SELECT may change. PS is 0
/// here; it is shown where pages can be saved.
pub(crate) struct Page {
    default: &'static [u8],
    changeable: &'static [u8],
}

const RECOVERY: usize = 0;
const CACHING: usize = 2;
const CONTROL: usize = 3;
const PROVISIONING: usize = 7;

/// Every page in the order of MODE SENSE's page 3Fh: by page code, then subpage code.
const PAGES: [Page; 8] = [
    // 01h read-write error recovery: AWRE and ARRE, as the target below repairs silently what it can; LBPERE, which says
    // whether thresholds are reported, is changeable.
    Page {
        default: &[0x01, 0x0A, 0xC0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0],
        changeable: &[0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0],
    },
    // 02h disconnect-reconnect: there is no bus to disconnect from, and no limit to a burst.
    Page { default: &[0x02, 0x0E, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], changeable: &[0; 16] },
    // 08h caching: WCE is changeable where there is a volatile cache.
    Page {
        default: &[0x08, 0x12, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        changeable: &[0, 0, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    },
    // 0Ah control: one task set for all (TST 0), GLTSD (no log parameters to save), unrestricted reordering, nobody's
    // commands end because of another's error (QERR 0); D_SENSE and SWP are changeable.
    Page {
        default: &[0x0A, 0x0A, 0x02, 0x10, 0, 0, 0, 0, 0, 0, 0, 0],
        changeable: &[0, 0, 0x04, 0, 0x08, 0, 0, 0, 0, 0, 0, 0],
    },
    // 0Ah 01h control extension: TCMOS and SCSIP, as the clock is the host's until SET TIMESTAMP.
    Page {
        default: &[
            0x4A, 0x01, 0, 0x1C, 0x06, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
        changeable: &[0; 32],
    },
    // 1Ah power condition: no timer runs.
    Page {
        default: &[
            0x1A, 0x26, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0,
        ],
        changeable: &[0; 40],
    },
    // 1Ch informational exceptions: DEXCPT, as none are reported.
    Page { default: &[0x1C, 0x0A, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0], changeable: &[0; 12] },
    // 1Ch 02h logical block provisioning: every initiator is told of thresholds (SITUA 0). Their descriptors follow, as the
    // operator has set them; no initiator changes any.
    Page { default: &[0x5C, 0x02, 0, 0x0C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], changeable: &[0; 16] },
];

/// In byte 2 of [`CACHING`].
const WCE: u8 = 0x04;
/// In byte 4 of [`CONTROL`].
const SWP: u8 = 0x08;
/// In the first byte of each page that MODE SENSE gives.
const PS: u8 = 0x80;

/// The longest page, header included.
const PAGE_MAX: usize = 40;

const ALL_PAGES: u8 = 0x3F;
const ALL_SUBPAGES: u8 = 0xFF;

impl Page {
    /// SPF: whether the header is that of a subpage.
    fn is_subpage(&self) -> bool {
        self.default[0] & 0x40 != 0
    }

    fn code(&self) -> u8 {
        self.default[0] & 0x3F
    }

    fn subpage(&self) -> u8 {
        if self.is_subpage() { self.default[1] } else { 0 }
    }

    fn header_len(&self) -> usize {
        if self.is_subpage() { 4 } else { 2 }
    }
}

/// The bytes of all pages.
type Bytes = [[u8; PAGE_MAX]; PAGES.len()];

/// A unit's mode pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Modes {
    current: Bytes,
    /// What a reset returns to, if anything has been saved.
    saved: Option<Bytes>,
    /// Whether anything can be saved.
    savable: bool,
    /// What was saved cannot be read. Until somebody saves or resets the pages, what is unsafe to assume is not assumed.
    unreadable: bool,
    /// Whether the device has a volatile cache. Without one WCE shows 0 and cannot be changed: there is nothing that it
    /// could switch.
    volatile_cache: bool,
}

impl Modes {
    /// The default values, where nothing can be saved.
    pub(crate) fn new(volatile_cache: bool) -> Modes {
        Modes { current: defaults(), saved: None, savable: false, unreadable: false, volatile_cache }
    }

    /// The device below has been replaced: what was asked for stays, what can be shown follows the device.
    pub(crate) fn set_volatile_cache(&mut self, volatile_cache: bool) {
        self.volatile_cache = volatile_cache;
    }

    /// Back to the saved values. Where nothing was saved these are the defaults, except that a cache which was switched off
    /// stays off: see `LogicalUnit::reset`.
    pub(crate) fn reset(&mut self) {
        let write_through = self.current[CACHING][2] & WCE == 0;
        match self.saved {
            Some(saved) => self.current = saved,
            None => {
                self.current = defaults();
                if write_through {
                    self.current[CACHING][2] &= !WCE;
                }
            }
        }
    }

    /// The current values become the defaults (MODE SELECT's RTD).
    pub(crate) fn revert(&mut self) {
        self.current = defaults();
    }

    /// What commands have to know of the values.
    pub(crate) fn flags(&self) -> Flags {
        let mut flags = Flags::empty();
        let write_back = self.current[CACHING][2] & WCE != 0;
        flags.set(Flags::WRITE_BACK, self.volatile_cache && write_back);
        flags.set(Flags::WRITE_THROUGH, self.volatile_cache && !write_back);
        flags.set(Flags::D_SENSE, self.current[CONTROL][2] & 0x04 != 0);
        flags.set(Flags::SOFTWARE_PROTECTED, self.current[CONTROL][4] & SWP != 0);
        flags.set(Flags::KEEPS, self.savable);
        flags
    }

    /// Whether initiators want to be told of thresholds (LBPERE).
    pub(crate) fn reports_thresholds(&self) -> bool {
        self.current[RECOVERY][7] & 0x80 != 0
    }

    /// Visits the pages that a page code and subpage code of MODE SENSE mean; whether there is any.
    /// `thresholds` are those of the unit.
    pub(crate) fn sense(
        &self,
        code: u8,
        subpage: u8,
        values: Values,
        thresholds: &[Descriptor],
        mut visit: impl FnMut(&[u8]),
    ) -> bool {
        let mut found = false;
        for (index, page) in PAGES.iter().enumerate() {
            let code_fits = code == ALL_PAGES || code == page.code();
            if code_fits && (subpage == ALL_SUBPAGES || subpage == page.subpage()) {
                found = true;
                let bytes = &self.values(index, values)[..page.default.len()];
                if index == PROVISIONING {
                    visit(&with_thresholds(bytes, values, thresholds));
                } else {
                    visit(bytes);
                }
            }
        }
        // Page 3Fh goes with subpages 00h and FFh only.
        found && (code != ALL_PAGES || matches!(subpage, 0 | ALL_SUBPAGES))
    }

    /// Applies the page at the front of `list` and returns its length. `at` is where the page lies in the parameter
    /// data, for field pointers.
    pub(crate) fn select(&mut self, list: &[u8], at: usize, thresholds: &[Descriptor]) -> Result<usize, Sense> {
        let index = find(list, at)?;
        let page = &PAGES[index];
        let (header, own) = (page.header_len(), page.default.len());
        let more = if index == PROVISIONING { thresholds.as_flattened() } else { &[] };
        let len = own + more.len();
        let given_len = if page.is_subpage() { byte_pair(list, 2)? } else { usize::from(byte(list, 1)?) };
        if given_len != len - header {
            return Err(Sense::invalid_parameter(offset(at + header - if header == 4 { 2 } else { 1 }), None));
        }
        let given = list.get(..len).ok_or(Sense::LIST_LENGTH)?;
        let (current, mask) = (self.values(index, Values::Current), self.values(index, Values::Changeable));
        for byte in header..len {
            let wrong = match byte.checked_sub(own) {
                None => (given[byte] ^ current[byte]) & !mask[byte],
                Some(behind) => given[byte] ^ more[behind],
            };
            if wrong != 0 {
                return Err(Sense::invalid_parameter(offset(at + byte), Some(leftmost(wrong))));
            }
        }
        for byte in header..own {
            let stored = &mut self.current[index][byte];
            *stored = *stored & !mask[byte] | given[byte] & mask[byte];
        }
        Ok(len)
    }

    fn values(&self, index: usize, values: Values) -> [u8; PAGE_MAX] {
        let page = &PAGES[index];
        let mut bytes = [0; PAGE_MAX];
        let header = page.header_len();
        match values {
            Values::Current => bytes = self.current[index],
            Values::Saved => bytes = self.saved.unwrap_or_else(defaults)[index],
            Values::Changeable => {
                bytes[..page.changeable.len()].copy_from_slice(page.changeable);
                bytes[..header].copy_from_slice(&page.default[..header]);
            }
            Values::Default => bytes[..page.default.len()].copy_from_slice(page.default),
        }
        if index == CACHING && !self.volatile_cache {
            bytes[2] &= !WCE;
        }
        if self.savable {
            bytes[0] |= PS;
        }
        bytes
    }
}

/// The page with the unit's thresholds behind it; a mask of them is all zeroes, as none can be changed.
fn with_thresholds(page: &[u8], values: Values, thresholds: &[Descriptor]) -> Vec<u8> {
    let mut bytes = page.to_vec();
    let changeable = values == Values::Changeable;
    thresholds.iter().for_each(|threshold| bytes.extend(if changeable { [0; DESCRIPTOR_LEN] } else { *threshold }));
    bytes[3] = (bytes.len() - 4) as u8;
    bytes
}

fn defaults() -> Bytes {
    let mut bytes = [[0; PAGE_MAX]; PAGES.len()];
    for (values, page) in bytes.iter_mut().zip(&PAGES) {
        values[..page.default.len()].copy_from_slice(page.default);
    }
    bytes
}

/// The row of the page at the front of `list`.
fn find(list: &[u8], at: usize) -> Result<usize, Sense> {
    let first = byte(list, 0)?;
    let second = byte(list, 1)?;
    let has_subpage = first & 0x40 != 0;
    let fits = |page: &Page| {
        page.code() == first & 0x3F && page.is_subpage() == has_subpage && (!has_subpage || page.subpage() == second)
    };
    PAGES.iter().position(fits).ok_or(Sense::invalid_parameter(offset(at), Some(5)))
}

fn byte(list: &[u8], at: usize) -> Result<u8, Sense> {
    list.get(at).copied().ok_or(Sense::LIST_LENGTH)
}

fn byte_pair(list: &[u8], at: usize) -> Result<usize, Sense> {
    Ok(usize::from(byte(list, at)?) << 8 | usize::from(byte(list, at + 1)?))
}

/// The leftmost set bit, as a field pointer counts.
pub(crate) const fn leftmost(bits: u8) -> u8 {
    7 - bits.leading_zeros() as u8
}

/// An offset in parameter data (at most 65535 bytes long) for a field pointer.
pub(crate) fn offset(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_well_formed_and_sorted() {
        let mut last = None;
        for page in &PAGES {
            assert_eq!(page.default.len(), page.changeable.len());
            assert!(page.default.len() <= PAGE_MAX);
            assert_eq!(page.default[0] & 0x80, 0, "PS");
            let len = if page.is_subpage() {
                usize::from(page.default[3]) + usize::from(page.default[2]) * 256
            } else {
                usize::from(page.default[1])
            };
            assert_eq!(len + page.header_len(), page.default.len());
            assert!(page.changeable[..page.header_len()].iter().all(|&b| b == 0));
            let key = Some((page.code(), page.subpage()));
            assert!(last < key);
            last = key;
        }
        assert_eq!([RECOVERY, CACHING, CONTROL].map(|index| PAGES[index].code()), [0x01, 0x08, 0x0A]);
        assert_eq!((PAGES[PROVISIONING].code(), PAGES[PROVISIONING].subpage()), (0x1C, 2));
    }

    fn page(modes: &Modes, code: u8, values: Values) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert!(modes.sense(code, 0, values, &[], |page| bytes.extend_from_slice(page)));
        bytes
    }

    #[test]
    fn wce_exists_only_with_a_volatile_cache() {
        let with = Modes::new(true);
        assert_eq!(page(&with, 0x08, Values::Current)[2], 0x04);
        assert_eq!(page(&with, 0x08, Values::Changeable)[2], 0x04);
        assert_eq!(with.flags(), Flags::WRITE_BACK);
        let mut without = Modes::new(false);
        for values in [Values::Current, Values::Changeable, Values::Default] {
            assert_eq!(page(&without, 0x08, values)[2], 0);
        }
        assert_eq!(without.flags(), Flags::empty());
        let mut on = page(&without, 0x08, Values::Current);
        on[2] = 0x04;
        assert_eq!(without.select(&on, 4, &[]), Err(Sense::invalid_parameter(6, Some(2))));
    }

    #[test]
    fn a_select_that_asks_for_more_than_it_may_changes_nothing() {
        let mut modes = Modes::new(true);
        let before = modes.clone();
        let mut control = page(&modes, 0x0A, Values::Current);
        control[2] |= 0x04;
        control[3] = 0x20;
        assert_eq!(modes.select(&control, 8, &[]), Err(Sense::invalid_parameter(11, Some(5))));
        assert_eq!(modes, before);
        control[3] = 0x10;
        assert_eq!(modes.select(&control, 8, &[]), Ok(12));
        assert!(modes.flags().contains(Flags::D_SENSE));
        assert_eq!(page(&modes, 0x0A, Values::Default)[2], 0x02);
    }

    #[test]
    fn pages_that_are_cut_off_unknown_or_of_another_length() {
        let mut modes = Modes::new(true);
        let caching = page(&modes, 0x08, Values::Current);
        assert_eq!(modes.select(&caching[..19], 4, &[]), Err(Sense::LIST_LENGTH));
        assert_eq!(modes.select(&caching[..1], 4, &[]), Err(Sense::LIST_LENGTH));
        assert_eq!(modes.select(&[0x03, 0x16], 4, &[]), Err(Sense::invalid_parameter(4, Some(5))));
        assert_eq!(modes.select(&[0x48, 0x01, 0, 0], 4, &[]), Err(Sense::invalid_parameter(4, Some(5))));
        let mut longer = caching;
        longer[1] = 0x13;
        assert_eq!(modes.select(&longer, 4, &[]), Err(Sense::invalid_parameter(5, None)));
    }

    #[test]
    fn a_reset_keeps_a_cache_off() {
        let mut modes = Modes::new(true);
        let mut caching = page(&modes, 0x08, Values::Current);
        caching[2] = 0;
        modes.select(&caching, 4, &[]).unwrap();
        modes.reset();
        assert_eq!(modes.flags(), Flags::WRITE_THROUGH);
    }

    #[test]
    fn page_3f_is_all_and_knows_two_subpages() {
        let modes = Modes::new(true);
        let codes = |subpage| {
            let mut codes = Vec::new();
            let found = modes.sense(0x3F, subpage, Values::Current, &[], |page| codes.push((page[0], page[1])));
            (found, codes)
        };
        let pages = vec![(0x01, 0x0A), (0x02, 0x0E), (0x08, 0x12), (0x0A, 0x0A), (0x1A, 0x26), (0x1C, 0x0A)];
        assert_eq!(codes(0), (true, pages.clone()));
        let mut all = pages;
        all.insert(4, (0x4A, 0x01));
        all.push((0x5C, 0x02));
        assert_eq!(codes(0xFF), (true, all));
        assert!(!codes(1).0);
        assert!(!modes.sense(0x03, 0, Values::Current, &[], |_| ()));
        assert!(modes.sense(0x08, 0xFF, Values::Current, &[], |_| ()));
        assert!(!modes.sense(0x08, 1, Values::Current, &[], |_| ()));
    }

    #[test]
    fn a_subpage_has_a_header_of_its_own() {
        let mut modes = Modes::new(true);
        let mut extension = Vec::new();
        assert!(modes.sense(0x0A, 1, Values::Current, &[], |page| extension.extend_from_slice(page)));
        assert_eq!((extension.len(), &extension[..5]), (32, &[0x4A, 0x01, 0, 0x1C, 0x06][..]));
        assert_eq!(modes.select(&extension, 8, &[]), Ok(32));
        assert_eq!(modes.select(&extension[..31], 8, &[]), Err(Sense::LIST_LENGTH));
        assert_eq!(modes.select(&extension[..3], 8, &[]), Err(Sense::LIST_LENGTH));
        extension[4] = 0x02;
        assert_eq!(modes.select(&extension, 8, &[]), Err(Sense::invalid_parameter(12, Some(2))), "SCSIP");
        extension[3] = 0x1B;
        assert_eq!(modes.select(&extension, 8, &[]), Err(Sense::invalid_parameter(10, None)), "PAGE LENGTH");
    }

    #[test]
    fn thresholds_are_shown_and_nobodys_to_change() {
        let mut modes = Modes::new(true);
        let thresholds = [[0x80, 1, 0, 0, 0, 0, 0, 9], [0x81, 2, 0, 0, 0, 0, 0, 5]];
        let mut page = Vec::new();
        modes.sense(0x1C, 2, Values::Current, &thresholds, |bytes| page.extend_from_slice(bytes));
        assert_eq!((page.len(), page[3], &page[16..24]), (32, 28, &thresholds[0][..]));
        assert_eq!(modes.select(&page, 8, &thresholds), Ok(32));
        assert_eq!(modes.select(&page, 8, &thresholds[1..]), Err(Sense::invalid_parameter(10, None)));
        page[31] = 6;
        assert_eq!(modes.select(&page, 8, &thresholds), Err(Sense::invalid_parameter(39, Some(1))));
    }

    #[test]
    fn lbpere_is_changeable() {
        let mut modes = Modes::new(true);
        let mut recovery = page(&modes, 0x01, Values::Current);
        assert!(modes.reports_thresholds());
        recovery[7] = 0;
        modes.select(&recovery, 4, &[]).unwrap();
        assert!(!modes.reports_thresholds());
        modes.reset();
        assert!(modes.reports_thresholds());
    }
}
