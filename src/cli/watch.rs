//! `snapback status --watch`: the status again and again.

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, SystemTime};

use super::poll::{self, Said, Want};
use super::table::{cut_end, wrap};
use super::terminal::Terminal;
use super::{CliError, interrupt, output};
use crate::control::api::VolumeStatus;
use crate::control::{Client, render, utc};

/// How often an interruption is looked for.
const TICK: Duration = Duration::from_millis(100);

/// How a status is shown.
pub trait Show {
    /// As text; on a terminal, if there is one.
    fn text(&self, status: &VolumeStatus, terminal: Option<&Terminal>) -> String;
    /// As one line of JSON; `None` if text is wanted.
    fn json(&self, status: &VolumeStatus) -> Option<String>;
}

/// Shows the status every `every` until it is interrupted or nobody reads any more. A daemon
/// that ends is waited for.
///
/// # Errors
/// There is no daemon at the start, or the output fails.
pub fn run(client: Client, every: Duration, show: &dyn Show) -> Result<(), CliError> {
    interrupt::watch_all();
    let socket = client.socket().display().to_string();
    let answers = poll::start(client, every, Want::Status)?;
    let mut watch = Watch {
        show,
        every,
        socket,
        screen: Screen::default(),
        last: String::new(),
        answers: true,
    };
    while !interrupt::happened() {
        let answer = match answers.recv_timeout(TICK) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let goes_on = match answer.result {
            Ok(said) => watch.show(&said)?,
            Err(error) => watch.lost(&error.to_string())?,
        };
        if !goes_on {
            break;
        }
    }
    Ok(())
}

struct Watch<'a> {
    show: &'a dyn Show,
    every: Duration,
    socket: String,
    screen: Screen,
    /// The last status as it was shown on the terminal.
    last: String,
    /// The daemon answered the last question.
    answers: bool,
}

impl Watch<'_> {
    /// False if nobody reads any more.
    fn show(&mut self, said: &Said) -> Result<bool, CliError> {
        if !std::mem::replace(&mut self.answers, true) && Terminal::of_stdout().is_none() {
            eprintln!("snapback: the daemon at {} answers again", self.socket);
        }
        if let Some(line) = self.show.json(&said.status) {
            return output::line_unless_closed(&line);
        }
        let now = utc::rfc3339(SystemTime::now());
        let Some(terminal) = Terminal::of_stdout() else {
            let text = self.show.text(&said.status, None);
            return output::line_unless_closed(&format!("-- {now}\n{text}"));
        };
        self.last = self.show.text(&said.status, Some(&terminal));
        let seconds = self.every.as_secs_f64();
        let head = format!("{}  every {seconds} s, Ctrl-C ends\n\n", clock(&now));
        self.draw(&head, &terminal)
    }

    /// The daemon does not answer.
    fn lost(&mut self, why: &str) -> Result<bool, CliError> {
        let first = std::mem::replace(&mut self.answers, false);
        let why = render::printable(why);
        let terminal = Terminal::of_stdout();
        let Some(terminal) = terminal.filter(|_| self.last_is_text()) else {
            if first {
                eprintln!("snapback: waiting for the daemon: {why}");
            }
            return Ok(true);
        };
        let now = utc::rfc3339(SystemTime::now());
        let text = format!("{}  waiting for the daemon: {why}", clock(&now));
        let lines = wrap(&text, terminal.width).join("\n");
        self.draw(&format!("{lines}\n\n"), &terminal)
    }

    /// Something was drawn that can be redrawn.
    const fn last_is_text(&self) -> bool {
        !self.last.is_empty()
    }

    fn draw(&mut self, head: &str, terminal: &Terminal) -> Result<bool, CliError> {
        let frame = self.screen.frame(&format!("{head}{}", self.last), terminal);
        output::unless_closed(&frame)
    }
}

/// `14:03:22 UTC` of a time in the form of RFC 3339.
pub fn clock(time: &str) -> String {
    let clock: String = time.chars().skip(11).take(8).collect();
    format!("{clock} UTC")
}

/// What a terminal shows already.
#[derive(Debug, Default)]
struct Screen {
    /// Lines of the last frame, and the terminal's size then.
    drawn: Option<(usize, (usize, usize))>,
}

impl Screen {
    /// What replaces the last frame by `text`, whose lines fit the width. Lines that do not fit
    /// the height are left out.
    fn frame(&mut self, text: &str, terminal: &Terminal) -> String {
        let mut frame = String::new();
        let size = (terminal.width, terminal.height);
        match self.drawn {
            // A new size may have wrapped or joined the lines.
            Some((_, before)) if before != size => frame.push_str("\x1b[H\x1b[2J"),
            Some((lines, _)) if lines > 0 => frame.push_str(&format!("\r\x1b[{lines}A")),
            Some(_) | None => {}
        }
        let all: Vec<&str> = text.lines().collect();
        let room = terminal.height.saturating_sub(1);
        let fits = all.len() <= room;
        let shown = if fits {
            all.len()
        } else {
            room.saturating_sub(1)
        };
        for line in all.iter().take(shown) {
            frame.push_str(line);
            frame.push_str("\x1b[K\n");
        }
        if !fits {
            let more = format!("{} more lines do not fit", all.len() - shown);
            frame.push_str(&cut_end(&more, terminal.width, terminal));
            frame.push_str("\x1b[K\n");
        }
        frame.push_str("\x1b[J");
        self.drawn = Some((all.len().min(room), size));
        frame
    }
}

/// The seconds between two questions: 0.1 to 86400.
///
/// # Errors
/// It is not a number, or out of range.
pub fn interval(text: &str) -> Result<Duration, String> {
    let parsed = text.parse().ok().filter(|s| (0.1..=86_400.0).contains(s));
    parsed
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("`{text}` is not a number of seconds from 0.1 to 86400"))
}

/// The same after --watch, where a name may have been meant.
///
/// # Errors
/// As [`interval`].
pub fn seconds(text: &str) -> Result<Duration, String> {
    interval(text).map_err(|error| format!("{error}; the name of a snapshot stands before --watch"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINAL: Terminal = Terminal {
        width: 40,
        height: 5,
        colour: false,
        unicode: true,
    };

    #[test]
    fn a_frame_replaces_the_one_before() {
        let mut screen = Screen::default();
        assert_eq!(
            screen.frame("a\nb\n", &TERMINAL),
            "a\x1b[K\nb\x1b[K\n\x1b[J"
        );
        assert_eq!(screen.frame("c\n", &TERMINAL), "\r\x1b[2Ac\x1b[K\n\x1b[J");
        assert_eq!(
            screen.frame("1\n2\n3\n4\n5\n6\n", &TERMINAL),
            "\r\x1b[1A1\x1b[K\n2\x1b[K\n3\x1b[K\n3 more lines do not fit\x1b[K\n\x1b[J"
        );
        assert!(screen.frame("x\n", &TERMINAL).starts_with("\r\x1b[4A"));
        let wider = Terminal {
            width: 41,
            ..TERMINAL
        };
        assert!(screen.frame("x\n", &wider).starts_with("\x1b[H\x1b[2J"));
    }

    #[test]
    fn seconds_may_be_fractions_within_a_day() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("86400"), Ok(Duration::from_secs(86_400)));
        for wrong in ["0", "-1", "NaN", "inf", "1e9", "before", "", "0.01"] {
            let error = seconds(wrong).unwrap_err();
            assert!(error.contains("stands before --watch"), "{error}");
        }
    }

    #[test]
    fn the_clock_is_a_part_of_the_time() {
        assert_eq!(clock("2026-11-22T16:55:25.955Z"), "16:55:25 UTC");
    }
}
