//! Request bodies as the document describes them.

use std::{borrow::Cow, convert::Infallible, marker::PhantomData};

use aide::{
    OperationInput,
    generate::GenContext,
    openapi::{MediaType, Operation, RequestBody, SchemaObject},
    operation::{add_parameters, set_body},
};
use axum::extract::{FromRequest, Request};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{
    super::{
        json::Strict,
        problem::Code,
        response::binary,
        submission::{JsonUpload, Submission, Upload},
    },
    operation::fails_with,
    schema::{query_parameters, with_members},
};

/// Errors of a body that is read within limits.
const BODY: &[Code] = &[Code::BadJson, Code::BodyTimeout, Code::BodyTooLarge, Code::UnsupportedMediaType, Code::QueueFull];
/// Errors of pictures, from their decoding to their inference.
const PICTURES: &[Code] = &[Code::CorruptPicture, Code::InferenceFailed, Code::NotReady];

/// A picture that every model takes (8 x 8 pixels, black beside white), so that the example of a request can be sent as it is.
const EXAMPLE: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAADElEQVR42mP4wIACATwQB4FjyZutAAAAAElFTkSuQmCC";

/// The JSON of a submission: pictures beside the options of its route.
pub(in crate::http) struct WithImages<O>(PhantomData<O>);

impl<O: JsonSchema> JsonSchema for WithImages<O> {
    fn schema_name() -> Cow<'static, str> {
        O::schema_name().replace("Options", "Request").into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let images = json_schema!({ "type": "array", "minItems": 1, "items": { "type": "string" }, "description": IMAGES });
        let mut schema = with_members(O::json_schema(generator), &[("images", images)], &["images"]);
        schema.remove("example");
        schema
    }
}

const IMAGES: &str = "Pictures as base64, as data URIs that hold base64, or, where the server fetches them, as URLs";

/// JSON of a route that differs from `{"images": […]}`.
pub(in crate::http) trait OwnJson {
    /// How the route reads pictures and options, in its three forms.
    const DESCRIPTION: &'static str;
}

/// How the other routes that take pictures read their options.
const OPTIONS: &str = "Pictures are the body itself, parts named `image`, or members of JSON. Options are parameters of the query; JSON may hold \
                       them too, and counts where both name one.";

fn json_of<J: JsonSchema>(context: &mut GenContext, example: Option<Value>) -> (String, MediaType) {
    let schema = SchemaObject { json_schema: context.schema.subschema_for::<J>(), external_docs: None, example: None };
    ("application/json".into(), MediaType { schema: Some(schema), example, ..MediaType::default() })
}

/// Pictures in the three forms.
fn pictures(json: (String, MediaType)) -> RequestBody {
    let mut parts = binary();
    if let Some(schema) = &mut parts.schema {
        let file = schema.json_schema.clone();
        schema.json_schema = json_schema!({
            "type": "object", "required": ["image"], "properties": { "image": { "type": "array", "minItems": 1, "items": file } },
        });
    }
    let raw = [("image/*".to_owned(), binary()), ("application/octet-stream".to_owned(), binary())];
    let content = raw.into_iter().chain([("multipart/form-data".to_owned(), parts), json]).collect();
    RequestBody { content, required: true, ..RequestBody::default() }
}

impl<O: JsonSchema> OperationInput for Submission<O> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let mut example = json!({ "images": [EXAMPLE] });
        // Options that have to be given.
        if let Some(options) = O::json_schema(&mut context.schema).get("example").and_then(Value::as_object) {
            example.as_object_mut().into_iter().for_each(|example| example.extend(options.clone()));
        }
        describe::<O>(context, operation, OPTIONS);
        let json = json_of::<WithImages<O>>(context, Some(example));
        set_body(context, operation, pictures(json));
    }
}

impl<O: JsonSchema, J: JsonSchema + OwnJson> OperationInput for Upload<O, J> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        describe::<O>(context, operation, J::DESCRIPTION);
        let json = json_of::<J>(context, None);
        set_body(context, operation, pictures(json));
    }
}

fn describe<O: JsonSchema>(context: &mut GenContext, operation: &mut Operation, how: &str) {
    let parameters = query_parameters::<O>(context);
    add_parameters(context, operation, parameters);
    operation.description = Some(how.into());
    fails_with(operation, BODY);
    fails_with(operation, PICTURES);
}

impl<J: JsonSchema> OperationInput for JsonUpload<J> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        fails_with(operation, BODY);
        fails_with(operation, PICTURES);
        let content = [json_of::<J>(context, Some(json!({ "input": [EXAMPLE] })))].into_iter().collect();
        set_body(context, operation, RequestBody { content, required: true, ..RequestBody::default() });
    }
}

/// A request whose body is a snapshot, not read yet.
pub(in crate::http) struct SnapshotUpload(pub(in crate::http) Request);

impl<S: Sync> FromRequest<S> for SnapshotUpload {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        Ok(Self(request))
    }
}

impl OperationInput for SnapshotUpload {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let content = [("application/octet-stream".to_owned(), binary())].into_iter().collect();
        set_body(context, operation, RequestBody { content, required: true, ..RequestBody::default() });
    }
}

impl<T: JsonSchema> OperationInput for Strict<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        fails_with(operation, BODY);
        let required = T::json_schema(&mut context.schema).get("required").is_some();
        let content = [json_of::<T>(context, None)].into_iter().collect();
        set_body(context, operation, RequestBody { content, required, ..RequestBody::default() });
    }
}
