//! Guests under load on the views of one volume, whose back end is stopped, killed
//! and started again.

use std::os::fd::BorrowedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::common::random::Random;
use super::faults::{CONNECTION, Faults, SLOW};
use super::guest::Guest;
use super::server::Server;

/// The features that a firmware's driver may know: it comes before the system's.
const FIRMWARE: u64 = 1 << 32 | 1 << 30;

/// A stop that takes longer is taken for one that hangs.
const STOP: Duration = Duration::from_secs(60);

pub struct World {
    pub server: Server,
    pub guests: Vec<Guest>,
    pub random: Random,
    pub faults: Faults,
    pub terms: u64,
    pub kills: u64,
    pub longest_stop: Duration,
    /// A verb under way, of the command line.
    verb: Option<Child>,
}

impl World {
    pub fn new(server: Server, guests: Vec<Guest>, random: Random) -> Self {
        Self {
            server,
            guests,
            random,
            faults: Faults::default(),
            terms: 0,
            kills: 0,
            longest_stop: Duration::ZERO,
            verb: None,
        }
    }

    /// Lets the guests go on until `done` or for that long.
    pub fn run(&mut self, most: Duration, submit: bool, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while start.elapsed() < most && !done(self) {
            self.turn(submit);
        }
    }

    /// A look at each guest; sleeps for a moment if none has anything to do.
    fn turn(&mut self, submit: bool) {
        let mut progress = false;
        for guest in &mut self.guests {
            guest.look();
            progress |= guest.pump(submit);
        }
        if progress {
            return;
        }
        let all: Vec<_> = self.guests.iter().flat_map(Guest::descriptors).collect();
        // SAFETY: they live as long as the guests.
        let all: Vec<_> = all
            .iter()
            .map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) })
            .collect();
        let mut fds: Vec<_> = all
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: 500_000,
        };
        poll(&mut fds, Some(&pause)).unwrap();
    }

    /// Starts a verb of the command line beside everything else.
    pub fn begin_verb(&mut self, arguments: &[&str]) {
        let child = self.spawn(arguments, Stdio::null());
        if let Some(mut earlier) = self.verb.replace(child) {
            earlier.wait().unwrap();
        }
    }

    /// Runs a verb to its end, while the guests go on. It must succeed.
    pub fn verb(&mut self, arguments: &[&str]) {
        let mut child = self.spawn(arguments, Stdio::piped());
        while child.try_wait().unwrap().is_none() {
            self.turn(true);
        }
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn spawn(&self, arguments: &[&str], error: Stdio) -> Child {
        Command::new(env!("CARGO_BIN_EXE_snapback"))
            .current_dir(self.server.volume.path(""))
            .env("XDG_RUNTIME_DIR", self.server.volume.path(""))
            .args(arguments)
            .args(["--control", "c.sock"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(error)
            .spawn()
            .unwrap()
    }

    /// Ends the process by a signal, at once, while the guests go on.
    pub fn end(&mut self, signal: Signal) {
        self.end_while(signal, true);
    }

    fn end_while(&mut self, signal: Signal, submit: bool) {
        let begin = Instant::now();
        self.server.signal(signal);
        let status = loop {
            if let Some(status) = self.server.ended() {
                break status;
            }
            assert!(begin.elapsed() < STOP, "the daemon does not end");
            self.turn(submit);
        };
        self.is_gone();
        if signal == Signal::TERM {
            self.terms += 1;
            self.longest_stop = self.longest_stop.max(begin.elapsed());
            if !status.success() {
                self.faults.add(SLOW, 1, || status.to_string());
            }
        } else {
            self.kills += 1;
        }
        if let Some(mut verb) = self.verb.take() {
            verb.wait().unwrap();
        }
    }

    fn is_gone(&mut self) {
        for guest in &mut self.guests {
            guest.look();
            assert!(
                guest.lost(),
                "{}: the connection outlives the process",
                guest.name
            );
            guest.back_end_is_gone();
        }
    }

    /// Starts the process and connects all guests. Now and then it is killed in the
    /// middle of that, and started again.
    pub fn start(&mut self) {
        while !self.try_start() {}
    }

    fn try_start(&mut self) -> bool {
        self.server.start(&[]);
        let mut left = match self.random.below(6) {
            0 => self.random.below(20 * self.guests.len() as u64),
            _ => u64::MAX,
        };
        let server = &mut self.server;
        for guest in &mut self.guests {
            let result = guest.connect(|| {
                left = left.saturating_sub(1);
                if left == 0 {
                    server.signal(Signal::KILL);
                }
            });
            if let Err(what) = result {
                if left > 0 {
                    let name = &guest.name;
                    self.faults.add(CONNECTION, 1, || format!("{name}: {what}"));
                }
                break;
            }
        }
        if left > 0 {
            return true;
        }
        while self.server.ended().is_none() {
            std::thread::sleep(Duration::from_micros(100));
        }
        self.kills += 1;
        self.is_gone();
        false
    }

    pub fn restart(&mut self, signal: Signal) {
        self.end(signal);
        self.start();
    }

    /// Resets the machine of a guest that has nothing under way: its firmware's driver
    /// comes, then the system's. The process may be killed meanwhile.
    pub fn reset(&mut self, index: usize) {
        let mut left = match self.random.below(3) {
            0 => u64::MAX,
            _ => self.random.below(30),
        };
        let (server, guest) = (&mut self.server, &mut self.guests[index]);
        let mut before = || {
            left = left.saturating_sub(1);
            if left == 0 {
                server.signal(Signal::KILL);
            }
        };
        let result = guest.reset(FIRMWARE, &mut before);
        let result = result.and_then(|()| guest.reset(u64::MAX, &mut before));
        match result {
            Ok(()) if left > 0 => return,
            Err(what) if left > 0 => {
                let name = &guest.name;
                self.faults.add(CONNECTION, 1, || format!("{name}: {what}"));
            }
            _ => {}
        }
        // The new driver does nothing before its content is known.
        self.end_while(Signal::KILL, false);
        self.start();
    }

    pub fn spoilt(&self) -> bool {
        self.faults.any() || self.guests.iter().any(|guest| guest.faults.any())
    }

    /// Lets everything under way end; false if that takes too long.
    pub fn drain(&mut self) -> bool {
        let patience = if self.spoilt() { 2 } else { 120 };
        self.run(Duration::from_secs(patience), false, |world| {
            world.guests.iter().all(|guest| guest.under_way() == 0)
        });
        self.guests.iter().all(|guest| guest.under_way() == 0)
    }

    /// Reads all disks, and compares.
    pub fn sweep(&mut self) {
        if !self.drain() {
            return;
        }
        for guest in &mut self.guests {
            guest.check_free_pages();
            guest.disk.sweep = Some(0);
        }
        self.run(Duration::from_secs(120), true, |world| {
            world.guests.iter().all(|guest| {
                guest.disk.sweep == Some(guest.disk.shadow.len() as u64) && guest.under_way() == 0
            })
        });
        for guest in &mut self.guests {
            guest.disk.sweep = None;
        }
    }

    pub fn completed(&self) -> u64 {
        self.guests.iter().map(|guest| guest.completed).sum()
    }
}
