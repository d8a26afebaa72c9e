//! A status for a terminal: with bars, in colours, within its width.

use super::progress::figures;
use super::table::{Cell, Row, Tone, table, wrap};
use super::terminal::Terminal;
use super::wait::amount;
use crate::control::api::{MergeStatus, SnapshotStatus, State, VolumeStatus};
use crate::control::bar::bar;
use crate::control::render;
use crate::size;
use crate::units::SECTOR_SIZE;

/// Characters of a bar in a table.
const BAR: usize = 10;

/// All of the status.
pub fn text(status: &VolumeStatus, terminal: &Terminal) -> String {
    let head = std::iter::once(render::origin_line(status)).chain(render::access_lines(status));
    let mut blocks = vec![lines(head, terminal)];
    if !status.views.is_empty() {
        let rows = status.views.iter().map(|view| {
            let mut cells = render::view_row(view);
            let path = cells.pop().unwrap_or_default();
            Row {
                cells: cells.into_iter().map(Cell::plain).collect(),
                path,
            }
        });
        let head = ["VIEW", "SHOWS", "FRONT END", "SOCKET"];
        blocks.push(table(&head, rows.collect(), terminal));
    }
    if !status.snapshots.is_empty() {
        blocks.push(snapshots(&status.snapshots, terminal));
    }
    if let Some(merge) = &status.merge {
        blocks.push(merge_lines(status, merge, terminal));
    }
    let news = render::news(status);
    if !news.is_empty() {
        blocks.push(lines(news, terminal));
    }
    blocks.join("\n")
}

/// One snapshot, with what happens to it.
pub fn one(status: &VolumeStatus, snapshot: &SnapshotStatus, terminal: &Terminal) -> String {
    let mut blocks = vec![snapshots(std::slice::from_ref(snapshot), terminal)];
    let merge = status.merge.as_ref();
    if let Some(merge) = merge.filter(|m| m.snapshot == snapshot.name) {
        blocks.push(merge_lines(status, merge, terminal));
    }
    if status.rollback_at_reset.as_deref() == Some(&snapshot.name) {
        blocks.push(lines(render::rollback_lines(status), terminal));
    }
    blocks.join("\n")
}

fn snapshots(snapshots: &[SnapshotStatus], terminal: &Terminal) -> String {
    let head = [
        "NAME", "STATE", "COW FILL", "USED", "OF", "CHUNK", "TYPE", "COW",
    ];
    let rows = snapshots.iter().map(|s| snapshot_row(s, terminal));
    table(&head, rows.collect(), terminal)
}

fn snapshot_row(s: &SnapshotStatus, terminal: &Terminal) -> Row {
    let (used, of) = (s.allocated_sectors, s.total_sectors);
    // As in lvm2, a store with nothing but metadata is empty.
    let filled = if used == s.metadata_sectors { 0 } else { used };
    let percent = u128::from(filled) * 100 / u128::from(of.max(1));
    let tone = Tone::of_fill(u64::try_from(percent).unwrap_or(100));
    let fill = bar(filled, of, BAR, terminal.unicode);
    let bytes = |sectors: u64| size::human(sectors.saturating_mul(SECTOR_SIZE));
    Row {
        cells: vec![
            Cell::plain(render::printable(&s.name)),
            Cell::new(render::state_word(s.state), state_tone(s.state)),
            Cell::new(format!("{fill} {:>7}", render::percent(filled, of)), tone),
            Cell::plain(bytes(used)),
            Cell::plain(bytes(of)),
            Cell::plain(size::exact(s.chunk_sectors.saturating_mul(SECTOR_SIZE))),
            Cell::plain(render::type_word(s)),
        ],
        path: render::printable(&s.cow),
    }
}

/// The colour of a state.
pub const fn state_tone(state: State) -> Tone {
    match state {
        State::Active => Tone::Good,
        State::Merging => Tone::Busy,
        State::Overflow | State::MergePaused => Tone::Warning,
        State::Invalid | State::MergeFailed => Tone::Bad,
    }
}

/// A bar over the whole width, and the figures below it.
fn merge_lines(status: &VolumeStatus, merge: &MergeStatus, terminal: &Terminal) -> String {
    let name = render::printable(&merge.snapshot);
    let tone = match (&merge.error, merge.paused) {
        (Some(_), _) => Tone::Bad,
        (None, true) => Tone::Warning,
        (None, false) => Tone::Busy,
    };
    let title = format!("merge of {name}");
    let room = terminal.width.saturating_sub(title.chars().count() + 1);
    let amount = amount(status, merge);
    let mut text = Tone::Title.paint(
        &super::table::cut_end(&title, terminal.width, terminal),
        terminal,
    );
    if room >= BAR && amount.total > 0 {
        let fill = bar(amount.done, amount.total, room.min(60), terminal.unicode);
        text.push(' ');
        text.push_str(&tone.paint(&fill, terminal));
    }
    text.push('\n');
    let state = match (&merge.error, merge.paused) {
        (Some(error), _) => {
            let advice = merge.retry.map_or("", |retry| retry.advice());
            format!(", failed: {}; {advice}", render::printable(error))
        }
        (None, true) => ", paused".to_owned(),
        (None, false) => String::new(),
    };
    let figures = match amount.total {
        0 => "nothing to copy".to_owned(),
        _ => figures(&amount),
    };
    text + &lines([figures + &state], terminal)
}

fn lines(texts: impl IntoIterator<Item = String>, terminal: &Terminal) -> String {
    let wrapped = texts
        .into_iter()
        .flat_map(|text| wrap(&text, terminal.width));
    wrapped.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{MergeOutcome, Retry};

    const TERMINAL: Terminal = Terminal {
        width: 80,
        height: 24,
        colour: false,
        unicode: true,
    };

    fn sample() -> VolumeStatus {
        let value = serde_json::json!({
            "origin": {"path": "/vm/disk.img", "sectors": 41_943_040, "read_only": false,
                "device": "0:0"},
            "views": [
                {"snapshot": null, "kind": "merge", "socket": "/run/vm/disk.sock",
                    "attached": true},
                {"snapshot": "nightly", "kind": "snapshot", "socket": null,
                    "attached": false}
            ],
            "snapshots": [
                {"name": "before", "cow": "/vm/before.cow", "type": "P", "cow_device": "0:0",
                    "state": "merging", "sectors": 41_943_040, "chunk_sectors": 8,
                    "allocated_sectors": 3_800_000, "total_sectors": 10_485_760,
                    "metadata_sectors": 15_000},
                {"name": "nightly", "cow": "/vm/nightly.cow", "type": "PO",
                    "cow_device": "0:0", "state": "active", "sectors": 41_943_040,
                    "chunk_sectors": 128, "allocated_sectors": 9_700_000,
                    "total_sectors": 10_485_760, "metadata_sectors": 15_000}
            ],
            "merge": {"snapshot": "before", "chunks_done": 215_000, "chunks_left": 260_000,
                "bytes_per_second": 220_200_960, "rate_limit": 314_572_800,
                "seconds_left": 4, "paused": false, "error": null},
            "rollback_at_reset": null
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_merge_and_its_snapshots_fit_a_terminal_of_80_columns() {
        assert_eq!(
            text(&sample(), &TERMINAL),
            "\
origin /vm/disk.img, 20 GiB, read-write

VIEW     SHOWS     FRONT END  SOCKET
origin   merge     attached   /run/vm/disk.sock
nightly  snapshot  -          -

NAME     STATE    COW FILL            USED     OF     CHUNK  TYPE
before   merging  ███░░░░░░░  36.2 %  1.8 GiB  5 GiB  4K     P
  /vm/before.cow
nightly  active   █████████░  92.5 %  4.6 GiB  5 GiB  64K    PO
  /vm/nightly.cow

merge of before ███████████████████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░
45.2 %, 839.8 MiB of 1.8 GiB, 210 MiB/s of at most 300 MiB/s, 4 s left
"
        );
    }

    #[test]
    fn the_status_in_the_documents_is_what_is_drawn() {
        let drawn = text(&sample(), &TERMINAL);
        crate::cli::pictures::assert_block("docs/watching.md", "origin /vm/", &drawn);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_whatever_it_says() {
        let mut status = sample();
        let long = "a".repeat(64);
        status.snapshots[0].name.clone_from(&long);
        status.snapshots[0].cow = "/x".repeat(300);
        status.views[0].socket = Some("/y".repeat(300));
        status.origin.path = "/z".repeat(300);
        let merge = status.merge.as_mut().unwrap();
        merge.snapshot = long;
        merge.error = Some("reading the COW failed ".repeat(20));
        merge.retry = Some(Retry::Restart);
        status.last_merge = Some(MergeOutcome {
            snapshot: "old".to_owned(),
            chunks: 7,
            error: None,
            cow: Some("/o".repeat(100)),
        });
        for width in [20, 40, 80, 200] {
            for shown in [true, false] {
                let terminal = Terminal { width, ..TERMINAL };
                if !shown {
                    status.merge = None;
                }
                for line in text(&status, &terminal).lines() {
                    assert!(line.chars().count() <= width, "{width}: {line}");
                }
            }
            status.merge = sample().merge;
        }
    }

    #[test]
    fn colours_are_used_only_where_they_may_be_and_a_full_cow_is_red() {
        let mut status = sample();
        assert!(!text(&status, &TERMINAL).contains('\x1b'));
        let coloured = Terminal {
            colour: true,
            ..TERMINAL
        };
        assert!(text(&status, &coloured).contains("\x1b[31m█████████░  92.5 %\x1b[0m"));
        status.snapshots[1].state = State::Invalid;
        let one = one(&status, &status.snapshots[1], &coloured);
        assert!(
            one.contains("\x1b[31minvalid\x1b[0m") && !one.contains("before"),
            "{one}"
        );
    }
}
