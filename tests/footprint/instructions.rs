//! Instructions, counted by callgrind: the same from run to run.

use std::process::Command;

use super::alone;
use super::bench::{Bench, CHUNK_SECTORS, Pattern};
use snapback::engine::RequestKind;

const WORK: &str = "SNAPBACK_COUNTED_WORK";
const EXCEPTIONS: u64 = 50_000;

/// The work whose instructions are counted, in a process of its own.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Reads of one chunk through the origin's view.
    Origin,
    /// The same through the snapshot's, of copied chunks.
    Copied,
    /// Of chunks that were not copied.
    Shared,
}

fn carry_out(work: Work, pattern: Pattern, requests: u64) {
    let mut bench = Bench::loaded(pattern, EXCEPTIONS);
    for n in 0..requests {
        let copied = pattern.place(n * 31 % EXCEPTIONS) * CHUNK_SECTORS;
        match work {
            Work::Origin => bench.origin(RequestKind::Read, copied, CHUNK_SECTORS),
            Work::Copied => bench.read(copied, CHUNK_SECTORS),
            Work::Shared => {
                let shared = pattern.place(EXCEPTIONS + n) * CHUNK_SECTORS;
                bench.read(shared, CHUNK_SECTORS);
            }
        }
    }
}

/// Does nothing in a test run; the tests below run it under callgrind.
#[test]
fn counted() {
    let Ok(text) = std::env::var(WORK) else {
        return;
    };
    let mut words = text.split(' ');
    let work = match words.next() {
        Some("Origin") => Work::Origin,
        Some("Copied") => Work::Copied,
        Some("Shared") => Work::Shared,
        other => panic!("{other:?}"),
    };
    let pattern = match words.next() {
        Some("Random") => Pattern::Random,
        Some("Row") => Pattern::Row,
        Some("Wide") => Pattern::Wide,
        Some("Small") => Pattern::Small,
        other => panic!("{other:?}"),
    };
    carry_out(work, pattern, words.next().unwrap().parse().unwrap());
}

/// Instructions of a process that does the work; `within`: only those of this function,
/// with what it calls.
fn collected(work: Work, pattern: Pattern, requests: u64, within: Option<&str>) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(within.map(|function| format!("--toggle-collect={function}")))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "instructions::counted", "--test-threads=1"])
        .env(WORK, format!("{work:?} {pattern:?} {requests}"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|line| line.contains("Collected :"));
    let number = line.and_then(|line| line.rsplit(' ').next());
    number.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

/// Instructions of one request, or of its part in the function `within`.
fn each(work: Work, pattern: Pattern, within: Option<&str>) -> f64 {
    const REQUESTS: u64 = 20_000;
    let collected = |requests| collected(work, pattern, requests, within);
    let more = collected(REQUESTS + 1000) - collected(1000);
    let each = more as f64 / REQUESTS as f64;
    let part = within.unwrap_or("all");
    println!("{work:?} {pattern:?}, {part}: {each:.1} instructions");
    each
}

fn has_valgrind() -> bool {
    let there = Command::new("valgrind").arg("--version").output().is_ok();
    if !there {
        println!("valgrind is not installed: nothing is counted");
    }
    there
}

#[test]
fn a_look_up_takes_about_100_instructions_and_no_more_on_16_tib() {
    let _alone = alone();
    if !has_valgrind() {
        return;
    }
    for (work, pattern) in [
        (Work::Copied, Pattern::Row),
        (Work::Copied, Pattern::Random),
        (Work::Shared, Pattern::Random),
        (Work::Copied, Pattern::Wide),
    ] {
        let look_up = each(work, pattern, Some("*ExceptionTable::get*"));
        assert!(look_up > 10.0, "the function is no longer called");
        // The test profile optimises little: the release build takes a tenth less.
        assert!(look_up <= 115.0, "{work:?} {pattern:?}: {look_up:.1}");
    }
    let small = each(Work::Copied, Pattern::Small, None);
    let wide = each(Work::Copied, Pattern::Wide, None);
    assert!(wide <= 1.1 * small, "16 TiB against 1 GiB");
    let origin = each(Work::Origin, Pattern::Random, None);
    let snapshot = each(Work::Copied, Pattern::Random, None);
    assert!(snapshot - origin <= 200.0, "what a snapshot adds to a read");
}
