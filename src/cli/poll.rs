//! A thread that asks a daemon again and again, so that whoever shows the answers never waits
//! for it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::CliError;
use crate::control::api::VolumeStatus;
use crate::control::{Client, ClientError};

/// A daemon that does not answer for so long is shown as one that does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the daemon said.
#[derive(Debug)]
pub struct Answer {
    /// When it was asked.
    pub at: Instant,
    pub result: Result<Said, ClientError>,
}

#[derive(Debug)]
pub struct Said {
    pub status: VolumeStatus,
    /// Those since the last answer; all that are kept after the start of another daemon.
    pub events: Vec<Value>,
}

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Status,
    StatusAndEvents,
}

/// Asks `client` every `every` from now on. The thread ends when the receiver is gone.
///
/// # Errors
/// The first question was not answered: there is nothing to watch.
pub fn start(client: Client, every: Duration, want: Want) -> Result<Receiver<Answer>, CliError> {
    let mut poll = Poll {
        client: client.with_patience(PATIENCE),
        want,
        seen: 0,
        instance: None,
    };
    let at = Instant::now();
    let first = Answer {
        at,
        result: Ok(poll.ask()?),
    };
    let (tell, told) = sync_channel(1);
    let run = move || poll.run(first, every, &tell);
    std::thread::Builder::new()
        .name("poll".to_owned())
        .spawn(run)?;
    Ok(told)
}

struct Poll {
    client: Client,
    want: Want,
    /// The newest event that was received, and of which daemon.
    seen: u64,
    instance: Option<String>,
}

impl Poll {
    fn run(&mut self, first: Answer, every: Duration, tell: &SyncSender<Answer>) {
        let mut answer = first;
        loop {
            let next = answer.at + every;
            if tell.send(answer).is_err() {
                return;
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let at = Instant::now();
            answer = Answer {
                at,
                result: self.ask(),
            };
        }
    }

    fn ask(&mut self) -> Result<Said, ClientError> {
        let status = self.client.status()?;
        let mut events = Vec::new();
        if self.want == Want::StatusAndEvents {
            let page = self.client.events(self.seen, self.instance.as_deref())?;
            (self.seen, self.instance) = (page.newest, Some(page.instance));
            events = page.events;
        }
        Ok(Said { status, events })
    }
}
