//! `GET /openapi.json`: what the routes take and give, as OpenAPI 3.1.
//!
//! Options and bodies come from the types that read them; this file says which route has which. A test compares it with
//! the routes, and the committed `openapi.json` with what is made here (`dino-server openapi` prints it).

use axum::{Json, response::IntoResponse};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{classify, collections, embed, openai, segment, similarity};

/// One method of one path.
struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    options: Option<Value>,
    body: Option<Value>,
    answers: Vec<(&'static str, Value)>,
}

/// Makes schemas, each whole in its place.
struct Maker(SchemaGenerator);

impl Maker {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        });
        Self(settings.into_generator())
    }

    fn schema<T: JsonSchema>(&mut self) -> Value {
        let mut schema = self.0.subschema_for::<T>().to_value();
        // The name of a type says nothing to readers of the API.
        if let Value::Object(members) = &mut schema {
            members.remove("title");
        }
        schema
    }

    /// A route that takes pictures in three ways, with options of its own.
    fn pictures<T: JsonSchema>(&mut self, path: &'static str, summary: &'static str, answers: Vec<(&'static str, Value)>) -> Operation {
        let options = self.schema::<T>();
        let images = json!({ "type": "array", "minItems": 1, "items": { "type": "string" },
                             "description": "Base64, or data URIs that hold base64" });
        let mut in_json = options.clone();
        in_json["properties"]["images"] = images;
        in_json["required"] = json!(["images"]);
        Operation { method: "post", path, summary, options: Some(options), body: Some(three_forms(in_json)), answers }
    }
}

/// Raw, multipart and JSON.
fn three_forms(in_json: Value) -> Value {
    let file = json!({ "type": "string", "contentMediaType": "application/octet-stream" });
    let parts = json!({ "type": "object", "required": ["image"], "properties": { "image": { "type": "array", "items": file } } });
    json!({
        "image/*": { "schema": {} },
        "application/octet-stream": { "schema": {} },
        "multipart/form-data": { "schema": parts },
        "application/json": { "schema": in_json },
    })
}

fn in_json(schema: Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

fn object(description: &str) -> Value {
    in_json(json!({ "type": "object", "description": description }))
}

fn bytes(kind: &str) -> Value {
    json!({ kind: { "schema": {} } })
}

fn get(path: &'static str, summary: &'static str, answer: Value) -> Operation {
    Operation { method: "get", path, summary, options: None, body: None, answers: vec![("200", answer)] }
}

fn on_pictures() -> Vec<Operation> {
    let mut make = Maker::new();
    let mut vectors = object("model, dim, dtype, pooling, embeddings; grid for patches, scales for int8");
    for kind in ["application/x-npy", "application/octet-stream"] {
        vectors[kind] = json!({ "schema": {} });
    }
    let mut masks = object("model, results");
    masks["image/png"] = json!({ "schema": {} });
    let mut heat = object("model, and the map of similarities");
    heat["image/png"] = json!({ "schema": {} });
    vec![
        get("/", "A page to try the server", bytes("text/html")),
        get("/page/{file}", "What that page needs", bytes("text/javascript")),
        get("/healthz", "Version, device really used, models", object("status, version, models")),
        get("/readyz", "Whether every model has run a picture and lost no worker", object("status")),
        get("/metrics", "Metrics for Prometheus", bytes("application/openmetrics-text")),
        get("/openapi.json", "This document", object("OpenAPI 3.1")),
        get("/docs", "This document, to read and try", bytes("text/html")),
        get("/docs/{file}", "What that page needs", bytes("text/css")),
        get("/v1/models", "Models", object("object, data")),
        Operation {
            method: "post",
            path: "/v1/models/{name}/reload",
            summary: "Loads a model again from its folder while the one before answers",
            options: None,
            body: None,
            answers: vec![("200", object("model, fingerprint, changed, seconds"))],
        },
        make.pictures::<embed::Options>("/embed", "Vectors of pictures", vec![("200", vectors)]),
        make.pictures::<classify::Options>(
            "/classify",
            "Vote of the nearest neighbours",
            vec![("200", object("collection, model, results"))],
        ),
        make.pictures::<segment::Options>("/segment", "Masks of what stands out", vec![("200", masks)]),
        make.pictures::<similarity::Options>("/similarity", "Patches that are like points of a picture", vec![("200", heat)]),
        Operation {
            method: "post",
            path: "/v1/embeddings",
            summary: "Vectors of pictures, as OpenAI's API has it",
            options: None,
            body: Some(in_json(make.schema::<openai::Request>())),
            answers: vec![("200", in_json(make.schema::<openai::Answer>()))],
        },
    ]
}

fn on_collections() -> Vec<Operation> {
    let mut make = Maker::new();
    let collection = "/collections/{collection}";
    let info = || object("Name, count, dim, model, created, index");
    let ids = in_json(make.schema::<collections::Ids>());
    vec![
        get("/collections", "All collections, by name", object("collections")),
        get(collection, "One collection", info()),
        Operation {
            method: "put",
            path: collection,
            summary: "Makes a collection, or finds that it is there already",
            options: None,
            body: Some(in_json(make.schema::<collections::NewCollection>())),
            answers: vec![("201", info()), ("200", info())],
        },
        Operation {
            method: "delete",
            path: collection,
            summary: "Deletes a collection with all its items",
            options: None,
            body: None,
            answers: vec![("204", Value::Null)],
        },
        Operation {
            options: Some(make.schema::<collections::RecallOptions>()),
            ..get(
                "/collections/{collection}/recall",
                "Recall of the index against exact search",
                in_json(make.schema::<crate::index::Recall>()),
            )
        },
        Operation {
            options: Some(make.schema::<collections::MapOptions>()),
            ..get(
                "/collections/{collection}/map",
                "Items on a plane, like beside like (t-SNE); made once for each state of the collection",
                in_json(make.schema::<collections::Map>()),
            )
        },
        Operation {
            method: "post",
            path: "/collections/{collection}/search",
            summary: "The nearest items to a picture or a vector",
            options: Some(make.schema::<collections::SearchOptions>()),
            body: Some(three_forms(make.schema::<collections::SearchOptions>())),
            answers: vec![("200", in_json(make.schema::<collections::SearchAnswer<'_>>()))],
        },
        Operation {
            method: "post",
            path: "/collections/{collection}/snapshot",
            summary: "A collection as one file",
            options: None,
            body: None,
            answers: vec![("200", bytes("application/octet-stream"))],
        },
        Operation {
            method: "post",
            path: "/collections/{collection}/restore",
            summary: "Makes a collection of a snapshot",
            options: Some(make.schema::<collections::RestoreOptions>()),
            body: Some(bytes("application/octet-stream")),
            answers: vec![("201", info())],
        },
        Operation {
            options: Some(make.schema::<collections::PageOptions>()),
            ..get("/collections/{collection}/items", "Items in the order of their ids", in_json(make.schema::<collections::Page>()))
        },
        Operation {
            method: "post",
            path: "/collections/{collection}/items",
            summary: "Stores items, all or none, and answers once they are durable",
            options: Some(make.schema::<collections::ItemQuery>()),
            body: Some(three_forms(make.schema::<collections::ItemsBody>())),
            answers: vec![("200", ids)],
        },
        get("/collections/{collection}/items/{id}", "One item with its vector", in_json(make.schema::<collections::Shown>())),
        Operation {
            method: "delete",
            path: "/collections/{collection}/items/{id}",
            summary: "Deletes one item",
            options: None,
            body: None,
            answers: vec![("204", Value::Null)],
        },
        get("/collections/{collection}/items/{id}/image", "The stored picture of an item", bytes("image/*")),
        Operation {
            method: "post",
            path: "/collections/{collection}/items/delete",
            summary: "Deletes all items that pass a filter",
            options: None,
            body: Some(in_json(make.schema::<collections::Which>())),
            answers: vec![("200", in_json(make.schema::<collections::Deleted>()))],
        },
    ]
}

/// The whole document.
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for operation in on_pictures().into_iter().chain(on_collections()) {
        paths.entry(operation.path).or_insert_with(|| json!({}))[operation.method] = operation.describe();
    }
    json!({
        "openapi": "3.1.0",
        // Relative to this document, which may be read through a proxy that cuts a path off.
        "servers": [{ "url": ".", "description": "The server that this document comes from" }],
        "info": {
            "title": "dino-server",
            "version": env!("CARGO_PKG_VERSION"),
            "description": env!("CARGO_PKG_DESCRIPTION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "security": [{}, { "bearer": [] }, { "key": [] }],
        "components": {
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "key": { "type": "apiKey", "in": "header", "name": "X-Api-Key" },
            },
            "responses": { "Problem": {
                "description": "An error, RFC 9457",
                "content": { "application/problem+json": { "schema": {
                    "type": "object",
                    "required": ["title", "status", "code", "detail"],
                    "properties": {
                        "title": { "type": "string" },
                        "status": { "type": "integer" },
                        "code": { "type": "string", "description": "What kind of error it is; never changes" },
                        "detail": { "type": "string" },
                        "index": { "type": "integer", "description": "Position of the picture at fault" },
                    },
                } } },
            } },
        },
    })
}

impl Operation {
    fn describe(&self) -> Value {
        let mut parameters: Vec<Value> = self
            .path
            .split(['{', '}'])
            .skip(1)
            .step_by(2)
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        let options = self.options.as_ref().and_then(|options| options["properties"].as_object());
        for (name, schema) in options.into_iter().flatten() {
            let mut parameter = json!({ "name": name, "in": "query", "schema": schema });
            if self.body.is_some() && self.path != "/collections/{collection}/restore" {
                parameter["description"] = json!("With a raw or multipart body; a JSON body holds its options itself");
            }
            parameters.push(parameter);
        }
        let mut responses = Map::new();
        for (status, content) in &self.answers {
            let mut response = json!({ "description": self.summary });
            if !content.is_null() {
                response["content"] = content.clone();
            }
            responses.insert((*status).to_owned(), response);
        }
        responses.insert("default".to_owned(), json!({ "$ref": "#/components/responses/Problem" }));
        let mut described = json!({ "summary": self.summary, "parameters": parameters, "responses": responses });
        if let Some(body) = &self.body {
            described["requestBody"] = json!({ "content": body, "required": self.method != "put" });
        }
        described
    }
}

pub(super) async fn handle() -> impl IntoResponse {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every path that is routed is described, and the other way round.
    #[test]
    fn the_document_has_the_routes_and_no_others() {
        let source = [include_str!("mod.rs"), include_str!("collections/mod.rs")].concat();
        let mut routed: Vec<&str> = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        // Part of the route of one item.
        routed.push("/collections/{collection}/items/delete");
        routed.sort_unstable();
        routed.dedup();
        let document = document();
        let described: Vec<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, routed);
    }

    #[test]
    fn the_committed_document_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let committed: Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
        assert!(committed == document(), "openapi.json is out of date: run `dino-server openapi > openapi.json`");
    }
}
