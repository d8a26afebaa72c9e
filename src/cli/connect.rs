//! The daemon that a verb talks to.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;

use super::CliError;
use crate::control::Client;

#[derive(Debug, Args)]
pub struct Control {
    /// Control socket of the daemon [env: SNAPBACK_CONTROL].
    // The parser does not read the variable: its usage lines would have the option in them, as
    // if it were required. Not parsed as a path, because a variable may be empty.
    #[arg(long, value_name = "SOCK", display_order = 800)]
    control: Option<OsString>,
}

impl Control {
    pub fn client(&self) -> Result<Client, CliError> {
        let variable = std::env::var_os("SNAPBACK_CONTROL");
        let socket = self.control.as_deref().or(variable.as_deref());
        let socket = socket.filter(|path| !path.is_empty());
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
