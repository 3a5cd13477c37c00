//! Small JSON bodies, read to the letter.

use std::fmt;

use axum::{
    extract::{FromRequest, Request},
    http::header,
};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

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

/// Reads a JSON object in which no name comes twice, at any depth: of two values only one could be kept.
pub(super) fn distinct_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    match Distinct::deserialize(deserializer)?.0 {
        Value::Object(members) => Ok(members),
        _ => Err(de::Error::custom("expected a JSON object")),
    }
}

/// A JSON object as text, in which no name comes twice.
pub(super) fn distinct_object(text: &str) -> serde_json::Result<Map<String, Value>> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = distinct_names(&mut deserializer)?;
    deserializer.end()?;
    Ok(members)
}

/// A JSON value in which no name comes twice.
struct Distinct(Value);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DistinctVisitor).map(Self)
    }
}

struct DistinctVisitor;

impl<'de> Visitor<'de> for DistinctVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Distinct(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            let Distinct(value) = object.next_value()?;
            if members.contains_key(&name) {
                let name: String = name.chars().take(64).collect();
                return Err(de::Error::custom(format!("the name `{name}` comes twice in one object")));
            }
            members.insert(name, value);
        }
        Ok(members.into())
    }
}
