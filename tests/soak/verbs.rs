//! Verbs of the command line: how long each took, and killed ones.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::volume::Volume;

/// No verb may take as long: it hangs.
const HANG: Duration = Duration::from_secs(60);
/// A verb that takes longer is reported.
const LONG: Duration = Duration::from_secs(1);

/// What became of a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Refused,
    /// It was killed, or the daemon was: it may have happened or not.
    Unknown,
}

#[derive(Default)]
pub struct Verbs {
    pub count: u64,
    pub killed: u64,
    /// Of those that were not killed, the longest first.
    slowest: Vec<(Duration, String)>,
    over_a_second: u64,
}

impl Verbs {
    pub fn start(volume: &Volume, arguments: &[&str]) -> Child {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
        command
            .current_dir(volume.path(""))
            .env("XDG_RUNTIME_DIR", volume.path(""))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// A verb that is let run; its answer.
    pub fn run(&mut self, volume: &Volume, arguments: &[&str]) -> Output {
        let (what, start) = (arguments.join(" "), Instant::now());
        let mut child = Self::start(volume, arguments);
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > HANG {
                let _ = child.kill();
                panic!("no answer for {HANG:?}: {what}");
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        let took = start.elapsed();
        self.count += 1;
        self.over_a_second += u64::from(took > LONG);
        self.slowest.push((took, what));
        self.slowest
            .sort_by_key(|(took, _)| std::cmp::Reverse(*took));
        self.slowest.truncate(5);
        child.wait_with_output().unwrap()
    }

    /// As [`Self::run`] with the daemon's socket.
    pub fn ask(&mut self, volume: &Volume, arguments: &[&str]) -> (Outcome, String) {
        let output = self.run(volume, &[arguments, &["--control", "c.sock"]].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
        match output.status.success() {
            true => (Outcome::Done, text),
            false => (Outcome::Refused, text),
        }
    }

    pub fn must(&mut self, volume: &Volume, arguments: &[&str]) {
        let (outcome, text) = self.ask(volume, arguments);
        assert_eq!(outcome, Outcome::Done, "{arguments:?}: {text}");
    }

    /// Kills the client after `delay`; the daemon may have received the request or not.
    pub fn kill(&mut self, volume: &Volume, arguments: &[&str], delay: Duration) -> Outcome {
        let mut child = Self::start(volume, &[arguments, &["--control", "c.sock"]].concat());
        std::thread::sleep(delay);
        let _ = child.kill();
        let status = child.wait().unwrap();
        self.killed += 1;
        // The daemon carries out the changes that it has read one after the other, so that this
        // one, which it refuses, is answered after that one. A status would not wait for it.
        let _ = volume.client().detach("/no/such.sock");
        match status.success() {
            true => Outcome::Done,
            false => Outcome::Unknown,
        }
    }
}

impl std::fmt::Display for Verbs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            count,
            killed,
            over_a_second,
            ..
        } = self;
        write!(
            f,
            "{count} verbs, {killed} killed, {over_a_second} over a second; the slowest:"
        )?;
        for (took, what) in &self.slowest {
            write!(f, "\n  {took:>8.1?} {what}")?;
        }
        Ok(())
    }
}
