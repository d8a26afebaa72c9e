//! Modules may use one another in one direction only; this file is the rule.
#![allow(clippy::unwrap_used, clippy::string_slice)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Module → the modules it may use. Test code inside a module is held to it too.
const MAY_USE: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("size", &["units"]),
    ("mutation", &[]),
    ("sync", &[]),
    ("io", &["units", "mutation"]),
    ("store", &["units", "mutation", "io"]),
    ("engine", &["units", "mutation", "sync", "io", "store"]),
    ("executor", &["units", "sync", "io", "engine"]),
    (
        "merger",
        &[
            "units", "mutation", "sync", "io", "store", "engine", "executor",
        ],
    ),
    ("virtio_blk", &["units"]),
    (
        "vhost",
        &["units", "mutation", "sync", "io", "engine", "virtio_blk"],
    ),
    (
        "races",
        &[
            "units",
            "mutation",
            "sync",
            "io",
            "store",
            "engine",
            "executor",
            "merger",
            "virtio_blk",
            "vhost",
        ],
    ),
    ("control", &["units", "size"]),
    (
        "offline",
        &[
            "units", "size", "io", "store", "engine", "executor", "merger",
        ],
    ),
    (
        "daemon",
        &[
            "units",
            "size",
            "io",
            "store",
            "engine",
            "executor",
            "merger",
            "virtio_blk",
            "vhost",
            "control",
            "offline",
        ],
    ),
    (
        "cli",
        &[
            "units", "size", "io", "engine", "store", "control", "offline", "daemon",
        ],
    ),
];

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Names after `crate::` in code, also within `crate::{a, b::c}`.
fn used_modules(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .map(|line| line.find("//").map_or(line, |at| &line[..at]))
        .collect::<Vec<_>>()
        .join("\n");
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let name = |s: &str| {
            s.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect::<String>()
        };
        if let Some(group) = rest.strip_prefix('{') {
            let end = group.find("};").unwrap_or(group.len());
            let mut depth = 0;
            let mut start = 0;
            for (i, c) in group[..end].char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        used.push(name(group[start..i].trim()));
                        start = i + 1;
                    }
                    _ => {}
                }
            }
            used.push(name(group[start..end].trim()));
        } else {
            used.push(name(rest));
        }
    }
    used.retain(|n| !n.is_empty());
    used
}

#[test]
fn modules_depend_in_one_direction() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 20, "the sources are not where they should be");
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let module = first.trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(allowed) = rules.get(module) else {
            wrong.push(format!("src/{first}: a module without a rule"));
            continue;
        };
        for used in used_modules(&fs::read_to_string(&file).unwrap()) {
            if used != module
                && rules.contains_key(used.as_str())
                && !allowed.contains(&used.as_str())
            {
                wrong.push(format!(
                    "src/{}: {module} may not use {used}",
                    relative.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rule_itself_has_no_cycle() {
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
}

#[test]
fn nested_uses_are_seen() {
    let text = "use crate::{a::{b, c}, d};\n// crate::comment\nfn f() { crate::e::g(); }";
    assert_eq!(used_modules(text), ["a", "d", "e"]);
}
