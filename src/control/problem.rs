//! A refusal as a client gets it: problem details (RFC 9457).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api::{ApiError, ErrorKind};

/// The media type of [`Problem`].
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What each status of a refusal means: the last part of the `type`, and the title.
const TYPES: &[(u16, &str, &str)] = &[
    (400, "bad-request", "The request is wrong"),
    (403, "forbidden", "This user may not change anything"),
    (404, "not-found", "There is no such thing"),
    (405, "method-not-allowed", "The path has other methods"),
    (408, "timeout", "The request did not arrive in time"),
    (409, "conflict", "It is not possible now"),
    (413, "too-large", "The body is too long"),
    (414, "uri-too-long", "The path is too long"),
    (
        422,
        "outside",
        "The sandbox keeps the daemon from that path",
    ),
    (431, "head-too-large", "The head is too long"),
    (500, "io", "Input or output failed"),
];

/// Why a request was refused: the body of a 4xx or 5xx answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Identifies the kind of problem; it does not lead anywhere.
    #[serde(rename = "type")]
    pub problem_type: String,
    /// The same for every problem of this type.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The same as `message`.
    pub detail: String,
    pub kind: ErrorKind,
    /// Names the object, the reason and what to do.
    pub message: String,
    /// The path of the operation, if the change goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

impl Problem {
    /// `status`: of HTTP, one of 400, 403, 404, 405, 408, 409, 413, 414, 422, 431 and 500.
    pub fn new(status: u16, error: ApiError) -> Self {
        let known = TYPES.iter().find(|(of, ..)| *of == status);
        let (_, name, title) = known.unwrap_or(&(500, "io", "Input or output failed"));
        Self {
            problem_type: format!("urn:snapback:problem:{name}"),
            title: (*title).to_owned(),
            status,
            detail: error.message.clone(),
            kind: error.kind,
            message: error.message,
            operation: error.operation,
        }
    }

    /// One line of JSON.
    pub fn to_json(&self) -> String {
        // Texts and numbers can always be written.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_in_the_document() {
        let document = include_str!("../../docs/api.md");
        for (status, name, _) in TYPES {
            let row = format!("| {status} | `urn:snapback:problem:{name}` |");
            assert!(document.contains(&row), "{row}");
        }
        let rows = document.matches("| `urn:snapback:problem:").count();
        assert_eq!(rows, TYPES.len());
    }

    #[test]
    fn a_client_of_the_older_form_finds_its_fields() {
        let error = ApiError::new(ErrorKind::Conflict, "no: take another");
        let text = Problem::new(409, error.clone()).to_json();
        assert_eq!(serde_json::from_str::<ApiError>(&text).unwrap(), error);
    }
}
