//! Tables for a terminal: columns that fit, colours, lines that are wrapped.

use super::terminal::Terminal;

/// What a text is, which decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Title,
    Good,
    Busy,
    Warning,
    Bad,
}

impl Tone {
    /// The tone of a COW of which this many percent are used.
    pub const fn of_fill(percent: u64) -> Self {
        match percent {
            0..75 => Self::Good,
            75..90 => Self::Warning,
            _ => Self::Bad,
        }
    }

    /// The code of ECMA-48 for it.
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Title => "1",
            Self::Good => "32",
            Self::Busy => "36",
            Self::Warning => "33",
            Self::Bad => "31",
        }
    }

    /// `text` in this colour, if the terminal may show colours.
    pub fn paint(self, text: &str, terminal: &Terminal) -> String {
        match (self, terminal.colour) {
            (Self::Plain, _) | (_, false) => text.to_owned(),
            (tone, true) => format!("\x1b[{}m{text}\x1b[0m", tone.code()),
        }
    }
}

/// A cell of a table: what it shows, and how.
#[derive(Clone, Debug)]
pub struct Cell {
    pub text: String,
    pub tone: Tone,
}

impl Cell {
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }

    pub fn plain(text: impl Into<String>) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// A row: its cells, and a path, of which the end matters most.
pub struct Row {
    pub cells: Vec<Cell>,
    pub path: String,
}

/// Least columns for a path beside the cells; with less, paths have lines of their own.
const PATH_MIN: usize = 20;
/// Least columns for the first cell, a name.
const NAME_MIN: usize = 8;
const GAP: usize = 2;

/// Left-aligned columns within the width of the terminal: the first is cut at its end, and the
/// paths, which are the last column, at their start. `head` names the columns.
pub fn table(head: &[&str], rows: Vec<Row>, terminal: &Terminal) -> String {
    let (path_title, titles) = head.split_last().unwrap_or((&"", &[]));
    let titles = titles.iter().map(|title| Cell::new(*title, Tone::Title));
    let titles = Row {
        cells: titles.collect(),
        path: (*path_title).to_owned(),
    };
    let mut rows: Vec<Row> = std::iter::once(titles).chain(rows).collect();
    let count = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..count).map(|column| widest(&rows, column)).collect();
    let of_others: usize = widths.iter().skip(1).map(|width| width + GAP).sum();
    if let Some(name) = widths.first_mut() {
        *name = (*name).min(terminal.width.saturating_sub(of_others).max(NAME_MIN));
    }
    let taken: usize = widths.iter().map(|width| width + GAP).sum();
    let room = terminal.width.saturating_sub(taken);
    let longest = rows.iter().map(|row| row.path.chars().count()).max();
    let beside = room >= PATH_MIN.min(longest.unwrap_or(0));
    let mut text = String::new();
    for (index, row) in rows.iter_mut().enumerate() {
        if let Some(name) = row.cells.first_mut() {
            name.text = cut_end(&name.text, widths.first().copied().unwrap_or(0), terminal);
        }
        let mut line = Line::new(terminal);
        for (cell, width) in row.cells.iter().zip(&widths) {
            line.add(cell, *width + GAP);
        }
        let tone = if index == 0 { Tone::Title } else { Tone::Plain };
        let path = |room| Cell::new(cut_start(&row.path, room, terminal), tone);
        if beside {
            line.add(&path(room), 0);
        }
        text.push_str(&line.end());
        if !beside && index > 0 {
            let mut own = Line::new(terminal);
            own.add(&Cell::plain(""), GAP);
            own.add(&path(terminal.width.saturating_sub(GAP)), 0);
            text.push_str(&own.end());
        }
    }
    text
}

fn widest(rows: &[Row], column: usize) -> usize {
    let cells = rows.iter().filter_map(|row| row.cells.get(column));
    let widths = cells.map(|cell| cell.text.chars().count());
    widths.max().unwrap_or(0)
}

/// A line that ends at the terminal's edge.
struct Line<'a> {
    text: String,
    /// Blanks that are only written if something follows.
    blanks: usize,
    room: usize,
    terminal: &'a Terminal,
}

impl<'a> Line<'a> {
    const fn new(terminal: &'a Terminal) -> Self {
        Self {
            text: String::new(),
            blanks: 0,
            room: terminal.width,
            terminal,
        }
    }

    /// Adds `cell`, padded to `width`.
    fn add(&mut self, cell: &Cell, width: usize) {
        let room = self.room.saturating_sub(self.blanks);
        let shown = cut_end(&cell.text, room, self.terminal);
        let len = shown.chars().count();
        if len > 0 {
            self.text.push_str(&" ".repeat(self.blanks));
            self.room = room - len;
            self.blanks = 0;
            self.text.push_str(&cell.tone.paint(&shown, self.terminal));
        }
        self.blanks += width.saturating_sub(len);
    }

    fn end(self) -> String {
        self.text + "\n"
    }
}

const fn ellipsis(terminal: &Terminal) -> char {
    if terminal.unicode { '…' } else { '~' }
}

/// The start of `text` in at most `width` columns.
pub fn cut_end(text: &str, width: usize, terminal: &Terminal) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    let mark = (width > 0).then(|| ellipsis(terminal));
    kept.chain(mark).collect()
}

/// The end of `text` in at most `width` columns.
fn cut_start(text: &str, width: usize, terminal: &Terminal) -> String {
    let len = text.chars().count();
    if len <= width {
        return text.to_owned();
    }
    let mark = (width > 0).then(|| ellipsis(terminal));
    let rest = text.chars().skip(len - width.saturating_sub(1));
    match width {
        0 => String::new(),
        _ => mark.into_iter().chain(rest).collect(),
    }
}

/// `text` in lines of at most `width` columns, broken at spaces where there are some; further
/// lines are indented by two.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(GAP + 2);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        let needed = word.len() + usize::from(used > 0);
        if used > 0 && used + needed > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(GAP)));
            used = GAP;
        } else if !line.is_empty() || used > 0 {
            line.push(' ');
            used += 1;
        }
        while used + word.len() > width {
            let rest = word.split_off(width - used);
            line.extend(word);
            lines.push(std::mem::replace(&mut line, " ".repeat(GAP)));
            used = GAP;
            word = rest;
        }
        used += word.len();
        line.extend(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Terminal = Terminal {
        width: 40,
        height: 24,
        colour: false,
        unicode: true,
    };

    fn row(name: &str, path: &str) -> Row {
        Row {
            cells: vec![Cell::plain(name), Cell::new("active", Tone::Good)],
            path: path.to_owned(),
        }
    }

    #[test]
    fn a_path_stands_beside_its_row_as_long_as_its_end_can_be_read() {
        let head = ["NAME", "STATE", "COW"];
        let path = "/var/lib/machines/a/before.cow";
        assert_eq!(
            table(&head, vec![row("before", path)], &PLAIN),
            "NAME    STATE   COW\nbefore  active  …b/machines/a/before.cow\n"
        );
        let long = "a-name-of-many-letters";
        assert_eq!(
            table(&head, vec![row(long, path)], &PLAIN),
            "NAME                    STATE\n\
             a-name-of-many-letters  active\n  \
             /var/lib/machines/a/before.cow\n"
        );
    }

    #[test]
    fn nothing_is_wider_than_the_terminal_and_colours_take_no_room() {
        let head = ["NAME", "STATE", "COW"];
        let rows = |n: usize| vec![row(&"n".repeat(n), &"p".repeat(n)), row("s", "t")];
        for width in 20..60 {
            let terminal = Terminal { width, ..PLAIN };
            let coloured = Terminal {
                colour: true,
                ..terminal
            };
            for n in 0..80 {
                let text = table(&head, rows(n), &terminal);
                assert!(text.lines().all(|l| l.chars().count() <= width), "{text}");
                let painted = table(&head, rows(n), &coloured);
                let codes = ["\x1b[1m", "\x1b[32m", "\x1b[0m"];
                let bare = codes.iter().fold(painted, |text, c| text.replace(c, ""));
                assert_eq!(bare, text);
            }
        }
    }

    #[test]
    fn long_lines_are_wrapped_at_words() {
        assert_eq!(wrap("one two three", 9), ["one two", "  three"]);
        assert_eq!(wrap("short", 20), ["short"]);
        assert_eq!(
            wrap("/a/very/long/path end", 10),
            ["/a/very/lo", "  ng/path", "  end"]
        );
        for width in 1..30 {
            let lines = wrap("a word and averyverylongone after it", width);
            assert!(lines.iter().all(|l| l.chars().count() <= width.max(4)));
        }
    }
}
