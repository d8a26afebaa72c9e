//! The progress of a long operation on stderr: a bar on a terminal, otherwise a line now and
//! then. The figures are the same everywhere: share, bytes, rate and time left.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::speed::Speed;
use super::terminal;
use crate::control::render::{duration, percent};
use crate::size;

/// Most redraws per second.
const REDRAWS: u8 = 10;
/// Without a terminal: the time between two lines, during the first minute and after it. An
/// operation that is over before the first line prints none.
const LINE_EVERY: Duration = Duration::from_secs(10);
const LATER_LINE_EVERY: Duration = Duration::from_secs(60);

const BAR: &str = "{msg:.bold} [{wide_bar}] {prefix}";
/// While there is nothing to measure: a bar without a length would look full.
const WORDS: &str = "{msg:.bold} {prefix}";

/// What an operation has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// In bytes.
    pub done: u64,
    /// In bytes; 0 while unknown.
    pub total: u64,
    /// Bytes per second; `None` while unknown.
    pub rate: Option<u64>,
    /// Bytes per second that it is limited to.
    pub limit: Option<u64>,
    /// While unknown, it follows from the rate.
    pub seconds_left: Option<u64>,
}

/// The progress of one operation. What is shown disappears with it.
pub struct Progress {
    what: String,
    speed: Speed,
    face: Face,
}

enum Face {
    Bar(ProgressBar),
    Lines(Pace),
}

impl Progress {
    /// `what` is done, for instance "exporting".
    pub fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        let face = if terminal::of_stderr() {
            let target = ProgressDrawTarget::stderr_with_hz(REDRAWS);
            let bar = ProgressBar::with_draw_target(Some(0), target);
            bar.set_style(style(WORDS));
            bar.set_message(what.clone());
            bar.tick();
            Face::Bar(bar)
        } else {
            Face::Lines(Pace::new(Instant::now()))
        };
        Self {
            what,
            speed: Speed::default(),
            face,
        }
    }

    /// `done` of `total` bytes are done. The rate is measured here.
    pub fn show(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        self.speed.note(now, done);
        self.show_amount(Amount {
            done,
            total,
            rate: self.speed.per_second(now, done),
            ..Amount::default()
        });
    }

    /// An amount whose rate is known otherwise.
    pub fn show_amount(&mut self, amount: Amount) {
        let text = match amount.total {
            0 => String::new(),
            _ => figures(&amount),
        };
        self.draw(amount, text);
    }

    /// How far it is, where no total is known.
    pub fn show_words(&mut self, words: String) {
        self.draw(Amount::default(), words);
    }

    fn draw(&mut self, amount: Amount, text: String) {
        match &mut self.face {
            Face::Bar(bar) => {
                let known = amount.total > 0;
                if known != (bar.length() != Some(0)) {
                    bar.set_style(style(if known { BAR } else { WORDS }));
                }
                bar.set_length(amount.total);
                bar.set_prefix(text);
                bar.set_position(amount.done);
            }
            Face::Lines(pace) => {
                if pace.is_due(Instant::now()) {
                    let colon = if text.is_empty() { "" } else { ": " };
                    eprintln!("{}{colon}{text}", self.what);
                }
            }
        }
    }

    /// Replaces the words that were given at the start.
    pub fn set_message(&mut self, message: String) {
        if message == self.what {
            return;
        }
        if let Face::Bar(bar) = &self.face {
            bar.set_message(message.clone());
        }
        self.what = message;
    }

    pub fn end(self) {}
}

impl Drop for Progress {
    fn drop(&mut self) {
        // An error message must not run into the bar.
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

/// `45.3 %, 1.8 GiB of 4 GiB, 210 MiB/s, 10 s left`
pub fn figures(amount: &Amount) -> String {
    let mut parts = vec![
        percent(amount.done, amount.total),
        format!(
            "{} of {}",
            size::human(amount.done),
            size::human(amount.total)
        ),
    ];
    parts.extend(amount.rate.map(|rate| match amount.limit {
        Some(limit) => format!(
            "{}/s of at most {}/s",
            size::human(rate),
            size::human(limit)
        ),
        None => format!("{}/s", size::human(rate)),
    }));
    let left = amount.total.saturating_sub(amount.done);
    let by_rate = amount.rate.and_then(|rate| left.checked_div(rate));
    let seconds = amount.seconds_left.or(by_rate);
    parts.extend(seconds.map(|seconds| format!("{} left", duration(seconds))));
    parts.join(", ")
}

/// When the next line is due.
#[derive(Debug)]
struct Pace {
    start: Instant,
    last: Instant,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self {
            start: now,
            last: now,
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let every = if now.saturating_duration_since(self.start) <= LATER_LINE_EVERY {
            LINE_EVERY
        } else {
            LATER_LINE_EVERY
        };
        let due = now.saturating_duration_since(self.last) >= every;
        if due {
            self.last = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_share_bytes_rate_and_time_left() {
        let amount = Amount {
            done: 1 << 30,
            total: 4 << 30,
            rate: Some(256 << 20),
            ..Amount::default()
        };
        assert_eq!(
            figures(&amount),
            "25.0 %, 1 GiB of 4 GiB, 256 MiB/s, 12 s left"
        );
        let limited = Amount {
            limit: Some(300 << 20),
            seconds_left: Some(75),
            ..amount
        };
        assert_eq!(
            figures(&limited),
            "25.0 %, 1 GiB of 4 GiB, 256 MiB/s of at most 300 MiB/s, 1 min 15 s left"
        );
        let stalled = Amount {
            rate: Some(0),
            ..amount
        };
        assert_eq!(figures(&stalled), "25.0 %, 1 GiB of 4 GiB, 0 B/s");
        let new = Amount {
            rate: None,
            ..amount
        };
        assert_eq!(figures(&new), "25.0 %, 1 GiB of 4 GiB");
    }

    #[test]
    fn lines_come_after_ten_seconds_and_become_rare() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let due: Vec<u64> = (0..=300)
            .filter(|second| pace.is_due(start + Duration::from_secs(*second)))
            .collect();
        assert_eq!(due, [10, 20, 30, 40, 50, 60, 120, 180, 240, 300]);
    }
}
