//! A status as text for people, and in the format of `dmsetup`.

use std::fmt::Write as _;
use std::path::Path;

use super::api::{
    MergeOutcome, MergeStatus, SnapshotStatus, State, ViewKind, ViewStatus, VolumeStatus,
};
use super::socket_status::GroupAndMode;
use crate::size;
use crate::units::SECTOR_SIZE;

/// The pending rollback, if there is one, and why it has not happened yet.
pub fn rollback_lines(status: &VolumeStatus) -> Vec<String> {
    let Some(name) = &status.rollback_at_reset else {
        return Vec::new();
    };
    let pending = status.rollback.as_ref();
    let any = pending.is_some_and(|p| !p.reset.is_machine());
    let or_else = if any {
        ", or when any driver starts"
    } else {
        ""
    };
    let name = printable(name);
    let mut lines = vec![format!(
        "rollback to {name}: at the guest's next reset{or_else}"
    )];
    let note = pending.and_then(|p| p.note.as_ref());
    lines.extend(note.map(|note| format!("  it is still pending: {}", printable(note))));
    lines
}

/// The disk in one line.
pub fn origin_line(status: &VolumeStatus) -> String {
    let origin = &status.origin;
    let access = if origin.read_only {
        "read-only"
    } else {
        "read-write"
    };
    format!(
        "origin {}, {}, {access}",
        printable(&origin.path),
        size::human(bytes(origin.sectors))
    )
}

/// Who may connect to the sockets, as far as it was set.
pub fn access_lines(status: &VolumeStatus) -> Vec<String> {
    let line = |what: &str, access: &GroupAndMode| {
        let group = access.group.as_deref().map(printable);
        let group = group.map(|group| format!("group {group}, "));
        format!(
            "{what}: {}mode {}",
            group.unwrap_or_default(),
            printable(&access.mode)
        )
    };
    let sockets = status.access.sockets.as_ref();
    let control = status.access.control.as_ref();
    let sockets = sockets.map(|access| line("sockets", access));
    let control = control.map(|access| line("control socket", access));
    sockets.into_iter().chain(control).collect()
}

/// For people: the origin, its views, its snapshots, and the operations in progress.
pub fn human(status: &VolumeStatus) -> String {
    let mut text = origin_line(status) + "\n";
    for line in access_lines(status) {
        text.push_str(&line);
        text.push('\n');
    }
    if !status.views.is_empty() {
        text.push('\n');
        text.push_str(&columns(
            &["VIEW", "SHOWS", "FRONT END", "SOCKET"],
            status.views.iter().map(view_row),
        ));
    }
    if !status.snapshots.is_empty() {
        text.push('\n');
        text.push_str(&snapshots(&status.snapshots));
    }
    let merge = status.merge.as_ref().map(merge_line);
    let lines: Vec<String> = merge.into_iter().chain(news(status)).collect();
    if !lines.is_empty() {
        text.push('\n');
    }
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// What is out of the ordinary, besides a merge that runs: slow requests, a pending rollback, the
/// end of the last merge.
pub fn news(status: &VolumeStatus) -> Vec<String> {
    let views = status.views.iter();
    let mut news: Vec<String> = views
        .flat_map(|view| hint_line(view).into_iter().chain(slow_line(view)))
        .collect();
    news.extend(rollback_lines(status));
    if status.merge.is_none()
        && let Some(outcome) = &status.last_merge
    {
        let name = printable(&outcome.snapshot);
        news.push(match &outcome.error {
            None => format!("merge of {name}: done, {} chunks", outcome.chunks),
            Some(error) => format!("merge of {name}: failed: {}", printable(error)),
        });
        news.extend(left_over_line(outcome));
    }
    news
}

/// The COW that the merge has left.
fn left_over_line(outcome: &MergeOutcome) -> Option<String> {
    let cow = printable(outcome.cow.as_deref()?);
    Some(format!(
        "{cow} can be removed: all that it kept is in the disk"
    ))
}

fn view_name(view: &ViewStatus) -> String {
    let snapshot = view.snapshot.as_deref();
    snapshot.map_or("origin".to_owned(), printable)
}

/// What keeps a view's guest from using it.
fn hint_line(view: &ViewStatus) -> Option<String> {
    let hint = view.hint.as_deref()?;
    Some(format!("view {}: {}", view_name(view), printable(hint)))
}

/// Requests of a view's guest that take long.
fn slow_line(view: &ViewStatus) -> Option<String> {
    let name = view_name(view);
    view.slow_io.map(|slow| format!("view {name}: {slow}"))
}

/// For people: the table of `snapshots` only.
pub fn snapshots(snapshots: &[SnapshotStatus]) -> String {
    let head = [
        "NAME", "STATE", "USED", "OF", "USE%", "CHUNK", "TYPE", "COW",
    ];
    columns(&head, snapshots.iter().map(snapshot_row))
}

/// For people: the progress of a merge.
pub fn merge_line(merge: &MergeStatus) -> String {
    let name = printable(&merge.snapshot);
    let total = merge.chunks_done.saturating_add(merge.chunks_left);
    let share = if total == 0 {
        percent(1, 1)
    } else {
        percent(merge.chunks_done, total)
    };
    let mut line = format!(
        "merge of {name}: {share} done, {} of {total} chunks",
        merge.chunks_done
    );
    if let Some(error) = &merge.error {
        let _ = write!(line, ", failed: {}", printable(error));
        let advice = merge.retry.map(|retry| format!("; {}", retry.advice()));
        line.push_str(&advice.unwrap_or_default());
    } else if merge.paused {
        line.push_str(", paused");
    } else {
        let _ = write!(line, ", {}/s", size::human(merge.bytes_per_second));
        if let Some(limit) = merge.rate_limit {
            let _ = write!(line, " of at most {}/s", size::human(limit));
        }
        if let Some(seconds) = merge.seconds_left {
            let _ = write!(line, ", {} left", duration(seconds));
        }
    }
    line
}

/// The output that `dmsetup status` would have: the origin, then every snapshot (or only
/// `name`).
pub fn dm_status(status: &VolumeStatus, name: Option<&str>) -> String {
    let origin_sectors = status.origin.sectors;
    let mut text = String::new();
    if name.is_none() {
        let origin = origin_name(status);
        let _ = match merging(status) {
            Some(snapshot) => writeln!(
                text,
                "{origin}: 0 {origin_sectors} snapshot-merge {}",
                usage(snapshot)
            ),
            // dmsetup prints the space before the empty status, too.
            None => writeln!(text, "{origin}: 0 {origin_sectors} snapshot-origin "),
        };
    }
    for snapshot in status
        .snapshots
        .iter()
        .filter(|s| name.is_none_or(|name| s.name == name))
    {
        let (shown, sectors) = (&snapshot.name, length(status, snapshot));
        let _ = match (is_merging(snapshot), shows_merge(status, snapshot)) {
            (false, _) => writeln!(text, "{shown}: 0 {sectors} snapshot {}", usage(snapshot)),
            // The view of a snapshot that follows its merge is a merge view.
            (true, true) => writeln!(
                text,
                "{shown}: 0 {sectors} snapshot-merge {}",
                usage(snapshot)
            ),
            // After the handover Linux reports the old snapshot as invalid.
            (true, false) => writeln!(text, "{shown}: 0 {sectors} snapshot Invalid"),
        };
    }
    text
}

/// The output that `dmsetup table` would have.
pub fn table(status: &VolumeStatus) -> String {
    let (sectors, device) = (status.origin.sectors, &status.origin.device);
    let store = |sectors: u64, target: &str, s: &SnapshotStatus| {
        let features = [
            (s.discard_zeroes_cow, "discard_zeroes_cow"),
            (s.discard_passdown_origin, "discard_passdown_origin"),
        ];
        let features: Vec<&str> = features
            .iter()
            .filter_map(|(on, name)| on.then_some(*name))
            .collect();
        let group = match features.len() {
            0 => String::new(),
            n => format!(" {n} {}", features.join(" ")),
        };
        format!(
            "0 {sectors} {target} {device} {} {} {}{group}",
            s.cow_device,
            s.store_type.letters(),
            s.chunk_sectors
        )
    };
    let mut text = String::new();
    let _ = match merging(status) {
        Some(snapshot) => writeln!(
            text,
            "{}: {}",
            origin_name(status),
            store(sectors, "snapshot-merge", snapshot)
        ),
        None => writeln!(
            text,
            "{}: 0 {sectors} snapshot-origin {device}",
            origin_name(status)
        ),
    };
    for snapshot in &status.snapshots {
        let follows = is_merging(snapshot) && shows_merge(status, snapshot);
        let target = if follows {
            "snapshot-merge"
        } else {
            "snapshot"
        };
        let line = store(length(status, snapshot), target, snapshot);
        let _ = writeln!(text, "{}: {line}", snapshot.name);
    }
    text
}

/// A state as in `status --json`.
pub const fn state_word(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::Overflow => "overflow",
        State::Invalid => "invalid",
        State::Merging => "merging",
        State::MergePaused => "merge-paused",
        State::MergeFailed => "merge-failed",
    }
}

/// A duration in its two largest units.
pub fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// `part` of `whole` with one decimal, rounded down, so that 100 % means all of it.
pub fn percent(part: u64, whole: u64) -> String {
    let permille = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{} %", permille / 10, permille % 10)
}

/// `text` with control characters escaped, so that it cannot act on a terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut clean, c| {
            if c.is_control() {
                clean.extend(c.escape_default())
            } else {
                clean.push(c)
            }
            clean
        })
}

/// A view in the columns of the status; the last one is its socket.
pub fn view_row(view: &ViewStatus) -> Vec<String> {
    let shows = match view.kind {
        ViewKind::Origin => "origin",
        ViewKind::Snapshot => "snapshot",
        ViewKind::Merge => "merge",
    };
    vec![
        printable(view.snapshot.as_deref().unwrap_or("origin")),
        match view.read_only {
            true => format!("{shows}, read-only"),
            false => shows.to_owned(),
        },
        match (view.attached, view.waiting) {
            (false, 0) => "-".to_owned(),
            (true, 0) => "attached".to_owned(),
            (_, waiting) => format!("attached, {waiting} waiting"),
        },
        match (&view.socket, &view.connects) {
            (Some(path), _) => printable(path),
            (None, Some(theirs)) => format!("connects to {}", printable(theirs)),
            (None, None) => "-".to_owned(),
        },
    ]
}

fn snapshot_row(s: &SnapshotStatus) -> Vec<String> {
    vec![
        printable(&s.name),
        state_word(s.state).to_owned(),
        size::human(bytes(s.allocated_sectors)),
        size::human(bytes(s.total_sectors)),
        // As in lvm2, a store with nothing but metadata is empty.
        if s.allocated_sectors == s.metadata_sectors {
            percent(0, 1)
        } else {
            percent(s.allocated_sectors, s.total_sectors)
        },
        size::exact(bytes(s.chunk_sectors)),
        type_word(s),
        printable(&s.cow),
    ]
}

/// The type of a snapshot's store.
pub fn type_word(s: &SnapshotStatus) -> String {
    match s.defer_entries {
        true => format!("{} deferred", s.store_type.letters()),
        false => s.store_type.letters().to_owned(),
    }
}

/// Left-aligned columns with two spaces between them, without trailing spaces.
pub fn columns(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|title| (*title).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Length of a snapshot in sectors. Older daemons do not report it; their snapshots are as
/// long as the origin.
const fn length(status: &VolumeStatus, s: &SnapshotStatus) -> u64 {
    if s.sectors == 0 {
        status.origin.sectors
    } else {
        s.sectors
    }
}

fn usage(s: &SnapshotStatus) -> String {
    match s.state {
        State::Invalid => "Invalid".to_owned(),
        State::MergeFailed => "Merge failed".to_owned(),
        State::Overflow => "Overflow".to_owned(),
        State::Active | State::Merging | State::MergePaused => {
            format!(
                "{}/{} {}",
                s.allocated_sectors, s.total_sectors, s.metadata_sectors
            )
        }
    }
}

const fn is_merging(s: &SnapshotStatus) -> bool {
    matches!(
        s.state,
        State::Merging | State::MergePaused | State::MergeFailed
    )
}

fn merging(status: &VolumeStatus) -> Option<&SnapshotStatus> {
    status.snapshots.iter().find(|s| is_merging(s))
}

fn shows_merge(status: &VolumeStatus, snapshot: &SnapshotStatus) -> bool {
    status
        .views
        .iter()
        .any(|v| v.kind == ViewKind::Merge && v.snapshot.as_deref() == Some(&snapshot.name))
}

/// The origin has no name of its own, so its file's name without the extension is used.
fn origin_name(status: &VolumeStatus) -> String {
    let stem = Path::new(&status.origin.path).file_stem();
    printable(&stem.map_or_else(|| "origin".into(), |stem| stem.to_string_lossy()))
}

const fn bytes(sectors: u64) -> u64 {
    sectors.saturating_mul(SECTOR_SIZE)
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
