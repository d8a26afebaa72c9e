//! `snapback rollback`

use clap::Args;

use super::connect::Control;
use super::{CliError, Outcome, output, values, wait};
use crate::control::api::{RollbackReply, RollbackRequest, RollbackWhen, SnapshotSpec, StoreType};
use crate::size;

/// Give the disk the content of a snapshot again.
///
/// The old content is there at once; copying it back runs behind it. With a guest attached
/// it happens at the guest's next reset, else now.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback rollback before          then reset the guest
  snapback rollback before --keep broken --cow broken.cow --size 4G
  snapback rollback before --now --rate 200M --wait
  snapback rollback --cancel        if the guest was not reset yet")]
pub struct Rollback {
    /// The snapshot to go back to.
    #[arg(value_parser = values::name, required_unless_present = "cancel")]
    name: Option<String>,

    /// Call a rollback off that waits for the guest's reset.
    #[arg(long, conflicts_with_all = ["name", "at_reset", "now", "keep", "rate", "wait"])]
    cancel: bool,

    /// At the guest's next reset, even if no guest is attached now.
    #[arg(long, conflicts_with = "now")]
    at_reset: bool,

    /// Now, even if a guest is attached and running.
    #[arg(long)]
    now: bool,

    /// First take this snapshot of the present state, to be able to come back.
    #[arg(long, value_name = "NAME2", requires = "cow", value_parser = values::name)]
    keep: Option<String>,

    /// COW file or device of the snapshot that --keep takes.
    #[arg(long, value_name = "FILE2", requires = "keep", value_parser = values::path)]
    cow: Option<String>,

    /// Create that COW file with this size if it is not there.
    #[arg(long, requires = "keep", value_parser = size::parse_device_size)]
    size: Option<u64>,

    /// Chunk size of the snapshot that --keep takes.
    #[arg(long, value_name = "SIZE", requires = "keep", value_parser = values::chunk_size)]
    chunk_size: Option<u64>,

    /// Limit the merge to this many bytes per second; 0 is no limit.
    #[arg(long, value_name = "SIZE", value_parser = values::rate)]
    rate: Option<u64>,

    /// Wait until everything is merged, with a progress bar on a terminal.
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    control: Control,
}

impl Rollback {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        let Some(name) = self.name else {
            client.cancel_rollback()?;
            output::line("the rollback is called off")?;
            return Ok(Outcome::Done);
        };
        let keep = self.keep.zip(self.cow).map(|(name, cow)| SnapshotSpec {
            name,
            cow,
            store_type: StoreType::P,
            chunk_size: self.chunk_size,
            size: self.size,
            socket: None,
            discard_zeroes_cow: None,
            discard_passdown_origin: None,
            read_only: None,
        });
        let when = match (self.at_reset, self.now) {
            (true, _) => RollbackWhen::AtReset,
            (_, true) => RollbackWhen::Now,
            _ => RollbackWhen::Auto,
        };
        let earlier = wait::Earlier::look(&client, self.wait)?;
        let request = RollbackRequest {
            snapshot: name.clone(),
            when,
            keep,
            rate: self.rate,
        };
        let reply = client.rollback(&request)?;
        output::line(&match reply {
            RollbackReply::Started => format!("rolled back to {name}; the merge is running"),
            RollbackReply::AtNextReset => {
                format!("the guest's next reset rolls back to {name}")
            }
        })?;
        if self.wait {
            wait::until_merged(&client, &name, &earlier)?;
        }
        Ok(Outcome::Done)
    }
}
