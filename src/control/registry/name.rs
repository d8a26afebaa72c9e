//! What a daemon is called.

use std::path::Path;

/// Longest name in bytes: with the folder and the ending it has to fit a socket's address.
const NAME_MAX: usize = 48;
/// Endings of disks that say nothing.
const ENDINGS: [&str; 2] = ["img", "raw"];

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || "+_.-".contains(c)
}

/// Checks that `name` is allowed as a daemon's name: it is part of a file's name.
///
/// # Errors
/// The first violation of the rules.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a daemon needs a name".to_owned());
    }
    if name.len() > NAME_MAX {
        return Err(format!(
            "a daemon's name of {} characters is too long: at most {NAME_MAX}",
            name.chars().count()
        ));
    }
    if let Some(bad) = name.chars().find(|c| !is_allowed(*c)) {
        return Err(format!(
            "daemon name `{}` has `{}` in it: use letters, digits and + _ . -",
            name.escape_debug(),
            bad.escape_debug()
        ));
    }
    if name.starts_with(['-', '.']) {
        return Err(format!(
            "daemon name `{name}` starts with `-` or `.`: start with a letter or digit"
        ));
    }
    Ok(())
}

/// The name of a daemon that serves `origin`: that of the file, without an ending that all disks
/// have.
pub fn name_of(origin: &Path) -> String {
    let is_usual = origin
        .extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| ENDINGS.contains(&ending));
    let name = if is_usual {
        origin.file_stem()
    } else {
        origin.file_name()
    };
    let name = name.unwrap_or_default().to_string_lossy();
    let safe = name
        .chars()
        .map(|c| if is_allowed(c) { c } else { '_' })
        .take(NAME_MAX);
    let safe: String = safe.collect();
    match safe.trim_start_matches(['-', '.']) {
        "" => "disk".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_called_as_its_disk_is_and_every_such_name_is_allowed() {
        let long = format!("/vm/{}.img", "ä".repeat(300));
        for (origin, name) in [
            ("/vm/disk.img", "disk"),
            ("golden.raw", "golden"),
            ("/vm/a.b.img", "a.b"),
            ("/dev/mapper/vg-root", "vg-root"),
            ("/vm/two words\n.iso", "two_words_.iso"),
            ("/vm/.hidden.img", "hidden"),
            ("/vm/--.img", "disk"),
            ("/", "disk"),
            (&long, &"_".repeat(NAME_MAX)),
        ] {
            let derived = name_of(Path::new(origin));
            assert_eq!(derived, name, "{origin}");
            assert_eq!(check_name(&derived), Ok(()), "{origin}");
        }
    }

    #[test]
    fn a_name_that_could_leave_the_folder_or_be_an_option_is_refused() {
        let long = "x".repeat(NAME_MAX + 1);
        for (name, word) in [
            ("", "needs a name"),
            ("a/b", "`/`"),
            ("..", "starts with"),
            ("-x", "starts with"),
            ("a b", "` `"),
            (&long, "at most 48"),
        ] {
            let error = check_name(name).unwrap_err();
            assert!(error.contains(word), "{name}: {error}");
        }
    }
}
