//! `snapback top`: a live screen.

mod draw;
mod model;
mod rates;
#[cfg(test)]
mod screen_tests;
mod values;

use std::io::{self, IsTerminal};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::connect::Control;
use super::poll::{self, Answer, Want};
use super::terminal::Terminal;
use super::{CliError, Outcome, interrupt, watch};
use crate::control::utc;
use draw::{Around, draw};
use model::Model;

/// How often answers and signals are looked for. Keys are seen at once.
const TICK: Duration = Duration::from_millis(100);
/// The clock is redrawn so often.
const CLOCK: Duration = Duration::from_secs(1);

/// Watch a daemon live: its views and what their guests do, COW fill, a merge, the latest events.
///
/// The screen is drawn again with each status. A daemon that ends is waited for.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLE
  snapback top --control c.sock
  snapback top --every 0.5

KEYS
  q, Esc, Ctrl-C  quit

Colours are left out with NO_COLOR. Without a terminal use snapback status --watch.")]
pub struct Top {
    /// Seconds between two statuses, from 0.1 to 86400.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = watch::interval)]
    every: Duration,

    #[command(flatten)]
    control: Control,
}

impl Top {
    pub fn run(self) -> Result<Outcome, CliError> {
        let client = self.control.client()?;
        let Some(terminal) = Terminal::of_stdout() else {
            return Err(CliError::Usage(
                "top draws on a terminal, and stdout is none; use snapback status --watch"
                    .to_owned(),
            ));
        };
        interrupt::watch_all();
        // Before the screen is taken: an error is printed as for every verb.
        let answers = poll::start(client, self.every, Want::StatusAndEvents)?;
        let mut screen = Screen::open()?;
        let mut top = Live {
            model: Model::default(),
            every: self.every,
            terminal,
        };
        top.run(&mut screen, &answers)?;
        Ok(Outcome::Done)
    }
}

/// The terminal in raw mode with a screen of its own, until this is dropped or the program
/// panics.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        // It also has a panic give the terminal back.
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                let _ = ratatui::try_restore();
                Err(error)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.0.show_cursor();
        // The terminal may be gone.
        let _ = ratatui::try_restore();
    }
}

struct Live {
    model: Model,
    every: Duration,
    terminal: Terminal,
}

impl Live {
    /// Until a key or a signal ends it.
    fn run(&mut self, screen: &mut Screen, answers: &Receiver<Answer>) -> Result<(), CliError> {
        let mut drawn: Option<Instant> = None;
        while !interrupt::happened() {
            let mut is_new = self.take(answers);
            if is_hung_up(TICK)? {
                return Ok(());
            }
            if event::poll(Duration::ZERO)? {
                match event::read()? {
                    Event::Key(key) if quits(&key) => return Ok(()),
                    _ => is_new = true, // also a new size
                }
            }
            is_new |= self.take(answers);
            if is_new || drawn.is_none_or(|at| at.elapsed() >= CLOCK) {
                self.draw(screen)?;
                drawn = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Whether there were answers.
    fn take(&mut self, answers: &Receiver<Answer>) -> bool {
        let mut any = false;
        loop {
            match answers.try_recv() {
                Ok(answer) => {
                    self.model.take(answer);
                    any = true;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return any,
            }
        }
    }

    fn draw(&self, screen: &mut Screen) -> io::Result<()> {
        let clock = watch::clock(&utc::rfc3339(SystemTime::now()));
        let around = Around {
            clock: &clock,
            every: self.every.as_secs_f64(),
            terminal: self.terminal,
        };
        screen.0.draw(|frame| draw(frame, &self.model, &around))?;
        Ok(())
    }
}

/// Waits for input, at most for `time`, and tells whether the terminal is gone. The library
/// would read its end for ever, also where SIGHUP is ignored.
fn is_hung_up(time: Duration) -> io::Result<bool> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    // If stdin is something else, the library opens the terminal itself.
    let mut watched = [match stdin.is_terminal() {
        true => PollFd::new(&stdin, PollFlags::IN),
        false => PollFd::new(&stdout, PollFlags::empty()),
    }];
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match rustix::event::poll(&mut watched, Some(&time)) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    }
    let [seen] = watched.map(|fd| fd.revents());
    Ok(seen.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL))
}

/// In raw mode Ctrl-C is a key, not a signal.
fn quits(key: &KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PANICS: &str = "SNAPBACK_PANIC_ON_SCREEN";

    /// In tmux, this very test panics in its other half, below.
    #[test]
    fn a_panic_gives_the_terminal_back() {
        let folder = tempfile::tempdir().unwrap();
        let tmux = |arguments: &[&str]| {
            let mut command = Command::new("tmux");
            command.arg("-S").arg(folder.path().join("tmux"));
            command.args(["-f", "/dev/null"]).args(arguments);
            let output = command.env_remove("TMUX").output();
            let output = output.expect("tmux is missing: run qemu-tests/install.sh");
            String::from_utf8(output.stdout).unwrap()
        };
        let this = std::env::current_exe().unwrap();
        let line = format!(
            "{PANICS}=1 {} --exact cli::top::tests::the_half_that_panics --nocapture; stty -a; echo over",
            this.display()
        );
        tmux(&[
            "new-session",
            "-d",
            "-x",
            "150",
            "-y",
            "200",
            "env",
            "-u",
            "RUST_BACKTRACE",
            "sh",
        ]);
        tmux(&["send-keys", "-l", &line]);
        tmux(&["send-keys", "Enter"]);
        let start = Instant::now();
        let mut shown = String::new();
        while !shown.contains("\nover") && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(50));
            shown = tmux(&["capture-pane", "-p"]);
        }
        let taken = tmux(&["display-message", "-p", "#{alternate_on}"]);
        tmux(&["kill-server"]);
        assert_eq!(taken.trim(), "0", "{shown}");
        // What was drawn has disappeared with the screen.
        assert!(!shown.contains("drawn on the screen"), "{shown}");
        for part in ["a panic on purpose", " icanon iexten echo "] {
            assert!(shown.contains(part), "{part}\n{shown}");
        }
    }

    #[test]
    fn the_half_that_panics() {
        if std::env::var_os(PANICS).is_none() {
            return;
        }
        let mut screen = Screen::open().unwrap();
        screen.0.draw(|_| {}).unwrap();
        println!("drawn on the screen");
        // The terminal must be given back before anything is dropped.
        let _kept = std::mem::ManuallyDrop::new(screen);
        panic!("a panic on purpose");
    }
}
