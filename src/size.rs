//! Sizes as text for people: bytes, or binary multiples.

use crate::units::{ChunkSize, SECTOR_SIZE};

/// Reads `512`, `4K`, `64KiB`, `1.5g`; K, M, G and T are powers of 1024. A fraction is cut to
/// whole sectors.
///
/// # Errors
/// What is wrong with `text`, and how to write it.
pub fn parse(text: &str) -> Result<u64, String> {
    let in_number = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
    let (number, unit) = text.split_at(text.bytes().take_while(in_number).count());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_fraction = number.len() > whole.len();
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(fraction) || is_fraction && fraction.is_empty() {
        return Err(format!(
            "`{text}` is not a size: write bytes, or a number with K, M, G or T"
        ));
    }
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "kb" | "mb" | "gb" | "tb" => {
            return Err(format!(
                "`{unit}` may mean 1000 or 1024: write K, M, G or T (powers of 1024)"
            ));
        }
        _ => {
            return Err(format!(
                "unknown unit `{unit}` in `{text}`: use K, M, G or T (powers of 1024)"
            ));
        }
    };
    if is_fraction && shift == 0 {
        return Err(format!("`{text}`: there is no part of a byte"));
    }
    let bytes = whole
        .parse()
        .ok()
        .and_then(|n: u64| n.checked_mul(1 << shift));
    bytes
        .and_then(|bytes| bytes.checked_add(part_of(fraction, 1 << shift)))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| format!("`{text}` is larger than any file can be"))
}

/// Whole sectors in the part of `unit` that the digits after a point stand for.
fn part_of(digits: &str, unit: u64) -> u64 {
    // From the last digit on: each is a tenth of what stands before it. More than 15 digits
    // are parts of bytes, whatever the unit.
    let digits = digits.bytes().take(15);
    let (mut value, mut scale) = (0_u128, 1_u128);
    for digit in digits {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    let bytes = value * u128::from(unit) / scale;
    let sectors = bytes / u128::from(SECTOR_SIZE);
    u64::try_from(sectors).unwrap_or(0) * SECTOR_SIZE
}

/// A new size, by itself or as what is added to the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// In bytes.
    To(u64),
    /// Bytes more.
    By(u64),
}

impl NewSize {
    /// The size in bytes after `present`; `None` if there is none.
    pub const fn after(self, present: u64) -> Option<u64> {
        match self {
            Self::To(bytes) => Some(bytes),
            Self::By(more) => present.checked_add(more),
        }
    }
}

/// As [`parse_device_size`]; with `+` before it, how much is added.
///
/// # Errors
/// As [`parse`].
pub fn parse_new_size(text: &str) -> Result<NewSize, String> {
    match text.strip_prefix('+') {
        Some(more) => parse_device_size(more).map(NewSize::By),
        None => parse_device_size(text).map(NewSize::To),
    }
}

/// A chunk size in bytes: a power of two, 512 bytes to 1 GiB.
///
/// # Errors
/// As [`parse`], with the nearest sizes that are possible.
pub fn parse_chunk_size(text: &str) -> Result<ChunkSize, String> {
    let bytes = parse(text)?;
    let largest = ChunkSize::MAX_SECTORS * SECTOR_SIZE;
    if !(SECTOR_SIZE..=largest).contains(&bytes) {
        return Err(format!("chunk size {text} is out of range: 512 to 1G"));
    }
    bytes
        .is_power_of_two()
        .then(|| ChunkSize::new(bytes / SECTOR_SIZE))
        .flatten()
        .ok_or_else(|| {
            let above = bytes.next_power_of_two();
            format!(
                "chunk size {text} is not a power of two: take {} or {}",
                exact(above / 2),
                exact(above)
            )
        })
}

/// The size of a device or file in bytes: whole sectors, at least one.
///
/// # Errors
/// As [`parse`].
pub fn parse_device_size(text: &str) -> Result<u64, String> {
    let bytes = parse(text)?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_SIZE) {
        return Err(format!(
            "size {text} is not a multiple of 512 bytes above zero"
        ));
    }
    Ok(bytes)
}

const UNITS: [(u64, &str); 4] = [
    (1 << 40, "T"),
    (1 << 30, "G"),
    (1 << 20, "M"),
    (1 << 10, "K"),
];

/// The shortest text that [`parse`] reads back as exactly `bytes`.
pub fn exact(bytes: u64) -> String {
    UNITS
        .iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(
            || bytes.to_string(),
            |(unit, letter)| format!("{}{letter}", bytes / unit),
        )
}

/// For people: at most one digit after the point; it is cut, not rounded.
pub fn human(bytes: u64) -> String {
    let Some((unit, letter)) = UNITS.iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{bytes} B");
    };
    let whole = bytes / unit;
    let tenth = (bytes % unit) * 10 / unit;
    if tenth == 0 {
        format!("{whole} {letter}iB")
    } else {
        format!("{whole}.{tenth} {letter}iB")
    }
}

/// For messages: `4 KiB`, `512 bytes`; the number of bytes stands behind a size that [`human`]
/// would cut, so that nothing is lost.
pub fn in_words(bytes: impl TryInto<u64>) -> String {
    let bytes = bytes.try_into().unwrap_or(u64::MAX);
    let unit = UNITS.iter().find(|(unit, _)| bytes >= *unit);
    match unit {
        None if bytes == 1 => "1 byte".to_owned(),
        None => format!("{bytes} bytes"),
        Some((unit, _)) if ((bytes % unit) * 10).is_multiple_of(*unit) => human(bytes),
        Some(_) => format!("{} ({bytes} bytes)", human(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_in_every_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("256M", 256 << 20),
            ("256mib", 256 << 20),
            ("3G", 3 << 30),
            ("2T", 2 << 40),
            ("1.5G", 3 << 29),
            ("0.5k", 512),
            ("1.25M", 5 << 18),
            // Cut to a sector.
            ("0.1M", 204 * 512),
            ("1.00000000000000000001M", 1 << 20),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_way_out() {
        for (text, word) in [
            ("", "not a size"),
            ("K", "not a size"),
            ("-1", "not a size"),
            (".5G", "not a size"),
            ("1.G", "not a size"),
            ("1.2.3G", "not a size"),
            ("1.5", "part of a byte"),
            ("8388608.1T", "larger than any file"),
            ("4KB", "1000 or 1024"),
            ("4P", "unknown unit"),
            ("4 K", "unknown unit"),
            ("99999999T", "larger than any file"),
            ("99999999999999999999999", "larger than any file"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn chunk_size_must_be_a_power_of_two_in_range() {
        assert_eq!(parse_chunk_size("512").map(ChunkSize::sectors), Ok(1));
        assert_eq!(parse_chunk_size("64K").map(ChunkSize::sectors), Ok(128));
        assert_eq!(parse_chunk_size("1G").map(ChunkSize::sectors), Ok(1 << 21));
        assert_eq!(
            parse_chunk_size("3K"),
            Err("chunk size 3K is not a power of two: take 2K or 4K".to_owned())
        );
        for text in ["0", "256", "2G", "513"] {
            assert!(parse_chunk_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_size_is_whole_sectors() {
        assert_eq!(parse_device_size("1536"), Ok(1536));
        assert!(parse_device_size("1000").is_err());
        assert!(parse_device_size("0").is_err());
    }

    #[test]
    fn a_new_size_may_be_what_is_added() {
        let after = |text| parse_new_size(text).unwrap().after(4096);
        assert_eq!(after("1M"), Some(1 << 20));
        assert_eq!(after("+1M"), Some((1 << 20) + 4096));
        assert_eq!(parse_new_size("+1T").unwrap().after(u64::MAX), None);
        for text in ["+", "++1M", "+0", "+100"] {
            assert!(parse_new_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exact_text_reads_back() {
        for bytes in [0, 1, 512, 1024, 1536, 4096, 3 << 20, (3 << 20) + 1, 5 << 40] {
            assert_eq!(parse(&exact(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn a_message_loses_no_byte() {
        for (bytes, words) in [
            (0_u64, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (4096, "4 KiB"),
            (3 << 29, "1.5 GiB"),
            (500 << 30, "500 GiB"),
            (10000, "9.7 KiB (10000 bytes)"),
            ((1 << 30) + 1, "1 GiB (1073741825 bytes)"),
        ] {
            assert_eq!(in_words(bytes), words);
        }
        assert_eq!(in_words(-1_i64), in_words(u64::MAX));
    }

    #[test]
    fn human_text_cuts_instead_of_rounding_up() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(1024), "1 KiB");
        assert_eq!(human((1 << 20) - 1), "1023.9 KiB");
        assert_eq!(human(3 << 29), "1.5 GiB");
        assert_eq!(human(u64::MAX), "16777215.9 TiB");
    }
}
