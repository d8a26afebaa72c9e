//! The daemon that a verb talks to.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;

use super::CliError;
use crate::control::Client;

#[derive(Debug, Args)]
pub struct Control {
    /// Control socket of the daemon.
    #[arg(
        long,
        value_name = "SOCK",
        env = "SNAPBACK_CONTROL",
        hide_env_values = true,
        display_order = 800
    )]
    // Not parsed as a path: that would refuse an empty variable even if no daemon is needed.
    control: Option<OsString>,
}

impl Control {
    pub fn client(&self) -> Result<Client, CliError> {
        let socket = self.control.as_deref().filter(|path| !path.is_empty());
        let socket = socket.ok_or_else(|| {
            CliError::Usage(
                "no control socket is given: name the one that the daemon was started with, by --control SOCK or \
                 SNAPBACK_CONTROL=SOCK"
                    .to_owned(),
            )
        })?;
        Ok(Client::new(Path::new(socket))?)
    }
}
