//! The `snapback` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    snapback::cli::run(std::env::args_os())
}
