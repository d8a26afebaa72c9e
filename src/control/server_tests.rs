//! Client and server together, and raw bytes against the server.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::control::api::{
    ApiError, ErrorKind, MergeRequest, OriginStatus, ResizeReply, RollbackOutcome, RollbackReply,
    RollbackRequest, RollbackWhen, SnapshotSpec, StoreType, VolumeStatus,
};
use crate::control::events::EventLog;
use crate::control::metrics::Family;
use crate::control::operations::OperationState;
use crate::control::problem::Problem;
use crate::control::{Client, ClientError};

/// Keeps what was asked and refuses whatever names `refused`.
#[derive(Default)]
pub(in crate::control) struct FakeVolume {
    calls: Mutex<Vec<String>>,
    /// A removal waits for it.
    disk: Mutex<()>,
    pub events: EventLog,
    pub families: Mutex<Vec<Family>>,
}

impl FakeVolume {
    fn note(&self, call: String) -> Result<(), ApiError> {
        let refused = call.contains("refused");
        self.calls.lock().unwrap().push(call);
        if refused {
            return Err(ApiError::new(
                ErrorKind::Conflict,
                "no: refused, take another",
            ));
        }
        Ok(())
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Volume for FakeVolume {
    fn status(&self) -> VolumeStatus {
        VolumeStatus {
            origin: OriginStatus {
                path: "/vm/disk.img".to_owned(),
                sectors: 2048,
                read_only: false,
                device: "0:0".to_owned(),
            },
            views: Vec::new(),
            snapshots: Vec::new(),
            merge: None,
            rollback_at_reset: None,
            rollback: None,
            sandbox: None,
            last_merge: None,
            pid: None,
            access: Default::default(),
        }
    }
    fn add_snapshot(&self, spec: SnapshotSpec, _: Option<OwnedFd>) -> Result<(), ApiError> {
        self.note(format!(
            "add {} {} {:?}",
            spec.name, spec.cow, spec.store_type
        ))
    }
    fn remove_snapshot(&self, name: &str, force: bool) -> Result<(), ApiError> {
        drop(self.disk.lock().unwrap());
        let how = if force { " by force" } else { "" };
        self.note(format!("remove {name}{how}"))
    }
    fn grow_snapshot(&self, name: &str, bytes: u64) -> Result<(), ApiError> {
        self.note(format!("grow {name} {bytes}"))
    }
    fn resize(&self, bytes: Option<u64>) -> Result<ResizeReply, ApiError> {
        self.note(format!("resize {bytes:?}"))?;
        Ok(ResizeReply {
            before: 512,
            size: bytes.unwrap_or(1024),
            told: vec![None],
            untold: Vec::new(),
        })
    }
    fn rollback(
        &self,
        request: RollbackRequest,
        _: Option<OwnedFd>,
    ) -> Result<RollbackReply, ApiError> {
        self.note(format!(
            "rollback {} {:?} {:?}",
            request.snapshot, request.when, request.rate
        ))?;
        Ok(RollbackOutcome::AtNextReset.into())
    }
    fn cancel_rollback(&self) -> Result<(), ApiError> {
        self.note("cancel rollback".to_owned())
    }
    fn merge(&self, request: MergeRequest) -> Result<(), ApiError> {
        self.note(format!("merge {} {}", request.snapshot, request.follow))
    }
    fn pause_merge(&self) -> Result<(), ApiError> {
        self.note("pause".to_owned())
    }
    fn resume_merge(&self) -> Result<(), ApiError> {
        self.note("resume".to_owned())
    }
    fn set_merge_rate(&self, bytes_per_second: u64) -> Result<(), ApiError> {
        self.note(format!("rate {bytes_per_second}"))
    }
    fn detach(&self, socket: &str) -> Result<(), ApiError> {
        self.note(format!("detach {socket}"))
    }
    fn release(&self) -> Result<(), ApiError> {
        self.note("release".to_owned())
    }
    fn events(&self) -> &EventLog {
        &self.events
    }
    fn metrics(&self) -> Result<Vec<Family>, ApiError> {
        Ok(self.families.lock().unwrap().clone())
    }
}

pub(in crate::control) struct Served {
    pub volume: Arc<FakeVolume>,
    pub server: ControlServer,
    pub socket: PathBuf,
    _dir: tempfile::TempDir,
}

pub(in crate::control) fn serve_fake() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("c.sock");
    let volume = Arc::new(FakeVolume::default());
    let server = ControlServer::start(&socket, Arc::clone(&volume) as Arc<dyn Volume>).unwrap();
    Served {
        volume,
        server,
        socket,
        _dir: dir,
    }
}

fn spec(name: &str) -> SnapshotSpec {
    SnapshotSpec {
        name: name.to_owned(),
        cow: "/vm/a.cow".to_owned(),
        store_type: StoreType::PO,
        chunk_size: Some(4096),
        size: None,
        socket: None,
        discard_zeroes_cow: None,
        defer_entries: None,
        discard_passdown_origin: None,
        read_only: None,
    }
}

/// Sends `bytes` and reads until the server closes.
pub(in crate::control) fn raw(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    // The server may refuse and close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

pub(in crate::control) fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// The status code and the error that the body holds.
pub(in crate::control) fn refusal(answer: &str) -> (String, ApiError) {
    let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let error: ApiError =
        serde_json::from_str(body).unwrap_or_else(|e| panic!("{e} in {answer:?}"));
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    assert!(head.contains("application/problem+json"), "{answer}");
    let problem: Problem = serde_json::from_str(body).unwrap();
    assert_eq!(problem.status.to_string(), status);
    assert_eq!(problem.detail, error.message);
    (status, error)
}

#[test]
fn every_call_reaches_the_volume_as_it_was_meant() {
    let served = serve_fake();
    let client = Client::new(&served.socket).unwrap();
    client.add_snapshot(&spec("s1")).unwrap();
    client.grow_snapshot("s1", 1 << 30).unwrap();
    client.remove_snapshot("s1").unwrap();
    client.force_remove_snapshot("s1").unwrap();
    client
        .merge(&MergeRequest {
            snapshot: "s2".to_owned(),
            follow: true,
            rate: None,
            ..Default::default()
        })
        .unwrap();
    client.pause_merge().unwrap();
    client.resume_merge().unwrap();
    client.set_merge_rate(1 << 20).unwrap();
    let rollback = RollbackRequest {
        snapshot: "s2".to_owned(),
        when: RollbackWhen::AtReset,
        keep: Some(spec("s3")),
        rate: Some(5),
        ..Default::default()
    };
    assert_eq!(
        client.rollback(&rollback).unwrap(),
        RollbackOutcome::AtNextReset.into()
    );
    client.cancel_rollback().unwrap();
    client.detach("/vm/fork.sock").unwrap();
    client.release().unwrap();
    assert_eq!(
        served.volume.calls(),
        [
            "add s1 /vm/a.cow PO",
            "grow s1 1073741824",
            "remove s1",
            "remove s1 by force",
            "merge s2 true",
            "pause",
            "resume",
            "rate 1048576",
            "rollback s2 AtReset Some(5)",
            "cancel rollback",
            "detach /vm/fork.sock",
            "release"
        ]
    );
    assert_eq!(client.status().unwrap(), served.volume.status());
    assert_eq!(
        client.table().unwrap(),
        "disk: 0 2048 snapshot-origin 0:0\n"
    );
}

#[test]
fn a_refusal_reaches_the_caller_word_for_word() {
    let served = serve_fake();
    let client = Client::new(&served.socket).unwrap();
    match client.remove_snapshot("refused") {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error.kind, ErrorKind::Conflict);
            assert_eq!(error.message, "no: refused, take another");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_daemon_the_client_names_the_socket_and_the_ways_out() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let error = Client::new(&socket)
        .unwrap()
        .status()
        .unwrap_err()
        .to_string();
    assert!(error.contains(socket.to_str().unwrap()), "{error}");
    assert!(
        error.contains("SNAPBACK_CONTROL") && error.contains("serve"),
        "{error}"
    );
}

#[test]
fn a_stranger_behind_the_socket_is_an_error_and_no_hang() {
    for greeting in [
        "SSH-2.0-nonsense\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let stranger = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(greeting.as_bytes());
        });
        let error = Client::new(&socket).unwrap().status().unwrap_err();
        assert!(
            matches!(
                error,
                ClientError::Foreign { .. } | ClientError::Lost { .. }
            ),
            "{greeting:?}: {error:?}"
        );
        stranger.join().unwrap();
    }
}

/// Requests that are refused: method, path, body, HTTP status, and a part of the message.
const REFUSED: &[(&str, &str, &str, u16, &str)] = &[
    ("GET", "/v1/nonsense", "", 404, "/v1/nonsense"),
    ("GET", "/v2/", "", 404, "no such path"),
    ("DELETE", "/v1/status", "", 405, "GET"),
    ("GET", "/v1/merge/pause", "", 405, "POST"),
    ("POST", "/v1/merge", "{", 400, "EOF"),
    ("POST", "/v1/merge", "", 400, "EOF"),
    ("POST", "/v1/merge", r#"{"snapshot":7}"#, 400, "string"),
    ("POST", "/v1/merge", r#"{"snapshot":"a","x":1}"#, 400, "`x`"),
    ("PUT", "/v1/merge/rate", r#"{"rate":-1}"#, 400, "-1"),
    ("PUT", "/v1/snapshots/a", "{}", 400, "cow"),
    ("PUT", "/v1/snapshots/a%2Fb", r#"{"cow":"/c"}"#, 400, "`%`"),
    (
        "PUT",
        "/v1/snapshots/..",
        r#"{"cow":"/c"}"#,
        400,
        "starts with",
    ),
    ("DELETE", "/v1/snapshots/refused", "", 409, "take another"),
];

#[test]
fn refusals_are_json_with_the_right_status() {
    let served = serve_fake();
    for &(method, path, body, status, word) in REFUSED {
        let (got, error) = refusal(&raw(&served.socket, &request(method, path, body)));
        assert_eq!(got, status.to_string(), "{method} {path}");
        let kind = match status {
            404 => ErrorKind::NotFound,
            409 => ErrorKind::Conflict,
            _ => ErrorKind::BadRequest,
        };
        assert_eq!(error.kind, kind, "{method} {path}");
        assert!(error.message.contains(word), "{path}: {}", error.message);
    }
    assert_eq!(served.volume.calls(), ["remove refused"]);
}

#[test]
fn a_wrong_method_is_told_the_right_one() {
    let served = serve_fake();
    let answer = raw(&served.socket, &request("POST", "/v1/snapshots/a", ""));
    assert!(
        answer.to_ascii_lowercase().contains("allow: put, delete"),
        "{answer}"
    );
}

#[test]
fn a_body_over_the_limit_is_refused_whether_announced_or_not() {
    let served = serve_fake();
    let long = "x".repeat(crate::control::query::BODY_MAX + 1);
    let announced = request("POST", "/v1/merge", &long);
    let chunked = format!(
        "POST /v1/merge HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    for bytes in [announced, chunked.into_bytes()] {
        let (status, error) = refusal(&raw(&served.socket, &bytes));
        assert_eq!(status, "413");
        assert!(error.message.contains("64 KiB"), "{}", error.message);
    }
}

#[test]
fn bytes_that_are_no_http_end_the_connection_and_nothing_else() {
    let served = serve_fake();
    let long_head = format!(
        "GET /v1/status HTTP/1.1\r\nX: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let many_headers = format!("GET /v1/status HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(500));
    for (bytes, expected) in [
        (b"\x16\x03\x01\x02\x00\x01\x00".to_vec(), "400"),
        (b"GET\r\n\r\n".to_vec(), "400"),
        (b"\r\n\r\n\r\n\0\0\0\0".to_vec(), "400"),
        (b"GET /v1/status HTTP/9.9\r\n\r\n".to_vec(), "400"),
        (
            b"POST /v1/merge HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
            "400",
        ),
        (
            b"POST /v1/merge HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            "400",
        ),
        (long_head.into_bytes(), "431"),
        (many_headers.into_bytes(), "431"),
        (vec![b'A'; 1 << 20], "431"),
    ] {
        let (status, error) = refusal(&raw(&served.socket, &bytes));
        assert_eq!(status, expected, "{}", error.message);
        assert_eq!(error.kind, ErrorKind::BadRequest);
    }
    Client::new(&served.socket).unwrap().status().unwrap();
    assert!(served.volume.calls().is_empty());
}

#[test]
fn a_client_that_leaves_in_the_middle_changes_nothing() {
    let served = serve_fake();
    let whole = request("PUT", "/v1/snapshots/a", "{\"cow\":\"/c\"}");
    for length in 0..whole.len() {
        let mut stream = UnixStream::connect(&served.socket).unwrap();
        stream.write_all(&whole[..length]).unwrap();
    }
    Client::new(&served.socket).unwrap().status().unwrap();
    assert!(served.volume.calls().is_empty());
}

#[test]
fn half_sent_requests_are_cut_off_and_then_others_are_served() {
    let served = serve_fake();
    let start = Instant::now();
    let mut halves: Vec<UnixStream> = (0..CONNECTIONS_MAX)
        .map(|i| {
            let mut stream = UnixStream::connect(&served.socket).unwrap();
            let whole = request("POST", "/v1/merge", "{\"snapshot\":\"a\"}");
            // Half of them stop in the head, the other half in the body.
            let length = if i % 2 == 0 { 10 } else { whole.len() - 3 };
            stream.write_all(&whole[..length]).unwrap();
            stream
        })
        .collect();
    // Every place is taken: this one waits until the timeouts free one.
    Client::new(&served.socket).unwrap().status().unwrap();
    let waited = start.elapsed();
    assert!(
        waited >= HEAD_TIMEOUT / 2,
        "{waited:?}: the bound on connections did not hold"
    );
    assert!(waited < CONNECTION_TIMEOUT, "{waited:?}");
    for stream in &mut halves {
        stream.set_read_timeout(Some(CONNECTION_TIMEOUT)).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert_eq!(refusal(&answer).0, "408", "{answer}");
    }
    assert!(served.volume.calls().is_empty());
}

#[test]
fn stop_removes_the_socket_and_frees_the_path_while_clients_linger() {
    let served = serve_fake();
    let _lingering = UnixStream::connect(&served.socket).unwrap();
    let start = Instant::now();
    served.server.stop();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(!served.socket.exists());
    ControlServer::start(&served.socket, served.volume)
        .unwrap()
        .stop();
}

#[test]
fn a_second_server_at_a_live_socket_is_refused_by_name() {
    let served = serve_fake();
    let error = ControlServer::start(&served.socket, Arc::new(FakeVolume::default())).unwrap_err();
    assert!(
        matches!(&error, SocketError::Own(path) if *path == served.socket),
        "{error}"
    );
    Client::new(&served.socket).unwrap().status().unwrap();
}

/// A disk that does not answer holds up the call that needs it, and nothing else.
#[test]
fn a_call_that_does_not_end_is_answered_and_so_is_everything_else() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("c.sock");
    let volume = Arc::new(FakeVolume::default());
    let bound = BoundSocket::bind(&socket).unwrap();
    let context = Context {
        volume: volume.clone(),
        followers: Followers::new(STALL_TIMEOUT),
        verbs: Verbs::with(Duration::from_millis(50)),
        access: Access::default(),
    };
    let _server = ControlServer::start_with(bound, context).unwrap();
    let client = Client::new(&socket).unwrap();
    let outage = volume.disk.lock().unwrap();
    let refused = |name| client.remove_snapshot(name).unwrap_err().to_string();
    let late = client.remove_snapshot("a").unwrap_err();
    let told = late.to_string();
    assert!(told.contains("remove a: it has not ended"), "{told}");
    client.status().unwrap();
    let busy = refused("b");
    for words in ["remove b: nothing was changed", "remove a, under way for"] {
        assert!(busy.contains(words), "{busy}");
    }
    client.status().unwrap();
    let answer = raw(&socket, &request("DELETE", "/v1/snapshots/c", ""));
    assert_eq!(refusal(&answer).0, "409");
    let going_on = volume.events.operations().all();
    assert_eq!(going_on.len(), 1, "{going_on:?}");
    assert_eq!(going_on[0].state, OperationState::Running);
    let path = format!("/v1/operations/{}", going_on[0].id);
    match late {
        ClientError::Refused(error) => assert_eq!(error.operation, Some(path.clone())),
        other => panic!("{other}"),
    }
    // A client that waits for its end is told it at once.
    let waits = {
        let (socket, path) = (socket.clone(), format!("{path}?wait=20"));
        std::thread::spawn(move || raw(&socket, &request("GET", &path, "")))
    };
    drop(outage);
    let end = waits.join().unwrap();
    assert!(end.contains("\"state\":\"succeeded\""), "{end}");
    // It went on, and the next one is carried out.
    while client.remove_snapshot("b").is_err() {}
    assert_eq!(volume.calls(), ["remove a", "remove b"]);
}
