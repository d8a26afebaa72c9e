//! `snapback rollback`

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::connect::Control;
use super::handed_cow::with_cow;
use super::json::Json;
use super::{CliError, Outcome, output, values, wait};
use crate::control::api::{
    ResetKind, RollbackOutcome, RollbackReply, RollbackRequest, RollbackWhen, SnapshotSpec,
    StoreType,
};
use crate::control::render;
use crate::size;

/// Give the disk the content of a snapshot again.
///
/// The old content is visible immediately; it is copied back in the background. No guest may have
/// the disk in its memory at that moment. --qmp is the safest way: the guest is stopped, its disk
/// is rolled back, and the guest is reset, with one command. Without --qmp, if a guest is attached,
/// the rollback waits until that guest is reset. If no guest is attached it happens now.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  Stop the guest, roll back, reset the guest and continue it:
    snapback rollback before --qmp qmp.sock
  Roll back at the guest's next reset, or cancel that:
    snapback rollback before
    snapback rollback --cancel
  Keep the present state as a snapshot:
    snapback rollback before --keep broken --cow broken.cow --size 4G
  Roll back now, and wait for the merge:
    snapback rollback before --now --rate 200M --wait")]
pub struct Rollback {
    /// The snapshot to go back to.
    #[arg(value_parser = values::name, required_unless_present = "cancel")]
    name: Option<String>,

    /// Cancel a rollback that waits for the guest's reset.
    #[arg(long, conflicts_with_all = ["name", "qmp", "at_reset", "now", "keep", "rate", "wait"])]
    cancel: bool,

    /// Monitor socket of QEMU: stop the guest, roll back, reset the guest and continue it. With
    /// `serve --qmp` this is the default while a guest is attached.
    ///
    /// With --at-reset the guest is not touched, and the monitor only reports its reset. QEMU talks
    /// to one client at a time: give snapback a monitor of its own, -qmp
    /// unix:SOCK,server=on,wait=off.
    #[arg(long, value_name = "SOCK", value_parser = values::path, conflicts_with = "now")]
    qmp: Option<String>,

    /// Roll back at the guest's next reset, even if no guest is attached now.
    #[arg(long, value_name = "WHAT", value_enum, num_args = 0..=1, require_equals = true,
        default_missing_value = "machine", conflicts_with = "now")]
    at_reset: Option<ResetName>,

    /// Roll back now, even if a guest is attached and running.
    #[arg(long)]
    now: bool,

    /// First take this snapshot of the present state, so that the rollback can be undone.
    #[arg(long, value_name = "NAME2", requires = "cow", value_parser = values::name)]
    keep: Option<String>,

    /// COW file or device of the snapshot that --keep takes.
    #[arg(long, value_name = "FILE2", requires = "keep", value_parser = values::path)]
    cow: Option<String>,

    /// Create that COW file with this size if it does not exist.
    #[arg(long, requires = "keep", value_parser = size::parse_device_size)]
    size: Option<u64>,

    /// Chunk size of the snapshot that --keep takes.
    #[arg(long, value_name = "SIZE", requires = "keep", value_parser = values::chunk_size)]
    chunk_size: Option<u64>,

    /// Limit the merge to this many bytes per second; 0 means no limit.
    #[arg(long, value_name = "SIZE", value_parser = values::rate)]
    rate: Option<u64>,

    /// Wait until everything is merged, with a progress bar on a terminal.
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    json: Json,

    #[command(flatten)]
    control: Control,
}

/// What counts as the guest's reset.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ResetName {
    /// The reset or the start of a machine: a firmware or a new guest starts the disk, or QEMU's
    /// monitor reports it.
    Machine,
    /// Any driver that starts the disk: also after suspend and resume, unbind and bind, or kexec,
    /// and a program that reads the disk. For machines that reset without firmware.
    Any,
}

impl Rollback {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        let Some(name) = self.name else {
            client.cancel_rollback()?;
            let done = json!({"cancelled": true});
            self.json.say("the rollback is cancelled", &done)?;
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
            defer_entries: None,
            discard_passdown_origin: None,
            read_only: None,
        });
        let when = match (self.at_reset, self.now, &self.qmp) {
            (Some(_), ..) => RollbackWhen::AtReset,
            (_, true, _) => RollbackWhen::Now,
            (.., Some(_)) => RollbackWhen::Vmm,
            _ => RollbackWhen::Auto,
        };
        let kept = keep.as_ref().map(|keep| keep.name.clone());
        let mut earlier = wait::Earlier::read(&client, self.wait)?;
        earlier.quiet = self.json.is_wanted();
        let request = RollbackRequest {
            snapshot: name.clone(),
            when,
            reset: match self.at_reset {
                Some(ResetName::Any) => ResetKind::Any,
                Some(ResetName::Machine) | None => ResetKind::Machine,
            },
            qmp: self.qmp,
            keep,
            rate: self.rate,
        };
        let reply = with_cow(&client, request.keep.as_ref(), |cow| {
            client.rollback_with(&request, cow)
        })?;
        if self.json.is_wanted() {
            if self.wait {
                wait::until_merged(&client, &name, &earlier)?;
            }
            output::json(&as_json(&name, &reply, kept.as_deref(), self.wait))?;
            return Ok(Outcome::Done);
        }
        output::line(&match reply.outcome {
            RollbackOutcome::Started => format!("rolled back to {name}; the merge is running"),
            RollbackOutcome::AtNextReset => {
                format!("the guest's next reset rolls back to {name}")
            }
            RollbackOutcome::GuestReset => {
                format!("rolled back to {name}; the guest was reset and runs, the merge is running")
            }
            RollbackOutcome::GuestResetPaused => format!(
                "rolled back to {name}; the guest was reset and is paused as it was before, the merge is running"
            ),
        })?;
        for note in &reply.notes {
            output::line(&format!("note: {}", render::printable(note)))?;
        }
        if self.wait {
            wait::until_merged(&client, &name, &earlier)?;
        }
        Ok(Outcome::Done)
    }
}

fn as_json(name: &str, reply: &RollbackReply, kept: Option<&str>, merged: bool) -> Value {
    json!({
        "snapshot": name, "outcome": reply.outcome, "notes": reply.notes, "kept": kept,
        "merged": merged,
    })
}
