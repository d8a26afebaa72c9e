//! Wrong input, given to every verb and every option that its help names.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use assert_cmd::Command;

use super::{VERBS, assert_done, assert_refused};

/// The options of a verb that take a value, from its help.
fn with_value(help: &str) -> Vec<String> {
    let lines = help.lines().map(str::trim_start);
    let options = lines.filter(|line| line.starts_with("--"));
    options
        .filter_map(|line| {
            let (name, rest) = line.split_once(' ')?;
            rest.starts_with('<').then(|| name.to_owned())
        })
        .collect()
}

#[test]
fn every_option_refuses_an_empty_value_by_name() {
    let mut tried = 0;
    for verb in VERBS {
        let options = with_value(&assert_done(&[verb, "--help"]));
        assert!(
            options.contains(&"--log-level".to_owned()),
            "{verb}: {options:?}"
        );
        // An empty log level is as good as none, as an empty variable is.
        for option in options.iter().filter(|o| *o != "--log-level") {
            assert_refused(&[verb, option, ""], option);
            assert_refused(&[verb, option], option);
            tried += 1;
        }
    }
    assert!(tried > 40, "only {tried} options were found in the help");
}

#[test]
fn every_verb_refuses_what_it_does_not_know_by_name() {
    for verb in VERBS {
        assert_refused(&[verb, "--nonsense"], "--nonsense");
        if verb != "remove" {
            assert_refused(
                &[verb, "one", "two", "three", "four"],
                "unexpected argument",
            );
        }
        assert_refused(
            &[verb, "--log-level", "loud", "--log-level", "quiet"],
            "--log-level",
        );
    }
}

/// What a variable gives is not required.
#[test]
fn usage_lines_do_not_depend_on_variables() {
    for verb in ["grow", "remove", "snapshot", "detach", "merge"] {
        let usage = |variables: &[(&str, &str)]| {
            let output = Command::cargo_bin("snapback")
                .unwrap()
                .env("XDG_RUNTIME_DIR", crate::NO_DAEMONS)
                .env_remove("SNAPBACK_CONTROL")
                .env_remove("SNAPBACK_LOG")
                .envs(variables.iter().copied())
                .arg(verb)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(2), "{verb}");
            String::from_utf8(output.stderr).unwrap()
        };
        let plain = usage(&[]);
        assert!(
            plain.contains(&format!("Usage: snapback {verb} ")),
            "{plain}"
        );
        assert!(!plain.contains(" --control"), "{plain}");
        let variables = [("SNAPBACK_CONTROL", "/c.sock"), ("SNAPBACK_LOG", "info")];
        assert_eq!(usage(&variables), plain);
    }
}

#[test]
fn an_argument_that_is_no_text_is_shown() {
    for verb in VERBS {
        let raw = OsStr::from_bytes(b"lo\xffud");
        let arguments = [OsString::from(verb), "--log-level".into(), raw.into()];
        let output = Command::cargo_bin("snapback")
            .unwrap()
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let expected = if verb == "run" { 125 } else { 2 };
        assert_eq!(output.status.code(), Some(expected), "{verb}: {error}");
        assert!(
            error.contains("`lo\u{fffd}ud` is not UTF-8"),
            "{verb}: {error}"
        );
    }
}

#[test]
fn a_message_does_not_act_on_the_terminal() {
    for verb in ["info", "check", "dump"] {
        assert_refused(
            &[verb, "/nonexistent/\u{1b}[2J\n"],
            "\\u{1b}[2J\\n: no such file",
        );
    }
}
