//! What the output goes to: a terminal, or something else.

use std::io::IsTerminal;

/// Whether stderr goes to a terminal that can redraw a line.
pub fn of_stderr() -> bool {
    std::io::stderr().is_terminal() && !is_dumb()
}

/// `TERM` says that the terminal can only append.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}
