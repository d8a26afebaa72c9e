use super::*;
use crate::control::api::Seen;

fn numbers(page: &EventPage) -> Vec<u64> {
    page.events.iter().map(|e| e.seq).collect()
}

fn overflows(log: &EventLog, count: usize) {
    for _ in 0..count {
        log.publish(Some("s"), EventKind::SnapshotOverflow);
    }
}

fn resets(log: &EventLog, count: usize) {
    for _ in 0..count {
        log.publish(
            None,
            EventKind::GuestReset {
                socket: None,
                seen: Seen::Firmware,
            },
        );
    }
}

#[test]
fn events_are_numbered_from_one_and_read_from_any_number_on() {
    let log = EventLog::default();
    assert_eq!(log.after(0, 10).newest, 0);
    overflows(&log, 5);
    assert_eq!(numbers(&log.after(0, 10)), [1, 2, 3, 4, 5]);
    assert_eq!(numbers(&log.after(3, 10)), [4, 5]);
    assert_eq!(numbers(&log.after(1, 2)), [2, 3]);
    assert_eq!(numbers(&log.after(5, 10)), [0; 0]);
    assert_eq!(log.after(5, 10).newest, 5);
}

#[test]
fn the_log_is_bounded_and_says_what_it_has_forgotten() {
    let log = EventLog::default();
    overflows(&log, KEPT_MAX);
    assert_eq!(log.after(0, usize::MAX).events[0].seq, 1, "all are kept");
    overflows(&log, 1000);
    let page = log.after(0, usize::MAX);
    assert_eq!(page.events.len(), 1 + KEPT_MAX);
    assert_eq!(page.events[0].kind, EventKind::Lost { count: 1000 });
    assert_eq!(page.events[0].seq, 1000);
    assert_eq!(page.events[1].seq, 1001);
    // Who has seen some of them lost the rest only.
    let page = log.after(990, 1);
    assert_eq!(page.events[0].kind, EventKind::Lost { count: 10 });
    assert_eq!(page.events.len(), 2);
    assert_eq!(numbers(&log.after(1000, 1)), [1001], "nothing was lost");
}

#[test]
fn a_guest_that_resets_without_end_does_not_push_out_what_happened() {
    let log = EventLog::default();
    resets(&log, 1);
    overflows(&log, 1);
    resets(&log, 100_000);
    overflows(&log, 1);
    let page = log.after(0, usize::MAX);
    let kinds: Vec<&EventKind> = page.events.iter().map(|e| &e.kind).collect();
    assert_eq!(kinds[0], &EventKind::Lost { count: 1 });
    assert_eq!(kinds[1], &EventKind::SnapshotOverflow);
    let lost = 100_000 - GUEST_KEPT_MAX as u64;
    assert_eq!(kinds[2], &EventKind::Lost { count: lost });
    assert_eq!(kinds.len(), 3 + GUEST_KEPT_MAX + 1);
    assert_eq!(page.events.last().unwrap().seq, 100_003);
    // And it makes room for others like everything else.
    overflows(&log, KEPT_MAX);
    resets(&log, 2);
    let page = log.after(0, usize::MAX);
    assert_eq!(page.events.len(), 1 + KEPT_MAX);
    let guests = page.events.iter().filter(|e| e.kind.is_caused_by_guest());
    assert_eq!(guests.count(), 2);
}

#[test]
fn a_number_of_another_process_begins_from_the_start() {
    let (log, other) = (EventLog::default(), EventLog::default());
    assert_ne!(log.instance(), other.instance());
    overflows(&log, 3);
    assert_eq!(log.resume(2, None), 2);
    assert_eq!(log.resume(3, Some(log.instance())), 3);
    assert_eq!(log.resume(2, Some(other.instance())), 0);
    assert_eq!(log.resume(4, None), 0, "never told by this one");
    assert_eq!(log.resume(u64::MAX, Some(log.instance())), 0);
}

#[test]
fn the_json_of_an_event_is_what_the_manual_says() {
    let log = EventLog::default();
    log.publish(Some("before"), EventKind::UsageThreshold { percent: 85 });
    log.publish(
        Some("before"),
        EventKind::SnapshotInvalid {
            reason: InvalidCause::Full,
            error: None,
            failed: None,
        },
    );
    log.publish(
        Some("before"),
        EventKind::SnapshotInvalid {
            reason: InvalidCause::Io,
            error: Some("flushing the COW /c failed: bad".to_owned()),
            failed: Some(FailedIo {
                device: FailedDevice::Cow,
                operation: FailedOperation::Flush,
                offset: None,
            }),
        },
    );
    log.publish(
        Some("before"),
        EventKind::MergeFailed {
            reason: "writing the metadata of the COW /c at byte 4096 failed: bad".to_owned(),
            retry: Retry::Restart,
            failed: FailedIo {
                device: FailedDevice::Cow,
                operation: FailedOperation::WriteMetadata,
                offset: Some(4096),
            },
        },
    );
    log.publish(None, EventKind::Stopping);
    let page = log.after(0, 10);
    let json: Vec<String> = page
        .events
        .iter()
        .map(|e| serde_json::to_string(e).unwrap())
        .collect();
    let instance = log.instance();
    for (event, (json, rest)) in page.events.iter().zip(json.iter().zip([
        r#""snapshot":"before","kind":"usage-threshold","percent":85}"#,
        r#""snapshot":"before","kind":"snapshot-invalid","reason":"full"}"#,
        r#""snapshot":"before","kind":"snapshot-invalid","reason":"io","error":"flushing the COW /c failed: bad","device":"cow","operation":"flush","offset":null}"#,
        r#""snapshot":"before","kind":"merge-failed","reason":"writing the metadata of the COW /c at byte 4096 failed: bad","retry":"restart","device":"cow","operation":"write-metadata","offset":4096}"#,
        r#""snapshot":null,"kind":"stopping"}"#,
    ])) {
        let (seq, time) = (event.seq, &event.time);
        let head = format!(r#"{{"instance":"{instance}","seq":{seq},"time":"{time}","#);
        assert_eq!(*json, head + rest);
        assert_eq!(serde_json::from_str::<Event>(json).unwrap(), *event);
    }
}

#[test]
fn who_waits_is_woken_by_the_next_event() {
    let log = EventLog::default();
    let mut watch = log.watch();
    assert!(!watch.has_changed().unwrap());
    overflows(&log, 2);
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), 2);
}
