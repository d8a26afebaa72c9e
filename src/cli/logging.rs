//! The log goes to stderr; the answer of a verb goes to stdout.

use std::fmt::{self, Debug};
use std::io::IsTerminal;

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use super::CliError;

/// Starts logging at `level`, or `default` if it is `None` or empty.
pub fn start(level: Option<&str>, default: &str) -> Result<(), CliError> {
    let level = level.filter(|text| !text.is_empty()).unwrap_or(default);
    let wrong = |reason: &str| {
        CliError::Usage(format!(
            "log level `{}`: {reason}: use error, warn, info, debug, trace, or directives such as \
             snapback::control=debug",
            level.escape_debug()
        ))
    };
    // A filter takes any word as the name of a module, which then is never found.
    let unknown = level.split(',').map(str::trim).find(|part| {
        let is_target = part.contains(['=', '[']) || part.starts_with("snapback");
        !is_target && part.parse::<LevelFilter>().is_err()
    });
    if let Some(unknown) = unknown {
        return Err(wrong(&format!("`{}` is no level", unknown.escape_debug())));
    }
    let filter = EnvFilter::try_new(level).map_err(|e| wrong(&e.to_string()))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(debug_fn(escaped).delimited(" "))
        .with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|e| CliError::Failed(format!("cannot start the log: {e}")))
}

/// The value of a field, as a log shows it.
struct Shown<'a>(&'a dyn Debug);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(self.0, f)
    }
}

/// Writes one field of a line. A path may hold any character, so control characters are
/// escaped: they could end the line, or act on a terminal.
fn escaped(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    for c in Shown(value).to_string().chars() {
        if c.is_control() {
            write!(writer, "{}", c.escape_default())?;
        } else {
            writer.write_char(c)?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_of_the_log_is_one_line_whatever_a_path_holds() {
        let kept = Kept::default();
        let theirs = kept.clone();
        let log = tracing_subscriber::fmt()
            .fmt_fields(debug_fn(escaped).delimited(" "))
            .with_ansi(false)
            .with_writer(move || theirs.clone())
            .finish();
        tracing::subscriber::with_default(log, || {
            let path = "/a\nb\u{1b}[2J";
            tracing::warn!(cow = %path, "the COW {path} is \u{e9}");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let line = text.strip_suffix('\n').unwrap();
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let told = "the COW /a\\nb\\u{1b}[2J is \u{e9} cow=/a\\nb\\u{1b}[2J";
        assert!(line.ends_with(told), "{line}");
    }
}
