//! The program as the kernel and the loader see it.

use std::fs;
use std::path::Path;
use std::process::Command;

/// What readelf prints of it.
fn readelf(program: &Path) -> String {
    let output = Command::new("readelf")
        .args(["--wide", "--file-header", "--program-headers", "--dynamic"])
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .expect("readelf is there: qemu-tests/install.sh installs binutils");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The protections that a program lacks.
fn faults(program: &Path) -> Vec<&'static str> {
    let text = readelf(program);
    let words = |line: &str| -> Vec<String> {
        let words = line.split_whitespace();
        words.map(str::to_owned).collect()
    };
    let segment = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        line.map(words)
    };
    // Type, offset, two addresses, two sizes, then the rights.
    let rights = |segment: &[String]| segment[6..segment.len() - 1].concat();
    let entry = |name: &str| text.lines().find(|line| line.contains(name));
    let says = |name: &str, word: &str| {
        entry(name).is_some_and(|line| words(line).iter().any(|found| found == word))
    };
    let mut faults = Vec::new();
    let mut need = |is_so: bool, fault| {
        if !is_so {
            faults.push(fault);
        }
    };
    need(
        says("Type:", "DYN") && says("(FLAGS_1)", "PIE"),
        "its code is always at the same address",
    );
    need(
        segment("GNU_RELRO").is_some(),
        "its tables stay writable (RELRO)",
    );
    need(
        says("(FLAGS)", "BIND_NOW") || says("(FLAGS_1)", "NOW"),
        "functions are bound late, in a writable table",
    );
    need(
        segment("GNU_STACK").is_some_and(|stack| !rights(&stack).contains('E')),
        "its stack can be executed",
    );
    let loads = text
        .lines()
        .filter(|line| line.trim_start().starts_with("LOAD"));
    need(
        loads.map(words).all(|load| {
            let rights = rights(&load);
            !(rights.contains('W') && rights.contains('E'))
        }),
        "a part of it can be both written and executed",
    );
    need(
        entry("(TEXTREL)").is_none(),
        "its code is changed at its start",
    );
    need(
        entry("(RPATH)").is_none() && entry("(RUNPATH)").is_none(),
        "it takes libraries from a folder of its own",
    );
    faults
}

#[test]
fn the_program_is_built_with_every_protection_that_the_loader_offers() {
    let program = assert_cmd::cargo::cargo_bin!("snapback");
    assert_eq!(faults(program), [""; 0]);
}

/// A release takes long to build, so it is looked at on request: SNAPBACK_RELEASE is its path.
#[test]
fn a_release_is_built_with_the_same_protections() {
    let Some(program) = std::env::var_os("SNAPBACK_RELEASE") else {
        println!("left out: SNAPBACK_RELEASE=target/release/snapback names none");
        return;
    };
    assert_eq!(faults(&super::root().join(program)), [""; 0]);
}

#[test]
fn a_program_without_a_protection_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("a.c");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let build = |name: &str, options: &[&str]| {
        let program = folder.path().join(name);
        let mut command = Command::new("cc");
        command.arg(&source).args(options).arg("-o").arg(&program);
        assert!(command.status().unwrap().success());
        faults(&program)
    };
    let full = ["-fPIE", "-pie", "-Wl,-z,relro,-z,now,-z,noexecstack"];
    assert_eq!(build("good", &full), [""; 0]);
    for (name, option, fault) in [
        ("fixed", "-no-pie", "its code is always at the same address"),
        (
            "lazy",
            "-Wl,-z,lazy",
            "functions are bound late, in a writable table",
        ),
        (
            "writable",
            "-Wl,-z,norelro",
            "its tables stay writable (RELRO)",
        ),
        ("stack", "-Wl,-z,execstack", "its stack can be executed"),
        (
            "path",
            "-Wl,-rpath,/tmp",
            "it takes libraries from a folder of its own",
        ),
    ] {
        let options = [&full[..], &[option]].concat();
        assert_eq!(build(name, &options), [fault], "{option}");
    }
}
