//! `snapback merge`: live, its controls, and offline

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};

use super::connect::Control;
use super::progress::Progress;
use super::{CliError, Outcome, output, values, wait};
use crate::control::api::MergeRequest;
use crate::daemon::merge_offline as merge_stores;
use crate::size;

/// Merge a snapshot back into the disk: while it is served, or offline.
///
/// A merge can be stopped at any instant, also by a crash, and goes on where it was.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true)
    .args(["name", "pause", "resume", "rate", "wait", "origin"]))]
#[command(override_usage = "\
snapback merge <NAME> [--follow] [--now] [--rate <SIZE>] [--wait] --control <SOCK>
       snapback merge --pause | --resume | --rate <SIZE> | --wait --control <SOCK>
       snapback merge --origin <FILE> --cow <COW> [--state <FILE>]")]
#[command(after_help = "\
EXAMPLE
  Keep what the guest of a snapshot's socket did (live commit):
    snapback merge fork --follow --wait
  Make it slower, stop it, go on:
    snapback merge --rate 50M
    snapback merge --pause
    snapback merge --resume --wait
  Without a daemon:
    snapback merge --origin disk.img --cow before.cow")]
pub struct Merge {
    /// The snapshot to merge, with a running daemon.
    #[arg(value_parser = values::name, conflicts_with_all = ["pause", "origin", "cow"])]
    name: Option<String>,

    /// The snapshot's own view goes on with the merged disk, unnoticed by its guest.
    #[arg(long, requires = "name")]
    follow: bool,

    /// Also although a guest is attached to the disk, which is refused otherwise.
    #[arg(long, requires = "name", conflicts_with_all = ["pause", "resume", "origin", "cow"])]
    now: bool,

    /// Limit the merge to this many bytes per second; 0 is no limit.
    #[arg(long, value_name = "SIZE", value_parser = values::rate, conflicts_with_all = ["origin", "cow"])]
    rate: Option<u64>,

    /// Wait until everything is merged, with a progress bar on a terminal. Alone: for the merge
    /// that is running.
    #[arg(long, conflicts_with_all = ["pause", "origin", "cow"])]
    wait: bool,

    /// Stop the running merge until --resume; the disk stays usable.
    #[arg(long, conflicts_with_all = ["resume", "rate", "origin", "cow"])]
    pause: bool,

    /// Go on with a paused or failed merge.
    #[arg(long, conflicts_with_all = ["name", "origin", "cow"])]
    resume: bool,

    /// Offline: the disk. No daemon may serve it.
    #[arg(long, value_name = "FILE", requires = "cow")]
    origin: Option<PathBuf>,

    /// Offline: the COW file or device of the snapshot to merge.
    #[arg(long, value_name = "COW", requires = "origin")]
    cow: Option<PathBuf>,

    /// Offline: the volume's state file, if it is not in its usual place.
    #[arg(long, value_name = "FILE", requires = "origin",
        conflicts_with_all = ["name", "pause", "resume", "rate", "wait"])]
    state: Option<PathBuf>,

    #[command(flatten)]
    control: Control,
}

impl Merge {
    pub fn run(self) -> Result<Outcome, CliError> {
        match (&self.origin, &self.cow) {
            (Some(origin), Some(cow)) => merge_offline(origin, cow, self.state)?,
            _ => self.merge_online()?,
        }
        Ok(Outcome::Done)
    }

    fn merge_online(self) -> Result<(), CliError> {
        let client = self.control.client()?;
        if let Some(name) = self.name {
            let earlier = wait::Earlier::look(&client, self.wait)?;
            let request = MergeRequest {
                snapshot: name.clone(),
                follow: self.follow,
                now: self.now,
                rate: self.rate,
            };
            client.merge(&request)?;
            output::line(&format!("merging {name}"))?;
            return if self.wait {
                wait::until_merged(&client, &name, &earlier)
            } else {
                Ok(())
            };
        }
        if self.pause {
            client.pause_merge()?;
            return output::line("merge paused");
        }
        if let Some(rate) = self.rate {
            client.set_merge_rate(rate)?;
            output::line(&match rate {
                0 => "merge not limited any more".to_owned(),
                rate => format!("merge limited to {}/s", size::human(rate)),
            })?;
        }
        let earlier = wait::Earlier::look(&client, self.wait)?;
        if self.resume {
            client.resume_merge()?;
            output::line("merge resumed")?;
        }
        match (self.wait, earlier.merging()) {
            (true, Some(name)) => wait::until_merged(&client, name, &earlier),
            (true, None) => Err(CliError::Failed(
                "no merge is running: there is nothing to wait for".to_owned(),
            )),
            _ => Ok(()),
        }
    }
}

fn merge_offline(origin: &Path, cow: &Path, state: Option<PathBuf>) -> Result<(), CliError> {
    let mut bar = Progress::new("merging");
    let report = merge_stores(origin, cow, state, |done, total| bar.show(done, total))?;
    bar.end();
    output::line(&format!(
        "merged {} into {}: {} chunks; the COW is empty and can be removed",
        cow.display(),
        origin.display(),
        report.chunks
    ))
}
