//! Option values that several verbs accept.

use super::CliError;
use crate::control::api::{StoreType, check_name};
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
