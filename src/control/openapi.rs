//! The OpenAPI description of the API, and the index: both are made from the table of the
//! paths, and the schemas from the types that the server writes and reads.

use hyper::Method;
use serde::{Deserialize, Serialize};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{
    Content, InfoBuilder, LicenseBuilder, OpenApi as Description, Paths, Ref, RefOr, Required,
    Response, ResponseBuilder,
};
use utoipa::{OpenApi, ToSchema};

use super::api::{
    DetachRequest, MergeRate, MergeRequest, OriginSize, ResizeReply, RollbackReply,
    RollbackRequest, SnapshotSpec, StoreSize, VolumeStatus,
};
use super::events::{Event, EventPage};
use super::metrics::Format;
use super::operations::{Operation, OperationList};
use super::problem::{self, Problem};
use super::table::{Answer, Call, Query, ROUTES, Route, Values};

/// The path of the description.
pub const PATH: &str = "/v1/openapi.json";

/// The types of bodies and answers; those inside them are added by themselves.
#[derive(OpenApi)]
#[openapi(components(schemas(
    DetachRequest,
    Event,
    EventPage<Event>,
    Index,
    MergeRate,
    MergeRequest,
    Operation,
    OperationList,
    OriginSize,
    Problem,
    ResizeReply,
    RollbackReply,
    RollbackRequest,
    SnapshotSpec,
    StoreSize,
    VolumeStatus,
)))]
struct Schemas;

/// `GET /v1/`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Index {
    pub name: String,
    /// Of the daemon.
    pub version: String,
    /// The path of the OpenAPI description.
    pub openapi: String,
    pub paths: Vec<IndexedPath>,
}

/// A path with one of its methods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IndexedPath {
    pub path: String,
    pub method: String,
    pub summary: String,
}

pub fn index() -> Index {
    let paths = ROUTES.iter().map(|route| IndexedPath {
        path: route.path.to_owned(),
        method: route.method.to_string(),
        summary: route.summary.to_owned(),
    });
    Index {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        openapi: PATH.to_owned(),
        paths: paths.collect(),
    }
}

/// The description of all paths.
pub fn description() -> Description {
    let mut paths = Paths::new();
    for route in ROUTES {
        let method = match route.method {
            Method::PUT => HttpMethod::Put,
            Method::POST => HttpMethod::Post,
            Method::DELETE => HttpMethod::Delete,
            _ => HttpMethod::Get,
        };
        paths.add_path_operation(route.path, vec![method], operation(route));
    }
    let mut description = Schemas::openapi();
    description.info = InfoBuilder::new()
        .title("snapback")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The control interface of a snapback daemon: HTTP/1.1 over a Unix socket.",
        ))
        .license(Some(
            LicenseBuilder::new()
                .name(env!("CARGO_PKG_LICENSE"))
                .identifier(Some(env!("CARGO_PKG_LICENSE")))
                .build(),
        ))
        .build();
    description.paths = paths;
    description
}

fn operation(route: &Route) -> OperationBuilder {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(route.id))
        .summary(Some(route.summary));
    if let Some(name) = route.parameter() {
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(text())),
        );
    }
    for query in route.query {
        operation = operation.parameter(parameter(query));
    }
    if let Some(name) = route.body {
        let body = RequestBodyBuilder::new()
            .required(Some(Required::True))
            .content("application/json", content(name));
        operation = operation.request_body(Some(body.build()));
    }
    let status = match route.answer {
        Answer::Nothing => "204",
        Answer::Json(_) | Answer::Description | Answer::Text | Answer::Metrics | Answer::Events => {
            "200"
        }
    };
    operation = operation.response(status, answer(route));
    for (status, meaning) in refusals(route) {
        let refusal = ResponseBuilder::new()
            .description(*meaning)
            .content(problem::MEDIA_TYPE, content("Problem"));
        operation = operation.response(status.to_string(), refusal.build());
    }
    operation
}

fn text() -> Schema {
    ObjectBuilder::new().schema_type(Type::String).into()
}

fn parameter(query: &Query) -> ParameterBuilder {
    let schema: Schema = match query.values {
        Values::Text => text(),
        Values::Flag => ObjectBuilder::new().schema_type(Type::Boolean).into(),
        Values::UpTo(most) => {
            let number = ObjectBuilder::new()
                .schema_type(Type::Integer)
                .minimum(Some(0_u64));
            match most {
                u64::MAX => number.into(),
                most => number.maximum(Some(most)).into(),
            }
        }
    };
    ParameterBuilder::new()
        .name(query.name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(query.meaning))
        .schema(Some(schema))
}

fn content(schema: &str) -> Content {
    Content::new(Some(RefOr::<Schema>::Ref(Ref::from_schema_name(schema))))
}

fn answer(route: &Route) -> Response {
    let answer = ResponseBuilder::new();
    let answer = match route.answer {
        Answer::Nothing => answer.description("It is in effect, and recorded"),
        Answer::Json(name) => answer
            .description(route.summary)
            .content("application/json", content(name)),
        Answer::Description => answer.description(route.summary).content(
            "application/json",
            Content::new(Some(Schema::from(
                ObjectBuilder::new().schema_type(Type::Object),
            ))),
        ),
        Answer::Text => answer
            .description(route.summary)
            .content("text/plain; charset=utf-8", Content::new(Some(text()))),
        Answer::Metrics => [Format::OpenMetrics, Format::Prometheus]
            .iter()
            .fold(answer.description(route.summary), |answer, format| {
                answer.content(format.content_type(), Content::new(Some(text())))
            }),
        Answer::Events => answer
            .description("A page of events; with follow=true one event for each line, without end")
            .content("application/json", content("EventPage_Event"))
            .content("application/x-ndjson", content("Event")),
    };
    let answer = if route.begins {
        let location = HeaderBuilder::new()
            .schema(Some(text()))
            .description(Some("The path of the operation that has begun"));
        answer.header("Location", location.build())
    } else {
        answer
    };
    answer.build()
}

/// The refusals that a route can answer with.
fn refusals(route: &Route) -> Vec<&'static (u16, &'static str)> {
    const ALL: &[(u16, &str)] = &[
        (400, "The request is wrong in every state"),
        (403, "The user may read but not change anything"),
        (404, "There is no such snapshot or operation"),
        (408, "The request did not arrive in time"),
        (409, "It is not possible in the present state"),
        (413, "The body is longer than 64 KiB"),
        (422, "The sandbox keeps the daemon from the path of the COW"),
        (500, "Input or output failed, or the change goes on"),
    ];
    let can = |status: u16| match status {
        403 => route.changes(),
        404 | 409 => route.changes() || !route.query.is_empty(),
        413 => route.body.is_some(),
        422 => matches!(route.call, Call::AddSnapshot | Call::Rollback),
        _ => true,
    };
    ALL.iter().filter(|(status, _)| can(*status)).collect()
}

#[cfg(test)]
#[path = "openapi_tests.rs"]
mod tests;
