//! The paths and methods of the API: from an HTTP request to its response.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Either, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::{Method, Request, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::api::{
    ApiError, DetachRequest, ErrorKind, MergeRate, MergeRequest, OriginSize, RollbackRequest,
    SnapshotSpec, StoreSize, Volume, VolumeStatus, check_name,
};
use super::follow::{Connection, FOLLOWERS_MAX, Feed, Followers};
use super::render;
use super::verbs::Verbs;
use crate::size::in_words;

/// Largest request body in bytes.
pub const BODY_MAX: usize = 64 << 10;
/// How long a request body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A path of the API.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Status,
    Table,
    Events,
    Snapshot(&'a str),
    Size(&'a str),
    OriginSize,
    Rollback,
    Merge,
    MergePause,
    MergeResume,
    MergeRate,
    Detach,
    Release,
}

impl<'a> Target<'a> {
    fn find(path: &'a str) -> Option<Self> {
        Some(match path.strip_prefix("/v1/")? {
            "status" => Self::Status,
            "table" => Self::Table,
            "events" => Self::Events,
            "origin/size" => Self::OriginSize,
            "rollback" => Self::Rollback,
            "merge" => Self::Merge,
            "merge/pause" => Self::MergePause,
            "merge/resume" => Self::MergeResume,
            "merge/rate" => Self::MergeRate,
            "detach" => Self::Detach,
            "release" => Self::Release,
            rest => match rest.strip_prefix("snapshots/")?.split_once('/') {
                None => Self::Snapshot(rest.strip_prefix("snapshots/")?),
                Some((name, "size")) => Self::Size(name),
                Some(_) => return None,
            },
        })
    }

    const fn methods(&self) -> &'static [Method] {
        match self {
            Self::Status | Self::Table | Self::Events => &[Method::GET],
            Self::Snapshot(_) => &[Method::PUT, Method::DELETE],
            Self::Rollback => &[Method::POST, Method::DELETE],
            Self::Merge | Self::MergePause | Self::MergeResume | Self::Detach | Self::Release => {
                &[Method::POST]
            }
            Self::Size(_) | Self::OriginSize | Self::MergeRate => &[Method::PUT],
        }
    }
}

/// A response before it is converted to HTTP.
#[derive(Debug)]
enum Reply {
    Json(String),
    Text(String),
    Lines(Feed),
    Nothing,
}

/// A refusal with its HTTP status.
#[derive(Debug)]
struct Refusal {
    status: u16,
    error: ApiError,
    allow: Option<String>,
}

impl Refusal {
    fn new(status: u16, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            status,
            error: ApiError::new(kind, message),
            allow: None,
        }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self {
            status: error.kind.http_status(),
            error,
            allow: None,
        }
    }
}

/// The body of a response: complete, or a feed of events.
pub type Answer = Either<String, Feed>;

/// Answers one request on `connection`. Never fails.
pub async fn answer<B>(
    volume: &Arc<dyn Volume>,
    followers: &Followers,
    verbs: &Verbs,
    connection: &Arc<Connection>,
    request: Request<B>,
) -> Response<Answer>
where
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let result = if Target::find(&path) == Some(Target::Events) && method == Method::GET {
        events(volume, followers, connection, &query)
    } else {
        dispatch(volume, verbs, &method, &path, &query, request.into_body()).await
    };
    match &result {
        Ok(_) => tracing::debug!(%method, path, "control request"),
        Err(refusal) => {
            tracing::debug!(%method, path, refusal.status, %refusal.error, "control request refused")
        }
    }
    into_http(result)
}

async fn dispatch<B>(
    volume: &Arc<dyn Volume>,
    verbs: &Verbs,
    method: &Method,
    path: &str,
    query: &str,
    body: B,
) -> Result<Reply, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let target = Target::find(path).ok_or_else(|| {
        let message = format!(
            "no such path: {}: the paths of the API start with /v1/ (see docs/api.md)",
            path.escape_debug()
        );
        Refusal::new(404, ErrorKind::NotFound, message)
    })?;
    if !target.methods().contains(method) {
        return Err(wrong_method(method, path, target.methods()));
    }
    if let Target::Snapshot(name) | Target::Size(name) = target {
        check_name(name).map_err(|message| ApiError::new(ErrorKind::BadRequest, message))?;
    }
    Ok(match target {
        Target::Status => Reply::Json(json(&status(volume).await?)?),
        Target::Table => Reply::Text(render::table(&status(volume).await?)),
        // Handled by `answer`, because it needs the connection.
        Target::Events => Reply::Nothing,
        Target::Rollback if method == Method::POST => {
            let wanted: RollbackRequest = read_json(body).await?;
            let what = format!("rollback {}", wanted.snapshot.escape_debug());
            let call = move |volume: &dyn Volume| volume.rollback(wanted);
            Reply::Json(json(&verbs.call(what, volume, call).await?)?)
        }
        Target::OriginSize => {
            let wanted: OriginSize = read_json(body).await?;
            let call = move |volume: &dyn Volume| volume.resize(wanted.size);
            Reply::Json(json(&verbs.call("resize".to_owned(), volume, call).await?)?)
        }
        _ => {
            let (what, call) = change(target, method, query, body).await?;
            verbs.call(what, volume, call).await?;
            Reply::Nothing
        }
    })
}

/// The status, which may have to wait for a short time.
async fn status(volume: &Arc<dyn Volume>) -> Result<VolumeStatus, ApiError> {
    let volume = Arc::clone(volume);
    tokio::task::spawn_blocking(move || volume.status())
        .await
        .map_err(|e| ApiError::new(ErrorKind::Io, format!("the status: {e}")))
}

type Call = Box<dyn FnOnce(&dyn Volume) -> Result<(), ApiError> + Send>;

/// A call that has no answer but its success, with its name for messages.
// Long: one arm for each path.
async fn change<B>(
    target: Target<'_>,
    method: &Method,
    query: &str,
    body: B,
) -> Result<(String, Call), Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (what, call): (String, Call) = match target {
        Target::Snapshot(name) if method == Method::DELETE => {
            let (force, removed) = (is_forced(query)?, name.to_owned());
            (
                format!("remove {name}"),
                Box::new(move |v: &dyn Volume| v.remove_snapshot(&removed, force)),
            )
        }
        Target::Snapshot(name) => {
            let spec = named(read_json(body).await?, name)?;
            (
                format!("snapshot {name}"),
                Box::new(move |v: &dyn Volume| v.add_snapshot(spec)),
            )
        }
        Target::Size(name) => {
            let wanted: StoreSize = read_json(body).await?;
            let grown = name.to_owned();
            (
                format!("grow {name}"),
                Box::new(move |v: &dyn Volume| v.grow_snapshot(&grown, wanted.size)),
            )
        }
        Target::Merge => {
            let wanted: MergeRequest = read_json(body).await?;
            (
                format!("merge {}", wanted.snapshot.escape_debug()),
                Box::new(move |v: &dyn Volume| v.merge(wanted)),
            )
        }
        Target::MergePause => (
            "merge --pause".into(),
            Box::new(|v: &dyn Volume| v.pause_merge()),
        ),
        Target::MergeResume => (
            "merge --resume".into(),
            Box::new(|v: &dyn Volume| v.resume_merge()),
        ),
        Target::Detach => {
            let wanted: DetachRequest = read_json(body).await?;
            (
                format!("detach {}", wanted.socket.escape_debug()),
                Box::new(move |v: &dyn Volume| v.detach(&wanted.socket)),
            )
        }
        Target::Release => ("release".into(), Box::new(|v: &dyn Volume| v.release())),
        Target::MergeRate => {
            let wanted: MergeRate = read_json(body).await?;
            (
                "merge --rate".into(),
                Box::new(move |v: &dyn Volume| v.set_merge_rate(wanted.rate)),
            )
        }
        Target::Rollback | Target::OriginSize | Target::Status | Target::Table | Target::Events => {
            (
                "rollback --cancel".into(),
                Box::new(|v: &dyn Volume| v.cancel_rollback()),
            )
        }
    };
    Ok((what, call))
}

/// `GET /v1/events`, with its query.
fn events(
    volume: &Arc<dyn Volume>,
    followers: &Followers,
    connection: &Arc<Connection>,
    query: &str,
) -> Result<Reply, Refusal> {
    let wanted = EventQuery::parse(query)
        .map_err(|message| ApiError::new(ErrorKind::BadRequest, message))?;
    let log = volume.events();
    let since = log.resume(wanted.since, wanted.instance);
    if !wanted.follow {
        return Ok(Reply::Json(json(&log.after(since, usize::MAX))?));
    }
    followers
        .feed(Arc::clone(volume), since, connection)
        .map(Reply::Lines)
        .ok_or_else(|| {
            let message = format!(
                "{FOLLOWERS_MAX} clients follow the events already: end one, or poll without follow"
            );
            ApiError::new(ErrorKind::Conflict, message).into()
        })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct EventQuery<'a> {
    since: u64,
    instance: Option<&'a str>,
    follow: bool,
}

impl<'a> EventQuery<'a> {
    fn parse(query: &'a str) -> Result<Self, String> {
        let mut wanted = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=').unwrap_or((part, "")) {
                ("since", number) => {
                    wanted.since = number.parse().map_err(|_| {
                        let number = number.escape_debug();
                        format!("since={number}: give the number of an event, or 0 for all")
                    })?;
                }
                ("instance", id) => wanted.instance = Some(id),
                ("follow", "true") => wanted.follow = true,
                ("follow", "false") => wanted.follow = false,
                _ => {
                    return Err(format!(
                        "{}: give since=NUMBER, instance=ID, follow=true or follow=false",
                        part.escape_debug()
                    ));
                }
            }
        }
        Ok(wanted)
    }
}

/// The query of a removal.
fn is_forced(query: &str) -> Result<bool, ApiError> {
    match query {
        "" | "force=false" => Ok(false),
        "force=true" => Ok(true),
        _ => Err(ApiError::new(
            ErrorKind::BadRequest,
            format!("{}: give force=true, or leave it out", query.escape_debug()),
        )),
    }
}

/// The path names the snapshot; the body may repeat the name but not change it.
fn named(spec: SnapshotSpec, name: &str) -> Result<SnapshotSpec, ApiError> {
    if !spec.name.is_empty() && spec.name != name {
        let message = format!(
            "the path names snapshot `{name}`, but the body names `{}`: leave the name out of the body",
            spec.name.escape_debug()
        );
        return Err(ApiError::new(ErrorKind::BadRequest, message));
    }
    Ok(SnapshotSpec {
        name: name.to_owned(),
        ..spec
    })
}

fn wrong_method(method: &Method, path: &str, allowed: &[Method]) -> Refusal {
    let allow = allowed
        .iter()
        .map(Method::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    let message = format!("{method} {path}: this path allows {allow}");
    Refusal {
        allow: Some(allow),
        ..Refusal::new(405, ErrorKind::BadRequest, message)
    }
}

async fn read_json<T, B>(body: B) -> Result<T, Refusal>
where
    T: DeserializeOwned,
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let collected =
        tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect()).await;
    let bytes = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            let message = format!("the body is longer than {}", in_words(BODY_MAX));
            return Err(Refusal::new(413, ErrorKind::BadRequest, message));
        }
        Ok(Err(e)) => {
            return Err(Refusal::new(
                400,
                ErrorKind::BadRequest,
                format!("the body is incomplete: {e}"),
            ));
        }
        Err(_) => {
            let message = format!(
                "the body did not arrive within {} s",
                BODY_TIMEOUT.as_secs()
            );
            return Err(Refusal::new(408, ErrorKind::BadRequest, message));
        }
    };
    serde_json::from_slice(&bytes).map_err(|e| {
        Refusal::new(
            400,
            ErrorKind::BadRequest,
            format!("the body is not the JSON that this path requires: {e}"),
        )
    })
}

fn json<T: Serialize>(value: &T) -> Result<String, Refusal> {
    let mut text = serde_json::to_string(value).map_err(|e| {
        Refusal::new(
            500,
            ErrorKind::Io,
            format!("cannot encode the response as JSON: {e}"),
        )
    })?;
    text.push('\n');
    Ok(text)
}

fn into_http(result: Result<Reply, Refusal>) -> Response<Answer> {
    const JSON: &str = "application/json";
    let (status, kind, allow, body) = match result {
        Ok(Reply::Json(text)) => (200, Some(JSON), None, Either::Left(text)),
        Ok(Reply::Text(text)) => {
            let kind = Some("text/plain; charset=utf-8");
            (200, kind, None, Either::Left(text))
        }
        Ok(Reply::Lines(feed)) => {
            let kind = Some("application/x-ndjson");
            (200, kind, None, Either::Right(feed))
        }
        Ok(Reply::Nothing) => (204, None, None, Either::Left(String::new())),
        Err(refusal) => {
            let text = json(&refusal.error).unwrap_or_default();
            (
                refusal.status,
                Some(JSON),
                refusal.allow,
                Either::Left(text),
            )
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Some(kind) = kind {
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    }
    if let Some(allow) = allow.and_then(|text| header::HeaderValue::from_str(&text).ok()) {
        headers.insert(header::ALLOW, allow);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_target_and_nothing_else_has() {
        assert_eq!(Target::find("/v1/status"), Some(Target::Status));
        assert_eq!(
            Target::find("/v1/snapshots/s1"),
            Some(Target::Snapshot("s1"))
        );
        assert_eq!(
            Target::find("/v1/snapshots/s1/size"),
            Some(Target::Size("s1"))
        );
        assert_eq!(Target::find("/v1/merge/rate"), Some(Target::MergeRate));
        assert_eq!(Target::find("/v1/events"), Some(Target::Events));
        for path in [
            "/",
            "/v1",
            "/v1/",
            "/v2/status",
            "/v1/status/",
            "/v1/snapshots/a/b",
            "/v1/snapshots/a/b/size",
            "/v1/snapshots/a/size/",
            "/v1/snapshots",
            "*",
            "",
        ] {
            assert_eq!(Target::find(path), None, "{path}");
        }
    }

    #[test]
    fn a_query_for_events_is_understood_or_refused() {
        let wanted = EventQuery {
            since: 7,
            instance: Some("ab"),
            follow: true,
        };
        let parse = EventQuery::parse;
        assert_eq!(parse("since=7&instance=ab&follow=true"), Ok(wanted));
        assert_eq!(parse(""), Ok(EventQuery::default()));
        assert_eq!(parse("follow=false&"), Ok(EventQuery::default()));
        for bad in ["since=", "since=-1", "since=x", "follow", "follow=1", "n=1"] {
            let name = bad.split('=').next().unwrap();
            assert!(parse(bad).unwrap_err().contains(name), "{bad}");
        }
    }

    #[test]
    fn the_body_cannot_rename_the_snapshot_of_the_path() {
        let spec = |name: &str| SnapshotSpec {
            name: name.to_owned(),
            cow: "/c".to_owned(),
            store_type: Default::default(),
            chunk_size: None,
            size: None,
            socket: None,
            discard_zeroes_cow: None,
            defer_entries: None,
            discard_passdown_origin: None,
            read_only: None,
        };
        assert_eq!(named(spec(""), "a").unwrap().name, "a");
        assert_eq!(named(spec("a"), "a").unwrap().name, "a");
        assert_eq!(
            named(spec("b"), "a").unwrap_err().kind,
            ErrorKind::BadRequest
        );
    }
}
