//! The back end under test: snapback, or qemu-storage-daemon for comparison.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::common::volume::Volume;

pub struct Server {
    pub volume: Volume,
    /// Of each start but the first, which has some more.
    arguments: Vec<String>,
    foreign: bool,
    other: Option<Child>,
}

/// Whether to look at qemu-storage-daemon instead.
pub fn compares() -> bool {
    std::env::var_os("SNAPBACK_COMPARE").is_some()
}

impl Server {
    pub fn new(sectors: u64, arguments: &[&str]) -> Self {
        Self {
            volume: Volume::new(sectors),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            foreign: compares(),
            other: None,
        }
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.volume.path(&format!("{name}.sock"))
    }

    /// Starts it and waits until it can be reached. `more`: arguments of this start.
    pub fn start(&mut self, more: &[&str]) {
        if self.foreign {
            let socket = self.socket("origin");
            // It does not replace its own socket's file after a SIGKILL.
            let _ = fs::remove_file(&socket);
            let image = self.volume.path("disk.img");
            let log = self.volume.path("daemon.log");
            let log = File::options().create(true).append(true).open(log);
            let child = Command::new("qemu-storage-daemon")
                .arg("--blockdev")
                .arg(format!(
                    "driver=file,node-name=f,filename={}",
                    image.display()
                ))
                .arg("--export")
                .arg(format!(
                    "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues=2,logical-block-size=512",
                    socket.display()
                ))
                .stdin(Stdio::null())
                .stderr(log.unwrap())
                .spawn()
                .expect("qemu-storage-daemon starts (qemu-tests/install.sh installs it)");
            self.other = Some(child);
        } else {
            let all: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
            self.volume.start(&[&all[..], more].concat());
        }
    }

    fn child(&mut self) -> &mut Child {
        match &mut self.other {
            Some(child) => child,
            None => self.volume.child(),
        }
    }

    pub fn signal(&mut self, signal: Signal) {
        let pid = Pid::from_child(self.child());
        kill_process(pid, signal).unwrap();
    }

    /// The process's end, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child().try_wait().unwrap()?;
        if self.other.take().is_none() {
            self.volume.forget();
        }
        Some(status)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.other.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
