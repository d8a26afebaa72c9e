//! `snapback export`

use std::path::PathBuf;

use clap::Args;

use super::progress::Progress;
use super::{CliError, Outcome, doubts, output};
use crate::daemon;
use crate::offline::{self, ExportOptions};
use crate::size;

/// Write the content of a snapshot to a new raw file, with holes where it is zero.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback export --origin disk.img --cow before.cow before.img
  snapback export --origin disk.img --cow before.cow first-megabyte.img --range 0:1M

The file appears when all of it is on disk. An existing file is not overwritten.")]
pub struct Export {
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

    /// Only these bytes of the snapshot.
    #[arg(long, value_name = "OFFSET:LENGTH", value_parser = range)]
    range: Option<(u64, u64)>,

    /// The file to create.
    out: PathBuf,
}

impl Export {
    pub fn run(self) -> Result<Outcome, CliError> {
        doubts::refuse(
            &self.origin,
            &self.cow,
            self.state.as_deref(),
            self.accept_changes,
        )?;
        let options = ExportOptions {
            known: daemon::recorded(&self.cow, Some(&self.origin), self.state.as_deref())?,
            origin: self.origin,
            cow: self.cow,
            out: self.out,
            range: self.range,
        };
        let mut bar = Progress::new("exporting");
        let made = offline::export(&options, |done, total| bar.show(done, total))?;
        bar.end();
        output::line(&format!(
            "exported {} to {}, {} of it data",
            size::human(made.size),
            options.out.display(),
            size::human(made.data)
        ))?;
        Ok(Outcome::Done)
    }
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (offset, len) = text.split_once(':').ok_or_else(|| {
        format!("`{text}` is not a range: write OFFSET:LENGTH, such as 0:1M or 10G:512M")
    })?;
    Ok((size::parse(offset)?, size::parse_device_size(len)?))
}
