//! `snapback list`

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{CliError, Outcome, output};
use crate::control::api::{State, VolumeStatus};
use crate::control::registry::{Entry, Found, Registry};
use crate::control::render::{columns, percent, printable};
use crate::control::{Client, ClientError};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Daemons that are asked at once.
const AT_ONCE: usize = 32;

/// List the daemons that are running: this user's, and those of root as far as they let this user
/// in. For root: all daemons of the system.
///
/// Throw-away disks of `snapback run` are not listed.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback list
  snapback status --control disk        (a name of the list)
  snapback list --json | jq -r '.[].name'

STATES
  serving, merging, merge-paused, merge-failed
  no-answer      there was no answer within a second
  not-permitted  the daemon does not let this user in")]
pub struct List {
    /// Print JSON, whose format is stable.
    #[arg(long)]
    json: bool,
}

/// What a daemon does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Doing {
    Serving,
    Merging,
    MergePaused,
    MergeFailed,
    NoAnswer,
    NotPermitted,
}

/// A daemon; what it did not say is null.
#[derive(Clone, Debug, Serialize)]
struct Daemon {
    name: String,
    control: String,
    state: Doing,
    pid: Option<u32>,
    origin: Option<String>,
    views: Option<usize>,
    /// Views to which a front end is connected.
    attached: Option<usize>,
    /// Their names.
    snapshots: Option<Vec<String>>,
    /// Names of those that are not valid any longer.
    invalid: Option<Vec<String>>,
    /// The snapshot that is merged, and its chunks.
    merging: Option<String>,
    chunks_done: Option<u64>,
    chunks_left: Option<u64>,
}

impl List {
    pub fn run(self) -> Result<Outcome, CliError> {
        let found = Registry::of_this_user().daemons();
        let mut daemons = Vec::with_capacity(found.len());
        for some in found.chunks(AT_ONCE) {
            daemons.extend(std::thread::scope(|scope| {
                let asked: Vec<_> = some
                    .iter()
                    .map(|(entry, found)| {
                        let ask = || ask(entry, *found);
                        std::thread::Builder::new().spawn_scoped(scope, ask)
                    })
                    .collect();
                let answers = some.iter().zip(asked).map(|((entry, _), asked)| {
                    let answer = asked.ok().and_then(|asked| asked.join().ok());
                    answer.unwrap_or_else(|| Daemon::silent(entry, Doing::NoAnswer))
                });
                answers.collect::<Vec<_>>()
            }));
        }
        match (self.json, daemons.is_empty()) {
            (true, _) => output::json(&daemons)?,
            (false, true) => output::line("no daemon is running")?,
            (false, false) => output::text(&table(&daemons))?,
        }
        Ok(Outcome::Done)
    }
}

fn ask(entry: &Entry, found: Found) -> Daemon {
    if found == Found::Denied {
        return Daemon::silent(entry, Doing::NotPermitted);
    }
    match status_of(&entry.socket) {
        Ok(status) => Daemon::told(entry, &status),
        Err(ClientError::Denied(_)) => Daemon::silent(entry, Doing::NotPermitted),
        Err(_) => Daemon::silent(entry, Doing::NoAnswer),
    }
}

fn status_of(socket: &Path) -> Result<VolumeStatus, ClientError> {
    Client::new(socket)?.with_patience(PATIENCE).status()
}

impl Daemon {
    fn silent(entry: &Entry, state: Doing) -> Self {
        Self {
            name: entry.name.clone(),
            control: entry.socket.to_string_lossy().into_owned(),
            state,
            pid: None,
            origin: None,
            views: None,
            attached: None,
            snapshots: None,
            invalid: None,
            merging: None,
            chunks_done: None,
            chunks_left: None,
        }
    }

    fn told(entry: &Entry, status: &VolumeStatus) -> Self {
        let merge = status.merge.as_ref();
        let state = match merge {
            None => Doing::Serving,
            Some(merge) if merge.error.is_some() => Doing::MergeFailed,
            Some(merge) if merge.paused => Doing::MergePaused,
            Some(_) => Doing::Merging,
        };
        let invalid = status.snapshots.iter();
        let invalid = invalid.filter(|snapshot| snapshot.state == State::Invalid);
        Self {
            pid: status.pid,
            origin: Some(status.origin.path.clone()),
            views: Some(status.views.len()),
            attached: Some(status.views.iter().filter(|view| view.attached).count()),
            snapshots: Some(status.snapshots.iter().map(|s| s.name.clone()).collect()),
            invalid: Some(invalid.map(|s| s.name.clone()).collect()),
            merging: merge.map(|merge| merge.snapshot.clone()),
            chunks_done: merge.map(|merge| merge.chunks_done),
            chunks_left: merge.map(|merge| merge.chunks_left),
            ..Self::silent(entry, state)
        }
    }

    fn row(&self) -> Vec<String> {
        let dash = || "-".to_owned();
        let name = self.merging.as_deref().map(printable).unwrap_or_default();
        let done = self.chunks_done.unwrap_or_default();
        let all = done.saturating_add(self.chunks_left.unwrap_or_default());
        let merged = percent(done, all);
        let state = match self.state {
            Doing::Serving => "serving".to_owned(),
            Doing::Merging => format!("merging {name}, {merged}"),
            Doing::MergePaused => format!("merge of {name} paused, {merged}"),
            Doing::MergeFailed => format!("merge of {name} failed, {merged}"),
            Doing::NoAnswer => "does not answer".to_owned(),
            Doing::NotPermitted => "not permitted".to_owned(),
        };
        let views = match (self.views, self.attached) {
            (Some(views), Some(attached)) => format!("{views} ({attached} attached)"),
            _ => dash(),
        };
        let snapshots = match (&self.snapshots, &self.invalid) {
            (Some(all), Some(invalid)) if !invalid.is_empty() => {
                format!("{} ({} invalid)", all.len(), invalid.len())
            }
            (Some(all), _) => all.len().to_string(),
            (None, _) => dash(),
        };
        vec![
            printable(&self.name),
            self.pid.map_or_else(dash, |pid| pid.to_string()),
            state,
            views,
            snapshots,
            self.origin.as_deref().map_or_else(dash, printable),
            printable(&self.control),
        ]
    }
}

fn table(daemons: &[Daemon]) -> String {
    let head = [
        "NAME",
        "PID",
        "STATE",
        "VIEWS",
        "SNAPSHOTS",
        "DISK",
        "CONTROL",
    ];
    columns(&head, daemons.iter().map(Daemon::row))
}
