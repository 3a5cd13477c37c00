//! `GET /openapi.json`: what the routes take and give, as OpenAPI 3.1.
//!
//! It is made of the routes themselves ([`api`](super::api)): parameters and bodies are those of the types that read them, responses
//! those of the types that handlers return. A route whose types do not say what they hold does not compile. The committed
//! `openapi.json` is what `dino-server openapi` prints, which a test compares.

pub(super) mod body;
pub(super) mod operation;
pub(super) mod schema;

use std::{borrow::Cow, sync::LazyLock};

use aide::{
    generate::{in_context, reset_context},
    openapi::OpenApi,
};
use axum::{http::header, response::IntoResponse};
use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use self::operation::Tag;
use super::{api, metrics_api, problem, response::JsonBody};

/// The whole document.
pub fn document() -> Value {
    reset_context();
    in_context(|context| context.schema = schema::generator());
    let mut described = OpenApi::default();
    in_context(|context| drop(schema::schema_of_response::<problem::Body<'_>>(&mut context.schema)));
    let _routes = api().merge(metrics_api()).finish_api(&mut described);
    let mut document = serde_json::to_value(described).unwrap_or_default();
    for (path, methods) in document["paths"].as_object_mut().into_iter().flatten() {
        for (_, operation) in methods.as_object_mut().into_iter().flatten() {
            operation::add_middleware(path, operation);
        }
    }
    move_delete_where(&mut document["paths"]);
    schema::simplify(&mut document);
    document["info"] = json!({
        "title": "dino-server",
        "version": env!("CARGO_PKG_VERSION"),
        "description": env!("CARGO_PKG_DESCRIPTION"),
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
    });
    // Relative to this document, which may be read through a proxy that cuts a path off.
    document["servers"] = json!([{ "url": ".", "description": "The server that this document comes from" }]);
    document["tags"] = Tag::ALL.iter().map(|tag| json!({ "name": tag.name(), "description": tag.description() })).collect();
    document["security"] = json!([{}, { "bearer": [] }, { "key": [] }]);
    document["components"]["securitySchemes"] = json!({
        "bearer": { "type": "http", "scheme": "bearer" },
        "key": { "type": "apiKey", "in": "header", "name": "X-Api-Key" },
    });
    document["components"]["responses"] = operation::error_responses();
    document
}

/// `POST …/items/delete` is met at the path of a single item, see [`collections`](super::collections).
fn move_delete_where(paths: &mut Value) {
    let item = "/collections/{collection}/items/{id}";
    let Some(mut operation) = paths[item].as_object_mut().and_then(|methods| methods.remove("post")) else { return };
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.retain(|parameter| parameter["name"] != "id");
    }
    paths["/collections/{collection}/items/delete"] = json!({ "post": operation });
}

/// The JSON of the document.
pub(super) struct Document;

impl JsonSchema for Document {
    fn schema_name() -> Cow<'static, str> {
        "OpenApiDocument".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "A document of OpenAPI 3.1.", "type": "object", "additionalProperties": true })
    }
}

pub(super) async fn handle() -> JsonBody<Document> {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    JsonBody::of(([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone()).into_response())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::problem::Code, *};

    fn operations(document: &Value) -> impl Iterator<Item = (String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        paths.iter().flat_map(|(path, methods)| {
            methods.as_object().unwrap().iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
        })
    }

    #[test]
    fn the_committed_document_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let committed: Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
        assert!(committed == document(), "openapi.json is out of date: run `dino-server openapi > openapi.json`");
    }

    /// aide's router has methods that route without a word in the document.
    #[test]
    fn every_route_is_described() {
        // The other port has some of the same routes.
        let (_, main) = include_str!("../mod.rs").split_once("fn api()").unwrap();
        let (main, _) = main.split_once("pub fn watch_routes").unwrap();
        for source in [main, include_str!("../collections/mod.rs")] {
            assert_eq!(source.matches(".route(").count(), 0, "use api_route");
        }
    }

    #[test]
    fn every_operation_is_complete() {
        let document = document();
        let mut ids = BTreeSet::new();
        for (name, operation) in operations(&document) {
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{name} has no id"));
            assert!(id.bytes().all(|letter| letter.is_ascii_lowercase() || letter == b'_'), "{id}");
            assert!(ids.insert(id.to_owned()), "{id} is there twice");
            assert!(operation["summary"].as_str().is_some_and(|summary| summary.len() > 3), "{name}");
            assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{name}");
            let responses = operation["responses"].as_object().unwrap();
            let success = responses.iter().find(|(status, _)| status.starts_with('2')).unwrap_or_else(|| panic!("{name}")).1;
            let content = success["content"].as_object().into_iter().flatten();
            assert!(content.clone().count() > 0 || responses.contains_key("204"), "{name} answers with nothing");
            for (kind, media) in content {
                let schema = media["schema"].as_object().unwrap();
                assert!(schema.contains_key("$ref") || schema.contains_key("type"), "{name}: {kind} is not typed");
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                assert!(parameter["schema"].get("default").is_none(), "{name}: forms would send the default of {}", parameter["name"]);
                assert!(parameter["description"].is_string(), "{name}: {} is not described", parameter["name"]);
            }
        }
    }

    #[test]
    fn all_references_lead_somewhere() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
        for code in Code::ALL {
            let name = serde_json::to_value(code).unwrap();
            assert!(document["components"]["schemas"]["ErrorCode"]["enum"].as_array().unwrap().contains(&name), "{name}");
        }
    }
}
