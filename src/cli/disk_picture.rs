//! A map of a disk as an SVG picture.

use std::fmt::Write as _;

use super::disk_map::{COLUMNS, DiskMap};
use crate::control::render::printable;
use crate::size;

/// Pixels of a cell, with the lines around it.
const STEP: u64 = 10;
/// Pixels beside and above the map.
const LEFT: u64 = 84;
const TOP: u64 = 74;
const RIGHT: u64 = 24;
/// Pixels below it, for the legend.
const BELOW: u64 = 58;
/// Rows between two labels.
const LABEL_EVERY: u64 = 4;
/// Longest name in a line of the picture, in characters.
const NAME_MAX: usize = 40;

/// Shades by the share of changed chunks, from the lightest: each holds up to and including this
/// many parts of 1000; the last is for whole cells only. Lighter is less also without colours.
const SHADES: [(u64, &str, &str); 6] = [
    (0, "#e9ecef", "unchanged"),
    (10, "#fed976", "up to 1 %"),
    (100, "#fd9a3c", "up to 10 %"),
    (500, "#ee4b2b", "up to 50 %"),
    (1000, "#b10026", "more"),
    (1000, "#4a0018", "all of it"),
];

/// What the picture says in words.
#[derive(Clone, Copy, Debug)]
pub struct Legend<'a> {
    /// Of the snapshot.
    pub name: &'a str,
    pub disk: &'a str,
    /// Bytes that differ, or that the store keeps.
    pub changed: u64,
    /// The data was compared; otherwise this is what the store keeps.
    pub compared: bool,
}

/// The picture. The same map gives the same bytes.
pub fn svg(map: &DiskMap, legend: &Legend<'_>) -> String {
    let rows = (map.cells().count() as u64).div_ceil(COLUMNS).max(1);
    let (width, height) = (LEFT + COLUMNS * STEP + RIGHT, TOP + rows * STEP + BELOW);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let title = title(map, legend);
    let _ = writeln!(text, "<title>{title}</title>");
    words(
        &mut text,
        24,
        28,
        "font-size=\"16\" font-weight=\"bold\"",
        &title,
    );
    let scale = format!(
        "{} in all. Each square is {}, each row {}.",
        size::human(map.size()),
        size::human(map.cell()),
        size::human(map.cell().saturating_mul(COLUMNS))
    );
    words(&mut text, 24, 50, "fill=\"#444444\"", &scale);
    for row in (0..rows).filter(|row| row.is_multiple_of(LABEL_EVERY)) {
        let offset = size::human(row.saturating_mul(COLUMNS).saturating_mul(map.cell()));
        let y = TOP + row * STEP + STEP - 1;
        let attributes = "font-size=\"11\" text-anchor=\"end\" fill=\"#444444\"";
        words(&mut text, LEFT - 8, y, attributes, &offset);
    }
    squares(&mut text, map, rows);
    shades(&mut text, TOP + rows * STEP + 24);
    text.push_str("</svg>\n");
    text
}

/// As text of XML.
fn title(map: &DiskMap, legend: &Legend<'_>) -> String {
    let (name, disk) = (short(legend.name), short(legend.disk));
    let changed = size::human(legend.changed);
    let permille = u128::from(legend.changed) * 1000 / u128::from(map.size().max(1));
    let share = format!("{}.{} %", permille / 10, permille % 10);
    if legend.compared {
        format!("{name} differs from {disk} in {changed} ({share})")
    } else {
        format!("{name} keeps {changed} ({share}) of {disk}")
    }
}

/// The end of a name, escaped.
fn short(name: &str) -> String {
    let name = printable(name);
    let len = name.chars().count();
    if len <= NAME_MAX {
        return escaped(&name);
    }
    let end: String = name.chars().skip(len - NAME_MAX + 1).collect();
    escaped(&format!("…{end}"))
}

/// `text` as text or as an attribute's value of XML 1.0.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&apos;"),
            // No XML may have these, and control characters only in part.
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// `content` is escaped already.
fn words(text: &mut String, x: u64, y: u64, attributes: &str, content: &str) {
    let _ = writeln!(
        text,
        "<text x=\"{x}\" y=\"{y}\" {attributes}>{content}</text>"
    );
}

/// The shade of a cell, as its place in [`SHADES`].
fn shade(changed: u64, all: u64) -> usize {
    if changed > 0 && changed >= all {
        return SHADES.len() - 1;
    }
    let parts = u128::from(changed) * 1000;
    let within = |limit: u64| parts <= u128::from(limit) * u128::from(all);
    let place = SHADES.iter().position(|(limit, ..)| within(*limit));
    place.unwrap_or(0)
}

/// One path for each shade, with a rectangle for each run of cells in a row, and white lines
/// over them: a picture of a whole disk stays small.
fn squares(text: &mut String, map: &DiskMap, rows: u64) {
    let mut paths = vec![String::new(); SHADES.len()];
    let shades: Vec<usize> = map
        .cells()
        .map(|(changed, all)| shade(changed, all))
        .collect();
    let columns = usize::try_from(COLUMNS).unwrap_or(1);
    for (row, cells) in (0_u64..).zip(shades.chunks(columns)) {
        let (mut x, y) = (LEFT, TOP + row * STEP);
        for run in cells.chunk_by(|a, b| a == b) {
            let width = run.len() as u64 * STEP;
            let path = run.first().and_then(|shade| paths.get_mut(*shade));
            if let Some(path) = path {
                let _ = write!(path, "M{x} {y}h{width}v{STEP}h-{width}z");
            }
            x += width;
        }
    }
    for (path, (_, colour, _)) in paths.iter().zip(SHADES) {
        if !path.is_empty() {
            let _ = writeln!(text, "<path fill=\"{colour}\" d=\"{path}\"/>");
        }
    }
    let (width, height) = (COLUMNS * STEP, rows * STEP);
    let across = (0..=rows).map(|row| format!("M{LEFT} {}h{width}", TOP + row * STEP));
    let down = (0..=COLUMNS).map(|column| format!("M{} {TOP}v{height}", LEFT + column * STEP));
    let lines: String = across.chain(down).collect();
    let _ = writeln!(
        text,
        "<path stroke=\"#ffffff\" stroke-width=\"1\" d=\"{lines}\"/>"
    );
}

fn shades(text: &mut String, y: u64) {
    let mut x = LEFT + 8;
    words(text, 24, y, "fill=\"#444444\"", "changed:");
    for (_, colour, meaning) in SHADES {
        let top = y - STEP;
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{top}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        words(text, x + 18, y, "fill=\"#444444\"", meaning);
        x += 100;
    }
    let explained = "share of the chunks in a square; squares and rows run from the start of the disk to its end";
    words(
        text,
        24,
        y + 22,
        "font-size=\"11\" fill=\"#444444\"",
        explained,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legend(name: &str) -> Legend<'_> {
        Legend {
            name,
            disk: "disk.img",
            changed: 3 << 30,
            compared: true,
        }
    }

    /// Numbers without a pattern, the same every time.
    fn numbers() -> impl Iterator<Item = u64> {
        std::iter::successors(Some(1_u64), |n| {
            Some(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1))
        })
        .map(|n| n >> 20)
    }

    /// A file system's tables, a log, some files, and a database that was written all over.
    fn example() -> (DiskMap, u64) {
        const SIZE: u64 = 1 << 40;
        let mut parts: Vec<(u64, u64)> = (0..64).map(|n| (n * (16 << 30), 2 << 20)).collect();
        parts.push((40 << 30, 900 << 20));
        parts.push((300 << 30, 24 << 30));
        let mut random = numbers().skip(4);
        let mut next = || random.next().unwrap();
        parts.extend((0..4000).map(|_| ((500 << 30) + next() % (60 << 30), 256 << 10)));
        parts.extend((0..600).map(|_| ((700 << 30) + next() % (90 << 30), 24 << 20)));
        parts.extend((0..160).map(|_| (next() % SIZE, 1 << 20)));
        parts.sort_unstable();
        let mut map = DiskMap::new(SIZE, 4096);
        for (start, length) in parts {
            map.add(start & !4095, length);
        }
        let changed = map.cells().map(|(changed, _)| changed * 4096).sum();
        (map, changed)
    }

    /// Run it with SNAPBACK_WRITE_PICTURES=1 to write the picture again.
    #[test]
    fn the_picture_in_the_documents_is_what_is_drawn() {
        let (map, changed) = example();
        let drawn = svg(
            &map,
            &Legend {
                name: "before",
                disk: "/vm/disk.img",
                changed,
                compared: true,
            },
        );
        crate::cli::pictures::assert_shown("docs/diff.svg", &drawn);
    }

    #[test]
    fn any_change_can_be_seen_and_only_a_whole_cell_is_darkest() {
        assert_eq!(shade(0, 65_536), 0);
        assert_eq!(shade(1, 65_536), 1);
        assert_eq!(shade(655, 65_536), 1);
        assert_eq!(shade(656, 65_536), 2);
        assert_eq!(shade(65_535, 65_536), 4);
        assert_eq!(shade(65_536, 65_536), 5);
        assert_eq!(shade(1, 1), 5);
        assert_eq!(shade(u64::MAX, u64::MAX), 5);
    }

    #[test]
    fn names_cannot_end_a_text_and_other_letters_stay_as_they_are() {
        let map = DiskMap::new(1 << 20, 4096);
        let hostile = "</text><script>\"'&\u{1b}\u{fffe}ä";
        let drawn = svg(&map, &legend(hostile));
        assert!(
            drawn.contains("&lt;/text&gt;&lt;script&gt;&quot;&apos;&amp;\\u{1b}\u{fffd}ä differs"),
            "{drawn}"
        );
        assert_eq!(
            drawn.matches("<text").count(),
            drawn.matches("</text>").count()
        );
        let long = "x".repeat(5000);
        assert!(svg(&map, &legend(&long)).len() < 20_000);
    }

    #[test]
    fn a_picture_is_the_same_every_time_and_small_for_the_largest_disk() {
        let mut map = DiskMap::new(i64::MAX as u64, 512);
        for start in 0..1000_u64 {
            map.add(start << 52, 1 << 51);
        }
        let drawn = svg(&map, &legend("s"));
        assert_eq!(drawn, svg(&map, &legend("s")));
        assert!(drawn.len() < 200_000, "{}", drawn.len());
        assert!(drawn.contains("Each square is 2048 TiB, each row 131072 TiB."));
    }
}
