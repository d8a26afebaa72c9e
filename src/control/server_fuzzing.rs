//! Bytes of a client → a connection, the routes, and a volume that only notes what it is asked.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::cast_possible_truncation
)]

use std::os::fd::OwnedFd;

use rustix::net::{Shutdown, shutdown};

use super::*;
use crate::control::api::{
    ApiError, ErrorKind, MergeRequest, OriginStatus, ResizeReply, RollbackOutcome, RollbackReply,
    RollbackRequest, SnapshotSpec, VolumeStatus, check_name,
};
use crate::control::events::EventLog;
use crate::control::problem::Problem;

/// Statuses that the API has.
const STATUSES: [u16; 11] = [200, 204, 400, 403, 404, 405, 408, 409, 413, 414, 431];
/// Beginnings of requests; what follows the path is the input's.
const METHODS: [&str; 6] = ["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"];
const PATHS: [&str; 18] = [
    "/v1/status",
    "/v1/",
    "/v1/openapi.json",
    "/v1/table",
    "/v1/events",
    "/metrics",
    "/v1/operations",
    "/v1/operations/1",
    "/v1/snapshots/a",
    "/v1/snapshots/a/size",
    "/v1/origin/size",
    "/v1/rollback",
    "/v1/merge",
    "/v1/merge/pause",
    "/v1/merge/resume",
    "/v1/merge/rate",
    "/v1/detach",
    "/v1/release",
];

/// Counts changes, and refuses them if it is told to.
#[derive(Default)]
struct Noted {
    refuses: bool,
    changes: AtomicU64,
    events: EventLog,
}

impl Noted {
    fn note(&self) -> Result<(), ApiError> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        match self.refuses {
            true => Err(ApiError::new(ErrorKind::Conflict, "not now: try later")),
            false => Ok(()),
        }
    }

    fn note_of(&self, name: &str) -> Result<(), ApiError> {
        assert_eq!(check_name(name), Ok(()), "a name that was not checked");
        self.note()
    }
}

impl Volume for Noted {
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
            last_merge: None,
            pid: None,
            access: Default::default(),
            sandbox: None,
        }
    }
    fn add_snapshot(&self, spec: SnapshotSpec, _: Option<OwnedFd>) -> Result<(), ApiError> {
        self.note_of(&spec.name)
    }
    fn remove_snapshot(&self, name: &str, _: bool) -> Result<(), ApiError> {
        self.note_of(name)
    }
    fn grow_snapshot(&self, name: &str, _: u64) -> Result<(), ApiError> {
        self.note_of(name)
    }
    fn resize(&self, bytes: Option<u64>) -> Result<ResizeReply, ApiError> {
        self.note()?;
        Ok(ResizeReply {
            before: 512,
            size: bytes.unwrap_or(1024),
            told: vec![None],
            untold: Vec::new(),
        })
    }
    fn rollback(&self, _: RollbackRequest, _: Option<OwnedFd>) -> Result<RollbackReply, ApiError> {
        self.note()?;
        Ok(RollbackOutcome::AtNextReset.into())
    }
    fn cancel_rollback(&self) -> Result<(), ApiError> {
        self.note()
    }
    fn merge(&self, _: MergeRequest) -> Result<(), ApiError> {
        self.note()
    }
    fn pause_merge(&self) -> Result<(), ApiError> {
        self.note()
    }
    fn resume_merge(&self) -> Result<(), ApiError> {
        self.note()
    }
    fn set_merge_rate(&self, _: u64) -> Result<(), ApiError> {
        self.note()
    }
    fn detach(&self, _: &str) -> Result<(), ApiError> {
        self.note()
    }
    fn release(&self) -> Result<(), ApiError> {
        self.note()
    }
    fn events(&self) -> &EventLog {
        &self.events
    }
}

/// What a client sends.
struct Said {
    bytes: Vec<u8>,
    method: Option<&'static str>,
    /// It is a whole request, so that there must be an answer.
    is_whole: bool,
}

impl Said {
    /// The first byte chooses: a whole request, whose path, query and body may be anything, or
    /// any bytes.
    fn read(input: &[u8]) -> Self {
        let byte = |at: usize| input.get(at).copied().unwrap_or(0);
        let rest = input.get(4..).unwrap_or_default();
        if byte(0) & 1 == 1 {
            return Self {
                bytes: rest.to_vec(),
                method: None,
                is_whole: false,
            };
        }
        let method = METHODS[usize::from(byte(1)) % METHODS.len()];
        let path = match byte(2) {
            255 => "",
            place => PATHS[usize::from(place) % PATHS.len()],
        };
        // What is between the path and the first line's end; the body follows it.
        let mut parts = rest.splitn(2, |byte| *byte == b'\n');
        let more = parts.next().unwrap_or_default();
        let body = parts.next().unwrap_or_default();
        let more: String = more
            .iter()
            .map(|byte| match byte {
                b'!'..=b'~' => char::from(*byte).to_string(),
                other => format!("%{other:02x}"),
            })
            .collect();
        let path = format!("{path}{more}");
        let path = match path.starts_with('/') {
            true => path,
            false => format!("/{path}"),
        };
        // The client asks for a length that it does not keep to, or for chunks, at times.
        let length = match byte(3) % 8 {
            7 => body.len() + 1,
            _ => body.len(),
        };
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: d\r\ncontent-length: {length}\r\n\r\n");
        Self {
            bytes: [head.as_bytes(), body].concat(),
            method: Some(method),
            is_whole: length == body.len(),
        }
    }
}

/// One client: everything that it says, and the judgement of the answer.
pub fn talk(input: &[u8]) {
    thread_local!(static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap());
    let said = Said::read(input);
    let volume = Arc::new(Noted {
        refuses: input.first().is_some_and(|byte| byte & 2 == 2),
        ..Noted::default()
    });
    let shared = Shared {
        context: Context {
            volume: Arc::clone(&volume) as Arc<dyn Volume>,
            followers: Followers::new(STALL_TIMEOUT),
            verbs: Verbs::default(),
            access: Access::default(),
        },
        answering: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
    };
    let answer = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ((), answer) = tokio::join!(serve(theirs, shared), say(ours, &said));
            answer
        })
    });
    judge(&said, &answer, &volume);
}

/// Sends everything and reads the answer, but for events only its head.
async fn say(stream: UnixStream, said: &Said) -> Vec<u8> {
    let mut rest = said.bytes.as_slice();
    // The daemon may close at any time.
    while !rest.is_empty() && stream.writable().await.is_ok() {
        match stream.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    if !said.is_whole {
        let _ = shutdown(&stream, Shutdown::Write);
    }
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut part) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        let head = String::from_utf8_lossy(&answer[..answer.len().min(2048)]);
        if head.contains("application/x-ndjson") {
            break;
        }
    }
    answer
}

fn judge(said: &Said, answer: &[u8], volume: &Noted) {
    let changes = volume.changes.load(Ordering::Relaxed);
    let what = || String::from_utf8_lossy(&said.bytes).into_owned();
    assert!(changes <= 1, "{changes} changes by {:?}", what());
    let text = String::from_utf8_lossy(answer).into_owned();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        assert!(answer.is_empty(), "half an answer: {text:?}");
        assert!(!said.is_whole, "no answer to {:?}", what());
        return;
    };
    let head = head.to_ascii_lowercase();
    let status = head
        .strip_prefix("http/1.1 ")
        .or(head.strip_prefix("http/1.0 "));
    let status = status.and_then(|rest| rest[..3].parse().ok());
    let status: u16 = status.unwrap_or_else(|| panic!("no status: {head:?}"));
    assert!(STATUSES.contains(&status), "{status} for {:?}", what());
    if status >= 400 {
        assert!(
            changes == 0 || volume.refuses,
            "refused and done: {:?}",
            what()
        );
        if said.method == Some("HEAD") || body.is_empty() {
            return;
        }
        let problem: Problem = serde_json::from_str(body).unwrap();
        assert_eq!(problem.status, status);
        assert!(
            !problem.message.contains(['\n', '\u{1b}']),
            "{:?}",
            problem.message
        );
        return;
    }
    assert!(
        changes == 0 || !volume.refuses,
        "done although it was refused"
    );
    if let Some(method) = said.method {
        let expected = u64::from(!["GET", "HEAD"].contains(&method));
        assert_eq!(changes, expected, "{:?}", what());
    }
    if head.contains("content-type: application/json") && !body.is_empty() {
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
