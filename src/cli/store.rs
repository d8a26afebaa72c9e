//! `snapback create` and `snapback info`

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Outcome, output};
use crate::control::render;
use crate::daemon;
use crate::offline::{self, Contents, CreateOptions, Info as Found, StoreState};
use crate::size;
use crate::units::{ChunkSize, SECTOR_SIZE};

/// Create an empty COW store, which Linux can use as well.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback create before.cow --size 2G
  snapback create /dev/vg0/before --chunk-size 64K
  snapback create before.cow --size 2T --sparse

All the space of a new file is allocated at once, so that the snapshot cannot run out of it
later. With --sparse the file may be larger than the free space; if the file system then fills
up, the snapshot is lost (the disk is not).

Nothing is overwritten: a file or device that exists must begin with 1 MiB of zeroes, or --force
must be given.")]
pub struct Create {
    /// The file to create, or an existing file or device to use.
    cow: PathBuf,

    /// Size of the file to create; omit it for one that exists.
    #[arg(long, value_parser = size::parse_device_size)]
    size: Option<u64>,

    /// Copy-on-write unit, a power of two from 512 to 1G.
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = size::parse_chunk_size)]
    chunk_size: ChunkSize,

    /// Overwrite the content of the file or device.
    #[arg(long)]
    force: bool,

    /// Allocate the space of a new file only when it is needed.
    #[arg(long, requires = "size")]
    sparse: bool,
}

/// Show what a COW store holds, and whether anything is wrong with it.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback info before.cow
  snapback info before.cow --json

EXIT STATUS
  1 if the store is invalid or corrupt.")]
pub struct Info {
    /// The COW file or device; no other process may have it open for writing.
    cow: PathBuf,

    /// State file that may contain the store [default: that of the disk, those beside the COW, and
    /// those of devices].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// Print JSON, whose format is stable.
    #[arg(long)]
    json: bool,
}

impl Create {
    pub fn run(self) -> Result<Outcome, CliError> {
        let options = CreateOptions {
            size: self.size,
            chunk_size: self.chunk_size,
            force: self.force,
            sparse: self.sparse,
        };
        daemon::check_unrecorded(&self.cow, self.chunk_size)?;
        let made = offline::create(&self.cow, &options)?;
        output::line(&format!(
            "created {}: {}, room for {} chunks of {}",
            self.cow.display(),
            size::human(made.size),
            made.capacity,
            size::in_words(made.chunk_size.bytes())
        ))?;
        if let Some(free) = made.free {
            output::line(&format!(
                "sparse: its file system has {} free; if it fills up, the snapshot is lost",
                size::human(free)
            ))?;
        }
        Ok(Outcome::Done)
    }
}

impl Info {
    pub fn run(self) -> Result<Outcome, CliError> {
        let known = daemon::recorded(&self.cow, None, self.state.as_deref())?;
        let found = offline::info(&self.cow, known.as_ref())?;
        if self.json {
            output::json(&found)?;
        } else {
            output::text(&human(&found))?;
        }
        Ok(match found.state {
            StoreState::Valid | StoreState::New => Outcome::Done,
            StoreState::Invalid | StoreState::Corrupt => Outcome::Faulty,
        })
    }
}

fn human(found: &Found) -> String {
    let header = &found.header;
    let magic = header.magic.to_le_bytes().escape_ascii().to_string();
    let mut rows = vec![
        (
            "file",
            format!(
                "{}, {}",
                render::printable(&found.cow),
                size::human(found.size)
            ),
        ),
        ("state", state_word(found.state).to_owned()),
        (
            "header",
            format!(
                "magic \"{magic}\", valid {}, version {}, chunk size {} sectors",
                header.valid, header.version, header.chunk_sectors
            ),
        ),
    ];
    if let Some(contents) = &found.contents {
        rows.extend(contents_rows(contents));
    }
    rows.push((
        "problem",
        found.problem.clone().unwrap_or_else(|| "none".to_owned()),
    ));
    rows.iter()
        .map(|(what, value)| format!("{what:<10}  {value}\n"))
        .collect()
}

/// What the store keeps, and what is cleaned up before its next use.
fn contents_rows(c: &Contents) -> Vec<(&'static str, String)> {
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_SIZE);
    let (used, total) = (
        size::human(bytes(c.allocated_sectors)),
        size::human(bytes(c.total_sectors)),
    );
    let share = render::percent(c.allocated_sectors, c.total_sectors);
    let mut rows = vec![
        ("chunk size", size::exact(bytes(c.chunk_sectors))),
        (
            "exceptions",
            format!("{} of at most {}", c.exceptions, c.capacity),
        ),
        ("used", format!("{used} of {total}, {share}")),
        ("areas", format!("{} of {} in use", c.areas_used, c.areas)),
        (
            "dmsetup",
            format!(
                "{}/{} {}",
                c.allocated_sectors, c.total_sectors, c.metadata_sectors
            ),
        ),
    ];
    if c.stale_bytes > 0 {
        let text = format!(
            "{} after the log are stale, and are cleared before the next use",
            size::in_words(c.stale_bytes)
        );
        rows.push(("note", text));
    }
    if c.repeated_entries > 0 {
        let text = format!(
            "{} repeated entries; dropped before the next use",
            c.repeated_entries
        );
        rows.push(("note", text));
    }
    rows
}

const fn state_word(state: StoreState) -> &'static str {
    match state {
        StoreState::Valid => "valid",
        StoreState::Invalid => "invalid",
        StoreState::New => "new (no store was created here yet)",
        StoreState::Corrupt => "corrupt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_of_a_fresh_store_shows_every_field() {
        let dir = tempfile::tempdir().unwrap();
        let cow = dir.path().join("a.cow");
        let chunk_size = ChunkSize::new(8).unwrap();
        offline::create(
            &cow,
            &CreateOptions {
                size: Some(64 << 20),
                chunk_size,
                force: false,
                sparse: false,
            },
        )
        .unwrap();
        let text = human(&offline::info(&cow, None).unwrap());
        assert_eq!(
            text,
            format!(
                "\
file        {}, 64 MiB
state       valid
header      magic \"SnAp\", valid 1, version 1, chunk size 8 sectors
chunk size  4K
exceptions  0 of at most 16319
used        8 KiB of 64 MiB, 0.0 %
areas       1 of 64 in use
dmsetup     16/131072 16
problem     none
",
                cow.display()
            )
        );
    }
}
