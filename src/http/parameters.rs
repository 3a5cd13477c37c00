//! Parameters of the path and of the query.

use aide::{OperationInput, generate::GenContext, openapi::Operation, operation::add_parameters};
use axum::{
    extract::{FromRequestParts, Path, Query, rejection::PathRejection},
    http::{Uri, request::Parts},
};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    openapi::{operation::fails_with, schema},
    problem::{Code, Problem},
};

/// The parameters of a path, by their names in it.
pub(super) struct PathOf<T>(pub(super) T);

#[derive(Deserialize, JsonSchema)]
pub(super) struct CollectionPath {
    /// Name of the collection.
    pub(super) collection: String,
}

#[derive(Deserialize, JsonSchema)]
pub(super) struct ItemPath {
    /// Name of the collection.
    pub(super) collection: String,
    /// Id of the item.
    pub(super) id: String,
}

#[derive(Deserialize, JsonSchema)]
pub(super) struct ModelPath {
    /// Name of the model.
    pub(super) name: String,
}

#[derive(Deserialize, JsonSchema)]
pub(super) struct FilePath {
    /// Name of the file.
    pub(super) file: String,
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for PathOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(parameters) = Path::from_request_parts(parts, state).await?;
        Ok(Self(parameters))
    }
}

impl From<PathRejection> for Problem {
    /// A part of the path that is no UTF-8.
    fn from(rejection: PathRejection) -> Self {
        Self::new(Code::BadParameter, rejection.body_text())
    }
}

impl<T: JsonSchema> OperationInput for PathOf<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let parameters = schema::path_parameters::<T>(context);
        add_parameters(context, operation, parameters);
        fails_with(operation, &[Code::BadParameter]);
    }
}

/// The options of a query.
pub(super) struct QueryOf<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        from_query(&parts.uri).map(Self)
    }
}

impl<T: JsonSchema> OperationInput for QueryOf<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let parameters = schema::query_parameters::<T>(context);
        add_parameters(context, operation, parameters);
        fails_with(operation, &[Code::BadParameter]);
    }
}

/// Reads the options of a query.
pub(super) fn from_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    let Query(options) = Query::try_from_uri(uri).map_err(|rejection| Problem::new(Code::BadParameter, innermost_reason(&rejection)))?;
    Ok(options)
}

/// The innermost reason of an extractor's rejection, without the outer sentence about deserialising.
fn innermost_reason(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost_reason)
}
