//! `snapback grow`

use clap::Args;

use super::connect::Control;
use super::{CliError, Outcome, output, values};
use crate::size;

/// Enlarge the COW of a snapshot while guests run.
///
/// A COW file is enlarged and its space is allocated. A device must have been enlarged before (for
/// example with lvextend). An overflow ends; an invalid snapshot stays invalid.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback grow before 4G
  lvextend -L 4G vg0/before && snapback grow before 4G")]
pub struct Grow {
    /// The snapshot.
    #[arg(value_parser = values::name)]
    name: String,

    /// New size of its COW, which may not be smaller than the present one.
    #[arg(value_parser = size::parse_device_size)]
    size: u64,

    #[command(flatten)]
    control: Control,
}

impl Grow {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        client.grow_snapshot(&self.name, self.size)?;
        let size = size::exact(self.size);
        output::line(&format!("the COW of {} now has {size}", self.name))?;
        Ok(Outcome::Done)
    }
}
