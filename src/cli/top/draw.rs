//! The screen of `top`: from what is known to lines of text.

use ratatui::Frame;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};

use super::model::Model;
use super::rates::History;
use super::values::{count, latency, spark};
use crate::cli::progress::figures;
use crate::cli::status_screen::state_tone;
use crate::cli::table::{Tone, cut_end, wrap};
use crate::cli::terminal::Terminal;
use crate::cli::wait::amount;
use crate::control::api::{MergeStatus, SnapshotStatus, ViewStatus, VolumeStatus};
use crate::control::bar::bar;
use crate::control::render::{news, origin_line, percent, printable, state_word, view_row};
use crate::size;
use crate::units::SECTOR_SIZE;

/// Characters of a COW's bar on a screen of 80 columns.
const BAR: usize = 20;

/// What stands around the model.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// The time of day.
    pub clock: &'a str,
    /// Seconds between two statuses.
    pub every: f64,
    /// Colours and signs; the size is the frame's.
    pub terminal: Terminal,
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, model: &Model, around: &Around<'_>) {
    let area = frame.area();
    let painter = Painter {
        terminal: Terminal {
            width: usize::from(area.width),
            height: usize::from(area.height),
            ..around.terminal
        },
    };
    frame.render_widget(Text::from(painter.screen(model, around)), area);
}

struct Painter {
    terminal: Terminal,
}

impl Painter {
    /// As many lines as the screen has. The last is the help; events get what the rest leaves.
    fn screen(&self, model: &Model, around: &Around<'_>) -> Vec<Line<'static>> {
        let height = self.terminal.height;
        let mut lines = vec![self.header(model, around.clock)];
        lines.extend(self.trouble(model));
        if let Some(status) = &model.status {
            lines.push(Line::default());
            lines.extend(self.views(status, model));
            if !status.snapshots.is_empty() {
                lines.push(Line::default());
                lines.extend(self.snapshots(&status.snapshots));
            }
            if let Some(merge) = &status.merge {
                lines.push(Line::default());
                lines.extend(self.merge(status, merge));
            }
            lines.extend(self.news(status));
        }
        let room = height.saturating_sub(lines.len() + 1);
        lines.extend(self.events(model, room));
        lines.resize(height.saturating_sub(1), Line::default());
        lines.push(self.help(around.every));
        lines
    }

    fn header(&self, model: &Model, clock: &str) -> Line<'static> {
        let what = model.status.as_ref().map(origin_line).unwrap_or_default();
        let room = self
            .terminal
            .width
            .saturating_sub(clock.chars().count() + 2);
        let what = cut_end(&format!("snapback top  {what}"), room, &self.terminal);
        let blanks = " ".repeat(
            self.terminal
                .width
                .saturating_sub(what.chars().count() + clock.chars().count()),
        );
        Line::from(vec![
            self.span(what, Tone::Title),
            Span::raw(blanks),
            Span::raw(clock.to_owned()),
        ])
    }

    /// Why there is nothing new.
    fn trouble(&self, model: &Model) -> Vec<Line<'static>> {
        let Some(why) = &model.lost else {
            return Vec::new();
        };
        let text = format!("the daemon does not answer, trying again: {why}");
        let lines = wrap(&text, self.terminal.width).into_iter().take(3);
        lines
            .map(|line| Line::from(self.span(line, Tone::Bad)))
            .collect()
    }

    fn views(&self, status: &VolumeStatus, model: &Model) -> Vec<Line<'static>> {
        let [name, shows, guest] = self.view_widths();
        let head = format!(
            "{:<name$} {:<shows$} {:<guest$} {:>7} {:>8} {:>10} {:>10} {:>7}",
            "VIEW", "SHOWS", "FRONT END", "READS/s", "WRITES/s", "READ/s", "WRITTEN/s", "FLIGHT"
        );
        let mut lines = vec![self.title(head)];
        let most = (self.terminal.height / 3).max(3);
        for view in &status.views {
            let history = model.history(view);
            lines.push(self.view(view, history));
            lines.extend(history.and_then(|history| self.latency(history)));
        }
        self.at_most(lines, most)
    }

    fn view(&self, view: &ViewStatus, history: Option<&History>) -> Line<'static> {
        let widths = self.view_widths();
        let cells = view_row(view);
        // Without room for details, the word before them is enough.
        let fitted = cells.iter().zip(widths).map(|(cell, width)| {
            let short = cell.split(',').next().unwrap_or_default();
            let fits = cell.chars().count() <= width;
            let shown = if fits { cell } else { short };
            format!("{:<width$} ", cut_end(shown, width, &self.terminal))
        });
        let fitted: String = fitted.collect();
        let rates = history.and_then(History::rates);
        let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let bytes = |bytes: u64| size::human(bytes);
        let text = format!(
            "{fitted}{:>7} {:>8} {:>10} {:>10} {:>7}",
            shown(rates.map(|r| count(r.reads))),
            shown(rates.map(|r| count(r.writes))),
            shown(rates.map(|r| bytes(r.read_bytes))),
            shown(rates.map(|r| bytes(r.write_bytes))),
            history.map_or(0, History::in_flight),
        );
        Line::from(text)
    }

    /// Of a view's name, of what it shows, and of its front ends: the details need a wider screen.
    const fn view_widths(&self) -> [usize; 3] {
        match self.terminal.width {
            0..100 => [12, 9, 9],
            100..130 => [20, 19, 9],
            _ => [40, 19, 21],
        }
    }

    /// Only for a view whose guest has done something.
    fn latency(&self, history: &History) -> Option<Line<'static>> {
        let room = self.terminal.width.saturating_sub(44).max(10);
        let latencies = history.latencies(room);
        let highest = latencies.iter().flatten().max()?;
        let now = latencies.last().copied().flatten();
        let now = now.map_or("-".to_owned(), |us| latency(us, self.terminal.unicode));
        let signs = spark(&latencies, *highest, self.terminal.unicode);
        let highest = latency(*highest, self.terminal.unicode);
        Some(Line::from(vec![
            Span::raw(format!("  latency {now:>7}  ")),
            self.span(signs, Tone::Busy),
            Span::raw(format!("  highest {highest}")),
        ]))
    }

    fn snapshots(&self, snapshots: &[SnapshotStatus]) -> Vec<Line<'static>> {
        let width = self.bar_width();
        let head = format!("{:<16} {:<12} {:<width$}", "SNAPSHOT", "STATE", "COW FILL");
        let mut lines = vec![self.title(head)];
        lines.extend(snapshots.iter().map(|s| self.snapshot(s, width)));
        let most = (self.terminal.height / 4).max(3);
        self.at_most(lines, most)
    }

    fn snapshot(&self, s: &SnapshotStatus, width: usize) -> Line<'static> {
        let (used, of) = (s.allocated_sectors, s.total_sectors);
        let filled = if used == s.metadata_sectors { 0 } else { used };
        let share = u128::from(filled) * 100 / u128::from(of.max(1));
        let tone = Tone::of_fill(u64::try_from(share).unwrap_or(100));
        let bytes = |sectors: u64| size::human(sectors.saturating_mul(SECTOR_SIZE));
        let name = cut_end(&printable(&s.name), 16, &self.terminal);
        Line::from(vec![
            Span::raw(format!("{name:<16} ")),
            self.span(format!("{:<12} ", state_word(s.state)), state_tone(s.state)),
            self.span(bar(filled, of, width, self.terminal.unicode), tone),
            Span::raw(format!(
                " {:>7}  {} of {}",
                percent(filled, of),
                bytes(used),
                bytes(of)
            )),
        ])
    }

    /// Bars use what a wide screen has.
    const fn bar_width(&self) -> usize {
        let more = self.terminal.width.saturating_sub(80);
        BAR + if more > 40 { 40 } else { more }
    }

    fn merge(&self, status: &VolumeStatus, merge: &MergeStatus) -> Vec<Line<'static>> {
        let title = format!("MERGE of {}", printable(&merge.snapshot));
        let title = cut_end(&title, self.terminal.width / 2, &self.terminal);
        let amount = amount(status, merge);
        let (tone, state) = match (&merge.error, merge.paused) {
            (Some(_), _) => (Tone::Bad, ", failed"),
            (None, true) => (Tone::Warning, ", paused"),
            (None, false) => (Tone::Busy, ""),
        };
        let room = self
            .terminal
            .width
            .saturating_sub(title.chars().count() + 1);
        let fill = bar(amount.done, amount.total, room, self.terminal.unicode);
        let mut lines = vec![
            Line::from(vec![
                self.span(title, Tone::Title),
                Span::raw(" "),
                self.span(fill, tone),
            ]),
            Line::from(figures(&amount) + state),
        ];
        if let Some(error) = &merge.error {
            let advice = merge.retry.map_or("", |retry| retry.advice());
            let text = format!("{}; {advice}", printable(error));
            let wrapped = wrap(&text, self.terminal.width).into_iter().take(4);
            lines.extend(wrapped.map(|line| Line::from(self.span(line, Tone::Bad))));
        }
        lines
    }

    fn news(&self, status: &VolumeStatus) -> Vec<Line<'static>> {
        let news = news(status);
        if news.is_empty() {
            return Vec::new();
        }
        let wrapped = news.iter().flat_map(|text| wrap(text, self.terminal.width));
        let lines = wrapped.map(|line| Line::from(self.span(line, Tone::Warning)));
        let blank = std::iter::once(Line::default());
        self.at_most(
            blank.chain(lines).collect(),
            (self.terminal.height / 4).max(3),
        )
    }

    /// The latest that fit into `room` lines with their title.
    fn events(&self, model: &Model, room: usize) -> Vec<Line<'static>> {
        let Some(count) = room.checked_sub(2).filter(|count| *count > 0) else {
            return Vec::new();
        };
        let mut lines = vec![
            Line::default(),
            self.title("LATEST EVENTS (UTC)".to_owned()),
        ];
        let skip = model.events.len().saturating_sub(count);
        let latest = model.events.iter().skip(skip);
        lines.extend(
            latest.map(|event| Line::from(cut_end(event, self.terminal.width, &self.terminal))),
        );
        lines
    }

    fn help(&self, every: f64) -> Line<'static> {
        let text =
            format!("q quits    every {every} s; rates and latency are those of the last interval");
        let text = cut_end(&text, self.terminal.width, &self.terminal);
        let style = Style::new().add_modifier(Modifier::DIM);
        Line::from(Span::styled(text, style))
    }

    /// The first lines, and how many there are besides.
    fn at_most(&self, mut lines: Vec<Line<'static>>, most: usize) -> Vec<Line<'static>> {
        if lines.len() > most {
            let more = lines.len() - most + 1;
            lines.truncate(most - 1);
            let text = format!("{more} more lines do not fit");
            lines.push(Line::from(cut_end(
                &text,
                self.terminal.width,
                &self.terminal,
            )));
        }
        lines
    }

    fn title(&self, text: String) -> Line<'static> {
        Line::from(self.span(text, Tone::Title))
    }

    /// `text` in a tone; without colours only titles differ, in weight.
    fn span(&self, text: String, tone: Tone) -> Span<'static> {
        let colour = match tone {
            Tone::Plain => return Span::raw(text),
            Tone::Title => {
                return Span::styled(text, Style::new().add_modifier(Modifier::BOLD));
            }
            Tone::Good => Color::Green,
            Tone::Busy => Color::Cyan,
            Tone::Warning => Color::Yellow,
            Tone::Bad => Color::Red,
        };
        if self.terminal.colour {
            Span::styled(text, Style::new().fg(colour))
        } else {
            Span::raw(text)
        }
    }
}
