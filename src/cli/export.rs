//! `snapback export`

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;

use super::progress::Progress;
use super::{CliError, Outcome, doubts, output};
use crate::daemon;
use crate::offline::{self, ExportOptions};
use crate::size;

/// Write the content of a snapshot to a new raw file, with holes where it is zero, or to a pipe.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback export --origin disk.img --cow before.cow before.img
  snapback export --origin disk.img --cow before.cow first-megabyte.img --range 0:1M
  snapback export --origin disk.img --cow before.cow - | zstd > before.img.zst

The file appears when all of it is on disk. An existing file is not overwritten.
What a pipe has got is complete only if the exit status is 0.")]
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

    /// The file to create; - for standard output, which gets zeroes for the holes.
    out: PathBuf,
}

impl Export {
    pub fn run(self) -> Result<Outcome, CliError> {
        let to_stdout = self.out.as_os_str() == "-";
        if to_stdout && std::io::stdout().is_terminal() {
            return Err(CliError::Usage(
                "the disk is not written to a terminal: give a file, or a pipe after `-`".into(),
            ));
        }
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
            range: self.range,
        };
        let mut bar = Progress::new("exporting");
        let show = |done, total| bar.show(done, total);
        if to_stdout {
            let mut out = std::io::stdout().lock();
            offline::export_to(&options, &mut out, Path::new("standard output"), show)?;
            bar.end();
            return Ok(Outcome::Done);
        }
        let made = offline::export(&options, &self.out, show)?;
        bar.end();
        output::line(&format!(
            "exported {} to {}, {} of it data",
            size::human(made.size),
            self.out.display(),
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
