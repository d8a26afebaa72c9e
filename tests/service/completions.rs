//! Completions, by the shells themselves.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::generate::generate;

/// Standard output of a shell.
fn says(shell: &str, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new(shell)
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .env("XDG_CONFIG_HOME", folder)
        .env("TERM", "dumb")
        .output()
        .unwrap_or_else(|e| panic!("{shell}: {e}: qemu-tests/install.sh installs it"));
    assert!(output.status.success(), "{shell}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with the completions and a file, `before.cow`.
fn world() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let files = generate("completions", folder.path());
    let expected = ["_snapback", "snapback.bash", "snapback.fish"];
    assert_eq!(files, expected.map(str::to_owned).into());
    fs::write(folder.path().join("before.cow"), "").unwrap();
    folder
}

/// What bash offers for `words`, of which the last one is not finished.
fn bash(folder: &Path, words: &[&str]) -> String {
    let last = words.len() - 1;
    let before = words[last - 1];
    let list = words.iter().map(|word| format!("'{word}'"));
    let list = list.collect::<Vec<_>>().join(" ");
    let program = format!(
        "source snapback.bash; COMP_WORDS=({list}); COMP_CWORD={last}; \
         function=$(complete -p snapback | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
         $function snapback '{}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words[last],
    );
    says("bash", &["--norc", "-c", &program], folder)
}

#[test]
fn bash_completes_verbs_options_and_values() {
    let folder = world();
    let offered = |words: &[&str]| bash(folder.path(), words);
    assert_eq!(offered(&["snapback", "rollb"]), "rollback\n");
    let options = offered(&["snapback", "serve", "--merge"]);
    assert_eq!(options, "--merge\n--merge-writes\n");
    let values = offered(&["snapback", "serve", "--merge-writes", ""]);
    assert_eq!(values, "wait\nredirect\n");
    let files = offered(&["snapback", "check", "--origin", "bef"]);
    assert_eq!(files, "before.cow\n");
    // bash completes the names of files by itself where the function offers nothing.
    assert_eq!(offered(&["snapback", "info", "bef"]), "\n");
    let told = "source snapback.bash; complete -p snapback";
    let told = says("bash", &["--norc", "-c", told], folder.path());
    assert!(told.contains("-o default"), "{told}");
}

#[test]
fn fish_completes_verbs_options_and_values() {
    let folder = world();
    let offered = |line: &str| {
        let program = format!("source snapback.fish; complete -C '{line}'");
        let told = says("fish", &["--no-config", "-c", &program], folder.path());
        // A description stands behind a tab.
        let words = told
            .lines()
            .map(|line| line.split('\t').next().unwrap().to_owned());
        words.collect::<BTreeSet<String>>()
    };
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    assert_eq!(offered("snapback rollb"), set(&["rollback"]));
    let options = offered("snapback serve --merge");
    assert_eq!(options, set(&["--merge", "--merge-writes"]));
    let values = offered("snapback serve --merge-writes ");
    assert_eq!(values, set(&["wait", "redirect"]));
    assert_eq!(offered("snapback info bef"), set(&["before.cow"]));
}

/// Types each line and a tab into a zsh with the completions, and prints what is then on the line.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1= RPS1= fpath=($PWD $fpath); stty -echo columns 200'
zpty -w shell 'autoload -Uz compinit && compinit -u -d $PWD/dump; unsetopt zle_bracketed_paste 2>/dev/null'
zpty -w shell 'zstyle ":completion:*" list-prompt ""; unset zle_bracketed_paste'
zpty -w shell 'shown() { print -r -- "<<$BUFFER>>"; BUFFER=; }; zle -N shown; bindkey "^X" shown; print ready''!'
zpty -r shell answer '*ready!*'
for line in "$@"; do
    zpty -w -n shell "$line"$'\t'$'\x18'
    zpty -r shell answer '*<<*>>*'
    answer=${answer##*<<}
    print -r -- "${answer%%>>*}"
done
zpty -d shell
"#;

#[test]
fn zsh_completes_verbs_options_and_values() {
    let folder = world();
    let lines = [
        ("snapback rollb", "snapback rollback "),
        ("snapback serve --merge-w", "snapback serve --merge-writes="),
        (
            "snapback serve --merge-writes red",
            "snapback serve --merge-writes redirect ",
        ),
        ("snapback info bef", "snapback info before.cow "),
    ];
    let mut arguments = vec!["-f", "-c", ZSH, "zsh"];
    arguments.extend(lines.iter().map(|(typed, _)| *typed));
    let told = says("zsh", &arguments, folder.path());
    let told: Vec<&str> = told.lines().collect();
    let expected: Vec<&str> = lines.iter().map(|(_, completed)| *completed).collect();
    assert_eq!(told, expected);
}
