//! From an HTTP request to its response, by the table of the paths.

use std::sync::Arc;

use hyper::body::{Body, Bytes};
use hyper::{Request, Response};
use tokio::time::Instant;

use super::access::Access;
use super::api::{
    ApiError, DetachRequest, ErrorKind, MergeRate, MergeRequest, OriginSize, RollbackRequest,
    StoreSize, Volume, VolumeStatus, check_name,
};
use super::follow::{Connection, FOLLOWERS_MAX, Followers};
use super::openapi;
use super::operations::{OperationKind, OperationList};
use super::passing::Passed;
use super::peer::Peer;
use super::query::{EventQuery, is_forced, named, patience, read_json};
use super::render;
use super::reply::{Answer, Refusal, Reply, into_http, json};
use super::scrape::scrape;
use super::table::{self, Call, Found, Route};
use super::verbs::Verbs;

/// What all requests use.
#[derive(Clone)]
pub struct Context {
    pub volume: Arc<dyn Volume>,
    pub followers: Followers,
    pub verbs: Verbs,
    pub access: Access,
}

/// Answers one request on `connection`, of a peer that has passed a descriptor or none. Never fails.
pub async fn answer<B>(
    context: &Context,
    (peer, passed): (Peer, Passed),
    connection: &Arc<Connection>,
    request: Request<B>,
) -> Response<Answer>
where
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let method = request.method().clone();
    let uri = request.uri().clone();
    let (path, query) = (uri.path(), uri.query().unwrap_or_default());
    let mut location = None;
    let mut is_change = false;
    let result = match route(&method, path) {
        Err(refusal) => Err(refusal),
        Ok((route, value)) if route.changes() => {
            is_change = true;
            let body = request.into_body();
            let changed = change(context, (peer, passed), (route, value, query), body).await;
            changed.map(|(reply, begun)| {
                location = begun;
                reply
            })
        }
        Ok((route, _)) if route.call == Call::Metrics => scrape(&context.volume, &request).await,
        Ok((route, value)) => read(context, connection, (route, value, query)).await,
    };
    if let Err(refusal) = &result {
        tracing::debug!(%method, path, refusal.status, %refusal.error, "control request refused");
    }
    let (status, response) = into_http(result, location);
    if is_change {
        let (uid, pid) = (peer.uid, peer.pid);
        tracing::info!(uid, pid, %method, path, status, "change over the control socket");
    } else {
        tracing::debug!(%method, path, status, "control request");
    }
    response
}

/// What is asked for: the route, the part of the path that stands for its parameter, and the
/// query.
type Asked<'a> = (&'static Route, &'a str, &'a str);

fn route<'a>(method: &hyper::Method, path: &'a str) -> Result<(&'static Route, &'a str), Refusal> {
    match table::find(method, path) {
        Found::Route(route, value) => Ok((route, value.unwrap_or_default())),
        Found::OtherMethods(methods) => {
            let allow = methods.join(", ");
            let message = format!("{method} {path}: this path allows {allow}");
            Err(Refusal::other_methods(message, allow))
        }
        Found::Nothing => {
            let message = format!(
                "no such path: {}: GET /v1/ lists the paths of the API",
                path.escape_debug()
            );
            Err(Refusal::new(404, ErrorKind::NotFound, message))
        }
    }
}

/// Answers a request that changes nothing.
async fn read(
    context: &Context,
    connection: &Arc<Connection>,
    (route, value, query): Asked<'_>,
) -> Result<Reply, Refusal> {
    let volume = &context.volume;
    Ok(match route.call {
        Call::Index => Reply::Json(json(&openapi::index())?),
        Call::OpenApi => Reply::Json(json(&openapi::description())?),
        Call::Table => Reply::Text(render::table(&status(volume).await?)),
        Call::Events => events(context, connection, query)?,
        Call::Operations => Reply::Json(json(&operations(volume).await?)?),
        Call::Operation => operation(context, value, query).await?,
        // The calls that change something are carried out by `change`.
        _ => Reply::Json(json(&status(volume).await?)?),
    })
}

/// The status, which may have to wait for a short time.
async fn status(volume: &Arc<dyn Volume>) -> Result<VolumeStatus, ApiError> {
    let volume = Arc::clone(volume);
    tokio::task::spawn_blocking(move || volume.status())
        .await
        .map_err(|e| ApiError::new(ErrorKind::Io, format!("the status: {e}")))
}

async fn operations(volume: &Arc<dyn Volume>) -> Result<OperationList, ApiError> {
    let all = volume.events().operations().all();
    let merge = status(volume).await?.merge;
    let shown = all.into_iter().map(|one| one.with_progress(merge.as_ref()));
    Ok(OperationList {
        operations: shown.collect(),
    })
}

/// One operation, when it has ended or the patience of the client has.
async fn operation(context: &Context, id: &str, query: &str) -> Result<Reply, Refusal> {
    let patience = patience(query)?;
    let deadline = Instant::now() + patience;
    let known = context.volume.events().operations();
    let mut changes = known.watch();
    // Clients that wait must not take all connections from the others.
    let place = match patience.is_zero() {
        true => None,
        false => Some(context.followers.place().ok_or_else(too_many)?),
    };
    loop {
        changes.mark_unchanged();
        let found = known.find(id).ok_or_else(|| {
            let message = format!(
                "no operation {}: GET /v1/operations lists those that are known; they are \
                 forgotten when the daemon ends",
                id.escape_debug()
            );
            ApiError::new(ErrorKind::NotFound, message)
        })?;
        let waits = place.is_some() && Instant::now() < deadline;
        if found.state.is_end() || !waits || context.followers.is_closing() {
            let merge = status(&context.volume).await?.merge;
            return Ok(Reply::Json(json(&found.with_progress(merge.as_ref()))?));
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = context.followers.closing() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
}

/// A change: what carries it out, and its answer in JSON if it has one.
type Change = Box<dyn FnOnce(&dyn Volume) -> Result<Option<String>, ApiError> + Send>;

/// Carries out a change. Also returns the location of the operation that has begun.
async fn change<B>(
    context: &Context,
    (peer, passed): (Peer, Passed),
    (route, value, query): Asked<'_>,
    body: B,
) -> Result<(Reply, Option<String>), Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    context.access.check(peer)?;
    if route.parameter().is_some() {
        check_name(value).map_err(|message| ApiError::new(ErrorKind::BadRequest, message))?;
    }
    let mut begins = None;
    let (what, call): (String, Change) = match route.call {
        Call::Rollback => {
            let wanted: RollbackRequest = read_json(body).await?;
            begins = Some((wanted.snapshot.clone(), OperationKind::Rollback));
            let what = format!("rollback {}", wanted.snapshot.escape_debug());
            let cow = wanted.keep.as_ref().map(|keep| keep.cow.as_str());
            let cow = passed.take(cow)?;
            (
                what,
                Box::new(|v| json(&v.rollback(wanted, cow)?).map(Some)),
            )
        }
        Call::Merge => {
            let wanted: MergeRequest = read_json(body).await?;
            begins = Some((wanted.snapshot.clone(), OperationKind::Merge));
            let what = format!("merge {}", wanted.snapshot.escape_debug());
            (what, Box::new(|v| v.merge(wanted).map(|()| None)))
        }
        Call::ResizeOrigin => {
            let OriginSize { size } = read_json(body).await?;
            let call = move |v: &dyn Volume| json(&v.resize(size)?).map(Some);
            ("resize".to_owned(), Box::new(call))
        }
        Call::AddSnapshot | Call::RemoveSnapshot | Call::GrowSnapshot => {
            change_snapshot(route.call, (value, query), &passed, body).await?
        }
        _ => small_change(route.call, body).await?,
    };
    // Those that name a COW have taken it.
    passed.take(None)?;
    let answer = context
        .verbs
        .call(what, peer, &context.volume, call)
        .await?;
    let operations = context.volume.events().operations();
    let begun = begins.and_then(|(snapshot, kind)| operations.asked(&snapshot, kind, peer));
    let location = begun.map(|id| format!("/v1/operations/{id}"));
    Ok((answer.map_or(Reply::Nothing, Reply::Json), location))
}

async fn change_snapshot<B>(
    call: Call,
    (name, query): (&str, &str),
    passed: &Passed,
    body: B,
) -> Result<(String, Change), Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let of = name.to_owned();
    Ok(match call {
        Call::RemoveSnapshot => {
            let force = is_forced(query)?;
            let call = move |v: &dyn Volume| v.remove_snapshot(&of, force).map(|()| None);
            (format!("remove {name}"), Box::new(call))
        }
        Call::GrowSnapshot => {
            let StoreSize { size } = read_json(body).await?;
            let call = move |v: &dyn Volume| v.grow_snapshot(&of, size).map(|()| None);
            (format!("grow {name}"), Box::new(call))
        }
        _ => {
            let spec = named(read_json(body).await?, name)?;
            let cow = passed.take(Some(&spec.cow))?;
            let call = move |v: &dyn Volume| v.add_snapshot(spec, cow).map(|()| None);
            (format!("snapshot {name}"), Box::new(call))
        }
    })
}

/// A change that begins nothing and answers nothing.
async fn small_change<B>(call: Call, body: B) -> Result<(String, Change), Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (what, change): (&str, Change) = match call {
        Call::PauseMerge => (
            "merge --pause",
            Box::new(|v| v.pause_merge().map(|()| None)),
        ),
        Call::ResumeMerge => (
            "merge --resume",
            Box::new(|v| v.resume_merge().map(|()| None)),
        ),
        Call::SetMergeRate => {
            let MergeRate { rate } = read_json(body).await?;
            (
                "merge --rate",
                Box::new(move |v| v.set_merge_rate(rate).map(|()| None)),
            )
        }
        Call::Detach => {
            let DetachRequest { socket } = read_json(body).await?;
            let what = format!("detach {}", socket.escape_debug());
            return Ok((what, Box::new(move |v| v.detach(&socket).map(|()| None))));
        }
        Call::Release => ("release", Box::new(|v| v.release().map(|()| None))),
        _ => (
            "rollback --cancel",
            Box::new(|v| v.cancel_rollback().map(|()| None)),
        ),
    };
    Ok((what.to_owned(), change))
}

/// `GET /v1/events`, with its query.
fn events(context: &Context, connection: &Arc<Connection>, query: &str) -> Result<Reply, Refusal> {
    let wanted = EventQuery::parse(query)
        .map_err(|message| ApiError::new(ErrorKind::BadRequest, message))?;
    let volume = &context.volume;
    let log = volume.events();
    let since = log.resume(wanted.since, wanted.instance);
    if !wanted.follow {
        return Ok(Reply::Json(json(&log.after(since, usize::MAX))?));
    }
    context
        .followers
        .feed(Arc::clone(volume), since, connection)
        .map(Reply::Lines)
        .ok_or_else(|| too_many().into())
}

fn too_many() -> ApiError {
    let message = format!(
        "{FOLLOWERS_MAX} clients follow the events or wait for operations already: end one, or \
         ask without follow and wait"
    );
    ApiError::new(ErrorKind::Conflict, message)
}
