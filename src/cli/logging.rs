//! The log, on stderr; the answer of a verb is on stdout.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::CliError;

/// Starts logging at `level`, or `default` if it is `None` or empty.
pub fn start(level: Option<&str>, default: &str) -> Result<(), CliError> {
    let level = level.filter(|text| !text.is_empty()).unwrap_or(default);
    let filter = EnvFilter::try_new(level).map_err(|e| {
        CliError::Usage(format!(
            "log level `{}`: {e}: use error, warn, info, debug, trace, or directives such as \
             snapback::control=debug",
            level.escape_debug()
        ))
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|e| CliError::Failed(format!("cannot start the log: {e}")))
}

/// From now on a panic of any thread ends the process: a daemon that lost a
/// thread would hang its guests, a restarted one goes on where it was.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        eprintln!("snapback: a thread panicked; aborting, acknowledged writes are kept");
        std::process::abort();
    }));
}
