//! The command that is run on events (`serve --on-event`): the process that runs it.
//!
//! The daemon gives up most of its rights before it serves anybody, and a command must not. So
//! the daemon starts this program again before: the launcher keeps the rights, never sees a guest
//! or a client, and takes from the daemon only the events. What is run was fixed at its start.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::pin::pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::event_command::{OK, STOP};
use super::lines::Lines;

/// How long to wait for the end of a command that was killed.
const KILLED: Duration = Duration::from_secs(1);

/// Runs the command in `arguments`, which begin with the number of seconds that it may take, for
/// each event that comes over the socket at standard input. No other descriptor is open.
///
/// # Errors
/// The arguments or the socket are not those that a daemon gives.
pub fn launch(arguments: &[OsString]) -> io::Result<()> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let (limit, command) = arguments.split_first().ok_or_else(wrong)?;
    let (program, arguments) = command.split_first().ok_or_else(wrong)?;
    let limit = limit.to_str().and_then(|limit| limit.parse().ok());
    let launcher = Launch {
        program,
        arguments,
        limit: Duration::from_secs(limit.ok_or_else(wrong)?),
    };
    let daemon = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    daemon.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(async { launcher.serve(Lines::new(daemon)?).await });
    // A program that cannot be killed is left behind.
    runtime.shutdown_background();
    served
}

struct Launch<'a> {
    program: &'a OsStr,
    arguments: &'a [OsString],
    limit: Duration,
}

impl Launch<'_> {
    /// Until the daemon says so, or has ended.
    async fn serve(&self, mut daemon: Lines) -> io::Result<()> {
        let Some(control) = daemon.next().await? else {
            return Ok(());
        };
        let control: Option<String> = serde_json::from_str(&control)?;
        while let Some(event) = daemon.next().await? {
            if event == STOP {
                return Ok(());
            }
            let mut ended = pin!(self.run(&event, control.as_deref()));
            let result = tokio::select! {
                result = &mut ended => result,
                word = daemon.next() => match word? {
                    // Dropping the command kills it.
                    Some(_) => return Ok(()),
                    // The daemon was killed: nobody wants the command to be.
                    None => {
                        let _ = ended.await;
                        return Ok(());
                    }
                },
            };
            let answer = match result {
                Ok(()) => OK.to_owned(),
                Err(reason) => reason.replace('\n', " "),
            };
            daemon.send(&answer).await?;
        }
        Ok(())
    }

    /// Runs the command for one event.
    async fn run(&self, event: &str, control: Option<&str>) -> Result<(), String> {
        let cannot = |e: io::Error| format!("cannot run {}: {e}", self.program.display());
        let mut running = self.start(event, control).map_err(cannot)?;
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

    fn start(&self, event: &str, control: Option<&str>) -> io::Result<Running> {
        let json: serde_json::Value = serde_json::from_str(event)?;
        let text = |name: &str| match json.get(name) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let mut process = Command::new(self.program);
        process
            .args(self.arguments)
            .stdin(File::from(in_memory(&format!("{event}\n"))?))
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit())
            .process_group(0);
        if let Some(control) = control {
            process.env("SNAPBACK_CONTROL", control);
        }
        for (variable, field) in [
            ("SNAPBACK_EVENT", "kind"),
            ("SNAPBACK_EVENT_SEQ", "seq"),
            ("SNAPBACK_EVENT_INSTANCE", "instance"),
            ("SNAPBACK_EVENT_TIME", "time"),
            ("SNAPBACK_EVENT_SNAPSHOT", "snapshot"),
        ] {
            process.env(variable, text(field));
        }
        Ok(Running {
            child: process.spawn()?,
            is_reaped: false,
        })
    }
}

/// A command that runs; dropping it ends it.
struct Running {
    child: Child,
    is_reaped: bool,
}

impl Running {
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
