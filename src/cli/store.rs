//! `snapback create` and `snapback info`

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Outcome, output};
use crate::control::render;
use crate::daemon;
use crate::offline::{self, CreateOptions, Info as Found, StoreState};
use crate::size;
use crate::units::{ChunkSize, SECTOR_SIZE};

/// Make an empty COW store, which Linux can use, too.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback create before.cow --size 2G
  snapback create /dev/vg0/before --chunk-size 64K
  snapback create before.cow --size 2T --sparse

A new file gets all its space at once, so that the snapshot cannot run out of it later. With
--sparse it may be larger than what is free: then, if the file system fills up, the snapshot is
lost (the disk is not).

Nothing is overwritten: a file or device that exists must begin with 1 MiB of zeroes, or --force
must be given.")]
pub struct Create {
    /// The file to make, or a file or device to use.
    cow: PathBuf,

    /// Size of the file to make; leave it out for one that exists.
    #[arg(long, value_parser = size::parse_device_size)]
    size: Option<u64>,

    /// Copy-on-write unit, a power of two from 512 to 1G.
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = size::parse_chunk_size)]
    chunk_size: ChunkSize,

    /// Overwrite what the file or device holds.
    #[arg(long)]
    force: bool,

    /// Give a new file no space before it is needed.
    #[arg(long, requires = "size")]
    sparse: bool,
}

/// Show what a COW file holds, and whether anything is wrong with it.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback info before.cow
  snapback info before.cow --json

EXIT STATUS
  1 if the store is invalid or corrupt.")]
pub struct Info {
    /// The COW file or device; nobody may be using it.
    cow: PathBuf,

    /// State file that may know the store [default: the one of the disk, those beside the COW,
    /// those of devices].
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// Print JSON, a stable interface.
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
        let made = offline::create(&self.cow, &options)?;
        output::line(&format!(
            "created {}: {}, room for {} chunks of {}",
            self.cow.display(),
            size::human(made.size),
            made.capacity,
            size::exact(made.chunk_size.bytes())
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
            StoreState::Invalid | StoreState::Corrupt => Outcome::No,
        })
    }
}

fn human(found: &Found) -> String {
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_SIZE);
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
    if let Some(c) = &found.contents {
        rows.push(("chunk size", size::exact(bytes(c.chunk_sectors))));
        rows.push((
            "exceptions",
            format!("{} of at most {}", c.exceptions, c.capacity),
        ));
        let (used, total) = (
            size::human(bytes(c.allocated_sectors)),
            size::human(bytes(c.total_sectors)),
        );
        rows.push((
            "used",
            format!(
                "{used} of {total}, {}",
                render::percent(c.allocated_sectors, c.total_sectors)
            ),
        ));
        rows.push(("areas", format!("{} of {} in use", c.areas_used, c.areas)));
        rows.push((
            "dmsetup",
            format!(
                "{}/{} {}",
                c.allocated_sectors, c.total_sectors, c.metadata_sectors
            ),
        ));
        if c.stale_bytes > 0 {
            rows.push((
                "note",
                format!(
                    "{} stale bytes after the log; cleared before the next use",
                    c.stale_bytes
                ),
            ));
        }
        if c.repeated_entries > 0 {
            rows.push((
                "note",
                format!(
                    "{} repeated entries; dropped before the next use",
                    c.repeated_entries
                ),
            ));
        }
    }
    rows.push((
        "problem",
        found.problem.clone().unwrap_or_else(|| "none".to_owned()),
    ));
    rows.iter()
        .map(|(what, value)| format!("{what:<10}  {value}\n"))
        .collect()
}

const fn state_word(state: StoreState) -> &'static str {
    match state {
        StoreState::Valid => "valid",
        StoreState::Invalid => "invalid",
        StoreState::New => "new (nothing made here yet)",
        StoreState::Corrupt => "corrupt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_of_a_fresh_store_says_all_there_is() {
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
