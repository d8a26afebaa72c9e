//! The tables of `docs/` that say what proves a behaviour: each row has tests that exist.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::string_slice)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Rows that there must be: a letter, and numbers from 1.
const ROWS: [(char, usize, u32); 7] = [
    ('S', 2, 23),
    ('O', 2, 12),
    ('N', 2, 22),
    ('M', 2, 24),
    ('I', 2, 7),
    ('X', 2, 3),
    ('B', 1, 27), // the faults, without a leading zero
];

fn expected() -> Vec<String> {
    let rows = ROWS.iter().flat_map(|(letter, width, last)| {
        (1..=*last).map(move |number| format!("{letter}{number:0width$}"))
    });
    rows.collect()
}

/// The cells of the table rows in `text` that begin with a row's name.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter_map(|line| {
        let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let cells: Vec<&str> = inner.split(" | ").map(str::trim).collect();
        let name = cells[0];
        let is_row = name.len() > 1
            && name.starts_with(|c| ROWS.iter().any(|(letter, ..)| *letter == c))
            && name[1..].bytes().all(|b| b.is_ascii_digit());
        is_row.then_some(cells)
    });
    lines.collect()
}

/// Whether `source` has a test function of this name.
fn has_test(source: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    lines.iter().enumerate().any(|(at, line)| {
        line.starts_with(&head)
            && lines[..at]
                .iter()
                .rev()
                .take_while(|above| above.starts_with("#[") || above.starts_with("//"))
                .any(|above| *above == "#[test]")
    })
}

/// What is wrong with the table; `read` gives a source file.
fn faults(text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut missing: BTreeMap<String, u32> = expected().into_iter().map(|r| (r, 0)).collect();
    for cells in rows(text) {
        let row = cells[0];
        match missing.get_mut(row) {
            Some(times) => *times += 1,
            None => wrong.push(format!("{row}: there is no such row")),
        }
        let wanted = if row.starts_with('B') { 4 } else { 3 };
        if cells.len() != wanted || cells.iter().any(|cell| cell.is_empty()) {
            wrong.push(format!("{row}: {wanted} cells, none empty"));
        }
        let tests = cells.last().unwrap_or(&"").split("<br>");
        for test in tests {
            let named = test
                .strip_prefix('`')
                .and_then(|t| t.strip_suffix('`'))
                .and_then(|t| t.split_once("::"));
            match named {
                None => wrong.push(format!("{row}: {test:?} is not `path::test`")),
                Some((path, name)) => match read(path) {
                    None => wrong.push(format!("{row}: there is no {path}")),
                    Some(source) if !has_test(&source, name) => {
                        wrong.push(format!("{row}: {path} has no test {name}"));
                    }
                    Some(_) => {}
                },
            }
        }
    }
    for (row, times) in missing.iter().filter(|(_, times)| **times != 1) {
        wrong.push(format!("{row} is there {times} times"));
    }
    wrong
}

#[test]
fn every_row_is_there_and_has_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/checklist.md")).unwrap();
    let wrong = faults(&text, |path| fs::read_to_string(root.join(path)).ok());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every row of the table in `docs/rollback.md` names its test, and each of the tests
/// that were written for it has its row.
#[test]
fn every_event_around_a_reset_has_its_row_and_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let text = read("docs/rollback.md");
    let (_, table) = text.split_once("## What each event does").unwrap();
    let rows: Vec<&str> = table
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with("| "))
        .collect();
    assert!(rows.len() > 10, "{rows:?}");
    for row in &rows {
        let test = row.trim_end_matches("` |").rsplit('`').next().unwrap();
        let (path, name) = test.split_once("::").unwrap_or_else(|| panic!("{row}"));
        assert!(has_test(&read(path), name), "{path} has no test {name}");
    }
    for file in ["drivers", "looks", "boots"] {
        let path = format!("qemu-tests/resets/{file}.rs");
        for line in read(&path).lines() {
            let name = line
                .strip_prefix("fn ")
                .and_then(|l| l.strip_suffix("() {"));
            let Some(name) = name.filter(|name| has_test(&read(&path), name)) else {
                continue;
            };
            assert!(
                rows.iter()
                    .any(|row| row.contains(&format!("{path}::{name}`"))),
                "{name} has no row"
            );
        }
    }
}

/// What is wrong with the tables about hostile guests. `read` gives a source file, `cases`
/// are the sources in which the tests have their cases.
fn hostile_faults(text: &str, read: impl Fn(&str) -> Option<String>, cases: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let rows = text.lines().filter_map(|line| {
        let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
        Some(inner.split(" | ").collect::<Vec<&str>>())
    });
    for cells in rows.filter(|cells| !cells[0].starts_with("the guest or")) {
        let [what, _, tests] = cells[..] else {
            wrong.push(format!("{}: 3 cells", cells[0]));
            continue;
        };
        for test in tests.split("<br>") {
            let (named, quoted) = test.split_once(": ").unwrap_or((test, ""));
            let named = named.trim_matches('`').split_once("::");
            let source = named.and_then(|(path, _)| read(path));
            match (named, source) {
                (Some((_, name)), Some(source)) if has_test(&source, name) => {}
                _ => wrong.push(format!("{what} There is no test {test}")),
            }
            let names = quoted.split('"').skip(1).step_by(2);
            for name in names.filter(|name| !cases.contains(&format!("\"{name}\""))) {
                wrong.push(format!("{what} There is no case {name:?}"));
            }
        }
    }
    wrong
}

#[test]
fn everything_that_a_hostile_guest_does_has_tests_and_cases_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/hostile-guests.md")).unwrap();
    let mut cases = String::new();
    let mut folders = vec![root.join("tests/hostile")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            match entry.is_dir() {
                true => folders.push(entry),
                false => cases.push_str(&fs::read_to_string(entry).unwrap()),
            }
        }
    }
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let wrong = hostile_faults(&text, read, &cases);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(text.lines().filter(|line| line.starts_with("| ")).count() > 60);
}

#[test]
fn what_is_wrong_with_a_table_about_hostile_guests_is_found() {
    let read = |path: &str| (path == "a.rs").then(|| "#[test]\nfn good() {}\n".to_owned());
    let cases = "(\"one\", \"two\")";
    let faults = |row: &str| hostile_faults(row, read, cases);
    for good in [
        "| the guest or its front end | what | by |\n|---|---|---|",
        "| It does. | Nothing. | `a.rs::good`: \"one\", \"two\"<br>`a.rs::good` |",
    ] {
        assert_eq!(faults(good), [""; 0]);
    }
    for (row, fault) in [
        ("| It does. | Nothing. |", "It does.: 3 cells"),
        (
            "| It does. | Nothing. | `a.rs::bad` |",
            "It does. There is no test `a.rs::bad`",
        ),
        (
            "| It does. | Nothing. | `b.rs::good` |",
            "It does. There is no test `b.rs::good`",
        ),
        (
            "| It does. | Nothing. | `a.rs::good`: \"on\" |",
            "It does. There is no case \"on\"",
        ),
    ] {
        assert_eq!(faults(row), [fault]);
    }
}

#[test]
fn what_is_wrong_with_a_table_is_found() {
    let source = "/// Proves it.\n#[test]\nfn good() {}\n\nfn helper() {}\n";
    let read = |path: &str| (path == "a.rs").then(|| source.to_owned());
    let good: String = expected()
        .iter()
        .map(|row| match row.starts_with('B') {
            true => format!("| {row} | was | is | `a.rs::good` |\n"),
            false => format!("| {row} | is | `a.rs::good`<br>`a.rs::good` |\n"),
        })
        .collect();
    assert_eq!(faults(&good, read), [""; 0]);
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from));
        faults(&good.replace(from, to), read)
    };
    let row = "| S07 | is | `a.rs::good`<br>`a.rs::good` |\n";
    for (to, fault) in [
        ("", "S07 is there 0 times"),
        (&row.repeat(2)[..], "S07 is there 2 times"),
        ("| S07 | is |  |\n", "S07: 3 cells, none empty"),
        (
            "| S07 | is | `a.rs::helper` |\n",
            "S07: a.rs has no test helper",
        ),
        ("| S07 | is | `a.rs::goo` |\n", "S07: a.rs has no test goo"),
        ("| S07 | is | `b.rs::good` |\n", "S07: there is no b.rs"),
        ("| S07 | is | good |\n", "S07: \"good\" is not `path::test`"),
        (
            &[row, &row.replace("S07", "S99")].concat(),
            "S99: there is no such row",
        ),
    ] {
        let found = changed(row, to);
        assert!(found.iter().any(|f| f == fault), "{to:?}: {found:?}");
    }
}

/// Every row about failing storage names tests that exist, and each test that makes storage fail
/// is named.
#[test]
fn every_fault_has_tests_that_exist_and_every_test_of_faults_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let faults = text.split("\n## Figures\n").next().unwrap();
    let lines = faults.lines().filter_map(|line| line.strip_prefix("| "));
    let rows: Vec<&str> = lines.filter(|line| !line.starts_with("fault |")).collect();
    assert!(rows.len() > 25, "{}", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        assert_eq!(cells.len(), 5, "{row}");
        for test in cells[4].split("<br>") {
            let named = test.trim_matches('`').split_once("::");
            let (path, name) = named.unwrap_or_else(|| panic!("{row}"));
            assert!(has_test(&read(path), name), "{path} has no test {name}");
        }
    }
    let folders = ["tests/faults", "qemu-tests/inside"];
    let entries = folders.map(|folder| fs::read_dir(root.join(folder)).unwrap());
    for entry in entries.into_iter().flatten() {
        let path = entry.unwrap().path();
        let path = path.strip_prefix(root).unwrap().to_str().unwrap();
        let source = read(path);
        let names = source.lines().filter_map(|line| {
            let name = line.strip_prefix("fn ")?.strip_suffix("() {")?;
            has_test(&source, name).then_some(name)
        });
        for name in names {
            assert!(
                text.contains(&format!("`{path}::{name}`")),
                "{name} has no row"
            );
        }
    }
}
