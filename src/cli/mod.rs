//! The command line: one binary, and one file for each verb.
//!
//! A verb checks the form of its arguments, passes them to the daemon (over the
//! control socket), to [`crate::daemon::serve`] or to [`crate::offline`], and
//! prints the answer.

mod check;
mod command_line;
mod config;
mod configured;
mod connect;
mod detach;
mod diff;
mod disk_map;
mod disk_picture;
mod doubts;
mod dump;
mod events;
mod export;
mod generate;
mod grow;
mod handed_cow;
mod interrupt;
mod journal;
mod json;
mod list;
mod logging;
mod merge;
mod metrics;
mod outcome;
mod output;
#[cfg(test)]
mod pictures;
mod poll;
mod progress;
mod release;
mod resize;
mod rollback;
mod run;
mod sandbox;
mod serve;
mod serve_control;
mod snapshot;
mod snapshot_list;
mod socket_access;
mod speed;
mod status;
mod status_screen;
mod store;
mod table;
mod terminal;
mod top;
mod values;
mod wait;
mod watch;

#[cfg(any(test, feature = "fuzzing"))]
pub use config::fuzzing::read as read_config;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::control::render::printable;
use crate::daemon;
use command_line::{Cli, Verb};
use configured::{DAEMON_LEVEL, Parsed, Wrong};
use outcome::{CliError, Outcome};

/// The answer that QEMU's and libvirt's back-end conventions expect.
const CAPABILITIES: &str = r#"{"type":"block","features":["read-only","blk-file"]}"#;

/// Options with which a manager that knows only the back-end conventions starts the program.
const CONVENTION: [&str; 4] = ["--blk-file", "--socket-path", "--fd", "--read-only"];

/// The exit status for wrong usage and errors of all verbs but `run`.
const ERROR: u8 = 2;

/// Runs the command line `arguments`, which begins with the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some((_, command)) = arguments.split_first()
        && let Some((first, command)) = command.split_first()
        && first == daemon::LAUNCH
    {
        return launch(command);
    }
    interrupt::survive_size_limit();
    let arguments = with_verb(arguments);
    let ending = Ending::of(&arguments);
    let mut options = arguments.iter().skip(1).take_while(|a| *a != "--");
    if options.any(|a| a == "--print-capabilities") {
        return finish(output::line(CAPABILITIES).map(|()| Outcome::Done), ending);
    }
    let Parsed { cli, reload } = match configured::parse(&arguments) {
        Ok(parsed) => parsed,
        Err(Wrong::Usage(error)) if error.kind() == ErrorKind::InvalidUtf8 => {
            return finish(Err(CliError::Usage(not_text(&arguments))), ending);
        }
        Err(Wrong::Usage(error)) => return refuse(&error, ending),
        Err(Wrong::Config(error)) => return finish(Err(CliError::Usage(error)), ending),
    };
    let default_level = match &cli.verb {
        Verb::Serve(serve) if !serve.is_check() => DAEMON_LEVEL,
        _ => "warn",
    };
    let volume = match &cli.verb {
        Verb::Serve(serve) => serve.disk().map(str::to_owned),
        _ => None,
    };
    let (level, log) = (cli.log_level(), cli.log_options());
    finish(
        logging::start(
            level.as_deref(),
            default_level,
            cli.log_target,
            volume.as_deref(),
        )
        .and_then(|()| match cli.verb {
            Verb::Serve(verb) => verb.run(reload),
            Verb::List(verb) => verb.run(),
            Verb::Status(verb) => verb.run(),
            Verb::Table(verb) => verb.run(),
            Verb::Events(verb) => verb.run(),
            Verb::Top(verb) => verb.run(),
            Verb::Snapshot(verb) => verb.run(),
            Verb::Grow(verb) => verb.run(),
            Verb::Remove(verb) => verb.run(),
            Verb::Detach(verb) => verb.run(),
            Verb::Resize(verb) => verb.run(),
            Verb::Release(verb) => verb.run(),
            Verb::Rollback(verb) => verb.run(),
            Verb::Merge(verb) => verb.run(),
            Verb::Create(verb) => verb.run(),
            Verb::Info(verb) => verb.run(),
            Verb::Check(verb) => verb.run(),
            Verb::Dump(verb) => verb.run(),
            Verb::Export(verb) => verb.run(),
            Verb::Diff(verb) => verb.run(),
            Verb::Generate(verb) => verb.run(Cli::command()),
            Verb::Run(verb) => verb.run(&log).map(Outcome::Status),
            Verb::RunDisk(verb) => verb.run(),
            Verb::RunCommand(verb) => verb.run(),
        }),
        ending,
    )
}

/// How errors end the program.
#[derive(Clone, Copy)]
struct Ending {
    /// The exit status.
    status: u8,
    /// They are printed as JSON.
    json: bool,
}

impl Ending {
    /// A command's status may be 2, so `run` has that of `timeout` and similar programs.
    fn of(arguments: &[OsString]) -> Self {
        let mut words = arguments.iter().skip(1).take_while(|a| *a != "--");
        let json = words.clone().any(|option| option == "--json");
        let mut status = ERROR;
        while let Some(word) = words.next() {
            if word == "--log-level" || word == "--log-target" {
                words.next();
            } else if !word.to_string_lossy().starts_with('-') {
                status = if word == "run" { 125 } else { ERROR };
                break;
            }
        }
        Self { status, json }
    }
}

/// The process that runs the commands of `serve --on-event`.
fn launch(arguments: &[OsString]) -> ExitCode {
    let ended = daemon::close_others().and_then(|()| daemon::launch(arguments));
    let failed = |e| CliError::Failed(format!("cannot run commands on events: {e}"));
    let ending = Ending {
        status: ERROR,
        json: false,
    };
    finish(ended.map(|()| Outcome::Done).map_err(failed), ending)
}

/// `snapback --fd=3 --blk-file=disk` means `snapback serve --fd=3 --blk-file=disk`.
fn with_verb(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let first = arguments
        .get(1)
        .and_then(|a| a.to_str())
        .unwrap_or_default();
    let option = first.split('=').next().unwrap_or_default();
    if CONVENTION.contains(&option) {
        arguments.insert(1, OsString::from("serve"));
    }
    arguments
}

/// The parser does not report which argument is not UTF-8.
fn not_text(arguments: &[OsString]) -> String {
    let raw = arguments.iter().filter(|a| a.to_str().is_none());
    let raw: Vec<String> = raw.map(|a| format!("`{}`", a.display())).collect();
    format!(
        "argument {} is not UTF-8: only the path of a file may contain other bytes; write it in UTF-8",
        raw.join(", ")
    )
}

/// Prints a usage error, or the help or version that was requested.
fn refuse(error: &clap::Error, ending: Ending) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let printed = output::text(&error.render().to_string());
            finish(printed.map(|()| Outcome::Done), ending)
        }
        _ if ending.json => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            finish(Err(CliError::Usage(text.to_owned())), ending)
        }
        _ => {
            let text = error.render().to_string();
            eprint!(
                "snapback: {}",
                text.strip_prefix("error: ").unwrap_or(&text)
            );
            ExitCode::from(ending.status)
        }
    }
}

fn finish(result: Result<Outcome, CliError>, ending: Ending) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Faulty) => ExitCode::from(1),
        Ok(Outcome::Status(status)) => ExitCode::from(status),
        Err(error) => {
            match ending.json {
                true => eprintln!("{}", json::error(&error)),
                false => {
                    let priority = match logging::stderr_is_journal() {
                        true => "<3>",
                        false => "",
                    };
                    // Control characters in paths and names must not reach the terminal.
                    eprintln!("{priority}snapback: {}", printable(&error.to_string()));
                }
            }
            match error {
                CliError::Interrupted(_) => ExitCode::from(130),
                CliError::NotRun { status, .. } => ExitCode::from(status),
                _ => ExitCode::from(ending.status),
            }
        }
    }
}
