//! The log goes to stderr or to the journal; the answer of a verb goes to stdout.

use std::fmt::{self, Debug};
use std::io::IsTerminal;
use std::sync::OnceLock;

use clap::ValueEnum;
use tracing::field::Field;
use tracing::{Event, Level, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::CliError;
use super::journal::{Told, escape};

/// Changes the level of the log that was started.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Where the log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The journal, if stderr leads there; otherwise stderr.
    #[default]
    Auto,
    /// Lines on stderr.
    Stderr,
    /// The journal of systemd, with fields and priorities.
    Journal,
}

/// Starts logging at `level`, or `default` if it is `None` or empty. `volume`: the disk that all
/// lines are about.
pub fn start(
    level: Option<&str>,
    default: &str,
    target: Target,
    volume: Option<&str>,
) -> Result<(), CliError> {
    let (filter, handle) = reload::Layer::new(filter(level, default).map_err(CliError::Usage)?);
    let is_journal = stderr_is_journal();
    let journal = match target {
        Target::Journal => Some(journal(volume).map_err(|e| {
            CliError::Failed(format!(
                "the log cannot go to the journal: {e}: start systemd-journald, or use --log-target stderr"
            ))
        })?),
        // Lines with priorities do as well.
        Target::Auto if is_journal => journal(volume).ok(),
        Target::Auto | Target::Stderr => None,
    };
    let fields = || debug_fn(escaped).delimited(" ");
    let (mut plain, mut with_priority) = (None, None);
    if journal.is_none() && is_journal {
        let lines = tracing_subscriber::fmt::layer().fmt_fields(fields());
        let lines = lines.with_ansi(false).event_format(WithPriority);
        with_priority = Some(lines.with_writer(std::io::stderr));
    } else if journal.is_none() {
        let lines = tracing_subscriber::fmt::layer().fmt_fields(fields());
        let lines = lines.with_ansi(std::io::stderr().is_terminal());
        plain = Some(lines.with_writer(std::io::stderr));
    }
    let started = tracing_subscriber::registry()
        .with(filter)
        .with(journal)
        .with(plain)
        .with(with_priority);
    started
        .try_init()
        .map_err(|e| CliError::Failed(format!("cannot start the log: {e}")))?;
    let _ = LEVEL.set(handle);
    Ok(())
}

/// Whether stderr is a stream to the journal, as systemd says by device and inode.
pub fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    let is = |there: rustix::fs::Stat| {
        device.parse() == Ok(there.st_dev) && inode.parse() == Ok(there.st_ino)
    };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(is)
}

/// `VOLUME` and the fields of a line, such as `SNAPSHOT` and `VIEW`, become fields of its entry.
fn journal(volume: Option<&str>) -> std::io::Result<Told> {
    let layer = tracing_journald::layer()?
        .with_field_prefix(None)
        .with_syslog_identifier("snapback".to_owned())
        .with_priority_mappings(PriorityMappings {
            error: Priority::Error,
            warn: Priority::Warning,
            info: Priority::Informational,
            debug: Priority::Debug,
            trace: Priority::Debug,
        });
    let volume = volume.map(|volume| ("VOLUME", volume));
    Ok(Told(layer.with_custom_fields(volume)))
}

/// A line for the journal by stderr: it begins with the priority, and the journal knows the time.
struct WithPriority;

impl<S, N> FormatEvent<S, N> for WithPriority
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        let line = tracing_subscriber::fmt::format()
            .without_time()
            .with_level(false);
        line.format_event(context, writer, event)
    }
}

/// Logs at `level` from now on.
///
/// # Errors
/// There is no such level.
pub fn change(level: Option<&str>, default: &str) -> Result<(), String> {
    let filter = filter(level, default)?;
    match LEVEL.get() {
        Some(handle) => handle.reload(filter).map_err(|e| e.to_string()),
        None => Ok(()),
    }
}

/// What a level lets through.
///
/// # Errors
/// There is no such level.
pub fn filter(level: Option<&str>, default: &str) -> Result<EnvFilter, String> {
    let level = level.filter(|text| !text.is_empty()).unwrap_or(default);
    let wrong = |reason: &str| {
        format!(
            "log level `{}`: {reason}: use error, warn, info, debug, trace, or directives such as \
             snapback::control=debug",
            level.escape_debug()
        )
    };
    // A filter takes any word as the name of a module, which then is never found.
    let unknown = level.split(',').map(str::trim).find(|part| {
        let is_target = part.contains(['=', '[']) || part.starts_with("snapback");
        !is_target && part.parse::<LevelFilter>().is_err()
    });
    if let Some(unknown) = unknown {
        return Err(wrong(&format!("`{}` is no level", unknown.escape_debug())));
    }
    EnvFilter::try_new(level).map_err(|e| wrong(&e.to_string()))
}

/// Writes one field of a line.
fn escaped(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    escape(writer, value)
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
