//! The one table of the API: what is served at which path, with which method. The server
//! looks requests up in it, the index lists it, and the OpenAPI description is made from it, so
//! that these cannot differ.

use hyper::Method;

/// What a request is answered with, or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Index,
    OpenApi,
    Status,
    Table,
    Events,
    Metrics,
    Operations,
    Operation,
    AddSnapshot,
    RemoveSnapshot,
    GrowSnapshot,
    ResizeOrigin,
    Rollback,
    CancelRollback,
    Merge,
    PauseMerge,
    ResumeMerge,
    SetMergeRate,
    Detach,
    Release,
}

/// The answer of a request that succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200 and JSON; the name of its schema.
    Json(&'static str),
    /// 200 and the description itself.
    Description,
    /// 200 and text.
    Text,
    /// 200 and text in the format that the client prefers.
    Metrics,
    /// 200 and a page of events, or one event for each line.
    Events,
    /// 204
    Nothing,
}

/// A parameter in the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    pub name: &'static str,
    pub values: Values,
    pub meaning: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    Flag,
    Text,
    /// An integer from 0 to this.
    UpTo(u64),
}

/// One method of one path.
#[derive(Debug)]
pub struct Route {
    pub method: Method,
    /// A part in braces stands for one part of a request's path.
    pub path: &'static str,
    pub call: Call,
    /// Unique.
    pub id: &'static str,
    pub summary: &'static str,
    pub query: &'static [Query],
    /// The name of the schema of the body that the request must have.
    pub body: Option<&'static str>,
    pub answer: Answer,
    /// The answer has the location of an operation.
    pub begins: bool,
}

impl Route {
    const fn get(path: &'static str, call: Call, id: &'static str, answer: Answer) -> Self {
        Self {
            method: Method::GET,
            path,
            call,
            id,
            summary: "",
            query: &[],
            body: None,
            answer,
            begins: false,
        }
    }

    const fn change(method: Method, path: &'static str, call: Call, id: &'static str) -> Self {
        Self {
            method,
            path,
            call,
            id,
            summary: "",
            query: &[],
            body: None,
            answer: Answer::Nothing,
            begins: false,
        }
    }

    const fn about(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    const fn query(mut self, query: &'static [Query]) -> Self {
        self.query = query;
        self
    }

    const fn body(mut self, schema: &'static str) -> Self {
        self.body = Some(schema);
        self
    }

    const fn answers(mut self, schema: &'static str) -> Self {
        self.answer = Answer::Json(schema);
        self
    }

    const fn begins_operation(mut self) -> Self {
        self.begins = true;
        self
    }

    /// It needs the permission to change something.
    pub fn changes(&self) -> bool {
        self.method != Method::GET
    }

    /// The name of the part in braces.
    pub fn parameter(&self) -> Option<&'static str> {
        let (_, rest) = self.path.split_once('{')?;
        rest.split_once('}').map(|(name, _)| name)
    }

    /// Whether `path` fits, with what stands for the part in braces.
    fn fits<'a>(&self, path: &'a str) -> Option<Option<&'a str>> {
        let Some((before, rest)) = self.path.split_once('{') else {
            return (self.path == path).then_some(None);
        };
        let after = rest.split_once('}').map_or("", |(_, after)| after);
        let value = path.strip_prefix(before)?.strip_suffix(after)?;
        (!value.contains('/')).then_some(Some(value))
    }
}

/// Longest wait for an operation, in seconds: less than a connection may live.
pub const WAIT_MAX: u64 = 20;

const EVENTS: &[Query] = &[
    Query {
        name: "since",
        values: Values::UpTo(u64::MAX),
        meaning: "Only events after this number; 0 or omitted: all events that are kept.",
    },
    Query {
        name: "instance",
        values: Values::Text,
        meaning: "The daemon to which the number belongs; another one sends all events.",
    },
    Query {
        name: "follow",
        values: Values::Flag,
        meaning: "Continue with new events, as one JSON object per line.",
    },
];
const FORCE: &[Query] = &[Query {
    name: "force",
    values: Values::Flag,
    meaning: "Remove it even if its store cannot be marked invalid.",
}];
const WAIT: &[Query] = &[Query {
    name: "wait",
    values: Values::UpTo(WAIT_MAX),
    meaning: "Answer when the operation has ended, or after this many seconds.",
}];

/// The only path without `/v1`: scrapers expect it there.
pub const METRICS: &str = "/metrics";
const SNAPSHOT: &str = "/v1/snapshots/{name}";

/// Every path and method of the API.
pub static ROUTES: &[Route] = &[
    Route::get("/", Call::Index, "root", Answer::Json("Index")).about("The paths of the API"),
    Route::get("/v1", Call::Index, "index", Answer::Json("Index")).about("The paths of the API"),
    Route::get("/v1/", Call::Index, "indexFolder", Answer::Json("Index"))
        .about("The paths of the API"),
    Route::get(
        "/v1/openapi.json",
        Call::OpenApi,
        "description",
        Answer::Description,
    )
    .about("This description"),
    Route::get(
        "/v1/status",
        Call::Status,
        "status",
        Answer::Json("VolumeStatus"),
    )
    .about("The disk, its views, snapshots and merge"),
    Route::get("/v1/table", Call::Table, "table", Answer::Text)
        .about("What dmsetup table would print"),
    Route::get("/v1/events", Call::Events, "events", Answer::Events)
        .about("What happened")
        .query(EVENTS),
    Route::get(METRICS, Call::Metrics, "metrics", Answer::Metrics).about("Metrics for Prometheus"),
    Route::get(
        "/v1/operations",
        Call::Operations,
        "operations",
        Answer::Json("OperationList"),
    )
    .about("Merges, rollbacks and changes that take long: the last 64"),
    Route::get(
        "/v1/operations/{id}",
        Call::Operation,
        "operation",
        Answer::Json("Operation"),
    )
    .about("One of them")
    .query(WAIT),
    Route::change(Method::PUT, SNAPSHOT, Call::AddSnapshot, "addSnapshot")
        .about("Take a snapshot")
        .body("SnapshotSpec"),
    Route::change(
        Method::DELETE,
        SNAPSHOT,
        Call::RemoveSnapshot,
        "removeSnapshot",
    )
    .about("Remove a snapshot; its COW file stays")
    .query(FORCE),
    Route::change(
        Method::PUT,
        "/v1/snapshots/{name}/size",
        Call::GrowSnapshot,
        "growSnapshot",
    )
    .about("Enlarge a snapshot's COW")
    .body("StoreSize"),
    Route::change(
        Method::PUT,
        "/v1/origin/size",
        Call::ResizeOrigin,
        "resizeOrigin",
    )
    .about("Enlarge the disk")
    .body("OriginSize")
    .answers("ResizeReply"),
    Route::change(Method::POST, "/v1/rollback", Call::Rollback, "rollback")
        .about("Give the disk the content of a snapshot again")
        .body("RollbackRequest")
        .answers("RollbackReply")
        .begins_operation(),
    Route::change(
        Method::DELETE,
        "/v1/rollback",
        Call::CancelRollback,
        "cancelRollback",
    )
    .about("Cancel the rollback that waits for the guest's reset"),
    Route::change(Method::POST, "/v1/merge", Call::Merge, "merge")
        .about("Copy a snapshot back into the disk")
        .body("MergeRequest")
        .begins_operation(),
    Route::change(
        Method::POST,
        "/v1/merge/pause",
        Call::PauseMerge,
        "pauseMerge",
    )
    .about("Pause the merge"),
    Route::change(
        Method::POST,
        "/v1/merge/resume",
        Call::ResumeMerge,
        "resumeMerge",
    )
    .about("Continue the merge, or retry a failed one"),
    Route::change(
        Method::PUT,
        "/v1/merge/rate",
        Call::SetMergeRate,
        "setMergeRate",
    )
    .about("Limit the merge")
    .body("MergeRate"),
    Route::change(Method::POST, "/v1/detach", Call::Detach, "detach")
        .about("Close a socket that a merged snapshot has left to the disk")
        .body("DetachRequest"),
    Route::change(Method::POST, "/v1/release", Call::Release, "release")
        .about("End the daemon, so that another one can serve the disk"),
];

/// What a request asks for.
#[derive(Debug)]
pub enum Found<'a> {
    Route(&'static Route, Option<&'a str>),
    /// The path has other methods.
    OtherMethods(Vec<&'static str>),
    Nothing,
}

pub fn find<'a>(method: &Method, path: &'a str) -> Found<'a> {
    let mut methods = Vec::new();
    for route in ROUTES {
        if let Some(value) = route.fits(path) {
            if route.method == *method {
                return Found::Route(route, value);
            }
            methods.push(route.method.as_str());
        }
    }
    if methods.is_empty() {
        Found::Nothing
    } else {
        Found::OtherMethods(methods)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn call<'a>(method: &Method, path: &'a str) -> Option<(Call, Option<&'a str>)> {
        match find(method, path) {
            Found::Route(route, value) => Some((route.call, value)),
            Found::OtherMethods(_) | Found::Nothing => None,
        }
    }

    #[test]
    fn every_path_has_its_call_and_nothing_else_has() {
        let get = |path| call(&Method::GET, path);
        let put = |path| call(&Method::PUT, path);
        assert_eq!(get("/v1/status"), Some((Call::Status, None)));
        assert_eq!(get("/"), Some((Call::Index, None)));
        assert_eq!(
            put("/v1/snapshots/s1"),
            Some((Call::AddSnapshot, Some("s1")))
        );
        assert_eq!(
            put("/v1/snapshots/s1/size"),
            Some((Call::GrowSnapshot, Some("s1")))
        );
        assert_eq!(put("/v1/snapshots/"), Some((Call::AddSnapshot, Some(""))));
        assert_eq!(put("/v1/merge/rate"), Some((Call::SetMergeRate, None)));
        assert_eq!(
            get("/v1/operations/a-1"),
            Some((Call::Operation, Some("a-1")))
        );
        for path in [
            "/v2/status",
            "/v1/status/",
            "//",
            "/v1/snapshots/a/b",
            "/v1/snapshots/a/b/size",
            "/v1/snapshots/a/size/",
            "/v1/snapshots",
            "*",
            "",
        ] {
            assert!(matches!(find(&Method::PUT, path), Found::Nothing), "{path}");
        }
    }

    #[test]
    fn no_route_hides_another_and_each_is_named() {
        let ids: BTreeSet<&str> = ROUTES.iter().map(|route| route.id).collect();
        assert_eq!(ids.len(), ROUTES.len());
        for route in ROUTES {
            let path = route.path.replace("{name}", "s1").replace("{id}", "s1");
            assert_eq!(
                call(&route.method, &path),
                Some((route.call, route.parameter().map(|_| "s1"))),
                "{} {path}",
                route.method
            );
            assert!(!route.summary.is_empty(), "{}", route.path);
        }
    }
}
