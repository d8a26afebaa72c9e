//! Entries of the journal that say by themselves what they are about.
//!
//! `journalctl` shows the message of an entry and not its fields, so the message has the fields as
//! well, as a line on stderr has them.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Value, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// More fields than any line of the log has.
const FIELDS_MAX: usize = 16;

/// Passes events on to the journal.
pub struct Told(pub tracing_journald::Layer);

impl<S> Layer<S> for Told
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.on_record(id, values, context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let fields = event.metadata().fields();
        let mut found = Found::default();
        event.record(&mut found);
        let message = fields.field("message");
        let (Some(message), true) = (message, found.values.len() < FIELDS_MAX) else {
            return self.0.on_event(event, context);
        };
        let text = found.message + &found.shown;
        let mut values = [(&message, None::<&dyn Value>); FIELDS_MAX];
        let all = found.values.iter().map(|(field, value)| (field, value));
        for (place, (field, value)) in values
            .iter_mut()
            .zip([(&message, &text)].into_iter().chain(all))
        {
            *place = (field, Some(value));
        }
        let values = fields.value_set(&values);
        self.0
            .on_event(&Event::new(event.metadata(), &values), context);
    }
}

/// The fields of an event.
#[derive(Default)]
struct Found {
    message: String,
    /// As on stderr: ` name=value` for each field but the message.
    shown: String,
    values: Vec<(Field, String)>,
}

impl Found {
    fn add(&mut self, field: &Field, value: String, shown: &dyn Debug) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        // Writing to a text does not fail.
        let _ = write!(self.shown, " {}=", field.name());
        let _ = escape(&mut self.shown, shown);
        self.values.push((field.clone(), value));
    }
}

impl Visit for Found {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned(), &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Shown(value).to_string(), value);
    }
}

/// The value of a field, as a log shows it.
struct Shown<'a>(&'a dyn Debug);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(self.0, f)
    }
}

/// A path may hold any character, so control characters are escaped: they could end the line, or act
/// on a terminal.
pub fn escape(writer: &mut impl fmt::Write, value: &dyn Debug) -> fmt::Result {
    for c in Shown(value).to_string().chars() {
        if c.is_control() {
            write!(writer, "{}", c.escape_default())?;
        } else {
            writer.write_char(c)?;
        }
    }
    Ok(())
}
