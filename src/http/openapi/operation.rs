//! What the document says of each operation beside its parameters, body and response.

use std::collections::BTreeMap;

use aide::{
    openapi::{Operation, ReferenceOr, StatusCode},
    transform::TransformOperation,
};
use axum::http;
use serde_json::{Value, json};

use super::super::{keys, problem::Code, request_context};

/// The groups of operations.
#[derive(Clone, Copy)]
pub(in crate::http) enum Tag {
    Pictures,
    Collections,
    Items,
    Models,
    Server,
    Page,
}

impl Tag {
    /// All of them, in the order in which they are shown.
    pub(super) const ALL: [Self; 6] = [Self::Pictures, Self::Collections, Self::Items, Self::Models, Self::Server, Self::Page];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pictures => "pictures",
            Self::Collections => "collections",
            Self::Items => "items",
            Self::Models => "models",
            Self::Server => "server",
            Self::Page => "page",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Pictures => "Embeddings, classes and masks of pictures",
            Self::Collections => "Collections of vectors: make, search, measure, back up, delete",
            Self::Items => "The items of a collection",
            Self::Models => "The models that are served",
            Self::Server => "Health and metrics",
            Self::Page => "The web page and this document",
        }
    }
}

/// Describes an operation: its name, where it belongs, and the errors that its handler may answer with. Those of its parameters, of
/// its body and of what every request passes come by themselves.
pub(in crate::http) fn describe(
    id: &'static str,
    tag: Tag,
    summary: &'static str,
    errors: &'static [Code],
) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |operation| {
        operation.id(id).tag(tag.name()).summary(summary).with(|mut operation| {
            fails_with(operation.inner_mut(), errors);
            operation
        })
    }
}

/// Adds errors to an operation.
pub(in crate::http) fn fails_with(operation: &mut Operation, errors: &[Code]) {
    let responses = &mut operation.responses.get_or_insert_default().responses;
    for error in errors {
        let status = error.status();
        responses.entry(StatusCode::Code(status.as_u16())).or_insert_with(|| ReferenceOr::Reference {
            reference: reference(status),
            summary: None,
            description: None,
        });
    }
}

fn name_of(status: http::StatusCode) -> String {
    status.canonical_reason().unwrap_or("Error").replace(' ', "")
}

fn reference(status: http::StatusCode) -> String {
    format!("#/components/responses/{}", name_of(status))
}

/// Adds what the layers around all routes may answer, and whether they want a key.
pub(super) fn add_middleware(path: &str, operation: &mut Value) {
    let mut errors = vec![Code::HostNotAllowed, Code::Internal];
    if keys::is_open(path) {
        operation["security"] = json!([]);
    } else {
        errors.extend([Code::KeyMissing, Code::RateLimited, Code::AnswerTooLarge]);
    }
    if request_context::has_deadline(path) {
        errors.push(Code::DeadlinePassed);
    }
    for error in errors {
        let status = error.status();
        operation["responses"][status.as_str()] = json!({ "$ref": reference(status) });
    }
}

/// One response for each status of an error, which names its codes.
pub(super) fn error_responses() -> Value {
    let mut by_status: BTreeMap<u16, (http::StatusCode, Vec<String>)> = BTreeMap::new();
    for code in Code::ALL {
        let status = code.status();
        let name = serde_json::to_value(code).ok().and_then(|name| name.as_str().map(|name| format!("`{name}`")));
        by_status.entry(status.as_u16()).or_insert_with(|| (status, Vec::new())).1.extend(name);
    }
    by_status
        .into_values()
        .map(|(status, codes)| {
            let mut response = json!({
                "description": codes.join(", "),
                "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
            });
            if matches!(status, http::StatusCode::TOO_MANY_REQUESTS | http::StatusCode::SERVICE_UNAVAILABLE) {
                response["headers"] = json!({
                    "Retry-After": { "description": "Seconds to wait before the next try", "schema": { "type": "integer" } },
                });
            }
            (name_of(status), response)
        })
        .collect()
}
