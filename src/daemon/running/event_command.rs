//! The command that is run on events (`serve --on-event`): the daemon's side.
//!
//! ```text
//!  event log ─► EventRunner (a thread) ─► launcher (a process) ─► the command
//! ```
//!
//! The log is the queue: it is bounded, a command that is too slow finds an event `lost` with
//! the number of those that it missed, and nothing waits for it.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::lines::Lines;
use crate::control::events::{Event, EventLog};
use crate::sandbox::{self, Kind};
use crate::supervisor;

/// The first argument with which this program becomes the launcher.
pub const LAUNCH: &str = "__launch-event-commands";
/// What the launcher is told if the command that runs has to be killed.
pub const STOP: &str = "stop";
/// What the launcher answers if the command has ended well; otherwise the reason.
pub const OK: &str = "ok";
/// How long the end of the daemon, which has let go of everything then, waits for commands.
const FAREWELL: Duration = Duration::from_secs(1);
/// The shortest time between two commands for events that guests cause without limit.
const GUEST_PAUSE: Duration = Duration::from_millis(100);
/// Events that are read from the log at a time.
const BATCH: usize = 16;

/// What is run on events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventCommand {
    /// An absolute path.
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// How long it may run for one event.
    pub limit: Duration,
}

/// The process that runs the commands, with the rights that this process has when it is started.
/// It ends when this is dropped.
#[derive(Debug)]
pub struct Launcher(UnixStream);

impl Launcher {
    /// # Errors
    /// This program cannot be started again.
    pub fn start(command: &EventCommand) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut process = Command::new("/proc/self/exe");
        process
            .arg(LAUNCH)
            .arg(command.limit.as_secs().to_string())
            .arg(&command.program)
            .args(&command.arguments)
            .stdin(std::os::fd::OwnedFd::from(theirs))
            .stdout(io::stderr().as_fd().try_clone_to_owned()?)
            .stderr(Stdio::inherit())
            // A key that ends the daemon must leave it to hand the last events on.
            .process_group(0);
        for variable in supervisor::VARIABLES {
            process.env_remove(variable);
        }
        process.spawn()?;
        Ok(Self(ours))
    }
}

/// Runs the command for one event after the other.
#[derive(Debug)]
pub struct EventRunner {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl EventRunner {
    /// Begins with the first event of the log. `control`: the socket of the daemon, for the
    /// environment of the command; it is known only after the launcher was started.
    ///
    /// # Errors
    /// The system has no resources for a thread.
    pub fn start(
        events: Arc<EventLog>,
        launcher: Launcher,
        control: Option<&Path>,
    ) -> io::Result<Self> {
        let control = serde_json::to_string(&control)?;
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut last_word = launcher.0.try_clone()?;
        let thread = std::thread::Builder::new()
            .name("on-event".to_owned())
            .spawn(move || {
                sandbox::thread(Kind::Events);
                let served = runtime.block_on(async {
                    tokio::select! {
                        served = serve(launcher, &control, &events, stopped.clone()) => served,
                        () = patience(stopped) => Ok(()),
                    }
                });
                if let Err(error) = served {
                    tracing::error!(%error, "no more commands are run on events");
                }
                // It may have ended.
                let _ = writeln!(last_word, "{STOP}");
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for EventRunner {
    /// Hands the last events on, for no longer than a second.
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that runs the command on events panicked");
        }
    }
}

/// Returns when the daemon ends and does not wait any longer.
async fn patience(mut stopped: watch::Receiver<bool>) {
    // An error means that the daemon has ended.
    let _ = stopped.wait_for(|stopped| *stopped).await;
    tokio::time::sleep(FAREWELL).await;
}

/// Has the command run for all events, until there are no more.
async fn serve(
    launcher: Launcher,
    control: &str,
    events: &EventLog,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut lines = Lines::new(launcher.0)?;
    lines.send(control).await?;
    let mut newest = events.watch();
    let mut seen = 0;
    let mut guests_next = Instant::now();
    loop {
        // Both before the log is read, so that no event is missed.
        newest.mark_unchanged();
        let stop = *stopped.borrow_and_update();
        let page = events.after(seen, BATCH);
        for event in &page.events {
            if event.kind.is_caused_by_guest() {
                sleep_until(guests_next).await;
                guests_next = Instant::now() + GUEST_PAUSE;
            }
            let answer = ask(&mut lines, event).await?;
            if answer != OK {
                tracing::warn!(
                    seq = event.seq,
                    "the command on events failed: {}",
                    answer.escape_debug()
                );
            }
            seen = event.seq;
        }
        if page.events.is_empty() {
            if stop {
                return Ok(());
            }
            tokio::select! {
                _ = newest.changed() => {}
                _ = stopped.changed() => {}
            }
        }
    }
}

/// Has the command run for one event.
async fn ask(lines: &mut Lines, event: &Event) -> io::Result<String> {
    lines.send(&serde_json::to_string(event)?).await?;
    let answer = lines.next().await?;
    answer.ok_or_else(|| io::Error::other("the process that runs them has ended"))
}
