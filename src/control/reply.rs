//! Answers before they are HTTP.

use http_body_util::Either;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::api::{ApiError, ErrorKind};
use super::follow::Feed;
use super::metrics::Format;
use super::problem::{self, Problem};

/// The body of a response: complete, or a feed of events.
pub type Answer = Either<String, Feed>;

const JSON: &str = "application/json";

/// The answer of a request that succeeded.
#[derive(Debug)]
pub enum Reply {
    Json(String),
    Text(String),
    Metrics(Format, String),
    Lines(Feed),
    Nothing,
}

/// A refusal with its HTTP status.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub error: ApiError,
    allow: Option<String>,
}

impl Refusal {
    pub fn new(status: u16, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            status,
            error: ApiError::new(kind, message),
            allow: None,
        }
    }

    /// The path has other methods.
    pub fn other_methods(message: String, allow: String) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(405, ErrorKind::BadRequest, message)
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

/// One line of JSON.
pub fn json<T: Serialize>(value: &T) -> Result<String, ApiError> {
    let text = serde_json::to_string(value);
    text.map(|text| text + "\n").map_err(|e| {
        let message = format!("cannot encode the response as JSON: {e}");
        ApiError::new(ErrorKind::Io, message)
    })
}

/// `location`: of the operation that began.
pub fn into_http(
    result: Result<Reply, Refusal>,
    location: Option<String>,
) -> (u16, Response<Answer>) {
    let mut headers = HeaderMap::new();
    let mut add = |name: HeaderName, value: &str| {
        // All of these are visible ASCII characters.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    let (status, kind, body) = match result {
        Ok(Reply::Json(text)) => (200, Some(JSON), Either::Left(text)),
        Ok(Reply::Text(text)) => {
            let kind = Some("text/plain; charset=utf-8");
            (200, kind, Either::Left(text))
        }
        Ok(Reply::Metrics(format, text)) => (200, Some(format.content_type()), Either::Left(text)),
        Ok(Reply::Lines(feed)) => (200, Some("application/x-ndjson"), Either::Right(feed)),
        Ok(Reply::Nothing) => (204, None, Either::Left(String::new())),
        Err(refusal) => {
            if let Some(allow) = refusal.allow {
                add(header::ALLOW, &allow);
            }
            let problem = Problem::new(refusal.status, refusal.error);
            let text = Either::Left(problem.to_json());
            (refusal.status, Some(problem::MEDIA_TYPE), text)
        }
    };
    if let Some(kind) = kind {
        add(header::CONTENT_TYPE, kind);
    }
    if let Some(location) = location {
        add(header::LOCATION, &location);
    }
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = headers;
    (status, response)
}
