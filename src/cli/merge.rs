//! `snapback merge`: with a daemon, without one, and the controls of a running merge

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use serde_json::json;

use super::connect::Control;
use super::json::Json;
use super::progress::Progress;
use super::{CliError, Outcome, output, values, wait};
use crate::control::Client;
use crate::control::api::MergeRequest;
use crate::daemon::merge_offline as merge_stores;
use crate::size;

/// Merge a snapshot into the disk, while it is served or without a daemon.
///
/// A merge can be interrupted at any instant, also by a crash, and continues where it was.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true)
    .args(["name", "pause", "resume", "rate", "wait", "origin"]))]
#[command(override_usage = "\
snapback merge <NAME> [--follow] [--now] [--rate <SIZE>] [--wait] [--control <NAME|SOCK>]
       snapback merge --pause | --resume | --rate <SIZE> | --wait [--control <NAME|SOCK>]
       snapback merge --origin <FILE> --cow <COW> [--state <FILE>]")]
#[command(after_help = "\
EXAMPLE
  Make the changes of a snapshot's guest the disk, while it runs (live commit):
    snapback merge fork --follow --wait
  Limit the running merge, pause it, resume it:
    snapback merge --rate 50M
    snapback merge --pause
    snapback merge --resume --wait
  Without a daemon:
    snapback merge --origin disk.img --cow before.cow")]
pub struct Merge {
    /// The snapshot to merge, with a running daemon.
    #[arg(value_parser = values::name, conflicts_with_all = ["pause", "origin", "cow"])]
    name: Option<String>,

    /// The snapshot's own view continues with the merged disk, without interrupting its guest.
    #[arg(long, requires = "name")]
    follow: bool,

    /// Merge although a guest is attached to the disk, which is refused otherwise.
    #[arg(long, requires = "name", conflicts_with_all = ["pause", "resume", "origin", "cow"])]
    now: bool,

    /// Limit the merge to this many bytes per second; 0 means no limit.
    #[arg(long, value_name = "SIZE", value_parser = values::rate, conflicts_with_all = ["origin", "cow"])]
    rate: Option<u64>,

    /// Wait until everything is merged, with a progress bar on a terminal. Without NAME, wait for
    /// the running merge.
    #[arg(long, conflicts_with_all = ["pause", "origin", "cow"])]
    wait: bool,

    /// Pause the running merge until --resume; the disk remains usable.
    #[arg(long, conflicts_with_all = ["resume", "rate", "origin", "cow"])]
    pause: bool,

    /// Continue a paused or failed merge.
    #[arg(long, conflicts_with_all = ["name", "origin", "cow"])]
    resume: bool,

    /// Without a daemon: the disk, which no daemon may be serving.
    #[arg(long, value_name = "FILE", requires = "cow")]
    origin: Option<PathBuf>,

    /// Without a daemon: the COW file or device of the snapshot to merge.
    #[arg(long, value_name = "COW", requires = "origin")]
    cow: Option<PathBuf>,

    /// Without a daemon: the volume's state file, if it is not in its usual place.
    #[arg(long, value_name = "FILE", requires = "origin",
        conflicts_with_all = ["name", "pause", "resume", "rate", "wait"])]
    state: Option<PathBuf>,

    #[command(flatten)]
    json: Json,

    #[command(flatten)]
    control: Control,
}

impl Merge {
    pub fn run(self) -> Result<Outcome, CliError> {
        match (&self.origin, &self.cow) {
            (Some(origin), Some(cow)) => merge_offline(origin, cow, self.state, self.json)?,
            _ => self.merge_online()?,
        }
        Ok(Outcome::Done)
    }

    fn merge_online(self) -> Result<(), CliError> {
        let client = self.control.client()?;
        if let Some(name) = self.name.clone() {
            let mut earlier = wait::Earlier::read(&client, self.wait)?;
            earlier.quiet = self.json.is_wanted();
            let request = MergeRequest {
                snapshot: name.clone(),
                follow: self.follow,
                now: self.now,
                rate: self.rate,
            };
            client.merge(&request)?;
            if !self.json.is_wanted() {
                output::line(&format!("merging {name}"))?;
            }
            if self.wait {
                wait::until_merged(&client, &name, &earlier)?;
            }
            let done = json!({"snapshot": name, "merged": self.wait});
            return match self.json.is_wanted() {
                true => output::json(&done),
                false => Ok(()),
            };
        }
        if self.pause {
            client.pause_merge()?;
            return self.json.say("merge paused", &json!({"paused": true}));
        }
        self.control_running(&client)
    }

    /// The rate, the end of a pause and the wait, of a merge that runs.
    fn control_running(self, client: &Client) -> Result<(), CliError> {
        let quiet = self.json.is_wanted();
        if let Some(rate) = self.rate {
            client.set_merge_rate(rate)?;
        }
        if let Some(rate) = self.rate.filter(|_| !quiet) {
            output::line(&match rate {
                0 => "merge no longer limited".to_owned(),
                rate => format!("merge limited to {}/s", size::human(rate)),
            })?;
        }
        let mut earlier = wait::Earlier::read(client, self.wait)?;
        earlier.quiet = quiet;
        if self.resume {
            client.resume_merge()?;
            if !quiet {
                output::line("merge resumed")?;
            }
        }
        match (self.wait, earlier.merging()) {
            (true, Some(name)) => wait::until_merged(client, name, &earlier)?,
            (true, None) => {
                let ended = earlier.ended()?;
                if !quiet {
                    output::line(&ended)?;
                }
            }
            _ => {}
        }
        match quiet {
            true => output::json(&json!({
                "rate": self.rate, "resumed": self.resume, "snapshot": earlier.merging(),
                "merged": self.wait,
            })),
            false => Ok(()),
        }
    }
}

fn merge_offline(
    origin: &Path,
    cow: &Path,
    state: Option<PathBuf>,
    json: Json,
) -> Result<(), CliError> {
    let mut bar = Progress::new("merging");
    let report = merge_stores(origin, cow, state, |done, total| bar.show(done, total))?;
    bar.end();
    let done = json!({"origin": origin, "cow": cow, "chunks": report.chunks});
    let line = format!(
        "merged {} into {}: {} chunks; the COW is empty and can be removed",
        cow.display(),
        origin.display(),
        report.chunks
    );
    json.say(&line, &done)
}
