//! `--version` names the commit that the program was built from.

use std::fs;
use std::path::Path;
use std::process::Command;

#[path = "../../build.rs"]
#[allow(dead_code)]
mod build_script;

use build_script::version;

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(["-c", "user.name=n", "-c", "user.email=e@example.org"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn sources(folder: &Path) {
    fs::create_dir_all(folder.join("src")).unwrap();
    for file in ["src/main.rs", "Cargo.toml", "Cargo.lock", "build.rs"] {
        fs::write(folder.join(file), "x").unwrap();
    }
}

#[test]
fn a_version_names_the_commit_and_whether_the_sources_were_changed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sources(folder);
    git(folder, &["init", "-q"]);
    git(folder, &["add", "."]);
    git(folder, &["commit", "-q", "-m", "c"]);
    let commit = git(folder, &["rev-parse", "HEAD"])[..7].to_owned();
    let clean = format!("0.1.0 ({commit})");
    assert_eq!(version("0.1.0", folder, None), clean);
    // What is not built does not count.
    fs::write(folder.join("notes"), "n").unwrap();
    assert_eq!(version("0.1.0", folder, None), clean);
    fs::write(folder.join("src/main.rs"), "y").unwrap();
    let modified = format!("0.1.0 ({commit}, modified)");
    assert_eq!(version("0.1.0", folder, None), modified);
    assert_eq!(version("0.1.0", folder, Some("1234567")), "0.1.0 (1234567)");

    // An archive of the sources, unpacked inside of the repository of another project.
    let archive = folder.join("snapback-0.1.0");
    sources(&archive);
    assert_eq!(version("0.1.0", &archive, None), "0.1.0");
}

#[test]
fn the_program_prints_its_version() {
    let output = assert_cmd::Command::cargo_bin("snapback")
        .unwrap()
        .arg("--version")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rest = text.strip_prefix(concat!("snapback ", env!("CARGO_PKG_VERSION")));
    let rest = rest.unwrap().strip_suffix('\n').unwrap();
    let commit = rest.strip_prefix(" (").and_then(|r| r.strip_suffix(')'));
    // `debug build`, or a commit.
    assert!(commit.is_some_and(|c| c.len() >= 7), "{text}");
}
