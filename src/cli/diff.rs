//! `snapback diff`

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::Mode;

use super::disk_map::DiskMap;
use super::disk_picture::{Legend, svg};
use super::output::{Rows, Stream};
use super::progress::Progress;
use super::{CliError, Outcome, doubts, output};
use crate::daemon;
use crate::offline::{self, Change, DiffSummary, NewFile};
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
  snapback diff --origin disk.img --cow before.cow --svg changed.svg

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

    /// Instead of a list, make a picture: a map of the disk, from its start to its end, in which a
    /// square is the darker the more of its chunks have changed. An existing file is not
    /// overwritten.
    #[arg(long, value_name = "OUT", conflicts_with = "json")]
    svg: Option<PathBuf>,
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
        if let Some(out) = &self.svg {
            let name = known.map(|known| known.snapshot);
            self.draw(files, out, name)?;
            return Ok(Outcome::Done);
        }
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
            out.text(&total(&summary))?;
        }
        out.end()?;
        Ok(Outcome::Done)
    }

    /// Writes a picture to `out`; `name` is the snapshot's, if it is recorded.
    fn draw(&self, files: offline::Diff, out: &Path, name: Option<String>) -> Result<(), CliError> {
        let file = NewFile::create(out, Mode::from_raw_mode(0o666))?;
        let mut map = DiskMap::new(files.size(), files.chunk_bytes());
        let summary = self.find(files, &mut |change| {
            map.add(change.start, change.length);
            Ok(())
        })?;
        let picture = svg(
            &map,
            &Legend {
                name: &name.unwrap_or_else(|| self.cow.display().to_string()),
                disk: &self.origin.display().to_string(),
                changed: summary.changed,
                compared: !self.entries_only,
            },
        );
        file.file().write_all(picture.as_bytes()).map_err(|error| {
            CliError::Failed(format!("cannot write {}: {error}", out.display()))
        })?;
        file.finish()?;
        output::text(&total(&summary))
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
        let rows_are_seen = self.svg.is_none() && std::io::stdout().is_terminal();
        let mut bar = (!rows_are_seen).then(|| Progress::new("comparing"));
        let show = |done, total| {
            if let Some(bar) = &mut bar {
                bar.show(done, total);
            }
        };
        files.changes(show, emit)
    }
}

fn total(summary: &DiffSummary) -> String {
    format!(
        "{} of {} changed, {} kept\n",
        size::human(summary.changed),
        size::human(summary.size),
        size::human(summary.kept)
    )
}

fn row(start: &str, length: &str, offset: &str, note: &str) -> String {
    format!("{start:>16} {length:>16} {offset:>16}{note}\n")
}
