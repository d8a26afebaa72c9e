//! The daemon that a verb talks to.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::control::Client;
use crate::control::registry::Registry;

#[derive(Debug, Args)]
pub struct Control {
    /// The daemon: its name in `snapback list`, or the path of its control socket [default: the
    /// only daemon of this user; env: SNAPBACK_CONTROL].
    // The parser does not read the variable: its usage lines would have the option in them, as
    // if it were required. Not parsed as a path, because a variable may be empty.
    #[arg(long, value_name = "NAME|SOCK", display_order = 800)]
    control: Option<OsString>,
}

impl Control {
    pub fn client(&self) -> Result<Client, CliError> {
        Ok(Client::new(&self.socket()?)?)
    }

    fn socket(&self) -> Result<PathBuf, CliError> {
        let variable = std::env::var_os("SNAPBACK_CONTROL");
        let given = self.control.as_deref().or(variable.as_deref());
        let registry = Registry::of_this_user();
        match given.filter(|given| !given.is_empty()) {
            Some(given) => Ok(registry.named(given).unwrap_or_else(|| given.into())),
            None => registry
                .only_one()
                .map_err(|error| CliError::Usage(error.to_string())),
        }
    }
}
