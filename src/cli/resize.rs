//! `snapback resize`

use clap::Args;

use super::connect::Control;
use super::json::Json;
use super::{CliError, Outcome, output, values};
use crate::control::api::ResizeReply;
use crate::size::{self, NewSize};
use crate::units::SECTOR_SIZE;

/// Enlarge the disk while guests use it.
///
/// A file is enlarged, and the new part reads as zeroes. A device must have been enlarged before
/// (for example with lvextend). Guests see the new size at once where the front end can be told
/// (QEMU, cloud-hypervisor). Snapshots keep their sizes: a rollback leaves what lies behind the end of
/// its snapshot as it is. A disk cannot be made smaller.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback resize 20G
  snapback resize +5G
  lvextend -L 20G vg0/disk && snapback resize")]
pub struct Resize {
    /// New size of the disk, not smaller than the present one; with + before it, how much is added
    /// [default: the size that the file or device has now].
    #[arg(value_parser = size::parse_new_size)]
    size: Option<NewSize>,

    #[command(flatten)]
    json: Json,

    #[command(flatten)]
    control: Control,
}

impl Resize {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        let size = match self.size {
            Some(size @ NewSize::By(_)) => {
                let present = client.status()?.origin.sectors.saturating_mul(SECTOR_SIZE);
                Some(values::size_after(size, present)?)
            }
            Some(NewSize::To(size)) => Some(size),
            None => None,
        };
        let reply = client.resize(size)?;
        match self.json.is_wanted() {
            true => output::json(&reply)?,
            false => output::text(&summary(&reply))?,
        }
        Ok(Outcome::Done)
    }
}

fn summary(reply: &ResizeReply) -> String {
    let size = size::in_words(reply.size);
    let mut text = if reply.before == reply.size {
        format!("the disk has {size}, as before\n")
    } else {
        let before = size::in_words(reply.before);
        format!("the disk now has {size}, before it had {before}\n")
    };
    for socket in &reply.untold {
        let socket = socket.as_deref().unwrap_or("the given descriptor");
        text.push_str(&format!(
            "the front end at {socket} cannot be told: its guest sees the new size after the \
             front end has connected again\n"
        ));
    }
    text
}
