//! Modules may use one another in one direction only; this file is the rule.
//!
//! [`MAY_USE`] holds for the modules of the crate, [`CIRCLES`] for the files inside
//! one of them. Paths are read as the compiler reads them as far as that is needed:
//! `crate::`, `super::` (also several), `self::` and the names of child modules,
//! with groups, in `use` declarations and in expressions. Names that a `mod.rs`
//! re-exports count for the file that defines them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod sources;

use std::collections::{BTreeMap, BTreeSet};

use sources::Sources;

/// Module → the modules that it may use, lowest first.
const MAY_USE: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("size", &["units"]),
    ("own_socket", &[]),
    ("mutation", &[]),
    ("sync", &[]),
    ("socket_access", &[]),
    ("event_flag", &["mutation", "sync"]),
    ("wait_set", &["sync"]),
    ("supervisor", &["socket_access"]),
    ("sandbox", &[]),
    (
        "io",
        &["units", "size", "mutation", "event_flag", "sandbox"],
    ),
    ("store", &["units", "size", "mutation", "io"]),
    (
        "engine",
        &["units", "mutation", "sync", "event_flag", "io", "store"],
    ),
    ("executor", &["sync", "event_flag", "io", "engine"]),
    (
        "merger",
        &[
            "mutation",
            "sync",
            "event_flag",
            "sandbox",
            "io",
            "engine",
            "executor",
        ],
    ),
    ("virtio_blk", &["units"]),
    (
        "vhost",
        &[
            "units",
            "size",
            "own_socket",
            "mutation",
            "sync",
            "event_flag",
            "wait_set",
            "io",
            "engine",
            "socket_access",
            "virtio_blk",
            "supervisor",
            "sandbox",
        ],
    ),
    (
        "races",
        &[
            "units",
            "mutation",
            "sync",
            "event_flag",
            "io",
            "store",
            "engine",
            "executor",
            "merger",
            "virtio_blk",
            "vhost",
        ],
    ),
    (
        "control",
        &[
            "units",
            "size",
            "own_socket",
            "socket_access",
            "supervisor",
            "sandbox",
        ],
    ),
    ("offline", &["units", "size", "io", "store"]),
    (
        "daemon",
        &[
            "units",
            "size",
            "event_flag",
            "socket_access",
            "wait_set",
            "io",
            "store",
            "engine",
            "executor",
            "merger",
            "virtio_blk",
            "vhost",
            "control",
            "offline",
            "supervisor",
            "sandbox",
        ],
    ),
    (
        "cli",
        &[
            "units",
            "size",
            "event_flag",
            "control",
            "offline",
            "daemon",
            "supervisor",
            "sandbox",
        ],
    ),
    (
        "fuzzing",
        &[
            "units",
            "event_flag",
            "io",
            "store",
            "engine",
            "executor",
            "virtio_blk",
            "vhost",
            "control",
            "offline",
            "daemon",
            "cli",
        ],
    ),
];

/// What tests inside a module may use besides.
const TESTS_MAY_USE: &[(&str, &[&str])] = &[
    ("wait_set", &["event_flag"]),
    ("merger", &["units", "store"]),
    ("fuzzing", &["mutation"]),
];

/// Folders inside a module, lowest first: each may use those before it.
const FOLDERS: &[(&str, &[&str])] = &[(
    "daemon",
    &[
        "identity",
        "state",
        "provenance",
        "cow",
        "monitor",
        "volume",
        "metrics",
        "verbs",
        "running",
        "start",
        "offline",
    ],
)];

/// Modules whose files are checked for circles.
const CHECKED_FOR_CIRCLES: &[&str] = &[
    "io",
    "store",
    "merger",
    "virtio_blk",
    "vhost",
    "control",
    "offline",
    "cli",
    "engine",
    "daemon",
];

/// Files that use one another in a circle, with the reason. Tests do not count. A name
/// that ends with `/` stands for all files of a folder.
const CIRCLES: &[(&[&str], &str)] = &[
    (
        &["engine/core/", "engine/mod.rs", "engine/port.rs"],
        "what runs under the engine's lock is one state machine: its files see each other's \
         private fields, and a port hands events in and takes commands out",
    ),
    (
        &[
            "control/api.rs",
            "control/events.rs",
            "control/operations.rs",
        ],
        "the API's interface to the daemon names the event log, events are made of the API's \
         words, and the log keeps the operations that its events tell of",
    ),
    (
        &["io/sim/disk.rs", "io/sim/fault.rs", "io/sim/mod.rs"],
        "`mod.rs` holds the devices that all simulated disks share, with their log and their \
         faults, and a disk and a fault use the entries of that log",
    ),
];

fn may_use(rules: &[(&str, &[&str])], module: &str, used: &str) -> bool {
    let rule = rules.iter().find(|(name, _)| *name == module);
    rule.is_some_and(|(_, uses)| uses.contains(&used))
}

fn is_module(name: &str) -> bool {
    MAY_USE.iter().any(|(module, _)| *module == name)
}

#[test]
fn modules_depend_in_one_direction() {
    let mut wrong = BTreeSet::new();
    for used in Sources::of_the_crate().uses() {
        let (module, other) = (used.from[0].as_str(), used.path[0].as_str());
        if !is_module(module) {
            wrong.insert(format!("src/{}: a module without a rule", used.file));
        } else if module != other
            && is_module(other)
            && !may_use(MAY_USE, module, other)
            && !(used.in_test && may_use(TESTS_MAY_USE, module, other))
        {
            wrong.insert(format!("src/{}: {module} may not use {other}", used.file));
        }
    }
    let wrong: Vec<String> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rule_itself_has_no_circle_and_allows_nothing_that_is_not_used() {
    let names: Vec<&str> = MAY_USE.iter().map(|(n, _)| *n).collect();
    for (at, (name, uses)) in MAY_USE.iter().enumerate() {
        for used in *uses {
            let place = names
                .iter()
                .position(|n| n == used)
                .expect("every name has a rule");
            assert!(place < at, "{name} uses {used}, which stands after it");
        }
    }
    let sources = Sources::of_the_crate();
    let real: BTreeSet<(&str, &str, bool)> = sources
        .uses()
        .map(|used| (used.from[0].as_str(), used.path[0].as_str(), used.in_test))
        .collect();
    let mut unused = Vec::new();
    for (rules, tests_only) in [(MAY_USE, false), (TESTS_MAY_USE, true)] {
        for (module, uses) in rules {
            // What races, the tests of threads, and the fuzz targets use is a test's as a whole.
            let tests = tests_only || ["races", "fuzzing"].contains(module);
            for other in *uses {
                if !real.contains(&(*module, *other, tests)) {
                    unused.push(format!("{module} does not use {other}"));
                }
            }
        }
    }
    assert!(unused.is_empty(), "{}", unused.join("\n"));
}

#[test]
fn folders_inside_a_module_depend_in_one_direction() {
    let sources = Sources::of_the_crate();
    let mut wrong = Vec::new();
    for (module, folders) in FOLDERS {
        let place = |file: &str| {
            let folder = file.split('/').nth(1);
            folders.iter().position(|f| Some(*f) == folder)
        };
        let edges = sources.edges_within(module);
        for (from, to) in &edges {
            if let (Some(user), Some(used)) = (place(from), place(to))
                && used > user
            {
                wrong.push(format!("src/{from} uses src/{to}"));
            }
        }
        for folder in *folders {
            let there = edges.iter().any(|(from, to)| {
                [*from, *to]
                    .iter()
                    .any(|f| f.split('/').nth(1) == Some(folder))
            });
            assert!(there, "src/{module}/{folder}: no file there is in use");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The circles among `edges`: sets of nodes that reach one another.
fn circles<'a>(edges: &BTreeSet<(&'a str, &'a str)>) -> BTreeSet<BTreeSet<&'a str>> {
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in edges {
        reached.entry(from).or_default().insert(to);
    }
    loop {
        let mut grown = false;
        for (from, there) in reached.clone() {
            let further = there.iter().filter_map(|to| reached.get(to));
            let further: BTreeSet<&str> = further.flatten().copied().collect();
            let all = reached.get_mut(from).unwrap();
            let before = all.len();
            all.extend(further);
            grown |= all.len() > before;
        }
        if !grown {
            break;
        }
    }
    let reaches = |from: &str, to: &str| reached.get(from).is_some_and(|all| all.contains(to));
    reached
        .keys()
        .filter(|node| reaches(node, node))
        .map(|node| {
            let others = reached.keys().copied();
            others
                .filter(|other| reaches(node, other) && reaches(other, node))
                .collect()
        })
        .collect()
}

#[test]
fn files_inside_a_module_form_no_circle_that_is_not_listed() {
    let sources = Sources::of_the_crate();
    let mut found = BTreeSet::new();
    for module in CHECKED_FOR_CIRCLES {
        let edges = sources.edges_within(module);
        assert!(!edges.is_empty(), "src/{module}: no file uses another");
        found.extend(circles(&edges));
    }
    let unlisted: Vec<_> = found
        .iter()
        .filter(|circle| !CIRCLES.iter().any(|(listed, _)| covers(listed, circle)))
        .collect();
    let stale: Vec<_> = CIRCLES
        .iter()
        .filter(|(listed, _)| {
            let covered = found.iter().filter(|circle| covers(listed, circle));
            let files: BTreeSet<&str> = covered.flatten().copied().collect();
            !listed
                .iter()
                .all(|name| files.iter().any(|file| stands_for(name, file)))
        })
        .collect();
    assert!(
        unlisted.is_empty() && stale.is_empty(),
        "open the circle, or list it with a reason: {unlisted:#?}\nlisted, but no longer there: \
         {stale:#?}"
    );
}

/// Whether the name on a list stands for `file`.
fn stands_for(name: &str, file: &str) -> bool {
    name == file || (name.ends_with('/') && file.starts_with(name))
}

/// Whether the names on a list stand for all files of a circle.
fn covers(listed: &[&str], circle: &BTreeSet<&str>) -> bool {
    circle
        .iter()
        .all(|file| listed.iter().any(|name| stands_for(name, file)))
}

#[test]
fn circles_are_found() {
    let edges = [
        ("a", "b"),
        ("b", "c"),
        ("c", "a"),
        ("c", "d"),
        ("e", "f"),
        ("f", "e"),
    ];
    let found = circles(&edges.into_iter().collect());
    let expected = [BTreeSet::from(["a", "b", "c"]), BTreeSet::from(["e", "f"])];
    assert_eq!(found, BTreeSet::from(expected));
}

#[test]
fn every_kind_of_path_is_seen() {
    let sources = Sources::of(&[
        (
            "a/mod.rs",
            r#"
mod b;
pub mod c;
pub use b::{Thing, inner::Other as Renamed};
use crate::{d::{self, E}, f};
// crate::comment
const TEXT: &str = "crate::text \" {";
fn g() -> c::Result { crate::h::i::<u8>('{'); Thing::new() }
"#,
        ),
        (
            "a/b.rs",
            r"
use super::{c, super::k};
fn f() { super::super::l::m() }
mod inner {
    use super::super::c::Deep;
}
#[cfg(test)]
mod tests {
    use super::super::super::n;
}
",
        ),
        ("a/c.rs", "use super::{Renamed, b::Direct};\n"),
        ("a/c_tests.rs", "use super::super::Thing;\nuse crate::o;\n"),
    ]);
    let mut used: Vec<String> = sources
        .uses()
        .filter(|used| used.path[0] != "a")
        .map(|used| format!("{} {} {}", used.file, used.path.join("::"), used.in_test))
        .collect();
    used.sort();
    assert_eq!(
        used,
        [
            "a/b.rs k false",
            "a/b.rs l::m false",
            "a/b.rs n true",
            "a/c_tests.rs o true",
            "a/mod.rs d false",
            "a/mod.rs d::E false",
            "a/mod.rs f false",
            "a/mod.rs h::i false",
        ]
    );
    let edges = sources.edges_within("a");
    let expected = [
        ("a/b.rs", "a/c.rs"),
        ("a/c.rs", "a/b.rs"),
        ("a/mod.rs", "a/b.rs"),
        ("a/mod.rs", "a/c.rs"),
    ];
    assert_eq!(edges, BTreeSet::from(expected));
}
