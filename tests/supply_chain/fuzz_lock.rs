//! The fuzz targets are built with libraries of their own `Cargo.lock`; what they find is about the
//! program only if these are the program's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use toml::de::DeTable;

use super::root;

/// What is in `fuzz/Cargo.lock` only.
const OF_THE_FUZZER: [&str; 4] = ["arbitrary", "jobserver", "libfuzzer-sys", "snapback-fuzz"];

/// Name → versions with their checksums.
type Locked = BTreeMap<String, BTreeSet<(String, String)>>;

fn locked(text: &str) -> Locked {
    let table = DeTable::parse(text).unwrap().into_inner();
    let mut found = Locked::new();
    for package in table["package"].get_ref().as_array().unwrap().iter() {
        let package = package.get_ref().as_table().unwrap();
        let field = |name: &str| {
            let value = package.get(name).and_then(|value| value.get_ref().as_str());
            value.unwrap_or_default().to_owned()
        };
        let versions = found.entry(field("name")).or_default();
        versions.insert((field("version"), field("checksum")));
    }
    found
}

/// What is in `fuzz`, and otherwise or not at all in `program`.
fn differences(program: &Locked, fuzz: &Locked) -> Vec<String> {
    let mut found = Vec::new();
    for (name, versions) in fuzz {
        match program.get(name) {
            None if OF_THE_FUZZER.contains(&name.as_str()) => {}
            None => found.push(format!("{name} is not in Cargo.lock")),
            Some(known) => {
                let others = versions.difference(known);
                found.extend(others.map(|(version, _)| format!("{name} {version}")));
            }
        }
    }
    found
}

#[test]
fn the_fuzz_targets_are_built_with_the_libraries_of_the_program() {
    let read = |name: &str| locked(&fs::read_to_string(root().join(name)).unwrap());
    let (program, fuzz) = (read("Cargo.lock"), read("fuzz/Cargo.lock"));
    assert!(fuzz.len() > 100 && fuzz.contains_key("libfuzzer-sys"));
    let found = differences(&program, &fuzz);
    assert!(
        found.is_empty(),
        "in fuzz/: `cargo update NAME --precise VERSION` with the version of the program, for: {}",
        found.join(", ")
    );
}

#[test]
fn another_version_or_another_content_of_a_library_is_found() {
    let lock = |packages: &[(&str, &str, &str)]| {
        let text = packages.iter().map(|(name, version, checksum)| {
            format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nchecksum = \"{checksum}\"\n")
        });
        locked(&text.collect::<String>())
    };
    let program = lock(&[
        ("a", "1.0.0", "x"),
        ("a", "2.0.0", "y"),
        ("b", "1.0.0", "z"),
    ]);
    let find = |packages: &[(&str, &str, &str)]| differences(&program, &lock(packages));
    assert_eq!(
        find(&[("a", "2.0.0", "y"), ("arbitrary", "1.0.0", "")]),
        [""; 0]
    );
    assert_eq!(find(&[("a", "2.0.1", "y")]), ["a 2.0.1"]);
    assert_eq!(find(&[("b", "1.0.0", "other")]), ["b 1.0.0"]);
    assert_eq!(find(&[("c", "1.0.0", "x")]), ["c is not in Cargo.lock"]);
}
