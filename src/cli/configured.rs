//! The command line with what a configuration file adds to it.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};

use super::command_line::{Cli, Verb};
use super::config::Config;
use super::logging;
use crate::daemon::Reload;

/// A command line that is valid in its form.
pub struct Parsed {
    pub cli: Cli,
    /// What a daemon does when it is asked to read its configuration again.
    pub reload: Option<Reload>,
}

/// Why it is not.
pub enum Wrong {
    Usage(clap::Error),
    Config(String),
}

/// The level of the log of a daemon.
pub const DAEMON_LEVEL: &str = "info";

/// Parses `arguments`, which begin with the program's name.
pub fn parse(arguments: &[OsString]) -> Result<Parsed, Wrong> {
    let mut command = Cli::command();
    let matches = command
        .try_get_matches_from_mut(arguments)
        .map_err(Wrong::Usage)?;
    let path = match matches.subcommand() {
        Some(("serve", given)) => given.get_one::<String>("config"),
        _ => None,
    };
    match path {
        None => {
            let cli = Cli::from_arg_matches(&matches);
            let cli = cli.map_err(|e| Wrong::Usage(e.format(&mut command)))?;
            Ok(Parsed { cli, reload: None })
        }
        Some(path) => {
            let (cli, config) = with_file(arguments, path).map_err(Wrong::Config)?;
            let reload = reload(arguments.to_vec(), path.clone(), config);
            Ok(Parsed {
                cli,
                reload: Some(reload),
            })
        }
    }
}

/// The command line with the options of the file at `path`.
fn with_file(arguments: &[OsString], path: &str) -> Result<(Cli, Config), String> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(arguments);
    let matches = matches.map_err(|e| e.to_string())?;
    let config = Config::read(path, &command)?;
    if let Some(given) = matches.subcommand_matches("serve") {
        config.refuse_repeated(given)?;
    }
    let mut all = arguments.to_vec();
    let end = all.iter().position(|a| a == "--").unwrap_or(all.len());
    all.splice(end..end, config.arguments().map(OsString::from));
    let matches = command.try_get_matches_from_mut(&all);
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = cli.map_err(|e| config.explain(&e))?;
    Ok((cli, config))
}

/// Reads the file again, applies what can change in a running daemon, and says of the rest that
/// it does not. A file that would not do for a start changes nothing.
fn reload(arguments: Vec<OsString>, path: String, started_with: Config) -> Reload {
    Box::new(move || match try_reload(&arguments, &path, &started_with) {
        Ok(later) if later.is_empty() => {
            tracing::info!("the configuration was read again, and is in effect");
        }
        Ok(later) => tracing::warn!(
            "the configuration was read again; takes effect at the next start: {}",
            later.join(", ")
        ),
        Err(error) => tracing::error!(
            "the configuration was read again and is not valid, so that nothing changes: {error}"
        ),
    })
}

/// Returns what takes effect at the next start.
fn try_reload(
    arguments: &[OsString],
    path: &str,
    started_with: &Config,
) -> Result<Vec<String>, String> {
    let (cli, config) = with_file(arguments, path)?;
    let level = cli.log_level();
    let Verb::Serve(serve) = cli.verb else {
        return Err("the command line is not that of a daemon".to_owned());
    };
    serve.options()?;
    logging::change(level.as_deref(), DAEMON_LEVEL)?;
    let mut later = started_with.differences(&config);
    later.retain(|title| title != "log-level");
    Ok(later)
}
