//! `name=NAME,cow=FILE[,...]`: a snapshot as the value of one option.

use std::os::fd::RawFd;

use super::values;
use crate::control::api::{SnapshotSpec, StoreType};
use crate::daemon::Endpoint;
use crate::size;

/// The keys, as messages list them.
pub const KEYS: &str = "name, cow, type, chunk-size, size, socket, fd, connect, read-only, \
                    discard-zeroes-cow, discard-passdown-origin, defer-entries";
/// Keys that mean `yes` if they have no value.
const FLAGS: [&str; 4] = [
    "read-only",
    "discard-zeroes-cow",
    "discard-passdown-origin",
    "defer-entries",
];
const PATHS: [&str; 3] = ["cow", "socket", "connect"];

/// A snapshot, and where its view is served if not at a path.
#[derive(Clone, Debug)]
pub struct Asked {
    pub spec: SnapshotSpec,
    pub endpoint: Option<Endpoint>,
}

/// Parses the comma-separated list; `,,` is a comma within a value.
///
/// # Errors
/// Unknown, repeated and missing keys, and values that are not valid.
pub fn parse(text: &str) -> Result<Asked, String> {
    let mut list = List::default();
    for item in split(text) {
        let (key, value) = match item.split_once('=') {
            Some(pair) => pair,
            None if is_flag(&item) => (item.as_str(), "yes"),
            None => return Err(format!("`{item}` is not KEY=VALUE (keys: {KEYS})")),
        };
        list.set(key, value)?;
    }
    list.finish()
}

/// A key that means `yes` if it has no value.
pub fn is_flag(key: &str) -> bool {
    FLAGS.contains(&key)
}

/// A key whose value is a path.
pub fn is_path(key: &str) -> bool {
    PATHS.contains(&key)
}

/// The keys that were given.
#[derive(Default)]
pub struct List {
    name: Option<String>,
    cow: Option<String>,
    store_type: Option<StoreType>,
    chunk_size: Option<u64>,
    size: Option<u64>,
    socket: Option<String>,
    fd: Option<RawFd>,
    connect: Option<String>,
    zeroes_cow: Option<bool>,
    passdown_origin: Option<bool>,
    defer_entries: Option<bool>,
    read_only: Option<bool>,
}

impl List {
    /// Gives `key` its value.
    ///
    /// # Errors
    /// The key does not exist or was given before, or the value is not valid.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        if value.is_empty() {
            return Err(format!("`{key}=` has no value"));
        }
        match key {
            "name" => put(&mut self.name, key, values::name(value)?),
            "cow" => put(&mut self.cow, key, values::path(value)?),
            "type" => put(&mut self.store_type, key, values::store_type(value)?),
            "chunk-size" => put(&mut self.chunk_size, key, values::chunk_size(value)?),
            "size" => put(&mut self.size, key, size::parse_device_size(value)?),
            "socket" => put(&mut self.socket, key, values::path(value)?),
            "fd" => put(&mut self.fd, key, values::descriptor(value)?),
            "connect" => put(&mut self.connect, key, values::path(value)?),
            "read-only" => put(&mut self.read_only, key, yes_or_no(key, value)?),
            "discard-zeroes-cow" => put(&mut self.zeroes_cow, key, yes_or_no(key, value)?),
            "discard-passdown-origin" => {
                put(&mut self.passdown_origin, key, yes_or_no(key, value)?)
            }
            "defer-entries" => put(&mut self.defer_entries, key, yes_or_no(key, value)?),
            _ => Err(format!("unknown key `{key}` (keys: {KEYS})")),
        }
    }

    /// The snapshot.
    ///
    /// # Errors
    /// A key is missing, or two contradict one another.
    pub fn finish(self) -> Result<Asked, String> {
        let list = self;
        let endpoint = match (&list.socket, list.fd, list.connect) {
            (_, None, None) => None,
            (None, Some(fd), None) => Some(Endpoint::Fd(fd)),
            (None, None, Some(path)) => Some(Endpoint::Connect(path.into())),
            _ => return Err("give only one of `socket`, `fd` and `connect`".to_owned()),
        };
        let spec = SnapshotSpec {
            name: list.name.ok_or("`name=NAME` is missing")?,
            cow: list.cow.ok_or("`cow=FILE` is missing")?,
            store_type: list.store_type.unwrap_or_default(),
            chunk_size: list.chunk_size,
            size: list.size,
            socket: list.socket,
            read_only: list.read_only,
            discard_zeroes_cow: list.zeroes_cow,
            defer_entries: list.defer_entries,
            discard_passdown_origin: list.passdown_origin,
        };
        Ok(Asked { spec, endpoint })
    }
}

fn yes_or_no(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(format!("`{key}={value}` is neither yes nor no")),
    }
}

fn put<T>(place: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("`{key}` is given twice")),
    }
}

fn split(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match items.last_mut() {
            Some(item) if c != ',' || characters.next_if_eq(&',').is_some() => item.push(c),
            _ => items.push(String::new()),
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SnapshotSpec, String> {
        super::parse(text).map(|asked| asked.spec)
    }

    #[test]
    fn a_view_is_served_in_one_way_only() {
        let endpoint = |more: &str| {
            let text = format!("name=s,cow=/c{more}");
            super::parse(&text).map(|asked| asked.endpoint)
        };
        assert_eq!(endpoint(",socket=/s"), Ok(None));
        assert_eq!(endpoint(",fd=7"), Ok(Some(Endpoint::Fd(7))));
        let connect = Endpoint::Connect("/s".into());
        assert_eq!(endpoint(",connect=/s"), Ok(Some(connect)));
        for both in [
            ",socket=/s,fd=7",
            ",fd=7,connect=/s",
            ",connect=/s,socket=/t",
        ] {
            let error = endpoint(both).unwrap_err();
            assert!(error.contains("only one of"), "{error}");
        }
        for bad in [",fd=2", ",fd=-1", ",fd=x", ",connect="] {
            endpoint(bad).unwrap_err();
        }
    }

    #[test]
    fn all_keys_are_read() {
        let spec =
            parse("name=s1,cow=/c,type=po,chunk-size=64K,size=256M,socket=/s,read-only").unwrap();
        assert_eq!(
            spec,
            SnapshotSpec {
                name: "s1".to_owned(),
                cow: "/c".to_owned(),
                store_type: StoreType::PO,
                chunk_size: Some(65536),
                size: Some(256 << 20),
                socket: Some("/s".to_owned()),
                read_only: Some(true),
                discard_zeroes_cow: None,
                defer_entries: None,
                discard_passdown_origin: None,
            }
        );
    }

    #[test]
    fn discard_options_are_flags_that_can_be_turned_off() {
        let options = |text: &str| {
            let spec = parse(&format!("name=s,cow=/c,{text}")).unwrap();
            (spec.discard_zeroes_cow, spec.discard_passdown_origin)
        };
        let (on, off) = (Some(true), Some(false));
        assert_eq!(options("discard-zeroes-cow"), (on, None));
        assert_eq!(
            options("discard-zeroes-cow,discard-passdown-origin"),
            (on, on)
        );
        assert_eq!(options("discard-zeroes-cow=no"), (off, None));
        assert_eq!(
            options("discard-passdown-origin=no,discard-zeroes-cow=yes"),
            (on, off)
        );
    }

    #[test]
    fn read_only_is_said_with_one_word_or_taken_back() {
        for (text, read_only) in [
            ("name=s,cow=/c", None),
            ("name=s,cow=/c,read-only", Some(true)),
            ("read-only=yes,name=s,cow=/c", Some(true)),
            ("name=s,cow=/c,read-only=no", Some(false)),
        ] {
            assert_eq!(parse(text).unwrap().read_only, read_only, "{text}");
        }
    }

    #[test]
    fn name_and_cow_are_enough() {
        let spec = parse("cow=/c,name=s").unwrap();
        assert_eq!(
            (spec.store_type, spec.chunk_size, spec.size, spec.socket),
            (StoreType::P, None, None, None)
        );
    }

    #[test]
    fn a_double_comma_is_a_comma_in_the_value() {
        assert_eq!(parse("name=s,cow=/a,,b=c,,").unwrap().cow, "/a,b=c,");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("", "KEY=VALUE"),
            ("name=s", "cow=FILE"),
            ("cow=/c", "name=NAME"),
            ("name=s,cow=/c,", "KEY=VALUE"),
            ("name=s,cow=/c,colour=red", "`colour`"),
            ("name=s,name=t,cow=/c", "twice"),
            ("name=,cow=/c", "no value"),
            ("name=s,cow=/c,chunk-size=3K", "power of two"),
            ("name=s,cow=/c,size=1000", "multiple of 512"),
            ("name=s,cow=/c,type=X", "`X`"),
            ("name=a/b,cow=/c", "a/b"),
            ("name=s,cow=/c,read-only=1", "neither yes nor no"),
            ("name=s,cow=/c,read-only,read-only=no", "twice"),
            ("name=s,cow=/c,discard-zeroes-cow=on", "neither yes nor no"),
            ("name=s,cow=/c,discard-zeroes-cow=", "no value"),
            (
                "name=s,cow=/c,discard-zeroes-cow,discard-zeroes-cow=yes",
                "twice",
            ),
            ("name=s,cow=/c,discard", "KEY=VALUE"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
