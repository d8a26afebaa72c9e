//! `snapback dump`

use std::path::PathBuf;

use clap::Args;

use super::output::{Rows, Stream};
use super::{CliError, Outcome};
use crate::control::render;
use crate::offline::{self, DumpEnd};
use crate::size::in_words;

/// Print a store's header and all its entries, valid or not, as runs of chunks.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback dump before.cow
  snapback dump before.cow --json

EXIT STATUS
  1 if the store is invalid, or too damaged to be shown completely.")]
pub struct Dump {
    /// The COW file or device; no other process may have it open for writing.
    cow: PathBuf,

    /// Print JSON, whose format is stable.
    #[arg(long)]
    json: bool,
}

impl Dump {
    pub fn run(self) -> Result<Outcome, CliError> {
        let dump = offline::Dump::open(&self.cow)?;
        let mut out = Stream::new();
        let end = if self.json {
            json(dump, &mut out)?
        } else {
            text(dump, &mut out)?
        };
        out.end()?;
        Ok(if end.problem.is_none() {
            Outcome::Done
        } else {
            Outcome::Faulty
        })
    }
}

fn text(dump: offline::Dump, out: &mut Stream) -> Result<DumpEnd, CliError> {
    let header = dump.header;
    let magic = header.magic.to_le_bytes().escape_ascii().to_string();
    out.text(&format!(
        "magic \"{magic}\", valid {}, version {}, chunk size {} sectors\n",
        header.valid, header.version, header.chunk_sectors
    ))?;
    out.text("slot  origin chunks -> COW chunks\n")?;
    let end = dump.runs(&mut |run| -> Result<(), CliError> {
        let last = |first: u64| first.saturating_add(run.count - 1);
        if run.count == 1 {
            out.text(&format!("{:<4}  {} -> {}\n", run.slot, run.old, run.new))
        } else {
            out.text(&format!(
                "{:<4}  {}-{} -> {}-{}\n",
                run.slot,
                run.old,
                last(run.old),
                run.new,
                last(run.new)
            ))
        }
    })?;
    out.text(&format!("{} entries\n", end.entries))?;
    if end.stale_bytes > 0 {
        let stale = in_words(end.stale_bytes);
        out.text(&format!("{stale} after the log are stale\n"))?;
    }
    if let Some(problem) = &end.problem {
        out.text(&format!("problem: {}\n", render::printable(problem)))?;
    }
    Ok(end)
}

/// One object, written while the log is read: its text may not fit into memory.
fn json(dump: offline::Dump, out: &mut Stream) -> Result<DumpEnd, CliError> {
    let header = serde_json::to_string(&dump.header).map_err(std::io::Error::from)?;
    out.text(&format!(
        "{{\n\"size\": {},\n\"header\": {header},\n\"runs\": [",
        dump.size
    ))?;
    let mut rows = Rows::new();
    let end = dump.runs(&mut |run| rows.add(out, &run))?;
    let problem = serde_json::to_string(&end.problem).map_err(std::io::Error::from)?;
    out.text(&format!(
        "\n],\n\"entries\": {},\n\"stale_bytes\": {},\n\"problem\": {problem}\n}}\n",
        end.entries, end.stale_bytes
    ))?;
    Ok(end)
}
