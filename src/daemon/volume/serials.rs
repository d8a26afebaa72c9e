//! The answers of a volume's views to GET_ID. A guest sees 20 bytes, and may name its disks
//! by them.

/// Bytes that a guest sees.
const LEN: usize = 20;
/// Lengths of the beginning and of the hash in a shortened serial.
const BEGINNING: usize = 9;
const HASH: usize = LEN - BEGINNING - 1;
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The serial of the origin's view (`None`) or of a snapshot's, for a volume with the serial
/// `volume`: the same at every start, and different for each name. It is `volume-name` if
/// that is short enough, otherwise the beginning of it and a hash of all of it.
pub fn serial(volume: &str, snapshot: Option<&str>) -> String {
    let Some(name) = snapshot else {
        return volume.chars().take(LEN).collect();
    };
    let whole = format!("{volume}-{name}");
    if whole.len() <= LEN && whole.is_ascii() {
        return whole;
    }
    // No name contains `~`, so this cannot be the serial of another view.
    let mut short: String = whole
        .chars()
        .filter(char::is_ascii)
        .take(BEGINNING)
        .collect();
    short.push('~');
    let mut hash = fnv(whole.as_bytes());
    for _ in 0..HASH {
        let digit = usize::try_from(hash % 32).unwrap_or(0);
        short.push(DIGITS.get(digit).copied().map_or('0', char::from));
        hash /= 32;
    }
    short
}

/// A volume's serial if none was given: short, and not part of the interface.
pub fn of_path(path: &str) -> String {
    format!("sb{:010x}", fnv(path.as_bytes()) & 0xff_ffff_ffff)
}

/// FNV-1a: the same in all versions of this program.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_a_guest_sees_is_different_for_all_views_of_a_volume() {
        for volume in ["d", "sb0123456789", "exactly-20-character"] {
            let mut seen = BTreeSet::from([serial(volume, None)]);
            let long = "before-the-upgrade-of-all-the-packages";
            let names = ["a", "b", "before", "character", "20-character"];
            let numbered = (0..2000).flat_map(|n| [format!("{long}-{n}"), format!("n{n}-{long}")]);
            for name in names.into_iter().map(str::to_owned).chain(numbered) {
                let serial = serial(volume, Some(&name));
                assert!((1..=LEN).contains(&serial.len()), "{serial}");
                assert!(serial.is_ascii(), "{serial}");
                assert!(seen.insert(serial.clone()), "{volume} {name}: {serial}");
            }
        }
    }

    #[test]
    fn serials_do_not_change_from_version_to_version() {
        assert_eq!(
            serial("sb0123456789", Some("before")),
            "sb0123456789-before"
        );
        let long = serial("exactly-20-character", Some("s1"));
        assert!(long.starts_with("exactly-2~"), "{long}");
        assert_eq!(long, serial("exactly-20-character", Some("s1")));
        assert_eq!(of_path("/vm/disk.img").len(), 12);
    }
}
