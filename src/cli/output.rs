//! Answers on stdout. It is not an error if the reader closes it early (`| head`).

use std::io::{BufWriter, ErrorKind, StdoutLock, Write};

use serde::Serialize;

use super::CliError;

/// Prints `text` as it is.
pub fn text(text: &str) -> Result<(), CliError> {
    unless_closed(text).map(drop)
}

/// Prints `text` as it is; false if the reader has closed the output.
pub fn unless_closed(text: &str) -> Result<bool, CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Prints `line` and a newline.
pub fn line(line: &str) -> Result<(), CliError> {
    text(&format!("{line}\n"))
}

/// As [`line`]; false if the reader has closed the output.
pub fn line_unless_closed(line: &str) -> Result<bool, CliError> {
    unless_closed(&format!("{line}\n"))
}

/// Prints `value` as indented JSON.
pub fn json<T: Serialize>(value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
    line(&text)
}

/// A long answer, in pieces. Once the reader has closed the output, nothing more is
/// written and nothing fails.
pub struct Stream {
    out: BufWriter<StdoutLock<'static>>,
    closed: bool,
}

impl Stream {
    pub fn new() -> Self {
        Self {
            out: BufWriter::with_capacity(64 << 10, std::io::stdout().lock()),
            closed: false,
        }
    }

    /// Prints `text` as it is.
    pub fn text(&mut self, text: &str) -> Result<(), CliError> {
        if self.closed {
            return Ok(());
        }
        let written = self.out.write_all(text.as_bytes());
        self.take(written)
    }

    pub fn end(mut self) -> Result<(), CliError> {
        let flushed = self.out.flush();
        if self.closed {
            return Ok(());
        }
        self.take(flushed)
    }

    fn take(&mut self, result: std::io::Result<()>) -> Result<(), CliError> {
        match result {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

/// Elements of a JSON array, one per line.
pub struct Rows {
    first: bool,
}

impl Rows {
    pub const fn new() -> Self {
        Self { first: true }
    }

    /// Prints the next element.
    pub fn add<T: Serialize>(&mut self, out: &mut Stream, row: &T) -> Result<(), CliError> {
        let text = serde_json::to_string(row).map_err(std::io::Error::from)?;
        let comma = if std::mem::take(&mut self.first) {
            "\n"
        } else {
            ",\n"
        };
        out.text(&format!("{comma}{text}"))
    }
}
