//! `snapback grow`

use clap::Args;
use serde_json::json;

use super::connect::Control;
use super::json::Json;
use super::{CliError, Outcome, status, values};
use crate::size::{self, NewSize};
use crate::units::SECTOR_SIZE;

/// Enlarge the COW of a snapshot while guests run.
///
/// A COW file is enlarged and its space is allocated. A device must have been enlarged before (for
/// example with lvextend). An overflow ends; an invalid snapshot stays invalid.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback grow before 4G
  snapback grow before +1.5G
  lvextend -L 4G vg0/before && snapback grow before 4G")]
pub struct Grow {
    /// The snapshot.
    #[arg(value_parser = values::name)]
    name: String,

    /// New size of its COW, which may not be smaller than the present one; with + before it, how
    /// much is added.
    #[arg(value_parser = size::parse_new_size)]
    size: NewSize,

    #[command(flatten)]
    json: Json,

    #[command(flatten)]
    control: Control,
}

impl Grow {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        let present = match self.size {
            NewSize::To(_) => 0,
            NewSize::By(_) => {
                let sectors = status::find(&client.status()?, &self.name)?.total_sectors;
                sectors.saturating_mul(SECTOR_SIZE)
            }
        };
        let size = values::size_after(self.size, present)?;
        client.grow_snapshot(&self.name, size)?;
        let done = json!({"snapshot": self.name, "size": size});
        let size = size::in_words(size);
        let line = format!("the COW of {} now has {size}", self.name);
        self.json.say(&line, &done)?;
        Ok(Outcome::Done)
    }
}
