//! Events as lines of text for people.

use serde_json::Value;

use super::api::Seen;
use super::events::{CancelCause, Event, EventKind, FailedDevice, FailedIo, InvalidCause};
use super::render::printable;
use crate::size;

/// `NUMBER  TIME  SNAPSHOT: what happened`. An event of an unknown kind is shown with its
/// name and fields as they are.
pub fn line(event: &Value) -> String {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    let number = event.get("seq").and_then(Value::as_u64).unwrap_or(0);
    let time = printable(text("time").unwrap_or("-"));
    let what = match serde_json::from_value::<Event>(event.clone()) {
        Ok(known) => describe(&known.kind),
        Err(_) => unknown(event),
    };
    match text("snapshot") {
        Some(name) => format!("{number:>4}  {time}  {}: {what}", printable(name)),
        None => format!("{number:>4}  {time}  {what}"),
    }
}

// Long: one arm for each kind of event.
fn describe(event: &EventKind) -> String {
    match event {
        EventKind::Started { version } => {
            format!("the daemon has started (snapback {})", printable(version))
        }
        EventKind::SnapshotAdded { cow, at_start } => {
            let how = if *at_start { "loaded" } else { "taken" };
            format!("snapshot {how}, COW {}", printable(cow))
        }
        EventKind::SocketClosed { socket } => {
            format!("the socket {} is closed", printable(socket))
        }
        EventKind::SnapshotRemoved => "snapshot removed".to_owned(),
        EventKind::SnapshotInvalid {
            reason,
            error,
            failed,
        } => invalid(*reason, error.as_deref(), *failed),
        EventKind::SnapshotOverflow => {
            "the COW is full: reads succeed, writes fail; enlarge it with snapback grow".to_owned()
        }
        EventKind::SnapshotGrown { size } => format!("the COW has {} now", size::in_words(*size)),
        EventKind::OriginLarger { size } => format!(
            "the disk's file has {}, more than the disk; snapback resize shows all of it to guests",
            size::in_words(*size)
        ),
        EventKind::OriginResized { size } => format!("the disk has {} now", size::in_words(*size)),
        EventKind::UsageThreshold { percent } => format!("{percent} % of the COW is used"),
        EventKind::RollbackPending => "rollback at the guest's next reset".to_owned(),
        EventKind::RollbackCancelled { reason } => cancelled(*reason),
        EventKind::RollbackFailed { error } => {
            let error = printable(error);
            format!("the guest was reset, but the rollback failed: {error}")
        }
        EventKind::GuestHeld { note, .. } => printable(note),
        EventKind::Handover {
            chunks, at_start, ..
        } => {
            let again = if *at_start { " again" } else { "" };
            format!("the origin shows the snapshot's content{again}, {chunks} chunks to merge")
        }
        EventKind::MergePaused => "merge paused".to_owned(),
        EventKind::MergeResumed => "merge resumed".to_owned(),
        EventKind::MergeFailed { reason, retry, .. } => {
            format!("merge failed: {}; {}", printable(reason), retry.advice())
        }
        EventKind::OriginFlushFailed { error } => {
            let error = printable(error);
            format!("{error}; guests' flushes fail until the daemon is restarted")
        }
        EventKind::MergeDone { chunks } => {
            format!("merged, {chunks} chunks; the COW is not needed any more")
        }
        EventKind::FrontEndConnected { socket } => at("front end connected", socket),
        EventKind::FrontEndLeft { socket } => at("front end left", socket),
        EventKind::FrontEndWaits { socket } => at(WAITS, socket),
        EventKind::GuestReset { socket, seen } => at(reset(*seen), socket),
        EventKind::DriverStarted { socket, seen } => at(driver(*seen), socket),
        EventKind::RollbackWaits { reason, .. } => {
            format!("the rollback is still pending: {}", printable(reason))
        }
        EventKind::IoSlow { socket, io } => at(&io.to_string(), socket),
        EventKind::IoSlowEnded { socket, seconds } => at(
            &format!("no request takes long any more; the oldest took {seconds} s"),
            socket,
        ),
        EventKind::IoFailed { socket, io } => at(&io.to_string(), socket),
        EventKind::Stopping => "the daemon stops".to_owned(),
        EventKind::Lost { count } => {
            format!("{count} events are missing: only the newest are kept")
        }
    }
}

fn at(what: &str, socket: &Option<String>) -> String {
    match socket {
        Some(socket) => format!("{what} at {}", printable(socket)),
        None => format!("{what} at the given descriptor"),
    }
}

const fn reset(seen: Seen) -> &'static str {
    match seen {
        Seen::Firmware => "machine reset or started: its firmware starts",
        Seen::Boot | Seen::DriverRestart | Seen::NewGuest | Seen::Unclear | Seen::Program => {
            "guest started"
        }
    }
}

const fn driver(seen: Seen) -> &'static str {
    match seen {
        Seen::Firmware => "firmware's driver started",
        Seen::Boot => "the machine's system starts",
        Seen::DriverRestart => "the guest's driver was restarted",
        Seen::NewGuest => "a system's driver started",
        Seen::Unclear => "the driver of a new or an earlier guest started",
        Seen::Program => "a program opened the disk",
    }
}

const WAITS: &str = "another front end waits until the connected one leaves";

fn cancelled(cause: CancelCause) -> String {
    let why = match cause {
        CancelCause::Asked => "as requested",
        CancelCause::Removed => "the snapshot was removed",
        CancelCause::Invalid => "the snapshot became invalid",
        CancelCause::Replaced => "another rollback or merge took its place",
        CancelCause::Failed => "the handover failed",
    };
    format!("the rollback is cancelled: {why}")
}

fn invalid(reason: InvalidCause, error: Option<&str>, failed: Option<FailedIo>) -> String {
    let why = why_invalid(reason, error, failed);
    format!("the snapshot is invalid for good: {why}")
}

fn why_invalid(reason: InvalidCause, error: Option<&str>, failed: Option<FailedIo>) -> String {
    let error = printable(error.unwrap_or("an I/O error"));
    match (reason, failed.map(|f| f.device)) {
        (InvalidCause::Full, _) => "its COW is full; the origin is not affected".to_owned(),
        (InvalidCause::Loaded, _) => "it was invalid when the daemon started".to_owned(),
        (InvalidCause::Io, Some(FailedDevice::Cow | FailedDevice::Record)) => {
            format!("{error}; the origin is not affected")
        }
        (InvalidCause::Io, Some(FailedDevice::Origin)) => {
            format!("{error}; the data that the snapshot needed from the origin could not be saved")
        }
        (InvalidCause::Io, None) => error,
    }
}

fn unknown(event: &Value) -> String {
    let kind = event.get("kind").and_then(Value::as_str).unwrap_or("?");
    let mut text = printable(kind);
    let known = ["instance", "seq", "time", "snapshot", "kind"];
    for (name, value) in event.as_object().into_iter().flatten() {
        if !known.contains(&name.as_str()) {
            text.push_str(&printable(&format!(" {name}={value}")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(snapshot: Option<&str>, rest: Value) -> String {
        let mut event = json!({"instance": "0", "seq": 1, "time": "T", "snapshot": snapshot});
        let (all, rest) = (event.as_object_mut().unwrap(), rest.as_object().unwrap());
        all.extend(rest.clone());
        line(&event)
    }

    #[test]
    fn every_event_is_one_line_that_names_the_snapshot() {
        for (snapshot, rest, expected) in [
            (
                Some("a"),
                json!({"kind": "usage-threshold", "percent": 85}),
                "   1  T  a: 85 % of the COW is used",
            ),
            (
                Some("a"),
                json!({"kind": "snapshot-invalid", "reason": "io", "error": "writing the COW /c at byte 8192 failed: No space",
                    "device": "cow", "operation": "write", "offset": 8192}),
                "   1  T  a: the snapshot is invalid for good: writing the COW /c at byte 8192 failed: No space; \
                 the origin is not affected",
            ),
            (
                Some("a"),
                json!({"kind": "snapshot-invalid", "reason": "io", "error": "reading the origin /o at byte 0 failed: bad",
                    "device": "origin", "operation": "read", "offset": 0}),
                "   1  T  a: the snapshot is invalid for good: reading the origin /o at byte 0 failed: bad; \
                 the data that the snapshot needed from the origin could not be saved",
            ),
            (
                Some("a"),
                json!({"kind": "merge-failed", "reason": "flushing the origin /o failed: bad", "retry": "restart",
                    "device": "origin", "operation": "flush", "offset": null}),
                "   1  T  a: merge failed: flushing the origin /o failed: bad; what is merged stays merged; remove the \
                 cause and restart the daemon, which continues the merge",
            ),
            (
                Some("a"),
                json!({"kind": "merge-failed", "reason": "writing the origin /o at byte 0 failed: bad", "retry": "resume",
                    "device": "origin", "operation": "write", "offset": 0}),
                "   1  T  a: merge failed: writing the origin /o at byte 0 failed: bad; nothing is lost; remove the cause \
                 and continue with `snapback merge --resume`",
            ),
            (
                None,
                json!({"kind": "stopping"}),
                "   1  T  the daemon stops",
            ),
            (
                None,
                json!({"kind": "front-end-left", "socket": null}),
                "   1  T  front end left at the given descriptor",
            ),
            (
                None,
                json!({"kind": "front-end-waits", "socket": "/s"}),
                "   1  T  another front end waits until the connected one leaves at /s",
            ),
            (
                None,
                json!({"kind": "lost", "count": 3}),
                "   1  T  3 events are missing: only the newest are kept",
            ),
        ] {
            assert_eq!(told(snapshot, rest), expected);
        }
    }

    #[test]
    fn a_kind_of_a_later_version_is_shown_as_it_came() {
        let rest = json!({"kind": "disk-resized", "sectors": 8, "why": "x\ny"});
        let shown = told(Some("a"), rest);
        assert_eq!(shown, r#"   1  T  a: disk-resized sectors=8 why="x\ny""#);
        // The same holds for something that is not an event at all.
        assert_eq!(line(&json!([1])), "   0  -  ?");
    }

    #[test]
    fn an_event_cannot_act_on_the_terminal() {
        let rest = json!({"kind": "merge-failed", "reason": "\u{1b}[2J\n"});
        let shown = told(Some("\u{1b}c"), rest);
        assert!(shown.chars().all(|c| !c.is_control()), "{shown:?}");
    }
}
