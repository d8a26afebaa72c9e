//! The description, the file of it, and the types.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::control::api::{FailedRequests, GuestOperation, Retry, Seen, SlowIo};
use crate::control::events::{
    CancelCause, EventKind, EventLog, FailedDevice, FailedIo, FailedOperation, InvalidCause,
};

/// The file in the documentation; written anew if this variable is set.
const RENEW: &str = "SNAPBACK_RENEW_OPENAPI";

fn described() -> Value {
    serde_json::to_value(description()).unwrap()
}

#[test]
fn the_file_of_the_documentation_is_the_description_that_is_served() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    let now = serde_json::to_string_pretty(&described()).unwrap() + "\n";
    if std::env::var_os(RENEW).is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap();
    assert!(
        kept == now,
        "docs/openapi.json is not what the server describes: run this test with {RENEW}=1"
    );
}

/// All values of the fields `name`, at any depth.
fn fields<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(name));
            map.values().for_each(|inner| fields(inner, name, found));
        }
        Value::Array(list) => list.iter().for_each(|inner| fields(inner, name, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_to_a_schema() {
    let described = described();
    let mut references = Vec::new();
    fields(&described, "$ref", &mut references);
    assert!(references.len() > 30, "{}", references.len());
    for reference in references {
        let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
        assert!(described.pointer(pointer).is_some(), "{pointer}");
    }
}

#[test]
fn the_table_and_the_description_have_the_same_paths_and_methods() {
    let described = described();
    assert!(described["openapi"].as_str().unwrap().starts_with("3.1"));
    let paths = described["paths"].as_object().unwrap();
    let theirs: BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| (path.clone(), method.to_uppercase()))
        })
        .collect();
    let ours: BTreeSet<(String, String)> = ROUTES
        .iter()
        .map(|route| (route.path.to_owned(), route.method.to_string()))
        .collect();
    assert_eq!(theirs, ours);
}

/// The document for people has every path, too.
#[test]
fn every_path_is_in_the_document() {
    let document = include_str!("../../docs/api.md");
    for route in ROUTES.iter().filter(|route| route.path != "/v1") {
        let path = route.path.replace("{name}", "NAME").replace("{id}", "ID");
        let row = document
            .lines()
            .find(|line| line.starts_with(&format!("| `{path}` | {} |", route.method)));
        assert!(row.is_some(), "{} {path}", route.method);
    }
}

/// One event of each kind, and of each form that it has.
// Long: one entry for each kind, and nothing else.
fn samples() -> Vec<EventKind> {
    let (text, socket, seen) = (|| "text".to_owned(), Some("/s".to_owned()), Seen::Boot);
    let failed = FailedIo {
        device: FailedDevice::Cow,
        operation: FailedOperation::WriteMetadata,
        offset: None,
    };
    let io = SlowIo {
        requests: 1,
        seconds: 3,
        operation: GuestOperation::Flush,
        sector: 0,
    };
    let invalid = |reason, failed| EventKind::SnapshotInvalid {
        reason,
        error: None,
        failed,
    };
    vec![
        EventKind::Started { version: text() },
        EventKind::SnapshotAdded {
            cow: text(),
            at_start: false,
        },
        EventKind::SnapshotRemoved,
        invalid(InvalidCause::Full, None),
        invalid(InvalidCause::Io, Some(failed)),
        EventKind::SnapshotOverflow,
        EventKind::SnapshotGrown { size: 1 },
        EventKind::OriginResized { size: 1 },
        EventKind::OriginLarger { size: 1 },
        EventKind::UsageThreshold { percent: 80 },
        EventKind::RollbackPending,
        EventKind::RollbackCancelled {
            reason: CancelCause::Asked,
        },
        EventKind::RollbackFailed { error: text() },
        EventKind::GuestHeld {
            qmp: text(),
            note: text(),
        },
        EventKind::Handover {
            follow: false,
            chunks: 1,
            at_start: false,
        },
        EventKind::MergePaused,
        EventKind::MergeResumed,
        EventKind::MergeFailed {
            reason: text(),
            retry: Retry::Resume,
            failed,
        },
        EventKind::OriginFlushFailed { error: text() },
        EventKind::MergeDone { chunks: 1 },
        EventKind::FrontEndConnected { socket: None },
        EventKind::FrontEndLeft {
            socket: socket.clone(),
        },
        EventKind::FrontEndWaits {
            socket: socket.clone(),
        },
        EventKind::GuestReset {
            socket: socket.clone(),
            seen,
        },
        EventKind::DriverStarted {
            socket: socket.clone(),
            seen,
        },
        EventKind::RollbackWaits {
            seen,
            reason: text(),
        },
        EventKind::IoSlow {
            socket: socket.clone(),
            io,
        },
        EventKind::IoFailed {
            socket: socket.clone(),
            io: FailedRequests {
                requests: 1,
                operation: GuestOperation::Write,
                sector: 8,
                error: Some(text()),
            },
        },
        EventKind::SocketClosed { socket: text() },
        EventKind::IoSlowEnded { socket, seconds: 1 },
        EventKind::Stopping,
        EventKind::Lost { count: 1 },
    ]
}

#[test]
fn an_event_of_each_kind_is_as_described() {
    let described = described();
    let schema = serde_json::json!({
        "components": described["components"],
        "$ref": "#/components/schemas/Event",
        "unevaluatedProperties": false,
    });
    let judge = jsonschema::validator_for(&schema).unwrap();
    let log = EventLog::default();
    for kind in samples() {
        log.publish(Some("a"), kind);
    }
    let mut kinds = BTreeSet::new();
    for event in log.after(0, usize::MAX).events {
        let mut value = serde_json::to_value(event).unwrap();
        let wrong: Vec<String> = judge.iter_errors(&value).map(|e| e.to_string()).collect();
        assert_eq!(wrong, Vec::<String>::new(), "{value}");
        kinds.insert(value["kind"].as_str().unwrap().to_owned());
        value["kind"] = "disk-eaten".into();
        assert!(!judge.is_valid(&value), "{value}");
    }
    let schemas = &described["components"]["schemas"];
    let all = schemas["EventKind"]["oneOf"].as_array().unwrap();
    assert_eq!(kinds.len(), all.len(), "a kind has no sample: {kinds:?}");
}
