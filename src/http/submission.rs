//! Pictures and options of a request, in the three forms that they may come in.
//!
//! | `Content-Type` | pictures | options |
//! | --- | --- | --- |
//! | `image/*`, `application/octet-stream` | the body is one | query parameters |
//! | `multipart/form-data` | each part named `image` | query parameters |
//! | `application/json` | `{"images": ["<base64>", "data:image/…;base64,…", "https://…"]}` | the other members |

use axum::{
    body::Body,
    extract::{FromRequest, Multipart, Query, Request},
    http::{HeaderMap, Uri, header, request::Parts},
};
use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use mime::Mime;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    App,
    body::{Share, discard, read},
    problem::{Code, Problem},
    remote::{self, Sent},
};
use crate::batch::Ticket;

/// Base64 as it is met in the wild: padded or not.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// What a client sent to a route whose options are `O`.
#[derive(Debug)]
pub struct Submission<O> {
    /// The pictures' bytes, at least one, not decoded yet.
    pub pictures: Vec<Bytes>,
    /// The route's options.
    pub options: O,
    /// The room that the request takes up, until it is answered.
    pub room: Room,
}

/// A place for each picture, and the memory of the body.
#[derive(Debug)]
pub struct Room {
    _places: Ticket,
    memory: Share,
}

/// The forms of a body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Raw,
    Multipart,
    Json,
}

/// A body that was read within the limits, its pictures not counted in yet.
#[derive(Debug)]
pub(super) struct Upload<O> {
    pub(super) content: Content<O>,
    pub(super) memory: Share,
}

/// What a body holds.
#[derive(Debug)]
pub(super) enum Content<O> {
    /// Pictures alone; the options were in the query.
    Pictures(Vec<Bytes>, O),
    /// JSON, not parsed yet.
    Json(Bytes),
}

impl Room {
    /// Room for so many pictures of a body.
    pub(super) fn take(app: &App, pictures: usize, memory: Share) -> Result<Self, Problem> {
        Ok(Self { _places: app.admission.admit(pictures)?, memory })
    }

    /// More memory that goes with it.
    pub(super) fn add(&mut self, memory: Share) {
        self.memory.merge(memory);
    }
}

impl<O: DeserializeOwned + Send> FromRequest<App> for Upload<O> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let (form, query) = match before_the_body(&parts, app) {
            Ok(known) => known,
            Err(problem) => {
                discard(&parts.headers, body).await;
                return Err(problem);
            }
        };
        let (body, memory) = read(&parts, body, app.limits.body, &app.bodies).await?;
        let content = match (form, query) {
            (Form::Raw, Some(options)) => Content::Pictures(vec![body], options),
            (Form::Multipart, Some(options)) => Content::Pictures(from_multipart(parts, body, app.limits.pictures).await?, options),
            _ => Content::Json(body),
        };
        Ok(Self { content, memory })
    }
}

impl<O: DeserializeOwned + Send + 'static> FromRequest<App> for Submission<O> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let Upload { content, memory } = Upload::from_request(request, app).await?;
        let most = app.limits.pictures;
        let (mut pictures, options) = match content {
            Content::Pictures(pictures, options) => (pictures.into_iter().map(Sent::from).collect(), options),
            // Base64 of many megabytes takes its time, which other requests shall not wait for.
            Content::Json(body) => app.pool.run(move || from_json(&body, most)).await??,
        };
        let mut room = Room::take(app, at_least_one(&pictures)?, memory)?;
        remote::fetch(app, pictures.iter_mut().enumerate(), &mut room).await?;
        Ok(Self { pictures: pictures.into_iter().map(|sent| sent.bytes).collect(), options, room })
    }
}

/// Refuses a request without pictures, and counts the others.
pub(super) fn at_least_one<T>(pictures: &[T]) -> Result<usize, Problem> {
    match pictures.len() {
        0 => Err(Problem::new(Code::NoPictures, "the request holds no picture")),
        count => Ok(count),
    }
}

/// All that can be refused before the body is read: the form, the options in the query, a server without room.
fn before_the_body<O: DeserializeOwned>(parts: &Parts, app: &App) -> Result<(Form, Option<O>), Problem> {
    let form = form(&parts.headers)?;
    let options = match form {
        Form::Raw | Form::Multipart => Some(from_query(&parts.uri)?),
        Form::Json if parts.uri.query().is_some_and(|query| !query.is_empty()) => {
            return Err(Problem::new(Code::BadParameter, "options of a JSON request belong beside `images` in the body, not in the query"));
        }
        Form::Json => None,
    };
    // Only asked here: a client that sends slowly should hold no place.
    drop(app.admission.admit(1)?);
    Ok((form, options))
}

/// Which form the headers announce.
fn form(headers: &HeaderMap) -> Result<Form, Problem> {
    let refused = |what: String| {
        Problem::new(
            Code::UnsupportedMediaType,
            format!(
                "{what}; send image/*, application/octet-stream, multipart/form-data or application/json \
                 (with curl: -H 'Content-Type: image/jpeg')"
            ),
        )
    };
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(refused(format!("a body with Content-Encoding {encoding:?} is not read")));
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(refused("the request has no Content-Type".into()));
    };
    let kind: Option<Mime> = value.to_str().ok().and_then(|text| text.parse().ok());
    match kind.as_ref().map(|kind| (kind.type_(), kind.subtype())) {
        Some((mime::IMAGE, _) | (mime::APPLICATION, mime::OCTET_STREAM)) => Ok(Form::Raw),
        Some((mime::MULTIPART, mime::FORM_DATA)) => Ok(Form::Multipart),
        Some((mime::APPLICATION, mime::JSON)) => Ok(Form::Json),
        _ => Err(refused(format!("Content-Type {value:?} is not one of ours"))),
    }
}

pub(super) fn from_query<O: DeserializeOwned>(uri: &Uri) -> Result<O, Problem> {
    let Query(options) = Query::try_from_uri(uri).map_err(|rejection| Problem::new(Code::BadParameter, source_text(&rejection)))?;
    Ok(options)
}

/// The innermost reason of an extractor's rejection, without the outer sentence about deserialising.
fn source_text(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), source_text)
}

async fn from_multipart(parts: Parts, body: Bytes, most: usize) -> Result<Vec<Bytes>, Problem> {
    let refused = |why: String| Problem::new(Code::BadMultipart, why);
    let request = Request::from_parts(parts, Body::from(body));
    let mut form = Multipart::from_request(request, &()).await.map_err(|rejection| refused(rejection.body_text()))?;
    let mut pictures = Vec::new();
    while let Some(part) = form.next_field().await.map_err(|error| refused(error.body_text()))? {
        if part.name() != Some("image") {
            let name = part.name().unwrap_or("without a name");
            return Err(refused(format!("part `{name}`: pictures are parts named `image`, options are query parameters")));
        }
        if pictures.len() == most {
            return Err(too_many(most));
        }
        pictures.push(part.bytes().await.map_err(|error| refused(error.body_text()))?);
    }
    Ok(pictures)
}

/// A JSON body: the pictures, and everything else as options.
#[derive(Deserialize)]
struct JsonBody {
    images: Option<Vec<String>>,
    #[serde(flatten)]
    options: serde_json::Map<String, serde_json::Value>,
}

fn from_json<O: DeserializeOwned>(body: &[u8], most: usize) -> Result<(Vec<Sent>, O), Problem> {
    let body: JsonBody = serde_json::from_slice(body)
        .map_err(|error| Problem::new(Code::BadJson, format!("{error}; expected {{\"images\": [\"<base64>\", …], …options}}")))?;
    let options = serde_path_to_error::deserialize(serde_json::Value::Object(body.options))
        .map_err(|error| Problem::new(Code::BadParameter, named(&error)))?;
    let images = body.images.ok_or_else(|| Problem::new(Code::NoPictures, "`images` is missing: a list of base64 texts"))?;
    if images.len() > most {
        return Err(too_many(most));
    }
    let pictures = images
        .iter()
        .enumerate()
        .map(|(index, text)| picture_from_text(text).map_err(|problem| problem.at(index)))
        .collect::<Result<_, _>>()?;
    Ok((pictures, options))
}

/// `k: invalid type…`, or just the reason where it names the option itself.
pub(super) fn named(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    match error.path().to_string().as_str() {
        "." => error.inner().to_string(),
        path => {
            let reason = error.inner().to_string();
            // Filters say themselves where in them something is wrong.
            if reason.starts_with(path) { reason } else { format!("{path}: {reason}") }
        }
    }
}

/// Base64, a data URI that holds base64, or an address.
pub(super) fn picture_from_text(text: &str) -> Result<Sent, Problem> {
    let text = text.trim();
    let lower = |prefix: &str| text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    if lower("http://") || lower("https://") {
        return Ok(Sent::at(text));
    }
    let encoded = if lower("data:") {
        match text.split_once(',') {
            Some((head, data)) if head.to_ascii_lowercase().ends_with(";base64") => data,
            _ => {
                return Err(Problem::new(Code::BadBase64, "a data URI must have the form data:image/…;base64,…"));
            }
        }
    } else {
        text
    };
    let decoded = if encoded.bytes().any(|byte| byte.is_ascii_whitespace()) {
        // Encoders made for mail break lines.
        let joined: Vec<u8> = encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        BASE64.decode(joined)
    } else {
        BASE64.decode(encoded)
    };
    decoded.map(|bytes| Bytes::from(bytes).into()).map_err(|error| Problem::new(Code::BadBase64, format!("no base64: {error}")))
}

pub(super) fn too_many(most: usize) -> Problem {
    Problem::new(Code::TooManyPictures, format!("a request may hold {most} pictures (--max-pictures): send the others in further requests"))
}
