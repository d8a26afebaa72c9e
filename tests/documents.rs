//! The documents refer only to what exists: files, tests, links, anchors, test targets
//! and environment variables.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::expect_used
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Endings of the files that a document may name.
const ENDINGS: [&str; 6] = [".rs", ".sh", ".md", ".toml", ".svg", "/"];
/// A name that ends in one of these although it is no file of this repository.
const NOT_OURS: [&str; 3] = ["/", "/var/lib/snapback/", "/v1/"];

/// What the documents are checked against.
struct Repository {
    /// From the root, without the leading `./`; folders end with `/`.
    paths: BTreeSet<String>,
    /// The names of all functions.
    functions: BTreeSet<String>,
    /// All sources and scripts, one after the other.
    sources: String,
}

impl Repository {
    fn read(root: &Path) -> Self {
        let mut repository = Self {
            paths: BTreeSet::new(),
            functions: BTreeSet::new(),
            sources: String::new(),
        };
        for entry in fs::read_dir(root).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !["target", ".git"].contains(&name.as_str()) {
                repository.add(root, &name);
            }
        }
        repository
    }

    fn add(&mut self, root: &Path, name: &str) {
        let path = root.join(name);
        if path.is_dir() && name.ends_with("/target") {
            return;
        }
        if path.is_dir() {
            self.paths.insert(format!("{name}/"));
            for entry in fs::read_dir(&path).unwrap() {
                let inner = entry.unwrap().file_name().into_string().unwrap();
                self.add(root, &format!("{name}/{inner}"));
            }
            return;
        }
        self.paths.insert(name.to_owned());
        if name.ends_with(".rs") || name.ends_with(".sh") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.split("fn ").skip(1);
            self.functions
                .extend(names.map(|rest| identifier(rest).to_owned()));
            self.sources.push_str(&text);
        }
    }

    /// `path` from the root, or the end of such a path.
    fn has_path(&self, path: &str) -> bool {
        let end = format!("/{path}");
        let mut known = self.paths.iter();
        known.any(|known| known == path || known.ends_with(&end))
    }

    fn has_test_target(&self, name: &str) -> bool {
        name == "qemu"
            || self.paths.contains(&format!("tests/{name}.rs"))
            || self.paths.contains(&format!("tests/{name}/main.rs"))
    }
}

/// The identifier at the start of `text`.
fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// A document without its code blocks.
fn prose(text: &str) -> String {
    let mut in_block = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        !in_block && !fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What stands between backticks, which may span a line's end.
fn code_spans(prose: &str) -> Vec<&str> {
    prose.split('`').skip(1).step_by(2).collect()
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn anchors(text: &str) -> BTreeSet<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

/// `folder` and the relative `link`, without `..`.
fn join(folder: &Path, link: &str) -> String {
    let mut path = PathBuf::new();
    for part in folder.join(link).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{link} leaves the repository"),
            Component::Normal(name) => path.push(name),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    path.to_str().unwrap().to_owned()
}

/// The words after each `before` in `text`.
fn words_after<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let rest = text.split(before).skip(1);
    rest.map(identifier).filter(|w| !w.is_empty()).collect()
}

/// What is wrong with the document `name`; `read` gives the text of another one.
fn faults(
    repository: &Repository,
    name: &str,
    text: &str,
    read: impl Fn(&str) -> String,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let prose = prose(text);
    for span in code_spans(&prose) {
        let (path, function) = span.split_once("::").unwrap_or((span, ""));
        let is_path = path
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
            && ENDINGS.iter().any(|ending| path.ends_with(ending))
            && !NOT_OURS.contains(&path)
            && !path.starts_with(['.', '-']);
        if is_path && !repository.has_path(path) {
            wrong.push(format!("there is no file {path}"));
        }
        // Names of types and of their methods are left to rustdoc.
        let test = function.rsplit("::").next().unwrap_or_default();
        let is_test = test.matches('_').count() >= 3 && identifier(test) == test;
        if is_test && !repository.functions.contains(test) {
            wrong.push(format!("there is no test {test}"));
        }
    }
    for target in prose.split("](").skip(1) {
        let target = target.split(')').next().unwrap_or_default();
        if target.starts_with("https://") {
            continue;
        }
        let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
        let path = match file {
            "" => name.to_owned(),
            file => join(Path::new(name).parent().unwrap(), file),
        };
        if !repository.paths.contains(&path) {
            wrong.push(format!("a link to {path}, which does not exist"));
        } else if !fragment.is_empty() && !anchors(&read(&path)).contains(fragment) {
            wrong.push(format!("a link to {path}#{fragment}: no such heading"));
        }
    }
    for target in words_after(text, "--test ") {
        if !repository.has_test_target(target) {
            wrong.push(format!("there is no test target {target}"));
        }
    }
    for variable in words_after(text, "SNAPBACK_") {
        if !repository.sources.contains(&format!("SNAPBACK_{variable}")) {
            wrong.push(format!("nothing reads SNAPBACK_{variable}"));
        }
    }
    wrong
}

#[test]
fn documents_name_only_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let repository = Repository::read(root);
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let documents = repository
        .paths
        .iter()
        .filter(|path| path.ends_with(".md"))
        .collect::<Vec<_>>();
    assert!(documents.len() > 10, "{documents:?}");
    let wrong: Vec<String> = documents
        .iter()
        .flat_map(|name| {
            let found = faults(&repository, name, &read(name), read);
            found
                .into_iter()
                .map(move |fault| format!("{name}: {fault}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_does_not_exist_is_found() {
    let paths = [
        "docs/",
        "docs/a.md",
        "src/io/",
        "src/io/cut.rs",
        "tests/b/main.rs",
    ];
    let repository = Repository {
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        functions: BTreeSet::from(["a_test_that_is_there".to_owned()]),
        sources: "SNAPBACK_SEED".to_owned(),
    };
    let read = |_: &str| "# A heading: of `code`\n".to_owned();
    let found = |text: &str| faults(&repository, "docs/a.md", text, read);
    for fine in [
        "`src/io/cut.rs`, `io/cut.rs`, `cut.rs`, `src/io/`, `main.rs::a_test_that_is_there`",
        "[a](a.md), [b](../src/io/cut.rs), [c](#a-heading-of-code), [d](https://x.org/)",
        "```\n[a](no.md) `no.rs`\n```\n`Type::method`, `before.cow`, `/v1/`",
        "cargo test --test b, SNAPBACK_SEED=1",
    ] {
        assert_eq!(found(fine), [""; 0], "{fine}");
    }
    for (text, fault) in [
        ("`src/cut.rs`", "there is no file src/cut.rs"),
        ("`tests/cut/`", "there is no file tests/cut/"),
        (
            "`cut.rs::a_test_that_is_gone`",
            "there is no test a_test_that_is_gone",
        ),
        ("[a](b.md)", "a link to docs/b.md, which does not exist"),
        ("[a](#words)", "a link to docs/a.md#words: no such heading"),
        ("```\ncargo test --test c\n```", "there is no test target c"),
        ("SNAPBACK_SEEDS=1", "nothing reads SNAPBACK_SEEDS"),
    ] {
        assert_eq!(found(text), [fault], "{text}");
    }
}

#[test]
fn every_document_is_in_the_index_and_in_the_book() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let read = |name: &str| fs::read_to_string(docs.join(name)).unwrap();
    let (index, book) = (read("README.md"), read("SUMMARY.md"));
    let mut missing = Vec::new();
    for entry in fs::read_dir(&docs).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".md") || name == "README.md" || name == "SUMMARY.md" {
            continue;
        }
        for (list, text) in [("README.md", &index), ("SUMMARY.md", &book)] {
            if !text.contains(&format!("]({name})")) {
                missing.push(format!("docs/{list} does not link to {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
