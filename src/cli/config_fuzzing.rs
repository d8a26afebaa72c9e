//! What must hold of any text in the place of a configuration: a fuzz target, and an ordinary
//! test.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;

use clap::CommandFactory;

use super::*;
use crate::cli::command_line::Cli;
use crate::cli::configured::{self, Wrong};

/// Reads `text` as the file of `serve --config` in `folder`. Returns whether it is valid in its
/// form.
pub fn read(folder: &Path, text: &str) -> bool {
    thread_local!(static COMMAND: Command = Cli::command());
    let path = folder.join("d.toml");
    let path = path.to_str().unwrap();
    let read = |text: &str| {
        fs::write(path, text).unwrap();
        COMMAND.with(|command| Config::read(path, command))
    };
    let config = match read(text) {
        Ok(config) => config,
        Err(message) => {
            judge(path, text, &message);
            return false;
        }
    };
    let taken = parse(path, text);
    // The same settings, written in another way, are the same command line.
    let other = rewritten(&config);
    let again = read(&other).unwrap_or_else(|e| panic!("{e}\n{other}"));
    assert_eq!(sorted(&again), sorted(&config), "{other}");
    assert_eq!(parse(path, &other), taken, "{other}");
    true
}

fn sorted(config: &Config) -> Vec<String> {
    let mut all: Vec<String> = config.arguments().collect();
    all.sort();
    all
}

/// Whether the whole command line with the file is accepted.
fn parse(path: &str, text: &str) -> bool {
    let arguments = ["snapback", "serve", "--config", path].map(OsString::from);
    match configured::parse(&arguments) {
        Ok(parsed) => {
            assert!(parsed.reload.is_some());
            true
        }
        Err(Wrong::Config(message)) => {
            judge(path, text, &message);
            false
        }
        Err(Wrong::Usage(error)) => panic!("the file's fault, blamed on the options: {error}"),
    }
}

/// A message is one line that names the file, and a place that is in it.
fn judge(path: &str, text: &str, message: &str) {
    assert!(!message.chars().any(char::is_control), "{message:?}");
    let rest = message.strip_prefix(&format!("config {path}:"));
    let rest = rest.unwrap_or_else(|| panic!("no file in {message:?}"));
    let mut parts = rest.splitn(3, ':');
    let mut number = || parts.next()?.parse::<usize>().ok();
    if let (Some(line), Some(column)) = (number(), number()) {
        let lines: Vec<&str> = text.split('\n').collect();
        let there = lines.get(line - 1).unwrap_or_else(|| panic!("{message:?}"));
        assert!(
            (1..=there.chars().count() + 1).contains(&column),
            "{message:?}"
        );
    }
}

/// The settings of `config` as another text.
fn rewritten(config: &Config) -> String {
    let (mut flat, mut tables) = (String::new(), String::new());
    let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for setting in &config.settings {
        let key = quoted(&setting.key);
        match &setting.value {
            Some(value) if setting.key == SNAPSHOT => {
                tables.push_str("[[snapshot]]\n");
                for item in items(value) {
                    let (key, value) = item.split_once('=').unwrap();
                    let value = match snapshot_list::is_flag(key) {
                        true => (value == "yes").to_string(),
                        false => quoted(value),
                    };
                    tables.push_str(&format!("{} = {value}\n", quoted(key)));
                }
            }
            None => flat.push_str(&format!("{key} = true\n")),
            Some(value) => lists.entry(&setting.key).or_default().push(quoted(value)),
        }
    }
    for (key, values) in lists {
        let value = match values.as_slice() {
            [one] => one.clone(),
            all => format!("[{}]", all.join(", ")),
        };
        flat.push_str(&format!("{} = {value}\n", quoted(key)));
    }
    flat + &tables
}

/// The items of a list in which `,,` is a comma.
fn items(list: &str) -> Vec<String> {
    let spared = list.replace(",,", "\0");
    let items = spared.split(',').map(|item| item.replace('\0', ","));
    items.collect()
}

/// A basic string of TOML, with everything escaped that is not a letter or digit.
fn quoted(text: &str) -> String {
    let characters = text.chars().map(|c| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => format!("\\U{:08X}", u32::from(c)),
    });
    format!("\"{}\"", characters.collect::<String>())
}
