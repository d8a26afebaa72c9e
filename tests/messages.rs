//! Messages consist of words: none shows a value in the form that it has inside the
//! program.
#![allow(
    clippy::unwrap_used,
    clippy::string_slice,
    clippy::indexing_slicing,
    clippy::expect_used
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Files and folders without messages to users: tests, and code that only tests use.
const FOR_TESTS: [&str; 10] = [
    "/tests/",
    "_tests.rs",
    "/races/",
    "/fuzzing/",
    "/fuzzing.rs",
    "_fuzzing.rs",
    "/sim/",
    "/conformance/",
    "/mutation.rs",
    "/engine/core/inspect.rs",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The program's part of a file: without its tests at the end and without comments.
fn program(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines();
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// The statement that `at` is in, up to there.
fn statement(code: &str, at: usize) -> &str {
    let ends = [";\n", "{\n", "}\n"];
    let start = ends.iter().filter_map(|end| code[..at].rfind(end)).max();
    &code[start.unwrap_or(0)..at]
}

/// Whether only developers see the text, or nobody.
fn is_for_developers(statement: &str) -> bool {
    ["debug!(", "trace!(", "assert!(", "unreachable!("]
        .iter()
        .any(|name| statement.contains(name))
}

/// Raw values in the texts of `code`, with the line that each is in.
fn raw_values(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    // `{x:?}`, `{:#?}`; the field `?x` of a log line; a number for an error.
    for (pattern, in_log) in [
        (":?}", false),
        (":#?}", false),
        ("?", true),
        ("errno", false),
    ] {
        for (at, _) in code.match_indices(pattern) {
            let line_start = code[..at].rfind('\n').map_or(0, |at| at + 1);
            let line = code[line_start..].lines().next().unwrap_or_default();
            let before = statement(code, at);
            let logged = ["info!(", "warn!(", "error!("]
                .iter()
                .any(|name| before.contains(name));
            let field = code[..at].ends_with(['(', ' ', '='])
                && code[at + 1..].starts_with(|c: char| c.is_ascii_lowercase());
            // Within a text: an odd number of quotes stands before it in its line.
            let quotes = code[line_start..at].matches('"').count();
            let in_text = quotes % 2 == 1;
            let is_raw = match (pattern, in_log) {
                (_, true) => logged && field,
                ("errno", _) => in_text && !line.contains("{errno:"),
                _ => true,
            };
            if is_raw && !is_for_developers(before) {
                found.push(line.trim().to_owned());
            }
        }
    }
    found
}

/// Counts of bytes as the program has them, in the texts of `code`: `{size} bytes`, with the
/// line that each is in.
fn raw_counts(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    if code.contains("pub fn in_words(") {
        return found;
    }
    for pattern in ["} bytes", "}-byte", "}-sector", "} sectors"] {
        for (at, _) in code.match_indices(pattern) {
            let line_start = code[..at].rfind('\n').map_or(0, |at| at + 1);
            let line = code[line_start..].lines().next().unwrap_or_default().trim();
            let small = SMALL_COUNTS.iter().any(|text| line.contains(text));
            if !is_for_developers(statement(code, at)) && !small {
                found.push(line.to_owned());
            }
        }
    }
    found
}

/// Texts with counts that are never large, that repeat the header of a store, or that only
/// developers see.
const SMALL_COUNTS: [&str; 8] = [
    "{len} bytes at offset {offset} of the configuration space",
    "the path has {} bytes, and a Unix socket's path can have at most 107",
    "a snapshot name of {} bytes is too long",
    "corrupt header: the chunk size is {sectors} sectors",
    "valid {}, version {}, chunk size {} sectors",
    "idle with {jobs} copy jobs, {bytes} bytes",
    "OwnedBuffer({} bytes)",
    "GuestBuffer({} bytes in {} slices)",
];

/// Calls `look` with the program's part of every source file, and reports what it finds.
fn find_in_sources(look: fn(&str) -> Vec<String>) -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(
        files.len() > 100,
        "the sources are not where they should be"
    );
    let mut raw = Vec::new();
    for file in files {
        let name = file.to_str().unwrap();
        if FOR_TESTS.iter().any(|part| name.contains(part)) {
            continue;
        }
        let code = program(&fs::read_to_string(&file).unwrap());
        raw.extend(
            look(&code)
                .into_iter()
                .map(|line| format!("{name}: {line}")),
        );
    }
    raw
}

#[test]
fn no_message_shows_a_value_as_the_program_has_it() {
    let raw = find_in_sources(raw_values);
    assert!(
        raw.is_empty(),
        "say it in words, or log it with debug!:\n{}",
        raw.join("\n")
    );
}

#[test]
fn no_message_counts_bytes_or_sectors_in_full() {
    let raw = find_in_sources(raw_counts);
    assert!(
        raw.is_empty(),
        "write sizes with size::in_words:\n{}",
        raw.join("\n")
    );
    assert_eq!(
        raw_counts("a();\nformat!(\"{}: has {size} bytes\");"),
        ["format!(\"{}: has {size} bytes\");"]
    );
    assert_eq!(raw_counts("a();\ndebug!(\"{size} bytes\");"), [""; 0]);
}

#[test]
fn raw_values_are_found_where_they_are_shown() {
    for shown in [
        "let a = 1;\nformat!(\"the store failed: {reason:?}\");",
        "let a = 1;\nformat!(\n    \"{:#?}\", kind);",
        "let a = 1;\nwarn!(?kind, \"refused\");",
        "let a = 1;\nerror!(snapshot = ?name, \"lost\");",
        "let a = 1;\nformat!(\"writing failed (errno {})\", e.0);",
    ] {
        assert_eq!(raw_values(shown).len(), 1, "{shown}");
    }
    for fine in [
        "let a = 1;\ndebug!(\n    \"{}: not for a queue: {command:?}\", name);",
        "let a = 1;\nwarn!(\"view {name}: {e}\");",
        "let errno = call()?;\nwarn!(%error, \"was refused?\");",
        "info!(\"stopping\");\nlet data = read(file)?;",
    ] {
        assert_eq!(raw_values(fine), [""; 0], "{fine}");
    }
}
