//! Which cores reactors run on: reading `--reactors`, and what this machine offers.

use std::collections::BTreeSet;

/// One past the greatest core number that Linux' fixed-size affinity masks hold.
const MAX_CORES: usize = 1024;

/// Why a list of cores was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoresError {
    /// No core in it.
    #[error("no core given: name at least one, as in \"0\", \"0,2\", \"0-3\", \"[0,1]\" or \"0x3\"")]
    Empty,
    /// A part that is neither a number nor a range.
    #[error("\"{0}\" is not a core: write a list like \"0,2\" or \"0-3,8\", or a mask like \"0x3\"")]
    NotACore(String),
    /// A mask with something else than hexadecimal digits.
    #[error("\"{0}\" is not a mask: write 0x and hexadecimal digits, as in \"0x3\" for cores 0 and 1")]
    NotAMask(String),
    /// A range whose end comes before its start.
    #[error("the range {0}-{1} runs backwards: write {1}-{0}")]
    Backwards(usize, usize),
    /// A number that no mask of the kernel can hold.
    #[error("core {0} is beyond what Linux can pin to (0 to {last})", last = MAX_CORES - 1)]
    TooGreat(usize),
    /// The same core twice.
    #[error("core {0} is named twice: one reactor runs on a core")]
    Twice(usize),
}

/// Reads a list (`0,1`, `0-3,8`, either in brackets) or a mask (`0x3`) of cores; the order of a list is kept.
///
/// # Errors
/// [`CoresError`] says what is wrong and what to write instead.
pub fn parse_cores(text: &str) -> Result<Vec<usize>, CoresError> {
    let text = text.trim();
    let cores = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => parse_mask(text, digits)?,
        None => parse_list(strip_brackets(text))?,
    };
    if cores.is_empty() {
        return Err(CoresError::Empty);
    }
    check_distinct(&cores)?;
    Ok(cores)
}

/// The first core that is named a second time is an error.
pub(crate) fn check_distinct(cores: &[usize]) -> Result<(), CoresError> {
    let mut seen = BTreeSet::new();
    match cores.iter().find(|core| !seen.insert(**core)) {
        Some(core) => Err(CoresError::Twice(*core)),
        None => Ok(()),
    }
}

fn strip_brackets(text: &str) -> &str {
    text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text)
}

fn parse_list(text: &str) -> Result<Vec<usize>, CoresError> {
    if text.trim().is_empty() {
        return Err(CoresError::Empty);
    }
    let mut cores = Vec::new();
    for part in text.split(',').map(str::trim) {
        match part.split_once('-') {
            None => cores.push(parse_core(part, part)?),
            Some((first, last)) => {
                let (first, last) = (parse_core(first, part)?, parse_core(last, part)?);
                if first > last {
                    return Err(CoresError::Backwards(first, last));
                }
                cores.extend(first..=last);
            }
        }
    }
    Ok(cores)
}

fn parse_core(number: &str, part: &str) -> Result<usize, CoresError> {
    let number = number.trim();
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CoresError::NotACore(part.to_owned()));
    }
    let core = number.parse().unwrap_or(usize::MAX);
    if core < MAX_CORES { Ok(core) } else { Err(CoresError::TooGreat(core)) }
}

fn parse_mask(text: &str, digits: &str) -> Result<Vec<usize>, CoresError> {
    if digits.is_empty() {
        return Err(CoresError::NotAMask(text.to_owned()));
    }
    let mut cores = Vec::new();
    for (place, digit) in digits.chars().rev().enumerate() {
        let bits = digit.to_digit(16).ok_or_else(|| CoresError::NotAMask(text.to_owned()))?;
        cores.extend((0..4).filter(|bit| bits & (1 << bit) != 0).map(|bit| place * 4 + bit));
    }
    match cores.last() {
        Some(&core) if core >= MAX_CORES => Err(CoresError::TooGreat(core)),
        _ => Ok(cores),
    }
}

/// The cores that are online; `None` if the system does not say.
pub(crate) fn online() -> Option<Vec<usize>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    parse_list(text.trim()).ok()
}

/// The cores the calling thread may run on. Isolated cores are usually not among them, although pinning to one works.
#[must_use]
pub fn allowed() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..MAX_CORES).filter(|core| set.is_set(*core)).collect(),
        Err(_) => Vec::new(),
    }
}

/// Takes the calling thread, and those that it starts from now on, off the cores of reactors, if there are others that it
/// may run on. Reactors pin themselves. Returns the cores that are left.
///
/// # Errors
/// If the kernel refuses; the thread runs where it did.
pub fn keep_off(reactors: &[usize]) -> std::io::Result<Vec<usize>> {
    let allowed = allowed();
    let free: Vec<usize> = allowed.iter().copied().filter(|core| !reactors.contains(core)).collect();
    if free.is_empty() || free == allowed {
        return Ok(allowed);
    }
    let mut set = rustix::thread::CpuSet::new();
    free.iter().for_each(|core| set.set(*core));
    rustix::thread::sched_setaffinity(None, &set)?;
    Ok(free)
}

/// Where a ring's kernel workers go: to the cores without reactors; if there are none, to those of other reactors; if
/// there are none either, nowhere in particular (empty).
pub(crate) fn worker_cores(allowed: &[usize], reactors: &[usize], own: usize) -> Vec<usize> {
    let free: Vec<usize> = allowed.iter().copied().filter(|core| !reactors.contains(core)).collect();
    if free.is_empty() { allowed.iter().copied().filter(|core| *core != own).collect() } else { free }
}

/// A short way to write a list of cores: `0-3,8`.
#[must_use]
pub fn describe(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => parts.push((core, core)),
        }
    }
    let text = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    parts.into_iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_ranges_and_masks() {
        for (text, cores) in [
            ("0", vec![0]),
            ("0,1", vec![0, 1]),
            (" 3 , 1 ", vec![3, 1]),
            ("0-3,8", vec![0, 1, 2, 3, 8]),
            ("[0,1]", vec![0, 1]),
            ("[2-3]", vec![2, 3]),
            ("0x3", vec![0, 1]),
            ("0X10", vec![4]),
            ("0x8000000000000001", vec![0, 63]),
            ("0x10000000000000000", vec![64]),
            ("1023", vec![1023]),
        ] {
            assert_eq!(parse_cores(text).as_ref(), Ok(&cores), "{text}");
        }
    }

    #[test]
    fn errors_name_the_part_that_is_wrong() {
        let not = |part: &str| CoresError::NotACore(part.to_owned());
        let mask = |text: &str| CoresError::NotAMask(text.to_owned());
        for (text, error) in [
            ("", CoresError::Empty),
            ("[]", CoresError::Empty),
            ("0x0", CoresError::Empty),
            ("a", not("a")),
            ("0,,1", not("")),
            ("-1", not("-1")),
            ("+1", not("+1")),
            ("[0,1", not("[0")),
            ("1-", not("1-")),
            ("0x", mask("0x")),
            ("0xg", mask("0xg")),
            ("0x 3", mask("0x 3")),
            ("3-1", CoresError::Backwards(3, 1)),
            ("1,0-1", CoresError::Twice(1)),
            ("0-99999999999", CoresError::TooGreat(99_999_999_999)),
            ("99999999999999999999999", CoresError::TooGreat(usize::MAX)),
            (&format!("0x1{}", "0".repeat(256)), CoresError::TooGreat(1024)),
        ] {
            assert_eq!(parse_cores(text), Err(error), "{text}");
        }
    }

    #[test]
    fn workers_avoid_reactors_where_they_can() {
        assert_eq!(worker_cores(&[0, 1, 2, 3], &[0, 2], 0), [1, 3]);
        assert_eq!(worker_cores(&[0, 1], &[0, 1], 0), [1]);
        assert_eq!(worker_cores(&[0], &[0], 0), [] as [usize; 0]);
    }

    #[test]
    fn a_thread_and_its_children_keep_off() {
        let here = allowed();
        let run = |reactors: Vec<usize>| {
            let thread = std::thread::spawn(move || {
                let left = keep_off(&reactors).unwrap();
                (left, std::thread::spawn(allowed).join().unwrap())
            });
            thread.join().unwrap()
        };
        if here.len() > 1 {
            assert_eq!(run(vec![here[0]]), (here[1..].to_vec(), here[1..].to_vec()));
        }
        assert_eq!(run(here.clone()), (here.clone(), here.clone()), "there is no other core");
        assert_eq!(run(vec![MAX_CORES - 1]), (here.clone(), here), "it was off already");
    }

    #[test]
    fn descriptions_can_be_read_back() {
        assert_eq!(describe(&[0, 1, 2, 8, 10, 11]), "0-2,8,10-11");
        assert_eq!(describe(&[]), "");
        let online = online().expect("Linux tells its cores");
        assert_eq!(parse_cores(&describe(&online)), Ok(online));
        assert!(!allowed().is_empty());
    }
}
