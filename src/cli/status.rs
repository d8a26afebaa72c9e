//! `snapback status` and `snapback table`

use std::time::Duration;

use clap::Args;

use super::connect::Control;
use super::terminal::Terminal;
use super::watch::{self, Show};
use super::{CliError, Outcome, output, status_screen, values};
use crate::control::api::{SnapshotStatus, State, VolumeStatus};
use crate::control::render;

/// Show the disk, its views, its snapshots, and the progress of a merge.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback status --control c.sock
  snapback status before --json
  snapback status --watch
  snapback status --watch 10 --json | jq --unbuffered .merge

On a terminal it has bars and colours (none with NO_COLOR), and fits the terminal's width.

EXIT STATUS
  0 also if --watch is interrupted (Ctrl-C); 1 if NAME is given and that snapshot is invalid or its merge failed.")]
pub struct Status {
    /// Only this snapshot.
    #[arg(value_parser = values::name)]
    name: Option<String>,

    /// Print JSON, whose format is stable.
    #[arg(long, conflicts_with = "dm")]
    json: bool,

    /// Print what `dmsetup status` would print.
    #[arg(long)]
    dm: bool,

    /// Repeat this until interrupted, every SECONDS [default: 2]: in place on a terminal, otherwise
    /// one after the other, and with --json one object per line. A daemon that ends is waited for.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = watch::seconds, conflicts_with = "dm")]
    watch: Option<Duration>,

    #[command(flatten)]
    control: Control,
}

/// Print what `dmsetup table` would print: a line for the disk and for each snapshot.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback table --control c.sock")]
pub struct Table {
    #[command(flatten)]
    control: Control,
}

impl Status {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        if let Some(every) = self.watch {
            if let Some(name) = &self.name {
                find(&client.status()?, name)?;
            }
            watch::run(client, every, &self)?;
            return Ok(Outcome::Done);
        }
        let status = client.status()?;
        match self
            .name
            .as_deref()
            .map(|name| find(&status, name))
            .transpose()?
        {
            None => self.print_all(&status),
            Some(snapshot) => self.print_one(&status, snapshot),
        }
    }

    fn print_all(&self, status: &VolumeStatus) -> Result<Outcome, CliError> {
        match (self.json, self.dm) {
            (true, _) => output::json(status),
            (_, true) => output::text(&render::dm_status(status, None)),
            _ => output::text(&whole(status, Terminal::of_stdout().as_ref())),
        }?;
        Ok(Outcome::Done)
    }

    fn print_one(
        &self,
        status: &VolumeStatus,
        snapshot: &SnapshotStatus,
    ) -> Result<Outcome, CliError> {
        match (self.json, self.dm) {
            (true, _) => output::json(snapshot)?,
            (_, true) => output::text(&render::dm_status(status, Some(&snapshot.name)))?,
            _ => output::text(&part(status, snapshot, Terminal::of_stdout().as_ref()))?,
        }
        Ok(match snapshot.state {
            State::Invalid | State::MergeFailed => Outcome::Faulty,
            State::Active | State::Overflow | State::Merging | State::MergePaused => Outcome::Done,
        })
    }
}

impl Show for Status {
    fn text(&self, status: &VolumeStatus, terminal: Option<&Terminal>) -> String {
        match &self.name {
            None => whole(status, terminal),
            Some(name) => match find(status, name) {
                Ok(snapshot) => part(status, snapshot, terminal),
                Err(gone) => format!("{gone}\n"),
            },
        }
    }

    fn json(&self, status: &VolumeStatus) -> Option<String> {
        let json = match &self.name {
            _ if !self.json => return None,
            None => serde_json::to_string(status),
            // `null` as long as there is no such snapshot.
            Some(name) => serde_json::to_string(&find(status, name).ok()),
        };
        json.ok()
    }
}

fn whole(status: &VolumeStatus, terminal: Option<&Terminal>) -> String {
    match terminal {
        Some(terminal) => status_screen::text(status, terminal),
        None => render::human(status),
    }
}

fn part(status: &VolumeStatus, snapshot: &SnapshotStatus, terminal: Option<&Terminal>) -> String {
    if let Some(terminal) = terminal {
        return status_screen::one(status, snapshot, terminal);
    }
    let mut text = render::snapshots(std::slice::from_ref(snapshot));
    let merge = status.merge.as_ref();
    if let Some(merge) = merge.filter(|m| m.snapshot == snapshot.name) {
        text.push_str(&format!("\n{}\n", render::merge_line(merge)));
    }
    if status.rollback_at_reset.as_deref() == Some(&snapshot.name) {
        let lines = render::rollback_lines(status);
        text.push_str(&format!("\n{}\n", lines.join("\n")));
    }
    text
}

impl Table {
    pub fn run(self) -> Result<Outcome, CliError> {
        output::text(&self.control.client()?.table()?)?;
        Ok(Outcome::Done)
    }
}

/// The snapshot `name`, or an error with those that there are.
pub(super) fn find<'a>(
    status: &'a VolumeStatus,
    name: &str,
) -> Result<&'a SnapshotStatus, CliError> {
    status
        .snapshots
        .iter()
        .find(|s| s.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = status.snapshots.iter().map(|s| s.name.as_str()).collect();
            let known = if known.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has {}", known.join(", "))
            };
            CliError::Failed(format!(
                "no snapshot `{name}` of {}: {known}",
                render::printable(&status.origin.path)
            ))
        })
}
