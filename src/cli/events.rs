//! `snapback events`

use std::io::Write;
use std::process::exit;
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, poll};
use serde_json::Value;

use super::connect::Control;
use super::{CliError, Outcome, output};
use crate::control::{Client, ClientError, narrate, render};

/// How often the next daemon is looked for.
const RECONNECT: Duration = Duration::from_millis(250);

/// Show what happened to the disk and its snapshots: taken, filling up, invalid, merged, …
///
/// The daemon keeps the newest 1024 events since its start. Each has a number; where events are
/// missing, a line says how many. Each event is one line, which is written immediately.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback events --control c.sock
  snapback events --follow | while read -r line; do logger -t snapback \"$line\"; done
  snapback events --follow --json |
    jq --unbuffered -r 'select(.kind == \"usage-threshold\") | \"\\(.snapshot) \\(.percent)%\"'

EXIT STATUS
  0  all events are printed; with --follow: the output was closed; with --no-reconnect: the daemon
     stopped cleanly
  2  wrong usage; no daemon; with --no-reconnect: the daemon ended without a clean stop")]
pub struct Events {
    /// Continue with new events, until interrupted. When the daemon ends, this is reported on
    /// stderr, and the next daemon at the socket is waited for.
    #[arg(long)]
    follow: bool,

    /// End when the daemon ends.
    #[arg(long, requires = "follow")]
    no_reconnect: bool,

    /// Only events after this number; all events if the number is not one of this daemon's.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    since: u64,

    /// Print one JSON object per line, whose format is stable.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    control: Control,
}

impl Events {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        if !self.follow {
            for event in client.events(self.since, None)?.events {
                if !output::line_unless_closed(&self.shown(&event))? {
                    break;
                }
            }
            return Ok(Outcome::Done);
        }
        end_with_the_reader();
        self.follow(&client)
    }

    fn follow(&self, client: &Client) -> Result<Outcome, CliError> {
        // The number belongs to this daemon, even if it sends no event before it ends.
        let instance = match self.since {
            0 => None,
            since => Some(client.events(since, None)?.instance),
        };
        let mut at = Place {
            seq: self.since,
            instance,
        };
        // A daemon that is not there at first is an error.
        let mut was_there = false;
        loop {
            let before = at.seq;
            let mut printed = Ok(true);
            let ended = client.follow_events(before, at.instance.clone().as_deref(), |event| {
                printed = output::line_unless_closed(&self.shown(&event));
                at.note(&event);
                matches!(printed, Ok(true))
            });
            if !printed? {
                return Ok(Outcome::Done);
            }
            was_there |= matches!(ended, Ok(_) | Err(ClientError::Lost { .. }));
            match ended {
                Ok(_) if self.no_reconnect => return Ok(Outcome::Done),
                Ok(_) => self.reconnect(client, &mut at, "the daemon stopped")?,
                // The daemon disconnects a client that reads too slowly, and still runs.
                Err(ClientError::Lost { .. }) if at.seq != before && at.is_served(client) => {}
                Err(ClientError::Lost { socket, .. }) if self.no_reconnect => {
                    return Err(CliError::Failed(format!(
                        "the daemon at {} ended without a clean stop; start it again: it continues with what is recorded",
                        socket.display()
                    )));
                }
                Err(ClientError::Lost { .. }) => self.reconnect(
                    client,
                    &mut at,
                    "the daemon ended without a clean stop, or the connection was lost, and its \
                     last events may be missing",
                )?,
                // It has ended again since it was seen.
                Err(ClientError::NoDaemon { .. }) if was_there && !self.no_reconnect => {
                    self.reconnect(client, &mut at, "the daemon stopped")?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the next daemon, whose events are all news.
    fn reconnect(&self, client: &Client, at: &mut Place, what: &str) -> Result<(), CliError> {
        let socket = client.socket().display();
        tell(&format!(
            "{what}: waiting for the next one at {socket}, after event {}",
            at.seq
        ));
        loop {
            match client.events(at.seq, at.instance.as_deref()) {
                Ok(page) if at.instance.as_ref() == Some(&page.instance) => {
                    tell("connected again to the same daemon");
                    return Ok(());
                }
                Ok(page) => {
                    let id = render::printable(&page.instance);
                    tell(&format!(
                        "connected to another daemon, instance {id}; its events count from 1"
                    ));
                    *at = Place {
                        seq: 0,
                        instance: Some(page.instance),
                    };
                    return Ok(());
                }
                Err(
                    ClientError::NoDaemon { .. }
                    | ClientError::Lost { .. }
                    | ClientError::Slow { .. }
                    | ClientError::Unreachable { .. },
                ) => std::thread::sleep(RECONNECT),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn shown(&self, event: &Value) -> String {
        if self.json {
            event.to_string()
        } else {
            narrate::line(event)
        }
    }
}

/// Tells on stderr what happened to the daemon. Nobody may be there to read it.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "snapback: {text}");
}

/// The last event that was printed.
#[derive(Debug)]
struct Place {
    seq: u64,
    instance: Option<String>,
}

impl Place {
    fn note(&mut self, event: &Value) {
        if let Some(seq) = event.get("seq").and_then(Value::as_u64) {
            self.seq = seq;
        }
        let instance = event.get("instance").and_then(Value::as_str);
        self.instance = instance.map(str::to_owned);
    }

    /// The daemon that sent the event still answers.
    fn is_served(&self, client: &Client) -> bool {
        let page = client.events(self.seq, self.instance.as_deref());
        page.is_ok_and(|page| Some(page.instance) == self.instance)
    }
}

/// Ends the process when the reader of its output closes it (`| head`). Otherwise that
/// would be noticed only with the next event.
fn end_with_the_reader() {
    // If there is no thread, it is noticed with the next event.
    let _ = std::thread::Builder::new()
        .name("reader".to_owned())
        .spawn(|| {
            let stdout = std::io::stdout();
            // No events are requested, so poll returns only for errors and hang-ups.
            let mut fds = [PollFd::new(&stdout, rustix::event::PollFlags::empty())];
            while poll(&mut fds, None).is_err() {}
            exit(0)
        });
}
