//! `snapback snapshot` and `snapback remove`

use clap::Args;
use serde_json::json;

use super::connect::Control;
use super::handed_cow::with_cow;
use super::json::Json;
use super::{CliError, Outcome, output, values};
use crate::control::api::{SnapshotSpec, StoreType};
use crate::size;

/// Take a snapshot of the disk as it is now, without interrupting the guest.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  To roll back to later:
    snapback snapshot before --cow before.cow --size 2G
  To boot a second guest from it:
    snapback snapshot fork --cow fork.cow --size 2G --socket-path fork.sock
  To read it for a backup:
    snapback snapshot backup --cow backup.cow --size 2G --socket-path backup.sock --read-only")]
pub struct Snapshot {
    /// Name of the new snapshot.
    #[arg(value_parser = values::name)]
    name: String,

    /// File or device that keeps the chunks that are overwritten (copy-on-write store).
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    cow: String,

    /// Create the COW file with this size if it does not exist.
    #[arg(long, value_parser = size::parse_device_size)]
    size: Option<u64>,

    /// Copy-on-write unit, a power of two from 512 to 1G [default: that of the store, or 4K].
    #[arg(long, value_name = "SIZE", value_parser = values::chunk_size)]
    chunk_size: Option<u64>,

    /// P: persistent; PO: persistent, and readable after its guest has overflowed it; N: transient.
    #[arg(long = "type", value_name = "P|PO|N", default_value = "P", value_parser = values::store_type)]
    store_type: StoreType,

    /// Unix socket at which the snapshot itself is served.
    #[arg(long, value_name = "SOCK", value_parser = values::path)]
    socket_path: Option<String>,

    /// Guests cannot write to the snapshot at that socket.
    #[arg(long, requires = "socket_path")]
    read_only: bool,

    /// Offer discard to the snapshot's guest: discarded chunks are zeroed in the COW.
    #[arg(long)]
    discard_zeroes_cow: bool,

    /// Let the snapshot's guest change the disk: what it discards is also discarded there, unless
    /// another snapshot needs it.
    #[arg(long, requires = "discard_zeroes_cow")]
    discard_passdown_origin: bool,

    /// Faster first writes: the entry of a write is durable at the guest's next flush. Until then
    /// it is in a record in /run/snapback, which the next start of the daemon takes over.
    #[arg(long)]
    defer_entries: bool,

    #[command(flatten)]
    json: Json,

    #[command(flatten)]
    control: Control,
}

/// Remove snapshots; their COWs are marked invalid and can then be deleted.
///
/// No guest may be attached to the own view of a snapshot, which is closed. The COW file is not deleted, but
/// cannot be used as a snapshot again: what is overwritten on the disk from then on is not saved
/// in it.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback remove before && rm before.cow
  snapback remove monday tuesday")]
pub struct Remove {
    /// The snapshots, which are removed one after the other.
    #[arg(value_parser = values::name, required = true, value_name = "NAME")]
    names: Vec<String>,

    /// Also if the COW cannot be marked invalid. Nothing then prevents it from being mistaken for
    /// a good snapshot: never use it again.
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    json: Json,

    #[command(flatten)]
    control: Control,
}

impl Snapshot {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        let spec = SnapshotSpec {
            name: self.name.clone(),
            cow: self.cow.clone(),
            store_type: self.store_type,
            chunk_size: self.chunk_size,
            size: self.size,
            socket: self.socket_path,
            read_only: self.read_only.then_some(true),
            discard_zeroes_cow: self.discard_zeroes_cow.then_some(true),
            defer_entries: self.defer_entries.then_some(true),
            discard_passdown_origin: self.discard_passdown_origin.then_some(true),
        };
        with_cow(&client, Some(&spec), |cow| {
            client.add_snapshot_with(&spec, cow)
        })?;
        let done = json!({"snapshot": self.name, "cow": self.cow});
        self.json
            .say(&format!("snapshot {} taken", self.name), &done)?;
        Ok(Outcome::Done)
    }
}

impl Remove {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        let remove = |name: &String| match self.force {
            true => client.force_remove_snapshot(name),
            false => client.remove_snapshot(name),
        };
        let (mut removed, mut result) = (Vec::new(), Ok(Outcome::Done));
        for name in &self.names {
            if let Err(error) = remove(name) {
                result = Err(error.into());
                break;
            }
            removed.push(name);
            if !self.json.is_wanted() {
                output::line(&format!("snapshot {name} removed"))?;
            }
        }
        if self.json.is_wanted() && !removed.is_empty() {
            output::json(&json!({"removed": removed}))?;
        }
        result
    }
}
