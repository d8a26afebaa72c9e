//! A fork that is served by a process of its own, the keeper.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::message::{Message, Target};
use super::options::Image;
use super::signals::Signals;
use crate::cli::outcome::CliError;
use crate::control::Client;
use crate::control::api::State;
use crate::supervisor;

/// The program itself, under its name if it has not been replaced.
pub fn program() -> PathBuf {
    let named = std::env::current_exe().ok();
    named
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// A served fork. If it is dropped, its changes are.
pub struct Disk {
    image: String,
    keeper: Child,
    orders: Option<ChildStdin>,
    reports: ChildStdout,
    folder: PathBuf,
    /// A COW that nobody needs afterwards.
    scratch: Option<PathBuf>,
}

impl Disk {
    /// Returns when front ends can connect.
    pub fn serve(image: &Image, log: &[String], signals: &Signals) -> Result<Self, CliError> {
        let failed = |e: io::Error| CliError::Failed(format!("cannot start snapback itself: {e}"));
        let mut keeper = keeper(image, log).spawn().map_err(failed)?;
        let orders = keeper.stdin.take();
        let Some(reports) = keeper.stdout.take() else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let mut disk = Self {
            image: image.path.clone(),
            keeper,
            orders,
            reports,
            folder: PathBuf::new(),
            scratch: None,
        };
        disk.until_served(signals)?;
        if !image.persistent {
            let cow = image.cow.as_ref().map(PathBuf::from);
            let cow = cow.unwrap_or_else(|| disk.folder.join("cow"));
            // The keeper has it open; without a name nothing can be left of it.
            std::fs::remove_file(&cow)
                .map_err(|e| CliError::Failed(format!("cannot remove {}: {e}", cow.display())))?;
        } else {
            disk.scratch = image.cow.as_ref().map(PathBuf::from);
        }
        Ok(disk)
    }

    /// Reads what the keeper reports until it says that the control socket is there, which is
    /// the last thing.
    fn until_served(&mut self, signals: &Signals) -> Result<(), CliError> {
        let (mut text, mut bytes) = (String::new(), [0; 1024]);
        loop {
            for line in text.lines() {
                if let Some(folder) = line.strip_prefix("folder ") {
                    self.folder = PathBuf::from(folder);
                }
            }
            if text.lines().any(|line| line.starts_with("control at ")) && text.ends_with('\n') {
                return Ok(());
            }
            let mut fds = [
                PollFd::new(&self.reports, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(CliError::Failed(format!("cannot wait: {e}"))),
            }
            let [reports, rung] = fds.map(|fd| !fd.revents().is_empty());
            if rung && let Some(signal) = signals.came().first() {
                return Err(CliError::Failed(format!(
                    "interrupted by signal {} before the command began",
                    signal.as_raw()
                )));
            }
            if reports {
                match self.reports.read(&mut bytes) {
                    Ok(0) | Err(_) => return Err(self.not_served()),
                    Ok(n) => {
                        let read = bytes.get(..n).unwrap_or_default();
                        text.push_str(&String::from_utf8_lossy(read));
                    }
                }
            }
        }
    }

    fn not_served(&self) -> CliError {
        CliError::Failed(format!(
            "no fork of image {} is served, for the reason above",
            self.image
        ))
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("disk.sock")
    }

    pub fn control(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Whether it has everything that was written to it.
    pub fn is_whole(&self) -> bool {
        let client = Client::new(&self.control()).ok();
        let status = client.and_then(|client| client.status().ok());
        let snapshots = status.map(|status| status.snapshots);
        // The command may have removed the snapshot.
        let states = snapshots.map(|all| all.into_iter().map(|one| one.state));
        states.is_some_and(|states| states.eq([State::Active]))
    }

    pub fn image(&self) -> &str {
        &self.image
    }

    /// Becomes readable if the keeper ends.
    pub fn ends(&self) -> BorrowedFd<'_> {
        self.reports.as_fd()
    }

    /// Says what the keeper has to kill if this process dies.
    pub fn started(&mut self, target: Target) {
        self.say(Message::Started(target));
    }

    /// If the keeper has died there is nobody to tell, which is noticed elsewhere.
    fn say(&mut self, message: Message) {
        if let Some(orders) = &mut self.orders {
            let _ = writeln!(orders, "{message}");
        }
    }

    /// Makes the changes durable, and leaves them in `cow`.
    pub fn keep_changes(mut self, cow: &str) -> Result<(), CliError> {
        self.scratch = None;
        self.say(Message::Keep);
        match self.keeper.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(CliError::Failed(format!(
                "the daemon of image {} ended with {status}; the latest changes may be missing in {cow}",
                self.image
            ))),
            Err(e) => Err(CliError::Failed(format!("cannot wait for the daemon: {e}"))),
        }
    }

    pub fn drop_changes(self) {
        drop(self);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.say(Message::Drop);
        self.orders = None;
        let _ = self.keeper.wait();
        // The keeper has done this, unless it was killed.
        if self.folder != Path::new("") {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
        if let Some(cow) = &self.scratch {
            let _ = std::fs::remove_file(cow);
        }
    }
}

/// In a process group of its own, which Ctrl-C does not reach.
fn keeper(image: &Image, log: &[String]) -> Command {
    let mut command = Command::new(program());
    command
        .arg("run-disk")
        .arg("--image")
        .arg(&image.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0);
    if let Some(cow) = &image.cow {
        command.arg("--cow").arg(cow);
    }
    for (option, value) in [("--size", image.size), ("--chunk-size", image.chunk_size)] {
        if let Some(value) = value {
            command.arg(option).arg(value.to_string());
        }
    }
    for (option, given) in [
        ("--persistent", image.persistent),
        ("--exclusive", image.exclusive),
    ] {
        if given {
            command.arg(option);
        }
    }
    command.args(log);
    for variable in supervisor::VARIABLES {
        command.env_remove(variable);
    }
    command
}
