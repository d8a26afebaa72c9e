//! `snapback release`

use clap::Args;
use serde_json::json;

use super::connect::Control;
use super::json::Json;
use super::{CliError, Outcome, output};

/// End a daemon after its guest was migrated, so that another daemon can take the disk over.
///
/// The daemon of the destination, `snapback serve --incoming SOCK`, asks for this itself; the verb is
/// for a destination that cannot reach the control socket. It is refused while a guest uses the
/// disk, and if a front end is connected whose guest was not migrated. Then the daemon stops as it
/// does after SIGTERM: everything is durable, and the files are free when it has ended.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback release --control c.sock")]
pub struct Release {
    #[command(flatten)]
    json: Json,

    #[command(flatten)]
    control: Control,
}

impl Release {
    pub fn run(self) -> Result<Outcome, CliError> {
        self.control.client()?.release()?;
        if self.json.is_wanted() {
            output::json(&json!({"released": true}))?;
        }
        Ok(Outcome::Done)
    }
}
