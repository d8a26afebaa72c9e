//! Option values that several verbs accept.

use std::os::fd::RawFd;
use std::time::Duration;

use super::CliError;
use crate::control::api::{StoreType, check_name};
use crate::daemon::{GRANULARITY_MAX, LOGICAL_MAX, PHYSICAL_MAX};
use crate::size::{self, NewSize};

/// A snapshot's name.
pub fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

/// A chunk size in bytes.
pub fn chunk_size(text: &str) -> Result<u64, String> {
    size::parse_chunk_size(text).map(|size| size.bytes())
}

/// What a size of `present` bytes becomes.
pub fn size_after(size: NewSize, present: u64) -> Result<u64, CliError> {
    let after = size
        .after(present)
        .filter(|size| i64::try_from(*size).is_ok());
    after.ok_or_else(|| CliError::Usage("the new size is larger than any file can be".to_owned()))
}

/// A time as `timeout` takes it: seconds, or with s, m, h or d. Not 0.
pub fn duration(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(number.len()..) {
        Some("" | "s") => Some(1),
        Some("m") => Some(60),
        Some("h") => Some(3600),
        Some("d") => Some(86400),
        _ => None,
    };
    let seconds = unit.and_then(|unit| number.parse::<u32>().ok()?.checked_mul(unit));
    match seconds {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds.into())),
        _ => Err(format!(
            "`{text}` is not a time: write seconds, or a number with s, m, h or d, as in 90 or 5m"
        )),
    }
}

/// Bytes per second; 0 means no limit.
pub fn rate(text: &str) -> Result<u64, String> {
    size::parse(text.strip_suffix("/s").unwrap_or(text))
}

/// `P`, `PO` or `N`, in upper or lower case, as in a device-mapper table.
pub fn store_type(text: &str) -> Result<StoreType, String> {
    match text.to_ascii_uppercase().as_str() {
        "P" => Ok(StoreType::P),
        "PO" => Ok(StoreType::PO),
        "N" => Ok(StoreType::N),
        _ => Err(format!(
            "unknown type `{text}`: P (persistent), PO (persistent, readable after an overflow) or N (transient)"
        )),
    }
}

/// An absolute path, because the daemon has another working directory.
pub fn path(text: &str) -> Result<String, String> {
    let absolute = std::path::absolute(text).map_err(|e| format!("path `{text}`: {e}"))?;
    absolute.into_os_string().into_string().map_err(|path| {
        format!(
            "path {}: not UTF-8: choose a path that is",
            path.to_string_lossy()
        )
    })
}

/// The number of a descriptor that the parent process left open.
pub fn descriptor(text: &str) -> Result<RawFd, String> {
    match text.parse() {
        Ok(number) if number > 2 => Ok(number),
        _ => Err(format!(
            "`{text}` is not the number of an open descriptor from 3 on (0, 1 and 2 are standard input, output and error)"
        )),
    }
}

/// The answer to GET_ID: virtio-blk has room for 20 bytes.
pub fn serial(text: &str) -> Result<String, String> {
    if text.is_empty()
        || text.len() > 20
        || !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
    {
        return Err(format!(
            "serial `{}` must be 1 to 20 printable ASCII characters",
            text.escape_debug()
        ));
    }
    Ok(text.to_owned())
}

/// A power of two in bytes, from 512 to `most`.
fn block(text: &str, most: u32) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| bytes.is_power_of_two() && (512..=most).contains(bytes))
        .ok_or_else(|| {
            format!(
                "{}: must be a power of two from 512 bytes to {}",
                size::in_words(bytes),
                size::in_words(most)
            )
        })
}

/// A logical block size in bytes.
pub fn logical_block_size(text: &str) -> Result<u32, String> {
    block(text, LOGICAL_MAX)
}

/// A physical block size in bytes.
pub fn physical_block_size(text: &str) -> Result<u32, String> {
    block(text, PHYSICAL_MAX)
}

/// A granularity of discards in bytes.
pub fn discard_granularity(text: &str) -> Result<u32, String> {
    block(text, GRANULARITY_MAX)
}

/// A size of requests in bytes; 0: none.
pub fn io_size(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| bytes.is_multiple_of(512))
        .ok_or_else(|| {
            format!(
                "{}: must be a multiple of 512 bytes below 4 GiB",
                size::in_words(bytes)
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_path_or_a_table_line_are_refused() {
        assert!(name("before-2.6_x+1").is_ok());
        for bad in ["", "a b", "a/b", "..", "-x", "ä", "a\n", &"x".repeat(65)] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn block_sizes_are_powers_of_two_within_their_bounds() {
        assert_eq!(logical_block_size("4K"), Ok(4096));
        assert_eq!(logical_block_size("32768"), Ok(32768));
        assert_eq!(physical_block_size("2M"), Ok(2 << 20));
        assert_eq!(discard_granularity("4M"), Ok(4 << 20));
        assert_eq!(io_size("0"), Ok(0));
        assert_eq!(io_size("1536"), Ok(1536));
        for bad in ["0", "256", "1000", "3K", "64K", "5G"] {
            let error = logical_block_size(bad).unwrap_err();
            assert!(error.contains("32 KiB"), "{bad}: {error}");
        }
        assert!(physical_block_size("4M").unwrap_err().contains("2 MiB"));
        assert!(discard_granularity("8M").unwrap_err().contains("4 MiB"));
        for bad in ["1", "513", "4G"] {
            assert!(io_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn store_types_are_taken_in_either_case() {
        assert_eq!(store_type("po"), Ok(StoreType::PO));
        assert!(store_type("NO").unwrap_err().contains("`NO`"));
    }

    #[test]
    fn a_serial_fits_what_the_guest_can_read() {
        assert!(serial("disk 1").is_ok());
        for bad in ["", "twenty-one characters", "a\nb", "é"] {
            assert!(serial(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_time_has_the_units_of_timeout() {
        for (text, seconds) in [
            ("90", 90),
            ("1s", 1),
            ("5m", 300),
            ("2h", 7200),
            ("1d", 86400),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in [
            "",
            "m",
            "0",
            "0m",
            "-1",
            "1.5m",
            "5 m",
            "5min",
            "99999999d",
            "ä",
        ] {
            assert!(duration(bad).unwrap_err().contains("5m"), "{bad}");
        }
    }

    #[test]
    fn rates_may_say_per_second() {
        assert_eq!(rate("10M/s"), Ok(10 << 20));
        assert_eq!(rate("0"), Ok(0));
    }

    #[test]
    fn relative_paths_become_absolute() {
        let path = path("a.cow").unwrap();
        assert!(path.starts_with('/') && path.ends_with("/a.cow"), "{path}");
    }
}
