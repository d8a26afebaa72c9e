//! `snapback detach`

use clap::Args;
use serde_json::json;

use super::connect::Control;
use super::json::Json;
use super::{CliError, Outcome, values};

/// Close the socket of a fork that was merged, at which the disk is still served.
///
/// After `snapback merge fork --follow` the guest of the fork goes on at the fork's socket, now on
/// the disk itself. When that guest was shut down, the socket is of no more use: this ends it, and
/// no later start opens it again. It is refused while a guest is attached there.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback status                # lists the sockets at which the disk is served
  snapback detach fork.sock")]
pub struct Detach {
    /// The socket.
    #[arg(value_name = "SOCK", value_parser = values::path)]
    socket: String,

    #[command(flatten)]
    json: Json,

    #[command(flatten)]
    control: Control,
}

impl Detach {
    pub fn run(self) -> Result<Outcome, CliError> {
        self.control.client()?.detach(&self.socket)?;
        let done = json!({"socket": self.socket});
        self.json
            .say(&format!("{} is closed", self.socket), &done)?;
        Ok(Outcome::Done)
    }
}
