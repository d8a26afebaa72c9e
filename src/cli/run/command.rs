//! The command of `snapback run`, from its start until nothing of it is left.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getppid, kill_process, kill_process_group,
    pidfd_open, set_parent_process_death_signal, waitid,
};

use super::disk::{Disk, program};
use super::message::Target;
use super::signals::Signals;
use super::verdict::{End, How};
use super::words;
use crate::cli::outcome::{CliError, Outcome};

/// From SIGTERM to SIGKILL, when the time is over.
const GRACE: Duration = Duration::from_secs(5);

/// Run a command that ends when its parent process does.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback run-command --parent 42 -- true    (only `snapback run` starts it)")]
pub struct RunCommand {
    /// The process that started this one.
    #[arg(long)]
    parent: i32,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl RunCommand {
    /// Becomes the command.
    ///
    /// # Errors
    /// With the exit status that `env` and `timeout` have then.
    pub fn run(self) -> Result<Outcome, CliError> {
        let refused = |status, reason| CliError::NotRun { status, reason };
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|e| refused(125, format!("cannot follow the parent process: {e}")))?;
        // It may have died before.
        if getppid().map(Pid::as_raw_pid) != Some(self.parent) {
            return Err(refused(125, "the parent process has ended".to_owned()));
        }
        let mut words = self.command.into_iter();
        let program = words.next().unwrap_or_default();
        let error = Command::new(&program).args(words).exec();
        let status = if error.kind() == ErrorKind::NotFound {
            127
        } else {
            126
        };
        let reason = format!("cannot run {}: {error}", program.display());
        Err(refused(status, reason))
    }
}

/// Runs the command on `disks`, until it has ended, and what is left of its process group is
/// killed.
///
/// # Errors
/// The command could not be started, or a disk failed; it has ended.
pub fn run(
    words: &[OsString],
    disks: &mut [Disk],
    timeout: Option<Duration>,
    signals: &Signals,
) -> Result<End, CliError> {
    let running = Running::start(words, disks)?;
    for disk in &mut *disks {
        disk.started(running.target);
    }
    let watched = running.watch(disks, timeout, signals);
    let ended = running.end();
    watched.and_then(|(timed_out, interrupted)| {
        let status =
            ended.map_err(|e| CliError::Failed(format!("cannot wait for the command: {e}")))?;
        let how = match (timed_out, status.code(), status.signal()) {
            (true, _, _) => How::TimedOut,
            (false, Some(code), _) => How::Exited(small(code)),
            (false, None, signal) => How::Killed(small(signal.unwrap_or_default())),
        };
        Ok(End { how, interrupted })
    })
}

/// Exit statuses and signals fit.
fn small(number: i32) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

struct Running {
    child: Child,
    pid: Pid,
    /// Readable when it has ended.
    ends: OwnedFd,
    target: Target,
}

impl Running {
    /// With a terminal as its input the command stays in the process group that may read from
    /// it; otherwise it gets one of its own, so that all that it starts can be found.
    fn start(words: &[OsString], disks: &[Disk]) -> Result<Self, CliError> {
        let failed = |e: std::io::Error| CliError::Failed(format!("cannot start the command: {e}"));
        let sockets: Vec<String> = disks
            .iter()
            .map(|disk| disk.socket().to_string_lossy().into_owned())
            .collect();
        let mut command = Command::new(program());
        command
            .args(["run-command", "--parent"])
            .arg(std::process::id().to_string())
            .arg("--")
            .args(words::expand(words, &sockets).map_err(CliError::Usage)?)
            .envs(environment(disks));
        let shares_group = std::io::stdin().is_terminal();
        if !shares_group {
            command.process_group(0);
        }
        let child = command.spawn().map_err(failed)?;
        let pid = Pid::from_child(&child);
        let ends = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        let id = pid.as_raw_pid();
        Ok(Self {
            child,
            pid,
            ends,
            target: if shares_group {
                Target::Process(id)
            } else {
                Target::Group(id)
            },
        })
    }

    /// What was to get it may have ended.
    fn kill(&self, signal: Signal) {
        let _ = match self.target {
            Target::Group(_) => kill_process_group(self.pid, signal),
            Target::Process(_) => kill_process(self.pid, signal),
        };
    }

    /// Waits for the end of the first process. Returns whether it took too long, and the first
    /// signal that asked to end it.
    fn watch(
        &self,
        disks: &[Disk],
        timeout: Option<Duration>,
        signals: &Signals,
    ) -> Result<(bool, Option<u8>), CliError> {
        let mut deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let (mut timed_out, mut interrupted) = (false, None);
        loop {
            for signal in signals.came() {
                if ![Signal::USR1, Signal::USR2].contains(&signal) {
                    interrupted.get_or_insert(small(signal.as_raw()));
                }
                // The terminal has sent these two to the whole group.
                let had = matches!(self.target, Target::Process(_))
                    && [Signal::INT, Signal::QUIT].contains(&signal);
                if !had {
                    self.kill(signal);
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.kill(if timed_out {
                    Signal::KILL
                } else {
                    Signal::TERM
                });
                deadline = (!timed_out).then(|| Instant::now() + GRACE);
                timed_out = true;
            }
            let mut fds = vec![
                PollFd::new(&self.ends, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            fds.extend(
                disks
                    .iter()
                    .map(|disk| PollFd::from_borrowed_fd(disk.ends(), PollFlags::empty())),
            );
            wait(&mut fds, deadline)?;
            let came: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if came.first() == Some(&true) {
                return Ok((timed_out, interrupted));
            }
            let mut ended = disks.iter().zip(came.iter().skip(2));
            if let Some((disk, _)) = ended.find(|(_, ended)| **ended) {
                return Err(CliError::Failed(format!(
                    "the daemon of image {} ended while the command ran, which was killed",
                    disk.image()
                )));
            }
        }
    }

    /// Kills what is left of the group, whose number nobody else can get before its first
    /// process is reaped.
    fn end(mut self) -> std::io::Result<ExitStatus> {
        let seen = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let has_ended = matches!(waitid(WaitId::Pid(self.pid), seen), Ok(Some(_)));
        if matches!(self.target, Target::Group(_)) || !has_ended {
            self.kill(Signal::KILL);
        }
        self.child.wait()
    }
}

fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<(), CliError> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = left.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(CliError::Failed(format!("cannot wait: {e}"))),
    }
}

/// Variables that name the disks: the first one also without a number.
fn environment(disks: &[Disk]) -> Vec<(String, OsString)> {
    let mut all = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        for (name, value) in [
            ("SNAPBACK_SOCKET", disk.socket().into_os_string()),
            ("SNAPBACK_CONTROL", disk.control().into_os_string()),
            ("SNAPBACK_IMAGE", disk.image().into()),
        ] {
            if index == 0 {
                all.push((name.to_owned(), value.clone()));
            }
            all.push((format!("{name}{}", index + 1), value));
        }
    }
    all
}
