//! The command that is run on events (`serve --on-event`).
//!
//! ```text
//!  event log ─► EventRunner (a thread) ─► this program again ─► the command
//! ```
//!
//! The log is the queue: it is bounded, a command that is too slow finds an event `lost` with
//! the number of those that it missed, and nothing waits for it.
//!
//! This program stands in between because other threads receive descriptors at any time, and
//! the libraries that receive them leave them open for programs that are executed: a fresh
//! process closes what it inherited, and then becomes the command.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};

use crate::control::events::{Event, EventLog};
use crate::supervisor;

/// The first argument with which this program becomes a command.
pub const BECOME: &str = "__become-event-command";
/// How long the end of the daemon, which has let go of everything then, waits for commands.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long to wait for the end of a command that was killed.
const KILLED: Duration = Duration::from_secs(1);
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
    /// The control socket, for the command's environment.
    pub control: Option<PathBuf>,
}

/// Runs the command for one event after the other.
#[derive(Debug)]
pub struct EventRunner {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl EventRunner {
    /// Begins with the first event of the log.
    ///
    /// # Errors
    /// The system has no resources for a thread.
    pub fn start(events: Arc<EventLog>, command: EventCommand) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("on-event".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = command.serve(&events, stopped.clone()) => {}
                        () = patience(stopped) => {}
                    }
                });
                // A program that cannot be killed is left behind.
                runtime.shutdown_background();
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

impl EventCommand {
    /// Runs the command for all events, until there are no more.
    async fn serve(&self, events: &EventLog, mut stopped: watch::Receiver<bool>) {
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
                if let Err(reason) = self.run(event).await {
                    let (seq, program) = (event.seq, self.program.display());
                    tracing::warn!(seq, %program, "the command on events failed: {reason}");
                }
                seen = event.seq;
            }
            if page.events.is_empty() {
                if stop {
                    return;
                }
                tokio::select! {
                    _ = newest.changed() => {}
                    _ = stopped.changed() => {}
                }
            }
        }
    }

    /// Runs the command for one event.
    async fn run(&self, event: &Event) -> Result<(), String> {
        let mut running = Running::start(self, event).map_err(|e| e.to_string())?;
        match timeout(self.limit, running.end()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("it ended with {status}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                running.kill();
                // One that does not end even now is left behind.
                let _ = timeout(KILLED, running.end()).await;
                let seconds = self.limit.as_secs();
                Err(format!("it did not end within {seconds} s and was killed"))
            }
        }
    }
}

/// A command that runs; dropping it ends it.
struct Running {
    child: Child,
    is_reaped: bool,
}

impl Running {
    fn start(command: &EventCommand, event: &Event) -> io::Result<Self> {
        let json = serde_json::to_value(event)?;
        let text = |name: &str| json.get(name).and_then(|value| value.as_str());
        let mut process = Command::new("/proc/self/exe");
        process
            .arg(BECOME)
            .arg(&command.program)
            .args(&command.arguments)
            .stdin(File::from(in_memory(&format!("{json}\n"))?))
            .stdout(io::stderr().as_fd().try_clone_to_owned()?)
            .stderr(Stdio::inherit())
            .env("SNAPBACK_EVENT", text("kind").unwrap_or_default())
            .env("SNAPBACK_EVENT_SEQ", event.seq.to_string())
            .env("SNAPBACK_EVENT_INSTANCE", &event.instance)
            .env("SNAPBACK_EVENT_TIME", &event.time)
            .env(
                "SNAPBACK_EVENT_SNAPSHOT",
                event.snapshot.as_deref().unwrap_or_default(),
            )
            .process_group(0);
        if let Some(control) = &command.control {
            process.env("SNAPBACK_CONTROL", control);
        }
        for variable in supervisor::VARIABLES {
            process.env_remove(variable);
        }
        Ok(Self {
            child: process.spawn()?,
            is_reaped: false,
        })
    }

    /// Waits for its end.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        let pid = Pid::from_child(&self.child);
        // Its number stays taken until it is reaped below, so that nothing else can be killed.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        spawn_blocking(move || retry_on_intr(|| waitid(WaitId::Pid(pid), options)))
            .await
            .map_err(io::Error::other)??;
        let status = self.child.wait()?;
        self.is_reaped = true;
        Ok(status)
    }

    /// Kills it, with all processes of its group.
    fn kill(&mut self) {
        if !self.is_reaped {
            // An error means that it has ended.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        // It may take its time to end; this must not.
        let _ = self.child.try_wait();
    }
}

/// A file in memory that holds `text`: a command that does not read it delays nothing.
fn in_memory(text: &str) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("event", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}
