//! `snapback status` and `snapback table`

use clap::Args;

use super::connect::Control;
use super::{CliError, Outcome, output, values};
use crate::control::api::{SnapshotStatus, State, VolumeStatus};
use crate::control::render;

/// Show the disk, its views, its snapshots, and the progress of a merge.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback status --control c.sock
  snapback status before --json

EXIT STATUS
  1 if NAME is given and that snapshot is invalid or its merge failed.")]
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
        let status = self.control.client()?.status()?;
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
            _ => output::text(&render::human(status)),
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
            _ => {
                output::text(&render::snapshots(std::slice::from_ref(snapshot)))?;
                if let Some(merge) = status
                    .merge
                    .as_ref()
                    .filter(|m| m.snapshot == snapshot.name)
                {
                    output::line(&format!("\n{}", render::merge_line(merge)))?;
                }
                if status.rollback_at_reset.as_deref() == Some(&snapshot.name) {
                    let lines = render::rollback_lines(status);
                    output::line(&format!("\n{}", lines.join("\n")))?;
                }
            }
        }
        Ok(match snapshot.state {
            State::Invalid | State::MergeFailed => Outcome::Faulty,
            State::Active | State::Overflow | State::Merging | State::MergePaused => Outcome::Done,
        })
    }
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
