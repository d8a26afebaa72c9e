//! `GET /metrics`

use std::sync::Arc;

use hyper::{Method, Request, Response, header};

use super::api::{ApiError, ErrorKind, Volume};
use super::metrics::{self, Format};
use super::reply::{Answer, Refusal, Reply, into_http};
use super::table::METRICS;

/// Answers a request where only metrics are served. Never fails.
pub async fn answer_metrics_only<B>(
    volume: &Arc<dyn Volume>,
    request: &Request<B>,
) -> Response<Answer> {
    let (method, path) = (request.method(), request.uri().path());
    let result = match (method, path) {
        (&Method::GET, METRICS) => scrape(volume, request).await,
        (_, METRICS) => {
            let allow = Method::GET.to_string();
            let message = format!("{method} {path}: this path allows {allow}");
            Err(Refusal::other_methods(message, allow))
        }
        _ => {
            let message = format!(
                "no such path: {}: only GET /metrics is served here",
                path.escape_debug()
            );
            Err(Refusal::new(404, ErrorKind::NotFound, message))
        }
    };
    into_http(result, None).1
}

/// The metrics, in the format that the client prefers.
pub async fn scrape<B>(volume: &Arc<dyn Volume>, request: &Request<B>) -> Result<Reply, Refusal> {
    let accept = request.headers().get(header::ACCEPT);
    let format = Format::accepted(accept.and_then(|accept| accept.to_str().ok()));
    let volume = Arc::clone(volume);
    let failed = |e: String| ApiError::new(ErrorKind::Io, format!("the metrics: {e}"));
    let text = tokio::task::spawn_blocking(move || {
        metrics::encode(volume.metrics()?, format).map_err(|e| failed(e.to_string()))
    });
    let text = text.await.map_err(|e| failed(e.to_string()))??;
    Ok(Reply::Metrics(format, text))
}
