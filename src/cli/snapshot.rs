//! `snapback snapshot` and `snapback remove`

use clap::Args;

use super::connect::Control;
use super::{CliError, Outcome, output, values};
use crate::control::api::{SnapshotSpec, StoreType};
use crate::size;

/// Take a snapshot of the disk as it is now, while the guest goes on.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback snapshot before --cow before.cow --size 2G
  snapback snapshot fork --cow fork.cow --size 2G --socket-path fork.sock
  snapback snapshot backup --cow backup.cow --size 2G --socket-path backup.sock --read-only")]
pub struct Snapshot {
    /// Name of the new snapshot.
    #[arg(value_parser = values::name)]
    name: String,

    /// File or device that keeps what is overwritten.
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    cow: String,

    /// Create the COW file with this size if it is not there.
    #[arg(long, value_parser = size::parse_device_size)]
    size: Option<u64>,

    /// Copy-on-write unit, a power of two from 512 to 1G [default: 4K, or the store's own].
    #[arg(long, value_name = "SIZE", value_parser = values::chunk_size)]
    chunk_size: Option<u64>,

    /// P: persistent; PO: persistent, still readable after a guest overflowed it; N: transient.
    #[arg(long = "type", value_name = "P|PO|N", default_value = "P", value_parser = values::store_type)]
    store_type: StoreType,

    /// Unix socket to serve the snapshot itself at.
    #[arg(long, value_name = "SOCK", value_parser = values::path)]
    socket_path: Option<String>,

    /// Guests cannot write to the snapshot at that socket.
    #[arg(long, requires = "socket_path")]
    read_only: bool,

    #[command(flatten)]
    control: Control,
}

/// Give a snapshot up; its COW is marked invalid and can be removed.
///
/// Its own view must have no guest, and is served no longer. The COW's file stays, but nothing
/// can take it for a snapshot again: it does not get what is overwritten on the disk from then on.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback remove before && rm before.cow")]
pub struct Remove {
    /// The snapshot.
    #[arg(value_parser = values::name)]
    name: String,

    #[command(flatten)]
    control: Control,
}

impl Snapshot {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        client.add_snapshot(&SnapshotSpec {
            name: self.name.clone(),
            cow: self.cow,
            store_type: self.store_type,
            chunk_size: self.chunk_size,
            size: self.size,
            socket: self.socket_path,
            read_only: self.read_only.then_some(true),
        })?;
        output::line(&format!("snapshot {} taken", self.name))?;
        Ok(Outcome::Done)
    }
}

impl Remove {
    pub fn run(self) -> Result<Outcome, CliError> {
        self.control.client()?.remove_snapshot(&self.name)?;
        output::line(&format!("snapshot {} removed", self.name))?;
        Ok(Outcome::Done)
    }
}
