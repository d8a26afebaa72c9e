//! An event as people read it: one line.

use serde_json::Value;

use super::api::Seen;
use super::events::{Event, FailedDevice, FailedIo, Happening, InvalidCause};
use super::render::printable;
use crate::size;

/// `NUMBER  TIME  SNAPSHOT: what happened`. Of a kind that is not known here, its name
/// and its fields as they came.
pub fn line(event: &Value) -> String {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    let number = event.get("seq").and_then(Value::as_u64).unwrap_or(0);
    let time = printable(text("time").unwrap_or("-"));
    let what = match serde_json::from_value::<Event>(event.clone()) {
        Ok(known) => happening(&known.what),
        Err(_) => unknown(event),
    };
    match text("snapshot") {
        Some(name) => format!("{number:>4}  {time}  {}: {what}", printable(name)),
        None => format!("{number:>4}  {time}  {what}"),
    }
}

fn happening(what: &Happening) -> String {
    let at = |what: &str, socket: &Option<String>| match socket {
        Some(socket) => format!("{what} at {}", printable(socket)),
        None => format!("{what} at the given descriptor"),
    };
    match what {
        Happening::Started { version } => {
            format!("the daemon has started (snapback {})", printable(version))
        }
        Happening::SnapshotAdded { cow, at_start } => {
            let how = if *at_start { "taken up" } else { "taken" };
            format!("snapshot {how}, COW {}", printable(cow))
        }
        Happening::SnapshotRemoved => "snapshot removed".to_owned(),
        Happening::SnapshotInvalid {
            reason,
            error,
            failed,
        } => format!(
            "the snapshot is invalid for good: {}",
            why_invalid(*reason, error.as_deref(), *failed)
        ),
        Happening::SnapshotOverflow => {
            "the COW is full: reads go on, writes fail; give it more room with snapback grow"
                .to_owned()
        }
        Happening::SnapshotGrown { size } => format!("the COW has {} now", size::exact(*size)),
        Happening::UsageThreshold { percent } => format!("{percent} % of the COW is used"),
        Happening::RollbackPending => "rollback at the guest's next reset".to_owned(),
        Happening::RollbackCancelled { reason } => {
            let why = match reason.as_str() {
                "asked" => "as it was asked for".to_owned(),
                "removed" => "the snapshot was removed".to_owned(),
                "invalid" => "the snapshot became invalid".to_owned(),
                "replaced" => "another rollback or merge took its place".to_owned(),
                "failed" => "the handover failed".to_owned(),
                other => printable(other),
            };
            format!("the rollback is called off: {why}")
        }
        Happening::RollbackFailed { error } => {
            format!(
                "the guest was reset, but the rollback failed: {}",
                printable(error)
            )
        }
        Happening::GuestHeld { note, .. } => printable(note),
        Happening::Handover {
            chunks, at_start, ..
        } => {
            let again = if *at_start { " again" } else { "" };
            format!("the origin shows the snapshot's content{again}, {chunks} chunks to merge")
        }
        Happening::MergePaused => "merge paused".to_owned(),
        Happening::MergeResumed => "merge goes on".to_owned(),
        Happening::MergeFailed { reason, retry, .. } => {
            format!("merge failed: {}; {}", printable(reason), retry.advice())
        }
        Happening::OriginFlushFailed { error } => format!(
            "{}; guests' flushes fail until the daemon is started again",
            printable(error)
        ),
        Happening::MergeDone { chunks } => {
            format!("merged, {chunks} chunks; the COW is not needed any more")
        }
        Happening::FrontEndConnected { socket } => at("front end connected", socket),
        Happening::FrontEndLeft { socket } => at("front end left", socket),
        Happening::GuestReset { socket, seen } => {
            let what = match seen {
                Seen::Firmware => "machine reset or started: its firmware begins",
                _ => "guest started",
            };
            at(what, socket)
        }
        Happening::DriverStarted { socket, seen } => {
            let what = match seen {
                Seen::Firmware => "firmware's driver started",
                Seen::Boot => "the machine's system starts",
                Seen::DriverRestart => "the guest's driver was restarted",
                Seen::NewGuest => "a system's driver started",
                Seen::Unclear => "a guest's driver started, of a new guest or an old one",
                Seen::Program => "a program looks at the disk",
            };
            at(what, socket)
        }
        Happening::RollbackWaits { reason, .. } => {
            format!("the rollback still waits: {}", printable(reason))
        }
        Happening::Stopping => "the daemon stops".to_owned(),
        Happening::Lost { count } => {
            format!("{count} events are missing: only the newest are kept")
        }
    }
}

fn why_invalid(reason: InvalidCause, error: Option<&str>, failed: Option<FailedIo>) -> String {
    let error = printable(error.unwrap_or("an I/O error"));
    match (reason, failed.map(|f| f.device)) {
        (InvalidCause::Full, _) => "its COW is full; the origin is not affected".to_owned(),
        (InvalidCause::Loaded, _) => "it was invalid when the daemon started".to_owned(),
        (InvalidCause::Io, Some(FailedDevice::Cow)) => {
            format!("{error}; the origin is not affected")
        }
        (InvalidCause::Io, Some(FailedDevice::Origin)) => {
            format!("{error}; what the snapshot needed from there could not be saved")
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
                 what the snapshot needed from there could not be saved",
            ),
            (
                Some("a"),
                json!({"kind": "merge-failed", "reason": "flushing the origin /o failed: bad", "retry": "restart",
                    "device": "origin", "operation": "flush", "offset": null}),
                "   1  T  a: merge failed: flushing the origin /o failed: bad; what is merged stays merged; when the cause \
                 is removed, stop the daemon and start it again: it goes on with the merge",
            ),
            (
                Some("a"),
                json!({"kind": "merge-failed", "reason": "writing the origin /o at byte 0 failed: bad", "retry": "resume",
                    "device": "origin", "operation": "write", "offset": 0}),
                "   1  T  a: merge failed: writing the origin /o at byte 0 failed: bad; nothing is lost; when the cause is \
                 removed, go on with `snapback merge --resume`",
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
        // And so is what is no event at all.
        assert_eq!(line(&json!([1])), "   0  -  ?");
    }

    #[test]
    fn an_event_cannot_act_on_the_terminal() {
        let rest = json!({"kind": "merge-failed", "reason": "\u{1b}[2J\n"});
        let shown = told(Some("\u{1b}c"), rest);
        assert!(shown.chars().all(|c| !c.is_control()), "{shown:?}");
    }
}
