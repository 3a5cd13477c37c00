//! Small JSON bodies, read to the letter.

use axum::{
    extract::{FromRequest, Request},
    http::header,
};
use serde::de::DeserializeOwned;

use super::{
    App,
    body::{discard, read},
    problem::{Code, Problem},
    submission::named,
};

/// A JSON body. No body at all counts as `{}`.
#[derive(Debug)]
pub(super) struct Strict<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Strict<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
        let is_json = |kind: &str| kind.parse::<mime::Mime>().is_ok_and(|kind| kind.subtype() == mime::JSON);
        if kind.is_some_and(|kind| !is_json(kind)) {
            discard(&parts.headers, body).await;
            return Err(Problem::new(Code::UnsupportedMediaType, "this route takes application/json"));
        }
        let (body, _memory) = read(&parts, body, app.limits.body, &app.bodies).await?;
        if body.is_empty() {
            return parse(b"{}").map(Self);
        }
        if kind.is_none() {
            return Err(Problem::new(Code::UnsupportedMediaType, "the body has no Content-Type: send application/json"));
        }
        parse(&body).map(Self)
    }
}

/// Reads `json`, and says where it is wrong.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let code = if error.inner().is_data() { Code::BadParameter } else { Code::BadJson };
        Problem::new(code, named(&error))
    })?;
    deserializer.end().map_err(|error| Problem::new(Code::BadJson, error.to_string()))?;
    Ok(value)
}
