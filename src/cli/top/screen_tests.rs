//! The screen as lines of text, at several sizes and in every state.

use std::time::{Duration, Instant};

use ratatui::Terminal as Drawer;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use serde_json::{Value, json};

use super::draw::{Around, draw};
use super::model::Model;
use crate::cli::pictures::{assert_block, assert_shown};
use crate::cli::poll::{Answer, Said};
use crate::cli::terminal::Terminal;
use crate::control::ClientError;

const TERMINAL: Terminal = Terminal {
    width: 0,
    height: 0,
    colour: true,
    unicode: true,
};

/// What a view's guest has done after `n` seconds; another one for each `seed`.
fn io(n: u64, seed: u64, reads: u64, writes: u64, us: u64) -> Value {
    // From 0 to 99, without a pattern.
    let chance = |n: u64| {
        let mixed = (n + seed * 100).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) % 100
    };
    let busy = |n: u64| 8 + chance(n) / 20;
    let sum: u64 = (0..n).map(busy).sum();
    let (read, written) = (sum * reads, sum * writes);
    let spike = |n: u64| if chance(n + 7) > 93 { 3 } else { 1 };
    let latency: u64 = (0..n)
        .map(|n| busy(n) * (reads + writes) * us * (50 + chance(n + 3)) / 100 * spike(n))
        .sum();
    let in_flight = if reads + writes == 0 { 0 } else { busy(n) };
    json!({
        "reads": read, "writes": written, "write_zeroes": 0, "discards": 0, "flushes": 0,
        "others": 0, "read_bytes": read * 16_384, "write_bytes": written * 8192,
        "write_zeroes_bytes": 0, "discard_bytes": 0, "errors": 0, "in_flight": in_flight,
        "latency_us_sum": latency, "read_latency_us_sum": 0, "write_latency_us_sum": 0,
        "flush_latency_us_sum": 0
    })
}

fn snapshot(name: &str, state: &str, permille: u64) -> Value {
    json!({
        "name": name, "cow": format!("/vm/{name}.cow"), "type": "P", "cow_device": "0:0",
        "state": state, "sectors": 41_943_040, "chunk_sectors": 8,
        "allocated_sectors": 10_485_760 / 1000 * permille, "total_sectors": 10_485_760,
        "metadata_sectors": 15_000
    })
}

/// `n` seconds after the start.
fn status(n: u64) -> Value {
    json!({
        "origin": {"path": "/vm/disk.img", "sectors": 41_943_040, "read_only": false,
            "device": "0:0"},
        "views": [
            {"snapshot": null, "kind": "merge", "socket": "/run/vm/disk.sock",
                "attached": true, "io": io(n, 1, 190, 410, 300)},
            {"snapshot": "nightly", "kind": "snapshot", "socket": "/run/vm/nightly.sock",
                "attached": true, "io": io(n, 2, 140, 0, 900)},
            {"snapshot": "broken", "kind": "snapshot", "socket": "/run/vm/broken.sock",
                "attached": false, "io": io(n, 3, 0, 0, 0)}
        ],
        "snapshots": [
            snapshot("before", "merging", 362),
            snapshot("nightly", "active", 811),
            snapshot("broken", "invalid", 1000)
        ],
        "merge": {"snapshot": "before", "chunks_done": 215_000, "chunks_left": 260_000,
            "bytes_per_second": 220_200_960, "rate_limit": 314_572_800, "seconds_left": 4,
            "paused": false, "error": null},
        "rollback_at_reset": null
    })
}

fn events() -> Vec<Value> {
    let event = |seq: u64, time: &str, snapshot: Option<&str>, mut rest: Value| {
        rest["instance"] = json!("9a353fea1b4971bc");
        rest["seq"] = json!(seq);
        rest["time"] = json!(format!("2026-11-22T16:{time}.125Z"));
        if let Some(name) = snapshot {
            rest["snapshot"] = json!(name);
        }
        rest
    };
    let taken = |cow: &str| json!({"kind": "snapshot-added", "cow": cow, "at_start": false});
    vec![
        event(7, "31:02", Some("before"), taken("/vm/before.cow")),
        event(8, "40:11", Some("nightly"), taken("/vm/nightly.cow")),
        event(
            9,
            "52:40",
            Some("nightly"),
            json!({"kind": "usage-threshold", "percent": 80}),
        ),
        event(
            10,
            "55:25",
            Some("before"),
            json!({"kind": "handover", "chunks": 475_000, "follow": false, "at_start": false}),
        ),
    ]
}

fn said(status: Value, events: Vec<Value>) -> Result<Said, ClientError> {
    let status = serde_json::from_value(status).unwrap();
    Ok(Said { status, events })
}

/// After some busy seconds.
fn sample() -> Model {
    let mut model = Model::default();
    let start = Instant::now();
    for n in 0..=60 {
        let events = if n == 0 { events() } else { Vec::new() };
        model.take(Answer {
            at: start + Duration::from_secs(n),
            result: said(status(n), events),
        });
    }
    model
}

fn drawn(model: &Model, width: u16, height: u16, terminal: Terminal) -> Buffer {
    let mut drawer = Drawer::new(TestBackend::new(width, height)).unwrap();
    let around = Around {
        clock: "16:55:28 UTC",
        every: 1.0,
        terminal,
    };
    drawer.draw(|frame| draw(frame, model, &around)).unwrap();
    drawer.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    let rows = buffer.content.chunks(width);
    rows.map(|row| {
        let text: String = row.iter().map(Cell::symbol).collect();
        text.trim_end().to_owned()
    })
    .collect()
}

fn text(model: &Model, width: u16, height: u16) -> String {
    let lines = lines(&drawn(model, width, height, TERMINAL));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Run it with SNAPBACK_WRITE_PICTURES=1 to write both again.
#[test]
fn the_screen_in_the_documents_is_what_is_drawn() {
    let buffer = drawn(&sample(), 80, 24, TERMINAL);
    assert_block(
        "docs/watching.md",
        "snapback top ",
        &text(&sample(), 80, 24),
    );
    assert_shown("docs/top.svg", &svg(&buffer));
}

#[test]
fn a_busy_volume_is_whole_on_80_by_24() {
    let screen = text(&sample(), 80, 24);
    for part in [
        "snapback top  origin /vm/disk.img, 20 GiB, read-write               16:55:28 UTC",
        "\norigin       merge     attached ",
        "\nbefore           merging      ███████",
        " 81.0 %  4 GiB of 5 GiB\n",
        "\n45.2 %, 839.8 MiB of 1.8 GiB, 210 MiB/s of at most 300 MiB/s, 4 s left\n",
        "\n16:52:40  nightly: 80 % of the COW is used\n",
        "\n16:55:25  before: the origin shows the snapshot's content, 475000 chunks to mer…\n",
        "\nq quits ",
    ] {
        assert!(screen.contains(part), "{part}\n{screen}");
    }
    let latency = screen.lines().find(|line| line.starts_with("  latency"));
    let latency = latency.unwrap();
    let signs = |c: &char| ('▁'..='█').contains(c);
    let heights: std::collections::BTreeSet<char> = latency.chars().filter(signs).collect();
    assert!(heights.len() > 3 && heights.contains(&'█'), "{latency}");
    assert!(latency.contains("  highest 1.2 ms"), "{latency}");
}

#[test]
fn every_size_has_the_title_and_the_help_and_never_fails() {
    let model = sample();
    for (width, height) in [
        (1, 1),
        (20, 4),
        (40, 10),
        (80, 24),
        (81, 25),
        (200, 50),
        (500, 3),
    ] {
        let lines = lines(&drawn(&model, width, height, TERMINAL));
        assert_eq!(lines.len(), usize::from(height));
        if width >= 40 && height > 3 {
            assert!(lines[0].starts_with("snapback"), "{lines:#?}");
            assert!(lines[lines.len() - 1].starts_with("q quits"), "{lines:#?}");
        }
    }
    let wide = text(&model, 200, 50);
    assert!(wide.contains("16:31:02  before: snapshot taken"), "{wide}");
    drawn(&Model::default(), 80, 24, TERMINAL);
}

#[test]
fn many_views_and_snapshots_leave_room_for_the_rest() {
    let mut many = status(1);
    for n in 0..100 {
        let name = format!("s{n}-{}", "x".repeat(50));
        let view = many["views"][0].clone();
        let add = |list: &mut Value, one| list.as_array_mut().unwrap().push(one);
        add(&mut many["snapshots"], snapshot(&name, "active", 100));
        add(&mut many["views"], view);
    }
    many["merge"]["error"] = json!("reading the COW at 123 failed: I/O error ".repeat(9));
    let mut model = sample();
    model.take(Answer {
        at: Instant::now(),
        result: said(many, events()),
    });
    let screen = text(&model, 80, 24);
    assert_eq!(
        screen.matches("more lines do not fit").count(),
        2,
        "{screen}"
    );
    assert!(
        screen.contains("MERGE of before") && screen.contains("q quits"),
        "{screen}"
    );
}

#[test]
fn a_daemon_that_is_gone_is_told_and_what_was_known_stays() {
    let mut model = sample();
    model.take(Answer {
        at: Instant::now(),
        result: Err(ClientError::Denied("/run/c.sock".into())),
    });
    let screen = text(&model, 80, 24);
    assert!(
        screen.contains("the daemon does not answer, trying again: no permission to connect"),
        "{screen}"
    );
    assert!(screen.contains("MERGE of before"), "{screen}");
    model.take(Answer {
        at: Instant::now(),
        result: said(status(1), Vec::new()),
    });
    assert!(!text(&model, 80, 24).contains("does not answer"));
}

#[test]
fn without_colours_or_signs_nothing_is_lost() {
    let plain = Terminal {
        colour: false,
        unicode: false,
        ..TERMINAL
    };
    let buffer = drawn(&sample(), 80, 24, plain);
    let has_colour = |cell: &Cell| cell.fg != Color::Reset || cell.bg != Color::Reset;
    assert!(!buffer.content.iter().any(has_colour));
    let screen = lines(&buffer).join("\n");
    assert!(screen.is_ascii(), "{screen}");
    assert!(screen.contains("invalid      ###"), "{screen}");
    let coloured = drawn(&sample(), 80, 24, TERMINAL);
    assert!(coloured.content.iter().any(|cell| cell.fg == Color::Red));
}

/// A screen as a picture, cell by cell, so that it does not depend on a font's widths.
fn svg(buffer: &Buffer) -> String {
    const CELL: (usize, usize) = (9, 19);
    const EDGE: usize = 14;
    let (columns, rows) = (
        usize::from(buffer.area.width),
        usize::from(buffer.area.height),
    );
    let (width, height) = (columns * CELL.0 + 2 * EDGE, rows * CELL.1 + 2 * EDGE);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, \
         monospace\" font-size=\"15\" xml:space=\"preserve\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#16181d\"/>\n"
    );
    for (row, cells) in buffer.content.chunks(columns).enumerate() {
        let y = EDGE + row * CELL.1;
        let mut column = 0;
        for run in cells.chunk_by(|a, b| look(a) == look(b)) {
            let (x, shown) = (EDGE + column * CELL.0, run.len() * CELL.0);
            column += run.len();
            let content: String = run.iter().map(Cell::symbol).collect();
            if content.trim().is_empty() {
                continue;
            }
            if let Some(height) = block_height(&run[0]) {
                let (fill, weight) = (look(&run[0]).0, if height == 0 { "0.3" } else { "1" });
                let height = if height == 0 { 8 } else { height };
                let tall = (CELL.1 - 4) * height / 8;
                let top = y + CELL.1 - 3 - tall;
                text.push_str(&format!(
                    "<rect x=\"{x}\" y=\"{top}\" width=\"{shown}\" height=\"{tall}\" fill=\"{fill}\" fill-opacity=\"{weight}\"/>\n"
                ));
                continue;
            }
            let escaped = content.replace('&', "&amp;").replace('<', "&lt;");
            let (fill, weight, _) = look(&run[0]);
            let base = y + 15;
            text.push_str(&format!(
                "<text x=\"{x}\" y=\"{base}\" textLength=\"{shown}\" fill=\"{fill}\"{weight}>{escaped}</text>\n"
            ));
        }
    }
    text + "</svg>\n"
}

/// Colour, weight and, for a block, its height: cells that look the same are one run.
fn look(cell: &Cell) -> (&'static str, &'static str, Option<usize>) {
    let colour = match cell.fg {
        Color::Green => "#5fd38d",
        Color::Cyan => "#56c8d8",
        Color::Yellow => "#e8c55b",
        Color::Red => "#f2777a",
        _ if cell.modifier.contains(Modifier::DIM) => "#8a919c",
        _ => "#d5dae2",
    };
    let bold = cell.modifier.contains(Modifier::BOLD);
    let weight = if bold { " font-weight=\"bold\"" } else { "" };
    (colour, weight, block_height(cell))
}

/// Of a block in eighths of a line; 0 for a light one over the whole line.
fn block_height(cell: &Cell) -> Option<usize> {
    let blocks = "░▁▂▃▄▅▆▇█";
    blocks.chars().position(|c| cell.symbol() == c.to_string())
}
