//! The flags of a release: they are those of `packaging/release.sh`, and give equal bytes in every
//! folder. Two builds of the program itself take long; `packaging/reproduce.sh` does that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::de::{DeTable, DeValue};

use super::root;

/// A small program with a place in a panic and in its debug information, of the sources, of a
/// library and of a build script each.
struct Copy {
    folder: PathBuf,
    cargo: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new(folder: &Path) -> Self {
        let copy = Self {
            folder: folder.join("sources"),
            cargo: folder.join("home/cargo"),
            target: folder.join("built"),
        };
        let script = root().join("packaging/release.sh");
        // Each asks for more than the last one, so that none is optimised away.
        let place = |least: usize| format!("pub fn f(at: usize) {{ assert!(at > {least}); }}\n");
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        fs::create_dir_all(copy.folder.join("packaging")).unwrap();
        fs::copy(script, copy.folder.join("packaging/release.sh")).unwrap();
        write(copy.cargo.join("library.rs"), &place(3));
        write(copy.target.join("made.rs"), &place(4));
        let main = format!(
            "#[path = \"{}\"] mod library;\nmod made {{ include!(\"{}\"); }}\n\
             fn main() {{\n    let at = std::env::args().count();\n    assert!(at > 2);\n    \
             library::f(at);\n    made::f(at);\n}}\n",
            copy.cargo.join("library.rs").display(),
            copy.target.join("made.rs").display()
        );
        write(copy.folder.join("src/main.rs"), &main);
        copy
    }

    fn flags(&self) -> Vec<String> {
        let output = Command::new(self.folder.join("packaging/release.sh"))
            .arg("--flags")
            .env("CARGO_HOME", &self.cargo)
            .env("CARGO_TARGET_DIR", &self.target)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn build(&self, flags: &[String]) -> Vec<u8> {
        let program = self.target.join("program");
        let status = Command::new("rustc")
            .args(["--edition=2024", "-O", "-Cdebuginfo=line-tables-only"])
            .args(flags)
            .arg(self.folder.join("src/main.rs"))
            .arg("-o")
            .arg(&program)
            .status()
            .unwrap();
        assert!(status.success());
        fs::read(program).unwrap()
    }
}

fn has(program: &[u8], path: &Path) -> bool {
    let path = path.as_os_str().as_encoded_bytes();
    program.windows(path.len()).any(|bytes| bytes == path)
}

#[test]
fn the_flags_of_a_release_give_the_same_bytes_in_every_folder_and_hide_it() {
    let folder = tempfile::tempdir().unwrap();
    let one = Copy::new(&folder.path().join("one"));
    let other = Copy::new(&folder.path().join("another-and-longer"));
    let without = one.build(&[]);
    for path in [&one.folder, &one.cargo, &one.target] {
        assert!(has(&without, path), "the test shows nothing of {path:?}");
    }
    let with = one.build(&one.flags());
    assert!(!has(&with, folder.path()));
    let again = other.build(&other.flags());
    assert!(with == again, "the two programs differ");
}

#[test]
fn two_programs_that_differ_are_told_apart_with_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let one = Copy::new(&folder.path().join("one"));
    let other = Copy::new(&folder.path().join("another-and-longer"));
    let place = |name: &str| folder.path().join(name);
    fs::write(place("a"), one.build(&[])).unwrap();
    fs::write(place("b"), other.build(&[])).unwrap();
    fs::copy(place("a"), place("same")).unwrap();
    let compare = |name: &str| {
        let output = Command::new(root().join("packaging/reproduce.sh"))
            .arg("--compare")
            .args([place("a"), place(name)])
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = compare("same");
    assert!(code == Some(0) && text.contains("are equal"), "{text}");
    let (code, text) = compare("b");
    assert_eq!(code, Some(1), "{text}");
    for part in [
        ".rodata differs",
        ".debug_str differs",
        "one/sources/src/main.rs",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

/// Settings that take a protection away or make a build depend on the machine.
#[test]
fn the_profile_and_the_flags_of_a_release_change_nothing_else() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let table = DeTable::parse(&text).unwrap().into_inner();
    let profiles = table["profile"].get_ref().as_table().unwrap();
    let release = profiles["release"].get_ref().as_table().unwrap();
    let settings: Vec<(&str, Option<&str>)> = release
        .iter()
        .map(|(key, value)| (key.get_ref().as_ref(), value.get_ref().as_str()))
        .collect();
    // A new one is a decision: does the program keep its protections, and the same bytes?
    assert_eq!(settings, [("debug", Some("line-tables-only"))]);
    let own = |value: &DeValue<'_>| {
        value
            .as_table()
            .is_some_and(|table| table.contains_key("rustflags"))
    };
    assert!(!table.iter().any(|(_, value)| own(value.get_ref())));
    for file in [".cargo/config.toml", ".cargo/config"] {
        assert!(
            !root().join(file).exists(),
            "{file} is a part of every build"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    for flag in Copy::new(folder.path()).flags() {
        assert!(flag.starts_with("--remap-path-prefix="), "{flag}");
    }
}

#[test]
fn the_package_and_the_documents_are_made_of_that_release() {
    for (file, section) in [
        ("docs/service.md", "\n## Building the package\n"),
        ("docs/install.md", "\n## Checking a published program\n"),
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let section = text
            .split(section)
            .nth(1)
            .unwrap_or_else(|| panic!("{file}: {section}"));
        let section = section.split("\n## ").next().unwrap();
        assert!(section.contains("\npackaging/release.sh\n"), "{file}");
        assert!(!section.contains("\ncargo build"), "{file}");
    }
}
