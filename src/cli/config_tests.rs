use std::collections::BTreeSet;

use clap::CommandFactory;

use std::fs;

use super::*;
use crate::cli::command_line::Cli;

fn read(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.toml");
    fs::write(&path, text).unwrap();
    let config = Config::read(path.to_str().unwrap(), &Cli::command());
    let here = format!("{}/", folder.path().display());
    config
        .map(|mut config| {
            for setting in &mut config.settings {
                setting.value = setting.value.as_ref().map(|v| v.replace(&here, "HERE/"));
            }
            config
        })
        .map_err(|e| e.replace(&here, ""))
}

fn arguments(text: &str) -> Vec<String> {
    read(text).unwrap().arguments().collect()
}

#[test]
fn a_file_becomes_a_command_line() {
    let text = "\
        origin = \"disk.img\"\n\
        read-only = true\n\
        any-guest-memory = false\n\
        num-queues = 4\n\
        logical-block-size = \"4K\"\n\
        qmp = \"/run/q.sock\"\n\
        log-level = \"debug\"\n\
        socket-mode = 0o660\n\
        control-mode = \"600\"\n\
        control-allow = [\"all\", 1000]\n\
        on-event = \"bin/tell\"\n\
        on-event-arg = \"--one\"\n\
        metrics-any-address = false\n\
        [[snapshot]]\n\
        cow = \"a,b.cow\"\n\
        size = \"2G\"\n\
        name = \"before\"\n\
        read-only = false\n\
        socket = \"../b.sock\"\n\
        [[snapshot]]\n\
        name = \"other\"\n\
        cow = \"/o\"\n\
        size = 1048576\n";
    let mut found = arguments(text);
    found.sort();
    assert_eq!(
        found,
        [
            "--control-allow=1000",
            "--control-allow=all",
            "--control-mode=600",
            "--log-level=debug",
            "--logical-block-size=4K",
            "--num-queues=4",
            "--on-event-arg=--one",
            "--on-event=HERE/bin/tell",
            "--origin=HERE/disk.img",
            "--qmp=/run/q.sock",
            "--read-only",
            "--snapshot=name=before,cow=HERE/a,,b.cow,read-only=no,size=2G,socket=HERE/../b.sock",
            "--snapshot=name=other,cow=/o,size=1048576",
            "--socket-mode=660",
        ]
    );
}

#[test]
fn each_key_is_listed_once() {
    let mut command = Cli::command();
    command.build();
    let keys = keys(&command);
    let mut names: Vec<&str> = keys.iter().filter_map(|key| key.get_long()).collect();
    names.sort_unstable();
    assert!(names.contains(&"log-level"), "{names:?}");
    assert!(names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, expected) in [
        ("origin = ", "config d.toml:1:10: "),
        ("origin = \"a\"\nré = 1", "config d.toml:2:2: "),
        (
            "origin = \"a\"\ncolour = 1",
            "config d.toml:2:1: unknown key `colour` (keys: origin, socket-path, fd, connect, read-only, ",
        ),
        ("origin = true", "config d.toml:1:10: `origin` is a text"),
        ("origin = 5", "config d.toml:1:10: `origin` is a text"),
        (
            "read-only = \"no\"",
            "config d.toml:1:13: `read-only` is true or false",
        ),
        ("poll-us = 1.5", "config d.toml:1:11: `poll-us` is a text"),
        ("poll-us = [1]", "config d.toml:1:11: `poll-us` is a text"),
        (
            "control-allow = [\"all\", true]",
            "config d.toml:1:25: `control-allow` is a text",
        ),
        ("a = 1\na = 2", "config d.toml:2:1: duplicate key"),
        (
            "snapshot = \"name=s\"",
            "config d.toml:1:12: snapshots are tables",
        ),
        (
            "[snapshot]\nname = \"s\"",
            "config d.toml:1:1: snapshots are tables",
        ),
        (
            "[[snapshot]]\nname = \"s\"",
            "config d.toml:1:1: `cow=FILE` is missing",
        ),
        (
            "[[snapshot]]\nname = \"s\"\nchunk-size = \"3K\"",
            "config d.toml:3:1: ",
        ),
        (
            "[[snapshot]]\nnombre = \"s\"",
            "config d.toml:2:1: unknown key `nombre`",
        ),
        (
            "[[snapshot]]\nread-only = \"no\"",
            "config d.toml:2:13: `read-only` is true or",
        ),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn a_file_that_cannot_be_a_configuration_is_not_read_to_its_end() {
    let read = |path: &str| Config::read(path, &Cli::command()).unwrap_err();
    assert!(read("/dev/zero").contains("it is no regular file"));
    let folder = tempfile::tempdir().unwrap();
    assert!(read(folder.path().to_str().unwrap()).contains("it is no regular file"));
    let large = folder.path().join("large");
    fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
    assert!(read(large.to_str().unwrap()).contains("it is larger than 1 MiB"));
}

#[test]
fn what_decides_about_one_start_is_not_taken_from_a_file() {
    for key in ONE_START {
        let error = read(&format!("{key} = true")).unwrap_err();
        assert!(
            error.contains(&format!("give --{key} on the command line")),
            "{error}"
        );
    }
}

/// The options of `serve`, and the two of all verbs that a file may have.
fn options() -> BTreeSet<String> {
    let mut command = Cli::command();
    command.build();
    let serve = command.find_subcommand("serve").unwrap();
    let longs = serve.get_arguments().filter_map(|a| a.get_long());
    longs.map(str::to_owned).collect()
}

#[test]
fn every_option_has_a_key_or_a_reason_and_the_document_lists_all() {
    let command = Cli::command();
    let keys: BTreeSet<String> = keys(&command)
        .iter()
        .filter_map(|a| a.get_long())
        .chain([SNAPSHOT])
        .map(str::to_owned)
        .collect();
    let without: BTreeSet<String> = NO_KEY
        .into_iter()
        .chain(ONE_START)
        .map(str::to_owned)
        .collect();
    let all: BTreeSet<String> = keys.union(&without).cloned().collect();
    let options = options();
    let missing: Vec<&String> = options.difference(&all).collect();
    assert!(missing.is_empty(), "options without a key: {missing:?}");
    assert!(keys.is_subset(&options), "{keys:?}");
    for name in NO_KEY
        .into_iter()
        .chain(ONE_START)
        .filter(|n| *n != "print-capabilities" && *n != "version")
    {
        assert!(
            options.contains(name) || name == "help",
            "{name} is no option any more"
        );
    }

    let document = include_str!("../../docs/service.md");
    let table = document.split("## The configuration file").nth(1).unwrap();
    let table = table.split("\n## ").next().unwrap();
    for key in keys.iter().map(String::as_str).chain(ONE_START) {
        assert!(
            table.contains(&format!("`{key}`")),
            "docs/service.md: `{key}`"
        );
    }
    // And the other way round: the first column of each row.
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let listed = rows.flat_map(|row| {
        let first = row.split('|').nth(1).unwrap();
        first
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    for key in listed {
        assert!(
            keys.contains(&key) || snapshot_list::KEYS.contains(key.as_str()),
            "docs/service.md: `{key}` is no key"
        );
    }
    for key in snapshot_list::KEYS.split(", ") {
        assert!(
            table.contains(&format!("`{key}`")),
            "docs/service.md: `{key}` of a snapshot"
        );
    }
}

#[test]
fn a_path_is_one_by_its_name_in_the_help() {
    let command = Cli::command();
    let paths: Vec<&str> = keys(&command)
        .into_iter()
        .filter(|a| Kind::of(a) == Kind::Path)
        .filter_map(|a| a.get_long())
        .collect();
    assert_eq!(
        paths,
        [
            "origin",
            "socket-path",
            "connect",
            "control",
            "on-event",
            "qmp",
            "state"
        ]
    );
}

#[test]
fn differences_are_told_by_key_and_by_snapshot() {
    let first =
        read("origin = \"a\"\npoll-us = 3\n[[snapshot]]\nname = \"s\"\ncow = \"/c\"").unwrap();
    let second =
        read("origin = \"a\"\nread-only = true\n[[snapshot]]\nname = \"t\"\ncow = \"/c\"").unwrap();
    let all = ["poll-us", "read-only", "snapshot s", "snapshot t"];
    assert_eq!(first.differences(&second), all);
    assert!(first.differences(&first).is_empty());
    let lists = [r#"["1", "2"]"#, r#"["3", "2"]"#].map(|list| {
        let text = format!("origin = \"a\"\ncontrol-allow = {list}");
        read(&text).unwrap()
    });
    assert_eq!(lists[0].differences(&lists[1]), ["control-allow"]);
}
