//! What one side shows at a place of a case, and how two sides are compared.

use super::SECTOR;
use super::case::Case;
use super::model::{Bytes, Geometry, Kind};
use crate::content;

/// One observation. Both sides make the same ones in the same order.
pub struct Seen {
    /// Where: the operation and what was looked at.
    pub what: String,
    pub value: Value,
}

pub enum Value {
    Text(String),
    /// A view; `None`: reading it fails.
    View(Option<Vec<u8>>),
    /// A store, of which so much is determined.
    Store(Geometry, Bytes, Vec<u8>),
}

impl Seen {
    pub fn text(what: String, text: impl Into<String>) -> Self {
        let value = Value::Text(text.into());
        Self { what, value }
    }

    pub fn view(what: String, bytes: Option<Vec<u8>>) -> Self {
        let value = Value::View(bytes);
        Self { what, value }
    }

    pub fn store(what: String, geometry: Geometry, bytes: Bytes, content: Vec<u8>) -> Self {
        let value = Value::Store(geometry, bytes, content);
        Self { what, value }
    }
}

/// The first difference, with its place.
pub fn compare(case: &Case, linux: &[Seen], here: &[Seen]) -> Result<(), String> {
    for (linux, here) in linux.iter().zip(here) {
        if linux.what != here.what {
            return Err(format!(
                "the harness is wrong: '{}' in Linux stands beside '{}' here",
                linux.what, here.what
            ));
        }
        difference(case, &linux.value, &here.value)
            .map_err(|difference| format!("{}: {difference}", linux.what))?;
    }
    if linux.len() != here.len() {
        return Err("the harness is wrong: one side saw more".into());
    }
    Ok(())
}

fn difference(case: &Case, linux: &Value, here: &Value) -> Result<(), String> {
    match (linux, here) {
        (Value::Text(linux), Value::Text(here)) if linux == here => Ok(()),
        (Value::Text(linux), Value::Text(here)) => {
            Err(format!("Linux says '{linux}', snapback '{here}'"))
        }
        (Value::View(None), Value::View(None)) => Ok(()),
        (Value::View(Some(linux)), Value::View(Some(here))) => {
            match first_difference(linux, here) {
                None => Ok(()),
                Some(sector) => Err(format!(
                    "sector {sector} is {} in Linux and {} here",
                    describe(case.seed, sector, linux),
                    describe(case.seed, sector, here)
                )),
            }
        }
        (Value::View(linux), Value::View(_)) => {
            let (good, bad) = match linux {
                Some(_) => ("Linux", "snapback"),
                None => ("snapback", "Linux"),
            };
            Err(format!("{good} reads it, {bad} has an I/O error"))
        }
        (Value::Store(geometry, bytes, linux), Value::Store(_, _, here)) => {
            store_difference(case, geometry, *bytes, linux, here)
        }
        _ => Err("the harness is wrong: two kinds of observation".into()),
    }
}

fn store_difference(
    case: &Case,
    geometry: &Geometry,
    bytes: Bytes,
    linux: &[u8],
    here: &[u8],
) -> Result<(), String> {
    let chunk = geometry.chunk as usize * SECTOR;
    let compared = match bytes {
        Bytes::Nothing => 0,
        Bytes::Header if geometry.kind == Kind::N => 0,
        Bytes::Header => chunk,
        Bytes::All => linux.len(),
    };
    let Some(sector) = first_difference(&linux[..compared], &here[..compared]) else {
        return Ok(());
    };
    let number = sector / geometry.chunk;
    let place = match number {
        _ if geometry.kind == Kind::N => "data",
        0 => "the header",
        number if number % (geometry.area() + 1) == 1 => "a metadata area",
        _ => "data",
    };
    let from = sector as usize * SECTOR;
    let byte = (from..from + SECTOR)
        .find(|at| linux[*at] != here[*at])
        .unwrap_or(from);
    let entry = byte / 16 * 16;
    Err(format!(
        "the store's chunk {number} ({place}) differs at byte {}: {:02x?} in Linux, {:02x?} here; sector {sector} \
         is {} in Linux and {} here",
        byte % chunk,
        &linux[entry..entry + 16],
        &here[entry..entry + 16],
        describe(case.seed, sector, linux),
        describe(case.seed, sector, here)
    ))
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<u64> {
    let different = left
        .chunks(SECTOR)
        .zip(right.chunks(SECTOR))
        .position(|(left, right)| left != right);
    let length = (left.len() != right.len()).then_some(left.len().min(right.len()) / SECTOR);
    different.or(length).map(|sector| sector as u64)
}

/// What is known about the content of one sector.
fn describe(seed: u64, sector: u64, disk: &[u8]) -> String {
    let from = sector as usize * SECTOR;
    let Some(found) = disk.get(from..from + SECTOR) else {
        return "beyond the end".into();
    };
    let word = |at: usize| u64::from_le_bytes(found[at..at + 8].try_into().unwrap());
    let (place, write) = (word(0), word(8));
    let mut expected = [0; SECTOR];
    content::put(&mut expected, seed, place, write);
    if found == expected {
        format!("sector {place} of write {write}")
    } else if found.iter().all(|byte| *byte == found[0]) {
        format!("all {:#04x}", found[0])
    } else {
        format!("{:02x?}...", &found[..16])
    }
}

/// The part of a status line that both sides share.
pub fn usage(status: &str) -> String {
    let start = status.find(" snapshot ").map_or(0, |at| at + 1);
    status[start..].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: Geometry = Geometry {
        kind: Kind::P,
        chunk: 8,
        cow: 32,
    };

    fn told(linux: Value, here: Value) -> Result<(), String> {
        let case = Case::of_seed(1);
        let seen = |value| {
            let what = "there".to_owned();
            vec![Seen { what, value }]
        };
        compare(&case, &seen(linux), &seen(here))
    }

    fn disk(change: Option<usize>) -> Vec<u8> {
        let mut bytes = vec![0; 32 * SECTOR];
        for (sector, target) in (0..).zip(bytes.chunks_exact_mut(SECTOR)) {
            content::put(target, 1, sector, 7);
        }
        if let Some(at) = change {
            bytes[at] ^= 1;
        }
        bytes
    }

    fn store(bytes: Bytes, change: Option<usize>) -> Value {
        Value::Store(STORE, bytes, disk(change))
    }

    #[test]
    fn one_changed_byte_of_a_view_is_found_and_its_sector_named() {
        let view = |change| Value::View(Some(disk(change)));
        assert_eq!(told(view(None), view(None)), Ok(()));
        let text = told(view(None), view(Some(5 * SECTOR + 100))).unwrap_err();
        assert!(
            text.contains("sector 5 is sector 5 of write 7 in Linux"),
            "{text}"
        );
    }

    #[test]
    fn a_view_that_only_one_side_can_read_is_a_difference() {
        let view = Value::View(Some(disk(None)));
        let text = told(view, Value::View(None)).unwrap_err();
        assert!(text.contains("snapback has an I/O error"), "{text}");
    }

    #[test]
    fn a_changed_byte_of_a_store_is_a_difference_where_bytes_are_determined() {
        for (at, place) in [
            (0, "chunk 0 (the header)"),
            (5000, "chunk 1 (a metadata area)"),
            (9000, "chunk 2 (data)"),
        ] {
            let text = told(store(Bytes::All, None), store(Bytes::All, Some(at))).unwrap_err();
            assert!(text.contains(place), "{text}");
            let header = told(store(Bytes::Header, None), store(Bytes::Header, Some(at)));
            assert_eq!(header.is_err(), at == 0);
            let nothing = told(store(Bytes::Nothing, None), store(Bytes::Nothing, Some(at)));
            assert_eq!(nothing, Ok(()));
        }
    }

    #[test]
    fn a_status_or_a_result_that_differs_is_a_difference() {
        let text = |text: &str| Value::Text(text.into());
        assert_eq!(told(text("ok"), text("ok")), Ok(()));
        assert!(told(text("ok"), text("EIO")).is_err());
    }
}
