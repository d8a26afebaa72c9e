//! The libraries: where they are from, their licences, and how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::root;

/// What `deny.toml` allows.
struct Rules {
    allowed: BTreeSet<String>,
    /// Of one library each.
    exceptions: BTreeMap<String, BTreeSet<String>>,
}

fn texts(value: &DeValue<'_>) -> BTreeSet<String> {
    let values = value.as_array().unwrap().iter();
    values
        .map(|value| value.get_ref().as_str().unwrap().to_owned())
        .collect()
}

impl Rules {
    fn read() -> Self {
        let text = fs::read_to_string(root().join("deny.toml")).unwrap();
        let table = DeTable::parse(&text).unwrap().into_inner();
        let licences = table["licenses"].get_ref().as_table().unwrap();
        let mut exceptions = BTreeMap::new();
        for exception in licences["exceptions"].get_ref().as_array().unwrap().iter() {
            let exception = exception.get_ref().as_table().unwrap();
            let of = exception["crate"].get_ref().as_str().unwrap().to_owned();
            exceptions.insert(of, texts(exception["allow"].get_ref()));
        }
        Self {
            allowed: texts(licences["allow"].get_ref()),
            exceptions,
        }
    }

    /// Whether a library may be used under the licence that it names, as in SPDX.
    fn allows(&self, library: &str, licence: &str) -> bool {
        let spaced = licence
            .replace('(', " ( ")
            .replace(')', " ) ")
            .replace('/', " OR ");
        let spaced = spaced.replace(" WITH ", "\u{a0}WITH\u{a0}");
        let words: Vec<String> = spaced
            .split_ascii_whitespace()
            .map(|word| word.replace('\u{a0}', " "))
            .collect();
        let known = |name: &str| {
            let own = self.exceptions.get(library);
            self.allowed.contains(name) || own.is_some_and(|own| own.contains(name))
        };
        let (answer, rest) = any(&words, &known);
        assert!(rest.is_empty(), "{library}: {licence}");
        answer
    }
}

/// `A AND B OR C`: whether it is allowed, and what follows it.
fn any<'a>(words: &'a [String], known: &dyn Fn(&str) -> bool) -> (bool, &'a [String]) {
    let (mut answer, mut rest) = all(words, known);
    while rest.first().is_some_and(|word| word == "OR") {
        let (other, more) = all(&rest[1..], known);
        answer |= other;
        rest = more;
    }
    (answer, rest)
}

fn all<'a>(words: &'a [String], known: &dyn Fn(&str) -> bool) -> (bool, &'a [String]) {
    let (mut answer, mut rest) = one(words, known);
    while rest.first().is_some_and(|word| word == "AND") {
        let (other, more) = one(&rest[1..], known);
        answer &= other;
        rest = more;
    }
    (answer, rest)
}

fn one<'a>(words: &'a [String], known: &dyn Fn(&str) -> bool) -> (bool, &'a [String]) {
    if words[0] == "(" {
        let (answer, rest) = any(&words[1..], known);
        assert_eq!(rest[0], ")");
        return (answer, &rest[1..]);
    }
    (known(&words[0]), &words[1..])
}

/// All libraries of the program and its tests on this platform.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--offline",
            "--all-features",
        ])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_library_is_of_the_registry_and_has_a_licence_that_deny_toml_allows() {
    let (rules, metadata) = (Rules::read(), metadata());
    let mut wrong = Vec::new();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100);
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("none");
        if !rules.allows(name, licence) {
            wrong.push(format!("{name}: {licence}"));
        }
        let registry = "registry+https://github.com/rust-lang/crates.io-index";
        if name != "snapback" && package["source"].as_str() != Some(registry) {
            wrong.push(format!("{name} is from {}", package["source"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn licences_are_understood() {
    let rules = Rules {
        allowed: ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"]
            .map(str::to_owned)
            .into(),
        exceptions: BTreeMap::from([("x".to_owned(), BTreeSet::from(["MPL-2.0".to_owned()]))]),
    };
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "GPL-3.0/MIT",
        "MIT AND Zlib",
        "(GPL-3.0 OR MIT) AND Zlib",
        "Apache-2.0 WITH LLVM-exception OR Apache-2.0",
    ] {
        assert!(rules.allows("a", good), "{good}");
    }
    for bad in [
        "none",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT OR Zlib) AND GPL-3.0",
        "Apache-2.0",
        "MPL-2.0",
    ] {
        assert!(!rules.allows("a", bad), "{bad}");
    }
    assert!(rules.allows("x", "MPL-2.0"));
}

/// The libraries that the program is linked with; builders and macros do not count. A new one
/// is a decision, which changes this number; one that goes lowers it, or the next would not be
/// noticed.
const LIBRARIES: usize = 125;

#[test]
fn the_program_has_as_many_libraries_as_were_decided_on() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--prefix=none",
            "--format={p}",
        ])
        .args([
            "--edges=normal,no-proc-macro",
            "--target=x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let names: BTreeSet<&str> = text
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .filter(|line| !line.starts_with("snapback ") && !line.is_empty())
        .collect();
    assert!(names.len() > 50, "{text}");
    let count = names.len();
    assert_eq!(
        count, LIBRARIES,
        "if that is meant, write it down: {names:#?}"
    );
}
