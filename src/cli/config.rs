//! `serve --config FILE`: a TOML file becomes options of the command line, so that one parser
//! decides what is valid, and a new option has its key without further work.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, ArgMatches, Command};
use rustix::fs::{Mode, OFlags};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::snapshot_list;

/// Options that decide about one start. In a file they would decide again at each one.
const ONE_START: [&str; 5] = ["accept-changes", "forget", "force", "incoming", "merge"];
/// Options that say what to do with a file, and those of every program.
const NO_KEY: [&str; 5] = ["config", "check", "help", "version", "print-capabilities"];
/// The only option whose values are tables; each has the keys of the option's list.
const SNAPSHOT: &str = "snapshot";
/// Options of all verbs that a file may set.
const OF_ALL_VERBS: [&str; 2] = ["log-level", "log-target"];
/// Larger than any configuration; limits how much of a wrong file is read.
const SIZE_MAX: usize = 1 << 20;

/// A configuration file that was read.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    text: String,
    settings: Vec<Setting>,
}

/// A key with its value, as an option of the command line.
#[derive(Debug)]
struct Setting {
    key: String,
    /// The parser's name of the option.
    id: String,
    /// `None`: a flag.
    value: Option<String>,
    /// Where it is in the file, in bytes.
    place: Range<usize>,
}

impl Setting {
    fn argument(&self) -> String {
        match &self.value {
            Some(value) => format!("--{}={value}", self.key),
            None => format!("--{}", self.key),
        }
    }

    /// What it is called in a message; snapshots have names.
    fn title(&self) -> String {
        let value = self.value.as_deref().unwrap_or_default();
        match value.split_once(',') {
            Some((name, _)) if self.key == SNAPSHOT => {
                format!("snapshot {}", name.trim_start_matches("name="))
            }
            _ => self.key.clone(),
        }
    }
}

impl Config {
    /// Reads the file at `path`. `command`: the whole command line.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has a key or a type of value that does not exist.
    /// The message has the place.
    pub fn read(path: &str, command: &Command) -> Result<Self, String> {
        let cannot = |e: std::io::Error| format!("config {path}: cannot read it: {e}");
        let path = std::path::absolute(path).map_err(cannot)?;
        let refused = |what: &str| {
            let path = path.display();
            Err(format!(
                "config {path}: {what}: give the path of a configuration"
            ))
        };
        // Otherwise opening a pipe that nobody writes to would block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty());
        let file = File::from(file.map_err(|e| cannot(e.into()))?);
        if !file.metadata().map_err(cannot)?.is_file() {
            return refused("it is no regular file");
        }
        let mut text = String::new();
        let longest = file.take(SIZE_MAX as u64 + 1).read_to_string(&mut text);
        longest.map_err(cannot)?;
        if text.len() > SIZE_MAX {
            return refused("it is larger than 1 MiB");
        }
        let mut config = Self {
            path,
            text,
            settings: Vec::new(),
        };
        config.settings = config.parse(command)?;
        Ok(config)
    }

    /// The options that the file stands for.
    pub fn arguments(&self) -> impl Iterator<Item = String> {
        self.settings.iter().map(Setting::argument)
    }

    /// Refuses keys that are options of the command line as well. `given`: those of `serve`.
    pub fn refuse_repeated(&self, given: &ArgMatches) -> Result<(), String> {
        let repeated = self.settings.iter().find(|Setting { key, id, .. }| {
            key != SNAPSHOT
                && given.try_contains_id(id).is_ok()
                && given.value_source(id) == Some(clap::parser::ValueSource::CommandLine)
        });
        match repeated {
            None => Ok(()),
            Some(Setting { key, place, .. }) => Err(self.at(
                place,
                &format!("`{key}` is also on the command line, as --{key}: leave one of them out"),
            )),
        }
    }

    /// The message for an error in options that are right but for the file's.
    pub fn explain(&self, error: &clap::Error) -> String {
        let text = error.render().to_string();
        let text = text.split("\n\n").next().unwrap_or_default();
        let text = text.strip_prefix("error: ").unwrap_or(text);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let named = [ContextKind::InvalidArg, ContextKind::PriorArg];
        let named = named.iter().filter_map(|kind| match error.get(*kind)? {
            ContextValue::String(name) => Some(vec![name.clone()]),
            ContextValue::Strings(names) => Some(names.clone()),
            _ => None,
        });
        let mut keys = named.flatten().filter_map(|name| {
            let name = name.strip_prefix("--")?.to_owned();
            name.split([' ', '=']).next().map(str::to_owned)
        });
        let setting = keys.find_map(|key| self.settings.iter().find(|s| s.key == key));
        match setting {
            Some(setting) => self.at(&setting.place, &text),
            None => format!("config {}: {}", self.path.display(), printable(&text)),
        }
    }

    /// Where and what, in `newer`, differs from this one; values by title.
    pub fn differences<'a>(&'a self, newer: &'a Self) -> Vec<String> {
        let titled = |config: &'a Self| {
            let mut titled = BTreeMap::<String, Vec<Option<&'a str>>>::new();
            for setting in &config.settings {
                let values = titled.entry(setting.title()).or_default();
                values.push(setting.value.as_deref());
            }
            titled
        };
        let (ours, theirs) = (titled(self), titled(newer));
        let mut titles: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        titles.sort();
        titles.dedup();
        let changed = titles
            .into_iter()
            .filter(|t| ours.get(*t) != theirs.get(*t));
        changed.cloned().collect()
    }

    /// A message with the place that it is about. What the file says may be a part of it.
    fn at(&self, place: &Range<usize>, message: &str) -> String {
        let message = printable(message);
        let before = self.text.get(..place.start).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default();
        let column = column.chars().count() + 1;
        format!("config {}:{line}:{column}: {message}", self.path.display())
    }

    fn parse(&self, command: &Command) -> Result<Vec<Setting>, String> {
        let table = DeTable::parse(&self.text).map_err(|e| {
            let place = e.span().unwrap_or_default();
            let message = format!(
                "{}; the file is in TOML, as in docs/service.md",
                e.message()
            );
            self.at(&place, &message.replace('\n', " "))
        })?;
        let known = keys(command);
        let mut settings = Vec::new();
        for (key, value) in table.get_ref() {
            let (place, key) = (key.span(), key.get_ref().as_ref());
            if ONE_START.contains(&key) {
                let message = format!(
                    "`{key}` decides about one start, so that a file cannot have it: give --{key} on \
                     the command line of that start"
                );
                return Err(self.at(&place, &message));
            }
            if key == SNAPSHOT {
                settings.extend(self.snapshots(value)?);
                continue;
            }
            let Some(argument) = known.iter().find(|a| a.get_long() == Some(key)) else {
                let names = known.iter().filter_map(|a| a.get_long());
                let names = names.collect::<Vec<_>>().join(", ");
                let message = format!("unknown key `{}` (keys: {names})", key.escape_debug());
                return Err(self.at(&place, &message));
            };
            settings.extend(self.settings_of(argument, key, place, value)?);
        }
        Ok(settings)
    }

    /// None if it is a flag that is not set, and several if it is a list.
    fn settings_of(
        &self,
        argument: &Arg,
        key: &str,
        place: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<Setting>, String> {
        let setting = |value, place| Setting {
            key: key.to_owned(),
            id: argument.get_id().to_string(),
            value,
            place,
        };
        match (argument.get_action(), value.get_ref()) {
            (ArgAction::SetTrue, DeValue::Boolean(true)) => Ok(vec![setting(None, place)]),
            (ArgAction::SetTrue, DeValue::Boolean(false)) => Ok(Vec::new()),
            (ArgAction::SetTrue, _) => {
                Err(self.at(&value.span(), &format!("`{key}` is true or false")))
            }
            (ArgAction::Append, DeValue::Array(values)) => {
                let values = values.iter().map(|value| {
                    let text = self.value(key, Kind::of(argument), value)?;
                    Ok(setting(Some(text), value.span()))
                });
                values.collect()
            }
            _ => {
                let text = self.value(key, Kind::of(argument), value)?;
                Ok(vec![setting(Some(text), place)])
            }
        }
    }

    /// A value as on the command line.
    fn value(&self, key: &str, kind: Kind, value: &Spanned<DeValue<'_>>) -> Result<String, String> {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if kind == Kind::Mode && number.radix() == 8 => {
                number.as_str().to_owned()
            }
            DeValue::Integer(number) if kind != Kind::Path => {
                let parsed = i64::from_str_radix(number.as_str(), number.radix());
                let parsed =
                    parsed.map_err(|e| self.at(&value.span(), &format!("`{key}`: {e}")))?;
                parsed.to_string()
            }
            other => {
                let message = format!(
                    "`{key}` is a text or a number, and this is of the type {}: write it as \"…\"",
                    other.type_str()
                );
                return Err(self.at(&value.span(), &message));
            }
        };
        if kind != Kind::Path || text.is_empty() {
            return Ok(text);
        }
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let path = folder.join(text).into_os_string().into_string();
        path.map_err(|_| {
            let message =
                "the folder of this file is not UTF-8, so that paths in it must begin with /";
            self.at(&value.span(), message)
        })
    }

    /// The tables `[[snapshot]]`, each as the value of one --snapshot.
    fn snapshots(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<Setting>, String> {
        let form = "snapshots are tables that begin with [[snapshot]]";
        let wrong = |place| self.at(&place, form);
        let array = value.get_ref().as_array();
        let array = array.ok_or_else(|| wrong(value.span()))?;
        let mut settings = Vec::new();
        for table in array.iter() {
            let place = table.span();
            let entries = table.get_ref().as_table();
            let entries = entries.ok_or_else(|| wrong(table.span()))?;
            let mut list = snapshot_list::List::default();
            let mut items = Vec::new();
            for (key, value) in entries {
                let (place, key) = (key.span(), key.get_ref().as_ref());
                let value = match (snapshot_list::is_flag(key), value.get_ref()) {
                    (true, DeValue::Boolean(true)) => "yes".to_owned(),
                    (true, DeValue::Boolean(false)) => "no".to_owned(),
                    (true, _) => {
                        return Err(self.at(&value.span(), &format!("`{key}` is true or false")));
                    }
                    (false, _) if snapshot_list::is_path(key) => {
                        self.value(key, Kind::Path, value)?
                    }
                    (false, _) => self.value(key, Kind::Text, value)?,
                };
                list.set(key, &value).map_err(|e| self.at(&place, &e))?;
                let item = format!("{key}={}", value.replace(',', ",,"));
                // The title of the setting begins with the name.
                let front = if key == "name" { 0 } else { items.len() };
                items.insert(front, item);
            }
            list.finish().map_err(|e| self.at(&place, &e))?;
            settings.push(Setting {
                key: SNAPSHOT.to_owned(),
                id: SNAPSHOT.to_owned(),
                value: Some(items.join(",")),
                place,
            });
        }
        Ok(settings)
    }
}

/// `text` in one line, without characters that command a terminal.
fn printable(text: &str) -> String {
    let shown = text.chars().map(|c| match c.is_control() {
        true => c.escape_debug().to_string(),
        false => c.to_string(),
    });
    shown.collect()
}

/// The options that have a key of the same name, but for `snapshot`.
fn keys(command: &Command) -> Vec<&Arg> {
    let serve = command.find_subcommand("serve");
    // Those of all verbs are among them once the command was built.
    let of_serve = serve.into_iter().flat_map(Command::get_arguments);
    let of_serve = of_serve.filter(|argument| !argument.is_global_set());
    let of_all = command.get_arguments().filter(|argument| {
        argument
            .get_long()
            .is_some_and(|long| OF_ALL_VERBS.contains(&long))
    });
    let mut keys: Vec<&Arg> = of_serve.chain(of_all).collect();
    keys.retain(|argument| {
        argument.get_long().is_some_and(|long| {
            long != SNAPSHOT && !NO_KEY.contains(&long) && !ONE_START.contains(&long)
        })
    });
    keys
}

/// What a value is, by its name in the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Relative to the folder of the file.
    Path,
    /// In octal, also as a number.
    Mode,
    Text,
}

impl Kind {
    fn of(argument: &Arg) -> Self {
        let names = argument.get_value_names().unwrap_or_default();
        match names.first().map(|name| name.as_str()) {
            Some("FILE" | "SOCK" | "PROGRAM") => Self::Path,
            Some("MODE") => Self::Mode,
            _ => Self::Text,
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
#[path = "config_fuzzing.rs"]
pub mod fuzzing;

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
