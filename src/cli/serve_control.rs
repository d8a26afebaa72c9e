//! The options of `snapback serve` for the control socket's users and for events.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::values;
use crate::control::access::{Access, Allowed};
use crate::control::registry::{self, Wish};
use crate::daemon::EventCommand;

/// Who may change something through the control socket, and what is run on events.
#[derive(Args, Debug)]
pub struct ControlOptions {
    /// Call this daemon NAME: `snapback list` shows it, and verbs take it in --control NAME
    /// [default: the disk's file name, with a number if another daemon has it].
    #[arg(long, value_name = "NAME", value_parser = daemon_name)]
    control_name: Option<String>,

    /// No control socket: `snapback status` and the other verbs cannot be used. Without this and
    /// --control there is one in the user's runtime directory (docs/operations.md). One that the state
    /// file has is removed from it.
    #[arg(long, conflicts_with_all = ["control", "control_fd", "control_name", "control_allow"])]
    no_control: bool,

    /// Let this user change things through the control socket: a name, a number, or `all` for
    /// everybody who can connect. Otherwise only root and the daemon's user may, and others who
    /// can connect may read. The mode of the socket decides who can connect. Repeatable.
    #[arg(long, value_name = "USER", value_parser = user)]
    control_allow: Vec<Allowed>,

    /// Run this program for every event, one after the other, with the event as JSON on its
    /// standard input, and SNAPBACK_EVENT, SNAPBACK_EVENT_SNAPSHOT, SNAPBACK_EVENT_SEQ,
    /// SNAPBACK_EVENT_TIME, SNAPBACK_EVENT_INSTANCE and SNAPBACK_CONTROL in its environment. No
    /// shell is involved. The daemon never waits for it (docs/api.md).
    #[arg(long, value_name = "PROGRAM", value_parser = values::path)]
    on_event: Option<String>,

    /// An argument of that program. Repeatable.
    #[arg(
        long,
        value_name = "ARGUMENT",
        requires = "on_event",
        allow_hyphen_values = true
    )]
    on_event_arg: Vec<String>,

    /// Kill that program if it has not ended after this many seconds.
    #[arg(long, value_name = "SECONDS", requires = "on_event", default_value_t = 10,
        value_parser = clap::value_parser!(u16).range(1..=3600))]
    on_event_timeout: u16,
}

impl ControlOptions {
    pub const fn is_off(&self) -> bool {
        self.no_control
    }

    /// What the daemon that serves `origin` is called; `None`: nobody can ask it anything.
    pub fn name(&self, origin: &str) -> Option<Wish> {
        match &self.control_name {
            _ if self.no_control => None,
            Some(name) => Some(Wish::Exactly(name.clone())),
            None => Some(Wish::Like(registry::name_of(Path::new(origin)))),
        }
    }

    pub fn access(&self) -> Access {
        Access(self.control_allow.clone())
    }

    /// # Errors
    /// There is no such program.
    pub fn event_command(&self) -> Result<Option<EventCommand>, String> {
        let Some(program) = &self.on_event else {
            return Ok(None);
        };
        let absolute =
            |path: &str| std::path::absolute(path).map_err(|e| format!("--on-event: {path}: {e}"));
        Ok(Some(EventCommand {
            program: executable(absolute(program)?)?,
            arguments: self.on_event_arg.iter().map(Into::into).collect(),
            limit: Duration::from_secs(self.on_event_timeout.into()),
        }))
    }
}

fn executable(program: PathBuf) -> Result<PathBuf, String> {
    let refused = |reason: &str| {
        let shown = program.display();
        Err(format!(
            "--on-event {shown}: {reason}: give the path of an executable file"
        ))
    };
    match std::fs::metadata(&program) {
        Ok(found) if !found.is_file() => refused("it is no file"),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => refused("it is not executable"),
        Ok(_) => Ok(program),
        Err(e) => refused(&e.to_string()),
    }
}

fn daemon_name(text: &str) -> Result<String, String> {
    registry::check_name(text).map(|()| text.to_owned())
}

/// A user's number, or name in `/etc/passwd`.
fn user(text: &str) -> Result<Allowed, String> {
    if text == "all" {
        return Ok(Allowed::All);
    }
    let number = text.parse().ok();
    let known = || std::fs::read_to_string(Path::new("/etc/passwd")).unwrap_or_default();
    number
        .or_else(|| named(&known(), text))
        .map(Allowed::User)
        .ok_or_else(|| {
            "there is no such user in /etc/passwd: give a name from there, or a number".to_owned()
        })
}

fn named(passwd: &str, name: &str) -> Option<u32> {
    let mut lines = passwd.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let is_it = fields.next() == Some(name);
        is_it.then(|| fields.nth(1))??.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_name_a_number_or_all() {
        assert_eq!(user("all"), Ok(Allowed::All));
        assert_eq!(user("1000"), Ok(Allowed::User(1000)));
        assert_eq!(user("root"), Ok(Allowed::User(0)));
        assert!(user("no such user").unwrap_err().contains("/etc/passwd"));
        let passwd = "a:x:5:6::/:/bin/sh\nab:x:7:8::/:/bin/sh\nbroken\n";
        assert_eq!(named(passwd, "ab"), Some(7));
        assert_eq!(named(passwd, "broken"), None);
        assert_eq!(named(passwd, "b"), None);
    }

    #[test]
    fn a_program_that_cannot_be_run_is_refused_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        std::fs::write(&text, "").unwrap();
        for (path, reason) in [
            (text, "not executable"),
            (folder.path().to_owned(), "no file"),
            (folder.path().join("none"), "No such file"),
        ] {
            let refused = executable(path.clone()).unwrap_err();
            assert!(
                refused.contains(path.to_str().unwrap()) && refused.contains(reason),
                "{refused}"
            );
        }
        assert!(executable("/bin/sh".into()).is_ok());
    }
}
