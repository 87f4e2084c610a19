//! Sizes as people write and read them: powers of 1024, with or without the i.

/// Reads `4096`, `64K`, `512MiB`, `1.5G`, `2T`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "p" | "pib" => 50,
        _ => return Err(format!("'{unit}' is no unit of size; use K, M, G, T or P (powers of 1024)")),
    };
    let bad = || format!("'{text}' is no size; write for example 64M or 1.5G");
    let scale = 1u64 << shift;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(|| format!("'{text}' is too large"));
    }
    let number: f64 = number.parse().map_err(|_| bad())?;
    let bytes = number * scale as f64;
    if bytes.fract() != 0.0 {
        return Err(format!("'{text}' is not a whole number of bytes"));
    }
    if bytes >= u64::MAX as f64 { Err(format!("'{text}' is too large")) } else { Ok(bytes as u64) }
}

/// Writes a size in the largest unit that leaves at most one decimal's error.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = (63 - (bytes | 1).leading_zeros()) / 10;
    let scale = 1u64 << (10 * step);
    let unit = units[step as usize];
    if bytes.is_multiple_of(scale) {
        format!("{} {unit}", bytes / scale)
    } else {
        format!("{:.1} {unit}", bytes as f64 / scale as f64)
    }
}

/// Writes a duration in seconds.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("64K", 65536), ("1MiB", 1 << 20), ("1.5g", 3 << 29), ("2 T", 2 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1Q", "1e3", "0.3", "99999999P", "1.2.3", "18446744073709551616"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_times_are_written() {
        assert_eq!(size(0), "0 B");
        assert_eq!((size(65536), size(3 << 29)), ("64 KiB".into(), "1.5 GiB".into()));
        assert_eq!(size(u64::MAX), "16.0 EiB");
        assert_eq!((duration(59), duration(61)), ("59 s".into(), "1 min 1 s".into()));
        assert_eq!((duration(7200), duration(90000)), ("2 h 0 min".into(), "1 d 1 h".into()));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,20}", bytes in any::<u64>()) {
            let _ = parse_size(&text);
            prop_assert!(!size(bytes).is_empty());
        }
    }
}
