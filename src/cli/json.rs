//! `--json` of the verbs that change something: an object of what was done, and errors as
//! objects with the two fields that the API's have.

use clap::Args;
use serde_json::{Value, json};

use super::{CliError, output};
use crate::control::ClientError;

#[derive(Clone, Copy, Debug, Args)]
pub struct Json {
    /// Print what was done as a JSON object. An error is a JSON object on stderr then, with `kind`
    /// and `message`.
    #[arg(long, display_order = 790)]
    json: bool,
}

impl Json {
    pub const fn is_wanted(self) -> bool {
        self.json
    }

    /// Prints `line`, or `done` as JSON.
    pub fn say(self, line: &str, done: &Value) -> Result<(), CliError> {
        match self.json {
            true => output::json(done),
            false => output::line(line),
        }
    }
}

/// `error` for programs: the kinds of the API, and those of the command line itself.
pub fn error(error: &CliError) -> String {
    let kind = match error {
        CliError::Usage(_) => json!("usage"),
        CliError::Interrupted(_) => json!("interrupted"),
        CliError::Client(ClientError::Refused(refusal)) => json!(refusal.kind),
        CliError::Client(ClientError::NoDaemon { .. }) => json!("no-daemon"),
        CliError::Client(_) => json!("connection"),
        CliError::Failed(_)
        | CliError::Daemon(_)
        | CliError::Offline(_)
        | CliError::Output(_)
        | CliError::NotRun { .. } => json!("failed"),
    };
    json!({"kind": kind, "message": error.to_string()}).to_string()
}
