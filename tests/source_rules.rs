//! Rules for the shape of the sources: functions and files stay short enough to be
//! read as a whole, and the exceptions give a reason.
//!
//! The sources are formatted by rustfmt, so a function ends at the first line that
//! holds only a closing brace at the indentation of its `fn`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;
/// Lines of a file, with its tests.
const FILE_LINES: usize = 600;

/// Files that start the program without XDG_RUNTIME_DIR, because they start no daemon that
/// users could find, and name the socket of the one that they ask.
const SEES_NO_DAEMON: &[&str] = &[
    "benches/merge.rs",
    "qemu-tests/kernel_merge.rs",
    "qemu-tests/restarts.rs",
    "qemu-tests/run.rs",
    "tests/cli/events.rs",
    "tests/cli/screen.rs",
    "tests/costs/instructions.rs",
    "tests/daemon/detach.rs",
    "tests/hostile/world.rs",
    "tests/locks/children.rs",
    "tests/run/changes.rs",
    "tests/service/generate.rs",
    "tests/service/packaging.rs",
    "tests/supply_chain/elf.rs",
    "tests/service/systemd.rs",
    "tests/service/version.rs",
];

/// Above a longer function, with its attributes and its documentation.
const REASON: &str = "// Long: ";

/// Longer functions without a reason that still have to be cut: file below `src`,
/// function. An entry that no longer applies fails the test, so the list only
/// shrinks.
const STILL_TOO_LONG: &[(&str, &str)] = &[];

/// Longer files, from the root of the repository, with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

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

/// The name in a line that begins a function.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    if let Some(visible) = rest.strip_prefix("pub") {
        rest = match visible.strip_prefix('(') {
            Some(scope) => scope.split_once(") ")?.1,
            None => visible.strip_prefix(' ')?,
        };
    }
    while let Some(after) = ["const ", "async ", "unsafe ", "extern \"C\" "]
        .iter()
        .find_map(|word| rest.strip_prefix(word))
    {
        rest = after;
    }
    let name = rest.strip_prefix("fn ")?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    name.get(..end)
}

struct Function<'a> {
    name: &'a str,
    /// Number of the line of its `fn`, from 0.
    line: usize,
    length: usize,
    /// Number of the line that gives a reason for its length.
    reason: Option<usize>,
}

/// Every function in `lines` that has a body of more than one line.
fn functions<'a>(lines: &[&'a str]) -> Vec<Function<'a>> {
    let mut found = Vec::new();
    for (line, text) in lines.iter().enumerate() {
        let Some(name) = function_name(text) else {
            continue;
        };
        // A declaration in a trait, or a body in one line: there is no `{` at the end
        // of the signature.
        let signature_end = lines[line..]
            .iter()
            .position(|text| text.ends_with(['{', ';', '}']))
            .map(|at| line + at);
        if !signature_end.is_some_and(|end| lines[end].ends_with('{')) {
            continue;
        }
        let indent = &text[..text.len() - text.trim_start().len()];
        let closing = format!("{indent}}}");
        let Some(end) = lines[line..].iter().position(|text| *text == closing) else {
            continue;
        };
        found.push(Function {
            name,
            line,
            length: end + 1,
            reason: reason_above(lines, line),
        });
    }
    found
}

/// The line that gives a reason, among the comments and attributes directly above
/// the function in line `function`.
fn reason_above(lines: &[&str], function: usize) -> Option<usize> {
    let mut in_attribute = false;
    for line in (0..function).rev() {
        let text = lines[line].trim_start();
        if text.strip_prefix(REASON).is_some_and(|why| why.len() > 10) {
            return Some(line);
        }
        // An attribute of several lines ends with a line that closes it.
        in_attribute |= text == ")]";
        let belongs = text.starts_with("//") || text.starts_with("#[") || in_attribute;
        in_attribute &= !text.starts_with("#[");
        if !belongs {
            return None;
        }
    }
    None
}

/// What is wrong in a file, given as its name and its text. Functions on the list
/// that are too long are removed from `open`.
fn faults<'a>(
    name: &'a str,
    text: &'a str,
    open: &mut BTreeSet<(&'a str, &'a str)>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    let mut used = BTreeSet::new();
    for function in functions(&lines) {
        if function.length <= FUNCTION_LINES {
            continue;
        }
        if let Some(line) = function.reason {
            used.insert(line);
        } else if !open.remove(&(name, function.name)) {
            wrong.push(format!(
                "src/{name}:{}: `{}` has {} lines",
                function.line + 1,
                function.name,
                function.length,
            ));
        }
    }
    for (line, text) in lines.iter().enumerate() {
        if text.trim_start().starts_with(REASON.trim_end()) && !used.contains(&line) {
            wrong.push(format!(
                "src/{name}:{}: no function of more than {FUNCTION_LINES} lines follows, \
                 or the comment gives no reason",
                line + 1,
            ));
        }
    }
    wrong
}

#[test]
fn no_function_is_longer_than_70_lines_without_a_reason() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    rust_files(&src, &mut paths);
    assert!(
        paths.len() > 100,
        "the sources are not where they should be"
    );
    paths.sort();
    let files: Vec<(&str, String)> = paths
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    let mut open: BTreeSet<(&str, &str)> = STILL_TOO_LONG.iter().copied().collect();
    assert_eq!(open.len(), STILL_TOO_LONG.len(), "an entry is listed twice");
    let mut wrong = Vec::new();
    for (name, text) in &files {
        wrong.extend(faults(name, text, &mut open));
    }
    wrong.extend(open.iter().map(|(file, function)| {
        format!("src/{file}: `{function}` is no longer too long; remove it from STILL_TOO_LONG")
    }));
    assert!(
        wrong.is_empty(),
        "cut the function, or write `{REASON}<reason>` above it:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn no_file_is_longer_than_600_lines_without_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests", "qemu-tests", "fuzz/fuzz_targets"] {
        rust_files(&root.join(dir), &mut files);
    }
    files.sort();
    let mut listed: BTreeSet<&str> = LONG_FILES.iter().map(|(file, _)| *file).collect();
    let mut wrong = Vec::new();
    for file in &files {
        let name = file.strip_prefix(root).unwrap().to_str().unwrap();
        let length = fs::read_to_string(file).unwrap().lines().count();
        if length > FILE_LINES && !listed.remove(name) {
            wrong.push(format!("{name} has {length} lines"));
        }
    }
    wrong.extend(
        listed
            .iter()
            .map(|file| format!("{file} is no longer too long; remove it from LONG_FILES")),
    );
    assert!(
        wrong.is_empty(),
        "cut the file by idea, or list it in LONG_FILES with a reason:\n{}",
        wrong.join("\n")
    );
}

/// A thread that does not say its kind keeps the system calls of the thread that started it.
#[test]
fn each_thread_of_a_daemon_says_of_what_kind_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for folder in ["vhost", "io", "merger", "daemon", "control"] {
        rust_files(&root.join(folder), &mut files);
    }
    let mut threads = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let count = |what: &str| text.matches(what).count();
        let started = count("thread::Builder::new()");
        threads += started;
        assert!(
            count("sandbox::thread(Kind::") >= started,
            "{}: a thread begins without `sandbox::thread(Kind::…)`",
            file.display()
        );
    }
    assert!(threads > 10, "{threads}");
}

#[test]
fn functions_are_found_with_their_length_and_their_reason() {
    let text = r#"
impl Thing {
    // Long: this one has a reason.
    #[allow(
        clippy::something
    )]
    /// What it does.
    pub(super) const unsafe fn with_reason<T>(
        a: T,
    ) -> T
    where
        T: Copy,
    {
        a
    }

    // Long: for another.

    fn without_reason() {
        fn inner() {}
    }

    fn in_one_line() {}
    fn declared(&self) -> bool;
}

async fn last() {
    body();
}
"#;
    let lines: Vec<&str> = text.lines().collect();
    let found: Vec<(&str, usize, Option<usize>)> = functions(&lines)
        .iter()
        .map(|f| (f.name, f.length, f.reason))
        .collect();
    assert_eq!(
        found,
        [
            ("with_reason", 8, Some(2)),
            ("without_reason", 3, None),
            ("last", 3, None),
        ]
    );
}

/// Daemons of tests that run side by side must not see one another, nor those of the system.
#[test]
fn tests_give_the_program_a_runtime_directory_of_their_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["tests", "qemu-tests", "benches"] {
        rust_files(&root.join(folder), &mut files);
    }
    let starts = ["cargo_bin", "CARGO_BIN_EXE", "Command::new(PROGRAM)"];
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(root).unwrap().to_str().unwrap();
        let careless = starts.iter().any(|start| text.contains(start))
            && !text.contains("\"XDG_RUNTIME_DIR\"");
        let listed = SEES_NO_DAEMON.contains(&name);
        if name != "tests/source_rules.rs" && careless != listed {
            wrong.push(name.to_owned());
        }
    }
    assert_eq!(wrong, [""; 0], "set XDG_RUNTIME_DIR, or see SEES_NO_DAEMON");
}

#[test]
fn long_functions_stale_entries_and_stale_reasons_are_found() {
    let function = |lines: usize| format!("fn long() {{\n{}}}\n", "    x();\n".repeat(lines - 2));
    let none = || BTreeSet::new();
    let (fits, long) = (function(70), function(71));
    assert_eq!(faults("a.rs", &fits, &mut none()), [""; 0]);
    assert_eq!(
        faults("a.rs", &long, &mut none()),
        ["src/a.rs:1: `long` has 71 lines"]
    );
    let mut open = BTreeSet::from([("a.rs", "long"), ("b.rs", "long")]);
    assert_eq!(faults("a.rs", &long, &mut open), [""; 0]);
    assert_eq!(open, BTreeSet::from([("b.rs", "long")]));
    let with_reason = |lines| format!("{REASON}one table of cases.\n{}", function(lines));
    assert_eq!(faults("a.rs", &with_reason(71), &mut none()), [""; 0]);
    assert_eq!(faults("a.rs", &with_reason(70), &mut none()).len(), 1);
    let without_words = format!("{REASON}\n{long}");
    assert_eq!(faults("a.rs", &without_words, &mut none()).len(), 2);
}

/// Files below `src` that may read the clock of the day, which an operator or NTP may set at any
/// time: they only print it. What waits or measures uses the monotonic clock.
const PRINTS_THE_TIME: &[&str] = &[
    "cli/top/mod.rs",
    "cli/watch.rs",
    "control/events.rs",
    "control/operations.rs",
    "control/verbs.rs",
];

#[test]
fn nothing_waits_or_measures_by_a_clock_that_can_be_set() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    rust_files(&src, &mut paths);
    let mut found = BTreeSet::new();
    for path in &paths {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let reads = [
            "SystemTime::now",
            "ClockId::Realtime",
            "CLOCK_REALTIME",
            "Utc::now",
        ];
        if reads.iter().any(|name| code.contains(name)) {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
            found.insert(name.to_owned());
        }
    }
    let expected: BTreeSet<String> = PRINTS_THE_TIME.iter().map(|s| (*s).to_owned()).collect();
    assert_eq!(
        found, expected,
        "use Instant, or show that the time is only printed"
    );
}
