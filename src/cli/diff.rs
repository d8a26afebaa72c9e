//! `snapback diff`

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;

use super::output::{Rows, Stream};
use super::progress::Progress;
use super::{CliError, Outcome, doubts};
use crate::daemon;
use crate::offline::{self, Change, DiffSummary};
use crate::size;

/// Print which parts of a snapshot differ from its disk.
///
/// The content of the store is compared with the disk. A part that was changed and changed back
/// is not listed.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback diff --origin disk.img --cow before.cow
  snapback diff --origin disk.img --cow before.cow --json --entries-only

JSON is an array as `qemu-img map --output=json` prints it, with only the changed parts: start and
length in the disk, and offset in the COW, all in bytes.")]
pub struct Diff {
    /// The disk; no other process may have it open for writing.
    #[arg(long, value_name = "FILE")]
    origin: PathBuf,

    /// The COW file or device of the snapshot; no other process may have it open for writing.
    #[arg(long, value_name = "COW")]
    cow: PathBuf,

    /// Continue although the disk or the COW is not as the last daemon left it.
    #[arg(long)]
    accept_changes: bool,

    /// State file that may contain the store [default: that of the disk, those beside the COW, and
    /// those of devices].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// Read no data: print everything that the store keeps, in chunks, also where it is the same.
    #[arg(long)]
    entries_only: bool,

    /// Print JSON, whose format is stable.
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub fn run(self) -> Result<Outcome, CliError> {
        doubts::refuse(
            &self.origin,
            &self.cow,
            self.state.as_deref(),
            self.accept_changes,
        )?;
        let known = daemon::recorded(&self.cow, Some(&self.origin), self.state.as_deref())?;
        let files = offline::Diff::open(&self.origin, &self.cow, known.as_ref())?;
        let mut out = Stream::new();
        if self.json {
            out.text("[")?;
            let mut rows = Rows::new();
            self.find(files, &mut |change| rows.add(&mut out, &change))?;
            out.text("\n]\n")?;
        } else {
            out.text(&row("start (bytes)", "length", "in the COW at", ""))?;
            let summary = self.find(files, &mut |change| {
                let zero = if change.zero { "  zero" } else { "" };
                out.text(&row(
                    &change.start.to_string(),
                    &change.length.to_string(),
                    &change.offset.to_string(),
                    zero,
                ))
            })?;
            out.text(&format!(
                "{} of {} changed, {} kept\n",
                size::human(summary.changed),
                size::human(summary.size),
                size::human(summary.kept)
            ))?;
        }
        out.end()?;
        Ok(Outcome::Done)
    }

    fn find(
        &self,
        files: offline::Diff,
        emit: &mut dyn FnMut(Change) -> Result<(), CliError>,
    ) -> Result<DiffSummary, CliError> {
        if self.entries_only {
            return files.entries(emit);
        }
        // On a terminal the bar and the rows would overwrite each other.
        let mut bar = (!std::io::stdout().is_terminal()).then(|| Progress::new("comparing"));
        let show = |done, total| {
            if let Some(bar) = &mut bar {
                bar.show(done, total);
            }
        };
        files.changes(show, emit)
    }
}

fn row(start: &str, length: &str, offset: &str, note: &str) -> String {
    format!("{start:>16} {length:>16} {offset:>16}{note}\n")
}
