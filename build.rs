//! Gives the program its version: that of the package, and the commit that it was built from.

use std::env;
use std::path::Path;
use std::process::Command;

/// What the version tells of; a change of anything else needs no new version.
const SOURCES: [&str; 4] = ["src", "Cargo.toml", "Cargo.lock", "build.rs"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SNAPBACK_COMMIT");
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".to_owned());
    let folder = Path::new(&folder);
    let package = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let given = env::var("SNAPBACK_COMMIT").ok();
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // To know the commit, a build has to begin again at each one, which development cannot afford.
    let version = if is_release || given.is_some() {
        watch(folder);
        version(&package, folder, given.as_deref())
    } else {
        format!("{package} (debug build)")
    };
    println!("cargo::rustc-env=SNAPBACK_VERSION={version}");
}

/// `package` with the commit of the sources in `folder`, or with the one that was `given`. Depends
/// on nothing else, such as the time, so that equal sources give equal programs.
pub fn version(package: &str, folder: &Path, given: Option<&str>) -> String {
    let found = given.map(str::to_owned).or_else(|| {
        let commit = git(folder, &["rev-parse", "HEAD"])?;
        let is_modified = git(
            folder,
            &[&["status", "--porcelain", "--"], &SOURCES[..]].concat(),
        )
        .is_some_and(|changes| !changes.is_empty());
        // The length that git chooses depends on what else is in the repository.
        let commit = commit.get(..7)?;
        Some(match is_modified {
            true => format!("{commit}, modified"),
            false => commit.to_owned(),
        })
    });
    match found.filter(|commit| !commit.is_empty()) {
        Some(commit) => format!("{package} ({commit})"),
        // From an archive of the sources.
        None => package.to_owned(),
    }
}

/// The answer of git, if `folder` is the top of a repository: an archive of the sources may be
/// unpacked inside of another project's.
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    if !folder.join(".git").exists() {
        return None;
    }
    let mut command = Command::new("git");
    let output = command
        .arg("-C")
        .arg(folder)
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Has the build script run again when the commit or the sources change.
fn watch(folder: &Path) {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    for file in ["HEAD", "logs/HEAD", "index"] {
        if let Some(path) = git(folder, &["rev-parse", "--git-path", file])
            && folder.join(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}
