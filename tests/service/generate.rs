//! Man pages, as a package installs them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn snapback() -> assert_cmd::Command {
    assert_cmd::Command::cargo_bin("snapback").unwrap()
}

/// The verbs that `--help` lists.
fn verbs() -> Vec<String> {
    let output = snapback().arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let list = help.split("Commands:\n").nth(1).unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty());
    // A description goes on further to the right.
    let verbs = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let verbs = verbs.map(|line| line.split_whitespace().next().unwrap().to_owned());
    verbs.filter(|verb| verb != "help").collect()
}

pub fn generate(what: &str, folder: &Path) -> BTreeSet<String> {
    let generated = snapback().args(["generate", what]).arg(folder).assert();
    generated.success();
    let files = fs::read_dir(folder).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn every_verb_has_a_page_with_its_options_and_its_example() {
    let folder = tempfile::tempdir().unwrap();
    let man = folder.path().join("man/of/it");
    let pages = generate("man", &man);
    let verbs = verbs();
    assert!(verbs.len() > 15, "{verbs:?}");
    let mut expected: BTreeSet<String> = ["snapback.1".to_owned()].into();
    expected.extend(verbs.iter().map(|verb| format!("snapback-{verb}.1")));
    assert_eq!(pages, expected);
    for page in &pages {
        let text = fs::read_to_string(man.join(page)).unwrap();
        for part in [".SH NAME", ".SH SYNOPSIS", ".SH EXAMPLE\n.nf\n"] {
            assert!(text.contains(part), "{page}: {part}");
        }
    }
    let serve = fs::read_to_string(man.join("snapback-serve.1")).unwrap();
    for option in ["origin", "merge\\-writes", "any\\-guest\\-memory"] {
        assert!(serve.contains(&format!("\\-\\-{option}")), "{option}");
    }
    assert!(serve.contains("socket=before.sock"), "{serve}");
    // Equal programs write equal pages.
    let again = folder.path().join("again");
    generate("man", &again);
    for page in &pages {
        assert_eq!(
            fs::read(man.join(page)).unwrap(),
            fs::read(again.join(page)).unwrap()
        );
    }
}

#[test]
fn man_shows_a_page_without_a_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let pages = generate("man", folder.path());
    for page in pages {
        let shown = Command::new("groff")
            .args(["-Kutf8", "-man", "-Tutf8", "-ww", "-Wbreak"])
            .arg(folder.path().join(&page))
            .output()
            .expect("groff is there: qemu-tests/install.sh installs it");
        assert!(shown.status.success(), "{page}");
        let complaints = String::from_utf8_lossy(&shown.stderr);
        assert!(complaints.is_empty(), "{page}: {complaints}");
    }
}
