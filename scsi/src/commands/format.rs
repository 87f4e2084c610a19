//! FORMAT UNIT (SBC-4, clause 5.4): gives every block zeroes, or the pattern that was sent, and takes its time for it.
//! There is no protection information to be added and there are no defects to be mapped out, so that is all a format is
//! here.

use crate::commands::Call;
use crate::wipe::{Content, Purpose};
use crate::{Action, Inventory, Sense};

const OPTIONS: usize = 1;
const LONGLIST: u8 = 0x20;
const FMTDATA: u8 = 0x10;

/// The parameter list header, by LONGLIST.
const SHORT: usize = 4;
const LONG: usize = 8;
/// The front of an initialization pattern descriptor.
const DESCRIPTOR: usize = 4;

/// FORMAT UNIT: the CDB. The table refuses FMTPINFO and FFMT.
pub(crate) fn format(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const FORMAT_OF_DEFECT_LIST: u8 = 0x07;
    let options = call.cdb.byte(OPTIONS);
    if options & FMTDATA == 0 {
        // Without data there is no list that the other bits could be about.
        let about_lists = options & !FMTDATA;
        if about_lists != 0 {
            return Err(Sense::invalid_field(OPTIONS as u16, Some(crate::modes::leftmost(about_lists))));
        }
        return Ok(begin(call, Content::Zeroes, false));
    }
    // Block, long block, bytes from index and physical sector formats: whatever the format, the list has to be empty.
    if matches!(options & FORMAT_OF_DEFECT_LIST, 1 | 2 | 6 | 7) {
        return Err(Sense::invalid_field(OPTIONS as u16, Some(2)));
    }
    let least = header_len(call);
    Ok(Action::Parameters { least, most: least + DESCRIPTOR + call.geometry.block_size() as usize })
}

fn header_len(call: &Call<'_>) -> usize {
    if call.cdb.bit(OPTIONS, LONGLIST) { LONG } else { SHORT }
}

/// FORMAT UNIT: the parameter list.
pub(crate) fn format_list(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    const PROTECTION_FIELDS_USAGE: u8 = 0x07;
    const FOV: u8 = 0x80;
    /// DPRY, DCRT and STPF say what to do about defects and certification: there are none, so whatever they say is done.
    const VALID_WITH_FOV: u8 = 0x78;
    const IP: u8 = 0x08;
    const IMMED: u8 = 0x02;
    let header = header_len(call);
    let Some((header, rest)) = list.split_at_checked(header) else { return Err(Sense::LIST_LENGTH) };
    if header[0] & PROTECTION_FIELDS_USAGE != 0 {
        return Err(Sense::invalid_parameter(0, Some(2)));
    }
    let options = header[1];
    let not_valid = options & VALID_WITH_FOV;
    if options & FOV == 0 && not_valid != 0 {
        return Err(Sense::invalid_parameter(1, Some(crate::modes::leftmost(not_valid))));
    }
    let (exponent, defects_at) = if header.len() == LONG { (header[3], 4) } else { (0, 2) };
    if exponent != 0 {
        return Err(Sense::invalid_parameter(3, Some(crate::modes::leftmost(exponent))));
    }
    if header[defects_at..].iter().any(|byte| *byte != 0) {
        return Err(Sense::invalid_parameter(defects_at as u16, None));
    }
    let content = if options & IP == 0 { Content::Zeroes } else { pattern(header.len(), rest, call)? };
    Ok(begin(call, content, options & IMMED != 0))
}

/// The initialization pattern descriptor, which lies `at` bytes behind the front of the list.
fn pattern(at: usize, descriptor: &[u8], call: &Call<'_>) -> Result<Content, Sense> {
    const SECURITY_INITIALIZE: u8 = 0x20;
    const DEFAULT: u8 = 0x00;
    const REPEATED: u8 = 0x01;
    let wrong = |byte: usize, bit| Err(Sense::invalid_parameter((at + byte) as u16, bit));
    let Some((front, bytes)) = descriptor.split_at_checked(DESCRIPTOR) else { return Err(Sense::LIST_LENGTH) };
    if front[0] & SECURITY_INITIALIZE != 0 {
        // What was reassigned or is in a cache is SANITIZE's business.
        return wrong(0, Some(5));
    }
    let len = usize::from(front[2]) << 8 | usize::from(front[3]);
    match front[1] {
        DEFAULT if len == 0 => Ok(Content::Zeroes),
        DEFAULT => wrong(2, None),
        REPEATED if len == 0 || len > call.geometry.block_size() as usize => wrong(2, None),
        REPEATED => Ok(content_of(bytes.get(..len).ok_or(Sense::LIST_LENGTH)?)),
        _ => wrong(1, None),
    }
}

fn content_of(bytes: &[u8]) -> Content {
    if bytes.iter().all(|byte| *byte == 0) {
        return Content::Zeroes;
    }
    Content::Pattern { bytes: bytes.into(), passes: 1, invert: false }
}

fn begin(call: &Call<'_>, content: Content, immediate: bool) -> Action {
    call.unit.begin_wipe(call.path, Purpose::Format, content, immediate)
}
