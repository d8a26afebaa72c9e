//! The files of the package.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::world::{World, run, text};

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name)
}

/// The units in a folder of their own, with the program of this build.
fn units() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = assert_cmd::cargo::cargo_bin!("snapback");
    for (unit, instance) in [
        ("snapback@.service", "snapback@vm.service"),
        ("snapback@.socket", "snapback@vm.socket"),
    ] {
        let unit = fs::read_to_string(packaging(unit)).unwrap();
        let unit = unit.replace("/usr/bin/snapback", text(program));
        fs::write(folder.path().join(instance), unit).unwrap();
    }
    folder
}

fn analyze(arguments: &[&str]) -> Command {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).env("SYSTEMD_LOG_LEVEL", "warning");
    command
}

#[test]
fn systemd_understands_each_line_of_the_units() {
    let folder = units();
    for unit in ["snapback@vm.service", "snapback@vm.socket"] {
        let mut command = analyze(&["verify", "--man=no"]);
        let (code, _, error) = run(command.arg(folder.path().join(unit)));
        let ours: Vec<&str> = error
            .lines()
            .filter(|line| line.contains("snapback"))
            .collect();
        assert!(ours.is_empty(), "{error}");
        assert_eq!(code, Some(0), "{error}");
    }
}

#[test]
fn the_unit_gives_the_daemon_little_to_do_harm_with() {
    let folder = units();
    let unit = folder.path().join("snapback@vm.service");
    // In tenths; a unit without any of these lines has 96.
    let mut command = analyze(&["security", "--offline=yes", "--threshold=30"]);
    let (code, answer, error) = run(command.arg(&unit));
    assert_eq!(code, Some(0), "{answer}{error}");
}

#[test]
fn the_unit_uses_what_the_daemon_offers() {
    let unit = fs::read_to_string(packaging("snapback@.service")).unwrap();
    let lines: BTreeSet<&str> = unit.lines().collect();
    for line in [
        "Type=notify",
        "FileDescriptorStoreMax=1024",
        "RuntimeDirectoryPreserve=restart",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ] {
        assert!(lines.contains(line), "{line}");
    }
    let socket = fs::read_to_string(packaging("snapback@.socket")).unwrap();
    assert!(socket.contains("\nFileDescriptorName=origin\n"));
}

#[test]
fn the_example_is_a_valid_configuration() {
    let world = World::new();
    let example = fs::read_to_string(packaging("example.toml")).unwrap();
    let commented = example
        .replace("# log-level", "log-level")
        .replace("# num-", "num-");
    let snapshot = commented.find("# [[snapshot]]").unwrap();
    let uncommented = commented[snapshot..]
        .replace("\n# ", "\n")
        .replacen("# ", "", 1);
    for text_of in [
        example.clone(),
        commented[..snapshot].to_owned() + &uncommented,
    ] {
        let here = world.folder.path().display().to_string();
        let changed = text_of
            .replace(
                "/var/lib/vm/NAME.img",
                &world.path("disk.img").display().to_string(),
            )
            .replace("/run/snapback/NAME", &here)
            .replace("/var/lib/vm", &here);
        world.write("d.toml", &changed);
        let mut command = world.serve();
        command.args(["--check", "--config", text(&world.path("d.toml"))]);
        let (code, answer, error) = run(&mut command);
        assert_eq!(code, Some(0), "{answer}{error}");
    }
    assert!(uncommented.contains("\n[[snapshot]]") || uncommented.starts_with("[[snapshot]]"));
}

/// The files of the repository that an asset names, whose last part may have one `*`.
fn matching(asset: &str) -> Vec<String> {
    let (folder, last) = asset.rsplit_once('/').unwrap_or(("", asset));
    let (begin, end) = last.split_once('*').unwrap_or((last, ""));
    let is_it = |name: &String| match last.contains('*') {
        true => name.starts_with(begin) && name.ends_with(end),
        false => name == last,
    };
    let files = fs::read_dir(packaging("..").join(folder)).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(is_it).collect()
}

#[test]
fn the_packages_changelog_begins_with_the_version() {
    let changelog = fs::read_to_string(packaging("debian/changelog")).unwrap();
    let first = format!("snapback ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&first), "{changelog}");
}

/// What makes and compares packages, and is not in them.
const OF_THE_BUILD: [&str; 3] = ["debian", "release.sh", "reproduce.sh"];

#[test]
fn every_file_of_the_package_exists() {
    let manifest = fs::read_to_string(packaging("../Cargo.toml")).unwrap();
    let deb = manifest.split("[package.metadata.deb]").nth(1).unwrap();
    let assets = deb
        .split("assets = [")
        .nth(1)
        .unwrap()
        .split("\n]")
        .next()
        .unwrap();
    let mut sources = BTreeSet::new();
    for line in assets
        .lines()
        .filter(|line| line.trim_start().starts_with('['))
    {
        let source = line.split('"').nth(1).unwrap();
        // Built, not stored.
        if !source.starts_with("target/") {
            assert!(!matching(source).is_empty(), "{source}");
        }
        sources.insert(source.to_owned());
    }
    assert!(deb.contains("maintainer-scripts = \"packaging/debian/\""));
    for file in fs::read_dir(packaging("")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let is_packed = sources.contains(&format!("packaging/{name}"));
        assert!(
            is_packed || OF_THE_BUILD.contains(&name.as_str()),
            "packaging/{name} is not packed"
        );
    }
    for built in [
        "target/package/man/*.1",
        "target/package/completions/snapback.bash",
    ] {
        assert!(sources.contains(built), "{built}");
    }
}
