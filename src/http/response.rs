//! Responses that name in their type what their body holds, so that the API document follows from what handlers return.

use std::marker::PhantomData;

use aide::{
    OperationOutput,
    generate::GenContext,
    openapi::{MediaType, Operation, Response as Described, StatusCode as Status},
};
use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::{JsonSchema, Schema, json_schema};
use serde::Serialize;

use super::openapi::schema::schema_of_response;

/// A body of JSON that holds a `T`, written already.
// The parameter makes it contravariant: a body that was written from borrowed data counts as one of `T<'static>`.
pub(super) struct JsonBody<T>(Response, PhantomData<fn(T)>);

impl<T> JsonBody<T> {
    /// `response` holds the JSON of a `T`.
    pub(super) fn of(response: Response) -> Self {
        Self(response, PhantomData)
    }
}

impl<T: Serialize> From<&T> for JsonBody<T> {
    /// Writes a value that is small.
    fn from(value: &T) -> Self {
        Self::of(Json(value).into_response())
    }
}

/// The media types that a kind of file may have.
pub(super) trait MediaTypes {
    /// Without parameters such as `charset`.
    const NAMES: &'static [&'static str];
}

/// The bytes of a file of kind `K`.
pub(super) struct FileBody<K>(Response, PhantomData<fn(K)>);

impl<K: MediaTypes> FileBody<K> {
    /// `media_type` is one of the kind's, with or without parameters.
    pub(super) fn new(media_type: &'static str, content: impl IntoResponse) -> Self {
        debug_assert!(K::NAMES.contains(&media_type.split(';').next().unwrap_or_default()), "{media_type} is not documented");
        let mut response = content.into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        Self(response, PhantomData)
    }
}

/// One of two bodies, as the request asks for.
pub(super) enum Either<A, B> {
    First(A),
    Second(B),
}

/// A body with the header `Server-Timing`, where a model ran.
pub(super) struct Timed<T> {
    pub(super) timing: Option<(HeaderName, HeaderValue)>,
    pub(super) body: T,
}

/// 201 where something was made, 200 where it was there already.
pub(super) enum Ensured<T> {
    Created(T),
    Found(T),
}

/// 201.
pub(super) struct Created<T>(pub(super) T);

impl<T> IntoResponse for JsonBody<T> {
    fn into_response(self) -> Response {
        self.0
    }
}

impl<K> IntoResponse for FileBody<K> {
    fn into_response(self) -> Response {
        self.0
    }
}

impl<A: IntoResponse, B: IntoResponse> IntoResponse for Either<A, B> {
    fn into_response(self) -> Response {
        match self {
            Self::First(body) => body.into_response(),
            Self::Second(body) => body.into_response(),
        }
    }
}

impl<T: IntoResponse> IntoResponse for Timed<T> {
    fn into_response(self) -> Response {
        let mut response = self.body.into_response();
        response.headers_mut().extend(self.timing);
        response
    }
}

impl<T: IntoResponse> IntoResponse for Ensured<T> {
    fn into_response(self) -> Response {
        match self {
            Self::Created(body) => Created(body).into_response(),
            Self::Found(body) => body.into_response(),
        }
    }
}

impl<T: IntoResponse> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        (StatusCode::CREATED, self.0).into_response()
    }
}

type Responses = Vec<(Option<Status>, Described)>;

const OK: Option<Status> = Some(Status::Code(200));
const CREATED: Option<Status> = Some(Status::Code(201));

fn media_type(schema: Schema) -> MediaType {
    MediaType {
        schema: Some(aide::openapi::SchemaObject { json_schema: schema, external_docs: None, example: None }),
        ..MediaType::default()
    }
}

/// Bytes that are sent as they are. Generators of clients know them by this format, which was that of OpenAPI 3.0.
pub(super) fn binary() -> MediaType {
    media_type(json_schema!({ "type": "string", "format": "binary" }))
}

impl<T: JsonSchema> OperationOutput for JsonBody<T> {
    type Inner = T;

    fn inferred_responses(context: &mut GenContext, _: &mut Operation) -> Responses {
        let (schema, description) = schema_of_response::<T>(&mut context.schema);
        let content = [("application/json".to_owned(), media_type(schema))].into_iter().collect();
        vec![(OK, Described { description, content, ..Described::default() })]
    }
}

impl<K: MediaTypes> OperationOutput for FileBody<K> {
    type Inner = Self;

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Responses {
        let content = K::NAMES.iter().map(|name| {
            let text = name.starts_with("text/") || name.ends_with("-text");
            ((*name).to_owned(), if text { media_type(json_schema!({ "type": "string" })) } else { binary() })
        });
        vec![(OK, Described { description: "The file".into(), content: content.collect(), ..Described::default() })]
    }
}

impl<A: OperationOutput, B: OperationOutput> OperationOutput for Either<A, B> {
    type Inner = A::Inner;

    fn inferred_responses(context: &mut GenContext, operation: &mut Operation) -> Responses {
        let mut responses = A::inferred_responses(context, operation);
        for (status, other) in B::inferred_responses(context, operation) {
            match responses.iter_mut().find(|(known, _)| *known == status) {
                Some((_, response)) => response.content.extend(other.content),
                None => responses.push((status, other)),
            }
        }
        responses
    }
}

impl<T: OperationOutput> OperationOutput for Timed<T> {
    type Inner = T::Inner;

    fn inferred_responses(context: &mut GenContext, operation: &mut Operation) -> Responses {
        T::inferred_responses(context, operation)
    }
}

impl<T: OperationOutput> OperationOutput for Created<T> {
    type Inner = T::Inner;

    fn inferred_responses(context: &mut GenContext, operation: &mut Operation) -> Responses {
        T::inferred_responses(context, operation).into_iter().map(|(_, response)| (CREATED, response)).collect()
    }
}

impl<T: OperationOutput> OperationOutput for Ensured<T> {
    type Inner = T::Inner;

    fn inferred_responses(context: &mut GenContext, operation: &mut Operation) -> Responses {
        let mut responses = T::inferred_responses(context, operation);
        responses.extend(Created::<T>::inferred_responses(context, operation));
        responses
    }
}
