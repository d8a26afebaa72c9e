//! The log goes to stderr; the answer of a verb goes to stdout.

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

/// Makes a panic of any thread end the process. A daemon without one of its threads would
/// let its guests hang; a restarted daemon continues where the last one ended.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        eprintln!("snapback: a thread panicked; aborting. Acknowledged writes are not lost");
        std::process::abort();
    }));
}
