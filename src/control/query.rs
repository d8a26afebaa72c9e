//! The queries of requests, and their bodies.

use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use serde::de::DeserializeOwned;

use super::api::{ApiError, ErrorKind, SnapshotSpec};
use super::reply::Refusal;
use super::table::WAIT_MAX;
use crate::size::in_words;

/// Largest request body in bytes.
pub const BODY_MAX: usize = 64 << 10;
/// How long a request body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The query of `GET /v1/events`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EventQuery<'a> {
    pub since: u64,
    pub instance: Option<&'a str>,
    pub follow: bool,
}

impl<'a> EventQuery<'a> {
    pub fn parse(query: &'a str) -> Result<Self, String> {
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
pub fn is_forced(query: &str) -> Result<bool, ApiError> {
    match query {
        "" | "force=false" => Ok(false),
        "force=true" => Ok(true),
        _ => Err(ApiError::new(
            ErrorKind::BadRequest,
            format!("{}: give force=true, or leave it out", query.escape_debug()),
        )),
    }
}

/// The query of `GET /v1/operations/ID`: how long to wait for its end.
pub fn patience(query: &str) -> Result<Duration, ApiError> {
    let seconds = match query.strip_prefix("wait=") {
        Some(number) => number.parse().ok().filter(|seconds| *seconds <= WAIT_MAX),
        None => query.is_empty().then_some(0),
    };
    seconds.map(Duration::from_secs).ok_or_else(|| {
        let message = format!(
            "{}: give wait=SECONDS, from 0 to {WAIT_MAX}, or leave it out",
            query.escape_debug()
        );
        ApiError::new(ErrorKind::BadRequest, message)
    })
}

/// The path names the snapshot; the body may repeat the name but not change it.
pub fn named(spec: SnapshotSpec, name: &str) -> Result<SnapshotSpec, ApiError> {
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

/// Waits for a body, and reads it.
pub async fn read_json<T, B>(body: B) -> Result<T, Refusal>
where
    T: DeserializeOwned,
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let refused = |status, message| Refusal::new(status, ErrorKind::BadRequest, message);
    let collected =
        tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect()).await;
    let bytes = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            let message = format!("the body is longer than {}", in_words(BODY_MAX));
            return Err(refused(413, message));
        }
        Ok(Err(e)) => return Err(refused(400, format!("the body is incomplete: {e}"))),
        Err(_) => {
            let seconds = BODY_TIMEOUT.as_secs();
            let message = format!("the body did not arrive within {seconds} s");
            return Err(refused(408, message));
        }
    };
    serde_json::from_slice(&bytes).map_err(|e| {
        let message = format!("the body is not the JSON that this path requires: {e}");
        refused(400, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_wait_is_bounded() {
        assert_eq!(patience(""), Ok(Duration::ZERO));
        assert_eq!(patience("wait=20"), Ok(Duration::from_secs(20)));
        for bad in ["wait=21", "wait=-1", "wait=", "wait", "wait=1&wait=2", "x"] {
            assert!(patience(bad).unwrap_err().message.contains(bad), "{bad}");
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
